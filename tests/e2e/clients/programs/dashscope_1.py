"""What a user of Bailian's SDK 1.x writes; prints one JSON object, one key for each case."""

import json
import os
from typing import Any

import dashscope

# DASHSCOPE_HTTP_BASE_URL and DASHSCOPE_API_KEY say where.
HELLO = [{"role": "user", "content": "hello"}]
HOW: dict[str, Any] = {"model": "qwen-plus", "max_tokens": 16, "temperature": 0}
said: dict[str, Any] = {"version": dashscope.version.__version__}


def checked(answer: Any) -> Any:
    """Give an answer that is one."""
    assert answer.status_code == 200, answer
    return answer


text = checked(dashscope.Generation.call(messages=HELLO, **HOW))
said["text"] = text.output.text
said["prompt"] = checked(dashscope.Generation.call(prompt="hello", **HOW)).output.text
whole = checked(dashscope.Generation.call(messages=HELLO, result_format="message", **HOW))
said["whole"] = whole.output.choices[0].message.content
said["usage"] = [whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens]

for incremental in (True, False):
    packets = dashscope.Generation.call(
        messages=HELLO, stream=True, incremental_output=incremental, result_format="message", **HOW
    )
    choices = [checked(packet).output.choices[0] for packet in packets]
    contents = [choice.message.content for choice in choices]
    said[f"stream {incremental}"] = "".join(contents) if incremental else contents[-1]
    said[f"reasons {incremental}"] = [choice.finish_reason for choice in choices]

parts = [{"image": os.environ["PICTURE"]}, {"text": "What is it?"}]
looking = [{"role": "user", "content": parts}]
seen = checked(dashscope.MultiModalConversation.call(messages=looking, **HOW))
said["picture"] = {
    "text": seen.output.choices[0].message.content[0]["text"],
    "image_tokens": seen.usage.image_tokens,
}
packets = dashscope.MultiModalConversation.call(
    messages=looking, stream=True, incremental_output=True, **HOW
)
contents = [checked(packet).output.choices[0].message.content for packet in packets]
said["picture stream"] = "".join(part["text"] for content in contents for part in content)

video = [{"video": [os.environ["PICTURE"]] * 4, "fps": 2}, {"text": "What happens?"}]
watched = checked(
    dashscope.MultiModalConversation.call(messages=[{"role": "user", "content": video}], **HOW)
)
said["video"] = watched.usage.video_tokens

tools = json.loads(os.environ["TOOLS"])
calling = {**HOW, "max_tokens": 200, "messages": HELLO, "result_format": "message", **tools}
elsewhere = {"base_address": os.environ["TOOLS_DASHSCOPE_URL"]}
called = checked(dashscope.Generation.call(**calling, **elsewhere)).output.choices[0]
said["calls"] = [call["function"] for call in called.message.tool_calls]
last = [
    checked(packet)
    for packet in dashscope.Generation.call(
        **calling, **elsewhere, stream=True, incremental_output=False
    )
][-1].output.choices[0]
said["calls stream"] = [call["function"] for call in last.message.tool_calls]
said["calls reason"] = [called.finish_reason, last.finish_reason]

local = [{"role": "user", "content": [{"image": os.environ["FILE"]}, {"text": "What is it?"}]}]
sent_up = checked(dashscope.MultiModalConversation.call(messages=local, **HOW))
said["local file"] = sent_up.output.choices[0].message.content[0]["text"]

later = {"headers": {"X-DashScope-Async": "enable"}}
task = checked(dashscope.Generation.call(messages=HELLO, result_format="message", **HOW, **later))
done = dashscope.client.base_api.BaseAsyncApi.wait(task.output["task_id"])
said["task"] = [done.output["task_status"], done.output["choices"][0]["message"]["content"]]

missing = dashscope.Generation.call(**{**HOW, "model": "gpt-4o"}, messages=HELLO)
said["missing"] = [missing.status_code, missing.code]
wrong = next(iter(dashscope.Generation.call(messages=HELLO, stream=True, top_p=0, **HOW)))
said["wrong"] = [wrong.status_code, wrong.code, wrong.message]
print(json.dumps(said))
