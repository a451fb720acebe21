"""Real processes, a real broker, real databases."""
