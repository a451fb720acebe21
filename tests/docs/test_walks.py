"""The tutorial and the how-to pages that tell a story, done from top to bottom in a fresh folder."""

from __future__ import annotations

import http.cookiejar
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, build_opener
from uuid import uuid4

import pytest

from tests.docs.blocks import DOCS, WALKED, Block, blocks_of
from tests.docs.walk import Walk
from tests.services import Broker
from tests.site import ROOT
from tests.waiting import wait_until

# What `pip install` of a checkout reads.
PACKAGE = ("messaging", "pyproject.toml", "README.md", "LICENSE")
TUTORIAL = DOCS / "tutorial.md"


@pytest.mark.parametrize("by_pip", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_tutorial_ends_with_a_requeued_message(tmp_path: Path, by_pip: bool) -> None:
    folder = tmp_path / "tutorial"
    checkout = folder / "django-durable-messaging"
    checkout.mkdir(parents=True)
    for name in PACKAGE:
        if (ROOT / name).is_dir():  # without what other processes write there meanwhile
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, checkout / name)
    walk = Walk(folder, deeds=DEEDS, runners={} if by_pip else {"install": lambda block: link(walk, checkout, block)})
    walk.follow(TUTORIAL)


def link(walk: Walk, checkout: Path, block: Block) -> None:
    """Have the reader's environment find the checkout and our packages: what pip installs, test_wheel.py sees."""
    make, activate, install = block.text.splitlines()
    assert install == f"pip install ./{checkout.name}"
    walk.type(f"{make} --without-pip\n{activate}\n")
    [packages] = walk.folder.glob(".venv/lib/python*/site-packages")
    (packages / "linked.pth").write_text(f"{checkout}\n{sysconfig.get_path('purelib')}\n")


def test_ten_lines_put_it_into_an_existing_site(tmp_path: Path) -> None:
    page = DOCS / "how-to" / "embed.md"
    site = existing_site(tmp_path, runners={"as in the tutorial": is_in_the_tutorial})
    said = site.type("python manage.py check")
    assert "messaging" not in said
    site.follow(page)
    before_sqlite = page.read_text().partition("## With SQLite")[0].count("\n")
    written = [block for block in blocks_of(page) if block.language == "python" and block.line < before_sqlite]
    assert sum(1 for block in written for line in block.text.splitlines() if line.strip()) <= 10


@pytest.mark.broker
def test_a_queue_of_someone_else_is_used_as_it_is(tmp_path: Path, vhost_url: str) -> None:
    page = DOCS / "how-to" / "foreign-queue.md"
    site = existing_site(tmp_path, broker=vhost_url, messaging=True, runners={"settings": lambda block: None})
    site.follow(page)


@pytest.mark.broker
def test_a_publisher_and_a_consumer_of_pika_are_moved_while_messages_flow(tmp_path: Path, vhost_url: str) -> None:
    deeds = {f"stop the {name}": lambda walk, name=name: walk.interrupt(name) for name in ("script", "consumer")}
    site = existing_site(tmp_path, broker=vhost_url, messaging=True, deeds=deeds)
    site.follow(DOCS / "how-to" / "from-pika.md")


@pytest.mark.slow
@pytest.mark.broker
def test_nothing_is_left_behind_when_moving_to_rabbitmq(tmp_path: Path, made_by_hand: RabbitmqCtl) -> None:
    runners = {"rabbitmqctl": made_by_hand.run}
    site = existing_site(tmp_path, broker=made_by_hand.url, messaging=True, runners=runners)
    site.follow(DOCS / "how-to" / "move-to-rabbitmq.md")
    assert made_by_hand.commands == 3


def test_every_walked_page_has_a_walk() -> None:
    walks = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [page.name for page in WALKED if f'"{page.name}"' not in walks] == []


class RabbitmqCtl:
    """Runs the page's `rabbitmqctl` commands, with names of this test's own in the place of "shop"."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._name = f"shop-{uuid4().hex[:8]}"
        self.commands = 0
        parts = urlsplit(broker.url)
        self.url = f"amqp://{self._name}:password@{parts.hostname}:{parts.port}/{self._name}"

    @property
    def _program(self) -> list[str]:
        """Without options, if the environment names the node: with one, RabbitMQ 4.0 waits for the password in vain."""
        given = list(self._broker.ctl_prefix)
        if not any(word.startswith("RABBITMQ_NODENAME=") for word in given):
            return given
        return given[: 1 + next(at for at, word in enumerate(given) if word.endswith("rabbitmqctl"))]

    def run(self, block: Block) -> None:
        """Run its lines; a question for a password is answered with "password"."""
        for line in block.text.replace("shop", self._name).splitlines():
            program, *arguments = re.findall(r"'[^']*'|\S+", line)
            assert program == "rabbitmqctl"
            command = [*self._program, *(argument.strip("'") for argument in arguments)]
            done = subprocess.run(command, input="password\n", capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            self.commands += 1

    def undo(self) -> None:
        """Delete the virtual host and the user."""
        if self.commands:
            self._broker.ctl("delete_vhost", self._name)
            self._broker.ctl("delete_user", self._name)


@pytest.fixture
def made_by_hand(rabbitmq: Broker) -> Iterator[RabbitmqCtl]:
    rabbitmq.ctl("version")  # skips where there is none
    ctl = RabbitmqCtl(rabbitmq)
    yield ctl
    ctl.undo()


def existing_site(folder: Path, *, messaging: bool = False, **options: object) -> Walk:
    """A walk that begins in a site `shop` with an app `orders`, in an environment that has the package."""
    folder = folder / "site"
    folder.mkdir()
    walk = Walk(folder, **options)  # type: ignore[arg-type]
    walk.type(
        f'export PYTHONPATH="$PYTHONPATH:{ROOT}"\ndjango-admin startproject shop .\npython manage.py startapp orders'
    )
    settings = folder / "shop" / "settings.py"
    apps = '["orders", "messaging"]' if messaging else '["orders"]'
    settings.write_text(f"{settings.read_text()}\nINSTALLED_APPS += {apps}\n")
    return walk


def is_in_the_tutorial(block: Block) -> None:
    """For what takes long: the tutorial's walk types it, so that others need not."""
    assert any(block.text in other.text for other in blocks_of(TUTORIAL))


class Browser:
    """The admin as an operator uses it, without a browser."""

    def __init__(self, walk: Walk) -> None:
        self._base = f"http://127.0.0.1:{walk.port}"
        self._opener = build_opener(HTTPCookieProcessor(http.cookiejar.CookieJar()))
        wait_until(self._is_served, what="the web server, which starts again when a file changes")
        self.post("/admin/login/?next=/admin/", username="admin", password="secret")

    def _is_served(self) -> bool:
        try:
            return bool(self.get("/admin/login/"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        """A page."""
        with self._opener.open(self._base + path, timeout=120) as answer:
            return str(answer.read().decode())

    def post(self, path: str, **fields: str) -> str:
        """Fill in and send the form of a page; returns the page that follows."""
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', self.get(path.partition("?")[0]))
        assert token, path
        data = urlencode({"csrfmiddlewaretoken": token[1], **fields}).encode()
        with self._opener.open(self._base + path, data, timeout=120) as answer:
            return str(answer.read().decode())

    def newest(self, state: str) -> str:
        """The path of the newest incoming message in a state, once there is one."""

        def look() -> list[str]:
            listed = self.get(f"/admin/messaging/processedmessage/?state={state}")
            return re.findall(r'href="(/admin/messaging/processedmessage/\d+/change/)[^"]*"', listed)

        return wait_until(look, what=f"a message that is {state}")[0]


def look_at_failed(walk: Walk) -> None:
    browser = Browser(walk)
    page = browser.get(browser.newest("failed"))
    assert page.count("KeyError") > 2
    assert page.count("Traceback (most recent call last)") == 3  # the last one above, and each in the timeline
    assert "price" in page
    assert walk.output_of("consumer").count("Billed order 2") == 1


def requeue_failed(walk: Walk) -> None:
    browser = Browser(walk)
    number = re.search(r"/(\d+)/", browser.newest("failed"))
    assert number
    fields = {"action": "requeue", "_selected_action": number[1], "post": "yes"}
    assert "1 message was requeued." in browser.post("/admin/messaging/processedmessage/", **fields)


def read_story(walk: Walk) -> None:
    browser = Browser(walk)
    page = wait_until(lambda: browser.get(browser.newest("processed")), what="the message's page")
    told = re.sub(r"<[^>]+>|\s+", " ", page)
    for part in ("Attempt 1 failed", "Attempt 2 failed", "Requeued by admin", "Round 3 scheduled"):
        assert part in told, part


DEEDS = {
    "look at the failed message": look_at_failed,
    "requeue the failed message": requeue_failed,
    "read the story": read_story,
}
