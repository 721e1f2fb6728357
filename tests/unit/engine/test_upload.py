"""Tensors on their way to a device; what CUDA adds is tested where there is one."""

import torch
from torch.testing import assert_close

from qianyan.engine.upload import Upload


def test_parts_travel_together_and_keep_their_shapes() -> None:
    parts = [torch.arange(6).view(2, 3), torch.arange(0), torch.arange(4), torch.tensor(7)]
    there = Upload(torch.device("cpu")).together(parts)
    assert_close(there, parts)


def test_pictures_keep_their_dtype_and_shape() -> None:
    pixels = torch.randn(4, 6)
    assert_close(Upload(torch.device("cpu"))(pixels), pixels)
