"""A Linear whose weight is kept as 4-bit or 8-bit codes.

A weight is `(code - zero) * scale`; the columns of one row that share a zero and a scale are a
group (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978). Whatever layout a checkpoint was published
in, it is put into this one form once, at loading (`packed.py`), so that a faster kernel has one
form to read and one method to replace: `forward`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qianyan.errors import ConfigError

BITS = (4, 8)
# Weights of a layer that exist as floats at one time: on a CPU what its cache holds (one pass of a
# large layer is six times as fast as with 2**24), elsewhere enough to keep a device busy.
BLOCK_WEIGHTS = 2**20  # 4 MiB in float32
DEVICE_BLOCK_WEIGHTS = 2**24


class QuantizedLinear(nn.Module):
    """A Linear with a weight of codes, zeros and scales; it takes part in no training.

    `codes` is (out, in*bits/8) bytes: a 4-bit row holds its even columns in the low halves. `zeros`
    and `scales` are (out, groups). Scales keep the dtype they were published in, mostly float16:
    bfloat16 would round them and float32 would say no more. Groups are runs of `group_size`
    columns; where the quantiser chose another order (act-order), the columns are stored sorted by
    group and `order` (in,) names the input that each stored column reads.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        group_size: int,
        bias: bool = False,
        act_order: bool = False,
    ) -> None:
        super().__init__()
        if bits not in BITS:
            raise ConfigError(f"bits is {bits}; expected 4 or 8.")
        if group_size < 1 or in_features % group_size:
            raise ConfigError(
                f"group_size is {group_size}; expected a divisor of in_features ({in_features})."
            )
        if in_features * bits % 8:
            raise ConfigError(f"in_features is {in_features}; expected an even number at 4 bits.")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, group_size
        by_group = (out_features, in_features // group_size)
        codes = torch.zeros(out_features, in_features * bits // 8, dtype=torch.uint8)
        order = torch.arange(in_features, dtype=torch.int32) if act_order else None
        self.codes: Tensor
        self.zeros: Tensor
        self.scales: Tensor
        self.order: Tensor | None
        self.register_buffer("codes", codes)
        self.register_buffer("zeros", torch.zeros(by_group, dtype=torch.uint8))
        self.register_buffer("scales", torch.ones(by_group))
        self.register_buffer("order", order)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in the dtype of `hidden`.

        A large weight becomes floats some rows at a time, never as a whole.
        """
        if self.order is not None:
            hidden = hidden.index_select(-1, self.order)
        pieces = [
            linear(
                hidden,
                self._stored_rows(rows).to(hidden.dtype),
                None if self.bias is None else self.bias[rows],
            )
            for rows in self._row_blocks()
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give the weight a plain Linear would have, (out, in): exact in float32, then rounded."""
        shape = (self.out_features, self.in_features)
        weight = torch.empty(shape, dtype=dtype, device=self.codes.device)
        columns = slice(None) if self.order is None else self.order.long()
        for rows in self._row_blocks():
            weight[rows, columns] = self._stored_rows(rows).to(dtype)
        return weight

    def _row_blocks(self) -> Iterator[slice]:
        limit = BLOCK_WEIGHTS if self.codes.is_cpu else DEVICE_BLOCK_WEIGHTS
        height = max(1, limit // self.in_features)
        for top in range(0, self.out_features, height):
            yield slice(top, min(top + height, self.out_features))

    def _stored_rows(self, rows: slice) -> Tensor:
        """Give some rows in float32, (rows, in), columns as stored."""
        zeros = self.zeros[rows].float().unsqueeze(-1)  # (rows, groups, 1)
        codes = unpack_codes(self.codes[rows], self.bits)  # (rows, in)
        weight = codes.view(*zeros.shape[:2], self.group_size).float()  # (rows, groups, group_size)
        weight -= zeros
        weight *= self.scales[rows].float().unsqueeze(-1)
        return weight.flatten(-2)  # (rows, in)

    def extra_repr(self) -> str:
        """Say what nn.Linear says, and how the weight is kept."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, group_size={self.group_size}, "
            f"act_order={self.order is not None}"
        )


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Give one code per byte: (rows, columns*bits/8) to (rows, columns), both uint8."""
    if bits == 8:
        return packed
    pairs = packed.flatten().to(torch.int16)  # both codes of a byte, spread over two
    return ((pairs | (pairs << 4)) & 0x0F0F).view(torch.uint8).view(len(packed), -1)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Put codes side by side again: (rows, columns) to (rows, columns*bits/8), both uint8."""
    packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed.contiguous()  # a transposed input would leave the rows scattered
