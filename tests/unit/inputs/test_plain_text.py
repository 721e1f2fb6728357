"""Text, Markdown, JSON, CSV: as they are, in the right characters."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.errors import CapacityError, MediaError
from qianyan.inputs.documents import Document, DocumentLimits, read_document
from qianyan.inputs.plain_text import unescape_json

# How long a draw takes says nothing where others use the machine too.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(data: str | bytes, name: str = "a.txt", **options: Any) -> Document:
    settings = {"limits": DocumentLimits(), "wants_pictures": False, "media_type": None} | options
    return read_document(data.encode() if isinstance(data, str) else data, name=name, **settings)


def text(data: str | bytes, name: str = "a.txt", **options: Any) -> str:
    (part,) = read(data, name, **options).parts
    assert isinstance(part, str)
    return part.removeprefix(f"[{name}]\n\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "gbk"])
def test_characters_are_found(encoding: str) -> None:
    assert text("3号仓库: 灭火器".encode(encoding)) == "3号仓库: 灭火器"


@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.json", "noname", "a.py"])
def test_text_is_taken_as_it_is(name: str) -> None:
    words = '# Title\n\n* item  \n    code\n{"a": [1, 2]}'
    assert text(words, name) == words


def test_kinds_of_text_are_told_apart_by_name_then_by_type() -> None:
    assert read("a,b", "x.csv").kind == "csv"
    assert read("a,b", "X.TSV").kind == "csv"
    assert read("a", "x.md").kind == "markdown"
    assert read("a,b", "x").kind == "text"
    assert read("a,b", "x", media_type="text/csv; charset=utf-8").kind == "csv"
    assert read("<p>a", "x", media_type="text/html").kind == "html"
    assert read("<p>a", "x.htm").kind == "html"
    assert read("<p>a", "x.txt").kind == "text"
    assert read("  <!DOCTYPE html><p>a", "x.csv").kind == "html"
    assert read("<!-- c --><HTML><p>a", "x.txt").kind == "html"


def test_control_characters_are_dropped_and_line_ends_settled() -> None:
    assert text(b"a\x0c\r\nb\rc\x7f\x1b[0m") == "a\nb\nc[0m"


@pytest.mark.parametrize("data", [b"\xff\xff\xff text", b"\xff\xfe\x00\xd8", b"abc \x80\x20 \xff"])
def test_bytes_of_no_encoding_are_refused(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        read(data)
    assert caught.value.code == "not_text"
    assert "UTF-8" in str(caught.value)


def test_a_text_beyond_the_limits_is_refused() -> None:
    with pytest.raises(CapacityError, match="more than 400000 characters"):
        read("word " * 100_000)
    with pytest.raises(MediaError) as caught:
        read("word " * 100_000, limits=DocumentLimits(max_markup_bytes=1000))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("data", [b" \n\t ", b"\xef\xbb\xbf", b"\x1b\x1b"])
def test_a_text_of_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        read(data)
    assert caught.value.code == "no_content"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a,b\n1,2\n", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("a;b\n1,5;2\n", "| a | b |\n| --- | --- |\n| 1,5 | 2 |"),
        ("a\tb\n1\t2", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("a|b\n1|2", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("sep=;\na;b", "| a | b |\n| --- | --- |"),
        ("\ufeffa,b\r\n1,2\r\n\r\n", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ('a,b\n"x, ""y""\nz",2', '| a | b |\n| --- | --- |\n| x, "y"<br>z | 2 |'),
        ("a,b,,\n1,,,\n,,,\n", "| a | b |\n| --- | --- |\n| 1 |  |"),
        ("only\none\n", "| only |\n| --- |\n| one |"),
        ("a,b\n1\n1,2,3", "| a | b |  |\n| --- | --- | --- |\n| 1 |  |  |\n| 1 | 2 | 3 |"),
        ('a,b\n"open', "| a | b |\n| --- | --- |\n| open |  |"),
    ],
)
def test_tables_are_parted_by_their_own_delimiter(data: str, expected: str) -> None:
    assert text(data, "t.csv") == expected


def test_a_table_in_the_encoding_of_chinese_excel_is_read() -> None:
    assert (
        text("编号,状态\n1,正常".encode("gbk"), "t.csv")
        == "| 编号 | 状态 |\n| --- | --- |\n| 1 | 正常 |"
    )


def test_stray_nul_bytes_are_dropped_and_counted() -> None:
    document = read(b"a,b\n1\0,2\n" + b"3,4\n" * 50, "t.csv")
    assert str(document.parts[0]).startswith("[t.csv]\n\n| a | b |\n| --- | --- |\n| 1 | 2 |")
    assert document.notes == ("NUL bytes dropped: 1",)


@pytest.mark.parametrize("data", [b"\0" * 100, b"a\0b\0,\0c\0" * 20, b"\x00\x01\x02\x03"])
def test_tables_that_are_mostly_nul_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        read(data, "t.csv")
    assert caught.value.code in {"not_text", "unsupported_format"}


def test_tables_beyond_the_limits_are_refused() -> None:
    with pytest.raises(CapacityError, match="more than 10 rows"):
        read("a,b\n" * 11, "t.csv", limits=DocumentLimits(max_rows=10))
    with pytest.raises(CapacityError, match="more than 500 columns"):
        read("a," * 501 + "a", "t.csv")
    with pytest.raises(CapacityError, match="characters"):
        read("a," * 399 + "a\n" + "b\n" * 19_000, "t.csv")


def test_a_cell_beyond_the_reader_s_limit_leaves_the_text_as_it_is() -> None:
    document = read('a,b\n"' + "x" * 200_000, "t.csv")
    assert str(document.parts[0]).endswith("x" * 200_000)
    assert document.notes == ("not a well-formed table, shown as plain text",)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (r'{"a": "\u4e2d\u6587"}', '{"a": "中文"}'),
        (r'"\ud83d\ude00 \u00e9"', '"😀 é"'),
        (r'"\ud83d alone"', '"\ufffd alone"'),
        (r'"\\u4e2d \u0022 \u000a \n"', r'"\\u4e2d \u0022 \u000a \n"'),
        ('{"plain":\n 1}', '{"plain":\n 1}'),
    ],
)
def test_letters_of_json_are_shown_as_themselves(written: str, shown: str) -> None:
    assert unescape_json(written) == shown


@UNHURRIED
@given(st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_json_means_the_same_afterwards(value: Any) -> None:
    text = json.dumps(value)
    assert json.loads(unescape_json(text)) == value


def test_json_is_a_kind_of_its_own() -> None:
    for name, media_type in (("a.json", None), ("x", "application/json; charset=utf-8")):
        document = read_document(
            rb'{"name": "\u5f20\u4e09"}',
            name=name,
            media_type=media_type,
            limits=DocumentLimits(),
            wants_pictures=False,
        )
        assert document.kind == "json"
        assert "张三" in str(document.parts[0])
