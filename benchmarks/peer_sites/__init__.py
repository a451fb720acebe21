"""What the peers run, each in an environment of its own: settings, one task that records an effect, a publisher."""
