"""The small Qwen2.5-Omni of the tests as its authors' code builds and saves it."""

import json
from collections.abc import Sequence
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

from qianyan.inputs.processor import ModelInputs


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


def to_oracle(mel: torch.Tensor, num_frames: Sequence[int]) -> dict[str, torch.Tensor]:
    """Pad packed frames as the oracle wants them, with their mask."""
    clips = [clip.T for clip in mel.split(list(num_frames))]
    longest = max(num_frames)
    padded = [torch.nn.functional.pad(clip, (0, longest - clip.shape[1])) for clip in clips]
    mask = torch.arange(longest) < torch.tensor(num_frames).unsqueeze(1)
    return {"input_features": torch.stack(padded), "feature_attention_mask": mask.long()}


def for_oracle(inputs: ModelInputs) -> dict[str, Any]:
    """Sort what our processor packed the way transformers wants it."""
    ids = torch.tensor([inputs.prompt_token_ids])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if inputs.pixel_values is not None:
        pixels = torch.from_numpy(inputs.pixel_values)
        rows = pixels.split([t * h * w for t, h, w in inputs.grid_thw])
        for is_video, name, grids in (
            (False, "pixel_values", "image_grid_thw"),
            (True, "pixel_values_videos", "video_grid_thw"),
        ):
            picked = [i for i, (t, _, _) in enumerate(inputs.grid_thw) if (t > 1) is is_video]
            if picked:
                given[name] = torch.cat([rows[i] for i in picked])
                given[grids] = torch.tensor([inputs.grid_thw[i] for i in picked])
    if inputs.second_per_grid_ts:
        given["video_second_per_grid"] = torch.tensor(inputs.second_per_grid_ts)
    if inputs.input_features is not None:
        frames = torch.from_numpy(inputs.input_features)
        given |= to_oracle(frames, inputs.num_audio_frames)
    start = IDS["<|vision_bos|>"], IDS["<|audio_bos|>"]
    pairs = zip(inputs.prompt_token_ids, inputs.prompt_token_ids[1:], strict=False)
    return given | {"use_audio_in_video": start in list(pairs)}
