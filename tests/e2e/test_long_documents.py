"""A document longer than the model's context, asked about as a user would."""

import base64
from pathlib import Path
from typing import Any

import pytest

from qianyan.engine.engine import Engine
from qianyan.engine.options import Lengths, prompt_room
from qianyan.errors import CapacityError


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("bundled")


def ask(file_data: str, question: str) -> list[dict[str, Any]]:
    file = {"type": "file", "file": {"filename": "手册.md", "file_data": file_data}}
    return [{"role": "user", "content": [file, {"type": "text", "text": question}]}]


def handbook() -> str:
    sections = [f"# 第{number}节\n关于第{number}项规定的说明。" * 8 for number in range(300)]
    sections[177] = "# 起重\n起重机每天早上六点检查。"
    return "\n\n".join(sections)


def test_a_long_document_is_answered_from_the_passages_that_matter(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "手册.md"
    path.write_text(handbook())
    done = engine.chat(ask(str(path), "起重机什么时候检查？"), max_tokens=8)
    length = engine.config.max_model_len or 2048
    assert length // 2 < done.usage.prompt_tokens <= length - 8
    prompt = engine.processor.tokenizer.decode(done.prompt_token_ids, skip_special=False)
    assert "起重机每天早上六点检查。" in prompt
    (note,) = done.notes
    assert note.startswith("手册.md: too long to be read whole; ")
    encoded = base64.b64encode(handbook().encode()).decode()
    same = engine.chat(
        ask(f"data:text/markdown;base64,{encoded}", "起重机什么时候检查？"), max_tokens=8
    )
    assert same.prompt_token_ids == done.prompt_token_ids


def test_what_a_user_writes_is_never_shortened(engine: Engine) -> None:
    with pytest.raises(CapacityError, match="tokens"):
        engine.chat([{"role": "user", "content": handbook()}], max_tokens=8)


def test_the_answer_that_was_asked_for_keeps_its_room() -> None:
    lengths = Lengths(max_model_len=1000, max_cache_tokens=5000)
    assert prompt_room({}, lengths) == 750
    assert prompt_room({"max_tokens": 10}, lengths) == 990
    assert prompt_room({"max_tokens": 10, "max_completion_tokens": 100}, lengths) == 900
    assert prompt_room({"max_tokens": 5000}, lengths) == 1
