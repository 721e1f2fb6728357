"""Following a velocity from 0 to 1."""

import math

import pytest
import torch

from qianyan.models.omni.flow import evaluation_times, follow, guided, sway_times


def test_steps_grow_from_the_beginning_to_the_end() -> None:
    times = sway_times()
    steps = times.diff()
    assert len(times) == 10
    assert (times[0].item(), times[-1].item()) == pytest.approx((0, 1), abs=1e-6)
    assert (steps.diff() > 0).all()
    assert times[3].item() == pytest.approx(1 - math.cos(math.pi / 6), abs=1e-6)


def test_each_step_asks_at_thirds_of_it() -> None:
    moments = evaluation_times(torch.tensor([0.0, 0.3, 0.9]))
    torch.testing.assert_close(moments, torch.tensor([0, 0.1, 0.2, 0.3, 0.3, 0.5, 0.7, 0.9]))


@pytest.mark.parametrize("num_times", [9, 17, 33])
def test_the_method_is_of_fourth_order(num_times: int) -> None:
    """Halving the steps of y' = y cos t divides the error by about 16."""

    def error(count: int) -> float:
        times = torch.linspace(0, 1, count, dtype=torch.float64)
        moments = evaluation_times(times)
        end = follow(
            lambda moment, state: state * moments[moment].cos(), torch.ones(3).double(), times
        )
        return float((end - math.exp(math.sin(1))).abs().max())

    assert 12 < error(num_times) / error(2 * num_times - 1) < 24


def test_guidance_goes_past_what_is_known() -> None:
    known, unknown = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guided(torch.stack((known, unknown))).tolist() == [1.5, 1.0]
