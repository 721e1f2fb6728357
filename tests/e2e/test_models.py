"""`qianyan models pull` on a real terminal: a bar, an interruption, and the rest of the files."""

import runpy
from pathlib import Path
from typing import Any

Terminal = runpy.run_path(str(Path(__file__).with_name("terminal.py")))["Terminal"]
HUB = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "engine" / "hub_server.py"))
hub, files, shards = (HUB[name] for name in ("hub", "files", "shards"))
NAME = "Qwen/Qwen2.5-VL-3B-Instruct"


def test_an_interrupted_pull_is_gone_on_with(
    hub: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    shard = "model-00001-of-00002.safetensors"
    hub.repositories[NAME] = HUB["Repository"](files)
    hub.pauses[shard] = 0.2
    command = ["models", "pull", NAME, "--endpoint", hub.url, "--lang", "en"]
    caches = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    with Terminal(*command, folder=tmp_path, **caches) as screen:
        screen.expect("file 7 of 8")  # all but the one that pauses
        screen.expect("kB")
        screen.interrupt()
        assert screen.close() == 130
    assert "Traceback" not in screen.text
    num_sent = hub.sent[shard]
    assert num_sent < len(files[shard])
    hub.pauses.clear()
    with Terminal(*command, folder=tmp_path, **caches) as screen:
        screen.expect("Commercial use is allowed.")
        screen.expect("snapshots")
        assert screen.close() == 0
    assert hub.ranges(shard)[-1] is not None, "only the rest is asked for"
    with Terminal("models", "list", folder=tmp_path, **caches) as screen:
        screen.expect(NAME)
        assert screen.close() == 0
