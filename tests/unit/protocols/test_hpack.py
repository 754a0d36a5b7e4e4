from __future__ import annotations

import json
import os
from pathlib import Path

import hpack
import pytest

from apitrace.protocols import hpack as module
from apitrace.protocols.hpack import UNKNOWN, Block, Hpack, well_formed
from tests.unit.protocols.http2_tools import Pairs

VECTORS = Path(__file__).parents[4] / "shared/testdata/hpack"
"""The encoded stories of nine encoders; not part of this repository."""
STORIES = sorted(VECTORS.glob("*/*.json"))


def pairs_of(block: Block) -> list[tuple[str, str]]:
    method, path, scheme, authority, status, fields, *_ = block
    pseudo = ((":method", method), (":path", path), (":scheme", scheme), (":authority", authority), (":status", status))
    return sorted([(name, value) for name, value in pseudo if value is not None] + [field[:2] for field in fields])


def whole(block: Block) -> bool:
    return not (block.hidden or block.incomplete or block.cut)


def cases(story: Path) -> list[tuple[bytes, list[tuple[str, str]]]]:
    return [
        (bytes.fromhex(case["wire"]), sorted(pair for field in case["headers"] for pair in field.items()))
        for case in json.loads(story.read_text())["cases"]
    ]


def test_the_vectors_are_there() -> None:
    if not STORIES and not os.environ.get("CI"):
        pytest.skip(f"no vectors in {VECTORS}")
    assert len({story.parent for story in STORIES}) >= 9


@pytest.mark.parametrize("story", STORIES, ids=lambda story: f"{story.parent.name}/{story.stem}")
def test_every_story_is_decoded(story: Path) -> None:
    decoder = Hpack()
    for wire, headers in cases(story):
        block = decoder.decode(wire)
        assert whole(block)
        assert pairs_of(block) == headers
        assert well_formed(wire)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: f"{story.parent.name}/{story.stem}")
def test_without_its_first_half_a_story_is_right_or_unknown(story: Path) -> None:
    told = cases(story)
    for withheld in {1, len(told) // 2}:
        decoder = Hpack(joined=True)
        unknown = 0
        for wire, headers in told[withheld:]:
            block = decoder.decode(wire)
            shown = pairs_of(block)
            left = list(headers)
            for pair in shown:
                left.remove(pair)  # else it was not there
            assert bool(left) is not whole(block)
            assert len(left) == block.hidden + block.incomplete or block.incomplete
            unknown += len(left)
        if story.parent.name == "haskell-http2-static":
            assert unknown == 0


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_block_makes_what_was_inserted_before_unknown(lost: int) -> None:
    encoder, decoder = hpack.Encoder(), Hpack()
    fields: Pairs = (("a", "1"), ("b", "2"))
    for number in range(6):
        raw = encoder.encode([*fields, ("n", str(number))])
        if number == lost:
            decoder.lose()
            continue
        block = decoder.decode(raw)
        shown = [field[:2] for field in block.headers]
        if number < lost:
            assert shown == [*fields, ("n", str(number))]
        else:
            assert set(shown) <= {*fields, ("n", str(number))}
            assert ("a", "1") not in shown or lost == 0
            assert not whole(block) or lost == 0


def test_an_unknown_name_makes_a_field_unknown_although_its_value_is_there() -> None:
    decoder = Hpack(joined=True)
    block = decoder.decode(b"\x7e\x01v\x0f\x2f\x01w")  # name 62 and value v, inserted; name 62 and value w
    assert block == Block(None, None, None, None, None, (), hidden=2)
    assert decoder.decode(b"\xbe").hidden == 1
    assert decoder._table[-1] is UNKNOWN


def test_unknown_fields_in_front_may_be_pseudo_header_fields_and_those_behind_may_not() -> None:
    block = Hpack(joined=True).decode(b"\x82\xbe\xbf\x0f\x0a\x01x\xbe")
    assert (block.method, block.hidden, block.incomplete) == ("GET", 2, True)
    assert [field[:2] for field in block.headers] == [("content-encoding", "x")] or len(block.headers) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\x7f",  # an integer without end
        b"\x40\x01",  # a name that is not there
        b"\x40\x01a\x05bc",  # a value that is not whole
        b"\x40\x81\xff\x01b",  # Huffman: padding of eight bits
        b"\x40\x84\xff\xff\xff\xff\x01b",  # Huffman: EOS
        b"\x40\x81\x00\x01b",  # Huffman: padding with zeros
        b"\x3f",
    ],
)
def test_a_fault_is_told_and_empties_the_table(raw: bytes) -> None:
    decoder = Hpack()
    decoder.decode(b"\x40\x01a\x01b")
    block = decoder.decode(b"\x82" + raw)
    assert (block.method, block.cut, block.hidden) == ("GET", True, 1)
    assert decoder.decode(b"\xbe").hidden == 1


def test_blocks_are_remembered_only_as_long_as_the_table_stays() -> None:
    decoder = Hpack()
    decoder.decode(b"\x40\x01a\x011")
    first = decoder.decode(b"\xbe")
    assert decoder.decode(b"\xbe") is first
    decoder.decode(b"\x40\x01a\x012")
    assert decoder.decode(b"\xbe").headers[0].value == "2"
    for number in range(1000):
        decoder.decode(b"\x00\x01a\x04%04d" % number)
        assert len(decoder._blocks) <= module.BLOCKS_LIMIT


def test_the_table_is_bounded_whatever_the_peers_agree_on() -> None:
    decoder = Hpack()
    decoder.decode(b"\x3f\xe1\xff\x3f")  # a size of 1 MiB
    for number in range(3000):
        decoder.decode(b"\x40\x04%04d\x30" % number + bytes(48))
        assert sum(len(name) + len(value) + 32 for name, value, _ in decoder._table) <= module.SIZE_LIMIT
    assert len(decoder._table) == module.SIZE_LIMIT // 84


def test_entries_are_evicted_as_the_peers_evict_them() -> None:
    decoder = Hpack()
    decoder.decode(b"\x3f\x2d")  # a size of 76: two entries of 34
    decoder.decode(b"\x40\x01a\x011\x40\x01b\x012\x40\x01c\x013")
    assert [field[:2] for field in decoder.decode(b"\xbe\xbf").headers] == [("c", "3"), ("b", "2")]
    assert decoder.decode(b"\xc0").hidden == 1
    decoder.decode(b"\x20")
    assert decoder.decode(b"\xbe").hidden == 1


def test_names_are_in_lower_case_and_kept_as_they_were_sent() -> None:
    [field] = Hpack().decode(b"\x00\x03X-A\x01b").headers
    assert field == ("x-a", "b", "X-A")
