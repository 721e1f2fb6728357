"""A training recipe: which parts learn from which data, in which stages, at which rates.

A recipe is a TOML file; every key is one of the fields below, and a misspelt one is an error.
Recipes of the released models lie in `recipes/`: `published` names the fields of a stage whose
values its paper gives, everything else in it is ours.
"""

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from qianyan.errors import ConfigError, quote
from qianyan.models.quantize import Kind
from qianyan.train.parts import Part

Schedule = Literal["cosine", "linear", "constant"]
Loss = Literal["answers", "text"]
Form = Literal["auto", "conversations", "labels", "shards"]
Precision = Literal["float32", "bfloat16"]
Export = Literal["whole", "thinker"]
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where samples come from.

    Args:
        path: a file of JSON lines; a COCO file, or a folder of VOC's or YOLO's labels, from which
            inspections are taught; or a tar file or folder of them (WebDataset).
        form: how it is written; auto looks.
        images: the folder that relative paths of pictures start from; None is the usual place.
        weight: how often an epoch takes each sample; 0.5 is every other one, 2 is twice.
        lang: language of the inspections that are taught from labels.
        leave_out: classes of labels that are none of ours.
    """

    path: Path
    form: Form = "auto"
    images: Path | None = None
    weight: float = 1.0
    lang: Literal["zh", "en"] = "zh"
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self, "weight", 0, above=True)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank additions instead of the weights themselves (arXiv 2106.09685).

    Args:
        rank: columns of the factors.
        alpha: the addition is scaled by alpha / rank.
        dropout: share of a layer's inputs that the addition does not see.
        targets: last names of the layers; "all" is every linear layer of the parts in `parts`.
        parts: where to look for them.
    """

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts: tuple[Part, ...] = ("language",)

    def __post_init__(self) -> None:
        _require(self, "rank", 1)
        _require(self, "alpha", 0, above=True)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}; expected 0 to below 1.")
        if not self.targets or not self.parts:
            raise ConfigError("lora has no targets or no parts; expected at least one of each.")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Direct preference optimisation (arXiv 2305.18290): data of pairs instead of answers.

    Args:
        beta: how closely the trained model is held to the one it began as.
        sft_weight: weight of the preferred answer's own loss beside it.
    """

    beta: float = 0.1
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        _require(self, "beta", 0, above=True)
        _require(self, "sft_weight", 0)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates: the highest of each part, and how they rise and fall.

    Args:
        language: of the decoder, of its embeddings, and of every part without a rate of its own.
        vision: of the tower that sees.
        audio: of the tower that hears; None is that of vision.
        merger: of what joins the tower that sees to the decoder: merger, resampler.
        projector: of what joins the tower that hears to it; None is that of merger.
        floor: the lowest rate after the warm-up, as a share of the highest.
        warmup_steps: steps to the highest rate; with 0, `warmup_share` of all steps.
        layer_decay: each block of a tower learns at this share of the rate of the block above it.
    """

    language: float = 1e-5
    vision: float | None = None
    audio: float | None = None
    merger: float | None = None
    projector: float | None = None
    schedule: Schedule = "cosine"
    floor: float = 0.0
    warmup_steps: int = 0
    warmup_share: float = 0.03
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("language", "vision", "audio", "merger", "projector"):
            if getattr(self, name) is not None:
                _require(self, name, 0, above=True)
        _require(self, "warmup_steps", 0)
        for name in ("floor", "warmup_share", "layer_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 to 1.")

    def of(self, part: Part) -> float:
        """Give the highest rate of a part."""
        own = {
            "vision": (self.vision,),
            "audio": (self.audio, self.vision),
            "merger": (self.merger,),
            "projector": (self.projector, self.merger),
        }.get(part, ())
        return next((rate for rate in own if rate is not None), self.language)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (arXiv 1711.05101); norms, biases and single vectors never decay."""

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}; expected two numbers from 0 to below 1.")
        for name in ("eps", "clip"):
            _require(self, name, 0, above=True)
        _require(self, "weight_decay", 0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: the parts that learn, for how long, from how much at once.

    Args:
        train: parts that learn; the others stay as they are to the last bit.
        steps: optimizer steps; None takes `epochs` passes over the data.
        batch: packed sequences that one step learns from, over all devices.
        max_tokens: tokens of a packed sequence, and most tokens of one sample.
        packing: join samples to sequences of up to max_tokens; without it each has its own.
        loss: answers teaches what assistants say; text teaches all text, as pre-training does.
        min_pixels, max_pixels: limits of pictures; None keeps the checkpoint's.
        checkpointing: compute activations a second time instead of keeping them.
        average: decay of a running average of the weights, which is then what is exported; 0 is
            none.
        save_every, evaluate_every: steps between; 0 only at the end.
        published: names of fields, with dots, whose values are the paper's.
    """

    name: str
    train: tuple[Part, ...]
    steps: int | None = None
    epochs: float = 1.0
    batch: int = 8
    max_tokens: int = 4096
    packing: bool = True
    loss: Loss = "answers"
    min_pixels: int | None = None
    max_pixels: int | None = None
    checkpointing: bool = False
    average: float = 0.0
    save_every: int = 500
    evaluate_every: int = 500
    rates: Rates = field(default_factory=Rates)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora | None = None
    preference: Preference | None = None
    data: tuple[Dataset, ...] = ()
    published: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train and self.lora is None:
            raise ConfigError(f"Stage {quote(self.name)} trains nothing; expected parts in train.")
        for name in ("batch", "max_tokens"):
            _require(self, name, 1)
        for name in ("save_every", "evaluate_every"):
            _require(self, name, 0)
        if self.steps is not None:
            _require(self, "steps", 1)
        _require(self, "epochs", 0, above=True)
        if not 0 <= self.average < 1:
            raise ConfigError(f"average is {self.average}; expected 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training: stages one after another, each going on from the one before.

    Args:
        model: checkpoint folder or hub name to begin from; None where the caller says.
        data: samples of stages that name none themselves.
        evaluation: samples that nobody learns from, measured while training.
        precision: numbers that products are computed in; weights and sums stay float32.
        quantize: int8 or int4 keeps the frozen weights so (QLoRA, arXiv 2305.14314); the low-rank
            additions are what learns.
        export: whole writes all that the model began as; thinker leaves out what speaks of a
            Qwen2.5-Omni.
    """

    stages: tuple[Stage, ...]
    model: str | None = None
    data: tuple[Dataset, ...] = ()
    evaluation: tuple[Dataset, ...] = ()
    precision: Precision = "bfloat16"
    quantize: Kind | None = None
    export: Export = "whole"
    seed: int = 0

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"The recipe's stages are {', '.join(names) or 'none'}; expected at least one, "
                "each with a name of its own."
            )
        full = [stage.name for stage in self.stages if stage.train and self.quantize]
        if full:
            raise ConfigError(
                f"Stage {quote(full[0])} trains weights that are kept in codes; with quantize "
                "expected train = [] and lora."
            )
        if len({stage.lora for stage in self.stages} - {None}) > 1:
            raise ConfigError("Two stages have different lora settings; expected the same in all.")

    @property
    def lora(self) -> Lora | None:
        """The low-rank additions, where a stage trains them."""
        return next((stage.lora for stage in self.stages if stage.lora is not None), None)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file, or a released model's by its name, such as qwen2-vl.

    Paths in it are relative to the file. Raises ConfigError.
    """
    built_in = files("qianyan.train").joinpath("recipes", f"{path}.toml")
    file = Path(path)
    try:
        is_named = "/" not in str(path) and not file.exists() and built_in.is_file()
        text = (built_in if is_named else file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The recipe {quote(path)} cannot be read; expected a TOML file or one of "
            f"{', '.join(list_recipes())}."
        ) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The recipe {quote(file.name)} is not TOML: {error}.") from error
    where = "" if is_named else f" of {quote(file.name)}"
    return _build(Recipe, data, f"the recipe{where}", Path() if is_named else file.parent)


def list_recipes() -> list[str]:
    """Name the recipes that come with the package."""
    folder = files("qianyan.train").joinpath("recipes")
    names = (one.name for one in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _build(cls: type[Made], data: Mapping[str, Any], where: str, folder: Path) -> Made:
    """Make a dataclass from a TOML table, and those below it; every key must be a field."""
    hints = get_type_hints(cls)
    known = {one.name: one for one in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"the nearest is {near[0]}" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{quote(key)} in {where} is no setting; {hint}.")
    missing = [
        name
        for name, one in known.items()
        if one.default is MISSING and one.default_factory is MISSING and name not in data
    ]
    if missing:
        raise ConfigError(f"{where} has no {', '.join(missing)}; expected a value.")
    made = {
        name: _value(hints[name], value, f"{name} in {where}", folder)
        for name, value in data.items()
    }
    return cls(**made)


def _value(kind: Any, value: Any, where: str, folder: Path) -> Any:
    """Hold one TOML value against the type of its field."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _value(next(one for one in inside if one is not type(None)), value, where, folder)
    if origin is Literal:
        return _checked(value, value in inside, where, f"one of {', '.join(inside)}")
    if origin is tuple:
        items = _checked(value, isinstance(value, list), where, "a list")
        return tuple(
            _value(inside[0], item, f"{where} [{number}]", folder)
            for number, item in enumerate(items)
        )
    if is_dataclass(kind):
        table = _checked(value, isinstance(value, dict), where, "a table")
        return _build(kind, table, where, folder)  # type: ignore[arg-type]
    if kind is Path:
        return folder / _checked(value, isinstance(value, str), where, "a path")
    if kind is bool:
        return _checked(value, isinstance(value, bool), where, "true or false")
    if kind is int:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return _checked(value, is_int, where, "a whole number")
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_checked(value, is_number, where, "a number"))
    return _checked(value, isinstance(value, str), where, "text")


def _checked(value: Any, is_right: bool, where: str, expected: str) -> Any:
    if not is_right:
        raise ConfigError(f"{where} is {quote(value)}; expected {expected}.")
    return value


def _require(config: object, name: str, least: float, *, above: bool = False) -> None:
    """Refuse a number below `least`, or `least` itself as well."""
    value = getattr(config, name)
    if value < least or (above and value == least):
        raise ConfigError(
            f"{name} is {value}; expected {'more than' if above else 'at least'} {least}."
        )
