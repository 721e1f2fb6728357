"""Requests and tokens a minute: spent, filled up again, told in headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qianyan.server.errors import RefusedError
from qianyan.server.rates import Rates
from qianyan.server.settings import ServerLimits


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_may_ask_so_often_a_minute_and_another_is_not_touched() -> None:
    clock = Clock()
    rates = Rates(ServerLimits(requests_per_minute=3), clock)
    for _ in range(3):
        rates.pay_request("a")
    with pytest.raises(RefusedError) as refused:
        rates.pay_request("a")
    assert refused.value.status == 429
    assert refused.value.code == "limit_requests"
    assert refused.value.retry_after_s == 20
    rates.pay_request("b")
    clock.now += 20
    rates.pay_request("a")


def test_tokens_are_paid_afterwards_and_waited_for() -> None:
    clock = Clock()
    rates = Rates(ServerLimits(tokens_per_minute=600), clock)
    rates.pay_request("a")
    rates.pay_tokens("a", 700)
    with pytest.raises(RefusedError) as refused:
        rates.pay_request("a")
    assert refused.value.code == "limit_tokens"
    assert refused.value.retry_after_s == 11
    clock.now += 11
    rates.pay_request("a")


def test_headers_tell_limit_rest_and_reset() -> None:
    rates = Rates(ServerLimits(requests_per_minute=60), Clock())
    rates.pay_request("a")
    assert rates.headers("a") == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.0s",
    }


def test_without_limits_nothing_is_refused_or_told() -> None:
    rates = Rates(ServerLimits(), Clock())
    for _ in range(1000):
        rates.pay_request("a")
    rates.pay_tokens("a", 10**9)
    rates.pay_request("a")
    assert rates.headers("a") == {}


@given(st.lists(st.floats(0, 5), max_size=60))
def test_never_more_pass_than_a_full_bucket_and_what_came_in(pauses: list[float]) -> None:
    clock = Clock()
    rates = Rates(ServerLimits(requests_per_minute=30), clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        try:
            rates.pay_request("a")
        except RefusedError:
            continue
        passed += 1
    assert passed <= 30 + sum(pauses) / 2 + 1e-6
