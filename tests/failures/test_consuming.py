"""What can go wrong while messages are consumed, and must not cost any: modes 19 to 33 of docs/reliability.md."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tests.failures.deeds import HANDLERS, attempts, consume, effects, publish, send, settled, started, starts
from tests.site import Site, SiteFactory
from tests.waiting import wait_until

pytestmark = pytest.mark.broker

ON_SQLITE_TOO = ["postgres", pytest.param("sqlite", marks=pytest.mark.slow)]


@pytest.fixture(params=ON_SQLITE_TOO)
def doing(site: SiteFactory, request: pytest.FixtureRequest) -> Site:
    """A site whose handlers do what messages say."""
    return site(request.param, handlers=HANDLERS, options={"LEASE": 5})


@pytest.mark.mode(19)
def test_a_handler_that_raises_is_rolled_back_retried_after_a_pause_and_rests_as_failed(doing: Site) -> None:
    running = consume(doing, "patient")
    publish(doing, ("patient.a", "raise"))
    settled(doing, failed=1)
    assert attempts(doing) == {"raise-0": 3}
    assert effects(doing) == {}
    times = [at for at, _ in starts(doing, "raise")]
    assert len(times) == 3
    assert min(later - earlier for earlier, later in pairwise(times)) >= 0.9  # a second, less its jitter
    assert running.stop() == 0


@pytest.mark.mode(24)
def test_the_same_id_delivered_twice_at_once_has_one_effect(doing: Site) -> None:
    doing.manage("topology")
    send(doing, "work", *[(f"twin-{number // 2}", "nap") for number in range(20)])
    running = consume(doing, "work", "--processes=2")
    settled(doing, processed=10)
    assert running.stop() == 0
    doing.manage("consume", "work", "--burst")  # what was set aside goes back to the queue at a stop
    assert doing.states() == {"processed": 10}
    assert effects(doing) == {"nap": 10}
    assert attempts(doing) == {}


@pytest.mark.mode(25)
def test_the_same_id_with_another_body_is_kept_and_flagged(doing: Site) -> None:
    doing.manage("topology")
    send(doing, "work", ("same", "nothing"))
    send(doing, "work", ("same", "nothing"), order=17)
    doing.manage("consume", "work", "--burst", "--concurrency=1")
    assert doing.states() == {"processed": 1, "failed": 1}
    [(body, error)] = doing.sql("SELECT body, error FROM messaging_processedmessage WHERE state = 'failed'")
    assert body == '{"do": "nothing", "order": 17}'
    assert "used before" in error
    assert effects(doing) == {"nothing": 1}


@pytest.mark.mode(26)
@pytest.mark.parametrize("do", ["busy", "pause"])
@pytest.mark.slow
def test_a_handler_that_outlasts_the_heartbeat_has_one_effect(doing: Site, do: str) -> None:
    doing.env["MESSAGING_OPTIONS"] = json.dumps({"HEARTBEAT": 1, "LEASE": 5})
    running = consume(doing, "work")

    def keeps_its_connection(number: int) -> bool:
        before = len(starts(doing, do)), running.output.count("Connected to")
        send(doing, "work", (f"{do}-{number}", do))
        settled(doing, processed=number)
        assert effects(doing) == {do: number}
        assert attempts(doing) == {}
        return (len(starts(doing, do)), running.output.count("Connected to")) == (before[0] + 1, before[1])

    is_kept = keeps_its_connection(1)
    if do == "busy":  # one that lets nothing else run costs its connection, and nothing more; as a machine's halt does
        assert is_kept or any(map(keeps_its_connection, range(2, 6)))
    assert running.stop() == 0


@pytest.mark.mode(28)
def test_an_async_handler_that_exits_has_failed(doing: Site) -> None:
    running = consume(doing, "awaited")
    publish(doing, ("awaited.a", "exit"), ("awaited.a", "nothing"))
    settled(doing, failed=1, processed=1)
    assert attempts(doing) == {"exit-0": 2}
    assert "starts in" not in running.output
    assert running.stop() == 0


@pytest.mark.mode(29)
@pytest.mark.parametrize(
    "killers", [["os._exit", "sigkill"], pytest.param(["os._exit", "segfault", "sigkill"], marks=pytest.mark.slow)]
)
def test_a_handler_that_kills_its_process_rests_as_failed_and_its_prefetched_neighbours_are_not_blamed(
    doing: Site, killers: list[str]
) -> None:
    doing.manage("topology")
    send(doing, "work", *[(f"innocent-{number}", "nothing") for number in range(5)])
    send(doing, "work", *[(do, do) for do in killers])
    send(doing, "work", *[(f"innocent-{number}", "nothing") for number in range(5, 20)])
    running = consume(doing, "work", "--concurrency=1")
    settled(doing, failed=len(killers), processed=20)
    assert attempts(doing) == dict.fromkeys(killers, 2)
    assert effects(doing) == {"nothing": 20}
    assert doing.value("SELECT COUNT(*) FROM messaging_attempt WHERE crashed") == 2 * len(killers)
    assert running.stop() == 0


@pytest.mark.mode(29)
@pytest.mark.slow
def test_what_runs_beside_a_killer_is_blamed_once_at_most(site: SiteFactory) -> None:
    doing = site("postgres", handlers=HANDLERS)
    doing.manage("topology")
    naps = [(f"nap-{number}", "nap") for number in range(12)]
    send(doing, "work", *naps)
    send(doing, "patient", ("sigkill", "sigkill"))
    running = consume(doing, "work", "patient", "--concurrency=4")
    settled(doing, failed=1, processed=12)
    found = attempts(doing)
    assert found.pop("sigkill") == 3
    assert sum(found.values()) <= 3, "its first run had three neighbours, the others none"
    assert running.stop() == 0


@pytest.mark.mode(30)
@pytest.mark.parametrize("do", ["leak", "memory"])
@pytest.mark.slow
def test_a_handler_that_runs_out_of_memory_rests_as_failed_and_the_others_flow(doing: Site, do: str) -> None:
    running = consume(doing, "work", "--concurrency=1")
    publish(doing, ("work.a", do), *[("work.a", "nothing")] * 10)
    settled(doing, failed=1, processed=10)
    assert attempts(doing) == {f"{do}-0": 2}
    assert effects(doing) == {"nothing": 10}
    assert running.stop() == 0


@pytest.mark.mode(31)
@pytest.mark.parametrize("do", ["regex", pytest.param("loop", marks=pytest.mark.slow)])
def test_an_endless_loop_is_ended_by_its_time_limit_and_spares_the_others(doing: Site, do: str) -> None:
    running = consume(doing, "brief", "work", "long")
    publish(doing, ("long.a", "wait"))
    started(doing, "wait")
    publish(doing, ("brief.a", do), *[("work.a", "nothing")] * 10)
    wait_until(lambda: doing.states().get("failed") == 1, what=running.output)
    (doing.folder / "go").touch()
    settled(doing, failed=1, processed=11)
    assert attempts(doing) == {f"{do}-0": 2}
    names = doing.sql("SELECT DISTINCT exception_type FROM messaging_attempt")
    assert names == [("messaging.exceptions.HandlerTimeout",)]
    assert effects(doing) == {"nothing": 10, "wait": 1}
    assert running.stop() == 0
