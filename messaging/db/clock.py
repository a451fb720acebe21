"""The database's clock, which every host shares: their own clocks may be an hour apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import functions
from django.utils import timezone

# Within these, every point in time has a name in every time zone.
_FIRST = datetime.min.replace(tzinfo=UTC) + timedelta(days=2)
_LAST = datetime.max.replace(tzinfo=UTC) - timedelta(days=2)


def in_utc(value: datetime) -> datetime:
    """A point in time in UTC; without a time zone of its own, as `USE_TZ = False` has it, it is in `TIME_ZONE`.

    `datetime.max` and `datetime.min`, which mean never and always, become the nearest that every time zone can name.
    """
    moment = value.replace(tzinfo=local_zone()) if timezone.is_naive(value) else value
    try:
        return min(max(moment.astimezone(UTC), _FIRST), _LAST)
    except (OverflowError, ValueError, OSError):  # in whichever way the platform says so
        return _FIRST if moment.year == 1 else _LAST


def as_stored(value: datetime) -> datetime:
    """A point in time as the models have it: with a time zone, or without as `USE_TZ` has it."""
    moment = in_utc(value)
    return moment if settings.USE_TZ else moment.astimezone(local_zone()).replace(tzinfo=None)


def local_zone() -> tzinfo | None:
    """`TIME_ZONE`; None for the system's own, as `TIME_ZONE = None` has it."""
    return timezone.get_default_timezone() if settings.TIME_ZONE else None


if TYPE_CHECKING:
    DateTimeField = models.DateTimeField[Any, Any]
else:  # it takes no types at run time
    DateTimeField = models.DateTimeField


class _MomentField(DateTimeField):
    """A point in time, which databases without time zones keep in UTC: theirs is the clock that it is compared with.

    Django keeps local time there without `USE_TZ`, and where a database has a `TIME_ZONE`. To migrations it is a
    `DateTimeField`.
    """

    def deconstruct(self) -> Any:
        """As Django's own field."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs

    def get_db_converters(self, connection: BaseDatabaseWrapper) -> list[Any]:
        """What reads it, where Django would read something else."""
        if connection.features.supports_timezones or connection.timezone is UTC:
            return []
        return [_read]

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        """The parameter of a statement."""
        value = value if prepared else self.get_prep_value(value)
        if isinstance(value, datetime):
            value = in_utc(value) if connection.features.supports_timezones else in_utc(value).replace(tzinfo=None)
        return connection.ops.adapt_datetimefield_value(value)


if TYPE_CHECKING:  # whose plugin knows what null does to the type
    MomentField = models.DateTimeField
else:
    MomentField = _MomentField


class Now(functions.Now):
    """The moment of the statement, in UTC whatever the session's time zone is.

    Django's own follows the session's time zone on MySQL and MariaDB, while what it stores there is UTC.
    """

    output_field: ClassVar[Any] = MomentField()

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """UTC_TIMESTAMP with microseconds."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


def read_clock(rows: models.QuerySet[Any], field: str) -> datetime:
    """The moment of a statement of its own, in UTC.

    Args:
        rows: of the database, which need not have any.
        field: a MomentField of theirs.
    """
    now, params = rows.query.get_compiler(rows.db).compile(Now())
    has_zones = connections[rows.db].features.supports_timezones
    if has_zones:  # else a driver returns local time where `USE_TZ` is off, of which one hour in a year comes twice
        now = f"{now} AT TIME ZONE 'UTC'"
    [row] = rows.raw(f"SELECT 0 AS id, {now} AS {field}", params)
    moment: datetime = getattr(row, field)
    return moment.replace(tzinfo=UTC) if has_zones else in_utc(moment)


def _read(value: datetime | None, *_: Any) -> datetime | None:
    return None if value is None else as_stored(value.replace(tzinfo=UTC))
