"""A message over which connections are lost must not keep others waiting; one that bad luck hits must not fail."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from pytest_django import Settings

from messaging.backends.base import Fate, SendOutcome
from messaging.message import Message
from messaging.models import PublishedMessage
from messaging.publishing.publisher import publish, publish_many
from messaging.relaying.leases import Held, Leases
from messaging.relaying.verdicts import OFTEN, Judge, Proof
from tests.options import set_options
from tests.relays import Desk, relaying, state_is, states
from tests.waiting import wait_until
from tools.proxy import Proxy

rows = PublishedMessage.objects
Out = PublishedMessage.State
POISON = b"over this body"
PUBLISH = b"\x00\x3c\x00\x28"  # how each publish begins: class and method


@pytest.fixture
def proxy(desk: Desk, settings: Settings) -> Iterator[Proxy]:
    """Between the relays and the broker."""
    url = urlsplit(settings.MESSAGING["default"]["URL"])
    with Proxy(url.hostname or "", url.port or 5672) as proxy:
        through = f"{url.username}:{url.password}@127.0.0.1:{proxy.port}"
        set_options(settings, URL=urlunsplit(url._replace(netloc=through)))
        yield proxy


def many(queue: str, count: int) -> list[PublishedMessage]:
    return publish_many([Message(queue, str(number), queue=queue) for number in range(count)])


def assert_none_spent() -> None:
    assert not rows.exclude(state=Out.PUBLISHED).exclude(state=Out.PENDING, attempts=0, error="").exists()


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("relays", [1, 2])
def test_a_message_over_which_connections_are_lost_ends_failed_alone(desk: Desk, proxy: Proxy, relays: int) -> None:
    queue, proxy.poison = desk.queue("work"), POISON
    many(queue, 100)
    culprit = publish(queue, POISON, queue=queue)
    many(queue, 100)
    with relaying(relays):
        wait_until(lambda: states() == {Out.PUBLISHED: 200, Out.FAILED: 1}, what="every row at its end")
    culprit.refresh_from_db()
    assert culprit.state == Out.FAILED
    assert culprit.error.startswith(f"Each connection is lost over it: {OFTEN} times it was sent alone")
    assert culprit.attempts == 1
    assert {int(body) for body in desk.bodies(queue)} == set(range(100))


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_others_are_sent_while_a_message_is_in_doubt(desk: Desk, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging.relaying.verdicts.Doubts.lost", _never_to_blame)
    queue, proxy.poison = desk.queue("work"), POISON
    culprit = publish(queue, POISON, queue=queue)
    with relaying() as (relay,):
        lost = relay._judge.doubts._lost
        wait_until(lambda: OFTEN in list(lost.values()), what="the culprit in doubt, before the others can be as well")
        many(queue, 100)
        wait_until(lambda: states().get(Out.PUBLISHED) == 100, what="all others published")
        wait_until(lambda: relay._judge.doubts._lost_alone, what="the culprit sent alone")
        many(queue, 100)
        wait_until(lambda: states().get(Out.PUBLISHED) == 200, what="those that came later as well")
        culprit.refresh_from_db()
        assert (culprit.state, culprit.attempts) == (Out.PENDING, 0)
        monkeypatch.undo()
        wait_until(state_is(culprit, Out.FAILED), what="the culprit failed")


def _never_to_blame(self: object, held: Held) -> bool:
    from messaging.relaying.verdicts import Doubts

    assert isinstance(self, Doubts)
    counts = self._lost_alone if self._waiting.is_alone(held) else self._lost
    counts[held.key] += 1
    return False


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("relays", [1, 2])
def test_a_network_that_carries_nothing_fails_nothing(desk: Desk, proxy: Proxy, relays: int) -> None:
    queue, proxy.poison = desk.queue("work"), PUBLISH
    many(queue, 100)
    with relaying(relays):
        begun = proxy.accepted
        wait_until(lambda: proxy.accepted >= begun + 40 * relays, what="many connections lost")
        assert_none_spent()
        proxy.heal()
        wait_until(lambda: states() == {Out.PUBLISHED: 100}, what="every row published")


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("relays", [1, 2])
@pytest.mark.parametrize("longest", [0.03, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_network_that_cuts_each_connection_fails_nothing(
    desk: Desk, proxy: Proxy, relays: int, longest: float
) -> None:
    queue, dice = desk.queue("work"), random.Random(7)
    with relaying(relays):
        for number in range(60):
            if number % (2 * OFTEN - 1) == 0:  # so that none is lost as often as one that is to blame
                wait_until(lambda: Out.PENDING not in states(), what="what was sent so far published")
            many(queue, 10)
            time.sleep(dice.uniform(0, longest))  # this is the fault, not a wait for anything
            proxy.reset()
        wait_until(lambda: states() == {Out.PUBLISHED: 600}, what="every row published")
    assert_none_spent()


@pytest.mark.broker
@pytest.mark.django_db(transaction=True)
def test_a_broker_that_restarts_ten_times_fails_nothing(desk: Desk, proxy: Proxy) -> None:
    queue = desk.queue("work")
    with relaying() as (relay,):
        for _ in range(10):
            wait_until(lambda: relay._uplink.is_open and relay._uplink._is_declared, what="a connection")
            wait_until(lambda: Out.PENDING not in states(), what="what was sent so far published")
            proxy.silent_downstream = True  # it takes them, and ends before it has confirmed any
            many(queue, 50)
            wait_until(lambda: relay._under_way, what="messages under way")
            proxy.refuses = True
            proxy.reset()
            wait_until(lambda: relay._uplink._failures, what="a try in vain")
            proxy.heal()
        wait_until(lambda: states() == {Out.PUBLISHED: 500}, what="every row published")
    assert_none_spent()


def held(leases: Leases, number: int) -> Held:
    row = PublishedMessage(id=number, message_id=f"m{number}", queue="work", body=str(number))
    return Held(leases, row)


def judged(judge: Judge, one: Held, fate: Fate) -> None:
    judge.decide(SendOutcome(str(one.row.id), fate), one)


def test_what_was_lost_too_often_is_kept_and_what_was_answered_in_between_is_not() -> None:
    judge, leases = Judge(), Leases("default", "default", "one", 15)
    first, second = held(leases, 1), held(leases, 2)
    for _ in range(OFTEN - 1):
        judged(judge, first, Fate.UNKNOWN)
        judged(judge, second, Fate.UNKNOWN)
    judged(judge, second, Fate.NACKED)
    for one in (first, second):
        judged(judge, one, Fate.UNKNOWN)
    assert judge.doubts.next_group() == [first]
    [returned] = leases._releases.values()
    assert returned == [first.row, second.row] * (OFTEN - 1) + [second.row]
    again = Held(leases, first.row)  # leased once more after it was given up, by the same relay
    assert judge.doubts.screen([again, second]) == [second]
    assert len(judge.doubts) == 1


def test_what_this_side_gave_up_is_not_held_against_a_message() -> None:
    judge, leases = Judge(), Leases("default", "default", "one", 15)
    for _ in range(10 * OFTEN):
        judged(judge, held(leases, 1), Fate.UNANSWERED)
    assert not judge.doubts


def test_a_connection_has_proven_itself_once_the_broker_has_answered_on_it() -> None:
    proof = Proof()
    proof.begin(1, [])
    proof.note(SendOutcome("1.1", Fate.UNKNOWN))
    proof.note(SendOutcome("1.2", Fate.REFUSED))  # perhaps by this side
    assert not proof.holds
    proof.note(SendOutcome("probe.3", Fate.REFUSED))
    assert proof.holds
    proof.begin(1, [])
    assert proof.holds
    proof.begin(2, ["1.4"])
    proof.note(SendOutcome("1.4", Fate.CONFIRMED))  # on the connection before
    assert not proof.holds
    proof.note(SendOutcome("1.5", Fate.CONFIRMED))
    assert proof.holds
