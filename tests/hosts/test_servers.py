"""Web servers that run a site otherwise than `runserver` does."""

from __future__ import annotations

import itertools
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest

from tests.hosts.host import Host, HostFactory, assert_all_billed
from tests.site import Running
from tests.waiting import DEADLINE, wait_until
from tools.services import free_ports, is_listening

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.broker]
ORDERS = range(100, 140)
# In the process that loads the site, whose copies the workers are.
LOADED = """
def when_ready(server):
    import threading
    from django.db import connections
    threads = [one.name for one in threading.enumerate() if one.name.startswith("messaging")]
    opened = [one.alias for one in connections.all(initialized_only=True) if one.connection is not None]
    print("threads:", threads, "connections:", opened, flush=True)
"""


def test_async_views_under_uvicorn(host: HostFactory, vhost_url: str) -> None:
    site = made(host, vhost_url)
    port = free_ports(1)[0]
    server = site.launch([site.python, "-m"], "uvicorn", "mysite.asgi:application", f"--port={port}", "--workers=1")
    everything_ordered_is_billed(site, server, port, "shop/async/{}/")


def test_a_preloaded_site_under_gunicorn(host: HostFactory, vhost_url: str) -> None:
    site = made(host, vhost_url)
    site.write("gunicorn.conf.py", LOADED)
    port = free_ports(1)[0]
    options = ("--preload", "--workers=2", "--threads=2", f"--bind=127.0.0.1:{port}")
    server = site.launch([site.python, "-m"], "gunicorn", *options, "mysite.wsgi")
    workers = everything_ordered_is_billed(site, server, port, "shop/{}/", count=2)
    assert str(server.pid) not in workers
    assert "threads: [] connections: []" in server.output


def made(host: HostFactory, broker: str) -> Host:
    """A migrated site on PostgreSQL and RabbitMQ."""
    site = host()
    site.install(broker, host.database())
    site.manage("migrate", "--verbosity=0")
    site.act("check()")
    return site


def everything_ordered_is_billed(site: Host, server: Running, port: int, path: str, count: int = 1) -> set[str]:
    """Order at a server from several threads, while a consumer runs, until so many processes have answered: these."""
    consumer = site.start("consume", "--no-reload")
    wait_until(lambda: is_listening(port) or server.returncode is not None, what="the web server")
    assert server.returncode is None, server.output

    def order(number: int) -> str:
        with urlopen(f"http://127.0.0.1:{port}/{path.format(number)}", timeout=60) as answer:
            return str(answer.read().decode())

    ordered, numbers = list(ORDERS), itertools.count(ORDERS.stop)
    with ThreadPoolExecutor(8) as customers:
        workers = set(customers.map(order, ordered))
    deadline = time.monotonic() + DEADLINE
    while len(workers) < count and time.monotonic() < deadline:  # one may have begun later than the others ended
        ordered.append(next(numbers))
        workers.add(order(ordered[-1]))
    assert len(workers) == count
    wait_until(lambda: site.states() == {"processed": len(ordered)}, what="all to be processed")
    wait_until(lambda: site.states("published") == {"published": 2 * len(ordered)}, what="all to be sent")
    assert_all_billed(site, ordered)
    assert server.stop() in (0, -signal.SIGTERM)  # uvicorn ends by the signal itself
    assert consumer.stop() == 0
    assert "Traceback" not in server.output + consumer.output
    return workers
