"""The kernel's events as values. Mirrors bpf/apitrace.h; knows neither bcc nor the clock.

`decode` takes one raw event, as the ring buffer or a recording holds it, and returns an Event. Times are
CLOCK_MONOTONIC nanoseconds; `Clock` turns them into Unix time. Positions (`seq`) are 32-bit and wrap.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

import orjson

from apitrace.exchange import Container

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT_ABI = 2
EVENT_ABIS = (1, 2)
"""What `decode` reads: 2 has TLS sessions besides."""

_new = tuple.__new__
"""NamedTuple's own __new__ is a Python function, and three times as slow."""

SOCKET, CHUNK, STATE, EXEC, EXIT, FORK, CLOSED, SESSION, FREED, LOADED, BORN = range(1, 12)
PROCESS, COUNTERS, PROBES = 64, 65, 66
"""Made in user space: what /proc and the container runtime said of a process; the kernel's loss counters; the TLS that
was found in a process."""

FLAG_EGRESS, FLAG_EOF, FLAG_CONNECTED, FLAG_COUNTED = 1, 2, 4, 8
FLAG_PLAINTEXT, FLAG_PROBED, FLAG_WHOLE, FLAG_STOPPED = 16, 32, 64, 128

COUNTER_NAMES = (
    "events",
    "ring_full",
    "ring_bytes",
    "fault",
    "call_limit",
    "no_content",
    "compat",
    "sockets_full",
    "unknown_bytes",
    "tls_calls",
    "tls_depth",
)

HEAD = struct.Struct("=BBHIIIQQ")
_SOCKET = struct.Struct("=QQQIIIHHHH16s16s16s108s108s")
_CHUNK = struct.Struct("=BBHIIIQQII")
_STATE = struct.Struct("=HHIIIIHH")
_EXEC = struct.Struct("=16s232s")
_FORK = struct.Struct("=II")
_SESSION = struct.Struct("=QQIIIIII16s16s")
CHUNK_SIZE = _CHUNK.size
CHUNK_UNPACK = _CHUNK.unpack_from


class SocketSeen(NamedTuple):
    """A socket is seen for the first time."""

    at: int
    pid: int
    tid: int
    conn: int
    sock: int
    """Kernel address, the key of the verdict map."""
    inode: int
    family: int
    """socket.AF_INET, AF_INET6 or AF_UNIX."""
    local: tuple[str, int]
    """(address, port); for AF_UNIX (path, 0), abstract names with a leading "@"."""
    remote: tuple[str, int]
    comm: str
    connected: bool
    """Its connect() was seen: the traced process is the client."""
    counted: bool
    """Positions are apitrace's own count, not TCP's."""
    egress_seq: int
    ingress_seq: int
    egress_total: int
    """Bytes sent before this call, as TCP counts: may be one high."""
    ingress_total: int
    probed: bool = False
    """The process had TLS probes when it first used the socket."""


class Chunk(NamedTuple):
    """Bytes that one call moved in one direction."""

    at: int
    pid: int
    tid: int
    conn: int
    egress: bool
    seq: int
    data: bytes
    missing: int
    """Bytes of the same call after `data` that were not copied."""
    eof: bool
    plaintext: bool = False
    """`conn` is a TLS session: what was read from it or written to it."""


class StateChanged(NamedTuple):
    """TCP state change; states as in the kernel's tcp_states.h.

    Only changes out of SYN_SENT and into SYN_SENT, FIN_WAIT1, LAST_ACK and CLOSE are reported. Positions are valid
    from ESTABLISHED on (the SocketSeen of a connect has none), and count a FIN as one byte once it is sent or received.
    FIN_WAIT1 may come twice; the local port is 0 at CLOSE.
    """

    at: int
    pid: int
    conn: int
    old: int
    new: int
    error: int
    """errno, 0 for none."""
    egress_seq: int
    ingress_seq: int
    received_seq: int
    local_port: int
    remote_port: int
    shut: bool
    """Both directions were shut when this happened: the process has closed the socket and will read no more."""


class Executed(NamedTuple):
    """A target called exec."""

    at: int
    pid: int
    comm: str
    filename: str


class Exited(NamedTuple):
    """A target's last thread ended."""

    at: int
    pid: int


class Forked(NamedTuple):
    """A target forked; the child is a target."""

    at: int
    pid: int
    child: int


class SocketClosed(NamedTuple):
    """The last descriptor of an AF_UNIX socket is being closed."""

    at: int
    pid: int
    conn: int


class SessionSeen(NamedTuple):
    """A TLS session gives its first plaintext, or its socket has become known."""

    at: int
    pid: int
    tid: int
    session: int
    handle: int
    """Address of the SSL object, gnutls_session_t or *tls.Conn."""
    conn: int
    """The connection it speaks through; 0: not known."""
    egress_seq: int
    ingress_seq: int
    point: int
    """Of the call that it was first seen in: ProbesPlaced says of which library that is."""
    by_bytes: bool
    """The connection was told by bytes that both had, not by a call inside a call."""
    whole: bool
    """It was seen from its handshake on."""
    alpn: str | None
    comm: str


class SessionFreed(NamedTuple):
    """A TLS session's object was freed."""

    at: int
    pid: int
    session: int


class Watched(NamedTuple):
    """A target's dynamic loader has mapped something, or a forked child has begun: of use to the source alone."""

    at: int
    pid: int


class ProbesPlaced(NamedTuple):
    """What TLS was found in a process."""

    at: int
    pid: int
    libraries: tuple[tuple[int, str], ...]
    """(point, library): "OpenSSL 3.0.15"."""
    unreadable: tuple[str, ...]
    """What cannot be read, and why, in words."""
    probed: bool
    """Probes are in place for some of it."""


class ProcessSeen(NamedTuple):
    """What is known of a process, from /proc and the container runtime."""

    at: int
    pid: int
    comm: str
    exe: str | None
    container: Container | None


class Counters(NamedTuple):
    """The kernel programs' counters since the start, by COUNTER_NAMES."""

    at: int
    values: tuple[int, ...]


Event = (
    SocketSeen | Chunk | StateChanged | Executed | Exited | Forked | SocketClosed | ProcessSeen | Counters
    | SessionSeen | SessionFreed | Watched | ProbesPlaced
)  # fmt: skip


class EventError(ValueError):
    """Raw bytes that are not an event of this ABI."""


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _unix_path(raw: bytes) -> str:
    if raw.startswith(b"\0"):
        name = raw[1:].rstrip(b"\0")
        return "@" + name.decode("utf-8", "backslashreplace") if name else ""
    return _text(raw)


def _socket(raw: bytes) -> SocketSeen:
    _, flags, _, pid, tid, _, at, conn = HEAD.unpack_from(raw)
    (sock, egress_total, ingress_total, egress_seq, ingress_seq, inode, family, local_port, remote_port, _,
     local_addr, remote_addr, comm, local_path, remote_path) = _SOCKET.unpack_from(raw, HEAD.size)  # fmt: skip
    if family == socket.AF_UNIX:
        local, remote = (_unix_path(local_path), 0), (_unix_path(remote_path), 0)
    else:
        local = (_address(family, local_addr), local_port)
        remote = (_address(family, remote_addr), remote_port)
        if family == socket.AF_INET6 and "." in local[0]:  # v4-mapped: the packets are IPv4
            family = socket.AF_INET
    return SocketSeen(
        at, pid, tid, conn, sock, inode, family, local, remote, _text(comm),
        bool(flags & FLAG_CONNECTED), bool(flags & FLAG_COUNTED),
        egress_seq, ingress_seq, egress_total, ingress_total, bool(flags & FLAG_PROBED),
    )  # fmt: skip


_V4_MAPPED = b"\0" * 10 + b"\xff\xff"


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if raw.startswith(_V4_MAPPED):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def _chunk(raw: bytes) -> Chunk:
    _, flags, _, pid, tid, length, at, conn, seq, missing = CHUNK_UNPACK(raw)
    data = raw[CHUNK_SIZE : CHUNK_SIZE + length]
    return _new(
        Chunk,
        (at, pid, tid, conn, (flags & FLAG_EGRESS) != 0, seq, data, missing, (flags & FLAG_EOF) != 0,
         (flags & FLAG_PLAINTEXT) != 0),
    )  # fmt: skip


def _state(raw: bytes) -> StateChanged:
    _, flags, _, pid, _, _, at, conn = HEAD.unpack_from(raw)
    old, new, error, egress_seq, ingress_seq, received_seq, local_port, remote_port = _STATE.unpack_from(raw, HEAD.size)
    return StateChanged(
        at, pid, conn, old, new, error, egress_seq, ingress_seq, received_seq, local_port, remote_port,
        (flags & FLAG_EOF) != 0,
    )  # fmt: skip


def _exec(raw: bytes) -> Executed:
    _, _, _, pid, _, _, at, _ = HEAD.unpack_from(raw)
    comm, filename = _EXEC.unpack_from(raw, HEAD.size)
    return Executed(at, pid, _text(comm), _text(filename))


def _exit(raw: bytes) -> Exited:
    _, _, _, pid, _, _, at, _ = HEAD.unpack_from(raw)
    return Exited(at, pid)


def _fork(raw: bytes) -> Forked:
    _, _, _, pid, _, _, at, _ = HEAD.unpack_from(raw)
    return Forked(at, pid, _FORK.unpack_from(raw, HEAD.size)[0])


def _closed(raw: bytes) -> SocketClosed:
    _, _, _, pid, _, _, at, conn = HEAD.unpack_from(raw)
    return SocketClosed(at, pid, conn)


def _session(raw: bytes) -> SessionSeen:
    _, flags, _, pid, tid, _, at, session = HEAD.unpack_from(raw)
    handle, conn, egress_seq, ingress_seq, point, source, alpn_len, _, alpn, comm = _SESSION.unpack_from(raw, HEAD.size)
    return SessionSeen(
        at, pid, tid, session, handle, conn, egress_seq, ingress_seq, point, source == _TIE_BIO,
        bool(flags & FLAG_WHOLE), _text(alpn[:alpn_len]) if alpn_len else None, _text(comm),
    )  # fmt: skip


_TIE_BIO = 2


def _freed(raw: bytes) -> SessionFreed:
    _, _, _, pid, _, _, at, session = HEAD.unpack_from(raw)
    return SessionFreed(at, pid, session)


def _watched(raw: bytes) -> Watched:
    _, _, _, pid, _, _, at, _ = HEAD.unpack_from(raw)
    return Watched(at, pid)


def _probes(raw: bytes) -> ProbesPlaced:
    _, _, _, pid, _, _, at, _ = HEAD.unpack_from(raw)
    fields = orjson.loads(raw[HEAD.size :])
    libraries = tuple((int(point), str(name)) for point, name in fields["libraries"])
    return ProbesPlaced(at, pid, libraries, tuple(map(str, fields["unreadable"])), bool(fields["probed"]))


def _process(raw: bytes) -> ProcessSeen:
    _, _, _, pid, _, _, at, _ = HEAD.unpack_from(raw)
    fields = orjson.loads(raw[HEAD.size :])
    container = fields["container"]
    if container is not None:
        labels = tuple((str(key), str(value)) for key, value in container.pop("labels"))
        container = Container(**container, labels=labels)
    return ProcessSeen(at, pid, fields["comm"], fields["exe"], container)


def _counters(raw: bytes) -> Counters:
    _, _, _, _, _, length, at, _ = HEAD.unpack_from(raw)
    return Counters(at, struct.unpack_from(f"={length // 8}Q", raw, HEAD.size))


_DECODERS: dict[int, Callable[[bytes], Event]] = {
    CHUNK: _chunk, SOCKET: _socket, STATE: _state, EXEC: _exec, EXIT: _exit, FORK: _fork, CLOSED: _closed,
    SESSION: _session, FREED: _freed, LOADED: _watched, BORN: _watched,
    PROCESS: _process, COUNTERS: _counters, PROBES: _probes,
}  # fmt: skip


def decode(raw: bytes) -> Event:
    """Return the event that these bytes are. Raises EventError for bytes that are none."""
    try:
        return _DECODERS[raw[0]](raw)
    except (KeyError, IndexError, struct.error, ValueError, TypeError, AttributeError) as error:
        message = f"not an event: {type(error).__name__}"
        raise EventError(message) from error


def used_size(raw: bytes) -> int:
    """Return how many bytes of a ring-buffer record the event uses; the rest is padding of its size class."""
    return CHUNK_SIZE + HEAD.unpack_from(raw)[5] if raw[0] == CHUNK else len(raw)


def encode_process(seen: ProcessSeen) -> bytes:
    """Return a ProcessSeen as raw bytes, for recordings."""
    container = None if seen.container is None else seen.container._asdict()
    body = orjson.dumps({"comm": seen.comm, "exe": seen.exe, "container": container})
    return HEAD.pack(PROCESS, 0, 0, seen.pid, seen.pid, len(body), seen.at, 0) + body


def encode_probes(placed: ProbesPlaced) -> bytes:
    """Return a ProbesPlaced as raw bytes, for recordings."""
    body = orjson.dumps({"libraries": placed.libraries, "unreadable": placed.unreadable, "probed": placed.probed})
    return HEAD.pack(PROBES, 0, 0, placed.pid, placed.pid, len(body), placed.at, 0) + body


def encode_counters(counters: Counters) -> bytes:
    """Return Counters as raw bytes, for recordings."""
    body = struct.pack(f"={len(counters.values)}Q", *counters.values)
    return HEAD.pack(COUNTERS, 0, 0, 0, 0, len(body), counters.at, 0) + body
