"""Our Qwen2-VL and Qwen2.5-VL against transformers, float32, on small random checkpoints.

The oracle is told which tokens are pictures (`mm_token_type_ids`) or gets explicit positions: left
to itself it silently falls back to one-dimensional ones.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn.functional import pad
from torch.testing import assert_close

from qianyan.models.attention import NoCache
from qianyan.models.positions import Grid
from qianyan.models.registry import load_model
from qianyan.models.vision_language import VisionLanguageModel
from qianyan.models.weights import save_checkpoint

assert_features_equal = partial(assert_close, rtol=0, atol=1e-5)
assert_logits_equal = partial(assert_close, rtol=0, atol=1e-4)
GREEDY_TOKENS = 32


@dataclass(frozen=True)
class Image:
    grid: Grid


@dataclass(frozen=True)
class Video:
    grid: Grid
    seconds: float  # between temporal patches


@dataclass
class Prompt:
    """Tokens and pictures, as a processor would hand them over; all grids in `grids`, in order."""

    ids: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)  # 0 text, 1 image, 2 video
    grids: list[Grid] = field(default_factory=list)
    is_video: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def pixels(self) -> torch.Tensor:
        """Random patches of all pictures and videos, in order."""
        return random_pixels(self.grids)

    def of_kind(self, *, video: bool) -> tuple[torch.Tensor, list[Grid]]:
        """The patches and grids of the images alone, or of the videos alone."""
        rows = self.pixels.split([t * h * w for t, h, w in self.grids])
        picked = [index for index, one in enumerate(self.is_video) if one is video]
        return torch.cat([rows[index] for index in picked]), [self.grids[i] for i in picked]


def random_pixels(grids: Sequence[Grid]) -> torch.Tensor:
    """Random patches for the grids, the same on every call."""
    generator = torch.Generator().manual_seed(len(grids))
    return torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=generator)


def make_prompt(tokens: dict[str, int], *parts: int | Image | Video) -> Prompt:
    """Join runs of text (given as token counts) and pictures inside their start and end tokens."""
    generator = torch.Generator().manual_seed(len(parts))
    prompt = Prompt()
    for part in parts:
        if isinstance(part, int):
            prompt.ids += torch.randint(0, 256, (part,), generator=generator).tolist()
            prompt.types += [0] * part
            continue
        t, h, w = part.grid
        pad = "<|image_pad|>" if isinstance(part, Image) else "<|video_pad|>"
        run = [tokens[pad]] * (t * h * w // 4)
        prompt.ids += [tokens["<|vision_start|>"], *run, tokens["<|vision_end|>"]]
        prompt.types += [0, *[1 if isinstance(part, Image) else 2] * len(run), 0]
        prompt.grids.append(part.grid)
        prompt.is_video.append(isinstance(part, Video))
        if isinstance(part, Video):
            prompt.seconds.append(part.seconds)
    return prompt


IMAGE_CASES = {
    "text": (40,),
    "one image": (7, Image((1, 6, 10)), 9),
    "several images": (3, Image((1, 6, 10)), Image((1, 4, 4)), 2, Image((1, 14, 2)), 5),
    "image after text after image": (3, Image((1, 4, 8)), 6, Image((1, 8, 2)), 4),
    "mixed turns": (12, Image((1, 10, 6)), 8, 15, 4, Image((1, 2, 2)), 3, Image((1, 12, 8)), 11),
}
VIDEO_CASES = {
    "video that outlasts its width": (3, Video((6, 4, 4), 1.0), 4),
    "video with fractions of a position": (3, Video((5, 4, 6), 0.7), 6),
    "video between images": (
        2,
        Image((1, 6, 10)),
        3,
        Video((3, 6, 4), 2.5),
        2,
        Image((1, 4, 2)),
        4,
    ),
    "two videos": (5, Video((2, 4, 8), 1.0), Video((4, 2, 6), 0.4), 3),
}


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen2_5_vl"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def folder(generation: str, request: pytest.FixtureRequest) -> Path:
    """A small random checkpoint of each generation as transformers saves it."""
    if generation == "qwen2_5_vl":
        return cast("Path", request.getfixturevalue("official_checkpoint"))
    return cast(
        "Path", request.getfixturevalue("make_checkpoint")(generation, generation=generation)
    )


@pytest.fixture(scope="session")
def ours(folder: Path) -> VisionLanguageModel:
    return load_model(folder)


@pytest.fixture(scope="session")
def theirs(folder: Path, load_oracle: Callable[[Path], Any]) -> Any:
    return load_oracle(folder)


@pytest.fixture(scope="session")
def flat_folder(
    folder: Path,
    write_hub_form: Callable[[Path, Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same weights under the flat config.json of the Hub."""
    flat = tmp_path_factory.mktemp("flat") / "checkpoint"
    write_hub_form(folder, flat)
    return flat


def our_logits(
    model: VisionLanguageModel, prompt: Prompt, extra: Sequence[int] = ()
) -> torch.Tensor:
    """Logits for all tokens; `extra` are generated ones, which continue on all axes."""
    features = model.encode_images(prompt.pixels, prompt.grids) if prompt.grids else None
    positions = our_positions(model, prompt)
    start = int(positions.max()) + 1
    tail = torch.arange(start, start + len(extra)).expand(3, -1)
    hidden = model.embed(torch.tensor(prompt.ids), features)
    words = model.embed(torch.tensor(extra, dtype=torch.long))
    hidden = torch.cat([hidden, words])
    return model(hidden, torch.cat([positions, tail], dim=1), NoCache([len(hidden)]))


def our_positions(model: VisionLanguageModel, prompt: Prompt) -> torch.Tensor:
    return model.place(prompt.ids, prompt.grids, prompt.seconds).prompt


def oracle_inputs(model: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
    inputs = {
        "input_ids": torch.tensor([prompt.ids]),
        "attention_mask": torch.ones(1, len(prompt.ids), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([prompt.types], dtype=torch.int),
    }
    if False in prompt.is_video:
        inputs["pixel_values"], grids = prompt.of_kind(video=False)
        inputs["image_grid_thw"] = torch.tensor(grids)
    if True in prompt.is_video:
        inputs["pixel_values_videos"], grids = prompt.of_kind(video=True)
        inputs["video_grid_thw"] = torch.tensor(grids)
        if model.config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor(prompt.seconds)
    return inputs


def oracle_logits(model: Any, prompt: Prompt, **given: Any) -> torch.Tensor:
    model.model.rope_deltas = None  # kept from the last call otherwise
    logits: torch.Tensor = model(**oracle_inputs(model, prompt), **given).logits[0]
    return logits


def oracle_positions(model: Any, prompt: Prompt) -> torch.Tensor:
    inputs = oracle_inputs(model, prompt)
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: inputs[name] for name in names if name in inputs}
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], **given
    )
    picked: torch.Tensor = positions[:, 0]
    return picked


@pytest.mark.parametrize(
    "grids",
    [
        [(1, 4, 4)],  # one window exactly
        [(1, 6, 10)],  # neither side a multiple of the window
        [(1, 16, 8)],  # full windows only
        [(1, 2, 30)],  # thinner than a window
        [(3, 6, 10)],  # frames do not see each other
        [(1, 6, 10), (1, 4, 4), (2, 10, 6), (1, 6, 10)],  # packed together
    ],
)
@torch.inference_mode()
def test_vision_features_equal(ours: Any, theirs: Any, grids: list[Grid]) -> None:
    pixels = random_pixels(grids)
    features = theirs.get_image_features(pixels, torch.tensor(grids)).pooler_output
    assert_features_equal(ours.encode_images(pixels, grids), torch.cat(features))


@pytest.mark.parametrize("case", IMAGE_CASES)
@torch.inference_mode()
def test_text_and_images_get_the_same_positions_and_logits(
    ours: Any, theirs: Any, tiny_tokens: dict[str, int], case: str
) -> None:
    prompt = make_prompt(tiny_tokens, *IMAGE_CASES[case])
    assert torch.equal(our_positions(ours, prompt), oracle_positions(theirs, prompt))
    assert_logits_equal(our_logits(ours, prompt), oracle_logits(theirs, prompt))


@pytest.mark.parametrize("case", VIDEO_CASES)
@torch.inference_mode()
def test_videos_get_the_same_logits_at_our_positions(
    ours: Any, theirs: Any, tiny_tokens: dict[str, int], case: str
) -> None:
    prompt = make_prompt(tiny_tokens, *VIDEO_CASES[case])
    positions = our_positions(ours, prompt)
    expected = oracle_logits(theirs, prompt, position_ids=positions[:, None])
    assert_logits_equal(our_logits(ours, prompt), expected)


def test_short_videos_get_the_same_positions(
    ours: Any, theirs: Any, tiny_tokens: dict[str, int]
) -> None:
    """Where a video's last time lies inside its width, the oracle's rule is the paper's."""
    prompt = make_prompt(tiny_tokens, 3, Video((2, 4, 8), 1.0), 4, Video((4, 6, 8), 0.6), 3)
    assert torch.equal(our_positions(ours, prompt), oracle_positions(theirs, prompt))


@torch.inference_mode()
def test_text_after_a_long_video_follows_the_paper_where_the_oracle_does_not(
    ours: Any, theirs: Any, generation: str, tiny_tokens: dict[str, int]
) -> None:
    """The oracle continues at max(h, w)/2, inside the video's own times; the paper after them."""
    prompt = make_prompt(tiny_tokens, 2, Video((6, 4, 4), 1.0), 2)
    paper, oracle = our_positions(ours, prompt), oracle_positions(theirs, prompt)
    tail = slice(-3, None)  # <|vision_end|> and two words
    assert torch.equal(paper[:, :-3], oracle[:, :-3])
    # Qwen2.5-VL counts 2 positions a second, Qwen2-VL one for each pair of frames.
    times = range(3, 9) if generation == "qwen2_vl" else range(3, 15, 2)
    assert paper[0, 3:-3].unique().tolist() == list(times)
    assert paper[:, tail].tolist() == [[times[-1] + 1 + i for i in range(3)]] * 3
    assert oracle[:, tail].tolist() == [[5, 6, 7]] * 3

    by_rule = oracle_logits(theirs, prompt)
    by_paper = oracle_logits(theirs, prompt, position_ids=paper[:, None])
    assert (by_rule - by_paper)[tail].abs().max() > 1e-2
    assert_logits_equal(our_logits(ours, prompt), by_paper)


@torch.inference_mode()
def test_a_packed_batch_gets_the_logits_of_the_padded_batch(
    ours: Any, theirs: Any, tiny_tokens: dict[str, int]
) -> None:
    """The oracle pads on the left; we pack one prompt after the other."""
    prompts = [make_prompt(tiny_tokens, *IMAGE_CASES[case]) for case in IMAGE_CASES]
    longest = max(len(prompt.ids) for prompt in prompts)
    inputs = [oracle_inputs(theirs, prompt) for prompt in prompts]
    padded = {
        name: torch.cat([pad(one[name], (longest - one[name].shape[1], 0)) for one in inputs])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    for name in ("pixel_values", "image_grid_thw"):
        padded[name] = torch.cat([one[name] for one in inputs if name in one])
    theirs.model.rope_deltas = None
    expected = theirs(**padded).logits

    hidden, positions = [], []
    for prompt in prompts:
        features = ours.encode_images(prompt.pixels, prompt.grids) if prompt.grids else None
        hidden.append(ours.embed(torch.tensor(prompt.ids), features))
        positions.append(our_positions(ours, prompt))
    lengths = [len(each) for each in hidden]
    packed = ours(torch.cat(hidden), torch.cat(positions, dim=1), NoCache(lengths))
    for logits, row in zip(packed.split(lengths), expected, strict=True):
        assert_logits_equal(logits, row[-len(logits) :])


@pytest.mark.parametrize("case", IMAGE_CASES)
@torch.inference_mode()
def test_greedy_tokens_are_identical(
    ours: Any, theirs: Any, tiny_tokens: dict[str, int], case: str
) -> None:
    prompt = make_prompt(tiny_tokens, *IMAGE_CASES[case])
    generated: list[int] = []
    for _ in range(GREEDY_TOKENS):
        generated.append(int(our_logits(ours, prompt, generated)[-1].argmax()))
    theirs.model.rope_deltas = None
    expected = theirs.generate(
        **oracle_inputs(theirs, prompt),
        max_new_tokens=GREEDY_TOKENS,
        min_new_tokens=GREEDY_TOKENS,
        do_sample=False,
        eos_token_id=tiny_tokens["<|file_sep|>"],  # run on past the end of a turn
    )
    assert generated == expected[0, len(prompt.ids) :].tolist()


def test_the_flat_and_the_nested_config_are_the_same_model(
    flat_folder: Path, ours: Any, tiny_tokens: dict[str, int]
) -> None:
    flat = load_model(flat_folder)
    prompt = make_prompt(tiny_tokens, *IMAGE_CASES["one image"])
    assert flat.config == ours.config
    assert torch.equal(our_logits(flat, prompt), our_logits(ours, prompt))


def test_shards_written_by_transformers_are_joined(ours: Any, theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    state = load_model(tmp_path).state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())


@torch.inference_mode()
def test_what_we_save_under_a_flat_config_loads_in_transformers(
    ours: Any,
    flat_folder: Path,
    load_oracle: Callable[[Path], Any],
    tiny_tokens: dict[str, int],
    tmp_path: Path,
) -> None:
    save_checkpoint(ours, tmp_path)
    shutil.copy(flat_folder / "config.json", tmp_path)
    prompt = make_prompt(tiny_tokens, *IMAGE_CASES["mixed turns"])
    assert_logits_equal(our_logits(ours, prompt), oracle_logits(load_oracle(tmp_path), prompt))


@torch.inference_mode()
def test_bfloat16_strays_from_float32_no_further_than_the_oracle_does(
    folder: Path,
    ours: Any,
    load_oracle: Callable[[Path], Any],
    tiny_tokens: dict[str, int],
) -> None:
    prompt = make_prompt(tiny_tokens, *IMAGE_CASES["several images"])
    exact = our_logits(ours, prompt)
    half = our_logits(load_model(folder, dtype="bfloat16"), prompt)
    oracle = oracle_logits(load_oracle(folder).bfloat16(), prompt).float()
    assert (half - exact).abs().mean() < 1.2 * (oracle - exact).abs().mean()


@torch.inference_mode()
def test_a_tied_checkpoint_loads_and_agrees(
    make_checkpoint: Callable[..., Path],
    load_oracle: Callable[[Path], Any],
    generation: str,
    tiny_tokens: dict[str, int],
) -> None:
    folder = make_checkpoint("tied", generation=generation, tied=True, seed=1)
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = make_prompt(tiny_tokens, *IMAGE_CASES["one image"])
    expected = oracle_logits(load_oracle(folder), prompt)
    assert_logits_equal(our_logits(model, prompt), expected)


@torch.inference_mode()
def test_yarn_agrees(
    make_checkpoint: Callable[..., Path],
    load_oracle: Callable[[Path], Any],
    tiny_tokens: dict[str, int],
) -> None:
    """Static YaRN stretches positions by 4 and sharpens the scores at every length."""
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "mrope_section": [2, 3, 3],
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = make_checkpoint("yarn", seed=2, rope_parameters=yarn)
    prompt = make_prompt(tiny_tokens, 90, *IMAGE_CASES["one image"])
    model = load_model(folder)
    expected = oracle_logits(load_oracle(folder), prompt)
    assert_logits_equal(our_logits(model, prompt), expected)


@pytest.mark.slow
@torch.inference_mode()
def test_official_head_sizes_and_windows_agree_on_a_photo(
    make_checkpoint: Callable[..., Path],
    load_oracle: Callable[[Path], Any],
    tiny_tokens: dict[str, int],
) -> None:
    """Heads of 128 and 80, windows of 112 pixels, a 1092 x 728 picture beside a small one."""
    folder = make_checkpoint(
        "wide",
        seed=3,
        vision={"hidden_size": 320, "num_heads": 4, "window_size": 112, "out_hidden_size": 512},
        hidden_size=512,
        num_hidden_layers=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )
    prompt = make_prompt(tiny_tokens, 20, Image((1, 78, 52)), 10, Image((1, 18, 26)), 30)
    model = load_model(folder)
    expected = oracle_logits(load_oracle(folder), prompt)
    assert_logits_equal(our_logits(model, prompt), expected)
