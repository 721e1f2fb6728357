"""Errors in DashScope's words: its codes, and a body of code, message and request_id.

Codes are Bailian's (error-code page, 2025-12-26). Where it has several for one cause, here stands
the one from whose first word clients tell the cause.
"""

from typing import Any

from qianyan.server.errors import Failure
from qianyan.server.tasks import TOO_LONG

PREFIX = "/api/v1/"
"""The beginning of all paths of this dialect."""
_BY_CODE = {
    "missing_model": "BadRequest.EmptyModel",
    "missing_input": "BadRequest.EmptyInput",
    "model_not_found": "ModelNotFound",
    "server_busy": "ModelServingError",
    "no_memory": "ModelServingError",
    "request_timeout": "RequestTimeOut",
    "limit_concurrency": "Throttling.RateQuota",
    "limit_requests": "Throttling.RateQuota",
    "limit_tokens": "Throttling.AllocationQuota",
    "client_closed_request": "ClientDisconnect",
    "wrong_state": "UnsupportedOperation",
    "bad_url": "InvalidURL",
    "connection_failed": "InvalidURL.ConnectionRefused",
    "http_status": "InvalidURL",
    "name_not_resolved": "InvalidURL",
    "private_address": "InvalidURL",
    "timeout": "InvalidURL.Timeout",
    "too_many_redirects": "InvalidURL",
}
_BY_STATUS = {
    401: "InvalidApiKey",
    403: "AccessDenied",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    413: "RequestTooLarge",
    429: "Throttling",
    503: "ModelUnavailable",
}


_OF_SERVER = frozenset(
    {"failed", "interrupted", "internal_error", "model_failed", "storage_failed"}
)
"""Codes of tasks that failed by no fault of their request."""


def dashscope_body(failure: Failure, request_id: str) -> dict[str, Any]:
    """Write a failure as DashScope does."""
    return {"code": to_code(failure), "message": failure.message, "request_id": request_id}


def to_code(failure: Failure) -> str:
    """Give Bailian's code of a failure."""
    known = _BY_CODE.get(failure.code) or _BY_STATUS.get(failure.status)
    return known or ("InternalError" if failure.status >= 500 else "InvalidParameter")


def task_error_code(code: str | None) -> str:
    """Say why a task failed; what is kept of an error is its code alone."""
    if code == TOO_LONG:
        return "InternalError.Timeout"
    status = 500 if code is None or code in _OF_SERVER else 400
    return to_code(Failure(status=status, code=code or "", message=""))
