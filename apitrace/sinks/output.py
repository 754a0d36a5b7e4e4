"""A byte stream that a sink writes to: held, written once per batch, with failures as the package knows them.

What is put is held until `flush`, or until a mebibyte has come together. Nothing is kept in a buffer of Python's below
this one, so after a failure there is nothing left that the interpreter would complain about at exit. A write that fails
raises OutputError (a closed pipe: BrokenPipeError) once; what was held is then dropped, since part of it may have
been written, and the rest must not be written without it.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING, Any, BinaryIO

from apitrace.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELD_LIMIT = 1 << 20
"""Bytes held before they are written without being asked: a batch of large bodies must not pile up."""

_STANDARD_STREAMS = 3


def give_to_caller(descriptor: int) -> None:
    """Make a new file the property of the user who called sudo, who must read it afterwards (SUDO_UID: sudo(8))."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() == 0 and uid.isdigit() and gid.isdigit():
        with contextlib.suppress(OSError):  # a file system without owners
            os.fchown(descriptor, int(uid), int(gid))


class Output:
    """Writes to a stream."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        """`name` is what an error message calls the stream."""
        with _mapped(name):
            stream.flush()
        self._stream = stream
        self._raw: Any = getattr(stream, "raw", stream)
        self._name = name
        self._held = bytearray()  # one piece: lines that lived on here, each by itself, would cost page faults, 4 us

    def put(self, data: bytes) -> None:
        """Take bytes to write."""
        self._held += data
        if len(self._held) > _HELD_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        data, self._held = self._held, bytearray()
        with _mapped(self._name):
            self._write(memoryview(data))

    def _write(self, data: memoryview) -> None:
        while data:
            written = self._raw.write(data)
            if written is None:
                # EAGAIN: a traced command shares our terminal or pipe, and has made it non-blocking (node does).
                poll = select.poll()
                poll.register(self._raw.fileno(), select.POLLOUT)
                poll.poll()
            else:
                data = data[written:]

    def close(self) -> None:
        """Write what is held; close the stream, unless it is one of the standard streams."""
        try:
            self.flush()
        finally:
            with _mapped(self._name):
                if not self._is_standard():
                    self._stream.close()

    def _is_standard(self) -> bool:
        """Whether a file opened later could get this stream's descriptor, and be taken for stdout."""
        with contextlib.suppress(OSError):  # io.UnsupportedOperation: a stream in memory
            return self._raw.fileno() < _STANDARD_STREAMS  # type: ignore[no-any-return]  # the raw layer is untyped
        return False


@contextlib.contextmanager
def _mapped(name: str) -> Iterator[None]:
    """Turn OSError into OutputError, but for BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"cannot write {name}: {error.strerror or error}"
        raise OutputError(message) from error
