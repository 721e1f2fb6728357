import math

import pytest
import torch
from torch.testing import assert_close

from qianyan.errors import ConfigError
from qianyan.models.rope import (
    ROTATED_TOGETHER,
    RopeScaling,
    axial_rope,
    inverse_frequencies,
    rotate,
    text_rope,
)

CPU = torch.device("cpu")
PLAIN = RopeScaling(mrope_section=(2, 3, 3))
YARN = RopeScaling(
    mrope_section=(4, 6, 6),
    rope_type="yarn",
    factor=4.0,
    original_max_position_embeddings=64,
)


def test_default_frequencies_fall_geometrically() -> None:
    expected = torch.tensor([10_000.0 ** (-2 * i / 16) for i in range(8)])
    assert_close(inverse_frequencies(16, 10_000.0, PLAIN, CPU), expected)


def test_yarn_frequencies_and_factor_equal_the_published_example() -> None:
    """Head 32, factor 4, trained on 64 positions, theta 1e6: worked out from the YaRN formulas."""
    inv_freq = inverse_frequencies(32, 1e6, YARN, CPU)
    expected = torch.tensor([1.0, 0.316272, 0.0889140, 0.0187474])
    assert_close(inv_freq[:4], expected, rtol=1e-5, atol=0)
    assert_close(inv_freq[-1], torch.tensor(1e6 ** (-30 / 32) / 4))
    assert math.isclose(YARN.scale, 1.138629, rel_tol=1e-6)


def test_yarn_takes_a_stated_attention_factor() -> None:
    stated = RopeScaling(
        mrope_section=(4, 6, 6),
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=64,
        attention_factor=1.5,
    )
    assert stated.scale == 1.5


def test_each_axis_drives_its_own_section() -> None:
    """Moving along one axis changes the cosines of that axis's section and no others."""
    inv_freq = inverse_frequencies(16, 100.0, PLAIN, CPU)
    at_zero, _ = text_rope(torch.zeros(3, 1, dtype=torch.long), inv_freq, PLAIN)
    for axis, section in enumerate((slice(0, 2), slice(2, 5), slice(5, 8))):
        position = torch.zeros(3, 1, dtype=torch.long)
        position[axis] = 5
        cos, sin = text_rope(position, inv_freq, PLAIN)
        changed = (cos != at_zero)[0, 0]
        assert changed[section].all()
        assert changed.sum() == section.stop - section.start
        assert_close(sin[0, 0, section], (5 * inv_freq[section]).sin())


def test_text_positions_give_ordinary_rope() -> None:
    inv_freq = inverse_frequencies(16, 100.0, PLAIN, CPU)
    cos, sin = text_rope(torch.arange(6).expand(3, -1), inv_freq, PLAIN)
    angles = torch.arange(6.0).unsqueeze(1) * inv_freq
    assert_close(cos[:, 0], angles.cos())
    assert_close(sin[:, 0], angles.sin())


def test_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    inv_freq = inverse_frequencies(16, 100.0, PLAIN, CPU)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        rope = text_rope(torch.tensor([query_at, key_at]).expand(3, -1), inv_freq, PLAIN)
        turned = rotate(torch.cat([query, key]), *rope)
        return (turned[0] * turned[1]).sum()

    assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_rotation_turns_element_pairs_half_a_head_apart() -> None:
    heads = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    quarter = torch.tensor([[[math.pi / 2, math.pi / 2]]])
    turned = rotate(heads, quarter.cos(), quarter.sin())
    assert_close(turned, torch.tensor([[[0.0, -1.0, 1.0, 0.0]]]))


def test_rotation_keeps_the_dtype() -> None:
    cos, sin = axial_rope(torch.tensor([[0, 1], [2, 3]]), 8)
    assert rotate(torch.ones(2, 1, 8, dtype=torch.bfloat16), cos, sin).dtype == torch.bfloat16


def test_axial_rope_gives_rows_the_first_pairs_and_columns_the_others() -> None:
    cos, _ = axial_rope(torch.tensor([[0, 0], [3, 0], [0, 3]]), 16)
    origin, down, right = cos[:, 0]
    assert (down != origin).tolist() == [True] * 4 + [False] * 4
    assert (right != origin).tolist() == [False] * 4 + [True] * 4
    assert_close(down[:4], right[4:])


def test_frequencies_made_during_inference_can_be_trained_through() -> None:
    """The frequencies are cached; a cached inference tensor would break the next backward pass."""
    scaling = RopeScaling(mrope_section=(1, 1, 2))
    with torch.inference_mode():
        inverse_frequencies(8, 77.0, scaling, CPU)
    inv_freq = inverse_frequencies(8, 77.0, scaling, CPU)
    assert not inv_freq.is_inference()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rope_type": "longrope"}, "rope_type is 'longrope'; expected default or yarn."),
        ({"mrope_section": (4, 4)}, "mrope_section is .* expected three integers"),
        ({"mrope_section": 8}, "mrope_section is '8'; expected three integers"),
        ({"rope_type": "yarn", "factor": 4.0}, "no original_max_position_embeddings"),
        ({"factor": 0.0}, "factor is '0.0'; expected a number above 0."),
        ({"beta_fast": "32"}, "beta_fast is '32'; expected a number above 0."),
    ],
)
def test_impossible_scaling_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RopeScaling(**{"mrope_section": (2, 3, 3), **fields})


def test_many_tokens_turn_as_each_would_alone() -> None:
    """More than are turned together on a CPU, and not a multiple of it."""
    tokens = ROTATED_TOGETHER * 2 + 3
    heads = torch.randn(tokens, 2, 8)
    angles = torch.randn(tokens, 1, 4)
    turned = rotate(heads, angles.cos(), angles.sin())
    first, last = heads[:1], heads[-1:]
    assert torch.equal(turned[:1], rotate(first, angles[:1].cos(), angles[:1].sin()))
    assert torch.equal(turned[-1:], rotate(last, angles[-1:].cos(), angles[-1:].sin()))
    assert turned.shape == heads.shape
