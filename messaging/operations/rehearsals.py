"""Rehearsals as they are stored: asked for by an operator, and run by whoever comes, in a process of its own.

Whoever runs one holds a claim on it, which it never renews: it outlasts the process's time. What the handler does
outside of its database is not taken back by anybody, so a rehearsal is run once at most; where the claim has run out,
it is over, and says so.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.db import connections, transaction
from django.utils import translation
from django.utils.translation import gettext as _

from messaging.db.clock import Now
from messaging.handlers import Handler, registry
from messaging.models import AuditRecord, ProcessedMessage, Rehearsal
from messaging.operations.acting import Operator
from messaging.wire.bodies import storable

logger = logging.getLogger("messaging.operations")

State = Rehearsal.State

LIMIT = 30.0  # seconds that a handler may take in a rehearsal: as long it may keep rows locked
SQLITE_LIMIT = 5.0  # there it keeps all others from writing
START = 60.0  # seconds that its process may take beside that
LOOK = 0.2  # seconds between two looks at it
SAID = 2000  # characters of what it says where it does not even begin
RESULTS = {State.SUCCEEDED, State.FAILED, State.REFUSED, State.LATE}


def can_be_rehearsed(row: ProcessedMessage) -> bool:
    """Whether a message is failed, and its handler may be rehearsed, as far as this process knows its handlers."""
    if row.state != ProcessedMessage.State.FAILED or row.wire is None:
        return False
    handler: Handler | None = registry.find(row.alias, row.queue, row.routing_key)
    return handler is not None and handler.rehearse


def limit_of(row: ProcessedMessage) -> float:
    """Seconds that its handler may take: its own time limit, where that is shorter than ours."""
    most = SQLITE_LIMIT if connections[row._state.db or "default"].vendor == "sqlite" else LIMIT
    handler = registry.find(row.alias, row.queue, row.routing_key)
    return most if handler is None or handler.timeout is None else min(most, handler.timeout)


def ask(row: ProcessedMessage, by: Operator) -> Rehearsal:
    """Store that a failed message is to be rehearsed; where one of it is unfinished, that stands for this one."""
    database = row._state.db or "default"
    end_abandoned(database)
    with transaction.atomic(using=database):
        rehearsals = Rehearsal.objects.using(database)
        unfinished = rehearsals.filter(row=row.pk, round=row.round, state__in=Rehearsal.UNFINISHED).first()
        if unfinished is not None:
            return unfinished
        asked = Rehearsal(row=row.pk, round=row.round, username=by.username, language=translation.get_language() or "")
        asked.save(using=database, force_insert=True)
        AuditRecord.of(row, "rehearse", row.state, **by.recorded).save(using=database, force_insert=True)
    return asked


def run_waiting(database: str, worker: str, stop: threading.Event | None = None) -> int:
    """Run what waits, one rehearsal after the other, each in a process of its own.

    Args:
        database: alias of `DATABASES`.
        worker: who does it, for operators.
        stop: ends the process of the one that runs.

    Returns how many were run. Raises what the database raises when it is away.
    """
    stop, count = stop or threading.Event(), 0
    end_abandoned(database)
    waiting, seconds = Rehearsal.objects.using(database).filter(state=State.WAITING), 2 * (START + LIMIT)
    while not stop.is_set() and (rehearsal := Rehearsal.claim(waiting, worker, seconds)) is not None:
        count += 1
        with translation.override(rehearsal.language or None):
            found = _in_a_process(rehearsal, database, stop)
        rehearsal.claimed().update(**found, ended_at=Now(), **Rehearsal.UNCLAIMED)
    return count


def end_abandoned(database: str) -> None:
    """Say of rehearsals whose runner is gone that they are over."""
    for rehearsal in Rehearsal.objects.using(database).filter(state=State.RUNNING, leased_until__lte=Now()):
        with translation.override(rehearsal.language or None):
            error = _("The worker %(name)s, which ran it, has died. It is not run again by itself.")
        told = error % {"name": rehearsal.worker}
        rehearsal.claimed().update(state=State.DIED, error=told, ended_at=Now(), **Rehearsal.UNCLAIMED)


def _in_a_process(rehearsal: Rehearsal, database: str, stop: threading.Event) -> dict[str, Any]:
    """Run it; what became of it, as columns of its row. The process ends with this one, whatever ends this one."""
    row = ProcessedMessage.objects.using(database).defer("body", "headers", "wire", "error").filter(pk=rehearsal.row)
    message = row.first()
    if message is None:
        return {"state": State.REFUSED, "error": _("The message is gone.")}
    module = getattr(settings, "SETTINGS_MODULE", None)
    if not module:
        return {"state": State.REFUSED, "error": _("A rehearsal needs a process, which needs DJANGO_SETTINGS_MODULE.")}
    seconds = limit_of(message)
    held, lifeline = os.pipe()  # which only this process holds open
    arguments = [
        *(sys.executable, "-P", "-m", "django", "rehearse_message", str(rehearsal.row), f"--database={database}"),
        *(f"--round={rehearsal.round}", f"--seconds={seconds}", f"--language={rehearsal.language}"),
        f"--lifeline={held}",
    ]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": module}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(held,),
            start_new_session=True,
        )
    except OSError as error:  # such as no memory left for it
        os.close(lifeline)
        return {"state": State.DIED, "error": _("No process can be started: %(error)s") % {"error": error}}
    finally:
        os.close(held)
    if not connections[database].in_atomic_block:
        connections[database].close()  # or the server may have ended it when the result is there
    try:
        return _awaited(process, seconds, stop)
    finally:
        os.close(lifeline)


def _awaited(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> dict[str, Any]:
    """What a rehearsal's process says in the end; that is killed with all that it has started."""
    deadline = time.monotonic() + START + seconds
    said, trouble = b"", b""
    while True:
        try:
            said, trouble = process.communicate(timeout=LOOK)
            break
        except subprocess.TimeoutExpired:
            if stop.is_set():
                _kill(process)
                return {"state": State.DIED, "error": _("The worker that ran it was stopped. Ask for it again.")}
            if time.monotonic() > deadline:
                _kill(process)
                return {"state": State.LATE, "error": _too_late(seconds)}
    _kill(process)
    try:
        found = json.loads(said)
        columns = {name: found[name] for name in ("state", "handler", "result", "error", "traceback")}
        if columns["state"] == State.LATE:
            columns["error"] = _too_late(seconds)
        if columns["state"] in RESULTS:
            return columns
    except (ValueError, KeyError, TypeError):
        pass
    last = storable(trouble.decode("utf-8", "replace").strip()[-SAID:])
    error = _("Its process ended with status %(status)s before it could tell anything.")
    return {"state": State.DIED, "error": error % {"status": process.returncode}, "traceback": last}


def _too_late(seconds: float) -> str:
    text = _("It took longer than %(seconds)g s and was ended. How it would have ended is not known.")
    return text % {"seconds": seconds}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started. What it had open in the database is rolled back there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=START)
