"""What a user of langchain-openai writes; prints one JSON object, one key for each case."""

import asyncio
import json
import os
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

# OPENAI_API_BASE and OPENAI_API_KEY say where.
chat = ChatOpenAI(model="qwen-plus", max_tokens=16, temperature=0, max_retries=0)
HELLO = [("human", "hello")]
said: dict[str, Any] = {}


@tool
def ring_alarm(level: str, loud: bool) -> str:
    """Ring the alarm."""
    return f"{level} {loud}"


class Verdict(BaseModel):
    """Whether it burns."""

    fire: bool


async def ask_many() -> list[Any]:
    """Ask eight times at once."""
    return list(await asyncio.gather(*(chat.ainvoke(HELLO) for _ in range(8))))


whole = chat.invoke(HELLO)
said["whole"] = {"text": whole.content, "usage": whole.usage_metadata}
said["stream"] = "".join(chunk.content for chunk in chat.stream(HELLO))
said["batch"] = [one.content for one in chat.batch([HELLO, HELLO])]
said["many"] = [one.content for one in asyncio.run(ask_many())]

parts = [
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": os.environ["PICTURE"]}},
]
said["picture"] = chat.invoke([HumanMessage(parts)]).usage_metadata

form = chat.with_structured_output(Verdict, method="json_schema")
said["form"] = form.invoke(HELLO).model_dump()

calling = ChatOpenAI(
    model="qwen-plus", base_url=os.environ["TOOLS_BASE_URL"], max_tokens=200, temperature=0
).bind_tools([ring_alarm], tool_choice="any", parallel_tool_calls=False)
called = calling.invoke(HELLO)
joined = None
for chunk in calling.stream(HELLO):
    joined = chunk if joined is None else joined + chunk
said["calls"] = [called.tool_calls, joined.tool_calls if joined else None]
(call,) = called.tool_calls
result = ToolMessage(ring_alarm.invoke(call["args"]), tool_call_id=call["id"])
said["after"] = calling.invoke([*HELLO, called, result]).response_metadata["finish_reason"]
print(json.dumps(said))
