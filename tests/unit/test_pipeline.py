"""A whole capture over a source made of values: what ends it, what it says, and that nothing captured is lost."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
from collections.abc import Callable

import orjson
import pytest

from apitrace.errors import OutputError
from apitrace.exchange import Exchange
from apitrace.options import ALL, CallOptions
from apitrace.pipeline import Capture, Limits
from apitrace.probes import events
from apitrace.redact import Redactor
from apitrace.sinks.jsonl import JsonLines
from apitrace.stats import Stats

REQUEST = b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def head(kind: int, flags: int, at: int, length: int = 0) -> bytes:
    return struct.pack("=BBHIIIQQ", kind, flags, 0, 7, 7, length, at, 1)


def socket_seen(at: int) -> bytes:
    return head(events.SOCKET, 0, at) + struct.pack(
        "=QQQIIIHHHH16s16s16s108s108s", 0, 0, 0, 0, 0, 99, socket.AF_INET, 80, 5000, 0,
        bytes([127, 0, 0, 1]), bytes([127, 0, 0, 1]), b"srv", b"", b"",
    )  # fmt: skip


def chunk(at: int, flags: int, seq: int, data: bytes) -> bytes:
    return head(events.CHUNK, flags, at, len(data)) + struct.pack("=II", seq, 0) + data


def calls(count: int) -> list[bytes]:
    """The events of `count` calls on one connection, as the server saw them."""
    raw, received, sent, at = [socket_seen(1)], 0, 0, 10
    for number in range(count):
        request = REQUEST % number
        raw.append(chunk(at, 0, received, request))
        raw.append(chunk(at + 5, events.FLAG_EGRESS, sent, RESPONSE))
        received, sent, at = received + len(request), sent + len(RESPONSE), at + 10
    return raw


class Fake:
    """A live source: gives its batches, then nothing; what is queued at the stop comes out after it."""

    def __init__(self, batches: list[list[bytes]], *, left: list[bytes] | None = None) -> None:
        self.batches = batches
        self.left = left or []
        self.stopped = 0
        self.verdicts: list[tuple[int, int]] = []
        self.before_poll: Callable[[int], None] = lambda _: None
        self.polls = 0

    def poll(self, timeout_ms: int) -> list[bytes]:
        self.before_poll(self.polls)
        self.polls += 1
        if self.stopped:
            left, self.left = self.left, []
            return left
        return self.batches.pop(0) if self.batches else []

    def now(self) -> int:
        return 1_000_000

    def counters(self) -> bytes | None:
        return None

    def verdict(self, conn: int, value: int) -> None:
        self.verdicts.append((conn, value))

    def stop(self) -> None:
        self.stopped += 1


class Screen(io.BytesIO):
    """Can still be read when it has been closed."""

    def close(self) -> None:
        pass


class Keeps:
    """A sink that keeps."""

    def __init__(self) -> None:
        self.paths: list[str | None] = []
        self.closed = 0

    def write(self, exchange: Exchange) -> None:
        self.paths.append(exchange.request.path)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def capture(source: Fake, sink: object, **options: object) -> Capture:
    return Capture(
        source,
        [sink],
        stats=options.pop("stats", Stats()),
        clock_offset_ns=0,
        snaplen=100,
        redactor=Redactor(),
        **options,  # type: ignore[list-item, arg-type]
    )


def stop_after(source: Fake, polls: int, running: list[Capture]) -> None:
    def before(number: int) -> None:
        if number == polls:
            running[0].request_stop(signal.SIGINT)

    source.before_poll = before


def test_a_signal_shows_what_was_captured_and_what_is_still_in_the_kernel() -> None:
    raw = calls(23)
    source, sink, running = Fake([raw[:15], raw[15:30]], left=raw[30:]), Keeps(), []
    running.append(capture(source, sink))
    stop_after(source, 1, running)
    running[0].run()
    assert sink.paths == [f"/{number}" for number in range(23)]
    assert (sink.closed, running[0].shown, running[0].stopped_by) == (1, 23, signal.SIGINT)
    assert source.stopped


def test_a_request_without_an_answer_is_shown_at_the_end() -> None:
    raw = calls(2)[:-1]
    source, sink, running, stats = Fake([raw]), Keeps(), [], Stats()
    running.append(capture(source, sink, stats=stats))
    stop_after(source, 1, running)
    running[0].run()
    assert sink.paths == ["/0", "/1"]
    assert (stats.captured, stats.unanswered) == (2, 1)


@pytest.mark.parametrize("count", [1, 7, 23])
def test_a_count_ends_the_capture_at_exactly_that_many(count: int) -> None:
    source, sink = Fake([calls(40)]), Keeps()
    capture(source, sink, limits=Limits(count=count)).run()
    assert sink.paths == [f"/{number}" for number in range(count)]


def test_the_targets_end_ends_the_capture_and_loses_nothing() -> None:
    raw = calls(3)
    source, sink = Fake([raw[:3], [head(events.EXIT, 0, 90)]], left=raw[3:]), Keeps()
    capture(source, sink, limits=Limits(ended=lambda: True)).run()
    assert sink.paths == ["/0", "/1", "/2"]


def test_a_filter_keeps_and_counts() -> None:
    source, sink, stats = Fake([calls(4)]), Keeps(), Stats()
    keep = lambda exchange: exchange.request.path in ("/1", "/3")  # noqa: E731
    capture(source, sink, stats=stats, keep=keep, limits=Limits(count=2)).run()
    assert sink.paths == ["/1", "/3"]
    assert stats.filtered == 2


def test_a_closed_pipe_ends_the_capture_quietly() -> None:
    class Broken(Keeps):
        def write(self, exchange: Exchange) -> None:
            raise BrokenPipeError

    source, sink = Fake([calls(4)]), Broken()
    saved = os.dup(1)
    try:
        capture(source, sink).run()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert (sink.closed, bool(source.stopped)) == (1, True)


def test_a_failed_output_is_an_error_and_closes_the_others() -> None:
    class Full(Keeps):
        def write(self, exchange: Exchange) -> None:
            message = "cannot write x: No space left on device"
            raise OutputError(message)

    source, sink = Fake([calls(4)]), Full()
    with pytest.raises(OutputError, match="No space left"):
        capture(source, sink).run()
    assert (sink.closed, bool(source.stopped)) == (1, True)


def test_a_report_is_given_when_asked_for_and_the_capture_goes_on() -> None:
    said: list[str] = []
    source, sink, running = Fake([calls(2), []]), Keeps(), []
    running.append(capture(source, sink, say=said.append))

    def before(number: int) -> None:
        if number == 1:
            running[0].request_report()
        if number == 3:
            running[0].request_stop(signal.SIGTERM)

    source.before_poll = before
    running[0].run()
    assert said == [
        "2 exchanges captured, 0 unanswered, 0 filtered",
        "0 events dropped by kernel, 0 bytes unseen",
        "1 connection, 0 joined mid-stream",
    ]


def test_what_ends_when_the_counters_are_read_is_shown() -> None:
    """They are events like any other: with them the time goes on, and a connection that has closed comes to its end."""
    raw = calls(1)
    request, answer = raw[1], chunk(15, events.FLAG_EGRESS, 0, b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\npart")
    closed = head(events.STATE, events.FLAG_EOF, 20) + struct.pack("=HHIIIIHH", 1, 7, 104, 0, 0, 0, 0, 80)
    source, running = Fake([[raw[0], request, answer, closed]]), []
    counted = iter([events.encode_counters(events.Counters(1_000_000_000, (9,) * len(events.COUNTER_NAMES)))])
    source.counters = lambda: next(counted, None)  # type: ignore[method-assign]
    shown: list[Exchange] = []

    class KeepsAll(Keeps):
        def write(self, exchange: Exchange) -> None:
            shown.append(exchange)

    running.append(capture(source, KeepsAll(), stats=(stats := Stats())))
    reports: list[int] = []

    def before(number: int) -> None:
        if number == 1:
            assert shown == []
            running[0].request_report()
        if number == 2:
            reports.append(len(shown))
            running[0].request_stop(signal.SIGINT)

    source.before_poll = before
    running[0].run()
    assert reports == [1]
    [exchange] = shown
    assert exchange.request.path == "/0"
    assert exchange.error is not None
    assert exchange.error.kind == "reset"
    assert (stats.captured, stats.open, stats.unanswered, stats.counter("events")) == (1, 0, 0, 9)


def test_lines_of_json_come_out_per_batch() -> None:
    out = io.BytesIO()
    source, running = Fake([calls(2)]), []
    running.append(capture(source, JsonLines(out, node_name="n")))
    seen: list[bytes] = []

    def before(number: int) -> None:
        if number == 1:
            seen.append(out.getvalue())
            running[0].request_stop(signal.SIGINT)

    source.before_poll = before
    running[0].run()
    assert [orjson.loads(line)["request"]["path"] for line in seen[0].splitlines()] == ["/0", "/1"]


def test_signals_are_given_back_after_the_capture() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with capture(Fake([]), Keeps()).signals():
        assert signal.getsignal(signal.SIGUSR1) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


WORD = b"\0\0\0\0\x03\x0a\x01a"
WEB_REQUEST = (
    b"POST /pkg.Words/Say HTTP/1.1\r\nHost: t\r\nContent-Type: application/grpc-web\r\nAuthorization: Bearer abc\r\n"
    b"Content-Length: 16\r\n\r\n"
)
WEB_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web\r\nContent-Length: 29\r\n\r\n"
WEB_TRAILERS = b"\x80\0\0\0\x10grpc-status: 0\r\n"


def web_call() -> list[bytes]:
    """The events of a gRPC-Web call with two messages each way but for the answer's one."""
    parts = [(0, WEB_REQUEST), (0, WORD), (0, WORD), (1, WEB_RESPONSE), (1, WORD), (1, WEB_TRAILERS)]
    raw, seqs, at = [socket_seen(1)], [0, 0], 10
    for side, data in parts:
        raw.append(chunk(at, events.FLAG_EGRESS if side else 0, seqs[side], data))
        seqs[side] += len(data)
        at += 1
    return raw


def shown_lines(**calls_: object) -> list[dict[str, object]]:
    out, source, running = Screen(), Fake([web_call()]), []
    sink = JsonLines(out, messages=True, node_name="n")
    running.append(capture(source, sink, **calls_))
    stop_after(source, 1, running)
    running[0].run()
    assert running[0].shown == 1
    return [orjson.loads(line) for line in out.getvalue().splitlines()]


def test_messages_go_to_the_sinks_as_they_pass_and_count_for_nothing() -> None:
    *messages, exchange = shown_lines(calls=CallOptions(ALL), limits=Limits(count=1))
    assert [(line["kind"], line["side"], line["index"], line["data"]) for line in messages] == [
        ("message", "client", 0, {"1": {"string": "a"}}),
        ("message", "client", 1, {"1": {"string": "a"}}),
        ("message", "server", 0, {"1": {"string": "a"}}),
    ]
    assert {line["id"] for line in messages} == {exchange["id"]}
    assert "kind" not in exchange


def test_without_being_wanted_no_message_is_shown() -> None:
    [exchange] = shown_lines()
    assert exchange["grpc"]["request_count"] == 2


def test_what_is_filtered_out_has_no_messages_shown_either() -> None:
    lines = shown_lines(calls=CallOptions(ALL), keep=lambda exchange: exchange.response is not None)
    assert [line.get("side") for line in lines] == ["server", None]


def test_a_sink_that_takes_no_messages_gets_none() -> None:
    source, sink, running = Fake([web_call()]), Keeps(), []
    running.append(capture(source, sink, calls=CallOptions(ALL)))
    stop_after(source, 1, running)
    running[0].run()
    assert sink.paths == ["/pkg.Words/Say"]
