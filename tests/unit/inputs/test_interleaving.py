"""How a video's tokens and those of its sound are mixed."""

from hypothesis import given
from hypothesis import strategies as st

from qianyan.inputs.interleaving import interleave


def test_chunks_of_two_seconds_follow_one_another() -> None:
    mixed = interleave(
        num_moments=5, tokens_per_moment=3, second_per_grid_t=1.0, num_audio_tokens=120
    )
    chunks = "".join("v" if is_video else "a" for is_video in mixed)
    assert chunks == "v" * 6 + "a" * 50 + "v" * 6 + "a" * 50 + "v" * 3 + "a" * 20


def test_where_one_stream_ends_the_other_goes_on() -> None:
    short = interleave(
        num_moments=1, tokens_per_moment=2, second_per_grid_t=1.0, num_audio_tokens=130
    )
    assert short == [True] * 2 + [False] * 130
    silent = interleave(
        num_moments=9, tokens_per_moment=1, second_per_grid_t=1.0, num_audio_tokens=1
    )
    assert silent == [True] * 2 + [False] + [True] * 7


def test_frames_far_apart_are_cut_where_the_count_catches_up() -> None:
    """As released: the second moment is at 8 s, so four chunks end on one token each."""
    mixed = interleave(
        num_moments=2, tokens_per_moment=6, second_per_grid_t=8.0, num_audio_tokens=210
    )
    chunks = "".join("v" if is_video else "a" for is_video in mixed)
    expected = "v" * 6 + "a" * 50 + "v" + "a" * 50 + "v" + "a" * 50 + "v" + "a" * 50 + "v" * 3
    assert chunks == expected + "a" * 10


@given(
    st.integers(1, 30), st.integers(1, 9), st.floats(0.02, 60, allow_nan=False), st.integers(0, 800)
)
def test_no_token_is_lost_and_a_video_comes_first(
    num_moments: int, tokens_per_moment: int, second_per_grid_t: float, num_audio_tokens: int
) -> None:
    mixed = interleave(
        num_moments=num_moments,
        tokens_per_moment=tokens_per_moment,
        second_per_grid_t=second_per_grid_t,
        num_audio_tokens=num_audio_tokens,
    )
    assert mixed.count(True) == num_moments * tokens_per_moment
    assert mixed.count(False) == num_audio_tokens
    assert mixed[0]
