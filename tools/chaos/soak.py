"""One run: harm for some minutes, then quiet, then the proof."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tools.chaos import proof
from tools.chaos.faults import Injector
from tools.chaos.places import Place
from tools.chaos.schedule import plan
from tools.chaos.stage import DATABASES, Stage
from tools.log_lines import without_failures
from tools.services import ServiceFailed

LINE_EVERY = 5.0  # seconds between two lines of progress
LOOK_EVERY = 1.0  # seconds between two looks at the counts, when no fault is to come
WARM = 60.0  # seconds within which the first effect is waited for, so that faults meet what is at work
FAULTS, EFFECTS, STRANGERS = 3, 100, 20  # so many a run is to meet, however short
LONGER = 180.0  # seconds for which it goes on for that, at most
REQUEUE_EVERY = 20.0  # seconds between an operator's looks at the failed messages, while faults go on
REQUEUE_SOON = 2.0  # the same afterwards
REPLAY_EVERY = 10.0  # seconds between two replays of what was lost on purpose, until all is done
QUIET = 30.0  # seconds without any change after which nothing is under way any more
SETTLE = 300.0  # seconds within which everything has to come to rest
STANDSTILL = 120.0  # seconds without any change after which nothing more is expected

Say = Callable[[str], None]


@dataclass
class Result:
    """How a run ended.

    Attributes:
        facts, flaws: counts by name; no flaw may be above 0.
        costs: counts of what copies that lag cost when they were promoted; empty where none was.
        faults: injected, by kind.
        remarks: what else an engineer wants to know.
        spoiled: why the run proves nothing; "" if it does.
    """

    facts: dict[str, int] = field(default_factory=dict)
    flaws: dict[str, int] = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    spoiled: str = ""

    @property
    def status(self) -> int:
        """The exit status: 0 only if nothing is lost, doubled, failed or under way."""
        return 2 if self.spoiled else int(any(self.flaws.values()))


def run(stage: Stage, seconds: float, kinds: Collection[str], say: Say) -> Result:
    """Harm the stage for `seconds`, let it settle, count."""
    faults = plan(stage.seed, seconds, kinds)
    say(f"{len(faults)} faults of {len({fault.kind for fault in faults})} kinds are planned for {seconds:g} s.")
    injector, watch = Injector(stage, faults), Watch(stage, say)
    watch.until(lambda: watch.has_begun or watch.elapsed > WARM, injector)
    began = watch.elapsed
    watch.look_every = LINE_EVERY
    injector.start()

    def is_over() -> bool:
        late = watch.elapsed - began - seconds
        if injector.trouble or late > LONGER:
            return True
        has_enough = sum(injector.done.values()) >= min(FAULTS, len(faults)) and watch.expected >= EFFECTS
        return late > 0 and has_enough and _confirmed_to_strangers(stage) >= STRANGERS

    try:
        watch.until(is_over, injector)
    finally:
        injector.stop()
    result = Result(faults=dict(injector.done), spoiled="; ".join(injector.trouble))
    if result.spoiled:
        return result
    say("No more faults and nothing new: waiting until all is done.")
    _quiet(stage, watch, injector, result)
    _count(stage, result)
    crashes = crashed_queues(stage.broker_log)
    if crashes:
        told = "RabbitMQ's own process crashed of " + ", ".join(f"{name} ({n} times)" for name, n in crashes.items())
        result.remarks.append(told)
        result.spoiled = told if any(result.flaws.values()) else ""
    return result


def _confirmed_to_strangers(stage: Stage) -> int:
    text = stage.ledger.read_text() if stage.ledger.exists() else ""
    return sum(confirmed for _, confirmed in proof.strangers(text))


def crashed_queues(log: str) -> Counter[str]:
    """The quorum queues whose process crashed, as RabbitMQ's log has it, and how often each.

    Such a process no longer finds messages in its log that RabbitMQ has confirmed:
    https://github.com/rabbitmq/rabbitmq-server/issues/12635.
    """
    return Counter(re.findall(r"State machine '%2F_([^']+)' terminating", log))


class Watch:
    """Prints lines of progress, and plays the operator who requeues what failed."""

    def __init__(self, stage: Stage, say: Say) -> None:
        self._stage = stage
        self._say = say
        self._began = time.monotonic()
        self._line_at = self._look_at = self._requeue_at = 0.0
        self._looked = ""
        self.changed_at = 0.0  # when the counts last changed
        self._counts = (0, 0, 0)
        self.requeue_every = REQUEUE_EVERY
        self.look_every = LOOK_EVERY
        self._operator: threading.Thread | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def expected(self) -> int:
        """How many effects were expected at the last look."""
        return self._counts[0]

    @property
    def has_begun(self) -> bool:
        """Whether the last look found an effect."""
        expected, missing, _ = self._counts
        return expected > missing

    def until(self, is_over: Callable[[], bool], injector: Injector) -> None:
        """Watch until `is_over()`."""
        while not is_over():
            if self.elapsed >= self._look_at:
                self._look_at = self.elapsed + self.look_every
                self._looked = self._look()
            if self.elapsed >= self._line_at:
                self._line_at = self.elapsed + LINE_EVERY
                self._say(
                    f"{self.elapsed:5.0f} s  {self._looked}  {sum(injector.done.values()):3} faults  {_now(injector)}"
                )
            if self._counts[2] and self.elapsed >= self._requeue_at:
                self._requeue_at = self.elapsed + self.requeue_every
                self.requeue()
            time.sleep(0.2)

    def _look(self) -> str:
        try:
            counts = proof.progress(*self._stage.queries)
        except psycopg.Error:
            return f"{'the database is away':43}"
        if counts != self._counts:
            self._counts, self.changed_at = counts, self.elapsed
        expected, missing, failed = counts
        return f"{expected:7} published {expected - missing:7} done {missing:6} to go {failed:3} failed"

    def requeue(self) -> None:
        """Have the operator requeue what failed, unless the last time is not over yet."""
        if self._operator is not None and self._operator.is_alive():
            return
        self._operator = threading.Thread(target=self._requeue_all, daemon=True)
        self._operator.start()

    def _requeue_all(self) -> None:
        # An outage interrupts it; the failed ones are still there at the next look.
        for database in DATABASES:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._stage.site.manage("requeue_messages", f"--database={database}", check=False)


def _now(injector: Injector) -> str:
    return ", ".join(injector.under_way.values())


def _quiet(stage: Stage, watch: Watch, injector: Injector, result: Result) -> None:
    """Stop publishing, wait until all has settled, stop everything and drain what copies are left."""
    stage.keeper.stop()
    result.remarks += stage.keeper.own_ends
    _bring_back(stage)
    _fill(stage)
    began = phase = watch.elapsed
    watch.changed_at, watch.requeue_every, watch.look_every = began, REQUEUE_SOON, LOOK_EVERY
    replayed_at = -REPLAY_EVERY
    is_done = proof.is_rested

    def is_over() -> bool:
        nonlocal replayed_at
        now = watch.elapsed
        if now - phase > SETTLE or now - watch.changed_at > STANDSTILL or is_done(*stage.queries):
            return True
        if now - replayed_at >= REPLAY_EVERY:
            stage.replay(stage.debts)
            if now - watch.changed_at > QUIET:
                stage.requeue_forgotten()
            replayed_at = watch.elapsed
        return False

    watch.until(is_over, injector)
    stage.give_memory()
    is_done, phase = proof.is_settled, watch.elapsed
    watch.changed_at = phase
    watch.until(is_over, injector)
    result.remarks.append(f"settled {watch.elapsed - began:.0f} s after the last fault")
    ending = [place for place in stage.places if place not in stage.publishers]
    for place, status in zip(ending, _stop(ending), strict=True):
        if status != 0:
            result.remarks.append(f"{place.name} was told to stop and ended with status {status}")
    try:
        stage.site.manage("consume", "--burst", timeout=120, check=False)
    except subprocess.TimeoutExpired:
        result.remarks.append("consume --burst was not done within 120 s")


def _stop(places: Collection[Place]) -> list[int | None]:
    """Stop processes in order, all at once. Returns their exit statuses."""
    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(Place.stop, places))


def _bring_back(stage: Stage) -> None:
    """Have everything run, and of the new release, but for those who publish."""
    stage.end_with_new_release()
    _stop(stage.consumers)
    for place in stage.places:
        if not place.is_running and place not in stage.publishers:
            place.replace()
    _stop(stage.publishers)
    stage.sql("UPDATE messaging_queuecontrol SET paused = false")  # whoever purged it may have found no way back


def _fill(stage: Stage) -> None:
    """Give the proof what it needs besides the ledger."""
    if stage.ledger.exists():
        proof.insert(stage.sql, "stranger", proof.strangers(stage.ledger.read_text()))
    forgotten = stage.pair.forgotten
    rows = [("expected", key) for key in forgotten.expected.elements()]
    rows += [("published", key) for key in forgotten.published.elements()]
    rows += [("effect", key) for key in forgotten.effects.elements()]
    rows += [("received", key) for *_, key in forgotten.received.elements() if key]
    promoted = [("at", f"{at:.3f}") for at in stage.pair.promoted]
    first, *others = stage.queries
    proof.insert(first, "forgotten", rows + promoted)
    for other in others:
        proof.insert(other, "forgotten", promoted)


def _count(stage: Stage, result: Result) -> None:
    first, *others = stage.queries
    for other in others:
        proof.gather(first, other)
    result.facts = proof.count(first, proof.LEDGER) | proof.count(first, proof.FACTS, *others)
    result.facts["dropped by purges, and replayed"] = stage.dropped
    result.flaws = proof.count(first, proof.FLAWS) | proof.count(first, proof.LEFT, *others)
    if stage.pair.promoted:
        result.costs = {"bytes of the log": stage.pair.forgotten.wal} | proof.count(first, proof.COSTS, *others)
    told = {place.name: without_failures(place.log.read_text(errors="replace")) for place in stage.places}
    tracebacks = {name: text.count("Traceback (") for name, text in told.items()}
    found = ", ".join(f"{count} in {name}.log" for name, count in tracebacks.items() if count)
    if found:
        result.remarks.append(f"tracebacks: {found}")


def report(result: Result) -> list[str]:
    """The proof as lines."""
    lines = [f"{number:9,}  {name}" for name, number in result.facts.items()]
    lines += ["", f"{sum(result.faults.values()):9,}  faults injected"]
    lines += [f"{number:9,}    {kind}" for kind, number in sorted(result.faults.items())]
    if result.costs:
        lines += ["", "What the copies of the database had never received when they were promoted:"]
        lines += [f"{number:9,}  {cost}" for cost, number in result.costs.items()]
    lines += ["", *(f"{number:9,}  {flaw}" for flaw, number in result.flaws.items())]
    lines += ["", *result.remarks]
    return lines


def keep(stage: Stage, folder: Path) -> None:
    """Copy the logs, and what the database knows of flawed messages, into `folder`, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for log in [*stage.folder.glob("*.log"), *stage.folder.glob("*/*.log")]:
        name = log.name if log.parent == stage.folder else f"{log.parent.name}.{log.name}"
        (folder / name).write_bytes(log.read_bytes())
    if stage.ledger.exists():
        shutil.copy(stage.ledger, folder)
    forgotten = [list(map(str, row)) for row in stage.pair.forgotten.received]
    (folder / "forgotten.json").write_text(json.dumps(forgotten, indent=2))
    try:
        proof.keep_evidence(folder, *stage.queries)
    except (psycopg.Error, ServiceFailed) as error:
        (folder / "evidence.json").write_text(f"The database could not be asked: {error}\n")
