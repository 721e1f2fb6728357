"""A finished run on three real pictures."""

from pathlib import Path

import pytest

from qianyan.inspection.records import Hazard, SubLabel

from .examples import FIRE, WORKER, found, inspection, unreadable, write_results


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Three pictures: a sure one, one with a low score, one whose answer could not be read."""
    low = found(Hazard.SMOKE, SubLabel.MINOR, 0, 0, 50, 20, score=0.3)
    pictures = [
        inspection("sure.png", FIRE, WORKER),
        inspection("low.png", low),
        unreadable("x.png"),
    ]
    return write_results(tmp_path / "run", pictures)
