"""Document pages: places in photo pixels, and nothing in the HTML that a browser would run."""

import re
import time
from contextlib import suppress
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qianyan.errors import ReplyError
from qianyan.inputs.grounding import Notation
from qianyan.reading.html_page import TAGS, VOID_TAGS, Element, parse_page
from qianyan.reading.places import View

VIEW = View(notation=Notation.RESIZED_PIXELS, seen_wh=(1000, 500), photo_wh=(2000, 1000))
PAGE = """```html
<html><body>
<h2 data-bbox="100 50 200 150">Report &amp; plan</h2>
<p data-bbox="0 0 500 250">First <b>bold</b> line.</p>
<div class="image" data-bbox="500 250 1000 500"><img data-bbox="510 250 990 490"/></div>
<table data-bbox="10 10 20 20"><tr><td colspan="2">a</td><td>1 &lt; 2</td></tr></table>
<div class="formula" data-bbox="900 400 1100 600">E = mc<sup>2</sup></div>
</body></html>
```"""


def test_a_page_is_read_with_its_places_in_photo_pixels() -> None:
    page = parse_page(PAGE, VIEW)
    assert page.elements == (
        Element(tag="h2", kind="", text="Report & plan", box=(200, 100, 400, 300)),
        Element(tag="p", kind="", text="First bold line.", box=(0, 0, 1000, 500)),
        Element(tag="div", kind="image", text="", box=(1000, 500, 2000, 1000)),
        Element(tag="img", kind="", text="", box=(1020, 500, 1980, 980)),
        Element(tag="table", kind="", text="a 1 < 2", box=(20, 20, 40, 40)),
        Element(tag="div", kind="formula", text="E = mc 2", box=(1800, 800, 2000, 1000)),
    )
    assert page.raw == PAGE
    assert '<h2 data-bbox="200 100 400 300">Report &amp; plan</h2>' in page.html
    assert '<div class="image" data-bbox="1000 500 2000 1000">' in page.html
    assert '<td colspan="2">a</td><td>1 &lt; 2</td>' in page.html
    assert page.html.startswith("<html>")
    assert page.html.endswith("</html>")
    assert page.text.splitlines()[:2] == ["Report & plan", "First bold line."]


DANGERS = [
    "<script>alert(1)</script>",
    "<SCRIPT src=//evil>x</SCRIPT >",
    "<p onclick='alert(1)' data-bbox='1 1 9 9'>x</p>",
    '<img src="http://tracker.example/x.png" onerror="alert(1)" data-bbox="1 1 9 9">',
    '<a href="javascript:alert(1)">x</a>',
    "<iframe src='//evil'></iframe>",
    "<style>*{display:none}</style>",
    '<p class="x" style="position:fixed" data-bbox="1 1 9 9">x</p>',
    "<svg onload=alert(1)><p>x</p></svg>",
    '<p class="&quot; onclick=&quot;alert(1)" data-bbox="1 1 9 9">x</p>',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<p data-bbox='1 1 9 9'><scr<script></script>ipt>alert(1)</script></p>",
    "<form action='//evil'><input name='password'></form>",
    "<base href='//evil'><meta http-equiv='refresh' content='0;url=//evil'>",
    "<!-- <p data-bbox='1 1 2 2'>hidden</p> --><![CDATA[<script>]]>",
    "<p data-bbox='1 1 9 9' data-bbox=\"1 1 9 9' onclick='alert(1)\">x</p>",
]


class Browser(HTMLParser):
    """Reads what a browser would: tags with their attributes, and whether they are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_harmless(html: str) -> None:
    browser = Browser(html)
    assert browser.open == []
    for tag, attributes in browser.seen:
        assert tag in TAGS
        assert set(attributes) <= {"class", "colspan", "rowspan", "data-bbox"}
        for value in attributes.values():
            assert re.fullmatch(r"[\w -]*", value or "")


@pytest.mark.parametrize("danger", DANGERS)
def test_nothing_dangerous_survives(danger: str) -> None:
    page = parse_page(f'<body><p data-bbox="1 1 9 9">start</p>{danger}<p>end</p></body>', VIEW)
    check_harmless(page.html)
    assert "end" in page.html
    assert "<script" not in page.html.lower()
    assert "hidden" not in page.html


PIECES = st.sampled_from(
    [
        *DANGERS,
        *(
            "<p>",
            "</p>",
            '<p data-bbox="1 2 30 40">',
            "<table><tr><td>",
            "</table>",
            "text",
            "<",
            ">",
        ),
        *("<!--", "-->", '"', "'", "<div class='chart'", "&#x3c;script&#62;", "</body>", "<br/>"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_whatever_a_model_writes_comes_out_balanced_and_harmless(reply: str) -> None:
    try:
        page = parse_page(reply, VIEW)
    except ReplyError:
        return
    check_harmless(page.html)
    for element in page.elements:
        if element.box is not None:
            assert 0 <= element.box[0] < element.box[2] <= 2000


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ("", "no HTML"),
        ("I cannot read this page.", "no HTML"),
        ("<custom>x</custom>", "no HTML"),
        ("I <b>cannot</b> read this page.", "nowhere where"),
        ("<html><body><p>Text</p></body></html>", "nowhere where"),
        ('<p data-bbox="1 1 9 9">a</p><script>', "script that never ends"),
        ('<p data-bbox="1 1 9 9">a</p><!-- b', "comment that never ends"),
        ("<p>" * 200_000, "at most 400000"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_page_is_an_error(reply: str, sentence: str) -> None:
    with pytest.raises(ReplyError, match=sentence):
        parse_page(reply, VIEW)


def test_a_blank_page_has_no_elements() -> None:
    page = parse_page("<html><body></body></html>", VIEW)
    assert page.elements == ()
    assert page.text == ""


def test_a_place_that_is_none_is_dropped_but_the_element_stays() -> None:
    page = parse_page('<p data-bbox="5000 0 6000 9">a</p><p data-bbox="left">b</p>', VIEW)
    assert [(one.text, one.box) for one in page.elements] == [("a", None), ("b", None)]
    assert "data-bbox" not in page.html


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<p ",
        "<p>",
        "</p>",
        "<!",
        "<p a=",
        "<p data-bbox='",
        "&",
        "<div><p>x",
        "<script></",
        "a",
    ],
)
def test_long_rubbish_is_read_in_linear_time(piece: str) -> None:
    started = time.process_time()
    with suppress(ReplyError):
        parse_page("<p>" + piece * (390_000 // len(piece)), VIEW)
    assert time.process_time() - started < 6
