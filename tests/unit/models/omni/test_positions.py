"""Positions of prompts with sound: what is shared, what follows, and what is refused."""

import pytest
import torch

from qianyan.errors import InputError
from qianyan.models.omni.positions import OmniGrids, OmniTokens, tmrope_position_ids
from qianyan.models.positions import Grid

TOKENS = OmniTokens(image=90, video=91, audio=92, audio_start=93, audio_end=94)
VISION_START, VISION_END = 95, 96


def place(
    ids: list[int], grids: tuple[Grid, ...] = (), seconds: tuple[float, ...] = ()
) -> torch.Tensor:
    given = OmniGrids(grid_thw=grids, second_per_grid_ts=seconds, merge=2, ids_per_second=25)
    return tmrope_position_ids(ids, TOKENS, given)


def test_text_and_sound_count_up_by_one() -> None:
    ids = [1, 2, 93, 92, 92, 92, 94, 3]
    assert place(ids).tolist() == [list(range(8))] * 3
    assert place([]).shape == (3, 0)


def test_a_videos_times_count_steps_of_40_ms() -> None:
    ids = [1, VISION_START, 91, 91, 91, VISION_END, 2]
    places = place(ids, ((3, 2, 2),), (1.0,))
    assert places[0].tolist() == [0, 1, 2, 27, 52, 53, 54]
    assert places[1].tolist() == [0, 1, 2, 2, 2, 53, 54]


def test_marks_around_a_video_with_sound_share_their_positions() -> None:
    ids = [1, VISION_START, 93, 91, 92, 92, 91, 92, 94, VISION_END, 2]
    times = place(ids, ((2, 2, 2),), (1.0,))[0].tolist()
    assert times == [0, 1, 1, 2, 2, 3, 27, 4, 5, 5, 6]


def test_what_follows_stands_after_the_last_token_not_the_latest() -> None:
    """As in the released code: here the video's last moment, 27, is passed over."""
    ids = [VISION_START, 93, 91, 91, 92, 94, VISION_END, 2]
    assert place(ids, ((2, 2, 2),), (1.0,))[0].tolist() == [0, 0, 1, 26, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("ids", "grids", "seconds", "words"),
    [
        ([91, 1], (), (), "more pictures than grids"),
        ([91], ((1, 2, 2),), (), "second_per_grid_ts for each video"),
        ([90], ((1, 2, 2),), (1.0,), "0 grids and 1 second_per_grid_ts have no tokens"),
        ([1, 2], ((1, 2, 2),), (), "1 grids and 0 second_per_grid_ts have no tokens"),
        ([90, 1], ((1, 2, 4),), (), "picture at token 0 needs 2 tokens of id 90"),
        ([1, 93, 91, 92, 94], ((1, 2, 4),), (1.0,), "sound at token 1 needs 2 tokens of id 91"),
        ([1, 93, 91, 92], ((1, 2, 2),), (1.0,), "before the end of its sound"),
        ([90], ((1, 2, 3),), (), "multiples of 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(
    ids: list[int], grids: tuple[Grid, ...], seconds: tuple[float, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        place(ids, grids, seconds)
