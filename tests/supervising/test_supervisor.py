"""The supervisor with children that need no Django: stops, deaths, time limits, restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from messaging.supervising.child import describe
from tests.processes import is_alive
from tests.waiting import DEADLINE, wait_until
from tools.janitor import Janitor

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import json, os, socket, sys, time, signal, threading
from pathlib import Path
from messaging.supervising.ledger import Entry, Ledger
role = json.loads(os.environ["MESSAGING_CHILD"])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
control = socket.socket(fileno=role["control"])
lines = control.makefile("rb")
ledger = Ledger.attach(role["ledger"], role["slots"])
folder = Path(sys.argv[1])
def order():
    line = lines.readline()
    if not line:
        os._exit(1)
    return json.loads(line)
def report(**facts):
    control.sendall(json.dumps(facts).encode() + b"\\n")
def note(name, text=""):
    whole = folder / f"{name}.{role['index']}.{os.getpid()}.{time.monotonic_ns()}"
    begun = whole.with_name(f".{whole.name}")  # not found under its name before all of it is written
    begun.write_text(text)
    begun.replace(whole)
def entry(**values):
    defaults = dict(alias="default", queue="q", key="k", digest="d", round=1, message_id="m", database="default",
        handler="shop.bill", started=time.time())
    return Entry(**(defaults | values))
def died_before():
    return len(list(folder.glob(f"up.{role['index']}.*"))) > 1
crashed = order()["crashed"]
note("crashed", json.dumps(crashed))
for _ in crashed:
    report(recorded=1)
note("up")
def obey():
    order()
    report(finished=True)
    os._exit(0)
"""

# Each child has two minutes to hand over in.
IN_PEACE = """
import sys
from messaging.supervising import __main__, child
child.RELEASE_TIME = 120.0
sys.exit(__main__.main())
"""

# No child is killed before it has noted that it was to hand over.
TOLD_FIRST = """
import pathlib, sys
from messaging.supervising import __main__, child
kill = child.Child._kill
child.Child._kill = lambda self: list(pathlib.Path().glob("released.*")) and kill(self)
sys.exit(__main__.main())
"""

OBEDIENT = "obey()"
DEAF = "order(); note('asked'); order()"


class Supervised:
    """A supervisor process and what its children left."""

    def __init__(
        self,
        folder: Path,
        body: str,
        *options: str,
        python: str = sys.executable,
        shell: str = "",
        head: str = CHILD,
        code: str = "",
    ) -> None:
        self.folder = folder
        script = folder / "child.py"
        script.write_text(head + textwrap.dedent(body))
        module = ["-c", code] if code else ["-m", "messaging.supervising"]
        command = [sys.executable, *module, *options, f"--python-path={ROOT}", "--"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            whole = [*command, python, str(script), str(folder)]
            self.process = subprocess.Popen(
                ["sh", "-c", shell, *whole] if shell else whole,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )

    def notes(self, name: str, index: int = 0) -> list[Path]:
        """What the children wrote under a name, in order."""
        return sorted(self.folder.glob(f"{name}.{index}.*"), key=lambda path: int(path.name.split(".")[3]))

    def pids(self, name: str = "up", index: int = 0) -> list[int]:
        return [int(path.name.split(".")[2]) for path in self.notes(name, index)]

    def wait_for(self, name: str, count: int = 1, index: int = 0, deadline: float = DEADLINE) -> list[int]:
        wait_until(
            lambda: len(self.notes(name, index)) >= count,
            deadline=deadline,
            what=f"{count} x {name}; the log:\n{self.log.read_text()}",
        )
        return self.pids(name, index)

    def crashed(self, index: int = 0) -> list[list[dict[str, str]]]:
        return [json.loads(path.read_text()) for path in self.notes("crashed", index)]

    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="module")
def janitor() -> Iterator[Janitor]:
    """Ends the supervisors of a test run that is killed itself; they would restart their children for ever."""
    janitor = Janitor()
    yield janitor
    janitor.close()


@pytest.fixture
def supervise(tmp_path: Path, janitor: Janitor) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(body: str, *options: str, **more: str) -> Supervised:
        folder = tmp_path / uuid4().hex[:6]
        folder.mkdir()
        started.append(Supervised(folder, body, *options, **more))
        janitor.watch(started[-1].process.pid)
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        janitor.forget(one.process.pid)


@pytest.mark.mode(62)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_first_signal_lets_every_child_finish(supervise: Callable[..., Supervised], number: int) -> None:
    supervised = supervise(OBEDIENT, "--processes=2")
    supervised.wait_for("up")
    supervised.wait_for("up", index=1)
    os.killpg(supervised.process.pid, number)  # the whole group, as a terminal does
    assert supervised.process.wait(180) == 0
    assert "Traceback" not in supervised.output()


def test_a_hangup_that_is_to_be_ignored_is(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT, shell='trap \'\' HUP; exec "$0" "$@"')  # as nohup does
    supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGHUP)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0
    assert supervised.output().count("Stopping") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_mistaken_for_the_next_file(supervise: Callable[..., Supervised], closed: str) -> None:
    supervised = supervise(
        """
        for fd in range(3):
            os.write(fd, b"printed by a program") if fd else os.read(fd, 1)
        if not died_before():
            os.kill(os.getpid(), signal.SIGKILL)
        obey()
        """,
        shell=f'exec "$0" "$@" {closed}',
    )
    supervised.wait_for("up", 2)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0


@pytest.mark.mode(62)
@pytest.mark.skipif(sys.platform != "linux", reason="process 1, or one that stands in for it, is Linux's")
def test_what_handlers_leave_behind_is_reaped(supervise: Callable[..., Supervised]) -> None:
    adopt = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1); os.execv(sys.argv[1], sys.argv[1:])"
    supervised = supervise(
        """
        for _ in range(3):
            if os.fork() == 0:
                if os.fork() == 0:
                    note("orphan")
                os._exit(0)
            os.wait()
        obey()
        """,
        shell=f'exec "$0" -c "{adopt}" "$0" "$@"',  # PR_SET_CHILD_SUBREAPER
    )
    orphans = supervised.wait_for("orphan", 3)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0


LOGGING_CHILD = """
def keep():
    while True:
        told = order()
        if "log" in told:
            with open(folder / "lines", "a") as file:
                file.write(told["log"]["text"] + "\\n")
            report(logged=1)
        if told.get("stop"):
            break
    report(finished=True)
    os._exit(0)
"""


def test_the_children_write_the_lines_of_a_site_that_has_a_logging(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        LOGGING_CHILD
        + """
if not died_before():
    os.kill(os.getpid(), signal.SIGKILL)
keep()
""",
        "--hand-over-lines",
    )
    supervised.wait_for("up", 2)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0
    lines = (supervised.folder / "lines").read_text()
    assert "was killed by signal 9 (SIGKILL) while it ran no handler" in lines
    assert "Stopping: what runs may finish" in lines
    assert not supervised.output()


def test_the_next_child_writes_the_lines_about_one_that_had_no_time_left(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        LOGGING_CHILD
        + """
if not died_before():
    with ledger.slot(0).running(entry(timeout=0.2)):
        time.sleep(600)
keep()
""",
        "--hand-over-lines",
    )
    supervised.wait_for("up", 2)
    written = supervised.folder / "lines"
    wait_until(lambda: written.exists() and "ran longer than its timeout of 0.2 s" in written.read_text())
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0


def test_a_line_that_no_child_writes_goes_to_standard_error(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise("time.sleep(600)", "--hand-over-lines", "--stop-timeout=0.2")
    supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 1
    assert "Stopping: what runs may finish" in supervised.output()
    assert "Handlers still run after 0.2 s" in supervised.output()


def test_few_open_files_are_said_once(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT, shell='ulimit -n 40; exec "$0" "$@"')
    supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0
    assert supervised.output().count("may open 40 files here and needs about 72") == 1


def test_second_signal_ends_it_now(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(DEAF, "--stop-timeout=600")
    (pid,) = supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    supervised.wait_for("asked")
    assert supervised.process.poll() is None
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 1
    assert not is_alive(pid)


def test_a_terminals_and_a_launchers_signal_are_one_wish(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        order()
        time.sleep(1.5)
        report(finished=True)
        """
    )
    supervised.wait_for("up")
    # Both wait for it: however slow this machine is, they reach it together.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        supervised.process.send_signal(number)
    assert supervised.process.wait(180) == 0


def test_the_deadline_ends_what_does_not_finish(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(DEAF, "--stop-timeout=0.5")
    (pid,) = supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 1
    assert not is_alive(pid)


RELEASED = """
order()
note("asked")
assert order() == {"release": True}
note("released")
time.sleep(float("%s"))
note("handed over")
os._exit(1)
"""


@pytest.mark.parametrize("end", ["deadline", "second signal"])
def test_what_runs_is_handed_over_before_it_is_ended(supervise: Callable[..., Supervised], end: str) -> None:
    supervised = supervise(RELEASED % 0.2, f"--stop-timeout={0.5 if end == 'deadline' else 60}", code=IN_PEACE)
    (pid,) = supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    supervised.wait_for("asked")
    if end == "second signal":
        supervised.process.send_signal(signal.SIGTERM)
    assert supervised.wait_for("handed over") == [pid]
    assert supervised.process.wait(180) == 1
    assert not is_alive(pid)


def test_who_does_not_hand_over_in_time_is_killed(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(RELEASED % 600, "--stop-timeout=0.5", code=TOLD_FIRST)
    (pid,) = supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    supervised.wait_for("released")
    assert supervised.process.wait(180) == 1
    assert not is_alive(pid)
    assert supervised.notes("handed over") == []


def test_a_replaced_child_hands_over_what_still_runs_and_is_not_blamed(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    source = tmp_path / "handlers.py"
    source.write_text("1")
    supervised = supervise(
        f"""
        if died_before():
            obey()
        with ledger.slot(0).running(entry(key="long", token="mine")):
            report(files=[{str(source)!r}])
            assert order() == {{"stop": True}}
            assert order() == {{"release": True}}
            note("released")
            os._exit(1)
        """,
        "--reload",
        "--stop-timeout=0.5",
        code=IN_PEACE,
    )
    change_until(supervised, source, "released")
    supervised.wait_for("up", 2)
    assert [crash["error"] for crash in supervised.crashed()[1]] == [""], "its successor hears whose claim ended"


def change_until(supervised: Supervised, source: Path, name: str, count: int = 1) -> None:
    """Change a file again and again: the supervisor may not have taken its first look yet."""
    time_before = source.stat().st_mtime_ns

    def is_noted() -> bool:
        source.write_text("2")
        os.utime(source, ns=(time_before, max(time.time_ns(), time_before + 1)))
        return len(supervised.notes(name)) >= count

    wait_until(is_noted, interval=0.2, what=f"{count} x {name}; the log:\n{supervised.output()}")


def test_children_end_with_a_killed_supervisor(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT, "--processes=2")
    pids = supervised.wait_for("up") + supervised.wait_for("up", index=1)
    supervised.process.kill()
    wait_until(lambda: not any(map(is_alive, pids)), what="the end of the children")


def test_a_dead_child_is_replaced_and_its_work_reported(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        if died_before():
            obey()
        with ledger.slot(0).running(entry(key="first")), ledger.slot(1).running(entry(key="many", batch=5)):
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        "--slots=2",
    )
    supervised.wait_for("up", 2)
    before, after = supervised.crashed()
    assert before == []
    (crash,) = after
    assert json.loads(crash["entry"])["key"] == "first"
    assert (crash["error"], crash["text"]) == (
        "ProcessDied",
        "The process that ran it was killed by signal 9 (SIGKILL).",
    )
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0


def test_a_crash_is_reported_until_it_is_recorded(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        count = len(list(folder.glob("up.*")))
        if count >= 3:
            obey()
        with ledger.slot(0).running(entry(key=str(count))):
            os._exit(3)
        """,
        head=CHILD.replace("for _ in crashed:", "for _ in crashed[1:]:"),
    )
    supervised.wait_for("up", 3)
    keys = [[json.loads(crash["entry"])["key"] for crash in crashes] for crashes in supervised.crashed()]
    assert keys == [[], ["1"], ["1", "2"]]
    assert "exited with status 3" in supervised.crashed()[1][0]["text"]


def test_leaving_without_saying_goodbye_is_a_death(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise("obey() if died_before() else os._exit(0)")
    supervised.wait_for("up", 2)
    assert "exited with status 0" in supervised.output()


def test_only_the_overdue_handler_is_blamed(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        if died_before():
            obey()
        slow, innocent, claimed = entry(key="slow", timeout=0.5), entry(), entry(key="claimed", token="t")
        with ledger.slot(1).running(innocent), ledger.slot(2).running(claimed), ledger.slot(0).running(slow):
            time.sleep(600)
        """,
        "--slots=3",
    )
    pids = supervised.wait_for("up", 2)
    late, spared = supervised.crashed()[1]
    assert json.loads(late["entry"])["key"] == "slow"
    assert (late["error"], late["text"]) == ("HandlerTimeout", "ran longer than its timeout of 0.5 s")
    assert (json.loads(spared["entry"])["key"], spared["error"]) == ("claimed", "")
    assert not is_alive(pids[0])


def test_recording_the_end_of_a_handler_is_not_part_of_its_time(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        limited = entry(timeout=2)
        if role["index"]:  # its limit ends later: when it is replaced, the supervisor has looked at both
            if died_before():
                obey()
            while not list(folder.glob("lifted.*")):
                time.sleep(0.02)
            with ledger.slot(0).running(limited):
                time.sleep(600)
        with ledger.slot(0).running(limited) as lift:
            lift()
            note("lifted")
            while len(list(folder.glob("up.1.*"))) < 2:
                time.sleep(0.02)
            note("recorded")
        obey()
        """,
        "--processes=2",
    )
    supervised.wait_for("recorded")
    assert len(supervised.notes("up")) == 1


@pytest.mark.mode(29)
def test_a_handler_that_exits_like_a_wrong_configuration_is_a_crash(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        if not died_before():
            with ledger.slot(0).running(entry(key="poison")):
                os._exit(78)
        obey()
        """
    )
    supervised.wait_for("up", 2)
    (crash,) = supervised.crashed()[1]
    assert "exited with status 78" in crash["text"]
    assert supervised.process.poll() is None


@pytest.mark.mode(29)
def test_deaths_that_cost_an_attempt_do_not_slow_down(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        with ledger.slot(0).running(entry()):
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    supervised.wait_for("up", 6)
    pauses = [float(text) for text in re.findall(r"starts in ([\d.]+) s", supervised.output())]
    assert max(pauses) < 0.3


@pytest.mark.mode(30)
def test_a_process_that_cannot_be_started_is_tried_again(supervise: Callable[..., Supervised], tmp_path: Path) -> None:
    python = tmp_path / "python"
    supervised = supervise(OBEDIENT, python=str(python))
    wait_until(lambda: "No process can be started" in supervised.output())
    python.symlink_to(sys.executable)
    supervised.wait_for("up")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0


def test_deaths_in_a_row_slow_down(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise("os._exit(1)")
    supervised.wait_for("up")

    def pauses() -> list[float]:
        return [float(text) for text in re.findall(r"starts in ([\d.]+) s", supervised.output())]

    wait_until(lambda: max(pauses(), default=0.0) > 0.3, what="longer pauses")
    assert pauses()[0] < 0.3
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(180) == 0


def test_a_configuration_error_ends_everything(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise("sys.exit(78) if role['index'] else obey()", "--processes=2")
    assert supervised.process.wait(180) == 1
    assert len(supervised.notes("up", 1)) == 1


def test_ends_when_every_child_is_done(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise("report(finished=True)", "--processes=2")
    assert supervised.process.wait(180) == 0
    assert (len(supervised.notes("up")), len(supervised.notes("up", 1))) == (1, 1)


def test_a_child_that_grows_is_replaced(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        if not died_before():
            memory = b"x" * 300_000_000
        obey()
        """,
        "--max-memory=200",
    )
    supervised.wait_for("up", 2)
    assert "more than 200 MB" in supervised.output()
    assert supervised.crashed() == [[], []]


def test_a_child_that_grows_ends_what_it_runs_first(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(
        """
        if not died_before():
            memory = b"x" * 300_000_000
            with ledger.slot(0).running(entry(key="long")):
                order()
                time.sleep(1)  # longer than a stop may take
                note("ended")
            report(finished=True)
            os._exit(0)
        obey()
        """,
        "--max-memory=200",
        "--stop-timeout=0.2",
    )
    supervised.wait_for("up", 2)
    assert len(supervised.notes("ended")) == 1
    assert supervised.crashed() == [[], []]


def test_a_changed_file_restarts_the_children(supervise: Callable[..., Supervised], tmp_path: Path) -> None:
    source = tmp_path / "handlers.py"
    source.write_text("1")
    supervised = supervise(f"report(files=[{str(source)!r}]); note('reported'); obey()", "--reload")
    supervised.wait_for("reported")
    change_until(supervised, source, "up", 2)
    assert "handlers.py changed" in supervised.output()


def test_needs_no_django() -> None:
    code = "import sys, messaging.supervising; print([name for name in sys.modules if name.startswith('django')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_exit_status_in_words() -> None:
    assert describe(3) == "exited with status 3"
    assert describe(-9) == "was killed by signal 9 (SIGKILL)"
    assert describe(-250) == "was killed by signal 250"
