"""What is known about an endpoint's model: how it counts coordinates, what it can be asked for.

`doctor` measures a profile and saves it; without one it is guessed from the model's name. Saved
profiles lie in one JSON file under the user's configuration folder, one entry for each pair of
address and model. API keys are never stored.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import typer

from qianyan.errors import ConfigError
from qianyan.inputs.grounding import Notation

SCHEMA = "qianyan.endpoints/1"
PIXELS_PER_TOKEN = 28 * 28
MIN_PIXELS = 256 * PIXELS_PER_TOKEN  # below about 320x320 boxes are biased (QwenLM/Qwen3-VL#721)
MAX_PIXELS = 1280 * PIXELS_PER_TOKEN  # the model card's upper end; larger pictures ground worse
MIN_IOU = 0.5

# The model's own box notation by generation (specs of the model cards; confirm with `doctor`).
_FAMILIES: tuple[tuple[str, Notation, int], ...] = (
    (r"qwen[-_ ]?2[._]5[-_ ]?(vl|omni)", Notation.RESIZED_PIXELS, 28),
    (r"qwen[-_ ]?3([._]\d+)?([-_ ]|$)", Notation.RELATIVE_1000, 32),
    (r"qwen[-_ ]?2[-_ ]?vl", Notation.RELATIVE_BELOW_1000, 28),
    (r"qwen[-_ ]?vl[-_ ]?chat", Notation.RELATIVE_1000, 28),
)


@dataclass(frozen=True, kw_only=True)
class EndpointProfile:
    """How to talk to one model at one address.

    Pictures are sent in multiples of `factor` with an area of `min_pixels` to `max_pixels`, so
    that the server does not resize them and pixel coordinates are ours. `has_schema`,
    `has_logprobs` and `has_penalty` are None while unknown: then they are tried. `has_stream` says
    that answers arrive piece by piece, so that one without a schema can be ended early; unknown, it
    is not tried. `extra` are
    further fields of the request body that this endpoint wants, written by hand into the file.
    What the probe measured: `iou` and `next_iou`, how well the notation and the next best one fit;
    the largest picture whose boxes still fitted and the smallest one refused; the median time and
    the tokens of one picture; how many of its questions got an unreadable answer.
    """

    base_url: str
    model: str
    notation: Notation = Notation.RESIZED_PIXELS
    factor: int = 28
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    has_schema: bool | None = None
    has_logprobs: bool | None = None
    has_penalty: bool | None = None
    has_stream: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: Literal["guessed", "probed"] = "guessed"
    iou: float | None = None
    next_iou: float | None = None
    largest_fitting_pixels: int | None = None
    refused_pixels: int | None = None
    latency_s: float | None = None
    tokens_per_picture: int | None = None
    num_asked: int = 0
    num_unreadable: int = 0
    probed_at: str | None = None

    def __post_init__(self) -> None:
        where = f"The profile of {self.model} at {self.base_url}"
        if self.factor < 1 or self.max_pixels < self.factor**2:
            raise ConfigError(
                f"{where} has factor {self.factor} and max_pixels {self.max_pixels}; "
                "expected room for at least one square of the factor."
            )
        if not 0 <= self.min_pixels <= self.max_pixels:
            raise ConfigError(
                f"{where} has min_pixels {self.min_pixels}; "
                f"expected 0 to max_pixels ({self.max_pixels})."
            )
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    def within(self, max_pixels: int) -> "EndpointProfile":
        """Make a profile that sends pictures of at most `max_pixels`."""
        return replace(self, max_pixels=max_pixels, min_pixels=min(self.min_pixels, max_pixels))

    def without(self, *options: str) -> "EndpointProfile":
        """Make a profile that no longer asks for these options, such as "has_schema"."""
        changes: dict[str, Any] = dict.fromkeys(options, False)
        return replace(self, **changes)

    @property
    def can_place_boxes(self) -> bool:
        """Whether the probe, if there was one, found out where the model's boxes lie."""
        return self.iou is None or self.iou >= MIN_IOU


def guess_profile(base_url: str, model: str) -> EndpointProfile:
    """Guess from the model's name; unknown names are taken for Qwen2.5-VL."""
    name = model.lower()
    for pattern, notation, factor in _FAMILIES:
        if re.search(pattern, name):
            return EndpointProfile(
                base_url=base_url,
                model=model,
                notation=notation,
                factor=factor,
                min_pixels=256 * factor**2,
                max_pixels=1280 * factor**2,
            )
    return EndpointProfile(base_url=base_url, model=model)


def profiles_path() -> Path:
    """Name the file of saved profiles in the user's configuration folder."""
    return Path(typer.get_app_dir("qianyan")) / "endpoints.json"


def find_profile(base_url: str, model: str, *, path: Path | None = None) -> EndpointProfile | None:
    """Find the saved profile of a model at an address, or None."""
    for profile in load_profiles(path):
        if (profile.base_url, profile.model) == (normal_url(base_url), model):
            return profile
    return None


def load_profiles(path: Path | None = None) -> list[EndpointProfile]:
    """Read all saved profiles; none when the file is missing.

    Raises ConfigError for a file that is not one of ours.
    """
    path = path or profiles_path()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"The profile file {path} cannot be read. {_WAY_OUT}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ConfigError(f"The profile file {path} is not of the form {SCHEMA}. {_WAY_OUT}")
    return [_from_json(entry, path) for entry in data.get("endpoints", [])]


def save_profile(profile: EndpointProfile, *, path: Path | None = None) -> Path:
    """Add a profile to the file, in place of an older one of the same model and address."""
    path = path or profiles_path()
    key = (profile.base_url, profile.model)
    others = [one for one in load_profiles(path) if (one.base_url, one.model) != key]
    entries = [_to_json(one) for one in [*others, profile]]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    text = json.dumps({"schema": SCHEMA, "endpoints": entries}, ensure_ascii=False, indent=2)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)  # at once: a reader sees the old file or the new one
    return path


def normal_url(base_url: str) -> str:
    """Bring an address into the form that profiles are found by."""
    return base_url.strip().rstrip("/")


_WAY_OUT = "Delete it and run 'qianyan doctor' again."


def _to_json(profile: EndpointProfile) -> dict[str, Any]:
    entry = {one.name: getattr(profile, one.name) for one in fields(profile)}
    return {**entry, "extra": dict(profile.extra), "notation": profile.notation.value}


def _from_json(entry: Any, path: Path) -> EndpointProfile:
    try:
        return EndpointProfile(**{**entry, "notation": Notation(entry["notation"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"The profile file {path} has an unusable entry. {_WAY_OUT}") from error
