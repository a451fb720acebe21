"""Counting that stays cheap at ten million rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.utils.functional import cached_property

from messaging.monitoring.snapshot import MOST

if TYPE_CHECKING:
    Base = Paginator[Any]
else:
    Base = Paginator

LIMIT = MOST  # the same number on every page


class Bounded(int):
    """A count that stopped at `LIMIT`: it prints as "10,000+"."""

    def __str__(self) -> str:
        return f"{int(self):,}+"

    __repr__ = __str__


def bounded(count: int) -> int:
    """A count as it is shown, of something that was counted up to one more than `LIMIT`."""
    return Bounded(LIMIT) if count > LIMIT else count


def bounded_count(rows: QuerySet[Any], *order: str) -> int:
    """How many rows there are, looking at no more than `LIMIT` of them, in that order if one is given."""
    return bounded(rows.order_by(*order).values("pk")[: LIMIT + 1].count())


class BoundedPaginator(Base):
    """Pages over the first `LIMIT` rows; the list links to what is older."""

    @cached_property
    def count(self) -> int:
        """The number of rows, up to `LIMIT`."""
        rows = self.object_list
        if not isinstance(rows, QuerySet):
            return len(rows)
        by_state = rows.query.order_by if "-state" in rows.query.order_by else ()
        return bounded_count(rows, *by_state)  # type: ignore[arg-type]

    @property
    def is_bounded(self) -> bool:
        """Whether there are more rows than it counts."""
        return isinstance(self.count, Bounded)
