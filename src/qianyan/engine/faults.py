"""What went wrong in a pass, in words: too little memory, a picture that cannot be looked at.

PyTorch says that memory ran out by an error of its own on accelerators, and on a processor by a
RuntimeError that only its text tells from others (c10/core/impl/alloc_cpu.cpp).
"""

import logging

import torch

from qianyan.engine.free_memory import find_free_bytes
from qianyan.engine.plan import Plan
from qianyan.errors import NoMemoryError, QianyanError

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a pass failed for want of memory."""
    is_named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_named or any(words in str(error) for words in OUT_OF_MEMORY)


def no_memory_for_pass(plan: Plan, device: torch.device) -> NoMemoryError:
    """Say that even the smallest pass of a request, over one token, found no memory."""
    (chunk,) = plan.chunks
    return NoMemoryError(
        f"There is no memory for a pass over one token behind {chunk.start} kept ones "
        f"({_free(device)}). Ask fewer things at once, lower max_cache_tokens or close other "
        "programs."
    )


def features_error(error: Exception, medium: str, device: torch.device) -> QianyanError:
    """Say why a medium, named with its size ("a picture of 24 patches"), has no features."""
    if is_out_of_memory(error):
        return NoMemoryError(
            f"There is no memory to take in {medium} ({_free(device)}). Lower max_pixels, send "
            "less or close other programs."
        )
    if isinstance(error, QianyanError):
        return error
    failed = QianyanError(f"The model could not take in {medium}; the cause is in the log.")
    failed.__cause__ = error  # whoever asked may be a stranger: a library's words are not for them
    logger.error("could not take in %s", medium, exc_info=error)
    return failed


def _free(device: torch.device) -> str:
    free = find_free_bytes(device)
    return "free memory is not known" if free is None else f"{free >> 20} MiB are free"
