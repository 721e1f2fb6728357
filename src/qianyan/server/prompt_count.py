"""What the tokens of a prompt stand for: text, pictures, videos or sounds."""

from dataclasses import dataclass
from typing import Self

from qianyan.inputs.processor import Processor
from qianyan.inputs.squares import SquareConfig


@dataclass(frozen=True, kw_only=True)
class PromptCount:
    """What the tokens of a prompt stand for; `num_tokens` counts them all."""

    num_tokens: int
    num_image_tokens: int
    num_video_tokens: int
    num_audio_tokens: int

    @classmethod
    def of(cls, prompt_token_ids: list[int], processor: Processor, num_images: int) -> Self:
        """Count the places that media take in a prompt of `num_images`."""
        pictures, pads = processor.pictures, processor.pads
        if isinstance(pictures, SquareConfig):  # whose places hold the pictures' names
            num_image_tokens = num_images * pictures.n_queries
        else:
            num_image_tokens = _count(prompt_token_ids, pads.image)
        return cls(
            num_tokens=len(prompt_token_ids),
            num_image_tokens=num_image_tokens,
            num_video_tokens=_count(prompt_token_ids, pads.video),
            num_audio_tokens=0
            if pads.sound is None
            else _count(prompt_token_ids, pads.sound.audio),
        )

    @property
    def details(self) -> dict[str, int]:
        """The parts, without those that are not there."""
        seen = {
            "image_tokens": self.num_image_tokens,
            "video_tokens": self.num_video_tokens,
            "audio_tokens": self.num_audio_tokens,
        }
        num_text = self.num_tokens - sum(seen.values())
        return {name: count for name, count in seen.items() if count} | {"text_tokens": num_text}


def _count(token_ids: list[int], token_id: int | None) -> int:
    return 0 if token_id is None else token_ids.count(token_id)
