"""Documents longer than a prompt may be: what is left, what is said, and what stays whole."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import docx
import pytest
import typst
from PIL import Image

from qianyan.inputs.processor import ModelInputs, Processor

PICTURES = {"min_pixels": 3136, "max_pixels": 100 * 28 * 28}
JOINING = (
    "{% for message in messages %}{{ message.role + ': ' + message.content }}"
    "{% endfor %}{% if add_generation_prompt %}\nassistant:{% endif %}"
)


@pytest.fixture
def process(make_folder: Callable[..., Path]) -> Processor:
    return Processor.from_folder(make_folder(pictures=PICTURES))


def file(name: str, data: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(data).decode()
    file_data = f"data:application/octet-stream;base64,{encoded}"
    return {"type": "file", "file": {"filename": name, "file_data": file_data}}


def ask(*parts: dict[str, Any], question: str = "When are cranes inspected?") -> Any:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def handbook(number: int = 40) -> bytes:
    sections = [f"# Rule {at}\nAbout topic number {at}, at length. " * 3 for at in range(number)]
    sections[number // 2] = "# Cranes\nCranes are inspected every morning at six."
    return "\n\n".join(sections).encode()


def shown(process: Processor, inputs: ModelInputs) -> str:
    return process.tokenizer.decode(inputs.prompt_token_ids, skip_special=False)


def test_a_document_that_fits_is_read_whole(process: Processor) -> None:
    whole = process(ask(file("a.md", handbook())))
    same = process(ask(file("a.md", handbook())), max_prompt_tokens=100_000)
    assert whole.prompt_token_ids == same.prompt_token_ids
    assert same.seen.notes == ()


def test_a_longer_one_is_read_in_the_passages_that_matter(process: Processor) -> None:
    messages = ask(file("a.md", handbook()))
    inputs = process(messages, max_prompt_tokens=700)
    text = shown(process, inputs)
    assert len(inputs.prompt_token_ids) <= 700
    assert "Cranes are inspected every morning at six." in text
    assert "[…]" in text
    (note,) = inputs.seen.notes
    assert note.startswith("a.md: too long to be read whole; ")
    assert note.endswith(" of 40 passages read, those nearest to the question")
    read = note.split()[7]
    assert f"[a.md: {read} of 40 passages]" in text
    assert text.endswith("When are cranes inspected?<|im_end|>\n<|im_start|>assistant\n")


def test_a_document_far_longer_than_fits_is_not_counted_whole(
    process: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, lengths = process._encode, []

    def counting(text: str) -> list[int]:
        lengths.append(len(text))
        return encode(text)

    monkeypatch.setattr(process, "_encode", counting)
    inputs = process(ask(file("a.md", handbook(2_500))), max_prompt_tokens=700)
    assert "Cranes are inspected every morning at six." in shown(process, inputs)
    assert max(lengths) < 10_000


def test_a_question_in_another_message_or_language_chooses_too(process: Processor) -> None:
    book = "# 用电\n" + "电缆不得拖地。" * 40 + "\n\n# 起重\n起重机每天早上六点检查。\n\n# 其他\n"
    data = (book + "其他事项另行通知。" * 60).encode()
    messages = [
        {"role": "system", "content": [file("手册.md", data)]},
        {"role": "user", "content": "起重机什么时候检查？"},
    ]
    inputs = process(messages, max_prompt_tokens=900)
    assert len(inputs.prompt_token_ids) <= 900
    assert "起重机每天早上六点检查。" in shown(process, inputs)


def test_templates_that_want_joined_text_get_it(make_folder: Callable[..., Path]) -> None:
    process = Processor.from_folder(make_folder(template=JOINING))
    inputs = process(ask(file("a.md", handbook())), max_prompt_tokens=700)
    assert len(inputs.prompt_token_ids) <= 700
    assert "every morning at six" in shown(process, inputs)


def test_pages_are_named_and_their_pictures_give_way(process: Processor) -> None:
    pages = [f"= Topic {at}\n#lorem({40 + at})" for at in range(12)]
    pages[7] = "= Cranes\nCranes are inspected every morning at six."
    data = typst.compile("\n#pagebreak()\n".join(pages).encode())
    own = {"type": "image", "image": Image.new("RGB", (112, 84), "red")}
    inputs = process(ask(own, file("book.pdf", data)), max_prompt_tokens=1500)
    text = shown(process, inputs)
    assert len(inputs.prompt_token_ids) <= 1500
    assert "[book.pdf, page 8 of 12]" in text
    assert [image.photo_wh for image in inputs.seen.images] == [(112, 84)]
    assert len(inputs.grid_thw) == 1
    assert text.count("<|vision_start|>") == 1
    notes = [note for note in inputs.seen.notes if note.startswith("book.pdf:")]
    assert notes[0] == "book.pdf: 12 pictures not shown for length"
    assert "of 12 passages read" in notes[1]


def test_pictures_alone_may_give_way(process: Processor) -> None:
    document = docx.Document()
    document.add_paragraph("Cranes are inspected every morning at six. " * 3)
    picture = BytesIO()
    Image.new("RGB", (280, 280), "blue").save(picture, "PNG")
    picture.seek(0)
    document.add_picture(picture)
    out = BytesIO()
    document.save(out)
    messages = ask(file("a.docx", out.getvalue()))
    full = len(process(messages).prompt_token_ids)
    inputs = process(messages, max_prompt_tokens=full - 20)
    assert inputs.seen.notes == ("a.docx: 1 pictures not shown for length",)
    assert inputs.pixel_values is None
    assert shown(process, inputs).count("every morning") == 3


def test_scans_and_a_users_own_words_stay_as_they_are(process: Processor) -> None:
    pages = [Image.new("RGB", (300, 200), shade) for shade in ("red", "blue")]
    out = BytesIO()
    pages[0].save(out, "PDF", save_all=True, append_images=pages[1:])
    messages = ask(file("scan.pdf", out.getvalue()))
    whole = process(messages)
    assert process(messages, max_prompt_tokens=50).prompt_token_ids == whole.prompt_token_ids
    words = [{"role": "user", "content": "word " * 500}]
    assert len(process(words, max_prompt_tokens=50).prompt_token_ids) > 2000


def test_where_not_one_passage_fits_nothing_is_pretended(process: Processor) -> None:
    inputs = process(ask(file("a.md", handbook())), max_prompt_tokens=60)
    assert len(inputs.prompt_token_ids) > 60
    assert not any("passages read" in note for note in inputs.seen.notes)


def test_several_documents_share_the_room(process: Processor) -> None:
    other = b"# Paint\n" + b"Paint is stored cold. " * 60
    messages = ask(file("paint.md", other), file("a.md", handbook()))
    inputs = process(messages, max_prompt_tokens=900)
    assert len(inputs.prompt_token_ids) <= 900
    assert "every morning at six" in shown(process, inputs)
    assert [note.partition(":")[0] for note in inputs.seen.notes] == ["paint.md", "a.md"]
