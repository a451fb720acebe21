"""What all messages carry: JSON bodies of 1 KB, each with a key of its own. Standard library only, for the peers."""

from __future__ import annotations

import json
import uuid
from typing import Any

BODY_SIZE = 1024  # bytes
_FILLER = "x" * (BODY_SIZE - len(json.dumps({"key": str(uuid.uuid4()), "filler": ""})))


def payload() -> dict[str, Any]:
    """A key, which its effect is recorded under, and filler."""
    return {"key": str(uuid.uuid4()), "filler": _FILLER}


def encoded() -> tuple[str, bytes]:
    """A key and the body that holds it."""
    content = payload()
    return content["key"], json.dumps(content).encode()
