"""From host memory to a device: pictures beside the computing, small tensors in one transfer."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Upload:
    """Copies to one device; to CUDA from pinned memory and on a stream of its own.

    The copy of one batch of pictures then runs while the tower still works on the batch before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, host: Tensor) -> Tensor:
        """Give a tensor on the device; what is launched from now on sees it whole."""
        if self._stream is None:
            return host.to(self._device)
        with torch.cuda.stream(self._stream):
            there = host.pin_memory().to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        there.record_stream(current)  # its memory is not given away before `current` has read it
        return there

    def together(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Bring int64 tensors over in one transfer; each keeps its shape."""
        packed = self(torch.cat([part.flatten() for part in parts]))
        pieces = torch.split(packed, [part.numel() for part in parts])
        return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
