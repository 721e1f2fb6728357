"""The reader with tiny checkpoints of Qwen2-VL and Qwen-VL, taught one photo by heart.

Each is written in the official format, loaded as a user would load it, and says in its own notation
where the rectangle in the photo is; what comes back are pixels of the photo.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from qianyan.engine.engine import Engine
from qianyan.errors import InputError, ReplyError
from qianyan.inputs.grounding import Notation
from qianyan.inputs.processor import Processor
from qianyan.inputs.tiktoken_vocabulary import CONTROL_TOKENS, GROUNDING_TOKENS
from qianyan.models.attention import NoCache
from qianyan.models.registry import build_model, read_config
from qianyan.models.weights import initialise, save_checkpoint
from qianyan.reading.places import FoundBox, FoundPoint, View
from qianyan.reading.prompts import json_prompt, reference_prompt
from qianyan.reading.reader import Reader
from qianyan.train.bundled.vocabulary import train_vocabulary, write_vocabulary

PHOTO_WH = (600, 400)
FIRE = (150, 100, 450, 300)  # 250, 250, 750, 750 in thousandths
SEEN_PIXELS = 168 * 112
STEPS = 250

QWEN2_VL_SAYS = '[{"bbox_2d": [250, 250, 750, 750], "label": "flame"}]'
QWEN_VL_SAYS = "<ref>flame</ref><box>(250,250),(750,750)</box>"
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12_845_056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    image = Image.new("RGB", PHOTO_WH, (120, 120, 120))
    image.paste((235, 40, 20), FIRE)
    return image


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image) -> Engine:
    folder = tmp_path_factory.mktemp("qwen2-vl")
    view = View(notation=Notation.RELATIVE_BELOW_1000, seen_wh=(168, 112), photo_wh=PHOTO_WH)
    prompt = json_prompt("find", view, lang="en", what="flame")
    tokenizer = train_vocabulary([prompt, QWEN2_VL_SAYS] * 3, size=600)
    write_vocabulary(tokenizer, folder)
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 160,
        "max_position_embeddings": 2048,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": tokenizer.get_vocab_size(),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
    }
    stop = {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]}
    write(folder, config, stop, preprocessor_config=PREPROCESSOR)
    teach(folder, photo, {prompt: QWEN2_VL_SAYS}, max_pixels=SEEN_PIXELS)
    return Engine(folder, max_pixels=SEEN_PIXELS)


@pytest.fixture(scope="module")
def qwen_vl(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image) -> Engine:
    folder = tmp_path_factory.mktemp("qwen-vl")
    lines = [
        b"%s %d" % (base64.b64encode(bytes([byte])), rank) for rank, byte in enumerate(range(256))
    ]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines))
    image_start_id = 256 + len(CONTROL_TOKENS) + len(GROUNDING_TOKENS)
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": 128,
        "intermediate_size": 384,
        "kv_channels": 64,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 2048,
        "no_bias": True,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": 1024,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "vocab_size": image_start_id + 5,
        "visual": {
            "heads": 2,
            "image_size": 56,
            "image_start_id": image_start_id,
            "layers": 1,
            "mlp_ratio": 2.0,
            "n_queries": 16,
            "output_dim": 128,
            "patch_size": 14,
            "width": 32,
        },
    }
    write(folder, config, {"chat_format": "chatml"})
    answers = {"flame": QWEN_VL_SAYS, "smoke": "none", "dog": "Nice weather."}
    lessons = {
        reference_prompt("find", lang="en", what=what): answer for what, answer in answers.items()
    }
    teach(folder, photo, lessons)
    return Engine(folder, dtype="float32")


def write(folder: Path, config: dict[str, Any], generation: dict[str, Any], **more: Any) -> None:
    files = {"config": config, "generation_config": generation, **more}
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data))


def teach(
    folder: Path, photo: Image.Image, lessons: dict[str, str], *, max_pixels: int | None = None
) -> None:
    """Fit the model of a folder until it would say every token of every answer, and save it."""
    torch.manual_seed(7)
    model = build_model(read_config(folder))
    initialise(model, std=0.05)
    processor = Processor.from_folder(folder, max_pixels=max_pixels)
    examples = []
    for prompt, answer in lessons.items():
        parts = [{"type": "image", "image": photo}, {"type": "text", "text": prompt}]
        question = processor([{"role": "user", "content": parts}])
        examples.append((question, processor.tokenizer.encode(f"{answer}<|im_end|>")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(STEPS):
        worst, total = 0.0, torch.zeros(())
        for question, target in examples:
            loss = answer_loss(model, question, target)
            worst, total = max(worst, loss.item()), total + loss
        if worst < 0.01:
            save_checkpoint(model, folder)
            return
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"not learnt by heart after {STEPS} steps: loss {worst:.3f}")


def answer_loss(model: Any, question: Any, target: list[int]) -> torch.Tensor:
    """Average the loss over the answer's tokens."""
    token_ids = question.prompt_token_ids + target
    features = model.encode_images(torch.from_numpy(question.pixel_values), question.grid_thw)
    hidden = model.embed(torch.tensor(token_ids), features)
    positions = model.place(token_ids, question.grid_thw).prompt
    at = torch.arange(len(question.prompt_token_ids) - 1, len(token_ids) - 1)
    logits = model(hidden, positions, NoCache([len(token_ids)]), at)
    return cross_entropy(logits, torch.tensor(target))


def test_qwen2_vl_answers_in_its_own_range_and_lands_on_the_photo(
    qwen2_vl: Engine, photo: Image.Image
) -> None:
    assert qwen2_vl.processor.seen_wh(PHOTO_WH) == (168, 112)
    assert Reader(qwen2_vl, lang="en").find(photo, "flame") == (FoundBox(label="flame", box=FIRE),)


def test_qwen_vl_is_asked_in_its_own_marks_and_lands_on_the_photo(
    qwen_vl: Engine, photo: Image.Image
) -> None:
    reader = Reader(qwen_vl, lang="en")
    assert reader.find(photo, "flame") == (FoundBox(label="flame", box=FIRE),)
    assert reader.point(photo, "flame") == (FoundPoint(label="flame", x=300, y=200),)
    assert reader.count(photo, "flame").number == 1


def test_qwen_vl_finds_nothing_only_when_it_says_so(qwen_vl: Engine, photo: Image.Image) -> None:
    reader = Reader(qwen_vl, lang="en")
    assert reader.find(photo, "smoke") == ()
    with pytest.raises(ReplyError) as caught:
        reader.find(photo, "dog")
    assert caught.value.raw is not None
    assert caught.value.raw.startswith("Nice weather.")


def test_the_first_generation_calls_no_functions(qwen_vl: Engine, photo: Image.Image) -> None:
    with pytest.raises(InputError, match="calls no tools"):
        Reader(qwen_vl, lang="en").act(photo, "go on")
