"""What a hub says is believed only as far as it can be; refusals are one sentence."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from qianyan.engine.folder import is_complete
from qianyan.engine.library import list_models
from qianyan.engine.places import find_on_disk
from qianyan.engine.pull import pull
from qianyan.errors import CheckpointError

HUB = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))
HubServer, Repository = HUB["HubServer"], HUB["Repository"]
hub, files, shards, own_caches = (HUB[name] for name in ("hub", "files", "shards", "own_caches"))

NAME = "Owner/Tiny-0.1B"
GIVEN = "hf_123"
SOURCES = ["huggingface", "modelscope"]
BIG = "model-00001-of-00002.safetensors"


def is_partial() -> bool:
    """Nothing of the model can be loaded."""
    return find_on_disk(NAME) is None and not any(m.is_complete for m in list_models()[1:])


def change_private(hub: Any) -> None:
    hub.repositories[NAME].token = GIVEN


def change_gated(hub: Any) -> None:
    hub.repositories[NAME].is_gated = True


def change_unknown(hub: Any) -> None:
    hub.repositories.clear()


def change_broken(hub: Any) -> None:
    hub.statuses["list"] = [500, 500]


def change_without_config(hub: Any) -> None:
    del hub.repositories[NAME].files["config.json"]


def change_pickled(hub: Any) -> None:
    files = hub.repositories[NAME].files
    for name in [name for name in files if "safetensors" in name]:
        del files[name]


def change_traversal(hub: Any) -> None:
    hub.repositories[NAME].files["../../evil.json"] = b"{}"


def change_missing_shard(hub: Any) -> None:
    del hub.repositories[NAME].files["model-00002-of-00002.safetensors"]


def change_escaping_shard(hub: Any) -> None:
    index = {"weight_map": {"a": "../a.safetensors"}}
    hub.repositories[NAME].files["model.safetensors.index.json"] = json.dumps(index).encode()


def change_no_checksums(hub: Any) -> None:
    hub.repositories[NAME].without_checksum = True


def change_bad_checksum(hub: Any) -> None:
    hub.repositories[NAME].declared["tokenizer.json"] = {"blobId": "../x", "Sha256": "../x"}


def change_negative_size(hub: Any) -> None:
    hub.repositories[NAME].declared["tokenizer.json"] = {"size": -5, "Size": -5}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (change_private, "knows no model|does not hand out"),
        (change_gated, "does not hand out 'Owner/Tiny-0.1B' to everybody"),
        (change_unknown, r"knows no model 'Owner/Tiny-0.1B' at this revision \(404\)"),
        (change_broken, "answered 500 for 'Owner/Tiny-0.1B'"),
        (change_without_config, "has no config.json; expected a model"),
        (change_pickled, r"holds pickled weights only \('pytorch_model.bin'\)"),
        (change_traversal, "names a file '../../evil.json', which is outside"),
        (change_missing_shard, "is incomplete: its model.safetensors.index.json names"),
        (change_escaping_shard, "names a weight file outside its folder"),
        (change_no_checksums, "declares no checksum for"),
        (change_bad_checksum, "has a checksum that is none: '../x'"),
        (change_negative_size, "has a size that is none: '-5'"),
    ],
    ids=lambda value: getattr(value, "__name__", "").removeprefix("change_"),
)
def test_what_cannot_be_had_is_one_sentence(
    hub: Any, files: dict[str, bytes], source: Any, change: Callable[[Any], None], says: str
) -> None:
    hub.repositories[NAME] = Repository(dict(files))
    change(hub)
    for _ in range(2):  # what the first attempt left does not help the second
        with pytest.raises(CheckpointError, match=says) as caught:
            pull(NAME, source=source, endpoint=hub.url)
        assert "\n" not in str(caught.value)
        assert is_partial()


@pytest.mark.parametrize("source", SOURCES)
def test_a_private_model_opens_to_its_token(hub: Any, files: dict[str, bytes], source: Any) -> None:
    hub.repositories[NAME] = Repository(files, token=GIVEN)
    assert is_complete(pull(NAME, source=source, token=GIVEN, endpoint=hub.url))


@pytest.mark.parametrize("source", SOURCES)
def test_a_token_stays_with_the_hub_when_it_redirects(
    hub: Any, files: dict[str, bytes], source: Any
) -> None:
    store = HubServer()
    try:
        hub.repositories[NAME] = Repository(files, token=GIVEN)
        store.repositories[NAME] = Repository(files)
        hub.redirects_to, store.cuts[BIG] = store.url, [100_000]
        folder = pull(NAME, source=source, token=GIVEN, endpoint=hub.url)
    finally:
        store.close()
    assert is_complete(folder)
    assert store.ranges(BIG) == [None, "bytes=100000-"]
    assert store.requests
    assert not [r for r in store.requests if {"Authorization", "Cookie"} & set(r.headers)]


def test_a_stored_token_is_not_sent_to_a_mirror(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("hf_stored")
    assert huggingface_hub.get_token() == "hf_stored"
    hub.repositories[NAME] = Repository(files)
    pull(NAME, endpoint=hub.url)
    assert not [r for r in hub.requests if "Authorization" in r.headers]


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_hub_there_is_one_sentence(source: Any, hub: Any) -> None:
    hub.close()
    with pytest.raises(CheckpointError, match=r"cannot be reached \(ConnectError\)"):
        pull(NAME, source=source, endpoint=hub.url)


@pytest.mark.parametrize("source", SOURCES)
def test_an_endpoint_that_is_no_hub_is_one_sentence(source: Any, hub: Any) -> None:
    hub.repositories[NAME] = Repository({})
    hub.repositories[NAME].commit = "../../elsewhere"
    says = "is no list of files|has no config.json"
    with pytest.raises(CheckpointError, match=says):
        pull(NAME, source=source, endpoint=hub.url)
    with pytest.raises(CheckpointError, match=r"cannot be reached|is no list of files"):
        pull(NAME, source=source, endpoint="http://")


@pytest.mark.parametrize(
    "name", ["../..", "a/..", "../b", "a", "a/b/c", "a/b--c", "", "a/.b", "a/b\n", "-a/b"]
)
@pytest.mark.parametrize("source", SOURCES)
def test_a_name_that_is_none_is_refused_before_asking(hub: Any, source: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match="is not a model's name; expected owner/name"):
        pull(name, source=source, endpoint=hub.url)
    with pytest.raises(CheckpointError, match="is not a revision; expected"):
        pull(NAME, source=source, revision="../x", endpoint=hub.url)
    with pytest.raises(CheckpointError, match="source is 'elsewhere'; expected huggingface or"):
        pull(NAME, source="elsewhere", endpoint=hub.url)  # type: ignore[arg-type]
    assert not hub.requests


def test_offline_mode_is_respected(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME] = Repository(files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids"):
        pull(NAME, endpoint=hub.url)
    assert not hub.requests
