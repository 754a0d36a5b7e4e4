"""Content codings undone: bounded, as far as what was kept of a body allows, and never raising.

`decompressed` takes a body and the header fields that name its codings; `undo` takes bytes and one coding, as gRPC
names them for its messages.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # ships no stubs, and there are none
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apitrace.exchange import Header

CODINGS_LIMIT = 4
"""Content codings undone. More than two are not met outside attacks (curl gives up over 5: CVE-2022-32206)."""

ZSTD_WINDOW_LIMIT = 8 << 20
"""Bytes. The largest window that a zstd content coding may use: RFC 9659."""

CODING_HEADERS = frozenset({"content-encoding", "transfer-encoding"})
"""The fields whose values name codings."""


def decompressed(body: bytes, cut: bool, coded: Sequence[Header], limit: int) -> tuple[bytes, bool]:
    """Undo the codings that these headers name: all of them or none. Return also whether bytes are missing."""
    named = ",".join(header.value for header in coded).lower().split(",")
    codings = [coding for coding in map(str.strip, named) if coding not in _NO_CODINGS]
    if len(codings) > CODINGS_LIMIT:
        return body, cut
    shown, whole = body, not cut
    for coding in reversed(codings):
        undone = undo(coding, shown, limit + 1)
        if undone is None:
            return body, cut
        shown = undone[0][:limit]
        whole = whole and undone[1] and len(undone[0]) <= limit
    return shown, not whole


def undo(coding: str, data: bytes, limit: int) -> tuple[bytes, bool] | None:
    """Undo one coding, up to `limit` bytes. Return what could be undone and whether it is all; None for nothing."""
    decompress = _DECOMPRESSORS.get(coding)
    if decompress is None:
        return None
    out = bytearray()
    # A decompressor that fails gives nothing of that call, so what is corrupt is taken again in small steps.
    for step in (len(data), _SMALL_STEP):
        out.clear()
        try:
            whole = decompress(data, limit, step, out)
        except _CORRUPT:
            continue
        return (bytes(out), whole) if out or whole else None
    return (bytes(out), False) if out else None


def _gunzip(data: bytes, limit: int, step: int, out: bytearray) -> bool:
    """Take gzip: one member or several (RFC 1952 section 2.2); what follows that is none is padding."""
    stream = zlib.decompressobj(_GZIP)
    for pos in range(0, len(data), step):
        piece = data[pos : pos + step]
        while piece and len(out) < limit:
            if stream.eof:
                if not piece.startswith(_GZIP_MAGIC[: len(piece)]):
                    return True
                stream = zlib.decompressobj(_GZIP)
            out += stream.decompress(piece, limit - len(out))
            piece = stream.unused_data
    return stream.eof


def _inflate(data: bytes, limit: int, step: int, out: bytearray) -> bool:
    """Take "deflate", which is the zlib format (RFC 9110 section 8.4.1.2), and raw deflate, which many send instead."""
    is_zlib = len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0  # RFC 1950 section 2.2
    stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    for pos in range(0, len(data), step):
        if len(out) < limit:
            out += stream.decompress(data[pos : pos + step], limit - len(out))
    return stream.eof


def _unbrotli(data: bytes, limit: int, step: int, out: bytearray) -> bool:
    """Take brotli (RFC 7932), whose decompressor may keep output back until it is asked again."""
    stream = brotli.Decompressor()
    for pos in range(0, len(data), step):
        piece = data[pos : pos + step]
        while len(out) < limit and (more := stream.process(piece, output_buffer_limit=limit - len(out))):
            out += more
            piece = b""
    return bool(stream.is_finished())


def _unzstd(data: bytes, limit: int, step: int, out: bytearray) -> bool:
    """Take zstd: one frame or several (RFC 8878 section 3.1)."""
    reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_LIMIT)
    stream = reader.decompressobj()
    step = min(step, _ZSTD_STEP)
    for pos in range(0, len(data), step):
        piece = data[pos : pos + step]
        while piece and len(out) < limit:
            if stream.eof:
                stream = reader.decompressobj()
            out += stream.decompress(piece)
            piece = stream.unused_data if stream.eof else b""
    return stream.eof


_GZIP = zlib.MAX_WBITS | 16
_GZIP_MAGIC = b"\x1f\x8b"
_SMALL_STEP = 64
_ZSTD_STEP = 256
"""Bytes taken at a time. zstandard cannot stop at a length, and 4 bytes may stand for a block of 128 KiB (RFC 8878
section 3.1.1.2): so this gives 8 MiB at most."""

_CORRUPT = (zlib.error, brotli.error, zstandard.ZstdError)
_DECOMPRESSORS: dict[str, Callable[[bytes, int, int, bytearray], bool]] = {
    "gzip": _gunzip, "x-gzip": _gunzip, "deflate": _inflate, "br": _unbrotli, "zstd": _unzstd,
}  # fmt: skip
"""Data, how much to give at most, how much to take at a time, where to put it. Return whether the end was reached."""

_NO_CODINGS = frozenset({"", "identity", "chunked"})
