"""What ends an answer, given as token ids: the texts and the control tokens that they stand for.

Bailian's clients may give `stop` as a list of ids, any of which ends the answer, or as a list of
such lists, each of which does as a whole. Written out, they end it whichever tokens spell them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qianyan.engine.options import MAX_STOPS, ChatOptions, GenerationDefaults
from qianyan.errors import InputError, quote
from qianyan.inputs.tokenizer import Tokenizer


def settle_stops(
    options: ChatOptions, defaults: GenerationDefaults, tokenizer: Tokenizer
) -> tuple[ChatOptions, GenerationDefaults]:
    """Give the options with texts for token ids, and the defaults with the control tokens.

    Raises InputError for ids beside texts, for what is no id, and for ids that spell no whole
    characters.
    """
    stop: Any = options.get("stop")
    if not isinstance(stop, list) or not any(isinstance(one, int | list) for one in stop):
        return options, defaults
    if len(stop) > MAX_STOPS:
        raise InputError(f"stop has {len(stop)} entries; expected at most {MAX_STOPS}.")
    sequences = [one if isinstance(one, list) else [one] for one in stop]
    is_one_kind = len({type(one) for one in stop}) == 1
    if not is_one_kind or not all(_are_ids(ids, tokenizer.vocab_size) for ids in sequences):
        raise InputError(
            f"stop is {quote(stop)}; expected a string, or a list of strings, of token ids below "
            f"{tokenizer.vocab_size} or of lists of such ids, all of one kind."
        )
    controls = {ids[0] for ids in sequences if len(ids) == 1 and ids[0] in tokenizer.special_ids}
    texts = [_spelled(ids, tokenizer) for ids in sequences if ids[0] not in controls]
    stop_token_ids = defaults.stop_token_ids | controls
    return {**options, "stop": texts}, replace(defaults, stop_token_ids=stop_token_ids)


def _are_ids(ids: Sequence[object], vocab_size: int) -> bool:
    return bool(ids) and all(type(one) is int and 0 <= one < vocab_size for one in ids)


def _spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    text = b"".join(tokenizer.token_bytes(one) for one in ids)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"stop has the token ids {quote(ids)}, which spell no whole characters; expected ids "
            "of whole words, or the words themselves."
        ) from error
