"""Several answers to one question, prepared once; answers whose time is over."""

from typing import Any

import pytest
from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.request import Request
from qianyan.inputs import media
from qianyan.inputs.parts import PictureConfig

QUESTION = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.effect_noise((60, 90), 90).convert("RGB")},
            {"type": "text", "text": "what burns"},
        ],
    }
]
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Any) -> Engine:
    return Engine(tiny_checkpoint)


def options(seed: int, **others: Any) -> Any:
    return {"seed": seed, "temperature": 1.5, "max_tokens": 10, "logprobs": 1, **others}


def run(engine: Engine, requests: list[Request]) -> None:
    while not all(request.is_finished for request in requests):
        engine.step()


def test_choices_read_the_picture_once_and_answer_as_they_would_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [engine.chat(QUESTION, **options(seed)) for seed in SEEDS]
    cuts: list[Image.Image] = []
    cut = media._cut

    def counted(seen: Image.Image, config: PictureConfig) -> Any:
        cuts.append(seen)
        return cut(seen, config)

    monkeypatch.setattr(media, "_cut", counted)
    prepared = engine.prepare_choices(QUESTION, [options(seed) for seed in SEEDS])
    for one in prepared:
        engine.submit(*one)
    run(engine, [request for request, _ in prepared])
    assert len(cuts) == 1
    assert [request.completion().token_ids for request, _ in prepared] == [
        one.token_ids for one in alone
    ]
    assert len({tuple(one.token_ids) for one in alone}) > 1


def test_choices_under_a_schema_have_a_grammar_each(engine: Engine) -> None:
    schema = {"enum": ["fire", "smoke", "none"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = [options(seed, response_format=form, max_tokens=20) for seed in SEEDS]
    prepared = engine.prepare_choices(QUESTION, asked)
    for one in prepared:
        engine.submit(*one)
    run(engine, [request for request, _ in prepared])
    for request, _ in prepared:
        assert request.completion().text.strip('"') in schema["enum"]


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_a_cut_answer_keeps_what_it_has_and_gives_its_blocks_back(
    engine: Engine, num_steps: int
) -> None:
    never_stop = {str(token): -100 for token in engine._defaults.stop_token_ids}
    asked = options(7, max_tokens=200, logit_bias=never_stop)
    request, prompt = engine.prepare(QUESTION, asked)
    engine.submit(request, prompt)
    for _ in range(num_steps):
        engine.step()
    assert (engine.num_used_blocks > 0) is (num_steps > 0)
    engine.cut(request)
    engine.cut(request)
    completion = request.completion()
    assert engine.num_used_blocks == 0
    assert engine.step() == []
    assert completion.finish_reason == "length"
    assert completion.is_cut_by_time
    assert completion.notes[-1] == "the answer was ended at its time limit"
    assert "".join(event.text for event in request.events) == completion.text
    assert len(completion.token_ids) >= num_steps - 1


def test_what_a_stop_string_held_back_comes_with_the_end(engine: Engine) -> None:
    """The answer's own text, cut in the middle of what might have become the stop string."""
    whole = engine.chat(QUESTION, max_tokens=12).text
    stop = whole[4:6] + "\ufffe"
    request, prompt = engine.prepare(QUESTION, {"max_tokens": 200, "stop": [stop]})
    engine.submit(request, prompt)
    while len(request.reply.text) < 4 and not request.is_finished:
        engine.step()
    engine.cut(request)
    assert "".join(event.text for event in request.events) == request.completion().text
