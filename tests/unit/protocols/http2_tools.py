"""What the HTTP/2 tests share: a peer that writes frames with hyperframe and hpack, and its messages read as calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from apitrace.protocols.decoder import CLIENT, SERVER, Message, RequestHead, Side
from apitrace.protocols.http2 import Http2
from tests.unit.protocols.http1_tools import Call, Sent, _add

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Pairs = tuple[tuple[str, str], ...]

GET: Pairs = ((":method", "GET"), (":scheme", "http"), (":authority", "h.test"), (":path", "/a"), ("user-agent", "t"))
OK: Pairs = ((":status", "200"), ("server", "s"))


class Peer:
    """One end of a connection. Each method returns the bytes of what it sends."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.encoder = Encoder()
        self.huffman = True

    def hello(self, **settings: int) -> bytes:
        """What the connection begins with."""
        return (PREFACE if self.side == CLIENT else b"") + self.settings(**settings)

    def settings(self, **settings: int) -> bytes:
        frame = SettingsFrame(0)
        frame.settings = {getattr(SettingsFrame, name.upper()): value for name, value in settings.items()}
        return frame.serialize()

    def ack(self) -> bytes:
        frame = SettingsFrame(0)
        frame.flags.add("ACK")
        return frame.serialize()

    def headers(
        self, stream: int, pairs: Iterable[tuple[str, str]], *, end: bool = False, parts: int = 1,
        pad: int | None = None, priority: bool = False, promised: int | None = None,
    ) -> bytes:
        """Send a header block in so many frames."""
        block = self.encoder.encode(list(pairs), huffman=self.huffman)
        size = -(-len(block) // parts) or 1
        pieces = [block[i : i + size] for i in range(0, len(block), size)] or [b""]
        pieces += [b""] * (parts - len(pieces))
        first: Any = HeadersFrame(stream) if promised is None else PushPromiseFrame(stream)
        if promised is not None:
            first.promised_stream_id = promised
        first.data = pieces[0]
        if pad is not None:
            first.flags.add("PADDED")
            first.pad_length = pad
        if priority:
            first.flags.add("PRIORITY")
            first.depends_on, first.stream_weight, first.exclusive = 0, 15, False
        if end:
            first.flags.add("END_STREAM")
        sent: list[Any] = [first]
        for piece in pieces[1:]:
            more = ContinuationFrame(stream)
            more.data = piece
            sent.append(more)
        sent[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in sent)

    def data(self, stream: int, data: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
        frame = DataFrame(stream, data)
        if end:
            frame.flags.add("END_STREAM")
        if pad is not None:
            frame.flags.add("PADDED")
            frame.pad_length = pad
        return frame.serialize()

    def reset(self, stream: int, code: int) -> bytes:
        frame = RstStreamFrame(stream)
        frame.error_code = code
        return frame.serialize()

    def goaway(self, last: int, code: int = 0) -> bytes:
        frame = GoAwayFrame(0)
        frame.last_stream_id, frame.error_code = last, code
        frame.additional_data = b"why"
        return frame.serialize()

    def window(self, stream: int = 0) -> bytes:
        frame = WindowUpdateFrame(stream)
        frame.window_increment = 1000
        return frame.serialize()

    def ping(self) -> bytes:
        return PingFrame(0, b"12345678").serialize()

    def priority(self, stream: int) -> bytes:
        frame = PriorityFrame(stream)
        frame.depends_on, frame.stream_weight = 0, 3
        return frame.serialize()


class Talk:
    """A conversation: what both peers send, as chunks for a decoder."""

    def __init__(self, *, greet: bool = True) -> None:
        self.client, self.server = Peer(CLIENT), Peer(SERVER)
        self.sent: list[Sent] = []
        if greet:
            self.c(self.client.hello())
            self.s(self.server.hello(), self.server.ack())

    def c(self, *data: bytes) -> None:
        """The client sends this in one chunk."""
        self.sent.append(Sent(CLIENT, b"".join(data)))

    def s(self, *data: bytes) -> None:
        self.sent.append(Sent(SERVER, b"".join(data)))

    def ask(self, stream: int = 1, pairs: Pairs = GET, body: bytes | None = None) -> None:
        """A whole request."""
        frames = [self.client.headers(stream, pairs, end=body is None)]
        if body is not None:
            frames.append(self.client.data(stream, body, end=True))
        self.c(*frames)

    def answer(self, stream: int = 1, pairs: Pairs = OK, body: bytes = b"ok", trailers: Pairs = ()) -> None:
        """A whole response."""
        self.s(
            self.server.headers(stream, pairs),
            self.server.data(stream, body, end=not trailers),
            *([self.server.headers(stream, trailers, end=True)] if trailers else []),
        )

    def take(self) -> list[Sent]:
        """Return what was said since the last time."""
        sent, self.sent = self.sent, []
        return sent


def feed(decoder: Http2, conversation: Iterable[Sent], at: int = 0) -> list[Message]:
    """Feed one chunk per Sent, at times that count up from `at`."""
    messages: list[Message] = []
    for now, sent in zip(itertools.count(at), conversation):
        messages += decoder.receive(sent.side, sent.data, now)
    return messages


def calls(messages: Iterable[Message]) -> dict[int, Call]:
    """Return the calls by stream. Checks what every consumer relies on: the order of messages within an exchange."""
    found: dict[int, Call] = {}
    for message in messages:
        call = found.get(message.stream)
        if call is None:
            assert isinstance(message, RequestHead), f"{message} before its request"
            call = Call()
        else:
            assert not isinstance(message, RequestHead), f"{message} is the second"
        assert call.failed is None, f"{message} after Failed"
        found[message.stream] = _add(call, message)
    return found


def frames_of(data: bytes) -> list[Frame]:
    """Read frames with hyperframe."""
    frames = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(frame)
        data = data[9 + length :]
    return frames
