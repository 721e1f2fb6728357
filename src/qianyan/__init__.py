"""qianyan (千眼): Qwen's multimodal models, self-hosted, for safety inspection."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qianyan.engine.engine import Engine
    from qianyan.engine.request import Completion
    from qianyan.errors import (
        CapacityError,
        CheckpointError,
        ConfigError,
        EndpointError,
        GrammarError,
        InputError,
        MediaError,
        QianyanError,
        ReplyError,
    )
    from qianyan.inspection.records import Box, Detection, Inspection
    from qianyan.inspection.service import inspect
    from qianyan.reading.reader import Reader

__all__ = [
    "Box",
    "CapacityError",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Detection",
    "EndpointError",
    "Engine",
    "GrammarError",
    "InputError",
    "Inspection",
    "MediaError",
    "QianyanError",
    "Reader",
    "ReplyError",
    "__version__",
    "inspect",
]

_ROOMS = {
    "Box": "inspection.records",
    "Completion": "engine.request",
    "Detection": "inspection.records",
    "Engine": "engine.engine",
    "Inspection": "inspection.records",
    "Reader": "reading.reader",
    "inspect": "inspection.service",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import qianyan` stays fast."""
    if name not in __all__:
        raise AttributeError(f"module 'qianyan' has no attribute '{name}'")
    return getattr(import_module(f"qianyan.{_ROOMS.get(name, 'errors')}"), name)
