"""`manage.py relay`: a relay alone."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging import conf
from messaging.checks.databases import require
from messaging.exceptions import ConfigurationError
from messaging.management.base import MessagingCommand
from messaging.management.metrics import add_metrics, check_metrics
from messaging.monitoring import health, traces
from messaging.monitoring.alerts import AlertThread
from messaging.operations import rehearsals
from messaging.operations.stored import Runner, run_waiting
from messaging.relaying.relay import Relay
from messaging.supervising import process_setup
from messaging.supervising.child import stop_signals
from messaging.supervising.process_setup import set_loaded_aside

logger = logging.getLogger("messaging.relay")


class Command(MessagingCommand):
    """Sends what is in the outbox until it is stopped."""

    help = "Send the messages of the outbox to the broker. The first signal stops it gracefully, the second at once."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--using", default=conf.DEFAULT_ALIAS, help="alias of MESSAGING (default: %(default)s)")
        parser.add_argument("--burst", action="store_true", help="stop when nothing is due")
        add_metrics(parser)

    def handle(self, *args: Any, using: str, burst: bool, **options: Any) -> None:
        """Run until a signal."""
        process_setup.configure(options["verbosity"])
        serves_metrics = check_metrics(options)
        try:
            traces.look()
            relay = Relay(using)
            is_command_line = getattr(self, "_called_from_command_line", False)
            require(relay.settings.databases, shared=is_command_line)
            if is_command_line:  # else it is somebody else's process
                set_loaded_aside()
            stop = threading.Event()
            _stop_on_signals(relay, stop)
            if serves_metrics:
                _serve_metrics(options["metrics_host"], options["metrics_port"])
            if not burst:
                for work in (run_waiting, rehearsals.run_waiting):
                    Runner(relay.settings.databases, relay.name, stop, work).start()
                AlertThread(stop).start()
            logger.info("Relay %s serves %s.", relay.name, relay.settings.safe_url)
            with _shown(relay):
                relay.run(stop, burst=burst)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        logger.info("Relay %s has stopped.", relay.name)


def _serve_metrics(host: str, port: int) -> None:
    """Count, and answer scrapes in threads of their own."""
    from messaging.metrics import exposition, tally
    from messaging.monitoring import metrics

    own = tally.Tally()
    metrics.start(own)
    metrics.SiteReader(own).start()
    try:
        address = exposition.serve(own.read, host, port)
    except OSError as error:
        raise CommandError(str(error)) from error
    logger.info("Metrics are served at %s.", address)


@contextmanager
def _shown(relay: Relay) -> Iterator[None]:
    """Say each second how it does, for whoever asks on this host: from a thread, since the relay may wait for long."""
    if os.name != "posix":
        yield
        return
    from messaging.supervising.state import EVERY, NO_FOLDER, StateFile

    file = StateFile.create("relay", relay.alias, health.site())
    if file is None:
        logger.warning(NO_FOLDER)
        yield
        return
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            file.write({"relay": relay.status, "looped": relay.looped_at})
            over.wait(EVERY)

    thread = threading.Thread(target=write, name="messaging-state", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        file.close()


def _stop_on_signals(relay: Relay, stop: threading.Event) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(1)  # leases lapse: nothing is lost
        stop.set()
        # Not from the handler itself: it may have interrupted the very code whose lock waking takes.
        threading.Thread(target=relay.wake, daemon=True).start()

    for number in stop_signals():
        signal.signal(number, on_signal)
