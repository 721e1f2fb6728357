"""The verb `chat`: options in, one answer or a whole conversation out.

Interactive where standard input is a terminal. Elsewhere, and with --once, one question is
answered and standard output holds the answer alone: the question is the message given, with what
standard input holds after it.
"""

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated

import typer

from qianyan.cli.options import (
    AllowHost,
    ApiKey,
    BaseUrl,
    Config,
    Debug,
    Device,
    DtypeOption,
    MaxPixels,
    Model,
    QuantizeOption,
    WordsOption,
    look_settings,
    option,
)
from qianyan.errors import CapacityError, InputError

if TYPE_CHECKING:
    from qianyan.cli.conversation import Kind

MAX_INPUT_CHARACTERS = 1_000_000


def chat(
    context: typer.Context,
    message: Annotated[
        str | None, typer.Argument(metavar="MESSAGE", help="the first message")
    ] = None,
    once: Annotated[bool, option("--once", "answer MESSAGE and leave, printing no more")] = False,
    image: Annotated[
        list[str] | None,
        option("--image", "picture for the first message, path or URL; can be repeated"),
    ] = None,
    video: Annotated[
        list[str] | None, option("--video", "video for the first message; can be repeated")
    ] = None,
    audio: Annotated[
        list[str] | None, option("--audio", "sound for the first message; can be repeated")
    ] = None,
    file: Annotated[
        list[str] | None,
        option("--file", 'document for the first message, also "a.pdf pages=1-9"; can be repeated'),
    ] = None,
    model: Model = "bundled",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, option("--system", "system prompt")] = None,
    max_tokens: Annotated[
        int | None, option("--max-tokens", "greatest length of an answer", min=1)
    ] = None,
    temperature: Annotated[
        float | None, option("--temperature", "0: the likeliest words", min=0, max=2)
    ] = None,
    thinking: Annotated[
        bool | None,
        option("--thinking/--no-thinking", "let a model that can think do so, or not"),
    ] = None,
    lang: WordsOption = "zh",
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    allow_host: AllowHost = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Talk with a model in the terminal, about pictures, videos, sounds and documents too.

    Without a terminal, or with --once, one question is answered and nothing else is printed; what
    standard input holds belongs to the question.

    Example: qianyan chat "What is wrong here?" --image site.jpg --lang en
    """
    from qianyan.cli.answering import TalkOptions, open_model
    from qianyan.cli.attachments import fit, open_attachment
    from qianyan.cli.chat_screen import ChatScreen, answer_once, loading
    from qianyan.cli.chat_words import WORDS
    from qianyan.cli.conversation import Conversation

    is_once = once or not sys.stdin.isatty()
    question = _question(message, reads_input=not (sys.stdin.isatty() or (once and message)))
    settings = look_settings(context)
    given = _given(image=image, video=video, audio=audio, file=file)
    # Read before the model is loaded, which may take minutes: what cannot be sent is said at once.
    opened = [open_attachment(*one, settings.fetch_limits) for one in given]
    if is_once and not question and not opened:
        raise InputError(
            "There is no question; expected one as MESSAGE or on standard input, such as "
            'qianyan chat "What is wrong here?" --image site.jpg.'
        )
    with loading(settings.model, lang):
        talker = open_model(settings)
    conversation = Conversation(system=system, attached=[fit(one, talker) for one in opened])
    options = TalkOptions(max_tokens=max_tokens, temperature=temperature, enable_thinking=thinking)
    if is_once:
        if answer_once(talker, conversation, question, options).is_cut:
            print(WORDS[lang]["length"], file=sys.stderr)
        return
    screen = ChatScreen(talker, conversation, options, lang=lang, limits=settings.fetch_limits)
    raise typer.Exit(screen.converse(question))


def _question(message: str | None, *, reads_input: bool) -> str:
    """Put the message given and what standard input holds together."""
    parts = [message or ""]
    if reads_input:
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        piped = sys.stdin.read(MAX_INPUT_CHARACTERS + 1)
        if len(piped) > MAX_INPUT_CHARACTERS:
            raise CapacityError(
                f"Standard input holds more than {MAX_INPUT_CHARACTERS} characters, the most that "
                "are read. Send a part of it."
            )
        parts.append(piped.strip("\n"))
    return "\n\n".join(part for part in parts if part.strip())


def _given(**sources: list[str] | None) -> "list[tuple[Kind, str]]":
    """List what was given with options, kind by kind."""
    kinds: tuple[Kind, ...] = ("image", "video", "audio", "file")
    return [(kind, source) for kind in kinds for source in sources[kind] or ()]
