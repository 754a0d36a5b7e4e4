"""A stream puts chunks into their places, says what is missing, and holds no more than it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apitrace import streams
from apitrace.probes.events import Chunk
from apitrace.streams import Budget, Ended, Hole, Jumble, Stream, ahead

if TYPE_CHECKING:
    import pytest

    from apitrace.streams import Piece


class Direction:
    """A stream that begins at position 100, and chunks for it."""

    def __init__(self, *, egress: bool = False, at: int = 100) -> None:
        self.budget = Budget()
        self.stream = Stream(egress=egress, expected=at & 0xFFFF_FFFF, budget=self.budget)
        self._egress = egress

    def chunk(self, seq: int, data: bytes, missing: int = 0, at: int = 1) -> Chunk:
        return Chunk(at, 1, 1, 1, self._egress, seq & 0xFFFF_FFFF, data, missing, eof=False)

    def take(self, chunk: Chunk) -> list[Piece]:
        """Let the stream take a chunk; return what is in order now."""
        self.stream.take(chunk)
        return self.pieces()

    def put(self, seq: int, data: bytes, missing: int = 0, at: int = 1) -> list[Piece]:
        return self.take(self.chunk(seq, data, missing, at))

    def pieces(self) -> list[Piece]:
        return [self.stream.pop() for _ in range(len(self.stream.queue))]

    def give_up(self) -> list[Piece]:
        self.stream.give_up()
        return self.pieces()

    def end_at(self, position: int, at: int) -> list[Piece]:
        self.stream.end_at(position, at)
        return self.pieces()


def test_positions_are_compared_across_the_wrap() -> None:
    assert ahead(5, 0xFFFF_FFFB) == 10
    assert ahead(0xFFFF_FFFB, 5) == -10
    assert ahead(7, 7) == 0


def test_chunks_in_their_places_pass_at_once() -> None:
    one = Direction()
    assert one.put(100, b"abc") == [one.chunk(100, b"abc")]
    assert one.put(103, b"de") == [one.chunk(103, b"de")]
    assert (one.stream.expected, one.stream.since, one.budget.used) == (105, None, 0)


def test_bytes_that_were_not_copied_count_in_the_next_place() -> None:
    one = Direction()
    one.put(100, b"abc", missing=7)
    assert one.put(110, b"x") == [one.chunk(110, b"x")]


def test_chunks_that_come_early_wait_for_those_before_them() -> None:
    one = Direction()
    first, second, third = one.chunk(100, b"ab"), one.chunk(102, b"cd"), one.chunk(104, b"ef", at=9)
    assert one.take(third) == []
    assert (one.stream.since, one.stream.horizon, one.budget.used) == (9, 9, 2)
    assert one.take(second) == []
    assert one.take(first) == [first, second, third]
    assert (one.stream.since, one.budget.used) == (None, 0)


def test_places_wrap_at_32_bits() -> None:
    one = Direction(at=0xFFFF_FFFE)
    late, early = one.chunk(0xFFFF_FFFE, b"abcd"), one.chunk(2, b"ef")
    assert one.take(early) == []
    assert one.take(late) == [late, early]
    assert one.stream.expected == 4


def test_a_hole_is_declared_with_its_size_when_it_is_given_up() -> None:
    one = Direction()
    behind, further = one.chunk(105, b"xy", at=3), one.chunk(110, b"z", at=4)
    one.take(further)
    one.take(behind)
    assert one.give_up() == [Hole(3, 5), behind, Hole(4, 3), further]
    assert (one.stream.expected, one.stream.since, one.budget.used) == (111, None, 0)


def test_a_chunk_of_a_hole_that_was_given_up_is_of_no_use() -> None:
    one = Direction()
    one.put(105, b"xy")
    one.give_up()
    assert one.put(100, b"abcde") == []
    assert one.put(107, b"!") == [one.chunk(107, b"!")]


def test_waiting_begins_anew_when_some_of_what_was_missing_comes() -> None:
    one = Direction()
    one.put(105, b"x", at=10)
    one.put(110, b"y", at=20)
    assert one.put(100, b"abcde", at=30) == [one.chunk(100, b"abcde", at=30), one.chunk(105, b"x", at=10)]
    assert one.stream.since == 30


def test_two_readers_that_claim_the_same_end_are_a_jumble() -> None:
    """The first took 30 bytes, the second 50; both were reported after the second had them."""
    one = Direction()
    first, second = one.chunk(150, b"a" * 30), one.chunk(130, b"b" * 50)
    assert one.take(first) == []
    assert one.take(second) == [Jumble(1, (first, second))]
    assert (one.stream.expected, one.stream.since, one.budget.used) == (180, None, 0)


def test_a_jumble_is_told_apart_from_what_lies_behind_it() -> None:
    one = Direction()
    first, second, behind = one.chunk(150, b"a" * 30), one.chunk(130, b"b" * 50), one.chunk(180, b"c")
    assert one.take(behind) == []
    assert one.take(first) == []
    assert one.take(second) == [Jumble(1, (first, second)), behind]


def test_a_chunk_whose_place_is_sure_does_not_become_part_of_a_jumble() -> None:
    one = Direction()
    sure, first, second = one.chunk(100, b"!"), one.chunk(151, b"a" * 30), one.chunk(131, b"b" * 50)
    assert one.take(first) == []
    assert one.take(second) == []
    assert one.take(sure) == [sure, Jumble(1, (first, second))]


def test_of_three_readers_the_jumble_is_whole_when_all_are_there() -> None:
    one = Direction()
    chunks = one.chunk(109, b"a"), one.chunk(107, b"bbb"), one.chunk(104, b"cccccc")
    assert one.take(chunks[0]) == []
    assert one.take(chunks[1]) == []
    assert one.take(chunks[2]) == [Jumble(1, chunks)]


def test_chunks_that_overlap_where_bytes_are_missing_cannot_be_placed() -> None:
    one = Direction()
    one.put(150, b"a" * 30)
    one.put(140, b"b" * 40, at=8)
    assert one.give_up() == [Hole(1, 80)]
    assert one.stream.expected == 180


def test_the_first_chunk_is_taken_where_it_is_although_the_position_announced_is_further() -> None:
    one = Direction()
    assert one.put(90, b"abc") == [one.chunk(90, b"abc")]
    assert one.put(93, b"d") == [one.chunk(93, b"d")]


def test_a_chunk_in_a_place_that_is_taken_costs_an_unknown_number_of_bytes() -> None:
    one = Direction()
    one.put(100, b"abcdef")
    assert one.put(103, b"xyz12", at=5) == [Hole(5, None)]
    assert one.put(108, b"!") == [one.chunk(108, b"!")]


def test_a_stream_without_a_position_begins_with_its_first_chunk() -> None:
    one = Direction()
    one.stream.rejoin(None)
    assert one.put(4321, b"ab") == [one.chunk(4321, b"ab")]
    assert one.stream.expected == 4323


def test_a_stream_that_waits_with_too_many_chunks_is_overfull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELD_CHUNKS_LIMIT", 2)
    one = Direction()
    overfull = []
    for place in range(3):
        one.put(101 + place, b"x")
        overfull.append(one.stream.overfull)
    assert overfull == [False, False, True]


def test_a_stream_that_waits_with_too_many_bytes_is_overfull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELD_BYTES_LIMIT", 4)
    one = Direction()
    one.put(101, b"abcd")
    assert not one.stream.overfull
    one.stream.take(one.chunk(105, b"e"))
    assert one.stream.overfull


def test_bytes_that_wait_are_bounded_for_all_streams_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELD_TOTAL_LIMIT", 4)
    one = Direction()
    other = Stream(egress=True, expected=0, budget=one.budget)
    other.take(Chunk(1, 1, 1, 1, True, 10, b"abcd", 0, eof=False))
    assert (one.stream.overfull, other.overfull) == (False, False)
    one.put(101, b"e")
    assert (one.stream.overfull, other.overfull) == (True, True)
    one.give_up()
    assert one.budget.used == 4


def test_one_byte_before_the_last_chunk_is_the_fin_that_was_read_with_it() -> None:
    one = Direction()
    assert one.put(101, b"last") == []
    assert one.stream.since is None  # it waits for the end, or for more
    assert one.end_at(104, at=7) == [one.chunk(101, b"last"), Ended(7)]


def test_one_byte_before_the_last_chunk_is_a_hole_if_the_end_is_where_the_chunk_ends() -> None:
    one = Direction()
    one.put(101, b"last")
    assert one.end_at(105, at=7) == []
    assert one.give_up() == [Hole(1, 1), one.chunk(101, b"last"), Ended(7)]


def test_one_byte_before_the_last_chunk_is_a_hole_if_nothing_is_known_of_the_end() -> None:
    one = Direction()
    one.put(101, b"last")
    assert one.stream.conclude(None, 9, fin=False) == 0
    assert one.pieces() == [Hole(1, 1), one.chunk(101, b"last")]


def test_one_byte_before_other_data_is_a_hole_like_any_other() -> None:
    one = Direction()
    one.put(101, b"more", at=3)
    one.put(105, b"!", at=4)
    assert one.stream.since == 4
    assert one.give_up() == [Hole(3, 1), one.chunk(101, b"more", at=3), one.chunk(105, b"!", at=4)]


def test_what_was_sent_never_contains_a_fin() -> None:
    one = Direction(egress=True)
    one.put(101, b"last")
    assert one.stream.since == 1
    assert one.give_up() == [Hole(1, 1), one.chunk(101, b"last")]


def test_an_end_waits_for_the_bytes_before_it() -> None:
    one = Direction(egress=True)
    assert one.end_at(103, at=6) == []
    assert (one.stream.ended, one.stream.since) == (False, 6)
    assert one.put(100, b"abc") == [one.chunk(100, b"abc"), Ended(6)]
    assert (one.stream.ended, one.stream.since) == (True, None)


def test_bytes_missing_before_an_end_are_a_hole_when_they_are_given_up() -> None:
    one = Direction(egress=True)
    one.end_at(103, at=6)
    assert one.give_up() == [Hole(6, 3), Ended(6)]
    assert one.stream.expected == 103
