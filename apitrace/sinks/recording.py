"""Writes a recording (the format is in files/recording.py): raw events in, before anything is decoded or masked.

A recording holds the traffic with its secrets, so it is readable by its owner only, whatever the umask says and
whatever mode a file had that is overwritten. An existing file is overwritten, as by tcpdump; a terminal or a disk is
refused. Where a write fails, what was written before stays good: the reader leaves out the cut tail.
"""

from __future__ import annotations

import os
import platform
import stat
import sys
import time
from typing import BinaryIO, cast

import orjson

from apitrace import __version__
from apitrace.errors import OutputError
from apitrace.files.recording import FORMAT, MAGIC, SIZE, START, RecordingHeader
from apitrace.probes.events import EVENT_ABI
from apitrace.sinks.output import Output, give_to_caller

_OWNER_ONLY = 0o600


def new_header(*, node_name: str, clock_offset_ns: int, targets: str) -> RecordingHeader:
    """Return the header of a recording that begins here and now."""
    return RecordingHeader(
        node_name=node_name,
        receiver_version=__version__,
        clock_offset_ns=clock_offset_ns,
        start_ns=time.time_ns(),
        targets=targets.encode("utf-8", "backslashreplace").decode(),  # names from the command line may be no UTF-8
        machine=platform.machine(),
        byte_order=sys.byteorder,
    )


class Recorder:
    """Writes raw events to a file. Every method raises OutputError where it cannot."""

    def __init__(self, path: str, header: RecordingHeader) -> None:
        self._output = Output(_open(path), path)
        fields = orjson.dumps(header._asdict())
        self._output.put(START.pack(MAGIC, FORMAT, EVENT_ABI, len(fields)) + fields)
        self._output.flush()

    def write(self, raw: bytes) -> None:
        """Take one raw event. Hot: once per event."""
        self._output.put(SIZE.pack(len(raw)) + raw)

    def flush(self) -> None:
        """Write what is held. Called once per batch."""
        self._output.flush()

    def close(self) -> None:
        """Flush and let go."""
        self._output.close()


def _open(path: str) -> BinaryIO:
    try:
        # Not truncated by open(): first it must be known that it is a file.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, _OWNER_ONLY)
        stream = cast("BinaryIO", os.fdopen(descriptor, "wb", buffering=0))
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            os.fchmod(descriptor, _OWNER_ONLY)
            give_to_caller(descriptor)
            os.ftruncate(descriptor, 0)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise OutputError(message) from error
    refused = "disk" if stat.S_ISBLK(mode) else "terminal" if stream.isatty() else None
    if refused is not None:
        stream.close()
        message = f"cannot write {path}: it is a {refused}, not a file"
        raise OutputError(message)
    return stream
