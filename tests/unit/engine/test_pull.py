"""Models come from a hub whole, verified and resumable; everything else is one sentence."""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from qianyan.engine import transfer
from qianyan.engine.checkpoint import find_checkpoint
from qianyan.engine.engine import Engine
from qianyan.engine.folder import is_complete
from qianyan.engine.library import list_models
from qianyan.engine.places import find_on_disk
from qianyan.engine.pull import PullProgress, pull
from qianyan.errors import CheckpointError
from qianyan.models.registry import load_model

HUB = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))
Repository, hub, files, own_caches = (
    HUB[name] for name in ("Repository", "hub", "files", "own_caches")
)
shards = HUB["shards"]

NAME = "Owner/Tiny-0.1B"
SOURCES = ["huggingface", "modelscope"]
WANTED = {"config.json", "tokenizer.json", "README.md", "LICENSE", "spk_dict.pt"}
REFUSED = {"pytorch_model.bin", "modeling.py", "assets/photo.json", "voices.pt", ".gitattributes"}


BIG = "model-00001-of-00002.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def is_partial(name: str = NAME) -> bool:
    """Nothing of a model can be loaded."""
    return find_on_disk(name) is None and not any(m.is_complete for m in list_models()[1:])


@pytest.mark.parametrize("source", SOURCES)
def test_an_embedding_model_arrives_with_what_it_needs(
    hub: Any, embedding_checkpoint: Path, source: Any
) -> None:
    paths = (path for path in embedding_checkpoint.rglob("*") if path.is_file())
    given = {str(path.relative_to(embedding_checkpoint)): path.read_bytes() for path in paths}
    hub.repositories[NAME] = Repository(given | {"2_Normalize/config.json": b"{}"})
    folder = pull(NAME, source=source, endpoint=hub.url)
    assert pull(NAME, source=source, endpoint=hub.url) == folder, "nothing is fetched again"
    assert hub.sent["1_Pooling/config.json"] == len(given["1_Pooling/config.json"])
    assert not (folder / "2_Normalize").exists()
    (vector,) = Engine(folder).embed(["hard hat"]).vectors
    assert vector.norm() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_a_model_arrives_without_pickled_weights_code_and_subfolders(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    hub.repositories[NAME] = Repository(files)
    folder = pull(NAME, source=source, endpoint=hub.url)
    assert contents(folder) == {name: files[name] for name in files if name not in REFUSED}
    assert set(contents(folder)) >= WANTED
    assert is_complete(folder)
    assert find_on_disk(NAME) == folder
    assert not hub.sent.keys() & REFUSED


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_pulled_loads_and_is_found_without_network(
    hub: Any, tiny_checkpoint: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME] = Repository(contents(tiny_checkpoint))
    folder = pull(NAME, source=source, endpoint=hub.url)
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint(NAME) == folder
    assert not hub.requests
    own, pulled = load_model(tiny_checkpoint), load_model(folder)
    for (name, parameter), other in zip(own.named_parameters(), pulled.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_hugging_faces_own_library_finds_what_was_pulled(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories[NAME] = Repository(files)
    folder = pull(NAME, endpoint=hub.url)
    found = huggingface_hub.snapshot_download(
        NAME, cache_dir=tmp_path / "hf", local_files_only=True
    )
    assert Path(found) == folder
    scanned = huggingface_hub.scan_cache_dir(tmp_path / "hf")
    assert not scanned.warnings
    assert [repo.repo_id for repo in scanned.repos] == [NAME]


def test_what_hugging_faces_own_library_fetched_is_not_fetched_again(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories[NAME] = Repository(files)
    for name in (BIG, "tokenizer.json"):
        huggingface_hub.hf_hub_download(
            NAME, name, cache_dir=tmp_path / "hf", endpoint=hub.url, token=False
        )
    assert hub.sent[BIG] == len(files[BIG])
    folder = pull(NAME, endpoint=hub.url)
    assert hub.sent[BIG] == len(files[BIG])
    assert hub.sent["tokenizer.json"] == len(files["tokenizer.json"])
    assert is_complete(folder)


def test_of_a_new_commit_only_what_changed_is_fetched(hub: Any, files: dict[str, bytes]) -> None:
    hub.repositories[NAME] = Repository(files)
    pull(NAME, endpoint=hub.url)
    sent = dict(hub.sent)
    hub.repositories[NAME].commit = "f" * 40
    hub.repositories[NAME].files = files | {"config.json": b'{"model_type": "qwen3"}'}
    folder = pull(NAME, endpoint=hub.url)
    assert folder.name == "f" * 40
    assert {name for name, count in hub.sent.items() if count != sent[name]} == {"config.json"}
    assert find_checkpoint(NAME) == folder


@pytest.mark.parametrize("source", SOURCES)
def test_a_second_pull_asks_for_the_list_only(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    hub.repositories[NAME] = Repository(files)
    first = pull(NAME, source=source, endpoint=hub.url)
    hub.requests.clear()
    assert pull(NAME, source=source, endpoint=hub.url) == first
    assert len(hub.requests) == 1


@pytest.mark.parametrize("source", SOURCES)
def test_a_folder_of_ones_own_is_filled_and_brought_up_to_date(
    hub: Any, files: dict[str, bytes], source: Any, tmp_path: Path
) -> None:
    hub.repositories[NAME] = Repository(files)
    folder = tmp_path / "models" / "mine"
    assert pull(NAME, source=source, folder=folder, endpoint=hub.url) == folder
    changed = files | {"tokenizer.json": b"[]"}  # as long as before
    hub.repositories[NAME].files = changed
    hub.sent.clear()
    pull(NAME, source=source, folder=folder, endpoint=hub.url)
    assert set(hub.sent) == {"tokenizer.json"}
    assert contents(folder) == {name: changed[name] for name in files if name not in REFUSED}
    assert find_checkpoint(NAME) == folder
    [listed] = list_models()[1:]
    assert (listed.name, listed.folder, listed.source) == (NAME, folder, source)


def test_a_folder_with_other_weights_is_left_alone(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories[NAME] = Repository(files)
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="holds other weights"):
        pull(NAME, folder=tmp_path, endpoint=hub.url)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        pull(NAME, folder=file, endpoint=hub.url)


@pytest.mark.parametrize("source", SOURCES)
def test_progress_grows_to_the_whole(hub: Any, files: dict[str, bytes], source: Any) -> None:
    hub.repositories[NAME] = Repository(files)
    told: list[PullProgress] = []
    pull(NAME, source=source, endpoint=hub.url, on_progress=told.append)
    total = sum(len(content) for name, content in files.items() if name not in REFUSED)
    assert {progress.total_bytes for progress in told} == {total}
    assert [p.done_bytes for p in told] == sorted(p.done_bytes for p in told)
    assert len({p.done_bytes for p in told if p.file == BIG}) > 3
    assert (told[-1].done_bytes, told[-1].num_files_done) == (total, told[-1].num_files)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_connection_that_drops_is_gone_on_with(
    hub: Any, files: dict[str, bytes], source: Any, ignores_range: bool
) -> None:
    hub.repositories[NAME] = Repository(files)
    hub.cuts[BIG], hub.ignores_range = [100_000, 50_000, 0, 200_000], ignores_range
    folder = pull(NAME, source=source, endpoint=hub.url)
    assert (folder / BIG).read_bytes() == files[BIG]
    assert len(hub.ranges(BIG)) == 5
    if not ignores_range:
        assert hub.ranges(BIG)[1:3] == ["bytes=100000-", "bytes=150000-"]
        assert hub.sent[BIG] == len(files[BIG])


@pytest.mark.parametrize("source", SOURCES)
def test_a_pull_that_gives_up_keeps_what_came_and_the_next_goes_on(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    hub.repositories[NAME] = Repository(files)
    hub.cuts[BIG] = [100_000, *[0] * (transfer.RETRIES + 1)]
    with pytest.raises(CheckpointError, match=r"broke off at 100000 of \d+ bytes .* pull again"):
        pull(NAME, source=source, endpoint=hub.url)
    assert is_partial()
    hub.requests.clear()
    folder = pull(NAME, source=source, endpoint=hub.url)
    assert hub.ranges(BIG) == ["bytes=100000-"]
    assert hub.sent[BIG] == len(files[BIG])
    assert (folder / BIG).read_bytes() == files[BIG]


@pytest.mark.parametrize("source", SOURCES)
def test_a_killed_pull_is_gone_on_with(
    hub: Any, files: dict[str, bytes], source: Any, tmp_path: Path
) -> None:
    hub.repositories[NAME] = Repository(files)
    hub.pauses[BIG] = 0.02
    code = (
        "from qianyan.engine.pull import pull\n"
        f"pull({NAME!r}, source={source!r}, endpoint={hub.url!r})"
    )
    caches = {"HF_HUB_CACHE": str(tmp_path / "hf"), "HF_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | caches)
    deadline = time.monotonic() + 60
    while hub.sent[BIG] < 100_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert is_partial()
    assert [model.name for model in list_models()[1:]] == [NAME]

    hub.pauses.clear()
    hub.requests.clear()
    folder = pull(NAME, source=source, endpoint=hub.url)
    [asked] = hub.ranges(BIG)
    assert asked is not None
    assert int(asked[6:-1]) > 0
    assert (folder / BIG).read_bytes() == files[BIG]


@pytest.mark.parametrize("source", SOURCES)
def test_two_pulls_at_once_fetch_once(hub: Any, files: dict[str, bytes], source: Any) -> None:
    hub.repositories[NAME] = Repository(files)
    hub.pauses[BIG] = 0.005
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(pull(NAME, source=source, endpoint=hub.url)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2
    assert len(set(folders)) == 1
    assert hub.sent[BIG] == len(files[BIG])
    assert (folders[0] / BIG).read_bytes() == files[BIG]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", [BIG, "tokenizer.json"])
def test_a_file_that_is_not_what_was_declared_is_deleted(
    hub: Any, files: dict[str, bytes], source: Any, name: str
) -> None:
    declared = "0" * (40 if source == "huggingface" and name == "tokenizer.json" else 64)
    key = {"blobId": declared, "Sha256": declared}
    if source == "huggingface" and name == BIG:
        key["lfs"] = {"sha256": declared, "size": len(files[name]), "pointerSize": 1}  # type: ignore[assignment]
    hub.repositories[NAME] = Repository(files, declared={name: key})
    with pytest.raises(CheckpointError, match=rf"'{name}' does not have the checksum .* deleted"):
        pull(NAME, source=source, endpoint=hub.url)
    assert is_partial()
    left = [path.name for path in Path(os.environ["HOME"]).parent.rglob(f"*{declared}*")]
    assert not left
    assert not [p for p in Path(os.environ["HOME"]).rglob("*") if p.name.startswith(name)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("change", "says"), [(-10, "sends more"), (10, "broke off at")])
def test_a_hub_that_lies_about_a_size_is_found_out(
    hub: Any, files: dict[str, bytes], source: Any, change: int, says: str
) -> None:
    size = len(files[BIG]) + change
    hub.repositories[NAME] = Repository(files, declared={BIG: {"size": size, "Size": size}})
    with pytest.raises(CheckpointError, match=says):
        pull(NAME, source=source, endpoint=hub.url)
    assert is_partial()


@pytest.mark.parametrize("source", SOURCES)
def test_a_server_that_sends_another_range_is_not_believed(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    hub.repositories[NAME] = Repository(files)
    hub.shifts_range, hub.cuts[BIG] = True, [100_000]
    folder = pull(NAME, source=source, endpoint=hub.url)
    assert (folder / BIG).read_bytes() == files[BIG]


@pytest.mark.parametrize("source", SOURCES)
def test_a_model_that_does_not_fit_on_the_disk_is_not_begun(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    declared = {BIG: {"size": 10**18, "Size": 10**18}}
    hub.repositories[NAME] = Repository(files, declared=declared)
    with pytest.raises(CheckpointError, match=r"needs 1000000000\.0 GB more and .* are free"):
        pull(NAME, source=source, endpoint=hub.url)
    assert not hub.sent


def test_a_revision_is_kept_beside_the_main_one(hub: Any, files: dict[str, bytes]) -> None:
    hub.repositories[NAME] = Repository(files)
    main = pull(NAME, endpoint=hub.url)
    older = files | {"config.json": b"{}"}
    hub.repositories[NAME] = Repository(older, commit="e" * 40)
    folder = pull(NAME, revision="v1", endpoint=hub.url)
    assert (folder / "config.json").read_bytes() == b"{}"
    assert find_checkpoint(NAME) == main
    with pytest.raises(CheckpointError, match=r"knows no model .* at this revision"):
        pull(NAME, revision="v2", endpoint=hub.url)


def test_a_folder_is_no_model_while_old_and_new_are_mixed(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    """A pull stopped between two of its last steps leaves no folder that would load."""
    hub.repositories[NAME] = Repository(files)
    folder = pull(NAME, folder=tmp_path / "mine", endpoint=hub.url)
    changed = files | {BIG: files[BIG][:-4] + b"\0\0\0\0", "tokenizer.json": b"[]"}
    hub.repositories[NAME].files = changed
    (folder / BIG).unlink()
    (folder / BIG).mkdir()  # what cannot be replaced stops the pull there
    with pytest.raises(CheckpointError, match="cannot be written"):
        pull(NAME, folder=folder, endpoint=hub.url)
    assert (folder / "tokenizer.json").read_bytes() == b"[]"
    assert not is_complete(folder)
    assert not (folder / "config.json").exists()
    (folder / BIG).rmdir()
    hub.sent.clear()
    pull(NAME, folder=folder, endpoint=hub.url)
    assert not hub.sent
    assert contents(folder) == {name: changed[name] for name in files if name not in REFUSED}


def test_a_hub_that_redirects_without_end_is_given_up(hub: Any, files: dict[str, bytes]) -> None:
    hub.repositories[NAME] = Repository(files)
    hub.redirects_to = f"{hub.url}/{NAME}/resolve/main/x?"
    hub.repositories[NAME].files["x"] = b""
    with pytest.raises(CheckpointError, match="broke off at 0 of"):
        pull(NAME, endpoint=hub.url)
    assert is_partial()


def test_a_folder_that_cannot_be_written_is_one_sentence(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories[NAME] = Repository(files)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        pull(NAME, folder=tmp_path / "file" / "below", endpoint=hub.url)


def test_an_older_modelscope_folder_is_used_as_it_is(hub: Any, files: dict[str, bytes]) -> None:
    older = Path(os.environ["HOME"]) / ".cache/modelscope/hub/models/Owner/Tiny-0___1B"
    older.mkdir(parents=True)
    for name in ("config.json", BIG):
        (older / name).write_bytes(files[name])
    hub.repositories[NAME] = Repository(files)
    assert pull(NAME, source="modelscope", endpoint=hub.url) == older
    assert not hub.sent[BIG]
    assert find_checkpoint(NAME) == older
