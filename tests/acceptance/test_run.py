"""`make run` as a newcomer has it: one command starts everything, one Ctrl-C ends everything."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.terminal import Terminal, environment_of, made_by_make
from tests.services import missing
from tests.site import ROOT
from tests.waiting import wait_until
from tools import broker, rabbitmq
from tools.janitor import Janitor
from tools.services import ServiceMissing, free_ports, is_listening

pytestmark = made_by_make
PRIVATE = pytest.param("private", id="rabbitmq", marks=[pytest.mark.broker, pytest.mark.slow])
GIVEN = pytest.param("given", id="a-rabbitmq-that-answers", marks=pytest.mark.broker)
ADMIN = r"user admin, password (\S+)\)"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start the runner in a mode; what is started later goes on with the same data."""
    terminals: list[Terminal] = []

    def start(*mode: str, **env: str) -> Terminal:
        if mode and not env:
            try:
                rabbitmq.find_scripts()
            except ServiceMissing as error:
                missing(error)
        terminals.append(Terminal(tmp_path, *mode, **env))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.kill()


def processes_of(terminal: Terminal) -> list[int]:
    """The site's own processes, wherever they went, where the system tells (Linux)."""
    marks = {f"PORT={terminal.port}".encode(), b"DJANGO_RUNSERVER_HIDE_WARNING=true"}
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marks <= set(path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("on", ["embedded", GIVEN, PRIVATE])
def test_one_command_starts_a_site_whose_orders_are_processed(
    start: Callable[..., Terminal], on: str, request: pytest.FixtureRequest
) -> None:
    given = {"MESSAGING_URL": request.getfixturevalue("vhost_url")} if on == "given" else {}
    terminal = start(*([] if on == "embedded" else ["--rabbitmq"]), **given)
    terminal.wait_for(ADMIN)
    terminal.press("order/")
    wait_until(
        lambda: "invoice written" in terminal.page() and "stock reserved" in terminal.page(),
        what="the steps of the order",
    )
    host = urlsplit(given.get("MESSAGING_URL", "")).hostname or "127.0.0.1"
    assert ("the embedded broker" if on == "embedded" else f"RabbitMQ at {host}") in terminal.page()
    assert ("a private node" in terminal.output) == (on == "private")
    assert terminal.stop() == 0, terminal.output
    assert terminal.is_quiet


@pytest.mark.broker
def test_a_private_node_stands_in_for_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    try:
        rabbitmq.find_scripts()
    except ServiceMissing as error:
        missing(error)
    environment = {"MESSAGING_URL": f"amqp://guest:guest@127.0.0.1:{free_ports(1)[0]}/"}
    with contextlib.closing(Janitor()) as janitor:
        node = broker.use_rabbitmq(environment, tmp_path / "rabbitmq", janitor)
        assert node is not None
        assert not node.is_running, "it has yet to be started"
        assert environment == {"MESSAGING_URL": node.url, "MESSAGING_MANAGEMENT_URL": node.management_url}


def test_the_shop_shows_what_became_of_an_order_and_leads_to_what_failed(start: Callable[..., Terminal]) -> None:
    terminal = start()
    password = terminal.wait_for(ADMIN)
    terminal.press("hello/")
    assert "down" in terminal.press("invoicing/")
    terminal.press("order/")
    failed = r'href="/(admin/messaging/processedmessage/\d+/change/)"[^>]*>.*\s*invoices: failed after 2 attempts'
    found = wait_until(lambda: re.search(failed, terminal.page("now/")), what="the failed invoice")
    assert found is not None
    shown = terminal.page(language="zh-hans")
    for text in ("库存已预留", "尝试 2 次后失败", "失败的消息", "内嵌消息中间件"):
        assert text in shown
    terminal.press("admin/login/?next=/admin/", username="admin", password=password)
    for path in ("admin/", "admin/messaging/"):
        assert terminal.page(path).count("Incoming, failed") == 1, path
    assert "The invoicing service is down" in terminal.page(found[1]), "the password opened the admin"
    assert terminal.page("admin/auth/").count("Incoming, failed") == 0


def test_every_signal_ends_it_and_it_goes_on_where_it_was(start: Callable[..., Terminal]) -> None:
    passwords = set()
    for orders, (number, status) in enumerate(((signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 0))):
        terminal = start()
        passwords.add(terminal.wait_for(ADMIN))
        assert terminal.page().count("<time ") == orders, "the orders of the runs before"
        terminal.press("order/")
        assert terminal.stop(number) == status
        wait_until(lambda: not processes_of(terminal), what="the end of every process")  # noqa: B023
    assert len(passwords) == 1


@pytest.mark.chaos
@pytest.mark.parametrize(
    "mode", [pytest.param((), id="embedded"), pytest.param(("--rabbitmq",), id="rabbitmq", marks=PRIVATE.marks)]
)
def test_a_killed_runner_takes_everything_along(start: Callable[..., Terminal], mode: tuple[str]) -> None:
    terminal = start(*mode)
    terminal.wait_for(r"(Ctrl-C stops everything)")
    terminal.process.kill()
    wait_until(lambda: terminal.is_quiet, what="the end of what the runner started")


@pytest.mark.chaos
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes as Linux shows them")
def test_a_second_ctrl_c_does_not_wait_for_what_hangs(start: Callable[..., Terminal]) -> None:
    terminal = start()
    terminal.wait_for(r"(consuming hello)")
    for pid in processes_of(terminal):
        os.kill(pid, signal.SIGSTOP)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for(r"(once more to stop at once)")
    terminal.process.send_signal(signal.SIGINT)
    terminal.process.wait(180)
    wait_until(lambda: not processes_of(terminal), what="the end of every process")


# Takes the standard input as its controlling terminal, as a shell in a window would.
IN_TERMINAL = "import fcntl, os, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp('make', ['make', 'run'])"


@contextlib.contextmanager
def make_run(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`make run`, ready in a terminal of its own; gives make's process and our side of the terminal."""
    ours, its = pty.openpty()
    environment = environment_of(folder, PORT=str(port))
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL],
        cwd=ROOT,
        env=environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    try:
        shown = b""
        while b"Ctrl-C stops everything" not in shown:
            shown += os.read(ours, 65536)
        yield process, ours
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(180)


def test_ctrl_c_in_a_terminal_ends_make_run(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with make_run(tmp_path, port) as (process, terminal):
        assert is_listening(port)
        os.write(terminal, b"\x03")
        shown = b""
        with contextlib.suppress(OSError):  # what Linux says when the last writer has gone
            while chunk := os.read(terminal, 65536):
                shown += chunk
        process.wait(180)
    os.close(terminal)
    assert not is_listening(port)
    assert b"Traceback" not in shown


def test_closing_the_terminal_ends_make_run(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with make_run(tmp_path, port) as (process, terminal):
        os.close(terminal)
        process.wait(180)
    assert not is_listening(port)


def test_make_alone_lists_what_there_is() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"run", "run-rabbitmq", "test", "lint"} <= set(re.findall(r"make ([a-z-]+)", said))
