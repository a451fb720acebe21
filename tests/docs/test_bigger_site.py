"""*In a bigger site* names the versions that the hosts of the tests have."""

from __future__ import annotations

from packaging.requirements import Requirement

from tests.docs.blocks import DOCS, prose
from tests.site import ROOT

PAGE = DOCS / "how-to" / "bigger-site.md"
NAMES = {"wagtail": "Wagtail", "psycopg2-binary": "psycopg2", "psycopg": "psycopg"}
UNNAMED = {"pika", "factory-boy"}


def test_it_names_the_versions_that_are_pinned() -> None:
    said = prose(PAGE)
    lists = sorted((ROOT / "tests" / "hosts").glob("requirements-*.txt"))
    lines = {line for path in lists for line in path.read_text().splitlines() if not line.startswith("#")}
    assert len(lists) == 5
    for requirement in map(Requirement, sorted(lines)):
        ((_, version),) = ((one.operator, one.version) for one in requirement.specifier)
        name = NAMES.get(requirement.name, requirement.name)
        if name == "Django":
            assert f"Django\n{version.rpartition('.')[0]}" in said or f"Django {version.rpartition('.')[0]}" in said
        elif name not in UNNAMED:
            assert f"{name} {version}" in said, requirement
