"""Text that strangers wrote (documents, web pages) and that must stay text for a model.

A model's control words open turns, close them, call functions and hold pictures' places. Where a
stranger's text spells one it is broken up, visibly, and counted.
"""

from collections.abc import Iterable

USUAL_CONTROL_WORDS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<|audio_pad|>", "<tool_call>", "</tool_call>"),
    *("<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>"),  # Qwen2.5-Omni's
    *("<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>"),
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
    *("<img>", "</img>", "<ref>", "</ref>", "<box>", "</box>"),  # the first generation's
)
"""Those of Qwen's released vocabularies, for models whose own are not known here."""


def break_up(text: str, words: Iterable[str]) -> tuple[str, int]:
    """Put a blank into each of `words` that a text spells; returns the text and how many."""
    count = 0
    for word in words:
        count += text.count(word)
        text = text.replace(word, f"{word[0]} {word[1:]}")
    return text, count
