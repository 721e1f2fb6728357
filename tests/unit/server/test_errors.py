"""Which status and code an error gets, and whether the same request may be tried again."""

import errno

import pytest

from qianyan.errors import (
    CapacityError,
    CheckpointError,
    EndpointError,
    InputError,
    NoMemoryError,
    ReplyError,
    quote,
)
from qianyan.server.asking import Asked, asking
from qianyan.server.dashscope_errors import dashscope_body
from qianyan.server.errors import BodyError, RefusedError, openai_body, to_failure
from qianyan.server.task_runner import _is_of_request

REFUSED = RefusedError("No.", status=429, code="limit_tokens", retry_after_s=7)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after_s", "native"),
    [
        (
            CapacityError("It is too long."),
            400,
            "context_length_exceeded",
            None,
            "InvalidParameter",
        ),
        (NoMemoryError("It is full."), 503, "no_memory", 10, "ModelServingError"),
        (InputError("It is wrong."), 400, "bad_input", None, "InvalidParameter"),
        (ReplyError("It is odd."), 500, "unreadable_reply", None, "InternalError"),
        (REFUSED, 429, "limit_tokens", 7, "Throttling.AllocationQuota"),
        (BodyError(REFUSED), 429, "limit_tokens", 7, "Throttling.AllocationQuota"),
        (OSError(errno.ENOSPC, "full"), 503, "storage_failed", 10, "ModelUnavailable"),
        (OSError(errno.EACCES, "/etc/x"), 500, "internal_error", None, "InternalError"),
        (CheckpointError("/models/x is odd."), 500, "internal_error", None, "InternalError"),
        (ZeroDivisionError("secret"), 500, "internal_error", None, "InternalError"),
    ],
)
def test_every_error_has_its_status_and_code(
    error: Exception, status: int, code: str, retry_after_s: int | None, native: str
) -> None:
    with asking(Asked()) as asked:
        failure = to_failure(error)
    assert (failure.status, failure.code, failure.retry_after_s) == (status, code, retry_after_s)
    assert asked.error_code == code
    assert dashscope_body(failure, "id")["code"] == native
    written = openai_body(failure, "id")["error"]
    assert (written["type"] == "server_error") is (status >= 500)
    for secret in ("/etc", "/models", "secret"):
        assert secret not in failure.message


def test_what_finds_no_memory_now_is_tried_again_and_what_never_fits_is_not() -> None:
    assert not _is_of_request(NoMemoryError("It is full."))
    assert not _is_of_request(EndpointError("It is away."))
    assert _is_of_request(CapacityError("It is too long."))


def test_half_a_character_is_shown_so_that_it_can_be_sent() -> None:
    assert quote("a\ud800").encode() == b"'a?'"
