"""The log of `qianyan serve` where nobody reads it: the server goes on, and stops when told."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

PIPE_BYTES = 65_536


def test_a_server_whose_log_nobody_reads_goes_on_answering(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qianyan", "serve", "--port", "0", "--no-auth"]
    command += ["--state-dir", str(tmp_path), "--log-format", "json"]
    environment = {**os.environ, "QIANYAN_API_KEYS": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        while not (found := re.search(r"at (http://\S+)/v1", server.stdout.readline())):
            assert server.poll() is None
        with httpx2.Client(base_url=found[1], timeout=20) as client:
            for number in range(500):
                path = f"/v1/files/file-{number}"
                assert client.get(path).status_code == 404
            assert client.get("/health").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None
        # The process ends by itself once it is read, or without: both within the time given.
        _, said = server.communicate(timeout=60)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(said) > 2 * PIPE_BYTES
    assert sum(line["event"] == "request" for line in lines) == 500
    assert lines[-1]["event"] == "stopped"
