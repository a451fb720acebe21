"""Installing RabbitMQ and PostgreSQL with apt-get, where that is possible without asking: as root on Debian."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tools import postgresql, rabbitmq
from tools.services import ServiceMissing

POLICY = Path("/usr/sbin/policy-rc.d")
FINDERS: dict[str, Callable[[], Path]] = {
    "rabbitmq-server": rabbitmq.find_scripts,
    "postgresql": postgresql.find_programs,
}


def install_missing(*packages: str) -> list[str]:
    """Install those of `packages` (keys of FINDERS) that are missing; returns a sentence for each that still is."""
    wanted = [package for package in packages if _missing(package)]
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"Installing {' and '.join(wanted)} with apt-get ...", flush=True)
        with _services_stay_off():
            _apt("update")
            _apt("install", "-y", "--no-install-recommends", *wanted)
    return [sentence for package in wanted if (sentence := _missing(package))]


def _missing(package: str) -> str:
    try:
        FINDERS[package]()
    except ServiceMissing as error:
        return str(error)
    return ""


def _apt(*arguments: str) -> None:
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", *arguments]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        print(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}", flush=True)


@contextlib.contextmanager
def _services_stay_off() -> Iterator[None]:
    """Keep packages from starting a system-wide broker and database: only private ones are wanted."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
