"""How far the beginning of a conversation is settled while it is still being said."""

from collections.abc import Mapping, Sequence
from typing import Any

from qianyan.engine.blocks import BLOCK_SIZE
from qianyan.engine.runner import Prompt


def count_settled(messages: Sequence[Mapping[str, Any]], prompt: Prompt) -> int:
    """Count the tokens of a prompt that it shares with each that goes on, in whole blocks.

    A last part that is seen or heard may go on behind its last token, where the prompt of now ends
    its turn. Text that goes on differs in the last block at the most, which then serves nobody.
    """
    content = messages[-1].get("content")
    is_open = (
        isinstance(content, Sequence)
        and not isinstance(content, str)
        and bool(content)
        and content[-1]["type"] not in ("text", "file")
        and len(prompt.rows) > 0
    )
    num_tokens = int(prompt.rows[-1]) + 1 if is_open else prompt.size.num_tokens
    return num_tokens // BLOCK_SIZE * BLOCK_SIZE
