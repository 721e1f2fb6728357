"""Linear maps in float32 whose weights lie in the order in which a processor multiplies fastest.

PyTorch hands float32 products on a CPU to MKL, which on processors of other makers stays 15 to 25 %
behind oneDNN, the library PyTorch uses for bfloat16; and oneDNN needs its own order of the weight.
The operations are those that `torch.compile` puts into frozen models. Where they are absent or
compute something else, everything stays as it was.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

ROWS = 96  # that the order is made for; others are as fast
PROBE_TOLERANCE = 1e-5


class ReorderedLinear(nn.Linear):
    """A linear map, with a GELU behind it where `gelu` says so (its tanh form).

    It is a plain one until `reorder`.
    """

    def __init__(self, in_features: int, out_features: int, *, gelu: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.gelu = gelu
        self._reordered: Tensor | None = None

    def reorder(self) -> None:
        """Put the weight of a map on a CPU into its order; no gradient is computed from then on.

        The weight leaves the module's parameters, so that it is there once, not twice; it stays in
        the state.
        """
        if self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 and _is_usable():
            self._reordered = _reorder(self.weight.detach())
            self.register_parameter("weight", None)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._reordered is not None:
            destination[f"{prefix}weight"] = self._reordered.to_dense()

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self._reordered is not None:
            return _product(input, self._reordered, self.bias, gelu=self.gelu)
        out = linear(input, self.weight, self.bias)
        return gelu(out, approximate="tanh") if self.gelu else out


def _reorder(weight: Tensor) -> Tensor:
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)  # noqa: SLF001
    return reordered


def _product(hidden: Tensor, reordered: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    what: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    out: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        hidden, reordered, bias, *what
    )
    return out


@cache
def _is_usable() -> bool:
    """Try the operations on numbers whose result is known."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 64, generator=random) / 8 for size in (50, 48))
    bias = torch.randn(48, generator=random)
    with torch.inference_mode():
        plain, reordered = linear(hidden, weight, bias), _reorder(weight)
        pairs = (
            (_product(hidden, reordered, bias, gelu=False), plain),
            (_product(hidden, reordered, bias, gelu=True), gelu(plain, approximate="tanh")),
        )
        return all(torch.allclose(own, known, atol=PROBE_TOLERANCE) for own, known in pairs)
