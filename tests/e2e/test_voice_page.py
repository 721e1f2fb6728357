"""The voice page in a real browser, with its fake microphone and camera, against real servers."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from tests.omni_checkpoint import THINKER, write_omni_checkpoint

from qianyan.engine.engine import Engine
from qianyan.server.app import create_app
from qianyan.server.realtime import switchboard
from qianyan.server.realtime.vad import find_model
from qianyan.server.settings import RealtimeLimits, ServerLimits, ServerSettings
from qianyan.server.voice_page import FOLDER
from qianyan.server.wire import listen_config

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

KEY = "sk-test-0123456789"
PATIENCE_MS = 60_000
AT_ONCE_MS = 300
RATE_HZ = 16_000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480))
"""Formants in Hz of a, i, o and e, as Peterson and Barney (1952) measured them."""
WATCH = """
    window.seen = [];
    document.addEventListener("DOMContentLoaded", () => {
        const root = document.documentElement;
        const look = () => seen.push({ at: performance.now(), ...root.dataset });
        new MutationObserver(look).observe(root, { attributes: true });
        document.addEventListener("keydown", ({ key }) => {
            seen.push({ at: performance.now(), ...root.dataset, key });
        }, true);
    });
    const connect = AudioNode.prototype.connect;
    AudioNode.prototype.connect = function (to, ...rest) {
        if (to instanceof AudioDestinationNode) {
            window.ear = new AnalyserNode(to.context, { fftSize: 2048 });
            connect.call(this, ear);
        }
        return connect.call(this, to, ...rest);
    };
    window.loudest = () => {
        const samples = new Float32Array(2048);
        ear.getFloatTimeDomainData(samples);
        return Math.max(...samples.map(Math.abs));
    };
"""
"""Keeps every state of the page with its time, and the keys pressed; hears what it plays."""


@pytest.fixture(scope="module")
def talking_server(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], str]]:
    """The command itself; call it for the address."""
    state = tmp_path_factory.mktemp("state")
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", "--model", str(checkpoint)]
    command += ["--dtype", "float32", "--state-dir", str(state), "--log-level", "warning"]
    environment = {**os.environ, "QIANYAN_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    log = (state / "log").open("w+")
    with (
        log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as server,
    ):

        def address() -> str:
            while server.poll() is None:
                said = (state / "log").read_text("utf-8")
                if found := re.search(r"http://[\d.:]+(?=/console/voice)", said):
                    return found[0]
                time.sleep(0.05)
            raise AssertionError((state / "log").read_text("utf-8"))

        address.process = server  # type: ignore[attr-defined]
        yield address
        server.kill()


@contextmanager
def serving(model: Engine, *, api_keys: tuple[str, ...] = (KEY,), **limits: Any) -> Iterator[str]:
    """Serve a model from this process, which takes no seconds to begin."""
    settings = ServerSettings(
        model_names=("omni",),
        api_keys=api_keys,
        limits=ServerLimits(drain_s=1),
        realtime=RealtimeLimits(**limits),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(listen_config(create_app(settings, model), settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes a few hundred words at most, and speaks for a minute."""
    text = THINKER["text_config"] | {"max_position_embeddings": 3200}
    return write_omni_checkpoint(
        tmp_path_factory.mktemp("omni"),
        talker_positions=4000,
        thinker_config=THINKER | {"text_config": text},
    )


@pytest.fixture(scope="module")
def omni(checkpoint: Path) -> Engine:
    return Engine(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def omni_server(omni: Engine, talking_server: Callable[[], str]) -> Iterator[str]:
    """A server in this process, with room for one; the command begins meanwhile."""
    with serving(omni, max_sessions=1) as address:
        yield address


def say_something(seconds: float) -> np.ndarray:
    """Make vowels with a falling voice and noise between them: enough to be taken for speech."""
    random = np.random.default_rng(1)
    pieces = []
    length = RATE_HZ // 5
    window = np.minimum(1, np.minimum(np.arange(length), length - np.arange(length)) / 640)
    times = np.arange(512) / RATE_HZ
    for at in range(int(seconds * RATE_HZ / length)):
        pitch = np.linspace(150, 110, length) * (1 + 0.08 * random.standard_normal())
        pulses = np.diff(np.floor(np.cumsum(pitch) / RATE_HZ), prepend=0.0)
        pulses += 0.02 * random.standard_normal(length)
        formants = zip(VOWELS[at % 4], (80, 90, 120), (1.0, 0.6, 0.3), strict=True)
        rings = sum(
            weight * np.exp(-np.pi * band * times) * np.sin(2 * np.pi * hertz * times)
            for hertz, band, weight in formants
        )
        pieces.append(np.convolve(pulses, rings)[:length] * window)
    voice = np.concatenate(pieces)
    return 0.5 * voice / np.abs(voice).max()


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds that the browser hears again and again: somebody speaks for one of them."""
    silence = np.zeros(RATE_HZ)
    heard = np.concatenate([silence, say_something(1.0), np.tile(silence, 4)])
    path = tmp_path_factory.mktemp("microphone") / "heard.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((heard * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def player() -> Iterator[Any]:
    with playwright.sync_playwright() as one:
        yield one


@contextmanager
def launched(player: Any, *arguments: str) -> Iterator[Any]:
    names = "--host-resolver-rules=MAP site.example 127.0.0.1"
    options = ["--no-sandbox", names, *arguments]
    browser = player.chromium.launch(executable_path=CHROMIUM, args=options)
    try:
        yield browser
    finally:
        browser.close()


FAKE_DEVICES = "--use-fake-device-for-media-stream"


@pytest.fixture(scope="module")
def chromium(player: Any, microphone: Path) -> Iterator[Any]:
    """A browser whose microphone and camera nobody has to allow."""
    heard = f"--use-file-for-fake-audio-capture={microphone}"
    with launched(player, "--use-fake-ui-for-media-stream", FAKE_DEVICES, heard) as browser:
        yield browser


class Visit:
    """One open page, and all that went wrong or over its socket."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.faults: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        key = options.pop("key", KEY)
        self.context = browser.new_context(**{"locale": "en-US", **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("websocket", self._listen)
        self.page.add_init_script(WATCH)
        if key:
            self.page.add_init_script(f"sessionStorage.setItem('qianyan.key', '{key}')")
        self.page.goto(f"{address}/console/voice")

    def _note(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.faults.append(message.text)

    def _listen(self, wire: Any) -> None:
        wire.on("framesent", lambda text: self.sent.append(json.loads(text)))
        wire.on("framereceived", lambda text: self.received.append(json.loads(text)))

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=name == "End")

    def becomes(self, state: str) -> None:
        self.page.wait_for_selector(f"html[data-state={state}]")

    def hears(self, least_ms: int) -> None:
        """Wait until that much of an answer was played."""
        self.page.wait_for_function(
            "least => Number(document.documentElement.dataset.heardMs) > least", arg=least_ms
        )
        self.page.wait_for_function("() => loudest() > 0.001")

    def is_silent(self) -> bool:
        """Whether nothing is played, by the samples that go to the loudspeaker."""
        return bool(self.page.evaluate("loudest() < 0.0001"))

    def notice(self, code: str) -> str:
        shown = self.page.locator(f"#notice[data-code={code}]")
        shown.wait_for()
        return str(shown.inner_text())

    def seen(self) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = self.page.evaluate("seen")
        return seen

    def has_sent(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.sent if event["type"] == kind]

    def has_received(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.received if event["type"] == kind]

    def type(self, words: str) -> None:
        self.page.locator("#words").fill(words)
        self.page.keyboard.press("Enter")


@contextmanager
def visiting(browser: Any, address: str, **options: Any) -> Iterator[Visit]:
    """Open the page; whatever the browser complains of fails the test."""
    visit = Visit(browser, address, **options)
    try:
        yield visit
        assert visit.faults == []
    finally:
        visit.context.close()


def silent_after(seen: list[dict[str, Any]], since: float) -> float:
    """Give the milliseconds from a time until nothing more was played, before the next answer."""
    last = since
    for before, later in pairwise(one for one in seen if one["at"] >= since):
        if later["state"] == "speaking" != before["state"]:
            break
        if later["heardMs"] != before["heardMs"]:
            last = later["at"]
    return last - since


@pytest.mark.parametrize(("language", "scheme"), [("en-US", "light"), ("zh-CN", "dark")])
def test_the_page_fits_telephones_and_screens(
    chromium: Any, omni_server: str, language: str, scheme: str
) -> None:
    options = {"locale": language, "color_scheme": scheme}
    with visiting(chromium, omni_server, **options) as visit:
        page = visit.page
        page.wait_for_selector("#start:enabled")
        for width in (375, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        words = "开始对话" if language == "zh-CN" else "Start talking"
        assert page.locator("html").get_attribute("lang") == ("zh-CN" if "zh" in language else "en")
        assert page.locator("#start").inner_text() == words
        page.locator("#language").click()
        assert page.locator("#start").inner_text() != words
        page.reload()
        assert page.locator("#start").inner_text() != words


def test_words_can_be_read_in_both_schemes() -> None:
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5 between words and what is behind them."""
    style = (FOLDER / "style.css").read_text("utf-8")
    for scheme in style.split("@media (prefers-color-scheme: dark)")[:2]:
        colours = dict(re.findall(r"--([\w-]+): #(\w{6});", scheme.split("* {")[0]))
        pairs = [
            (word, ground)
            for word in ("ink", "soft", "accent", "alarm", "wait", "live")
            for ground in ("card", "ground")
        ]
        pairs += [("accent-ink", "accent"), ("soft", "accent-wash"), ("ink", "alarm-wash")]
        pairs += [("accent-ink", "live"), ("soft", "alarm-wash")]
        for word, ground in pairs:
            assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)


def contrast(one: str, other: str) -> float:
    def brightness(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def test_sound_of_any_rate_becomes_16_khz_without_what_that_cannot_carry(
    chromium: Any, omni_server: str
) -> None:
    """In the browser's own arithmetic, in pieces of 128 samples as it gives them."""
    script = """async ([rate, hertz]) => {
        const { Resampler } = await import("/console/voice/resampler.js");
        const resampler = new Resampler(rate, 16000);
        const output = [];
        for (let at = 0; at < rate / 2; at += 128) {
            const piece = Float32Array.from({ length: 128 },
                (_, index) => Math.sin(2 * Math.PI * hertz * (at + index) / rate));
            output.push(...resampler.push(piece));
        }
        return output;
    }"""
    with visiting(chromium, omni_server) as visit:
        for rate in (48_000, 44_100, 16_000, 8_000):
            heard = np.array(visit.page.evaluate(script, [rate, 1000]))
            assert abs(len(heard) - RATE_HZ / 2) < 200
            spectrum = np.abs(np.fft.rfft(heard[500:-500] * np.hanning(len(heard) - 1000)))
            loudest = np.argmax(spectrum) * RATE_HZ / (len(heard) - 1000)
            assert abs(loudest - 1000) < 2
            assert 0.69 < heard[500:-500].std() < 0.72
        for rate in (48_000, 44_100):
            lost = np.array(visit.page.evaluate(script, [rate, 11_000]))
            assert np.abs(lost[500:-500]).max() < 0.003


def test_a_key_is_asked_for_and_kept_in_the_tab(chromium: Any, omni_server: str) -> None:
    visit = Visit(chromium, omni_server, key="")
    page = visit.page
    dialog = page.locator("#key-dialog")
    dialog.wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    page.locator("#key").fill("sk-wrong-0123456789")
    page.keyboard.press("Enter")
    page.locator("#key-wrong:visible").wait_for()
    assert page.evaluate("sessionStorage.getItem('qianyan.key')") is None
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#start:enabled")
    assert not dialog.is_visible()
    assert page.locator("#notice").is_hidden()
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
    assert len(visit.faults) == 2  # the browser's own words about two answers of 401
    page.reload()
    page.wait_for_selector("#start:enabled")
    visit.context.close()


def test_a_server_without_keys_asks_for_none(chromium: Any, omni: Engine) -> None:
    with (
        serving(omni, api_keys=()) as address,
        visiting(chromium, address, key="") as visit,
    ):
        visit.page.wait_for_selector("#start:enabled")
        visit.type("Who is there?")
        visit.page.locator("#captions li[data-role=answer]").wait_for()


def test_a_model_that_does_not_speak_answers_in_writing(chromium: Any, tmp_path: Path) -> None:
    folder = write_omni_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"enable_audio_output": False}))
    with (
        serving(Engine(folder, dtype="float32")) as address,
        visiting(chromium, address) as visit,
    ):
        visit.page.wait_for_selector("#start:enabled")
        visit.type("Who is there?")
        assert "does not speak" in visit.notice("no_voice")
        visit.page.locator("#captions li[data-role=answer] .words").wait_for()
        visit.becomes("ready")
        assert visit.has_received("response.output_text.done")
        assert visit.seen()[-1]["heardMs"] == "0"


def test_a_model_that_does_not_hear_is_named_with_the_way_out(chromium: Any) -> None:
    with (
        serving(Engine("bundled", dtype="float32")) as address,
        visiting(chromium, address) as visit,
    ):
        said = visit.notice("no_hearing")
        assert "(omni) neither hears nor speaks" in said
        assert "qianyan serve --model Qwen/Qwen2.5-Omni-3B" in said
        assert visit.page.locator("#start").is_disabled()
        assert visit.page.locator("#words").is_disabled()


def test_a_server_without_room_says_so_and_takes_the_next_who_asks(
    chromium: Any, omni_server: str
) -> None:
    with (
        visiting(chromium, omni_server) as first,
        visiting(chromium, omni_server) as second,
    ):
        for visit in (first, second):
            visit.page.wait_for_selector("#start:enabled")
        first.button("Start talking").click()
        first.button("Mute").wait_for()
        second.button("Start talking").click()
        assert "All voice conversations of this server are taken" in second.notice("full")
        first.button("End").click()
        first.becomes("off")
        second.button("Try again").click()
        second.page.wait_for_selector("#start:enabled")
        second.type("And now?")
        second.page.locator("#captions li[data-role=answer]").wait_for()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((FAKE_DEVICES,), "microphone_refused", "Allow it in the site settings"),
        ((), "microphone_missing", "No microphone was found"),
    ],
)
def test_a_microphone_that_is_refused_or_missing_is_told_apart(
    player: Any, omni_server: str, arguments: tuple[str, ...], code: str, words: str
) -> None:
    with launched(player, *arguments) as browser, visiting(browser, omni_server) as visit:
        visit.page.wait_for_selector("#start:enabled")
        visit.button("Start talking").click()
        assert words in visit.notice(code)
        visit.becomes("off")
        camera = visit.page.get_by_role("switch", name="Camera")
        camera.click()
        assert "amera was" in visit.notice(code.replace("microphone", "camera"))
        assert camera.get_attribute("aria-checked") == "false"


def test_a_page_that_is_not_secure_says_how_to_open_it(chromium: Any, omni_server: str) -> None:
    address = omni_server.replace("127.0.0.1", "site.example")
    with visiting(chromium, address) as visit:
        assert "open this page by https" in visit.notice("insecure")
        assert visit.page.locator("#start").is_disabled()
        assert visit.page.locator("#words").is_enabled()


def test_a_server_that_cannot_tell_when_one_speaks_has_a_button_to_hold(
    chromium: Any, omni: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is without the extra vad."""
    monkeypatch.setattr(switchboard, "find_model", lambda: None)
    with serving(omni) as address, visiting(chromium, address) as visit:
        visit.page.wait_for_selector("#start:enabled")
        visit.button("Start talking").click()
        assert "hold a button to talk" in visit.notice("no_turns")
        hold = visit.button("Hold to talk")
        hold.click()
        assert "too short" in visit.notice("short")
        visit.page.locator("#notice-action").click()
        visit.page.get_by_label("Hands-free").click()
        visit.notice("no_turns")
        assert visit.page.get_by_label("Push to talk").is_checked()
        visit.becomes("ready")


@pytest.mark.skipif(find_model() is None, reason="qianyan[vad] is not installed")
def test_one_speaks_is_answered_and_interrupts_by_speaking(
    chromium: Any, talking_server: Callable[[], str]
) -> None:
    with visiting(chromium, talking_server()) as visit:
        visit.page.wait_for_selector("#start:enabled")
        visit.button("Start talking").click()
        for state in ("listening", "hearing", "thinking", "speaking"):
            visit.becomes(state)
        visit.hears(500)
        visit.becomes("hearing")  # the microphone begins again
        visit.page.wait_for_timeout(AT_ONCE_MS)
        assert visit.is_silent()
        seen = visit.seen()
        began = next(
            later["at"]
            for before, later in pairwise(seen)
            if (before["state"], later["state"]) == ("speaking", "hearing")
        )
        assert silent_after(seen, began) < AT_ONCE_MS
        truncated = visit.has_sent("conversation.item.truncate")[-1]
        assert 0 < truncated["audio_end_ms"] <= max(int(one["heardMs"]) for one in seen)
        assert visit.has_received("conversation.item.truncated")
        entries = visit.page.locator("#captions li")
        roles = entries.evaluate_all("all => all.map(one => one.dataset.role)")
        assert roles[:2] == ["you", "answer"]
        assert "interrupted" in entries.all_inner_texts()[1]
        assert re.search(r"Spoken, [\d.]+ s", entries.first.inner_text())
        visit.button("Mute").click()
        visit.page.wait_for_timeout(200)
        sent = visit.page.locator("#count-sent").inner_text()
        visit.page.wait_for_timeout(400)
        assert visit.page.locator("#count-sent").inner_text() == sent
        visit.button("End").click()
        visit.becomes("off")
        errors = visit.has_received("error")
        assert [one for one in errors if one["error"]["event_id"] is None] == []


def test_one_holds_a_key_to_talk_with_the_camera_on_and_interrupts_with_another(
    chromium: Any, talking_server: Callable[[], str]
) -> None:
    with visiting(chromium, talking_server()) as visit:
        page = visit.page
        page.wait_for_selector("#start:enabled")
        page.get_by_label("Push to talk").check()
        page.get_by_role("switch", name="Camera").click()
        page.locator("#preview:visible").wait_for()
        visit.button("Start talking").click()
        visit.becomes("ready")
        page.locator("#voice").select_option("Ethan")
        page.locator("#hold").focus()
        page.keyboard.down(" ")
        visit.becomes("hearing")
        page.wait_for_function("() => document.documentElement.dataset.frames >= 1")
        page.wait_for_timeout(500)
        page.keyboard.up(" ")
        visit.becomes("speaking")
        visit.hears(400)
        page.keyboard.press("Escape")
        page.wait_for_timeout(AT_ONCE_MS)
        assert visit.is_silent()
        visit.becomes("ready")
        seen = visit.seen()
        pressed = next(one["at"] for one in seen if one.get("key") == "Escape")
        assert silent_after(seen, pressed) < AT_ONCE_MS
        frame = visit.has_sent("input_image_buffer.append")[0]["image"]
        assert frame.startswith("/9j/")  # JPEG
        kinds = [event["type"] for event in visit.sent]
        assert kinds.index("input_audio_buffer.commit") > kinds.index("input_audio_buffer.append")
        assert (
            visit.has_sent("session.update")[-1]["session"]["audio"]["output"]["voice"] == "Ethan"
        )
        done = visit.has_received("response.done")[0]
        assert done["response"]["status"] == "cancelled"
        assert "pictures: " in page.locator("#captions li").first.inner_text()
        visit.type("What is it?")
        visit.becomes("speaking")
        told = visit.has_sent("conversation.item.create")[0]["item"]["content"]
        assert [part["type"] for part in told] == ["input_image", "input_text"]
        assert told[0]["image_url"].startswith("data:image/jpeg;base64,/9j/")
        visit.button("End").click()
        page.get_by_role("switch", name="Camera").click()
        assert page.locator("#preview").is_hidden()


def test_a_server_that_dies_is_told_and_can_be_tried_again(
    chromium: Any, talking_server: Callable[[], str]
) -> None:
    visit = Visit(chromium, talking_server())
    visit.page.wait_for_selector("#start:enabled")
    visit.type(words := "<b onclick=alert(1)>Tell me</b> a long story.")
    visit.hears(200)
    talking_server.process.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
    assert "connection to the server was lost" in visit.notice("lost")
    visit.becomes("lost")
    visit.page.locator("#notice-action").click()
    assert "cannot be reached" in visit.notice("offline")
    assert visit.page.locator("#captions li").count() == 2
    assert visit.page.locator("#captions .words").first.inner_text() == words
    visit.context.close()
