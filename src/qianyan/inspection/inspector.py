"""Open a way to look: the bundled pair, a local checkpoint, or a model behind an endpoint."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from qianyan import __version__
from qianyan.engine.batch_size import MOST, BatchSize, Need, choose_batch, cores_limit
from qianyan.engine.checkpoint import BUNDLED, BUNDLED_FAST, BUNDLED_FOLDER
from qianyan.engine.desk import Desk
from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import CheckpointError, ConfigError, quote
from qianyan.inputs.fetch import FetchLimits
from qianyan.inputs.grounding import Markup
from qianyan.inputs.images import Photo
from qianyan.inspection.cascade import Cascade, Propose
from qianyan.inspection.detect import TOKENS_BESIDES, TOKENS_PER_OBJECT, Lister
from qianyan.inspection.prompts import (
    MAX_OBJECTS,
    USUAL_FORM,
    AnswerForm,
    ListingForm,
    PromptOrder,
)
from qianyan.inspection.records import Look
from qianyan.inspection.remote.probe import draw_test_picture
from qianyan.inspection.remote.profile import MAX_PIXELS
from qianyan.inspection.remote.vision import RemoteVision
from qianyan.inspection.tiles import MOST_TILES, propose_in_tiles
from qianyan.inspection.two_steps import FIRST_LOOK_TOKENS, TwoSteps
from qianyan.inspection.vision import LocalVision, Vision
from qianyan.inspection.words import Lang
from qianyan.models.detector import MODEL_TYPE, Detector, Proposal, load_detector
from qianyan.models.detector_onnx import SUFFIX, OnnxDetector
from qianyan.models.registry import read_config_json

Way = Literal["auto", "list", "two-step", "cascade", "detector"]
AUTO = 0
"""For `batch`: as many as memory and cores bear."""

MOST_OBJECTS = 100
VISUAL_TOKENS = (64, 16_384)
"""Least and most of `visual_tokens`: a thumbnail, and what the checkpoints allow for a picture."""
# Heads on proposed bodies are believed from this share of the detector's threshold for heads.
HEADS, HEAD_HINT = ("helmet", "head"), 0.25
# Before a judge the detector may be bolder: shares of its own thresholds.
BOLDER = {"fire": 0.7, "person": 0.83}
# General models see small crops badly; the bundled judge was trained on small ones.
CROP_SIDE = 448
# Candidates in a usual picture, of which each is a question of its own, answered with one letter.
QUESTIONS_OF_CASCADE, LETTER = 4, 1
# Parts of a usual picture that are looked at again, of which each is a question of its own.
PARTS_OF_TWO_STEPS = 3
# Pictures of one pass of the detector: four take 0.63 of the time that each takes alone on two
# cores, more of them hardly less.
DETECTED_TOGETHER = 4
# They also judge far better than the small detector proposes, so its certainty counts less.
DETECTOR_WEIGHT = 0.25


@dataclass(frozen=True, kw_only=True)
class LookSettings:
    """Which model looks, and how; what the command line and `qianyan.inspect` take.

    `model` is "bundled", "bundled-fast" (its detector alone), a checkpoint folder, a hub id, a
    folder with `detector/` and `judge/`, or a detector's own folder or ONNX file;
    with `base_url` it is the model's name there (None: the endpoint's first). `look` is "list" (the
    model names boxes), "two-step" (it names boxes in the whole picture, shown small, and again in
    the parts that matter), "cascade" (the detector proposes, the model judges), "detector" (no
    second look) or "auto": the cascade for pairs, else the list. `visual_tokens` bounds what a
    picture costs: the whole picture of a list, the first of two steps (None:
    FIRST_LOOK_TOKENS), all crops of a cascade. `prompt_order` and `answer_form` are those of
    `ListingForm`. `batch` is the number of pictures that a
    model here answers together; AUTO chooses it from memory and cores, and so does "auto" among
    options. `tiles` is how many parts along each side a detector looks at large photos in once
    more; 1: none. `allow_hosts` are hosts that picture URLs may lead to although they are private.
    """

    model: str = BUNDLED
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    device: str = "cpu"
    dtype: str = "auto"
    quantize: str = "none"
    lang: Lang = "zh"
    look: Way = "auto"
    max_objects: int = MAX_OBJECTS
    max_pixels: int | None = None
    visual_tokens: int | None = None
    prompt_order: PromptOrder = "picture-first"
    answer_form: AnswerForm = "objects"
    workers: int = 4
    batch: int = AUTO
    allow_hosts: frozenset[str] = frozenset()
    fetch_timeout_s: float = FetchLimits.timeout_s
    tiles: int = 1

    def __post_init__(self) -> None:
        words = {"lang": Lang, "look": Way, "prompt_order": PromptOrder, "answer_form": AnswerForm}
        for name, allowed in ((name, get_args(kind)) for name, kind in words.items()):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is {quote(getattr(self, name))}; expected {' or '.join(allowed)}."
                )
        limits = (
            ("max_objects", 1, MOST_OBJECTS),
            ("workers", 1, 64),
            ("batch", AUTO, MOST),
            ("tiles", 1, MOST_TILES),
            ("max_pixels", 28**2, 10**8),
            ("visual_tokens", *VISUAL_TOKENS),
            ("fetch_timeout_s", 0.1, 3600),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value}; expected {low} to {high}.")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "LookSettings":
        """Take named options; ConfigError names one that does not exist."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"There is no setting {quote(name)}; expected {', '.join(known)}."
                )
        given = dict(options)
        if "allow_hosts" in given:
            given["allow_hosts"] = frozenset(given["allow_hosts"])
        if "model" in given:
            given["model"] = str(given["model"])
        if "batch" in given:
            given["batch"] = _to_batch(given["batch"])
        return cls(**given)

    @property
    def fetch_limits(self) -> FetchLimits:
        """What fetching a picture may cost and where it may lead."""
        return FetchLimits(allow_private=self.allow_hosts, timeout_s=self.fetch_timeout_s)

    def for_resume(self) -> dict[str, str | int | None]:
        """Name the settings on which verdicts depend; a run is resumed with the same ones."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "look": self.look,
            "lang": self.lang,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "max_objects": self.max_objects,
            "max_pixels": self.max_pixels,
            "visual_tokens": self.visual_tokens,
            "prompt_order": self.prompt_order,
            "answer_form": self.answer_form,
            "tiles": self.tiles,
            "version": __version__,
        }

    @property
    def form(self) -> ListingForm:
        """How a list is asked for."""
        return ListingForm(order=self.prompt_order, answer=self.answer_form)

    @property
    def is_remote(self) -> bool:
        """Whether pictures are sent to an endpoint."""
        return self.base_url is not None


def _to_batch(given: object) -> int:
    """Read a number of pictures, or "auto"."""
    if given == "auto":
        return AUTO
    if isinstance(given, bool) or not str(given).isdecimal() or int(str(given)) == AUTO:
        raise ConfigError(f"batch is {quote(given)}; expected 1 to {MOST}, or auto.")
    return int(str(given))


@dataclass(frozen=True)
class OpenLook:
    """A way to look that is ready, and the name of the model that reports print.

    `look` can be used from many threads; `batch` says how many pictures a model here answers
    together, None for an endpoint. `cascade` is what `look` belongs to, where a detector proposes.
    `engine` runs the model that answers, where that is here; models here are used at the `desk`.
    """

    model: str
    look: Callable[[Photo], Look]
    cascade: Cascade | None = None
    batch: BatchSize | None = None
    engine: Engine | None = None
    desk: Desk = field(default_factory=Desk)


def open_look(settings: LookSettings, *, use_speech: bool = False) -> OpenLook:
    """Load or reach the model that the settings name; `use_speech` where it is to speak as well.

    Raises:
        ConfigError: the settings do not go together.
        CheckpointError: a checkpoint is missing or unusable.
        EndpointError: the endpoint cannot be reached or refuses to work.
    """
    desk = Desk()
    return replace(_open(settings, desk, EngineConfig(use_speech=use_speech)), desk=desk)


def _open(settings: LookSettings, desk: Desk, config: EngineConfig) -> OpenLook:
    pair = None if settings.is_remote else find_pair(settings.model)
    lone = None if settings.is_remote else find_detector(settings.model)
    way = settings.look
    if way == "auto":
        way = "detector" if lone is not None else "cascade" if pair is not None else "list"
    if lone is not None and way != "detector":
        raise ConfigError(
            f"look is {way}, but {quote(settings.model)} is a detector alone; expected detector."
        )
    if way in ("list", "two-step"):
        if settings.tiles > 1:
            raise ConfigError(
                f"tiles is {settings.tiles}, but with --look {way} no detector looks; expected 1."
            )
        if pair is not None:
            raise ConfigError(
                "The bundled judge cannot list boxes; use --look cascade, or --model with a "
                "Qwen2.5-VL checkpoint."
            )
        answer_tokens = TOKENS_PER_OBJECT * settings.max_objects + TOKENS_BESIDES
        questions = PARTS_OF_TWO_STEPS if way == "two-step" else 1
        need = Need(questions=questions, answer_tokens=answer_tokens)
        return _listing(_vision(settings, desk, need, config), settings)
    if settings.form != USUAL_FORM:
        raise ConfigError(
            f"prompt_order is {settings.prompt_order} and answer_form {settings.answer_form}, but "
            f"only lists are asked for in other ways; expected {USUAL_FORM.order} and "
            f"{USUAL_FORM.answer} with --look {way}."
        )
    detector = desk.call(
        _open_detector, lone or (pair or BUNDLED_FOLDER) / "detector", settings.device
    )
    if way == "detector":
        if settings.quantize != "none":
            raise ConfigError(
                f"quantize is {settings.quantize}, but the detector alone has no matrices to "
                "quantise; expected none."
            )
        if settings.visual_tokens is not None:
            raise ConfigError(
                f"visual_tokens is {settings.visual_tokens}, but the detector alone has no visual "
                "tokens; leave it out."
            )
        return _cascade(detector, None, settings, desk, crop_side=None)
    if pair is not None:
        engine = desk.call(
            Engine,
            pair / "judge",
            dtype=_pair_dtype(settings),
            device=settings.device,
            quantize=settings.quantize,
        )
        batch = _seat(engine, desk, settings, CASCADE_NEED)
        judge = _Seated(LocalVision(engine, desk), batch, engine)
        return _cascade(detector, judge, settings, desk, crop_side=None)
    seated = _vision(settings, desk, CASCADE_NEED, config)
    return _cascade(detector, seated, settings, desk, crop_side=CROP_SIDE)


def try_look(settings: LookSettings) -> str:
    """Load a model, show it a drawn picture, and say in one sentence that it works."""
    started = time.monotonic()
    opened = open_look(settings)
    loaded = time.monotonic()
    opened.look(Photo(draw_test_picture(644, 448)))
    return (
        f"{opened.model} works on {settings.device}: loaded in {loaded - started:.1f} s, looked at "
        f"a picture in {time.monotonic() - loaded:.1f} s."
    )


def find_pair(model: str) -> Path | None:
    """Find the folder of a detector and judge that belong together; None for other models."""
    folder = BUNDLED_FOLDER if model == BUNDLED else Path(model)
    if (folder / "detector" / "config.json").is_file():
        return folder
    if model == BUNDLED:
        raise CheckpointError(
            "The bundled models are missing from this installation; install the package again, or "
            "use --model or --base-url."
        )
    return None


def find_detector(model: str) -> Path | None:
    """Find a detector that looks alone, by its name, folder or ONNX file; None for other models."""
    path = BUNDLED_FOLDER / "detector" if model == BUNDLED_FAST else Path(model)
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    if not (path / "config.json").is_file():
        return None
    return path if read_config_json(path).get("model_type") == MODEL_TYPE else None


def require_detector(model: str) -> Path:
    """Find a detector's folder by its own name, or by that of its pair; ConfigError if none is."""
    folder = find_detector(model)
    pair = find_pair(model) if folder is None else None
    if pair is not None:
        folder = pair / "detector"
    if folder is None or not folder.is_dir():
        raise ConfigError(f"{quote(model)} is no detector of ours; expected bundled or a folder.")
    return folder


def require_judge(model: str) -> Path:
    """Find a judge's folder by its own name, or by that of its pair; ConfigError if none is."""
    pair = find_pair(model)
    folder = pair / "judge" if pair is not None else Path(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{quote(model)} is no judge of ours; expected bundled or a folder.")
    return folder


def _open_detector(path: Path, device: str) -> Detector | OnnxDetector:
    """Open a detector's folder on a device, or its ONNX file, which the processor runs."""
    if path.suffix != SUFFIX or path.is_dir():
        return load_detector(path, device=device)
    if device != "cpu":
        raise ConfigError(f"device is {quote(device)}, but ONNX files run here on cpu only.")
    return OnnxDetector(path)


def _pair_dtype(settings: LookSettings) -> str:
    """Run the small judge in single precision: on a processor that is faster than its bf16."""
    return "float32" if settings.dtype == "auto" else settings.dtype


CASCADE_NEED = Need(questions=QUESTIONS_OF_CASCADE, answer_tokens=LETTER)


@dataclass(frozen=True)
class _Seated:
    """A model that can be asked, and about how many pictures at once."""

    vision: Vision
    batch: BatchSize | None = None
    engine: Engine | None = None


def _seat(engine: Engine, desk: Desk, settings: LookSettings, need: Need) -> BatchSize:
    """Choose how many pictures a model answers together, unless that is given."""
    batch = BatchSize(size=settings.batch, limit="given")
    if settings.batch == AUTO:
        batch = choose_batch(engine, need, device=settings.device)
    desk.set_seats(batch.size)
    return batch


def _vision(settings: LookSettings, desk: Desk, need: Need, config: EngineConfig) -> _Seated:
    if settings.base_url is None:
        engine = desk.call(
            Engine,
            settings.model,
            dtype=settings.dtype,
            device=settings.device,
            quantize=settings.quantize,
            max_pixels=settings.max_pixels or MAX_PIXELS,
            config=config,
        )
        return _Seated(LocalVision(engine, desk), _seat(engine, desk, settings, need), engine)
    vision = RemoteVision(
        settings.base_url,
        None if settings.model == BUNDLED else settings.model,
        settings.api_key,
        concurrency=settings.workers,
    )
    if settings.max_pixels is not None:
        vision.profile = vision.profile.within(settings.max_pixels)
    return _Seated(vision)


def _listing(seated: _Seated, settings: LookSettings) -> OpenLook:
    vision = seated.vision
    is_plain = (settings.look, settings.visual_tokens) in {("auto", None), ("list", None)}
    if vision.markup is Markup.REF and (not is_plain or settings.form != USUAL_FORM):
        raise ConfigError(
            f"{vision.name} sees every picture in one size and marks places in its own words; "
            "expected --look list without visual_tokens, prompt_order and answer_form."
        )
    lister = Lister(
        vision=vision,
        lang=settings.lang,
        max_objects=settings.max_objects,
        visual_tokens=settings.visual_tokens,
        form=settings.form,
    )
    if settings.look != "two-step":
        return OpenLook(vision.name, lister.look, batch=seated.batch, engine=seated.engine)
    two = TwoSteps(
        seer=lister,
        lang=settings.lang,
        max_objects=settings.max_objects,
        visual_tokens=settings.visual_tokens or FIRST_LOOK_TOKENS,
    )
    return OpenLook(vision.name, two.look, batch=seated.batch, engine=seated.engine)


def _cascade(
    detector: Detector | OnnxDetector,
    seated: _Seated | None,
    settings: LookSettings,
    desk: Desk,
    *,
    crop_side: int | None,
) -> OpenLook:
    judge = None if seated is None else seated.vision
    limits = detector.config.thresholds
    batch = _detector_batch(settings) if seated is None else seated.batch
    together = DETECTED_TOGETHER if batch is None else min(DETECTED_TOGETHER, batch.size)
    cascade = Cascade(
        propose=partial(
            propose_in_tiles,
            _proposing(detector, {} if judge is None else BOLDER, desk, at_once=together),
            num_tiles=settings.tiles,
            seen_side=detector.config.image_size,
        ),
        alone=limits,
        probability=detector.config.probability,
        judge=judge,
        lang=settings.lang,
        max_objects=settings.max_objects,
        crop_side=crop_side,
        detector_weight=1.0 if crop_side is None else DETECTOR_WEIGHT,
        visual_tokens=settings.visual_tokens,
    )
    name = settings.model if judge is None or not settings.is_remote else judge.name
    return OpenLook(name, cascade.look, cascade, batch, None if seated is None else seated.engine)


def _detector_batch(settings: LookSettings) -> BatchSize:
    """Keep as many pictures in hand as cores can prepare while a detector looks."""
    if settings.batch != AUTO:
        return BatchSize(size=settings.batch, limit="given")
    return BatchSize(size=cores_limit(torch.device(settings.device)), limit="cores")


def _proposing(
    detector: Detector | OnnxDetector, shares: Mapping[str, float], desk: Desk, *, at_once: int
) -> Propose:
    """Have the detector propose from these shares of its thresholds up, and heads from a hint."""
    shares = {**dict.fromkeys(HEADS, HEAD_HINT), **shares}
    limits = {
        kind: shares.get(kind, 1) * limit for kind, limit in detector.config.thresholds.items()
    }

    look = desk.share(partial(detector.propose_together, threshold=limits), at_once=at_once)

    def propose(rgb: NDArray[np.uint8]) -> list[Proposal]:
        return look(detector.fit(rgb))

    return propose
