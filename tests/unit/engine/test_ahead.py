"""Things are made ahead on threads, a bounded number, and handed out in order."""

import threading

import pytest

from qianyan.engine.ahead import MOST_AHEAD, Ahead


def test_things_come_in_the_order_of_the_items() -> None:
    later = threading.Event()

    def make(number: int) -> int:
        if number == 0:
            assert later.wait(10)  # the first one is finished last
        later.set()
        return number * 10

    with Ahead(make, range(5)) as ahead:
        taken = ahead.take(5, is_idle=True)
    assert taken == [0, 10, 20, 30, 40]


def test_a_busy_taker_gets_only_what_is_ready() -> None:
    allowed = threading.Event()

    def make(number: int) -> int:
        assert allowed.wait(10)
        return number

    with Ahead(make, range(3)) as ahead:
        assert ahead.take(3, is_idle=False) == []
        allowed.set()
        assert ahead.take(3, is_idle=True) == [0, 1, 2]


def test_no_more_is_made_ahead_than_the_limit() -> None:
    begun: list[int] = []
    with Ahead(lambda number: begun.append(number) or number, range(100)) as ahead:
        assert ahead.take(1, is_idle=True) == [0]
        assert len(ahead.take(100, is_idle=True)) == MOST_AHEAD
    assert len(begun) <= 1 + 2 * MOST_AHEAD


def test_what_fails_is_raised_in_its_turn() -> None:
    def make(number: int) -> float:
        return 1 / (2 - number)

    with Ahead(make, range(4)) as ahead:
        assert ahead.take(2, is_idle=True) == [0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            ahead.take(1, is_idle=True)


def test_a_single_thing_is_made_on_the_thread_of_its_taker() -> None:
    with Ahead(lambda _: threading.get_ident(), [0]) as ahead:
        assert ahead.take(1, is_idle=False) == [threading.get_ident()]
        assert ahead.take(1, is_idle=True) == []
