"""The release before: its code, from the repository's history, to be run beside the present one."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.services import missing
from tests.site import ROOT
from tools.services import ServiceMissing

COMMIT = "3360066"  # the last one without the columns of migration 0006


def extracted(folder: Path, root: Path = ROOT) -> Path:
    """Put the release before into `folder`, ready for `Site.beside()`.

    Skips the test where this copy of the project, at `root`, came without its history; where one that has a history
    does not give it, that is a missing service.
    """
    if not (root / ".git").exists():
        pytest.skip("The release before cannot be had: this copy of the project has no history.")
    if shutil.which("git") is None:
        missing(ServiceMissing("git is not installed, from which these tests take the release before."))
    done = _git(root, "archive", COMMIT, "messaging", "manage.py")
    if done.returncode:
        if _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == b"true":
            pytest.skip(f"The release before cannot be had: this clone has no history back to {COMMIT}.")
        missing(ServiceMissing(f"git does not give the release before: {done.stderr.decode(errors='replace').strip()}"))
    options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in 3.11.3
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, **options)
    assert not (folder / "messaging" / "migrations" / "0006_sendings_and_claims.py").exists()
    return folder


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
