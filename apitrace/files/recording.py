"""A recording: the kernel's events as they came, to be decoded again by the same stages. Format and reader.

    magic "APITRACE" | format u16 | event ABI u16 | size u32 | header, a JSON object of that size
    then for each event: size u32 | the raw event

The integers are little-endian. The events are in the byte order of the machine that wrote them, as the kernel made
them; header and reader see to it that they are not read in another. A file that was cut off (a full disk, a killed
writer) is good up to its last whole event.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

import orjson

from apitrace.errors import UsageError
from apitrace.probes.events import EVENT_ABIS, HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"APITRACE"
FORMAT = 1
START = struct.Struct("<8sHHI")
SIZE = struct.Struct("<I")

_HEADER_LIMIT = 1 << 20
"""Bytes. A header has some 300; its target's description is the longest part, and argument lists end at 2 MiB."""
_EVENT_LIMIT = 16 << 20
"""Bytes. The largest event is a chunk of 1 MiB and 40 bytes; more than 16 of these are damage, not data."""
_TIME_LIMIT = 1 << 63
"""Nanoseconds: keeps every time of the recording within the years that time.gmtime knows."""


class RecordingHeader(NamedTuple):
    """What the events do not say themselves."""

    node_name: str
    receiver_version: str
    clock_offset_ns: int
    """Unix time minus CLOCK_MONOTONIC."""
    start_ns: int
    """Unix time."""
    targets: str
    """Description, for the user."""
    machine: str
    """As `uname -m` says."""
    byte_order: str
    """"little" or "big"."""


_HEADER_TYPES = {
    "node_name": str, "receiver_version": str, "clock_offset_ns": int, "start_ns": int, "targets": str,
    "machine": str, "byte_order": str,
}  # fmt: skip


class Recording:
    """Reads a recording, once. After the last event `truncated` tells whether the file ends within one."""

    def __init__(self, path: str) -> None:
        """`path` may be "-", standard input. Raises UsageError if this is no recording that can be read here."""
        self._path = path
        self.truncated = False
        try:
            self._file: BinaryIO = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115 - read later
            self.header = self._read_header()
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror}")

    def _read_header(self) -> RecordingHeader:
        start = self._file.read(START.size)
        if not start.startswith(MAGIC):
            self._refuse("is not a recording of apitrace")
        if len(start) < START.size:
            self._refuse("ends within its header")
        _, version, abi, size = START.unpack(start)
        if version != FORMAT:
            self._refuse(f"has format {version}; this apitrace reads format {FORMAT}")
        if abi not in EVENT_ABIS:
            known = " and ".join(map(str, EVENT_ABIS))
            self._refuse(f"holds events of ABI {abi}; this apitrace reads ABI {known}")
        header = _header(self._file.read(size) if size <= _HEADER_LIMIT else b"")
        if header is None:
            self._refuse("has a damaged header")
        if header.byte_order != sys.byteorder:
            self._refuse(f"was made on a machine of the other byte order; this one is {sys.byteorder}-endian")
        return header

    def _refuse(self, problem: str) -> NoReturn:
        name = "standard input" if self._path == "-" else self._path
        message = f"{name} {problem}"
        raise UsageError(message)

    def __iter__(self) -> Iterator[bytes]:
        """Give the raw events. Raises UsageError where the file is damaged."""
        read, size_of = self._file.read, SIZE.unpack
        try:
            while prefix := read(SIZE.size):
                if len(prefix) < SIZE.size:
                    self.truncated = True
                    break
                (size,) = size_of(prefix)
                if not HEAD.size <= size <= _EVENT_LIMIT:
                    self._refuse(f"is damaged: it claims to hold an event of {size} bytes")
                event = read(size)
                if len(event) < size:
                    self.truncated = True
                    break
                yield event
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror}")
        finally:
            self._file.close()


def _header(raw: bytes) -> RecordingHeader | None:
    """Return what the JSON says; None if anything in it is missing, of another type or out of range."""
    try:
        fields = orjson.loads(raw)
        header = RecordingHeader(*(fields[name] for name in _HEADER_TYPES))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if any(type(value) is not kind for value, kind in zip(header, _HEADER_TYPES.values(), strict=True)):
        return None
    return header if max(abs(header.clock_offset_ns), abs(header.start_ns)) <= _TIME_LIMIT else None
