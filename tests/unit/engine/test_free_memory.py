"""What is free is read where Linux tells it, and the cache gets a part of it."""

from pathlib import Path

import pytest
import torch

from qianyan.engine.costs import kept_bytes_per_token
from qianyan.engine.engine import Engine
from qianyan.engine.free_memory import (
    LEAST_CACHE_TOKENS,
    UNKNOWN_CACHE_TOKENS,
    MemoryFiles,
    find_free_bytes,
    fit_cache,
)
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import CapacityError

CPU = torch.device("cpu")
PER_TOKEN = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head_dim, float32
MEBIBYTE = 2**20


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def files(tmp_path: Path) -> MemoryFiles:
    """A machine with 8 GiB available and no control group."""
    write(tmp_path / "meminfo", "MemTotal:  99999999 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    return MemoryFiles(
        meminfo=tmp_path / "meminfo", own_groups=tmp_path / "own", groups=tmp_path / "groups"
    )


def limit(folder: Path, limit: str, used: int, idle: int) -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon 5\ninactive_file {idle}\nactive_file 7\n")


def test_a_machine_tells_what_is_available(files: MemoryFiles) -> None:
    assert find_free_bytes(CPU, files) == 8 * 2**30


def test_the_tightest_group_around_the_process_binds(files: MemoryFiles) -> None:
    write(files.own_groups, "0::/system/server\n")
    limit(files.groups / "system/server", "max", 9, 0)
    limit(files.groups / "system", str(3 * 2**30), 2 * 2**30, MEBIBYTE)
    assert find_free_bytes(CPU, files) == 2**30 + MEBIBYTE


def test_a_container_sees_its_limit_at_the_top(files: MemoryFiles) -> None:
    write(files.own_groups, "0::/host/path/that/is/not/here\n")
    limit(files.groups, str(2**30), 2**29, 0)
    assert find_free_bytes(CPU, files) == 2**29


def test_the_first_version_of_groups_is_read_too(files: MemoryFiles) -> None:
    write(files.own_groups, "9:name=systemd:/\n4:cpu,memory:/box/one\n0::/\n")
    folder = files.groups / "memory/box/one"
    write(folder / "memory.limit_in_bytes", "4294967296\n")
    write(folder / "memory.usage_in_bytes", "4000000000\n")
    write(folder / "memory.stat", "inactive_file 1\ntotal_inactive_file 1000000000\n")
    assert find_free_bytes(CPU, files) == 4294967296 - 3000000000


def test_a_group_beyond_its_limit_leaves_nothing(files: MemoryFiles) -> None:
    write(files.own_groups, "0::/\n")
    limit(files.groups, "100", 200, 0)
    assert find_free_bytes(CPU, files) == 0


def test_where_nobody_tells_nothing_is_known(tmp_path: Path, engine: Engine) -> None:
    nowhere = MemoryFiles(
        meminfo=tmp_path / "none", own_groups=tmp_path / "none", groups=tmp_path / "none"
    )
    assert find_free_bytes(CPU, nowhere) is None
    fitted = fit_cache(EngineConfig(max_num_requests=10**6), engine.model, CPU, nowhere)
    assert fitted.max_cache_tokens == UNKNOWN_CACHE_TOKENS


def test_this_machine_tells() -> None:
    free = find_free_bytes(CPU)
    assert free is None or free > 0


def test_a_token_takes_the_keys_and_values_of_all_layers(engine: Engine) -> None:
    assert kept_bytes_per_token(engine.model) == PER_TOKEN


def test_half_of_what_is_free_holds_tokens(files: MemoryFiles, engine: Engine) -> None:
    write(files.own_groups, "0::/\n")
    limit(files.groups, str(8 * MEBIBYTE), MEBIBYTE, 0)
    fitted = fit_cache(EngineConfig(), engine.model, CPU, files)
    assert fitted.max_cache_tokens == 7 * MEBIBYTE // 2 // PER_TOKEN


def test_no_more_is_taken_than_all_requests_could_use(files: MemoryFiles, engine: Engine) -> None:
    config = EngineConfig(max_num_requests=3)
    assert fit_cache(config, engine.model, CPU, files).max_cache_tokens == 3 * 2048
    config = EngineConfig(max_num_requests=3, max_model_len=500)
    assert fit_cache(config, engine.model, CPU, files).max_cache_tokens == 1500


def test_a_given_size_is_kept(files: MemoryFiles, engine: Engine) -> None:
    write(files.meminfo, "MemAvailable: 1 kB\n")
    config = EngineConfig(max_cache_tokens=7_000)
    assert fit_cache(config, engine.model, CPU, files) is config


def test_too_little_for_one_useful_request_is_refused_with_numbers(
    files: MemoryFiles, engine: Engine
) -> None:
    need = 2 * LEAST_CACHE_TOKENS * PER_TOKEN
    write(files.meminfo, f"MemAvailable: {need // 1024} kB\n")
    assert fit_cache(EngineConfig(), engine.model, CPU, files).max_cache_tokens == 2048
    write(files.meminfo, f"MemAvailable: {need // 1024 - 1} kB\n")
    with pytest.raises(CapacityError, match=r"^0 MiB of memory are free .* at least 1 MiB"):
        fit_cache(EngineConfig(), engine.model, CPU, files)


def test_an_engine_knows_the_size_of_its_cache(engine: Engine) -> None:
    pool = engine._scheduler.pool
    assert engine.config.max_cache_tokens is not None
    assert pool.num_blocks == -(-engine.config.max_cache_tokens // 16)


def test_what_speaks_has_its_memory_before_the_cache(files: MemoryFiles, engine: Engine) -> None:
    write(files.own_groups, "0::/\n")
    limit(files.groups, str(8 * MEBIBYTE), MEBIBYTE, 0)
    fitted = fit_cache(EngineConfig(), engine.model, CPU, files, speech_bytes=3 * MEBIBYTE)
    assert fitted.max_cache_tokens == 4 * MEBIBYTE // 2 // PER_TOKEN
    with pytest.raises(CapacityError, match=r"and 7 MiB for speech \(none with --no-speech"):
        fit_cache(EngineConfig(), engine.model, CPU, files, speech_bytes=7 * MEBIBYTE)
