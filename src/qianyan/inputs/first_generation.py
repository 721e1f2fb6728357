"""Prompts of the first generation, whose checkpoints bring no chat template and no tokenizer.json.

Source: the released code's description (QwenLM/Qwen-VL). Chat models write ChatML and number their
pictures; base models are given plain text. `chat_format` in generation_config.json says which.

A picture stands between <img> and </img> and takes `num_slots` tokens there. In a text it is named
by its path or URL, whose bytes fill the slots: the byte v is the token id v, whatever that token
means elsewhere, and <imgpad> fills the rest. A picture that comes as a message part has <imgpad>
in place of a path.
"""

import re
import unicodedata
from pathlib import Path
from typing import Literal

from qianyan.errors import ConfigError, InputError, quote
from qianyan.inputs.tokenizer import Tokenizer, read_json

ChatFormat = Literal["chatml", "raw"]

IMAGE_START = "<img>"
IMAGE_END = "</img>"
IMAGE_PAD = "<imgpad>"
STOP_TOKENS: dict[ChatFormat, tuple[str, ...]] = {
    "chatml": ("<|im_end|>", "<|im_start|>"),
    "raw": ("<|endoftext|>",),
}
"""What ends an answer."""

CHATML_TEMPLATE = r"""
{%- if tools -%}{{- raise_exception('this model calls no tools') -}}{%- endif -%}
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- set pictures = namespace(count=0) -%}
{%- for message in messages -%}
    {%- if message.role not in ('system', 'user', 'assistant') or message.tool_calls -%}
        {{- raise_exception('this model calls no tools') -}}
    {%- endif -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' -}}
    {%- set text = [{'type': 'text', 'text': message.content}] -%}
    {%- for part in (text if message.content is string else message.content) -%}
        {%- if part.type == 'image' -%}
            {%- set pictures.count = pictures.count + 1 -%}
            {{- 'Picture ' ~ pictures.count ~ ': <img><imgpad></img>\n' -}}
        {%- elif part.type == 'text' -%}
            {%- set pictures.count = pictures.count + part.text.count('<img>') -%}
            {{- part.text -}}
        {%- else -%}
            {{- raise_exception('this model reads text and pictures only') -}}
        {%- endif -%}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
RAW_TEMPLATE = r"""
{%- if tools -%}{{- raise_exception('this model calls no tools') -}}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role not in ('system', 'user', 'assistant') or message.tool_calls -%}
        {{- raise_exception('this model calls no tools') -}}
    {%- endif -%}
    {%- set text = [{'type': 'text', 'text': message.content}] -%}
    {%- for part in (text if message.content is string else message.content) -%}
        {%- if part.type == 'image' -%}
            {{- '<img><imgpad></img>' -}}
        {%- elif part.type == 'text' -%}
            {{- part.text -}}
        {%- else -%}
            {{- raise_exception('this model reads text and pictures only') -}}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
"""
_TEMPLATES: dict[ChatFormat, str] = {"chatml": CHATML_TEMPLATE, "raw": RAW_TEMPLATE}

# Text ends here for the released code, so that a line break that follows stays a token of its own.
_HEADER = re.compile(r"(<\|im_start\|>(?:system|user|assistant)\n)")
_REFERENCE = re.compile(f"{IMAGE_START}(.*?){IMAGE_END}", re.DOTALL)


def read_chat_format(folder: Path | str) -> ChatFormat:
    """Read from generation_config.json how a first-generation checkpoint wants its prompts.

    Raises ConfigError when the file does not say: a chat model's prompts mean nothing to a base
    model, and the other way round.
    """
    chat_format = read_json(Path(folder) / "generation_config.json").get("chat_format")
    for known in STOP_TOKENS:
        if chat_format == known:
            return known
    what = "no chat_format" if chat_format is None else f"the chat_format {quote(chat_format)}"
    raise ConfigError(
        f"generation_config.json has {what}; expected 'chatml' (chat models) or 'raw' (base "
        "models). Copy the file from the model's repository."
    )


def template_source(chat_format: ChatFormat) -> str:
    """Give the chat template that released code has built in.

    "chatml" opens with the usual system message where the messages bring none, and puts a line
    `Picture n: …` where a picture part stands, counting over the whole conversation. "raw" knows no
    roles: the contents of all messages stand one after another as they are, with nothing between.
    """
    return _TEMPLATES[chat_format]


def stop_token_ids(tokenizer: Tokenizer, chat_format: ChatFormat) -> frozenset[int]:
    """Find the ids that end an answer, beside those that generation_config.json names."""
    ids = (tokenizer.token_id(token) for token in STOP_TOKENS[chat_format])
    return frozenset(token_id for token_id in ids if token_id is not None)


def find_references(text: str) -> list[str]:
    """List what stands between <img> and </img>, in order: paths, URLs, or <imgpad>.

    Raises InputError where a tag has no partner or nothing is named.
    """
    return _cut_at_references(text)[1::2]


def encode_first_generation(tokenizer: Tokenizer, text: str, num_slots: int) -> list[int]:
    """Turn a prompt into token ids as the released code does, pictures widened to their slots.

    Raises InputError for a path of `num_slots` bytes or more (one slot at least stays free), and
    where <img> and </img> do not pair. A tokenizer without these tokens reads them as words.
    """
    has_pictures = tokenizer.token_id(IMAGE_PAD) is not None
    token_ids: list[int] = []
    for place, piece in enumerate(_cut_at_references(text) if has_pictures else [text]):
        if place % 2:
            token_ids += _encode_reference(tokenizer, piece, num_slots)
        else:
            for part in _HEADER.split(piece):
                token_ids += tokenizer.encode(part)
    return token_ids


def _cut_at_references(text: str) -> list[str]:
    """Split a text into what is plain, at even places, and what tags enclose, at odd ones."""
    pieces = _REFERENCE.split(text)
    if any(tag in piece for piece in pieces for tag in (IMAGE_START, IMAGE_END)):
        raise InputError(
            "A text contains <img> and </img> that do not pair; expected every <img> to be closed "
            "by </img> before the next. Send pictures as image_url parts."
        )
    if "" in pieces[1::2]:
        raise InputError(
            "A text contains <img></img> with nothing between; expected a path or URL. Send "
            "pictures as image_url parts."
        )
    return pieces


def _encode_reference(tokenizer: Tokenizer, reference: str, num_slots: int) -> list[int]:
    """Give the tokens of one picture, both tags included."""
    # The released code normalises the whole text first, names of files among it.
    named = b"" if reference == IMAGE_PAD else unicodedata.normalize("NFC", reference).encode()
    if len(named) >= num_slots:
        raise InputError(
            f"The picture {quote(reference)} is named by {len(named)} bytes; expected at most "
            f"{num_slots - 1}. Send it as an image_url part."
        )
    slots = [*named] + tokenizer.encode(IMAGE_PAD) * (num_slots - len(named))
    return [*tokenizer.encode(IMAGE_START), *slots, *tokenizer.encode(IMAGE_END)]
