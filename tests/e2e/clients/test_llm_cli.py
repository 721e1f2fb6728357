"""Simon Willison's `llm` in a shell, unmodified, against `qianyan serve` over TCP."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

KEY = "sk-e2e-0123456789"


@pytest.fixture
def folder(programs: Any, house: Any, tmp_path: Path) -> Path:
    """Its settings: the server as a model of OpenAI's kind."""
    model = {
        "model_id": "house",
        "model_name": "qwen-plus",
        "api_base": f"{house.address}/v1",
        "api_key_name": "qianyan",
        "vision": True,
        "supports_schema": True,
    }
    (tmp_path / "keys.json").write_text(json.dumps({"qianyan": KEY}))
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    return tmp_path


@pytest.mark.parametrize("how", [[], ["--no-stream"]])
def test_it_answers_streamed_and_whole(
    programs: Any, folder: Path, hello: str, how: list[str]
) -> None:
    said = programs.say(
        "llm", "-m", "house", *how, "-o", "max_tokens", "16", "hello", LLM_USER_PATH=str(folder)
    )
    assert said.strip() == hello.strip()


def test_a_file_is_attached(programs: Any, folder: Path) -> None:
    held = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 20, 20)).save(held, "PNG")
    (folder / "red.png").write_bytes(held.getvalue())
    said = programs.say(
        "llm", "-m", "house", "-a", str(folder / "red.png"), "-o", "max_tokens", "16",
        "What is it?", LLM_USER_PATH=str(folder),
    )  # fmt: skip
    assert said.strip()


def test_a_schema_is_kept_to(programs: Any, folder: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"fire": {"type": "boolean"}},
        "required": ["fire"],
        "additionalProperties": False,
    }
    said = programs.say(
        "llm", "-m", "house", "--schema", json.dumps(schema), "Is it burning?",
        LLM_USER_PATH=str(folder),
    )  # fmt: skip
    assert isinstance(json.loads(said)["fire"], bool)
