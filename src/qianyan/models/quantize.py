"""A Linear whose weight is kept as 4-bit or 8-bit codes.

A weight is `(code - zero) * scale`; the columns of one row that share a zero and a scale are a
group (GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978). Whatever layout a checkpoint was published in
(`packed.py`), plain ones included, it is put into this one form once, at loading. `use_kernels`
then lets codes lie as fast kernels read them (`kernels.py`), where there are such; elsewhere blocks
of rows become floats and are multiplied.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qianyan.errors import CheckpointError, ConfigError
from qianyan.models import kernels, native_products

BITS = (4, 8)
# Weights of a layer that exist as floats at one time: on a CPU what its cache holds (one pass of a
# large layer is six times as fast as with 2**24), elsewhere enough to keep a device busy.
BLOCK_WEIGHTS = 2**20  # 4 MiB in float32
DEVICE_BLOCK_WEIGHTS = 2**24
# Weights that are rounded at one time. Few and long operations: where others compute too, threads
# wait for each other at the end of each (with 2**18, loading took 25 times as long).
QUANTIZED_WEIGHTS = 2**22

Layout = Literal["rows", "signed", "interleaved", "native"]
Kind = Literal["int8", "int4"]
GROUP_SIZES = (128, 64, 32)  # of int4: the largest that divides the columns
MIN_WEIGHTS = 2**12  # a smaller Linear stays plain
PLAIN_NAMES = ("gate",)  # a router's choice among experts is lost by a small error
TOWER = "visual"
OUTPUT = "lm_head"


class QuantizedLinear(nn.Module):
    """A Linear with a weight of codes, zeros and scales; it takes part in no training.

    `codes` is (out, in*bits/8) bytes: a 4-bit row holds its even columns in the low halves. `zeros`
    and `scales` are (out, groups). Scales keep the dtype they were published in, mostly float16:
    bfloat16 would round them and float32 would say no more. Groups are runs of `group_size`
    columns; where the quantiser chose another order (act-order), the columns are stored sorted by
    group and `order` (in,) names the input that each stored column reads.

    After `use_kernels`, `layout` is "signed" (`codes` are int8 around 0), "native" (4 bits as they
    were, for our own library) or "interleaved" (of `kernels.pack_int4`) where a kernel serves the
    layer, else "rows" as before. With `rounds_activations` such kernels multiply many tokens in 8
    bits.
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
        self.layout: Layout = "rows"
        self.scales_and_zeros: Tensor  # of the layout "interleaved" only
        self.register_buffer("scales_and_zeros", None, persistent=False)
        self.rounds_activations = False
        self.row_scales: Tensor | None  # of the layout "native" that rounds activations
        self.register_buffer("row_scales", None, persistent=False)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in the dtype of `hidden`.

        A large weight becomes floats some rows at a time, never as a whole.
        """
        if hidden.numel() == 0:  # no token of a pass is scored: nothing is to be made of the codes
            return hidden.new_empty(*hidden.shape[:-1], self.out_features)
        if self.order is not None:
            hidden = hidden.index_select(-1, self.order)
        if self.layout != "rows" and kernels.takes(hidden):
            out = self._multiply_codes(hidden.reshape(-1, self.in_features))
            out = out.view(*hidden.shape[:-1], self.out_features)
            return out if self.bias is None else out + self.bias
        pieces = [
            linear(
                hidden,
                self._stored_rows(rows).to(hidden.dtype),
                None if self.bias is None else self.bias[rows],
            )
            for rows in self._row_blocks()
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def _multiply_codes(self, hidden: Tensor) -> Tensor:
        if self.layout == "native":
            return kernels.int4_rows_product(
                hidden, self.codes, self.zeros, self.scales, self.row_scales
            )
        if self.layout == "interleaved":
            return kernels.int4_product(hidden, self.codes, self.scales_and_zeros)
        is_many = len(hidden) > kernels.SPLIT_TOKENS and kernels.has_int_mm()
        multiply = kernels.int8_product
        if self.rounds_activations and is_many:
            multiply = kernels.rounded_product
        return multiply(hidden, self.codes, self.scales.squeeze(1))

    def use_kernels(self, *, round_activations: bool = False) -> None:
        """Let the codes lie as this machine's kernels for bfloat16 read them, if one can.

        They serve processors: int8 with one scale a row and zeros in the middle, and int4 where
        rows and groups are of sizes that the kernel takes. Codes change in place; some products
        round scales to bfloat16. `round_activations` lets many tokens be multiplied in 8 bits,
        where a kernel does that.
        """
        self.rounds_activations = round_activations
        if self.layout != "rows" or not self.codes.is_cpu:
            return
        if self.bits == 8:
            if self.zeros.shape[1] == 1 and bool((self.zeros == kernels.INT8_ZERO).all()):
                self.codes = self.codes.bitwise_xor_(kernels.INT8_ZERO).view(torch.int8)
                self.layout = "signed"
            return
        if native_products.serves("int4", self.in_features, group_size=self.group_size):
            self.layout = "native"
            if round_activations:
                self.row_scales = kernels.int4_row_scales(self.zeros, self.scales)
            return
        block = kernels.int4_block()
        if block and self.out_features % block == 0 and self.group_size in kernels.INT4_GROUPS:
            self.scales_and_zeros = kernels.int4_scales(self.zeros, self.scales)
            self.layout = "interleaved"
            for rows in self._row_blocks():  # whole blocks, each of which stays in its place
                self.codes[rows] = kernels.pack_int4(unpack_codes(self.codes[rows], 4), block)

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
        if self.layout == "interleaved":  # blocks are taken apart as a whole
            height = -(-height // kernels.INT4_BLOCKS[0]) * kernels.INT4_BLOCKS[0]
        for top in range(0, self.out_features, height):
            yield slice(top, min(top + height, self.out_features))

    def _stored_rows(self, rows: slice) -> Tensor:
        """Give some rows in float32, (rows, in), columns as stored."""
        zeros = self.zeros[rows].float().unsqueeze(-1)  # (rows, groups, 1)
        codes = self._stored_codes(rows)
        weight = codes.view(*zeros.shape[:2], self.group_size).float()  # (rows, groups, group_size)
        weight -= zeros
        weight *= self.scales[rows].float().unsqueeze(-1)
        return weight.flatten(-2)  # (rows, in)

    def _stored_codes(self, rows: slice) -> Tensor:
        """Give some rows of codes, uint8 (rows, in), whatever the layout."""
        codes = self.codes[rows]
        if self.layout == "signed":
            return codes.view(torch.uint8) ^ kernels.INT8_ZERO
        return (
            kernels.unpack_int4(codes)
            if self.layout == "interleaved"
            else unpack_codes(codes, self.bits)
        )

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


def quantize_weight(weight: Tensor, *, bits: int, group_size: int) -> dict[str, Tensor]:
    """Round a weight (out, in) to the nearest codes: codes, zeros and scales of a QuantizedLinear.

    8 bits are symmetric around 128, 4 bits asymmetric. Scales are bfloat16. Raises CheckpointError
    for weights that are not finite.
    """
    rows, columns = weight.shape
    by_group = (rows, columns // group_size)
    # Made before the floats: memory that is kept then does not lie among memory that is freed.
    codes = torch.empty(rows, columns * bits // 8, dtype=torch.uint8)
    zeros = torch.empty(by_group, dtype=torch.uint8)
    scales = torch.empty(by_group, dtype=torch.bfloat16)
    height = max(1, QUANTIZED_WEIGHTS // columns)
    for top in range(0, rows, height):
        part = slice(top, min(top + height, rows))
        codes[part], zeros[part], scales[part] = _quantize_rows(weight[part], bits, group_size)
    return {"codes": codes, "zeros": zeros, "scales": scales}


def _quantize_rows(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    values = weight.to(torch.float32, copy=True).view(
        len(weight), -1, group_size
    )  # (rows, groups, group_size)
    largest = 2**bits - 1
    low, high = torch.aminmax(values, dim=-1)  # (rows, groups)
    if bits == 8:
        widths = torch.maximum(high, -low) / 127
        zeros = torch.full_like(widths, kernels.INT8_ZERO)
    else:
        low, high = low.clamp_max(0), high.clamp_min(0)
        widths = (high - low) / largest
    scales = widths.to(torch.bfloat16)
    if not bool(scales.isfinite().all()):
        raise CheckpointError("A weight is not a finite number; it cannot be quantised.")
    scales.masked_fill_(scales == 0, 1)  # zeros only
    steps = scales.float()
    if bits == 4:
        zeros = (-low / steps).round().clamp(0, largest)
    values.div_(steps.unsqueeze(-1)).round_().add_(zeros.unsqueeze(-1))
    codes = values.clamp_(1 if bits == 8 else 0, largest).to(torch.uint8).flatten(1)
    return pack_codes(codes, bits), zeros.to(torch.uint8), scales


def swap_plain(model: nn.Module, kind: Kind) -> dict[str, str]:
    """Put an unfilled QuantizedLinear where a Linear is to be quantised.

    Gives the path of each by the name of the weight it is made from: its own, or that of the
    embeddings for the output matrix of a tied model. The decoder's are int8 with one scale a row,
    or int4 in groups. The tower's and the output matrix are int8 either way: they are where 4 bits
    are seen first. Routers and small layers stay.
    """
    sources = {id(parameter): name for name, parameter in model.named_parameters()}
    swapped = {}
    for path, part, group_size in list(plain_layers(model, kind)):
        owner, _, leaf = path.rpartition(".")
        swapped[sources[id(part.weight)]] = path
        setattr(model.get_submodule(owner), leaf, _empty_like(part, group_size))
    return swapped


def plain_layers(model: nn.Module, kind: Kind) -> Iterator[tuple[str, nn.Linear, int | None]]:
    """Yield each Linear that `swap_plain` takes, and the columns of its groups: None for int8."""
    for path, part in model.named_modules():
        if not isinstance(part, nn.Linear) or path.rpartition(".")[2] in PLAIN_NAMES:
            continue
        if part.weight.numel() >= MIN_WEIGHTS:
            yield path, part, _group_size(path, part, kind)


def _group_size(path: str, linear: nn.Linear, kind: Kind) -> int | None:
    if kind == "int8" or TOWER in path.split(".") or path.endswith(OUTPUT):
        return None
    return next((size for size in GROUP_SIZES if linear.in_features % size == 0), None)


def _empty_like(linear: nn.Linear, group_size: int | None) -> QuantizedLinear:
    with linear.weight.device:
        return QuantizedLinear(
            linear.in_features,
            linear.out_features,
            bits=8 if group_size is None else 4,
            group_size=group_size or linear.in_features,
            bias=linear.bias is not None,
        )
