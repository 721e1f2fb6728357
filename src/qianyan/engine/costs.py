"""What a model's passes cost: floating-point operations, and bytes of weights that are read.

A multiplication and an addition count as two operations. Counted are the matrices and attention's
two products, which make up nearly all; norms, activations and softmax are left out. Operations
follow from the config, by the matrices of the model that is built from it without weights; bytes
are those of a loaded model, however its weights are stored.

The decoder attends causally: a token sees itself and what precedes it. A tower attends inside
segments: frames, and in most blocks of Qwen2.5-VL windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qianyan.engine.sizes import build_without_weights, count_kept_numbers, find_field, part_of
from qianyan.models import qwen2_5_vl, qwen_vl
from qianyan.models.positions import Grid
from qianyan.models.qwen import QWenConfig
from qianyan.models.registry import ModelConfig
from qianyan.models.vision_language import VisionLanguageConfig

OUTPUT = "lm_head"
EMBEDDINGS = ("embed_tokens", "wte")
MERGERS = ("merger", "attn_pool")


@dataclass(frozen=True, kw_only=True)
class TextCosts:
    """Operations of the decoder: for each token, for each seen token, for each row of logits.

    The last layer's feed-forward belongs to the rows of logits: it is run for scored tokens alone
    (the first generation runs it for all).
    """

    per_token: int
    per_pair: int
    per_logits_row: int

    def flops(self, num_tokens: int, context: int, num_rows: int = 1) -> int:
        """Count a pass over the last `num_tokens` of `context` tokens that scores `num_rows`."""
        before = context - num_tokens
        pairs = (context * (context + 1) - before * (before + 1)) // 2
        return num_tokens * self.per_token + pairs * self.per_pair + num_rows * self.per_logits_row


def text_costs(config: ModelConfig) -> TextCosts:
    """Count the operations of a decoder; of experts those that a token passes through."""
    model = build_without_weights(config)
    experts, chosen = (find_field(config, n) for n in ("num_experts", "num_experts_per_tok"))
    share = (chosen, experts) if experts and chosen else (1, 1)
    text = config.text if isinstance(config, VisionLanguageConfig) else config
    scored = "" if isinstance(text, QWenConfig) else f"layers.{text.num_hidden_layers - 1}.mlp."
    per_token, per_row = 0, 0
    for name, elements in _matrices(model, "text"):
        is_expert = "experts" in name.split(".")
        operations = 2 * elements * (share[0] if is_expert else share[1])
        if name.endswith(OUTPUT) or (scored and scored in name):
            per_row += operations
        else:
            per_token += operations
    width = (
        text.hidden_size
        if isinstance(text, QWenConfig)
        else text.num_attention_heads * text.head_dim
    )
    return TextCosts(
        per_token=per_token // share[1],
        per_pair=4 * width * text.num_hidden_layers,
        per_logits_row=per_row // share[1],
    )


def vision_flops(config: ModelConfig, grids: Sequence[Grid]) -> int:
    """Count the operations of a tower on pictures of these grids; 0 for a model without one."""
    if isinstance(config, QWenConfig):
        return len(grids) * _square_flops(config.visual) if config.visual is not None else 0
    if not isinstance(config, VisionLanguageConfig):
        return 0
    vision = config.vision
    model = build_without_weights(config)
    width = vision.hidden_size if isinstance(vision, qwen2_5_vl.VisionConfig) else vision.embed_dim
    per_patch, per_unit = 2 * vision.patch_values * width, 0
    for name, elements in _matrices(model, "vision"):
        if any(piece in MERGERS for piece in name.split(".")):
            per_unit += 2 * elements
        else:
            per_patch += 2 * elements
    patches = sum(t * h * w for t, h, w in grids)
    units = patches // vision.spatial_merge_size**2
    pairs = sum(_pairs(vision, grid) for grid in grids)
    return patches * per_patch + units * per_unit + 4 * width * pairs


def _pairs(vision: object, grid: Grid) -> int:
    """Count pairs of patches that see each other in one picture, over all blocks."""
    t, h, w = grid
    in_frames = t * (h * w) ** 2
    depth = find_field(vision, "depth") or 0
    if not isinstance(vision, qwen2_5_vl.VisionConfig):
        return depth * in_frames
    layout = qwen2_5_vl.lay_out(grid, merge=vision.spatial_merge_size, side=vision.window_side)
    in_windows = sum(length**2 for length in layout.windows)
    whole = len(vision.fullatt_block_indexes)
    return whole * in_frames + (depth - whole) * in_windows


def _square_flops(visual: qwen_vl.VisualConfig) -> int:
    """Count the operations of the first generation's eyes on one picture."""
    patches, width, out = visual.grid_side**2, visual.width, visual.output_dim
    block = 4 * width**2 + 2 * width * visual.mlp_width
    per_patch = 2 * (3 * visual.patch_size**2 * width + visual.layers * block)
    per_patch += 2 * 2 * out**2  # the resampler's keys and values
    per_patch += 2 * width * out if width != out else 0
    per_query = 2 * 3 * out**2  # its queries, its output and `proj`
    pairs = 4 * (visual.layers * width * patches**2 + out * visual.n_queries * patches)
    return patches * per_patch + visual.n_queries * per_query + pairs


def _matrices(model: nn.Module, part: str) -> list[tuple[str, int]]:
    """List the matrices of a part of a model with their numbers of elements."""
    return [
        (name, int(module.in_features) * int(module.out_features))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(name) == part
    ]


def stored_bytes(model: nn.Module) -> int:
    """Add up what a loaded model's weights take, shared ones once."""
    return sum(size for _, size in _stored(model))


def read_bytes_per_pass(model: nn.Module, config: ModelConfig) -> int:
    """Add up the weights that a pass over one token reads.

    Embeddings are looked up, not read, unless they are the output matrix as well; of experts only
    the chosen ones are read; towers rest.
    """
    experts, chosen = (find_field(config, n) for n in ("num_experts", "num_experts_per_tok"))
    text = config.text if isinstance(config, VisionLanguageConfig) else config
    total, in_experts = 0, 0
    for name, size in _stored(model):
        pieces = name.split(".")
        if part_of(name) != "text":
            continue
        if "experts" in pieces:
            in_experts += size
        elif text.tie_word_embeddings or not any(piece in EMBEDDINGS for piece in pieces):
            total += size
    return total + (in_experts * chosen // experts if experts and chosen else in_experts)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Tell what a loaded model computes in: the norms' dtype, which no quantisation touches."""
    norms = (p for name, p in model.named_parameters() if "norm" in name or "ln_" in name)
    return next(norms).dtype


def kept_bytes_per_token(model: nn.Module) -> int:
    """Give the bytes of one token's keys and values in all layers."""
    return count_kept_numbers(model) * compute_dtype(model).itemsize


def _stored(model: nn.Module) -> list[tuple[str, int]]:
    """List parameters and buffers (quantised weights are buffers) with their bytes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor.numel() * tensor.element_size()) for name, tensor in tensors]
