"""What one process holds of a queue: which items run together, and when that is worth looking at."""

from __future__ import annotations

from messaging.consuming.backlog import Backlog, Item, Line
from messaging.handlers import Handler
from tests.deliveries import Parcel


def handler(batch: int | None) -> Handler:
    return Handler(print, "many", (), "default", "default", True, None, None, None, batch)


THREE, OTHER, SINGLE = handler(3), handler(3), handler(None)


def item(handler: Handler = THREE, *, redelivered: bool = False) -> Item:
    return Item(Parcel("many", redelivered=redelivered), handler, is_dead=False)


def test_a_gathering_batch_is_news_when_it_begins_and_when_it_is_full() -> None:
    line = Line()
    assert [line.append(item()) for _ in range(7)] == [True, False, True, False, False, True, False]
    assert line.append(item(SINGLE))


def test_it_is_full_with_as_many_as_may_run_together_whatever_lies_between() -> None:
    line = Line()
    items = [item(), item(OTHER), item(SINGLE), item(), item(redelivered=True), item()]
    for one in items[:-1]:
        line.append(one)
        assert not line.is_full
    line.append(items[-1])
    assert line.is_full
    assert line.take() == [items[0], items[3], items[5]]
    assert not line.is_full, "one of another handler's batch"
    assert [line.take(), line.take(), line.take()] == [[items[1]], [items[2]], [items[4]]]


def test_what_is_removed_or_put_back_is_counted() -> None:
    line = Line()
    items = [item() for _ in range(4)]
    for one in items:
        line.append(one)
    assert line.remove(lambda one: one in items[:2]) == items[:2]
    assert not line.is_full
    line.append_left(items[0])
    assert line.is_full
    assert line.take() == [items[0], items[2], items[3]]
    assert len(line) == 0


def test_what_the_broker_may_soon_give_up_comes_first_and_need_not_be_alone() -> None:
    worn = Parcel("many", redelivered=True)
    backlog = Backlog(lambda _: SINGLE, is_near_limit=lambda delivery: delivery is worn)
    parcels = [Parcel("many"), Parcel("many", redelivered=True)]
    for parcel in (*parcels, worn):
        backlog.put(parcel)
    jobs = [backlog.take() for _ in range(2)]
    assert [job and job.head.delivery for job in jobs] == [worn, parcels[0]]
    assert not any(job and job.is_alone for job in jobs)


def test_what_the_broker_may_soon_give_up_comes_before_other_queues_the_longest_waiting_first() -> None:
    backlog = Backlog(lambda _: SINGLE, is_near_limit=lambda delivery: delivery.queue == "long")
    others, worn = [Parcel("many") for _ in range(2)], [Parcel("long", redelivered=True) for _ in range(3)]
    for parcel in (*others, *worn):
        backlog.put(parcel)
    assert backlog.give_back(lambda delivery: delivery is worn[1]) == 1
    jobs = [backlog.take() for _ in range(4)]
    assert [job and job.head.delivery for job in jobs] == [worn[0], worn[2], *others]
    assert backlog.waiting == 0


def test_what_the_broker_may_soon_give_up_waits_neither_for_a_suspect_nor_twice_before_the_others() -> None:
    backlog = Backlog(lambda _: SINGLE, is_near_limit=lambda delivery: delivery.queue == "long")
    suspect, other, worn = Parcel("many", redelivered=True), Parcel("many"), Parcel("long", redelivered=True)
    backlog.put(suspect)
    first = backlog.take()
    assert first is not None
    assert first.is_alone
    backlog.put(other)
    backlog.put(worn)
    second = backlog.take()
    assert second is not None
    assert second.head.delivery is worn
    for job in (first, second):
        backlog.done(job)
    backlog.put_back(second.items)
    assert [job and job.head.delivery for job in (backlog.take(), backlog.take())] == [other, worn]


def test_a_queue_is_fresh_once_it_delivers_what_is_not_nearly_given_up() -> None:
    backlog = Backlog(lambda _: SINGLE, is_near_limit=lambda delivery: delivery.queue == "long")
    assert backlog.fresh == set()
    backlog.put(Parcel("many", redelivered=True))
    backlog.put(Parcel("long", redelivered=True))
    assert backlog.fresh == {"many"}
    backlog.put(Parcel("long"))
    assert backlog.fresh == {"many", "long"}
    backlog.put(Parcel("long", redelivered=True))
    assert backlog.fresh == {"many"}
