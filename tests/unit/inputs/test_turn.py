"""What somebody says and shows, as a part of a message that grows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.errors import InputError, MediaError
from qianyan.inputs.frames import VideoConfig
from qianyan.inputs.growing import SoundSoFar
from qianyan.inputs.media import MediaLimits
from qianyan.inputs.processor import ModelInputs, Processor
from qianyan.inputs.sound import AudioLimits
from qianyan.inputs.turn import Turn


@pytest.fixture(scope="module")
def processor(omni_checkpoint: Path) -> Processor:
    return Processor.from_folder(omni_checkpoint)


def noise(seconds: float) -> np.ndarray:
    random = np.random.default_rng(4)
    return (0.1 * random.standard_normal(round(seconds * 16_000))).astype(np.float32)


def picture(shade: int, size: tuple[int, int] = (200, 120)) -> Image.Image:
    return Image.new("RGB", size, (shade, shade, shade))


def shades(part: dict[str, Any]) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in part["video"]]


def process(processor: Processor, part: Any) -> ModelInputs:
    return processor([{"role": "user", "content": [part]}])


def test_sound_alone_is_an_audio_part(processor: Processor) -> None:
    turn = Turn(processor.sounds)
    assert turn.part_so_far() is None
    turn.add_sound(noise(2.5), 16_000)
    assert (turn.num_blocks, turn.duration_s) == (1, 2.5)
    part = turn.part_so_far()
    assert part is not None
    assert part.keys() == {"type", "audio"}
    inputs = process(processor, part)
    assert inputs.num_audio_frames == (200,)
    assert inputs.seen.audios[0].duration_s == 2
    whole = process(processor, turn.finish())
    assert whole.num_audio_frames == (250,)
    assert whole.seen.audios[0].duration_s == 2.5


@pytest.mark.parametrize("seconds", [2.2, 3.4, 6.01, 7.9])
def test_the_part_so_far_is_a_beginning_of_the_prompt_of_the_whole(
    processor: Processor, seconds: float
) -> None:
    turn = Turn(processor.sounds, processor.videos)
    samples = noise(seconds)
    parts = []
    for start in range(0, len(samples), 4_000):
        turn.add_sound(samples[start : start + 4_000], 16_000)
        turn.add_frame(picture(start // 500))
        parts.append(turn.part_so_far())
    whole = process(processor, turn.finish())
    pad = processor.tokenizer.token_id("<|AUDIO|>")
    assert whole.pixel_values is not None
    for part in [one for one in parts if one is not None]:
        inputs = process(processor, part)
        ids = inputs.prompt_token_ids
        count = len(ids) - ids[::-1].index(pad)
        assert ids[:count] == whole.prompt_token_ids[:count]
        assert inputs.second_per_grid_ts == whole.second_per_grid_ts == (2.0,)
        assert inputs.pixel_values is not None
        assert np.array_equal(inputs.pixel_values, whole.pixel_values[: len(inputs.pixel_values)])
        assert inputs.grid_thw[0][1:] == whole.grid_thw[0][1:]
        assert np.array_equal(
            inputs.input_features, whole.input_features[: len(inputs.input_features)]
        )


def test_one_frame_a_second_is_kept_and_the_last_stands_in(processor: Processor) -> None:
    turn = Turn(processor.sounds, processor.videos)
    for at_s, shade in ((0.2, 10), (0.6, 20), (1.1, 30), (1.9, 40), (4.3, 50)):
        turn.add_sound(noise(at_s - turn.duration_s), 16_000)
        turn.add_frame(picture(shade))
    turn.add_sound(noise(1.0), 16_000)
    part = turn.part_so_far()
    assert part is not None
    assert shades(part) == [10, 30, 40, 40]
    assert part["fps"] == 1
    assert shades(turn.finish()) == [10, 30, 40, 40, 50, 50]


def test_a_first_frame_that_comes_late_stands_for_what_was_before(processor: Processor) -> None:
    turn = Turn(processor.sounds, processor.videos)
    turn.add_sound(noise(3.5), 16_000)
    turn.add_frame(picture(9))
    assert shades(turn.finish()) == [9, 9, 9, 9]


def test_all_frames_take_the_size_of_the_first_and_few_tokens(processor: Processor) -> None:
    turn = Turn(processor.sounds, processor.videos)
    turn.add_frame(picture(1, (1920, 1080)))
    turn.add_sound(noise(1.5), 16_000)
    turn.add_frame(picture(2, (300, 400)))
    part = turn.finish()
    assert len({frame.size for frame in part["video"]}) == 1
    (t, height, width) = process(processor, part).grid_thw[0]
    assert t == 1
    assert height * width // 4 <= 256
    assert width > height


def test_a_grown_sound_in_the_first_words_of_a_prompt_counts_for_its_limits(
    omni_checkpoint: Path,
) -> None:
    limits = MediaLimits(max_audios=1)
    strict = Processor.from_folder(omni_checkpoint, limits=limits)
    turn = Turn(strict.sounds)
    turn.add_sound(noise(2.5), 16_000)
    part = turn.finish()
    with pytest.raises(Exception, match="more than 1 sounds"):
        strict([{"role": "user", "content": [part, part]}])


def test_what_a_model_cannot_take_in_is_refused(processor: Processor) -> None:
    with pytest.raises(InputError, match="does not hear"):
        Turn(None)
    with pytest.raises(InputError, match="sees no videos"):
        Turn(processor.sounds).add_frame(picture(1))
    with pytest.raises(MediaError) as refused:
        Turn(processor.sounds).finish()
    assert refused.value.code == "too_short"
    with pytest.raises(MediaError) as refused:
        Turn(processor.sounds, limits=MediaLimits(audio=AudioLimits(max_duration_s=1))).add_sound(
            noise(2), 16_000
        )
    assert refused.value.code == "too_long"
    assert isinstance(processor.videos, VideoConfig)
    with pytest.raises(MediaError) as refused:
        Turn(processor.sounds, processor.videos).add_frame(picture(1, (4000, 8)))
    assert refused.value.code == "too_narrow"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": [picture(1)], "audio": "bell.wav"},
        {"type": "video", "video": "clip.mp4", "audio": "bell.wav"},
        {"type": "video_url", "video_url": {"url": "clip.mp4"}, "audio": "bell.wav"},
        {"type": "input_audio", "input_audio": {"data": 7}},
    ],
)
def test_nothing_but_a_heard_sound_stands_beside_frames(
    processor: Processor, part: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        process(processor, part)


def test_a_heard_sound_of_other_bands_is_refused(processor: Processor) -> None:
    turn = Turn(processor.sounds)
    turn.add_sound(noise(1), 16_000)
    sound = turn.finish()["audio"]
    assert isinstance(sound, SoundSoFar)
    other = SoundSoFar(sound.frames[:, :80], sound.record)
    with pytest.raises(InputError, match="cannot hear"):
        process(processor, {"type": "audio", "audio": other})
