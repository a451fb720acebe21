"""Django's tasks on this app's backend."""
