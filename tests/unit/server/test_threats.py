"""What strangers send to a server to reach, crash or question it, over TCP.

The table in docs/security.md names the tests that show each row; those of single readers are beside
the readers, here is what the whole server makes of it: one sentence of our own, and it lives.
"""

import base64
import io
import json
import logging
import re
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from PIL import Image

from qianyan.engine.engine import Engine

QUICK_S = 20
"""What holds a server up takes minutes; the machine of these tests may be busy with others."""
CHAT = "/v1/chat/completions"
NATIVE = "/api/v1/services/aigc/multimodal-generation/generation"
FOREIGN = re.compile(
    r"\b0x[0-9a-f]{4}|/(tmp|usr|home|work|root|etc|var|opt)\b|site-packages|Traceback|\.py\b|"
    r"cannot identify|Invalid data found|libav|ffmpeg|PIL\b|Pillow|pydantic|torch|sqlite|alchemy|"
    r"llguidance|starlette|errno|Errno|<class|object at",
    re.IGNORECASE,
)
"""Paths, addresses and words of libraries: what an answer must never hold."""


def in_own_words(answer: httpx2.Response) -> httpx2.Response:
    """Check that nothing but what was sent itself could tell how the server is made."""
    said = answer.text
    for quoted in re.findall(r"'([^']*)'", said):
        if quoted.removesuffix("…").encode() in answer.request.content:
            said = said.replace(quoted, "")
    assert not FOREIGN.search(said), answer.text
    return answer


def ask(client: httpx2.Client, part: dict[str, Any], **fields: Any) -> httpx2.Response:
    content = [part, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": content}]
    body = {"model": "judge", "messages": messages, "max_tokens": 1, **fields}
    return in_own_words(client.post(CHAT, json=body))


def uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def document(data: bytes, name: str) -> dict[str, Any]:
    held = {"file_data": uri(data, "application/octet-stream"), "filename": name}
    return {"type": "file", "file": held}


def refused(answer: httpx2.Response) -> str:
    assert answer.status_code in (400, 413), answer.text
    code: str = answer.json()["error"]["code"]
    return code


# Addresses that lead inside


class Canary(threading.Thread):
    """Listens on loopback and counts who comes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.hits = 0

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.hits += 1
            connection.close()


@pytest.fixture
def canary(engine: Engine) -> Iterator[Canary]:
    """A canary on a port that fetching may ask for, so that its address alone keeps it safe."""
    canary = Canary()
    canary.start()
    limits = engine.processor.limits
    ports = frozenset({80, 443, canary.port})
    engine.processor.limits = replace(
        limits,
        fetch=replace(limits.fetch, ports=ports, timeout_s=3),
        fetch_video=replace(limits.fetch_video, ports=ports, timeout_s=3),
        fetch_document=replace(limits.fetch_document, ports=ports, timeout_s=3),
    )
    yield canary
    engine.processor.limits = limits
    canary.listener.close()


HOSTS = [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "0177.0.0.1",
    "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0", "127.0.0.1.",
    "0.0.0.0",  # noqa: S104
    "127.127.127.127", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]", "①②⑦.⓪.⓪.①",
    "127。0。0。1", "good.test@127.0.0.1", "user:secret@127.0.0.1", "good.test%40127.0.0.1",
    "127.0.0.1%00.good.test", "good.test\\@127.0.0.1", "%31%32%37.0.0.1", "127.0.0.1%2f",
]  # fmt: skip
URLS = [
    *(f"http://{host}:{{port}}/" for host in HOSTS),
    *(f"https://{host}:{{port}}/x.png" for host in HOSTS[:12]),
    "http://127.0.0.1:{port}\\@good.test/", "http:\\\\127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/", " http://127.0.0.1:{port}/", "\thttp://127.0.0.1:{port}/",
    "http://good.test#@127.0.0.1:{port}/", "http://127.0.0.1:0{port}/",
    "ftp://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/_GET", "dict://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/", "file://127.0.0.1:{port}/etc/passwd", "jar:http://127.0.0.1:{port}/",
    "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://100.100.100.200/",
    "http://192.168.0.1/",
]  # fmt: skip


def test_there_are_sixty_urls() -> None:
    assert len(set(URLS)) >= 60


def test_no_crafted_url_reaches_inside_in_either_dialect(
    client: httpx2.Client, canary: Canary
) -> None:
    for index, url in enumerate(URLS):
        crafted = url.format(port=canary.port)
        parts = (picture(crafted), video(crafted),
                 {"type": "file", "file": {"file_data": crafted, "filename": "a.pdf"}})  # fmt: skip
        answer = ask(client, parts[index % 3])
        assert refused(answer), crafted
        assert "secret" not in answer.text
        key = ("image", "video")[index % 2]
        native = {"model": "judge", "input": {"messages": [
            {"role": "user", "content": [{key: crafted}, {"text": "?"}]}]}}  # fmt: skip
        assert in_own_words(client.post(NATIVE, json=native)).status_code == 400, crafted
    assert canary.hits == 0


def test_a_name_that_leads_inside_at_the_second_look_is_refused(
    client: httpx2.Client, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what was judged is dialled, and every answer has to be public."""
    answers = iter([["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"]])
    asked: list[str] = []

    look_up = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != "rebind.test":
            return look_up(host, port, *args, **options)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    for _ in range(3):
        answer = ask(client, picture(f"http://rebind.test:{canary.port}/"))
        assert refused(answer) == "private_address"
    assert asked == ["rebind.test"] * 3, "each name is asked for once"
    assert canary.hits == 0


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "file:///etc/passwd", "file://localhost/etc/passwd", "../../../etc/passwd",
     "\\\\host\\share\\a.png", "C:\\a.png", "~/a.png", "/proc/self/environ", "a.png\x00.jpg",
     "oss://../../etc/passwd", "oss://x", "data:image/png;base64,/etc/passwd"],
)  # fmt: skip
def test_no_path_of_this_machine_is_read(client: httpx2.Client, path: str) -> None:
    for part in (picture(path), video(path), {"type": "video", "video": [path] * 4}):
        assert refused(ask(client, part))
    native = {"model": "judge", "input": {"messages": [
        {"role": "user", "content": [{"image": path}, {"text": "?"}]}]}}  # fmt: skip
    assert in_own_words(client.post(NATIVE, json=native)).status_code == 400


# Files that unpack, grow or lie


def png_of(width: int, height: int) -> bytes:
    """A picture whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def apng() -> bytes:
    held = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 90, 200)]
    frames[0].save(held, "PNG", save_all=True, append_images=frames[1:])
    return held.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
PICTURES = {
    "50 000 x 50 000": png_of(50_000, 50_000),
    "zero wide": png_of(0, 5),
    "one pixel": png_of(1, 1),
    "cut": png_of(64, 64)[:60],
    "empty": b"",
    "svg": SVG,
    "html": b"<html><script>alert(1)</script></html>",
    "polyglot": b"\x89PNG\r\n\x1a\n" + SVG,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\0" * 64,
    "noise": bytes(range(256)) * 8,
}


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES)
def test_no_picture_is_a_bomb_or_an_oracle(client: httpx2.Client, data: bytes) -> None:
    started = time.monotonic()
    refused(ask(client, picture(uri(data))))
    assert time.monotonic() - started < QUICK_S


def test_of_an_animated_picture_the_first_frame_is_seen(client: httpx2.Client) -> None:
    assert ask(client, picture(uri(apng()))).status_code == 200


def zipped(name: str, data: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(name, data)
    return held.getvalue()


XXE = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'
LAUGHS = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><a>&b;</a>'
DOCUMENTS = {
    "zip of death.docx": zipped("word/document.xml", b"\0" * 400_000_000),
    "xxe.docx": zipped("word/document.xml", XXE),
    "laughs.xlsx": zipped("xl/workbook.xml", LAUGHS),
    "up.pptx": zipped("../../../../tmp/evil", b"x"),
    "cut.pdf": b"%PDF-1.7\n1 0 obj\n<<",
    "loop.pdf": b"%PDF-1.4\n1 0 obj<</Type/Pages/Kids[1 0 R]/Count 9999999>>endobj\n"
    b"trailer<</Root 1 0 R>>",
    "none.pdf": b"",
    "book.epub": zipped("META-INF/container.xml", XXE),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_document_is_a_bomb_or_an_oracle(client: httpx2.Client, name: str) -> None:
    started = time.monotonic()
    refused(ask(client, document(DOCUMENTS[name], name)))
    assert time.monotonic() - started < QUICK_S


PLAYLIST = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n"
    "#EXTINF:10,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
)
LISTS = {
    "m3u8": PLAYLIST,
    "concat": "ffconcat version 1.0\nfile /etc/passwd\nfile http://127.0.0.1:{port}/a.ts\n",
    "dash": '<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>',
    "sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_video_cannot_make_the_decoder_open_anything(
    client: httpx2.Client, canary: Canary, kind: str
) -> None:
    """Playlists are ffmpeg's own way to other files and hosts."""
    data = LISTS[kind].format(port=canary.port).encode()
    for media_type in ("video/mp4", "application/vnd.apple.mpegurl"):
        refused(ask(client, video(uri(data, media_type))))
    assert canary.hits == 0


def test_more_frames_than_may_be_are_counted_before_any_is_decoded(client: httpx2.Client) -> None:
    one = uri(png_of(64, 64))
    started = time.monotonic()
    refused(ask(client, {"type": "video", "video": [one] * 3000}))
    assert time.monotonic() - started < QUICK_S


# Formats made to be slow


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def with_schema(client: httpx2.Client, schema: str) -> httpx2.Response:
    body = (
        '{"model":"judge","max_tokens":4,"messages":[{"role":"user","content":"x"}],'
        '"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":'
        + schema
        + "}}}"
    )
    headers = {"content-type": "application/json"}
    return in_own_words(client.post(CHAT, content=body.encode(), headers=headers))


SCHEMAS = {
    "enum of a megabyte": json.dumps({"enum": [f"value {number}" for number in range(80_000)]}),
    "ten thousand levels": '{"type":"object","properties":' + deep(10_000) + "}",
    "nine hundred levels": '{"type":"object","properties":' + deep(900) + "}",
    "counted without end": json.dumps({"type": "string", "minLength": 10**12}),
    "a reference to itself": json.dumps({"$ref": "#"}),
    "a reference outside": json.dumps({"$ref": "http://127.0.0.1/schema.json"}),
    "regex of all stars": json.dumps({"type": "string", "pattern": "(" * 3000 + "a" + ")*" * 3000}),
    "regex counted": json.dumps({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_format_holds_the_server_up(client: httpx2.Client, name: str) -> None:
    started = time.monotonic()
    answer = with_schema(client, SCHEMAS[name])
    assert answer.status_code in (200, 400, 413), answer.text
    assert time.monotonic() - started < QUICK_S


def test_a_regex_with_nested_stars_costs_linear_time(client: httpx2.Client) -> None:
    started = time.monotonic()
    schema = json.dumps({"type": "string", "pattern": "^(a+)+$", "maxLength": 40})
    assert with_schema(client, schema).status_code in (200, 400)
    assert time.monotonic() - started < QUICK_S


# Bodies that are none


def chat_body(**fields: str) -> bytes:
    """A good request with the JSON of some fields put in as it is."""
    whole = {
        "model": '"judge"',
        "max_tokens": "1",
        "messages": '[{"role":"user","content":"x"}]',
        **fields,
    }
    return ("{" + ",".join(f'"{name}":{value}' for name, value in whole.items()) + "}").encode()


HALF = "\\ud800"
BODIES = {
    "nothing": b"",
    "half": b'{"model":"judge","messages":[',
    "deep": b"[" * 200_000,
    "numbers": chat_body(model="9" * 100_000),
    "no utf-8": b'{"model":"\xff\xfe"}',
    "nan": chat_body(temperature="NaN"),
    "infinity": chat_body(top_p="1e999"),
    "half a character": chat_body(messages=f'[{{"role":"user","content":"a{HALF}b"}}]'),
    "half a character in bytes": chat_body(stop='"?"').replace(b"?", b"\xed\xa0\x80"),
    "half a character in a name": chat_body(model=f'"judge{HALF}"'),
    "half a character in a stop": chat_body(stop=f'"{HALF}"'),
    "half a character in a tool": chat_body(
        tools=f'[{{"type":"function","function":{{"name":"a{HALF}"}}}}]'
    ),
    "utf-16": chat_body().decode().encode("utf-16"),
    "twice": b'{"model":"judge","model":"other","messages":[]}',
    "huge number": chat_body(seed="9" * 4000),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [CHAT, NATIVE])
def test_no_body_is_a_fault_of_the_server(client: httpx2.Client, name: str, path: str) -> None:
    headers = {"content-type": "application/json"}
    answer = in_own_words(client.post(path, content=BODIES[name], headers=headers))
    assert 200 <= answer.status_code < 500, answer.text


def test_whole_characters_written_as_pairs_are_taken(client: httpx2.Client) -> None:
    messages = '[{"role":"user","content":"\\ud83d\\udd25 \\\\ud800 is no escape"}]'
    headers = {"content-type": "application/json"}
    answer = client.post(CHAT, content=chat_body(messages=messages), headers=headers)
    assert answer.status_code == 200, answer.text


def test_json_of_millions_of_values_is_refused_before_it_is_parsed(
    client: httpx2.Client,
) -> None:
    """Parsing it would take seconds and a gigabyte, and hold up every other request meanwhile."""
    body = b'{"messages":[' + b"[]," * 8_000_000 + b"[]]}"
    headers = {"content-type": "application/json"}
    started = time.monotonic()
    json.loads(b"[" + b"[]," * 1_000_000 + b"[]]")
    an_eighth_s = time.monotonic() - started
    slowest = [0.0]
    is_over = threading.Event()

    def watch() -> None:
        with httpx2.Client(base_url=client.base_url, timeout=60) as other:
            while not is_over.is_set():
                started = time.monotonic()
                other.get("/health")
                slowest[0] = max(slowest[0], time.monotonic() - started)

    watching = threading.Thread(target=watch)
    watching.start()
    answer = in_own_words(client.post(CHAT, content=body, headers=headers))
    is_over.set()
    watching.join()
    assert answer.status_code == 413
    assert "values" in answer.json()["error"]["message"]
    assert slowest[0] < max(1.5, 4 * an_eighth_s), "others waited as if it had been parsed"


# What others may be made to say


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """All records but those of the test's own client."""
    return [one for one in caplog.records if not one.name.startswith(("httpx2", "httpcore2"))]


def wait_for_requests(caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Wait until so many requests are in the log: they come there when all has been sent."""
    ends = time.monotonic() + 30
    while [one.getMessage() for one in ours(caplog)].count("request") < count:
        assert time.monotonic() < ends, ours(caplog)
        time.sleep(0.01)


def test_a_name_from_outside_is_never_a_header_or_a_line_of_the_log(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        messages = [{"role": "user", "content": "x"}]
        answer = client.post(CHAT, json={"model": "x\r\nset-cookie: a=b", "messages": messages})
        client.get("/v1/models/%0d%0aset-cookie:%20a=b")
        wait_for_requests(caplog, 2)
    assert "set-cookie" not in answer.headers
    assert not [one for one in ours(caplog) if "set-cookie" in str(one.__dict__)]


@pytest.mark.parametrize(
    "make",
    [
        lambda mark: {"messages": [{"role": "user", "content": mark}]},
        lambda mark: {"messages": [{"role": mark, "content": "x"}]},
        lambda mark: {"messages": [{"role": "user", "content": "x"}], "stop": [mark], "n": 2},
        lambda mark: {"messages": [{"role": "user", "content": [picture(mark)]}]},
        lambda mark: {"messages": [{"role": "user", "content": mark * 5000}]},
        lambda mark: {"messages": [{"role": "user", "content": "x"}], "temperature": mark},
        lambda mark: {"messages": [{"role": "user", "content": "x"}], "stream": True, mark: 1},
    ],
)
def test_the_log_holds_no_word_of_what_was_sent(
    client: httpx2.Client,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[str], dict[str, Any]],
) -> None:
    mark = "Zebrafink-4711"
    with caplog.at_level("DEBUG"):
        client.post(CHAT, json={"model": "judge", "max_tokens": 3, **make(mark)})
        wait_for_requests(caplog, 1)
    assert not [record for record in ours(caplog) if mark in str(record.__dict__)]
