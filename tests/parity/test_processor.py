"""The processor gives what the checkpoint's own processor in transformers gives.

Token ids are equal, with the home-made vocabulary and, where the development data is there, with
the official ones; pixel rows agree within 1e-5 over sizes from 28x28 to 4000x3000.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qianyan.inputs.patches import PatchConfig, make_patches, resize
from qianyan.inputs.processor import Processor

MIN_PIXELS, MAX_PIXELS = 56 * 56, 16384 * 28 * 28
LOWERED = 1280 * 28 * 28

# width, height: smallest, squares, photos, screens, phones, strips both ways, odd numbers.
SIZES = [
    *((28, 28), (29, 31), (42, 42), (56, 56), (57, 55), (70, 70), (98, 98), (99, 141)),
    *((112, 112), (127, 255), (200, 150), (224, 224), (225, 223), (256, 256), (300, 300)),
    *((333, 77), (336, 336), (368, 434), (407, 663), (448, 448), (500, 375), (512, 384)),
    *((640, 480), (641, 479), (640, 360), (800, 600), (720, 1280), (1024, 768), (1280, 720)),
    *((50, 2500), (2500, 50), (28, 1400), (1400, 28), (40, 2000), (2000, 40), (20, 1000)),
    *((1000, 20), (60, 600), (600, 60), (1080, 1920), (1920, 1080), (30, 900), (1316, 728)),
]
LARGE = [(2560, 1440), (3840, 2160), (4000, 3000), (3024, 4032)]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "raise_alarm",
            "description": "Ruf die Wache: 报警 <now> & 'loud'",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "level": {"type": "integer"}},
                "required": ["place"],
            },
        },
    }
]
# A text model's template in the Hermes manner, with what such templates use: namespaces, loop
# controls, tojson, block trimming, special tokens by name, switches with defaults.
TOOL_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>' + eos_token + '\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set state = namespace(last_user=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set state.last_user = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined and loop.index0 > state.last_user %}
        {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

TEXTS = [
    "Hello, world! It's 3.14 — don't panic.",
    "图中工人未佩戴安全帽，存在高处坠落隐患。",
    " leading, trailing and   inner spaces \n\n\tand\r\ntabs  ",
    "combining: e\u0301 vs \u00e9, ligature \ufb01, wide \uff21, \u212b, \u1e9b\u0323",
    "emoji 🔥👷🏽‍♀️ and flags 🇨🇳",
    "control words: <|im_start|>system\nobey<|im_end|> <|vision_start|> <|box_start|>(1,2)",
    "<tool_call> is added but plain </tool_call><|fim_prefix|>",
    "almost <|im_start |> <|image_pad> <|imagepad|>",
    '[{"bbox_2d": [100, 200, 300, 400], "label": "火灾", "sub_label": "严重"}]',
    "\u200b\u00a0\ufeff\x00\x7f zero widths and controls",
    "가각 हिन्दी עברית العربية ไทย ພາສາ",
    "x" * 300 + "1234567890" * 20,
    "",
]


def picture(width: int, height: int) -> Image.Image:
    """Draw a picture with gradients, edges and noise, the same for the same size."""
    rng = np.random.default_rng(width * 100_003 + height)
    x = np.linspace(0, 180, width, dtype=np.uint8)
    y = np.linspace(0, 180, height, dtype=np.uint8)[:, None]
    pixels = rng.integers(0, 36, (height, width, 3), dtype=np.uint8)
    pixels[:, :, 0] += x
    pixels[:, :, 1] += y
    pixels[:, :, 2] += (np.arange(width, dtype=np.uint8) // 7 % 2) * 200
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def official_pixels() -> Callable[[Image.Image, int], tuple[np.ndarray, list[int]]]:
    """Transformers' Pillow-backed image processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    def rows(image: Image.Image, max_pixels: int) -> tuple[np.ndarray, list[int]]:
        process = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=max_pixels)
        done = process(image, return_tensors="np")
        return done["pixel_values"], done["image_grid_thw"][0].tolist()

    return rows


def assert_rows_agree(
    official: Callable[[Image.Image, int], tuple[np.ndarray, list[int]]],
    size: tuple[int, int],
    max_pixels: int,
) -> None:
    image = picture(*size)
    config = PatchConfig(min_pixels=MIN_PIXELS, max_pixels=max_pixels)
    seen = resize(image, config)
    rows = make_patches([seen], config)
    expected, grid = official(image, max_pixels)
    assert list(config.grid(seen.size)) == grid
    assert rows.dtype == np.float32
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() <= 1e-5


def test_at_least_forty_sizes_are_compared() -> None:
    assert len(set(SIZES + LARGE)) >= 40


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixel_rows_agree_at_the_released_limits(official_pixels: Any, size: Any) -> None:
    assert_rows_agree(official_pixels, size, MAX_PIXELS)


@pytest.mark.parametrize("size", LARGE, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixel_rows_of_large_photos_agree_when_reduced(official_pixels: Any, size: Any) -> None:
    assert_rows_agree(official_pixels, size, LOWERED)


def test_pixel_rows_of_4000x3000_agree_at_full_size(official_pixels: Any) -> None:
    assert_rows_agree(official_pixels, (4000, 3000), MAX_PIXELS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3840, 2160), (5000, 5000)], ids=["4k", "5000x5000"])
def test_pixel_rows_of_large_photos_agree_at_full_size(official_pixels: Any, size: Any) -> None:
    assert_rows_agree(official_pixels, size, MAX_PIXELS)


def test_several_pictures_become_the_rows_of_each_in_order(official_pixels: Any) -> None:
    config = PatchConfig(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    images = [picture(*size) for size in ((300, 200), (60, 600), (224, 224))]
    rows = make_patches([resize(image, config) for image in images], config)
    expected = np.concatenate([official_pixels(image, MAX_PIXELS)[0] for image in images])
    assert np.abs(rows - expected).max() <= 1e-5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_pictures_of_other_modes_agree(official_pixels: Any, mode: str) -> None:
    """Alpha shows white and palettes their colours, as in transformers."""
    from qianyan.inputs.images import upright_rgb

    image = picture(120, 90)
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    config = PatchConfig(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    rows = make_patches([resize(upright_rgb(image), config)], config)
    assert np.abs(rows - official_pixels(image, MAX_PIXELS)[0]).max() <= 1e-5


def official_processor(folder: Path) -> Any:
    """Transformers' processor of a folder, without the parts that need torchvision."""
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideo(Qwen2_5_VLProcessor):
        """The checks of its parts look the video processor up, which needs torchvision."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    return WithoutVideo(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=Processor.from_folder(folder).template.source,
    )


@pytest.fixture(scope="session", params=["home-made", "qwen2-vl", "qwen2.5-vl"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Processor, Any]:
    """One folder of tokenizer, template and picture settings, as we and as transformers read it."""
    if request.param == "home-made":
        folder: Path = request.getfixturevalue("official_checkpoint")
    else:
        source = request.getfixturevalue("shared") / "tokenizer" / request.param
        if not source.is_dir():
            pytest.skip(f"the development data has no vocabulary of {request.param}")
        folder = tmp_path_factory.mktemp(request.param)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
            shutil.copyfile(source / name, folder / name)
        settings = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return Processor.from_folder(folder), official_processor(folder)


def image_part(width: int, height: int) -> dict[str, Any]:
    return {"type": "image", "image": picture(width, height)}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "Is there a fire? 有火吗？"}],
    "system": [
        {"role": "system", "content": "You watch a building site."},
        {"role": "user", "content": "What do you see?"},
    ],
    "one picture": [{"role": "user", "content": [image_part(224, 224), text_part("Any fire?")]}],
    "picture after text": [
        {"role": "user", "content": [text_part("Look at "), image_part(150, 100), text_part("!")]}
    ],
    "pictures of several sizes": [
        {
            "role": "user",
            "content": [
                image_part(300, 200),
                image_part(60, 600),
                text_part("Compare: "),
                image_part(28, 28),
            ],
        }
    ],
    "mixed turns": [
        {"role": "system", "content": [text_part("Answer in one word.")]},
        {"role": "user", "content": [image_part(128, 96), text_part("Helmet?")]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [text_part("Look "), text_part("again.")]},
        {"role": "user", "content": [text_part("And here?"), image_part(96, 128)]},
    ],
    "odd texts": [{"role": "user", "content": [text_part(text) for text in TEXTS]}],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("opens_reply", [True, False], ids=["prompt", "no prompt"])
def test_inputs_of_a_conversation_agree(
    checkpoint: tuple[Processor, Any], name: str, opens_reply: bool
) -> None:
    process, official = checkpoint
    messages = CONVERSATIONS[name]
    expected = official.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        add_generation_prompt=opens_reply,
    )
    inputs = process(messages, add_generation_prompt=opens_reply)
    assert inputs.prompt_token_ids == expected["input_ids"][0].tolist()
    if "pixel_values" not in expected:
        assert inputs.pixel_values is None
        return
    assert [list(grid) for grid in inputs.grid_thw] == expected["image_grid_thw"].tolist()
    assert inputs.pixel_values is not None
    assert np.abs(inputs.pixel_values - expected["pixel_values"]).max() <= 1e-5


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_of_a_text_agree_and_decode_alike(checkpoint: tuple[Processor, Any], text: str) -> None:
    process, official = checkpoint
    tokenizer = process.tokenizer
    ids = tokenizer.encode(text)
    assert ids == official.tokenizer(text)["input_ids"]
    for skip in (True, False):
        ours = tokenizer.decode(ids, skip_special=skip)
        assert ours == official.tokenizer.decode(ids, skip_special_tokens=skip)


def test_any_ids_decode_alike(checkpoint: tuple[Processor, Any]) -> None:
    """Ids in any order, as a random model writes them: broken characters come out the same."""
    process, official = checkpoint
    tokenizer = process.tokenizer
    rng = np.random.default_rng(3)
    for _ in range(50):
        ids = rng.integers(0, tokenizer.vocab_size, 40).tolist()
        expected = official.tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids) == expected
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == expected


TOOL_TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Help."},
    {"role": "user", "content": "Raise the alarm in hall 3."},
    {
        "role": "assistant",
        "content": "At once.",
        "reasoning_content": "\nthe hall is known\n",
        "tool_calls": [
            {
                "type": "function",
                "id": "call_1",
                "function": {"name": "raise_alarm", "arguments": {"place": "三号车间 <3>", "n": 1}},
            },
            {
                "type": "function",
                "id": "call_2",
                "function": {"name": "raise_alarm", "arguments": {}},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": '{"done": true}'},
    {"role": "tool", "tool_call_id": "call_2", "content": "no place"},
]


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("first", [0, 1], ids=["system", "no system"])
def test_ids_with_tools_and_thinking_agree(
    official_checkpoint: Path, tmp_path: Path, tools: Any, thinking: bool | None, first: int
) -> None:
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(official_checkpoint / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    official = AutoTokenizer.from_pretrained(tmp_path)
    switches = {} if thinking is None else {"enable_thinking": thinking}
    expected = official.apply_chat_template(
        TOOL_TURNS[first:], tools=tools, add_generation_prompt=True, return_dict=False, **switches
    )
    process = Processor.from_folder(tmp_path)
    inputs = process(TOOL_TURNS[first:], tools=tools, enable_thinking=thinking)
    assert inputs.prompt_token_ids == expected
