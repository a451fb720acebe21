"""The app that is under fire: what it publishes, what its handlers do, and the two tables that are compared."""
