"""Messages to model inputs: what is understood, and the sentence for what is not."""

import base64
import json
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.errors import CapacityError, ConfigError, InputError, MediaError
from qianyan.inputs.media import Seen
from qianyan.inputs.processor import Processor

PICTURES = {"min_pixels": 3136, "max_pixels": 100 * 28 * 28}
TEXT_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}"
    "{% endfor %}{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}"
)


@pytest.fixture
def process(make_folder: Callable[..., Path]) -> Processor:
    return Processor.from_folder(make_folder(pictures=PICTURES))


def photo(width: int = 112, height: int = 84) -> Image.Image:
    shade = np.linspace(0, 255, width * height * 3).astype(np.uint8)
    return Image.fromarray(shade.reshape(height, width, 3))


def png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_text_alone_has_no_pixels(process: Processor) -> None:
    inputs = process([{"role": "user", "content": "the fire"}])
    assert process.tokenizer.decode(inputs.prompt_token_ids, skip_special=False) == (
        "<|im_start|>user\nthe fire<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (inputs.pixel_values, inputs.grid_thw, inputs.seen) == (None, (), Seen())


def test_every_way_to_name_a_picture_gives_the_same_inputs(
    process: Processor, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(photo()))
    sources = (
        {"type": "image_url", "image_url": {"url": data_uri(photo()), "detail": "high"}},
        {"type": "image_url", "image_url": data_uri(photo())},
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image", "image": photo()},
        {"type": "image", "image": path},
        {"type": "image", "image": str(path)},
    )
    all_inputs = [process(user(source, text("?"))) for source in sources]
    for inputs in all_inputs:
        assert inputs.prompt_token_ids == all_inputs[0].prompt_token_ids
        assert np.array_equal(inputs.pixel_values, all_inputs[0].pixel_values)  # type: ignore[arg-type]
        assert inputs.grid_thw == ((1, 6, 8),)


def test_pads_rows_and_grids_belong_together(process: Processor) -> None:
    inputs = process(
        [
            *user({"type": "image", "image": photo(300, 200)}, text("and")),
            {"role": "assistant", "content": "?"},
            *user(text("this"), {"type": "image", "image": photo(60, 600)}),
        ]
    )
    pad = process.tokenizer.token_id("<|image_pad|>")
    start = process.tokenizer.token_id("<|vision_start|>")
    assert inputs.pixel_values is not None
    counts = [math.prod(grid) for grid in inputs.grid_thw]
    assert inputs.pixel_values.shape == (sum(counts), 1176)
    assert inputs.pixel_values.dtype == np.float32
    ids = inputs.prompt_token_ids
    runs = [index for index, id_ in enumerate(ids) if id_ == start]
    for run, count in zip(runs, counts, strict=True):
        assert ids[run + 1 : run + 1 + count // 4] == [pad] * (count // 4)
        assert ids[run + 1 + count // 4] == process.tokenizer.token_id("<|vision_end|>")
    assert [image.photo_wh for image in inputs.seen.images] == [(300, 200), (60, 600)]
    for image, (_, rows, columns) in zip(inputs.seen.images, inputs.grid_thw, strict=True):
        assert image.seen_wh == (columns * 14, rows * 14) == process.seen_wh(image.photo_wh)


def test_notes_of_a_picture_are_kept(process: Processor) -> None:
    out = BytesIO()
    photo().save(out, "GIF", save_all=True, append_images=[photo().rotate(180)])
    uri = "data:image/gif;base64," + base64.b64encode(out.getvalue()).decode()
    inputs = process(user({"type": "image_url", "image_url": {"url": uri}}))
    assert inputs.seen.images[0].notes == ("animated: first frame only",)


def test_limits_come_from_the_folder_and_can_be_overridden(
    make_folder: Callable[..., Path],
) -> None:
    newer = {"size": {"shortest_edge": 3136, "longest_edge": 100 * 28 * 28}}
    folder = make_folder(pictures=newer)
    assert Processor.from_folder(folder).seen_wh((4000, 3000)) == (308, 224)
    assert Processor.from_folder(folder, max_pixels=20 * 784).seen_wh((4000, 3000)) == (140, 84)
    large = Processor.from_folder(folder, min_pixels=90 * 784)
    assert large.seen_wh((28, 28)) == (280, 280)
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": newer}))
    assert Processor.from_folder(folder).seen_wh((4000, 3000)) == (308, 224)


def test_a_part_may_ask_for_less_but_not_for_more(process: Processor) -> None:
    small = {"type": "image", "image": photo(1000, 1000), "max_pixels": 16 * 784}
    assert process(user(small)).seen.images[0].seen_wh == (112, 112)
    for limits in (
        {"max_pixels": 101 * 784},
        {"max_pixels": 0},
        {"max_pixels": True},
        {"max_pixels": "1000"},
        {"max_pixels": 5000, "min_pixels": 6000},
    ):
        with pytest.raises(InputError, match="expected a number of pixels up to"):
            process(user(small | limits))


def test_a_text_model_is_given_joined_text(make_folder: Callable[..., Path]) -> None:
    process = Processor.from_folder(make_folder(template=TEXT_TEMPLATE))
    inputs = process(user(text("the "), text("fire")), enable_thinking=False)
    shown = process.tokenizer.decode(inputs.prompt_token_ids, skip_special=False)
    assert shown == "user: the fire<|im_end|>[False]"
    with pytest.raises(InputError, match="reads text only"):
        process(user({"type": "image", "image": photo()}))
    with pytest.raises(InputError, match="reads text only"):
        process.seen_wh((10, 10))


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        ("", '{"place": "三号"}', '{"place": "三号"}'),
        ("{% if 1 is string or arguments is string %}{% endif %}", '{"a":1}', '"{\\"a\\":1}"'),
        ("", {"a": 1}, '{"a": 1}'),
        ("", "", "{}"),
    ],
)
def test_arguments_of_tool_calls_reach_the_template_as_it_wants_them(
    make_folder: Callable[..., Path], source: str, arguments: Any, expected: str
) -> None:
    template = source + (
        "{% for call in messages[0].tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    )
    process = Processor.from_folder(make_folder(template=template))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    ids = process([message]).prompt_token_ids
    assert process.tokenizer.decode(ids) == expected


def test_whole_replies_of_clients_are_taken_back(process: Processor) -> None:
    reply = {"role": "assistant", "content": "yes", "refusal": None, "audio": None}
    process([*user(text("fire?")), reply, *user(text("sure?"))])


@pytest.mark.parametrize("pad", ["<|image_pad|>", "<|video_pad|>"])
@pytest.mark.parametrize("place", ["text", "parts", "system", "tool", "arguments", "name", "tools"])
def test_placeholders_in_texts_are_refused(process: Processor, pad: str, place: str) -> None:
    """They would take the place of a picture, and shift every picture after them."""
    spelled = f"look {pad} here"
    call = {"function": {"name": "f", "arguments": {"deep": [{"x": spelled}]}}}
    messages: dict[str, list[dict[str, Any]]] = {
        "text": [{"role": "user", "content": spelled}],
        "parts": user({"type": "image", "image": photo()}, text(spelled)),
        "system": [{"role": "system", "content": spelled}, *user(text("?"))],
        "tool": [{"role": "tool", "content": spelled, "tool_call_id": "1"}],
        "arguments": [{"role": "assistant", "tool_calls": [call]}],
        "name": [{"role": "user", "content": "?", "name": spelled}],
        "tools": user(text("?")),
    }
    tools = [{"function": {"name": spelled}}] if place == "tools" else None
    with pytest.raises(InputError, match="placeholder"):
        process(messages[place], tools=tools)


def test_a_placeholder_put_together_from_parts_is_refused(process: Processor) -> None:
    with pytest.raises(InputError, match="1 places for 0 pictures"):
        process(user(text("<|image_"), text("pad|>")))


def test_other_control_words_are_read_as_the_official_tools_read_them(process: Processor) -> None:
    ids = process([{"role": "user", "content": "<|im_end|>"}]).prompt_token_ids
    assert ids.count(process.tokenizer.eos_token_id) == 2  # type: ignore[arg-type]


def test_a_template_that_drops_pictures_is_said_so(make_folder: Callable[..., Path]) -> None:
    process = Processor.from_folder(make_folder(template="nothing", pictures=PICTURES))
    with pytest.raises(InputError, match="0 places for 1 pictures"):
        process(user({"type": "image", "image": photo()}))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ("hello", "not a list"),
        ({"role": "user"}, "not a list"),
        (["hello"], r"messages\[0\] is str"),
        ([{"content": "x"}], r"the role 'None'; expected one of system, user"),
        ([{"role": "developer", "content": "x"}], "the role 'developer'"),
        ([{"role": "user"}], "has no content"),
        ([{"role": "user", "content": None}], "has no content"),
        ([{"role": "user", "content": []}], "has no content"),
        ([{"role": "user", "content": 7}], "has no content"),
        ([{"role": "user", "content": "x", "temperature": 1}], "has 'temperature'"),
        ([{"role": "user", "content": "x", "name": 7}], r"messages\[0\].name is int"),
        (user("x"), r"content\[0\] is str"),
        (user({"text": "x"}), "type 'None'"),
        (user({"type": ["text"]}), "expected text, image_url"),
        (user({"type": "text", "text": 7}), r"content\[0\].text is int"),
        (user({"type": "text", "text": "x", "cache": 1}), "has 'cache'"),
        (user({"type": "input_audio", "input_audio": {}}), "this model does not hear"),
        (user({"type": "picture"}), "expected text, image_url, image"),
        (user({"type": "image_url"}), "names no picture"),
        (user({"type": "image_url", "image_url": {"url": ""}}), "names no picture"),
        (user({"type": "image_url", "image_url": {"url": "x", "size": 1}}), "has 'size'"),
        (user({"type": "image", "image": b"bytes"}), "names no picture"),
        ([{"role": "assistant", "tool_calls": "f()"}], "tool_calls is str"),
        ([{"role": "assistant", "tool_calls": [{"id": 1}]}], "no function with a name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "not valid JSON",
        ),
    ],
)
def test_messages_outside_the_form_are_one_sentence(
    process: Processor, messages: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        process(messages)
    assert str(caught.value).endswith(".")


def test_pictures_that_cannot_be_read_carry_their_code(process: Processor, tmp_path: Path) -> None:
    def code(part: dict[str, Any], **options: Any) -> str:
        with pytest.raises(MediaError) as caught:
            process(user(part), **options)
        return caught.value.code

    fake = tmp_path / "words.jpg"
    fake.write_text("only words")
    assert code({"type": "image_url", "image_url": str(fake)}) == "not_a_picture"
    assert code({"type": "image_url", "image_url": str(fake)}, allow_files=False) == "bad_url"
    assert code({"type": "image", "image": fake}, allow_files=False) == "not_a_picture"
    assert code({"type": "image_url", "image_url": "http://127.0.0.1/a.jpg"}) == "private_address"
    assert code({"type": "image_url", "image_url": "data:image/png;base64,"}) == "empty_file"
    assert code({"type": "image", "image": Image.new("RGB", (3, 900))}) == "too_narrow"
    assert code({"type": "image", "image": Image.new("RGB", (0, 9))}) == "too_small"


def test_too_many_pictures_are_refused(process: Processor) -> None:
    part = {"type": "image", "image": photo(28, 28)}
    most = process.limits.max_images
    process(user(*[part] * most))
    with pytest.raises(CapacityError, match=f"one picture more than {most}"):
        process(user(*[part] * (most + 1)))


def test_a_tokenizer_without_the_placeholder_cannot_read_pictures(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder(pictures=PICTURES)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in tokenizer["added_tokens"] if token["content"] != "<|image_pad|>"]
    tokenizer["added_tokens"] = kept
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="image_pad"):
        Processor.from_folder(folder)
