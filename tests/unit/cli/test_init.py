"""The command line: options from three places, one sentence for each error, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import qianyan
from qianyan.cli import run


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures in site/, and the folder they are in as the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    for index in range(2):
        picture = Image.new("RGB", (80, 60), (index * 90, 40, 0))
        picture.save(tmp_path / "site" / f"p{index}.png")
    return tmp_path


@pytest.fixture
def look(tiny_pair: Path) -> list[str]:
    """Options for a quick way to look."""
    return ["--model", str(tiny_pair), "--look", "detector"]


@pytest.fixture
def pair_in_environment(site: Path, tiny_pair: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the untrained pair as default model and no network."""
    monkeypatch.setenv("QIANYAN_MODEL", str(tiny_pair))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return site


def results(out: str = "qianyan-out") -> dict[str, object]:
    whole: dict[str, object] = json.loads((Path(out) / "results.json").read_text("utf-8"))
    return whole


def test_pictures_are_inspected_into_the_results_folder(
    site: Path, look: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "site", *look, "--lang", "en"]) == 0
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["source"] for line in lines] == ["site/p0.png", "site/p1.png"]
    assert "report.pdf" in shown.err
    assert {path.name for path in Path("qianyan-out").iterdir()} >= {
        *("images", "marked_images", "fonts", "report.pdf", "results.jsonl", "results.json")
    }
    assert results()["schema"] == "qianyan.results/1"


def test_quiet_prints_nothing(
    site: Path, look: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "site", *look, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_quiet_with_json_prints_the_lines_only(
    site: Path, look: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "site", *look, "--quiet", "--json"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert shown.err == ""


@pytest.mark.parametrize(("words", "code"), [("any", 1), ("no_helmet", 0), ("severe,any", 1)])
def test_findings_fail_the_run_when_asked(
    site: Path, look: list[str], words: str, code: int
) -> None:
    assert run(["inspect", "site", *look, "--quiet", "--fail-on", words]) == code


def test_some_failed_pictures_are_done_in_part(site: Path, look: list[str]) -> None:
    Path("site/bad.jpg").write_text("no picture")
    assert run(["inspect", "site", *look, "--quiet"]) == 4
    assert results()["summary"]["failed"] == 1  # type: ignore[index]


def test_options_come_from_the_command_line_then_the_environment_then_toml(
    site: Path, look: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site.toml").write_text('lang = "en"\nmax-objects = 4\nout = "from-toml"\n')
    monkeypatch.setenv("QIANYAN_MAX_OBJECTS", "3")
    command = ["inspect", "site/p0.png", *look, "--quiet", "--config", "site.toml"]
    assert run([*command, "--max-objects", "2"]) == 0
    whole = results("from-toml")
    assert whole["run"]["lang"] == "en"  # type: ignore[index]
    assert len(whole["pictures"][0]["detections"]) == 2  # type: ignore[index]
    assert run([*command, "--overwrite"]) == 0
    assert len(results("from-toml")["pictures"][0]["detections"]) == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["inspect"], 2, "Missing argument"),
        (["inspect", "site", "--lang", "fr"], 2, "'fr'"),
        (["inspect", "site", "--max-objects", "many"], 2, "--max-objects"),
        (["inspect", "site", "--max-objects", "0"], 2, "max_objects is 0; expected 1 to 100."),
        (["inspect", "site", "--fail-on", "bad"], 2, "--fail-on is 'bad'; expected minor"),
        (["inspect", "site", "--rules", "r.toml"], 2, "rules come with a later version"),
        (["inspect", "site", "--resume", "--overwrite"], 2, "expected one of them"),
        (["inspect", "site", "--config", "no.toml"], 2, "cannot be opened"),
        (["inspect", "site", "--look", "list"], 2, "cannot list boxes"),
        (["inspect", "site", "--model", "no-such-folder/x"], 3, "no-such-folder/x"),
        (["inspect", "site", "--base-url", "nonsense"], 3, "nonsense"),
        (["watch", "cam"], 2, "watch"),
        (["report", "nowhere"], 2, "cannot be opened"),
    ],
)
def test_what_is_wrong_is_one_sentence_on_standard_error(
    pair_in_environment: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    assert run(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("qianyan: ")
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not Path("qianyan-out").exists()


def test_debug_shows_the_traceback(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qianyan", "report", "nowhere", "--debug"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_misspelt_variable_is_an_error(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIANYAN_MAXOBJECTS", "3")
    assert run(["inspect", "site"]) == 2
    assert "QIANYAN_MAX_OBJECTS" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten_by_accident(
    site: Path, look: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", "site", *look, "--quiet"]
    assert run(command) == 0
    before = results()
    assert run(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert results() == before
    assert run([*command, "--overwrite"]) == 0
    assert results()["run"]["id"] != before["run"]["id"]  # type: ignore[index]


def test_resuming_with_another_model_is_refused(
    site: Path, look: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "site", *look, "--quiet"]) == 0
    assert run(["inspect", "site", *look, "--quiet", "--resume", "--max-objects", "2"]) == 2
    assert "max_objects is '2'" in capsys.readouterr().err


def test_a_report_is_set_anew_in_the_other_language(
    site: Path, look: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "site", *look, "--quiet", "--lang", "zh"]) == 0
    report = Path("qianyan-out/report.pdf")
    before = report.read_bytes()
    assert run(["report", "qianyan-out", "--lang", "en"]) == 0
    assert capsys.readouterr().out == f"{report}\n"
    assert report.read_bytes() != before
    assert run(["report", "qianyan-out"]) == 0
    assert report.read_bytes() == before, "the run's own language gives the run's own report"


def test_the_doctor_tries_a_local_model(
    look: list[str], tiny_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--model", str(tiny_pair)]) == 3
    assert "judge" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"qianyan {qianyan.__version__}\n"


def test_every_public_name_exists_and_the_list_is_sorted() -> None:
    assert qianyan.__all__ == sorted(qianyan.__all__)
    for name in qianyan.__all__:
        assert getattr(qianyan, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qianyan.nothing  # noqa: B018  (the access is the test)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, qianyan; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_inspecting_from_python_gives_one_verdict_or_a_list(site: Path, tiny_pair: Path) -> None:
    settings = {"model": tiny_pair, "look": "detector", "lang": "en"}
    one = qianyan.inspect("site/p0.png", **settings)
    assert one.detections
    several = qianyan.inspect(["site", "no.png"], **settings)
    assert [verdict.error is None for verdict in several] == [True, True, False]
    with pytest.raises(qianyan.InputError, match="put it in a list"):
        qianyan.inspect("site", **settings)
