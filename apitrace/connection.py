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

Hot path: feed, for a chunk in its place on a connection that has a decoder. Measured: 0.9 us without the decoder.
"""

from __future__ import annotations

import enum
import errno
import heapq
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from apitrace.exchange import Container, Process
from apitrace.probes.events import (
    Chunk,
    Counters,
    Event,
    Executed,
    Exited,
    Forked,
    ProcessSeen,
    SocketClosed,
    SocketSeen,
    StateChanged,
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
from apitrace.stats import Stats

WAIT_NS = 50_000_000
"""How long a chunk out of place waits for its neighbour, and a closed connection for late chunks. A thread reports
right behind the call; it is late only when it is preempted in between: a few scheduling periods (EEVDF: 3 ms)."""

LINGER_NS = 1_000_000_000
"""How long a connection that the kernel closed is kept while bytes lie there that the process may yet read."""

CONNECTIONS_LIMIT = 16384
"""Connections followed at once: 3 KiB each with decoder and assembler (tracemalloc), 48 MiB in all. nginx allows 512
per worker by default, Apache's event MPM 400. Over it the sixteenth that was silent longest is given up."""

HELD_CHUNKS_LIMIT = 64
"""Chunks of one direction that wait. A call of 1 MiB, the most that is copied of one, comes in 17."""
HELD_BYTES_LIMIT = 2 << 20
"""Bytes of one direction that wait: two whole calls."""
HELD_TOTAL_LIMIT = 32 << 20
"""Bytes that wait on all connections together: as much as the ring buffer holds, so as much as can be on its way."""

UNDECIDED_LIMIT = 4096
"""Bytes of one direction kept while they may yet become a known protocol: UNKNOWN_BYTES_LIMIT in bpf/maps.bpf.c, what
the kernel side copies of a connection before it leaves it alone. Request lines over 4 KiB are known by their method."""

PROCESSES_LIMIT = 16384
"""Processes remembered, the dead included (their connections end after them); half of the classic pid_max."""

VERDICT_IGNORE, VERDICT_KNOWN = 1, 2
"""As in bpf/sockets.bpf.c: leave the connection alone; copy it whole."""

_ESTABLISHED, _SYN_SENT, _SYN_RECV, _FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK = range(1, 10)
_CLOSING = 11
_FIN_SENT = frozenset({_FIN_WAIT1, _FIN_WAIT2, _CLOSING, _LAST_ACK, _TIME_WAIT})
_FIN_RECEIVED = frozenset({_CLOSE_WAIT, _LAST_ACK, _CLOSING, _TIME_WAIT, _FIN_WAIT2})
"""States that are left for CLOSE with the peer's FIN received: FIN_WAIT2 too, but for an orphan, whose end is known."""

_FAMILIES = {int(socket.AF_INET): "ipv4", int(socket.AF_INET6): "ipv6", int(socket.AF_UNIX): "unix"}

_MASK = 0xFFFF_FFFF
_NEVER = 1 << 63

_new = tuple.__new__
"""NamedTuple's own __new__ is a Python function: 0.24 us a Batch against 0.1 us."""


def ahead(position: int, of: int) -> int:
    """Return how far a position lies ahead of another; both wrap at 32 bits, so at most 2 GiB either way."""
    return ((position - of + 0x8000_0000) & _MASK) - 0x8000_0000


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


class Gone(NamedTuple):
    """The last message of a connection: it is over, or is no longer followed."""

    at: int


AnyMessage = Message | Unordered | ConnectFailed | Gone


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


# -- one direction -------------------------------------------------------------------------------------------------


class Hole(NamedTuple):
    """Bytes that were moved and not seen."""

    at: int
    size: int | None
    """None: an unknown number."""


class Jumble(NamedTuple):
    """Chunks that together fill a range, in an order that their positions do not tell."""

    at: int
    chunks: tuple[Chunk, ...]


class Ended(NamedTuple):
    """The direction ends here."""

    at: int


Piece = Chunk | Hole | Jumble | Ended


class Budget:
    """Bytes that wait on all connections."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Stream:
    """One direction of a connection: puts chunks into their places. It knows positions, not what the bytes mean.

    What is in order goes to `queue`, where the connection takes it with `pop`; what is not waits.
    """

    __slots__ = (
        "_budget", "_end", "_held", "_held_bytes", "_lost", "_start", "egress", "ended", "expected", "queue", "side",
        "since",
    )  # fmt: skip

    def __init__(self, *, egress: bool, expected: int | None, budget: Budget) -> None:
        self.egress = egress
        self.side: Side = CLIENT if egress else SERVER
        """Who sends in this direction, once a decoder is there."""
        self.expected = expected
        """Position of the next byte; None: that of the first chunk."""
        self.queue: list[Piece] = []
        self.since: int | None = None
        """Since when it waits for what is missing."""
        self.ended = False
        self._start = expected
        self._budget = budget
        self._held: list[Chunk] = []
        """Chunks that wait."""
        self._held_bytes = 0
        """Of these and of those in the queue."""
        self._lost: tuple[int, int] | None = None
        """The range of the last holes declared: a chunk of it that comes after all is of no use."""
        self._end: tuple[int, int] | None = None
        """Position and time of the direction's end, until it is reached."""

    def take(self, chunk: Chunk) -> None:
        """Place a chunk."""
        expected = self.expected
        if expected is None:
            self.expected = self._start = expected = chunk.seq
        lead = ahead(chunk.seq, expected)
        if lead < 0 and expected == self._start:
            # Nothing was taken yet: another thread's call went by before the positions were announced.
            self.expected = self._start = chunk.seq
            lead = 0
        if lead < 0:
            self._behind(chunk)
            return
        self._hold(len(chunk.data))
        if lead == 0 and not self._held:
            self._put(chunk)
        else:
            self._held.append(chunk)
            if self._sort():
                self.since = None
        self._note(chunk.at)

    def jump(self, chunk: Chunk) -> bool:
        """Place a chunk that waits for nothing. Return whether it is in its place."""
        in_place = chunk.seq == self.expected
        self._hold(len(chunk.data))
        self._put(chunk)
        return in_place

    def pop(self) -> Piece:
        """Take the next piece."""
        piece = self.queue.pop(0)
        if isinstance(piece, Chunk):
            self._hold(-len(piece.data))
        elif isinstance(piece, Jumble):
            self._hold(-sum(len(chunk.data) for chunk in piece.chunks))
        return piece

    @property
    def overfull(self) -> bool:
        """Whether it may wait no longer, because of what waits with it."""
        return (
            len(self._held) + len(self.queue) > HELD_CHUNKS_LIMIT
            or self._held_bytes > HELD_BYTES_LIMIT
            or self._budget.used > HELD_TOTAL_LIMIT
        )

    @property
    def horizon(self) -> int:
        """When the first chunk moved that waits: what is younger, in either direction, is to wait with it."""
        return min((chunk.at for chunk in self._held), default=_NEVER) if self.since is not None else _NEVER

    def rejoin(self, position: int | None) -> None:
        """Begin anew at a position; None: at that of the next chunk."""
        self.expected = self._start = position

    def end_at(self, position: int, at: int) -> None:
        """Take notice that the direction ends at this position."""
        self._forgive_fin(position)
        if self._end is None and not self.ended:
            self._end = (position, at)
        self._note(at)

    def give_up(self) -> None:
        """Declare what is missing, and let go of all that waits."""
        if self._held:
            self._declare()
        if self._end is not None:
            self._up_to(*self._end)
        self._note(0)

    def conclude(self, position: int | None, at: int, *, fin: bool) -> int:
        """Let go of all that waits: nothing comes any more. Return how many bytes are missing behind it.

        `position`: behind the last byte that was ever moved, if known. `fin`: the direction was ended in order there;
        then what is missing is a hole before that end.
        """
        if position is not None:
            self._forgive_fin(position)
        self.give_up()
        if position is not None and fin:
            self._up_to(position, at)
        if fin and not self.ended:
            self.ended = True
            self.queue.append(Ended(at))
        return 0 if position is None else self._short_of(position)

    def drop(self) -> None:
        """Forget what waits: nothing decodes it."""
        for chunk in self._held:
            self.expected = _end(chunk)
            self._hold(-len(chunk.data))
        self._held.clear()
        self._end = None
        self._note(0)

    def _put(self, chunk: Chunk) -> None:
        self.queue.append(chunk)
        self.expected = _end(chunk)

    def _hold(self, size: int) -> None:
        self._held_bytes += size
        self._budget.used += size

    def _note(self, at: int) -> None:
        """See whether the end is reached, and keep `since` true."""
        if self._end is not None and not self._held and not self._short_of(self._end[0]):
            self.ended = True
            self.queue.append(Ended(self._end[1]))
            self._end = None
        if self._end is None and (not self._held or self._waits_for_fin()):
            self.since = None
        elif self.since is None:
            self.since = at

    def _up_to(self, position: int, at: int) -> None:
        missing = self._short_of(position)
        if missing:
            self.queue.append(Hole(at, missing))
            self.expected = position

    def _short_of(self, position: int) -> int:
        """Return how many bytes are missing up to a position."""
        return 0 if self.expected is None else max(0, ahead(position, self.expected))

    def _forgive_fin(self, end: int) -> None:
        """Let go of a chunk that waits for one byte and claims to end one byte behind the direction's end.

        A read that takes the last data and the FIN behind them leaves the position one high (tcp_recvmsg_locked,
        found_fin_ok): so the chunk was in its place.
        """
        if self._waits_for_fin() and ahead(_end(self._held[0]), end) == 1:
            self._put(self._held.pop())

    def _waits_for_fin(self) -> bool:
        """Whether what waits may have been in its place, which the direction's end will tell, or more data."""
        held, expected = self._held, self.expected
        return len(held) == 1 and not self.egress and expected is not None and ahead(held[0].seq, expected) == 1

    def _behind(self, chunk: Chunk) -> None:
        """Take a chunk whose place is taken."""
        end = _end(chunk)
        if self._lost is not None and ahead(chunk.seq, self._lost[0]) >= 0 and ahead(end, self._lost[1]) <= 0:
            return  # counted as lost already
        if ahead(end, self.expected or 0) > 0:
            self.expected = end
        self.queue.append(Hole(chunk.at, None))

    def _sort(self) -> bool:
        """Move to the queue all that is complete from the expected position on. Return whether anything was."""
        held = self._held
        before = len(held)
        while held:
            chunk = next((chunk for chunk in held if chunk.seq == self.expected), None)
            if chunk is not None:
                held.remove(chunk)
                self._put(chunk)
                continue
            chunks = self._jumble()
            if not chunks:
                break
            del held[: len(chunks)]
            self.queue.append(Jumble(max(chunk.at for chunk in chunks), chunks))
            self.expected = _end(chunks[-1])
        return len(held) < before

    def _jumble(self) -> tuple[Chunk, ...]:
        """Find chunks that fill the range from the expected position on, although none of them begins there.

        What a chunk claims as its end is its own or a later one. So if those that claim E or less are together as
        long as the range up to E, they are exactly what lies there. Leaves the chunks sorted by their ends.
        """
        expected = self.expected or 0
        held = self._held
        held.sort(key=lambda chunk: ahead(_end(chunk), expected))
        total = 0
        for count, chunk in enumerate(held, 1):
            total += len(chunk.data) + chunk.missing
            if total == ahead(_end(chunk), expected):
                return tuple(held[:count])
        return ()

    def _declare(self) -> None:
        held, expected = self._held, self.expected or 0
        held.sort(key=lambda chunk: ahead(chunk.seq, expected))
        pieces: list[Piece] = []
        place = expected
        for chunk in held:
            lead = ahead(chunk.seq, place)
            if lead < 0:  # bytes are missing, and the others overlap: none can be placed
                size = max(ahead(_end(each), expected) for each in held)
                pieces = [Hole(held[-1].at, size)]
                place = (expected + size) & _MASK
                self._hold(-sum(len(each.data) for each in held))
                break
            if lead:
                pieces.append(Hole(chunk.at, lead))
            pieces.append(chunk)
            place = _end(chunk)
        self.queue += pieces
        self._lost = (expected, place)
        self.expected = place
        held.clear()


def _end(chunk: Chunk) -> int:
    return (chunk.seq + len(chunk.data) + chunk.missing) & _MASK


# -- connections ---------------------------------------------------------------------------------------------------


class _State(enum.Enum):
    """What is known of what a connection speaks."""

    UNDECIDED = "nothing was seen, or too little to say"
    DECODED = "a decoder reads it"
    UNKNOWN = "nothing that is known; each chunk is looked at"
    IGNORED = "left alone for good"


class _Ending(NamedTuple):
    """How a connection ended."""

    at: int
    kind: str
    detail: str
    egress_end: int | None = None
    """Position behind the last byte sent; None: not known."""
    ingress_end: int | None = None
    egress_fin: bool = False
    """The sender ended the direction in order, so what ends with the connection ends well."""
    ingress_fin: bool = False
    due: int = 0
    """When no late chunk can come any more."""


class TrackedConnection:
    """One connection, as the stages behind the table see it. They read it and change nothing."""

    __slots__ = (
        "address_source", "comm", "connect_ns", "connecting", "decoder", "due", "egress", "ending", "family", "id",
        "ingress", "joined", "kind", "last_at", "local", "number", "pid", "programs", "remote", "role", "smooth",
        "state", "switched", "tid", "undecided",
    )  # fmt: skip

    def __init__(self, seen: SocketSeen, processes: Processes, budget: Budget) -> None:
        self.number = seen.conn
        self.programs = processes.programs
        self.announce(seen)
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
        """What it was counted as: "http", "tls", "http2" or "unknown"."""
        self.switched: str | None = None
        """What it speaks since it left HTTP: "websocket", "tunnel", ..."""
        self.ending: _Ending | None = None
        self.smooth = True
        """Nothing waits: a chunk in its place can be decoded at once."""
        self.due = _NEVER
        """When to look at it again."""
        self.last_at = seen.at

    def announce(self, seen: SocketSeen) -> None:
        """Take what a SocketSeen says of the socket, which may come late."""
        self.family = _FAMILIES.get(seen.family)
        """"ipv4", "ipv6", "unix", or None if not known."""
        known = self.family is not None
        self.id = f"{seen.inode}-{seen.conn:x}" if known else f"0-{seen.conn:x}-{seen.at:x}"
        """The sockfs inode, and the kernel side's number, which holds when it was first seen. What is not known by its
        SocketSeen may be the rest of a connection that was given up: then also when that began."""
        self.local = seen.local if known else None
        """(address, port), (path, 0), or None if not known."""
        self.remote = seen.remote if known else None
        self.address_source = "socket" if known else "unknown"
        self.comm = seen.comm

    def forget_undecided(self, stream: Stream) -> None:
        """Drop the chunks of a stream that waited for more: what came is no continuation."""
        self.undecided = [entry for entry in self.undecided if entry[0] is not stream]

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
    Detection.HTTP2_PREFACE: _Protocol("http2", ignore=True),
    Detection.TLS: _Protocol("tls"),
}
_COUNTERS = {"unknown": "unknown_connections", "tls": "tls_connections", "http2": "http2_connections"}
"""In Stats, by kind."""

_KERNEL_KNOWS = re.compile(rb"HTTP/|CONNEC|[A-Z_-]{3,14} [/*h]")
"""What looks_known in bpf/sockets.bpf.c takes for a protocol that is decoded, at the beginning of a call."""

_TUNNEL = "tunnel"

_CONNECT_FAILURES = {
    errno.ECONNREFUSED: ("refused", "connection refused"),
    errno.ECONNRESET: ("reset", "connection reset while connecting"),
    errno.ETIMEDOUT: ("unanswered", "connect timed out"),
    errno.EHOSTUNREACH: ("unanswered", "no route to host"),
    errno.ENETUNREACH: ("unanswered", "network is unreachable"),
    0: ("closed", "closed by the process before the connect was answered"),
}


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
        self._processes = Processes()
        self._budget = Budget()
        self._dues: list[tuple[int, int]] = []
        """Heap of (when, connection number): connections to look at again, and outdated entries."""
        self._due = _NEVER
        self._ticked = 0
        self._verdicts: list[tuple[int, int]] = []
        self._handlers: dict[type, Callable[..., list[Batch]]] = {
            SocketSeen: self._socket,
            StateChanged: self._state,
            SocketClosed: self._closed,
            Exited: self._exited,
            ProcessSeen: self._told(self._processes.seen),
            Executed: self._told(self._processes.executed),
            Forked: self._told(self._processes.forked),
            Counters: self._told(self._count),
        }

    # -- hot: once per event ---------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Batch]:
        """Take one event; return the messages that it gave."""
        self.newest = at = event.at
        overdue = self._expire(at) if at > self._due else []
        if not isinstance(event, Chunk):
            return overdue + self._handlers[type(event)](event)
        _, pid, tid, number, egress, seq, data, missing, eof = event
        connection = self._connections.get(number)
        if connection is None or (decoder := connection.decoder) is None:
            return overdue + self._chunk(event)
        stream = connection.egress if egress else connection.ingress
        if seq != stream.expected or missing or eof or not connection.smooth:
            return overdue + self._chunk(event)
        stream.expected = (seq + len(data)) & _MASK
        connection.last_at, connection.pid, connection.tid = at, pid, tid
        messages: Sequence[AnyMessage]
        try:
            messages = decoder.receive(stream.side, data, at)
        except DecodeError as error:
            messages = self._look_afresh(connection, stream, event, error)
        if not messages:
            return overdue
        if isinstance(messages[-1], Switched):
            self._leave(connection, messages[-1])
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
            detail = "still open when the capture ended"
            if connection.connecting is not None:
                detail = f"connect not answered for {_seconds(at - connection.connecting)}"
            batches += self._finalise(connection, connection.ending or _Ending(at, "unanswered", detail))
        return batches

    def pop_verdicts(self) -> list[tuple[int, int]]:
        """Return what the kernel side is to be told since the last call: (connection number, VERDICT_*)."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    # -- time ------------------------------------------------------------------------------------------------------

    def _watch(self, connection: TrackedConnection) -> None:
        """Look at the connection again when what it waits for is overdue."""
        egress, ingress = connection.egress, connection.ingress
        connection.smooth = egress.since is None and ingress.since is None and not (egress.queue or ingress.queue)
        due = min(_NEVER if since is None else since + WAIT_NS for since in (egress.since, ingress.since))
        if connection.ending is not None:
            due = min(due, connection.ending.due)
        if due not in {_NEVER, connection.due}:
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
            batches += self._deliver(connection)
        self._due = dues[0][0] if dues else _NEVER
        return batches

    # -- connections begin -----------------------------------------------------------------------------------------

    def _socket(self, seen: SocketSeen) -> list[Batch]:
        connection = self._connections.get(seen.conn)
        if connection is None:
            return self._track(TrackedConnection(seen, self._processes, self._budget))
        if connection.address_source == "unknown":
            connection.announce(seen)
            self._stats.unannounced -= 1
        return []

    def _track(self, connection: TrackedConnection) -> list[Batch]:
        batches: list[Batch] = []
        if len(self._connections) >= CONNECTIONS_LIMIT:
            oldest = sorted(self._connections.values(), key=lambda each: each.last_at)[: CONNECTIONS_LIMIT // 16 or 1]
            detail = f"no longer followed: more than {CONNECTIONS_LIMIT} connections are open"
            for each in oldest:
                batches += self._finalise(each, _Ending(connection.last_at, "closed", detail))
            self._stats.evicted += len(oldest)
        self._connections[connection.number] = connection
        if connection.family == "unix":
            self._unix[connection.number] = connection
        self._stats.connections += 1
        self._stats.joined += connection.joined
        return batches

    def _connected(self, connection: TrackedConnection, event: StateChanged) -> list[Batch]:
        """Take the answer to a connect, or its failure."""
        if connection.connecting is not None:
            connection.connect_ns = event.at - connection.connecting
        if event.new == _CLOSE:
            kind, detail = _CONNECT_FAILURES.get(event.error) or ("closed", os.strerror(event.error).lower())
            detail += f" after {_seconds(connection.connect_ns or 0)}"
            return self._finalise(connection, _Ending(event.at, kind, detail))
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
            seen = _unannounced(chunk, known.comm if known else "")
            connection = TrackedConnection(seen, self._processes, self._budget)
            self._stats.unannounced += 1
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

    def _deliver(self, connection: TrackedConnection) -> list[Batch]:
        """Decode what is in order, of both directions by time.

        Pairing relies on what came first. So while a hole in one direction may yet be filled, what the other one
        moved since then waits too.
        """
        batches: list[Batch] = []
        streams = (connection.egress, connection.ingress)
        horizon = min(stream.horizon for stream in streams)
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
        if messages and isinstance(messages[-1], Switched):
            self._leave(connection, messages[-1])
            return [*messages]
        if chunk.missing:
            return [*messages, *self._gap(connection, stream, chunk.missing, chunk.at)]
        return [*messages]

    def _gap(self, connection: TrackedConnection, stream: Stream, size: int | None, at: int) -> list[AnyMessage]:
        """Take notice that bytes were not seen."""
        connection.joined = True
        if connection.decoder is None:
            connection.forget_undecided(stream)
            return []
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
        if found is Detection.NOT_YET and not chunk.missing and len(data) < UNDECIDED_LIMIT:
            connection.undecided.append((stream, chunk))
            return []
        protocol = _PROTOCOLS.get(found)
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
        stream.side = protocol.side
        (ingress if stream is egress else egress).side = CLIENT if protocol.side == SERVER else SERVER
        connection.role = "client" if egress.side == CLIENT else "server"
        connection.state = _State.DECODED
        connection.decoder = decoder
        pieces = [*connection.undecided, (stream, chunk)]
        connection.undecided.clear()
        if not any(_KERNEL_KNOWS.match(piece.data) for _, piece in pieces):
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

    def _leave(self, connection: TrackedConnection, switched: Switched) -> None:
        """The connection speaks something else now. What goes through a tunnel may be HTTP again."""
        connection.switched = switched.protocol
        self._let_be(connection, ignore=switched.protocol != _TUNNEL)

    # -- connections end -------------------------------------------------------------------------------------------

    def _state(self, event: StateChanged) -> list[Batch]:
        connection = self._connections.get(event.conn)
        if connection is None:
            return []
        if event.new == _SYN_SENT:
            self._stats.connecting += connection.connecting is None
            connection.connecting = event.at
            return []
        if event.old == _SYN_SENT:
            return self._connected(connection, event)
        batches: list[Batch] = []
        unread = ahead(event.received_seq, event.ingress_seq)
        if event.new != _CLOSE:  # the FIN goes out
            if connection.decoder is not None and event.old not in _FIN_SENT:
                connection.egress.end_at(event.egress_seq, event.at)
                batches = self._deliver(connection)
            # close() with bytes unread is a reset. So if there are any, this is shutdown(), and the process reads on.
            over = event.shut and unread <= (event.old in _FIN_RECEIVED)
        else:
            over = True
        if over and connection.ending is None:
            connection.ending = _ending(event, unread)
        self._watch(connection)
        return batches

    def _closed(self, event: SocketClosed) -> list[Batch]:
        connection = self._connections.get(event.conn)
        if connection is not None:
            self._end_unix(connection, event.at, "the process closed the connection")
        return []

    def _exited(self, event: Exited) -> list[Batch]:
        """Take an exit: TCP tells of the sockets that it closes, AF_UNIX does not."""
        for connection in self._unix.values():
            if connection.pid == event.pid:
                self._end_unix(connection, event.at, "the process exited")
        return []

    def _end_unix(self, connection: TrackedConnection, at: int, detail: str) -> None:
        if connection.ending is None:
            connection.ending = _Ending(at, "closed", detail, egress_fin=True, due=at + WAIT_NS)
            self._watch(connection)

    def _finalise(self, connection: TrackedConnection, ending: _Ending) -> list[Batch]:
        """End a connection: decode what still waits, then close its decoder."""
        egress, ingress = connection.egress, connection.ingress
        missing = (
            (egress, egress.conclude(ending.egress_end, ending.at, fin=ending.egress_fin)),
            (ingress, ingress.conclude(ending.ingress_end, ending.at, fin=ending.ingress_fin)),
        )
        batches = self._deliver(connection)
        messages = [message for each in missing for message in self._cut_off(connection, *each, ending)]
        if connection.decoder is not None:
            messages += connection.decoder.close(ending.at, ending.kind, ending.detail)
        if connection.connecting is not None:
            messages.append(ConnectFailed(connection.connecting, ending.at, ending.kind, ending.detail))
        batches.append(Batch(connection, connection.pid, connection.tid, [*messages, Gone(ending.at)]))
        self._remove(connection)
        return batches

    def _cut_off(
        self, connection: TrackedConnection, stream: Stream, missing: int, ending: _Ending
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

    def _count(self, event: Counters) -> None:
        self._stats.kernel = event.values


def _unannounced(chunk: Chunk, comm: str) -> SocketSeen:
    """Return what can be said of a connection whose SocketSeen was lost."""
    return SocketSeen(
        at=chunk.at, pid=chunk.pid, tid=chunk.tid, conn=chunk.conn, sock=0, inode=0, family=socket.AF_UNSPEC,
        local=_NOWHERE, remote=_NOWHERE, comm=comm, connected=False, counted=False,
        egress_seq=0, ingress_seq=0, egress_total=0, ingress_total=0,
    )  # fmt: skip


_NOWHERE = ("", 0)


def _ending(event: StateChanged, unread: int) -> _Ending:
    """Return how a TCP connection ended, from its last state change: to CLOSE, or the FIN of a close()."""
    fin_received = event.old in _FIN_RECEIVED
    fin_sent = event.old in _FIN_SENT or event.new != _CLOSE
    fin_read = fin_received and unread == 0
    unread = max(0, unread - fin_received)
    at_process = event.shut and (event.old not in _FIN_SENT or event.new != _CLOSE)
    if event.error in _RESETS:
        kind, detail = "reset", "the peer reset the connection"
    elif event.error:
        kind, detail = "closed", f"the connection failed: {os.strerror(event.error).lower()}"
    elif event.old in {_CLOSE_WAIT, _LAST_ACK}:
        kind, detail = "closed", "the peer closed the connection"
    elif at_process:
        kind, detail = "closed", "the process closed the connection"
    else:
        kind, detail = "closed", "the connection was closed"
    if unread:
        detail += f" with {unread} bytes unread"
    # A FIN that was sent or read counts as one byte; the FIN that is about to be sent does not yet. (close() after
    # shutdown() reports FIN_WAIT1 again, with the FIN counted.)
    return _Ending(
        event.at, kind, detail,
        egress_end=(event.egress_seq - (event.old in _FIN_SENT)) & _MASK,
        ingress_end=(event.ingress_seq - fin_read) & _MASK,
        egress_fin=fin_sent,
        ingress_fin=fin_read,
        due=event.at + (LINGER_NS if unread and not at_process else WAIT_NS),
    )  # fmt: skip


_RESETS = frozenset({errno.ECONNRESET, errno.EPIPE})


def _seconds(duration_ns: int) -> str:
    """Return a duration for people: "3.0 s", "0.4 ms"."""
    return f"{duration_ns / 1e9:.1f} s" if duration_ns >= 100_000_000 else f"{duration_ns / 1e6:.1f} ms"
