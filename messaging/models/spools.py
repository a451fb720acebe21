"""Bodies that are too large to be held in memory: kept in a file, and stored piece by piece."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator
from typing import IO

from django.db import connections
from django.db.models import F, TextField, Value
from django.db.models.functions import Concat

from messaging.models import ProcessedMessage

MOST = 4  # limits that a body in memory may have, where there is no disk for it
PIECE = 3 * 1024 * 1024  # bytes; without a rest in base64


class Spool:
    """A body in an unnamed file, which is gone with its process.

    Its room is taken at the start: a disk without enough of it, or that nobody may write to, makes it a file in memory.

    Attributes:
        size: bytes of the whole body.
        limit: bytes that its consumer holds at most.
        trouble: why not all of it is there; "" if it is.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit, self.trouble = size, limit, ""
        self._file: IO[bytes] | None = None
        try:
            self._file = self._opened()
        except OSError as error:
            self._give_up(error)

    def write(self, piece: bytes) -> None:
        """Add the next piece; the disk may be full."""
        if self._file is not None:
            try:
                self._file.write(piece)
            except OSError as error:
                self._give_up(error)

    def pieces(self) -> Iterator[bytes]:
        """The body from its begin, in pieces."""
        if self._file is not None:
            self._file.seek(0)
            while piece := self._file.read(PIECE):
                yield piece

    def store(self, row: ProcessedMessage, database: str) -> None:
        """Write the body behind what the row has of it, in the caller's transaction."""
        own = ProcessedMessage.objects.using(database).filter(pk=row.pk)
        assert connections[database].in_atomic_block
        for piece in self.pieces():
            text = Value(base64.b64encode(piece).decode("ascii"), output_field=TextField())
            own.update(body=Concat(F("body"), text))

    def close(self) -> None:
        """Give up the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> IO[bytes]:
        try:
            return self._with_room(tempfile.TemporaryFile(prefix="messaging-"))
        except OSError:
            if self.size > MOST * self.limit or not hasattr(os, "memfd_create"):
                raise
        return self._with_room(os.fdopen(os.memfd_create("messaging-spool"), "w+b"))

    def _with_room(self, file: IO[bytes]) -> IO[bytes]:
        if hasattr(os, "posix_fallocate"):  # macOS has none
            try:
                os.posix_fallocate(file.fileno(), 0, self.size)
            except OSError:
                file.close()
                raise
        return file

    def _give_up(self, error: OSError) -> None:
        self.trouble = f"it could not be written to a temporary file: {error.strerror or error}"
        self.close()
