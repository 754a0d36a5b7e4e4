"""HTTP/1.0 and HTTP/1.1 (RFC 9112), both directions of one connection, seen by an observer.

Fulfils the contract of decoder.py: bytes in, messages out, `DecodeError` for what is not HTTP/1, nothing else. It
is lenient where peers are (headers.py says how) and where strictness would hide a call: a request whose framing is
faulty is shown, marked, with the 400 that answers it. Bodies are passed on as they come. What is buffered, an
incomplete head or line and the answers that wait for their request, is bounded by the limits below. When bytes that
are not HTTP/1 follow messages in one chunk, the messages are returned and the next call raises. Switched is always the
last message.

Which answer belongs to which request
-------------------------------------
HTTP/1 has no identifiers: the nth final response answers the nth request. The decoder is built to never report a
wrong pair. Where it cannot tell, a request ends with "response" among its unknown fields, and a response becomes an
*orphan*: an exchange of its own, with a number of its own, whose request is unknown.

1. As long as both directions are whole from the first byte, counting is exact, whatever order the two directions are
   reported in. A large blocking send is reported when it returns, possibly after its answer was read, so an answer
   may arrive while no request waits. It is held, as it came, until its request arrives. If more is to be held than
   HELD_LIMIT, what is over it becomes a gap: the pair stays right, and body bytes are marked as lost.
2. A gap that ends inside a body, or exactly at its end, costs those body bytes and nothing else.
3. A longer gap in the *requests* may hide any number of them. The responses are whole, so the answers to the requests
   before the gap are still counted. After those, an answer that arrives while no request waits is an orphan at once.
   If one request waits, and the answer began after it, and the client takes turns (5), then they belong together:
   whatever was asked in the gap had been answered before that request began. (An orphan that began while its head
   was incomplete was its answer.) Joining a connection in the middle is such a gap before its first request.
4. A longer gap in the *responses* may hide any number of them. If the client takes turns, only its last request can
   still wait for an answer, so the next answer belongs to that one, and the answers to those before it are lost. But
   the last request that was seen is the last only if none was lost with the answers, and a gap becomes known with the
   bytes after it. So if that request began before the loss was known, the answer is held until the requests go on: if
   without a gap, the pair is right, otherwise, or if the connection is given up before, the answer is an orphan.
5. A client *takes turns* unless it was seen not to: two requests began in one chunk; an answer was seen to end after
   a later request had begun; or, with no answer missed, an answer found no request waiting, or more than one where
   one was expected. TURNS proper turns in a row end the doubt, and an answer that comes early is held again as in 1.
   The answers to a client that pipelines cannot be told apart after a gap of kind 3 or 4: its waiting requests lose
   their answers, and what answers come are orphans.

What a loss can hide, and so could make a pair wrong: that a client which was not seen to pipeline does; and that a
further request is in a blocked send, already answered, at the moment that the request before it or its answer is lost.

A body is never searched for messages. After a loss the decoder skips until a received chunk *begins* with a whole
request line of a known method, or with a status line, since peers begin a message with a write of its own.

Orphans are framed without knowing the method. The answer to a HEAD has the header of a body but no body, so a
body is only begun when its first bytes are not a status line. A tunnel after an unseen CONNECT looks like a body that
ends with the connection.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from apitrace.exchange import Headers
from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    DecodeError,
    End,
    Failed,
    Lost,
    Message,
    RequestHead,
    ResponseHead,
    Side,
    Switched,
    Trailers,
)
from apitrace.protocols.detect import (
    KNOWN_REQUEST_LINE,
    LINE_LIMIT,
    METHOD,
    STATUS_LINE,
    may_become_request,
    may_become_response,
)
from apitrace.protocols.headers import (
    BLANK_LINE,
    CHUNKED,
    FAULTY,
    NOT_GIVEN,
    REQUEST_LINES,
    STATUS_LINES,
    Fields,
    RequestLine,
    Start,
    StatusLine,
    read_fields,
    read_head,
)
from apitrace.protocols.memo import Memo

HEAD_LIMIT = 256 << 10
"""Bytes of a head or a trailer section that is not whole. An observer must take what any peer takes: Node 16 KiB, nginx
32 KiB, Chrome 256 KiB, curl 300 KiB, Go 1 MiB by default. Over it the head counts as lost, as by a gap."""

CHUNK_LINE_LIMIT = 16 << 10
"""Bytes of a chunk-size line with its extensions. Go takes 4 KiB, Node 16 KiB. Over it the framing is faulty."""

PENDING_LIMIT = 16384
"""Requests that wait for an answer: 2 MiB. Pipelining clients go to some 16 (TechEmpower) or 1,000, after which nginx
closes (keepalive_requests). Over it DecodeError: what is seen is not a conversation."""

HELD_LIMIT = 256 << 10
"""Bytes of answers that wait for their request, each chunk counted with HELD_ENTRY_COST more. An answer that overtakes
its request is an error page, as the upload still runs: nginx's have 150 to 600 bytes, and Linux's default socket
buffer (tcp_rmem) is 128 KiB. Over it the rest is marked as lost."""
HELD_ENTRY_COST = 128
"""A _Held, an integer and the head of a bytes object."""

TURNS = 16
"""Turns in a row after which a client counts as taking turns, whatever was seen before. Two CPUs may report the end of
an answer and the request that follows it in the wrong order, and that doubt must not last. A client that pipelines
(TechEmpower: 16 deep) does so again within as many."""

REQUEST, RESPONSE, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, UNTIL_CLOSE, PEEK, RESYNC, IGNORE = range(11)
"""What a direction is in the middle of: the head of a request or response, a body of known length, a chunk's size line,
data or line end, the trailer section, a body that ends with the connection; before a body that may not be there (PEEK),
skipping to the next sure message start (RESYNC), beyond HTTP/1 (IGNORE)."""

UPGRADE = "h2c"
UPGRADED_STREAM = 1
"""To HTTP/2, where the request that asked for it is answered: RFC 7540 section 3.2."""

_HEADS = frozenset({REQUEST, RESPONSE})
_STARTS = frozenset({REQUEST, RESPONSE, PEEK, RESYNC})
_SECTIONS = frozenset({REQUEST, RESPONSE, TRAILERS})
_BODY_BEGINS = frozenset({LENGTH, CHUNK_SIZE})
_COUNTED = frozenset({LENGTH, CHUNK_DATA})

_ORPHAN_UNKNOWN = ("request.method", "request.path", "request.authority", "request.headers", "request.body")
_NAMES = {CLIENT: "request", SERVER: "response"}
_HEAD_STATES = {CLIENT: REQUEST, SERVER: RESPONSE}
_START_LINES = {CLIENT: KNOWN_REQUEST_LINE, SERVER: STATUS_LINE}
_MAY_START = {CLIENT: may_become_request, SERVER: may_become_response}

_LINE_ENDS = b"\r\n"
_CHUNK_LINE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_SECTION_END = re.compile(rb"\A\r?\n|\n\r?\n")

# NamedTuple's own __new__ is a Python function: 0.24 us a message against 0.10 us, five messages an exchange.
_new = tuple.__new__


class _Exchange:
    """A request that was seen, or an orphan's stand-in for it, until both of its messages have ended."""

    __slots__ = ("answered", "at", "expects", "method", "requesting", "stream", "sure", "upgrade")

    def __init__(
        self, stream: int, at: int, method: str | None, sure: bool, upgrade: str | None, expects: bool
    ) -> None:
        self.stream = stream
        self.at = at
        self.method = method
        self.sure = sure
        """No request can be missing between the one before and this one."""
        self.requesting = method is not None
        """The request has not ended."""
        self.answered = False
        """The response has ended; the exchange does not wait any more."""
        self.upgrade = upgrade
        self.expects = expects
        """Its body waits for a 100 (Continue) that has not come."""


_NOBODY = _Exchange(0, 0, None, sure=False, upgrade=None, expects=False)


class _Reader:
    """One direction: what it is in the middle of, and the bytes of an incomplete head or line."""

    __slots__ = ("began", "body", "buffer", "exchange", "headed", "remaining", "scanned", "side", "state", "total")

    def __init__(self, side: Side, state: int) -> None:
        self.side = side
        self.state = state
        self.exchange = _NOBODY
        """Whose message is being read, from the end of its head to its end."""
        self.body = state
        """The state that PEEK goes on with."""
        self.remaining = 0
        """Bytes still to come, of the body or of the chunk."""
        self.total = 0
        """Bytes of the body, or of the chunks begun so far."""
        self.headed = 0
        """Time of the head's last byte."""
        self.buffer = bytearray()
        self.began: int | None = None
        """Time of the buffer's first byte, if a message may begin there."""
        self.scanned = 0
        """No section ends in the buffer before this."""


class _Held(NamedTuple):
    """What befell the server's direction and waits to be read: a chunk, a gap, or (neither) its end."""

    at: int
    data: bytes = b""
    gap: bool = False
    size: int | None = 0


_Step = Callable[["Http1", _Reader, bytes, int, int, list[Message]], int]


class Http1:
    """The decoder of one connection. `joined`: it was joined in the middle, so either side may begin mid-message."""

    __slots__ = (
        "_answers_lost", "_asked_all", "_error", "_held", "_held_cost", "_hole", "_last_known", "_lost_at",
        "_orphaned_at", "_over", "_pending", "_pipelines", "_requests", "_responses", "_rest", "_streams", "_switching",
        "_turns", "_whole", "switched",
    )  # fmt: skip

    def __init__(self, *, joined: bool = False) -> None:
        self._requests = _Reader(CLIENT, RESYNC if joined else REQUEST)
        self._responses = _Reader(SERVER, RESYNC if joined else RESPONSE)
        self._pending: deque[_Exchange] = deque()
        """Exchanges whose response has not ended, in the order of their requests. The first one's may have begun."""
        self._streams = 0
        self._whole = not joined
        """All requests so far were seen, and more can come: an answer to none of them is early. See rule 1."""
        self._hole = joined
        """Requests may be missing after the last pending one."""
        self._answers_lost = False
        """Answers to any number of the pending requests may be missing."""
        self._lost_at = 0
        """When that became known."""
        self._asked_all = False
        """The client has ended its direction."""
        self._orphaned_at: int | None = None
        """When the last orphan began."""
        self._pipelines = False
        """The client was seen not to take turns, and not to have taken TURNS of them since."""
        self._turns = 0
        """Turns taken since the last doubt, up to TURNS."""
        self._held: list[_Held] = []
        """What waits to be read, in order: rules 1 and 4."""
        self._held_cost = 0
        self._last_known = False
        """No request can be missing after the last pending one, up to the time that held answers were seen."""
        self._switching: str | None = None
        """The protocol that follows when the request that asked for it has ended."""
        self._rest = (bytearray(), bytearray())
        """What each side sent behind its last message, if HTTP/2 goes on with it."""
        self._error: DecodeError | None = None
        self._over = False
        self.switched = False
        """The connection has left HTTP/1: a Switched message was given, and everything after it is ignored."""

    @property
    def open_exchanges(self) -> int:
        """How many exchanges have begun and not ended."""
        return len(self._pending) + self._requests.exchange.answered

    def receive(self, side: Side, data: bytes, at: int) -> list[Message]:
        """Take the next bytes that `side` sent, seen at `at`. Raises DecodeError."""
        out: list[Message] = []
        if self._over:
            return self._refuse()
        try:
            if side == CLIENT:
                if self._held and not self._requests.buffer:
                    self._release(out)
                self._read(self._requests, data, at, out)
                if self._held:
                    self._release(out, last=False)
            elif self._held:
                self._hold(_Held(at, data))
            else:
                self._read(self._responses, data, at, out)
        except DecodeError as error:
            self._break(error, out)
        return out

    def gap(self, side: Side, size: int | None, at: int) -> list[Message]:
        """Take notice that the next `size` bytes that `side` sent were not seen (None: an unknown number)."""
        out: list[Message] = []
        if self._over:
            return self._refuse()
        try:
            if size == 0:
                pass
            elif side == CLIENT:
                self._skip(self._requests, size, at, out)
                self._release(out)
            elif self._held:
                self._hold(_Held(at, gap=True, size=size))
            else:
                self._skip(self._responses, size, at, out)
        except DecodeError as error:
            self._break(error, out)
        return out

    def finish(self, side: Side, at: int) -> list[Message]:
        """Take notice that `side` has sent its last byte (FIN, EOF): ends a close-delimited body.

        If the client's has come before the server's, only the connection's end says who gave up: `close` tells.
        """
        out: list[Message] = []
        if self._over:
            return self._refuse()
        try:
            if side == CLIENT:
                self._finish_requests(at, out)
                self._release(out)
            elif self._held:
                self._hold(_Held(at))
            else:
                self._finish_responses(at, out)
        except DecodeError as error:
            self._break(error, out)
        return out

    def close(self, at: int, kind: str, detail: str) -> list[Message]:
        """The connection is gone, or is no longer followed: every open exchange ends, as `Failed` of this kind."""
        out: list[Message] = []
        requests, responses, pending = self._requests, self._responses, self._pending
        try:
            self._finish_requests(at, out)
            self._hole = True  # nothing says that the last request seen was the last
            self._release(out)
            self._settle_response(at, out)
        except DecodeError:  # what was buffered is not HTTP/1, so no exchange is in it
            pass
        if requests.exchange.answered:
            pending.append(requests.exchange)
        for exchange in pending:
            lacks = [detail]
            if exchange is requests.exchange:
                lacks.append(_lack(requests))
            if exchange is responses.exchange:
                lacks.append(_lack(responses))
            elif self._answers_lost and not exchange.answered:
                out.append(Lost(exchange.stream, at, SERVER, 0, ("response",)))
            out.append(Failed(exchange.stream, at, kind, "; ".join(filter(None, lacks))))
        pending.clear()
        for reader in (requests, responses):
            self._lose(reader, at)
            reader.state = IGNORE
        self._over = True
        self._error = None
        return out

    # Reading: the hot path. receive -> _read -> a step per state -> read_head.

    def _read(self, reader: _Reader, data: bytes, at: int, out: list[Message]) -> None:
        if reader.buffer:
            data = self._join(reader, data, at, out)
        pos, size = 0, len(data)
        while pos < size:
            pos = self._STEPS[reader.state](self, reader, data, pos, at, out)

    def _read_request(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        shared = pos > 0  # the chunk began with something else of this client
        if data[pos] in _LINE_ENDS:
            pos = _skip_line_ends(data, pos)
            if pos == len(data):
                return pos
        if shared and self._pending:
            self._doubt()
        try:
            head = read_head(REQUEST_LINES, data, pos)
            if head is None:
                return self._keep(reader, data, pos, at, out)
        except DecodeError:
            if not self._may_leave():
                raise
            self._lose(reader, at)
            return len(data)
        start, fields, pos = head
        began = at if reader.began is None else reader.began
        reader.began = None
        exchange = self._begin_request(start, fields, began, (), out)
        length = fields.length
        if length > len(data) - pos or length < NOT_GIVEN:
            _begin_body(reader, exchange, length, at)
            return pos if length >= CHUNKED else self._fault(reader, data, at, "expected a length", out)
        if length > 0:
            out.append(_new(Data, (exchange.stream, at, CLIENT, data[pos : pos + length], 0)))
            pos += length
        exchange.requesting = False
        out.append(_new(End, (exchange.stream, at, CLIENT)))
        return pos

    def _begin_request(
        self, start: RequestLine, fields: Fields, began: int, unknown: tuple[str, ...], out: list[Message]
    ) -> _Exchange:
        method, path, version, authority, scheme = start
        headers, _, host, upgrade, expects = fields
        pending = self._pending
        responses = self._responses
        if self._answers_lost and not (self._pipelines or responses.buffer or responses.exchange is not _NOBODY):
            # The client takes turns: all that it asked before has been answered, in bytes that were not seen.
            while pending:
                self._lose_answer(pending.popleft(), began, out)
        if len(pending) >= PENDING_LIMIT:
            message = f"expected an answer to one of {PENDING_LIMIT} requests"
            raise DecodeError(message)
        self._streams = stream = self._streams + 1
        exchange = _Exchange(stream, began, method, not self._hole, upgrade, expects)
        self._hole = False
        out.append(
            _new(RequestHead, (stream, began, version, method, path, authority or host, scheme, headers, unknown))
        )
        if exchange.sure or self._orphaned_at is None or self._orphaned_at < began:
            pending.append(exchange)
        else:  # the orphan was its answer
            self._lose_answer(exchange, began, out)
        return exchange

    def _read_response(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        if data[pos] in _LINE_ENDS:
            pos = _skip_line_ends(data, pos)
            if pos == len(data):
                return pos
        began = at if reader.began is None else reader.began
        pending = self._pending
        if (self._answers_lost and self._may_be_early()) if pending else self._whole:
            _check_start(SERVER, data[pos : pos + LINE_LIMIT])
            reader.began = None
            self._hold(_Held(began, data[pos:]))
            return len(data)
        head = read_head(STATUS_LINES, data, pos)
        if head is None:
            return self._keep(reader, data, pos, at, out)
        reader.began = None
        start, fields, pos = head
        exchange = self._begin_response(start, fields.headers, began, (), out)
        if exchange is _NOBODY:
            return pos
        status = start.status_code
        if status == 101 or (exchange.method == "CONNECT" and 200 <= status < 300):
            self._leave(exchange, status, fields.upgrade, at, out)
            return self._ignore(reader, data, pos, at, out)
        length = 0 if exchange.method == "HEAD" or status in {204, 304} else fields.length
        reader.exchange = exchange
        if length == FAULTY:
            return self._fault(reader, data, at, "expected one Content-Length", out)
        if length < 0 or length > len(data) - pos or (length and exchange.method is None):
            _begin_body(reader, exchange, length, at)
            return pos
        if length:
            out.append(_new(Data, (exchange.stream, at, SERVER, data[pos : pos + length], 0)))
        self._end(reader, at, out)
        return pos + length

    def _begin_response(
        self, start: StatusLine, headers: Headers, began: int, unknown: tuple[str, ...], out: list[Message]
    ) -> _Exchange:
        """Return the exchange that the response belongs to; _NOBODY if it is an interim one."""
        version, status, reason = start
        pending = self._pending
        if status < 200 and status != 101:
            if pending and status == 100:
                pending[0].expects = False
            return _NOBODY
        if pending and pending[0].sure and not self._answers_lost:
            exchange = pending[0]
        else:
            exchange = self._find(began, version, out)
        out.append(_new(ResponseHead, (exchange.stream, began, version, status, reason, headers, unknown)))
        return exchange

    def _read_length(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        end = min(pos + reader.remaining, len(data))
        out.append(_new(Data, (reader.exchange.stream, at, reader.side, data[pos:end], 0)))
        reader.remaining -= end - pos
        if reader.remaining == 0:
            self._end(reader, at, out)
        return end

    def _read_chunk_size(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        line = _CHUNK_LINE.match(data, pos)
        if line is None:
            if len(data) - pos <= CHUNK_LINE_LIMIT and data.find(b"\n", pos) < 0:
                return self._keep(reader, data, pos, at, out)
            return self._fault(reader, data, at, "expected the size of a chunk", out)
        size = int(line[1], 16)
        reader.remaining = size
        reader.total += size
        reader.state = CHUNK_DATA if size else TRAILERS
        return line.end()

    def _read_chunk_data(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        end = min(pos + reader.remaining, len(data))
        out.append(_new(Data, (reader.exchange.stream, at, reader.side, data[pos:end], 0)))
        reader.remaining -= end - pos
        if reader.remaining == 0:
            reader.state = CHUNK_END
        return end

    def _read_chunk_end(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        if data.startswith((b"\r\n", b"\n"), pos):
            reader.state = CHUNK_SIZE
            return data.index(b"\n", pos) + 1
        if data[pos:] == b"\r":
            return self._keep(reader, data, pos, at, out)
        return self._fault(reader, data, at, "expected a line end after a chunk", out)

    def _read_trailers(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        if data.startswith((b"\r\n", b"\n"), pos):
            self._end(reader, at, out)
            return data.index(b"\n", pos) + 1
        blank = BLANK_LINE.search(data, pos)
        if blank is None:
            return self._keep(reader, data, pos, at, out)
        trailers = read_fields(data[pos : blank.start()].split(b"\n")).headers
        out.append(Trailers(reader.exchange.stream, at, reader.side, trailers))
        self._end(reader, at, out)
        return blank.end()

    def _read_until_close(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        out.append(_new(Data, (reader.exchange.stream, at, reader.side, data[pos:], 0)))
        return len(data)

    def _peek(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        starts = _starts(reader.side, data[pos : pos + LINE_LIMIT])
        if starts is None:
            return self._keep(reader, data, pos, at, out)
        if starts:
            self._end(reader, reader.headed, out)
        else:
            reader.state = reader.body
            reader.began = None
        return pos

    def _resync(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        starts = pos == 0 and _starts(reader.side, data)
        if starts:
            reader.state = _HEAD_STATES[reader.side]
            return 0
        if starts is None:
            return self._keep(reader, data, pos, at, out)
        reader.began = None
        return len(data)

    def _ignore(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        if self._switching == UPGRADE:
            self._rest[reader.side].extend(data[pos : pos + HELD_LIMIT + 1 - len(self._rest[reader.side])])
        return len(data)

    def rest(self, side: Side) -> tuple[bytes, bool]:
        """Return what this side sent behind its last message, and whether that is all, after an upgrade to HTTP/2."""
        rest = bytes(self._rest[side])
        return rest[:HELD_LIMIT], len(rest) <= HELD_LIMIT

    # Buffering of what is not whole.

    def _keep(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        """Keep the rest of the chunk until more comes. Raises DecodeError if it cannot become a message."""
        rest = data[pos:]
        if reader.state in _HEADS:
            _check_start(reader.side, rest[:LINE_LIMIT])
        if reader.began is None and reader.state in _STARTS:
            reader.began = at
        reader.buffer += rest
        reader.scanned = 0
        self._limit(reader, at, out)
        return len(data)

    def _join(self, reader: _Reader, data: bytes, at: int, out: list[Message]) -> bytes:
        """Return the buffered bytes and these, if they are worth reading now; else keep them and return nothing."""
        buffer, state = reader.buffer, reader.state
        buffer += data
        if state in _SECTIONS:  # read only when whole, or a slow peer would cost n * n
            if _SECTION_END.search(buffer, reader.scanned) is None:
                if state != TRAILERS and reader.scanned < LINE_LIMIT:
                    try:
                        _check_start(reader.side, bytes(buffer[:LINE_LIMIT]))
                    except DecodeError:
                        if reader.side == SERVER or not self._may_leave():
                            raise
                        self._lose(reader, at)
                        return b""
                reader.scanned = max(0, len(buffer) - 2)
                self._limit(reader, at, out)
                return b""
        elif state == RESYNC and (_starts(reader.side, data) or _starts(reader.side, bytes(buffer)) is False):
            reader.began = None
            buffer.clear()
            return data  # a chunk of its own
        joined = bytes(buffer)
        buffer.clear()
        return joined

    def _limit(self, reader: _Reader, at: int, out: list[Message]) -> None:
        if len(reader.buffer) > HEAD_LIMIT:
            self._skip(reader, None, at, out)

    # The ends of messages.

    def _end(self, reader: _Reader, at: int, out: list[Message], seen: bool = True) -> None:
        """End the message that is being read. `seen`: its last byte was."""
        exchange = reader.exchange
        reader.exchange = _NOBODY
        reader.state = _HEAD_STATES[reader.side]
        out.append(_new(End, (exchange.stream, at, reader.side)))
        if reader.side == CLIENT:
            exchange.requesting = False
            if self._switching is not None:
                self._switch(exchange, self._switching, at, out)
            return
        exchange.answered = True
        self._pending.popleft()
        if self._pending:
            if seen and self._pending[0].at <= at:
                self._doubt()
        elif self._turns < TURNS and exchange.method is not None:
            self._turns += 1
            if self._turns == TURNS:
                self._pipelines = False
                self._whole = True
        if exchange.requesting and exchange.expects:
            self._expect_no_body()

    def _expect_no_body(self) -> None:
        """A final answer came instead of 100 (Continue): the client may leave the body out (RFC 9110 section 10.1.1).

        curl 7.88 does, after 417, and goes on with the next request on the same connection.
        """
        requests = self._requests
        if requests.buffer or requests.state not in _BODY_BEGINS or requests.remaining != requests.total:
            return
        requests.body = requests.state
        requests.state = PEEK

    def _leave(self, exchange: _Exchange, status: int, upgrade: str | None, at: int, out: list[Message]) -> None:
        """The response just read is the last of HTTP/1 on this connection: RFC 9110 sections 7.8 and 9.3.6."""
        protocol = "tunnel"
        if status == 101:
            protocol = (upgrade or exchange.upgrade or "unknown").split(",")[0].strip().lower()
        if protocol == UPGRADE:  # what answers the request comes in HTTP/2
            out.pop()
            exchange.answered = True
            self._pending.popleft()
        else:
            self._responses.exchange = exchange
            self._end(self._responses, at, out)
        self._responses.state = IGNORE
        self._switching = protocol
        if not exchange.requesting:
            self._switch(exchange, protocol, at, out)

    def _switch(self, exchange: _Exchange, protocol: str, at: int, out: list[Message]) -> None:
        out.append(Switched(exchange.stream, at, protocol, UPGRADED_STREAM if protocol == UPGRADE else None))
        self._requests.state = self._responses.state = IGNORE
        self.switched = self._over = True

    def _finish_responses(self, at: int, out: list[Message]) -> None:
        reader = self._responses
        self._settle_response(at, out)
        exchange = reader.exchange
        if exchange is _NOBODY:
            return
        if reader.state == UNTIL_CLOSE:
            self._end(reader, at, out)
            return
        if self._asked_all:
            return
        out.append(Failed(exchange.stream, at, "closed", f"the server closed the connection; {_lack(reader)}"))
        self._pending.popleft()
        reader.exchange = _NOBODY
        reader.state = RESPONSE
        reader.buffer.clear()
        if exchange.requesting:
            self._lose(self._requests, at)

    # Answers and their requests: the module's text says why this is right.

    def _find(self, began: int, version: str, out: list[Message]) -> _Exchange:
        """Return the exchange of a response where counting is not exact: the last one waiting, or an orphan."""
        pending = self._pending
        if not self._answers_lost and (len(pending) > 1 or not (pending or self._hole)):
            self._doubt()  # no answer was missed, yet more than one request waits, or none
        if self._pipelines:
            while pending:
                self._lose_answer(pending.popleft(), began, out)
            self._hole = True
            self._whole = False
        place = max((i for i, exchange in enumerate(pending) if exchange.at <= began), default=None)
        if place is not None and not (self._answers_lost and self._may_miss_after(place)):
            for _ in range(place):
                self._lose_answer(pending.popleft(), began, out)
            self._answers_lost = False
            pending[0].sure = True
            return pending[0]
        self._orphaned_at = began
        self._streams += 1
        orphan = _Exchange(self._streams, began, None, sure=True, upgrade=None, expects=False)
        out += (
            RequestHead(orphan.stream, began, version, None, None, None, None, (), _ORPHAN_UNKNOWN),
            End(orphan.stream, began, CLIENT),
        )
        pending.appendleft(orphan)
        return orphan

    def _may_miss_after(self, place: int) -> bool:
        """Whether requests may be missing after the pending one at this place."""
        following = place + 1
        return self._hole if following == len(self._pending) else not self._pending[following].sure

    def _doubt(self) -> None:
        self._pipelines = True
        self._turns = 0

    def _lose_answer(self, exchange: _Exchange, at: int, out: list[Message]) -> None:
        exchange.answered = True
        out += (Lost(exchange.stream, at, SERVER, 0, ("response",)), End(exchange.stream, at, SERVER))

    def _lose(self, reader: _Reader, at: int) -> None:
        """Whole messages of this side may be missing from here on: go to the next sure start of one."""
        reader.state = RESYNC
        reader.exchange = _NOBODY
        reader.buffer.clear()
        reader.began = None
        if reader.side == CLIENT:
            self._hole = True
            self._whole = False
        else:
            self._answers_lost = True
            self._lost_at = at

    def _may_be_early(self) -> bool:
        """Whether an answer, after others were lost, may belong to a request that was lost with them: rule 4."""
        return self._pending[-1].at <= self._lost_at and not (self._last_known or self._pipelines)

    def _may_leave(self) -> bool:
        """Whether what the client sends now need not be HTTP/1.

        It asked for something else and has no answer yet, or the connection ends with the answer under way.
        """
        if not self._pending:
            return False
        last = self._pending[-1]
        return last.method == "CONNECT" or last.upgrade is not None or self._responses.state == UNTIL_CLOSE

    # Gaps, ends in the middle, faults.

    def _skip(self, reader: _Reader, size: int | None, at: int, out: list[Message]) -> None:
        """The next `size` bytes of this side were not seen."""
        self._settle(reader, at, out)
        if reader.side == CLIENT:
            self._cut_request(at, ("request.headers", "request.body"), out)
        else:
            self._cut_response(at, ("response.headers", "response.body"), out)
        state, exchange, side = reader.state, reader.exchange, reader.side
        if state in _COUNTED and size is not None and size <= reader.remaining:
            out.append(Data(exchange.stream, at, side, b"", size))
            reader.remaining -= size
            if reader.remaining == 0 and state == LENGTH:
                self._end(reader, at, out, seen=False)
            elif reader.remaining == 0:
                reader.state = CHUNK_END
        elif state == UNTIL_CLOSE and size is not None:
            out.append(Data(exchange.stream, at, side, b"", size))
        elif state == LENGTH:
            out.append(Data(exchange.stream, at, side, b"", reader.remaining))
            self._end(reader, at, out, seen=False)
            self._lose(reader, at)
        elif state == UNTIL_CLOSE:
            out.append(Lost(exchange.stream, at, side, 0, ("response.body_size",)))
        elif state != IGNORE:
            self._lose_rest(reader, size or 0, at, out)

    def _lose_rest(self, reader: _Reader, size: int, at: int, out: list[Message]) -> None:
        """The rest of the message being read, if any, and what may follow it, cannot be read."""
        exchange, name = reader.exchange, _NAMES[reader.side]
        if exchange is not _NOBODY:
            unknown = {TRAILERS: (), PEEK: ("body",)}.get(reader.state, ("body_size",))
            fields = tuple(f"{name}.{field}" for field in (*unknown, "trailers"))
            out.append(Lost(exchange.stream, at, reader.side, size, fields))
            self._end(reader, at, out, seen=False)
        self._lose(reader, at)

    def _fault(self, reader: _Reader, data: bytes, at: int, message: str, out: list[Message]) -> int:
        """The message's framing makes no sense. A request is still answered, often with 400; a response ends it all."""
        if reader.side == SERVER:
            raise DecodeError(message)
        self._lose_rest(reader, 0, at, out)
        return len(data)

    def _cut_request(self, at: int, unknown: tuple[str, ...], out: list[Message]) -> None:
        """Begin the request whose head is in the buffer, if its first line is: the rest of the head does not come."""
        reader = self._requests
        if reader.state == REQUEST and (head := _cut_head(reader, REQUEST_LINES)) is not None:
            if unknown and head[0].authority is None and head[1].host is None:
                unknown = ("request.authority", *unknown)
            reader.exchange = self._begin_request(*head, unknown, out)

    def _cut_response(self, at: int, unknown: tuple[str, ...], out: list[Message]) -> None:
        """Begin the response whose head is in the buffer, if its first line is: the rest of the head does not come."""
        reader = self._responses
        if reader.state == RESPONSE and (head := _cut_head(reader, STATUS_LINES)) is not None:
            start, fields, began = head
            reader.exchange = self._begin_response(start, fields.headers, began, unknown, out)

    def _finish_requests(self, at: int, out: list[Message]) -> None:
        """No request bytes come any more."""
        self._asked_all = True
        reader = self._requests
        if reader.state == PEEK:  # a body that was not asked for and not sent
            self._end(reader, reader.headed, out)
        self._cut_request(at, (), out)
        if reader.state == REQUEST:
            reader.state = IGNORE
        self._whole = False  # an answer that is held waits in vain

    def _settle(self, reader: _Reader, at: int, out: list[Message]) -> None:
        """Read as body what PEEK kept: it did not become a start line."""
        if reader.state == PEEK and reader.buffer:
            kept = bytes(reader.buffer)
            reader.buffer.clear()
            reader.began = None
            reader.state = reader.body
            self._read(reader, kept, at, out)

    def _settle_response(self, at: int, out: list[Message]) -> None:
        """No response bytes come any more."""
        reader = self._responses
        self._settle(reader, at, out)
        if reader.state == PEEK:  # the answer to a HEAD, or its body is missing
            out.append(Lost(reader.exchange.stream, at, SERVER, 0, ("response.body", "response.body_size")))
            self._end(reader, reader.headed, out)
        self._cut_response(at, (), out)

    # Answers that wait for their request.

    def _hold(self, held: _Held) -> None:
        waiting = self._held
        if waiting and not (waiting[-1].data or waiting[-1].gap):
            return  # nothing comes after the end
        room = max(0, HELD_LIMIT - HELD_ENTRY_COST - self._held_cost)
        if len(held.data) > room:
            if room:
                waiting.append(held._replace(data=held.data[:room]))
                self._held_cost = HELD_LIMIT
            held = _Held(held.at, gap=True, size=len(held.data) - room)
        if held.gap and waiting and waiting[-1].gap:
            before = waiting[-1].size
            size = None if held.size is None or before is None else held.size + before
            waiting[-1] = held._replace(at=waiting[-1].at, size=size)
        else:
            self._held_cost += HELD_ENTRY_COST + len(held.data)
            waiting.append(held)

    def _release(self, out: list[Message], *, last: bool = True) -> None:
        """Read what is held as far as it can be. `last`: the last pending request is the last that was sent so far."""
        self._last_known = last
        held, self._held, self._held_cost = self._held, [], 0
        for entry in held:
            if self._held:
                self._hold(entry)
            elif entry.gap:
                self._skip(self._responses, entry.size, entry.at, out)
            elif entry.data:
                self._read(self._responses, entry.data, entry.at, out)
            else:
                self._finish_responses(entry.at, out)
        self._last_known = False

    # The end of decoding.

    def _break(self, error: DecodeError, out: list[Message]) -> None:
        """Raise the error now if there is nothing to give, else in the next call."""
        self._error = error
        self._over = True
        if not out:
            raise error

    def _refuse(self) -> list[Message]:
        if self._error is not None:
            raise DecodeError(*self._error.args)
        return []

    _STEPS: ClassVar[tuple[_Step, ...]] = (
        _read_request,
        _read_response,
        _read_length,
        _read_chunk_size,
        _read_chunk_data,
        _read_chunk_end,
        _read_trailers,
        _read_until_close,
        _peek,
        _resync,
        _ignore,
    )
    """By state. A step reads from a position that is not at the chunk's end, and returns the position it came to."""


def _begin_body(reader: _Reader, exchange: _Exchange, length: int, at: int) -> None:
    reader.exchange = exchange
    reader.headed = at
    reader.remaining = reader.total = max(0, length)
    reader.state = LENGTH if length > 0 else CHUNK_SIZE if length == CHUNKED else UNTIL_CLOSE
    if exchange.method is None:
        reader.body = reader.state
        reader.state = PEEK


def _starts(side: Side, data: bytes) -> bool | None:
    """Whether a message of this side surely begins with these bytes; None if more bytes are needed to say."""
    if _START_LINES[side].match(data):
        return True
    return None if _MAY_START[side](data) else False


def _check_start(side: Side, data: bytes) -> None:
    """Raise DecodeError unless a head of this side may begin with these bytes."""
    line, line_end, _ = data.partition(b"\n")
    if side == CLIENT:
        method = METHOD.match(data)
        if line_end:
            REQUEST_LINES[line.rstrip(b"\r")]
        elif method is None or data[method.end() : method.end() + 1] not in {b"", b" ", b"\t"}:
            message = "expected an HTTP/1 request line"
            raise DecodeError(message)
    elif line_end:
        STATUS_LINES[line.rstrip(b"\r")]
    elif not (may_become_response(data) or STATUS_LINE.match(data)):
        message = "expected an HTTP/1 status line"
        raise DecodeError(message)


def _cut_head(reader: _Reader, starts: Memo[Start]) -> tuple[Start, Fields, int] | None:
    """Return the start line and the fields that are whole, and when they began; None if not even the line is."""
    *lines, rest = bytes(reader.buffer).split(b"\n")
    reader.buffer.clear()
    began, reader.began = reader.began or 0, None
    if not lines:
        return None
    start, *fields = lines
    if not rest:  # the last field may go on in the next line (obs-fold)
        fields = fields[:-1]
    return starts[start.rstrip(b"\r")], read_fields(fields), began


def _skip_line_ends(data: bytes, pos: int) -> int:
    """Return the position after the empty lines at `pos`: RFC 9112 section 2.2."""
    while pos < len(data) and data[pos] in _LINE_ENDS:
        pos += 1
    return pos


def _lack(reader: _Reader) -> str:
    """Say what is missing of the message that is being read."""
    name = _NAMES[reader.side]
    if reader.state == LENGTH:
        return f"{reader.remaining} of the {reader.total} bytes of the {name} body are missing"
    if reader.state == UNTIL_CLOSE:
        return f"the end of the {name} body was not seen"
    part = "head" if reader.state in {RESPONSE, IGNORE} else "body"
    return f"the end of the {name} {part} is missing"
