"""A site on which there is something of everything, part of which came down the road."""

from __future__ import annotations

from tests.site import Running, Site
from tests.waiting import wait_until

PUBLISH = """
from messaging import publish
for number in range(4):
    publish("work.one", {"number": number})
publish("mail.one", {"to": "anna"})
publish("work." + "long-name." * 20 + "end", {"text": "word " * 400}, message_id="m" * 200)
"""
ROWS = """
from datetime import timedelta
from django.utils import timezone
from messaging.models import AuditRecord, ProcessedMessage, PublishedMessage, QueueControl, Worker
from messaging.operations import Operator, discard, publish_copy, set_paused, stored
from messaging import publish
from messaging.monitoring import counters
by = Operator(name="nina", reason="the invoicing service is back " * 6)
set_paused("mail", True, by)
failed = ProcessedMessage.objects.filter(state="failed")
stored.store(failed, "requeue", by, scope="state: failed; queue: work", rate=0.1, try_one=True)
discard(ProcessedMessage.objects.filter(pk=failed.order_by("pk").values_list("pk", flat=True)[0]), by)
published = PublishedMessage.objects.filter(state="published", inbox=None)
publish_copy(published.filter(pk=published.order_by("pk").values_list("pk", flat=True)[0]), by)
row = publish("nowhere.at.all", {"draft": True})
PublishedMessage.objects.filter(pk=row.pk).update(state="draft", due_at=None)
row = publish("work.later", {"later": True}, delay=3600)
Worker.objects.create(
    name="gone-host:77", kind="consume", host="a-host-with-a-rather-long-name.example.internal", pid=4194304,
    queues=["work", "mail", "a-queue-with-a-rather-long-name"], paused=["mail"],
    status="waits for another process's transaction: 3 messages", running=None,
)
Worker.objects.filter(name="gone-host:77").update(seen_at=timezone.now() - timedelta(minutes=9))
for kind, number in (("published", 120), ("processed", 80), ("failed", 5)):
    counters.add(kind, "default", "work", number)
counters.write("default")
"""


def fill(site: Site) -> Running:
    """Publish, fail and act; returns the consumer, which is running."""
    broken = site.folder / "broken"
    broken.touch()
    consumer = site.start("consume", "--concurrency", "2")
    site.run(PUBLISH)
    wait_until(lambda: site.states() == {"failed": 5, "retrying": 1}, deadline=300, what="the failures")
    broken.unlink()
    site.run("from messaging import publish\npublish('work.two', {'number': 9})")
    wait_until(lambda: site.states().get("processed") == 1, deadline=300, what="a success")
    site.shell(ROWS)
    return consumer
