"""float16 checkpoints are not computed in float16 on a processor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qianyan.models import precision
from qianyan.models.precision import choose_dtype
from qianyan.models.registry import load_model
from qianyan.models.weights import save_checkpoint

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(("is_fast", "expected"), [(True, BRAIN), (False, SINGLE)])
def test_float16_becomes_what_the_processor_is_fast_at(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: is_fast)
    assert choose_dtype([HALF, HALF, SINGLE, torch.int32], device="cpu") == expected


@pytest.mark.parametrize("stored", [[BRAIN], [SINGLE, SINGLE, HALF], [], [torch.int32]])
def test_every_other_checkpoint_stays_as_it_is(stored: list[torch.dtype]) -> None:
    assert choose_dtype(stored, device="cpu") is None


def test_accelerators_compute_in_float16() -> None:
    assert choose_dtype([HALF], device="cuda") is None
    assert choose_dtype([HALF], device=torch.device("mps")) is None


def test_a_float16_folder_loads_so_and_float16_can_still_be_asked_for(
    tiny_model: Any, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    save_checkpoint(tiny_model, tmp_path, dtype=HALF)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config))
    loaded = load_model(tmp_path)
    assert {p.dtype for p in loaded.parameters()} <= {BRAIN, SINGLE}
    asked = load_model(tmp_path, dtype="float16")
    assert {p.dtype for p in asked.parameters()} == {HALF}
