import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qianyan.models import native
from qianyan.models.attention import NoCache, causal_attention, segment_attention

needs_library = pytest.mark.skipif(
    native.library() is None, reason="native kernels are not compiled or not for this processor"
)


def random_heads(tokens: int, *, heads: int, kv_heads: int, dim: int) -> native.Heads:
    random = torch.Generator().manual_seed(tokens + dim)
    query, key, value = (
        torch.randn(tokens, count, dim, generator=random).bfloat16()
        for count in (heads, kv_heads, kv_heads)
    )
    return query, key, value


def by_hand(heads: native.Heads, segments: Sequence[native.Segment], *, causal: bool) -> Tensor:
    query, key, value = heads
    out = torch.zeros(query.shape, dtype=torch.float64)
    group = query.shape[1] // key.shape[1]
    for first, count, first_key, keys, offset in segments:
        own = query[first : first + count].double().transpose(0, 1)
        past, kept = (
            each[first_key : first_key + keys].double().transpose(0, 1).repeat_interleave(group, 0)
            for each in (key, value)
        )
        scores = own @ past.transpose(1, 2) / math.sqrt(query.shape[-1])
        if causal:
            seen = torch.arange(keys) <= offset + torch.arange(count).unsqueeze(1)
            scores = scores.masked_fill(~seen, -math.inf)
        out[first : first + count] = (scores.softmax(-1) @ kept).transpose(0, 1)
    return out


def error(own: Tensor, expected: Tensor) -> float:
    return float((own.double() - expected).norm() / expected.norm())


@needs_library
@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 96, 112, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_as_near_as_bfloat16_allows(
    dim: int, heads: int, kv_heads: int, causal: bool
) -> None:
    # one, some and many blocks of keys; more rows than a task takes
    lengths = [1, 15, 64, 255, 256, 257, 600]
    query, key, value = random_heads(sum(lengths), heads=heads, kv_heads=kv_heads, dim=dim)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    segments = [(at, n, at, n, 0) for at, n in zip(starts, lengths, strict=True)]
    own = native.attend((query, key, value), segments, is_causal=causal)
    assert error(own, by_hand((query, key, value), segments, causal=causal)) < 4e-3


@needs_library
def test_keys_lie_where_rows_say_and_layouts_are_taken_as_they_are() -> None:
    joint = torch.randn(700, 3, 4, 80, generator=torch.Generator().manual_seed(0)).bfloat16()
    query, key, value = joint.unbind(1)
    rows = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    segments = [(10, 40, 3, 300, 260), (50, 1, 303, 200, 199)]
    own = native.attend((query, key, value), segments, is_causal=True, key_rows=rows)
    expected = by_hand((query, key[rows], value[rows]), segments, causal=True)
    assert error(own[10:51], expected[10:51]) < 4e-3


@needs_library
def test_large_scores_and_equal_ones_stay_numbers() -> None:
    query, key, value = random_heads(80, heads=2, kv_heads=2, dim=64)
    for factor in (0.0, 100.0):
        own = native.attend((query * factor, key, value), [(0, 80, 0, 80, 0)], is_causal=True)
        expected = by_hand((query * factor, key, value), [(0, 80, 0, 80, 0)], causal=True)
        assert error(own, expected) < 6e-3


@needs_library
def test_every_number_of_threads_gives_the_same() -> None:
    query, key, value = random_heads(900, heads=4, kv_heads=2, dim=32)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outs.append(native.attend((query, key, value), [(0, 900, 0, 900, 0)], is_causal=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outs)


@needs_library
def test_models_attention_takes_it_for_bfloat16_alone() -> None:
    query, key, value = random_heads(90, heads=4, kv_heads=2, dim=32)
    assert native.attends(query, key, value)
    assert not native.attends(query.float(), key.float(), value.float())
    assert not native.attends(query[..., :24], key[..., :24], value[..., :24])
    for index in range(3):  # a gradient for any one of them, the value alone included
        heads = [
            each.clone().requires_grad_(index == at) for at, each in enumerate((query, key, value))
        ]
        assert not native.attends(*heads)
    with torch.no_grad():
        expected = by_hand(
            (query, key, value), [(0, 50, 0, 50, 0), (50, 40, 50, 40, 0)], causal=True
        )
        assert error(NoCache([50, 40]).attend(0, query, key, value), expected) < 4e-3
        late = causal_attention(query[50:], key, value, offset=50)
        assert (
            error(late, by_hand((query[50:], key, value), [(0, 40, 0, 90, 50)], causal=True)) < 4e-3
        )
        both = segment_attention(query[:, :2], key, value, [90])
        whole = by_hand((query[:, :2], key, value), [(0, 90, 0, 90, 0)], causal=False)
        assert error(both, whole) < 4e-3


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout.strip()


def test_it_can_be_turned_off() -> None:
    code = "from qianyan.models import native; print(native.library())"
    assert run_python(code, QIANYAN_NATIVE="0") == "None"


def test_a_library_of_another_version_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "libqianyan.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "LIBRARY", broken)
    assert native.library.__wrapped__() is None
    if native.library() is not None:
        monkeypatch.undo()
        monkeypatch.setattr(native, "VERSION", -1)
        assert native.library.__wrapped__() is None


@needs_library
def test_a_library_that_computes_wrongly_is_left_alone() -> None:
    loaded = native.library()

    class Wrong:
        def qianyan_attend(self, *given: object) -> int:
            out = given[3]
            assert isinstance(out, ctypes.c_void_p)
            assert loaded is not None
            loaded.qianyan_attend(*given)
            ctypes.memset(out.value, 0, 80)
            return 0

    assert not native._is_right(Wrong())
