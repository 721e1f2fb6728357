"""Where a model comes from: a folder, else the disk under a hub's name, else the Hub."""

import os
import runpy
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from qianyan.engine.checkpoint import BUNDLED_FOLDER, find_checkpoint, find_local
from qianyan.engine.pull import pull
from qianyan.errors import CheckpointError

HUB = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))
Repository = HUB["Repository"]
hub, files, shards, own_caches = (HUB[name] for name in ("hub", "files", "shards", "own_caches"))

NAME = "Owner/Tiny-0.1B"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) == tmp_path
    assert find_checkpoint(str(tmp_path)) == tmp_path


def test_bundled_is_the_judge_that_comes_with_the_package() -> None:
    assert find_checkpoint("bundled") == BUNDLED_FOLDER / "judge"


@pytest.mark.parametrize("model", ["nowhere", "a/b/c", "https://example.com/x", "", Path("a/b")])
def test_what_is_neither_a_folder_nor_a_name_is_refused(model: str | Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; expected a checkpoint folder"):
        find_checkpoint(model)


@pytest.mark.parametrize("model", ["no-such-owner/no-such-model", "no..such/mo--del.git"])
def test_a_name_that_cannot_be_downloaded_is_one_sentence(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="neither a folder nor a model that can be downl"):
        find_checkpoint(model)


def test_a_name_that_is_not_on_disk_is_downloaded(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.repositories[NAME] = Repository(files)
    assert find_local(NAME) is None
    folder = find_checkpoint(NAME)
    assert find_local(NAME) == folder
    assert (folder / "config.json").read_bytes() == files["config.json"]


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_what_was_pulled_is_found_without_asking(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    hub.repositories[NAME] = Repository(files)
    folder = pull(NAME, source=source, endpoint=hub.url)
    hub.close()
    assert find_checkpoint(NAME) == folder


@pytest.mark.parametrize("lacking", ["config.json", "model-00002-of-00002.safetensors"])
def test_a_part_of_a_model_is_not_taken_for_the_whole(
    hub: Any, files: dict[str, bytes], lacking: str
) -> None:
    hub.repositories[NAME] = Repository(files)
    folder = pull(NAME, source="modelscope", endpoint=hub.url)
    (folder / lacking).unlink()
    assert find_local(NAME) is None


def test_weights_cut_short_are_not_taken_for_the_whole(hub: Any, files: dict[str, bytes]) -> None:
    hub.repositories[NAME] = Repository(files)
    folder = pull(NAME, source="modelscope", endpoint=hub.url)
    weights = folder / "model-00001-of-00002.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert find_local(NAME) is None


def test_the_bundled_detector_answers_nothing() -> None:
    with pytest.raises(CheckpointError, match="'bundled-fast' only finds fire"):
        find_checkpoint("bundled-fast")
