"""The small Qwen2.5-Omni of the tests as its authors' code builds and saves it."""

import json
from pathlib import Path
from typing import Any

import torch
from tests.omni_checkpoint import (
    IDS,
    TALKER,
    THINKER,
    TOKEN2WAV,
    draw_voices,
    randomise,
    silence,
    write_settings,
)


def build_omni() -> Any:
    """Make the whole model in transformers, with its voices."""
    import transformers

    config = transformers.Qwen2_5OmniConfig(
        thinker_config=THINKER, talker_config=TALKER, token2wav_config=TOKEN2WAV
    )
    model = transformers.Qwen2_5OmniForConditionalGeneration(config).eval()
    randomise(model)
    silence(model.talker)
    model.speaker_map = draw_voices()
    return model


def save_omni(model: Any, folder: Path, *, eos_token_id: int = IDS["<|im_end|>"]) -> Path:
    """Write the whole model as it is published, voices included; it ends at `eos_token_id`."""
    model.save_pretrained(folder)
    write_settings(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_id}))
    torch.save(model.speaker_map, folder / "spk_dict.pt")
    return folder
