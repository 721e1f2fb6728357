"""The first generation's configs, sizes, positions and slots, and what it refuses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from qianyan.errors import CheckpointError, ConfigError, InputError
from qianyan.models.attention import NoCache
from qianyan.models.qwen import (
    QWenConfig,
    QWenLMHeadModel,
    ignored_tensors,
    logn_scale,
    qwen_config,
    stretched_rope,
)
from qianyan.models.qwen_vl import VisualConfig, sine_positions, stretch
from qianyan.models.weights import load_weights, read_tensors

Change = Callable[[dict[str, Any]], None]


def released_config(**changes: Any) -> dict[str, Any]:
    """The released config.json of Qwen-7B in its own words, with what other sizes change."""
    return {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "initializer_range": 0.02,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 32768,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 8192,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": 151936,
        **changes,
    }


RELEASED = {
    "Qwen-1.8B": released_config(
        hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=11008
    ),
    "Qwen-7B": released_config(),
    "Qwen-14B": released_config(
        hidden_size=5120,
        num_hidden_layers=40,
        num_attention_heads=40,
        intermediate_size=27392,
        seq_length=2048,
        max_position_embeddings=8192,
        vocab_size=152064,
    ),
    "Qwen-72B": released_config(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        intermediate_size=49152,
        seq_length=32768,
        rotary_emb_base=1_000_000,
        use_dynamic_ntk=False,
        use_logn_attn=False,
        vocab_size=152064,
    ),
    "Qwen-VL-Chat": released_config(
        seq_length=2048,
        max_position_embeddings=8192,
        visual={
            "heads": 16,
            "image_size": 448,
            "image_start_id": 151857,
            "layers": 48,
            "mlp_ratio": 4.9231,
            "output_dim": 4096,
            "patch_size": 14,
            "width": 1664,
        },
    ),
}


def text_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a released decoder, written out one by one."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    inter = config["intermediate_size"] // 2
    table: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab, hidden),
        "transformer.ln_f.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        block = f"transformer.h.{layer}"
        table |= {
            f"{block}.ln_1.weight": (hidden,),
            f"{block}.ln_2.weight": (hidden,),
            f"{block}.attn.c_attn.weight": (3 * hidden, hidden),
            f"{block}.attn.c_attn.bias": (3 * hidden,),
            f"{block}.attn.c_proj.weight": (hidden, hidden),
            f"{block}.mlp.w1.weight": (inter, hidden),
            f"{block}.mlp.w2.weight": (inter, hidden),
            f"{block}.mlp.c_proj.weight": (hidden, inter),
        }
    return table


def visual_shapes() -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the released tower, written out one by one."""
    visual = "transformer.visual"
    table: dict[str, tuple[int, ...]] = {
        f"{visual}.conv1.weight": (1664, 3, 14, 14),
        f"{visual}.positional_embedding": (256, 1664),
        f"{visual}.ln_pre.weight": (1664,),
        f"{visual}.ln_pre.bias": (1664,),
        f"{visual}.ln_post.weight": (4096,),
        f"{visual}.ln_post.bias": (4096,),
        f"{visual}.proj": (4096, 4096),
        f"{visual}.attn_pool.query": (256, 4096),
        f"{visual}.attn_pool.pos_embed": (256, 4096),
        f"{visual}.attn_pool.kv_proj.weight": (4096, 1664),
        f"{visual}.attn_pool.attn.in_proj_weight": (12288, 4096),
        f"{visual}.attn_pool.attn.in_proj_bias": (12288,),
        f"{visual}.attn_pool.attn.out_proj.weight": (4096, 4096),
        f"{visual}.attn_pool.attn.out_proj.bias": (4096,),
        f"{visual}.attn_pool.ln_q.weight": (4096,),
        f"{visual}.attn_pool.ln_q.bias": (4096,),
        f"{visual}.attn_pool.ln_kv.weight": (4096,),
        f"{visual}.attn_pool.ln_kv.bias": (4096,),
    }
    for layer in range(48):
        block = f"{visual}.transformer.resblocks.{layer}"
        table |= {
            f"{block}.ln_1.weight": (1664,),
            f"{block}.ln_1.bias": (1664,),
            f"{block}.ln_2.weight": (1664,),
            f"{block}.ln_2.bias": (1664,),
            f"{block}.attn.in_proj.weight": (4992, 1664),
            f"{block}.attn.in_proj.bias": (4992,),
            f"{block}.attn.out_proj.weight": (1664, 1664),
            f"{block}.attn.out_proj.bias": (1664,),
            f"{block}.mlp.c_fc.weight": (8192, 1664),
            f"{block}.mlp.c_fc.bias": (8192,),
            f"{block}.mlp.c_proj.weight": (1664, 8192),
            f"{block}.mlp.c_proj.bias": (1664,),
        }
    return table


def tiny(**changes: Any) -> dict[str, Any]:
    return released_config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        kv_channels=16,
        max_position_embeddings=512,
        seq_length=64,
        **changes,
    )


def tiny_vl(**changes: Any) -> dict[str, Any]:
    visual = {
        "heads": 2,
        "image_size": 56,
        "image_start_id": 300,
        "layers": 1,
        "mlp_ratio": 3.0,
        "output_dim": 128,
        "patch_size": 14,
        "width": 32,
        "n_queries": 4,
    }
    return tiny(visual=visual | changes)


PICTURE = [300, 302, 302, 302, 302, 301]


@pytest.fixture
def sighted() -> QWenLMHeadModel:
    torch.manual_seed(0)
    return QWenLMHeadModel(qwen_config(tiny_vl())).eval()


@pytest.fixture
def blind() -> QWenLMHeadModel:
    torch.manual_seed(0)
    return QWenLMHeadModel(qwen_config(tiny())).eval()


@pytest.mark.parametrize("size", RELEASED)
def test_released_sizes_have_exactly_the_checkpoints_names_and_shapes(size: str) -> None:
    with torch.device("meta"):
        model = QWenLMHeadModel(qwen_config(RELEASED[size]))
    expected = text_shapes(RELEASED[size])
    if "visual" in RELEASED[size]:
        expected |= visual_shapes()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected


def test_the_released_qwen_vl_has_as_many_numbers_as_its_index_says() -> None:
    with torch.device("meta"):
        model = QWenLMHeadModel(qwen_config(RELEASED["Qwen-VL-Chat"]))
    assert 2 * sum(tensor.numel() for tensor in model.state_dict().values()) == 19_313_870_336


def set_to(**values: Any) -> Change:
    return lambda config: config.update(values)


def set_visual(**values: Any) -> Change:
    return lambda config: config["visual"].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.pop("seq_length"), "config.json has no seq_length"),
        (set_to(seq_length=1), "seq_length is 1; expected at least 2"),
        (set_to(hidden_size="128"), "hidden_size is '128'"),
        (set_to(rotary_pct=0.25), "rotary_pct is '0.25'; expected 1"),
        (set_to(no_bias=False), "no_bias is false; expected true"),
        (set_to(kv_channels=32), "kv_channels is 32; expected hidden_size / num_attention_heads"),
        (set_to(intermediate_size=97), "intermediate_size is 97; expected an even number"),
        (set_to(use_logn_attn="yes"), "use_logn_attn is 'yes'; expected true or false"),
        (set_to(layer_norm_epsilon=0), "layer_norm_epsilon is '0'; expected a number above 0"),
        (set_to(num_attention_heads=3), "hidden_size is 128; expected a multiple of"),
        (
            set_to(num_attention_heads=128, kv_channels=1),
            "kv_channels is 1; expected an even number of at least 4",
        ),
        (set_to(visual=[]), None),  # nothing stated
        (set_to(visual=7), "visual is '7'; expected a JSON object"),
        (lambda config: config["visual"].pop("width"), "visual has no width"),
        (set_visual(output_dim=256), "visual output_dim is 256; expected the text hidden_size"),
        (set_visual(output_dim=64), "visual output_dim is 64; expected a multiple of 128"),
        (set_visual(n_queries=5), "visual n_queries is 5; expected a square number"),
        (set_visual(image_size=50), "image_size is 50; expected a multiple of patch_size"),
        (set_visual(heads=5), "width is 32; expected a multiple of heads"),
        (set_visual(mlp_ratio=0.01), "visual mlp_ratio is 0.01"),
        (set_visual(image_start_id=318), "visual image_start_id is 318"),
    ],
)
def test_configs_are_complete_and_possible_or_refused(change: Change, words: str | None) -> None:
    data = tiny_vl()
    change(data)
    if words is None:
        assert qwen_config(data).visual is None
        return
    with pytest.raises(ConfigError) as raised:
        qwen_config(data)
    assert words in str(raised.value)


def test_the_released_number_of_queries_need_not_be_stated() -> None:
    visual = qwen_config(RELEASED["Qwen-VL-Chat"]).visual
    assert visual is not None
    assert visual.n_queries == 256
    assert visual.grid_side == 32
    assert visual.mlp_width == 8192


# By hand: c = log2(n / 64) + 1, alpha = 2 ** ceil(c) - 1, never below 1.
@pytest.mark.parametrize(
    ("length", "alpha"),
    [(1, 1), (32, 1), (33, 1), (64, 1), (65, 3), (128, 3), (129, 7), (256, 7), (257, 15)],
)
def test_alpha_doubles_with_the_prompts_length(length: int, alpha: int) -> None:
    config = qwen_config(tiny())
    cos, sin = stretched_rope(torch.tensor([[1], [length]]), config)
    base = 10000 * alpha ** (16 / 14)
    angles = torch.tensor([base ** (-2 * i / 16) for i in range(8)])
    assert_close(torch.atan2(sin, cos).flatten(), angles, rtol=1e-6, atol=0)


def test_without_dynamic_ntk_a_long_prompt_turns_as_trained() -> None:
    config = qwen_config(tiny(use_dynamic_ntk=False))
    positions = torch.tensor([[5, 5], [10, 1000]])
    cos, _ = stretched_rope(positions, config)
    assert torch.equal(cos[0], cos[1])


def test_queries_beyond_the_trained_length_are_scaled_by_their_position() -> None:
    """The 64th token, at position 63, is the last one that is not."""
    positions = torch.tensor([[0, 62, 63, 64, 4095], [1, 63, 64, 65, 4096]])
    scale = logn_scale(positions, qwen_config(tiny())).flatten()
    expected = [1, 1, 1, math.log(65) / math.log(64), 2]
    assert_close(scale, torch.tensor(expected), rtol=1e-6, atol=0)
    assert logn_scale(positions, qwen_config(tiny(use_logn_attn=False))).unique().tolist() == [1]


def test_every_token_carries_its_prompts_length_and_so_does_the_answer(
    blind: QWenLMHeadModel,
) -> None:
    placed = blind.place([5, 6, 7])
    assert placed.prompt.tolist() == [[0, 1, 2], [3, 3, 3]]
    assert placed.at(2, 6).tolist() == [[2, 3, 4, 5], [3, 3, 3, 3]]
    assert blind.max_position_embeddings == 512


def test_pictures_fill_the_rows_between_their_tags(sighted: QWenLMHeadModel) -> None:
    ids = torch.tensor([7, *PICTURE, 8, 9, *PICTURE])
    assert sighted.vision_rows(ids).tolist() == [2, 3, 4, 5, 10, 11, 12, 13]
    features = torch.randn(8, 128)
    hidden = sighted.embed(ids, features)
    words = sighted.embed(ids)
    assert torch.equal(hidden[sighted.vision_rows(ids)], features)
    kept = [0, 1, 6, 7, 8, 9, 14]
    assert torch.equal(hidden[kept], words[kept])


def test_slots_may_hold_the_bytes_of_a_path(sighted: QWenLMHeadModel) -> None:
    ids = torch.tensor([300, 97, 46, 98, 302, 301])
    assert sighted.vision_rows(ids).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "ids",
    [
        [300, 302, 302, 302, 302],  # not closed
        [302, 302, 302, 302, 301],  # not opened
        [300, 302, 302, 302, 301],  # too few slots
        [300, *[302] * 5, 301],  # too many
        [301, 1, 1, 1, 1, 300],  # the wrong way round
        [300, 300, 302, 302, 302, 302, 301, 301],  # one in another
    ],
)
def test_tags_that_do_not_enclose_their_slots_are_refused(
    sighted: QWenLMHeadModel, ids: list[int]
) -> None:
    with pytest.raises(InputError, match="4 slots between <img> and </img>"):
        sighted.vision_rows(torch.tensor(ids))


def test_more_or_fewer_features_than_slots_are_refused(sighted: QWenLMHeadModel) -> None:
    with pytest.raises(InputError, match="holds 4 places for features"):
        sighted.embed(torch.tensor(PICTURE), torch.zeros(8, 128))


def test_pictures_become_tokens_in_order(sighted: QWenLMHeadModel) -> None:
    pixels = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        features = sighted.encode_images(pixels, [(1, 4, 4)] * 2)
        alone = [sighted.encode_images(each[None], [(1, 4, 4)]) for each in pixels]
    assert features.shape == (8, 128)
    assert_close(features, torch.cat(alone))


@pytest.mark.parametrize(
    ("shape", "grids", "words"),
    [
        ((1, 3, 56, 56), [], "for 0 grids"),
        ((2, 3, 56, 56), [(1, 4, 4)], "expected (1, 3, 56, 56) for 1 grids"),
        ((1, 3, 56, 70), [(1, 4, 4)], "pixel_values is (1, 3, 56, 70)"),
        ((16, 588), [(1, 4, 4)], "pixel_values is (16, 588)"),
        ((1, 3, 56, 56), [(1, 4, 5)], "Grid is 1 x 4 x 5 patches; expected 1 x 4 x 4"),
    ],
)
def test_pixels_of_another_shape_are_refused(
    sighted: QWenLMHeadModel,
    shape: tuple[int, ...],
    grids: list[tuple[int, int, int]],
    words: str,
) -> None:
    with pytest.raises(InputError) as raised:
        sighted.encode_images(torch.zeros(shape), grids)
    assert words in str(raised.value)


def test_a_prompt_needs_one_grid_for_each_picture(sighted: QWenLMHeadModel) -> None:
    with pytest.raises(InputError, match="holds 1 pictures and 2 grids"):
        sighted.place(PICTURE, [(1, 4, 4)] * 2)
    with pytest.raises(InputError, match="holds 1 pictures and 0 grids"):
        sighted.place(PICTURE)
    with pytest.raises(InputError, match="no videos"):
        sighted.place(PICTURE, [(1, 4, 4)], [0.5])


def test_a_text_model_has_no_slots_and_takes_no_pictures(blind: QWenLMHeadModel) -> None:
    assert blind.vision_rows(torch.tensor([300, 302, 301])).tolist() == []
    with pytest.raises(InputError, match="reads text only"):
        blind.encode_images(torch.zeros(1, 3, 56, 56), [(1, 4, 4)])
    with pytest.raises(InputError, match="reads text only"):
        blind.place([1, 2], [(1, 4, 4)])


def test_logits_are_scored_where_asked(blind: QWenLMHeadModel) -> None:
    ids = [4, 5, 6, 7]
    with torch.inference_mode():
        hidden = blind.embed(torch.tensor(ids))
        position_ids = blind.place(ids).prompt
        everywhere = blind(hidden, position_ids, NoCache([4]))
        asked = blind(hidden, position_ids, NoCache([4]), torch.tensor([3, 1]))
    assert everywhere.shape == (4, 320)
    assert_close(asked, everywhere[[3, 1]])


def test_tied_embeddings_are_one_matrix() -> None:
    model = QWenLMHeadModel(qwen_config(tiny(tie_word_embeddings=True)))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_constants_that_checkpoints_carry_along_are_left_out(
    sighted: QWenLMHeadModel, tmp_path: Any
) -> None:
    constants = {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.rotary_emb.inv_freq": torch.ones(8),
        "transformer.rotary_emb.inv_freq": torch.ones(8),
    }
    save_file({**sighted.state_dict(), **constants}, tmp_path / "model.safetensors")
    with torch.device("meta"):
        loaded = QWenLMHeadModel(sighted.config)
    with pytest.raises(CheckpointError, match="3 unexpected"):
        load_weights(loaded, read_tensors(tmp_path))
    load_weights(loaded, read_tensors(tmp_path), ignore=ignored_tensors(sighted.config))
    for name, tensor in sighted.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Any) -> None:
    (tmp_path / "pytorch_model-00001-of-00010.bin").write_bytes(b"never opened")
    with pytest.raises(CheckpointError, match="Convert them to safetensors"):
        list(read_tensors(tmp_path))


def test_a_stretched_table_keeps_what_already_fits_and_its_dtype() -> None:
    table = torch.randn(16, 6, dtype=torch.bfloat16)
    assert stretch(table, 4) is table
    wide = stretch(table, 8)
    assert wide.shape == (64, 6)
    assert wide.dtype == torch.bfloat16


def test_sine_positions_count_columns_first_then_rows() -> None:
    """By hand for a 3 x 3 grid and 8 channels: frequencies 1 and 0.01 for each axis."""
    table = sine_positions(3, 8)
    row, column = 2, 1
    expected = [
        math.sin(column),
        math.sin(column / 100),
        math.cos(column),
        math.cos(column / 100),
        math.sin(row),
        math.sin(row / 100),
        math.cos(row),
        math.cos(row / 100),
    ]
    assert_close(table[3 * row + column], torch.tensor(expected), rtol=0, atol=1e-6)


def test_configs_can_be_compared_and_hashed() -> None:
    first, second = qwen_config(tiny_vl()), qwen_config(tiny_vl())
    assert first == second
    assert len({first, second}) == 1
    assert isinstance(first, QWenConfig)
    assert isinstance(first.visual, VisualConfig)
