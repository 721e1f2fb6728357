"""What others wrote cannot steer a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from qianyan.cli.terminal import printable, printable_text


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\udcb9工地") == "a�[2Jb���工地"


def test_a_models_words_keep_their_lines_and_spaces() -> None:
    said = "一、\u3000烟雾\r\n\ttwo\xa0words 👷🏽\u200d♂️\n"
    assert printable_text(said) == said.replace("\r\n", "\n")


def test_a_models_words_hold_no_control_sequence() -> None:
    assert printable_text("\x1b]0;title\x07\x9b2J\b\r\u202egpj.exe") == "�]0;title��2J��gpj.exe"


@given(st.text(st.characters(), max_size=50))
def test_whatever_a_model_says_can_be_written(said: str) -> None:
    shown = printable_text(said)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert not set(shown) & ({chr(code) for code in [*range(32), *range(127, 160)]} - {"\n", "\t"})
