"""URLs of the demo site."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

from project import views

urlpatterns: list[URLPattern | URLResolver] = [
    path("", views.home, name="home"),
    path("order/", views.place_order, name="place-order"),
    path("hello/", views.say_hello, name="say-hello"),
    path("invoicing/", views.switch_invoicing, name="switch-invoicing"),
    path("i18n/", include("django.conf.urls.i18n")),
    path("admin/", admin.site.urls),
]
