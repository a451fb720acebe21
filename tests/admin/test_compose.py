"""The form that writes a message: what it would send and to whom, clones of messages, and templates."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from messaging.admin import preview as previews
from messaging.backends import get_backend
from messaging.backends.base import ExchangeSpec, QueueSpec, Topology
from messaging.models import MessageTemplate, PublishedMessage
from messaging.publishing.rows import seal
from messaging.wire.envelope import NONCE, ROUTING_KEY, Envelope
from messaging.wire.properties import Properties
from tests.admin_rows import INCOMING, OUTGOING, incoming, inline_code, outgoing, staff

pytestmark = pytest.mark.django_db
ADD = f"{OUTGOING}add/"
TEMPLATES = "/admin/messaging/messagetemplate/"
PUBLISHER = ("view_publishedmessage", "publish_publishedmessage", "view_payload_publishedmessage")


def form(**values: Any) -> dict[str, Any]:
    return {"using": "default", "routing_key": "orders.placed", "format": "json", "body": '{"order":  17}', **values}


def text_of(response: Any) -> str:
    return str(response.content.decode())


def declare(*bindings: tuple[str, str]) -> None:
    topology = Topology((ExchangeSpec("messaging"),), (QueueSpec("billing", bindings=bindings, dead_letter=False),))
    get_backend("default").declare(topology)


def test_shows_what_would_be_sent_to_the_byte_and_saves_nothing(admin_client: Client) -> None:
    declare(("messaging", "orders.*"))
    data = form(headers='{"tenant": "acme"}', priority="3", expiration="1.5", correlation_id="c-1", _preview="1")
    answer = admin_client.post(ADD, data)
    seen = answer.context["preview"]
    assert (seen.exchange, seen.routing_key, seen.body) == ("messaging", "orders.placed", '{"order":  17}')
    told = dict(seen.properties)
    assert (told["priority"], told["expiration"], told["correlation_id"], told["delivery_mode"]) == (
        "3", "1500", "c-1", "2",
    )  # fmt: skip
    assert told["message_id"] == "a new one"
    assert seen.headers == [("tenant", "acme")]
    assert (seen.queues, seen.is_lost) == (["billing"], False)
    page = text_of(answer)
    assert "What would be sent" in page
    assert not inline_code(page)
    assert not PublishedMessage.objects.exists()
    assert "{&quot;order&quot;:  17}</textarea>" in page, "the form keeps what was typed"
    del data["_preview"]
    admin_client.post(ADD, {**data, "message_id": "mine", "_publish": "1"})
    exchange, key, properties, body = seal(PublishedMessage.objects.get())
    assert (exchange, key, body.decode()) == (seen.exchange, seen.routing_key, seen.body)
    assert Properties.decode(properties).headers == {"tenant": "acme"}


@pytest.mark.parametrize(
    ("values", "queues", "said"),
    [
        ({"routing_key": "nobody.wants"}, [], "fail in the end"),
        ({"routing_key": "nobody.wants", "mandatory": ""}, [], "would drop it"),
        ({"routing_key": "", "queue": "billing"}, ["billing"], "takes it to these queues now"),
        ({"routing_key": "", "queue": "unknown"}, [], "fail in the end"),
        ({"exchange": "amq.topic"}, [], "fail in the end"),
    ],
)
def test_says_where_it_would_go(admin_client: Client, values: dict[str, str], queues: list[str], said: str) -> None:
    declare(("messaging", "orders.*"))
    seen = admin_client.post(ADD, form(**{"mandatory": "on", **values}, _preview="1")).context["preview"]
    assert (seen.queues, said in seen.where) == (queues, True)


def test_a_proof_of_this_sites_is_not_shown(admin_client: Client) -> None:
    seen = admin_client.post(ADD, form(queue="billing", message_id="mine", _preview="1")).context["preview"]
    assert dict(seen.headers)[NONCE] == "a proof that this site sent it"
    assert dict(seen.headers)[ROUTING_KEY] == "orders.placed"


def test_says_what_is_unknown_where_the_broker_cannot_be_asked(settings: Settings) -> None:
    queues = {"billing": {"bindings": [("theirs", "orders.#"), ("messaging", "orders.#")]}}
    settings.MESSAGING = {"default": {"URL": "amqp://guest@127.0.0.1:1/", "QUEUES": queues}}

    def told(exchange: str, key: str) -> tuple[str, list[str], bool]:
        return previews._routes(PublishedMessage(alias="default"), exchange, key)

    where, found, is_lost = told("messaging", "orders.placed")
    assert ("whether to others is unknown" in where, found, is_lost) == (True, ["billing"], False)
    where, found, _ = told("theirs", "orders.placed")
    assert ("whether they take it is unknown" in where, found) == (True, ["billing"])
    assert told("", "billing")[1] == ["billing"]
    for exchange, key in (("messaging", "other"), ("else", "orders.placed"), ("", "nowhere")):
        where, found, is_lost = told(exchange, key)
        assert (where.startswith("Unknown"), found, is_lost) == (True, [], False)


def test_any_message_is_cloned_into_the_form_without_what_it_was(admin_client: Client) -> None:
    row = incoming("processed", correlation_id="c-1")
    link = f"{ADD}?clone=incoming:{row.pk}"
    assert link in text_of(admin_client.get(f"{INCOMING}{row.pk}/change/"))
    values = admin_client.get(link).context["form"].initial
    assert (values["queue"], values["exchange"], values["routing_key"]) == ("billing", "", "orders.placed")
    assert (values["body"], json.loads(values["headers"])) == ('{"order": 17}', {"tenant": "acme"})
    assert (values["correlation_id"], values.get("message_id")) == ("c-1", None)
    other = outgoing(exchange="theirs", expiration=1500, mandatory=False)
    link = f"{ADD}?clone=outgoing:{other.pk}"
    assert link in text_of(admin_client.get(f"{OUTGOING}{other.pk}/change/"))
    values = admin_client.get(link).context["form"].initial
    assert (values["queue"], values["exchange"], values["expiration"], values["mandatory"]) == (
        "",
        "theirs",
        1.5,
        False,
    )


def test_a_clone_has_no_headers_of_the_journey_and_says_which_others_are_left_out(admin_client: Client) -> None:
    headers = {"tenant": "acme", "traceparent": "00-1", "x-messaging-causation-id": "m-0", "amount": Decimal("1.5")}
    envelope = Envelope("messaging", "orders.placed", Properties.build(headers=headers), b"{}")
    row = incoming("failed", body=b"{}", wire=envelope.to_wire())
    answer = admin_client.get(f"{ADD}?clone=incoming:{row.pk}")
    assert json.loads(answer.context["form"].initial["headers"]) == {"tenant": "acme"}
    assert "left out: amount." in text_of(answer)


def test_what_the_form_cannot_hold_is_not_cloned(admin_client: Client) -> None:
    for row in (incoming(body=b"\xff\x00", content_type="application/x"), incoming(wire=None)):
        answer = admin_client.get(f"{ADD}?clone=incoming:{row.pk}")
        assert answer.context["form"].initial == {}
        assert "errorlist" not in text_of(answer)
    assert "is gone" in text_of(admin_client.get(f"{ADD}?clone=outgoing:0"))


def test_cloning_takes_the_right_to_see_the_payload() -> None:
    row = incoming()
    client = staff(*PUBLISHER, "view_processedmessage")
    assert client.get(f"{ADD}?clone=incoming:{row.pk}").status_code == 403
    assert "clone=" not in text_of(client.get(f"{INCOMING}{row.pk}/change/"))
    client = staff(*PUBLISHER, "view_processedmessage", "view_payload_processedmessage", name="all")
    assert client.get(f"{ADD}?clone=incoming:{row.pk}").status_code == 200


def test_a_template_is_kept_and_begins_another_message(admin_client: Client) -> None:
    kept = form(headers='{"tenant": "acme"}', type="Order", keep_as="An order", _template="1")
    page = text_of(admin_client.post(ADD, kept))
    template = MessageTemplate.objects.get()
    assert (template.name, template.owner, template.body) == ("An order", "admin", '{"order":  17}')
    assert "is saved" in page
    assert not PublishedMessage.objects.exists()
    assert f"{ADD}?template={template.pk}" in text_of(admin_client.get(ADD))
    values = admin_client.get(f"{ADD}?template={template.pk}").context["form"].initial
    assert (values["routing_key"], values["type"], values["body"], json.loads(values["headers"])) == (
        "orders.placed", "Order", '{"order":  17}', {"tenant": "acme"},
    )  # fmt: skip
    assert "There is a template of that name" in text_of(admin_client.post(ADD, kept))
    assert "Give it a name" in text_of(admin_client.post(ADD, {**kept, "keep_as": ""}))
    assert MessageTemplate.objects.count() == 1


def test_templates_have_pages_and_permissions_of_their_own(admin_client: Client) -> None:
    values = {"name": "Hello", "alias": "default", "queue": "hello", "headers": "{}", "body": "x"}
    admin_client.post(f"{TEMPLATES}add/", values)
    template = MessageTemplate.objects.get()
    assert template.owner == "admin"
    shown = text_of(admin_client.get(TEMPLATES))
    assert f'href="{TEMPLATES}add/"' in shown
    assert f"{ADD}?template={template.pk}" in shown
    assert not inline_code(text_of(admin_client.get(f"{TEMPLATES}{template.pk}/change/")))
    client = staff(*PUBLISHER)
    assert client.get(TEMPLATES).status_code == 403
    assert "keep_as" not in text_of(client.get(ADD))
    assert client.get(f"{ADD}?template={template.pk}").context["form"].initial == {}
    client.post(ADD, form(keep_as="Mine", _template="1"))
    assert MessageTemplate.objects.count() == 1
    reader = staff("view_messagetemplate", name="reader")
    assert reader.get(TEMPLATES).status_code == 200
    assert reader.post(f"{TEMPLATES}{template.pk}/change/", values).status_code == 403
    assert reader.post(f"{TEMPLATES}{template.pk}/delete/", {"post": "yes"}).status_code == 403
    admin_client.post(f"{TEMPLATES}{template.pk}/delete/", {"post": "yes"})
    assert not MessageTemplate.objects.exists()


def test_costs_few_queries(admin_client: Client, django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    declare(("messaging", "orders.*"))
    row = incoming()
    for number in range(5):
        MessageTemplate.objects.create(name=f"t{number}", body="{}")
    for page in (
        ADD,
        f"{ADD}?clone=incoming:{row.pk}",
        f"{ADD}?template={MessageTemplate.objects.first().pk}",
        TEMPLATES,
    ):  # type: ignore[union-attr]
        with django_assert_max_num_queries(10):
            admin_client.get(page)
    with django_assert_max_num_queries(10):
        admin_client.post(ADD, form(_preview="1"))
