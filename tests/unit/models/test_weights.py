import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from qianyan.errors import CheckpointError
from qianyan.models.weights import (
    TensorSpec,
    initialise,
    list_tensors,
    load_weights,
    read_tensors,
    save_checkpoint,
)


class Tied(nn.Module):
    """Two names for one matrix, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("steps", torch.zeros(2))


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    model, other = linear(0), linear(1)
    save_checkpoint(model, tmp_path / "new" / "folder")
    load_weights(other, read_tensors(tmp_path / "new" / "folder"))
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)
    assert other.weight.requires_grad


def test_saving_leaves_no_unfinished_file_and_takes_a_dtype(tmp_path: Path) -> None:
    save_checkpoint(linear(), tmp_path, dtype=torch.bfloat16)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["weight"].dtype == torch.bfloat16


def test_saving_over_the_file_a_model_was_loaded_from_is_safe(tmp_path: Path) -> None:
    save_checkpoint(linear(0), tmp_path)
    model = linear(1)
    load_weights(model, read_tensors(tmp_path))
    before = model.weight.detach().clone()
    save_checkpoint(linear(2), tmp_path)
    assert torch.equal(model.weight, before)


def test_shards_are_joined(tmp_path: Path) -> None:
    model, other = linear(0), linear(1)
    weight, bias = model.weight.detach(), model.bias.detach()
    write_shards(tmp_path, {"a.safetensors": {"weight": weight}, "b.safetensors": {"bias": bias}})
    load_weights(other, read_tensors(tmp_path))
    assert torch.equal(other.weight, weight)
    assert torch.equal(other.bias, bias)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    zero = torch.zeros(1)
    write_shards(tmp_path, {"a.safetensors": {"weight": zero}, "b.safetensors": {"bias": zero}})
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing .* \(b.safetensors\)"):
        list(read_tensors(tmp_path))


def test_shapes_and_dtypes_are_listed_over_all_shards(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {
            "a.safetensors": {"codes": torch.zeros(2, 3, dtype=torch.int32)},
            "b.safetensors": {
                "scales": torch.zeros(4, dtype=torch.float16),
                "one": torch.zeros((), dtype=torch.bfloat16),
            },
        },
    )
    assert list_tensors(tmp_path) == {
        "codes": TensorSpec((2, 3), torch.int32),
        "one": TensorSpec((), torch.bfloat16),
        "scales": TensorSpec((4,), torch.float16),
    }


def write_header(path: Path, header: dict[str, Any], size_bytes: int) -> None:
    """Write a safetensors file whose numbers are a hole on the disk."""
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size_bytes)


def test_listing_reads_no_weights(tmp_path: Path) -> None:
    """A file of 64 GB that takes no room."""
    size = 2**36
    header = {"big": {"dtype": "F32", "shape": [2**17, 2**17], "data_offsets": [0, size]}}
    write_header(tmp_path / "model.safetensors", header, size)
    assert list_tensors(tmp_path) == {"big": TensorSpec((2**17, 2**17), torch.float32)}


def test_a_shard_larger_than_memory_gets_a_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    size = 2**36
    header = {"big": {"dtype": "F32", "shape": [2**17, 2**17], "data_offsets": [0, size]}}
    write_header(tmp_path / "model.safetensors", header, size)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size // 2, hard))
    try:
        with pytest.raises(CheckpointError, match=r"model.safetensors does not fit into memory"):
            list(read_tensors(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    header = {"odd": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}
    write_header(tmp_path / "model.safetensors", header, 4)
    with pytest.raises(CheckpointError, match=r"odd in model.safetensors has the dtype 'F8_E8M0'"):
        list_tensors(tmp_path)


@pytest.mark.parametrize("reader", [list_tensors, lambda folder: list(read_tensors(folder))])
class TestShardsAndIndexDisagree:
    def test_a_name_in_two_shards_is_refused(self, tmp_path: Path, reader: Any) -> None:
        first, second = {"x": torch.zeros(1)}, {"x": torch.ones(1)}
        write_shards(tmp_path, {"a.safetensors": first, "b.safetensors": second})
        save_file(first, tmp_path / "a.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": "b.safetensors", "w": "a.safetensors"}})
        )
        with pytest.raises(
            CheckpointError, match=r"b.safetensors holds 1 tensors that another shard .* \(x\)"
        ):
            reader(tmp_path)

    def test_a_tensor_that_the_index_only_promises_is_refused(
        self, tmp_path: Path, reader: Any
    ) -> None:
        write_shards(tmp_path, {"a.safetensors": {"w": torch.zeros(1), "x": torch.zeros(1)}})
        save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=r"1 that are not where it says \(x\)\. Down"):
            reader(tmp_path)

    def test_a_tensor_that_the_index_does_not_name_is_refused(
        self, tmp_path: Path, reader: Any
    ) -> None:
        write_shards(tmp_path, {"a.safetensors": {"w": torch.zeros(1)}})
        save_file({"w": torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=r"1 that it does not name \(x\)"):
            reader(tmp_path)

    def test_a_tensor_in_another_shard_than_the_index_says_is_refused(
        self, tmp_path: Path, reader: Any
    ) -> None:
        zero = torch.zeros(1)
        write_shards(tmp_path, {"a.safetensors": {"w": zero}, "b.safetensors": {"x": zero}})
        save_file({"x": zero}, tmp_path / "a.safetensors")
        save_file({"w": zero}, tmp_path / "b.safetensors")
        with pytest.raises(CheckpointError, match=r"2 that are not where it says \(w, x\)"):
            reader(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_a_chosen_dtype_is_taken_whatever_is_stored(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    original, model = linear(0), linear(1)
    save_checkpoint(original, tmp_path, dtype=stored)
    load_weights(model, read_tensors(tmp_path), dtype=dtype)
    assert model.weight.dtype == model.bias.dtype == dtype
    assert torch.equal(model.weight.detach(), original.weight.detach().to(stored).to(dtype))


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/x.safetensors", "weights.bin"])
def test_shards_outside_the_folder_or_pickled_are_refused(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": shard}}))
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file beside it"):
        list(read_tensors(tmp_path))


@pytest.mark.parametrize("text", ["not json", "{}", '{"weight_map": 3}', "[]"])
def test_an_unreadable_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="no readable weight_map"):
        list(read_tensors(tmp_path))


def test_pickled_weights_get_a_sentence_and_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model.bin\)"):
        list(read_tensors(tmp_path))


def test_a_folder_without_weights_and_a_folder_that_is_not_there_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights; expected model\.safetensors"):
        list(read_tensors(tmp_path))
    with pytest.raises(CheckpointError, match="is not a folder"):
        list(read_tensors(tmp_path / "nowhere"))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_checkpoint(linear(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        list(read_tensors(tmp_path))


def test_both_leftovers_are_named_and_the_model_stays() -> None:
    model = linear(0)
    before = model.weight.detach().clone()
    tensors = {"weight": torch.zeros(2, 3), "bais": torch.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tensors.items())
    assert str(caught.value) == (
        "Checkpoint does not fit Linear; tensors: 1 missing (bias), 1 unexpected (bais)."
    )
    assert torch.equal(model.weight, before)


def test_a_wrong_shape_is_named_with_both_shapes() -> None:
    tensors = {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}
    with pytest.raises(
        CheckpointError, match=r"1 of another shape \(weight is \(3, 2\), not \(2, 3\)\)"
    ):
        load_weights(linear(), tensors.items())


def test_many_leftovers_are_counted() -> None:
    tensors = {f"extra.{n}": torch.zeros(1) for n in range(8)}
    tensors |= {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"8 unexpected \(extra.0, .*extra.4 and 3 more\)"):
        load_weights(linear(), tensors.items())


def test_the_same_slot_given_twice_is_refused() -> None:
    tensors = {"weight": torch.zeros(2, 3), "old.weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"1 unexpected \(old.weight\)"):
        load_weights(linear(), tensors.items(), renames={"old.": ""})


def test_renamed_and_ignored_tensors_fit() -> None:
    model = linear()
    tensors = {"old.weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}
    load_weights(model, tensors.items(), renames={"old.": ""}, ignore={"more"})
    assert_close(model.weight.detach(), torch.ones(2, 3))


def test_a_meta_model_becomes_real_and_stays_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Tied()
    original.steps += 3
    save_checkpoint(original, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"table.weight", "steps"}
    with torch.device("meta"):
        model = Tied()
    load_weights(model, read_tensors(tmp_path), dtype=torch.bfloat16)
    assert model.head.weight is model.table.weight
    assert model.table.weight.dtype == torch.bfloat16
    assert model.steps.tolist() == [3.0, 3.0]
    assert_close(model.table.weight.float(), original.table.weight, rtol=0.01, atol=0.01)


def test_fresh_weights_are_small_and_biases_zero() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Embedding(64, 64), nn.LayerNorm(64))
    initialise(model, std=0.02)
    linear_, embedding, norm = model
    assert not linear_.bias.any()
    assert 0.015 < float(linear_.weight.detach().std()) < 0.025
    assert 0.015 < float(embedding.weight.detach().std()) < 0.025
    assert (norm.weight == 1).all()


def test_the_file_says_it_holds_torch_tensors(tmp_path: Path) -> None:
    """Other loaders refuse a safetensors file without this note."""
    from safetensors import safe_open

    save_checkpoint(linear(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata: Any = file.metadata()
    assert metadata == {"format": "pt"}
