"""How many pictures are answered together: what memory, the engine or the cores bear."""

from dataclasses import replace

import pytest
import torch

from qianyan.engine import batch_size
from qianyan.engine.batch_size import BatchSize, Need, choose_batch, cores_limit
from qianyan.engine.engine import Engine

LISTING = Need(questions=1, answer_tokens=700)


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int | None) -> None:
    monkeypatch.setattr(batch_size, "find_free_bytes", lambda device: num_bytes)


def test_cores_bind_where_memory_is_plenty(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2**50)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    batch = choose_batch(engine, LISTING, device="cpu")
    assert batch == BatchSize(size=12, limit="cores")


def test_memory_binds_where_it_is_short_and_one_picture_is_always_taken(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for num_bytes in (0, 2**23, 2**25):
        free(monkeypatch, num_bytes)
        batch = choose_batch(engine, LISTING, device="cpu")
        assert batch.limit in ("memory", "cores")
        sizes.append(batch.size)
    assert sizes[0] == 1
    assert sizes == sorted(sizes)


def test_memory_that_nobody_tells_binds_only_by_the_cache(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, None)
    batch = choose_batch(engine, LISTING, device="cpu")
    assert batch.size >= 1


def test_questions_of_one_picture_count_as_many_requests(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 2**50)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(engine, "config", replace(engine.config, max_num_requests=12))
    need = Need(questions=4, answer_tokens=1)
    assert choose_batch(engine, need, device="cpu") == BatchSize(size=3, limit="requests")


def test_there_are_no_more_together_than_pictures() -> None:
    batch = BatchSize(size=8, limit="cores")
    assert batch.within(100) == batch
    assert batch.within(3) == BatchSize(size=3, limit="pictures")
    assert batch.within(0).size == 1


def test_a_device_bears_more_than_a_core() -> None:
    assert cores_limit(torch.device("cuda")) > cores_limit(torch.device("cpu")) / 8
    assert cores_limit(torch.device("cpu")) >= 1
