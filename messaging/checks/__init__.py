"""System checks: whatever is wrong with the settings, with the databases that they use, and with the handlers.

Every id stands in docs/reference/checks.md. The errors of the settings themselves come from `problems`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from typing import Any

from django.conf import settings as site
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections, router
from django.utils.module_loading import import_string

from messaging import conf, reports
from messaging.checks.contracts import check_events
from messaging.checks.databases import (
    check_autocommit,
    check_memory,
    check_mysql,
    check_payload_index,
    check_routers,
    check_sqlite,
    check_tenants,
    used_databases,
)
from messaging.checks.payloads import check_payloads
from messaging.conf import middleware, problems
from messaging.conf.problems import Problem, shown, suggest
from messaging.conf.rules import living_queue
from messaging.contracts.events import events
from messaging.exceptions import BrokerUnavailable, ConfigurationError
from messaging.handlers import Handler, is_generator, patterns_overlap, registry
from messaging.models import ProcessedMessage


def check_messaging(**_options: Any) -> list[CheckMessage]:
    """Every problem of `MESSAGING`, of the databases it uses and of the registered handlers. Never raises."""
    configured = conf.read()
    fatal: list[CheckMessage] = [_error(problem) for problem in problems.of_all(configured)]
    if fatal:
        return [*fatal, *check_console(), *check_metrics()]
    found: list[CheckMessage] = []
    if conf.DEFAULT_ALIAS not in configured:
        hint = 'publish() and @handler use "default" unless told otherwise.'
        found.append(CheckWarning('MESSAGING has no alias "default".', hint=hint, id="messaging.W001"))
    for alias, options in configured.items():
        wrong = [_error(problem) for problem in problems.of_alias(alias, options)]
        found += wrong or [*check_effects(conf.get(alias)), *check_traces(alias, options)]
        found += () if wrong else check_copies(conf.get(alias))
        found += () if wrong else check_middleware(conf.get(alias))
        found += () if wrong else check_queues(alias, registry.all(alias))
    found += check_reports()
    found += check_console()
    found += check_metrics()
    databases = used_databases(registry.all())
    found += check_handlers(registry.all(), list(configured))
    found += check_payloads(registry.all())
    found += check_events(events.all(), list(configured))
    found += [*check_autocommit(databases), *check_sqlite(list(databases)), *check_routers(databases)]
    return [*found, *check_tenants()]


def check_servers(databases: Sequence[str] | None = None, **_options: Any) -> list[CheckMessage]:
    """What is wrong with the servers of databases that hold messages; run by `migrate` and `check --database`."""
    used = used_databases(registry.all())
    named = [name for name in databases or () if name in used]
    return [*check_mysql(named), *check_payload_index(named)]


def check_deployment(**_options: Any) -> list[CheckMessage]:
    """What is fine while trying things out, and not on a server."""
    found = list(check_memory(list(used_databases(registry.all()))))
    for alias in conf.aliases():
        try:
            settings = conf.get(alias)
        except ConfigurationError:
            continue  # said above
        if settings.scheme == "amqps" and not settings.tls.get("VERIFY", True):
            text = f'MESSAGING["{alias}"]["TLS"] does not verify the broker: anybody in between can read messages.'
            hint = 'Remove "VERIFY": False, and name the authority that signed its certificate in "CA_FILE".'
            found.append(CheckWarning(text, hint=hint, id="messaging.W011"))
    return found


def check_effects(settings: conf.AliasSettings) -> Iterator[CheckMessage]:
    """Settings of an alias that are right in themselves and yet do not do what they say."""
    where = f'MESSAGING["{settings.alias}"]'
    is_encrypted = settings.scheme == "amqps" or (settings.management_url or "").startswith("https:")
    if settings.tls and not is_encrypted:
        text = f'{where}["TLS"] has no effect, because its URL starts with "{settings.scheme}://".'
        hint = 'Remove it, or write "amqps://" in the URL to have the connection encrypted.'
        yield CheckWarning(text, hint=hint, id="messaging.W003")
    if settings.management_url and settings.scheme == "database":
        text = f'{where}["MANAGEMENT_URL"] has no effect, because its URL starts with "database://".'
        yield CheckWarning(text, hint="Remove it: the embedded broker has no such API.", id="messaging.W003")
    if settings.scheme == "database" and (settings.username or settings.password or settings.secrets):
        text = f'{where}["USER"] and ["PASSWORD"] have no effect, because its URL starts with "database://".'
        yield CheckWarning(text, hint="Remove them: the embedded broker needs none.", id="messaging.W003")
    for key, source in settings.secrets.items() if settings.scheme != "database" else ():
        read = partial(conf.read_secret, source, f'{where}["{key}"]')
        yield from _check_read(read, ", if it connects to the broker")
    for key in ("CA_FILE", "CERT_FILE", "KEY_FILE"):
        path = settings.tls.get(key) if is_encrypted else None
        if path is not None and not os.access(path, os.R_OK):
            yield _unreadable(f'{where}["TLS"]["{key}"] cannot be read.', "the path")


def _check_read(read: Callable[[], object], condition: str = "") -> Iterator[CheckMessage]:
    """Whether a secret can be read here, which matters to this user on a condition."""
    try:
        read()
    except BrokerUnavailable as error:
        yield _unreadable(str(error), "its name", condition)


def _unreadable(text: str, what: str, condition: str = "") -> CheckMessage:
    hint = f"Correct {what}, or give this user the permission to read it{condition}."
    return CheckWarning(text, hint=hint, id="messaging.W004")


def check_traces(alias: str, options: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Traces that are asked for and cannot be made; by default they are made where they can be."""
    try:
        is_missing = find_spec("opentelemetry.trace") is None
    except ModuleNotFoundError:
        is_missing = True
    if options.get("TRACES") and is_missing:
        text = f'MESSAGING["{alias}"]["TRACES"] has no effect, because OpenTelemetry is not installed.'
        hint = 'Install this package with its extra "opentelemetry", or remove the setting.'
        yield CheckWarning(text, hint=hint, id="messaging.W018")


def check_middleware(settings: conf.AliasSettings) -> Iterator[CheckMessage]:
    """What `MIDDLEWARE` and `PUBLISH_MIDDLEWARE` name and cannot be put around anything; each factory is called."""
    named = {"MIDDLEWARE": settings.middleware, "PUBLISH_MIDDLEWARE": settings.publish_middleware}
    for key, path in ((key, path) for key, paths in named.items() for path in paths):
        where = f'MESSAGING["{settings.alias}"]["{key}"] names "{path}", which'
        try:
            factory = middleware.load(path)
        except ConfigurationError as error:
            hint = "Correct the path, or what keeps its module from being imported."
            yield Error(f"{where} {error}", hint=hint, id="messaging.E018")
            continue
        try:
            middleware.put_around(factory, lambda _: None, is_async=False)
        except ConfigurationError as error:
            hint = "It takes get_outcome and returns a function that takes the message, like Django's own middleware."
            yield Error(f"{where} {error}", hint=hint, id="messaging.E019")


def check_reports() -> Iterator[CheckMessage]:
    """Passwords in URLs that Django's error reports would show, because the site has a filter of its own."""
    name = site.DEFAULT_EXCEPTION_REPORTER_FILTER
    try:
        is_ours = issubclass(import_string(name), reports.ReporterFilter)
    except (ImportError, TypeError):
        is_ours = False
    if not is_ours and reports.are_told():
        yield CheckWarning(
            "A URL in MESSAGING holds a password, which Django's error reports show with all settings: "
            f'DEFAULT_EXCEPTION_REPORTER_FILTER is "{name}".',
            hint='Have it derive from messaging.reports.ReporterFilter, or move the password from "URL" to "PASSWORD".',
            id="messaging.W012",
        )


def check_console() -> Iterator[CheckMessage]:
    """The problems of `MESSAGING_CONSOLE`."""
    wrong = [_error(problem) for problem in problems.of_console(conf.read_console())]
    yield from wrong
    if wrong:
        return
    console = conf.console()
    name = console.redact
    if name is not None:
        hint = "Until this is corrected, the admin withholds every payload, header and error."
        try:
            if not callable(import_string(name)):
                yield Error('MESSAGING_CONSOLE["REDACT"] is not a function.', hint=hint, id="messaging.E014")
        except Exception as error:  # noqa: BLE001  whatever the site's own module raises
            text = f'MESSAGING_CONSOLE["REDACT"] cannot be imported: {type(error).__name__}: {error}'
            yield Error(text, hint=hint, id="messaging.E014")
    yield from _check_told(console)
    vendor = connections[router.db_for_write(ProcessedMessage)].vendor
    if console.payload_search and vendor != "postgresql":
        text = 'MESSAGING_CONSOLE["PAYLOAD_SEARCH"] has no effect: messages are not in PostgreSQL.'
        yield CheckWarning(text, hint="Remove it.", id="messaging.W013")


def _check_told(console: conf.ConsoleSettings) -> Iterator[CheckMessage]:
    """What keeps alerts, and the details of health, from those whom the settings name."""
    where = 'MESSAGING_CONSOLE["ALERTS"]'
    name = console.alerts.get("call")
    if name is not None:
        hint = "Until this is corrected, the function is not told of any alert."
        try:
            if not callable(import_string(name)):
                yield Error(f'{where}["call"] is not a function.', hint=hint, id="messaging.E015")
        except Exception as error:  # noqa: BLE001  whatever the site's own module raises
            text = f'{where}["call"] cannot be imported: {type(error).__name__}: {error}'
            yield Error(text, hint=hint, id="messaging.E015")
    sources = [(f'{where}["{kind}"]', one) for kind in ("slack", "webhooks") for one in console.alerts.get(kind) or ()]
    sources.append(('MESSAGING_CONSOLE["HEALTH_TOKEN"]', console.health_token))
    for place, source in sources:
        if isinstance(source, Mapping):
            yield from _check_read(partial(conf.read_secret, source, place))


def check_metrics() -> Iterator[CheckMessage]:
    """The problems of `MESSAGING_METRICS`, and of what it needs."""
    configured = conf.read_metrics()
    wrong = [_error(problem) for problem in problems.of_metrics(configured)]
    yield from wrong
    if wrong or configured is None:
        return
    from messaging.metrics import exposition  # where metrics are asked for

    try:
        exposition.require()
    except ImportError as error:
        yield Error("MESSAGING_METRICS is set, but metrics cannot be counted.", hint=str(error), id="messaging.E017")
    yield from _check_read(conf.metrics_token, ", if it serves metrics")


def check_copies(settings: conf.AliasSettings) -> Iterator[CheckMessage]:
    """Queues of which a cluster has no copy."""
    for name, options in settings.queues.items() if len(settings.hosts) > 1 else ():
        if options.type == "classic" and options.declare:
            yield CheckWarning(
                f'MESSAGING["{settings.alias}"]["QUEUES"]["{name}"] is a classic queue, and the URL names several '
                "hosts: while the node of the queue is away, events that other queues take too can pass it by.",
                hint='Remove "type"; once the queue is empty, delete it, and run `manage.py topology`.',
                id="messaging.W015",
            )


def check_queues(alias: str, handlers: list[Handler]) -> Iterator[CheckMessage]:
    """Queues of `QUEUES` that nobody consumes, and that look like a misspelt name of one that somebody does."""
    named, consumed = conf.get(alias).queues, {handler.queue for handler in handlers}
    for name in sorted(named.keys() - consumed):
        near = get_close_matches(name, consumed - named.keys(), n=1, cutoff=0.8)
        if near and near[0] != living_queue(name):
            yield CheckWarning(
                f'MESSAGING["{alias}"]["QUEUES"] names "{name}", which has no handler: messages would gather there.',
                hint=f'Did you mean "{near[0]}"?',
                id="messaging.W005",
            )


def check_handlers(handlers: list[Handler], aliases: list[str]) -> Iterator[CheckMessage]:
    """The problems of registered functions."""
    for handler in handlers:
        yield from _check_handler(handler, aliases)
    for first, second in combinations(handlers, 2):
        if (first.using, first.queue) == (second.using, second.queue):
            yield from _check_overlap(first, second)


def _check_handler(handler: Handler, aliases: list[str]) -> Iterator[CheckMessage]:
    def error(identity: str, text: str, hint: str) -> Error:
        return Error(f"The handler {handler.name} {text}", hint=hint, obj=handler.name, id=identity)

    databases = list(connections)
    if is_generator(handler.function):
        text = "is a generator function: calling it would run nothing of its body."
        hint = "Remove the `yield`, or move it into a function that the handler calls."
        yield error("messaging.E020", text, hint)
    if handler.using not in aliases:
        text = f'uses the alias "{shown(handler.using)}", which MESSAGING does not have.'
        yield error("messaging.E021", text, suggest(handler.using, aliases))
    if handler.database not in databases:
        text = f'uses the database "{shown(handler.database)}", which DATABASES does not have.'
        yield error("messaging.E022", text, suggest(handler.database, databases))
    elif handler.using in aliases and handler.database not in _served_databases(handler.using):
        text = f'uses the database "{handler.database}", whose outbox no relay serves: its retries would never be sent.'
        hint = f'Add "{handler.database}" to MESSAGING["{handler.using}"]["DATABASES"].'
        yield error("messaging.E024", text, hint)


def _check_overlap(first: Handler, second: Handler) -> Iterator[CheckMessage]:
    ours, theirs = first.routing_keys or ("#",), second.routing_keys or ("#",)
    both = next(((one, other) for one in ours for other in theirs if patterns_overlap(one, other)), None)
    if both is not None:
        yield Error(
            f'Two handlers of the queue "{first.queue}" can both match a message: '
            f'{first.name} ("{both[0]}") and {second.name} ("{both[1]}").',
            hint="Give them patterns that no routing key matches both of, or a queue each.",
            obj=second.name,
            id="messaging.E023",
        )


def _error(problem: Problem) -> Error:
    return Error(problem.text, hint=problem.hint, id=f"messaging.{problem.id}")


def _served_databases(alias: str) -> Sequence[str]:
    """The outboxes that an alias's relays serve; all of them where its settings cannot be read."""
    try:
        return conf.get(alias).databases
    except ConfigurationError:
        return list(connections)
