"""Pictures in a line: worked on at once, handed on in order, in turn, and within memory."""

import threading
import time

import pytest

from qianyan.inspection.line import Room, Turn, work_in_line


def test_items_come_out_in_order_whatever_is_finished_first() -> None:
    def work(number: int, turn: Turn) -> int:
        time.sleep(0.02 * (4 - number))
        return number * 10

    assert list(work_in_line(range(4), work, at_once=4)) == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_so_many_are_worked_on_at_once_and_no_more() -> None:
    together = threading.Barrier(3)
    in_hand, most = set(), []
    lock = threading.Lock()

    def work(number: int, turn: Turn) -> None:
        with lock:
            in_hand.add(number)
            most.append(len(in_hand))
        together.wait(10)
        with lock:
            in_hand.discard(number)

    assert len(list(work_in_line(range(6), work, at_once=3))) == 6
    assert max(most) == 3


def test_turns_come_in_the_order_of_the_items() -> None:
    order: list[int] = []

    def work(number: int, turn: Turn) -> None:
        time.sleep(0.02 * (4 - number))
        if number != 1:  # who does not want a turn holds nobody up
            with turn:
                order.append(number)

    list(work_in_line(range(4), work, at_once=4))
    assert order == [0, 2, 3]


def test_what_fails_is_raised_in_its_place_and_nothing_more_begins() -> None:
    begun: list[int] = []

    def work(number: int, turn: Turn) -> float:
        begun.append(number)
        return 1 / (1 - number)

    line = work_in_line(range(100), work, at_once=2)
    assert next(line) == (0, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(line)
    assert len(begun) < 10


def test_an_abandoned_line_ends_the_work_in_hand_and_begins_no_more() -> None:
    begun: list[int] = []

    def work(number: int, turn: Turn) -> None:
        begun.append(number)

    line = work_in_line(range(100), work, at_once=3)
    next(line)
    line.close()
    assert len(begun) < 10


def test_room_is_given_until_it_is_full_and_to_one_alone_whatever_its_size() -> None:
    room = Room(most_bytes=100)
    room.take(60)
    entered = threading.Event()

    def enter() -> None:
        room.take(1000)
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    room.give_back(60)
    assert entered.wait(10)
    thread.join()
