"""How a user of Bailian's SDK 1.x hears an answer; prints one JSON object, a key for each way."""

import base64
import json
from typing import Any

import dashscope

# DASHSCOPE_HTTP_BASE_URL and DASHSCOPE_API_KEY say where.
ASKED: dict[str, Any] = {
    "model": "qwen2.5-omni-7b",
    "messages": [{"role": "user", "content": [{"text": "Who is there?"}]}],
    "modalities": ["text", "audio"],
    "audio": {"voice": "Ethan", "format": "wav"},
    "max_tokens": 8,
    "temperature": 0,
    "seed": 4,
}
said: dict[str, Any] = {"version": dashscope.version.__version__}
whole = dashscope.MultiModalConversation.call(**ASKED)
assert whole.status_code == 200, whole
said["whole"] = [whole.output.choices[0].message.content[0]["text"], whole.output.audio["data"]]
said["audio_tokens"] = whole.usage["output_tokens_details"]["audio_tokens"]
for incremental in (True, False):
    texts, sounds = [], []
    for packet in dashscope.MultiModalConversation.call(
        stream=True, incremental_output=incremental, **ASKED
    ):
        assert packet.status_code == 200, packet
        texts.append("".join(part["text"] for part in packet.output.choices[0].message.content))
        sounds.append(base64.b64decode(packet.output.audio["data"]))
    text = "".join(texts) if incremental else texts[-1]
    said[f"stream {incremental}"] = [text, base64.b64encode(b"".join(sounds)).decode()]
print(json.dumps(said))
