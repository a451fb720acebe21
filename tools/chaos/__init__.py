"""`make chaos`: publishes without a pause while everything is killed, cut and frozen, then counts every effect."""
