"""What is wrong, and how much was done: for the admin, for alerts, for metrics."""
