"""The Dockerfile's steps in a clean root: what is built runs as nobody, stops in order and reaps orphans."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from tests.deploy.files import DEPLOY
from tests.processes import stat_of
from tests.services import Database, missing
from tests.site import ROOT
from tests.waiting import wait_until
from tools import dockerfile
from tools.dockerfile import Image
from tools.services import ServiceMissing

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.postgres]

HANDLERS = """
import subprocess
from messaging import handler

@handler("billing", "orders.placed")
def bill(message):
    # A child of a child that ends after its parent: process 1 gets it.
    subprocess.run(["/bin/sh", "-c", "(sleep 0.2) & exit 0"])
"""
REQUIREMENTS = "django-durable-messaging\npsycopg[binary]\ngunicorn\n"
LEFT_OUT = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """A new site with the files of docs/deploy/ beside it, built."""
    if os.geteuid() or not all(map(shutil.which, ("debootstrap", "unshare"))):
        missing(ServiceMissing("a clean root takes Linux, root, and the package debootstrap."))
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    site = folder / "site"
    site.mkdir()
    subprocess.run([sys.executable, "-m", "django", "startproject", "shop", str(site)], check=True, timeout=120)
    with (site / "shop" / "settings.py").open("a") as settings:
        settings.write('INSTALLED_APPS += ["messaging", "shop"]\n' + (DEPLOY / "settings.py").read_text())
    (site / "shop" / "handlers.py").write_text(HANDLERS)
    (site / "requirements.txt").write_text(REQUIREMENTS)
    shutil.copy2(DEPLOY / "dockerignore", site / ".dockerignore")
    (site / "secrets").mkdir()
    (site / "secrets" / "secret-key").write_text("not in an image")
    (site / ".env").write_text("PASSWORD=not in an image")
    base = folder / "base"
    subprocess.run(
        ["cp", "-a", "--reflink=auto", dockerfile.clean_root(ROOT / "var" / "image" / "base"), base], check=True
    )
    make_wheel(folder, base / "opt" / "wheels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", "/opt/wheels")
        yield dockerfile.build(DEPLOY / "Dockerfile", site, folder, base)


def make_wheel(folder: Path, target: Path) -> None:
    """The package, as an index would have it."""
    source = folder / "source"
    shutil.copytree(ROOT / "messaging", source / "messaging", ignore=LEFT_OUT)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True, timeout=300)


class Started:
    """A command in the image, as process 1, with the secrets mounted."""

    def __init__(self, image: Image, words: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._outer = subprocess.Popen(
                image.enter(words), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **image.env, **env},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def first(self) -> int:
        """The process that is number 1 in there, by its number out here."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0])

    def stop(self, name: str) -> int:
        os.kill(self.first, getattr(signal, name))
        return self._outer.wait(180)

    def kill(self) -> None:
        if self._outer.poll() is None:
            self._outer.kill()
            self._outer.wait()


def test_the_image_consumes_as_nobody_and_stops_in_order(
    image: Image, tmp_path: Path, vhost_url: str, postgres: Database
) -> None:
    there = {path.name for path in (image.root / "srv/shop").iterdir()}
    assert "manage.py" in there
    assert not there & {"secrets", ".env", ".dockerignore"}
    assert (image.root / "srv/shop/static/messaging/admin.css").is_file()
    assert image.user == "10001"
    name = f"image_{uuid4().hex[:12]}"
    url = urlsplit(postgres.create(name))
    broker = urlsplit(vhost_url)
    secrets = image.root / "run/secrets"
    secrets.mkdir(parents=True)
    for file, text in (("secret-key", "x" * 50), ("database-password", url.password or ""),
                       ("broker-password", broker.password or "")):  # fmt: skip
        (secrets / file).write_text(text)
    env = {
        "DATABASE_HOST": str(url.hostname), "DATABASE_PORT": str(url.port), "BROKER_USER": str(broker.username),
        "MESSAGING_URL": broker._replace(netloc=f"{broker.hostname}:{broker.port}").geturl(),
    }  # fmt: skip
    settings = image.root / "srv/shop/shop/settings.py"  # the test's database has a name and a user of its own
    settings.write_text(
        settings.read_text() + f'DATABASES["default"] |= {{"NAME": {name!r}, "USER": {url.username!r}}}\n'
    )
    try:
        image.run(["python", "manage.py", "migrate", "--verbosity=0"], env)
        image.run(["python", "manage.py", "topology"], env)
        image.run(["gunicorn", "--check-config", "shop.wsgi"], env)
        publish = 'from messaging import publish; publish("orders.placed", {"order": 17})'
        image.run(["python", "manage.py", "shell", "-c", publish], env)
        consumer = Started(image, image.command, env, tmp_path / "consumer.log")
        try:
            with psycopg.connect(url.geturl(), autocommit=True) as database:
                query = "SELECT count(*) FROM messaging_processedmessage WHERE state = 'processed'"
                wait_until(lambda: database.execute(query).fetchone() == (1,), what=consumer.said)
            pid = consumer.first
            assert Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0] == "10001"
            wait_until(lambda: not zombies_of(pid), what="the end of what the handler left behind")
            assert consumer.stop(image.stop_signal) == 0, consumer.said
            assert "Stopping" in consumer.said
        finally:
            consumer.kill()
    finally:
        postgres.drop(name)


def zombies_of(pid: int) -> list[int]:
    """The children of a process that have ended and were not waited for."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if stat_of(child)[:1] == ["Z"]]
