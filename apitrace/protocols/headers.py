r"""The head of an HTTP/1 message: bytes to a start line, and to Fields, which say how the body is framed.

`read_head` finds the head that begins at a position and parses it. Only its first line decides whether the bytes are
HTTP/1; header lines are taken as they come, because a message that the server answers with 400 is a call too and is
to be shown. What is accepted beyond RFC 9112: lines that end in a bare LF (section 2.2), obs-fold (5.2, joined by one
space), white space around names, lines without a colon (a name with no value), targets with spaces in them.

Hot path. Heads repeat. A client sends the same fields with every request, or changes one of ten; so whole field
sections, single lines and start lines are remembered by their bytes, in memos that forget everything when they are
full.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

from apitrace.exchange import Header, Headers
from apitrace.protocols.decoder import DecodeError
from apitrace.protocols.detect import METHOD
from apitrace.protocols.memo import Memo, text

NOT_GIVEN, CHUNKED, NOT_CHUNKED, FAULTY = -1, -2, -3, -4
"""Body lengths that are no number: neither header is there; Transfer-Encoding ends in chunked; Transfer-Encoding does
not end in chunked; Content-Length contradicts itself or is not a number."""

BLANK_LINE = re.compile(rb"\n\r?\n")
"""The end of a head: a line end and an empty line, either of them possibly a bare LF."""

_LENGTH_DIGITS = 18  # under 2**63
_STATUS_DIGITS = 3
_SPACE = b" \t\r"
_FOLD = frozenset({b" ", b"\t"})
_VERSIONS = {b"HTTP/1.%d" % minor: "HTTP/1.1" for minor in range(1, 10)} | {b"HTTP/1.0": "HTTP/1.0"}
"""A higher minor version is processed as the highest that is known: RFC 9110 section 2.5."""

_new = tuple.__new__  # NamedTuple's own __new__ is a Python function and takes twice as long


class RequestLine(NamedTuple):
    """A request's first line."""

    method: str
    path: str
    """The target as it was on the wire."""
    version: str
    authority: str | None
    """Of an absolute-form or authority-form target, without user information."""
    scheme: str | None
    """Of an absolute-form target."""


class StatusLine(NamedTuple):
    """A response's first line."""

    version: str
    status_code: int
    reason: str
    """Empty if there is none."""


class Fields(NamedTuple):
    """A field section, and what of it concerns more than its reader."""

    headers: Headers
    length: int
    """Of the body: a number, or CHUNKED and so on."""
    host: str | None
    upgrade: str | None
    expects: bool
    """Expect: 100-continue."""


Start = TypeVar("Start", RequestLine, StatusLine)


class _Odd(Exception):  # noqa: N818 - not an error: it asks for the slow way
    """Lines do not stand for themselves: one ends in a bare LF, or continues the one before."""


def read_head(starts: Memo[Start], data: bytes, pos: int) -> tuple[Start, Fields, int] | None:
    """Return the head at `pos` and the position after it; None if it is not whole. Raises DecodeError."""
    end = data.find(b"\r\n\r\n", pos)
    if end >= 0:
        line_end = data.find(b"\r\n", pos)
        try:
            return starts[data[pos:line_end]], _SECTIONS[data[line_end + 2 : end]], end + 4
        except _Odd:
            pass
    blank = BLANK_LINE.search(data, pos)
    if blank is None:
        return None
    start, *lines = data[pos : blank.start()].split(b"\n")
    return starts[start.rstrip(b"\r")], read_fields(lines), blank.end()


def read_fields(lines: list[bytes]) -> Fields:
    """Return the fields of these lines, which may be folded and may end in a CR."""
    unfolded: list[list[bytes]] = []
    for line in lines:
        if line[:1] in _FOLD and unfolded:
            unfolded[-1].append(line.strip())
        else:
            unfolded.append([line.strip(_SPACE)])
    return _fields(tuple(_header(b" ".join(parts)) for parts in unfolded))


# Field sections.


def _section(section: bytes) -> Fields:
    return _fields(tuple(map(_header_of, section.split(b"\r\n")))) if section else _NO_FIELDS


def _fields(headers: Headers) -> Fields:
    host = upgrade = None
    expects = False
    lengths: list[int] = []
    codings: list[str] = []
    for name, value, _ in [header for header in headers if header[0] in _NOTED]:
        if name == "host":
            host = host or value
        elif name == "content-length":
            lengths += map(_number, value.split(","))
        elif name == "transfer-encoding":
            codings += map(str.strip, value.lower().split(","))
        elif name == "upgrade":
            upgrade = upgrade or value
        else:
            expects = value.lower() == "100-continue"
    return _new(Fields, (headers, _body_length(lengths, codings), host, upgrade, expects))


_NOTED = frozenset({"host", "content-length", "transfer-encoding", "upgrade", "expect"})


def _number(value: str) -> int:
    value = value.strip()
    return int(value) if value.isascii() and value.isdecimal() and len(value) <= _LENGTH_DIGITS else FAULTY


def _body_length(lengths: list[int], codings: list[str]) -> int:
    """RFC 9112 section 6.3, without what depends on method and status."""
    while codings and codings[-1] in {"", "identity"}:  # RFC 2616 had a coding that does nothing
        codings.pop()
    if codings:  # it overrides Content-Length
        return CHUNKED if codings[-1] == "chunked" else NOT_CHUNKED
    if not lengths:
        return NOT_GIVEN
    return lengths[0] if lengths.count(lengths[0]) == len(lengths) else FAULTY


def _name(raw: bytes) -> tuple[str, str]:
    raw_name = text(raw.strip(_SPACE))
    return raw_name.lower(), raw_name


def _header(line: bytes) -> Header:
    if line[:1] in _FOLD or b"\n" in line:
        raise _Odd
    raw, _, value = line.partition(b":")
    name, raw_name = _NAMES[raw]
    return _new(Header, (name, text(value.strip(_SPACE)), raw_name))


_NO_FIELDS = _fields(())
_NAMES: Memo[tuple[str, str]] = Memo(_name)
_HEADER_LINES: Memo[Header] = Memo(_header)
_header_of = _HEADER_LINES.__getitem__
_SECTIONS: Memo[Fields] = Memo(_section)


# Start lines.


def _request_line(line: bytes) -> RequestLine:
    if b"\n" in line:
        raise _Odd
    words = line.split()
    version = _VERSIONS.get(words[-1]) if len(words) >= 3 else None
    if version is None or not line.startswith(words[0]):
        message = "expected an HTTP/1 request line"
        raise DecodeError(message)
    method = _METHODS[words[0]]
    target = words[1] if len(words) == 3 else line.strip()[len(words[0]) : -len(words[-1])].strip()
    path = text(target)
    authority = scheme = None
    if path[0] == "/":  # origin-form: RFC 9112 section 3.2.1
        pass
    elif method == "CONNECT":  # authority-form: section 3.2.3
        authority = path
    else:  # absolute-form: section 3.2.2, or the asterisk
        before, separator, after = path.partition("://")
        if separator and before.isalpha():
            scheme = before.lower()
            authority = re.split("[/?#]", after, maxsplit=1)[0].rpartition("@")[2]
    return _new(RequestLine, (method, path, version, authority, scheme))


def _method(word: bytes) -> str:
    if METHOD.fullmatch(word) is None:
        message = "expected an HTTP/1 request line"
        raise DecodeError(message)
    return word.decode("ascii")


def _status_line(line: bytes) -> StatusLine:
    if b"\n" in line:
        raise _Odd
    words = line.split(None, 2)
    version = _VERSIONS.get(words[0]) if len(words) >= 2 and line.startswith(words[0]) else None
    if version is None or len(words[1]) != _STATUS_DIGITS or not words[1].isdigit() or words[1] < b"100":
        message = "expected an HTTP/1 status line"
        raise DecodeError(message)
    return StatusLine(version, int(words[1]), text(words[2].strip()) if len(words) > 2 else "")


_METHODS: Memo[str] = Memo(_method)
REQUEST_LINES: Memo[RequestLine] = Memo(_request_line)
STATUS_LINES: Memo[StatusLine] = Memo(_status_line)
