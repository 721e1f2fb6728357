"""What went wrong, as HTTP: a status and a code for every error, and a body in each dialect.

`to_failure` is the one place where errors get a status; `ENVELOPES` holds the body of each dialect
by the beginning of its paths. Errors that nobody foresaw become 500 without a word of theirs: the
log has them, under the request's id.
"""

import errno
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qianyan.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    InputError,
    NoMemoryError,
    QianyanError,
    quote,
)
from qianyan.server.asking import asked_now

logger = logging.getLogger(__name__)

BAD_REQUEST = "invalid_request_error"
SERVER_FAULT = "server_error"
UPSTREAM = "upstream_"
"""The beginning of all codes that say what another server did."""
NO_MEMORY_RETRY_S = 10
NO_ROOM_RETRY_S = 10
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PLACE = re.compile(
    r"[a-z][a-z0-9_]*(?:\[\d+\]|\.\w+)*(?= (?:is|are|has|holds|names|asks) )", re.ASCII
)
"""The place in a request with which sentences about it begin."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class RefusedError(QianyanError):
    """A request that the server does not take, with the HTTP status that says why."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class BodyError(HTTPException):
    """A body that is not read to its end, and why; FastAPI lets only its own kind of error out."""

    def __init__(self, refused: RefusedError) -> None:
        super().__init__(refused.status)
        self.refused = refused


class ModelFailedError(QianyanError):
    """The model broke while it was computing; nothing more can be asked of it."""

    code = "model_failed"


def stopping() -> RefusedError:
    """Say that the server answers no more."""
    return RefusedError("The server stops.", status=503, code="server_stopping")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as HTTP has it; dialects put it into their own words.

    `type` is OpenAI's kind of error, `param` the field that is wrong, where one is.
    """

    status: int
    code: str
    message: str
    type: str = BAD_REQUEST
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def to_failure(error: Exception) -> Failure:
    """Say what an error is in HTTP; its code is noted for the log and the counts."""
    failure = _find_failure(error)
    asked_now().error_code = failure.code
    return failure


def _find_failure(error: Exception) -> Failure:
    if isinstance(error, BodyError):
        error = error.refused
    if isinstance(error, RefusedError):
        return Failure(
            status=error.status,
            code=error.code,
            message=str(error),
            type=_type_of(error.status),
            param=error.param,
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, NoMemoryError):
        return Failure(
            status=503,
            code=error.code,
            message=str(error),
            type=SERVER_FAULT,
            retry_after_s=NO_MEMORY_RETRY_S,
        )
    if isinstance(error, InputError | CapacityError):
        message, is_long = str(error), isinstance(error, CapacityError)
        place = _PLACE.match(message)
        return Failure(
            status=400,
            # The word that clients of OpenAI look for.
            code="context_length_exceeded" if is_long else error.code,
            message=message,
            param=None if place is None else place[0],
        )
    if isinstance(error, QianyanError) and not isinstance(error, ConfigError | CheckpointError):
        return Failure(status=500, code=error.code, message=str(error), type=SERVER_FAULT)
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    if isinstance(error, HTTPException):
        return _from_status(error.status_code)
    if isinstance(error, OSError) and error.errno in NO_ROOM:  # where uploads are held meanwhile
        return Failure(
            status=503,
            code="storage_failed",
            message="The disk of the server is full. Try again later.",
            type=SERVER_FAULT,
            retry_after_s=NO_ROOM_RETRY_S,
        )
    return Failure(
        status=500,
        code="internal_error",
        message="The server failed at this request; its log says why, under the request's id.",
        type=SERVER_FAULT,
    )


def _type_of(status: int) -> str:
    return _TYPES.get(status, SERVER_FAULT if status >= 500 else BAD_REQUEST)


def _from_status(status: int) -> Failure:
    """Put what the framework itself refuses into a sentence."""
    messages = {
        400: "The body of the request cannot be read; expected JSON in UTF-8.",
        404: "There is nothing at this address; the addresses are in /openapi.json.",
        405: "This address does not know this method; the methods are in /openapi.json.",
        413: "The body of the request is larger than this server takes. Send less, or send "
        "pictures and documents by URL.",
    }
    return Failure(
        status=status,
        code=_CODES.get(status, "bad_request"),
        message=messages.get(status, "The request was refused."),
        type=_type_of(status),
    )


def _from_validation(error: RequestValidationError) -> Failure:
    """Name the first field that is wrong; what was sent there is not repeated."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"The body is not valid JSON: {first['ctx']['error']} at {first['loc'][-1]}."
        return Failure(status=400, code="invalid_json", message=message)
    if first["type"] == "model_attributes_type" and first["loc"] == ("body",):
        return Failure(status=400, code="invalid_json", message=_no_object(first["input"]))
    return _find_failure(field_error(first))


def field_error(first: Mapping[str, Any]) -> RefusedError:
    """Put into a sentence what pydantic finds wrong with a field, as `errors()` has it."""
    place = [str(step) for step in first["loc"] if step not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    where = quote(param) if param else "The body"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    reason = reason.partition(" after validation")[0].replace("List should", "should")
    message = f"{where} is missing." if first["type"] == "missing" else f"{where}: {reason}."
    return RefusedError(message, status=400, code="invalid_value", param=param)


def _no_object(body: object) -> str:
    """Say why a body is no JSON object; under another Content-Type it was not parsed at all."""
    if isinstance(body, bytes):
        return (
            "The body was not read as JSON, because it came without the header "
            '"Content-Type: application/json". Send that header.'
        )
    return "The body is JSON, but no object; expected an object in braces."


Envelope = Callable[[Failure, str], dict[str, Any]]
"""Makes a body of a failure and the request's id."""


def openai_body(failure: Failure, request_id: str) -> dict[str, Any]:
    """Write a failure as OpenAI does, with Bailian's request_id beside it."""
    error = {
        "message": failure.message,
        "type": failure.type,
        "param": failure.param,
        "code": failure.code,
    }
    return {"error": error, "request_id": request_id}


ENVELOPES: dict[str, Envelope] = {"/": openai_body}
"""By the beginning of the path; the longest that fits counts."""


def to_body(failure: Failure, *, path: str, request_id: str) -> dict[str, Any]:
    """Write a failure in the dialect of the path at which it happened."""
    prefix = max((one for one in ENVELOPES if path.startswith(one)), key=len, default="/")
    return ENVELOPES[prefix](failure, request_id)


def to_response(error: Exception, *, path: str, request_id: str) -> JSONResponse:
    """Answer with an error."""
    failure = to_failure(error)
    return JSONResponse(
        to_body(failure, path=path, request_id=request_id),
        status_code=failure.status,
        headers={**failure.headers, "x-request-id": request_id},
    )


async def _answer(request: Request, error: Exception) -> JSONResponse:
    request_id = request.scope.get("state", {}).get("request_id", "")
    response = to_response(error, path=request.url.path, request_id=request_id)
    if response.status_code >= 500:
        _log(error)
    return response


def _log(error: Exception) -> None:
    """Log a failure with its traceback; of another server's failure our sentence says all.

    What that server said is left out: it may have put a piece of the request there.
    """
    if isinstance(error, RefusedError) and error.code.startswith(UPSTREAM):
        logger.warning("%s", str(error).partition(": '")[0])
    elif not _is_by_rule(error):
        logger.error("request failed", exc_info=error)


def _is_by_rule(error: Exception) -> bool:
    """Tell whether the server refused by a rule of its own; then the code says all there is."""
    causes = (type(None), TimeoutError)
    return isinstance(error, RefusedError) and isinstance(error.__cause__, causes)


def add_handlers(app: FastAPI) -> None:
    """Let every error that was foreseen be answered in its dialect; the edge answers others."""
    for kind in (QianyanError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
