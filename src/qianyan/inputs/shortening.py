"""Make the documents of a prompt fit: first without their pictures, then passages of their text.

Only documents are shortened, and only when the prompt is longer than fits; what the user wrote
stays whole. Scanned pages have no text to choose from, so they are left as they are, and a prompt
that still does not fit is refused by whoever knows the limit.
"""

from collections.abc import Callable, Sequence
from typing import Any

from qianyan.inputs.media import Media, MediumDocument
from qianyan.inputs.passages import Chosen, choose_passages, strip_places

ATTEMPTS = 4
SLACK_TOKENS = 16
"""Taken off besides what a prompt is too long by: joined texts encode a little differently."""
LONGEST_TOKEN = 256
"""Characters; no token of a Qwen vocabulary is as long, the longest being 128 blanks."""
LEAST_CHARS_PER_PICTURE = 40
"""A document with less text for each of its pictures is one of scans."""

Plain = list[dict[str, Any]]


def fit_documents(
    messages: Plain,
    media: Media,
    *,
    measure: Callable[[Plain], int],
    max_tokens: int,
    count: Callable[[str], int],
) -> None:
    """Shorten the documents of a prompt, in place, where it is longer than `max_tokens`.

    Args:
        messages: plain messages whose documents' parts are those in `media.documents`.
        media: what was read with them; gets a note for whatever is left out.
        measure: tells how many tokens the prompt of some messages takes.
        max_tokens: of the whole prompt.
        count: tells how many tokens a text takes.

    Raises MediaError (missing_extra) without the package that ranks passages.
    """
    documents = [document for document in media.documents if _has_text(document)]
    if not documents or _fits(documents, messages, measure, max_tokens):
        return
    has_pictures = any(document.pictures for document in documents)
    for document in documents:
        media.drop_pictures(document)
    _remove_pictures(messages, documents)
    if has_pictures and _fits(documents, messages, measure, max_tokens):
        return
    texts = [document.text for document in documents]
    question = _question(messages, media)
    for document in documents:
        document.write("")
    budget = max_tokens - measure(messages) - SLACK_TOKENS
    chosen = None
    for _ in range(ATTEMPTS):
        tried = choose_passages(texts, question, max_tokens=max(budget, 0), count=count)
        if not any(tried.num_read):
            if chosen is None:  # too long it stays, and is refused by whoever knows the limit
                for document, text in zip(documents, texts, strict=True):
                    document.write(text)
            return
        chosen = tried
        for document, text, *numbers in zip(
            documents, chosen.texts, chosen.num_read, chosen.num_all, strict=True
        ):
            document.write(
                f"[{document.name}: {' of '.join(map(str, numbers))} passages]\n\n{text}"
            )
        size = measure(messages)
        if size <= max_tokens:
            break
        budget -= size - max_tokens + SLACK_TOKENS
    if chosen:
        how = "those nearest to the question" if chosen.is_matched else _SPREAD
        for number, document in enumerate(documents):
            read = _read(chosen, number)
            media.note(f"{document.name}: too long to be read whole; {read} read, {how}")


_SPREAD = "spread evenly because none shares a word with the question"


def _read(chosen: Chosen, number: int) -> str:
    """Say how much is read of one document."""
    return f"{chosen.num_read[number]} of {chosen.num_all[number]} passages"


def _fits(
    documents: Sequence[MediumDocument],
    messages: Plain,
    measure: Callable[[Plain], int],
    max_tokens: int,
) -> bool:
    """Whether a prompt is short enough; where that is plain to see, its tokens are not counted."""
    num_characters = sum(len(document.text) for document in documents)
    return num_characters <= max_tokens * LONGEST_TOKEN and measure(messages) <= max_tokens


def _has_text(document: MediumDocument) -> bool:
    """Whether there is text to choose from, rather than pictures of it."""
    text = strip_places(document.text).strip()
    return len(text) > LEAST_CHARS_PER_PICTURE * len(document.pictures)


def _remove_pictures(messages: Plain, documents: Sequence[MediumDocument]) -> None:
    """Take the places of dropped pictures out of the messages."""
    gone = {id(part) for document in documents for part in document.parts}
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            message["content"] = [
                part for part in content if part["type"] == "text" or id(part) not in gone
            ]


def _question(messages: Plain, media: Media) -> str:
    """Find what the last user asks, without the documents' own text."""
    theirs = {id(part) for document in media.documents for part in document.parts}
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            own = [part["text"] for part in content if "text" in part and id(part) not in theirs]
            if own:
                return " ".join(own)
    return ""
