"""HTTP/2 frames (RFC 9113 section 4): their layout, and where they may begin in bytes whose beginning was not seen.

`starts` says whether frames begin at the first byte: headers that keep every rule of their type, each where the one
before it ends. One header of nine bytes is right by chance in one of some million places, so it takes more than one:
a whole header block that is well-formed, or three headers, or a chain that ends exactly with the bytes (if that is a
single frame, one of few forms). It is to be asked of bytes that begin a call of the peer, since peers begin a write
with a frame.

`inside` looks for frames anywhere else. Then a frame's payload may hold what looks like frames, because somebody sends
a recording of HTTP/2. So the chain has to be longer than a frame can be: it does not fit into a payload.
"""

from __future__ import annotations

import re
import struct

from apitrace.protocols.decoder import CLIENT, SERVER, Side
from apitrace.protocols.hpack import Hpack, well_formed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 section 3.4: what a client sends first."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x4, 0x8, 0x20
ACK = 0x1

HEADER = struct.Struct(">HBBBL")
"""Length in two parts, type, flags, stream."""
HEADER_LEN = 9
STREAM_MASK = 0x7FFF_FFFF

DEFAULT_LIMIT = 1 << 14
"""SETTINGS_MAX_FRAME_SIZE before anything is said: RFC 9113 section 6.5.2."""

ENOUGH = 3
"""Headers in a row that are not there by chance."""

_LOOSE = frozenset({DATA, PUSH_PROMISE, CONTINUATION})
"""Types whose headers have many forms: one of them is not enough."""

_ALTSVC, _ORIGIN, _PRIORITY_UPDATE = 0xA, 0xC, 0x10  # RFC 7838, 8336, 9218
_ANY = 1 << 24

_RULES: dict[int, tuple[int, bool | None, int, int, int]] = {
    DATA: (END_STREAM | PADDED, True, 0, _ANY, 1),
    HEADERS: (END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY, True, 1, _ANY, 1),
    PRIORITY: (0, True, 5, 5, 1),
    RST_STREAM: (0, True, 4, 4, 1),
    SETTINGS: (ACK, False, 0, _ANY, 6),
    PUSH_PROMISE: (END_HEADERS | PADDED, True, 5, _ANY, 1),
    PING: (ACK, False, 8, 8, 1),
    GOAWAY: (0, False, 8, _ANY, 1),
    WINDOW_UPDATE: (0, None, 4, 4, 1),
    CONTINUATION: (END_HEADERS, True, 0, _ANY, 1),
    _ALTSVC: (0, None, 2, _ANY, 1),
    _ORIGIN: (0, False, 0, _ANY, 1),
    _PRIORITY_UPDATE: (0, False, 4, _ANY, 1),
}
"""By type: flags there are, whether it has a stream, least and most bytes, and of what their number is a multiple."""

_CANDIDATE = re.compile(
    rb"(?=\x00[\x00-\xff]{2}[\x00-\x0a\x0c\x10][\x00\x01\x04\x05\x08\x09\x0c\x0d\x20-\x2d][\x00-\x7f])", re.DOTALL
)
"""What a frame of less than 64 KiB begins with."""


def is_valid(kind: int, length: int, stream: int) -> bool:
    """Whether a header keeps the rules of its type. Unknown types are to be ignored: RFC 9113 section 5.5."""
    rule = _RULES.get(kind)
    if rule is None:
        return True
    _, has_stream, least, most, multiple = rule
    return least <= length <= most and length % multiple == 0 and (has_stream is None or has_stream is (stream > 0))


def fragment(data: bytes, start: int, end: int, flags: int) -> bytes | None:
    """Return the part of a header block in the payload of a HEADERS frame; None if it has none."""
    if flags & PADDED:
        end -= data[start]
        start += 1
    if flags & WITH_PRIORITY:
        start += 5
    return data[start:end] if start <= end else None


def starts(data: bytes, limit: int = DEFAULT_LIMIT) -> bool | None:
    """Whether frames begin here; None if more bytes are needed to say. `limit`: of a frame's payload."""
    pos, size = 0, len(data)
    count = 0
    while size - pos >= HEADER_LEN:
        end = _plausible(data, pos, limit)
        if end < 0:
            return False
        count += 1
        if count == ENOUGH:
            return True
        if end <= size and data[pos + 3] == HEADERS:
            whole = _block_is_well_formed(data, pos, end)
            if whole is not None:
                return whole
        pos = end
    if pos == size and (count > 1 or (count and data[3] not in _LOOSE)):
        return True
    return None if pos >= size or _may_begin(data[pos:]) else False


def begins_with_settings(data: bytes) -> bool:
    """Whether these frames begin with the settings of a peer, as a connection does: RFC 9113 section 3.4."""
    return data[3] == SETTINGS and not data[4] & ACK


def inside(data: bytes, limit: int = DEFAULT_LIMIT) -> int | None:
    """Return where in these bytes frames surely begin; None if that cannot be said."""
    size = len(data)
    for candidate in _CANDIDATE.finditer(data, 1, max(1, size - limit)):
        pos = start = candidate.start()
        while pos - start <= limit + HEADER_LEN and size - pos >= HEADER_LEN:
            pos = _plausible(data, pos, limit)
            if pos < 0 or pos > size:
                break
        if limit + HEADER_LEN < pos - start and pos <= size:
            return start
    return None


def sender(data: bytes) -> Side | None:
    """Return who sends the frames that begin here, if a header block among them tells."""
    pos, size = 0, len(data)
    while size - pos >= HEADER_LEN:
        hi, lo, kind, flags, _ = HEADER.unpack_from(data, pos)
        start = pos + HEADER_LEN
        pos = start + (hi << 8 | lo)
        if kind == PUSH_PROMISE:
            return SERVER
        if kind == HEADERS and flags & END_HEADERS and pos <= size:
            side = _asks_or_answers(fragment(data, start, pos, flags) or b"")
            if side is not None:
                return side
    return None


def _asks_or_answers(raw: bytes) -> Side | None:
    block = Hpack(joined=True).decode(raw)
    asks = block.method or block.path or block.scheme or block.authority
    answers = block.status or any(name == "grpc-status" for name, _, _ in block.headers)
    if block.cut or bool(asks) is bool(answers):
        return None
    return CLIENT if asks else SERVER


def _plausible(data: bytes, pos: int, limit: int) -> int:
    """Return where a frame that begins here would end; -1 if none does."""
    hi, lo, kind, flags, stream = HEADER.unpack_from(data, pos)
    length: int = hi << 8 | lo
    rule = _RULES.get(kind)
    if rule is None or length > limit or stream > STREAM_MASK or flags & ~rule[0]:
        return -1
    if not is_valid(kind, length, stream) or (kind == SETTINGS and flags and length):
        return -1
    if kind == DATA and not length and not flags:  # allowed, but nobody sends it, and padding looks like it
        return -1
    return pos + HEADER_LEN + length


def _may_begin(rest: bytes) -> bool:
    """Whether these fewer bytes than a header may begin one."""
    if len(rest) < 4:
        return rest[0] == 0
    rule = _RULES.get(rest[3])
    length = int.from_bytes(rest[:3], "big")
    stream = 1 if rule is not None and rule[1] else 0
    return rule is not None and is_valid(rest[3], length, stream) and (len(rest) < 5 or not rest[4] & ~rule[0])


def _block_is_well_formed(data: bytes, pos: int, end: int) -> bool | None:
    flags = data[pos + 4]
    if not flags & END_HEADERS:
        return None
    block = fragment(data, pos + HEADER_LEN, end, flags)
    return bool(block) and well_formed(block or b"") is True
