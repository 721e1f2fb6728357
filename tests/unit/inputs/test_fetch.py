"""The fetcher against a real server on loopback, and the gate against everything crafted."""

import base64
import shlex
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpcore2
import pytest
from PIL import Image

from qianyan.errors import MediaError
from qianyan.inputs.connection import PinnedBackend
from qianyan.inputs.fetch import FetchLimits, fetch

HTML = b"\n <!DOCTYPE html><html><body>log in first</body></html>"


def png() -> bytes:
    out = BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


class Site(ThreadingHTTPServer):
    """Counts connections and requests; never prints."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Pages)
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str]]] = []

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.connections += 1
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what several tests are about."""

    @property
    def netloc(self) -> str:
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return f"http://{self.netloc}{path}"


class Pages(BaseHTTPRequestHandler):
    """One method per page of the site."""

    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        page = self.path.split("?")[0].strip("/").split("/")[0].replace(".", "_")
        getattr(self, f"page_{page}", self.page_missing)()
        self.close_connection = True

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def page_missing(self) -> None:
        self.answer(404, b"no such page")

    def page_photo_png(self) -> None:
        self.answer(200, png(), Content_Type="image/png; charset=binary")

    def page_login(self) -> None:
        self.answer(200, HTML, Content_Type="image/jpeg")

    def page_empty(self) -> None:
        self.answer(200, b"")

    def page_broken(self) -> None:
        self.answer(503, b"later")

    def page_packed(self) -> None:
        self.answer(200, b"\x1f\x8b", Content_Encoding="gzip")

    def page_loop(self) -> None:
        self.answer(302, Location="/loop")

    def page_three(self) -> None:
        self.answer(301, Location="/two")

    def page_two(self) -> None:
        self.answer(307, Location=self.server.url("/one"))

    def page_one(self) -> None:
        self.answer(308, Location="photo.png?x=1#y")

    def page_to(self) -> None:
        self.answer(302, Location=unquote(self.path.split("?", 1)[1]))

    def page_announced(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(100_000_000))
        self.end_headers()
        self.pour()

    def page_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.pour()

    def pour(self) -> None:
        for _ in range(100):
            self.wfile.write(b"\xff\xd8\xff" + bytes(999_997))

    def page_dripping(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.drip(b"\x89PNG" + bytes(996))

    def page_dripping_headers(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 1000)

    def drip(self, data: bytes) -> None:
        for start in range(len(data)):
            self.wfile.write(data[start : start + 1])
            self.wfile.flush()
            time.sleep(0.05)

    def page_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"\x89PNG")

    def page_nonsense(self) -> None:
        self.wfile.write(b"\x00\x01\x02 what?\r\n\r\n")


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def start(host: str = "127.0.0.1", port: int = 0) -> Site:
        site = Site((host, port))
        threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
        sites.append(site)
        return site

    yield start
    for site in sites:
        site.shutdown()
        site.server_close()


@pytest.fixture
def site(serve: Callable[..., Site]) -> Site:
    return serve()


@pytest.fixture
def limits(site: Site) -> FetchLimits:
    """The site allowed, as a camera on the own network would be."""
    return FetchLimits(allow_private=frozenset({site.netloc}), timeout_s=5)


def refusal(source: str | Path, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch(source, **options)
    sentence = str(caught.value)
    for leak in ("Errno", "0x", "httpcore", "Traceback", "Exception", "/usr", "/tmp"):  # noqa: S108
        assert leak not in sentence.replace(str(source)[:40], "")
    assert sentence.endswith(".")
    assert len(sentence) < 300
    return caught.value


def no_dns(host: str, port: int) -> list[str]:
    raise AssertionError(f"asked for {host}")


def test_a_picture_arrives_with_its_type_and_name(site: Site, limits: FetchLimits) -> None:
    fetched = fetch(site.url("/photo.png?token=secret"), limits=limits)
    assert fetched.data == png()
    assert fetched.media_type == "image/png"
    assert fetched.name == "photo.png"
    (_, headers) = site.requests[0]
    assert headers["Host"] == site.netloc
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers


def test_proxies_of_the_environment_are_ignored(
    site: Site, limits: FetchLimits, serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{proxy.netloc}")
    assert fetch(site.url("/photo.png"), limits=limits).data == png()
    assert proxy.connections == 0


def test_three_redirects_are_followed(site: Site, limits: FetchLimits) -> None:
    assert fetch(site.url("/three"), limits=limits).data == png()
    assert site.requests[-1][0] == "/photo.png?x=1"


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/nothing.jpg", "http_status", "404 (Not Found)"),
        ("/broken", "http_status", "503"),
        ("/loop", "too_many_redirects", "3 times"),
        ("/login", "not_a_picture", "web page"),
        ("/empty", "empty_file", "0 bytes"),
        ("/packed", "not_a_picture", "packed"),
        ("/cut", "connection_failed", "failed"),
        ("/nonsense", "connection_failed", "failed"),
        ("/announced", "too_large", "20 MB"),
        ("/endless", "too_large", "20 MB"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_with_a_code(
    site: Site, limits: FetchLimits, path: str, code: str, words: str
) -> None:
    error = refusal(site.url(path), limits=limits)
    assert error.code == code
    assert words in str(error)


def test_a_body_within_the_limit_is_taken_whole_and_one_byte_more_is_not(
    site: Site, limits: FetchLimits
) -> None:
    size = len(png())
    for max_bytes, fits in ((size, True), (size - 1, False)):
        tight = FetchLimits(allow_private=limits.allow_private, max_bytes=max_bytes)
        if fits:
            assert fetch(site.url("/photo.png"), limits=tight).data == png()
        else:
            assert refusal(site.url("/photo.png"), limits=tight).code == "too_large"


@pytest.mark.parametrize("path", ["/dripping", "/dripping_headers"])
def test_a_slow_drip_ends_at_the_deadline(site: Site, path: str) -> None:
    limits = FetchLimits(allow_private=frozenset({site.netloc}), timeout_s=0.4)
    start = time.monotonic()
    error = refusal(site.url(path), limits=limits)
    assert error.code == "timeout"
    assert "0.4 s" in str(error)
    assert time.monotonic() - start < 2


def test_a_slow_resolver_ends_at_the_deadline() -> None:
    release = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        release.wait(10)
        return []

    start = time.monotonic()
    error = refusal("http://slow.test/", limits=FetchLimits(timeout_s=0.2), resolver=slow)
    release.set()
    assert error.code == "timeout"
    assert time.monotonic() - start < 2


def test_a_closed_port_is_a_failed_connection(serve: Callable[..., Site]) -> None:
    gone = serve()
    netloc = gone.netloc
    gone.shutdown()
    gone.server_close()
    error = refusal(f"http://{netloc}/", limits=FetchLimits(allow_private=frozenset({netloc})))
    assert error.code == "connection_failed"


def test_unknown_hosts_are_named_as_such() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    error = refusal("https://no-such-host.test/a.jpg?key=k3y", resolver=unknown)
    assert error.code == "name_not_resolved"
    assert "k3y" not in str(error)


@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:{port}/photo.png",
        "http://localhost:{port}/photo.png",
        "//127.0.0.1:{port}/photo.png",
        "https://[::1]:{port}/",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/",
        "http://user@127.0.0.1:{port}/",
        "http://good.test\\@127.0.0.1:{port}/",
    ],
)
def test_a_redirect_passes_the_same_gate(
    serve: Callable[..., Site], site: Site, where: str
) -> None:
    """A site that may be fetched redirects to one that may not."""
    canary = serve()
    port = int(canary.server_address[1])
    limits = FetchLimits(
        allow_private=frozenset({site.netloc}), ports=frozenset({80, 443, port}), timeout_s=5
    )
    error = refusal(site.url("/to?" + quote(where.format(port=port))), limits=limits)
    assert error.code in {"private_address", "bad_url"}
    assert len(site.requests) == 1
    assert canary.connections == 0


CRAFTED = [
    # plain private and local addresses
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}",
    "HTTP://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://127.1.2.3:{port}/",
    "http://0.0.0.0:{port}/",
    "http://10.0.0.1:{port}/",
    "http://172.16.0.1:{port}/",
    "http://192.168.1.1:{port}/",
    "http://100.64.0.1:{port}/",
    "http://100.100.100.200/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    # IPv6, and IPv4 wrapped in it
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fe80::1%lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fd00:ec2::254]/latest/",
    "http://[fc00::1]:{port}/",
    "http://[fec0::1]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://[2001:db8::1]:{port}/",
    # numbers that resolvers read as addresses
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://0x7f.0.0.0x1:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.0.0.01:{port}/",
    "http://0:{port}/",
    "http://\u2460\u2461\u2466.0.0.1:{port}/",
    "http://\uff11\uff12\uff17.0.0.1:{port}/",
    "http://127\u30020\u30020\u30021:{port}/",
    # names for here
    "http://localhost:{port}/",
    "http://localhost.:{port}/",
    "http://LOCALHOST:{port}/",
    "http://ip6-localhost:{port}/",
    "http://localhost.localdomain:{port}/",
    "http://127.0.0.1.nip.io:{port}/",
    "http://loc\u00adalhost:{port}/",
    "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/",
    "http://xn--localhost-:{port}/",
    # confusion between parsers
    "http://good.test\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@good.test/",
    "http:\\\\127.0.0.1:{port}/",
    "http://good.test@127.0.0.1:{port}/",
    "http://user:secret@127.0.0.1:{port}/",
    "http://@127.0.0.1:{port}/",
    "http://:@127.0.0.1:{port}/",
    "http://good.test%40127.0.0.1:{port}/",
    "http://good.test%00@127.0.0.1:{port}/",
    "http://127.0.0.1%00.good.test:{port}/",
    "http://127.0.0.1\x00.good.test:{port}/",
    "http://127.0.0.1%2f:{port}/",
    "http://good.test#@127.0.0.1:{port}/",
    "http://good.test?@127.0.0.1:{port}/",
    "http://good.test;@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@good.test/",
    "http://127.0.0.1:{port}?good.test",
    "http://127.0.0.1 :{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1\n:{port}/",
    " http://127.0.0.1:{port}/",
    "\x01http://127.0.0.1:{port}/",
    "http://good.test/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    "http://good.test/%0d%0aHost:127.0.0.1:{port}",
    "http:///127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:00{port}/",
    "http://127.0.0.1:+{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1/",
    "http://::1:{port}/",
    "http://*:{port}/",
    "http://-:{port}/",
    "http://..:{port}/",
    "http://:{port}/",
    # other ports and schemes
    "http://127.0.0.1:0/",
    "http://127.0.0.1:22/",
    "http://127.0.0.1:65536/",
    "//127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/",
    "file://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "http+unix://127.0.0.1:{port}/",
    "jar:http://127.0.0.1:{port}/!/",
    "view-source:http://127.0.0.1:{port}/",
    "url:http://127.0.0.1:{port}/",
    "/etc/passwd",
    "../../etc/passwd",
]


def test_there_are_at_least_sixty_crafted_urls() -> None:
    assert len(set(CRAFTED)) >= 60


@pytest.mark.parametrize("crafted", CRAFTED, ids=range(len(CRAFTED)))
def test_no_crafted_url_reaches_the_canary(serve: Callable[..., Site], crafted: str) -> None:
    """Under the worst resolver there is, for which every name is this machine."""
    canary = serve()
    port = int(canary.server_address[1])
    limits = FetchLimits(ports=frozenset({80, 443, port}), timeout_s=3)
    error = refusal(
        crafted.format(port=port), limits=limits, resolver=lambda host, port: ["127.0.0.1"]
    )
    assert error.code in {"bad_url", "private_address"}
    assert "secret" not in str(error)
    assert canary.connections == 0


@pytest.mark.parametrize("name", ["localhost", "localhost.", "LOCALHOST"])
def test_the_system_resolver_does_not_open_the_gate_either(site: Site, name: str) -> None:
    port = int(site.server_address[1])
    error = refusal(f"http://{name}:{port}/", limits=FetchLimits(ports=frozenset({port})))
    assert error.code in {"private_address", "name_not_resolved"}
    assert site.connections == 0


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["2606:4700::1111", "::1"],
        ["8.8.8.8", "::ffff:10.0.0.1"],
        ["fe80::1%lo"],
        ["64:ff9b::808:808"],
    ],
)
def test_one_private_answer_refuses_the_name(answers: list[str]) -> None:
    error = refusal("http://mixed.test/", resolver=lambda host, port: answers)
    assert error.code == "private_address"
    assert not any(answer in str(error) for answer in answers)


@pytest.fixture
def two_sites_on_one_port(serve: Callable[..., Site]) -> tuple[Site, Site]:
    """The same port on two loopback addresses."""
    first = serve("127.0.0.1")
    try:
        return first, serve("127.0.0.2", int(first.server_address[1]))
    except OSError:
        pytest.skip("this system has one loopback address only, or the port is taken on the other")


def test_a_name_that_rebinds_is_dialled_where_it_was_judged(
    two_sites_on_one_port: tuple[Site, Site],
) -> None:
    """The second answer is 127.0.0.1; nobody may ask for it, and nobody may go there."""
    canary, judged = two_sites_on_one_port
    answers = iter(["127.0.0.2", "127.0.0.1", "127.0.0.1"])
    netloc = f"rebind.test:{judged.server_address[1]}"
    fetched = fetch(
        f"http://{netloc}/photo.png",
        limits=FetchLimits(allow_private=frozenset({netloc})),
        resolver=lambda host, port: [next(answers)],
    )
    assert fetched.data == png()
    assert next(answers) == "127.0.0.1", "the name was asked for more than once"
    assert canary.connections == 0
    assert judged.requests[0][1]["Host"] == netloc


def test_a_name_that_rebinds_between_redirects_is_judged_again(
    serve: Callable[..., Site], site: Site
) -> None:
    canary = serve()
    port = int(canary.server_address[1])
    limits = FetchLimits(allow_private=frozenset({site.netloc}), ports=frozenset({80, port}))
    error = refusal(
        site.url(f"/to?http://rebind.test:{port}/"),
        limits=limits,
        resolver=lambda host, port: ["127.0.0.1"],
    )
    assert error.code == "private_address"
    assert canary.connections == 0


def test_the_next_address_is_tried_when_one_does_not_answer(
    two_sites_on_one_port: tuple[Site, Site],
) -> None:
    _, second = two_sites_on_one_port
    netloc = f"two.test:{second.server_address[1]}"
    fetched = fetch(
        f"http://{netloc}/photo.png",
        limits=FetchLimits(allow_private=frozenset({netloc})),
        resolver=lambda host, port: ["127.0.0.3", "127.0.0.2"],
    )
    assert fetched.data == png()


def test_a_connection_ignores_the_name_it_is_given(site: Site) -> None:
    backend = PinnedBackend(["127.0.0.1"], time.monotonic() + 5)
    stream = backend.connect_tcp("elsewhere.invalid", int(site.server_address[1]))
    stream.write(b"GET /photo.png HTTP/1.0\r\n\r\n")
    assert stream.read(4096).startswith(b"HTTP/1.1 200")
    stream.close()


def test_no_connection_outlives_the_deadline(site: Site) -> None:
    backend = PinnedBackend(["127.0.0.1"], time.monotonic() - 1)
    with pytest.raises(httpcore2.TimeoutException):
        backend.connect_tcp("here.test", int(site.server_address[1]))
    assert site.connections == 0


@pytest.mark.parametrize("allowed", ["{host}", "{host}:{port}"])
def test_the_allow_list_takes_hosts_and_hosts_with_ports(site: Site, allowed: str) -> None:
    host, port = str(site.server_address[0]), int(site.server_address[1])
    entry = allowed.format(host=host, port=port)
    ports = frozenset({80, 443} if ":" in entry else {port})
    limits = FetchLimits(allow_private=frozenset({entry}), ports=ports)
    assert fetch(site.url("/photo.png"), limits=limits).data == png()


def test_an_allowed_host_is_not_allowed_on_other_ports(site: Site) -> None:
    limits = FetchLimits(allow_private=frozenset({"127.0.0.1", "127.0.0.1:9"}))
    assert refusal(site.url("/photo.png"), limits=limits).code == "bad_url"
    assert site.connections == 0


@pytest.fixture
def tls_site(tmp_path: Path) -> Iterator[tuple[Site, list[str | None]]]:
    """A site with a certificate nobody trusts, and the names clients asked it for."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate with")
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=cam.test "
            "-keyout key.pem -out cert.pem"
        ),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.sni_callback = lambda socket, name, context: names.append(name)
    site = Site(("127.0.0.1", 0))
    site.socket = context.wrap_socket(site.socket, server_side=True)
    threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
    yield site, names
    site.shutdown()
    site.server_close()


def test_tls_asks_for_the_name_and_checks_the_certificate(
    tls_site: tuple[Site, list[str | None]],
) -> None:
    site, names = tls_site
    netloc = f"cam.test:{site.server_address[1]}"
    error = refusal(
        f"https://{netloc}/photo.png",
        limits=FetchLimits(allow_private=frozenset({netloc})),
        resolver=lambda host, port: ["127.0.0.1"],
    )
    assert error.code == "connection_failed"
    assert "certificate" in str(error)
    assert names == ["cam.test"]
    assert site.requests == []


def test_data_uris_are_decoded() -> None:
    packed = base64.b64encode(png()).decode()
    for uri in (
        f"data:image/png;base64,{packed}",
        f"DATA:image/png;charset=x;BASE64,{packed.rstrip('=')}",
        f"data:image/png;base64,{packed[:20]}\n {packed[20:]}",
        "data:image/png;base64," + packed.replace("+", "%2B").replace("/", "%2F"),
    ):
        fetched = fetch(uri, resolver=no_dns)
        assert fetched.data == png()
        assert fetched.media_type == "image/png"
    assert fetch("data:,plain%20text").data == b"plain text"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("data:image/png;base64", "bad_url"),
        ("data:image/png;base64,***", "bad_url"),
        ("data:image/png;base64,A", "bad_url"),
        ("data:image/png;base64,", "empty_file"),
        ("data:image/png;base64," + "A" * 400, "too_large"),
    ],
)
def test_data_uris_that_are_refused(uri: str, code: str) -> None:
    assert refusal(uri, limits=FetchLimits(max_bytes=100)).code == code


def test_files_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "工地 1.png"
    path.write_bytes(png())
    for source in (path, str(path)):
        fetched = fetch(source, allow_files=True)
        assert (fetched.data, fetched.media_type, fetched.name) == (png(), "image/png", path.name)
    assert refusal(str(path)).code == "bad_url"
    assert fetch(path).data == png()  # what comes from outside is text and never a Path


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(bytes(11))
    limits = FetchLimits(max_file_bytes=10)
    for source, code in (
        (tmp_path / "gone.png", "not_found"),
        (tmp_path / "big.png" / "inside.png", "not_found"),
        (tmp_path, "not_found"),
        ("bad\0name", "not_found"),
        ("/dev/zero", "not_found"),
        (tmp_path / "big.png", "too_large"),
        (f"file://{tmp_path}/big.png", "bad_url"),
        ("s3://bucket/key", "bad_url"),
    ):
        error = refusal(source, limits=limits, allow_files=True)
        assert error.code == code, source
        if not isinstance(source, str):
            assert str(tmp_path.parent) not in str(error)
