"""`qianyan serve` in a process of its own; its log goes to the tests' own standard error."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    state: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server on a free port until the context is left; give it with its address."""
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", "--state-dir", str(state)]
    with subprocess.Popen(
        [*command, *options], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        found = None
        while found is None:
            line = server.stdout.readline()
            assert line, f"the server ended with {server.wait()}"
            found = re.search(r"(http://\S+)/v1", line)
        try:
            yield server, found[1]
        finally:
            server.terminate()
