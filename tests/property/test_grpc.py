"""Truths about gRPC bodies and protobuf that hold for every message, however it is cut, damaged or lost."""

from __future__ import annotations

import base64
import itertools
import struct
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from apitrace.protocols.decoder import DecodeError
from apitrace.protocols.grpc import ROOM, ContentType, Reader, Room
from apitrace.protocols.protobuf import decode

PLAIN = ContentType(web=False, text=False, codec="proto")
TEXT = ContentType(web=True, text=True, codec="proto")
contents = st.lists(st.binary(max_size=40), max_size=8)


def framed(content: bytes) -> bytes:
    return struct.pack(">BL", 0, len(content)) + content


def cut(data: Any, body: bytes) -> list[tuple[int, bytes]]:
    """Cut a body into pieces, each with its place."""
    places = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=10)) | {0, len(body)})
    return [(start, body[start:end]) for start, end in itertools.pairwise(places)]


@given(contents, st.data(), st.sampled_from([0, 7, 100]))
def test_messages_are_found_where_they_are_however_the_body_is_cut(messages: list[bytes], data: Any, live: int) -> None:
    body = b"".join(map(framed, messages))
    room = Room()
    reader = Reader(PLAIN, room, live)
    for at, piece in cut(data, body):
        reader.receive(piece, at)
    assert [body[each.offset : each.offset + each.size] for each in reader.framed] == messages
    assert reader.passed is not None
    assert [content for _, _, content in reader.passed] == [message[:live] for message in messages]
    assert not reader.inside
    assert not reader.stopped
    reader.close()
    assert room.left == ROOM - sum(len(content) for _, _, content in reader.passed)


@given(contents, st.data())
def test_messages_in_base64_are_found_however_it_is_padded_and_cut(messages: list[bytes], data: Any) -> None:
    body = b"".join(map(framed, messages))
    text = b"".join(base64.b64encode(piece) for _, piece in cut(data, body))
    reader = Reader(TEXT, Room())
    for at, piece in cut(data, text):
        reader.receive(piece, at)
    assert [body[each.offset : each.offset + each.size] for each in reader.framed] == messages


@given(contents, st.data())
def test_a_hole_never_makes_a_message_that_was_not_sent(messages: list[bytes], data: Any) -> None:
    body = b"".join(map(framed, messages))
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    reader = Reader(PLAIN, Room(), 100)
    reader.receive(body[:start], 1)
    if end > start:
        reader.gap(end - start)
    reader.receive(body[end:], 2)
    assert reader.passed is not None
    sent = [len(message) for message in messages]
    assert [each.size for each in reader.framed] == sent[: reader.count]
    assert reader.stopped or reader.count == len(messages)
    for number, each, content in reader.passed:
        if not each.lost:
            assert content == messages[number]


@given(st.lists(st.binary(max_size=30)), st.booleans())
def test_no_bytes_break_the_reader(pieces: list[bytes], text: bool) -> None:
    room = Room()
    reader = Reader(TEXT if text else PLAIN, room, 20)
    for at, piece in enumerate(pieces):
        reader.receive(piece, at)
        if reader.stopped:
            before = reader.count
    assert reader.count == len(reader.framed)
    if reader.stopped:
        reader.receive(framed(b"more"), 9)
        assert reader.count == before
    assert reader.passed is not None
    reader.close()
    assert room.left == ROOM - sum(len(content) for _, _, content in reader.passed)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_decoder_and_what_it_gives_can_be_written(raw: bytes, beginning: bool) -> None:
    try:
        fields = decode(raw, cut=beginning)
    except DecodeError:
        return
    orjson.dumps(fields)


@given(st.binary(max_size=200), st.data())
def test_a_beginning_has_no_field_that_the_whole_has_not(raw: bytes, data: Any) -> None:
    try:
        whole = decode(raw)
    except DecodeError:
        return
    fields = decode(raw[: data.draw(st.integers(0, len(raw)))], cut=True)
    for name, value in fields.items():
        values, all_values = (each if isinstance(each, list) else [each] for each in (value, whole[name]))
        assert orjson.dumps(values)[1:-1] in orjson.dumps(all_values)
        assert values == all_values[: len(values)]
