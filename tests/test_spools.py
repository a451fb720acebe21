"""Where a body goes that is too large to be held, when the disk does not take it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from messaging.models.spools import Spool

BODY = b"abc" * 1000


def held(spool: Spool) -> bytes:
    for begin in range(0, len(BODY), 700):
        spool.write(BODY[begin : begin + 700])
    return b"".join(spool.pieces())


def test_a_body_is_as_it_was() -> None:
    spool = Spool(len(BODY), 100)
    assert (held(spool), spool.trouble) == (BODY, "")
    spool.close()


def test_without_a_temporary_directory_it_is_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    spool = Spool(len(BODY), 1000)
    assert (held(spool), spool.trouble) == (BODY, "")
    spool.close()


def test_what_is_too_large_for_that_as_well_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    spool = Spool(len(BODY), 100)
    assert held(spool) == b""
    assert spool.trouble == "it could not be written to a temporary file: No such file or directory"


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="needs a file system of a known size")
def test_a_disk_without_room_for_all_of_it_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    spool = Spool(1 << 50, 1 << 30)
    assert spool.trouble == "it could not be written to a temporary file: No space left on device"
