"""Wagtail and django-oscar: projects with many apps, signals and address patterns of their own."""

from __future__ import annotations

import pytest

from tests.hosts.host import HostFactory, assert_all_billed, tell_the_story, told

pytestmark = pytest.mark.slow

WAGTAIL = """
from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        from wagtail.signals import page_published
        from messaging import publish

        def order(sender, instance, **options):
            publish("orders.placed", {"order": 1000 + instance.pk})

        page_published.connect(order, weak=False)
"""
PUBLISH_PAGE = """
from wagtail.models import Page
page = Page.objects.get(depth=2).specific
page.save_revision().publish()
print(page.pk)
"""
TRACKED = """
from wagtail.models import ReferenceIndex
assert not [model for model in ReferenceIndex.tracked_models if model._meta.app_label == "messaging"]
"""
OSCAR = """
from oscar.defaults import *

INSTALLED_APPS += [
    "django.contrib.sites",
    "django.contrib.flatpages",
    "oscar.config.Shop",
    "oscar.apps.analytics.apps.AnalyticsConfig",
    "oscar.apps.checkout.apps.CheckoutConfig",
    "oscar.apps.address.apps.AddressConfig",
    "oscar.apps.shipping.apps.ShippingConfig",
    "oscar.apps.catalogue.apps.CatalogueConfig",
    "oscar.apps.catalogue.reviews.apps.CatalogueReviewsConfig",
    "oscar.apps.communication.apps.CommunicationConfig",
    "oscar.apps.partner.apps.PartnerConfig",
    "oscar.apps.basket.apps.BasketConfig",
    "oscar.apps.payment.apps.PaymentConfig",
    "oscar.apps.offer.apps.OfferConfig",
    "oscar.apps.order.apps.OrderConfig",
    "oscar.apps.customer.apps.CustomerConfig",
    "oscar.apps.search.apps.SearchConfig",
    "oscar.apps.voucher.apps.VoucherConfig",
    "oscar.apps.wishlists.apps.WishlistsConfig",
    "oscar.apps.dashboard.apps.DashboardConfig",
    "oscar.apps.dashboard.reports.apps.ReportsDashboardConfig",
    "oscar.apps.dashboard.users.apps.UsersDashboardConfig",
    "oscar.apps.dashboard.orders.apps.OrdersDashboardConfig",
    "oscar.apps.dashboard.catalogue.apps.CatalogueDashboardConfig",
    "oscar.apps.dashboard.offers.apps.OffersDashboardConfig",
    "oscar.apps.dashboard.partners.apps.PartnersDashboardConfig",
    "oscar.apps.dashboard.pages.apps.PagesDashboardConfig",
    "oscar.apps.dashboard.ranges.apps.RangesDashboardConfig",
    "oscar.apps.dashboard.reviews.apps.ReviewsDashboardConfig",
    "oscar.apps.dashboard.vouchers.apps.VouchersDashboardConfig",
    "oscar.apps.dashboard.communications.apps.CommunicationsDashboardConfig",
    "oscar.apps.dashboard.shipping.apps.ShippingDashboardConfig",
    "widget_tweaks",
    "haystack",
    "treebeard",
    "django_tables2",
]
SITE_ID = 1
MIDDLEWARE += [
    "oscar.apps.basket.middleware.BasketMiddleware",
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
]
AUTHENTICATION_BACKENDS = [
    "oscar.apps.customer.auth_backends.EmailBackend",
    "django.contrib.auth.backends.ModelBackend",
]
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
TEMPLATES[0]["OPTIONS"]["context_processors"] += [
    "oscar.apps.search.context_processors.search_form",
    "oscar.apps.checkout.context_processors.checkout",
    "oscar.apps.communication.notifications.context_processors.notifications",
    "oscar.core.context_processors.metadata",
]
"""
OSCAR_URLS = """
from django.apps import apps
from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include(apps.get_app_config("oscar").urls[0]))]
"""
OSCAR_SHOP = """
from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        from oscar.apps.order.signals import order_placed
        from messaging import publish

        def order(sender, order, user, **options):
            publish("orders.placed", {"order": int(order.number)})

        order_placed.connect(order, weak=False)
"""


def test_wagtail_with_the_embedded_broker(host: HostFactory) -> None:
    site = host("wagtail", "wagtail", "start", "mysite", ".", settings="mysite/settings/base.py")
    site.install()
    site.write("shop/apps.py", WAGTAIL)
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)
    site.shell(TRACKED)
    number = 1000 + int(site.shell(PUBLISH_PAGE).split()[-1])
    told(site)
    assert_all_billed(site, [12, 13, number])


@pytest.mark.broker
def test_oscar_with_rabbitmq(host: HostFactory, vhost_url: str) -> None:
    site = host("oscar")
    site.add(OSCAR)
    site.write("mysite/urls.py", OSCAR_URLS)
    site.install(vhost_url)
    site.write("shop/apps.py", OSCAR_SHOP)
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)
    site.shell("from oscar.test.factories import create_order; create_order(number='100017')")
    told(site)
    assert_all_billed(site, [12, 13, 100017])
