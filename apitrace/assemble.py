"""Messages to Exchanges: pairing, timing, truncation, decompression and the words for what went wrong.

The Assembler takes the Batches of the connection table and returns each Exchange once, when its request and its
response have both ended, or when the decoder says that it fails. It relies on what decoder.py promises: a
RequestHead opens an exchange (with unknown fields if the request was not seen), a message of an exchange that is not
open is of no account, and what the connection layer gives as the last message of a connection (Gone) ends whatever
is open on it. Nothing is lost between the two: an exchange that was opened is returned.

What is kept of a body is at most the snap length of what was on the wire, and at most as much again after
decompression. A body shown is always a prefix of the body sent: what follows a hole, or a range whose order is not
known, is counted and not kept.

Hot path: feed, _exchange. Measured on one 2 GHz core (CPython 3.11): 3.5 us for an exchange of two chunks.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TYPE_CHECKING

from apitrace.connection import ConnectFailed, Gone, Unordered, Unreadable
from apitrace.exchange import (
    Connection,
    Container,
    Endpoint,
    Exchange,
    Failure,
    Grpc,
    Headers,
    Outcome,
    Process,
    Progress,
    Request,
    Response,
    Timing,
)
from apitrace.options import STREAMING, CallOptions
from apitrace.protocols import grpc
from apitrace.protocols.codings import CODING_HEADERS, decompressed
from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    End,
    Failed,
    Lost,
    RequestHead,
    ResponseHead,
    Side,
    Switched,
    Trailers,
)

if TYPE_CHECKING:
    from apitrace.connection import AnyMessage, Batch, TrackedConnection
    from apitrace.stats import Stats

OPEN_LIMIT = 32768
"""Exchanges open at once: some 1 KiB each. Load generators are run with 10,000 connections; Envoy lets 1,024 requests
wait per cluster. Over it the oldest sixteenth is given up, with an error that says so."""

KEPT_LIMIT = 48 << 20
"""Body bytes kept of all open exchanges together: a third of the 150 MB that the program may have resident. That is 768
bodies of the default snap length (64 KiB) at once. Over it bodies are cut, as by the snap length."""

_SIDES = {CLIENT: "client", SERVER: "server"}

_UNSEEN = "request.body"
"""Unknown in a RequestHead without a method: then nothing of the request was seen."""

_new = tuple.__new__
"""NamedTuple's own __new__ is a Python function: 0.9 us for an Exchange against 0.2 us."""


class _Body:
    """A body being put together: its first pieces as they came, at most the snap length."""

    __slots__ = ("cut", "kept", "more", "piece", "size")

    def __init__(self) -> None:
        self.piece = b""
        """The first piece."""
        self.more: list[bytes] | None = None
        """The others."""
        self.kept = 0
        self.size = 0
        self.cut = False
        """Bytes are missing behind those kept, so no more can be kept."""


class _Draft:
    """An exchange being put together. Class attributes are what it begins as: most exchanges set a few of them."""

    response: ResponseHead | None = None
    request_end: int | None = None
    response_end: int | None = None
    request_body: _Body | None = None
    response_body: _Body | None = None
    request_trailers: Headers = ()
    response_trailers: Headers = ()
    lost = 0
    call: grpc.Call | None = None
    so_far: Exchange | None = None
    """What was last shown of it while it is open."""

    def __init__(self, number: int, process: Process, request: RequestHead) -> None:
        self.number = number
        self.process = process
        self.request = request
        self.unknown = request.unknown

    def body(self, side: Side) -> _Body:
        """Return the body that `side` sends."""
        body = self.request_body if side == CLIENT else self.response_body
        if body is None:
            body = _Body()
            if side == CLIENT:
                self.request_body = body
            else:
                self.response_body = body
        return body


class _Calls:
    """What the assembler knows of a connection: its open exchanges, and values that its exchanges share."""

    __slots__ = ("connection", "drafts", "ends", "ends_of", "shared", "total")

    def __init__(self, connection: TrackedConnection) -> None:
        self.connection = connection
        self.drafts: dict[int, _Draft] = {}
        self.total = 0
        self.shared: Connection | None = None
        self.ends = (Endpoint(), Endpoint())
        self.ends_of: tuple[str | None, Container | None, str | None] | None = None
        """What the ends were made from, besides the connection."""


class Assembler:
    """Turns messages into exchanges."""

    def __init__(
        self, *, stats: Stats, clock_offset_ns: int, snaplen: int, calls: CallOptions | None = None
    ) -> None:
        """`clock_offset_ns`: Unix time minus the events' clock. `snaplen`: body bytes kept per message.

        `calls` says what to make of the messages of gRPC calls, and which to return as they pass.
        """
        self._stats = stats
        self._offset = clock_offset_ns
        self._snaplen = snaplen
        self._terms = grpc.Terms(grpc.Room(), clock_offset_ns, snaplen, calls or CallOptions())
        self._calls: dict[int, _Calls] = {}
        self._open = 0
        self._kept = 0

    # -- hot: once per batch, and once per exchange ----------------------------------------------------------------

    def feed(self, batch: Batch) -> list[Outcome]:
        """Take the messages that one event gave; return the exchanges that are over, and what else is wanted."""
        connection, pid, tid, messages = batch
        calls = self._calls.get(connection.number)
        if calls is None:
            calls = self._calls[connection.number] = _Calls(connection)
        drafts = calls.drafts
        done: list[Outcome] = []
        for message in messages:
            if isinstance(message, End):
                stream, at, side = message
                draft = drafts.get(stream)
                if draft is None:
                    continue
                if side == CLIENT:
                    draft.request_end = at
                    if draft.response_end is not None:
                        done.append(self._exchange(calls, stream, draft, None))
                else:
                    draft.response_end = at
                    if draft.request_end is not None:
                        done.append(self._exchange(calls, stream, draft, None))
            elif isinstance(message, RequestHead):
                calls.total = number = calls.total + 1
                drafts[message[0]] = draft = _Draft(number, connection.process(pid, tid), message)
                if message.method == "POST" or message.unknown:
                    draft.call = grpc.recognise(message.headers, self._terms)
                self._stats.opened += 1
                self._open += 1
                if self._open > OPEN_LIMIT:
                    done += self._give_up_oldest()
            elif isinstance(message, ResponseHead):
                draft = drafts.get(message[0])
                if draft is not None:
                    draft.response = message
                    if message.unknown:
                        draft.unknown = _united(draft.unknown, message.unknown)
                    if draft.call is not None:
                        draft.call.respond(message.headers, bool(message.unknown))
                        draft.so_far = None
                    elif draft.unknown:
                        draft.call = grpc.recognise_response(draft.request.headers, message.headers, self._terms)
            elif isinstance(message, Data):
                draft = drafts.get(message[0])
                if draft is not None:
                    self._add(draft, message)
                    if draft.call is not None:
                        done += self._carry(calls, draft, draft.call, message)
            else:
                done += self._rare(calls, pid, tid, message)
        return done

    def _add(self, draft: _Draft, message: Data) -> None:
        _, _, side, data, lost = message
        body = draft.body(side)
        if lost:
            body.size += lost
            body.cut = True
            draft.lost += lost
            return
        size = len(data)
        body.size += size
        if body.cut:
            return
        room = self._snaplen - body.kept
        if size > room:
            size = room
            data = data[:room]
            body.cut = True
        if self._kept + size > KEPT_LIMIT:
            body.cut = True
        elif size:
            if body.kept == 0:
                body.piece = data
            elif body.more is None:
                body.more = [data]
            else:
                body.more.append(data)
            body.kept += size
            self._kept += size

    def _exchange(self, calls: _Calls, stream: int, draft: _Draft, error: Failure | None) -> Exchange:
        """Close a draft. `error` is why, unless both messages have ended."""
        del calls.drafts[stream]
        self._open -= 1
        self._stats.captured += 1
        connection, shared = calls.connection, calls.shared
        if shared is None or shared.id is not connection.id:
            calls.shared = shared = _shared(connection)
            calls.ends_of = None
        _, began, version, method, path, authority, scheme, headers, unseen = draft.request
        process, request_end = draft.process, draft.request_end
        seen = method is not None or _UNSEEN not in unseen
        # What is asked of a proxy (CONNECT, or a path that is a URL) names another end than the proxy.
        ends_of = (process.role, process.container, authority if path and path[0] == "/" else None)
        if ends_of != calls.ends_of:
            calls.ends = _ends(connection, *ends_of)
            calls.ends_of = ends_of
        source, destination = calls.ends

        body, size, truncated = b"", 0, False
        if draft.request_body is not None:
            body, size, truncated = self._close_body(draft.request_body, headers)
        tls = connection.session_tls
        if seen and scheme is None and "request.scheme" not in unseen:
            scheme = "http" if tls is None else "https"
        if version == "HTTP/2":
            shared = _new(Connection, (*shared[:2], stream, *shared[3:]))
        request = _new(
            Request,
            (method, path, scheme, authority, headers, draft.request_trailers, body, size, truncated),
        )
        response = request_ns = wait_ns = response_ns = latency = None
        if draft.response is not None:
            _, replied, _, status, reason, headers, _ = draft.response
            body, size, truncated = b"", 0, False
            if draft.response_body is not None:
                body, size, truncated = self._close_body(draft.response_body, headers)
            response = _new(
                Response, (status, reason, headers, draft.response_trailers, body, size, truncated)
            )
            if draft.response_end is not None:
                response_ns = draft.response_end - replied
            if replied < began:  # a send that blocked is reported when it returns: when it began is not known
                began = replied
                seen = False
            elif seen:
                wait_ns = 0 if request_end is None or request_end > replied else replied - request_end
                if response_ns is not None:
                    latency = replied + response_ns - began
        if seen and request_end is not None:
            request_ns = request_end - began
        if error is not None and error.kind == "unanswered":
            self._stats.unanswered += 1
        call, unknown = None, draft.unknown
        if draft.call is not None or (unknown and version == "HTTP/2"):
            call, unknown = self._close_call(draft, request, response)
        if unknown:
            self._stats.partly_known += 1
        return _new(
            Exchange,
            (f"{connection.label}-{draft.number}", began + self._offset, source, destination, process, shared, tls,
             version, request, response, latency, _new(Timing, (request_ns, wait_ns, response_ns)), draft.lost,
             unknown, error, call),
        )  # fmt: skip

    def _close_body(self, body: _Body, headers: Headers) -> tuple[bytes, int, bool]:
        """Return the bytes to show of a body, its size, and whether more than these was sent."""
        self._kept -= body.kept
        shown = body.piece if body.more is None else b"".join((body.piece, *body.more))
        cut = body.cut
        coded = [header for header in headers if header[0] in CODING_HEADERS]
        if coded and shown:
            shown, cut = decompressed(shown, cut, coded, self._snaplen)
        return shown, body.size, cut

    # -- gRPC ------------------------------------------------------------------------------------------------------

    def _carry(self, calls: _Calls, draft: _Draft, call: grpc.Call, message: Data) -> list[Outcome]:
        """Take a piece of a call's body; return the messages that have passed with it, if they are wanted."""
        stream, _, side, data, lost = message
        if lost:
            call.gap(side, lost)
        else:
            call.receive(side, data, message.at)
        if not call.pending:
            return []
        done: list[Outcome] = []
        if not call.streams:
            # Other signs of streaming there are not: nothing on the wire tells the kinds of methods apart.
            early = draft.request_end is None and call.count(SERVER)
            call.streams = bool(early) or call.count(CLIENT) > 1 or call.count(SERVER) > 1
            if call.streams:
                done.append(Progress(self._so_far(calls, stream, draft)))
            elif self._terms.options.live == STREAMING:
                return []
        path = draft.request.path
        for passed in call.take():
            shown = call.message(passed, path)
            done.append(Progress(self._so_far(calls, stream, draft), _SIDES[passed.side], passed.ordinal, shown))
        return done

    def _so_far(self, calls: _Calls, stream: int, draft: _Draft) -> Exchange:
        """Return an open call as it stands: heads, and no bodies."""
        if draft.so_far is not None:
            return draft.so_far
        _, began, version, method, path, authority, scheme, headers, _ = draft.request
        connection, process, replied = calls.connection, draft.process, draft.response
        tls = connection.session_tls
        service, name = grpc.names(path)
        source, destination = _ends(
            connection, process.role, process.container, authority if path and path[0] == "/" else None
        )
        draft.so_far = exchange = Exchange(
            id=f"{connection.label}-{draft.number}",
            timestamp=began + self._offset,
            source=source,
            destination=destination,
            process=process,
            connection=_shared(connection)._replace(stream_id=stream if version == "HTTP/2" else None),
            tls=tls,
            protocol=version,
            request=Request(method, path, scheme, authority, headers),
            response=replied and Response(replied.status_code, replied.reason, replied.headers),
            latency_ns=None,
            timing=Timing(),
            lost_bytes=draft.lost,
            unknown=draft.unknown,
            grpc=Grpc(service, name),
        )
        return exchange

    def _close_call(
        self, draft: _Draft, request: Request, response: Response | None
    ) -> tuple[Grpc | None, tuple[str, ...]]:
        """Return what an exchange was as a gRPC call, if it was one, and all that is unknown of it."""
        call, unknown = draft.call, draft.unknown
        if call is None:
            call = grpc.recognise_late(request, response, unknown, self._terms)
        if call is None:
            return None, unknown
        answer = (b"", False) if response is None else (response.body, response.truncated)
        shown, more = call.close(request.path, ((request.body, request.truncated), answer), response)
        if shown.status_code is None and ("response.trailers" in unknown or "response.headers" in unknown):
            more += ("grpc.status_code",)
        return shown, _united(unknown, more)

    # -- once per connection, or rare ------------------------------------------------------------------------------

    def drain(self, at: int) -> list[Exchange]:
        """Return what is still open, as unanswered: the capture is over."""
        failure = Failure("unanswered", "still open when the capture ended")
        return [
            self._exchange(calls, stream, draft, failure)
            for calls in self._calls.values()
            for stream, draft in list(calls.drafts.items())
        ]

    def _rare(self, calls: _Calls, pid: int, tid: int, message: AnyMessage) -> list[Exchange]:
        """Take a message that most exchanges do without."""
        if isinstance(message, ConnectFailed):
            return [self._without_call(calls, pid, tid, message)]
        if isinstance(message, Unreadable):
            return [self._unreadable(calls, pid, tid, message)]
        if isinstance(message, Gone):
            del self._calls[calls.connection.number]
            failure = Failure("closed", "the connection is over")
            return [self._exchange(calls, stream, draft, failure) for stream, draft in list(calls.drafts.items())]
        draft = calls.drafts.get(message.stream)
        if draft is None:
            return []
        if isinstance(message, Switched):
            if message.goes_on is not None:  # an upgrade: RFC 7540 section 3.2
                del calls.drafts[message.stream]
                calls.drafts[message.goes_on] = draft
                draft.request = draft.request._replace(version="HTTP/2")
            return []
        if isinstance(message, Failed):
            return [self._exchange(calls, message.stream, draft, Failure(message.kind, message.detail))]
        if isinstance(message, Trailers):
            if message.side == CLIENT:
                draft.request_trailers += message.headers
            else:
                draft.response_trailers += message.headers
        elif isinstance(message, Unordered):
            body = draft.body(message.side)
            body.size += message.size
            body.cut = True
            if draft.call is not None:
                draft.call.stop(message.side)
            name = "request.body" if message.side == CLIENT else "response.body"
            draft.unknown = _united(draft.unknown, (name,))
        elif isinstance(message, Lost):
            draft.lost += message.size
            draft.unknown = _united(draft.unknown, message.unknown)
            if any(name.endswith((".body", ".body_size")) for name in message.unknown):
                draft.body(message.side).cut = True
                if draft.call is not None:
                    draft.call.stop(message.side)
        return []

    def _unreadable(self, calls: _Calls, pid: int, tid: int, seen: Unreadable) -> Exchange:
        """Return the record of a TLS connection that could not be read."""
        tls = calls.connection.tls
        sni = tls and tls.sni
        request = Request(authority=sni, body_size=seen.sent, truncated=seen.sent > 0)
        response = Response(body_size=seen.received, truncated=seen.received > 0)
        record = self._without_call(calls, pid, tid, seen, sni)
        return record._replace(tls=tls, protocol="TLS", request=request, response=response, unknown=seen.unknown)

    def _without_call(
        self, calls: _Calls, pid: int, tid: int, seen: ConnectFailed | Unreadable, authority: str | None = None
    ) -> Exchange:
        """Return the record of a connection on which no call was seen: as one that was never made."""
        connection = calls.connection
        calls.total += 1
        self._stats.opened += 1
        self._stats.captured += 1
        self._stats.unanswered += seen.kind == "unanswered"
        process = connection.process(pid, tid)
        source, destination = _ends(connection, process.role, process.container, authority)
        return Exchange(
            id=f"{connection.label}-{calls.total}",
            timestamp=seen.began + self._offset,
            source=source,
            destination=destination,
            process=process,
            connection=_shared(connection),
            tls=None,
            protocol="TCP",
            request=Request(),
            response=None,
            latency_ns=None,
            timing=Timing(),
            error=Failure(seen.kind, seen.detail),
        )

    def _give_up_oldest(self) -> list[Exchange]:
        """Make room: end the oldest sixteenth of what is open."""
        drafts = [
            (draft.request.at, calls, stream, draft)
            for calls in self._calls.values()
            for stream, draft in calls.drafts.items()
        ]
        drafts.sort(key=lambda entry: entry[0])
        failure = Failure("closed", f"no longer followed: more than {OPEN_LIMIT} exchanges are open")
        return [
            self._exchange(calls, stream, draft, failure) for _, calls, stream, draft in drafts[: OPEN_LIMIT // 16 or 1]
        ]


def _united(names: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names + more))


# -- ends ----------------------------------------------------------------------------------------------------------


def _shared(connection: TrackedConnection) -> Connection:
    return Connection(
        connection.id, connection.family, None, connection.address_source, connection.connect_ns
    )


def _ends(
    connection: TrackedConnection, role: str | None, container: Container | None, authority: str | None
) -> tuple[Endpoint, Endpoint]:
    """Return the client's and the server's end: the traced one named by its container, the other by what was asked."""
    near, far = (_end(connection, address) for address in (connection.local, connection.remote))
    if container is not None:
        near = near._replace(
            name=container.pod or container.name,
            namespace=container.namespace,
            labels=container.labels,
            kind="Pod" if container.pod else "Container",
        )
    if role == "server":
        return far, near
    return near, far._replace(name=_host_name(authority) if authority else None)


def _end(connection: TrackedConnection, address: tuple[str, int] | None) -> Endpoint:
    if address is None:
        return Endpoint()
    if connection.family == "unix":
        return Endpoint(path=address[0])
    return Endpoint(ip=address[0], port=address[1] or None)


_PORT = re.compile(r":\d*\Z")


@functools.lru_cache(maxsize=1024)
def _host_name(authority: str) -> str | None:
    """Return the host of an authority; None for an IP literal."""
    host = _PORT.sub("", authority.rpartition("@")[2])
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host or None
    return None
