"""URLs of the demo site."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

from project import views

urlpatterns: list[URLPattern | URLResolver] = [
    path("", views.home, name="home"),
    path("now/", views.now, name="now"),
    path("order/", views.place_order, name="place-order"),
    path("hello/", views.say_hello, name="say-hello"),
    path("invoicing/", views.switch_invoicing, name="switch-invoicing"),
    path("favicon.ico", RedirectView.as_view(url=static("project/icon.svg"))),
    path("i18n/", include("django.conf.urls.i18n")),
    path("admin/", admin.site.urls),
]
