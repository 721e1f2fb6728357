"""Layers that the vision tower and the text decoder share.

Hidden states are packed, `(..., hidden)`; attribute names are the checkpoint's.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from qianyan.models import native_pointwise, native_products


class Linear(nn.Linear):
    """A linear map whose products of a few bfloat16 tokens are as fast as memory gives weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if not self._is_few(input):
            return super().forward(input)
        out = native_products.bfloat16_product(input, self.weight)
        return out if self.bias is None else out + self.bias

    def _is_few(self, hidden: Tensor) -> bool:
        return (
            hidden.is_cpu
            and hidden.dtype == self.weight.dtype == torch.bfloat16
            and hidden.dim() == 2
            and not torch.is_grad_enabled()
            and native_products.is_few("bfloat16", hidden)
            and native_products.serves("bfloat16", self.in_features)
        )


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight and no bias (arXiv 1910.07467).

    The reduction runs in float32: in float16 the sum of squares overflows and erases whole tokens.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last axis; the dtype stays that of `hidden`."""
        if hidden.dtype == self.weight.dtype == torch.float32:
            return rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        if native_pointwise.takes(hidden, self.weight):
            return native_pointwise.rms_norm(hidden, self.weight, self.eps)
        normed = rms_norm(hidden.float(), self.weight.shape, eps=self.eps)
        # Rounded before the weight is applied, as the released checkpoints were trained.
        return (normed.to(hidden.dtype) * self.weight).to(hidden.dtype)


class MLP(nn.Module):
    """SwiGLU feed-forward (arXiv 2002.05202); the text decoder has no biases, the tower has."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (tokens, hidden) to (tokens, hidden)."""
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        passed = (
            native_pointwise.gated_silu(gate, up)
            if native_pointwise.takes(gate, up)
            else silu(gate) * up
        )
        out: Tensor = self.down_proj(passed)
        return out
