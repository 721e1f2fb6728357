"""Codes of speech: what may be drawn, when it ends, and what a prompt must leave room for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qianyan.engine.codes import SPEECH_SAMPLING, CodeStream, Opening
from qianyan.engine.options import Sampling
from qianyan.errors import CapacityError, CheckpointError
from qianyan.models.omni.talker import Talker, talker_config
from qianyan.models.positions import plain_positions
from qianyan.models.weights import initialise

WIDTH, NUM_CODES = 32, 30
PAD, START, END, MASK = 30, 31, 32, 33
CONFIG: dict[str, Any] = {
    "thinker_config": {"text_config": {"hidden_size": WIDTH}},
    "talker_config": {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
        "tts_codec_pad_token_id": PAD,
        "tts_codec_start_token_id": START,
        "tts_codec_end_token_id": END,
        "tts_codec_mask_token_id": MASK,
    },
}


@pytest.fixture
def talker() -> Talker:
    torch.manual_seed(0)
    made = Talker(talker_config(CONFIG))
    initialise(made, std=0.5)
    return made.eval()


def opening(num_tokens: int = 6) -> Opening:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randn(num_tokens + 2, WIDTH, generator=generator)
    positions = plain_positions(num_tokens)
    three = replace(
        positions,
        prompt=positions.prompt.expand(3, -1),
        next=positions.next.expand(3),
        step=positions.step.expand(3),
    )
    return Opening(prompt=prompt[:-2], positions=three, voice=prompt[-2:-1], first=prompt[-1:])


def stream(talker: Talker, **how: Any) -> CodeStream:
    return CodeStream(talker, num_codes=NUM_CODES, sampling=replace(SPEECH_SAMPLING, **how))


def run(codes: CodeStream, most: int = 200) -> list[int]:
    """Draw until the speech ends."""
    got = codes.begin(opening())
    for _ in range(most):
        if codes.is_ended:
            break
        got += codes.go_on(torch.zeros(1, WIDTH))
    assert got == codes.codes
    return got


def prefer(talker: Talker, *token_ids: int) -> None:
    """Make some codes by far the likeliest, whatever goes in."""
    with torch.no_grad():
        talker.model.norm.weight.zero_()
        talker.model.norm.weight[0] = 1.0
        talker.codec_head.weight.zero_()
        talker.model.layers[0].mlp.down_proj.weight.zero_()
        talker.model.layers[0].self_attn.o_proj.weight.zero_()
        talker.thinker_to_talker_proj.weight.zero_()
        talker.thinker_to_talker_proj.bias.fill_(1.0)
        talker.codec_head.weight[list(token_ids), 0] = 9.0


def test_only_codes_with_a_sound_are_drawn(talker: Talker) -> None:
    """The start's and those that the decoder does not know never are, however likely."""
    prefer(talker, START, MASK, 39, 7)
    assert run(stream(talker, max_tokens=5)) == [7] * 5


@pytest.mark.parametrize("stop", [PAD, END])
def test_either_end_ends_a_speech_and_is_no_code_of_it(stop: int, talker: Talker) -> None:
    prefer(talker, stop)
    codes = stream(talker)
    assert codes.begin(opening()) == []
    assert codes.is_ended
    assert codes.has_begun
    assert not codes.is_cut
    assert codes.go_on(torch.zeros(1, WIDTH)) == []


def test_a_seed_draws_the_same_speech_and_another_one_another(talker: Talker) -> None:
    first, again, other = (run(stream(talker, seed=seed, max_tokens=60)) for seed in (4, 4, 5))
    assert first == again
    assert first != other
    assert max(first + other) < NUM_CODES


def test_a_speech_ends_at_its_length_and_at_the_talkers(talker: Talker) -> None:
    prefer(talker, 3)
    brief = stream(talker, max_tokens=10)
    assert len(run(brief)) == 10
    assert brief.is_cut
    # 6 tokens of the prompt, the voice's and the text's, and all but one of the codes.
    assert len(run(stream(talker))) == 128 - 8 + 1


def test_a_prompt_without_room_for_speech_is_refused(talker: Talker) -> None:
    stream(talker).begin(opening(125))
    with pytest.raises(CapacityError, match="prompt has 126 tokens; expected less than 126"):
        stream(talker).begin(opening(126))


def test_numbers_that_are_none_are_named(talker: Talker) -> None:
    with torch.no_grad():
        talker.codec_head.weight[3, 3] = torch.nan
    with pytest.raises(CheckpointError, match="The Talker's output is not a number"):
        stream(talker).begin(opening())


def test_speech_is_drawn_as_the_released_models_do() -> None:
    expected = Sampling(
        max_tokens=4096, temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05
    )
    assert expected == SPEECH_SAMPLING
