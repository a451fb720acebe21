"""The site on Celery and django-celery-results."""
