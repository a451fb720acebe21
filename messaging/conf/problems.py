"""What is wrong with `MESSAGING` and the settings beside it, each problem with a stable id and the way out.

The system checks report all of it; `conf.get()` refuses an alias over the first. So what passes the checks can be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.db import connections

from messaging.conf import rules as values
from messaging.conf.urls import has_credentials, parse_management_url, parse_url
from messaging.exceptions import ConfigurationError

LONGEST_ALIAS = 100  # characters; the column's
EXAMPLE = '{"URL": "amqp://user:password@host:5672/vhost"}'


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong setting.

    Attributes:
        id: of the system check, without the app's label.
        text: what is wrong and where; holds no value that may be a credential.
        hint: what to do.
    """

    id: str
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.text} {self.hint}"


def of_all(configured: Any) -> Iterator[Problem]:
    """The problem of `MESSAGING` as a whole, if any: without a dict there are no aliases to look at."""
    if not isinstance(configured, Mapping) or not all(isinstance(alias, str) for alias in configured):
        yield Problem("E001", "MESSAGING is not a dict of aliases.", f'Write MESSAGING = {{"default": {EXAMPLE}}}.')


def of_alias(alias: str, options: Any) -> Iterator[Problem]:
    """The problems of one alias."""
    where = f'MESSAGING["{shown(alias)}"]'
    if len(alias) > LONGEST_ALIAS or not values.is_text(alias, 4 * LONGEST_ALIAS):
        yield Problem("E002", f"{where} has an alias that cannot be used.", "Choose a name of 1 to 100 characters.")
    if not isinstance(options, Mapping):
        yield Problem("E002", f"{where} is not a dict.", f"Write {where} = {EXAMPLE}.")
        return
    yield from _unknown_keys(options, values.ALIAS, where, "E003")
    yield from _wrong_values(options, values.ALIAS, where, "E004")
    yield from _of_urls(options, where)
    yield from _of_table(options, "RETRY", values.RETRY, where, "E006")
    yield from _of_table(options, "RETENTION", values.RETENTION, where, "E007")
    yield from _of_tls(options.get("TLS", {}), f'{where}["TLS"]')
    yield from _of_databases(options.get("DATABASES", ()), where)
    queues = options.get("QUEUES", {})
    queues = queues if isinstance(queues, Mapping) else {}
    if len({values.name_of(name) for name in queues if isinstance(name, str)}) < sum(
        isinstance(n, str) for n in queues
    ):
        yield Problem("E010", f'{where}["QUEUES"] has a name twice, once with a line break at its end.', "Remove one.")
    for name, queue in queues.items():
        yield from _of_queue(name, queue, f'{where}["QUEUES"]["{shown(name)}"]')


def of_console(configured: Any) -> Iterator[Problem]:
    """The problems of `MESSAGING_CONSOLE`, but for those of what its texts name."""
    where = "MESSAGING_CONSOLE"
    if not isinstance(configured, Mapping):
        yield Problem("E013", f"{where} is not a dict.", f'Write {where} = {{"BANNER": "PRODUCTION"}}.')
        return
    yield from _unknown_keys(configured, values.CONSOLE, where, "E013")
    yield from _wrong_values(configured, values.CONSOLE, where, "E013")
    alerts, here = configured.get("ALERTS", {}), f'{where}["ALERTS"]'
    if isinstance(alerts, Mapping):
        yield from _unknown_keys(alerts, values.ALERTS, here, "E013")
        yield from _wrong_values(alerts, values.ALERTS, here, "E013")


def of_metrics(configured: Any) -> Iterator[Problem]:
    """The problems of `MESSAGING_METRICS`."""
    where = "MESSAGING_METRICS"
    if not isinstance(configured, Mapping | None):
        yield Problem("E016", f"{where} is not a dict.", f'Write {where} = {{"TOKEN": {{"env": "METRICS_TOKEN"}}}}.')
        return
    yield from _unknown_keys(configured or {}, values.METRICS, where, "E016")
    yield from _wrong_values(configured or {}, values.METRICS, where, "E016")


def suggest(name: Any, known: Iterable[str]) -> str:
    """A hint for a name that is not among the known ones: the nearest, or all of them."""
    folded = {one.lower(): one for one in known}
    near = get_close_matches(str(name).lower(), folded, n=1)
    if near:
        return f'Did you mean "{shown(folded[near[0]])}"?'
    return f"There is: {', '.join(sorted(map(shown, folded.values()))) or 'none'}."


def shown(name: Any) -> str:
    """A key as a message may repeat it: short, on one line, and without what may be a URL's password."""
    text = str(name).encode("unicode_escape", "replace").decode()
    return "…" if "://" in text or "@" in text else text if len(text) <= 60 else f"{text[:60]}…"


def folded(table: Mapping[Any, Any]) -> dict[str, Any]:
    """A table whose keys may be written in any case."""
    return {str(key).lower(): value for key, value in table.items()}


def _of_urls(options: Mapping[Any, Any], where: str) -> Iterator[Problem]:
    url, management_url = options.get("URL"), options.get("MANAGEMENT_URL")
    if isinstance(url, str):
        try:
            parsed = parse_url(url, where)
        except ConfigurationError as error:
            yield Problem("E005", str(error), f'It is {values.ALIAS["URL"].wanted}, or "database://".')
        else:
            for key, is_said in zip(("USER", "PASSWORD"), has_credentials(url), strict=True):
                if is_said and options.get(key) is not None:
                    text = f'{where} has "{key}", and its "URL" holds the same once more.'
                    yield Problem("E005", text, 'Remove it from "URL".')
            if parsed["scheme"] == "database":
                yield from _of_embedded(parsed["vhost"] or "default", where)
    if isinstance(management_url, str):
        try:
            parse_management_url(management_url, f'{where}["MANAGEMENT_URL"]')
        except ConfigurationError as error:
            yield Problem("E004", str(error), f"It is {values.ALIAS['MANAGEMENT_URL'].wanted}.")


def _of_embedded(database: str, where: str) -> Iterator[Problem]:
    if database in connections.settings:
        return
    if set(database) & set("@:/?#"):
        text = f'{where}["URL"] has more than the alias of a database after "database://".'
        yield Problem("E005", text, 'Write "database://" for the default database, or "database://alias".')
        return
    text = f'{where}["URL"] names the database "{shown(database)}", which DATABASES does not have.'
    yield Problem("E009", text, suggest(database, connections.settings))


def _of_databases(databases: Any, where: str) -> Iterator[Problem]:
    for name in databases if values.ALIAS["DATABASES"].accepts(databases) else ():
        if name not in connections.settings:
            text = f'{where}["DATABASES"] names "{shown(name)}", which DATABASES does not have.'
            yield Problem("E009", text, suggest(name, connections.settings))


def of_tasks(alias: str, options: Any) -> Iterator[Problem]:
    """The problems of the `OPTIONS` of a backend of `TASKS` that is ours."""
    where = f'TASKS["{shown(alias)}"]["OPTIONS"]'
    if not isinstance(options, Mapping):
        yield Problem("E050", f"{where} is not a dict.", "Write {} for the defaults.")
        return
    yield from _unknown_keys(options, values.TASKS, where, "E050")
    yield from _wrong_values(options, values.TASKS, where, "E050")
    if options.get("atomic") is False and (options.get("batch") is not None or options.get("rehearse")):
        text = f'{where} has "batch" or "rehearse", which need a transaction, together with "atomic": False.'
        yield Problem("E050", text, "Remove one of the two.")


def _of_table(
    options: Mapping[Any, Any], key: str, rules: Mapping[str, values.Rule], where: str, identity: str
) -> Iterator[Problem]:
    """The problems of a dict whose keys may be written in any case."""
    table, here = options.get(key, {}), f'{where}["{key}"]'
    if not isinstance(table, Mapping):
        return  # said by its rule
    lowered = folded(table)
    if len(lowered) < len(table):
        yield Problem(identity, f"{here} has a key twice, in different cases.", "Remove one of the two.")
    yield from _unknown_keys(lowered, rules, here, identity)
    wrong = list(_wrong_values(lowered, rules, here, identity))
    yield from wrong
    if not wrong and "initial" in lowered and lowered["initial"] > lowered.get("maximum", 3600):
        yield Problem(identity, f'{here}["initial"] is longer than its "maximum".', 'Raise "maximum" as well.')


def _of_tls(tls: Any, where: str) -> Iterator[Problem]:
    if not isinstance(tls, Mapping):
        return  # said by its rule
    yield from _unknown_keys(tls, values.TLS, where, "E008")
    yield from _wrong_values(tls, values.TLS, where, "E008")
    if tls.get("KEY_FILE") and not tls.get("CERT_FILE"):
        yield Problem("E008", f'{where} has a "KEY_FILE" without a "CERT_FILE".', 'Add "CERT_FILE", its certificate.')


def _of_queue(name: Any, options: Any, here: str) -> Iterator[Problem]:
    is_ours = not isinstance(options, Mapping) or options.get("declare") is not False
    if not values.is_name(name, values.LONGEST_QUEUE) or (is_ours and name.startswith("amq.")):
        hint = 'Queue names have 1 to 250 bytes (255 less those of ".dead") on one line; "amq.…" are the broker\'s own.'
        yield Problem("E010", f"{here}: this cannot be the name of a queue.", hint)
    if not isinstance(options, Mapping):
        yield Problem("E011", f"{here} is not a dict.", "Write {} for the defaults.")
        return
    yield from _unknown_keys(options, values.QUEUE, here, "E011")
    yield from _wrong_values(options, values.QUEUE, here, "E011")
    yield from _of_queue_type(options, here)
    if not is_ours and options.get("bindings"):
        text = f"{here} has bindings although it is not declared here: they would not be made."
        yield Problem("E012", text, "Remove `bindings`, or `declare: False` if the queue is yours.")


def _of_queue_type(options: Mapping[Any, Any], here: str) -> Iterator[Problem]:
    arguments = options.get("arguments")
    argument = arguments.get("x-queue-type") if isinstance(arguments, Mapping) else None
    rule = values.QUEUE["type"]
    if argument is None or not values.QUEUE["arguments"].accepts(arguments):
        return
    if not rule.accepts(argument) or options.get("type", argument) != argument:
        hint = f'Leave it out and write "type" instead, which is {rule.wanted}.'
        yield Problem("E011", f'{here}["arguments"]["x-queue-type"] cannot be used, or contradicts "type".', hint)


def _wrong_values(
    table: Mapping[Any, Any], rules: Mapping[str, values.Rule], where: str, identity: str
) -> Iterator[Problem]:
    for key, rule in rules.items():
        if key in table and not rule.accepts(table[key]):
            yield Problem(identity, f'{where}["{key}"] cannot be used.', f"It is {rule.wanted}.")


def _unknown_keys(
    table: Mapping[Any, Any], known: Mapping[str, values.Rule], where: str, identity: str
) -> Iterator[Problem]:
    for key in table:
        if key not in known:
            yield Problem(identity, f'{where} has no key "{shown(key)}".', suggest(key, known))
