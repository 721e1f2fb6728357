"""What is attached is read at once and fits the model, or is refused in a sentence."""

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qianyan.cli.answering import (
    MAX_SENT_BYTES,
    Clip,
    Events,
    LocalModel,
    RemoteModel,
    TalkOptions,
)
from qianyan.cli.attachments import fit, open_attachment
from qianyan.cli.conversation import Conversation
from qianyan.engine.engine import Engine
from qianyan.errors import InputError, MediaError
from qianyan.inputs.fetch import FetchLimits
from qianyan.inspection.inspector import LookSettings

LIMITS = FetchLimits()


@dataclass
class Reader:
    """A model that is attached to and never asked."""

    sees_pictures: bool
    name: str = "reader"

    def seen_wh(self, photo_wh: tuple[int, int]) -> tuple[int, int]:
        return (56, 28)

    def watch(self, video: Path | bytes, media_type: str) -> Clip:
        return Clip(part={"type": "video_url", "video_url": {"url": media_type}})

    def hear(self, sound: Path | bytes, media_type: str) -> Clip:
        return Clip(part={"type": "audio", "audio": media_type}, notes=("heard",))

    def answer(self, messages: Sequence[dict[str, Any]], options: TalkOptions) -> Events:
        raise AssertionError("nobody asks")


SEEING, BLIND = Reader(sees_pictures=True), Reader(sees_pictures=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (60, 40), (9, 9, 9)).save("on site.png")
    return tmp_path


def write_video(path: Path, num_frames: int = 20) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for shade in range(num_frames):
            picture = Image.new("RGB", (160, 120), (shade * 10, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def write_pdf(path: Path, *pages: str) -> None:
    import typst

    source = "\n#pagebreak()\n".join(pages)
    path.write_bytes(typst.compile(source.encode()))


@pytest.mark.parametrize(
    "source", ["on site.png", "./on site.png", "~/on site.png", "on\\ site.png"]
)
def test_a_picture_is_found_as_a_shell_would_find_it(folder: Path, source: str) -> None:
    attachment = fit(open_attachment("image", source, LIMITS), SEEING)
    assert attachment.name == "on site.png"
    assert (attachment.photo_wh, attachment.seen_wh) == ((60, 40), (56, 28))
    (part,) = attachment.parts
    assert part["image"].size == (60, 40)


def test_a_picture_is_kept_when_its_file_goes(folder: Path) -> None:
    attachment = fit(open_attachment("image", "on site.png", LIMITS), SEEING)
    Path("on site.png").unlink()
    (message,) = Conversation(attached=[attachment]).messages("What is this?")
    assert message["content"][0]["image"].getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize(
    ("kind", "source", "error", "sentence"),
    [
        ("image", "gone.png", MediaError, "There is no file 'gone.png'"),
        ("image", ".", MediaError, "is a folder"),
        ("image", "text.png", MediaError, "'text.png': This is not a picture but text"),
        ("image", "http://127.0.0.1:80/a.png", MediaError, "private or reserved address"),
        ("image", "ftp://host/a.png", MediaError, "'ftp'"),
        ("image", "data:image/png;base64,iVBORw0", MediaError, "inline"),
        ("video", "gone.mp4", MediaError, "There is no file 'gone.mp4'"),
        ("video", "text.png", MediaError, "'text.png': "),
        ("file", "gone.pdf", MediaError, "There is no file 'gone.pdf'"),
        ("file", "gone.pdf pages=1-2", MediaError, "There is no file 'gone.pdf'"),
        ("file", "empty.csv", MediaError, "empty"),
        ("audio", "gone.wav", MediaError, "There is no file 'gone.wav'"),
        ("audio", "text.png", MediaError, "'text.png': This is not a sound but text"),
        ("audio", "http://127.0.0.1:80/a.mp3", MediaError, "private or reserved address"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(
    folder: Path, kind: Any, source: str, error: type[Exception], sentence: str
) -> None:
    Path("text.png").write_text("just words, no picture")
    Path("empty.csv").touch()
    with pytest.raises(error) as caught:
        open_attachment(kind, source, LIMITS)
    assert sentence in str(caught.value)


def test_a_document_becomes_text_and_pictures(folder: Path) -> None:
    Path("rules.md").write_text("# Rules\n\nWear a *hard hat*.")
    attachment = fit(open_attachment("file", "rules.md", LIMITS), SEEING)
    assert (attachment.kind, attachment.name) == ("file", "rules.md")
    assert "hard hat" in "".join(part["text"] for part in attachment.parts)


def test_a_part_of_a_document_can_be_asked_for(folder: Path) -> None:
    write_pdf(Path("big one.pdf"), "First page", "Second page", "Third page")
    for source in ("big one.pdf pages=2-3", "'big one.pdf' pages=\"2-3\""):
        opened = open_attachment("file", source, LIMITS)
        assert opened.name == "big one.pdf (2-3)"
        seen = fit(opened, SEEING)
        assert sum(part["type"] == "image" for part in seen.parts) == 2
        blind = fit(opened, BLIND)
        text = "".join(part["text"] for part in blind.parts)
        assert "Second page" in text
        assert "First page" not in text


def test_a_model_that_reads_text_only_takes_no_pictures_and_no_videos(folder: Path) -> None:
    write_video(Path("v.mp4"))
    for kind, source in (("image", "on site.png"), ("video", "v.mp4")):
        with pytest.raises(InputError, match="reads text only"):
            fit(open_attachment(kind, source, LIMITS), BLIND)  # type: ignore[arg-type]


def test_a_sound_is_attached_and_named(folder: Path) -> None:
    with wave.open("bell.wav", "wb") as bell:
        bell.setparams((1, 2, 8000, 0, "NONE", ""))
        bell.writeframes(bytes(16_000))
    attachment = fit(open_attachment("audio", "bell.wav", LIMITS), BLIND)
    assert (attachment.kind, attachment.name, attachment.notes) == ("audio", "bell.wav", ("heard",))
    (part,) = attachment.parts
    assert str(part["audio"]).endswith("wav")


def test_a_video_is_sampled_once_and_answered_about_without_its_file(folder: Path) -> None:
    write_video(Path("v.mp4"))
    model = LocalModel(Engine("bundled", dtype="float32"), "bundled")
    attachment = fit(open_attachment("video", "v.mp4", LIMITS), model)
    Path("v.mp4").unlink()
    assert attachment.notes[0] == "4 frames at 2.00 fps of 2.0 s"
    (part,) = attachment.parts
    assert (part["fps"], len(part["video"])) == (2.0, 4)
    messages = Conversation(attached=[attachment]).messages("What happens?")
    inputs = model._engine.processor(messages)
    (video,) = inputs.seen.videos
    assert video.seen_wh == part["video"][0].size, "frames are not resized a second time"
    assert (video.num_frames, video.fps) == (4, 2.0)
    *pieces, end = model.answer(messages, TalkOptions(max_tokens=3))
    assert "".join(piece.text for piece in pieces).strip()
    assert end.num_tokens <= 3


def test_a_sound_is_sent_to_an_endpoint_as_openais_clients_send_it(tmp_path: Path) -> None:
    settings = LookSettings(model="qwen2.5-omni-7b", base_url="http://127.0.0.1:1/v1")
    model = RemoteModel(settings)
    for media_type, form in (("audio/mpeg", "mp3"), ("audio/x-wav", "wav"), ("audio/ogg", "ogg")):
        part = model.hear(b"abc", media_type).part
        assert part == {"type": "input_audio", "input_audio": {"data": "YWJj", "format": form}}
    with (tmp_path / "long.wav").open("wb") as file:
        file.truncate(MAX_SENT_BYTES + 1)
    with pytest.raises(InputError, match="The sound has 50 MB; expected at most 50 MB"):
        model.hear(tmp_path / "long.wav", "audio/wav")
