"""How the tokens of a video and of its sound are mixed: by chunks of two seconds.

Source: Qwen2.5-Omni (arXiv 2503.20215, section 2.2). Both streams are cut where their time passes
a multiple of two seconds, then joined chunk by chunk, the video's first. Where a token's time
passes several multiples at once, each of the next tokens ends a chunk until the count has caught
up, in the middle of a frame as well: so in the released processor, and so models were trained.
"""

from collections.abc import Sequence
from itertools import zip_longest

IDS_PER_SECOND = 25
"""Steps of 40 ms; a sound has one token for each."""
SECONDS_PER_CHUNK = 2


def interleave(
    *,
    num_moments: int,
    tokens_per_moment: int,
    second_per_grid_t: float,
    num_audio_tokens: int,
) -> list[bool]:
    """Say of each token whether it is the video's (True) or its sound's, in order.

    Args:
        num_moments: temporal patches of the video.
        tokens_per_moment: tokens of each of them.
        second_per_grid_t: seconds between two of them.
        num_audio_tokens: tokens of the sound.
    """
    moments = [moment for moment in range(num_moments) for _ in range(tokens_per_moment)]
    video = _chunks([moment * second_per_grid_t * IDS_PER_SECOND for moment in moments])
    audio = _chunks(range(num_audio_tokens))
    mixed: list[bool] = []
    for num_video, num_audio in zip_longest(video, audio, fillvalue=0):
        mixed += [True] * num_video + [False] * num_audio
    return mixed


def _chunks(times: Sequence[float]) -> list[int]:
    """Count the tokens of each chunk; `times` ascend, in steps of 40 ms."""
    counts = [0]
    for time in times:
        if time >= len(counts) * IDS_PER_SECOND * SECONDS_PER_CHUNK:
            counts.append(0)
        counts[-1] += 1
    return counts
