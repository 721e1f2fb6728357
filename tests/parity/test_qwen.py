"""Our first generation against parts that can be installed, float32, on random weights.

The official code has no class in transformers, but its parts are other models' parts with weights
in another order: the decoder is a Qwen2ForCausalLM, the tower's blocks a CLIPEncoder, the resampler
torch's own MultiheadAttention. Beyond the trained length the oracle is given the stretched base of
its rotation and a hook that scales its queries, both computed here by hand.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from qianyan.engine.cache import Span, StepCache, Storage
from qianyan.models.attention import NoCache
from qianyan.models.qwen import QWenConfig, QWenLMHeadModel
from qianyan.models.qwen_vl import VisionTransformer, VisualConfig

assert_features_equal = partial(assert_close, rtol=0, atol=1e-5)
assert_logits_equal = partial(assert_close, rtol=0, atol=1e-4)
GREEDY_TOKENS = 32
TRAINED_LENGTH = 64

TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "max_position_embeddings": 1024,
    "seq_length": TRAINED_LENGTH,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "two wide heads": {"hidden_size": 128, "num_attention_heads": 2, "kv_channels": 64},
    "deep and narrow": {"num_hidden_layers": 5, "intermediate_size": 34, "kv_channels": 16},
    "another base, no stretching": {
        "rotary_emb_base": 1_000_000,
        "use_dynamic_ntk": False,
        "use_logn_attn": False,
    },
}
# Prompt lengths and the alpha of the published rule, 2 ** ceil(log2(n / 64) + 1) - 1, by hand.
ALPHAS = {64: 1, 65: 3, 128: 3, 129: 7, 150: 7, 256: 7, 257: 15}


def make_model(**changes: Any) -> QWenLMHeadModel:
    torch.manual_seed(0)
    model = QWenLMHeadModel(QWenConfig(**TEXT | changes))
    randomise(model)
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Draw weights under which every parameter matters: no zero bias, no norm of plain ones."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.dim() > 1 and "embed" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "pos_embed" not in name:
                parameter.copy_(1 + 0.1 * noise)


def remap(model: QWenLMHeadModel, *, alpha: int = 1) -> Any:
    """Give the same decoder as a Qwen2ForCausalLM, with the base of its rotation stretched."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = model.config
    theta = config.rotary_emb_base * alpha ** (config.kv_channels / (config.kv_channels - 2))
    oracle = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size // 2,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.layer_norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=False,
        )
    )
    oracle.load_state_dict(qwen2_state(model), strict=True)
    return oracle.eval()


def qwen2_state(model: QWenLMHeadModel) -> dict[str, Tensor]:
    """The weights under Qwen2's names, the fused matrix cut into its three blocks."""
    names = {
        "transformer.h.": "model.layers.",
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.up_proj",
        "mlp.w2": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
    }
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        other = reduce(lambda text, pair: text.replace(*pair), names.items(), name)
        if ".c_attn." in other:
            for kind, block in zip("qkv", tensor.chunk(3), strict=True):
                theirs[other.replace("attn.c_attn", f"self_attn.{kind}_proj")] = block
        else:
            theirs[other] = tensor
    return theirs


def scale_queries(oracle: Any) -> None:
    """Multiply the n-th token's query by log(n) / log(trained length) where n is beyond it.

    On the projection: a factor on a token's query passes through its rotation unchanged.
    """

    def scale(module: nn.Module, inputs: Any, query: Tensor) -> Tensor:
        factors = [
            math.log(n) / math.log(TRAINED_LENGTH) if n > TRAINED_LENGTH else 1.0
            for n in range(1, query.shape[1] + 1)
        ]
        return query * torch.tensor(factors).view(1, -1, 1)

    for layer in oracle.model.layers:
        layer.self_attn.q_proj.register_forward_hook(scale)


def random_ids(count: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TEXT["vocab_size"], (count,), generator=generator).tolist()


def our_logits(model: QWenLMHeadModel, ids: Sequence[int], answer: Sequence[int] = ()) -> Tensor:
    """Logits of all tokens in one pass without a cache."""
    total = len(ids) + len(answer)
    position_ids = model.place(ids).at(0, total)
    return model(model.embed(torch.tensor([*ids, *answer])), position_ids, NoCache([total]))


def their_logits(oracle: Any, ids: Sequence[int]) -> Tensor:
    logits: Tensor = oracle(input_ids=torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 40, TRAINED_LENGTH])
@torch.inference_mode()
def test_the_decoder_is_a_qwen2_with_its_weights_in_another_order(shape: str, length: int) -> None:
    model = make_model(**SHAPES[shape])
    ids = random_ids(length)
    assert_logits_equal(our_logits(model, ids), their_logits(remap(model), ids))


@pytest.mark.parametrize(("length", "alpha"), ALPHAS.items())
@torch.inference_mode()
def test_beyond_the_trained_length_rotation_and_scale_are_the_published_ones(
    length: int, alpha: int
) -> None:
    model = make_model()
    oracle = remap(model, alpha=alpha)
    scale_queries(oracle)
    ids = random_ids(length)
    expected = their_logits(oracle, ids)
    assert_logits_equal(our_logits(model, ids), expected)
    if length > TRAINED_LENGTH:  # both stretchings are felt
        for off in ({"use_dynamic_ntk": False}, {"use_logn_attn": False}):
            assert (our_logits(make_model(**off), ids) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_an_answer_keeps_the_rotation_of_its_prompt_and_takes_its_own_scale() -> None:
    """The answer passes the trained length; alpha stays that of the prompt, log-n begins."""
    model = make_model()
    oracle = remap(model, alpha=1)
    scale_queries(oracle)
    ids = random_ids(TRAINED_LENGTH - 6)
    answer = random_ids(20, seed=1)
    assert_logits_equal(our_logits(model, ids, answer), their_logits(oracle, [*ids, *answer]))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_greedy_tokens_are_identical(shape: str) -> None:
    model = make_model(**SHAPES[shape])
    ids = random_ids(20, seed=3)
    generated: list[int] = []
    for _ in range(GREEDY_TOKENS):
        generated.append(int(our_logits(model, ids, generated)[-1].argmax()))
    expected = remap(model).generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=GREEDY_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert generated == expected[0, len(ids) :].tolist()


@pytest.mark.parametrize("length", [50, 90, 150])
@torch.inference_mode()
def test_chunks_and_single_steps_with_a_cache_equal_one_pass(length: int) -> None:
    model = make_model()
    ids, answer = random_ids(length), random_ids(25, seed=1)
    position = model.place(ids)
    storage = Storage(length + len(answer))
    stops = [17, 18, length, *range(length + 1, length + len(answer) + 1)]
    pieces = []
    for start, stop in zip([0, *stops], stops, strict=False):
        hidden = model.embed(torch.tensor([*ids, *answer][start:stop]))
        span = Span(slice(start, stop), slice(0, stop), start, 0, stop - start)
        cache = StepCache(storage, [span], num_rows=storage.num_rows)
        pieces.append(model(hidden, position.at(start, stop), cache))
    assert_logits_equal(torch.cat(pieces), our_logits(model, ids, answer))


@torch.inference_mode()
def test_prompts_of_different_lengths_in_one_pass_equal_each_alone() -> None:
    """Each token carries its own prompt's length: 30 and 60 are as trained, 100 and 200 not."""
    model = make_model()
    prompts = [random_ids(length, seed=length) for length in (100, 30, 200, 60)]
    hidden = torch.cat([model.embed(torch.tensor(ids)) for ids in prompts])
    position_ids = torch.cat([model.place(ids).prompt for ids in prompts], dim=1)
    packed = model(hidden, position_ids, NoCache([len(ids) for ids in prompts]))
    alone = torch.cat([our_logits(model, ids) for ids in prompts])
    assert_logits_equal(packed, alone)


@torch.inference_mode()
def test_a_step_of_one_request_beside_the_prompt_of_another_equals_each_alone() -> None:
    model = make_model()
    long, short = random_ids(120), random_ids(30, seed=1)
    storage = Storage(192)
    prompt = Span(slice(0, 119), slice(0, 119), 0, 0, 119)
    model(
        model.embed(torch.tensor(long[:119])),
        model.place(long).at(0, 119),
        StepCache(storage, [prompt], num_rows=192),
    )
    spans = [
        Span(slice(119, 120), slice(0, 120), 119, 0, 1),
        Span(slice(128, 158), slice(128, 158), 0, 1, 30),
    ]
    logits = model(
        model.embed(torch.tensor([*long[119:], *short])),
        torch.cat([model.place(long).at(119, 120), model.place(short).prompt], dim=1),
        StepCache(storage, spans, num_rows=192),
    )
    assert_logits_equal(logits[0], our_logits(model, long)[-1])
    assert_logits_equal(logits[1:], our_logits(model, short))


@torch.inference_mode()
def test_bfloat16_strays_from_float32_no_further_than_the_oracle_does() -> None:
    model = make_model()
    ids = random_ids(TRAINED_LENGTH)
    exact = our_logits(model, ids)
    oracle = their_logits(remap(model).bfloat16(), ids).float()
    half = our_logits(model.bfloat16(), ids)
    assert (half - exact).abs().mean() < 1.2 * (oracle - exact).abs().mean()


VISUAL: dict[str, Any] = {
    "heads": 2,
    "image_size": 112,
    "image_start_id": 300,
    "layers": 2,
    "mlp_ratio": 2.5,
    "output_dim": 128,
    "patch_size": 14,
    "width": 32,
    "n_queries": 16,
}
VISUAL_SHAPES: dict[str, dict[str, Any]] = {
    "fewer patches than learned positions": {},
    "as many": {"image_size": 224},
    "more, as in the released model": {"image_size": 448, "layers": 1, "n_queries": 64},
    "patches of another size": {"image_size": 96, "patch_size": 8, "mlp_ratio": 4.9231},
    "as many patches as queries": {"image_size": 56, "width": 48, "heads": 3},
    "a tower as wide as the decoder": {"width": 128, "output_dim": 128, "heads": 4},
    "two heads of the resampler": {"output_dim": 256},
}


def their_features(tower: VisionTransformer, pixel_values: Tensor) -> Tensor:
    """The tower by the published recipe, out of installed parts."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    config, state = tower.config, tower.state_dict()
    clip = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=int(config.width * config.mlp_ratio),
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    encoder = CLIPEncoder(clip).eval()
    encoder.load_state_dict(clip_state(tower))
    width, out = config.width, config.output_dim

    def norm(given: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return nn.functional.layer_norm(given, weight.shape, weight, bias, 1e-6)

    patches = nn.functional.conv2d(pixel_values, state["conv1.weight"], stride=config.patch_size)
    patches = patches.reshape(len(pixel_values), width, -1).permute(0, 2, 1)
    patches = norm(patches + resized(state["positional_embedding"], patches.shape[1]), "ln_pre")
    seen = encoder(inputs_embeds=patches).last_hidden_state
    if out != width:
        seen = seen @ state["attn_pool.kv_proj.weight"].T
    seen = norm(seen, "attn_pool.ln_kv")

    attention = nn.MultiheadAttention(out, out // 128, batch_first=True).eval()
    prefix = "attn_pool.attn."
    attention.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if prefix in name}
    )
    table = state["attn_pool.pos_embed"]
    query = norm(state["attn_pool.query"], "attn_pool.ln_q") + table
    query = query.expand(len(seen), -1, -1)
    pooled, _ = attention(query, seen + resized(table, seen.shape[1]), seen)
    return (norm(pooled, "ln_post") @ state["proj"]).flatten(0, 1)


def clip_state(tower: VisionTransformer) -> dict[str, Tensor]:
    """The blocks' weights under CLIP's names, each head's rows sorted into three matrices."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in tower.transformer.resblocks.state_dict().items():
        index, part, rest = name.split(".", 2)
        layer = f"layers.{index}"
        kind = rest.rpartition(".")[2]
        if rest.startswith("in_proj"):
            heads = tensor.unflatten(0, (tower.config.heads, 3, -1))
            for place, letter in enumerate("qkv"):
                rows = heads[:, place].flatten(0, 1)
                theirs[f"{layer}.self_attn.{letter}_proj.{kind}"] = rows
        else:
            theirs[
                {
                    "attn.out_proj": f"{layer}.self_attn.out_proj",
                    "mlp.c_fc": f"{layer}.mlp.fc1",
                    "mlp.c_proj": f"{layer}.mlp.fc2",
                    "ln_1": f"{layer}.layer_norm1",
                    "ln_2": f"{layer}.layer_norm2",
                }[f"{part}.{rest}".removesuffix(f".{kind}")]
                + f".{kind}"
            ] = tensor
    return theirs


def resized(table: Tensor, count: int) -> Tensor:
    """A square table of positions for `count` patches, bicubic where sizes differ."""
    old, new = math.isqrt(len(table)), math.isqrt(count)
    if old == new:
        return table
    grid = table.T.reshape(1, -1, old, old)
    grid = nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.reshape(-1, count).T


@pytest.mark.parametrize("shape", VISUAL_SHAPES)
@torch.inference_mode()
def test_the_tower_is_clip_and_the_resampler_torchs_own_attention(shape: str) -> None:
    tower = VisionTransformer(VisualConfig(**VISUAL | VISUAL_SHAPES[shape]))
    randomise(tower)
    side = tower.config.image_size
    pixel_values = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    features = tower(pixel_values)
    assert features.shape == (3 * tower.config.n_queries, tower.config.output_dim)
    assert_features_equal(features, their_features(tower, pixel_values))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda picture: [5, *picture, 6, 7],
        lambda picture: [*picture, 1, 2, 3, *picture, 4],
        lambda picture: [9] * 30 + picture + [8] * 40 + picture + [7],
    ],
    ids=["one picture", "two pictures", "beyond the trained length"],
)
@torch.inference_mode()
def test_pictures_among_text_are_words_of_another_make(
    arrange: Callable[[list[int]], list[int]],
) -> None:
    """The remapped decoder is given the same embeddings, features in their slots."""
    visual = VisualConfig(**VISUAL | {"output_dim": 128})
    model = make_model(hidden_size=128, num_attention_heads=2, kv_channels=64, visual=visual)
    ids = arrange([300, *[302] * 16, 301])
    count = ids.count(300)
    pixel_values = torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(2))
    grids = [(1, 8, 8)] * count
    features = model.encode_images(pixel_values, grids)
    logits = model(
        model.embed(torch.tensor(ids), features),
        model.place(ids, grids).prompt,
        NoCache([len(ids)]),
    )

    text_only = make_model(hidden_size=128, num_attention_heads=2, kv_channels=64)
    text_only.load_state_dict(
        {name: value for name, value in model.state_dict().items() if ".visual." not in name}
    )
    alpha = ALPHAS[128] if len(ids) > TRAINED_LENGTH else 1
    oracle = remap(text_only, alpha=alpha)
    scale_queries(oracle)
    words = oracle.get_input_embeddings()(torch.tensor(ids))
    slots = iter(their_features(model.transformer.visual, pixel_values))
    for row, token_id in enumerate(ids):
        if token_id == 302:
            words[row] = next(slots)
    assert_logits_equal(logits, oracle(inputs_embeds=words[None]).logits[0])
