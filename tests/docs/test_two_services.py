"""docs/how-to/two-services.md: two sites with a database each and a script of pika's, on one real RabbitMQ."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

import environ
import pika
import pytest

from tests.acceptance.clients import depth
from tests.docs.blocks import DOCS, blocks_of
from tests.docs.walk import Walk
from tests.services import Database
from tests.site import ROOT
from tests.waiting import wait_until
from tools.rabbitmq import RabbitMQ

PAGE = DOCS / "how-to" / "two-services.md"
BLOCKS = blocks_of(PAGE)
SITES = ("shop", "warehouse")


def test_it_is_done_from_top_to_bottom(tmp_path: Path, vhost_url: str) -> None:
    walk = Walk(folder_in(tmp_path), broker=vhost_url, deeds=DEEDS)
    walk.type(f'export PYTHONPATH="$PYTHONPATH:{ROOT}"')
    walk.follow(PAGE)


def wait_for_return(walk: Walk) -> None:
    """Until the broker has returned the message of the shop."""

    def tries() -> int:
        with closing(sqlite3.connect(walk.folder / "shop" / "db.sqlite3")) as connection:
            return int(connection.execute("SELECT MAX(attempts) FROM messaging_publishedmessage").fetchone()[0])

    wait_until(lambda: tries() >= 1, what="the return")


DEEDS = {
    "give it time to be returned": wait_for_return,
    "stop the warehouse": lambda walk: walk.interrupt("warehouse"),
}


class Company:
    """The page's files, with the tables made and what is on the shelf; nothing runs yet."""

    def __init__(self, folder: Path, broker: str, databases: dict[str, str]) -> None:
        self._walk = Walk(folder, broker=broker)
        self._walk.type(f'export PYTHONPATH="$PYTHONPATH:{ROOT}"')
        for block in takewhile(lambda block: block.kind != "terminal", BLOCKS):
            self._walk.do(block)
            name = block.title.partition("/")[0]
            if block.title.endswith("settings.py, at the end") and name in databases:
                with (folder / name / name / "settings.py").open("a") as settings:
                    settings.write(f'DATABASES["default"] = {environ.Env.db_url_config(databases[name])!r}\n')
        self.in_site("warehouse", 'from stock.models import Item; Item.objects.filter(sku="A-17").update(pieces=100)')
        self.kill, self.wait, self.close = self._walk.kill, self._walk.wait, self._walk.close
        self.output_of = self._walk.output_of

    def start(self, name: str, said: str) -> None:
        """Do what the page says to start one of the three, and wait until it says so."""
        self._walk.do(next(block for block in BLOCKS if (block.kind, block.argument) == ("terminal", name)))
        try:
            wait_until(lambda: said in self._walk.output_of(name), deadline=240, what=said)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{name} said:\n{self._walk.output_of(name)}") from None

    def start_courier(self) -> None:
        self.start("courier", "The courier waits.")

    def start_site(self, name: str) -> None:
        self.start(name, "Connected to")

    def in_site(self, name: str, code: str) -> str:
        """Run code in one of the sites and return what it prints."""
        return self._walk.type(f"cd {name}\npython manage.py shell -v 0 -c '{code}'\ncd ..")

    def place(self, *numbers: int) -> None:
        """Place orders."""
        self.in_site("shop", f'from orders.services import place; [place(n, "A-17") for n in {numbers}]')

    def orders(self, which: str) -> list[int]:
        """The numbers of the shop's orders that are `reserved` or `sent`."""
        code = f"from orders.models import Order; print(*Order.objects.filter({which}=True).values_list("
        return sorted(map(int, self.in_site("shop", f'{code}"number", flat=True))').split()))

    def wait_for(self, which: str, *numbers: int) -> None:
        """Wait until these orders, and no others, are `reserved` or `sent`."""
        wait_until(lambda: self.orders(which) == list(numbers), deadline=240, interval=0.5, what=f"{which}: {numbers}")

    def processed(self, name: str, queue: str) -> int:
        """How many messages of a queue are in the site's inbox, all of them processed."""
        code = f'from messaging.models import ProcessedMessage as P; rows = P.objects.filter(queue="{queue}")'
        said = self.in_site(name, f"{code}; print(rows.count(), rows.filter(state=P.State.PROCESSED).count())")
        count, processed = map(int, said.split())
        assert count == processed
        return count


@pytest.fixture(params=["sqlite", "postgres"])
def company(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Company]]:
    """Makes the company at a broker."""
    made: list[Company] = []
    urls: dict[str, str] = {}
    names = {site: f"{site}_{uuid4().hex[:12]}" for site in SITES}
    if request.param == "postgres":
        server: Database = request.getfixturevalue("postgres")
        urls = {site: server.create(name) for site, name in names.items()}

    def make(broker: str) -> Company:
        made.append(Company(folder_in(tmp_path), broker, urls))
        return made[-1]

    yield make
    for one in made:
        one.close()
    for site in urls:
        server.drop(names[site])


def publish_to_courier(url: str, body: bytes) -> None:
    """Put a message into the script's queue."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().basic_publish("", "courier", body, pika.BasicProperties(delivery_mode=2))


def folder_in(path: Path) -> Path:
    (path / "company").mkdir()
    return path / "company"


@pytest.mark.slow
def test_the_warehouse_may_start_first_and_who_never_declared_its_queue_gets_no_copy(
    company: Callable[[str], Company], vhost_url: str
) -> None:
    ours = company(vhost_url)
    ours.start_site("warehouse")
    ours.start_site("shop")
    ours.place(17)
    ours.wait_for("reserved", 17)
    ours.start_courier()
    ours.place(18)
    ours.wait_for("sent", 18)
    assert depth(vhost_url, "courier") == 0
    ours.wait_for("reserved", 17, 18)
    publish_to_courier(vhost_url, b'{"order": 18}')  # as if it had died before its acknowledgement
    ours.place(19)
    ours.wait_for("sent", 18, 19)
    assert ours.output_of("courier").count("Carried away: order 18") == 2
    assert ours.output_of("shop").count("Sent: order 18") == 1
    assert ours.processed("shop", "shop.parcels") == 2


@pytest.mark.slow
def test_the_shop_may_start_first_and_nobody_has_to_do_anything(
    company: Callable[[str], Company], vhost_url: str
) -> None:
    ours = company(vhost_url)
    ours.place(17)
    ours.start_site("shop")
    ours.place(18)
    ours.start_courier()
    ours.start_site("warehouse")
    ours.wait_for("sent", 17, 18)


@pytest.mark.slow
def test_whoever_is_killed_finds_what_came_meanwhile_and_each_order_has_one_effect(
    company: Callable[[str], Company], own_rabbitmq: RabbitMQ
) -> None:
    vhost = f"company-{uuid4().hex[:8]}"
    ours = company(own_rabbitmq.add_vhost(vhost))
    ours.start_courier()
    for site in SITES:
        ours.start_site(site)
    ours.place(*range(10))
    for site in SITES:
        ours.kill(site)
    ours.kill("courier")
    ours.place(*range(10, 20))
    ours.start_courier()
    for site in SITES:
        ours.start_site(site)
    own_rabbitmq.stop()
    assert ours.wait("courier") == 1
    ours.place(*range(20, 30))
    own_rabbitmq.start()
    ours.start_courier()
    ours.wait_for("sent", *range(30))
    left = ours.in_site("warehouse", 'from stock.models import Item; print(Item.objects.get(sku="A-17").pieces)')
    assert int(left) == 100 - 30
    assert ours.processed("warehouse", "warehouse.orders") == ours.processed("shop", "shop.parcels") == 30
    own_rabbitmq.delete_vhost(vhost)
