"""Checks for schemathesis: no fault of the server's, and refusals in each dialect's words."""

from typing import Any

import schemathesis

OPENAI = {"message", "type", "param", "code"}
DASHSCOPE = {"code", "message", "request_id"}


@schemathesis.check
def never_fails(_ctx: Any, response: Any, _case: Any) -> None:
    """Refuse whatever was sent, but never break over it."""
    assert response.status_code < 500, response.text[:500]


@schemathesis.check
def refuses_in_its_dialect(_ctx: Any, response: Any, case: Any) -> None:
    """Give an error its body, whatever was wrong."""
    if not 400 <= response.status_code < 500:
        return
    body = response.json()
    if case.path.startswith("/api/v1/"):
        assert set(body) == DASHSCOPE, body
        assert body["code"], body
        assert body["message"], body
    else:
        assert set(body) == {"error", "request_id"}, body
        assert set(body["error"]) == OPENAI, body
        assert body["error"]["message"], body
