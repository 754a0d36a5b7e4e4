"""HTTP/2 (RFC 9113), both directions of one connection, seen by an observer; in clear or decrypted.

Fulfils the contract of decoder.py, with the HTTP/2 stream as `stream`. Streams are numbered on the wire, so a request
and its answer are never confused; what can be wrong is what a header block says (hpack.py tells why it is not) and
where a frame begins. DecodeError is for frames that cannot be: fixed lengths that are not kept, a stream where there
is none, a header block that is interrupted. A block that is not HPACK costs its fields and the table. Bodies are passed
on as they come; what is buffered is an incomplete frame of another type, and header blocks, up to BLOCK_LIMIT.

Joined in the middle, or after a loss
-------------------------------------
1. A gap that ends inside a DATA frame costs those body bytes and nothing else.
2. After a longer one the direction looks for frames again (frames.py says how). All that was open may have lost
   frames: what of it was on its way is named as unknown, and a response whose head does not come before its body has
   an unknown head.
3. A frame of a stream whose request was not seen, because it was sent before the connection was joined or in a gap of
   the client's direction, opens an exchange with an unknown request. Streams that ended are not opened again: a
   client numbers upwards, so what lies between two requests seen without a gap between them is closed.
4. A response may be reported before its request, by another thread whose call returned earlier. Where no request can
   be missing it is held until the request comes. Where one can, it has an unknown request, and stays so.
5. A header block with an unknown field where :status is to be may be interim. So it is held until the next frame of
   the stream tells: another head follows only an interim one, and trailers always end the stream.

Endings. RST_STREAM fails an exchange, but for one whose answer is whole: then it only ends the request (section 8.1).
GOAWAY fails the requests above its last stream, which were not processed (section 6.8).

Speed: 10 to 13 us for a unary gRPC call, which is three header blocks and two bodies in two chunks (CPython 3.11).
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from typing import NamedTuple

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
    Trailers,
)
from apitrace.protocols.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_LIMIT,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_LEN,
    HEADERS,
    PADDED,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_MASK,
    fragment,
    inside,
    is_valid,
    starts,
)
from apitrace.protocols.hpack import Block, Hpack

VERSION = "HTTP/2"

BLOCK_LIMIT = 256 << 10
"""Bytes of a header block in one or more frames, as of a head in HTTP/1. nghttp2 takes 64 KiB, Go 1 MiB, Chrome 256
KiB, Node 64 KiB. Over it the block counts as lost, and its CONTINUATIONs are passed over (CVE-2024-27316)."""

STREAMS_LIMIT = 16384
"""Streams open at once, 0.1 KiB each. Servers allow 100 to 250 (nginx, Go, Envoy), gRPC often any number. Over it the
oldest is given up, with an error that says so."""

HELD_LIMIT = 256 << 10
"""Bytes of answers that wait for their requests, each message counted with HELD_MESSAGE_COST more; as in HTTP/1. Over
it they are given an unknown request."""
HELD_MESSAGE_COST = 128

RANGES_LIMIT = 64
"""Ranges of streams whose requests were lost that are remembered: one for each gap. Streams of older ones are closed
for us; that long ago they would be by far the oldest of the connection."""

OVER_LIMIT = 4096
"""Streams with lost requests that have ended and are remembered, so that a late frame does not open them again."""

SEARCHED_FRAME_LIMIT = (1 << 16) - 1
"""Bytes of a frame that is searched for; those that peers may send are no larger by default (16 KiB), and rarely by
agreement. Up to four times as much is kept in the search: a chain longer than a frame, and what came before it."""

REQUEST_ENDED, HEADED, RESPONSE_ENDED, REQUEST_DOUBT, RESPONSE_DOUBT, EARLY, UNSETTLED, ORPHAN = (
    1 << bit for bit in range(8)
)
"""What is known of a stream: its request has ended; the head of its response was given; its response has ended; frames
of its request, or of its response, may have been lost; its response waits for its request (rule 4); the head of its
response waits (rule 5); its request was not seen."""
_OVER = REQUEST_ENDED | RESPONSE_ENDED

_PREFACE, _FIRST, _FRAMES, _SEARCH = range(4)
"""What a direction is in the middle of: the client's preface; before its first frame, which is SETTINGS; frames;
searching for frames."""

_ORPHAN_UNKNOWN = (
    "request.method", "request.path", "request.scheme", "request.authority", "request.headers", "request.body",
)  # fmt: skip
_REST_UNKNOWN = {
    CLIENT: ("request.body", "request.body_size", "request.trailers"),
    SERVER: ("response.body", "response.body_size", "response.trailers"),
}
_BODY_UNKNOWN = {
    CLIENT: ("request.body", "request.body_size"),
    SERVER: ("response.body", "response.body_size"),
}
_TRAILERS_UNKNOWN = {CLIENT: ("request.trailers",), SERVER: ("response.trailers",)}
_HEAD_UNKNOWN = ("response.status_code", "response.headers")
_NAMES = {CLIENT: "client", SERVER: "server"}

_CODES = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip
"""RFC 9113 section 7."""
_REFUSED_STREAM, _CANCEL = 7, 8
_KINDS = {_REFUSED_STREAM: "refused", _CANCEL: "cancelled"}

_MAX_FRAME_SIZE = 5
_SETTING = struct.Struct(">HL")
_LAST_AND_CODE = struct.Struct(">LL")

_STATUS_DIGITS = 3

_new = tuple.__new__  # NamedTuple's own __new__ is a Python function: 0.24 us a message against 0.10 us


class _Frame(NamedTuple):
    """The frame that a header block began with."""

    kind: int
    flags: int
    stream: int
    began: int
    """Time of its first byte."""
    promised: int = 0
    """The stream that a PUSH_PROMISE is about."""


class _Reader:
    """One direction: what it is in the middle of, and the bytes of an incomplete frame."""

    __slots__ = (
        "began", "block", "body_flags", "body_stream", "buffer", "frame", "hpack", "limit", "marks", "need", "padding",
        "remaining", "scanned", "searched", "side", "spoilt", "state", "whole",
    )  # fmt: skip

    def __init__(self, side: Side, state: int) -> None:
        self.side = side
        self.state = state
        self.whole = state != _SEARCH
        """Every frame so far was seen."""
        self.hpack = Hpack(joined=not self.whole)
        self.limit = DEFAULT_LIMIT
        """Bytes of a frame's payload, as far as the other side has said."""
        self.buffer = bytearray()
        self.began = 0
        """Time of the buffer's first byte."""
        self.need = HEADER_LEN
        """Bytes of the buffer that are worth reading."""
        self.remaining = 0
        """Bytes still to come of a payload that is passed on, or passed over."""
        self.body_stream = 0
        """Whose body they are; 0: nobody's."""
        self.body_flags = 0
        self.padding = 0
        """The last of the remaining bytes that are no body."""
        self.block: bytearray | None = None
        """A header block that CONTINUATIONs go on with."""
        self.frame = _NO_FRAME
        self.spoilt = False
        """The block is known to be incomplete, and what could be read of it has been."""
        self.marks: list[tuple[int, int]] = []
        """In search of frames: where in the buffer each chunk begins, and its time."""
        self.scanned = 0
        """No frame begins at a mark before this."""
        self.searched = 0
        """Length of the buffer when all of it was last searched."""


_NO_FRAME = _Frame(0, 0, 0, 0)


class Http2:
    """The decoder of one connection. `joined`: in the middle. `upgraded`: stream 1 was asked for in HTTP/1."""

    __slots__ = (
        "_asked_all", "_client", "_closed", "_doubt", "_error", "_goaway", "_held", "_held_cost", "_highest",
        "_promised", "_ranges", "_readers", "_server", "_streams", "_sunk", "_unsettled",
    )  # fmt: skip

    def __init__(self, *, joined: bool = False, upgraded: bool = False) -> None:
        self._client = _Reader(CLIENT, _SEARCH if joined else _PREFACE)
        self._server = _Reader(SERVER, _SEARCH if joined else _FIRST)
        self._readers = (self._client, self._server)
        self._streams: dict[int, int] = {1: REQUEST_ENDED} if upgraded else {}
        """Open streams, and what is known of them."""
        self._highest = 1 if upgraded else 0
        """The last stream that the client was seen to open."""
        self._promised = 0
        """The last stream that the server was seen to promise."""
        self._doubt = joined
        """Requests may have been lost since then."""
        self._ranges: deque[tuple[int, int]] = deque(maxlen=RANGES_LIMIT)
        """Pairs of streams: requests between them may have been lost."""
        self._sunk: dict[int, None] = {}
        """Streams with lost requests that have ended."""
        self._held: dict[int, list[Message]] = {}
        self._held_cost = 0
        self._unsettled: dict[int, ResponseHead] = {}
        self._goaway: dict[Side, tuple[int, int]] = {}
        """Who is going away: the last stream that it processes, and why."""
        self._error: DecodeError | None = None
        self._asked_all = False
        """The client has ended its direction."""
        self._closed = False

    @property
    def open_exchanges(self) -> int:
        """How many exchanges have begun and not ended."""
        return len(self._streams) - len(self._held)

    def receive(self, side: Side, data: bytes, at: int) -> list[Message]:
        """Take the next bytes that `side` sent, seen at `at`. Raises DecodeError."""
        out: list[Message] = []
        if self._closed or self._error is not None:
            return self._refuse()
        try:
            self._receive(self._readers[side], data, at, out)
        except DecodeError as error:
            self._error = error
            if not out:
                raise
        return out

    def gap(self, side: Side, size: int | None, at: int) -> list[Message]:
        """Take notice that the next `size` bytes that `side` sent were not seen (None: an unknown number)."""
        out: list[Message] = []
        if self._closed or self._error is not None:
            return self._refuse()
        if size != 0:
            self._skip(self._readers[side], size, at, out)
        return out

    def finish(self, side: Side, at: int) -> list[Message]:
        """Take notice that `side` has sent its last byte (FIN, EOF): no answer comes after the server's.

        If the client's has come before, only the connection's end says who gave up: `close` tells.
        """
        out: list[Message] = []
        if self._closed or self._error is not None:
            return self._refuse()
        if side == CLIENT:
            self._asked_all = True
        elif not self._asked_all:
            self._spoil(self._server, at, out)
            for stream, state in list(self._streams.items()):
                if not state & (RESPONSE_ENDED | EARLY):
                    self._fail(stream, at, "closed", self._explain("the server closed the connection", state), out)
        return out

    def close(self, at: int, kind: str, detail: str) -> list[Message]:
        """The connection is gone, or is no longer followed: every open exchange ends, as `Failed` of this kind."""
        out: list[Message] = []
        if not self._closed:
            for reader in self._readers if self._error is None else ():
                self._spoil(reader, at, out)
            self._adopt_held(out)
            for stream, state in list(self._streams.items()):
                if state & RESPONSE_DOUBT and not state & (HEADED | RESPONSE_ENDED | UNSETTLED):
                    out.append(Lost(stream, at, SERVER, 0, ("response",)))
                self._fail(stream, at, kind, self._explain(detail, state), out)
        self._closed = True
        self._error = None
        return out

    # Reading: the hot path. receive -> _receive -> _read, then _request or _response for each header block.

    def _receive(self, reader: _Reader, data: bytes, at: int, out: list[Message]) -> None:
        if reader.state == _SEARCH:
            self._search(reader, data, at, out)
            return
        if reader.state != _FRAMES:
            data = self._begin(reader, data, at)
        try:
            self._read(reader, data, at, out)
        except DecodeError:
            if reader.whole:
                raise
            self._lose(reader, at, out)  # frames were found where there are none

    def _read(self, reader: _Reader, data: bytes, at: int, out: list[Message]) -> None:
        began = at
        if reader.buffer:
            reader.buffer += data
            if len(reader.buffer) < reader.need:
                return
            data = bytes(reader.buffer)
            reader.buffer.clear()
            began = reader.began
        side, streams = reader.side, self._streams
        over = REQUEST_ENDED if side == CLIENT else RESPONSE_ENDED
        usual = 0 if side == CLIENT else HEADED
        pos, size = 0, len(data)
        while pos < size:
            if reader.remaining:
                pos = self._pass(reader, data, pos, at, out)
                continue
            start = pos + HEADER_LEN
            if start > size:
                self._keep(reader, data[pos:], HEADER_LEN, began)
                return
            hi, lo, kind, flags, stream = HEADER.unpack_from(data, pos)
            length = hi << 8 | lo
            end = start + length
            stream &= STREAM_MASK
            if reader.block is not None and (kind != CONTINUATION or stream != reader.frame.stream):
                message = "expected the rest of a header block"
                raise DecodeError(message)
            if kind == DATA:
                state = streams.get(stream)
                if state is not None and end <= size and not flags & PADDED and state & (over | usual | EARLY) == usual:
                    if length:
                        out.append(_new(Data, (stream, at, side, data[start:end], 0)))
                    if flags & END_STREAM:
                        self._end(side, stream, state, at, out)
                elif not self._begin_body(reader, data, pos, end, flags, stream, at, began, out):
                    return
                else:
                    end = min(start + (flags & PADDED != 0), end)
            elif kind == HEADERS and flags & END_HEADERS and end <= size and length:
                block = fragment(data, start, end, flags)
                if block is None or not stream:
                    message = "expected a header block"
                    raise DecodeError(message)
                if side == CLIENT:
                    self._request(stream, flags, reader.hpack.decode(block), began, at, out)
                else:
                    self._response(stream, flags, reader.hpack.decode(block), began, at, out)
            elif not is_valid(kind, length, stream) or (length > reader.limit and not reader.whole):
                message = "expected an HTTP/2 frame"
                raise DecodeError(message)
            elif kind > CONTINUATION or length > BLOCK_LIMIT:
                self._pass_over(reader, data, pos, end, began, at, out)
                end = start
            elif end > size:
                self._keep(reader, data[pos:], HEADER_LEN + length, began)
                return
            else:
                self._take(reader, _new(_Frame, (kind, flags, stream, began, 0)), data[start:end], at, out)
            pos = end
            began = at

    def _request(self, stream: int, flags: int, block: Block, began: int, at: int, out: list[Message]) -> None:
        """Take a header block of the client."""
        state = self._streams.get(stream)
        if stream in self._sunk:  # reported too late, and without it: rule 4
            if stream > self._highest:
                self._advance(stream, out)
            return
        if state is None and stream > self._highest and stream & 1:
            if self._doubt and not self._begins(flags, block):
                self._adopt(stream, began, out)
                self._trailers(CLIENT, stream, flags, block, at, out)
                return
            self._advance(stream, out)
            state = 0
        elif state is None:
            if self._is_lost(stream):
                self._adopt(stream, began, out)
                self._trailers(CLIENT, stream, flags, block, at, out)
            return
        elif state & EARLY:
            self._advance(stream, out)
        else:
            if state & ORPHAN and stream > self._highest and self._begins(flags, block):
                self._advance(stream, out)  # rule 4: reported too late
            elif not state & REQUEST_ENDED:
                self._trailers(CLIENT, stream, flags, block, at, out)
                return
            if flags & END_STREAM and not state & REQUEST_ENDED:
                self._end(CLIENT, stream, state, at, out)
            return
        self._open(stream, block, began, out)
        if flags & END_STREAM:
            state |= REQUEST_ENDED
            out.append(_new(End, (stream, at, CLIENT)))
        if state & EARLY:
            state = self._release(stream, state & ~EARLY, out)
            if state & _OVER == _OVER:
                return
        self._streams[stream] = state
        goaway = self._goaway.get(SERVER)
        if goaway is not None and stream > goaway[0]:
            self._fail(stream, at, "refused", _gone(SERVER, goaway), out)
        elif len(self._streams) > STREAMS_LIMIT:
            self._give_up_oldest(at, out)

    def _open(self, stream: int, block: Block, began: int, out: list[Message]) -> None:
        method, path, scheme, authority, _, headers, hidden, incomplete, cut = block
        unknown: tuple[str, ...] = ()
        if hidden or incomplete or cut or method is None or (path is None and method != "CONNECT"):
            unknown = _request_unknown(block)
        if authority is None and "request.authority" not in unknown:
            authority = next((value for name, value, _ in headers if name == "host"), None)
        if path is None and method == "CONNECT" and "request.path" not in unknown:
            path = authority  # as in HTTP/1: RFC 9113 section 8.5
        out.append(
            _new(RequestHead, (stream, began, VERSION, method, path, authority, scheme, headers, unknown))
        )

    def _response(self, stream: int, flags: int, block: Block, began: int, at: int, out: list[Message]) -> None:
        """Take a header block of the server."""
        state = self._streams.get(stream)
        if state is None or state & EARLY:
            state = self._unseen(SERVER, stream, began, out)
            if state is None:
                return
            if state & EARLY:
                out = self._held[stream]
                self._hold()
        if state & RESPONSE_ENDED:
            return
        status = block[4]
        if status is None or state & (HEADED | UNSETTLED):
            if not self._rare_head(stream, state, flags, block, began, at, out):
                return
            state = self._streams[stream]
        elif status[:1] == "1" and not flags & END_STREAM:
            return  # interim: RFC 9113 section 8.1
        else:
            unknown: tuple[str, ...] = ()
            code: int | None = None
            if len(status) == _STATUS_DIGITS and status.isdecimal():
                code = int(status)
            else:
                unknown = ("response.status_code",)
            if block[7] or block[8] or block[6]:
                unknown += ("response.headers",)
            out.append(_new(ResponseHead, (stream, began, VERSION, code, None, block[5], unknown)))
            self._streams[stream] = state = state | HEADED
        if flags & END_STREAM:
            self._end(SERVER, stream, state, at, out)

    def _end(self, side: Side, stream: int, state: int, at: int, out: list[Message]) -> None:
        """One side of a stream has ended."""
        out.append(_new(End, (stream, at, side)))
        state |= REQUEST_ENDED if side == CLIENT else RESPONSE_ENDED
        if state & RESPONSE_ENDED and state & REQUEST_DOUBT and not state & REQUEST_ENDED:
            out.append(End(stream, at, CLIENT))  # its end may have been lost
            state |= REQUEST_ENDED
        if state & _OVER == _OVER and not state & EARLY:
            self._forget(stream, state)
        else:
            self._streams[stream] = state

    def _forget(self, stream: int, state: int) -> None:
        del self._streams[stream]
        if state & ORPHAN:
            if len(self._sunk) >= OVER_LIMIT:
                del self._sunk[next(iter(self._sunk))]
            self._sunk[stream] = None

    # Bodies.

    def _begin_body(
        self, reader: _Reader, data: bytes, pos: int, end: int, flags: int, stream: int, at: int, began: int,
        out: list[Message],
    ) -> bool:
        """Begin a DATA frame that is not whole, or is unusual. False: it is kept until more comes."""
        start = pos + HEADER_LEN
        padded = bool(flags & PADDED)
        if not stream or (padded and end == start) or (end - start > reader.limit and not reader.whole):
            message = "expected a stream and its data"
            raise DecodeError(message)
        if padded and start == len(data):
            self._keep(reader, data[pos:], HEADER_LEN + 1, began)
            return False
        reader.padding = data[start] if padded else 0
        reader.remaining = end - start - padded
        reader.body_flags = flags
        reader.body_stream = stream
        if reader.padding > reader.remaining:
            message = "expected less padding than data"
            raise DecodeError(message)
        state = self._streams.get(stream)
        if state is None or state & EARLY:
            state = self._unseen(reader.side, stream, at, out)
        if state is None or state & (REQUEST_ENDED | EARLY if reader.side == CLIENT else RESPONSE_ENDED):
            reader.body_stream = 0
        elif reader.side == SERVER and not state & HEADED:
            self._need_head(stream, state, at, self._held.get(stream, out))
        if not reader.remaining:
            self._end_body(reader, at, out)
        return True

    def _pass(self, reader: _Reader, data: bytes, pos: int, at: int, out: list[Message]) -> int:
        """Pass on a payload; return the position after what is there of it."""
        end = min(pos + reader.remaining, len(data))
        stream = reader.body_stream
        if stream:
            behind = min(end, pos + reader.remaining - reader.padding)
            if behind > pos and stream in self._streams:
                self._body(reader.side, stream, Data(stream, at, reader.side, data[pos:behind]), out)
        reader.remaining -= end - pos
        reader.padding = min(reader.padding, reader.remaining)
        if not reader.remaining:
            self._end_body(reader, at, out)
        return end

    def _body(self, side: Side, stream: int, data: Data, out: list[Message]) -> None:
        held = self._held.get(stream) if side == SERVER else None
        if held is None:
            out.append(data)
        else:
            held.append(data)
            self._hold(len(data.data))
            if self._held_cost > HELD_LIMIT:
                self._adopt_held(out)

    def _end_body(self, reader: _Reader, at: int, out: list[Message]) -> None:
        stream, reader.body_stream = reader.body_stream, 0
        state = self._streams.get(stream)
        if state is not None and reader.body_flags & END_STREAM:
            over = REQUEST_ENDED if reader.side == CLIENT else RESPONSE_ENDED
            if not state & over:
                held = self._held.get(stream) if reader.side == SERVER else None
                self._end(reader.side, stream, state, at, out if held is None else held)

    def _pass_over(
        self, reader: _Reader, data: bytes, pos: int, end: int, began: int, at: int, out: list[Message]
    ) -> None:
        """Begin a payload that is not looked at: of an unknown frame, or larger than is kept."""
        _, _, kind, flags, stream = HEADER.unpack_from(data, pos)
        if kind in {HEADERS, PUSH_PROMISE, CONTINUATION}:
            frame = _Frame(kind, flags, stream & STREAM_MASK, began)
            room = data[pos + HEADER_LEN : min(end, pos + BLOCK_LIMIT)]
            self._cut(reader, frame, room, at, out)
        reader.remaining = end - pos - HEADER_LEN
        reader.body_stream = reader.body_flags = reader.padding = 0

    # Frames that are whole.

    def _take(self, reader: _Reader, frame: _Frame, payload: bytes, at: int, out: list[Message]) -> None:
        """Take a frame that is neither DATA nor a whole header block."""
        kind, flags, stream, _, _ = frame
        if kind == CONTINUATION:
            if reader.block is None:
                if reader.whole:
                    message = "expected a header block to go on with"
                    raise DecodeError(message)
                reader.block, reader.frame, reader.spoilt = bytearray(), frame, True
            self._continue(reader, flags, payload, at, out)
        elif kind == HEADERS:
            block = fragment(payload, 0, len(payload), flags)
            if block is None:
                message = "expected a header block"
                raise DecodeError(message)
            reader.block, reader.frame, reader.spoilt = bytearray(), frame, False
            self._continue(reader, flags, block, at, out)
        elif kind == PUSH_PROMISE:
            reader.block, reader.frame, reader.spoilt = bytearray(), _promised(frame, payload), False
            block = fragment(payload, 0, len(payload), flags & PADDED) or b""
            self._continue(reader, flags, block[4:], at, out)
        elif kind == RST_STREAM:
            self._reset(reader.side, stream, int.from_bytes(payload, "big"), at, out)
        elif kind == GOAWAY:
            last, code = _LAST_AND_CODE.unpack_from(payload)
            self._go_away(reader.side, last & STREAM_MASK, code, at, out)
        elif kind == SETTINGS and not flags & ACK:
            for setting, value in _SETTING.iter_unpack(payload):
                if setting == _MAX_FRAME_SIZE:
                    self._readers[1 - reader.side].limit = max(DEFAULT_LIMIT, min(value, (1 << 24) - 1))

    def _continue(self, reader: _Reader, flags: int, part: bytes, at: int, out: list[Message]) -> None:
        """Take a part of a header block."""
        block = reader.block
        if block is None:
            return
        if not reader.spoilt:
            block += part
            if len(block) > BLOCK_LIMIT:
                self._give_block(reader, at, out, cut=True)
                reader.block = bytearray()
        if flags & END_HEADERS:
            if reader.spoilt:
                reader.hpack.lose()
            else:
                self._give_block(reader, at, out, cut=False)
            reader.block = None
            reader.spoilt = False

    def _give_block(self, reader: _Reader, at: int, out: list[Message], *, cut: bool) -> None:
        """Decode the block that was put together, and forget it. `cut`: its end was not seen."""
        kind, flags, stream, began, promised = reader.frame
        raw = bytes(reader.block or b"")
        reader.block = None
        reader.spoilt = cut
        block = reader.hpack.decode(raw, cut=cut)
        if kind == PUSH_PROMISE:
            self._promise(reader.side, promised, block, began, at, out)
        elif reader.side == CLIENT:
            self._request(stream, flags, block, began, at, out)
        else:
            self._response(stream, flags, block, began, at, out)

    def _promise(self, side: Side, stream: int, block: Block, began: int, at: int, out: list[Message]) -> None:
        if side == CLIENT or stream & 1 or stream <= self._promised or stream in self._streams or stream in self._sunk:
            return
        self._promised = stream
        self._open(stream, block, began, out)
        out.append(End(stream, at, CLIENT))
        self._streams[stream] = REQUEST_ENDED

    def _reset(self, side: Side, stream: int, code: int, at: int, out: list[Message]) -> None:
        state = self._streams.get(stream)
        if state is None and side == SERVER:
            state = self._await(stream, out)
        if state is None:
            return
        if state & RESPONSE_ENDED and not state & EARLY:
            self._end(CLIENT, stream, state, at, out)
            return
        kind = _KINDS.get(code, "reset")
        verb = {"refused": "refused", "cancelled": "cancelled"}.get(kind, "reset")
        detail = f"the {_NAMES[side]} {verb} the stream: {_code(code)}"
        if state & EARLY:
            if state & RESPONSE_ENDED:
                return
            self._held[stream].append(Failed(stream, at, kind, detail))
            self._streams[stream] = state | _OVER
        else:
            self._fail(stream, at, kind, detail, out)

    def _go_away(self, side: Side, last: int, code: int, at: int, out: list[Message]) -> None:
        """Fail what the other side has begun above `last`: it is not processed."""
        self._goaway[side] = goaway = (last, code)
        for stream, state in list(self._streams.items()):
            if stream > last and (stream & 1) == (side == SERVER) and not state & (HEADED | RESPONSE_ENDED | EARLY):
                self._fail(stream, at, "refused", _gone(side, goaway), out)

    def _fail(self, stream: int, at: int, kind: str, detail: str, out: list[Message]) -> None:
        state = self._streams[stream]
        if state & UNSETTLED:
            self._settle(stream, state, out)
        out.append(Failed(stream, at, kind, detail))
        self._forget(stream, state)

    def _explain(self, detail: str, state: int) -> str:
        """Say how an exchange ended with its connection."""
        lacks = [detail]
        if not state & (HEADED | RESPONSE_ENDED | RESPONSE_DOUBT):
            lacks.append("the response is missing")
        elif not state & RESPONSE_ENDED:
            lacks.append("the end of the response is missing")
        elif not state & REQUEST_ENDED:
            lacks.append("the end of the request is missing")
        lacks += [
            f"the {_NAMES[side]} had announced the end: {_code(code)}" for side, (_, code) in self._goaway.items()
        ]
        return "; ".join(filter(None, lacks))

    def _give_up_oldest(self, at: int, out: list[Message]) -> None:
        stream = next(iter(self._streams))
        if self._streams[stream] & EARLY:
            self._adopt_held(out)
        self._fail(stream, at, "closed", f"no longer followed: more than {STREAMS_LIMIT} streams are open", out)

    # Header blocks that are not as usual.

    def _begins(self, flags: int, block: Block) -> bool:
        """Whether a header block of the client begins a request; else it is, or may be, the trailers of one."""
        pseudo = block.method or block.path or block.scheme or block.authority
        return bool(pseudo) or not flags & END_STREAM

    def _rare_head(
        self, stream: int, state: int, flags: int, block: Block, began: int, at: int, out: list[Message]
    ) -> bool:
        """Take a header block of the server that has no :status, or is not the first. False: the stream goes on."""
        ended = bool(flags & END_STREAM)
        if state & HEADED and not ended:  # no valid message goes on like this
            out.append(Lost(stream, at, SERVER, 0, _TRAILERS_UNKNOWN[SERVER]))
        elif state & HEADED:
            self._trailers(SERVER, stream, 0, block, at, out)
        elif state & UNSETTLED and block.status is not None:  # rule 5: that one was interim
            del self._unsettled[stream]
            self._streams[stream] = state & ~UNSETTLED
            self._response(stream, flags, block, began, at, out)
            return False
        elif state & UNSETTLED and not block.hidden:
            self._settle(stream, state, out)
            self._trailers(SERVER, stream, 0, block, at, out)
        elif ended and block.hidden and state & (RESPONSE_DOUBT | UNSETTLED):  # the trailers, or a head without a body
            self._unsettled.pop(stream, None)
            self._streams[stream] = state & ~UNSETTLED
            self._unknown_head(stream, began, out)
            out.append(Lost(stream, at, SERVER, 0, _REST_UNKNOWN[SERVER]))
        elif ended and state & RESPONSE_DOUBT:
            self._unknown_head(stream, began, out)
            out.append(Lost(stream, at, SERVER, 0, _BODY_UNKNOWN[SERVER]))
            self._trailers(SERVER, stream, 0, block, at, out)
        else:
            unknown: tuple[str, ...] = ("response.status_code",)
            if block.hidden > 1 or block.incomplete or block.cut:
                unknown = _HEAD_UNKNOWN
            head = ResponseHead(stream, began, VERSION, None, None, block.headers, unknown)
            self._unsettled[stream] = head
            self._streams[stream] = state = state | UNSETTLED
            if ended or not block.hidden:
                self._settle(stream, state, out)
        return True

    def _settle(self, stream: int, state: int, out: list[Message]) -> None:
        """Give a head that waited."""
        out.append(self._unsettled.pop(stream))
        self._streams[stream] = state & ~UNSETTLED | HEADED

    def _need_head(self, stream: int, state: int, at: int, out: list[Message]) -> None:
        """Give the head of a response whose body begins."""
        if state & UNSETTLED:
            self._settle(stream, state, out)
        else:
            self._unknown_head(stream, at, out)
            out.append(Lost(stream, at, SERVER, 0, _BODY_UNKNOWN[SERVER]))

    def _unknown_head(self, stream: int, at: int, out: list[Message]) -> None:
        out.append(ResponseHead(stream, at, VERSION, None, None, (), _HEAD_UNKNOWN))
        self._streams[stream] |= HEADED

    def _trailers(self, side: Side, stream: int, flags: int, block: Block, at: int, out: list[Message]) -> None:
        """Take a trailer section; `flags` tell whether to end its side with it."""
        if block.headers:
            out.append(_new(Trailers, (stream, at, side, block.headers)))
        if block.hidden or block.incomplete or block.cut:
            out.append(Lost(stream, at, side, 0, _TRAILERS_UNKNOWN[side]))
        if flags & END_STREAM:
            self._end(side, stream, self._streams[stream], at, out)

    # Streams whose request was not seen, or not yet.

    def _unseen(self, side: Side, stream: int, at: int, out: list[Message]) -> int | None:
        """Return the state of a stream that is not open, or only early; None if a frame of it means nothing."""
        state = self._streams.get(stream)
        if state is not None or not stream or stream in self._sunk:
            return state
        if self._is_lost(stream) or (not stream & 1 and not self._server.whole):
            return self._adopt(stream, at, out)
        return self._await(stream, out) if side == SERVER else None

    def _await(self, stream: int, out: list[Message]) -> int | None:
        """Return the state of a stream of the server's that waits for its request, if that can be (rule 4)."""
        if not stream & 1 or stream <= self._highest or self._doubt:
            return None
        self._held[stream] = []
        self._streams[stream] = EARLY | (0 if self._server.whole else RESPONSE_DOUBT)
        self._hold()
        if self._held_cost > HELD_LIMIT:
            self._adopt_held(out)
        return self._streams.get(stream)

    def _is_lost(self, stream: int) -> bool:
        """Whether the client may have opened this stream in bytes that were not seen."""
        if not stream & 1 or stream in self._sunk:
            return False
        if stream > self._highest:
            return self._doubt
        return any(low < stream < high for low, high in self._ranges)

    def _adopt(self, stream: int, at: int, out: list[Message]) -> int:
        """Open an exchange with an unknown request."""
        out += (
            RequestHead(stream, at, VERSION, None, None, None, None, (), _ORPHAN_UNKNOWN),
            Lost(stream, at, CLIENT, 0, _BODY_UNKNOWN[CLIENT]),
        )
        state = ORPHAN | REQUEST_DOUBT
        if not self._server.whole:
            state |= RESPONSE_DOUBT
        self._streams[stream] = state
        return state

    def _hold(self, size: int = 0) -> None:
        self._held_cost += HELD_MESSAGE_COST + size

    def _release(self, stream: int, state: int, out: list[Message]) -> int:
        """Give what was held of a stream whose request has come; return its state."""
        held = self._held.pop(stream)
        out += held
        if not self._held:
            self._held_cost = 0
        if state & _OVER == _OVER:
            self._streams[stream] = state
            self._forget(stream, state)
        return state

    def _adopt_held(self, out: list[Message], below: int | None = None) -> None:
        """Give all held answers, or those of streams below this one, an unknown request."""
        for stream in [each for each in self._held if below is None or each < below]:
            state = self._streams.pop(stream) & ~EARLY
            first = next((message.at for message in self._held[stream]), 0)
            adopted = self._adopt(stream, first, out)
            state = self._release(stream, state | adopted, out)
            if state & RESPONSE_ENDED:
                if stream in self._streams:
                    self._end(CLIENT, stream, state, self._last_at(out), out)
            elif stream in self._streams:
                self._streams[stream] = state

    @staticmethod
    def _last_at(out: list[Message]) -> int:
        return out[-1].at

    def _advance(self, stream: int, out: list[Message]) -> None:
        """Take notice that the client opens this stream, and so none below it any more."""
        if self._doubt:
            self._ranges.append((self._highest, stream))
            self._doubt = False
        self._highest = stream
        if self._held:
            self._adopt_held(out, below=stream)

    # Gaps.

    def _skip(self, reader: _Reader, size: int | None, at: int, out: list[Message]) -> None:
        """The next `size` bytes of this side were not seen."""
        if reader.remaining:
            within = size is not None and size <= reader.remaining
            taken = size if within and size is not None else reader.remaining
            self._lose_body(reader, taken, at, out)
            if within:
                return
        elif len(reader.buffer) >= HEADER_LEN and reader.state == _FRAMES:
            hi, lo, *_ = HEADER.unpack_from(reader.buffer)
            missing = HEADER_LEN + (hi << 8 | lo) - len(reader.buffer)
            self._spoil(reader, at, out)
            if size is not None and size <= missing:
                reader.remaining = missing - size
                reader.body_stream = reader.body_flags = reader.padding = 0
                return
        self._lose(reader, at, out)

    def _lose_body(self, reader: _Reader, size: int, at: int, out: list[Message]) -> None:
        """Bytes of the payload at hand were not seen."""
        stream = reader.body_stream
        lost = min(size, reader.remaining - reader.padding)
        if stream in self._streams and lost > 0:
            self._body(reader.side, stream, Data(stream, at, reader.side, b"", lost), out)
        reader.remaining -= size
        reader.padding = min(reader.padding, reader.remaining)
        if not reader.remaining:
            self._end_body(reader, at, out)

    def _spoil(self, reader: _Reader, at: int, out: list[Message]) -> None:
        """Take what is there of a frame, and of a header block, that will not be whole."""
        if len(reader.buffer) >= HEADER_LEN and reader.state == _FRAMES:
            _, _, kind, flags, stream = HEADER.unpack_from(reader.buffer)
            payload = bytes(reader.buffer[HEADER_LEN:])
            stream &= STREAM_MASK
            if kind == RST_STREAM:
                if stream in self._streams and not self._streams[stream] & (RESPONSE_ENDED | EARLY):
                    self._fail(stream, at, "reset", f"the {_NAMES[reader.side]} reset the stream", out)
            elif kind in {HEADERS, PUSH_PROMISE, CONTINUATION}:
                self._cut(reader, _Frame(kind, flags, stream, reader.began), payload, at, out)
            elif kind == DATA and stream in self._streams:  # its padding is not known, and so how much is body
                out.append(Lost(stream, at, reader.side, 0, _BODY_UNKNOWN[reader.side]))
                reader.body_stream, reader.body_flags = stream, flags
                self._end_body(reader, at, out)
        elif reader.block is not None and not reader.spoilt:
            self._give_block(reader, at, out, cut=True)
        reader.buffer.clear()
        reader.need = HEADER_LEN

    def _cut(self, reader: _Reader, frame: _Frame, payload: bytes, at: int, out: list[Message]) -> None:
        """Take the beginning of a frame with a header block, of which the rest is not read."""
        kind, flags, _, _, _ = frame
        if kind == CONTINUATION:
            if reader.block is not None and not reader.spoilt:
                reader.block += payload
        else:
            reader.block, reader.spoilt, reader.frame = bytearray(), False, frame
            start = bool(flags & PADDED) + 5 * bool(flags & 0x20 and kind == HEADERS)
            if kind == PUSH_PROMISE:
                if len(payload) < start + 4:
                    reader.spoilt = True
                reader.frame = _promised(frame, payload)
                start += 4
            padding = payload[0] if flags & PADDED and payload else 0
            reader.block += payload[start:] if not padding else b""
        if reader.block is not None and not reader.spoilt:
            self._give_block(reader, at, out, cut=True)
        reader.hpack.lose()
        reader.spoilt = not flags & END_HEADERS
        reader.block = bytearray() if reader.spoilt else None

    def _lose(self, reader: _Reader, at: int, out: list[Message]) -> None:
        """Frames were lost: search for the next."""
        self._spoil(reader, at, out)
        reader.state = _SEARCH
        reader.whole = False
        reader.hpack.lose()
        reader.block = None
        reader.spoilt = False
        reader.remaining = reader.body_stream = reader.padding = 0
        reader.marks.clear()
        reader.scanned = reader.searched = 0
        self._mark_doubt(reader.side, at, out)

    def _mark_doubt(self, side: Side, at: int, out: list[Message]) -> None:
        """Frames of this side may have been lost: of all open streams, and of requests that were to come."""
        if side == CLIENT:
            self._doubt = True
            self._adopt_held(out)
        doubt, over, begun = (
            (REQUEST_DOUBT, REQUEST_ENDED, 0) if side == CLIENT else (RESPONSE_DOUBT, RESPONSE_ENDED, HEADED)
        )
        for stream, state in list(self._streams.items()):
            if state & over:
                continue
            if state & UNSETTLED and side == SERVER:  # the head that follows may be lost
                del self._unsettled[stream]
                state &= ~UNSETTLED  # noqa: PLW2901 - it has changed
            if state & begun == begun:
                held = self._held.get(stream) if side == SERVER else None
                (out if held is None else held).append(Lost(stream, at, side, 0, _REST_UNKNOWN[side]))
            self._streams[stream] = state | doubt
            if side == CLIENT and state & RESPONSE_ENDED:
                self._end(CLIENT, stream, state, at, out)

    # The beginning, and beginning again.

    def _keep(self, reader: _Reader, rest: bytes, need: int, began: int) -> None:
        reader.buffer += rest
        reader.need = need
        reader.began = began

    def _begin(self, reader: _Reader, data: bytes, at: int) -> bytes:
        """Take what a direction begins with; return what follows it, as bytes of this call."""
        if not reader.buffer:
            reader.began = at
        data = bytes(reader.buffer) + data
        reader.buffer.clear()
        if reader.state == _PREFACE:
            if not data.startswith(PREFACE[: len(data)]):
                message = "expected the HTTP/2 preface"
                raise DecodeError(message)
            if len(data) < len(PREFACE):
                reader.buffer += data
                reader.need = 1 << 30
                return b""
            data = data[len(PREFACE) :]
            reader.state = _FIRST
        if len(data) >= 4:
            if data[3] != SETTINGS:
                message = "expected HTTP/2 SETTINGS"
                raise DecodeError(message)
            reader.state = _FRAMES
            return data
        reader.buffer += data
        reader.need = 1 << 30
        return b""

    def _search(self, reader: _Reader, data: bytes, at: int, out: list[Message]) -> None:
        """Look for the next frame: where a chunk begins, or far enough behind that."""
        buffer = reader.buffer
        limit = min(reader.limit, SEARCHED_FRAME_LIMIT)
        reader.marks.append((len(buffer), at))
        buffer += data
        found, waits = None, False
        raw = bytes(buffer)
        for mark, _ in reader.marks:
            if mark < reader.scanned:
                continue
            if reader.side == CLIENT and raw.startswith(PREFACE, mark):
                self._greet(reader)
                found = mark + len(PREFACE)
                break
            verdict = starts(raw[mark:], limit)
            if verdict is None and reader.side == CLIENT and PREFACE.startswith(raw[mark : mark + len(PREFACE)]):
                waits = True
                break
            if verdict:
                found = mark
                break
            if verdict is None:
                waits = True
                break
            reader.scanned = mark + 1
        if found is None and not waits and len(raw) - reader.searched > limit // 4 and len(raw) > limit:
            reader.searched = len(raw)
            found = inside(raw, limit)
        if found is not None:
            self._resume(reader, raw, found, out)
        elif not waits and len(buffer) > 4 * limit:
            self._trim(reader, len(buffer) - 2 * limit)

    def _resume(self, reader: _Reader, raw: bytes, found: int, out: list[Message]) -> None:
        """Read what was kept, from here on, as the chunks that it came in."""
        marks = [*reader.marks, (len(raw), 0)]
        reader.buffer.clear()
        reader.marks.clear()
        reader.scanned = reader.searched = 0
        reader.need = HEADER_LEN
        reader.state = _FRAMES
        if reader.side == SERVER:  # what was asked before may have been answered before
            for stream, state in self._streams.items():
                if not state & (HEADED | EARLY):
                    self._streams[stream] = state | RESPONSE_DOUBT
        for (start, at), (end, _) in itertools.pairwise(marks):
            if end > found:
                self._receive(reader, raw[max(start, found) : end], at, out)

    def _trim(self, reader: _Reader, size: int) -> None:
        """Forget the first bytes of those kept."""
        del reader.buffer[:size]
        reader.searched = max(0, reader.searched - size)
        reader.scanned = max(0, reader.scanned - size)
        marks = [(start - size, at) for start, at in reader.marks]
        before = [at for start, at in marks if start < 0]
        reader.marks = [(0, before[-1])] if before else []
        reader.marks += [mark for mark in marks if mark[0] >= (1 if before else 0)]
        reader.scanned = max(reader.scanned, 1 if before else 0)

    def _greet(self, client: _Reader) -> None:
        """The client's preface: nothing came before it."""
        self._doubt = False
        client.whole = True
        client.hpack = Hpack()
        if self._server.state == _SEARCH and not self._streams:
            self._server.hpack = Hpack()

    def _refuse(self) -> list[Message]:
        if self._error is not None:
            raise DecodeError(*self._error.args)
        return []


def _promised(frame: _Frame, payload: bytes) -> _Frame:
    """Return the frame of a push promise with the stream that it promises."""
    start = bool(frame.flags & PADDED)
    return frame._replace(promised=int.from_bytes(payload[start : start + 4], "big") & STREAM_MASK)


def _request_unknown(block: Block) -> tuple[str, ...]:
    """Return which fields of a request are unknown.

    If as many fields cannot be resolved as must be there and are not, it is these; if more, any of them.
    """
    pseudo = (("method", block.method), ("path", block.path), ("scheme", block.scheme))
    connects = block.method == "CONNECT"
    missing = [f"request.{name}" for name, value in pseudo if value is None and not (connects and name != "method")]
    if block.hidden and (block.cut or connects or block.hidden > len(missing)):
        missing = [f"request.{name}" for name, value in (*pseudo, ("authority", block.authority)) if value is None]
        return (*missing, "request.headers")
    if block.incomplete or block.cut:
        missing.append("request.headers")
    return tuple(missing if block.hidden else [name for name in missing if name != "request.scheme"])


def _code(code: int) -> str:
    return _CODES[code] if code < len(_CODES) else f"error code {code:#x}"


def _gone(side: Side, goaway: tuple[int, int]) -> str:
    last, code = goaway
    return f"the {_NAMES[side]} went away after stream {last} without processing this one: {_code(code)}"
