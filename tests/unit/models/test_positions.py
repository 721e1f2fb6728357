"""Positions of prompt and answer as one sequence."""

import torch

from qianyan.models.positions import Positions, continue_after_largest, plain_positions


def test_prompt_and_answer_are_one_sequence() -> None:
    positions = plain_positions(4)
    whole = list(range(9))
    for start in range(9):
        for stop in range(start, 9):
            assert positions.at(start, stop).tolist() == [whole[start:stop]]


def test_the_answer_goes_on_after_the_largest_position_of_any_axis() -> None:
    prompt = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 5], [0, 1, 2, 1]])
    positions = continue_after_largest(prompt)
    assert positions.at(3, 6).tolist() == [[1, 6, 7], [5, 6, 7], [1, 6, 7]]


def test_an_axis_can_stay_as_it_was() -> None:
    positions = Positions(
        torch.tensor([[0, 1], [2, 2]]), next=torch.tensor([2, 2]), step=torch.tensor([1, 0])
    )
    assert positions.at(0, 5).tolist() == [[0, 1, 2, 3, 4], [2, 2, 2, 2, 2]]
    assert positions.at(4, 6).tolist() == [[4, 5], [2, 2]]


def test_nothing_is_followed_by_position_0() -> None:
    assert plain_positions(0).at(0, 2).tolist() == [[0, 1]]
