"""What docs/deploy/ ships, as its readers see it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.docs.blocks import DOCS

DEPLOY = DOCS / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").iterdir())


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def resources() -> Iterator[dict[str, Any]]:
    """Everything that the manifests make."""
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            yield from documents(path)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The pods of the manifests, by the kind of process in them."""
    for resource in resources():
        spec = resource.get("spec", {})
        spec = spec.get("jobTemplate", {"spec": spec})["spec"]
        if "template" in spec:
            yield spec["template"]["metadata"]["labels"]["process"], spec["template"]["spec"]


def compose() -> dict[str, Any]:
    """The compose file, its anchors resolved."""
    (document,) = documents(DEPLOY / "compose.yaml")
    return document


def manage_commands(words: list[str]) -> list[list[str]]:
    """The `manage.py` commands in a command line, which may be a line for a shell."""
    if words[:2] == ["sh", "-c"]:
        return [found for part in words[2].split("&&") for found in manage_commands(shlex.split(part))]
    return [words[words.index("manage.py") + 1 :]] if "manage.py" in words else []


def seconds(text: str) -> float:
    """The seconds of a duration such as 45s."""
    assert text.endswith("s"), text
    return float(text[:-1])
