"""A machine's limits: told in the right form, whatever they are."""

import math

import pytest
import torch

from qianyan.engine import limits as module
from qianyan.engine.limits import FORMATS, MachineLimits, measure_limits


@pytest.fixture(scope="module")
def limits() -> MachineLimits:
    """This machine, measured with small buffers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READ_BYTES", 2**20)
        patch.setattr(module, "SIDES", (64, 128))
        patch.setattr(module, "REPEATS", 3)
        return measure_limits()


def test_every_format_has_a_rate_or_none(limits: MachineLimits) -> None:
    assert tuple(limits.matrix_rates) == FORMATS
    assert all(
        rate is None or (rate > 0 and math.isfinite(rate)) for rate in limits.matrix_rates.values()
    )
    assert limits.matrix_rates["float32"] is not None
    assert limits.read_bytes_per_s > 0


def test_the_machine_is_named(limits: MachineLimits) -> None:
    assert limits.processor
    assert limits.threads == torch.get_num_threads()
    assert limits.cores >= 1
    assert limits.device == "cpu"
    assert limits.torch == torch.__version__


def test_a_format_without_a_product_here_has_no_rate() -> None:
    assert module._matrix_rate("uint16", "cpu") is None
