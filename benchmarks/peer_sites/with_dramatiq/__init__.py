"""The site on Dramatiq and django-dramatiq."""
