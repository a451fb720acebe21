"""The shop's views before the host's own, which may take every address."""

from django.conf import settings
from django.urls import include, path
from shop import views

urlpatterns = [
    path("shop/<int:number>/", views.place),
    path("shop/async/<int:number>/", views.aplace),
    path("", include(settings.HOST_URLS)),
]
