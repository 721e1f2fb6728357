"""Operations and bytes, against torch's own count of matrix products and counts by hand."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qianyan.engine.costs import (
    read_bytes_per_pass,
    stored_bytes,
    text_costs,
    vision_flops,
)
from qianyan.models.attention import NoCache
from qianyan.models.positions import Grid
from qianyan.models.qwen import qwen_config
from qianyan.models.registry import (
    Model,
    ModelConfig,
    build_model,
    qwen2_5_vl_config,
    qwen2_config,
    qwen2_vl_config,
    qwen3_moe_config,
)
from qianyan.models.weights import initialise

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vocab_size": 288,
}
SEEING = TEXT | {
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "tie_word_embeddings": True,
}
QWEN2 = qwen2_config(TEXT | {"tie_word_embeddings": False})
TIED = qwen2_config(TEXT | {"tie_word_embeddings": True})
MOE = qwen3_moe_config(
    TEXT
    | {
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    }
)
QWEN2_VL = qwen2_vl_config(
    SEEING | {"vision_config": {"hidden_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2}}
)
QWEN2_5_VL = qwen2_5_vl_config(
    SEEING
    | {
        "vision_config": {
            "depth": 3,
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "num_heads": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }
    }
)
QWEN_VL = qwen_config(
    {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 32,
        "max_position_embeddings": 64,
        "seq_length": 64,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "visual": {
            "heads": 2,
            "image_size": 56,
            "image_start_id": 300,
            "layers": 2,
            "mlp_ratio": 2.0,
            "output_dim": 128,
            "patch_size": 14,
            "width": 32,
            "n_queries": 16,
        },
    }
)
GRIDS: list[Grid] = [(1, 8, 12), (1, 4, 6)]


def made(config: ModelConfig) -> Model:
    torch.manual_seed(0)
    model = build_model(config)
    initialise(model)
    return model


def counted(run: Any) -> int:
    """Count a run's matrix products as torch does; attention's are not among them on the CPU."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return sum(
        count
        for operation, count in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)
    )


@pytest.mark.parametrize("config", [QWEN2, TIED, MOE, QWEN2_VL, QWEN_VL])
def test_a_decoders_matrices_cost_what_torch_counts(config: ModelConfig) -> None:
    model, ids = made(config), torch.arange(10, 40)

    def run() -> None:
        places = model.place(ids.tolist()).at(0, 30)
        model(model.embed(ids), places, NoCache((30,)), torch.tensor([28, 29]))

    costs = text_costs(config)
    assert counted(run) == 30 * costs.per_token + 2 * costs.per_logits_row


def test_a_decoder_of_one_layer_costs_what_one_counts_by_hand() -> None:
    costs = text_costs(qwen2_config(TEXT | {"num_hidden_layers": 1, "tie_word_embeddings": True}))
    query_and_output, key_and_value, feed_forward = 2 * 32 * 32, 2 * 32 * 16, 3 * 32 * 64
    assert costs.per_token == 2 * (query_and_output + key_and_value)
    assert costs.per_pair == 2 * 2 * 4 * 8  # two products over 4 heads of 8
    assert costs.per_logits_row == 2 * (32 * 288 + feed_forward)


def test_a_token_sees_itself_and_what_precedes_it() -> None:
    costs = text_costs(TIED)
    pairs = 5 + 6 + 7
    assert costs.flops(3, 7, 0) == 3 * costs.per_token + pairs * costs.per_pair
    assert costs.flops(4, 4) + costs.flops(3, 7, 0) == costs.flops(7, 7)


@pytest.mark.parametrize(
    ("config", "pairs"),
    [
        (QWEN2_VL, 3 * (96**2 + 24**2)),
        # one block over frames, two over windows of 4 x 4 patches, one of them cut at the edge
        (QWEN2_5_VL, 96**2 + 24**2 + 2 * (6 * 16**2 + 16**2 + 8**2)),
    ],
)
def test_a_tower_costs_its_matrices_and_the_pairs_that_see_each_other(
    config: ModelConfig, pairs: int
) -> None:
    model, pixels = made(config), torch.randn(96 + 24, 1176)
    matrices = counted(lambda: model.encode_images(pixels, GRIDS))
    assert vision_flops(config, GRIDS) == matrices + 4 * 16 * pairs


def test_the_first_generations_eyes_cost_the_same_for_every_picture() -> None:
    patches, queries = 16, 16
    block = 3 * 32 * 32 + 32 * 32 + 2 * 32 * 64
    eyes = patches * (3 * 14 * 14 * 32 + 2 * block + 32 * 128)
    resampler = patches * 2 * 128 * 128 + queries * 3 * 128 * 128
    attention = 2 * 2 * 32 * patches**2 + 2 * 128 * queries * patches
    assert vision_flops(QWEN_VL, [(1, 4, 4)] * 2) == 2 * 2 * (eyes + resampler + attention)


def test_a_model_without_eyes_looks_for_nothing() -> None:
    assert vision_flops(QWEN2, []) == 0
    assert vision_flops(qwen_config(QWEN_TEXT), []) == 0


QWEN_TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "kv_channels": 32,
    "max_position_embeddings": 64,
    "seq_length": 64,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}


def test_the_official_2b_costs_what_is_known_of_it() -> None:
    config = qwen2_vl_config(
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "image_token_id": 151655,
            "video_token_id": 151656,
            "vision_start_token_id": 151652,
            "vision_config": {"hidden_size": 1536},
        }
    )
    assert vision_flops(config, [(1, 54, 72)]) == pytest.approx(7.44e12, rel=0.01)
    unscored = 1494 * 2 * 3 * 1536 * 8960  # the last feed-forward, which they do not pass
    assert text_costs(config).flops(1495, 1495) == pytest.approx(4.11e12 - unscored, rel=0.01)


def test_a_pass_reads_neither_towers_nor_looked_up_rows_nor_other_experts() -> None:
    untied, tied, seeing = made(QWEN2), made(TIED), made(QWEN2_VL)
    embeddings = 4 * 288 * 32
    assert read_bytes_per_pass(untied, QWEN2) == stored_bytes(untied) - embeddings
    assert read_bytes_per_pass(tied, TIED) == stored_bytes(tied)
    assert read_bytes_per_pass(seeing, QWEN2_VL) == stored_bytes(tied)
    experts = 4 * 2 * 8 * 3 * 32 * 24  # two of three layers have them
    sparse = made(MOE)
    rested = experts * 6 // 8
    assert read_bytes_per_pass(sparse, MOE) == stored_bytes(sparse) - embeddings - rested
