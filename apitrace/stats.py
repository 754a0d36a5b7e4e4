"""What a capture has seen, lost and left out: plain numbers, and the words for them.

The connection table, the assembler and the pipeline count; nothing here looks at a clock or writes anything.
`summary_lines` is the closing summary and the answer to SIGUSR1, `why_nothing` ends the line "nothing yet: ...".
What was lost is always said, and said to be nothing where it was nothing; the rest only if there is any.
"""

from __future__ import annotations

from dataclasses import dataclass

from apitrace.probes.events import COUNTER_NAMES

_KERNEL_CAUSES = {
    "fault": "{} in user memory that the kernel could not read",
    "call_limit": "{} beyond what is copied of one call",
    "no_content": "{} moved without a user buffer (sendfile, splice, io_uring)",
}
"""Counters of bytes that were moved on traced connections and not copied, and what became of them."""


@dataclass(slots=True)
class Stats:
    """The counters of one capture."""

    captured: int = 0
    """Exchanges that were put together, those filtered out later included."""
    opened: int = 0
    """Exchanges that have begun."""
    unanswered: int = 0
    """Of those captured, the ones that nothing answered until the capture ended."""
    filtered: int = 0
    partly_known: int = 0
    """Of those captured, the ones of which something was on the wire and could not be recovered."""
    undecodable: int = 0
    """How often a connection stopped making sense to its decoder."""
    unseen_bytes: int = 0
    """Bytes of decoded connections that were moved and not seen."""
    connections: int = 0
    joined: int = 0
    """Connections that carried bytes before the first that was seen."""
    unannounced: int = 0
    """Connections whose addresses are not known, because the event that tells was lost."""
    evicted: int = 0
    """Connections given up to make room."""
    connecting: int = 0
    """Connects under way."""
    unknown_connections: int = 0
    """Connections that so far carried bytes of no known protocol and nothing else."""
    tls_connections: int = 0
    kernel: tuple[int, ...] = (0,) * len(COUNTER_NAMES)
    """The kernel programs' counters, by COUNTER_NAMES."""

    @property
    def open(self) -> int:
        """Exchanges that have begun and not ended."""
        return self.opened - self.captured

    def counter(self, name: str) -> int:
        """Return one of the kernel programs' counters."""
        index = COUNTER_NAMES.index(name)
        return self.kernel[index] if index < len(self.kernel) else 0

    def summary_lines(self) -> list[str]:
        """Return the counters in words, one line each for exchanges, losses and connections, and one per cause."""
        dropped = _count(self.counter("ring_full"), "event")
        if self.counter("ring_bytes"):
            dropped += f" ({_count(self.counter('ring_bytes'), 'byte')})"
        lines = [
            f"{_count(self.captured, 'exchange')} captured, {self.unanswered:,} unanswered, {self.filtered:,} filtered"
            + (f", {self.partly_known:,} with unknown fields" if self.partly_known else "")
            + (f", {self.open:,} open" if self.open else ""),
            f"{dropped} dropped by kernel, {_count(self.unseen_bytes, 'byte')} unseen",
            f"{_count(self.connections, 'connection')}, {self.joined:,} joined mid-stream"
            + "".join(f", {number:,} {what}" for number, what in self._connection_kinds() if number),
        ]
        lines += [words.format(_count(self.counter(name), "byte")) for name, words in _KERNEL_CAUSES.items()
                  if self.counter(name)]  # fmt: skip
        lines += [text for number, text in self._troubles() if number]
        return lines

    def _connection_kinds(self) -> tuple[tuple[int, str], ...]:
        return (
            (self.unknown_connections, "of no known protocol"),
            (self.tls_connections, "TLS"),
            (self.unannounced, "of unknown address"),
            (self.evicted, "given up to make room"),
        )

    def _troubles(self) -> tuple[tuple[int, str], ...]:
        compat, full = self.counter("compat"), self.counter("sockets_full")
        return (
            (self.undecodable, f"decoding stopped {_count(self.undecodable, 'time')}: the bytes were not the protocol"),
            (compat, f"{_count(compat, 'call')} of 32-bit processes: only the size is known"),
            (full, f"{_count(full, 'connection')} not followed: the kernel's table was full"),
        )

    def why_nothing(self) -> str:
        """Say in one line what was seen instead of an exchange."""
        reasons = [text for number, text in self._reasons() if number]
        if reasons:
            return "; ".join(reasons)
        if self.connections:
            return f"{_count(self.connections, 'connection')} seen, no request on {_them(self.connections)} yet"
        return "no socket I/O by the target yet"

    def _reasons(self) -> tuple[tuple[int, str], ...]:
        dropped, unknown = self.counter("ring_full"), self.unknown_connections
        carry = "carries" if unknown == 1 else "carry"
        return (
            (self.filtered, f"{_count(self.filtered, 'exchange')} seen, but filtered out"),
            (self.open, f"requests seen, none answered yet: {self.open:,} open"),
            (self.connecting, f"{_count(self.connecting, 'connect')} not answered yet"),
            (self.tls_connections, f"{_count(self.tls_connections, 'TLS connection')} seen, no request on it yet"),
            (unknown, f"{_count(unknown, 'connection')} {carry} no protocol that apitrace knows"),
            (dropped, f"{_count(dropped, 'event')} dropped by kernel"),
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _them(number: int) -> str:
    return "it" if number == 1 else "them"
