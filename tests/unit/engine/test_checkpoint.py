"""Where a model comes from: a folder, else the Hub."""

from pathlib import Path

import huggingface_hub
import pytest

from qianyan.engine.checkpoint import FILES, find_checkpoint
from qianyan.errors import CheckpointError


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) == tmp_path
    assert find_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", ["nowhere", "a/b/c", "https://example.com/x", "", Path("a/b")])
def test_what_is_neither_a_folder_nor_a_name_is_refused(model: str | Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; expected a checkpoint folder"):
        find_checkpoint(model)


@pytest.mark.parametrize("model", ["no-such-owner/no-such-model", "no..such/mo--del.git"])
def test_a_name_that_cannot_be_downloaded_is_one_sentence(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a folder nor a model that can be downl"):
        find_checkpoint(model)


def test_nothing_that_could_run_is_downloaded() -> None:
    assert not any(pattern.endswith((".bin", ".pt", ".py", ".pkl", "*")) for pattern in FILES)
