"""Weight files written one tensor at a time, and the quantised layers that they hold."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from qianyan.errors import CheckpointError
from qianyan.models.quantization import QuantizationConfig
from qianyan.models.quantize import QuantizedLinear
from qianyan.models.saved import ShardWriter, swap_saved
from qianyan.models.weights import TensorSpec, list_tensors, read_tensors

DTYPES = (torch.uint8, torch.int8, torch.float32, torch.bfloat16, torch.float16, torch.int32)
CONFIG = QuantizationConfig(quant_method="qianyan", bits=8, group_size=-1, format="1")


def specs_of(tensors: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(one.shape), one.dtype) for name, one in tensors.items()}


@given(
    shapes=st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=8,
    ),
    shard_bytes=st.integers(1, 300),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_whatever_its_form_and_order(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[list[int], torch.dtype]],
    shard_bytes: int,
    random: object,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {
        f"layer.{number}": torch.arange(torch.Size(shape).numel()).view(shape).to(dtype)
        for number, (shape, dtype) in enumerate(shapes)
    }
    order = list(tensors)
    random.shuffle(order)  # type: ignore[attr-defined]
    with ShardWriter(folder, specs_of(tensors), shard_bytes=shard_bytes) as writer:
        for name in order:
            writer.write(name, tensors[name])
        writer.finish()
    assert list_tensors(folder) == specs_of(tensors)
    read = dict(read_tensors(folder))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    # safetensors' own reader agrees, file by file.
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    assert sorted(name for file in files for name in file) == sorted(tensors)
    for file in files:
        size = sum(tensor.nbytes for tensor in file.values())
        assert size <= shard_bytes or len([one for one in file.values() if one.nbytes]) == 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_every_tensor_begins_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    tensors = {
        "codes": torch.arange(7, dtype=torch.uint8),
        "scales": torch.ones(3, dtype=torch.bfloat16),
        "bias": torch.ones(1),
    }
    with ShardWriter(tmp_path, specs_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()
    data = (tmp_path / "model-00001-of-00001.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 64 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0


def test_a_view_of_a_file_can_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    """Kernels turn codes in place."""
    tensors = {"codes": torch.zeros(512, 512, dtype=torch.uint8)}
    with ShardWriter(tmp_path, specs_of(tensors)) as writer:
        writer.write("codes", tensors["codes"])
        writer.finish()
    ((_, view),) = read_tensors(tmp_path)
    view.bitwise_xor_(128)
    assert int(view.min()) == 128
    ((_, again),) = read_tensors(tmp_path)
    assert int(again.max()) == 0


# Which layers they are


def model() -> nn.ModuleDict:
    with torch.device("meta"):
        return nn.ModuleDict({"up_proj": nn.Linear(64, 32), "norm": nn.LayerNorm(64)})


def parts(
    codes: tuple[int, ...] = (32, 64),
    zeros: tuple[int, ...] = (32, 1),
    scales: tuple[int, ...] = (32, 1),
    dtype: torch.dtype | None = None,
) -> dict[str, TensorSpec]:
    by_width = torch.int8 if codes[1] == 64 else torch.uint8
    return {
        "up_proj.codes": TensorSpec(codes, dtype or by_width),
        "up_proj.zeros": TensorSpec(zeros, torch.uint8),
        "up_proj.scales": TensorSpec(scales, torch.bfloat16),
    }


@pytest.mark.parametrize(
    ("listed", "bits", "group_size"),
    [
        (parts(), 8, 64),
        (parts((32, 32), (32, 2), (32, 2)), 4, 32),
        (parts((32, 32), (32, 4), (32, 4)), 4, 16),
    ],
)
def test_bits_and_groups_follow_from_the_tensors(
    listed: dict[str, TensorSpec], bits: int, group_size: int
) -> None:
    owner = model()
    swap_saved(owner, listed, CONFIG, {})
    layer = owner["up_proj"]
    assert isinstance(layer, QuantizedLinear)
    assert (layer.bits, layer.group_size) == (bits, group_size)
    assert layer.layout == ("signed" if bits == 8 else "rows")
    assert layer.bias is not None
    assert layer.codes.is_meta


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ({"norm.weight": TensorSpec((64,), torch.float32)}, "holds no codes"),
        (parts((32, 48)), r"1 whose parts do not fit \(up_proj\)"),
        (parts((32, 64, 1)), "1 whose parts do not fit"),
        (parts(zeros=(32, 3), scales=(32, 3)), "1 whose parts do not fit"),
        (parts(zeros=(32, 0), scales=(32, 0)), "1 whose parts do not fit"),
        (parts(scales=(32, 2)), "1 whose parts do not fit"),
        (parts(dtype=torch.uint8), "1 whose parts do not fit"),
        (parts((32, 32), (32, 2), (32, 2), torch.int8), "1 whose parts do not fit"),
        (parts(dtype=torch.int32), "1 whose parts do not fit"),
        ({"up_proj.codes": TensorSpec((32, 64), torch.uint8)}, "1 whose parts do not fit"),
        (
            {name.replace("up_proj", "norm"): spec for name, spec in parts().items()},
            r"1 where the model has no Linear \(norm\)",
        ),
    ],
)
def test_parts_that_fit_no_layer_are_refused(listed: dict[str, TensorSpec], sentence: str) -> None:
    owner = model()
    with pytest.raises(CheckpointError, match=sentence):
        swap_saved(owner, listed, CONFIG, {})
    assert isinstance(owner["up_proj"], nn.Linear)
