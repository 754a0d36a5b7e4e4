"""gRPC and gRPC-Web: what the headers, bodies and trailers of an HTTP exchange say of a call.

Sans-IO, and fed by the assembler: `recognise` looks at a request's head, `Call` is then told of what follows, and gives
an exchange.Grpc at the end. Nothing here raises: bytes that are not what gRPC frames look like end the taking apart,
as lost bytes do, and the count of messages is then unknown.

A body is a sequence of messages, each behind a flag and its length ("PROTOCOL-HTTP2" in gRPC's documentation). A
Reader follows that sequence as it passes and notes where each message lies and when it came, but keeps no content:
what the messages say is cut from the beginning of the body that the assembler keeps anyhow, when the call is over.
Only for messages that are shown as they pass (`live`) is their content kept until they are complete. A hole in a body
costs the message around it; one that is longer than what is left of that message hides where the next begins, so
nothing that follows in this body is known.

gRPC-Web ("PROTOCOL-WEB") has its trailers in the body, in a frame with flag 128, which may be compressed as messages
are (connect-go does), and in its text form all that in base64, of which every write may be padded by itself.

A connection that was joined late hides most of this in its HPACK tables: `recognise_late` says what is made of that.

The status is what grpc-status says, in the trailers or, where there is no body, in the headers. Without it there is no
status, whatever the HTTP status is.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson

from apitrace.exchange import CallMessage, Grpc, Header
from apitrace.options import NO_LIVE, CallOptions
from apitrace.protocols import protobuf
from apitrace.protocols.codings import CODING_HEADERS, undo
from apitrace.protocols.decoder import CLIENT, SERVER, DecodeError, Side

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apitrace.exchange import Headers, Request, Response
    from apitrace.options import MessageSchema

STATUSES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""Names of the codes 0 to 16 ("Status codes and their use in gRPC")."""

LISTED_LIMIT = 4096
"""Messages of a body that are listed, at 0.2 KiB each: with the default snap length the first have 16 bytes of body
left each. Those beyond are counted."""

ROOM = 32 << 20
"""Bytes for all open calls together: notes of messages, and content of those that are shown as they pass. Over it
messages are counted and not listed, and shown without content."""
_NOTE_COST = 200

TRAILERS_LIMIT = 16 << 10
"""Bytes of a frame with trailers: gRPC's limit for metadata is 8 KiB by default."""

JSON_DEPTH_LIMIT = 64
"""Levels of a message in JSON that is shown as such; orjson writes 254. What is deeper is shown as text in base64."""

_new = tuple.__new__  # NamedTuple's own __new__ is a Python function and takes twice as long

_PREFIX_LEN = 5
_COMPRESSED, _TRAILERS = 1, 128
_GZIP_MAGIC = b"\x1f\x8b\x08"
_CONTENT_TYPE = re.compile(r"application/grpc(-web(?:-text)?)?(?:\+([a-z0-9.-]+))?", re.ASCII)
_PATH = re.compile(r"/([^/?#]+(?:/[^/?#]+)*)/([^/?#]+)")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNITS_NS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}
_STATUS = re.compile(r"[0-9]{1,9}", re.ASCII)
_OUTSIDE_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")

_NO_METADATA = frozenset({
    "accept", "accept-encoding", "connection", "content-length", "content-type", "date", "host",
    "server", "te", "trailer", "user-agent", "x-grpc-web", "x-user-agent",
})  # fmt: skip
"""Fields of HTTP and of gRPC libraries. Besides these, what begins with "grpc-" is reserved."""


class ContentType(NamedTuple):
    """What a content type says of a gRPC body."""

    web: bool
    text: bool
    codec: str
    """"proto", "json" or whatever else stands behind the plus sign."""


@functools.lru_cache(maxsize=256)
def content_type(value: str) -> ContentType | None:
    """Return what a Content-Type says; None if it is not gRPC's."""
    match = _CONTENT_TYPE.fullmatch(value.partition(";")[0].strip().lower())
    if match is None:
        return None
    web = match[1] or ""
    return ContentType(bool(web), web == "-web-text", match[2] or "proto")


def find_type(headers: Headers) -> ContentType | None:
    """Return what the Content-Type among these says; None if there is none, or not gRPC's."""
    for name, value, _ in headers:
        if name == "content-type":
            return content_type(value) if value[:16].lower() == "application/grpc" else None
    return None


class Room:
    """What is left of ROOM."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = ROOM


class Terms(NamedTuple):
    """What holds for all calls of a capture."""

    room: Room
    offset_ns: int
    """Unix time minus the events' clock."""
    snaplen: int
    options: CallOptions

    @property
    def live(self) -> int | None:
        """How many bytes to keep of each message until it is complete; None if none is wanted as it passes."""
        if self.options.live == NO_LIVE:
            return None
        return self.snaplen if self.options.data else 0


class Framed(NamedTuple):
    """Where a message lies in its body."""

    at: int | None
    """When its first byte was seen, on the events' clock."""
    flags: int
    offset: int
    """Of its content, in the body (taken out of base64)."""
    size: int
    lost: int
    """Bytes of it that were not seen."""


class Passed(NamedTuple):
    """A message to be shown now."""

    side: Side
    ordinal: int
    framed: Framed
    content: bytes


class Reader:
    """Follows the messages of one body."""

    # Class attributes are what a reader begins as: most messages come whole, and set few of them.
    text = False
    count = 0
    """Messages that were complete."""
    stopped = False
    """Where the next message begins is not known, and will not be."""
    trailers: bytes | None = None
    """The content of the frame with trailers."""
    trailers_packed = False
    """It is compressed."""
    unread = False
    """A frame with trailers has passed that cannot be read: bytes of it are lost, or over TRAILERS_LIMIT."""
    passed: list[tuple[int, Framed, bytes]] | None = None
    """What is to be shown now: numbers, places and contents."""
    _kept = 0
    _prefix = b""
    _at: int | None = None
    _flags = 0
    _size = 0
    _left = 0
    _lost = 0
    _start = 0
    _offset = 0
    _content: bytearray | None = None
    _quantum = b""

    def __init__(self, kind: ContentType, room: Room, live: int | None = None) -> None:
        """`live`: how many bytes to keep of each message until it is complete, for it is to be given in `passed`."""
        self.web = kind.web
        self.framed: list[Framed] = []
        """Messages that were complete, as far as they are listed."""
        self._room = room
        if kind.text:
            self.text = True
        if live is not None:
            self.passed = []
            self._kept = live

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._left or self._prefix)

    # -- hot: once per chunk of a body; 1.3 us for one that is a message ---------------------------------------------

    def receive(self, data: bytes, at: int | None) -> None:
        """Take the next bytes of the body."""
        if self.text:
            data = self._out_of_base64(data)
        pos, end = 0, len(data)
        while pos < end and not self.stopped:
            if self._left:
                step = min(self._left, end - pos)
                if self._content is not None:
                    self._keep(data[pos : pos + step])
                self._left -= step
                pos += step
                if not self._left:
                    self._complete()
                continue
            if not self._prefix:
                self._at = at
                size = int.from_bytes(data[pos + 1 : pos + _PREFIX_LEN], "big")
                if end - pos - _PREFIX_LEN == size and data[pos] <= _COMPRESSED and self.passed is None:
                    # One message, and it ends with the chunk: nearly all there are.
                    self._flags, self._size, self._lost = data[pos], size, 0
                    self._start = self._offset + pos + _PREFIX_LEN
                    self._complete()
                    break
            missing = _PREFIX_LEN - len(self._prefix)
            prefix = self._prefix + data[pos : pos + missing]
            pos += missing
            if len(prefix) < _PREFIX_LEN:
                self._prefix = prefix
                break
            self._prefix = b""
            self._begin(prefix, self._offset + pos)
        self._offset += end

    def _begin(self, prefix: bytes, start: int) -> None:
        flags = prefix[0]
        if flags > _COMPRESSED and not (self.web and flags & ~_COMPRESSED == _TRAILERS):
            self.stop()
            return
        self._flags, self._start, self._lost = flags, start, 0
        self._size = self._left = int.from_bytes(prefix[1:], "big")
        if flags & _TRAILERS or self.passed is not None:
            self._content = bytearray()
        if not self._left:
            self._complete()

    def _complete(self) -> None:
        content, self._content = self._content, None
        if self._flags & _TRAILERS:
            if content is not None and len(content) == self._size:
                self.trailers = bytes(content)
                self.trailers_packed = self._flags & _COMPRESSED != 0
            else:
                self.unread = True
            return
        framed = _new(Framed, (self._at, self._flags, self._start, self._size, self._lost))
        if self.count < LISTED_LIMIT and self._room.left > 0:
            self.framed.append(framed)
            self._room.left -= _NOTE_COST
        if self.passed is not None:
            self.passed.append((self.count, framed, bytes(content or b"")))  # its room is given back when it is shown
        self.count += 1

    def _keep(self, data: bytes) -> None:
        assert self._content is not None  # noqa: S101 - for the type checker: the caller has looked
        if self._lost:
            return
        if self._flags & _TRAILERS:
            self._content += data[: TRAILERS_LIMIT - len(self._content)]
            return
        room = max(0, min(self._kept - len(self._content), self._room.left))
        kept = data[:room]
        self._content += kept
        self._room.left -= len(kept)

    # -- rare --------------------------------------------------------------------------------------------------------

    def _out_of_base64(self, data: bytes) -> bytes:
        data = _OUTSIDE_BASE64.sub(b"", self._quantum + data)
        whole = len(data) & ~3
        self._quantum = data[whole:]
        try:
            return b"".join(map(base64.b64decode, _paddings(data[:whole])))
        except binascii.Error:
            self.stop()
            return b""

    def gap(self, size: int) -> None:
        """Take notice that the next bytes of the body were not seen."""
        if self.text or size > self._left:
            self.stop()
            return
        self._left -= size
        self._lost += size
        self._offset += size
        if not self._left:
            self._complete()

    def stop(self) -> None:
        """Take notice that what follows cannot be told."""
        self.stopped = True
        self._left = 0
        self._prefix = b""
        self._give_back()

    def _give_back(self) -> None:
        if self._content is not None and not self._flags & _TRAILERS:
            self._room.left += len(self._content)
        self._content = None

    def close(self) -> None:
        """Give back what is held of the room."""
        self._give_back()
        self._room.left += _NOTE_COST * len(self.framed)


def _paddings(data: bytes) -> Iterable[bytes]:
    """Give the parts of base64 text that end in padding, and the rest."""
    start = 0
    while (pad := data.find(b"=", start)) >= 0:
        stop = pad // 4 * 4 + 4
        yield data[start:stop]
        start = stop
    yield data[start:]


def plain_body(body: bytes) -> bytes:
    """Return what is in base64 in a body of the text form, as far as it goes."""
    reader = Reader(ContentType(True, True, ""), Room())
    return reader._out_of_base64(body)  # noqa: SLF001 - one of this module's own


# -- a call --------------------------------------------------------------------------------------------------------


class Call:
    """A call while it is open."""

    streams = False
    """More than one message has passed on a side, or one was answered before the request had ended."""
    _response: Section | None = None

    def __init__(self, kind: ContentType, headers: Headers, terms: Terms, *, late: bool = False) -> None:
        """Take the head of the request. `late`: some of the body has passed already."""
        self.pending: list[Passed] = []
        """Messages that have passed and were not shown."""
        self._terms = terms
        self._kinds: list[ContentType | None] = [kind, kind]
        self._request = section = read_section(headers)
        self._readers: list[Reader | None] = [None, None]
        if not late and not section.coded:
            self._readers[CLIENT] = Reader(kind, terms.room, terms.live)

    def respond(self, headers: Headers, unsure: bool) -> None:
        """Take the head of the response. `unsure`: its Content-Type may be one that could not be decoded."""
        kind = find_type(headers)
        if kind is None and unsure and not any(header.name == "content-type" for header in headers):
            kind = self._kinds[CLIENT]
        self._kinds[SERVER] = kind
        self._response = section = read_section(headers)
        if kind is not None and not section.coded:
            self._readers[SERVER] = Reader(kind, self._terms.room, self._terms.live)

    def receive(self, side: Side, data: bytes, at: int) -> None:
        """Take bytes of a body. In `pending` is then what has passed, if that is wanted."""
        reader = self._readers[side]
        if reader is not None:
            reader.receive(data, at)
            if reader.passed:
                self.pending += [Passed(side, *passed) for passed in reader.passed]
                reader.passed.clear()

    def take(self) -> list[Passed]:
        """Return what is pending; it is no longer."""
        taken = self.pending
        if taken:
            self.pending = []
            self._terms.room.left += sum([len(passed.content) for passed in taken])
        return taken

    def gap(self, side: Side, size: int) -> None:
        """Take notice that bytes of a body were not seen."""
        reader = self._readers[side]
        if reader is not None:
            reader.gap(size)

    def stop(self, side: Side) -> None:
        """Take notice that what follows in a body cannot be told."""
        reader = self._readers[side]
        if reader is not None:
            reader.stop()

    def count(self, side: Side) -> int:
        """Return how many messages have passed."""
        reader = self._readers[side]
        return 0 if reader is None else reader.count

    def message(self, passed: Passed, path: str | None) -> CallMessage:
        """Return a message that has passed."""
        return self._message(passed.side, passed.framed, passed.content, path)

    def close(
        self,
        path: str | None,
        bodies: tuple[tuple[bytes, bool], tuple[bytes, bool]],
        response: Response | None,
    ) -> tuple[Grpc, tuple[str, ...]]:
        """Return what the call was, and the record's fields of it that could not be recovered.

        `bodies`: what was kept of each body, and whether that is only its beginning.
        """
        self.take()
        unknown: tuple[str, ...] = ()
        (requests, request_count), (responses, response_count) = (
            self._close_side(side, body, cut, path) for side, (body, cut) in enumerate(bodies)
        )
        if request_count is None and self._kinds[CLIENT] is not None:
            unknown += ("grpc.requests",)
        if response_count is None and self._kinds[SERVER] is not None:
            unknown += ("grpc.responses",)
        service, method = names(path)
        first, end = self._request, _NOTHING
        if response is None:
            last = _NOTHING
        else:
            last = self._response or read_section(response.headers)
            end = read_section(response.trailers) if response.trailers else _NOTHING
        reader = self._readers[SERVER]
        if reader is not None and reader.trailers is not None:
            end = self._web_end(reader, reader.trailers)
        code = _status_code(last.status if end.status is None else end.status)
        if code is None and reader is not None and reader.web and (reader.stopped or reader.unread):
            unknown += ("grpc.status_code",)
        details = last.message if end.message is None else end.message
        return _new(
            Grpc,
            (service, method, code, STATUSES[code] if code is not None and code < len(STATUSES) else None,
             None if details is None else _percent_decoded(details), timeout_ns(first.timeout), first.metadata,
             last.metadata, end.metadata, requests, responses, request_count, response_count),
        ), unknown  # fmt: skip

    def _close_side(
        self, side: Side, body: bytes, cut: bool, path: str | None
    ) -> tuple[tuple[CallMessage, ...], int | None]:
        """Return the messages of a side that are listed, and how many there were if that is known."""
        reader = self._readers[side]
        if reader is None:
            if not (body or cut):
                return (), 0
            reader = self._replayed(side, body, cut)
            if reader is None:
                return (), None
        messages: tuple[CallMessage, ...] = ()
        if reader.framed:
            if reader.text:
                body = plain_body(body)
            messages = tuple([
                self._message(side, framed, body[framed[2] : framed[2] + framed[3]], path) for framed in reader.framed
            ])  # fmt: skip
        count = None if reader.stopped else reader.count
        reader.close()
        return messages, count

    def _replayed(self, side: Side, body: bytes, cut: bool) -> Reader | None:
        """Take apart a body that could not be followed as it passed: it has a content coding, or was not known."""
        kind = self._kinds[side]
        if kind is None or not (body or cut):
            return None
        self._readers[side] = reader = Reader(kind, self._terms.room)
        reader.receive(body, None)
        if cut:
            reader.stop()
        return reader

    def _web_end(self, reader: Reader, trailers: bytes) -> Section:
        """Return what the frame with trailers says; where that cannot be told, it is unread."""
        if reader.trailers_packed:
            undone = self._unpacked(SERVER, trailers, TRAILERS_LIMIT)
            if undone is None or not undone[1]:
                reader.unread = True
                return _NOTHING
            trailers = undone[0]
        return read_section(_web_trailers(trailers))

    def _unpacked(self, side: Side, content: bytes, limit: int) -> tuple[bytes, bool] | None:
        """Return what was compressed, up to the limit, and whether that is all; None if it cannot be told."""
        section = self._request if side == CLIENT else self._response or _NOTHING
        # gzip says itself that it is, where grpc-encoding is not known.
        coding = section.coding or ("gzip" if content.startswith(_GZIP_MAGIC) else "")
        undone = undo(coding, content, limit + 1)
        return None if undone is None else (undone[0][:limit], undone[1] and len(undone[0]) <= limit)

    def _message(self, side: Side, framed: Framed, content: bytes, path: str | None) -> CallMessage:
        _, offset_ns, limit, options = self._terms
        at, flags, _, size, _ = framed
        cut = len(content) < size
        data: Any = None
        encoding = None
        if options.data and (content or not size):
            readable = True
            if flags & _COMPRESSED and content:
                undone = self._unpacked(side, content, limit)
                readable = undone is not None
                if undone is not None:
                    content, whole = undone
                    cut = cut or not whole
            kind = self._kinds[side]
            codec = kind.codec if readable and kind is not None else ""
            data, encoding = _value(content, cut, codec, path, side, options.schema)
        timestamp = None if at is None else at + offset_ns
        return _new(CallMessage, (timestamp, size, flags & 1 == 1, data, encoding, cut or not options.data))


def recognise(headers: Headers, terms: Terms) -> Call | None:
    """Return the call that a request begins; None if its head does not say that it is one."""
    kind = find_type(headers)
    return None if kind is None else Call(kind, headers, terms)


def recognise_response(request: Headers, response: Headers, terms: Terms) -> Call | None:
    """Return the call that the head of a response shows an exchange to be, whose request did not."""
    kind = find_type(response)
    if kind is None:
        return None
    call = Call(kind, request, terms, late=True)
    call.respond(response, unsure=False)
    return call


def recognise_late(
    request: Request, response: Response | None, unknown: tuple[str, ...], terms: Terms
) -> Call | None:
    """Return the call that an exchange turns out to have been, none of whose fields could say so.

    That is what calls look like on a connection that was joined late: Content-Type and, for good, grpc-status are in
    the table that was made before (RFC 7541), so they are unknown. Either a status is there nevertheless, or a body is
    made of whole messages to its last byte and none is not: 38 bits that agree by chance in no other protocol.
    """
    heads = (request.headers, response.headers if response is not None else ())
    if "request.headers" not in unknown or any(header.name == "content-type" for head in heads for header in head):
        return None
    if request.method not in (None, "POST"):
        return None
    if response is not None:
        if any(header.name == "grpc-status" for header in (*response.headers, *response.trailers)):
            return Call(_UNKNOWN_TYPE, request.headers, terms, late=True)
        if "response.headers" not in unknown:
            return None
    found = [_is_framed(message.body, message.truncated) for message in (request, response) if message is not None]
    if True not in found or False in found:
        return None
    return Call(_UNKNOWN_TYPE, request.headers, terms, late=True)


def _is_framed(body: bytes, cut: bool) -> bool | None:
    """Whether a body is made of messages; None if it could be."""
    reader = Reader(_UNKNOWN_TYPE, Room())
    reader.receive(body, None)
    if reader.stopped:
        return False
    return None if cut or not body else not reader.inside


_UNKNOWN_TYPE = ContentType(web=True, text=False, codec="proto")
"""What the messages of a call are taken to be whose Content-Type is unknown: they are guesses anyhow. Only gRPC-Web has
frames with trailers, and of a body that has one they tell the status."""

# -- parts of a call -----------------------------------------------------------------------------------------------

def _value(
    content: bytes, cut: bool, codec: str, path: str | None, side: Side, schema: MessageSchema | None
) -> tuple[Any, str]:
    """Return what a message says, and how that is to be read."""
    if codec == "proto":
        service, method = names(path) if schema is not None else (None, None)
        if schema is not None and service is not None and method is not None:
            try:
                fields = schema.decode(service, method, request=side == CLIENT, data=content, cut=cut)
            except DecodeError:
                fields = None
            if fields is not None:
                return fields, "proto"
        try:
            return protobuf.decode(content, cut=cut), "guess"
        except DecodeError:
            pass
    elif codec == "json" and not cut:
        try:
            data = orjson.loads(content)
        except orjson.JSONDecodeError:
            pass
        else:
            if _depth_at_most(data, JSON_DEPTH_LIMIT):
                return data, "json"
    return binascii.b2a_base64(content, newline=False).decode("ascii"), "base64"


def _depth_at_most(value: Any, limit: int) -> bool:
    level = [value]
    while level and limit:
        limit -= 1
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner
    return not level


@functools.lru_cache(maxsize=1024)
def names(path: str | None) -> tuple[str | None, str | None]:
    """Return service and method of a path; None for both if it is not made of them."""
    match = _PATH.match(path or "")
    return (match[1], match[2]) if match else (None, None)


def timeout_ns(value: str | None) -> int | None:
    """Return the time that a grpc-timeout gives; None if there is none, or none that can be read."""
    match = _TIMEOUT.fullmatch(value or "")
    return int(match[1]) * _UNITS_NS[match[2]] if match else None


def _padded(value: str) -> str:
    """Return base64 with the padding that gRPC leaves out; a comma joins values.

    C core sends its like the bytes themselves, behind a zero byte (GRPC_ALLOW_TRUE_BINARY_METADATA, a setting of
    HTTP/2); hpack.py reads these as Latin-1.
    """
    if value[:1] == "\0":
        raw = value[1:].encode("latin-1", "replace")
        return binascii.b2a_base64(raw, newline=False).decode("ascii")
    return ",".join(each + "=" * (-len(each) % 4) for each in map(str.strip, value.split(",")))


def _percent_decoded(value: str) -> str:
    raw = unquote_to_bytes(value.encode("utf-8", "surrogatepass"))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _status_code(value: str | None) -> int | None:
    return int(value) if value is not None and _STATUS.fullmatch(value) else None


_FRAMINGS = frozenset({"", "identity", "chunked"})

_SAID = dict.fromkeys(_NO_METADATA) | dict.fromkeys(CODING_HEADERS, "body") | {
    "grpc-encoding": "coding", "grpc-timeout": "timeout", "grpc-status": "status", "grpc-message": "message",
}  # fmt: skip
"""Fields that are not the application's: None, or what they tell of."""


class Section(NamedTuple):
    """What the fields of a header or trailer section say of a call."""

    coding: str = ""
    """Of messages that are compressed."""
    coded: bool = False
    """The body as a whole has a coding, so its messages cannot be seen as it passes."""
    timeout: str | None = None
    status: str | None = None
    message: str | None = None
    metadata: Headers = ()


_SECTIONS: dict[int, tuple[Headers, Section]] = {}
"""What tuples of fields say, by their identity: hpack.py gives the same tuple for a block that repeats, which those of
most answers do. Each is held here, so no other can have its identity."""
_SECTIONS_LIMIT = 256
"""At some 2 KiB each. Those that do not repeat push out the rest, which is then read again."""
_SECTION_LEN_LIMIT = 2048
"""Characters of values in a section that is remembered; larger ones (tokens) rarely repeat."""


def read_section(headers: Headers) -> Section:
    """Return what these fields say."""
    known = _SECTIONS.get(id(headers))
    if known is not None:
        return known[1]
    section = _read_section(headers)
    if sum([len(header[1]) for header in headers]) > _SECTION_LEN_LIMIT:
        return section
    if len(_SECTIONS) >= _SECTIONS_LIMIT:
        _SECTIONS.clear()
    _SECTIONS[id(headers)] = (headers, section)
    return section


def _read_section(headers: Headers) -> Section:
    coding, coded = "", False
    timeout = status = message = None
    own = []
    for header in headers:
        name = header[0]
        if name in _SAID:
            tells = _SAID[name]
            if tells is None:
                continue
            if tells == "status":
                status = header[1]
            elif tells == "message":
                message = header[1]
            elif tells == "coding":
                coding = header[1].strip().lower()
            elif tells == "timeout":
                timeout = header[1]
            elif header[1].strip().lower() not in _FRAMINGS:
                coded = True
        elif name[-4:] == "-bin":
            own.append(header._replace(value=_padded(header[1])))
        elif name[:5] != "grpc-":
            own.append(header)
    return _new(Section, (coding, coded, timeout, status, message, tuple(own)))


_NOTHING = Section()


def _web_trailers(raw: bytes) -> Headers:
    """Return the fields of a frame with trailers: lines as in HTTP/1."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    fields = []
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields.append(Header(name.strip().lower(), value.strip(), name.strip()))
    return tuple(fields)
