"""The library knows what is on disk, whether it is all there, and what its licence forbids."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.checkpoint import BUNDLED_FOLDER, find_local
from qianyan.engine.library import Licence, list_models, read_licence
from qianyan.engine.pull import pull

HUB = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))
Repository = HUB["Repository"]
hub, files, shards, own_caches = (HUB[name] for name in ("hub", "files", "shards", "own_caches"))

RESEARCH_TEXT = "Qwen RESEARCH LICENSE AGREEMENT\n\nQwen RESEARCH LICENSE AGREEMENT Release Date"
TONGYI_TEXT = "Tongyi Qianwen LICENSE AGREEMENT\n\nTongyi Qianwen Release Date: August 23, 2023"
APACHE_TEXT = "               Apache License\n          Version 2.0, January 2004\n"


def licence_of(folder: Path, readme: str | None, licence: str | None = None) -> Licence | None:
    if readme is not None:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    if licence is not None:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
    return read_licence(folder)


def front(*lines: str) -> str:
    return "\n".join(["---", *lines, "---", "", "# A model", "license: mit", ""])


@pytest.mark.parametrize(
    ("readme", "licence", "id_", "is_commercial"),
    [
        (front("license: apache-2.0"), None, "apache-2.0", True),
        (front("license: Apache-2.0  ", "tags:", "- x"), None, "apache-2.0", True),
        (front("license:", "- apache-2.0"), None, "apache-2.0", True),
        (front('license: "mit"'), None, "mit", True),
        (front("license: other", "license_name: qwen-research"), None, "qwen-research", False),
        (front("license: other", "license_name: qwen"), None, "qwen", True),
        (front("license: other", "license_name: tongyi-qianwen"), None, "tongyi-qianwen", True),
        (
            front("license: other", "license_name: tongyi-qianwen-license-agreement"),
            None,
            "tongyi-qianwen",
            True,
        ),
        (
            front("license: other", "license_name: tongyi-qianwen-research"),
            None,
            "tongyi-qianwen-research",
            False,
        ),
        (None, RESEARCH_TEXT, "qwen-research", False),
        (None, TONGYI_TEXT, "tongyi-qianwen", True),
        (None, "Tongyi Qianwen RESEARCH LICENSE AGREEMENT", "tongyi-qianwen-research", False),
        (None, "Qwen LICENSE AGREEMENT", "qwen", True),
        (None, APACHE_TEXT, "apache-2.0", True),
        (None, "MIT License\n\nCopyright", "mit", True),
        (front("tags:", "- vision"), TONGYI_TEXT, "tongyi-qianwen", True),
        (front("license: other"), RESEARCH_TEXT, "qwen-research", False),
        (front("license: apache-2.0"), RESEARCH_TEXT, "qwen-research", False),
    ],
)
def test_licences_are_read_as_qwen_states_them(
    readme: str | None, licence: str | None, id_: str, is_commercial: bool, tmp_path: Path
) -> None:
    found = licence_of(tmp_path, readme, licence)
    assert found is not None
    assert (found.id, found.is_commercial) == (id_, is_commercial)


def test_a_non_commercial_licence_says_so(tmp_path: Path) -> None:
    found = licence_of(tmp_path, front("license: other", "license_name: qwen-research"))
    assert found is not None
    assert found.note.startswith("NON-COMMERCIAL")
    conditions = licence_of(tmp_path, front("license: other", "license_name: qwen"))
    assert conditions is not None
    assert "100 million monthly active users" in conditions.note
    disagreeing = licence_of(tmp_path, front("license: apache-2.0"), RESEARCH_TEXT)
    assert disagreeing is not None
    assert "its README says apache-2.0" in disagreeing.note


@pytest.mark.parametrize(
    ("readme", "licence", "id_", "note"),
    [
        (front("license: cc-by-nc-4.0"), None, "cc-by-nc-4.0", "read the licence"),
        (front("license: other", "license_name: qwen-9000"), None, "qwen-9000", "read the licence"),
        (
            front("license: other", "license_link: >-", "  https://x.org/LICENSE"),
            None,
            "other",
            "https://x.org/LICENSE",
        ),
        (None, "My own terms, see below", "other", "LICENSE"),
        (None, "Apache License, Version 1.1", "other", "LICENSE"),
        (None, "Not under the Apache License, Version 2.0", "other", "LICENSE"),
    ],
)
def test_other_licences_are_left_to_the_reader(
    readme: str | None, licence: str | None, id_: str, note: str, tmp_path: Path
) -> None:
    found = licence_of(tmp_path, readme, licence)
    assert found is not None
    assert (found.id, found.is_commercial) == (id_, None)
    assert note in found.note


@pytest.mark.parametrize(
    "readme", [None, "", "# license: mit", "---\nlicense: mit", front("license:"), front("- x")]
)
def test_without_a_statement_there_is_no_licence(readme: str | None, tmp_path: Path) -> None:
    assert licence_of(tmp_path, readme) is None
    (tmp_path / "LICENSE").write_bytes(b" \n")
    assert read_licence(tmp_path) is None
    assert read_licence(tmp_path / "nowhere") is None


def test_a_readme_of_any_bytes_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe" + b"[" * 100_000 + b"\n---\n")
    read_licence(tmp_path)
    (tmp_path / "README.md").write_bytes(b"---\nlicense: " + b"x" * 60_000 + b"\n---\n")
    found = read_licence(tmp_path)
    assert found is not None
    assert len(found.id) == 200


def test_the_bundled_pair_is_always_there() -> None:
    [bundled] = list_models()
    assert (bundled.name, bundled.source, bundled.folder) == ("bundled", "bundled", BUNDLED_FOLDER)
    assert bundled.is_complete
    assert bundled.architecture == "Qwen2_5_VLForConditionalGeneration"
    assert 13_000_000 < bundled.size_bytes < 15_000_000
    assert bundled.licence is not None
    assert bundled.licence.is_commercial


def test_models_are_listed_wherever_they_were_pulled(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    research = files | {"README.md": front("license_name: qwen-research").encode()}
    del research["LICENSE"]
    for name in ("Qwen/A-1.5B", "Qwen/B", "Qwen/C"):
        hub.repositories[name] = Repository(research)
    places = {
        "Qwen/A-1.5B": ("huggingface", pull("Qwen/A-1.5B", endpoint=hub.url)),
        "Qwen/B": ("modelscope", pull("Qwen/B", source="modelscope", endpoint=hub.url)),
        "Qwen/C": ("huggingface", pull("Qwen/C", folder=tmp_path / "c", endpoint=hub.url)),
    }
    listed = list_models()[1:]
    assert {model.name: (model.source, model.folder) for model in listed} == places
    for model in listed:
        assert model.is_complete
        assert model.architecture == "Qwen2ForCausalLM"
        assert model.licence is not None
        assert model.licence.is_commercial is False
        wanted = [path for path in model.folder.iterdir() if path.is_file()]
        assert sum(path.stat().st_size for path in wanted) <= model.size_bytes


def test_a_part_of_a_model_is_listed_as_a_part(hub: Any, files: dict[str, bytes]) -> None:
    hub.repositories["Qwen/A"] = Repository(files)
    folder = pull("Qwen/A", endpoint=hub.url)
    (folder / "model-00002-of-00002.safetensors").unlink()
    [part] = list_models()[1:]
    assert (part.name, part.is_complete) == ("Qwen/A", False)


def test_modelscopes_older_layouts_are_found(files: dict[str, bytes], own_home: Path) -> None:
    for parent in ("hub/models", "models"):
        folder = own_home / ".cache" / "modelscope" / parent / "Qwen" / f"A{len(parent)}-1___5B"
        folder.mkdir(parents=True)
        for name, content in files.items():
            if "/" not in name:
                (folder / name).write_bytes(content)
        assert find_local(f"Qwen/A{len(parent)}-1.5B") == folder
    assert [model.name for model in list_models()[1:]] == ["Qwen/A10-1.5B", "Qwen/A6-1.5B"]


@pytest.fixture
def own_home(tmp_path: Path) -> Path:
    """The home that `own_caches` set up."""
    return tmp_path / "home"


def test_a_folder_that_was_deleted_is_forgotten(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories["Qwen/A"] = Repository(files)
    folder = pull("Qwen/A", folder=tmp_path / "mine", endpoint=hub.url)
    assert len(list_models()) == 2
    folder.rename(tmp_path / "elsewhere")
    assert len(list_models()) == 1


def test_other_things_in_the_caches_are_no_models(tmp_path: Path) -> None:
    for path in (
        "hf/datasets--a--b/snapshots/x/model.safetensors",
        "hf/models--a--b/refs/main",
        "hf/version.txt",
        "home/.cache/modelscope/models/readme.txt",
        "home/.cache/modelscope/datasets/a/b/model.safetensors",
        "assets/qianyan/pulled/bad.json",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{")
    assert len(list_models()) == 1
