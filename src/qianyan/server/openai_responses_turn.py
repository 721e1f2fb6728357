"""One turn of a conversation in the Responses API: read, asked, told, and kept.

What was sent and what went before become one chat question; the answer is told by a
`ResponseWriter`, so that whoever streams, waits or comes back later gets the same response.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qianyan.engine.request import Finished, Request
from qianyan.errors import CapacityError, QianyanError
from qianyan.server.errors import RefusedError
from qianyan.server.generate import AnyAnswer as HereAnswer
from qianyan.server.generate import Question, begin
from qianyan.server.openai_reply import TokenWords
from qianyan.server.openai_responses_events import Event, ResponseWriter, new_response
from qianyan.server.openai_responses_items import Conversation, Item, read_items, refused
from qianyan.server.openai_responses_kept import Chain, Turn
from qianyan.server.openai_responses_request import ResponseRequest, rename
from qianyan.server.openai_responses_store import Responses
from qianyan.server.openai_responses_upstream import (
    UpstreamAnswer,
    begin_upstream,
    refuse_what_stays_here,
)
from qianyan.server.serving import Serving

AnyAnswer = HereAnswer | UpstreamAnswer


@dataclass(frozen=True, kw_only=True)
class AskedTurn:
    """A request that has been read: its items, what went before, and the response as it begins."""

    request: ResponseRequest
    items: Sequence[Item]
    chain: Chain
    response: dict[str, Any]

    @property
    def kept(self) -> Turn:
        """What is kept of it."""
        return Turn(response=self.response, input_items=self.items, chain=self.chain)

    def conversation(self) -> Conversation:
        """Put the messages together, those before first."""
        conversation = Conversation()
        for item in self.chain.items:
            conversation.add(item, "previous_response_id")
        for at, item in enumerate(self.items):
            conversation.add(item, f"input[{at}]")
        return conversation

    def question(self, serving: Serving, *, num_dropped: int = 0) -> Question:
        """Ask it as chat would, without the `num_dropped` oldest turns.

        Raises what chat does, about the fields of this request.
        """
        conversation = self.conversation().without_oldest(num_dropped)
        pictures = serving.worker.engine.processor.pictures
        chat = self.request.to_chat(conversation)
        if chat.enable_search and serving.web is None:
            raise RefusedError(
                "This server has no web search; expected tools of type function, or a server "
                "that was started with --search-provider.",
                status=400,
                code="unsupported_value",
                param="tools",
            )
        with self._renaming(conversation):
            return chat.to_question(pictures, serving.settings.limits, serving.web)

    async def check(self, serving: Serving) -> None:
        """Raise now what would be wrong when its turn comes, as far as that can be told."""
        if serving.upstreams.find(self.request.model) is not None:
            refuse_what_stays_here(self.request.to_chat(self.conversation()))
        else:
            await asyncio.to_thread(self.question, serving)

    async def begin(self, serving: Serving) -> tuple[AnyAnswer, ResponseWriter]:
        """Let the answer run; whoever gets it must leave it. Raises what `question` does."""
        upstream = serving.upstreams.find(self.request.model)
        if upstream is not None:
            conversation = self.conversation()
            chat = self.request.to_chat(conversation)
            refuse_what_stays_here(chat)
            with self._renaming(conversation):
                passed = await begin_upstream(serving.upstreams, upstream, chat)
            return passed, ResponseWriter(self.response, summarizes=self.request.summarizes)
        question, answer = await self._begin(serving)
        if isinstance(answer.request, Request):
            sampling = answer.request.sampling
            self.response.update(temperature=sampling.temperature, top_p=sampling.top_p)
        num_top = question.options.get("logprobs")
        tokenizer = serving.worker.engine.processor.tokenizer
        words = None if num_top is None else TokenWords(tokenizer=tokenizer, num_top=num_top)
        return answer, ResponseWriter(
            self.response,
            words=words,
            summarizes=self.request.summarizes,
            search=question.search,
        )

    async def _begin(self, serving: Serving) -> tuple[Question, HereAnswer]:
        """Begin with as many turns as fit, where asked to: without one, two, four … of them."""
        conversation = self.conversation()
        most = conversation.num_turns - 1 if self.request.truncation == "auto" else 0
        num_dropped = 0
        while True:
            question = await asyncio.to_thread(self.question, serving, num_dropped=num_dropped)
            try:
                with self._renaming(conversation.without_oldest(num_dropped)):
                    (answer,) = await begin(serving.worker, question)
                    return question, answer
            except RefusedError as error:
                if num_dropped >= most or not isinstance(error.__cause__, CapacityError):
                    raise
                num_dropped = min(most, max(1, 2 * num_dropped))

    @contextmanager
    def _renaming(self, conversation: Conversation) -> Iterator[None]:
        try:
            yield
        except QianyanError as error:
            raise rename(error, self.request, conversation.places) from error


def read_turn(
    request: ResponseRequest, responses: Responses | None, owner_id: str, *, is_stored: bool
) -> AskedTurn:
    """Read a request; may wait for the disk. Raises RefusedError for what cannot be used."""
    request.refuse_what_is_missing()
    response = new_response(request.model, request.echo(), is_stored=is_stored)
    chain = Chain()
    if responses is not None and request.previous_response_id is not None:
        chain = responses.chain(owner_id, request.previous_response_id)
    items = read_items(request.input or [], response["id"])
    items = [
        _referred(item, f"input[{at}]", responses, owner_id)
        if item["type"] == "item_reference"
        else item
        for at, item in enumerate(items)
    ]
    try:
        json.dumps([items, response], allow_nan=False)
    except ValueError as error:
        raise RefusedError(
            "The body holds a number that is none (NaN or infinity); expected JSON's numbers.",
            status=400,
            code="invalid_json",
        ) from error
    return AskedTurn(request=request, items=items, chain=chain, response=response)


def _referred(item: Item, where: str, responses: Responses | None, owner_id: str) -> Item:
    found = None if responses is None else responses.find_item(owner_id, item["id"])
    if found is None:
        raise refused(f"{where}.id", item["id"], "the id of an item of a stored response")
    return found


async def tell(writer: ResponseWriter, answer: AnyAnswer) -> AsyncIterator[Event]:
    """Tell an answer as it grows, from the first event to the one before the last."""
    for one in writer.begin():
        yield one
    async for event in answer:
        more = (
            writer.finish(event.completion) if isinstance(event, Finished) else writer.push(event)
        )
        for one in more:
            yield one


async def answer_whole(turn: AskedTurn, serving: Serving) -> dict[str, Any]:
    """Answer a turn; gives the response when it is over. Raises what ends the answer early."""
    answer, writer = await turn.begin(serving)
    try:
        async for _ in tell(writer, answer):
            pass
    finally:
        answer.leave()
    return writer.response
