"""A scrape, and what it says."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one scrape.

    Args:
        text: as it was served.
        parse: reads it.
    """

    def __init__(self, text: str, parse: Callable[[str], Any] = text_string_to_metric_families) -> None:
        self.samples = [sample for family in parse(text) for sample in family.samples]

    @classmethod
    def of(cls, url: str, token: str = "") -> Scrape:
        """Ask for it."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return cls(answer.read().decode())

    @property
    def labels(self) -> Mapping[str, set[str]]:
        """The names of the labels of each sample."""
        found: dict[str, set[str]] = {}
        for sample in self.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        return found

    def sum(self, name: str, **labels: str) -> float:
        """The samples of a name together; those with these labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def value(self, name: str, **labels: str) -> float:
        """The one sample of exactly these labels."""
        [found] = [sample.value for sample in self.samples if sample.name == name and sample.labels == labels]
        return float(found)
