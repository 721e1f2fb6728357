"""`qianyan serve` as its users start it: a process, a port, keys from the environment."""

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

import httpx2
import pytest

KEY = "sk-e2e-0123456789"
OTHER_KEY = "sk-e2e-9876543210"
TOOLS_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n# Tools\n"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
        found = re.search(rf"(?m)^{name} (\d+)$", answer.text)
        assert found, answer.text
        return int(found[1])

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
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    try:
        said = process.stdout.readline() + process.stdout.readline()
        found = re.search(r"at (http://\S+)/v1", said)
        assert found, said + process.stderr.read()
        yield House(found[1], process)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()
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
