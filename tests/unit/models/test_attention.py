import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from qianyan.models.attention import NoCache, causal_attention, segment_attention


def by_hand(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention written out: softmax over visible keys, key-value heads shared by groups."""
    group = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // group].T / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        rows.append(weights @ value[:, head // group])
    return torch.stack(rows, dim=1)


def random_heads(tokens: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return tuple(
        torch.randn(tokens, count, 8, generator=generator) for count in (heads, kv_heads, kv_heads)
    )


def segments(lengths: Sequence[int]) -> Tensor:
    """(tokens, tokens): whether two tokens lie in the same segment."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return owner.unsqueeze(1) == owner


@pytest.mark.parametrize(
    "lengths", [[7], [4, 4, 4], [3, 5, 3, 1, 5], [1, 1, 1], [2, 6], [4, 4, 2, 2, 2, 1], [3, 0, 2]]
)
def test_segments_see_themselves_in_both_directions(lengths: list[int]) -> None:
    query, key, value = random_heads(sum(lengths))
    expected = by_hand(query, key, value, segments(lengths))
    assert_close(segment_attention(query, key, value, lengths), expected)


@pytest.mark.parametrize("lengths", [[7], [4, 4, 4], [3, 5, 3, 1, 5], [1, 1, 1], [2, 6]])
def test_packed_sequences_are_causal_and_apart(lengths: list[int]) -> None:
    query, key, value = random_heads(sum(lengths))
    expected = by_hand(query, key, value, segments(lengths).tril())
    assert_close(NoCache(lengths).attend(0, query, key, value), expected)


@pytest.mark.parametrize(("offset", "new"), [(0, 6), (5, 1), (0, 1), (5, 3)])
def test_new_tokens_see_the_past_and_themselves(offset: int, new: int) -> None:
    query, key, value = random_heads(offset + new)
    visible = torch.ones(offset + new, offset + new, dtype=torch.bool).tril()
    expected = by_hand(query, key, value, visible)[offset:]
    assert_close(causal_attention(query[offset:], key, value, offset=offset), expected)


def test_room_kept_behind_the_last_token_is_not_seen() -> None:
    query, key, value = random_heads(9)
    expected = causal_attention(query[2:5], key[:5], value[:5], offset=2)
    assert_close(causal_attention(query[2:5], key, value, offset=2), expected)


def test_too_few_keys_for_the_new_tokens_is_a_bug() -> None:
    query, key, value = random_heads(4)
    with pytest.raises(AssertionError, match="4 keys for 2 past and 4 new tokens"):
        causal_attention(query, key, value, offset=2)


def test_lengths_that_do_not_add_up_are_a_bug() -> None:
    query, key, value = random_heads(4)
    with pytest.raises(AssertionError, match="for 4 tokens"):
        NoCache([3]).attend(0, query, key, value)


@pytest.mark.parametrize("lengths", [[4, 4], [3, 5]])
def test_gradients_flow_to_every_input(lengths: list[int]) -> None:
    heads = [tensor.requires_grad_() for tensor in random_heads(8)]
    attended = NoCache(lengths).attend(0, *heads)
    expected = by_hand(*heads, segments(lengths).tril())
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((attended * weights).sum(), heads)
    theirs = torch.autograd.grad((expected * weights).sum(), heads)
    for got, wanted in zip(ours, theirs, strict=True):
        assert_close(got, wanted)


def test_half_precision_trains_to_the_same_gradients() -> None:
    heads = [tensor.bfloat16().requires_grad_() for tensor in random_heads(8)]
    exact = [tensor.detach().float().requires_grad_() for tensor in heads]
    attended = NoCache([8]).attend(0, *heads)
    assert attended.dtype == torch.bfloat16
    grads = torch.autograd.grad(attended.float().square().sum(), heads)
    wanted = torch.autograd.grad(NoCache([8]).attend(0, *exact).square().sum(), exact)
    for got, want in zip(grads, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert_close(got.float(), want, rtol=0.05, atol=0.05)


def test_groupings_made_during_inference_can_be_trained_through() -> None:
    """Groupings are cached; a cached inference tensor would break the next backward pass."""
    lengths = [11, 2, 7]
    query, key, value = random_heads(20)
    with torch.inference_mode():
        segment_attention(query, key, value, lengths)
    query.requires_grad_()
    segment_attention(query, key, value, lengths).sum().backward()
    assert query.grad is not None
