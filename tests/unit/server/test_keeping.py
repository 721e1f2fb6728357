"""What is kept: opened with the limits that were set, one server a folder."""

from pathlib import Path

import pytest

from qianyan.errors import ConfigError
from qianyan.server.batch_lines import BatchLimits
from qianyan.server.files import FileLimits
from qianyan.server.keeping import claim, open_keeping
from qianyan.server.settings import KeepingLimits
from qianyan.server.tasks import TaskLimits
from qianyan.server.uploads import UploadLimits


def test_everything_that_is_kept_has_the_limits_that_were_set(tmp_path: Path) -> None:
    limits = KeepingLimits(
        files=FileLimits(max_files=1),
        uploads=UploadLimits(policy_s=2),
        tasks=TaskLimits(max_waiting=3),
        batches=BatchLimits(max_lines=4),
    )
    kept = open_keeping(tmp_path, limits)
    assert (kept.files.limits, kept.uploads.limits) == (limits.files, limits.uploads)
    assert (kept.tasks.limits, kept.batches.limits) == (limits.tasks, limits.batches)
    kept.database.close()


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(ConfigError, match="--state-dir"), claim(tmp_path):
        pass
    with claim(tmp_path):
        pass
