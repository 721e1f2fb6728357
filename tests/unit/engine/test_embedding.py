"""Embeddings: the last token's state, of length 1, whoever else is in the pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from qianyan.engine.embedding import EmbeddingOptions
from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import CapacityError, ConfigError, InputError
from qianyan.models.attention import NoCache

TEXTS = ["hard hat", "a", "人没有戴安全帽", "hard hat", "a worker on a ladder " * 5]
QUERY = "Instruct: find\nQuery:"


@pytest.fixture(scope="module")
def embedding_engine(embedding_checkpoint: Path) -> Engine:
    return Engine(embedding_checkpoint)


@pytest.fixture
def edited(embedding_checkpoint: Path, tmp_path: Path) -> Callable[[str, Any], Path]:
    """Give a copy of the checkpoint whose file of that name is another one, or not there."""

    def edit(name: str, data: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(embedding_checkpoint, folder)
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(json.dumps(data))
        return folder

    return edit


def states_of(engine: Engine, text: str) -> torch.Tensor:
    """Compute a text's last state by hand, one token at the end more than it has."""
    ids = engine.processor.tokenizer.encode(text)
    ids.append(engine.processor.tokenizer.token_id("<|endoftext|>"))
    model: Any = engine.model
    with torch.inference_mode():
        hidden = model.embed(torch.tensor(ids))
        places = torch.arange(len(ids)).unsqueeze(0)
        states: torch.Tensor = model.model(hidden, places, NoCache([len(ids)]))
    return states[-1]


def test_a_vector_is_the_state_of_the_end_token_at_length_one(embedding_engine: Engine) -> None:
    found = embedding_engine.embed(TEXTS)
    expected = torch.stack([states_of(embedding_engine, text) for text in TEXTS])
    assert_close(found.vectors, functional.normalize(expected, dim=-1))
    assert_close(found.vectors.norm(dim=-1), torch.ones(len(TEXTS)))
    assert found.num_tokens == sum(len(text.encode()) + 1 for text in TEXTS)
    assert not torch.allclose(found.vectors[0], found.vectors[1], atol=0.1)


def test_company_in_a_pass_changes_nothing(embedding_checkpoint: Path) -> None:
    together = Engine(embedding_checkpoint).embed(TEXTS).vectors
    narrow = Engine(embedding_checkpoint, config=EngineConfig(max_batch_tokens=12))
    alone = torch.cat([narrow.embed([text]).vectors for text in TEXTS])
    assert_close(together, alone)
    assert_close(narrow.embed(TEXTS).vectors, alone)


def test_fewer_dimensions_are_the_first_ones_at_length_one(embedding_engine: Engine) -> None:
    whole = embedding_engine.embed(TEXTS).vectors
    cut = embedding_engine.embed(TEXTS, dimensions=8).vectors
    assert_close(cut, functional.normalize(whole[:, :8], dim=-1))
    for wrong in (0, -1, 65):
        with pytest.raises(InputError, match="expected 1 to 64"):
            embedding_engine.embed(TEXTS, dimensions=wrong)


def test_token_ids_are_taken_as_they_are(embedding_engine: Engine) -> None:
    tokenizer = embedding_engine.processor.tokenizer
    ids = tokenizer.encode_whole("hard hat")
    assert ids[-1] == tokenizer.token_id("<|endoftext|>")
    same, bare = embedding_engine.embed([ids, ids[:-1]], kind="query").vectors
    assert_close(same, embedding_engine.embed(["hard hat"]).vectors[0])
    assert not torch.allclose(same, bare, atol=1e-3)


def test_prompts_of_the_checkpoint_stand_before_texts(
    embedding_engine: Engine, edited: Callable[[str, Any], Path]
) -> None:
    plain = embedding_engine.embed(["hat", f"{QUERY}hat", "Instruct: look\nQuery:hat"]).vectors
    query = embedding_engine.embed(["hat"], kind="query").vectors[0]
    document = embedding_engine.embed(["hat"], kind="document").vectors[0]
    told = embedding_engine.embed(["hat"], instruction="look").vectors[0]
    assert_close(torch.stack([document, query, told]), plain)
    prompts = {"prompts": {"query": QUERY}, "default_prompt_name": "query"}
    with pytest.raises(InputError, match="expected one of query, document"):
        embedding_engine.embed(["hat"], kind="passage")
    usual = Engine(edited("config_sentence_transformers.json", prompts))
    assert_close(usual.embed(["hat"]).vectors[0], plain[1])
    assert_close(usual.embed(["hat"], kind="document").vectors[0], plain[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [([[]], "is empty"), ([[0, 264]], "token 264"), ([[-1]], "token -1"), (["\ud800"], "half")],
)
def test_what_cannot_be_embedded_is_refused(
    embedding_engine: Engine, given: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        embedding_engine.embed(given)


def test_a_text_that_is_too_long_is_refused_and_one_that_just_fits_is_not(
    embedding_engine: Engine,
) -> None:
    assert embedding_engine.embed(["a" * 511]).num_tokens == 512
    with pytest.raises(CapacityError, match="place 1 is 513 tokens; expected at most 512"):
        embedding_engine.embed(["a", "a" * 512])


def test_passes_hold_no_more_than_fits_and_every_text_once(embedding_checkpoint: Path) -> None:
    engine = Engine(embedding_checkpoint, config=EngineConfig(max_batch_tokens=20))
    assert engine.embedder is not None
    batch = engine.embedder.read(["a" * count for count in (30, 3, 9, 9, 1)], EmbeddingOptions())
    sizes = [[len(batch.token_ids[place]) for place in places] for places in batch.passes]
    assert sizes == [[2, 4, 10], [10], [31]]


def test_an_embedding_model_answers_no_conversations(embedding_engine: Engine) -> None:
    with pytest.raises(InputError, match="answers no conversations"):
        embedding_engine.chat([{"role": "user", "content": "hello"}])


def test_a_chat_model_makes_no_embeddings(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="makes no embeddings"):
        Engine(tiny_checkpoint).embed(["hello"])


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}
TYPES = "sentence_transformers.models."


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("1_Pooling/config.json", MEAN, "pools by mean_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "mean"}, "pools by mean"),
        ("1_Pooling/config.json", None, "pools by nothing"),
        ("modules.json", {"type": "x"}, "no list of modules"),
        ("config_sentence_transformers.json", {"prompts": ["x"]}, "prompts that are no texts"),
        ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "prompts that are no"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name"),
        ("modules.json", [{"type": f"{TYPES}Transformer", "path": ""}], "no Pooling"),
        ("modules.json", [{"type": f"{TYPES}Dense", "path": "2_Dense"}], "names 'Dense'"),
    ],
)
def test_other_ways_to_embed_are_refused(
    edited: Callable[[str, Any], Path], name: str, data: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Engine(edited(name, data))


def test_the_newer_form_of_the_pooling_is_read(edited: Callable[[str, Any], Path]) -> None:
    folder = edited("1_Pooling/config.json", {"pooling_mode": "lasttoken"})
    assert Engine(folder).embed(["hat"]).vectors.shape == (1, 64)


def test_a_model_of_another_kind_is_no_embedding_model(
    tiny_checkpoint: Path, embedding_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "seeing"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copy(embedding_checkpoint / "modules.json", folder)
    with pytest.raises(ConfigError, match="expected Qwen3ForCausalLM"):
        Engine(folder)


def test_a_quantised_one_makes_nearly_the_same_vectors(
    embedding_engine: Engine, embedding_checkpoint: Path
) -> None:
    coarse = Engine(embedding_checkpoint, quantize="int8").embed(TEXTS).vectors
    assert (coarse * embedding_engine.embed(TEXTS).vectors).sum(dim=-1).min() > 0.99
