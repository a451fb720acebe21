"""`manage.py consume`: checks what it was asked, then becomes the supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser, BooleanOptionalAction
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import Error as DatabaseError

import messaging
from messaging import conf
from messaging.backends import get_backend
from messaging.checks.databases import require, require_fit
from messaging.consuming import process
from messaging.consuming.consumer import Plan
from messaging.exceptions import ConfigurationError
from messaging.handlers import registry
from messaging.management.base import MessagingCommand
from messaging.management.metrics import add_metrics, check_metrics
from messaging.monitoring import health
from messaging.supervising import process_setup


class Command(MessagingCommand):
    """Parses, then calls: the parent hands over to `messaging.supervising`, a child to `consuming.process`."""

    help = "Consume messages and run their handlers, with a relay inside that sends the outbox."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if process.is_child():
            self.requires_system_checks = []  # the parent ran them

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command line."""
        parser.add_argument("queues", nargs="*", metavar="QUEUE", help="queues to consume; all that have handlers")
        parser.add_argument("--using", default=conf.DEFAULT_ALIAS, metavar="ALIAS", help="alias of MESSAGING")
        parser.add_argument("--processes", type=int, default=1, help="processes that run handlers (1)")
        parser.add_argument("--concurrency", type=int, default=4, help="worker threads in each process (4)")
        parser.add_argument(
            "--prefetch", type=int, help="messages taken ahead per queue and process (the queue's setting)"
        )
        parser.add_argument("--burst", action="store_true", help="stop when nothing is left to do")
        parser.add_argument(
            "--reload", action=BooleanOptionalAction, help="restart when source files change (default: if DEBUG)"
        )
        parser.add_argument(
            "--no-relay", action="store_false", dest="relay", help="leave the outbox to `manage.py relay`"
        )
        parser.add_argument(
            "--max-memory", type=int, default=0, metavar="MB", help="replace a process that uses more (0: no limit)"
        )
        add_metrics(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run in the role that the environment says."""
        if not is_posix():
            raise CommandError("consume needs Linux, macOS or another POSIX system: on Windows run it in WSL.")
        is_sites = process_setup.configure(options["verbosity"])
        try:
            plan = self._plan(options)
            options["relay"] = plan.relay
            reload = settings.DEBUG if options["reload"] is None else options["reload"]
            if process.is_child():
                sys.exit(process.run(plan, relay=options["relay"], reload=reload))
            check_metrics(options)
            self._require_tables(plan)
            self._supervise(plan, options, ["--reload"] * reload + ["--hand-over-lines"] * is_sites)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error

    def _plan(self, options: dict[str, Any]) -> Plan:
        for name, least in (("processes", 1), ("concurrency", 1), ("prefetch", 1), ("max_memory", 0)):
            if options[name] is not None and options[name] < least:
                raise CommandError(f"--{name.replace('_', '-')} must be at least {least}.")
        alias = options["using"]
        get_backend(alias)  # raises ConfigurationError where none can be had
        registry.discover()
        known = registry.queues(alias)
        if not known:
            raise CommandError(
                f'No handler is registered for "{alias}", so there is nothing to consume. Write one into handlers.py '
                "of an installed app; or run `manage.py relay`, which sends the outbox and needs none."
            )
        unknown = [queue for queue in options["queues"] if queue not in known]
        if unknown:
            raise CommandError(f"No handler takes from {', '.join(unknown)}. Queues with handlers: {', '.join(known)}.")
        return Plan(
            alias=alias,
            queues=tuple(dict.fromkeys(options["queues"])) or tuple(known),
            concurrency=options["concurrency"],
            prefetch=options["prefetch"],
            burst=options["burst"],
            relay=options["relay"] and conf.get(alias).relay,
            processes=options["processes"],
        )

    def _require_tables(self, plan: Plan) -> None:
        """Say so now when `migrate` was forgotten; a database that is away is waited for later."""
        alias = conf.get(plan.alias)
        databases = {handler.database for handler in registry.all(plan.alias)} | {*alias.databases}
        for database in require(filter(None, {*databases, alias.broker_database}), shared=True):
            try:
                require_fit(database)
                executor = MigrationExecutor(connections[database])
                targets = [key for key in executor.loader.graph.leaf_nodes() if key[0] == "messaging"]
                missing = executor.migration_plan(targets)
            except DatabaseError:
                continue
            finally:
                connections[database].close()
            if missing:
                flag = "" if database == "default" else f" --database {database}"
                raise CommandError(f'The database "{database}" lacks tables: run `manage.py migrate{flag}` first.')

    def _supervise(self, plan: Plan, options: dict[str, Any], flags: list[str]) -> None:
        if options["verbosity"]:
            processes = f"{options['processes']} process{'es' if options['processes'] > 1 else ''}"
            workers = f"{plan.concurrency} worker{'s' if plan.concurrency > 1 else ''}"
            source = conf.get(plan.alias).safe_url
            self.stdout.write(
                f"Consuming {', '.join(plan.queues)} from {source} ({processes} x {workers}). Stop with Ctrl-C."
            )
            if not conf.get(plan.alias).relay:
                self.stdout.write("RELAY is False: nothing is sent from here, and retries wait with what is published.")
            self.stdout.flush()
        is_command_line = getattr(self, "_called_from_command_line", False)
        arguments = _arguments(options, "--reload" in flags)
        inner = _command_line() if is_command_line else ["-P", "-m", "django", "consume", *arguments]
        environment = _environment(is_command_line)
        # Not from the working directory, where a file may have the name of a module.
        command = [sys.executable, "-P", "-m", "messaging.supervising", *_supervisor_arguments(plan, options)]
        command += [*flags, *_python_path(environment), "--", sys.executable, *inner]
        environment["PYTHONPATH"] = os.pathsep.join(_home(environment))
        connections.close_all()
        if is_command_line:
            os.execve(sys.executable, command, environment)  # noqa: S606 (our own command line)
        if subprocess.run(command, env=environment, check=False).returncode:
            raise CommandError("The consumer ended with an error; its log says which.")


def is_posix() -> bool:
    """Whether processes here can be signalled, and inherit what they share."""
    return os.name == "posix"


def _command_line() -> list[str]:
    """What this process was started with, for one that starts where this one may have gone meanwhile."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    arguments = sys.orig_argv[1:]
    if script is not None and sys.argv and sys.argv[0] in arguments:
        arguments[arguments.index(sys.argv[0])] = script  # which Python has made absolute
    return arguments


def _supervisor_arguments(plan: Plan, options: dict[str, Any]) -> list[str]:
    freeze_timeout = conf.get(plan.alias).freeze_timeout
    return [
        f"--processes={options['processes']}",
        f"--slots={plan.concurrency}",
        f"--stop-timeout={conf.get(plan.alias).stop_timeout}",
        f"--max-memory={options['max_memory']}",
        f"--verbosity={options['verbosity']}",
        f"--alias={plan.alias}",
        f"--site={health.site()}",
        *([] if freeze_timeout is None else [f"--freeze-timeout={freeze_timeout}"]),
        *_metrics_arguments(options),
    ]


def _metrics_arguments(options: dict[str, Any]) -> list[str]:
    if options["metrics_port"] is None:
        return []
    return [f"--metrics-host={options['metrics_host']}", f"--metrics-port={options['metrics_port']}"]


def _environment(is_command_line: bool) -> dict[str, str]:
    """The children's; without a command line of our own, `python -m django` must find all that we find."""
    environment = dict(os.environ)
    if not is_command_line:
        if not getattr(settings, "SETTINGS_MODULE", None):
            raise CommandError("consume starts processes, which need DJANGO_SETTINGS_MODULE.")
        environment["DJANGO_SETTINGS_MODULE"] = settings.SETTINGS_MODULE
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return environment


def _python_path(environment: dict[str, str]) -> list[str]:
    return [f"--python-path={environment['PYTHONPATH']}"] if "PYTHONPATH" in environment else []


def _home(environment: dict[str, str]) -> list[str]:
    """Where the supervisor finds this package, whatever made it importable here."""
    home = str(Path(messaging.__file__).resolve().parent.parent)
    return [home, environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else [home]


def _arguments(options: dict[str, Any], reload: bool) -> list[str]:
    arguments = [*options["queues"], f"--using={options['using']}", f"--processes={options['processes']}"]
    arguments += [f"--concurrency={options['concurrency']}", f"--max-memory={options['max_memory']}"]
    arguments += [f"--verbosity={options['verbosity']}", "--reload" if reload else "--no-reload"]
    arguments += [f"--prefetch={options['prefetch']}"] if options["prefetch"] else []
    arguments += ["--burst"] if options["burst"] else []
    return arguments + ([] if options["relay"] else ["--no-relay"])
