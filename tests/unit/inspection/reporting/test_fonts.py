from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.inspection.reporting.fonts import (
    FONT_FILE,
    LICENCE_FILE,
    find_font,
    lay_out_fonts,
    missing_glyphs,
    user_fonts,
    writable,
)


def test_the_bundled_font_writes_what_reports_are_made_of() -> None:
    text = "安全检查报告，火灾：严重；“未佩戴安全帽”（87 %）→ ≥ × · … — □ é ß № 《》、。！？￥"
    assert missing_glyphs(text) == set()


def test_the_bundled_font_writes_all_of_gb2312() -> None:
    codes = (bytes((row, cell)) for row in range(0xA1, 0xF8) for cell in range(0xA1, 0xFF))
    text = "".join(code.decode("gb2312", "ignore") for code in codes)
    assert len(text) == 7445
    assert missing_glyphs(text) - {"\u3000"} == set()


@pytest.mark.parametrize("char", ["龘", "🔥", "𠮷", "한", "\u202e", "\u200b", "\x07", "\uffff"])
def test_what_the_font_cannot_write_is_named(char: str) -> None:
    assert missing_glyphs(f"山{char}水") == {char}


def test_missing_characters_are_spelt_as_code_points_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert writable("王龘🔥的照片.jpg") == "王[U+9F98 U+1F525]的照片.jpg"
    assert "U+9F98" in caplog.text


def test_a_name_cannot_be_made_to_read_backwards() -> None:
    assert writable("a\u202egpj.exe") == "a[U+202E]gpj.exe"


def test_line_breaks_in_a_name_become_spaces() -> None:
    assert writable("a\nb\tc\r\nd") == "a b c d"


def test_a_text_the_font_can_write_passes_unchanged_and_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert writable("工地 A.jpg") == "工地 A.jpg"
    assert caplog.text == ""


def test_the_first_font_that_writes_the_whole_text_is_found() -> None:
    assert find_font("火灾", [FONT_FILE]) == FONT_FILE
    assert find_font("龘", [FONT_FILE]) is None


def test_a_results_folder_gets_the_font_with_its_licence_and_keeps_a_users_files(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "fonts"
    lay_out_fonts(folder)
    assert (folder / FONT_FILE.name).read_bytes() == FONT_FILE.read_bytes()
    assert "SIL OPEN FONT LICENSE" in (folder / LICENCE_FILE.name).read_text("utf-8")
    (folder / FONT_FILE.name).write_bytes(b"mine")
    lay_out_fonts(folder)
    assert (folder / FONT_FILE.name).read_bytes() == b"mine"


def test_user_fonts_are_those_beside_the_bundled_one(tmp_path: Path) -> None:
    lay_out_fonts(tmp_path)
    assert user_fonts(tmp_path) == ()
    assert user_fonts(tmp_path / "nowhere") == ()
    mine = tmp_path / "site.ttf"
    mine.write_bytes(FONT_FILE.read_bytes())
    assert user_fonts(tmp_path) == (mine,)


def test_a_file_that_is_not_a_font_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "site.ttf").write_text("no font")
    with pytest.raises(ConfigError, match=r"'site\.ttf' cannot be read as a TrueType"):
        user_fonts(tmp_path)
