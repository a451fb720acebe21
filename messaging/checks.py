"""System checks: every wrong or unknown key of `MESSAGING`, and what is wrong with the handlers.

Settings: E001 to E019, and W001 to W009. Handlers: E020 to E029.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as CheckWarning
from django.db import connections

from messaging import conf, values
from messaging.exceptions import ConfigurationError
from messaging.handlers import Handler, is_generator, patterns_overlap, registry

SCHEMES = ("amqp", "amqps", "database")


@register("messaging")
def check_messaging(**_options: Any) -> list[CheckMessage]:
    """Every problem of `MESSAGING`, of the databases it uses and of the registered handlers. Never raises."""
    configured = getattr(settings, "MESSAGING", None)
    if configured is None:
        configured = {conf.DEFAULT_ALIAS: {}}
    if not isinstance(configured, Mapping) or not all(isinstance(alias, str) for alias in configured):
        hint = 'Write MESSAGING = {"default": {"URL": "amqp://user:password@host:5672/vhost"}}.'
        return [Error("MESSAGING is not a dict of aliases.", hint=hint, id="messaging.E001")]
    found: list[CheckMessage] = []
    if conf.DEFAULT_ALIAS not in configured:
        hint = 'publish() and @handler use "default" unless told otherwise.'
        found.append(CheckWarning('MESSAGING has no alias "default".', hint=hint, id="messaging.W001"))
    for alias, options in configured.items():
        found += check_alias(alias, options)
    return [*found, *check_handlers(registry.all(), list(configured)), *check_sqlite(_used_databases(configured))]


def check_alias(alias: str, options: Any) -> Iterator[CheckMessage]:
    """The problems of one alias."""
    where = f'MESSAGING["{alias}"]'
    if len(alias) > 100 or not alias:
        hint = "Choose a name of 1 to 100 characters."
        yield Error(f"{where}: the alias is empty or too long.", hint=hint, id="messaging.E002")
    if not isinstance(options, Mapping):
        hint = f'Write {where} = {{"URL": "amqp://user:password@host:5672/vhost"}}.'
        yield Error(f"{where} is not a dict.", hint=hint, id="messaging.E002")
        return
    yield from _unknown_keys(options, values.ALIAS, where, "messaging.E003")
    for key, rule in values.ALIAS.items():
        if key in options and not rule.accepts(options[key]):
            yield Error(f'{where}["{key}"] cannot be used.', hint=f"It is {rule.wanted}.", id="messaging.E004")
    if isinstance(options.get("URL"), str):
        yield from _check_url(options["URL"], where)
    for key, table, identity in (
        ("RETRY", values.RETRY, "messaging.E006"),
        ("RETENTION", values.RETENTION, "messaging.E007"),
        ("TLS", values.TLS, "messaging.E008"),
    ):
        yield from _check_table(options.get(key, {}), table, f'{where}["{key}"]', identity)
    yield from _check_queues(options.get("QUEUES", {}), where)
    yield from _check_databases(options.get("DATABASES", ("default",)), where)


def check_handlers(handlers: list[Handler], aliases: list[str]) -> Iterator[CheckMessage]:
    """The problems of registered functions."""
    for handler in handlers:
        if is_generator(handler.function):
            yield Error(
                f"The handler {handler.name} is a generator function: calling it would run nothing of its body.",
                hint="Remove the `yield`, or move it into a function that the handler calls.",
                obj=handler.name,
                id="messaging.E020",
            )
        if handler.using not in aliases:
            yield Error(
                f'The handler {handler.name} uses the alias "{handler.using}", which MESSAGING does not have.',
                hint=_suggest(handler.using, aliases),
                obj=handler.name,
                id="messaging.E021",
            )
        if handler.database not in list(connections):
            yield Error(
                f'The handler {handler.name} uses the database "{handler.database}", which DATABASES does not have.',
                hint=_suggest(handler.database, list(connections)),
                obj=handler.name,
                id="messaging.E022",
            )
        elif handler.using in aliases and handler.database not in _served_databases(handler.using):
            yield Error(
                f'The handler {handler.name} uses the database "{handler.database}", whose outbox no relay serves: '
                "its retries would never be sent.",
                hint=f'Add "{handler.database}" to MESSAGING["{handler.using}"]["DATABASES"].',
                obj=handler.name,
                id="messaging.E024",
            )
    for first, second in combinations(handlers, 2):
        if (first.using, first.queue) == (second.using, second.queue):
            yield from _check_overlap(first, second)


def check_sqlite(databases: list[str]) -> Iterator[CheckMessage]:
    """SQLite databases whose options let one slow handler lock everybody out."""
    for name in databases:
        database = connections.settings.get(name, {})
        if not str(database.get("ENGINE", "")).endswith("sqlite3"):
            continue
        options = database.get("OPTIONS") or {}
        missing = [
            what
            for what, is_there in (
                ('"transaction_mode": "IMMEDIATE"', str(options.get("transaction_mode", "")).upper() == "IMMEDIATE"),
                ('"init_command": "PRAGMA journal_mode=WAL"', "wal" in str(options.get("init_command", "")).lower()),
                ('"timeout": 20', _at_least(options.get("timeout"), 5)),
            )
            if not is_there
        ]
        if missing:
            yield CheckWarning(
                f'The SQLite database "{name}" will report "database is locked" under several processes.',
                hint=f'Add {", ".join(missing)} to DATABASES["{name}"]["OPTIONS"].',
                id="messaging.W002",
            )


def _check_url(url: str, where: str) -> Iterator[CheckMessage]:
    hint = 'It looks like "amqp://user:password@host:5672/vhost", "amqps://…" or "database://".'
    try:
        parsed = conf.parse_url(url, where)
    except ConfigurationError as error:
        yield Error(str(error), hint=hint, id="messaging.E005")
        return
    if parsed["scheme"] not in SCHEMES:
        yield Error(f'{where}["URL"] does not name a known kind of broker.', hint=hint, id="messaging.E005")
    database = parsed["vhost"] or "default"
    if parsed["scheme"] == "database" and database not in list(connections):
        text = f'{where}["URL"] names the database "{database}", which DATABASES does not have.'
        yield Error(text, hint=_suggest(database, list(connections)), id="messaging.E009")


def _check_queues(queues: Any, where: str) -> Iterator[CheckMessage]:
    if not isinstance(queues, Mapping):
        return  # said by its rule
    for name, options in queues.items():
        here = f'{where}["QUEUES"]["{name}"]'
        if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= 250:
            hint = "A queue's name has 1 to 250 bytes: 255 less those of `.dead`."
            yield Error(f"{here}: this cannot be the name of a queue.", hint=hint, id="messaging.E010")
        yield from _check_table(options, values.QUEUE, here, "messaging.E011")
        if isinstance(options, Mapping) and options.get("declare") is False and options.get("bindings"):
            text = f"{here} has bindings although it is not declared here: they would not be made."
            hint = "Remove `bindings`, or `declare: False` if the queue is yours."
            yield Error(text, hint=hint, id="messaging.E012")


def _check_databases(databases: Any, where: str) -> Iterator[CheckMessage]:
    if values.ALIAS["DATABASES"].accepts(databases):
        for name in databases:
            if name not in list(connections):
                text = f'{where}["DATABASES"] names "{name}", which DATABASES does not have.'
                yield Error(text, hint=_suggest(name, list(connections)), id="messaging.E009")


def _check_table(table: Any, rules: Mapping[str, values.Rule], where: str, identity: str) -> Iterator[CheckMessage]:
    """The problems of a dict of known keys, in any case where the settings read them so."""
    if not isinstance(table, Mapping):
        if where.count("[") > 2:  # a queue; the others are said by their rule
            yield Error(f"{where} is not a dict.", hint="Write {} for the defaults.", id=identity)
        return
    folded = table if rules is values.QUEUE or rules is values.TLS else {str(key).lower(): table[key] for key in table}
    yield from _unknown_keys(folded, rules, where, identity)
    for key, rule in rules.items():
        if key in folded and not rule.accepts(folded[key]):
            yield Error(f'{where}["{key}"] cannot be used.', hint=f"It is {rule.wanted}.", id=identity)


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


def _unknown_keys(table: Mapping[Any, Any], known: Mapping[str, Any], where: str, identity: str) -> Iterator[Error]:
    for key in table:
        if key not in known:
            yield Error(f"{where} has no key {key!r}.", hint=_suggest(str(key), list(known)), id=identity)


def _suggest(name: str, known: list[str]) -> str:
    folded = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), folded, n=1)
    return f'Did you mean "{folded[near[0]]}"?' if near else f"There is: {', '.join(sorted(known)) or 'none'}."


def _at_least(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and value >= least


def _served_databases(alias: str) -> Sequence[str]:
    """The outboxes that an alias's relays serve; all of them where its settings cannot be read."""
    try:
        return conf.get(alias).databases
    except ConfigurationError:
        return list(connections)


def _used_databases(configured: Mapping[str, Any]) -> list[str]:
    names = {handler.database for handler in registry.all()}
    for options in configured.values():
        databases = options.get("DATABASES", ["default"]) if isinstance(options, Mapping) else ()
        if values.ALIAS["DATABASES"].accepts(databases):
            names |= set(databases)
    return sorted(names)
