"""`qianyan models`: pulled from a real hub server, listed, described, licences in plain words."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from qianyan.cli import run
from qianyan.cli.model_words import architecture_word, count_word, licence_sentence, size_word
from qianyan.engine.engine import Engine
from qianyan.engine.library import APACHE, MIT, QWEN, QWEN_RESEARCH, Licence

HUB = runpy.run_path(str(Path(__file__).parents[1] / "engine" / "hub_server.py"))
Repository = HUB["Repository"]
hub, files, shards, own_caches = (HUB[name] for name in ("hub", "files", "shards", "own_caches"))

NAME = "Qwen/Qwen2.5-VL-3B-Instruct"
RESEARCH = b"---\nlicense: other\nlicense_name: qwen-research\n---\n"


@pytest.fixture
def research(hub: Any, files: dict[str, bytes]) -> Any:
    """A hub with one model that is not for commercial use."""
    hub.repositories[NAME] = Repository(files | {"README.md": RESEARCH, "LICENSE": b""})
    return hub


def test_a_pull_prints_the_folder_and_says_what_the_licence_forbids(
    research: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "pull", NAME, "--endpoint", research.url, "--lang", "en"]) == 0
    shown = capsys.readouterr()
    assert (Path(shown.out.removesuffix("\n")) / "config.json").is_file()
    *progress, licence = shown.err.splitlines()
    assert "(100%)" in progress[-1]
    assert all(" of " in line for line in progress)
    assert "NON-COMMERCIAL" in licence
    assert "\x1b" not in shown.err


def test_a_pull_goes_where_it_is_told_and_may_be_silent(
    research: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "pull", NAME, "--source", "modelscope", "--endpoint", research.url]
    assert run([*command, "--out", str(tmp_path / "here"), "--quiet"]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'here'}\n", "")
    assert (tmp_path / "here" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["pull"], 2, "Missing argument"),
        (["pull", NAME, "--source", "elsewhere"], 2, "'elsewhere'"),
        (["pull", "no name at all"], 3, "'no name at all'"),
        (["pull", "Qwen/Qwen9"], 3, "Qwen/Qwen9"),
        (["pull", NAME, "--revision", "v9"], 3, "at this revision"),
        (["info", "Qwen/Qwen9"], 3, "Qwen/Qwen9"),
        (["info", "bundled", "--context", "many"], 2, "--context is 'many'"),
        (["info", "bundled", "--context", "1,2,3,4,5,6"], 2, "at most 5"),
        (["lst"], 2, "No such command 'lst'"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    research: Any,
    arguments: list[str],
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_hub = [] if arguments == ["lst"] else ["--endpoint", research.url]
    assert run(["models", *arguments, *at_hub]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert len(shown.err.splitlines()) == 1


def test_the_list_fits_80_columns_and_marks_what_is_not_for_commercial_use(
    research: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["models", "pull", NAME, "--endpoint", research.url, "--quiet"]) == 0
    capsys.readouterr()
    for lang, word in (("zh", "非商用"), ("en", "NON-COMMERCIAL")):
        assert run(["models", "list", "--lang", lang]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(cell_len, lines)) <= 80
        (row,) = [line for line in lines if line.startswith(NAME)]
        assert "Qwen2" in row
        assert word in "".join(lines).replace(" ", "")
        assert any(line.startswith("bundled ") and "apache-2.0" in line for line in lines)
    assert run(["models", "list", "--json"]) == 0
    bundled, pulled = json.loads(capsys.readouterr().out)
    assert bundled["name"] == "bundled"
    assert (pulled["name"], pulled["source"]) == (NAME, "huggingface")
    assert pulled["licence"]["is_commercial"] is False


def test_a_model_is_described_before_it_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for lang in ("zh", "en"):
        assert run(["models", "info", "bundled", "--lang", lang, "--context", "512,1024"]) == 0
        shown = capsys.readouterr().out
        assert "Qwen2_5_VLForConditionalGeneration" in shown
        assert "bfloat16" in shown
        assert "1024" in shown
        assert max(map(cell_len, shown.splitlines()[6:])) <= 80
    assert run(["models", "info", "bundled", "--json", "--context", "512,1024"]) == 0
    facts = json.loads(capsys.readouterr().out)
    half = facts["memory"]["bfloat16"]
    per_token = facts["kv_bytes_per_token"]["bfloat16"]
    assert half["total_bytes"]["1024"] == half["weights_bytes"] + 1024 * per_token
    assert half["weights_bytes"] == 2 * sum(facts["num_parameters"].values())


@pytest.mark.parametrize(
    ("licence", "word"),
    [
        (None, "No licence is stated"),
        (APACHE, "Commercial use is allowed"),
        (MIT, "Commercial use is allowed"),
        (QWEN, "100 million"),
        (QWEN_RESEARCH, "NON-COMMERCIAL"),
        (Licence(id="x", name="Own\x1b", is_commercial=None, note=""), "Own�. Whether"),
    ],
)
def test_a_licence_is_said_in_both_languages(licence: Licence | None, word: str) -> None:
    assert word in licence_sentence(licence, "en")
    assert licence_sentence(licence, "zh").endswith("。")


def test_numbers_are_short() -> None:
    sizes = [999, 1000, 13_882_706, 999_600_000, 7_520_000_000, 2 * 10**12]
    assert [size_word(n) for n in sizes] == [
        *("999 B", "1.0 kB", "13.9 MB", "1.0 GB", "7.5 GB", "2.0 TB")
    ]
    assert [count_word(n) for n in (7, 1500, 3_754_622_976)] == ["7", "1.50 k", "3.75 B"]
    assert architecture_word("Qwen2_5_VLForConditionalGeneration") == "Qwen2_5_VL"
    assert architecture_word("QWenLMHeadModel") == "QWen"
    assert architecture_word(None) == "?"


def test_a_model_is_quantised_once_and_then_described_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "judge-int8"
    assert run(["models", "quantize", "bundled", str(out), "--to", "int8", "--lang", "en"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}\n"
    *progress, licence = shown.err.splitlines()
    assert "(100%), judge-int8" in progress[-1]
    assert all(line.startswith("written ") for line in progress)
    assert "Apache" in licence
    assert run(["models", "info", str(out), "--json", "--context", "512"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["quantization"] == "qianyan, 8 bits, a group each row"
    assert Engine(out).chat([{"role": "user", "content": "A?"}], max_tokens=4).token_ids


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["bundled"], 2, "Missing argument 'OUT'"),
        (["bundled", "OUT", "--to", "int3"], 2, "'int3'"),
        (["bundled", "."], 3, "is there already; expected the name of a new"),
        (["nowhere", "OUT"], 3, "'nowhere' is not a folder"),
    ],
)
def test_what_cannot_be_quantised_is_one_sentence(
    arguments: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [one.replace("OUT", str(tmp_path / "q")) for one in arguments]
    assert run(["models", "quantize", *given]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
