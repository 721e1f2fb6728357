"""What a caller may ask of one answer: options in, frozen Sampling out.

An option given by the caller wins, then the checkpoint's generation_config.json, then greedy
decoding. Names are those of the OpenAI API where it has one. This is the only place that checks
them; scheduler and sampler trust what they get.
"""

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from qianyan.engine.loops import DEFAULT_LOOP_TOKENS
from qianyan.errors import CapacityError, InputError, quote
from qianyan.inputs.tokenizer import read_json

DEFAULT_MAX_TOKENS = 2048
"""Length of an answer when the caller states none and the model has room for it."""
THINKING_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_SEED = 2**63 - 1
MAX_PRIORITY = 100
MAX_THINKING_BUDGET = 1_000_000
MIN_LOOP_TOKENS = 64
MAX_LOOP_TOKENS = 1_000_000
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100


class ChatOptions(TypedDict, total=False):
    """Keyword arguments of `Engine.chat`, `stream` and `chat_many`; None means not given.

    `max_tokens` bounds the answer, `max_completion_tokens` the answer and the reasoning before it,
    `thinking_budget` the reasoning. `stop` ends the answer before one of its texts, or before what
    one of its token ids or lists of ids spells. So many `loop_tokens` of one stretch over and over
    end the answer, 2048 without, never at 0. `priority` is 0 without; requests of smaller numbers
    go first, down to -MAX_PRIORITY.
    """

    max_tokens: int | None
    max_completion_tokens: int | None
    thinking_budget: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: dict[int, float] | dict[str, float] | None
    loop_tokens: int | None
    seed: int | None
    stop: str | list[str] | list[int] | list[list[int]] | None
    logprobs: int | None
    response_format: dict[str, Any] | None
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None
    parallel_tool_calls: bool | None
    enable_thinking: bool | None
    priority: int | None


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a checkpoint's generation_config.json says, temperature 0 where it does not sample."""

    stop_token_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is drawn, and before whom, every value checked.

    temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 keep all tokens; a
    `logit_bias` is added to the logits of its tokens; `logprobs` None
    records none, n records the n likeliest tokens of each step and the chosen one. `max_tokens`
    counts the answer, `max_completion_tokens` all that comes (None: the same tokens), and
    `thinking_budget` the reasoning, None without end. `loop_tokens` of repetition end the answer,
    0 never.
    """

    max_tokens: int
    max_completion_tokens: int | None = None
    thinking_budget: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default=frozenset())
    logprobs: int | None = None
    priority: int = 0
    loop_tokens: int = DEFAULT_LOOP_TOKENS

    @property
    def max_output_tokens(self) -> int:
        """Tokens that may come at most, reasoning and answer together."""
        most = self.max_completion_tokens
        return self.max_tokens if most is None else most


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What a prompt and its answer have to fit into, in tokens; the names are EngineConfig's."""

    max_model_len: int
    max_cache_tokens: int

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer together."""
        return min(self.max_model_len, self.max_cache_tokens)

    def explain(self) -> str:
        """Say which limit binds, as the end of a sentence."""
        if self.max_cache_tokens < self.max_model_len:
            return (
                f"max_cache_tokens is {self.max_cache_tokens}, "
                f"and the model could take {self.max_model_len}"
            )
        return f"the model's length is {self.max_model_len}"


@dataclass(frozen=True, kw_only=True)
class PromptSize:
    """Tokens of a prompt; `num_vision_tokens` of them stand for pictures and videos.

    `num_audio_tokens` of them stand for sounds.
    """

    num_tokens: int
    num_vision_tokens: int = 0
    num_audio_tokens: int = 0


def check_names(options: ChatOptions) -> None:
    """Refuse an option that does not exist, naming the nearest one that does."""
    for name in options:
        if name not in ChatOptions.__annotations__:
            near = difflib.get_close_matches(name, ChatOptions.__annotations__, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            known = ", ".join(sorted(ChatOptions.__annotations__))
            raise InputError(f"{quote(name)} is not an option; expected one of {known}.{hint}")


def prompt_room(options: ChatOptions, lengths: Lengths) -> int:
    """Say how many tokens a prompt may take so that its answer still fits.

    Without a length of its own an answer is left DEFAULT_MAX_TOKENS, at most a quarter of all.
    """
    stated = [options.get("max_tokens"), options.get("max_completion_tokens")]
    asked = [number for number in stated if isinstance(number, int)]
    answer = max(asked, default=min(DEFAULT_MAX_TOKENS, lengths.limit // 4))
    return max(1, lengths.limit - answer)


def to_sampling(
    options: ChatOptions,
    defaults: GenerationDefaults,
    *,
    prompt: PromptSize,
    lengths: Lengths,
    closing_tokens: int | None = None,
    vocab_size: int | None = None,
) -> Sampling:
    """Merge the caller's options with the checkpoint's defaults and check every value.

    Where the model may think, `closing_tokens` is the size of the words that end a reasoning, and
    `max_tokens` leaves the reasoning uncounted. Raises InputError for
    a value outside its range, CapacityError when prompt and answer cannot both fit.
    """
    given = {name: value for name, value in options.items() if value is not None}
    numbers: dict[str, Any] = {
        "temperature": _number(given, "temperature", defaults.temperature, 0, 2),
        "top_p": _number(given, "top_p", defaults.top_p, 0, 1, above_low=True),
        "top_k": _integer(given, "top_k", defaults.top_k, 0, 1_000_000),
        "repetition_penalty": _number(
            given, "repetition_penalty", defaults.repetition_penalty, 0, 10, above_low=True
        ),
        "presence_penalty": _number(given, "presence_penalty", 0.0, -2, 2),
        "frequency_penalty": _number(given, "frequency_penalty", 0.0, -2, 2),
        "min_p": _number(given, "min_p", defaults.min_p, 0, 1),
    }
    answer = _lengths(given, prompt, lengths, may_think=closing_tokens is not None)
    room = lengths.limit - prompt.num_tokens - (closing_tokens or 0)
    return Sampling(
        **answer,
        thinking_budget=_thinking_budget(given, answer["max_tokens"], room),
        seed=_optional(given, "seed", 0, MAX_SEED),
        logit_bias=_logit_bias(given.get("logit_bias", {}), vocab_size),
        stop=_stops(given.get("stop", ())),
        stop_token_ids=defaults.stop_token_ids,
        logprobs=_optional(given, "logprobs", 0, MAX_LOGPROBS),
        loop_tokens=_loop_tokens(given),
        priority=_integer(given, "priority", 0, -MAX_PRIORITY, MAX_PRIORITY),
        **numbers,
    )


def read_generation_defaults(
    folder: Path,
    *,
    eos_token_id: int | None,
    extra_stop_ids: frozenset[int] = frozenset(),
    is_thinking: bool = False,
) -> GenerationDefaults:
    """Read generation_config.json, and from config.json the stop tokens that it does not name.

    Args:
        folder: the checkpoint.
        eos_token_id: the tokenizer's, the last resort.
        extra_stop_ids: what ends an answer beside those.
        is_thinking: whether the model thinks before it answers; without the file it samples
            then, because greedy reasoning runs in loops (Qwen3 and QwQ model cards).
    """
    generation = read_json(folder / "generation_config.json")
    config = read_json(folder / "config.json")
    stops = _first(
        generation.get("eos_token_id"),
        config.get("eos_token_id"),
        (config.get("text_config") or {}).get("eos_token_id"),
        eos_token_id,
        [],
    )
    if is_thinking and not generation:
        generation = THINKING_SAMPLING
    samples = bool(generation.get("do_sample"))
    return GenerationDefaults(
        stop_token_ids=frozenset([stops] if isinstance(stops, int) else stops) | extra_stop_ids,
        temperature=_first(generation.get("temperature"), 1.0) if samples else 0.0,
        top_p=_first(generation.get("top_p"), 1.0) if samples else 1.0,
        top_k=_first(generation.get("top_k"), 0) if samples else 0,
        min_p=_first(generation.get("min_p"), 0.0) if samples else 0.0,
        repetition_penalty=_first(generation.get("repetition_penalty"), 1.0),
    )


def _lengths(
    given: dict[str, Any], prompt: PromptSize, lengths: Lengths, *, may_think: bool
) -> dict[str, int]:
    """Say how long the answer may become, and where it differs, how much may come in all."""
    room = lengths.limit - prompt.num_tokens
    if room < 1:
        raise CapacityError(_too_long(prompt, lengths))
    asked = {
        name: _length(given[name], name, prompt, lengths)
        for name in ("max_tokens", "max_completion_tokens")
        if name in given
    }
    most = asked.get("max_completion_tokens", room)
    answer = asked.get("max_tokens", most if "max_completion_tokens" in asked else None)
    answer = min(most, DEFAULT_MAX_TOKENS if answer is None else answer)
    return {"max_tokens": answer} | ({"max_completion_tokens": most} if may_think else {})


def _thinking_budget(given: dict[str, Any], max_tokens: int, room: int) -> int | None:
    """Leave the answer its length behind the reasoning, half of what there is room for at most."""
    budget = _optional(given, "thinking_budget", 0, MAX_THINKING_BUDGET)
    if budget is None:
        return None
    return max(0, min(budget, room - min(max_tokens, room // 2)))


def _length(value: Any, name: str, prompt: PromptSize, lengths: Lengths) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} is {quote(value)}; expected a whole number from 1.")
    if value < 1:
        raise InputError(f"{name} is {value}; expected a whole number from 1.")
    if value > lengths.limit - prompt.num_tokens:
        raise CapacityError(
            f"{name} is {value}; expected at most {lengths.limit} minus the prompt's "
            f"{prompt.num_tokens} tokens: {lengths.explain()}."
        )
    return value


def _too_long(prompt: PromptSize, lengths: Lengths) -> str:
    pictures, ways = "", ["Send less text"]
    if prompt.num_vision_tokens:
        pictures = f", {prompt.num_vision_tokens} of them pictures and videos"
        ways = ["Send less text or fewer pictures", "lower max_pixels"]
    if prompt.num_audio_tokens:
        pictures += f", {prompt.num_audio_tokens} of them sound (25 a second)"
        ways.append("send shorter sounds")
    if lengths.max_cache_tokens < lengths.max_model_len:
        ways.append("raise max_cache_tokens")
    return (
        f"The prompt is {prompt.num_tokens} tokens{pictures}; expected at most "
        f"{lengths.limit - 1}, one less than fit: {lengths.explain()}. {', or '.join(ways)}."
    )


def _number(
    given: dict[str, Any],
    name: str,
    default: float,
    low: float,
    high: float,
    *,
    above_low: bool = False,
) -> float:
    value = given.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (above_low and value == low):
        rule = f"above {low:g}, at most {high:g}" if above_low else f"{low:g} to {high:g}"
        shown = f"{value:g}" if is_number and math.isfinite(value) else quote(value)
        raise InputError(f"{name} is {shown}; expected {rule}.")
    return float(value)


def _integer(given: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} is {quote(value)}; expected a whole number from {low} to {high}.")
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; expected {low} to {high}.")
    return value


def _optional(given: dict[str, Any], name: str, low: int, high: int) -> int | None:
    return _integer(given, name, low, low, high) if name in given else None


def _loop_tokens(given: dict[str, Any]) -> int:
    loop_tokens = _integer(given, "loop_tokens", DEFAULT_LOOP_TOKENS, 0, MAX_LOOP_TOKENS)
    if 0 < loop_tokens < MIN_LOOP_TOKENS:
        raise InputError(
            f"loop_tokens is {loop_tokens}; expected 0 for never, or from {MIN_LOOP_TOKENS}: "
            "what is shorter is found in ordinary tables."
        )
    return loop_tokens


def _logit_bias(biases: object, vocab_size: int | None) -> tuple[tuple[int, float], ...]:
    """Read token ids, whose keys JSON writes as text, with what is added to their logits."""
    if not isinstance(biases, dict):
        raise InputError(f"logit_bias is {quote(biases)}; expected token ids with numbers.")
    if len(biases) > MAX_LOGIT_BIASES:
        raise InputError(
            f"logit_bias has {len(biases)} tokens; expected at most {MAX_LOGIT_BIASES}."
        )
    read = {}
    for key, value in biases.items():
        is_id = str(key).isascii() and str(key).isdecimal() and len(str(key)) < len("1000000000")
        if not is_id or (vocab_size is not None and int(key) >= vocab_size):
            most = "" if vocab_size is None else f" below {vocab_size}"
            raise InputError(f"logit_bias names the token {quote(key)}; expected an id{most}.")
        where = f"logit_bias.{int(key)}"
        read[int(key)] = _number({where: value}, where, 0.0, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    return tuple(read.items())


def _stops(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(text, str) for text in stops):
        raise InputError(f"stop is {quote(stop)}; expected a string or a list of strings.")
    if len(stops) > MAX_STOPS:
        raise InputError(f"stop has {len(stops)} strings; expected at most {MAX_STOPS}.")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InputError(
                f"A stop string has {len(text)} characters; expected 1 to {MAX_STOP_CHARACTERS}."
            )
    return tuple(stops)


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
