"""What the documents promise exists, and both languages promise the same."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for page in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    if "dist" not in page.parts
)
READMES = [REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"]


def shell_commands(page: Path) -> list[str]:
    """The lines of ```bash blocks, comments stripped, continuation lines joined."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            bare = line.split(" #")[0].strip()
            if bare and not bare.startswith("#"):
                commands.append(bare)
    return commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_both_readmes_have_the_same_shape() -> None:
    def shape(page: Path) -> list[int]:
        return [len(marks) for marks in re.findall(r"^(#+) ", page.read_text("utf-8"), flags=re.M)]

    english, chinese = READMES
    assert shape(english) == shape(chinese)
    assert shell_commands(english) == shell_commands(chinese)


@pytest.mark.parametrize(
    "command", [c for c in shell_commands(READMES[0]) if c.startswith("make ")]
)
def test_make_command_of_the_readme_is_a_target(command: str) -> None:
    subprocess.run([*shlex.split(command), "-n"], cwd=REPOSITORY, check=True, capture_output=True)


@pytest.mark.parametrize(
    "command",
    [
        re.sub(r"^\.venv/bin/", "", part.strip())
        for c in shell_commands(READMES[0])
        for part in c.split("&&")
        if re.match(r"(\.venv/bin/)?qianyan ", part.strip())
    ],
)
def test_qianyan_command_of_the_readme_is_accepted(command: str) -> None:
    """Verbs and options exist: the command with --help after it parses to the end."""
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "qianyan", *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    known = done.stdout + " --version --help"
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{word} is not an option of {words[0]}"


def test_no_page_names_a_path_of_the_machine_it_was_written_on() -> None:
    for page in PAGES:
        assert not re.search(r"/(work|root|home|tmp)/", page.read_text("utf-8")), page
