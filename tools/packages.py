"""Installing servers, and what a driver needs to be built, with apt-get, where that can be done: as root on Debian."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from tools import asyncapi, browser, mariadb, pgbouncer, postgresql, rabbitmq
from tools.services import ServiceMissing

POLICY = Path("/usr/sbin/policy-rc.d")

BUILDING = ("libmariadb-dev", "pkg-config", "gcc", "python3-dev")  # what mysqlclient takes to be built


def _finder(program: str) -> Callable[[], object]:
    return lambda: shutil.which(program) or _cannot_build(f"`{program}`")


def _find_debootstrap() -> object:
    if not shutil.which("debootstrap"):
        raise ServiceMissing("The tests of the image take the package debootstrap.")
    return None


def _find_headers() -> object:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.exists() or _cannot_build(header)


def _cannot_build(without: object) -> NoReturn:
    way_out = f"`apt-get install {' '.join(BUILDING)}` (Debian, Ubuntu) or `brew install mariadb pkg-config`"
    raise ServiceMissing(f"Without {without} mysqlclient cannot be built: {way_out}.")


def _find_chinese_font() -> object:
    command = shutil.which("fc-list")
    found = command and subprocess.run([command, ":lang=zh"], capture_output=True, text=True, check=False).stdout
    if not found:
        raise ServiceMissing("There is no font with Chinese characters: `apt-get install fonts-wqy-microhei` (Debian).")
    return found


FINDERS: dict[str, Callable[[], object]] = {
    "rabbitmq-server": rabbitmq.find_scripts,
    "postgresql": postgresql.find_programs,
    "mariadb-server": mariadb.find_programs,
    "pgbouncer": pgbouncer.find_program,
    "chromium": browser.find_chromium,
    "npm": asyncapi.find_npm,
    "fonts-wqy-microhei": _find_chinese_font,
    "debootstrap": _find_debootstrap,
    "libmariadb-dev": _finder("mariadb_config"),
    "pkg-config": _finder("pkg-config"),
    "gcc": _finder("gcc"),
    "python3-dev": _find_headers,
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


if __name__ == "__main__":
    for said in install_missing(*sys.argv[1:]):
        print(said)
