"""What every decoder takes and gives.

A Decoder belongs to one connection and sees both of its directions, because an answer cannot be framed without
its request (HEAD, CONNECT). It is fed chunks in stream order, each with the time the kernel saw it, and returns
messages; it never asks for the time, never buffers a body, and never raises anything but `DecodeError`.

The three outcomes of feeding it are: messages, an empty list ("need more"), or `DecodeError` (this is not, or is
no longer, this protocol; the connection layer then looks at the stream afresh). Messages carry a `stream`
number that is unique in the connection: the HTTP/2 stream id, or the ordinal of the exchange in HTTP/1. Pairing
by `stream`, timing, truncation and decompression are done once, in `assemble.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from apitrace.exchange import Headers

CLIENT = 0
"""The side that sends requests. `receive(CLIENT, ...)` means: these bytes were sent by the client."""
SERVER = 1
"""The side that sends responses."""
Side = int


class DecodeError(Exception):
    """The bytes are not this protocol. The message says what was expected, without quoting what was captured."""


class RequestHead(NamedTuple):
    """A request's start line and headers are complete.

    The first message of every exchange: of a request that was not seen, every field is None or empty and unknown.
    """

    stream: int
    at: int
    """Time of its first byte."""
    version: str
    """The record's `protocol`: "HTTP/1.0", "HTTP/1.1" or "HTTP/2"."""
    method: str | None
    path: str | None
    authority: str | None
    """Host header or :authority."""
    scheme: str | None
    """None: as the transport says."""
    headers: Headers
    unknown: tuple[str, ...] = ()
    """Record fields that could not be recovered."""


class ResponseHead(NamedTuple):
    """A final (not 1xx, but 101) response's status line and headers are complete."""

    stream: int
    at: int
    version: str
    status_code: int | None
    reason: str | None
    headers: Headers
    unknown: tuple[str, ...] = ()


class Data(NamedTuple):
    """Body bytes, framing removed, still compressed."""

    stream: int
    at: int
    side: Side
    data: bytes
    lost: int = 0
    """Body bytes at this place that were not seen (`data` is then empty)."""


class Trailers(NamedTuple):
    """The trailer section of a message."""

    stream: int
    at: int
    side: Side
    headers: Headers


class End(NamedTuple):
    """A message is complete. `at` is the time of its last byte."""

    stream: int
    at: int
    side: Side


class Failed(NamedTuple):
    """An exchange ends here without (all of) its answer. `kind` as in exchange.Failure."""

    stream: int
    at: int
    kind: str
    detail: str


class Lost(NamedTuple):
    """Bytes of an exchange other than body bytes were not seen: head, framing, trailers."""

    stream: int
    at: int
    side: Side
    size: int
    unknown: tuple[str, ...] = ()
    """Record fields that went with them."""


class Switched(NamedTuple):
    """After this stream's exchange the connection speaks something else: "websocket", "h2c", "tunnel", or a token."""

    stream: int
    at: int
    protocol: str
    goes_on: int | None = None
    """The exchange is not over: it is this stream of the other protocol, which answers it."""


Message = RequestHead | ResponseHead | Data | Trailers | End | Failed | Lost | Switched


class Decoder(Protocol):
    """One connection's decoder. See the module's text for the contract."""

    def receive(self, side: Side, data: bytes, at: int) -> list[Message]:
        """Take the next bytes that `side` sent, seen at `at`. Raises DecodeError."""

    def gap(self, side: Side, size: int | None, at: int) -> list[Message]:
        """Take notice that the next `size` bytes that `side` sent were not seen (None: an unknown number)."""

    def finish(self, side: Side, at: int) -> list[Message]:
        """Take notice that `side` has sent its last byte (FIN, EOF): ends a close-delimited body.

        The server's fails what it leaves open, unless the client's has come before: then `close` does.
        """

    def close(self, at: int, kind: str, detail: str) -> list[Message]:
        """The connection is gone, or is no longer followed: every open exchange ends, as `Failed` of this kind."""

    @property
    def open_exchanges(self) -> int:
        """How many exchanges have begun and not ended."""
