"""Responses are kept turn by turn, for their owner alone, as long as they are gone on from."""

from pathlib import Path
from typing import Any

import pytest

from qianyan.server.database import (
    ConflictError,
    Database,
    NotFoundError,
    QuotaError,
    open_database,
)
from qianyan.server.errors import RefusedError
from qianyan.server.openai_responses_kept import RESPONSE_KIND, Chain, ResponseLimits, Turn
from qianyan.server.openai_responses_store import Responses
from qianyan.server.task_rows import TaskState
from qianyan.server.tasks import Tasks


def response_of(number: int, *, status: str = "completed", text: str = "yes") -> dict[str, Any]:
    name = f"{number:032x}"
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"id": f"msg_{name}o0", "type": "message", "role": "assistant", "content": content}
    return {"id": f"resp_{name}", "model": "m", "status": status, "output": [message]}


def turn_of(number: int, chain: Chain | None = None, **words: Any) -> Turn:
    sent = {"id": f"msg_{number:032x}i0", "type": "message", "role": "user", "content": []}
    return Turn(response=response_of(number, **words), input_items=[sent], chain=chain or Chain())


def queued(number: int) -> Turn:
    return Turn(response={**response_of(number, status="queued"), "output": []}, input_items=[])


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(tmp_path)


def ids(responses: Responses, numbers: range) -> list[int]:
    kept = []
    for number in numbers:
        try:
            responses.find("k", f"resp_{number:032x}")
        except NotFoundError:
            continue
        kept.append(number)
    return kept


def test_a_chain_has_every_turn_in_order(database: Database) -> None:
    responses = Responses(database)
    chain = Chain()
    for number in range(3):
        turn = turn_of(number, chain)
        responses.add("k", turn)
        chain = responses.chain("k", turn.response["id"])
    assert [item["id"][-34:] for item in chain.items] == [
        f"{number:032x}{side}0" for number in range(3) for side in "io"
    ]
    assert len(chain.response_ids) == 3
    assert chain.size_bytes > 300


def test_another_keys_responses_are_not_there(database: Database) -> None:
    responses = Responses(database)
    turn = turn_of(1)
    responses.add("k", turn)
    known = turn.response["id"]
    with pytest.raises(NotFoundError):
        responses.find("other", known)
    with pytest.raises(NotFoundError):
        responses.delete("other", known)
    with pytest.raises(NotFoundError):
        responses.cancel("other", known)
    with pytest.raises(NotFoundError):
        responses.input_page("other", known, after=None, limit=1, order="asc")
    with pytest.raises(RefusedError) as refused:
        responses.chain("other", known)
    assert (refused.value.status, refused.value.code) == (404, "previous_response_not_found")
    item_id = turn.response["output"][0]["id"]
    assert responses.find_item("other", item_id) is None
    assert responses.find_item("k", item_id) == turn.response["output"][0]
    assert responses.find_item("k", turn.input_items[0]["id"]) == turn.input_items[0]
    assert responses.find_item("k", "msg_1") is None


def test_a_chain_with_a_hole_cannot_go_on(database: Database) -> None:
    responses = Responses(database)
    first, second = turn_of(1), None
    responses.add("k", first)
    second = turn_of(2, responses.chain("k", first.response["id"]))
    responses.add("k", second)
    responses.delete("k", first.response["id"])
    with pytest.raises(RefusedError, match=f"{1:032x}"):
        responses.chain("k", second.response["id"])


def test_chains_have_a_length_and_a_size(database: Database) -> None:
    short = Responses(database, ResponseLimits(max_chain=1))
    turn = turn_of(1, text="x" * 500)
    short.add("k", turn)
    with pytest.raises(QuotaError, match="expected fewer than 1"):
        short.chain("k", turn.response["id"])
    small = Responses(database, ResponseLimits(max_chain_bytes=500))
    with pytest.raises(QuotaError, match="Begin a new one"):
        small.chain("k", turn.response["id"])


def test_what_is_gone_on_from_lives_as_long_as_what_follows(database: Database) -> None:
    """The oldest go first, and no chain is torn while others are older."""
    responses = Responses(database, ResponseLimits(max_kept=3))
    for number in range(3):
        responses.add("k", turn_of(number))
    responses.add("k", turn_of(3, responses.chain("k", f"resp_{0:032x}")))
    assert ids(responses, range(4)) == [0, 2, 3]
    responses.add("other", turn_of(9))
    assert ids(responses, range(4)) == [0, 2, 3], "another key's responses take no room"


def test_bytes_are_bounded_too(database: Database) -> None:
    responses = Responses(database, ResponseLimits(max_kept_bytes=2500))
    for number in range(4):
        responses.add("k", turn_of(number, text="x" * 800))
    assert ids(responses, range(4)) == [2, 3]


def test_the_expired_are_gone_and_swept(database: Database) -> None:
    responses = Responses(database, ResponseLimits(keep_s=0))
    responses.add("k", turn_of(1))
    assert ids(responses, range(1, 2)) == []
    assert responses.sweep() == 1


def test_a_response_waits_is_made_and_is_kept(database: Database) -> None:
    responses, tasks = Responses(database), Tasks(database)
    responses.submit("k", queued(1), {"response_id": queued(1).response["id"]})
    name = queued(1).response["id"]
    assert responses.find("k", name)["status"] == "queued"
    with pytest.raises(ConflictError, match="is queued"):
        responses.chain("k", name)
    task = tasks.claim("runner")
    assert task
    row = responses.begin(name)
    assert row
    assert responses.find("k", name)["status"] == "in_progress"
    responses.finish(response_of(1))
    assert responses.find("k", name) == response_of(1)
    assert responses.begin(name) is None
    assert responses.chain("k", name).items == tuple(response_of(1)["output"])
    assert responses.cancel("k", name)["status"] == "completed", "what is over stays as it is"


def test_a_cancelled_response_leaves_the_line_and_stays_cancelled(database: Database) -> None:
    responses, tasks = Responses(database), Tasks(database)
    responses.submit("k", queued(1), {})
    name = queued(1).response["id"]
    assert responses.cancel("k", name)["status"] == "cancelled"
    assert tasks.claim("runner") is None
    responses.finish(response_of(1))
    assert responses.find("k", name)["status"] == "cancelled"
    with pytest.raises(ConflictError, match="is cancelled"):
        responses.chain("k", name)
    responses.add("k", turn_of(2))
    with pytest.raises(ConflictError, match="not made in the background"):
        responses.cancel("k", turn_of(2).response["id"])


def test_a_deleted_response_leaves_the_line(database: Database) -> None:
    responses, tasks = Responses(database), Tasks(database)
    responses.submit("k", queued(1), {})
    responses.delete("k", queued(1).response["id"])
    assert tasks.claim("runner") is None
    assert responses.begin(queued(1).response["id"]) is None


def test_a_response_whose_task_failed_has_failed(database: Database) -> None:
    responses, tasks = Responses(database), Tasks(database)
    responses.submit("k", queued(1), {})
    task = tasks.claim("runner")
    assert task
    responses.begin(queued(1).response["id"])
    tasks.fail(task, "runner", code="interrupted", message="The server stopped each time.")
    assert tasks.find("k", task.id, kind=RESPONSE_KIND).state == TaskState.FAILED
    found = responses.find("k", queued(1).response["id"])
    assert found["status"] == "failed"
    assert found["error"] == {"code": "server_error", "message": "The server stopped each time."}


def test_the_line_of_an_owner_is_bounded(database: Database) -> None:
    responses = Responses(database, ResponseLimits(max_background=1))
    responses.submit("k", queued(1), {})
    with pytest.raises(RefusedError) as refused:
        responses.submit("k", queued(2), {})
    assert (refused.value.status, refused.value.param) == (429, "background")
    responses.submit("other", queued(3), {})


def test_input_items_come_in_pages(database: Database) -> None:
    responses = Responses(database)
    sent = [{"id": f"msg_{0:032x}i{number}", "type": "message"} for number in range(5)]
    responses.add("k", Turn(response=response_of(0), input_items=sent))
    name = response_of(0)["id"]
    first = responses.input_page("k", name, after=None, limit=2, order="desc")
    assert [item["id"][-1] for item in first.items] == ["4", "3"]
    assert first.has_more
    rest = responses.input_page("k", name, after=sent[1]["id"], limit=9, order="asc")
    assert [item["id"][-1] for item in rest.items] == ["2", "3", "4"]
    assert not rest.has_more
    with pytest.raises(NotFoundError, match="no input item"):
        responses.input_page("k", name, after="msg_x", limit=9, order="asc")
