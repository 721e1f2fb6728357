"""Functions for templates that know of none: the prompt is the one that Qwen2.5 learnt."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.checkpoint import BUNDLED_FOLDER
from qianyan.inputs.chat import ChatTemplate
from qianyan.inputs.processor import Processor
from qianyan.inputs.tool_words import write_tools

# What Qwen2.5-VL's template does with messages and pictures, written anew.
WITHOUT_TOOLS = ChatTemplate(
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}<|image_pad|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEAD = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
"""  # noqa: E501
TURNS = """
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "assistant" and not message.tool_calls %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HERMES = ChatTemplate(HEAD + TURNS)
"""How Qwen2.5's own template writes tools, calls and results."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "报警 <a> & 'b'",
            "parameters": {"type": "object", "properties": {"floor": {"type": "integer"}}},
        },
    }
    for name in ("ring", "tally")
]


def called(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Watch the site."}
ASKED = {"role": "user", "content": "Is there fire?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [called("ring", floor=3, who="值班")]}
BOTH = {**CALLED, "content": "I ring.", "tool_calls": [called("ring", floor=3), called("tally")]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": '{"rang": true}'}
LATER = {"role": "assistant", "content": "Done."}


@pytest.mark.parametrize("tools", [TOOLS, TOOLS[:1], None], ids=["two", "one", "none"])
@pytest.mark.parametrize(
    "messages",
    [
        [ASKED],
        [SYSTEM, ASKED],
        [SYSTEM, ASKED, CALLED, RESULT],
        [ASKED, BOTH, RESULT, RESULT, LATER, ASKED],
        [ASKED, CALLED, RESULT, CALLED, RESULT, RESULT],
    ],
    ids=["asked", "system", "result", "two results", "two rounds"],
)
def test_a_prompt_with_functions_is_the_one_of_qwen2_5(messages: Any, tools: Any) -> None:
    before = copy.deepcopy(messages)
    written = write_tools(messages, tools, WITHOUT_TOOLS)
    assert WITHOUT_TOOLS.render(written) == HERMES.render(messages, tools=tools)
    assert messages == before, "the caller's are left alone"


def test_pictures_keep_their_places_beside_functions() -> None:
    picture = [{"type": "image"}, {"type": "text", "text": "Is there fire?"}]
    seen = [{"type": "text", "text": "Look: "}, {"type": "image"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Watch the site."}]},
        {"role": "user", "content": picture},
        CALLED,
        {**RESULT, "content": seen},
        RESULT,
    ]
    flat = [
        SYSTEM,
        {"role": "user", "content": "<|image_pad|>Is there fire?"},
        CALLED,
        {**RESULT, "content": "Look: <|image_pad|>"},
        RESULT,
    ]
    written = write_tools(messages, TOOLS, WITHOUT_TOOLS)
    assert WITHOUT_TOOLS.render(written) == HERMES.render(flat, tools=TOOLS)


def test_a_template_without_words_of_its_own_begins_with_the_functions() -> None:
    bare = ChatTemplate("{% for message in messages %}{{ message.content }}|{% endfor %}")
    assert bare.render(write_tools([ASKED], TOOLS, bare)).startswith("# Tools\n\nYou may call")


def test_templates_that_speak_of_functions_are_told_from_those_that_do_not() -> None:
    assert HERMES.takes_tools
    assert not WITHOUT_TOOLS.takes_tools


def test_the_bundled_model_is_shown_functions_in_the_prompt_it_reads() -> None:
    processor = Processor.from_folder(BUNDLED_FOLDER / "judge")
    inputs = processor([ASKED], tools=TOOLS)
    read = processor.tokenizer.decode(inputs.prompt_token_ids, skip_special=False)
    assert json.dumps(TOOLS[1], ensure_ascii=False) in read
    assert read == processor.template.render(write_tools([ASKED], TOOLS, processor.template))


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
def test_the_official_templates_of_picture_models_are_shown_functions(
    shared: Path, name: str
) -> None:
    template = ChatTemplate.from_folder(shared / "tokenizer" / name)
    assert not template.takes_tools
    messages = [SYSTEM, ASKED, BOTH, RESULT, RESULT]
    written = template.render(write_tools(messages, TOOLS, template))
    assert written == HERMES.render(messages, tools=TOOLS)
    assert template.render(write_tools([ASKED], TOOLS, template)) == HERMES.render(
        [ASKED], tools=TOOLS
    )
