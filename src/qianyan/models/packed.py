"""Quantised checkpoints as they are published: GPTQ with 4 or 8 bits, AWQ with 4.

Both pack codes into int32 words, the lowest bits first, and store them for `hidden @ weight`:

    GPTQ  qweight (in*bits/32, out)   a word holds neighbouring inputs of one output
          qzeros  (groups, out*bits/32), scales (groups, out), g_idx (in,)
          the published zero is one less than the real one (checkpoint_format "gptq"; "gptq_v2"
          publishes the real one); `g_idx` names the group of each input
    AWQ   qweight (in, out/8), qzeros (groups, out/8), scales (groups, out)
          a word holds eight neighbouring outputs in the order 0 2 4 6 1 3 5 7

Sources: AutoGPTQ, GPTQModel and AutoAWQ, whose files these are. `swap_packed` holds a checkpoint's
headers against the model before anything is read, `unpack_tensors` turns the stream of tensors
into the form that `QuantizedLinear` runs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qianyan.errors import CheckpointError
from qianyan.models.quantization import QuantizationConfig
from qianyan.models.quantize import QuantizedLinear, pack_codes, unpack_codes
from qianyan.models.weights import DTYPES, TensorSpec, count_problems, renamed, some

PARTS = ("qweight", "qzeros", "scales", "g_idx")
WORD_BITS = 32
AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word each of eight neighbouring outputs is


@dataclass(frozen=True, kw_only=True)
class PackedLinear:
    """One packed layer of a checkpoint: what its tensors must look like, and how they are read."""

    config: QuantizationConfig
    name: str
    in_features: int
    out_features: int
    has_bias: bool
    parts: frozenset[str]  # those of PARTS that the checkpoint holds

    @property
    def groups(self) -> int:
        """Groups of one row."""
        return self.in_features // self.config.columns_in_group(self.in_features)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of each part; g_idx may be left out without act-order."""
        groups, bits = self.groups, self.config.bits
        packed_out = self.out_features * bits // WORD_BITS
        is_gptq = self.config.quant_method == "gptq"
        shapes: dict[str, tuple[int, ...]] = {
            "qweight": (self.in_features * bits // WORD_BITS, self.out_features)
            if is_gptq
            else (self.in_features, packed_out),
            "qzeros": (groups, packed_out),
            "scales": (groups, self.out_features),
        }
        if is_gptq and (self.config.desc_act or "g_idx" in self.parts):
            shapes["g_idx"] = (self.in_features,)
        return shapes

    def build(self, device: torch.device) -> QuantizedLinear:
        """Make the layer that takes the unpacked tensors."""
        with device:
            return QuantizedLinear(
                self.in_features,
                self.out_features,
                bits=self.config.bits,
                group_size=self.config.columns_in_group(self.in_features),
                bias=self.has_bias,
                act_order=self.config.desc_act,
            )

    def unpack(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn published tensors into those of a QuantizedLinear."""
        bits, groups = self.config.bits, self.groups
        unpacked = {"scales": parts["scales"].t().contiguous()}  # (out, groups)
        if self.config.quant_method == "awq":
            unpacked["codes"] = pack_codes(_awq_values(parts["qweight"]).t(), bits)
            unpacked["zeros"] = _awq_values(parts["qzeros"]).t().contiguous()
            return unpacked
        codes = _bytes(parts["qweight"].t())  # (out, in*bits/8)
        if "g_idx" in parts:
            order = _sort_groups(parts["g_idx"].long(), groups, name=f"{self.name}.g_idx")
            if self.config.desc_act:
                codes = pack_codes(unpack_codes(codes, bits)[:, order], bits)
                unpacked["order"] = order.int()
            elif not torch.equal(order, torch.arange(self.in_features)):
                raise CheckpointError(
                    f"{self.name}.g_idx reorders the columns, but desc_act is false; expected "
                    "groups that follow one another."
                )
        zeros = unpack_codes(_bytes(parts["qzeros"]), bits)  # (groups, out)
        unpacked["codes"] = codes
        unpacked["zeros"] = _real_zeros(zeros, self.config).t().contiguous()  # (out, groups)
        return unpacked


def _bytes(words: Tensor) -> Tensor:
    """Give the bytes of (rows, n) int32 words, the lowest first, (rows, 4*n): packed codes."""
    return words.flatten().view(torch.uint8).view(len(words), -1)


def _awq_values(words: Tensor) -> Tensor:
    """Give (rows, out) uint8 for (rows, out/8) words of eight values."""
    values = unpack_codes(_bytes(words), 4)  # (rows, out), as packed
    by_word = values.view(len(words), -1, len(AWQ_COLUMNS))  # (rows, words, 8)
    return by_word[..., AWQ_COLUMNS].flatten(-2)  # (rows, out)


def _real_zeros(zeros: Tensor, config: QuantizationConfig) -> Tensor:
    """Add the one that "gptq" leaves out; a real zero of 0 was published as the largest code."""
    # Some tools publish real zeros under the old name. A symmetric quantiser has one zero only.
    is_real = config.sym and bool((zeros == 2 ** (config.bits - 1)).all())
    if config.format == "gptq_v2" or is_real:
        return zeros
    zeros = zeros + 1  # a byte: 255 + 1 is 0
    return zeros & 15 if config.bits == 4 else zeros


def _sort_groups(g_idx: Tensor, groups: int, *, name: str) -> Tensor:
    """Give (in,) columns sorted by their group; groups of unequal size are refused."""
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise CheckpointError(
            f"{name} goes from {int(g_idx.min())} to {int(g_idx.max())}; "
            f"expected groups from 0 to {groups - 1}."
        )
    counts = torch.bincount(g_idx, minlength=groups)
    if not bool((counts == len(g_idx) // groups).all()):
        raise CheckpointError(
            f"{name} gives a group {int(counts.max())} columns; "
            f"expected {len(g_idx) // groups} in each of {groups} groups."
        )
    return g_idx.argsort(stable=True)


def quantized_modules(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Give each packed layer that a checkpoint's tensor names show, with the parts it has."""
    found: dict[str, set[str]] = {}
    for name in names:
        module, _, part = name.rpartition(".")
        if part in PARTS:
            found.setdefault(module, set()).add(part)
    return {module: frozenset(parts) for module, parts in found.items()}


def swap_packed(
    model: nn.Module,
    listed: Mapping[str, TensorSpec],
    config: QuantizationConfig | None,
    renames: Mapping[str, str],
) -> dict[str, PackedLinear]:
    """Put a QuantizedLinear where the checkpoint holds a packed layer; give what was packed.

    Keys are the checkpoint's module names; a plain checkpoint gives none. Raises CheckpointError,
    and leaves the model as it was, when config.json, the listed tensors and the model disagree.
    """
    modules = quantized_modules(listed)
    if config is None or not modules:
        _require_both(config, modules)
        return {}
    excluded = [name for name in modules if _is_excluded(name, config)]
    if excluded:
        raise CheckpointError(
            f"modules_to_not_convert names layers that are packed ({some(excluded)}); "
            "expected plain weights for them. Download the folder again."
        )
    paths = {name: renamed(f"{name}.", renames).removesuffix(".") for name in modules}
    linears = {path: part for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    strangers = [name for name in modules if paths[name] not in linears]
    if strangers:
        raise CheckpointError(
            f"The checkpoint holds {len(strangers)} packed layers where {type(model).__name__} "
            f"has no Linear ({some(strangers)})."
        )
    packed = {
        name: _packed_linear(name, linears[paths[name]], parts, config)
        for name, parts in modules.items()
    }
    _require_fit(model, listed, packed)
    for name, linear in packed.items():
        owner, _, leaf = paths[name].rpartition(".")
        setattr(model.get_submodule(owner), leaf, linear.build(linears[paths[name]].weight.device))
    return packed


def _require_both(config: QuantizationConfig | None, modules: Mapping[str, object]) -> None:
    """Refuse packed tensors that no config explains, and a config without packed tensors."""
    if config is None and modules:
        raise CheckpointError(
            f"The checkpoint holds packed layers ({some(list(modules))}), but config.json has no "
            "quantization_config. Take config.json from the same download."
        )
    if config is not None and not modules:
        raise CheckpointError(
            f"config.json says {config.quant_method} with {config.bits} bits, but the checkpoint "
            "holds no qweight tensors. Take config.json from the same download."
        )


def _is_excluded(module: str, config: QuantizationConfig) -> bool:
    """Whether modules_to_not_convert names the module or one it lies in."""
    return any(f".{name}." in f".{module}." for name in config.modules_to_not_convert)


def _packed_linear(
    name: str, linear: nn.Linear, parts: frozenset[str], config: QuantizationConfig
) -> PackedLinear:
    """Describe a packed layer by the Linear it stands for."""
    size, unit = config.columns_in_group(linear.in_features), WORD_BITS // config.bits
    if linear.in_features % size:
        raise CheckpointError(
            f"{name} has {linear.in_features} columns; expected a multiple of group_size ({size})."
        )
    if linear.in_features % unit or linear.out_features % unit:
        raise CheckpointError(
            f"{name} maps {linear.in_features} to {linear.out_features}; expected multiples of "
            f"{unit}, the codes in one packed word."
        )
    return PackedLinear(
        config=config,
        name=name,
        in_features=linear.in_features,
        out_features=linear.out_features,
        has_bias=linear.bias is not None,
        parts=parts,
    )


def _require_fit(
    model: nn.Module, listed: Mapping[str, TensorSpec], packed: Mapping[str, PackedLinear]
) -> None:
    """Hold all parts of all packed layers against what they must look like."""
    missing: list[str] = []
    unexpected: list[str] = []
    misfits: list[str] = []
    for linear in packed.values():
        expected = linear.expected()
        unexpected += [f"{linear.name}.{part}" for part in sorted(linear.parts - set(expected))]
        missing += [f"{linear.name}.{part}" for part in expected if part not in linear.parts]
        for part in linear.parts & set(expected):
            spec, name = listed[f"{linear.name}.{part}"], f"{linear.name}.{part}"
            is_kind = (
                spec.dtype in DTYPES.values() if part == "scales" else spec.dtype == torch.int32
            )
            if not is_kind or spec.shape != expected[part]:
                kind = "floating point" if part == "scales" else "int32"
                dtype = str(spec.dtype).removeprefix("torch.")
                misfits.append(f"{name} is {spec.shape} {dtype}, not {expected[part]} {kind}")
    problems = count_problems(
        {"missing": missing, "unexpected": unexpected, "of another form": sorted(misfits)}
    )
    if problems:
        raise CheckpointError(
            f"Checkpoint does not fit {type(model).__name__}; packed tensors: {problems}."
        )


def unpack_tensors(
    tensors: Iterable[tuple[str, Tensor]], packed: Mapping[str, PackedLinear]
) -> Iterator[tuple[str, Tensor]]:
    """Pass a checkpoint's tensors on, with those of each packed layer put into the form it runs in.

    The parts of a layer may lie in different shards; only those of unfinished layers are held.
    Raises CheckpointError for a g_idx or an added bias that cannot be.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        module, _, part = name.rpartition(".")
        linear = packed.get(module)
        if linear is not None and part in PARTS:
            parts = waiting.setdefault(module, {})
            parts[part] = tensor
            if parts.keys() == linear.parts:
                for unpacked, value in linear.unpack(waiting.pop(module)).items():
                    yield f"{module}.{unpacked}", value
        elif linear is not None and part == "bias" and not linear.has_bias:
            # AutoGPTQ gave every layer a bias; those it added are zeros.
            if bool(tensor.any()):
                raise CheckpointError(
                    f"{name} is not zero; expected no bias, as the architecture has none there."
                )
        else:
            yield name, tensor
