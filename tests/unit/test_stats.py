"""The summary and the reason for silence, word for word."""

from __future__ import annotations

import pytest

from apitrace.probes.events import COUNTER_NAMES
from apitrace.stats import Stats


def counters(**values: int) -> tuple[int, ...]:
    """Return the kernel's counters, zero but for these."""
    assert set(values) <= set(COUNTER_NAMES)
    return tuple(values.get(name, 0) for name in COUNTER_NAMES)


def test_a_capture_without_losses_says_so_in_three_lines() -> None:
    stats = Stats(captured=1234, opened=1234, unanswered=2, filtered=30, connections=12, joined=1)
    stats.kernel = counters(events=5000)
    assert stats.summary_lines() == [
        "1,234 exchanges captured, 2 unanswered, 30 filtered",
        "0 events dropped by kernel, 0 bytes unseen",
        "12 connections, 1 joined mid-stream",
    ]


def test_every_loss_and_everything_left_out_is_named() -> None:
    stats = Stats(
        captured=1, opened=3, partly_known=1, unseen_bytes=1, connections=1, undecodable=1, unannounced=2, evicted=3,
        unknown_connections=4, tls_connections=5,
    )  # fmt: skip
    stats.kernel = counters(
        ring_full=1, ring_bytes=70000, fault=1, call_limit=2000, no_content=3, compat=1, sockets_full=9
    )
    assert stats.summary_lines() == [
        "1 exchange captured, 0 unanswered, 0 filtered, 1 with unknown fields, 2 open",
        "1 event (70,000 bytes) dropped by kernel, 1 byte unseen",
        (
            "1 connection, 0 joined mid-stream, 4 of no known protocol, 5 TLS, "
            "2 of unknown address, 3 given up to make room"
        ),
        "1 byte in user memory that the kernel could not read",
        "2,000 bytes beyond what is copied of one call",
        "3 bytes moved without a user buffer (sendfile, splice, io_uring)",
        "decoding stopped 1 time: the bytes were not the protocol",
        "1 call of 32-bit processes: only the size is known",
        "9 connections not followed: the kernel's table was full",
    ]


@pytest.mark.parametrize(
    ("stats", "reason"),
    [
        (Stats(), "no socket I/O by the target yet"),
        (Stats(connections=1), "1 connection seen, no request on it yet"),
        (Stats(connections=2), "2 connections seen, no request on them yet"),
        (Stats(connections=3, opened=5, captured=3), "requests seen, none answered yet: 2 open"),
        (Stats(connections=1, connecting=1), "1 connect not answered yet"),
        (Stats(connections=3, tls_connections=3), "3 TLS connections seen, no request on it yet"),
        (Stats(connections=2, unknown_connections=2), "2 connections carry no protocol that apitrace knows"),
        (Stats(connections=1, unknown_connections=1), "1 connection carries no protocol that apitrace knows"),
        (Stats(connections=1, opened=7, captured=7, filtered=7), "7 exchanges seen, but filtered out"),
        (Stats(kernel=counters(ring_full=4)), "4 events dropped by kernel"),
    ],
)
def test_silence_has_a_reason(stats: Stats, reason: str) -> None:
    assert stats.why_nothing() == reason


def test_silence_may_have_several_reasons() -> None:
    stats = Stats(connections=5, tls_connections=1, unknown_connections=2, opened=1)
    assert stats.why_nothing() == (
        "requests seen, none answered yet: 1 open; 1 TLS connection seen, no request on it yet; "
        "2 connections carry no protocol that apitrace knows"
    )


def test_a_counter_that_an_older_recording_does_not_have_is_zero() -> None:
    assert Stats(kernel=(5,)).counter("unknown_bytes") == 0
