"""Settings from the environment and from TOML: known ones work, misspelt ones are errors."""

from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.settings import check_environment, read_config, variable_name

OPTIONS = ("model", "max_objects", "base_url")


def test_a_variable_is_named_after_its_option() -> None:
    assert variable_name("--max-objects") == variable_name("max_objects") == "QIANYAN_MAX_OBJECTS"


def test_known_variables_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIANYAN_MAX_OBJECTS", "3")
    monkeypatch.setenv("QIANYAN_SHARED", "elsewhere")
    monkeypatch.setenv("OTHER_MODLE", "x")
    check_environment(OPTIONS)


def test_a_misspelt_variable_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIANYAN_MODLE", "x")
    with pytest.raises(ConfigError, match=r"'QIANYAN_MODLE' is no setting.*QIANYAN_MODEL"):
        check_environment(OPTIONS)


def test_a_toml_file_gives_options_in_either_spelling(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text('model = "m"\nmax-objects = 3\nbase_url = "http://h/v1"\n')
    assert read_config(file, OPTIONS) == {
        "model": "m",
        "max_objects": 3,
        "base_url": "http://h/v1",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max-object = 3", "'max-object' in 'site.toml' is no setting; the nearest is max_objects"),
        ("zzzzzz = 3", "known are base_url, max_objects, model"),
        ("max-objects =", "is not TOML"),
    ],
)
def test_a_wrong_toml_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(file, OPTIONS)


def test_a_missing_toml_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_config(tmp_path / "no.toml", OPTIONS)
