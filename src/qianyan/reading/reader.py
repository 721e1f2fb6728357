"""Find, point, count, read, extract: one question each, in the words the models were trained on.

Wherever the form of an answer can be made certain, a grammar makes it so; what the answer says is
the model's own. The first Qwen-VL keeps to no grammar and is asked in its own notation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from qianyan.engine.engine import Engine
from qianyan.engine.request import Completion
from qianyan.errors import ConfigError, InputError, ReplyError, quote
from qianyan.inputs.fetch import fetch
from qianyan.inputs.grounding import Markup, find_markup, find_notation
from qianyan.inputs.images import read_image, upright_rgb
from qianyan.reading import html_page, prompts
from qianyan.reading.fields import fields_prompt, fields_schema, parse_fields
from qianyan.reading.functions import FUNCTIONS, Device, call_pattern, to_tool
from qianyan.reading.html_page import Page, parse_page
from qianyan.reading.moments import Moment, moments_prompt, moments_schema, parse_moments
from qianyan.reading.places import (
    Count,
    FoundBox,
    FoundPoint,
    View,
    Word,
    parse_boxes,
    parse_count,
    parse_points,
    parse_words,
)
from qianyan.reading.prompts import NOTHING, Lang, to_response_format
from qianyan.reading.screen import ScreenAction, parse_action, screen_prompt

MAX_OBJECTS = 50
MAX_WHAT_CHARS = 500

Picture = Image.Image | str | Path
"""A Pillow image, a path, an http(s) URL or a data: URI."""
What = str | Sequence[str]
"""What to look for: words of any kind, or a list of names, one of which every answer then has."""


class Reader:
    """A loaded model that is asked for one thing at a time and answers with plain values.

    All places are in pixels of the picture as it was given, the right way up. Every method raises
    InputError or MediaError for what cannot be used, and ReplyError for an answer that cannot be
    read, which has the answer as its `raw`; an empty result is always the model's own statement.

    Example:
        reader = Reader(Engine("path/to/Qwen2.5-VL-3B-Instruct"), lang="en")
        for found in reader.find("yard.jpg", "forklift"):
            print(found.label, found.box)
    """

    def __init__(
        self,
        engine: Engine,
        *,
        lang: Lang = "zh",
        max_objects: int = MAX_OBJECTS,
        max_tokens: int | None = None,
    ) -> None:
        """Get ready to ask.

        Args:
            engine: the model; ConfigError for one whose way of counting places is not known.
            lang: the language of the questions.
            max_objects: most places that are asked for at once.
            max_tokens: longest answer; None for the engine's own limit.
        """
        if lang not in get_args(Lang):
            raise ConfigError(f"lang is {quote(lang)}; expected {' or '.join(get_args(Lang))}.")
        if max_objects < 1:
            raise ConfigError(f"max_objects is {max_objects}; expected at least 1.")
        notation = find_notation(engine.architecture)
        if notation is None:
            raise ConfigError(
                f"How {quote(engine.architecture)} counts places is not known; expected a "
                "checkpoint of Qwen-VL, Qwen2-VL or Qwen2.5-VL."
            )
        self._engine = engine
        self._lang = lang
        self._max_objects = max_objects
        self._max_tokens = max_tokens
        self._notation = notation
        self._markup = find_markup(engine.architecture)

    def find(self, image: Picture, what: What) -> tuple[FoundBox, ...]:
        """Box everything of a kind."""
        words, labels = _words(what)
        photo, view = self._open(image)
        schema = prompts.boxes_schema(view, max_objects=self._max_objects, labels=labels)
        reply = self._ask_for_places("find", photo, view, schema, words)
        with _raw(reply):
            return parse_boxes(reply, view, what=words, nothing=NOTHING[self._lang])

    def point(self, image: Picture, what: What) -> tuple[FoundPoint, ...]:
        """Point at everything of a kind; Qwen-VL, which cannot point, boxes it for its centre."""
        words, labels = _words(what)
        photo, view = self._open(image)
        schema = prompts.points_schema(view, max_objects=self._max_objects, labels=labels)
        reply = self._ask_for_places("point", photo, view, schema, words)
        with _raw(reply):
            return parse_points(reply, view, what=words, nothing=NOTHING[self._lang])

    def count(self, image: Picture, what: What) -> Count:
        """Count everything of a kind by boxing each one first."""
        words, labels = _words(what)
        photo, view = self._open(image)
        schema = prompts.count_schema(view, max_objects=self._max_objects, labels=labels)
        reply = self._ask_for_places("count", photo, view, schema, words)
        with _raw(reply):
            return parse_count(reply, view, what=words, nothing=NOTHING[self._lang])

    def read_words(self, image: Picture) -> tuple[Word, ...]:
        """Read all text, line by line, with its places."""
        photo, view = self._open(image)
        schema = prompts.boxes_schema(view, max_objects=self._max_objects, key="text_content")
        reply = self._ask_for_places("read_words", photo, view, schema, "")
        with _raw(reply):
            return parse_words(reply, view, nothing=NOTHING[self._lang])

    def to_html(self, image: Picture) -> Page:
        """Turn a document page into clean HTML with places; a skill of Qwen2.5-VL."""
        photo, view = self._open(image)
        reply = self._ask(_messages(photo, html_page.PROMPT[self._lang])).text
        with _raw(reply):
            return parse_page(reply, view)

    def extract(
        self, image: Picture, fields: Sequence[str] | Mapping[str, Any]
    ) -> dict[str, str | None]:
        """Read named fields, or the properties of a JSON schema of plain values, off a picture.

        A value that is not in the picture is None.
        """
        schema = fields_schema(fields)
        photo, _ = self._open(image)
        asked = _messages(photo, fields_prompt(schema, lang=self._lang))
        reply = self._ask(asked, response_format=to_response_format(schema)).text
        with _raw(reply):
            return parse_fields(reply, schema)

    def find_moments(self, video: str | Path, what: str) -> tuple[Moment, ...]:
        """Find when something happens in a video, given by its path or URL."""
        words, _ = _words(what)
        parts = [
            {"type": "video", "video": str(video)},
            {"type": "text", "text": moments_prompt(words, lang=self._lang)},
        ]
        done = self._ask(
            [{"role": "user", "content": parts}],
            response_format=to_response_format(moments_schema()),
        )
        with _raw(done.text):
            return parse_moments(done.text, duration_s=done.videos[0].duration_s)

    def act(
        self,
        screen: Picture,
        task: str,
        *,
        device: Device = "computer",
        history: Sequence[str | ScreenAction] = (),
    ) -> ScreenAction:
        """Ask for the next step of a task on a screen; nothing is carried out.

        Args:
            screen: a picture of the whole screen.
            task: what is to be done.
            device: "computer" for mouse and keyboard, "phone" for touch.
            history: the steps done so far, in words or as they were returned here.
        """
        if device not in FUNCTIONS:
            raise InputError(f"device is {quote(device)}; expected {' or '.join(FUNCTIONS)}.")
        prompt = screen_prompt(task, history, lang=self._lang)
        photo, view = self._open(screen)
        done = self._ask(
            _messages(photo, prompt),
            tools=[to_tool(device, view)],
            response_format={"type": "regex", "pattern": call_pattern(device)},
        )
        with _raw(done.text):
            return parse_action(done.tool_calls, done.text, view, device=device)

    def _ask_for_places(
        self, task: str, photo: Image.Image, view: View, schema: dict[str, Any], what: str
    ) -> str:
        """Ask in JSON under a schema, or in the marks of the first generation."""
        if self._markup is not Markup.REF:
            prompt = prompts.json_prompt(task, view, lang=self._lang, what=what)
            asked = _messages(photo, prompt)
            return self._ask(asked, response_format=to_response_format(schema)).text
        reference = task if task == "read_words" else "find"
        prompt = prompts.reference_prompt(reference, lang=self._lang, what=what)
        done = self._ask(_messages(photo, prompt))
        # Its marks are control tokens, which plain text leaves out.
        return self._engine.processor.tokenizer.decode(done.token_ids, skip_special=False)

    def _ask(self, messages: list[dict[str, Any]], **options: Any) -> Completion:
        """Ask once, greedily; an answer that was cut is none."""
        done = self._engine.chat(messages, max_tokens=self._max_tokens, temperature=0, **options)
        if done.finish_reason == "length":
            error = ReplyError(
                f"The model's answer was cut after {done.usage.completion_tokens} tokens. Ask for "
                "less, or raise max_tokens."
            )
            error.raw = done.text
            raise error
        return done

    def _open(self, image: Picture) -> tuple[Image.Image, View]:
        """Read a picture, and tell how the model will see it."""
        if isinstance(image, Image.Image):
            photo = upright_rgb(image)
        else:
            photo = read_image(fetch(image, allow_files=True).data).rgb
        seen_wh = self._engine.processor.seen_wh(photo.size)
        return photo, View(notation=self._notation, seen_wh=seen_wh, photo_wh=photo.size)


@contextmanager
def _raw(reply: str) -> Iterator[None]:
    """Keep the answer with the reason why it cannot be read."""
    try:
        yield
    except ReplyError as error:
        error.raw = reply
        raise


def _messages(photo: Image.Image, prompt: str) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": photo}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": parts}]


def _words(what: What) -> tuple[str, tuple[str, ...]]:
    """Check what is looked for; returns it in words, and the names that answers are held to."""
    labels = () if isinstance(what, str) else tuple(what)
    words = what if isinstance(what, str) else ", ".join(labels)
    if not words.strip() or len(words) > MAX_WHAT_CHARS or not all(labels):
        raise InputError(
            f"What to look for is {quote(words)}; expected 1 to {MAX_WHAT_CHARS} characters."
        )
    return words.strip(), labels
