"""Documents with OpenAI's own client against a real server: every format, every refusal."""

import base64
import json
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from qianyan.engine.checkpoint import find_checkpoint
from qianyan.engine.engine import Engine
from qianyan.server.app import create_app
from qianyan.server.database import utc_now
from qianyan.server.document_shelf import DocumentShelf, UploadedDocumentLimits
from qianyan.server.files import FileRow
from qianyan.server.keeping import Keeping
from qianyan.server.settings import ServerSettings

SAMPLES = runpy.run_path(str(Path(__file__).with_name("document_samples.py")))
SERVING = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
WORDS: str = SAMPLES["WORDS"]
KEY, OTHER_KEY = "sk-test-0123456789", "sk-test-9876543210"
QUESTION = {"role": "user", "content": "When is the crane checked?"}
Serve = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with serve(state_folder=tmp_path_factory.mktemp("state")) as client:
        yield client


def client_of(served: httpx2.Client, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(served: httpx2.Client) -> Iterator[openai.OpenAI]:
    with client_of(served) as one:
        yield one


def upload(client: openai.OpenAI, name: str, data: bytes, purpose: Any = "file-extract") -> str:
    file = client.files.create(file=(name, data), purpose=purpose)
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
    return file.id


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model="judge", messages=messages, temperature=0, max_tokens=6, **options
    )


def named(*file_ids: str) -> dict[str, str]:
    return {"role": "system", "content": ",".join(f"fileid://{one}" for one in file_ids)}


def refusal(client: openai.OpenAI, messages: list[Any], status: int, code: str) -> str:
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, messages)
    assert refused.value.status_code == status, refused.value.response.text
    assert refused.value.code == code
    message: str = refused.value.body["message"]  # type: ignore[index,call-overload]
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", list(SAMPLES["samples"]()))
def test_every_format_is_read_from_an_upload(
    client: openai.OpenAI, engine: Engine, tmp_path: Path, name: str
) -> None:
    """What the server answers is what the engine says about the same file on disk."""
    data: bytes = SAMPLES["samples"]()[name]
    answer = ask(client, [named(upload(client, name, data)), QUESTION])
    path = tmp_path / name
    path.write_bytes(data)
    parts = [
        {"type": "file", "file": {"file_data": path}},
        {"type": "text", "text": QUESTION["content"]},
    ]
    engine.allow_files = True
    try:
        done = engine.chat([{"role": "user", "content": parts}], temperature=0, max_tokens=6)
    finally:
        engine.allow_files = False
    shown = engine.processor.tokenizer.decode(done.prompt_token_ids)
    assert WORDS in shown
    assert answer.choices[0].message.content == done.text
    assert answer.usage.prompt_tokens == len(done.prompt_token_ids)


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.pdf", "PDF")])
def test_pictures_and_scans_are_seen(client: openai.OpenAI, name: str, kind: str) -> None:
    file_id = upload(client, name, SAMPLES["picture"](kind))
    with_it = ask(client, [named(file_id), QUESTION]).usage.prompt_tokens
    without = ask(client, [QUESTION]).usage.prompt_tokens
    assert with_it > without + 8


@pytest.fixture(scope="module")
def reading_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A server around a model without eyes."""
    folder = tmp_path_factory.mktemp("blind") / "model"
    shutil.copytree(find_checkpoint("bundled"), folder)
    (folder / "preprocessor_config.json").unlink()
    settings = ServerSettings(
        model_names=("judge",), state_folder=tmp_path_factory.mktemp("blind_state")
    )
    app = create_app(settings, Engine(folder, dtype="float32"))
    with (
        SERVING["listening"](app, settings) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.pdf", "PDF")])
def test_a_model_without_eyes_is_told_what_a_scan_says(
    reading_only: openai.OpenAI, name: str, kind: str
) -> None:
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    file_id = upload(reading_only, name, SAMPLES["picture"](kind))
    answer = ask(reading_only, [named(file_id), QUESTION])
    assert answer.notes == [f"{name}: pictures read by text recognition, which may err: 1"]
    assert answer.usage.prompt_tokens > ask(reading_only, [QUESTION]).usage.prompt_tokens


def test_several_documents_in_one_message_or_in_several(client: openai.OpenAI) -> None:
    ids = [upload(client, f"{word}.txt", word.encode()) for word in ("one", "two")]
    together = ask(client, [named(*ids), QUESTION]).usage.prompt_tokens
    apart = ask(client, [named(ids[0]), named(ids[1]), QUESTION]).usage.prompt_tokens
    assert together == apart
    role = {"role": "system", "content": "You are brief."}
    assert ask(client, [role, named(*ids), QUESTION]).usage.prompt_tokens > 0


def test_a_part_may_name_an_upload_or_bring_the_document(client: openai.OpenAI) -> None:
    data = SAMPLES["printed_pdf"]("first page", WORDS)
    file_id = upload(client, "a.pdf", data)
    uri = "data:application/pdf;base64," + base64.b64encode(data).decode()
    counts = set()
    for file in (
        {"file_id": file_id},
        {"file_id": file_id, "pages": "2"},
        {"file_data": uri, "filename": "a.pdf"},
        {"file_data": uri, "filename": "a.pdf", "pages": "2"},
    ):
        content = [{"type": "file", "file": file}, {"type": "text", "text": "When?"}]
        counts.add(ask(client, [{"role": "user", "content": content}]).usage.prompt_tokens)
    assert len(counts) == 2


def test_a_document_longer_than_the_context_says_so(client: openai.OpenAI) -> None:
    text = "\n\n".join(f"# Rule {at}\nSomething about rule {at}." * 5 for at in range(800))
    file_id = upload(client, "手册.md", (text + f"\n\n# Cranes\n{WORDS}").encode())
    answer = ask(client, [named(file_id), QUESTION])
    (note,) = answer.notes
    assert note.startswith("手册.md: too long to be read whole; ")
    assert note.endswith("passages read, those nearest to the question")
    *chunks, last = ask(client, [named(file_id), QUESTION], stream=True)
    assert last.choices[0].finish_reason
    assert last.notes == [note]
    assert not any(hasattr(chunk, "notes") for chunk in chunks)


def test_a_response_says_so_as_well(client: openai.OpenAI) -> None:
    text = "\n\n".join(f"# Rule {at}\nSomething about rule {at}." * 5 for at in range(800))
    file_id = upload(client, "a.md", f"{text}\n\n# Cranes\n{WORDS}".encode())
    content: Any = [
        {"type": "input_file", "file_id": file_id},
        {"type": "input_text", "text": "When is the crane checked?"},
    ]
    asked: Any = [{"role": "user", "content": content}]
    response = client.responses.create(model="judge", input=asked, max_output_tokens=16)
    (note,) = response.notes  # type: ignore[attr-defined]
    assert note.startswith("a.md: too long to be read whole; ")
    assert client.responses.retrieve(response.id).notes == [note]  # type: ignore[attr-defined]


def test_a_short_document_has_nothing_to_say(client: openai.OpenAI) -> None:
    answer = ask(client, [named(upload(client, "a.txt", WORDS.encode())), QUESTION])
    assert not hasattr(answer, "notes")


def test_what_another_key_uploaded_cannot_be_found(
    client: openai.OpenAI, served: httpx2.Client
) -> None:
    file_id = upload(client, "a.txt", WORDS.encode())
    ask(client, [named(file_id), QUESTION])
    with client_of(served, OTHER_KEY) as other:
        said = refusal(other, [named(file_id), QUESTION], 400, "file_not_found")
    assert said.startswith(f"File [id:{file_id}] cannot be found")
    never = refusal(client, [named("file-fe-" + "0" * 32), QUESTION], 400, "file_not_found")
    assert never.replace("0" * 32, "") == said.replace(file_id.removeprefix("file-fe-"), "")


def test_a_deleted_or_expired_document_cannot_be_found(
    client: openai.OpenAI, served: httpx2.Client
) -> None:
    deleted, expired = (upload(client, "a.txt", WORDS.encode()) for _ in range(2))
    ask(client, [named(deleted, expired), QUESTION])
    client.files.delete(deleted)
    shelf: DocumentShelf = served.app.state.shelf  # type: ignore[attr-defined]
    assert deleted not in {key.file_id for key in (*shelf._kept, *shelf._outcomes)}
    keeping: Keeping = served.app.state.keeping  # type: ignore[attr-defined]
    with keeping.database.writing() as session:
        session.get_one(FileRow, expired).expires_at = utc_now() - timedelta(seconds=1)
    for file_id in (deleted, expired):
        refusal(client, [named(file_id), QUESTION], 400, "file_not_found")


@pytest.mark.parametrize(
    "content",
    [
        "fileid://",
        "fileid://,",
        "fileid://../../etc/passwd",
        "fileid://file-fe-1 and more",
        "fileid://file-fe-1;file-fe-2",
    ],
)
def test_a_name_that_is_no_id_is_refused(client: openai.OpenAI, content: str) -> None:
    said = refusal(client, [{"role": "system", "content": content}, QUESTION], 400, "invalid_file")
    assert said.startswith("Invalid file [id:")


def test_a_file_of_another_purpose_is_refused(client: openai.OpenAI) -> None:
    file_id = upload(client, "a.jsonl", b"{}", "batch")
    said = refusal(client, [named(file_id), QUESTION], 400, "invalid_file")
    assert "expected the purpose file-extract" in said


@pytest.mark.parametrize("purpose", ["user_data", "assistants"])
def test_openais_purposes_of_documents_mean_the_same(client: openai.OpenAI, purpose: str) -> None:
    file_id = upload(client, "a.txt", WORDS.encode(), purpose)
    assert client.files.retrieve(file_id).purpose == "file-extract"
    part = {"type": "file", "file": {"file_id": file_id}}
    content = [part, {"type": "text", "text": "When?"}]
    assert ask(client, [{"role": "user", "content": content}]).usage.prompt_tokens > 20


def test_a_part_without_a_document_says_what_it_may_name(client: openai.OpenAI) -> None:
    part = {"type": "file", "file": {"filename": "a.pdf"}}
    said = refusal(client, [{"role": "user", "content": [part]}], 400, "bad_input")
    assert said.startswith("messages[0].content[0].file names no document; expected file_data")


def test_too_many_documents_are_refused(client: openai.OpenAI) -> None:
    many = named(*(f"file-fe-{at:032}" for at in range(101)))
    said = refusal(client, [many, QUESTION], 400, "too_many_files")
    assert said.startswith("Too many files provided: 101; expected at most 100")


def test_documents_without_a_question_are_refused(client: openai.OpenAI) -> None:
    refusal(client, [named("file-fe-" + "0" * 32)], 400, "bad_input")


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.bin", bytes(range(256)) * 8, "unsupported_format"),
        ("a.docx", b"PK\x03\x04 broken", "truncated"),
        ("a.txt", b"   \n ", "no_content"),
    ],
)
def test_what_cannot_be_read_is_in_the_state_error_and_refused(
    client: openai.OpenAI, name: str, data: bytes, code: str
) -> None:
    file = client.files.create(file=(name, data), purpose="file-extract")  # type: ignore[arg-type]
    shown = client.files.wait_for_processing(file.id, poll_interval=0.1)
    assert shown.status == "error"
    assert shown.status_details is not None
    said = refusal(client, [named(file.id), QUESTION], 400, code)
    assert said == shown.status_details


def test_a_document_in_a_list_of_addresses(client: openai.OpenAI) -> None:
    uri = "data:text/plain;base64," + base64.b64encode(WORDS.encode()).decode()
    doc = {"type": "doc_url", "doc_url": [uri, uri], "file_parsing_strategy": "text_only"}
    content = [{"type": "text", "text": "When?"}, doc]
    both = ask(client, [{"role": "user", "content": content}]).usage.prompt_tokens
    one = {**doc, "doc_url": uri}
    single = ask(client, [{"role": "user", "content": [content[0], one]}]).usage.prompt_tokens
    assert both > single
    local = {**doc, "doc_url": ["/etc/passwd"]}
    said = refusal(client, [{"role": "user", "content": [local]}], 400, "bad_input")
    assert "expected an http or https URL or a data: URI" in said


def test_a_document_at_an_address_of_this_machine_is_not_fetched(client: openai.OpenAI) -> None:
    doc = {"type": "doc_url", "doc_url": ["http://127.0.0.1/a.pdf"]}
    refusal(client, [{"role": "user", "content": [doc]}], 400, "private_address")


def test_dashscope_takes_documents_as_well(served: httpx2.Client, client: openai.OpenAI) -> None:
    file_id = upload(client, "a.txt", WORDS.encode())
    uri = "data:text/plain;base64," + base64.b64encode(WORDS.encode()).decode()
    service = "/api/v1/services/aigc/multimodal-generation/generation"
    for content in ([{"file": uri}], [{"doc_url": [uri]}], [{"file": {"file_id": file_id}}]):
        message = {"role": "user", "content": [*content, {"text": "When?"}]}
        body = {"model": "judge", "input": {"messages": [message]}, "parameters": {"max_tokens": 4}}
        answer = served.post(service, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["input_tokens"] > 20
    body["input"] = {"messages": [named("file-fe-" + "0" * 32), QUESTION]}  # type: ignore[assignment]
    answer = served.post(service, json=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "InvalidParameter"
    assert "cannot be found" in answer.json()["message"]


def test_a_batch_asks_about_the_documents_of_its_owner(
    client: openai.OpenAI, served: httpx2.Client
) -> None:
    with client_of(served, OTHER_KEY) as other:
        foreign = upload(other, "a.txt", WORDS.encode())
    lines = [
        {
            "custom_id": file_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "judge", "messages": [named(file_id), QUESTION], "max_tokens": 4},
        }
        for file_id in (upload(client, "a.txt", WORDS.encode()), foreign)
    ]
    sent = upload(client, "in.jsonl", "\n".join(map(json.dumps, lines)).encode(), "batch")
    batch = client.batches.create(
        input_file_id=sent, endpoint="/v1/chat/completions", completion_window="24h"
    )
    end = time.monotonic() + 60
    while client.batches.retrieve(batch.id).status not in ("completed", "failed"):
        assert time.monotonic() < end
        time.sleep(0.2)
    done = client.batches.retrieve(batch.id)
    assert done.output_file_id
    assert done.error_file_id
    (answer,) = client.files.content(done.output_file_id).text.splitlines()
    assert json.loads(answer)["response"]["body"]["usage"]["prompt_tokens"] > 20
    (error,) = client.files.content(done.error_file_id).text.splitlines()
    assert json.loads(error)["custom_id"] == foreign
    assert "cannot be found" in error


def test_a_server_without_a_state_folder_says_so(client: openai.OpenAI, serve: Serve) -> None:
    with serve() as bare, client_of(bare) as asked:
        said = refusal(asked, [named("file-fe-" + "0" * 32), QUESTION], 400, "invalid_file")
    assert "keeps no files" in said


def test_a_document_still_being_read_is_refused_after_a_while(
    client: openai.OpenAI, served: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf: DocumentShelf = served.app.state.shelf  # type: ignore[attr-defined]
    # Many pages with pictures take longer than no time at all.
    data = SAMPLES["printed_pdf"](*[WORDS] * 60)
    file_id = upload(client, "a.pdf", data)
    monkeypatch.setattr(shelf, "limits", UploadedDocumentLimits(max_reading_wait_s=0.001))
    part = {"type": "file", "file": {"file_id": file_id, "pages": "1-50"}}
    said = refusal(client, [{"role": "user", "content": [part]}], 409, "file_not_ready")
    assert said.startswith("File parsing in progress, please try again later")


def test_a_document_is_read_once(client: openai.OpenAI, served: httpx2.Client) -> None:
    file_id = upload(client, "a.pdf", SAMPLES["printed_pdf"](*[WORDS] * 30))
    shelf: DocumentShelf = served.app.state.shelf  # type: ignore[attr-defined]
    kept = [document for key, (document, _) in shelf._kept.items() if key.file_id == file_id]
    assert len(kept) == 1
    ask(client, [named(file_id), QUESTION])
    again = [document for key, (document, _) in shelf._kept.items() if key.file_id == file_id]
    assert again[0] is kept[0]
