"""How connections end: what TCP's last state change says of the two directions, and what that means for a TLS session.

A direction has ended well if the kernel says that a FIN was sent or read; only then is a body whole that ends with its
connection. An ending is not the end at once: another thread's last call may be reported after it (`due`).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from apitrace.streams import MASK, ahead

if TYPE_CHECKING:
    from apitrace.probes.events import StateChanged

WAIT_NS = 50_000_000
"""How long a chunk out of place waits for its neighbour, and a closed connection for late chunks. A thread reports
right behind the call; it is late only when it is preempted in between: a few scheduling periods (EEVDF: 3 ms)."""

LINGER_NS = 1_000_000_000
"""How long a connection that the kernel closed is kept while bytes lie there that the process may yet read."""

SYN_SENT, CLOSE = 2, 7
_FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 4, 5, 6, 8, 9, 11
"""TCP's states (include/net/tcp_states.h)."""

_FIN_SENT = frozenset({_FIN_WAIT1, _FIN_WAIT2, _CLOSING, _LAST_ACK, _TIME_WAIT})
_FIN_RECEIVED = frozenset({_CLOSE_WAIT, _LAST_ACK, _CLOSING, _TIME_WAIT, _FIN_WAIT2})
"""States that are left for CLOSE with the peer's FIN received: FIN_WAIT2 too, but for an orphan, whose end is known."""

_RESETS = frozenset({errno.ECONNRESET, errno.EPIPE})

_CONNECT_FAILURES = {
    errno.ECONNREFUSED: ("refused", "connection refused"),
    errno.ECONNRESET: ("reset", "connection reset while connecting"),
    errno.ETIMEDOUT: ("unanswered", "connect timed out"),
    errno.EHOSTUNREACH: ("unanswered", "no route to host"),
    errno.ENETUNREACH: ("unanswered", "network is unreachable"),
    0: ("closed", "closed by the process before the connect was answered"),
}


class Ending(NamedTuple):
    """How a connection ended."""

    at: int
    kind: str
    """As in exchange.Failure."""
    detail: str
    egress_end: int | None = None
    """Position behind the last byte sent; None: not known."""
    ingress_end: int | None = None
    egress_fin: bool = False
    """The sender ended the direction in order, so what ends with the connection ends well."""
    ingress_fin: bool = False
    due: int = 0
    """When no late chunk can come any more."""
    orderly: bool = False
    """It is over, and neither a reset nor a failure of the network ended it."""


def sends_fin(event: StateChanged) -> bool:
    """Whether the process's own FIN goes out with this change, the first time."""
    return event.new != CLOSE and event.old not in _FIN_SENT


def of_tcp(event: StateChanged) -> Ending | None:
    """Return how a TCP connection ended, from its change to CLOSE or the FIN of a close(); None: it goes on."""
    unread = ahead(event.received_seq, event.ingress_seq)
    fin_received = event.old in _FIN_RECEIVED
    # close() with bytes unread is a reset. So if there are any, this is shutdown(), and the process reads on.
    if event.new != CLOSE and not (event.shut and unread <= fin_received):
        return None
    fin_sent = event.old in _FIN_SENT or event.new != CLOSE
    fin_read = fin_received and unread == 0
    unread = max(0, unread - fin_received)
    at_process = event.shut and (event.old not in _FIN_SENT or event.new != CLOSE)
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
    return Ending(
        event.at, kind, detail,
        egress_end=(event.egress_seq - (event.old in _FIN_SENT)) & MASK,
        ingress_end=(event.ingress_seq - fin_read) & MASK,
        egress_fin=fin_sent,
        ingress_fin=fin_read,
        due=event.at + (LINGER_NS if unread and not at_process else WAIT_NS),
        orderly=not event.error,
    )  # fmt: skip


def of_connect(event: StateChanged, duration_ns: int) -> Ending:
    """Return how a connect failed, that took so long."""
    kind, detail = _CONNECT_FAILURES.get(event.error) or ("closed", os.strerror(event.error).lower())
    return Ending(event.at, kind, f"{detail} after {seconds(duration_ns)}")


def of_unix(at: int, detail: str) -> Ending:
    """Return the end of an AF_UNIX socket, or of a session without a socket: the kernel tells of no state."""
    return Ending(at, "closed", detail, egress_fin=True, due=at + WAIT_NS, orderly=True)


def of_session(carrier: Ending | None, at: int, *, freed: bool) -> Ending:
    """Return how a session ends with its carrier (None: before it): where its plaintext ends is not known by number.

    What the process wrote is whole if the connection was closed behind it, or the object was freed before that. What
    it read is whole if it had read the peer's FIN; that it had read close_notify, a chunk has told already (`eof`).
    """
    ending = carrier or Ending(at, "closed", "the process ended the TLS session", orderly=True)
    egress_fin = ending.orderly and (ending.egress_fin or freed)
    return ending._replace(egress_end=None, ingress_end=None, egress_fin=egress_fin, due=at + WAIT_NS)


def seconds(duration_ns: int) -> str:
    """Return a duration for people: "3.0 s", "0.4 ms"."""
    return f"{duration_ns / 1e9:.1f} s" if duration_ns >= 100_000_000 else f"{duration_ns / 1e6:.1f} ms"
