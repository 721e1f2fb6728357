"""Packed is unpacked: the same losses and gradients, token by token."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qianyan.inputs.processor import Processor
from qianyan.models.registry import Model, load_model
from qianyan.train.examples import Example, ExampleMaker
from qianyan.train.packing import Filler, Pack, TokenLosses, pack
from qianyan.train.samples import JsonLines


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return load_model(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def examples(model: Model, checkpoint: Path, conversations: Path) -> list[Example]:
    processor = Processor.from_folder(checkpoint)
    maker = ExampleMaker(model, processor, loss="answers", max_tokens=512)
    source = JsonLines(conversations)
    samples = [source.read(index) for index in range(8)]
    return [maker(sample.messages, source=sample.source) for sample in samples]


def token_losses(model: Model, packed: Pack) -> torch.Tensor:
    losses: torch.Tensor = TokenLosses(model, runs_all=True)(packed)
    return losses


def gradients(model: Model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None
    }


def test_packed_losses_are_those_of_each_alone(model: Model, examples: list[Example]) -> None:
    alone = torch.cat([token_losses(model, pack([example])) for example in examples])
    torch.testing.assert_close(token_losses(model, pack(examples)), alone, rtol=0, atol=2e-5)


def test_packed_gradients_are_the_sum_of_each_alone(model: Model, examples: list[Example]) -> None:
    together = gradients(model, token_losses(model, pack(examples)).sum())
    parts = [gradients(model, token_losses(model, pack([one])).sum()) for one in examples]
    for name, value in together.items():
        alone = torch.stack([part[name] for part in parts if name in part]).sum(0)
        torch.testing.assert_close(value, alone, rtol=1e-3, atol=1e-3)


@given(
    st.lists(st.integers(1, 20), max_size=200),
    st.integers(20, 60),
)
def test_sequences_hold_every_item_once_and_none_is_too_long(sizes: list[int], most: int) -> None:
    filler = Filler(iter([range(size) for size in sizes]), max_tokens=most, joins=True)
    packs = []
    while taken := filler.next():
        packs.append([len(item) for item in taken])
    assert sorted(size for pack in packs for size in pack) == sorted(sizes)
    assert all(sum(pack) <= most for pack in packs)
