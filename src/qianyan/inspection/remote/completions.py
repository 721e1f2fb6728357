"""An ask in the OpenAI chat protocol: the request's body, and the answer out of its reply.

Where no schema bounds the number of objects, an answer that streams is read no further than its
last wanted object: what comes after that would be paid for and left out.
"""

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from qianyan.errors import EndpointError
from qianyan.inspection.answer_items import find_end
from qianyan.inspection.records import Usage
from qianyan.inspection.remote.event_stream import Delta
from qianyan.inspection.remote.profile import EndpointProfile
from qianyan.inspection.vision import Answer, Ask, TokenScore, response_format

JPEG_QUALITY = 95


def to_body(ask: Ask, picture_url: str, profile: EndpointProfile) -> dict[str, Any]:
    """Write the request body: common fields, and what the profile does not rule out."""
    body: dict[str, Any] = {
        "model": profile.model,
        "messages": [
            {
                "role": "user",
                "content": [
                    *([{"type": "text", "text": ask.before}] if ask.before else []),
                    {"type": "image_url", "image_url": {"url": picture_url}},
                    {"type": "text", "text": ask.text},
                ],
            }
        ],
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
    }
    sent = options_sent(ask, profile)
    if "has_penalty" in sent:
        body["presence_penalty"] = ask.presence_penalty
    if ask.seed is not None:
        body["seed"] = ask.seed
    if "has_schema" in sent:
        body["response_format"] = response_format(ask)
    if "has_logprobs" in sent:
        body["logprobs"] = True
        if ask.logprobs:
            body["top_logprobs"] = ask.logprobs
    if "has_stream" in sent:
        body["stream_options"] = {"include_usage": True}
    return {**body, **profile.extra}


def collect(deltas: Iterable[Delta], max_objects: int) -> dict[str, Any]:
    """Put a streamed answer together as a chat completion, up to the end of its last wanted object.

    An answer that is left early has the finish reason "enough". Its usage never comes, so that its
    tokens are those counted here and those of the prompt are unknown.
    """
    text, finish_reason, num_pieces = "", None, 0
    logprobs: list[Any] = []
    usage: dict[str, int] = {}
    for delta in deltas:
        start, text = len(text), text + delta.text
        num_pieces += bool(delta.text)
        logprobs += delta.logprobs
        finish_reason = delta.finish_reason or finish_reason
        for name in ("prompt_tokens", "completion_tokens"):
            if (count := getattr(delta, name)) is not None:
                usage[name] = count
        if delta.text and (end := find_end(text, max_objects, start=start)) is not None:
            text, finish_reason = text[:end], "enough"
            usage.setdefault("completion_tokens", len(logprobs) or num_pieces)
            break
    choice = {
        "message": {"content": text},
        "finish_reason": finish_reason,
        "logprobs": {"content": logprobs},
    }
    return {"choices": [choice], "usage": usage}


def to_answer(reply: Mapping[str, Any], seen_wh: tuple[int, int], model: str) -> Answer:
    """Read a chat completion; raises EndpointError when it is none."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise EndpointError(
            f"{model} answered without choices[0].message; expected an OpenAI chat completion."
        )
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=_content_text(message.get("content")),
        seen_wh=seen_wh,
        tokens=_remote_tokens(choice.get("logprobs")),
        usage=Usage(
            prompt_tokens=_count(counts.get("prompt_tokens")),
            completion_tokens=_count(counts.get("completion_tokens")),
        ),
        finish_reason=str(choice.get("finish_reason") or "stop"),
    )


def to_data_url(image: Image.Image, *, is_lossless: bool = False) -> str:
    """Write a picture into a data: URL; JPEG without colour subsampling unless lossless."""
    buffer = BytesIO()
    if is_lossless:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    kind = "png" if is_lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def options_sent(ask: Ask, profile: EndpointProfile) -> dict[str, tuple[str, ...]]:
    """Name what goes beyond the plainest request, with words by which a refusal may blame it."""
    has_schema = ask.schema is not None and profile.has_schema is not False
    # A schema bounds the number of objects by itself.
    is_open = ask.max_objects is not None and not has_schema and profile.has_stream is True
    wanted = {
        "has_stream": (is_open, ("stream",)),
        "has_schema": (has_schema, ("response_format", "schema", "grammar")),
        "has_penalty": (ask.presence_penalty != 0, ("presence_penalty",)),
        "has_logprobs": (ask.logprobs is not None, ("logprob",)),
    }
    return {
        name: words
        for name, (is_wanted, words) in wanted.items()
        if is_wanted and getattr(profile, name) is not False
    }


def refused_option(ask: Ask, profile: EndpointProfile, said: str) -> str | None:
    """Pick what to leave out after a refusal: the option blamed, else the first; None if none."""
    sent = options_sent(ask, profile)
    blamed = [name for name, words in sent.items() if any(word in said.lower() for word in words)]
    return next(iter([*blamed, *sent]), None)


def _content_text(content: Any) -> str:
    """Take the text of a message, which some servers send in parts."""
    if isinstance(content, list):
        content = "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    if not isinstance(content, str):
        return ""
    # Half of a surrogate pair cannot be written to a file later.
    return content.encode("utf-8", errors="replace").decode("utf-8")


def _remote_tokens(logprobs: Any) -> tuple[TokenScore, ...] | None:
    """Read the token log-probabilities; None when there are none or they have another form."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    try:
        return tuple(_remote_token(entry) for entry in content)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _remote_token(entry: Mapping[str, Any]) -> TokenScore:
    text = str(entry["token"])
    raw = entry.get("bytes")
    return TokenScore(
        text=text,
        logprob=min(float(entry["logprob"]), 0.0),
        top={str(one["token"]): float(one["logprob"]) for one in entry.get("top_logprobs") or ()},
        data=bytes(raw) if raw is not None else text.encode(errors="replace"),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
