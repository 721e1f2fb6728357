"""A small random Qwen2.5-Omni whose voice ends behind the text, as that of a trained one does.

One channel of the Thinker's embeddings is kept for the two tokens that follow a text on the
Talker's track; the Talker keeps a channel for it too, and the code that ends speech reads it alone.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests.omni_checkpoint import END, IDS, write_omni_checkpoint

SIGNAL = 50.0


def write_reading_checkpoint(folder: Path, *, ends_early: bool = False) -> Path:
    """Write all files of one; one that `ends_early` has no more to say after a few tokens."""
    write_omni_checkpoint(folder, talker_positions=4096)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    with torch.no_grad():
        _keep_a_channel(tensors)
        if ends_early:
            tensors["thinker.model.embed_tokens.weight"][ord("b") - 33, -1] = SIGNAL
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def _keep_a_channel(tensors: dict[str, torch.Tensor]) -> None:
    embedding = tensors["thinker.model.embed_tokens.weight"]
    embedding[:, -1] = 0
    embedding[[IDS["<tts_text_eos>"], IDS["<tts_pad>"]], -1] = SIGNAL
    tensors["thinker.model.norm.weight"][-1] = 0
    tensors["talker.thinker_to_talker_proj.weight"][-1] = 0
    tensors["talker.thinker_to_talker_proj.weight"][-1, -1] = 1
    tensors["talker.thinker_to_talker_proj.bias"][-1] = 0
    tensors["talker.model.embed_tokens.weight"][:, -1] = 0
    for name, tensor in tensors.items():
        if name.startswith("talker.") and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[-1] = 0
    head = tensors["talker.codec_head.weight"]
    head[:, -1] = 0
    head[END] = 0
    head[END, -1] = 10
