"""What the newest Django deprecates is not used, and that is found with an older Django too.

`USES` has each place where Django 6.1 warns of what will be removed, with what a use of it looks like in code or in a
template. With that Django the list is compared with its source, so that nothing new is left out of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import django
import pytest

from tests.site import ROOT

NEWEST = (6, 1)
_MAIL = r"django\.core(\.| import )mail|AdminEmailHandler|EMAIL_\w+ ="
_OURS = ("messaging", "project", "tests", "tools", "benchmarks", "templates")
USES = {
    "conf.__init__.LazySettings.__getattr__": r"settings\.EMAIL_|BLANK_CHOICE_DASH",
    "conf.__init__.LazySettings.__setattr__": r"settings\.EMAIL_",
    "conf.__init__.Settings.__init__": r"^(EMAIL_|USE_BLANK_CHOICE_DASH|URLIZE_ASSUME_HTTPS)",
    "conf.__init__.UserSettingsHolder.__setattr__": r"settings\.(EMAIL_|USE_BLANK_CHOICE_DASH|URLIZE_ASSUME_HTTPS)",
    "contrib.admin.options.Action.__getitem__": r"get_actions\(\w+\)\[[^]]+\]\[|_get_base_actions",
    "contrib.admin.options.Action.__iter__": r" in \w+\.get_actions\(\w+\)\.values\(\)",
    "contrib.admin.options.ModelAdmin.__init_subclass__": r"list_select_related = True",
    "contrib.admin.options.ModelAdmin._get_action_choices_with_action_location": r"def get_action_choices\(",
    "contrib.admin.options.ModelAdmin._get_actions_with_action_location": (
        r"def get_actions\((?!.*(action_location|\*\*))"
    ),
    "contrib.admin.options.ModelAdmin.get_changelist_instance": r"def get_list_select_related",
    "contrib.postgres.aggregates.general.BitAnd.__init__": r"contrib\.postgres\.aggregates",
    "contrib.postgres.aggregates.general.BitOr.__init__": r"contrib\.postgres\.aggregates",
    "contrib.postgres.aggregates.general.BitXor.__init__": r"contrib\.postgres\.aggregates",
    "contrib.postgres.aggregates.general.StringAgg.__init__": r"contrib\.postgres\.aggregates",
    "contrib.postgres.aggregates.mixins.OrderableAggMixin.__init_subclass__": r"OrderableAggMixin",
    "core.mail.__init__.__getattr__": _MAIL,
    "core.mail.__init__._send_server_message": _MAIL,
    "core.mail.__init__.get_connection": _MAIL,
    "core.mail.__init__.mail_admins": _MAIL,
    "core.mail.__init__.mail_managers": _MAIL,
    "core.mail.__init__.send_mail": _MAIL,
    "core.mail.__init__.send_mass_mail": _MAIL,
    "core.mail.backends.base.BaseEmailBackend.__getattr__": _MAIL,
    "core.mail.backends.base.BaseEmailBackend.__init__": _MAIL,
    "core.mail.backends.smtp.EmailBackend.__init__": _MAIL,
    "core.mail.deprecation.warn_about_default_mailers_if_needed": _MAIL,
    "core.mail.message.EmailMessage.__init__": _MAIL,
    "core.mail.message.EmailMessage.attach": _MAIL,
    "core.mail.message.EmailMessage.connection": _MAIL,
    "core.mail.message.EmailMessage.send": _MAIL,
    "core.mail.message.EmailMultiAlternatives.__init__": _MAIL,
    "core.mail.message.forbid_multi_line_headers": _MAIL,
    "core.mail.message.sanitize_address": _MAIL,
    "core.paginator.BasePaginator.__init__": r"orphans=",
    "core.signing.base64_hmac": r"base64_hmac\(",
    "db.backends.base.creation.BaseDatabaseCreation.create_test_db": r"create_test_db\(.*serialize",
    "db.models.fields.__init__.Field.__init_subclass__": r"def get_placeholder\(",
    "db.models.fields.json.JSONExact.process_rhs": r"(headers|body|scratch)=None",
    "db.models.query.QuerySet._values": r"values_list\(flat=True\)",
    "db.models.query.QuerySet.select_related": r"select_related\(\)",
    "db.models.query.QuerySet.values_list": r"values_list\(flat=True\)",
    "db.models.query._get_from_db": r"def from_db\((?!.*(fetch_mode|\*\*))",
    "db.models.sql.compiler.SQLCompiler.quote_name_unless_alias": r"quote_name_unless_alias",
    "db.models.sql.query.Query.check_alias": r"(annotate|alias)\(\*\*\{[^}]*%",
    "db.transaction.savepoint": r"transaction\.savepoint\(",
    "template.base.Parser.parse": r"\{\{[^}]*\w\.\.\w",
    "utils.crypto.salted_hmac": r"salted_hmac\(",
    "utils.html.Urlizer.handle_word": r"urlize",
    "utils.log.AdminEmailHandler.__init__": _MAIL,
}


def sources() -> Iterator[Path]:
    """Our code and templates, but for this list."""
    for folder in _OURS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".html", ".txt"} and path != Path(__file__).resolve():
                yield path


def warned_of(tree: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
    """The functions and methods of a module that pass a warning about what will be removed to some function."""
    for node in ast.iter_child_nodes(tree):
        is_named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inside = (*names, node.name) if is_named else names
        if isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(value, ast.Name) and value.id.startswith("RemovedIn") for value in given):
                yield ".".join(inside)
        yield from warned_of(node, inside)


# These keep mail from being sent, or send it as each Django has it: nothing deprecated, but of the same module.
KEPT_MAIL = {
    "messaging/monitoring/telling.py",
    "messaging/processing/rehearsing.py",
    "tests/acceptance/test_rehearsals.py",
    "tests/docs/test_from_celery.py",
    "tests/monitoring/test_alerts.py",
    "tests/processing/test_rehearsing.py",
    "tools/site_settings.py",
}


def test_nothing_of_ours_uses_what_the_newest_django_deprecates() -> None:
    patterns = [re.compile(pattern, re.MULTILINE) for pattern in sorted(set(USES.values()))]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in sources()
        for text in [path.read_text()]
        for pattern in patterns
        for match in pattern.finditer(text)
        if pattern.pattern != _MAIL or path.relative_to(ROOT).as_posix() not in KEPT_MAIL
    ]
    assert found == []


def test_the_list_is_what_that_django_warns_of() -> None:
    if django.VERSION[:2] < NEWEST:
        pytest.skip(f"needs Django {NEWEST[0]}.{NEWEST[1]}, whose deprecations the list has")
    assert django.VERSION[:2] == NEWEST, "add what this one deprecates to USES"
    root = Path(django.__file__).parent
    found: set[str] = set()
    for path in root.rglob("*.py"):
        if "RemovedIn" in (text := path.read_text()):
            found |= set(warned_of(ast.parse(text), path.relative_to(root).with_suffix("").parts))
    assert found == set(USES)


@pytest.mark.parametrize(
    "place, use",
    [
        ("db.transaction.savepoint", "transaction.savepoint()"),
        ("core.mail.__init__.send_mail", "from django.core import mail"),
        ("contrib.admin.options.ModelAdmin._get_actions_with_action_location", "def get_actions(self, request):"),
        ("db.models.query.QuerySet.select_related", "rows.select_related()"),
    ],
)
def test_a_use_is_noticed(place: str, use: str) -> None:
    assert re.search(USES[place], use, re.MULTILINE)
