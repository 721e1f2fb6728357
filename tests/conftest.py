"""Fixtures every room may use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("QIANYAN_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no development data beside this checkout (set QIANYAN_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `--model` folder with an untrained detector that proposes fire, and no judge."""
    import torch

    from qianyan.models.detector import KINDS, Detector, DetectorConfig, save_detector

    torch.manual_seed(0)
    thresholds = {**dict.fromkeys(KINDS, 0.99), "fire": 0.001}
    config = DetectorConfig(
        image_size=64,
        widths=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        neck_width=24,
        thresholds=thresholds,
    )
    folder = tmp_path_factory.mktemp("pair")
    save_detector(Detector(config), folder / "detector")
    return folder
