"""What a user of LiteLLM writes; prints one JSON object, one key for each case.

Its provider `openai` is told the address by each call, `dashscope` by DASHSCOPE_API_BASE.
"""

import asyncio
import json
import os
from typing import Any

import litellm

HELLO = [{"role": "user", "content": "hello"}]
WHERE = {
    "openai/qwen-plus": {
        "api_base": os.environ["OPENAI_BASE_URL"],
        "api_key": os.environ["OPENAI_API_KEY"],
    },
    "dashscope/qwen-plus": {},
}
said: dict[str, Any] = {}


async def ask_many(model: str) -> list[str]:
    """Ask eight times at once."""
    asked = (litellm.acompletion(model, HELLO, max_tokens=16, **WHERE[model]) for _ in range(8))
    return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]


for model, where in WHERE.items():
    how = {"max_tokens": 16, "num_retries": 0, **where}
    whole = litellm.completion(model, HELLO, **how)
    chunks = list(
        litellm.completion(model, HELLO, stream=True, stream_options={"include_usage": True}, **how)
    )
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": os.environ["PICTURE"]}},
    ]
    seen = litellm.completion(model, [{"role": "user", "content": parts}], **how)
    try:
        litellm.completion("/".join([model.split("/")[0], "gpt-4o"]), HELLO, **how)
    except litellm.exceptions.NotFoundError as error:
        refused = type(error).__name__
    said[model] = {
        "whole": whole.choices[0].message.content,
        "stream": "".join(one.choices[0].delta.content or "" for one in chunks if one.choices),
        "picture": seen.usage.prompt_tokens,
        "hello": whole.usage.prompt_tokens,
        "many": asyncio.run(ask_many(model)),
        "refused": refused,
    }

where = {"api_base": os.environ["TOOLS_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
tools = json.loads(os.environ["TOOLS"])
called = litellm.completion("openai/qwen-plus", HELLO, max_tokens=200, **tools, **where)
pieces = list(
    litellm.completion("openai/qwen-plus", HELLO, max_tokens=200, stream=True, **tools, **where)
)
joined = litellm.stream_chunk_builder(pieces)
said["calls"] = [
    [call.function.model_dump() for call in one.choices[0].message.tool_calls]
    for one in (called, joined)
]
print(json.dumps(said))
