"""Write a checkpoint of an official shape with random weights, for timing only.

    python benchmarks/make_checkpoint.py qwen2-vl-2b FOLDER --tokenizer FOLDER
    python benchmarks/make_checkpoint.py qwen2-vl-2b FOLDER --tokenizer FOLDER --layers 4 --blocks 4

Speed does not depend on what the weights are, so nothing has to be downloaded but a vocabulary:
--tokenizer is a folder with tokenizer.json, tokenizer_config.json and a chat template, such as that
of any Qwen2-VL or Qwen2.5-VL checkpoint. Names, shapes, format and files are those of the released
checkpoints; --layers and --blocks cut the decoder and the tower short where time is. Without
arguments the shapes are listed.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qianyan.engine.sizes import build_without_weights, count_parameters
from qianyan.models.registry import Model, find_architecture

IDS = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
TEXT = IDS | {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PATCHES = {
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-vl-2b": TEXT
    | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vision_config": PATCHES
        | {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16},
    },
    "qwen2.5-vl-3b": TEXT
    | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vision_config": PATCHES
        | {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    },
}
PREPROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12_845_056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "image_processor_type": "Qwen2VLImageProcessor",
}
GENERATION = {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643}
STD = 0.02
POOL = 2**24
SHARD_BYTES = 2 * 10**9
VOCABULARY_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def shorten(config: dict[str, Any], layers: int | None, blocks: int | None) -> dict[str, Any]:
    """Cut the decoder and the tower to so many layers and blocks; the last block sees all."""
    vision = dict(config["vision_config"])
    if blocks is not None:
        vision["depth"] = blocks
        if "fullatt_block_indexes" in vision:
            kept = [index for index in vision["fullatt_block_indexes"] if index < blocks]
            vision["fullatt_block_indexes"] = kept or [blocks - 1]
    number = config["num_hidden_layers"] if layers is None else layers
    return config | {"num_hidden_layers": number, "vision_config": vision}


class Noise:
    """Normal numbers without end, cut from one pool at random places: no two tensors alike."""

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(0)
        self._pool = (torch.randn(POOL, generator=self._random) * STD).bfloat16()

    def draw(self, name: str, shape: torch.Size) -> Tensor:
        """Fill a tensor; norms are ones and biases zeros, so that nothing grows out of range."""
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=torch.bfloat16)
        if "norm" in name or "ln_q" in name:
            return torch.ones(shape, dtype=torch.bfloat16)
        tensor = torch.empty(shape.numel(), dtype=torch.bfloat16)
        filled = 0
        while filled < len(tensor):
            start = int(torch.randint(0, POOL // 2, (1,), generator=self._random))
            piece = self._pool[start : start + len(tensor) - filled]
            tensor[filled : filled + len(piece)] = piece
            filled += len(piece)
        return tensor.view(shape)


def shards(model: Model) -> Iterator[list[tuple[str, torch.Size]]]:
    """Divide a model's tensors into files of at most SHARD_BYTES, unless one alone is larger."""
    shard: list[tuple[str, torch.Size]] = []
    size = 0
    for name, parameter in model.named_parameters():  # shared ones once
        more = 2 * parameter.numel()
        if shard and size + more > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((name, parameter.shape))
        size += more
    yield shard


def write_weights(model: Model, folder: Path) -> None:
    noise, files = Noise(), list(shards(model))
    homes = {}
    for number, shard in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {name: noise.draw(name, shape) for name, shape in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, file)
        print(f"{file}: {len(tensors)} tensors")
    total = sum(2 * parameter.numel() for parameter in model.parameters())
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_words(config: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    files = {
        "config.json": config,
        "generation_config.json": GENERATION,
        "preprocessor_config.json": PREPROCESSOR,
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=1))
    for source in tokenizer.iterdir():
        if source.name in VOCABULARY_FILES or source.name.startswith("chat_template"):
            shutil.copyfile(source, folder / source.name)


def list_shapes() -> None:
    for name, config in SHAPES.items():
        counts = count_parameters(build_without_weights(find_architecture(config).read(config)))
        total = sum(counts.values())
        parts = ", ".join(f"{part} {count / 1e9:.3f} B" for part, count in counts.items())
        print(f"{name:14} {total / 1e9:.3f} B parameters ({parts}), {2 * total / 1e9:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", choices=SHAPES)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of the vocabulary")
    parser.add_argument("--layers", type=int, help="decoder layers instead of the released number")
    parser.add_argument("--blocks", type=int, help="tower blocks instead of the released number")
    options = parser.parse_args()
    if options.shape is None:
        list_shapes()
        return
    if options.folder is None or options.tokenizer is None:
        parser.error("a folder to write into and --tokenizer are needed.")
    if not (options.tokenizer / "tokenizer.json").is_file():
        parser.error(f"{options.tokenizer} has no tokenizer.json; expected a vocabulary's folder.")
    config = shorten(SHAPES[options.shape], options.layers, options.blocks)
    model = build_without_weights(find_architecture(config).read(config))
    options.folder.mkdir(parents=True, exist_ok=True)
    write_words(config, options.tokenizer, options.folder)
    write_weights(model, options.folder)


if __name__ == "__main__":
    main()
