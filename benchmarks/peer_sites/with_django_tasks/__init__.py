"""The site on django-tasks-db."""
