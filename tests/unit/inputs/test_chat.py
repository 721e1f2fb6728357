"""Chat templates: found, rendered as published, and kept in their sandbox."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.chat import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def rendered(source: str, messages: list[dict[str, Any]] = HELLO, **variables: Any) -> str:
    return ChatTemplate(source).render(messages, **variables)


def test_templates_are_found_in_their_order(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplate.from_folder(tmp_path)
    config = {
        "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "c"}]
    }
    for name, text, expected in (
        ("tokenizer_config.json", json.dumps(config), "c"),
        ("tokenizer_config.json", json.dumps({"chat_template": "b"}), "b"),
        ("chat_template.json", json.dumps({"chat_template": "a"}), "a"),
        ("chat_template.jinja", "火", "火"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert ChatTemplate.from_folder(tmp_path).render(HELLO) == expected


def test_blocks_are_trimmed_as_published_templates_expect() -> None:
    source = (
        "{%- for message in messages %}\n    {% if true %}\n{{ message.content }}\n"
        "    {% endif %}\n{% endfor %}"
    )
    assert rendered(source) == "hello\n"


def test_json_is_written_without_escapes() -> None:
    tools = [{"name": "报警 <a> & 'b'", "n": [1, 2.5, None, True]}]
    assert (
        rendered("{{ tools | tojson }}", tools=tools)
        == """[{"name": "报警 <a> & 'b'", "n": [1, 2.5, null, true]}]"""
    )
    assert rendered("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == (
        '{\n "a": 2,\n "b": 1\n}'
    )


def test_templates_have_their_usual_tools() -> None:
    source = (
        "{% set state = namespace(n=0) %}"
        "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}"
        "{% set state.n = state.n + i %}{% endfor %}{{ state.n }} "
        "{{ strftime_now('%Y') | length }} "
        "{% generation %}{{ messages[0].content }}{% endgeneration %} {{ documents is none }}"
    )
    assert rendered(source) == "3 4 hello True"


def test_variables_and_special_tokens_reach_the_template() -> None:
    template = ChatTemplate(
        "{{ eos_token }}{{ enable_thinking }}", special_tokens={"eos_token": "E"}
    )
    assert template.render(HELLO, enable_thinking=False) == "EFalse"


def test_a_template_may_refuse_messages_in_its_own_words() -> None:
    with pytest.raises(InputError, match="refuses these messages: 'No system role!'"):
        rendered("{{ raise_exception('No system role!') }}")


@pytest.mark.parametrize(
    "source",
    ["{{ messages[3].content.x }}", "{{ messages + 1 }}", "{{ 1 / 0 }}", "{{ range(9999999) }}",
     "{{ 'x'.nothing() }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"],
)  # fmt: skip
def test_faults_of_a_template_are_one_sentence(source: str) -> None:
    with pytest.raises(InputError, match="cannot write these messages"):
        rendered(source)


def test_an_escape_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="reaches for what a template may not touch"):
        rendered("{{ ''.__class__.__mro__[1].__subclasses__() }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__dict__ = 1 %}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages.clear() }}",
    ],
)
def test_no_template_leaves_the_sandbox(source: str) -> None:
    """It is refused, or writes nothing it should not know; messages stay as they are."""
    messages = [{"role": "user", "content": "hello"}]
    text = ""
    with contextlib.suppress(ConfigError, InputError):
        text = rendered(source, messages)
    assert "class" not in text
    assert "<" not in text
    assert messages == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ a b }}", "{% for x in y %}", "{{ x | no_such }}"]
)
def test_templates_that_are_no_jinja_are_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="not valid Jinja"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        ("{{ messages[0].content }}", False),
        ("{{ 'user: ' + messages[0].content }}", False),
        ("{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}", False),
        ("{% if messages[0].content is string %}{{ messages[0].content }}{% else %}"
         "{% for part in messages[0].content %}{{ part.text }}{% endfor %}{% endif %}", True),
        ("{{ raise_exception('never') }}", False),
    ],
)  # fmt: skip
def test_whether_a_template_takes_parts_is_found_by_trying(source: str, takes_parts: bool) -> None:
    assert ChatTemplate(source).takes_parts is takes_parts


def test_the_official_template_inserts_its_system_turn(shared: Path) -> None:
    template = ChatTemplate.from_folder(shared / "tokenizer" / "qwen2.5-vl")
    assert template.takes_parts
    assert template.render(HELLO) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
