"""Web pages: what a visitor sees, as Markdown; nothing fetched, nothing hidden shown."""

import base64
from io import BytesIO
from time import monotonic
from typing import Any

import pytest
from PIL import Image

from qianyan.errors import CapacityError, InputError, MediaError
from qianyan.inputs.documents import Document, DocumentLimits, read_document


def data_uri(colour: str = "red") -> str:
    out = BytesIO()
    Image.new("RGB", (60, 40), colour).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def read(page: str | bytes, *, media_type: str | None = None, **options: Any) -> Document:
    settings = {"limits": DocumentLimits(), "wants_pictures": True} | options
    data = page.encode() if isinstance(page, str) else page
    return read_document(data, name="page.html", media_type=media_type, **settings)


def text(page: str | bytes, **options: Any) -> str:
    parts = read(page, **options).parts
    whole = "".join(part if isinstance(part, str) else "<picture>" for part in parts)
    assert whole.startswith("[page.html]\n\n")
    return whole.removeprefix("[page.html]\n\n")


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<h1>A <b>b</b></h1><h3>c</h3>", "# A b\n\n### c"),
        ("<p>one\n  two<p>three<div>four</div>five", "one two\n\nthree\n\nfour\n\nfive"),
        ("<p>a<br>b<br><br>c", "a\nb\n\nc"),
        ("<p>5&nbsp;&lt;&#x31;0 &eacute; &#xD800;", "5 <10 é �"),
        ("<ul><li>a<li>b</ul>", "- a\n- b"),
        ("<ul><li>a<ul><li>b<li>c</ul><li>d</ul>", "- a\n  - b\n  - c\n- d"),
        ("<ol start=3><li>a<li value=9>b<li>c</ol>", "3. a\n9. b\n10. c"),
        ("<ol start=x><li>a</ol>", "1. a"),
        ("<ul><li><p>a<p>b<li>c</ul>", "- a\n\n  b\n- c"),
        ("<blockquote>a<br>b</blockquote>c", "> a\n> b\n\nc"),
        ("<pre>a\n  b</pre>", "```\na\n  b\n```"),
        ("<a href='https://x.y/z'>go</a>", "[go](https://x.y/z)"),
        ("<a href='/z'>go</a>", "[go](/z)"),
        ("<a href='javascript:x()'>go</a> <a href='#top'>up</a> <a href='/z'></a>", "go up"),
        ("<a href=/a>a<a href=/b>b</a>", "[a](/a)[b](/b)"),
        ("<a href=/a><div>x</div><div>y</div></a>", "[x](/a)\n\n[y](/a)"),
        ("<img src=http://127.0.0.1:9/a.png alt='a wall'>", "[picture: a wall]"),
        (
            "<input type=checkbox checked>yes<input type=radio>no<input value=typed>",
            "☒ yes ☐ no typed",
        ),
        ("<title>T &amp; t</title><body>b", "Title: T & t\n\nb"),
        ("<dl><dt>term<dd>meaning</dl>", "term\n\nmeaning"),
        ("<b>a</i></p></b></table>c", "ac"),
        ("a<!-- no <p>no -->b<![CDATA[x]]><?pi x?><!x>c<![foo[ x ]]>d", "abcd"),
    ],
)
def test_elements_keep_their_form(page: str, expected: str) -> None:
    assert text("<html>" + page) == expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("<tr><th>A<th>B<tr><td>1<td>x|y", "| A | B |\n| --- | --- |\n| 1 | x\\|y |"),
        (
            "<tr><td colspan=2>a<td>b<tr><td>1<td>2<td>3",
            "| a |  | b |\n| --- | --- | --- |\n| 1 | 2 | 3 |",
        ),
        ("<tr><td rowspan=2>a<td>b<tr><td>c", "| a | b |\n| --- | --- |\n|  | c |"),
        (
            "<tr><td>b<td rowspan=2>a<tr><td>c<tr><td>d<td>e",
            "| b | a |\n| --- | --- |\n| c |  |\n| d | e |",
        ),
        ("<caption>Cap<tr><td>a<td>b", "Cap\n\n| a | b |\n| --- | --- |"),
        (
            "<thead><tr><td>a<td>b<tbody><tr><td><p>c<p>d<td>e",
            "| a | b |\n| --- | --- |\n| c<br>d | e |",
        ),
        ("<tr><td>alone", "alone"),
        ("<tr><td><ul><li>a<li>b</ul><td>c", "| - a<br>- b | c |\n| --- | --- |"),
        (
            "<tr><td>before<table><tr><td>a<td>b</table>after<td>c",
            "before\n\n| a | b |\n| --- | --- |\n\nafter\n\nc",
        ),
        ("<tr><td>a</div></p>b<td>c", "| ab | c |\n| --- | --- |"),
        ("", "x"),
    ],
)
def test_tables_become_markdown_and_layout_flows(table: str, expected: str) -> None:
    page = f"<html><table>{table}</table>" + ("" if table else "x")
    assert text(page) == expected


@pytest.mark.parametrize(
    "hidden",
    [
        "<div hidden>secret<p>secret</div>",
        "<span style='color:red; DISPLAY : none'>secret<span>secret</span>secret</span>",
        "<p style='visibility:hidden'>secret</p>",
        "<p style='font-size:0'>secret</p>",
        "<p style='font-size:0px'>secret</p>",
        "<dialog>secret</dialog>",
        "<div hidden><div hidden>secret</div>secret</div>",
    ],
)
def test_hidden_parts_are_dropped_and_counted(hidden: str) -> None:
    document = read(f"<html>seen {hidden}too")
    assert "secret" not in str(document.parts)
    assert "seen" in str(document.parts)
    assert "too" in str(document.parts)
    assert document.notes == ("hidden parts left out: 1",)


@pytest.mark.parametrize(
    "part",
    [
        "<script>secret</script>",
        "<style>secret</style>",
        "<template>secret</template>",
        "<script>'</scrip' + '<p>secret'</script>",
        "<input type=hidden value=secret>",
    ],
)
def test_what_is_never_seen_is_dropped_without_a_word(part: str) -> None:
    assert read(f"<html>a{part}b").parts == ("[page.html]\n\nab",)
    assert read(f"<html>a{part}b").notes == ()


def test_frames_and_pictures_elsewhere_are_counted_not_fetched() -> None:
    document = read("<html>a<iframe src=http://127.0.0.1:9/></iframe><img src=//127.0.0.1:9/x.png>")
    assert document.notes == ("frames not fetched: 1", "pictures not fetched: 1")


def test_pictures_in_the_page_itself_are_read_in_place() -> None:
    document = read(f"<html>a<img src='{data_uri('blue')}'>b<img src='data:image/png;base64,AAAA'>")
    first, image, after = document.parts
    assert first == "[page.html]\n\na"
    assert isinstance(image, Image.Image)
    assert image.getpixel((1, 1)) == (0, 0, 255)
    assert after == "b\n\n[picture that cannot be read]"
    assert document.notes == ("pictures of a format that is not read: 1",)


def test_pictures_in_tables_come_after_them() -> None:
    page = f"<html><table><tr><td>a<td><img src='{data_uri()}'><tr><td>b<td>c</table>"
    table, image = read(page).parts
    assert table == ("[page.html]\n\n| a | [picture 1] |\n| --- | --- |\n| b | c |\n\n[picture 1]")
    assert isinstance(image, Image.Image)


WORDS = "<p>火灾隐患 pressure"


@pytest.mark.parametrize(
    "page",
    [
        f"<html>{WORDS}".encode(),
        f"\ufeff<html>{WORDS}".encode(),
        f"\ufeff<html>{WORDS}".encode("utf-16-le"),
        f"\ufeff<html>{WORDS}".encode("utf-16-be"),
        f"<html>{WORDS}".encode("gb18030"),
        f"<html><meta charset=gb2312>{WORDS}".encode("gbk"),
        f'<html><meta http-equiv="Content-Type" content="text/html; charset=GBK">{WORDS}'.encode(
            "gbk"
        ),
        f'<?xml version="1.0" encoding="gbk"?><html>{WORDS}'.encode("gbk"),
        f"<html><meta charset=utf-16>{WORDS}".encode(),
        f"<html><meta charset=rot13>{WORDS}".encode(),
        f"<html><meta charset=zip>{WORDS}".encode(),
    ],
)
def test_encodings_are_found(page: bytes) -> None:
    assert text(page) == "火灾隐患 pressure"


def test_the_declared_type_names_the_encoding() -> None:
    page = "<html>消火栓は".encode("shift_jis")
    assert text(page, media_type="text/html; charset=Shift_JIS") == "消火栓は"
    assert text("<html>café".encode("latin-1"), media_type="text/html;charset=iso-8859-1") == "café"


def test_bytes_of_no_encoding_are_refused() -> None:
    with pytest.raises(MediaError) as caught:
        read(b"<html>\xff\xff\xff\x80 x")
    assert caught.value.code == "not_text"


@pytest.mark.parametrize(
    "page",
    [
        "<b>" * 100_000,
        "<!--" * 100_000,
        "<![" * 100_000,
        "</" * 100_000,
        "<a href='" * 50_000,
        "<p><div>" + "<b>" * 50_000 + "<p>" * 20_000,
        "<ul>" * 3_000 + "<li>x" * 1_000,
        "<a href=/z>" + "x<i>" * 30_000,
        "<td>" * 50_000,
        "<table><tr>" + "<td rowspan=9>" * 400 + "<tr><td>" * 3_000,
    ],
    ids=range(10),
)
def test_pages_made_to_take_long_do_not(page: str) -> None:
    start = monotonic()
    document = read("<html>seen " + page)
    assert "seen" in str(document.parts[0])
    assert monotonic() - start < 20


@pytest.mark.parametrize(
    "page", ["<div>" * 20_000, "<table>" * 20_000, "<p hidden>" + "<i>" * 9_000]
)
def test_pages_nested_without_end_are_refused(page: str) -> None:
    with pytest.raises(MediaError) as caught:
        read("<html>" + page)
    assert caught.value.code == "truncated"


def test_a_long_tag_that_never_ends_is_counted() -> None:
    document = read("<html>seen<!-- " + "x" * 50_000)
    assert document.parts == ("[page.html]\n\nseen",)
    assert document.notes == ("characters in a tag or comment that never ends: 50005",)


@pytest.mark.parametrize(
    "page", ["<td colspan=9999>", "<td>" * 600, "<tr>" * 30_000], ids=["span", "columns", "rows"]
)
def test_tables_beyond_the_limits_are_refused(page: str) -> None:
    with pytest.raises(CapacityError, match="of more than"):
        read(f"<html><table><tr>{page}")


def test_text_beyond_the_limit_is_refused() -> None:
    with pytest.raises(CapacityError, match="more than 100 characters"):
        read("<html>" + "<p>word" * 40, limits=DocumentLimits(max_characters=100))


def test_a_page_without_text_is_refused() -> None:
    with pytest.raises(MediaError) as caught:
        read("<html><script>x</script>")
    assert caught.value.code == "no_content"


def test_pages_are_not_for_web_pages() -> None:
    with pytest.raises(InputError, match="has no pages"):
        read("<html>x", pages="1")
