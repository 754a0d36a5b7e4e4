"""However a TLS connection is cut, ordered, joined, damaged or lost in part, nothing wrong is told of it."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.protocols import tls
from apitrace.protocols.decoder import DecodeError
from apitrace.protocols.tls import TlsObserver, looks_like_tls
from tests.unit.protocols.tls_fixtures import CLIENT, RECORDINGS, SERVER, Recording, observe, observed

SIDES = (CLIENT, SERVER)
recordings = st.sampled_from(list(RECORDINGS.values()))
fractions = st.floats(0, 1)
WHOLE = {name: observed(observe(recording.chunks)) for name, recording in RECORDINGS.items()}

NAMED_UNKNOWN = {"sni": "tls.sni", "version": "tls.version", "alpn": "tls.alpn"}
KEPT_LIMIT = tls.HELLO_LIMIT + 2 * tls.PAYLOAD_LIMIT
"""Bytes that one direction may keep: an unfinished hello and the record that ends it, or a record in doubt."""


def cut(data: bytes, places: list[float]) -> list[bytes]:
    at = sorted({0, len(data), *(round(place * len(data)) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


def assert_nothing_is_wrong(part: dict[str, Any], whole: dict[str, Any]) -> None:
    """`part` is known of a connection of which bytes were missed, `whole` of all of it."""
    for field in ("client", "sni", "alpn_offered", "alpn", "version", "cipher_suite", "finished"):
        assert part[field] in {whole[field], None}, field
    for field, name in NAMED_UNKNOWN.items():
        assert part[field] == whole[field] or name in part["unknown"]
    assert part["ech"] <= whole["ech"]
    assert part["retried"] <= whole["retried"]
    assert all(alert in whole["alerts"] for alert in part["alerts"])
    for seen, true in zip(part["traffic"], whole["traffic"], strict=True):
        assert seen.wire_bytes <= true.wire_bytes
        assert seen.application_bytes <= true.application_bytes
        if seen.unknown_bytes is not None and seen.wire_bytes == true.wire_bytes:
            assert true.application_bytes <= seen.application_bytes + seen.unknown_bytes


def kept(observer: TlsObserver) -> int:
    return max(len(d.message) + len(d.buffer) + len(d.header) + len(d.alert) for d in observer._directions)


@given(recordings, st.lists(fractions, max_size=20), st.lists(fractions, max_size=20), st.randoms())
def test_any_split_and_any_order_of_the_two_directions_gives_the_same_result(
    recording: Recording, client_cuts: list[float], server_cuts: list[float], order: Any
) -> None:
    queues = [cut(recording.sent(CLIENT), client_cuts), cut(recording.sent(SERVER), server_cuts)]
    observer = TlsObserver()
    while any(queues):
        side = order.choice([side for side in SIDES if queues[side]])
        observer.receive(side, queues[side].pop(0), 0)
        assert kept(observer) <= KEPT_LIMIT
    assert observed(observer) == WHOLE[recording.name]


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)
@pytest.mark.parametrize("joined", [False, True])
def test_byte_by_byte_gives_the_same_result(recording: Recording, joined: bool) -> None:
    at_once, bytewise = TlsObserver(joined=joined), TlsObserver(joined=joined)
    for side in SIDES:
        stream = recording.sent(side)
        at_once.receive(side, stream, 0)
        for at in range(len(stream)):
            bytewise.receive(side, stream[at : at + 1], 0)
    assert observed(bytewise) == observed(at_once)


Losses = list[tuple[int, float, float, bool]]
loss = st.tuples(st.sampled_from(SIDES), fractions, st.floats(0, 0.3), st.booleans())
losses = st.lists(loss, min_size=1, max_size=4)


@given(recordings, losses, st.lists(fractions, max_size=5))
@settings(max_examples=500)
def test_any_byte_ranges_lost_give_no_wrong_value_and_no_error(
    recording: Recording, lost: Losses, cuts: list[float]
) -> None:
    observer = TlsObserver()
    for side in SIDES:
        stream = recording.sent(side)
        at = 0
        for _, place, share, measured in sorted(loss for loss in lost if loss[0] == side):
            start = max(at, round(place * len(stream)))
            end = min(len(stream), start + 1 + round(share * len(stream)))
            for piece in cut(stream[at:start], cuts):
                observer.receive(side, piece, 0)
            if end > start:
                observer.gap(side, end - start if measured else None, 0)
            at = max(start, end)
        for piece in cut(stream[at:], cuts):
            observer.receive(side, piece, 0)
    assert_nothing_is_wrong(observed(observer), WHOLE[recording.name])


@pytest.mark.parametrize("name", ["openssl_tls12_no_shared_cipher", "openssl_tls12_client_refuses_certificate"])
def test_each_single_range_lost_of_the_client_gives_no_wrong_value(name: str) -> None:
    recording = RECORDINGS[name]
    stream = recording.sent(CLIENT)
    for start in range(len(stream)):
        for end in range(start + 1, len(stream) + 1):
            observer = TlsObserver()
            observer.receive(CLIENT, stream[:start], 0)
            observer.gap(CLIENT, end - start, 0)
            observer.receive(CLIENT, stream[end:], 0)
            observer.receive(SERVER, recording.sent(SERVER), 0)
            assert_nothing_is_wrong(observed(observer), WHOLE[name])


@given(recordings, fractions, fractions)
@settings(max_examples=300)
def test_joined_anywhere_gives_no_wrong_value_and_no_error(
    recording: Recording, client_place: float, server_place: float
) -> None:
    observer = TlsObserver(joined=True)
    for side, place in zip(SIDES, (client_place, server_place), strict=True):
        stream = recording.sent(side)
        observer.receive(side, stream[round(place * len(stream)) :], 0)
    assert_nothing_is_wrong(observed(observer), WHOLE[recording.name])


@given(recordings, st.lists(st.tuples(fractions, st.integers(0, 255)), max_size=8), st.booleans())
@settings(max_examples=500)
def test_damaged_bytes_raise_nothing_but_decode_error(
    recording: Recording, damage: list[tuple[float, int]], joined: bool
) -> None:
    observer = TlsObserver(joined=joined)
    for side in SIDES:
        stream = bytearray(recording.sent(side)[:4096])
        for place, value in damage:
            stream[round(place**3 * (len(stream) - 1))] = value  # most of them in the hellos
        with contextlib.suppress(DecodeError):
            observer.receive(side, bytes(stream), 0)
        observed(observer)


def in_a_hello(data: bytes) -> bytes:
    """Return a handshake record that begins like a ClientHello of any size up to 255."""
    return bytes([22, 3, 3, 0, 4 + len(data), 1, 0, 0, len(data)]) + data


pieces = st.binary(max_size=200) | st.binary(max_size=200).map(in_a_hello)


@given(st.lists(st.tuples(st.sampled_from(SIDES), pieces)), st.booleans())
@settings(max_examples=500)
def test_any_bytes_raise_nothing_but_decode_error(steps: list[tuple[int, bytes]], joined: bool) -> None:
    observer = TlsObserver(joined=joined)
    with contextlib.suppress(DecodeError):
        for side, data in steps:
            looks_like_tls(data)
            observer.receive(side, data, 0)
            observed(observer)
            assert kept(observer) <= KEPT_LIMIT
    observed(observer)


def test_random_bytes_between_losses_are_never_taken_for_records() -> None:
    observer = TlsObserver(joined=True)
    noise = random.Random(4)
    for _ in range(200):
        observer.receive(CLIENT, noise.randbytes(tls.SEARCH_LIMIT - 1), 0)
        assert kept(observer) <= KEPT_LIMIT
        observer.gap(CLIENT, 1, 0)
    sent = observer.traffic(CLIENT)
    assert sent == (200 * tls.SEARCH_LIMIT, 0, 200 * tls.SEARCH_LIMIT)
