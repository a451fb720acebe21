"""What the Makefile runs. Standard library only: the system's Python runs it before there is a virtual environment."""

import sys

# Any Python has to understand this file: it is where an old one is turned away.
if sys.version_info < (3, 11):  # noqa: UP036
    raise SystemExit(
        "Python %d.%d is too old: 3.11 or newer is needed. "  # noqa: UP031
        "If you have one, name it: make run PYTHON=python3.12" % sys.version_info[:2]
    )
