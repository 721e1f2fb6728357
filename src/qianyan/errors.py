"""Every exception qianyan raises on purpose.

    QianyanError             message is one or two sentences a user can act on
    ├─ ConfigError           a file or setting says something impossible
    ├─ CheckpointError       tensors missing, unexpected or mis-shaped; files missing
    ├─ InputError            what was sent cannot be used
    │  ├─ MediaError         not fetched, not decoded, too large; `code` says which
    │  └─ GrammarError       schema or regex outside what we support
    ├─ CapacityError         too long, too many
    │  └─ NoMemoryError      would fit, but not now: other work or programs hold the memory
    ├─ ReplyError            the model's reply is not what the prompt promised
    └─ EndpointError         a remote model cannot be reached or refuses to work

Messages say what is wrong, what was got and what was expected, then the way out.
`code` is the stable word that results files carry beside the sentence.
"""

QUOTE_LIMIT = 80


def quote(text: object) -> str:
    """Show what a user sent, cut to 80 characters."""
    shown = str(text).encode("utf-8", "replace").decode()  # halves of surrogate pairs included
    return f"'{shown if len(shown) <= QUOTE_LIMIT else shown[: QUOTE_LIMIT - 1] + '…'}'"


class QianyanError(Exception):
    """Root of all errors with a sentence for the user."""

    code = "failed"


class ConfigError(QianyanError):
    """A file or setting says something impossible."""

    code = "bad_settings"


class CheckpointError(QianyanError):
    """A checkpoint folder does not hold what its config promises."""

    code = "bad_checkpoint"


class InputError(QianyanError):
    """What was sent cannot be used."""

    code = "bad_input"


class MediaError(InputError):
    """A picture or document was not fetched, not decoded or is outside the limits."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class GrammarError(InputError):
    """A JSON schema or regular expression is outside what is supported."""

    code = "bad_grammar"


class CapacityError(QianyanError):
    """A request is longer or larger than the limits allow."""

    code = "too_long"


class NoMemoryError(CapacityError):
    """A request finds no memory now, though it is within the limits; later it may."""

    code = "no_memory"


class ReplyError(QianyanError):
    """The model's reply is not what the prompt promised; never read as 'nothing found'.

    `raw` is the reply itself where it is known, for records; messages never repeat it.
    """

    code = "unreadable_reply"
    raw: str | None = None


class EndpointError(QianyanError):
    """A remote model cannot be reached, refuses the request or answers with an error."""

    code = "endpoint_failed"
