"""JSON as models write it: what is forgiven, what is not invented, where values stood."""

import pytest

from qianyan.inputs.loose_json import Quoted, TooDeepError, read_loose_json


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('```json\n[{"a": 1},]\n```', [[{"a": 1.0}]]),
        ("Sure: {'a': [1, 2, 3,], b: \"x\"} Done.", [{"a": [1.0, 2.0, 3.0], "b": "x"}]),
        ("[] and {}", [[], {}]),
        ("「a」 [「a」，“b”]", [["a", "b"]]),
        ("[true, null, None, False]", [[True, None, None, False]]),
        ("no brackets (1, 2)", []),
        ("[1, 99999999999]", [[1.0, None]]),
    ],
)
def test_slips_are_forgiven(text: str, values: list[object]) -> None:
    read = read_loose_json(text)
    assert [found.value for found in read.found] == values
    assert not read.is_cut


def test_a_cut_object_is_kept_apart_and_half_a_value_is_dropped() -> None:
    read = read_loose_json('[{"a": 1}, {"a": 2, "b": 3')
    assert [found.value for found in read.found] == [[{"a": 1.0}]]
    assert read.is_cut
    assert read.unfinished == {"a": 2.0}


def test_words_know_where_they_stood() -> None:
    text = 'so: {"label": "fire"}'
    (found,) = read_loose_json(text).found
    assert isinstance(found.value, dict)
    word = found.value["label"]
    assert isinstance(word, Quoted)
    assert text[word.start : word.end] == "fire"
    assert text[found.start : found.end] == '{"label": "fire"}'


def test_bracket_towers_are_refused() -> None:
    with pytest.raises(TooDeepError):
        read_loose_json("[" * 65)
