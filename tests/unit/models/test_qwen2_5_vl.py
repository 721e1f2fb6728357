from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from qianyan.errors import InputError
from qianyan.models.attention import NoCache
from qianyan.models.positions import Grid
from qianyan.models.qwen2_5_vl import lay_out
from qianyan.models.registry import build_model, qwen2_5_vl_config

IMAGE, VIDEO, START = 60, 61, 62


def walk(
    kinds: Sequence[str | tuple[Grid, float]], tokens_per_second: int = 2
) -> tuple[list[int], list[list[int]]]:
    """The paper's rule written token by token: ("text" | (grid, seconds per patch)) -> ids, rows.

    An image has 0 seconds per patch.
    """
    ids: list[int] = []
    rows: list[list[int]] = []
    start = 0
    for kind in kinds:
        if kind == "text":
            ids.append(1)
            rows.append([start] * 3)
        else:
            (t, h, w), seconds = kind
            for frame in range(t):
                for row in range(h // 2):
                    for column in range(w // 2):
                        ids.append(VIDEO if seconds else IMAGE)
                        time = int(frame * seconds * tokens_per_second)
                        rows.append([start + time, start + row, start + column])
        start = 1 + max(max(row) for row in rows)
    return ids, rows


@pytest.mark.parametrize(
    "kinds",
    [
        ["text"] * 5,
        [((1, 4, 6), 0.0)],
        ["text", ((1, 4, 6), 0.0), "text", "text"],
        ["text", ((1, 2, 2), 0.0), "text", ((1, 8, 4), 0.0), "text"],
        ["text", ((6, 4, 4), 1.0), "text", "text"],
        ["text", ((5, 4, 4), 0.4), "text", ((1, 4, 4), 0.0), "text", ((3, 2, 6), 2.5), "text"],
    ],
)
def test_positions_follow_the_paper(tiny_model: Any, kinds: list[Any]) -> None:
    ids, rows = walk(kinds)
    pictures = [kind for kind in kinds if kind != "text"]
    positions = tiny_model.place(
        ids,
        [grid for grid, _ in pictures],
        [seconds for _, seconds in pictures if seconds],
    )
    assert positions.prompt.T.tolist() == rows
    assert positions.next.tolist() == [1 + max(max(row) for row in rows)] * 3


def test_time_is_truncated_after_the_whole_product(tiny_model: Any) -> None:
    """At 0.7 s a patch and 2 positions a second: 0, 1.4, 2.8, 4.2; not multiples of 1."""
    positions = tiny_model.place([VIDEO] * 4, [(4, 2, 2)], [0.7])
    assert positions.prompt[0].tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("ids", "grids", "seconds", "sentence"),
    [
        ([1, IMAGE, IMAGE], [], [], "more pictures than grids"),
        ([1, IMAGE, 1], [(1, 4, 2)], [], "at token 1 needs 2 tokens"),
        ([1, IMAGE], [(1, 4, 2)], [], "at token 1 needs 2 tokens"),
        ([1, 1], [(1, 2, 2)], [], "1 grids have no tokens"),
        ([VIDEO], [(1, 2, 2)], [], "0 second_per_grid_ts for more videos than that"),
        ([IMAGE], [(1, 2, 2)], [1.0], "1 second_per_grid_ts for fewer videos than that"),
        ([IMAGE, VIDEO], [(1, 4, 2)], [], "at token 0 needs 2 tokens"),
        ([IMAGE], [(1, 1, 1)], [], "Grid is 1 x 1 x 1 patches"),
        ([IMAGE], [(0, 2, 2)], [], "Grid is 0 x 2 x 2 patches"),
    ],
)
def test_tokens_and_grids_that_disagree_are_refused(
    tiny_model: Any, ids: list[int], grids: Any, seconds: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tiny_model.place(ids, grids, seconds)


def test_no_tokens_have_no_positions(tiny_model: Any) -> None:
    assert tiny_model.place([]).prompt.shape == (3, 0)


def test_windows_cover_each_unit_once_and_edges_are_smaller() -> None:
    """5 x 3 units in windows of 2 x 2, larger windows first, twice: two frames."""
    layout = lay_out((2, 10, 6), merge=2, side=2)
    one_frame = [0, 1, 3, 4, 6, 7, 9, 10, 2, 5, 8, 11, 12, 13, 14]
    assert layout.order.tolist() == one_frame + [15 + unit for unit in one_frame]
    assert layout.windows == (16, 16, 8, 8, 8, 4) * 2
    assert layout.frames == (60, 60)


def test_coordinates_follow_the_merge_blocks_in_window_order() -> None:
    layout = lay_out((1, 4, 6), merge=2, side=1)
    assert layout.coordinates[:8].tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [0, 3], [1, 2], [1, 3]),
    ]
    assert layout.order.tolist() == list(range(6))


def test_pictures_do_not_see_each_other(tiny_model: Any) -> None:
    grids: list[Grid] = [(1, 6, 10), (1, 4, 4), (2, 4, 6)]
    pixels = torch.randn(60 + 16 + 48, 1176)
    together = tiny_model.encode_images(pixels, grids)
    apart = [
        tiny_model.encode_images(part, [grid])
        for part, grid in zip(pixels.split([60, 16, 48]), grids, strict=True)
    ]
    assert_close(together, torch.cat(apart))


def test_windowed_blocks_see_their_window_only(tiny_config: dict[str, Any]) -> None:
    """With no full-attention block, a patch changes the tokens of its own window alone."""
    tiny_config["vision_config"]["fullatt_block_indexes"] = []
    model = build_model(qwen2_5_vl_config(tiny_config))
    pixels = torch.randn(60, 1176)  # 6 x 10 patches: windows of 2 x 2 units
    before = model.encode_images(pixels, [(1, 6, 10)])
    pixels[0] += 1.0
    after = model.encode_images(pixels, [(1, 6, 10)])
    changed = (before != after).any(-1).view(3, 5)
    assert changed.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("patches", "grids", "sentence"),
    [
        (12, [(1, 3, 4)], "Grid is 1 x 3 x 4 patches"),
        (16, [(1, 4, 2)], r"pixel_values is \(16, 1176\); expected \(8, 1176\) for 1 grids"),
        (4, [], "for 0 grids"),
        (0, [(0, 4, 4)], "Grid is 0 x 4 x 4"),
    ],
)
def test_patches_and_grids_that_disagree_are_refused(
    tiny_model: Any, patches: int, grids: list[Grid], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tiny_model.encode_images(torch.zeros(patches, 1176), grids)


def test_features_take_the_places_held_for_them(tiny_model: Any) -> None:
    ids = torch.tensor([1, IMAGE, 2, VIDEO, IMAGE])
    features = torch.arange(3.0).unsqueeze(1).expand(3, 32)
    hidden = tiny_model.embed(ids, features)
    assert_close(hidden[[1, 3, 4], 0], torch.tensor([0.0, 1.0, 2.0]))
    assert_close(hidden[[0, 2]], tiny_model.model.embed_tokens(ids[[0, 2]]))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_features_is_refused(tiny_model: Any, count: int) -> None:
    with pytest.raises(InputError, match=f"holds 2 places .* expected {count}, one for each"):
        tiny_model.embed(torch.tensor([IMAGE, 1, IMAGE]), torch.zeros(count, 32))


def test_scoring_some_tokens_gives_the_same_logits_as_scoring_all(tiny_model: Any) -> None:
    hidden = tiny_model.embed(torch.tensor([1, 2, 3, 4, 5]))
    positions = torch.arange(5).expand(3, -1)
    every = tiny_model(hidden, positions, NoCache([5]))
    some = tiny_model(hidden, positions, NoCache([5]), torch.tensor([1, 4]))
    assert every.shape == (5, 64)
    assert_close(some, every[[1, 4]])


def test_packed_sequences_get_the_logits_they_get_alone(tiny_model: Any) -> None:
    first, second = torch.tensor([1, 2, 3, 4]), torch.tensor([9, 8])
    places = torch.arange(4).expand(3, -1)

    def alone(ids: Tensor) -> Tensor:
        hidden = tiny_model.embed(ids)
        logits: Tensor = tiny_model(hidden, places[:, : len(ids)], NoCache([len(ids)]))
        return logits

    packed = tiny_model(
        tiny_model.embed(torch.cat([first, second])),
        torch.cat([places, places[:, :2]], dim=1),
        NoCache([4, 2]),
    )
    assert_close(packed, torch.cat([alone(first), alone(second)]))


def test_every_parameter_learns(tiny_model: nn.Module) -> None:
    """One backward pass from the logits reaches the first patch embedding and all in between."""
    features = tiny_model.encode_images(torch.randn(24, 1176), [(1, 4, 6)])
    ids = [1, *[IMAGE] * 6, 2, 3]
    hidden = tiny_model.embed(torch.tensor(ids), features)
    positions = tiny_model.place(ids, [(1, 4, 6)]).prompt
    tiny_model(hidden, positions, NoCache([9])).square().sum().backward()
    still = [
        name for name, p in tiny_model.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert still == []


def test_half_precision_runs_and_scores_in_float32(tiny_model: Any) -> None:
    model = tiny_model.bfloat16()
    features = model.encode_images(torch.randn(16, 1176), [(1, 4, 4)])
    assert features.dtype == torch.bfloat16
    ids = [1, *[IMAGE] * 4, 2]
    hidden = model.embed(torch.tensor(ids), features)
    logits = model(hidden, model.place(ids, [(1, 4, 4)]).prompt, NoCache([6]))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_autocast_training_agrees_with_float32(tiny_model: Any) -> None:
    ids = [1, *[IMAGE] * 15, 2]
    pixels, positions = torch.randn(60, 1176), tiny_model.place(ids, [(1, 6, 10)]).prompt

    def grads() -> dict[str, Tensor]:
        tiny_model.zero_grad()
        features = tiny_model.encode_images(pixels, [(1, 6, 10)])
        logits = tiny_model(tiny_model.embed(torch.tensor(ids), features), positions, NoCache([17]))
        logits[-1].softmax(-1)[3].backward()
        return {name: p.grad.clone() for name, p in tiny_model.named_parameters()}

    exact = grads()
    with torch.autocast("cpu", torch.bfloat16):
        rough = grads()
    for name in ("visual.patch_embed.proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        similarity = torch.cosine_similarity(exact[name].flatten(), rough[name].flatten(), dim=0)
        assert similarity > 0.98
