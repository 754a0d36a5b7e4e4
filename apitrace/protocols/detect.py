"""What a stream chunk begins with: HTTP/1, HTTP/2, TLS, too little to say, or none of these.

`detect` looks at the first bytes that are at hand and at nothing else; it keeps no state and never raises. It may
be asked at the beginning of a stream or at the beginning of any later chunk. It errs towards "no": a positive
answer needs either the full start line, or a method of the registry followed by a path or an http URL, so that
"GET key" of a key-value protocol and "OPTIONS * RTSP/1.0" are not taken for HTTP. HTTP/2 without its preface needs
frames that follow each other (frames.py), and a header block among them that tells who sends them. NOT_YET means that
more bytes could still make it one of the protocols; for a line it is given for at most LINE_LIMIT bytes.
"""

from __future__ import annotations

import enum
import re

from apitrace.protocols import frames
from apitrace.protocols.decoder import CLIENT

LINE_LIMIT = 8192
"""Bytes of an incomplete request line that may still be one. RFC 9112 section 3 asks servers for 8000 at least;
nginx (large_client_header_buffers), Apache (LimitRequestLine) and Tomcat take about 8 KiB."""

METHOD_LIMIT = 32
"""Bytes of a method. The longest registered one, UPDATEREDIRECTREF, has 17."""


class Detection(enum.Enum):
    """What the bytes begin with."""

    HTTP1_REQUEST = "HTTP/1 request"
    HTTP1_RESPONSE = "HTTP/1 response"
    HTTP2_PREFACE = "HTTP/2 preface"
    HTTP2_SETTINGS = "HTTP/2 SETTINGS, with which a server begins"
    HTTP2_REQUEST = "HTTP/2 frames of a client"
    HTTP2_RESPONSE = "HTTP/2 frames of a server"
    TLS = "TLS handshake"
    NOT_YET = "too short to say"
    UNKNOWN = "none of these"


_TOKEN = rb"[!#$%%&'*+\-.^_`|~0-9A-Za-z]{1,%d}" % METHOD_LIMIT  # RFC 9110 section 5.6.2
_TARGET = rb"[^\x00-\x20\x7f]+"

# The methods that are seen in the wild: RFC 9110, RFC 5789, WebDAV (RFC 4918, 3253, 5323), QUERY.
_METHODS = (
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"CONNECT", b"QUERY",
    b"PROPFIND", b"PROPPATCH", b"MKCOL", b"COPY", b"MOVE", b"LOCK", b"UNLOCK", b"REPORT", b"SEARCH",
)  # fmt: skip
_KNOWN = b"(?:%b)" % b"|".join(_METHODS)
_LINE_REST = rb"[ \t]+%b[ \t]+HTTP/1\.[0-9][ \t]*\r?\n" % _TARGET
_PARTIAL_REST = rb"[ \t]+(?:%b(?:[ \t]+[HTP/.0-9]{0,8}[ \t]*\r?)?)?\Z" % _TARGET

METHOD = re.compile(_TOKEN)
REQUEST_LINE = re.compile(_TOKEN + _LINE_REST)
KNOWN_REQUEST_LINE = re.compile(_KNOWN + _LINE_REST)
STATUS_LINE = re.compile(rb"HTTP/1\.[0-9][ \t]+[1-9][0-9][0-9][ \t\r\n]")

_KNOWN_REQUEST = re.compile(_KNOWN + rb" (?:/|https?://)")
_PARTIAL_REQUEST_LINE = re.compile(rb"%b(?:\Z|%b)" % (_TOKEN, _PARTIAL_REST))
_PARTIAL_KNOWN_REQUEST_LINE = re.compile(_KNOWN + _PARTIAL_REST)
_PARTIAL_STATUS_LINE = re.compile(rb"HTTP/1\.(?:[0-9](?:[ \t]+[0-9]{0,3})?)?\Z")

_TLS_HANDSHAKE = 0x16
_TLS_HELLOS = (1, 2)  # ClientHello, ServerHello
_TLS_RECORD_LIMIT = 1 << 14  # RFC 8446 section 5.1: a plaintext record's payload
_BLANK = b"\r\n"


def detect(data: bytes) -> Detection:
    """Say what the stream or chunk that begins with these bytes is."""
    if data[:1] in {b"\r", b"\n"}:  # empty lines before a request are to be ignored: RFC 9112 section 2.2
        data = data.lstrip(_BLANK)
    if not data:
        return Detection.NOT_YET
    first = data[0]
    if first == _TLS_HANDSHAKE:
        return _tls(data)
    if first == 0x48 and STATUS_LINE.match(data):  # "H"
        return Detection.HTTP1_RESPONSE
    if first == 0:
        return _frames(data)
    if first == 0x50 and data.startswith(frames.PREFACE):  # "P"
        return Detection.HTTP2_PREFACE
    if REQUEST_LINE.match(data):
        return Detection.HTTP1_REQUEST
    if len(data) < LINE_LIMIT and b"\n" not in data:
        if _KNOWN_REQUEST.match(data):
            return Detection.HTTP1_REQUEST
        if _PARTIAL_REQUEST_LINE.match(data) or may_become_response(data):
            return Detection.NOT_YET
    elif first == 0x50 and frames.PREFACE.startswith(data):
        return Detection.NOT_YET
    return Detection.UNKNOWN


def may_become_request(data: bytes) -> bool:
    """Whether more bytes could make this a request line with a known method."""
    if len(data) >= LINE_LIMIT:
        return False
    return _PARTIAL_KNOWN_REQUEST_LINE.match(data) is not None or any(each.startswith(data) for each in _METHODS)


def may_become_response(data: bytes) -> bool:
    """Whether more bytes could make this a status line."""
    if len(data) < 7:
        return b"HTTP/1.".startswith(data)
    return _PARTIAL_STATUS_LINE.match(data) is not None


def _frames(data: bytes) -> Detection:
    """Frames of less than 64 KiB: the first byte is 0."""
    begins = frames.starts(data)
    if begins is False:
        return Detection.UNKNOWN
    side = frames.sender(data)
    if side is not None:
        return Detection.HTTP2_REQUEST if side == CLIENT else Detection.HTTP2_RESPONSE
    return Detection.HTTP2_SETTINGS if begins and frames.begins_with_settings(data) else Detection.NOT_YET


def _tls(data: bytes) -> Detection:
    """A handshake record (RFC 8446 section 5.1): type, version 3.x, length, and in it a hello."""
    if len(data) >= 2 and data[1] != 3:
        return Detection.UNKNOWN
    if len(data) >= 3 and data[2] > 4:
        return Detection.UNKNOWN
    if len(data) < 6:
        return Detection.NOT_YET
    size = data[3] << 8 | data[4]
    return Detection.TLS if data[5] in _TLS_HELLOS and 4 <= size <= _TLS_RECORD_LIMIT else Detection.UNKNOWN
