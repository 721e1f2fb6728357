"""A hub on 127.0.0.1: what a pull needs of Hugging Face's and ModelScope's APIs, and their faults.

It serves repositories from memory, with ranges and declared checksums, and can be told to drop
connections, to lie and to refuse. Every request is written down. Tests run this file for the server
and the fixtures at its end.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from qianyan.engine import transfer

LARGE = (".safetensors", ".bin")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Files by name, and what is declared of them against the truth."""

    files: dict[str, bytes]
    commit: str = COMMIT
    token: str | None = None  # who asks must send it
    is_gated: bool = False  # listed for everybody, handed out to nobody
    declared: dict[str, dict[str, Any]] = field(default_factory=dict)
    without_checksum: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


class HubServer:
    """Both hubs under one address."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()  # bytes of each file, over all requests
        self.cuts: dict[
            str, list[int]
        ] = {}  # file: bytes after which the connection drops, once each
        self.pauses: dict[str, float] = {}  # file: seconds before each 16 KiB
        self.statuses: dict[str, list[int]] = {}  # file or "list": answers before the right one
        self.ignores_range = False
        self.shifts_range = False
        self.redirects_to: str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ranges(self, name: str) -> list[str | None]:
        """The Range headers with which a file was asked for."""
        asked = [r for r in self.requests if unquote(r.path).endswith(name)]
        return [request.headers.get("Range") for request in asked]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(Request(self.command, self.path, dict(self.headers)))
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub.requests.append(Request(self.command, self.path, dict(self.headers)))
                hub._tell_of_file(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        pieces, query = unquote(parts.path).strip("/").split("/"), parse_qs(parts.query)
        if pieces[:3] == ["api", "v1", "models"]:
            repository = self.repositories.get("/".join(pieces[3:5]))
            if pieces[5:] == ["repo", "files"]:
                self._list_modelscope(handler, repository)
            else:
                self._send_file(handler, repository, query["FilePath"][0])
        elif pieces[:2] == ["api", "models"]:
            revision = pieces[5] if len(pieces) > 5 else "main"
            self._list_huggingface(handler, "/".join(pieces[2:4]), revision)
        elif pieces[2:3] == ["resolve"]:
            repository = self.repositories.get("/".join(pieces[:2]))
            self._send_file(handler, repository, "/".join(pieces[4:]))
        elif pieces[0] == "stored":
            repository = self.repositories.get("/".join(pieces[1:3]))
            self._send_bytes(handler, repository.files[pieces[3]], pieces[3])  # type: ignore[union-attr]
        else:
            send_json(handler, {"error": "no such page"}, 404)

    def _tell_of_file(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a HEAD as Hugging Face does; its own library asks before it fetches."""
        pieces = unquote(handler.path).strip("/").split("/")
        repository = self.repositories["/".join(pieces[:2])]
        content = repository.files[pieces[4]]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", f'"{checksum(pieces[4], content)}"')
        handler.send_header("X-Repo-Commit", repository.commit)
        handler.end_headers()

    def _refusal(
        self, handler: BaseHTTPRequestHandler, repository: Repository | None
    ) -> int | None:
        if repository is None:
            return 404
        token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        return 401 if repository.token and token != repository.token else None

    def _list_huggingface(self, handler: BaseHTTPRequestHandler, name: str, revision: str) -> None:
        repository = self.repositories.get(name)
        status = self._refusal(handler, repository) or self._planned("list")
        if repository is None or status is not None:
            headers = {"X-Error-Code": "RepoNotFound"} if status in (401, 404) else {}
            return send_json(handler, {"error": "no"}, status or 404, headers)
        if revision not in ("main", "v1", repository.commit):
            return send_json(handler, {"error": "no"}, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = checksum(path, content)
            if path.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            if repository.without_checksum:
                entry = {"rfilename": path, "size": len(content)}
            siblings.append(entry | repository.declared.get(path, {}))
        send_json(handler, {"id": name, "sha": repository.commit, "siblings": siblings})
        return None

    def _list_modelscope(
        self, handler: BaseHTTPRequestHandler, repository: Repository | None
    ) -> None:
        status = self._refusal(handler, repository) or self._planned("list")
        if repository is None or status is not None:
            answer = {"Code": 10010205001, "Message": "not found", "Success": False}
            return send_json(handler, answer, status or 404)
        entries: list[dict[str, Any]] = [{"Path": "assets", "Name": "assets", "Type": "tree"}]
        for path, content in repository.files.items():
            entry = {"Path": path, "Name": path, "Type": "blob", "Size": len(content)}
            if not repository.without_checksum:
                entry["Sha256"] = hashlib.sha256(content).hexdigest()
            if "/" in path and "Recursive=True" not in handler.path:
                continue
            entries.append(entry | repository.declared.get(path, {}))
        send_json(handler, {"Code": 200, "Data": {"Files": entries}, "Success": True})
        return None

    def _planned(self, what: str) -> int | None:
        planned = self.statuses.get(what)
        return planned.pop(0) if planned else None

    def _send_file(
        self, handler: BaseHTTPRequestHandler, repository: Repository | None, name: str
    ) -> None:
        status = self._refusal(handler, repository) or self._planned(name)
        if repository is not None and repository.is_gated:
            status = 403
        if repository is None or status is not None or name not in repository.files:
            headers = {"X-Error-Code": "GatedRepo"} if status == 403 else {}
            return send_json(handler, {"error": "no"}, status or 404, headers)
        if self.redirects_to is not None:
            model = next(n for n, r in self.repositories.items() if r is repository)
            handler.send_response(302)
            handler.send_header("Location", f"{self.redirects_to}/stored/{model}/{name}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return None
        self._send_bytes(handler, repository.files[name], name)
        return None

    def _send_bytes(self, handler: BaseHTTPRequestHandler, content: bytes, name: str) -> None:
        asked = handler.headers.get("Range")
        start = 0 if asked is None or self.ignores_range else int(asked[6:].rstrip("-"))
        if start >= len(content) > 0:
            return send_json(handler, {"error": "no such range"}, 416)
        start -= 1 if self.shifts_range and start else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        cuts = self.cuts.get(name)
        stop = min(start + cuts.pop(0), len(content)) if cuts else len(content)
        for at in range(start, stop, 16384):
            time.sleep(self.pauses.get(name, 0))
            handler.wfile.write(content[at : min(at + 16384, stop)])
            self.sent[name] += min(at + 16384, stop) - at
        handler.wfile.flush()
        if stop < len(content):
            handler.close_connection = True
        return None


def checksum(name: str, content: bytes) -> str:
    """SHA-256 of what Hugging Face keeps beside Git, Git's own of the rest."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def send_json(
    handler: BaseHTTPRequestHandler,
    data: object,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> None:
    body = json.dumps(data).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's caches, nor their token, nor waiting between attempts."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("MODELSCOPE_CACHE", raising=False)
    monkeypatch.setattr(transfer, "RETRY_WAIT_S", 0.0)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def shards() -> dict[str, bytes]:
    """Two weight files and their index; the first one spans many network reads."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "a": torch.randn(400, 500, generator=generator),
        "b": torch.randn(3, 4, generator=generator),
    }
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    files = {names[key]: save({key: tensor}) for key, tensor in tensors.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    return files


@pytest.fixture
def files(shards: dict[str, bytes]) -> dict[str, bytes]:
    return shards | {
        "config.json": b'{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}',
        "tokenizer.json": b"{}",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "LICENSE": b"Apache License\nVersion 2.0",
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"raise SystemExit",
        "assets/photo.json": b"{}",
        "voices.pt": b"pickle",
        "spk_dict.pt": b"the one pickle that is wanted",
        ".gitattributes": b"",
    }
