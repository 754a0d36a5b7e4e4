"""The one model of what apitrace shows: an Exchange, that is a request and what answered it.

Every class here is immutable. They are named tuples rather than frozen dataclasses because an Exchange is
made for every call seen and a frozen dataclass of this size takes three times as long to make.
Times are Unix nanoseconds taken by the kernel at the I/O; durations are nanoseconds; sizes are bytes.
None always means "not known", never a default. Foreign spellings of these fields live in the sinks.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Header(NamedTuple):
    """One header field. Bytes that are not UTF-8 were read as Latin-1."""

    name: str
    """In lower case."""
    value: str
    raw_name: str
    """The name with its case as it was on the wire."""


Headers = tuple[Header, ...]


class Endpoint(NamedTuple):
    """One end of a connection. An AF_UNIX end has `path` and no `ip` and `port`."""

    ip: str | None = None
    port: int | None = None
    path: str | None = None
    name: str | None = None
    namespace: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    kind: str | None = None
    """"Pod", "Container" or None."""


class Container(NamedTuple):
    """The container that a process runs in."""

    id: str
    name: str | None = None
    image: str | None = None
    runtime: str | None = None
    """"docker", "podman", "containerd" or "cri-o"."""
    pod: str | None = None
    namespace: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


class Process(NamedTuple):
    """The traced end of the exchange."""

    pid: int
    tid: int
    comm: str
    exe: str | None
    role: str | None
    """"client" or "server"."""
    container: Container | None = None


class Connection(NamedTuple):
    """What the exchange travelled on."""

    id: str
    family: str | None
    """"ipv4", "ipv6" or "unix"; None if the event that tells was lost."""
    stream_id: int | None = None
    """HTTP/2 stream; None for HTTP/1."""
    address_source: str = "socket"
    """"socket", "bio" or "unknown"."""
    connect_ns: int | None = None
    """How long the connect took, where it was seen."""


class Tls(NamedTuple):
    """The TLS session around the exchange."""

    library: str | None = None
    version: str | None = None
    sni: str | None = None
    alpn: str | None = None


class Request(NamedTuple):
    """What the client sent. `method` or `path` are None only if `Exchange.unknown` names them."""

    method: str | None = None
    path: str | None = None
    """With the query."""
    scheme: str | None = None
    authority: str | None = None
    headers: Headers = ()
    trailers: Headers = ()
    body: bytes = b""
    """Decoded (content-encoding undone), at most the snap length."""
    body_size: int = 0
    """Bytes after removing framing and before decompressing, those lost or not kept included."""
    truncated: bool = False
    """The body shown is not the whole body."""


class Response(NamedTuple):
    """What the server sent; fields as in Request."""

    status_code: int | None = None
    reason: str | None = None
    headers: Headers = ()
    trailers: Headers = ()
    body: bytes = b""
    body_size: int = 0
    truncated: bool = False


class Failure(NamedTuple):
    """Why an exchange did not end as it should."""

    kind: str
    """"unanswered", "reset", "closed", "cancelled", "refused", "decode" or "unreadable"."""
    detail: str


class Timing(NamedTuple):
    """Durations in ns; None where one of the two instants was not seen."""

    request_ns: int | None = None
    """First to last byte of the request."""
    wait_ns: int | None = None
    """Last byte of the request to first byte of the response; 0 if the answer came before the request had ended."""
    response_ns: int | None = None
    """First to last byte of the response."""


class CallMessage(NamedTuple):
    """One of the messages that a call carries in its bodies: gRPC's."""

    timestamp: int | None
    """Unix ns of its first byte; None if the body could be taken apart only when it was whole."""
    size: int
    """Bytes as sent, without the framing, before decompressing."""
    compressed: bool
    data: Any
    """What it says, as a JSON value. Without `encoding` it is None."""
    encoding: str | None
    """How `data` is to be read: "proto" (protobuf, by the names of a schema), "guess" (protobuf by field number, see
    protocols/protobuf.py), "json", or "base64" of bytes that are none of these. None: nothing was kept of it."""
    truncated: bool
    """What `data` tells is not the whole message."""


class Grpc(NamedTuple):
    """A gRPC call, in addition to the HTTP exchange that carries it."""

    service: str | None = None
    """With its package."""
    method: str | None = None
    status_code: int | None = None
    """None if none was seen: that is never 0 (OK)."""
    status: str | None = None
    """The code's name, as "NOT_FOUND"; None also for a code that gRPC has no name for."""
    message: str | None = None
    """Percent-decoded."""
    timeout_ns: int | None = None
    """What the client allows (grpc-timeout); None if it sets no limit."""
    request_metadata: Headers = ()
    """The application's own header fields; those whose names end in "-bin" as padded base64."""
    response_metadata: Headers = ()
    trailing_metadata: Headers = ()
    requests: tuple[CallMessage, ...] = ()
    """Messages that were sent whole, those of which nothing was kept included."""
    responses: tuple[CallMessage, ...] = ()
    request_count: int | None = None
    """How many there were, also where not all are listed; None if this could not be followed to the end."""
    response_count: int | None = None


class Exchange(NamedTuple):
    """One call as one traced process saw it."""

    id: str
    timestamp: int
    """Unix ns of the request's first byte (of the response's, if the request was not seen)."""
    source: Endpoint
    destination: Endpoint
    process: Process
    connection: Connection
    tls: Tls | None
    protocol: str
    """"HTTP/1.0", "HTTP/1.1", "HTTP/2", "TLS" or "TCP"."""
    request: Request
    response: Response | None
    latency_ns: int | None
    timing: Timing
    lost_bytes: int = 0
    unknown: tuple[str, ...] = ()
    """Record fields that were on the wire and could not be recovered, e.g. "request.path"."""
    error: Failure | None = None
    grpc: Grpc | None = None

    @property
    def complete(self) -> bool:
        """Whether everything of the exchange was seen and it ended as it should."""
        return not (self.lost_bytes or self.unknown or self.error)

    @property
    def url(self) -> str | None:
        """The visible URL, as it can be pasted into curl; None if scheme, authority or path is not known."""
        request = self.request
        if request.path is None:
            return None
        if "://" in request.path:  # absolute-form, as sent to a proxy
            return request.path
        if request.authority is None or request.scheme is None:
            return None
        if not request.path.startswith("/"):  # CONNECT host:port and OPTIONS *
            return None
        return f"{request.scheme}://{request.authority}{request.path}"


class Progress(NamedTuple):
    """What has just passed on a call that has not ended. Also for what streams without gRPC."""

    exchange: Exchange
    """The call as far as it has come: with its ends, its request's head, and its response's if there is one yet."""
    side: str | None = None
    """Who sent the message: "client" or "server"."""
    ordinal: int | None = None
    """The message's number among those of its side, from 0."""
    message: CallMessage | None = None
    """None: this only says that the call is open, and carries more than one message a side."""


Outcome = Exchange | Progress
"""What the stages behind the decoders pass on."""
