"""`qianyan serve` as its users start it, and programs of its users in an environment of their own.

The server is a process with a port and keys from the environment. The programs are those in
`programs/`; what they need is in `requirements.txt` and `package.json`, and `make clients` installs
it into `.venv-clients`.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
from PIL import Image

KEY = "sk-e2e-0123456789"
OTHER_KEY = "sk-e2e-9876543210"
INSTALLED = Path(__file__).resolve().parents[3] / ".venv-clients"
PROGRAMS = Path(__file__).parent / "programs"
TOOLS_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n# Tools\n"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALARM = {
    "type": "function",
    "function": {
        "name": "ring_alarm",
        "parameters": {
            "type": "object",
            "properties": {
                "level": {"type": "string", "enum": ["low", "high"]},
                "loud": {"type": "boolean"},
            },
            "required": ["level", "loud"],
            "additionalProperties": False,
        },
    },
}
TOOLS = {"tools": [ALARM], "tool_choice": "required", "parallel_tool_calls": False}
ENDLESS = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000}},
    }
}


@dataclass(frozen=True)
class House:
    """A running server."""

    address: str
    process: subprocess.Popen[str]

    @property
    def base_url(self) -> str:
        """The address as the notes' clients know it."""
        return f"{self.address}/compatible-mode/v1"

    def gauge(self, name: str) -> int:
        """Read one number from /metrics."""
        answer = httpx2.get(
            f"{self.address}/metrics", headers={"authorization": f"Bearer {KEY}"}, timeout=30
        )
        found = re.search(rf"(?m)^{name} (\d+)(?:\.0)?$", answer.text)
        assert found, answer.text
        return int(float(found[1]))

    def wait_until_idle(self, seconds: float) -> None:
        """Wait until nothing runs."""
        until = time.monotonic() + seconds
        while self.gauge("qianyan_requests_running"):
            assert time.monotonic() < until, f"requests still run after {seconds} s"
            time.sleep(0.02)


@contextmanager
def serving(*options: str) -> Iterator[House]:
    """Start a server on a free port, wait for its address, and stop it."""
    environment = {**os.environ, "QIANYAN_API_KEYS": f"{KEY} {OTHER_KEY}"}
    state = TemporaryDirectory()
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", *options]
    command += ["--state-dir", state.name]
    log = Path(state.name) / "log.txt"  # a pipe that nobody reads would stop the server when full
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout
    try:
        said = process.stdout.readline() + process.stdout.readline()
        found = re.search(r"at (http://\S+)/v1", said)
        assert found, said + log.read_text("utf-8")
        yield House(found[1], process)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        state.cleanup()


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """The bundled judge, also under the name that the notes use."""
    with serving("--served-name", "qwen-plus") as one:
        yield one


@pytest.fixture(scope="session")
def tools_house(
    random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A model that has learnt nothing, whose template knows tools."""
    folder = tmp_path_factory.mktemp("tools") / "random"
    shutil.copytree(random_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    with serving("--model", str(folder), "--served-name", "qwen-plus") as one:
        yield one


@dataclass(frozen=True)
class Programs:
    """Runs programs of users against both servers, told where by their usual variables."""

    environment: dict[str, str]

    def say(self, *command: str, **more: str) -> str:
        """Run a command of the clients' environment; give what it prints."""
        program, *rest = command
        done = subprocess.run(
            [str(INSTALLED / "bin" / program), *rest],
            env={**self.environment, **more},
            cwd=INSTALLED,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
        return done.stdout

    def run(self, name: str) -> dict[str, Any]:
        """Run one of `programs/`; give the object that it prints."""
        interpreter = "node" if name.endswith(".mjs") else "python"
        program = PROGRAMS / name
        if interpreter == "node":  # modules are looked for beside the program
            program = Path(shutil.copy(program, INSTALLED))
        said: dict[str, Any] = json.loads(
            self.say(interpreter, str(program)).splitlines()[-1]  # LiteLLM has more to say
        )
        return said


@pytest.fixture(scope="session")
def programs(
    house: House, tools_house: House, tmp_path_factory: pytest.TempPathFactory
) -> Programs:
    """The programs' environment, which `make clients` makes."""
    if not (INSTALLED / "installed").exists():
        pytest.skip("the clients of others are not installed; make clients does it")
    file = tmp_path_factory.mktemp("picture") / "red.png"
    file.write_bytes(base64.b64decode(picture().partition(",")[2]))
    return Programs(
        {
            "PATH": os.environ["PATH"],
            "HOME": str(INSTALLED),
            "PICTURE": picture(),
            "FILE": file.as_uri(),
            "TOOLS": json.dumps(TOOLS),
            "ENDLESS": json.dumps(ENDLESS),
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{house.address}/v1",
            "OPENAI_API_BASE": f"{house.address}/v1",
            "DASHSCOPE_API_KEY": KEY,
            "DASHSCOPE_HTTP_BASE_URL": f"{house.address}/api/v1",
            "DASHSCOPE_API_BASE": house.base_url,
            "TOOLS_BASE_URL": f"{tools_house.address}/v1",
            "TOOLS_DASHSCOPE_URL": f"{tools_house.address}/api/v1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the network for prices
        }
    )


def picture() -> str:
    """Draw a red picture; give it as a data: URI."""
    held = io.BytesIO()
    Image.new("RGB", (120, 90), (200, 20, 20)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


@pytest.fixture(scope="session")
def hello(house: House) -> str:
    """What the model answers to hello in sixteen tokens, asked without any client."""
    answer = httpx2.post(
        f"{house.address}/v1/chat/completions",
        headers={"authorization": f"Bearer {KEY}"},
        json={
            "model": "qwen-plus",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 16,
        },
        timeout=60,
    ).raise_for_status()
    text: str = answer.json()["choices"][0]["message"]["content"]
    assert text
    return text
