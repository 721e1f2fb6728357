"""The pictures, videos and documents of one prompt, in the order in which they appear.

Parts are read as messages are walked; what a model sees of each is kept, resized, until the
prompt's tokens are known. A document becomes parts of text and pictures in its place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from qianyan.errors import CapacityError, InputError
from qianyan.inputs.documents import Document, DocumentLimits, read_document
from qianyan.inputs.fetch import Fetched, FetchLimits, Noun, fetch, find_file
from qianyan.inputs.first_generation import IMAGE_PAD, find_references
from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest
from qianyan.inputs.images import ImageLimits, read_image, upright_rgb
from qianyan.inputs.parts import (
    PictureConfig,
    Source,
    file_source,
    picture_config,
    picture_source,
    video_source,
)
from qianyan.inputs.patches import GridTHW, make_frame_patches, make_patches
from qianyan.inputs.prepared import Prepared, PreparedPictures
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
    """What the model sees of a prompt's pictures and videos, and what documents left out."""

    images: tuple[SeenImage, ...] = ()
    videos: tuple[SeenVideo, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What pictures, videos and documents of one prompt may cost.

    Args:
        max_images: pictures, those out of documents included; frames of videos do not count.
        max_videos: videos, files and lists of frames.
        fetch: of pictures.
        fetch_video: of video files that are not local.
        fetch_document: of documents.
        image: what is accepted as a picture.
        video: what is accepted as a video.
        document: what a document may cost.
    """

    max_images: int = 64
    max_videos: int = 8
    fetch: FetchLimits = field(default_factory=FetchLimits)
    fetch_video: FetchLimits = field(
        default_factory=lambda: FetchLimits(max_bytes=500_000_000, timeout_s=300.0)
    )
    fetch_document: FetchLimits = field(
        default_factory=lambda: FetchLimits(max_bytes=100_000_000, timeout_s=60.0)
    )
    image: ImageLimits = field(default_factory=ImageLimits)
    video: VideoLimits = field(default_factory=VideoLimits)
    document: DocumentLimits = field(default_factory=DocumentLimits)


@dataclass(frozen=True)
class Medium:
    """One picture or video, cut into float32 rows as the model reads them.

    `num_tokens` is what it takes in the prompt. `second_per_grid_t` is the time between two
    temporal patches of a video, None for a picture.
    """

    rows: np.ndarray
    grid: GridTHW
    num_tokens: int
    second_per_grid_t: float | None = None

    @property
    def is_video(self) -> bool:
        """Whether it moves."""
        return self.second_per_grid_t is not None


@dataclass(frozen=True)
class MediumDocument:
    """A document as the parts of a message that it became, and its pictures among the media."""

    name: str
    parts: list[dict[str, Any]]
    pictures: list[Medium]
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


class Media:
    """Collects a prompt's pictures and videos."""

    def __init__(
        self,
        pictures: PictureConfig | None,
        videos: VideoConfig | None,
        limits: MediaLimits,
        *,
        allow_files: bool,
        prepared: PreparedPictures,
        control_words: Sequence[str] = (),
    ) -> None:
        """Start with none; without `pictures` or `videos` the model reads none of them.

        `prepared` are pictures that may have been sent before. `control_words` are the
        tokenizer's: the text of a document is a stranger's, and must not open a turn, close one or
        hold a picture's place.
        """
        self.items: list[Medium] = []
        self.documents: list[MediumDocument] = []
        self._images: list[SeenImage] = []
        self._seen_videos: list[SeenVideo] = []
        self._notes: list[str] = []
        self._pictures = pictures
        self._videos = videos
        self._limits = limits
        self._allow_files = allow_files
        self._prepared = prepared
        self._control_words = control_words

    @property
    def seen(self) -> Seen:
        """What the model sees so far."""
        return Seen(tuple(self._images), tuple(self._seen_videos), tuple(self._notes))

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
        request = VideoRequest.from_part(part, where)
        if isinstance(source, list):
            if len(source) > self._limits.video.max_frames:
                raise CapacityError(
                    f"{where} has {len(source)} frames; expected at most "
                    f"{self._limits.video.max_frames}."
                )
            frames = _Frames(source, self._open_image)
            sampled = read_frames(frames, request, self._videos, self._limits.video)
        else:
            is_allowed = self._allow_files or isinstance(source, Path)
            path = find_file(source) if is_allowed else None
            data = path or self._fetch(source, "video", self._limits.fetch_video).data
            sampled = read_video(data, request, self._videos, self._limits.video)
        patches = self._videos.patches
        grid = patches.video_grid(len(sampled.frames), sampled.record.seen_wh)
        rows = make_frame_patches(sampled.frames, patches)
        self.items.append(Medium(rows, grid, patches.num_tokens(grid), sampled.second_per_grid_t))
        self._seen_videos.append(sampled.record)

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
    def second_per_grid_ts(self) -> tuple[float, ...]:
        """Seconds between two temporal patches, for each video."""
        times = (item.second_per_grid_t for item in self.items)
        return tuple(seconds for seconds in times if seconds is not None)

    def _harmless(self, text: str, name: str) -> str:
        """Break up what the tokenizer would take for a control token, and say so."""
        text, count = break_up(text, self._control_words)
        if count:
            self._notes.append(f"{name}: {count} of the model's control words broken up")
        return text

    def rows(self) -> np.ndarray | None:
        """Give the packed float32 rows of all pictures and videos, in order; None for none."""
        if not self.items:
            return None
        arrays = [item.rows for item in self.items]
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

    def _fetch(self, source: str | Path, noun: Noun, limits: FetchLimits) -> Fetched:
        return fetch(source, limits=limits, allow_files=self._allow_files, noun=noun)


def _cut(seen: Image.Image, config: PictureConfig) -> np.ndarray:
    """Turn a resized picture into the rows of its kind of model."""
    if isinstance(config, SquareConfig):
        return make_squares([seen], config)
    return make_patches([seen], config)
