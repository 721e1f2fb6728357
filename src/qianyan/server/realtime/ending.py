"""How a conversation over a socket ends: an event that says why, and the code of the close.

Codes are those of RFC 6455, section 7.4.1, and 1013 of its registry. Browsers see no status of a
handshake: what is refused is refused by an event over an open socket.
"""

from dataclasses import dataclass

from qianyan.server.errors import RefusedError

NORMAL, GOING_AWAY, BROKEN_RULE, FAILED, TRY_LATER = 1000, 1001, 1008, 1011, 1013


@dataclass(frozen=True, kw_only=True)
class End:
    """Why a conversation is over; without a `refused` it ends as it should.

    `code` None: the client is gone already.
    """

    code: int | None = NORMAL
    refused: RefusedError | None = None

    @property
    def reason(self) -> str:
        """The word of the close."""
        return "" if self.refused is None else self.refused.code


GONE = End(code=None)
FINISHED = End()


def refusing(refused: RefusedError) -> End:
    """End a conversation that is not to be, or not now."""
    codes = {429: TRY_LATER, 503: TRY_LATER, 500: FAILED}
    return End(code=codes.get(refused.status, BROKEN_RULE), refused=refused)


def slow_reader(max_bytes: int) -> End:
    """End a conversation with a client that takes nothing."""
    return End(
        code=BROKEN_RULE,
        refused=RefusedError(
            f"{max_bytes} bytes wait for this client, which takes too little of them.",
            status=408,
            code="slow_reader",
        ),
    )


def over(what: str, limit_s: float) -> End:
    """End a conversation whose time is over."""
    return End(
        code=GOING_AWAY,
        refused=RefusedError(
            f"The conversation {what} {limit_s:g} s, the longest that one may. Open another one.",
            status=408,
            code="session_expired",
        ),
    )
