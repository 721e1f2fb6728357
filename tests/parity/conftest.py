"""Fixtures for parity tests: small random checkpoints in the official file format.

For every room, not only the models:
    make_checkpoint(name, **text)  a folder as the authors publish it: nested config.json,
                                   model.safetensors, tokenizer, chat template, preprocessor and
                                   generation settings; `generation` is qwen2_5_vl or another
                                   model_type, `text` changes the text config, `vision` the vision
                                   config, `tied` shares the output matrix
    make_text_checkpoint(model_type, **text)
                                   the same for models that read text only
    official_checkpoint            the default one, made once per session
    hub_checkpoint                 the same weights under the Hub's flat config.json
    load_oracle(folder)            the folder as a transformers model, float32, evaluation mode
    tiny_tokens                    names of the tokenizer's special tokens -> ids

The vocabulary is 256 bytes, a few merges and the official special tokens, so ids are small while
everything that reads the folder meets the official names. Importing transformers takes many
seconds: it happens in the fixtures, only when a test asks for one.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS = (  # added, but shown when special tokens are skipped
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
MERGES = (
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("i", "n"),
    ("Ġ", "a"),
    ("f", "i"),
    ("r", "e"),
    ("fi", "re"),
)
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type in ('image', 'image_url') -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' -%}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
VISION = {
    "qwen2_vl": {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 4},
    "qwen2_5_vl": {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    },
}
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}  # in transformers, before Config


def byte_vocabulary() -> dict[str, int]:
    """Give the byte-level alphabet with the merges after it."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = sorted(ByteLevel.alphabet()) + [first + second for first, second in MERGES]
    return {piece: index for index, piece in enumerate(pieces)}


@pytest.fixture(scope="session")
def tiny_tokens() -> dict[str, int]:
    """Special token -> id, as in every checkpoint made here."""
    start = len(byte_vocabulary())
    return {token: start + n for n, token in enumerate(SPECIAL_TOKENS + ADDED_TOKENS)}


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, for repeatable sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokens: dict[str, int], one_thread: None
) -> Callable[..., Path]:
    """Give a function that writes a random checkpoint folder in the official format."""

    def make(
        name: str,
        *,
        generation: str = "qwen2_5_vl",
        tied: bool = False,
        seed: int = 0,
        vision: dict[str, Any] | None = None,
        **text: Any,
    ) -> Path:
        import transformers

        kind = CLASSES[generation]
        folder = tmp_path_factory.mktemp(name)
        config = getattr(transformers, f"{kind}Config")(
            text_config={
                **TEXT,
                "bos_token_id": tiny_tokens["<|endoftext|>"],
                "eos_token_id": tiny_tokens["<|im_end|>"],
                "pad_token_id": tiny_tokens["<|endoftext|>"],
                **text,
            },
            vision_config=VISION[generation] | (vision or {}),
            image_token_id=tiny_tokens["<|image_pad|>"],
            video_token_id=tiny_tokens["<|video_pad|>"],
            vision_start_token_id=tiny_tokens["<|vision_start|>"],
            vision_end_token_id=tiny_tokens["<|vision_end|>"],
            tie_word_embeddings=tied,
        )
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        randomise(model, seed=seed)
        model.generation_config.eos_token_id = [
            tiny_tokens["<|im_end|>"],
            tiny_tokens["<|endoftext|>"],
        ]
        model.generation_config.pad_token_id = tiny_tokens["<|endoftext|>"]
        model.save_pretrained(folder)
        write_tokenizer(folder)
        write_preprocessor(folder)
        return folder

    return make


def randomise(model: torch.nn.Module, *, seed: int) -> None:
    """Draw weights under which every parameter matters: no zero bias, no norm of plain ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1 + 0.1 * noise)


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template."""
    from transformers import AddedToken, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab=byte_vocabulary(),
        merges=list(MERGES),
        unk_token=None,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
        + [AddedToken(token, special=False, normalized=False) for token in ADDED_TOKENS]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def write_preprocessor(folder: Path) -> None:
    """Write preprocessor_config.json with the numbers of the released checkpoints."""
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def to_hub_form(config: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a nested config.json as the Hub's flat one, with its names and its omissions."""
    model_type = config["model_type"]
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = dict(text.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    return {
        "architectures": config["architectures"],
        **{name: value for name, value in text.items() if name in TEXT or "token_id" in name},
        "model_type": model_type,
        "rope_theta": theta,
        "rope_scaling": {"type": "mrope" if kind == "default" else kind, **rope},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": text["num_hidden_layers"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "torch_dtype": "float32",
        **{name: config[name] for name in config if name.endswith("_token_id")},
        "vision_config": {
            **{name: vision[name] for name in VISION[model_type]},
            "in_chans": 3,
            "spatial_patch_size": 14,
            "model_type": model_type,
        },
    }


@pytest.fixture(scope="session")
def make_text_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokens: dict[str, int], one_thread: None
) -> Callable[..., Path]:
    """Give a function that writes a random text checkpoint of a model_type.

    Its answers end only at their length: the stop token is a row of padding.
    """

    def make(model_type: str, *, seed: int = 0, **text: Any) -> Path:
        import transformers

        folder = tmp_path_factory.mktemp(model_type)
        rope = {"rope_type": "default", "rope_theta": 1e6}
        fields = {**TEXT, "rope_parameters": rope, "eos_token_id": 319, **text}
        for name in ("bos_token_id", "pad_token_id"):
            fields[name] = tiny_tokens["<|endoftext|>"]
        config = transformers.AutoConfig.for_model(model_type, **fields)
        model = transformers.AutoModelForCausalLM.from_config(config)
        randomise(model, seed=seed)
        model.save_pretrained(folder)
        write_tokenizer(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def official_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A small random checkpoint as transformers saves it, with a nested config.json."""
    return make_checkpoint("official")


@pytest.fixture(scope="session")
def hub_checkpoint(
    official_checkpoint: Path,
    write_hub_form: Callable[[Path, Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The official checkpoint under the flat config.json of the Hub."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoint"
    write_hub_form(official_checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def write_hub_form() -> Callable[[Path, Path], None]:
    """Give a function that copies a folder under the flat config.json of the Hub."""

    def write(nested: Path, flat: Path) -> None:
        shutil.copytree(nested, flat)
        config = json.loads((nested / "config.json").read_text())
        (flat / "config.json").write_text(json.dumps(to_hub_form(config), indent=2))

    return write


@pytest.fixture(scope="session")
def load_oracle(one_thread: None) -> Callable[[Path], Any]:
    """Give a function that loads a folder with transformers, float32, evaluation mode."""

    def load(folder: Path) -> Any:
        import transformers

        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        model_class = getattr(transformers, architecture)
        return model_class.from_pretrained(folder, dtype=torch.float32).eval()

    return load
