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
