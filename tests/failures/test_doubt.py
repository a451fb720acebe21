"""Commits whose answer is lost: the database did what nobody knows of, and it counts as what it was."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.failures.deeds import settled
from tests.site import SiteFactory
from tools.proxy import before

pytestmark = pytest.mark.broker

DOING = """
import os
from pathlib import Path
from django.db import transaction
from messaging import handler, publish
from tests.app.models import Effect

FOLDER = Path(os.environ["DATA_DIR"])

def do(message, name):
    with (FOLDER / "started").open("a") as file:
        file.write(f"{name}\\n")
    if name.endswith("failed") and message.attempt == 1:
        raise ValueError(f"{name} fails once")
    Effect.objects.create(key=name, value="done")
    with transaction.atomic():
        publish(f"follow.{name}", {})

@handler("follow", "follow.#", backoff=0.1)
def follow(message):
    Effect.objects.create(key=message.routing_key.removeprefix("follow."), value="followed")
"""
HANDLER = """
@handler("{name}", "{name}.#", atomic={atomic}, max_attempts=2, backoff=0.1)
def {name}(message):
    do(message, "{name}")
"""
# What is sent in the transaction whose commit is lost; how often the handler begins then, fails, and has its effect.
CASES: dict[str, tuple[tuple[str, ...], int, int, int]] = {
    "atomic_processed": (("follow.atomic_processed",), 1, 0, 1),
    "atomic_failed": (("atomic_failed fails once",), 2, 1, 1),
    "job_claimed": (("job_claimed-id",), 1, 0, 1),
    "job_failed": (("job_failed fails once",), 2, 1, 1),
    "job_processed": (('"processed_at" = ', "extra.handlers.job_processed"), 1, 0, 1),
    # Without a transaction it is run again at once, since it lost its connection: what it publishes keeps its id.
    "job_published": (("follow.job_published",), 2, 0, 2),
}
HANDLERS = DOING + "".join(HANDLER.format(name=name, atomic=name.startswith("atomic")) for name in CASES)
LEASE = 120  # longer than the test waits, so that no claim may have to lapse first
FOUND = """
SELECT queue, attempts, (SELECT COUNT(*) FROM messaging_attempt WHERE message_id = messaging_processedmessage.id)
FROM messaging_processedmessage WHERE queue <> 'follow'
"""
EFFECTS = "SELECT key, value, COUNT(*) FROM app_effect GROUP BY key, value"


@pytest.mark.mode(70)
@pytest.mark.parametrize("concurrency", [len(CASES), pytest.param(1, marks=pytest.mark.slow)])
def test_a_commit_whose_answer_is_lost_counts_as_what_it_was(site: SiteFactory, concurrency: int) -> None:
    doing = site("postgres", handlers=HANDLERS, options={"LEASE": LEASE})
    with before(doing.database_url, 5432) as (proxy, through):
        lost = {name: proxy.lose_commit(*map(str.encode, case[0])) for name, case in CASES.items()}
        running = doing.start("consume", "--no-relay", f"--concurrency={concurrency}", env={"DATABASE_URL": through})
        running.wait_for_output("Connected to")
        relay = doing.start("relay")
        lines = [f'publish("{name}.a", {{}}, message_id="{name}-id")' for name in CASES]
        doing.run("\n".join(["from messaging import publish", *lines]))
        settled(doing, deadline=LEASE / 2, processed=2 * len(CASES))
        assert [name for name, event in lost.items() if not event.wait(120)] == [], "each was lost"
        assert (running.stop(), relay.stop()) == (0, 0)
    doing.manage("consume", "--burst")  # what came back at the stop, since nobody knew that it was done
    assert doing.states() == {"processed": 2 * len(CASES)}
    begun = Counter((doing.folder / "started").read_text().split())
    assert begun == {name: starts for name, (_, starts, _, _) in CASES.items()}
    assert {name: counts for name, *counts in doing.sql(FOUND)} == {
        name: [1 + failures, failures] for name, (_, _, failures, _) in CASES.items()
    }
    effects = Counter({(name, value): count for name, value, count in doing.sql(EFFECTS)})
    assert effects == {(name, "done"): done for name, (_, _, _, done) in CASES.items()} | {
        (name, "followed"): 1 for name in CASES
    }
    assert set(doing.states("published")) == {"published"}
