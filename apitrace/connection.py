"""Events to messages: per connection, two byte streams in order, and the decoder that reads them.

`ConnectionTable` takes the kernel's events one by one and returns Batches: messages of one connection, moved by one
thread. It knows no clock but the events'; `tick` tells it how far that has come. It never raises for what it is fed.

Places. Every chunk says where in its direction it stands, so a loss is seen and not guessed. A chunk ahead of its
place waits for what belongs before it, because threads report a little out of order; after WAIT_NS the hole is
declared, and the decoder told its size. Two threads that read one socket may both report the end that the later one
reached: then the chunks overlap, and a hole of the same length is beside the overlap. Such a Jumble is whole, but
the order of its chunks is not known, so no byte of it is decoded. (Measured: once in 2,800 reads of 64 KiB.)

Ends. A direction ends where the position of its FIN or EOF is reached. A connection that has closed is kept for
WAIT_NS, because another thread's last call may be reported after the close; then its decoder is closed and `Gone` is
its last message. Closing and every bound that is hit end open exchanges with an error: none is dropped.

Protocols. What a stream begins with decides (detect.py), and with it who is client. A connection whose beginning was
not seen gets a decoder that knows this (`joined`). Bytes of no known protocol are passed over, but each chunk is
looked at: an HTTP request that comes later is found. Verdicts tell the kernel side where it should copy all or nothing.

TLS. What a session reads and writes is a connection of its own, that of the plaintext; the socket's is its carrier, and
gives it addresses and its end (sessions.py). A session that works on memory is tied to its socket by bytes, which may
come right after its own: what it moved waits for that, for WAIT_NS. A carrier's own decoder reads the handshake and
counts; one that ends without a session is told of as unreadable.

Hot path: feed, for a chunk in its place on a connection that has a decoder. Measured: 0.9 us without the decoder.
"""

from __future__ import annotations

import enum
import heapq
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from apitrace import endings
from apitrace.endings import CLOSE, SYN_SENT, WAIT_NS, Ending, seconds
from apitrace.exchange import Container, Process, Tls
from apitrace.probes.events import (
    Chunk,
    Counters,
    Event,
    Executed,
    Exited,
    Forked,
    ProbesPlaced,
    ProcessSeen,
    SessionFreed,
    SessionSeen,
    SocketClosed,
    SocketSeen,
    StateChanged,
    Watched,
)
from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    DecodeError,
    Decoder,
    End,
    Failed,
    Lost,
    Message,
    Side,
    Switched,
)
from apitrace.protocols.detect import Detection, detect
from apitrace.protocols.http1 import Http1
from apitrace.protocols.http2 import Http2
from apitrace.protocols.tls import HANDSHAKE, TlsDecoder, looks_like_tls
from apitrace.sessions import GO_LIBRARY, UNKNOWN_LIBRARY, TlsLedger, Verdict
from apitrace.stats import Stats
from apitrace.streams import MASK, NEVER, Budget, Hole, Jumble, Stream

CONNECTIONS_LIMIT = 16384
"""Connections followed at once: 3 KiB each with decoder and assembler (tracemalloc), 48 MiB in all. nginx allows 512
per worker by default, Apache's event MPM 400. Over it the sixteenth that was silent longest is given up."""

UNDECIDED_LIMIT = 4096
"""Bytes of one direction kept while they may yet become a known protocol: UNKNOWN_BYTES_LIMIT in bpf/maps.bpf.c, what
the kernel side copies of a connection before it leaves it alone. Request lines over 4 KiB are known by their method."""

PROCESSES_LIMIT = 16384
"""Processes remembered, the dead included (their connections end after them); half of the classic pid_max."""

VERDICT_IGNORE, VERDICT_KNOWN = 1, 2
"""As in bpf/sockets.bpf.c: leave the connection alone; copy it whole."""

_FAMILIES = {int(socket.AF_INET): "ipv4", int(socket.AF_INET6): "ipv6", int(socket.AF_UNIX): "unix"}

_new = tuple.__new__
"""NamedTuple's own __new__ is a Python function: 0.24 us a Batch against 0.1 us."""


# -- what comes out ------------------------------------------------------------------------------------------------


class Unordered(NamedTuple):
    """Body bytes that were seen, but not in which order: their number is right, their content is not known."""

    stream: int
    at: int
    side: Side
    size: int


class ConnectFailed(NamedTuple):
    """A connect that came to nothing, or was not answered until the capture ended."""

    began: int
    at: int
    kind: str
    """As in exchange.Failure."""
    detail: str


class Unreadable(NamedTuple):
    """A TLS connection is over of which no plaintext was seen."""

    began: int
    at: int
    kind: str
    """As in exchange.Failure."""
    detail: str
    sent: int
    """Bytes on the wire from the client (of a connection joined in the middle: from the traced end), TLS's own too."""
    received: int
    unknown: tuple[str, ...] = ()
    """Record fields of these that say too little."""


class Gone(NamedTuple):
    """The last message of a connection: it is over, or is no longer followed."""

    at: int


AnyMessage = Message | Unordered | ConnectFailed | Unreadable | Gone


class Batch(NamedTuple):
    """Messages of one connection, in order."""

    connection: TrackedConnection
    pid: int
    """Who moved the bytes that gave them."""
    tid: int
    messages: Sequence[AnyMessage]


# -- processes -----------------------------------------------------------------------------------------------------


class _Program(NamedTuple):
    """What a process runs, and where."""

    comm: str
    exe: str | None
    container: Container | None
    at: int = 0


class Processes:
    """What is known of processes, by pid. Bounded: the one told of longest ago is forgotten."""

    def __init__(self) -> None:
        self.programs: dict[int, _Program] = {}

    def _set(self, pid: int, program: _Program) -> None:
        self.programs.pop(pid, None)
        if len(self.programs) >= PROCESSES_LIMIT:
            del self.programs[next(iter(self.programs))]
        self.programs[pid] = program

    def seen(self, event: ProcessSeen) -> None:
        """Take what /proc and the container runtime said."""
        self._set(event.pid, _Program(event.comm, event.exe, event.container, event.at))

    def executed(self, event: Executed) -> None:
        """Take an exec. What was read from /proc because of it came just before, and knows more."""
        known = self.programs.get(event.pid)
        if known is None or known.at != event.at:
            exe = event.filename if event.filename.startswith("/") else None
            self._set(event.pid, _Program(event.comm, exe, known and known.container, event.at))

    def forked(self, event: Forked) -> None:
        """Take a fork: the child is what its parent is."""
        known = self.programs.get(event.pid)
        if known is not None:
            self._set(event.child, known)


# -- connections ---------------------------------------------------------------------------------------------------


class _State(enum.Enum):
    """What is known of what a connection speaks."""

    UNDECIDED = "nothing was seen, or too little to say"
    DECODED = "a decoder reads it"
    UNKNOWN = "nothing that is known; each chunk is looked at"
    IGNORED = "left alone for good"


class TrackedConnection:
    """One connection, as the stages behind the table see it. They read it and change nothing."""

    __slots__ = (
        "address_source", "alpn", "announced", "began", "by_bytes", "carrier", "comm", "connect_ns", "connecting",
        "decoder", "due", "egress", "ending", "family", "hushed", "id", "ingress", "joined", "kind", "label",
        "last_at", "library", "local", "number", "pid", "probed", "programs", "remote", "role", "sessions", "smooth",
        "state", "switched", "tid", "totals", "undecided",
    )  # fmt: skip

    def __init__(self, seen: SocketSeen, processes: Processes, budget: Budget) -> None:
        self.number = seen.conn
        self.programs = processes.programs
        self.announce(seen)
        self.announced = True
        """Its SocketSeen or SessionSeen has come."""
        self.pid, self.tid = seen.pid, seen.tid
        """Who moved the last bytes."""
        self.role = "client" if seen.connected else None
        """"client" or "server", once known."""
        self.connecting: int | None = None
        """When a connect began that is not answered yet."""
        self.connect_ns: int | None = None
        # A socket that is about to connect has no positions yet.
        placed = self.local is not None and not seen.connected
        self.egress = Stream(egress=True, expected=seen.egress_seq if placed else None, budget=budget)
        self.ingress = Stream(egress=False, expected=seen.ingress_seq if placed else None, budget=budget)
        self.joined = self.local is None or (placed and (seen.egress_total > 1 or seen.ingress_total > 1))
        """Bytes went by, on either side, that no decoder has seen. (TCP counts a SYN as a byte.)"""
        self.state = _State.UNDECIDED
        self.decoder: Decoder | None = None
        self.undecided: list[tuple[Stream, Chunk]] = []
        """Chunks that are too short to say what they begin."""
        self.kind: str | None = None
        """What it was counted as: "http", "tls" or "unknown"."""
        self.switched: str | None = None
        """What it speaks since it left HTTP: "websocket", "tunnel", ..."""
        self.ending: Ending | None = None
        self.smooth = True
        """Nothing waits: a chunk in its place can be decoded at once."""
        self.due = NEVER
        """When to look at it again."""
        self.last_at = self.began = seen.at
        self.totals = (seen.egress_total, seen.ingress_total)
        """Bytes moved before the first that was seen."""
        self.probed = seen.probed
        # TLS. A session is a connection of its own, that of the plaintext; the socket's is its carrier.
        self.library: str | None = None
        """Of a session: "OpenSSL 3.0.15"."""
        self.alpn: str | None = None
        self.carrier: TrackedConnection | None = None
        self.by_bytes = False
        """Of a session: its carrier was told by bytes that both had."""
        self.sessions: list[int] = []
        """Of a carrier: the sessions that speak, or spoke, through it."""
        self.hushed = False
        """Of a carrier: the kernel side was told that nothing more is to be seen."""

    def announce(self, seen: SocketSeen) -> None:
        """Take what a SocketSeen says of the socket, which may come late."""
        self.family = _FAMILIES.get(seen.family)
        """"ipv4", "ipv6", "unix", or None if not known."""
        known = self.family is not None
        self.id = f"{seen.inode}-{seen.conn:x}" if known else f"0-{seen.conn:x}-{seen.at:x}"
        """The sockfs inode, and the kernel side's number, which holds when it was first seen. What is not known by its
        SocketSeen may be the rest of a connection that was given up: then also when that began."""
        self.label = self.id
        """What makes its exchanges' ids unique."""
        self.local = seen.local if known else None
        """(address, port), (path, 0), or None if not known."""
        self.remote = seen.remote if known else None
        self.address_source = "socket" if known else "unknown"
        self.comm = seen.comm

    def forget_undecided(self, stream: Stream) -> None:
        """Drop the chunks of a stream that waited for more: what came is no continuation."""
        self.undecided = [entry for entry in self.undecided if entry[0] is not stream]

    def carried_by(self, carrier: TrackedConnection, *, by_bytes: bool) -> None:
        """Take note of the socket that a session speaks through."""
        self.carrier = carrier
        self.by_bytes = by_bytes
        self.role = self.role or carrier.role
        carrier.sessions.append(self.number)
        self.label = f"{carrier.id}.{len(carrier.sessions)}"  # the carrier may give exchanges too: a CONNECT
        self.located_by(carrier)

    def located_by(self, carrier: TrackedConnection) -> None:
        """Take what the carrier's SocketSeen has told, which may come late."""
        self.id = carrier.id
        self.family, self.local, self.remote = carrier.family, carrier.local, carrier.remote
        self.connect_ns = carrier.connect_ns
        self.address_source = "bio" if self.by_bytes and carrier.local is not None else carrier.address_source

    @property
    def awaits_carrier(self) -> bool:
        """Whether this is a session whose socket may yet become known: Go's are known at once or never."""
        return self.carrier is None and self.library is not None and not self.library.startswith(GO_LIBRARY)

    @property
    def is_session(self) -> bool:
        """Whether this is a TLS session's plaintext."""
        return self.library is not None

    @property
    def tls(self) -> Tls | None:
        """The TLS around what is decoded here; of a carrier, the TLS that it carries."""
        carrier = self.carrier if self.library is not None else self
        observer = carrier.decoder.observer if carrier is not None and isinstance(carrier.decoder, TlsDecoder) else None
        if observer is None:
            return None if self.library is None else Tls(library=self.library, alpn=self.alpn)
        alpn = self.alpn or observer.alpn
        if alpn is None and isinstance(self.decoder, Http2) and "h2" in (observer.alpn_offered or ()):
            alpn = "h2"
        return Tls(self.library, observer.version, observer.sni, alpn)

    @property
    def session_tls(self) -> Tls | None:
        """The TLS around the exchanges decoded here: none on a carrier, which they bypass."""
        return None if self.library is None else self.tls

    def process(self, pid: int, tid: int) -> Process:
        """Return the traced end as a record tells of it."""
        known = self.programs.get(pid)
        if known is None:
            return Process(pid, tid, self.comm, None, self.role)
        comm, exe, container, _ = known
        return _new(Process, (pid, tid, comm, exe, self.role, container))


# -- protocols -----------------------------------------------------------------------------------------------------


class _Protocol(NamedTuple):
    """What to do with a connection on which this was detected."""

    kind: str
    decoder: Callable[[bool], Decoder] | None = None
    """Makes one, from `joined`. None: it is not decoded."""
    side: Side = CLIENT
    """Who sent what was detected."""
    ignore: bool = False
    """The kernel side takes it for known and copies it all: to be told to stop."""


_PROTOCOLS = {
    Detection.HTTP1_REQUEST: _Protocol("http", lambda joined: Http1(joined=joined), CLIENT),
    Detection.HTTP1_RESPONSE: _Protocol("http", lambda joined: Http1(joined=joined), SERVER),
    Detection.HTTP2_PREFACE: _Protocol("http", lambda joined: Http2(joined=joined), CLIENT),
    Detection.HTTP2_SETTINGS: _Protocol("http", lambda joined: Http2(joined=joined), SERVER),
    Detection.HTTP2_REQUEST: _Protocol("http", lambda joined: Http2(joined=joined), CLIENT),
    Detection.HTTP2_RESPONSE: _Protocol("http", lambda joined: Http2(joined=joined), SERVER),
    Detection.TLS: _Protocol("tls", lambda joined: TlsDecoder(joined=joined), CLIENT),
}
_TLS_JOINED = _PROTOCOLS[Detection.TLS]
_COUNTERS = {"unknown": "unknown_connections", "tls": "tls_connections"}
"""In Stats, by kind."""

_KERNEL_KNOWS = re.compile(
    rb"HTTP/|CONNEC|[A-Z_-]{3,14} [/*h]"
    rb"|\0[\0-\xff]{2}\x01[\x04\x05\x0c\x0d\x24\x25\x2c\x2d][\0-\x7f]|\0\0\x04[\x03\x08]\0[\0-\x7f]"
    rb"|\0\0\x08\x06[\0\x01]\0{4}|\0\0[\0-\xff]\x04[\0\x01]\0{4}"
)
"""What begins_known in bpf/sockets.bpf.c takes for a protocol that is decoded, at the beginning of a call."""

_TUNNEL = "tunnel"

# -- the table -----------------------------------------------------------------------------------------------------


class ConnectionTable:
    """All connections. `feed` it events; tell it the time with `tick`; `drain` it at the end."""

    def __init__(self, *, stats: Stats) -> None:
        self.newest = 0
        """Time of the newest event."""
        self._stats = stats
        self._connections: dict[int, TrackedConnection] = {}
        self._unix: dict[int, TrackedConnection] = {}
        """Those of AF_UNIX: nothing but a close or an exit ends them."""
        self._untied: dict[int, TrackedConnection] = {}
        """Sessions without a carrier: nothing but SSL_free or an exit ends them."""
        self._processes = Processes()
        self._budget = Budget()
        self._dues: list[tuple[int, int]] = []
        """Heap of (when, connection number): connections to look at again, and outdated entries."""
        self._due = NEVER
        self._ticked = 0
        self._verdicts: list[tuple[int, int]] = []
        self._tls = TlsLedger()
        self._handlers: dict[type, Callable[..., list[Batch]]] = {
            SocketSeen: self._socket,
            StateChanged: self._state,
            SocketClosed: self._closed,
            Exited: self._exited,
            ProcessSeen: self._told(self._processes.seen),
            Executed: self._told(self._processes.executed),
            Forked: self._told(self._forked),
            Counters: self._told(self._count),
            SessionSeen: self._session,
            SessionFreed: self._freed,
            ProbesPlaced: self._told(self._tls.placed),
            Watched: self._told(lambda _: None),
        }
        self._notices: list[str] = []

    # -- hot: once per event ---------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Batch]:
        """Take one event; return the messages that it gave."""
        self.newest = at = event.at
        overdue = self._expire(at) if at > self._due else []
        if not isinstance(event, Chunk):
            return overdue + self._handlers[type(event)](event)
        _, pid, tid, number, egress, seq, data, missing, eof, _ = event
        connection = self._connections.get(number)
        if connection is None or (decoder := connection.decoder) is None:
            return overdue + self._chunk(event)
        stream = connection.egress if egress else connection.ingress
        if seq != stream.expected or missing or eof or not connection.smooth:
            return overdue + self._chunk(event)
        stream.expected = (seq + len(data)) & MASK
        connection.last_at, connection.pid, connection.tid = at, pid, tid
        messages: Sequence[AnyMessage]
        try:
            messages = decoder.receive(stream.side, data, at)
        except DecodeError as error:
            messages = self._look_afresh(connection, stream, event, error)
        if not messages:
            return overdue
        if isinstance(messages[-1], Switched):
            messages = [*messages, *self._leave(connection, messages[-1])]
        overdue.append(_new(Batch, (connection, pid, tid, messages)))
        return overdue

    def tick(self, now: int) -> list[Batch]:
        """Take notice of the time on the events' clock, after a batch of events.

        Events made before the last call have been fed by now, those made since may yet come: so what is overdue
        is judged by the time of the last call.
        """
        before, self._ticked = self._ticked, now
        return self._expire(before) if before > self._due else []

    # -- once per batch or capture ---------------------------------------------------------------------------------

    def drain(self, at: int) -> list[Batch]:
        """End every connection: the capture is over, at this time."""
        batches = []
        for connection in list(self._connections.values()):
            if connection.number not in self._connections:  # a session, which has ended with its carrier
                continue
            detail = "still open when the capture ended"
            if connection.connecting is not None:
                detail = f"connect not answered for {seconds(at - connection.connecting)}"
            batches += self._finalise(connection, connection.ending or Ending(at, "unanswered", detail))
        return batches

    def pop_notices(self) -> list[str]:
        """Return what the user is to be told at once, a line each."""
        notices, self._notices = self._notices, []
        return notices

    def pop_verdicts(self) -> list[tuple[int, int]]:
        """Return what the kernel side is to be told since the last call: (connection number, VERDICT_*)."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    # -- time ------------------------------------------------------------------------------------------------------

    def _watch(self, connection: TrackedConnection) -> None:
        """Look at the connection again when what it waits for is overdue."""
        egress, ingress = connection.egress, connection.ingress
        connection.smooth = (
            egress.since is None and ingress.since is None and not (egress.queue or ingress.queue)
            and not connection.awaits_carrier and (connection.hushed or not connection.sessions)
        )  # fmt: skip
        waiting = [since for since in (egress.since, ingress.since) if since is not None]
        waiting += [stream.queue[0].at for stream in (egress, ingress) if stream.queue]
        due = min((since + WAIT_NS for since in waiting), default=NEVER)
        if connection.ending is not None:
            due = min(due, connection.ending.due)
        if due not in {NEVER, connection.due}:
            heapq.heappush(self._dues, (due, connection.number))
            self._due = self._dues[0][0]
        connection.due = due

    def _expire(self, now: int) -> list[Batch]:
        batches: list[Batch] = []
        dues = self._dues
        while dues and dues[0][0] < now:
            due, number = heapq.heappop(dues)
            connection = self._connections.get(number)
            if connection is None or connection.due != due:
                continue
            if connection.ending is not None and connection.ending.due < now:
                batches += self._finalise(connection, connection.ending)
                continue
            for stream in (connection.egress, connection.ingress):
                if stream.since is not None and stream.since + WAIT_NS < now:
                    stream.give_up()
            batches += self._deliver(connection, now)
        self._due = dues[0][0] if dues else NEVER
        return batches

    # -- connections begin -----------------------------------------------------------------------------------------

    def _socket(self, seen: SocketSeen) -> list[Batch]:
        connection = self._connections.get(seen.conn)
        if connection is None:
            return self._track(TrackedConnection(seen, self._processes, self._budget))
        if not connection.announced:
            connection.announce(seen)
            connection.announced = True
            self._stats.unannounced -= 1
            for session in self._sessions_of(connection):
                session.located_by(connection)
        return []

    def _track(self, connection: TrackedConnection) -> list[Batch]:
        batches: list[Batch] = []
        if len(self._connections) >= CONNECTIONS_LIMIT:
            oldest = sorted(self._connections.values(), key=self._last_used)[: CONNECTIONS_LIMIT // 16 or 1]
            detail = f"no longer followed: more than {CONNECTIONS_LIMIT} connections are open"
            for each in oldest:
                if each.number not in self._connections:
                    continue
                batches += self._finalise(each, Ending(connection.last_at, "closed", detail))
            self._stats.evicted += len(oldest)
        self._connections[connection.number] = connection
        if connection.family == "unix":
            self._unix[connection.number] = connection
        if connection.is_session:
            self._untied[connection.number] = connection
        if connection.carrier is None and not connection.is_session:
            self._stats.connections += 1
            self._stats.joined += connection.joined
        return batches

    def _last_used(self, connection: TrackedConnection) -> int:
        """Return when a connection last moved anything: a carrier that the kernel side keeps quiet, by its sessions."""
        return max((connection.last_at, *(each.last_at for each in self._sessions_of(connection))))

    def _connected(self, connection: TrackedConnection, event: StateChanged) -> list[Batch]:
        """Take the answer to a connect, or its failure."""
        if connection.connecting is not None:
            connection.connect_ns = event.at - connection.connecting
        if event.new == CLOSE:
            return self._finalise(connection, endings.of_connect(event, connection.connect_ns or 0))
        self._stats.connecting -= connection.connecting is not None
        connection.connecting = None
        connection.egress.rejoin(event.egress_seq)
        connection.ingress.rejoin(event.ingress_seq)
        if connection.local is not None and event.local_port:
            connection.local = (connection.local[0], event.local_port)
        return []

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _chunk(self, chunk: Chunk) -> list[Batch]:
        """Take a chunk that is out of place, or the first, or an end, or of no known protocol."""
        batches: list[Batch] = []
        connection = self._connections.get(chunk.conn)
        if connection is None:
            known = self._processes.programs.get(chunk.pid)
            seen = _unlocated(chunk, chunk.conn, known.comm if known else "", counted=False)
            connection = TrackedConnection(seen, self._processes, self._budget)
            connection.announced = False
            self._stats.unannounced += 1
            if chunk.plaintext:
                connection.library = UNKNOWN_LIBRARY
                self._tls.begin(chunk.pid)
            batches = self._track(connection)
        connection.last_at, connection.pid, connection.tid = chunk.at, chunk.pid, chunk.tid
        stream = connection.egress if chunk.egress else connection.ingress
        if connection.state is _State.IGNORED:
            return batches
        if connection.state is _State.UNKNOWN:
            if not stream.jump(chunk):
                connection.forget_undecided(stream)
        elif chunk.eof:
            stream.end_at(chunk.seq, chunk.at)
        else:
            stream.take(chunk)
            if stream.overfull:
                connection.egress.give_up()
                connection.ingress.give_up()
        return batches + self._deliver(connection)

    def _deliver(self, connection: TrackedConnection, now: int = 0) -> list[Batch]:
        """Decode what is in order, of both directions by time.

        Pairing relies on what came first. So while a hole in one direction may yet be filled, what the other one
        moved since then waits too. And what a session moved whose socket is not known yet waits for WAIT_NS: a session
        that writes to memory is known by the bytes that are sent right after.
        """
        batches: list[Batch] = []
        streams = (connection.egress, connection.ingress)
        horizon = min(stream.horizon for stream in streams)
        if connection.awaits_carrier and connection.ending is None and not any(each.overfull for each in streams):
            horizon = min(horizon, max(now, self.newest) - WAIT_NS)
        while True:
            ready = [stream for stream in streams if stream.queue and stream.queue[0].at < horizon]
            if not ready:
                break
            stream = min(ready, key=lambda stream: stream.queue[0].at)
            piece = stream.pop()
            pid, tid = connection.pid, connection.tid
            if isinstance(piece, Chunk):
                pid, tid = piece.pid, piece.tid
                messages = self._decode(connection, stream, piece)
            elif isinstance(piece, Hole):
                messages = self._gap(connection, stream, piece.size, piece.at)
            elif isinstance(piece, Jumble):
                messages = self._unravel(connection, stream, piece)
            else:
                messages = self._finish(connection, stream, piece.at)
            if messages:
                batches.append(Batch(connection, pid, tid, messages))
        self._watch(connection)
        return batches

    def _finish(self, connection: TrackedConnection, stream: Stream, at: int) -> list[AnyMessage]:
        if connection.decoder is None:
            return []
        try:
            return [*connection.decoder.finish(stream.side, at)]
        except DecodeError as error:
            return self._break_off(connection, at, error)

    def _decode(self, connection: TrackedConnection, stream: Stream, chunk: Chunk) -> list[AnyMessage]:
        decoder = connection.decoder
        if decoder is None:
            return self._detect(connection, stream, chunk)
        try:
            messages = decoder.receive(stream.side, chunk.data, chunk.at) if chunk.data else []
        except DecodeError as error:
            return self._look_afresh(connection, stream, chunk, error)
        return self._after(connection, stream, chunk, messages)

    def _after(
        self, connection: TrackedConnection, stream: Stream, chunk: Chunk, messages: list[Message]
    ) -> list[AnyMessage]:
        """See to what follows the data of a chunk, which gave these messages."""
        if connection.sessions:
            self._hush(connection)
        after: list[AnyMessage] = [*messages]
        if messages and isinstance(messages[-1], Switched):
            after += self._leave(connection, messages[-1])
        if chunk.missing and connection.decoder is not None:
            after += self._gap(connection, stream, chunk.missing, chunk.at)
        return after

    def _gap(self, connection: TrackedConnection, stream: Stream, size: int | None, at: int) -> list[AnyMessage]:
        """Take notice that bytes were not seen."""
        connection.joined = True
        if connection.decoder is None:
            connection.forget_undecided(stream)
            return []
        if not isinstance(connection.decoder, TlsDecoder):  # whose bytes the kernel side leaves out on purpose
            self._stats.unseen_bytes += size or 0
        try:
            return [*connection.decoder.gap(stream.side, size, at)]
        except DecodeError as error:
            return self._break_off(connection, at, error)

    def _unravel(self, connection: TrackedConnection, stream: Stream, jumble: Jumble) -> list[AnyMessage]:
        """Take a jumble for a hole of its size; where that is all body, its bytes were seen, but not where they go."""
        size = sum(len(chunk.data) + chunk.missing for chunk in jumble.chunks)
        messages: list[AnyMessage] = []
        for message in self._gap(connection, stream, size, jumble.at):
            if isinstance(message, Data) and message.lost == size:
                self._stats.unseen_bytes -= size
                messages.append(Unordered(message.stream, message.at, message.side, size))
            else:
                messages.append(message)
        return messages

    # -- what they mean --------------------------------------------------------------------------------------------

    def _detect(self, connection: TrackedConnection, stream: Stream, chunk: Chunk) -> list[AnyMessage]:
        """Look at a chunk that no decoder reads."""
        if connection.state is _State.IGNORED:
            return []
        if not chunk.data:
            return self._gap(connection, stream, chunk.missing, chunk.at)
        before = [each.data for owner, each in connection.undecided if owner is stream]
        data = b"".join((*before, chunk.data)) if before else chunk.data
        found = detect(data)
        if found is Detection.HTTP2_SETTINGS and (connection.joined or (connection.role == "client" and stream.egress)):
            found = Detection.NOT_YET  # a client sends them too, behind the preface
        if found is Detection.NOT_YET and not chunk.missing and len(data) < UNDECIDED_LIMIT:
            connection.undecided.append((stream, chunk))
            return []
        protocol = _PROTOCOLS.get(found)
        if protocol is None and not before and not connection.is_session and looks_like_tls(data):
            protocol = _TLS_JOINED
            connection.joined = True
        if protocol is None and before:
            connection.forget_undecided(stream)
            return self._detect(connection, stream, chunk)
        if protocol is None or protocol.decoder is None:
            self._pass_over(connection, protocol)
            return []
        return self._begin(connection, stream, chunk, protocol, protocol.decoder(connection.joined))

    def _pass_over(self, connection: TrackedConnection, protocol: _Protocol | None) -> None:
        """Decode nothing here: it is not known, or not decoded yet."""
        self._account(connection, protocol.kind if protocol else "unknown")
        self._let_be(connection, ignore=connection.switched is not None or (protocol is not None and protocol.ignore))

    def _let_be(self, connection: TrackedConnection, *, ignore: bool) -> None:
        connection.state = _State.IGNORED if ignore else _State.UNKNOWN
        connection.decoder = None
        connection.joined = True
        connection.undecided.clear()
        connection.egress.drop()
        connection.ingress.drop()
        if ignore:
            self._verdicts.append((connection.number, VERDICT_IGNORE))

    def _account(self, connection: TrackedConnection, kind: str) -> None:
        """Count a connection as this, and no longer as what it was counted as."""
        if connection.kind == kind or (kind == "unknown" and connection.kind is not None):
            return
        for counted, step in ((connection.kind, -1), (kind, 1)):
            name = _COUNTERS.get(counted or "")
            if name is not None:
                setattr(self._stats, name, getattr(self._stats, name) + step)
        connection.kind = kind

    def _begin(
        self, connection: TrackedConnection, stream: Stream, chunk: Chunk, protocol: _Protocol, decoder: Decoder
    ) -> list[AnyMessage]:
        """Give a connection its decoder, and that what was seen of it."""
        self._account(connection, protocol.kind)
        egress, ingress = connection.egress, connection.ingress
        if connection.state is _State.UNKNOWN:  # the kernel side may have left out what the other direction carried
            (ingress if stream is egress else egress).rejoin(None)
        side = protocol.side
        if protocol.kind == "tls":
            side = self._tls_side(connection, stream, chunk)
        stream.side = side
        (ingress if stream is egress else egress).side = CLIENT if side == SERVER else SERVER
        if protocol.kind != "tls" or not connection.joined:
            connection.role = "client" if egress.side == CLIENT else "server"
        connection.state = _State.DECODED
        connection.decoder = decoder
        pieces = [*connection.undecided, (stream, chunk)]
        connection.undecided.clear()
        if protocol.kind != "tls" and not any(_KERNEL_KNOWS.match(piece.data) for _, piece in pieces):
            self._verdicts.append((connection.number, VERDICT_KNOWN))
        messages: list[AnyMessage] = []
        for owner, piece in pieces:
            try:
                messages += self._after(connection, owner, piece, decoder.receive(owner.side, piece.data, piece.at))
            except DecodeError as error:
                messages += self._break_off(connection, piece.at, error)
            if connection.decoder is not decoder:
                break
        return messages

    # -- TLS -------------------------------------------------------------------------------------------------------

    def _tls_side(self, connection: TrackedConnection, stream: Stream, chunk: Chunk) -> Side:
        """Return who sent the first TLS record that was seen; tell the user if nothing can read what follows."""
        reason = None if connection.sessions else self._tls.notice(connection.pid)
        self._notify(connection, reason)
        if chunk.data[0] == HANDSHAKE and len(chunk.data) > _HELLO_TYPE_AT:
            return SERVER if chunk.data[_HELLO_TYPE_AT] == _SERVER_HELLO else CLIENT
        return CLIENT if stream is connection.egress else SERVER  # not known: the traced end's, for the byte counts

    def _notify(self, connection: TrackedConnection, reason: str | None) -> None:
        """Tell the user why a process's TLS cannot be read, if there is something to tell."""
        if reason is not None:
            comm = connection.process(connection.pid, connection.tid).comm
            self._notices.append(f"{comm}[{connection.pid}] uses TLS that cannot be read: {reason}")

    def _session(self, seen: SessionSeen) -> list[Batch]:
        """Take a TLS session, or its socket."""
        session = self._connections.get(seen.session)
        carrier = self._connections.get(seen.conn)
        batches: list[Batch] = []
        if session is None:
            origin = _unlocated(seen, seen.session, seen.comm, counted=True)
            session = TrackedConnection(origin, self._processes, self._budget)
            session.egress.rejoin(seen.egress_seq)
            session.ingress.rejoin(seen.ingress_seq)
            session.library = self._tls.library(seen.point)
            whole = seen.whole or (carrier is not None and carrier.probed and not carrier.joined)
            session.joined = not whole or bool(seen.egress_seq or seen.ingress_seq)
            session.smooth = False
            batches = self._track(session)
            carrier = self._connections.get(seen.conn)  # it may have made room
            self._tls.begin(seen.pid)
        elif not session.announced:
            session.announced = True
            self._stats.unannounced -= 1
        if session.library == UNKNOWN_LIBRARY:
            session.library = self._tls.library(seen.point)
        session.alpn = seen.alpn or session.alpn
        if carrier is not None and session.carrier is not carrier:
            if session.carrier is None:
                self._tls.settle(seen.pid)
                self._untied.pop(session.number, None)
            session.carried_by(carrier, by_bytes=seen.by_bytes)
            if not isinstance(carrier.decoder, TlsDecoder):
                self._account(carrier, "tls")
            self._hush(carrier)
            self._watch(carrier)
            batches += self._deliver(session)
        return batches

    def _hush(self, carrier: TrackedConnection) -> None:
        """Tell the kernel side to copy no more of a connection whose plaintext is seen, once the handshake was read."""
        decoder = carrier.decoder
        if carrier.hushed or not carrier.sessions:
            return
        if carrier.joined or (isinstance(decoder, TlsDecoder) and decoder.observer.settled):
            carrier.hushed = True
            self._verdicts.append((carrier.number, VERDICT_IGNORE))

    def _freed(self, event: SessionFreed) -> list[Batch]:
        """Take the end of a session's object. How its connection ended, if it has, says more."""
        session = self._connections.get(event.session)
        if session is not None and session.ending is None:
            carrier = session.carrier
            ending = None if carrier is None else carrier.ending
            session.ending = endings.of_session(ending, event.at, freed=True)
            self._watch(session)
        return []

    def _sessions_of(self, carrier: TrackedConnection) -> list[TrackedConnection]:
        """Return the sessions that speak through a connection and are not over."""
        sessions = [self._connections.get(number) for number in carrier.sessions]
        return [session for session in sessions if session is not None and session.carrier is carrier]

    def _end_sessions(self, carrier: TrackedConnection, ending: Ending) -> list[Batch]:
        """End what spoke through a connection that is over."""
        batches: list[Batch] = []
        for session in self._sessions_of(carrier):
            freed = session.ending is not None
            batches += self._finalise(session, endings.of_session(ending, ending.at, freed=freed))
        return batches

    def _unreadable(self, carrier: TrackedConnection, ending: Ending) -> list[AnyMessage]:
        """Return what is to be said of a TLS connection of which no plaintext was seen."""
        decoder = carrier.decoder
        if not isinstance(decoder, TlsDecoder) or carrier.sessions:
            return []
        if carrier.carrier is not None and len(carrier.carrier.sessions) > 1:
            return []  # TLS inside TLS: the inner session speaks through the same socket
        if self._tls.settle(carrier.pid):  # its plaintext is that of a session of unknown address
            return []
        observer = decoder.observer
        near = carrier.egress.side
        if observer.client is not None:
            carrier.role = "client" if observer.client == near else "server"
        client = near if carrier.role != "server" else 1 - near
        moved = {side: observer.traffic(side) for side in (CLIENT, SERVER)}
        totals = dict(zip((near, 1 - near), (_without_syn(total) for total in carrier.totals), strict=True))
        sizes = {side: moved[side].wire_bytes + totals[side] for side in (CLIENT, SERVER)}
        ended = Verdict(ending.kind, ending.detail)
        # A gap is no sign of one that was joined late: the kernel side leaves out what follows the first 4 KiB.
        joined = carrier.joined and observer.client is None
        verdict = self._tls.judge(carrier.pid, observer, client, joined=joined, ended=ended)
        if verdict is None:
            return []
        if verdict.kind == "unreadable":
            self._notify(carrier, self._tls.notice_unread(carrier.pid))
        # Of what the kernel side left out only the positions at the end tell.
        unplaced = {near: ending.egress_end is None, 1 - near: ending.ingress_end is None}
        names = ((client, "request.body_size"), (1 - client, "response.body_size"))
        unknown = tuple(name for side, name in names if unplaced[side])
        return [Unreadable(carrier.began, ending.at, *verdict, sizes[client], sizes[1 - client], unknown)]

    def _break_off(self, connection: TrackedConnection, at: int, error: DecodeError) -> list[AnyMessage]:
        """The bytes are not, or no longer, what the decoder reads."""
        decoder = connection.decoder
        self._stats.undecodable += 1
        self._let_be(connection, ignore=False)
        return [*decoder.close(at, "decode", str(error))] if decoder is not None else []

    def _look_afresh(
        self, connection: TrackedConnection, stream: Stream, chunk: Chunk, error: DecodeError
    ) -> list[AnyMessage]:
        """The chunk is not what the decoder reads: it may be the beginning of something else."""
        return self._break_off(connection, chunk.at, error) + self._detect(connection, stream, chunk)

    def _leave(self, connection: TrackedConnection, switched: Switched) -> list[AnyMessage]:
        """The connection speaks something else now. What goes through a tunnel may be HTTP again."""
        before = connection.decoder
        if switched.goes_on is None or not isinstance(before, Http1):
            connection.switched = switched.protocol
            self._let_be(connection, ignore=switched.protocol != _TUNNEL)
            return []
        connection.decoder = decoder = Http2(upgraded=True)
        messages: list[AnyMessage] = []
        try:
            for side in (SERVER, CLIENT):
                rest, whole = before.rest(side)
                messages += decoder.receive(side, rest, switched.at)
                messages += decoder.gap(side, 0 if whole else None, switched.at)
        except DecodeError as error:
            messages += self._break_off(connection, switched.at, error)
        return messages

    # -- connections end -------------------------------------------------------------------------------------------

    def _state(self, event: StateChanged) -> list[Batch]:
        connection = self._connections.get(event.conn)
        if connection is None:
            return []
        if event.new == SYN_SENT:
            self._stats.connecting += connection.connecting is None
            connection.connecting = event.at
            return []
        if event.old == SYN_SENT:
            return self._connected(connection, event)
        batches: list[Batch] = []
        if connection.decoder is not None and endings.sends_fin(event):
            connection.egress.end_at(event.egress_seq, event.at)
            batches = self._deliver(connection)
        if connection.ending is None and (ending := endings.of_tcp(event)):
            connection.ending = ending
            for session in self._sessions_of(connection):
                if session.ending is not None:  # freed just before
                    session.ending = endings.of_session(ending, event.at, freed=True)
                    self._watch(session)
        self._watch(connection)
        return batches

    def _closed(self, event: SocketClosed) -> list[Batch]:
        connection = self._connections.get(event.conn)
        if connection is not None:
            self._end_unix(connection, event.at, "the process closed the connection")
        return []

    def _exited(self, event: Exited) -> list[Batch]:
        """Take an exit: TCP tells of the sockets that it closes, AF_UNIX and TLS sessions do not."""
        for connection in (*self._unix.values(), *self._untied.values()):
            if connection.pid == event.pid:
                self._end_unix(connection, event.at, "the process exited")
        return []

    def _end_unix(self, connection: TrackedConnection, at: int, detail: str) -> None:
        if connection.ending is None:
            connection.ending = endings.of_unix(at, detail)
            self._watch(connection)

    def _finalise(self, connection: TrackedConnection, ending: Ending) -> list[Batch]:
        """End a connection: decode what still waits, then close its decoder."""
        if self._connections.get(connection.number) is not connection:
            return []  # it has ended already, with its carrier
        connection.ending = ending
        ends = [
            (connection.egress, ending.egress_end, ending.egress_fin),
            (connection.ingress, ending.ingress_end, ending.ingress_fin),
        ]
        if ending.ingress_fin:  # the peer ended first
            ends.reverse()
        missing: list[tuple[Stream, int]] = []
        batches: list[Batch] = []
        for stream, position, fin in ends:
            missing.append((stream, stream.conclude(position, ending.at, fin=fin)))
            batches += self._deliver(connection)
        messages = [message for each in missing for message in self._cut_off(connection, *each, ending)]
        messages += self._unreadable(connection, ending)
        if connection.decoder is not None:
            messages += connection.decoder.close(ending.at, ending.kind, ending.detail)
        if connection.connecting is not None:
            messages.append(ConnectFailed(connection.connecting, ending.at, ending.kind, ending.detail))
        batches.append(Batch(connection, connection.pid, connection.tid, [*messages, Gone(ending.at)]))
        self._remove(connection)
        if connection.sessions:
            batches += self._end_sessions(connection, ending)
        return batches

    def _cut_off(
        self, connection: TrackedConnection, stream: Stream, missing: int, ending: Ending
    ) -> list[AnyMessage]:
        """Take bytes that were moved last, and not seen: a message that may have ended in them has not ended well."""
        messages: list[AnyMessage] = []
        cut = set()
        for message in self._gap(connection, stream, missing, ending.at) if missing else ():
            if isinstance(message, Lost):
                cut.add(message.stream)
            if isinstance(message, End) and message.stream in cut:
                messages.append(Failed(message.stream, ending.at, ending.kind, ending.detail))
            else:
                messages.append(message)
        return messages

    def _remove(self, connection: TrackedConnection) -> None:
        self._stats.connecting -= connection.connecting is not None
        del self._connections[connection.number]
        self._unix.pop(connection.number, None)
        self._untied.pop(connection.number, None)
        connection.egress.drop()
        connection.ingress.drop()

    # -- the rest --------------------------------------------------------------------------------------------------

    @staticmethod
    def _told(take: Callable[[Any], None]) -> Callable[[Any], list[Batch]]:
        """Return a handler of events that give no messages."""

        def handle(event: Any) -> list[Batch]:
            take(event)
            return []

        return handle

    def _forked(self, event: Forked) -> None:
        self._processes.forked(event)
        self._tls.forked(event.pid, event.child)

    def _count(self, event: Counters) -> None:
        self._stats.kernel = event.values


def _unlocated(event: Chunk | SessionSeen, number: int, comm: str, *, counted: bool) -> SocketSeen:
    """Return what can be said of a connection whose addresses are not known: a session, or its SocketSeen was lost."""
    return SocketSeen(
        at=event.at, pid=event.pid, tid=event.tid, conn=number, sock=0, inode=0, family=socket.AF_UNSPEC,
        local=_NOWHERE, remote=_NOWHERE, comm=comm, connected=False, counted=counted,
        egress_seq=0, ingress_seq=0, egress_total=0, ingress_total=0,
    )  # fmt: skip


_NOWHERE = ("", 0)


def _without_syn(total: int) -> int:
    """Return a total of bytes without the SYN, which TCP may have counted."""
    return total if total > 1 else 0


_HELLO_TYPE_AT, _SERVER_HELLO = 5, 2
