"""The documentation's tests: every command and snippet of README and docs/ is run, or checked by what would run it."""
