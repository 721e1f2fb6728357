"""The bundled models over every validation photo: killed in the middle, resumed, within memory."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

MEMORY_LIMIT_KB = 2_000_000
KILL_AFTER = 200


def inspect(listed: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "qianyan", "inspect", "-", "--out", "run", "--json", *options],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    process.stdin.write(listed)
    process.stdin.close()
    process.stdin = None
    return process


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.is_file() else []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_528_photos_killed_in_the_middle_and_resumed_are_each_inspected_once(
    shared: Path, tmp_path: Path
) -> None:
    dev = shared / "data" / "dev"
    images = json.loads((dev / "annotations_val.json").read_text("utf-8"))["images"]
    photos = [str(dev / "images" / image["file_name"]) for image in images]
    listed = "\n".join(photos)
    results = tmp_path / "run" / "results.jsonl"

    killed = inspect(listed, tmp_path)
    while len(lines_of(results)) < KILL_AFTER:
        assert killed.poll() is None
        time.sleep(0.5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done_before = len(lines_of(results))
    assert KILL_AFTER <= done_before < len(photos)

    resumed = inspect(listed, tmp_path, "--resume")
    assert resumed.wait() == 0

    run = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    inspected = Counter(picture["source"] for picture in run["pictures"])
    distinct = {picture["sha256"] for picture in run["pictures"]}
    assert set(inspected) <= set(photos)
    assert max(inspected.values()) == 1
    assert len(inspected) == len(distinct), "the same picture was inspected twice"
    assert len(inspected) == len(photos)
    assert all(picture["detections"] is not None for picture in run["pictures"])
    assert (tmp_path / "run" / "report.pdf").stat().st_size > 100_000
    peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sys.stderr.write(f"\npeak memory of the largest run: {peak_kb / 1e6:.2f} GB\n")
    assert peak_kb < MEMORY_LIMIT_KB
