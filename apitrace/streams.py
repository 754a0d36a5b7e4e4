"""One direction of a connection: chunks, as the kernel's events give them, put into their places.

Every chunk says where in its direction it stands, so a loss is seen and not guessed. A chunk ahead of its place waits
for what belongs before it. Whoever owns the Stream (connection.py) decides for how long, and then has the hole
declared. Positions are of 32 bits and wrap. What waits is bounded: `overfull` says when it may wait no longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apitrace.probes.events import Chunk
from apitrace.protocols.decoder import CLIENT, SERVER

if TYPE_CHECKING:
    from apitrace.protocols.decoder import Side

HELD_CHUNKS_LIMIT = 64
"""Chunks of one direction that wait. A call of 1 MiB, the most that is copied of one, comes in 17."""
HELD_BYTES_LIMIT = 2 << 20
"""Bytes of one direction that wait: two whole calls."""
HELD_TOTAL_LIMIT = 32 << 20
"""Bytes that wait on all connections together: as much as the ring buffer holds, so as much as can be on its way."""

MASK = 0xFFFF_FFFF
"""Positions have so many bits."""
NEVER = 1 << 63
"""A time that does not come."""


def ahead(position: int, of: int) -> int:
    """Return how far a position lies ahead of another; both wrap at 32 bits, so at most 2 GiB either way."""
    return ((position - of + 0x8000_0000) & MASK) - 0x8000_0000


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
        return min((chunk.at for chunk in self._held), default=NEVER) if self.since is not None else NEVER

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
                place = (expected + size) & MASK
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
    return (chunk.seq + len(chunk.data) + chunk.missing) & MASK
