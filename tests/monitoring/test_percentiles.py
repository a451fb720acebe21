"""Percentiles from histograms, and what is counted into these."""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_left
from datetime import UTC, datetime, timedelta

import pytest

from messaging import publish
from messaging.handlers import Registry
from messaging.message import ReceivedMessage
from messaging.models import Counter, PublishedMessage
from messaging.models.counting import BOUNDS, RUNS, WAITS
from messaging.monitoring import counters
from messaging.monitoring.counters import HOUR, MINUTES_KEPT, Period, Point, history
from messaging.monitoring.percentiles import SHARES, percentile, total
from messaging.processing.processor import Processor
from messaging.wire.envelope import made_at, new_id
from tests.deliveries import arrived, registered, sent

NOTHING = [0] * (len(BOUNDS) + 1)


def histogram(values: list[float]) -> list[int]:
    counts = NOTHING.copy()
    for value in values:
        counts[bisect_left(BOUNDS, value)] += 1
    return counts


@pytest.mark.parametrize("median", [0.003, 0.05, 0.7, 30.0, 400.0])
@pytest.mark.parametrize("share", SHARES)
def test_a_percentile_is_right_to_within_its_step(median: float, share: float) -> None:
    chance = random.Random(7)
    values = sorted(median * math.exp(chance.gauss(0, 1)) for _ in range(20_000))
    right = values[int(share * len(values)) - 1]
    found = percentile(histogram(values), share)
    assert found is not None
    assert 1 / 1.3 < found / right < 1.3, "of smoothly spread values"
    alone = percentile(histogram([right]), share)
    assert alone is not None
    assert max(alone, BOUNDS[0]) / max(right, BOUNDS[0]) < 2.51, "and never further off than a step is long"


def test_what_is_beyond_the_scale_says_so() -> None:
    assert percentile(NOTHING, 0.5) is None
    assert percentile(histogram([1e6]), 0.5) == math.inf
    assert percentile(histogram([0.0]), 0.99) == pytest.approx(0.99 * BOUNDS[0])
    assert total([histogram([0.3]), histogram([0.3, 9])]) == histogram([0.3, 0.3, 9])
    assert total([]) == NOTHING


def test_an_id_tells_its_time() -> None:
    now = time.time()
    made = made_at(new_id())
    assert made is not None
    assert abs(made - now) < 60
    later = made_at(new_id(3600))
    assert later is not None
    assert 3540 < later - now < 3660
    for other in ("", "17", "6a1f0000-0000-4000-8000-000000000000", "x" * 14 + "7" + "x" * 21):
        assert made_at(other) is None


@pytest.mark.django_db
def test_an_id_of_what_is_scheduled_has_the_time_at_which_it_is_due() -> None:
    day = timedelta(days=1)
    for row in (publish("a", 1, delay=day), publish("a", 1, at=datetime.now(UTC) + day)):
        made = made_at(row.message_id)
        assert made is not None
        assert abs(made - time.time() - day.total_seconds()) < 60
    past = made_at(publish("a", 1, at=datetime.now(UTC) - day).message_id)
    assert past is not None
    assert abs(past - time.time()) < 60


@pytest.mark.django_db
def test_waits_and_runs_are_counted_into_their_steps() -> None:
    hour_ago = new_id(-3600)
    counters.add_processed("default", "billing", 0.25, [hour_ago])
    counters.add_processed("default", "billing", 15.0, [hour_ago, "an id without a time", ""])
    counters.write("default")
    row = Counter.objects.get()
    assert {name: getattr(row, name) for name in (*WAITS, *RUNS) if getattr(row, name) is not None} == {
        WAITS[bisect_left(BOUNDS, 3600)]: 2,
        RUNS[bisect_left(BOUNDS, 0.25)]: 1,
        RUNS[bisect_left(BOUNDS, 15.0)]: 3,
    }
    now = counters._this_minute("default")
    points, queues = history(Period(now, HOUR, 1), Period(now, HOUR, 5))
    for found in (points, queues["default", "billing"]):
        assert total([point.runs for point in found]) == histogram([0.25, 15.0, 15.0, 15.0])
        assert total([point.waits for point in found]) == histogram([3600.0, 3600.0])


@pytest.mark.django_db
def test_of_a_large_batch_some_tell_the_wait_of_their_neighbours() -> None:
    counters.add_processed(
        "default", "billing", 0.25, [new_id(-3600 if number < 250 else -60) for number in range(500)]
    )
    counters.write("default")
    row = Counter.objects.get()
    long, short = (getattr(row, WAITS[bisect_left(BOUNDS, seconds)]) for seconds in (3600.0, 60.0))
    assert abs(long - 250) <= 500 / counters.ASKED
    assert long + short == 500, "as many as there were"


@pytest.mark.django_db(transaction=True)
def test_a_first_delivery_waited_and_a_retry_only_ran() -> None:
    registry = Registry()
    fails = [True]

    def handle(message: ReceivedMessage) -> None:
        if fails.pop() if fails else False:
            raise ValueError

    registered(registry, handle, max_attempts=3)
    processor = Processor("default", "worker-1", handlers=registry)
    processor.process(arrived("bad", message_id=new_id(-60)), lambda: None)
    [retry] = [sent(row) for row in PublishedMessage.objects.all()]
    processor.process(retry, lambda: None)
    processor.process(arrived("good", message_id=new_id(-60)), lambda: None)
    counters.write("default")
    row = Counter.objects.get()
    assert (row.processed, row.retried) == (2, 1)
    assert sum(getattr(row, name) or 0 for name in RUNS) == 2
    assert sum(getattr(row, name) or 0 for name in WAITS) == 1
    assert getattr(row, WAITS[bisect_left(BOUNDS, 60.0)]) == 1


@pytest.mark.django_db
def test_hours_have_the_histograms_of_their_minutes_and_rows_of_the_release_before_none() -> None:
    old = counters._this_minute("default") - MINUTES_KEPT - 3 * HOUR
    hour, own = old - old % HOUR, {"alias": "default", "queue": "billing"}
    Counter.objects.create(minute=hour, processed=1, **own)
    Counter.objects.create(minute=hour + 1, processed=2, wait_03=2, run_20=1, **own)
    Counter.objects.create(minute=hour + 2, processed=3, wait_03=3, **own)
    counters.prune("default")
    row = Counter.objects.get()
    assert (row.length, row.processed, row.wait_03, row.run_20, row.wait_00) == (HOUR, 6, 5, 1, None)  # type: ignore[attr-defined]


def test_a_point_of_nothing_has_empty_histograms() -> None:
    assert len(Point(1).waits) == len(Point(1).runs) == len(BOUNDS) + 1 == len(WAITS) == len(RUNS)
