"""Recorded gRPC calls of which events are lost: what is shown of them is right or said to be unknown, never wrong."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.exchange import CallMessage, Exchange, Grpc
from apitrace.files.recording import Recording
from apitrace.pipeline import Capture
from apitrace.probes import events
from apitrace.redact import Redactor
from apitrace.stats import Stats

if TYPE_CHECKING:
    from apitrace.exchange import Headers

RECORDED = Path(__file__).parents[1] / "golden/recorded/grpc.apitrace"
RAW = [bytes(raw) for raw in Recording(str(RECORDED))]
CHUNKS = [index for index, raw in enumerate(RAW) if raw[0] == events.CHUNK]


class Given:
    """A source that has these events and no more."""

    def __init__(self, raw: list[bytes]) -> None:
        self._raw: list[bytes] | None = raw

    def poll(self, timeout_ms: int) -> list[bytes] | None:
        raw, self._raw = self._raw, None
        return raw

    def now(self) -> int | None:
        return None

    def counters(self) -> bytes | None:
        return None

    def verdict(self, conn: int, value: int) -> None:
        pass

    def stop(self) -> None:
        pass


class Kept:
    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def write(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def shown(raw: list[bytes]) -> list[Exchange]:
    sink = Kept()
    Capture(
        Given(raw), [sink], stats=Stats(), clock_offset_ns=0, snaplen=65536, redactor=Redactor(show=True)
    ).run()  # fmt: skip
    return sink.exchanges


@functools.cache
def truth() -> dict[int | None, Grpc]:
    """Return what the calls were, by their streams: there is one connection."""
    return {exchange.connection.stream_id: exchange.grpc for exchange in shown(RAW) if exchange.grpc is not None}


def is_right(message: CallMessage, true: CallMessage) -> bool:
    """Whether what is shown of a message is what it was. The compressed ones have no coding if that is unknown."""
    if (message.size, message.compressed) != (true.size, true.compressed):
        return False
    return message.truncated or message.data == true.data or message.encoding == "base64"


def assert_true(part: Headers, whole: Headers) -> None:
    assert set(part) <= set(whole)


@settings(max_examples=150, deadline=None)
@given(st.one_of(
    st.sets(st.sampled_from(CHUNKS), min_size=1, max_size=8),
    st.integers(1, len(CHUNKS) - 1).map(lambda count: set(CHUNKS[:count])),
))  # fmt: skip
def test_what_is_shown_of_calls_is_right_or_unknown(lost: set[int]) -> None:
    exchanges = shown([raw for index, raw in enumerate(RAW) if index not in lost])
    known = truth()
    assert len(known) == 29
    for exchange in exchanges:
        call, true = exchange.grpc, known[exchange.connection.stream_id]
        if call is None:
            assert exchange.unknown
            continue
        assert (call.service, call.method) in {(true.service, true.method), (None, None)}
        if call.status_code is not None:
            assert (call.status_code, call.status) == (true.status_code, true.status)
            assert call.message in {true.message, None}
        assert call.timeout_ns in {true.timeout_ns, None}
        for name in ("request_metadata", "response_metadata", "trailing_metadata"):
            assert_true(getattr(call, name), getattr(true, name))
        for side in ("request", "response"):
            messages, true_messages = getattr(call, f"{side}s"), getattr(true, f"{side}s")
            pairs: Any = zip(messages, true_messages, strict=False)
            assert len(messages) <= len(true_messages)
            assert all(is_right(message, true_message) for message, true_message in pairs)
            count = getattr(call, f"{side}_count")
            if count != len(true_messages):
                assert count is None or exchange.error or exchange.unknown or exchange.lost_bytes
