"""`manage.py asyncapi`: writes what this site publishes and handles, or compares that with an earlier document."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from messaging import conf, topology
from messaging.contracts.asyncapi import Site, document
from messaging.contracts.compatibility import Change, changes
from messaging.contracts.events import conflicts, events
from messaging.exceptions import ConfigurationError
from messaging.handlers import registry
from messaging.management.base import MessagingCommand

UNREADABLE = 2  # exit status

STATUS = """exit status:
  0  written; with --check, nothing breaks anybody
  1  it cannot be written; with --check, something breaks those on the other side
  2  the earlier document cannot be read
"""


class Command(MessagingCommand):
    """Writes one document for all aliases."""

    help = (
        "Write what this site publishes (its events) and handles as an AsyncAPI 3.0 document, without\n"
        "credentials. --check compares with an earlier document instead, and tells what breaks whom."
    )
    epilog = STATUS

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command line."""
        parser.add_argument("--output", metavar="FILE", help="write into this file instead of the terminal")
        parser.add_argument("--format", choices=("json", "yaml"), default="json", help="json (default) or yaml")
        parser.add_argument("--title", help="the document's title; default: the name of the site's URL module")
        parser.add_argument("--release", help='the document\'s version; default: RELEASE of MESSAGING_CONSOLE, or "0"')
        parser.add_argument("--check", metavar="BASELINE", help="compare with an earlier document, in either format")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write or compare."""
        try:
            now = self._document(options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if options["check"]:
            self._check(now, Path(options["check"]))
            return
        text = _written(now, options["format"])
        if not options["output"]:
            self.stdout.write(text, ending="")
            return
        try:
            Path(options["output"]).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{options['output']} cannot be written: {error.strerror}.") from error

    def _document(self, options: dict[str, Any]) -> dict[str, Any]:
        registry.discover()
        events.discover()
        aliases = sorted(conf.aliases())
        for first, second in conflicts(events.all(), {alias: conf.get(alias).exchange for alias in aliases}):
            raise ConfigurationError(
                f"Two events have the same exchange and routing key, but different types: {first!r} and {second!r}."
            )
        sites = [
            Site(conf.get(alias), topology.build(alias).queues, registry.all(alias), events.all(alias))
            for alias in aliases
        ]
        title = options["title"] or settings.ROOT_URLCONF.partition(".")[0]
        return document(sites, title=title, version=options["release"] or conf.console().release or "0")

    def _check(self, now: dict[str, Any], baseline: Path) -> None:
        try:
            found = changes(_read(baseline), now)
        except ConfigurationError as error:
            raise CommandError(f"{baseline}: {error}", returncode=UNREADABLE) from error
        breaking = [change for change in found if change.is_breaking]
        self._tell("Breaking", breaking, self.style.ERROR)
        self._tell("Compatible", [change for change in found if not change.is_breaking], self.style.SUCCESS)
        if not found:
            self.stdout.write(self.style.SUCCESS("Nothing has changed."))
        if breaking:
            raise SystemExit(1)

    def _tell(self, heading: str, found: list[Change], style: Any) -> None:
        if found:
            self.stdout.write(style(f"{heading}:"))
        for change in found:
            self.stdout.write(f"  {change}")


def _written(found: dict[str, Any], form: str) -> str:
    if form == "json":
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    apart = json.loads(json.dumps(found))  # what is there twice would be written as a YAML anchor
    text: str = _yaml().safe_dump(apart, sort_keys=False, allow_unicode=True, width=120)
    return text


def _read(baseline: Path) -> Any:
    """An earlier document. Raises ConfigurationError."""
    try:
        text = baseline.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"It cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}."
        ) from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if baseline.suffix not in (".yaml", ".yml"):
            raise ConfigurationError(f"It is not JSON: {error}.") from error
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError("It is not YAML.") from error


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise CommandError("YAML needs PyYAML, which is not installed; JSON needs nothing.") from None
    return yaml
