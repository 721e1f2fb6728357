"""From noise to speech: follow a velocity field over time from 0 to 1.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.4); flow matching (arXiv 2210.02747); steps are
smaller at the beginning (sway sampling, F5-TTS, arXiv 2410.06885, section 3.3), each a step of the
Runge-Kutta method of fourth order in Kutta's second form, the 3/8 rule.
"""

from collections.abc import Callable

import torch
from torch import Tensor

NUM_TIMES = 10  # as released: nine steps, four velocities each
GUIDANCE = 0.5  # how far past what codes and voice say, away from what nothing says
SWAY = -1.0


def sway_times(num_times: int = NUM_TIMES) -> Tensor:
    """Give the (num_times,) moments at which steps begin and end, from 0 to 1."""
    even = torch.linspace(0, 1, num_times)
    return even + SWAY * (torch.cos(torch.pi / 2 * even) - 1 + even)


def evaluation_times(times: Tensor) -> Tensor:
    """Give the moments of all velocities that `follow` asks for, in order, four for each step."""
    start, end = times[:-1], times[1:]
    third = (end - start) / 3
    return torch.stack((start, start + third, start + 2 * third, end), dim=1).flatten()


def follow(velocity: Callable[[int, Tensor], Tensor], state: Tensor, times: Tensor) -> Tensor:
    """Carry `state` from the first of `times` to the last.

    `velocity` takes the number of the moment in `evaluation_times(times)`, and a state.
    """
    for step, length in enumerate(times.diff().tolist()):
        first = 4 * step
        k1 = velocity(first, state)
        k2 = velocity(first + 1, state + length * k1 / 3)
        k3 = velocity(first + 2, state + length * (k2 - k1 / 3))
        k4 = velocity(first + 3, state + length * (k1 - k2 + k3))
        state = state + length * (k1 + 3 * (k2 + k3) + k4) / 8
    return state


def guided(velocities: Tensor) -> Tensor:
    """Join the two halves' velocities (2, …): classifier-free guidance (arXiv 2207.12598)."""
    known, unknown = velocities[0], velocities[1]
    return known + GUIDANCE * (known - unknown)
