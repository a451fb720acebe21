"""What people do in the admin, done in a browser, with RabbitMQ and consumers that are killed."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Visit
from tests.browser.filling import PUBLISH
from tests.browser.visitor import Visitor
from tests.site import Site
from tests.waiting import wait_until

INCOMING, OUTGOING, QUEUES = (
    f"/admin/messaging/{name}/" for name in ("processedmessage", "publishedmessage", "queuecontrol")
)
MANY = 1100  # more than a request does itself


def reads(visitor: Visitor, text: str) -> None:
    """Reload until the page says so."""

    def look() -> bool:
        visitor.page.reload()
        return text in visitor.text()

    wait_until(look, deadline=300, interval=0.5, what=text)


def press(visitor: Visitor, name: str) -> None:
    """Follow a link of the tools, or press a button."""
    follow(visitor, f"#content input[type=submit][value='{name}'], #content a:text-is('{name}')")


def follow(visitor: Visitor, selector: str) -> None:
    """Click on the first that is found, and wait for the page that this leads to: a click alone does not."""
    with visitor.page.expect_navigation():
        visitor.page.locator(selector).first.click()


def write(visitor: Visitor, routing_key: str) -> None:
    """Publish a message with the form."""
    visitor.go(f"{OUTGOING}add/")
    visitor.page.fill("[name=routing_key]", routing_key)
    visitor.page.fill("[name=body]", '{"order": 17}')
    press(visitor, "Publish")


def test_a_message_is_published_fails_and_is_requeued(shop: Site, visit: Visit) -> None:
    visitor = visit(shop, "operator")
    (shop.folder / "broken").touch()
    shop.start("consume")
    write(visitor, "work.order")
    reads(visitor, "The broker has confirmed it.")
    wait_until(lambda: shop.states() == {"failed": 1}, deadline=300)
    visitor.go(f"{INCOMING}?state=failed")
    follow(visitor, "#result_list tbody tr th a")
    assert "ValueError: The other service is away" in visitor.text()
    (shop.folder / "broken").unlink()
    press(visitor, "Requeue")
    visitor.page.fill("[name=reason]", "it is back")
    press(visitor, "Requeue")
    reads(visitor, "Its handler's work is committed.")
    assert "it is back" in visitor.text()
    assert visitor.complaints == []


def test_all_that_match_are_requeued_while_a_consumer_is_killed(shop: Site, visit: Visit) -> None:
    visitor = visit(shop, "operator")
    (shop.folder / "broken").touch()
    consumer = shop.start("consume")
    shop.run(f"from messaging import *\npublish_many([Message('work.x', number) for number in range({MANY})])")
    wait_until(lambda: shop.states() == {"failed": MANY}, deadline=600, interval=0.5)
    (shop.folder / "broken").unlink()
    visitor.go(f"{INCOMING}?state=failed")
    visitor.page.check("#action-toggle")
    visitor.page.locator(".actions .question a").click()
    visitor.page.select_option("select[name=action]", "requeue")
    follow(visitor, ".actions button[name=index]")
    press(visitor, "Requeue")
    assert "It is stored as operation" in visitor.text()
    wait_until(lambda: "requeued" in shop.states() or "processed" in shop.states(), deadline=300)
    consumer.kill()
    shop.start("consume")
    reads(visitor, f"{MANY} / {MANY}")
    wait_until(lambda: shop.states() == {"processed": MANY}, deadline=600, interval=0.5)
    assert shop.sql('SELECT COUNT(*), COUNT(DISTINCT "key") FROM app_effect') == [(MANY, MANY)]
    assert visitor.complaints == []


def test_a_paused_queue_waits_and_goes_on(shop: Site, visit: Visit) -> None:
    visitor = visit(shop, "operator")
    consumer = shop.start("consume")
    wait_until(lambda: shop.value("SELECT COUNT(*) FROM messaging_worker WHERE kind = 'consume'"), deadline=300)
    visitor.go(QUEUES)
    follow(visitor, "a.msg-button[href*='queue=work']")
    visitor.page.fill("[name=reason]", "a deployment")
    press(visitor, "Pause")
    assert "a deployment" in visitor.text()
    paused = "SELECT COUNT(*) FROM messaging_worker WHERE paused LIKE '%work%'"
    wait_until(lambda: shop.value(paused), deadline=300, what="the consumer to leave it alone")
    write(visitor, "work.order")
    reads(visitor, "The broker has confirmed it.")
    assert shop.states() == {}
    visitor.go(QUEUES)
    follow(visitor, "a.msg-button[href*='resume'][href*='queue=work']")
    press(visitor, "Resume")
    wait_until(lambda: shop.states() == {"processed": 1}, deadline=300)
    assert consumer.returncode is None
    assert visitor.complaints == []


def tab_to(visitor: Visitor, text: str, most: int = 120) -> None:
    """Press Tab until what has the focus reads so."""
    for _ in range(most):
        visitor.page.keyboard.press("Tab")
        found = visitor.page.evaluate("document.activeElement.value || document.activeElement.textContent || ''")
        if str(found).strip() == text:
            return
    raise AssertionError(f"Tab does not lead to {text!r}.")


def test_the_keyboard_alone_can_requeue(shop: Site, visit: Visit) -> None:
    visitor = visit(shop, "operator")
    (shop.folder / "broken").touch()
    shop.start("consume")
    shop.run(PUBLISH)
    wait_until(lambda: shop.states() == {"failed": 5, "retrying": 1}, deadline=300)
    row = shop.value("SELECT MIN(id) FROM messaging_processedmessage WHERE state = 'failed'")
    (shop.folder / "broken").unlink()
    visitor.go(f"{INCOMING}{row}/change/")
    for _ in range(2):  # the button, then its confirmation
        tab_to(visitor, "Requeue")
        with visitor.page.expect_navigation():
            visitor.page.keyboard.press("Enter")
    state = f"SELECT state FROM messaging_processedmessage WHERE id = {row}"
    wait_until(lambda: shop.value(state) == "processed", deadline=300)


@pytest.mark.parametrize("who", ["viewer", "operator", "superuser"])
def test_each_kind_of_user_may_do_what_it_may(shop: Site, visit: Visit, who: str) -> None:
    (shop.folder / "broken").touch()
    shop.start("consume")
    shop.run(PUBLISH)
    wait_until(lambda: shop.states() == {"failed": 5, "retrying": 1}, deadline=300)
    row = shop.value("SELECT MIN(id) FROM messaging_processedmessage WHERE state = 'failed'")
    visitor = visit(shop, who)
    allowed = 403 if who == "viewer" else 200
    for path in (f"{INCOMING}{row}/requeue/", f"{OUTGOING}add/", f"{QUEUES}pause/?alias=default&queue=work"):
        assert visitor.status(path) == allowed, path
    visitor.go(f"{INCOMING}{row}/change/")
    assert visitor.page.get_by_role("link", name="Requeue", exact=True).count() == (who != "viewer")
    assert ("You do not have the permission to see payloads." in visitor.text()) == (who == "viewer")
