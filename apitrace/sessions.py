"""What is known of the TLS in the traced processes: which libraries, what can be read, and whose socket is not known.

A TLS session is a connection of its own in the connection table, that of the plaintext; the socket's connection is its
carrier. `TlsLedger` keeps what is not a matter of one connection: the libraries that probe points belong to, why a
process's TLS cannot be read, and how many of a process's sessions have no carrier. For each of those there is a
connection that looks unreadable and is not: `settle` tells one by one, so that nothing is reported twice.
Bounded: of processes told of longest ago the ledger forgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from apitrace.protocols.tls import TLS13

if TYPE_CHECKING:
    from apitrace.probes.events import ProbesPlaced
    from apitrace.protocols.tls import TlsObserver

PROCESSES_LIMIT = 16384
"""Processes remembered: as in connection.py."""

UNKNOWN_LIBRARY = "TLS"
"""Of a session whose probe point is not known, because the event that tells was lost."""

GO_LIBRARY = "crypto/tls"
"""How the name of Go's library begins."""

_NO_LIBRARY = "no TLS library that can be probed was found in it"
_NO_CALL = "no call on its TLS library was seen"

_IDLE_BYTES = 128
"""Application-data payload of a TLS 1.3 client that has asked nothing: its Finished (53 to 69 bytes; padded by JSSE,
85) and its close_notify (19; 35) are sent as such. The shortest calls come to more: 53 + 19 + 17 around a request, and
one of curl's has 80 bytes. Up to TLS 1.2 application data is what the word says."""


class Verdict(NamedTuple):
    """What is to be said of a TLS connection of which no plaintext was seen."""

    kind: str
    """As in exchange.Failure."""
    detail: str


_V = TypeVar("_V")


def _remember(of: dict[int, _V], pid: int, value: _V) -> None:
    """Set what is known of a process; if there are too many, forget what was set longest ago."""
    of.pop(pid, None)
    if len(of) >= PROCESSES_LIMIT:
        del of[next(iter(of))]
    of[pid] = value


class TlsLedger:
    """The TLS of the traced processes."""

    def __init__(self) -> None:
        self._libraries: dict[int, str] = {}
        self._placed: dict[int, ProbesPlaced] = {}
        self._untied: dict[int, int] = {}
        self._noticed: dict[int, None] = {}

    def placed(self, placed: ProbesPlaced) -> None:
        """Take what was found in a process."""
        self._libraries.update(placed.libraries)
        _remember(self._placed, placed.pid, placed)

    def forked(self, pid: int, child: int) -> None:
        """Take a fork: the child has its parent's libraries, unless it was told of itself."""
        known = self._placed.get(pid)
        if known is not None and child not in self._placed:
            _remember(self._placed, child, known)

    def library(self, point: int) -> str:
        """Return the library that a probe point belongs to."""
        return self._libraries.get(point, UNKNOWN_LIBRARY)

    def why_unreadable(self, pid: int) -> str | None:
        """Return why a process's TLS is not seen; None if it should be."""
        placed = self._placed.get(pid)
        if placed is None:
            return _NO_LIBRARY
        if placed.probed:
            return None
        return "; ".join(placed.unreadable) or _NO_LIBRARY

    def notice(self, pid: int) -> str | None:
        """Return what the user is to be told, once, when a process is seen to use TLS; None if it can be read."""
        return self._once(pid, self.why_unreadable(pid))

    def notice_unread(self, pid: int) -> str | None:
        """Return the same when a connection could not be read, of a process of whose TLS some can be.

        Before it is over nobody knows which of a process's libraries a connection belongs to.
        """
        return self._once(pid, self._beside(pid))

    def _once(self, pid: int, reason: str | None) -> str | None:
        if reason is None or pid in self._noticed:
            return None
        _remember(self._noticed, pid, None)
        return reason

    def _beside(self, pid: int) -> str | None:
        """Return which TLS of a process cannot be read, and why; None if there is none, or it was not looked at."""
        placed = self._placed.get(pid)
        return None if placed is None else "; ".join(placed.unreadable) or None

    # -- sessions whose socket is not known --------------------------------------------------------------------------

    def begin(self, pid: int) -> None:
        """A session has begun; its socket is not known yet."""
        _remember(self._untied, pid, self._untied.get(pid, 0) + 1)

    def settle(self, pid: int) -> bool:
        """Account for one of a process's sessions without a socket; return whether there was one."""
        left = self._untied.get(pid, 0)
        if left > 1:
            self._untied[pid] = left - 1
        else:
            self._untied.pop(pid, None)
        return left > 0

    # -- connections without a session -------------------------------------------------------------------------------

    def judge(self, pid: int, observer: TlsObserver, client: int, *, joined: bool, ended: Verdict) -> Verdict | None:
        """Say why no plaintext was seen of a connection that is over; None if there was nothing to see.

        `client`: the side that is it. `joined`: it was open before the capture. `ended`: how it ended.
        """
        reason, beside = self.why_unreadable(pid), self._beside(pid)
        alert = next((alert for alert in observer.alerts if alert.level == "fatal"), None)
        if alert is not None:
            by = "client" if alert.side == client else "server"
            return Verdict("closed", f"the TLS handshake failed: the {by} sent {alert.name}")
        if observer.finished is False:
            return Verdict(ended.kind, f"the TLS handshake did not end: {ended.detail}")
        if reason is not None:
            return Verdict("unreadable", reason)
        idle = _IDLE_BYTES if observer.version in {None, TLS13} else 0
        if observer.traffic(client).application_bytes <= idle:
            return None  # connected, and nothing asked
        if beside is not None:  # Python has its OpenSSL, and grpcio a BoringSSL of its own in the same process
            return Verdict("unreadable", f"{_NO_CALL}; {beside}")
        return None if joined else Verdict("unreadable", _NO_CALL)
