"""Users with keys of their own, an admin site beside Django's, and another theme of it."""

from __future__ import annotations

import pytest

from tests.docs.blocks import find
from tests.hosts.host import HostFactory, tell_the_story

pytestmark = pytest.mark.slow

PEOPLE = """
import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models


class People(BaseUserManager):
    def create_superuser(self, email, password):
        person = self.model(email=email, is_staff=True, is_superuser=True)
        person.set_password(password)
        person.save(using=self._db)
        return person


class Person(AbstractBaseUser, PermissionsMixin):
    key = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    is_staff = models.BooleanField(default=False)
    objects = People()
    USERNAME_FIELD = "email"
"""
PEOPLE_SETTINGS = """
INSTALLED_APPS = ["people", *INSTALLED_APPS]
AUTH_USER_MODEL = "people.Person"
HOST_OPERATOR = {"email": "olga@example.org"}
"""
(OFFICE,) = [block for block in find("hosts") if block.title == "office/urls.py"]


@pytest.mark.postgres
def test_users_whose_key_is_a_uuid(host: HostFactory) -> None:
    site = host()
    site.write("people/__init__.py", "")
    site.write("people/models.py", PEOPLE)
    site.install(database=host.database())
    site.add(PEOPLE_SETTINGS)
    site.manage("makemigrations", "people", "--verbosity=0")
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)
    by = "SELECT action, username, user_id IS NULL FROM messaging_auditrecord"
    assert site.sql(by) == [("requeue", "olga@example.org", False)]
    site.shell("from people.models import Person; Person.objects.get().delete()")
    assert site.sql(by) == [("requeue", "olga@example.org", True)]


def test_an_admin_site_of_its_own(host: HostFactory) -> None:
    site = host()
    site.write("mysite/urls.py", OFFICE.text)
    site.install()
    site.add('HOST_ADMIN = "office"\n')
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)


def test_unfold(host: HostFactory) -> None:
    site = host()
    site.install()
    site.add('INSTALLED_APPS = ["unfold", *INSTALLED_APPS]\n')
    site.manage("migrate", "--verbosity=0")
    tell_the_story(site)
