"""The release before: its code, from the repository's history, to be run beside the present one."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.site import ROOT

COMMIT = "3360066"  # the last one without the columns of migration 0006


def extracted(folder: Path) -> Path:
    """Put the release before into `folder`, ready for `Site.beside()`. Skips the test where there is no history."""
    if shutil.which("git") is None:
        pytest.skip("The release before cannot be had: git is not installed.")
    asked = ["git", "-C", str(ROOT), "archive", COMMIT, "messaging", "manage.py"]
    done = subprocess.run(asked, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"The release before cannot be had: this copy of the project has no history back to {COMMIT}.")
    options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in 3.11.3
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, **options)
    assert not (folder / "messaging" / "migrations" / "0006_sendings_and_claims.py").exists()
    return folder
