"""What the Makefile runs. Standard library only: the system's Python runs it before there is a virtual environment."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this is where an older one is turned away
    raise SystemExit(
        f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old: 3.11 or newer is needed. "
        "If you have one, name it: make run PYTHON=python3.12"
    )
