"""What a prompt's tokens stand for, by each generation's own words for media."""

from types import SimpleNamespace
from typing import Any

import pytest

from qianyan.inputs.medium import Pads, SoundPads
from qianyan.server.prompt_count import PromptCount

SOUND = SoundPads(audio=3, start=4, end=5)


@pytest.mark.parametrize(
    ("sound", "details"),
    [
        (SOUND, {"image_tokens": 2, "video_tokens": 1, "audio_tokens": 3, "text_tokens": 3}),
        (None, {"image_tokens": 2, "video_tokens": 1, "text_tokens": 6}),
    ],
)
def test_media_are_told_from_text(sound: SoundPads | None, details: dict[str, int]) -> None:
    """The marks around a sound are text, as those around a picture are."""
    pads = Pads(words=("i", "v", "a"), image=1, video=2, sound=sound)
    processor: Any = SimpleNamespace(pads=pads, pictures=None)
    count = PromptCount.of([9, 1, 1, 2, 4, 3, 3, 3, 5], processor, num_images=1)
    assert count.details == details
    assert count.num_tokens == sum(details.values())


def test_a_prompt_of_text_alone_names_no_media() -> None:
    processor: Any = SimpleNamespace(
        pads=Pads(words=(), image=None, video=None, sound=None), pictures=None
    )
    assert PromptCount.of([1, 2, 3], processor, num_images=0).details == {"text_tokens": 3}
