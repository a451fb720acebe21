"""django-tenants: a schema for each tenant, and the messages of all of them in the shared one."""

from __future__ import annotations

import pytest

from messaging.conf import rules
from tests.hosts.host import Host, HostFactory, told

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

CUSTOMERS = """
from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    name = models.CharField(max_length=100)


class Domain(DomainMixin):
    pass
"""
SETTINGS = """
INSTALLED_APPS = ["django_tenants", "customers", *INSTALLED_APPS]
TENANT_APPS = ["shop"]
SHARED_APPS = [name for name in INSTALLED_APPS if name not in TENANT_APPS]
TENANT_MODEL, TENANT_DOMAIN_MODEL = "customers.Client", "customers.Domain"
DATABASES["default"]["ENGINE"] = "django_tenants.postgresql_backend"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware", *MIDDLEWARE]
ALLOWED_HOSTS = ["*"]
"""
TENANTS = """
from customers.models import Client, Domain
for schema, domain in (("public", "localhost"), ("acme", "acme.localhost"), ("globex", "globex.localhost")):
    tenant = Client.objects.create(schema_name=schema, name=schema)
    Domain.objects.create(tenant=tenant, domain=domain, is_primary=True)
"""
# What a site does by itself: the tenant travels in a header.
VIEWS = """
from django.db import connection, transaction
from django.http import HttpResponse

from messaging import publish
from shop.models import Order


def place(request, number):
    with transaction.atomic():
        Order.objects.create(number=number)
        publish("orders.placed", {"order": number}, headers={"tenant": connection.schema_name})
    return HttpResponse("placed")


aplace = place
"""
HANDLERS = """
import os

from django.db import connection
from messaging import handler, publish
from shop.models import Bill


@handler("billing", "orders.placed", max_attempts=1)
def bill(message):
    if "tenant" in message.headers:
        connection.set_schema(message.headers["tenant"])  # and never back
    number = message.payload["order"]
    if number == 13 and "REPAIRED" not in os.environ:
        raise ValueError("Order 13 has no address")
    Bill.objects.create(order=number)
    publish("orders.billed", {"order": number}, mandatory=False)
"""
# What middleware does for all of its views and handlers: these are the shop's own then.
MIDDLEWARE = """
from django.db import connection
from django_tenants.utils import schema_context


def tenant(get_outcome):
    def around(message):
        with schema_context(message.headers.get("tenant", "public")):
            return get_outcome(message)

    return around


def name_tenant(get_outcome):
    def around(message):
        message.headers.setdefault("tenant", connection.schema_name)
        return get_outcome(message)

    return around
"""


def test_handlers_that_choose_the_tenants_schema(host: HostFactory) -> None:
    site = made(host)
    site.write("shop/views.py", VIEWS)
    site.write("shop/handlers.py", HANDLERS)
    orders_are_billed_where_they_were_placed(site)
    site.act("place(14, server='acme.localhost')")
    site.shell("from messaging import publish; publish('orders.placed', {'order': 99})")
    told(site, "--concurrency=1")
    assert billed(site) == {"acme": [12, 13, 14], "globex": [7]}
    error = "SELECT error FROM messaging_processedmessage WHERE state = 'failed'"
    assert "shop_bill" in site.value(error), "one tenant's message was taken for another's"


@pytest.mark.skipif("MIDDLEWARE" not in rules.ALIAS, reason="this release has no setting MIDDLEWARE")
def test_middleware_that_chooses_it(host: HostFactory) -> None:
    site = made(host)
    site.write("shop/messages.py", MIDDLEWARE)
    site.add('MESSAGING["default"]["MIDDLEWARE"] = ["shop.messages.tenant"]\n')
    site.add('MESSAGING["default"]["PUBLISH_MIDDLEWARE"] = ["shop.messages.name_tenant"]\n')
    orders_are_billed_where_they_were_placed(site)


def made(host: HostFactory) -> Host:
    site = host("tenants")
    site.write("customers/__init__.py", "")
    site.write("customers/models.py", CUSTOMERS)
    site.install(database=host.database())
    site.add(SETTINGS)
    return site


def orders_are_billed_where_they_were_placed(site: Host) -> None:
    """The operator sits in the shared schema."""
    site.manage("makemigrations", "customers", "--verbosity=0")
    site.manage("migrate_schemas", "--verbosity=0")
    site.shell(TENANTS)
    site.manage("migrate_schemas", "--verbosity=0")  # in each tenant's schema too, as with each deployment
    site.act("check()", "place(12, 13, server='acme.localhost')", "place(7, server='globex.localhost')")
    told(site)
    assert site.states() == {"processed": 2, "failed": 1}
    assert billed(site) == {"acme": [12], "globex": [7]}
    site.act("look_and_requeue()")
    told(site, REPAIRED="1")
    assert site.states() == {"processed": 3}
    assert site.states("published") == {"published": 7}
    assert billed(site) == {"acme": [12, 13], "globex": [7]}


def billed(site: Host) -> dict[str, list[int]]:
    """The bills in each tenant's schema."""
    found = {}
    for tenant in ("acme", "globex"):
        found[tenant] = [number for (number,) in site.sql(f'SELECT "order" FROM {tenant}.shop_bill ORDER BY 1')]
    return found
