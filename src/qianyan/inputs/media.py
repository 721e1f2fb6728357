"""The pictures, videos, sounds and documents of one prompt, in the order in which they appear.

Parts are read as messages are walked; what a model sees of each is kept, resized, until the
prompt's tokens are known. A document becomes parts of text and pictures in its place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from qianyan.errors import CapacityError, InputError, MediaError
from qianyan.inputs.documents import Document, DocumentLimits, read_document
from qianyan.inputs.fetch import Fetched, FetchLimits, Noun, fetch, find_file
from qianyan.inputs.first_generation import IMAGE_PAD, find_references
from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest
from qianyan.inputs.growing import SoundSoFar
from qianyan.inputs.images import ImageLimits, read_image, upright_rgb
from qianyan.inputs.medium import Heard, Medium
from qianyan.inputs.mel import MelConfig, log_mel
from qianyan.inputs.parts import (
    PictureConfig,
    Source,
    audio_source,
    file_source,
    picture_config,
    picture_source,
    sound_beside,
    video_source,
)
from qianyan.inputs.patches import make_frame_patches, make_patches
from qianyan.inputs.prepared import Prepared, PreparedPictures
from qianyan.inputs.sound import AudioLimits, HeardAudio, Sound, read_sound, read_soundtrack
from qianyan.inputs.squares import SquareConfig, make_squares
from qianyan.inputs.strangers import break_up
from qianyan.inputs.video import SeenVideo, read_frames, read_video


@dataclass(frozen=True)
class SeenImage:
    """One picture of a prompt: its own size and the size the model sees it in, (width, height)."""

    photo_wh: tuple[int, int]
    seen_wh: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What the model sees and hears of a prompt, and what documents left out.

    `audios` are sounds and what is heard of videos, in order.
    """

    images: tuple[SeenImage, ...] = ()
    videos: tuple[SeenVideo, ...] = ()
    notes: tuple[str, ...] = ()
    audios: tuple[HeardAudio, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What pictures, videos, sounds and documents of one prompt may cost.

    Args:
        max_images: pictures, those out of documents included; frames of videos do not count.
        max_videos: videos, files and lists of frames.
        max_audios: sounds, those of videos included.
        max_audio_s: seconds of all sounds together.
        fetch: of pictures.
        fetch_video: of video files that are not local.
        fetch_audio: of sound files that are not local.
        fetch_document: of documents.
        image: what is accepted as a picture.
        video: what is accepted as a video.
        audio: what is accepted as a sound.
        document: what a document may cost.
    """

    max_images: int = 64
    max_videos: int = 8
    max_audios: int = 16
    max_audio_s: float = 3600.0
    fetch: FetchLimits = field(default_factory=FetchLimits)
    fetch_video: FetchLimits = field(
        default_factory=lambda: FetchLimits(max_bytes=500_000_000, timeout_s=300.0)
    )
    fetch_audio: FetchLimits = field(
        default_factory=lambda: FetchLimits(max_bytes=200_000_000, timeout_s=120.0)
    )
    fetch_document: FetchLimits = field(
        default_factory=lambda: FetchLimits(max_bytes=100_000_000, timeout_s=60.0)
    )
    image: ImageLimits = field(default_factory=ImageLimits)
    video: VideoLimits = field(default_factory=VideoLimits)
    audio: AudioLimits = field(default_factory=AudioLimits)
    document: DocumentLimits = field(default_factory=DocumentLimits)


@dataclass(frozen=True)
class MediumDocument:
    """A document as the parts of a message that it became, and its pictures among the media."""

    name: str
    parts: list[dict[str, Any]]
    pictures: list[Medium | Heard]
    images: list[SeenImage]

    @property
    def text(self) -> str:
        """All its text, without a first line that only says its name."""
        texts = "\n\n".join(part["text"] for part in self.parts if part["type"] == "text")
        return texts.removeprefix(f"[{self.name}]").lstrip("\n")

    def write(self, text: str) -> None:
        """Put another text in place of its own; pictures have been dropped before."""
        texts = [part for part in self.parts if part["type"] == "text"]
        for part in texts:
            part["text"] = ""
        texts[0]["text"] = text


class _Frames(Sequence[Image.Image]):
    """The frames of a list, each read when it is asked for: many large ones would fill memory."""

    def __init__(self, sources: Sequence[Source], read: Callable[[Source], "_Opened"]) -> None:
        self._sources, self._read = sources, read

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[Image.Image]": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | Sequence[Image.Image]":
        if isinstance(index, slice):
            return _Frames(self._sources[index], self._read)
        return self._read(self._sources[index])[0]


_Opened = tuple[Image.Image, tuple[str, ...]]


@dataclass(frozen=True)
class Senses:
    """How a checkpoint wants what is no text; None for what it does not read."""

    pictures: PictureConfig | None = None
    videos: VideoConfig | None = None
    sounds: MelConfig | None = None


class Media:
    """Collects a prompt's pictures, videos and sounds."""

    def __init__(
        self,
        senses: Senses,
        limits: MediaLimits,
        *,
        allow_files: bool,
        prepared: PreparedPictures,
        control_words: Sequence[str] = (),
    ) -> None:
        """Start with none.

        `prepared` are pictures that may have been sent before. `control_words` are the
        tokenizer's: the text of a document is a stranger's, and must not open a turn, close one or
        hold a picture's place.
        """
        self.items: list[Medium | Heard] = []
        self.documents: list[MediumDocument] = []
        self._images: list[SeenImage] = []
        self._seen_videos: list[SeenVideo] = []
        self._audios: list[HeardAudio] = []
        self._notes: list[str] = []
        self._pictures, self._videos, self._sounds = senses.pictures, senses.videos, senses.sounds
        self._limits = limits
        self._allow_files = allow_files
        self._prepared = prepared
        self._control_words = control_words

    @property
    def seen(self) -> Seen:
        """What the model sees so far."""
        return Seen(
            tuple(self._images),
            tuple(self._seen_videos),
            tuple(self._notes),
            tuple(self._audios),
        )

    def add_text(self, text: str, where: str) -> None:
        """Read the pictures that a text names between <img> and </img> (first generation only)."""
        if not isinstance(self._pictures, SquareConfig):
            return
        for reference in find_references(text):
            if reference == IMAGE_PAD:
                raise InputError(
                    f"{where} contains {IMAGE_PAD}, the model's own placeholder for pictures. "
                    "Remove it and send pictures as image_url parts."
                )
            self._keep_image(reference, self._pictures, where)

    def add_image(self, part: Mapping[str, Any], where: str) -> None:
        """Read one picture and resize it to what the model will see."""
        source = picture_source(part, where)
        config = picture_config(part, self._need_pictures(where), where)
        self._keep_image(source, config, where)

    def add_video(self, part: Mapping[str, Any], where: str) -> None:
        """Sample one video, a file or a list of frames."""
        source = video_source(part, where)
        if self._videos is None:
            seen = "pictures but no videos" if self._pictures else "text only"
            raise InputError(f"{where} is a video; this model reads {seen}.")
        if len(self._seen_videos) >= self._limits.max_videos:
            raise CapacityError(
                f"The messages hold more than {self._limits.max_videos} videos. Send fewer."
            )
        request, heard = VideoRequest.from_part(part, where), None
        if isinstance(source, list):
            if len(source) > self._limits.video.max_frames:
                raise CapacityError(
                    f"{where} has {len(source)} frames; expected at most "
                    f"{self._limits.video.max_frames}."
                )
            frames = _Frames(source, self._open_image)
            sampled = read_frames(frames, request, self._videos, self._limits.video)
            beside = sound_beside(part, where)
            heard = None if beside is None else self._take_in(beside, where)
        else:
            data = self._find(source) or self._fetch(source, "video", self._limits.fetch_video).data
            sampled = read_video(data, request, self._videos, self._limits.video)
            heard = self._listen(data, request)
        patches = self._videos.patches
        grid = patches.video_grid(len(sampled.frames), sampled.record.seen_wh)
        rows = make_frame_patches(sampled.frames, patches)
        self.items.append(
            Medium(rows, grid, patches.num_tokens(grid), sampled.second_per_grid_t, heard)
        )
        self._seen_videos.append(sampled.record)

    def add_audio(self, part: Mapping[str, Any], where: str) -> None:
        """Read one sound, a file of its own or that of a video."""
        if self._sounds is None:
            raise InputError(f"{where} is a sound; this model does not hear.")
        source = audio_source(part, where)
        if isinstance(source, SoundSoFar):
            self.items.append(self._take_in(source, where))
            return
        if isinstance(source, bytes):
            data: bytes | Path = source
        else:
            data = self._find(source) or self._fetch(source, "sound", self._limits.fetch_audio).data
        sound = read_sound(data, self._sounds.sampling_rate, self._limits.audio)
        self.items.append(self._hear(sound, self._sounds))

    def _listen(self, data: bytes | Path, request: VideoRequest) -> Heard | None:
        """Read what is heard of a video, unless it is not wanted or the model does not hear.

        Unasked, a sound that cannot be read is left out with a note.
        """
        wanted = request.use_audio_in_video
        if self._sounds is None and wanted:
            raise request.refused("use_audio_in_video", "false, as this model does not hear")
        if self._sounds is None or wanted is False:
            return None
        try:
            sound = read_soundtrack(
                data,
                self._sounds.sampling_rate,
                self._limits.audio,
                start_s=request.video_start or 0.0,
                end_s=request.video_end,
            )
        except MediaError as error:
            if wanted:
                raise
            self.note(f"{request.where} is seen and not heard: {error}")
            return None
        if sound is None and wanted:
            raise MediaError(
                f"{request.where} has no sound to be heard; expected some with use_audio_in_video. "
                "Leave that out.",
                code="no_sound",
            )
        return None if sound is None else self._hear(sound, self._sounds)

    def _hear(self, sound: Sound, config: MelConfig) -> Heard:
        self._note_heard(sound.record)
        return Heard(log_mel(sound.samples, config))

    def _take_in(self, sound: SoundSoFar, where: str) -> Heard:
        """Take what was heard already, of this model's kind."""
        if self._sounds is None or sound.frames.shape[1] != self._sounds.feature_size:
            raise InputError(f"{where} holds a sound; expected none that this model cannot hear.")
        self._note_heard(sound.record)
        return Heard(sound.frames)

    def _note_heard(self, record: HeardAudio) -> None:
        """Keep a sound's record; raise CapacityError where sounds are too many or too long."""
        if len(self._audios) >= self._limits.max_audios:
            raise CapacityError(
                f"The messages hold more than {self._limits.max_audios} sounds. Send fewer."
            )
        if sum(one.duration_s for one in (*self._audios, record)) > self._limits.max_audio_s:
            raise CapacityError(
                f"The messages hold more than {self._limits.max_audio_s / 60:g} minutes of sound. "
                "Send less."
            )
        self._audios.append(record)

    def add_document(self, part: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """Read a document into parts for the template: text, and pictures where they are seen."""
        document = self._read_document(part, where)
        self._notes += [f"{document.name}: {note}" for note in document.notes]
        parts: list[dict[str, Any]] = []
        num_items, num_images = len(self.items), len(self._images)
        for piece in document.parts:
            if isinstance(piece, str):
                parts.append({"type": "text", "text": self._harmless(piece, document.name)})
            else:
                self._keep_image(piece, self._need_pictures(where), where)
                parts.append({"type": "image"})
        pictures, images = self.items[num_items:], self._images[num_images:]
        self.documents.append(MediumDocument(document.name, parts, pictures, images))
        return parts

    def _read_document(self, part: Mapping[str, Any], where: str) -> Document:
        source, name, pages = file_source(part, where)
        if callable(source):
            return source(self._pictures is not None)
        fetched = self._fetch(source, "document", self._limits.fetch_document)
        return read_document(
            fetched.data,
            name=name or fetched.name,
            media_type=fetched.media_type,
            limits=self._limits.document,
            wants_pictures=self._pictures is not None,
            pages=pages,
        )

    def drop_pictures(self, document: MediumDocument) -> None:
        """Forget a document's pictures, and say so."""
        if document.pictures:
            gone = {id(one) for one in (*document.pictures, *document.images)}
            self.items = [item for item in self.items if id(item) not in gone]
            self._images = [image for image in self._images if id(image) not in gone]
            self.note(f"{document.name}: {len(document.pictures)} pictures not shown for length")

    def note(self, text: str) -> None:
        """Say what was left out."""
        self._notes.append(text)

    @property
    def seen_items(self) -> list[Medium]:
        """The pictures and videos among the items."""
        return [item for item in self.items if isinstance(item, Medium)]

    @property
    def heard_frames(self) -> list[np.ndarray]:
        """The mel frames of each sound, those of videos included."""
        heard = (item if isinstance(item, Heard) else item.heard for item in self.items)
        return [one.frames for one in heard if one is not None]

    @property
    def second_per_grid_ts(self) -> tuple[float, ...]:
        """Seconds between two temporal patches, for each video."""
        times = (item.second_per_grid_t for item in self.seen_items)
        return tuple(seconds for seconds in times if seconds is not None)

    def _harmless(self, text: str, name: str) -> str:
        """Break up what the tokenizer would take for a control token, and say so."""
        text, count = break_up(text, self._control_words)
        if count:
            self._notes.append(f"{name}: {count} of the model's control words broken up")
        return text

    def rows(self) -> np.ndarray | None:
        """Give the packed float32 rows of all pictures and videos, in order; None for none."""
        arrays = [item.rows for item in self.seen_items]
        if not arrays:
            return None
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _need_pictures(self, where: str) -> PictureConfig:
        if self._pictures is None:
            raise InputError(f"{where} is a picture; this model reads text only.")
        return self._pictures

    def _keep_image(self, source: Source, config: PictureConfig, where: str) -> None:
        if len(self._images) >= self._limits.max_images:
            raise CapacityError(
                f"{where} is one picture more than {self._limits.max_images}. Send fewer."
            )
        shown = self._prepare(source, config)
        grid = config.grid(shown.seen.size)
        self.items.append(Medium(_cut(shown.seen, config), grid, config.num_tokens(grid)))
        self._images.append(SeenImage(shown.photo_wh, shown.seen.size, shown.notes))

    def _prepare(self, source: Source, config: PictureConfig) -> Prepared:
        if isinstance(source, Image.Image):
            rgb = upright_rgb(source)
            return Prepared(rgb.resize(config.seen_size(*rgb.size), config.resample), rgb.size)
        data = self._fetch(source, "picture", self._limits.fetch).data
        return self._prepared.prepare(data, config, self._limits.image)

    def _open_image(self, source: Source) -> _Opened:
        if isinstance(source, Image.Image):
            return upright_rgb(source), ()
        fetched = self._fetch(source, "picture", self._limits.fetch)
        photo = read_image(fetched.data, limits=self._limits.image)
        return photo.rgb, photo.notes

    def _find(self, source: str | Path) -> Path | None:
        """Take what may name a local file as such; None for what is to be fetched."""
        is_allowed = self._allow_files or isinstance(source, Path)
        return find_file(source) if is_allowed else None

    def _fetch(self, source: str | Path, noun: Noun, limits: FetchLimits) -> Fetched:
        return fetch(source, limits=limits, allow_files=self._allow_files, noun=noun)


def _cut(seen: Image.Image, config: PictureConfig) -> np.ndarray:
    """Turn a resized picture into the rows of its kind of model."""
    if isinstance(config, SquareConfig):
        return make_squares([seen], config)
    return make_patches([seen], config)
