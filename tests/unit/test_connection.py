"""The connection table puts bytes in order, says what is missing, and knows when a connection has ended.

Events are built by hand here, from a conversation in bytes: see Wire, which other tests use too.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from apitrace import connection as module
from apitrace import streams
from apitrace.assemble import Assembler
from apitrace.connection import (
    VERDICT_IGNORE,
    VERDICT_KNOWN,
    ConnectionTable,
    Gone,
)
from apitrace.endings import WAIT_NS
from apitrace.exchange import Container, Failure
from apitrace.probes.events import (
    Chunk,
    Counters,
    Event,
    Executed,
    Exited,
    Forked,
    ProcessSeen,
    SocketClosed,
    SocketSeen,
    StateChanged,
)
from apitrace.protocols.decoder import CLIENT, DecodeError, Failed, RequestHead
from apitrace.protocols.detect import Detection
from apitrace.stats import Stats
from tests.unit.protocols.http2_tools import Talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apitrace.exchange import Exchange
    from apitrace.protocols.decoder import Message, Side

MS = 1_000_000
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK = range(1, 10)

GET = b"GET /a HTTP/1.1\r\nHost: h.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nto the end"
TLS_HELLO = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(189)
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
CONNECT = b"CONNECT h.test:80 HTTP/1.1\r\nHost: h.test:80\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def post(body: bytes, path: str = "/p") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: h.test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answer(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Wire:
    """The events of one connection: each call gives the next one, a microsecond later, in its place."""

    def __init__(
        self, *, conn: int = 64, at: int = 1_000, egress: int = 5_000, ingress: int = 9_000, pid: int = 10
    ) -> None:
        self.conn, self.at, self.pid, self.tid = conn, at, pid, 11
        self.egress, self.ingress = egress, ingress
        """The position of the next byte."""

    def _tick(self) -> int:
        self.at += 1_000
        return self.at

    def socket(self, **fields: Any) -> SocketSeen:
        values: dict[str, Any] = {
            "at": self._tick(), "pid": self.pid, "tid": self.tid, "conn": self.conn, "sock": 0xFFFF, "inode": 777,
            "family": socket.AF_INET, "local": ("10.0.0.1", 80), "remote": ("10.0.0.2", 40000), "comm": "comm",
            "connected": False, "counted": False, "egress_seq": self.egress & 0xFFFF_FFFF,
            "ingress_seq": self.ingress & 0xFFFF_FFFF, "egress_total": 0, "ingress_total": 0,
        }  # fmt: skip
        return SocketSeen(**(values | fields))

    def _chunk(self, data: bytes, missing: int, tid: int | None, *, egress: bool, eof: bool = False) -> Chunk:
        seq = self.egress if egress else self.ingress
        if egress:
            self.egress += len(data) + missing
        else:
            self.ingress += len(data) + missing
        tid = self.tid if tid is None else tid
        return Chunk(self._tick(), self.pid, tid, self.conn, egress, seq & 0xFFFF_FFFF, data, missing, eof)

    def send(self, data: bytes, missing: int = 0, tid: int | None = None) -> Chunk:
        return self._chunk(data, missing, tid, egress=True)

    def receive(self, data: bytes, missing: int = 0, tid: int | None = None) -> Chunk:
        return self._chunk(data, missing, tid, egress=False)

    def eof(self) -> Chunk:
        return self._chunk(b"", 0, None, egress=False, eof=True)

    def state(self, old: int, new: int, *, error: int = 0, shut: bool = True, **positions: int) -> StateChanged:
        """Give a change of state; positions are those so far, unless told."""
        values = {
            "egress_seq": self.egress & 0xFFFF_FFFF, "ingress_seq": self.ingress & 0xFFFF_FFFF,
            "received_seq": self.ingress & 0xFFFF_FFFF, "local_port": 0, "remote_port": 80,
        } | positions  # fmt: skip
        return StateChanged(self._tick(), self.pid, self.conn, old, new, error, shut=shut, **values)

    def wait(self, duration_ns: int) -> None:
        """Let time pass."""
        self.at += duration_ns


class Capture:
    """A table and an assembler, as the pipeline joins them."""

    def __init__(self, *, snaplen: int = 65536, clock_offset_ns: int = 0) -> None:
        self.stats = Stats()
        self.table = ConnectionTable(stats=self.stats)
        self.assembler = Assembler(stats=self.stats, clock_offset_ns=clock_offset_ns, snaplen=snaplen)
        self.exchanges: list[Exchange] = []

    def feed(self, *events: Event) -> list[Exchange]:
        """Feed events; return the exchanges that these gave."""
        before = len(self.exchanges)
        for event in events:
            for batch in self.table.feed(event):
                self.exchanges += self.assembler.feed(batch)
        return self.exchanges[before:]

    def tick(self, now: int) -> list[Exchange]:
        done = [exchange for batch in self.table.tick(now) for exchange in self.assembler.feed(batch)]
        self.exchanges += done
        return done

    def drain(self, at: int) -> list[Exchange]:
        done = [exchange for batch in self.table.drain(at) for exchange in self.assembler.feed(batch)]
        done += self.assembler.drain(at)
        self.exchanges += done
        return done


def capture(events: Iterable[Event], **options: int) -> list[Exchange]:
    """Return the exchanges of a whole capture."""
    events = list(events)
    whole = Capture(**options)
    whole.feed(*events)
    whole.drain(max(event.at for event in events) + 1_000)
    return whole.exchanges


def outline(exchange: Exchange) -> tuple[Any, ...]:
    """Return what most tests ask of an exchange: path, status, response size, lost bytes, unknown, kind of error."""
    return (
        exchange.request.path,
        exchange.response and exchange.response.status_code,
        exchange.response and exchange.response.body_size,
        exchange.lost_bytes,
        exchange.unknown,
        exchange.error and exchange.error.kind,
    )


def outlines(exchanges: Iterable[Exchange]) -> list[tuple[Any, ...]]:
    return [outline(exchange) for exchange in exchanges]


WHOLE = ("/a", 200, 2, 0, (), None)
"""Outline of GET and OK."""


# -- the hot path, and what it does not do ---------------------------------------------------------------------------


def test_a_server_and_its_client_give_the_same_exchange_with_their_roles() -> None:
    wire = Wire()
    [served] = capture([wire.socket(), wire.receive(GET), wire.send(OK)])
    wire = Wire()
    [asked] = capture([wire.socket(), wire.send(GET), wire.receive(OK)])
    assert outline(served) == outline(asked) == WHOLE
    assert (served.process.role, asked.process.role) == ("server", "client")
    assert (served.destination.port, asked.source.port) == (80, 80)


def test_each_event_gives_its_messages_at_once() -> None:
    wire, whole = Wire(), Capture()
    assert whole.feed(wire.socket(), wire.receive(GET)) == []
    assert outlines(whole.feed(wire.send(OK))) == [WHOLE]
    assert outlines(whole.feed(wire.receive(GET), wire.send(OK))) == [WHOLE]
    assert whole.table.newest == wire.at


def test_a_batch_names_the_thread_that_moved_the_bytes() -> None:
    wire, table = Wire(), ConnectionTable(stats=Stats())
    events = [wire.socket(), wire.receive(GET, tid=21), wire.send(OK, tid=22)]
    batches = [batch for event in events for batch in table.feed(event)]
    assert [(batch.pid, batch.tid) for batch in batches] == [(10, 21), (10, 22)]


def test_a_connection_is_named_by_its_inode_and_when_it_was_first_seen() -> None:
    wire = Wire(conn=0xABC)
    [exchange] = capture([wire.socket(inode=4242), wire.receive(GET), wire.send(OK)])
    assert (exchange.connection.id, exchange.id) == ("4242-abc", "4242-abc-1")


def test_positions_of_both_directions_may_wrap_in_the_middle_of_an_exchange() -> None:
    wire = Wire(egress=0xFFFF_FFFF - 20, ingress=0xFFFF_FFFF - 10)
    events = [wire.socket(), wire.receive(GET[:20]), wire.receive(GET[20:]), wire.send(OK[:30]), wire.send(OK[30:])]
    assert outlines(capture(events)) == [WHOLE]


def test_chunks_reported_out_of_order_give_the_same_exchange() -> None:
    wire = Wire()
    request = post(b"0123456789")
    seen = wire.socket()
    first, second, third = wire.receive(request[:30]), wire.receive(request[30:60]), wire.receive(request[60:])
    [exchange] = capture([seen, third, first, second, wire.send(OK)])
    assert outline(exchange) == ("/p", 200, 2, 0, (), None)
    assert exchange.request.body == b"0123456789"


def test_an_answer_reported_before_its_request_is_paired_with_it() -> None:
    wire = Wire()
    seen, request, reply = wire.socket(connected=True), wire.send(GET), wire.receive(OK)
    [exchange] = capture([seen, reply, request])
    assert outline(exchange) == WHOLE


def test_bytes_that_were_not_copied_are_lost_and_nothing_else_is() -> None:
    wire, whole = Wire(), Capture()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    whole.feed(wire.socket(), wire.receive(GET), wire.send(head + b"x" * 10, missing=90), wire.receive(GET))
    whole.feed(wire.send(OK))
    assert outlines(whole.exchanges) == [("/a", 200, 100, 90, (), None), WHOLE]
    assert whole.stats.unseen_bytes == 90


# -- holes and time ------------------------------------------------------------------------------------------------


def lossy() -> tuple[Wire, Capture, Chunk]:
    """Begin an exchange, lose the middle 30 bytes of its answer's 100, and return the lost chunk."""
    wire, whole = Wire(), Capture()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    whole.feed(wire.socket(), wire.receive(GET), wire.send(head + b"a" * 20))
    lost = wire.send(b"b" * 30)
    assert whole.feed(wire.send(b"c" * 50)) == []
    return wire, whole, lost


LOSSY = ("/a", 200, 100, 30, (), None)


def test_a_hole_is_declared_by_the_first_event_50_ms_later() -> None:
    wire, whole, _ = lossy()
    other = Wire(conn=128, at=wire.at + WAIT_NS - 1_000)
    assert whole.feed(other.socket()) == []
    assert outlines(whole.feed(other.receive(GET))) == [LOSSY]
    assert whole.stats.unseen_bytes == 30


def test_a_hole_is_declared_by_time_passing_once_events_of_that_time_were_read() -> None:
    """When the first tick comes, the missing chunk may be in the ring buffer still; at the second it was not."""
    wire, whole, _ = lossy()
    now = wire.at + WAIT_NS + 1
    assert whole.tick(now) == []
    assert outlines(whole.tick(now + 1)) == [LOSSY]


def test_a_chunk_that_comes_late_but_in_time_fills_its_hole() -> None:
    wire, whole, lost = lossy()
    assert whole.tick(wire.at + WAIT_NS + 1) == []
    assert outlines(whole.feed(lost)) == [("/a", 200, 100, 0, (), None)]
    assert whole.stats.unseen_bytes == 0


def test_a_chunk_that_comes_too_late_changes_nothing() -> None:
    wire, whole, lost = lossy()
    wire.wait(2 * WAIT_NS)
    assert outlines(whole.feed(wire.receive(GET))) == [LOSSY]
    assert whole.feed(lost._replace(at=wire.at)) == []
    assert outlines(whole.feed(wire.send(OK))) == [WHOLE]


def test_holes_of_two_connections_each_wait_their_own_time() -> None:
    wire, whole, _ = lossy()
    other = Wire(conn=128, at=wire.at + WAIT_NS // 2)
    whole.feed(other.socket(), other.receive(GET))
    whole.feed(other.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"))
    other.send(b"bo")
    whole.feed(other.send(b"dy"))
    later = Wire(conn=192, at=wire.at + WAIT_NS)
    assert outlines(whole.feed(later.socket())) == [LOSSY]
    later.wait(WAIT_NS)
    assert outlines(whole.feed(later.receive(GET))) == [("/a", 200, 4, 2, (), None)]


def test_a_lost_request_costs_one_exchange_and_its_answer_is_not_given_to_another() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.send(OK))
    wire.receive(post(b"lost", path="/lost"))
    whole.feed(wire.send(answer(b"to the lost one")), wire.receive(GET), wire.send(OK))
    whole.feed(wire.receive(GET), wire.send(OK))
    assert outlines(whole.exchanges) == [WHOLE]
    whole.drain(wire.at)
    assert outlines(whole.exchanges[2:]) == [WHOLE, WHOLE]
    orphan = whole.exchanges[1]
    assert orphan.response is not None
    assert (orphan.request.path, orphan.response.body) == (None, b"to the lost one")
    assert (orphan.error, "request.path" in orphan.unknown) == (None, True)


def test_a_lost_answer_costs_one_exchange() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.send(OK), wire.receive(post(b"", path="/lost")))
    wire.send(OK)
    whole.feed(wire.receive(GET), wire.send(OK), wire.receive(GET), wire.send(OK))
    whole.drain(wire.at)
    assert outlines(whole.exchanges) == [WHOLE, ("/lost", None, None, 0, ("response",), None), WHOLE, WHOLE]


def test_what_waits_behind_a_hole_of_the_other_direction_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELD_CHUNKS_LIMIT", 3)
    wire, whole, _ = lossy()
    assert outlines(whole.feed(*(wire.receive(GET) for _ in range(4)))) == [LOSSY]
    assert whole.table._budget.used == 0


# -- two threads that read one socket --------------------------------------------------------------------------------


def both_claim_the_end(wire: Wire, first: bytes, second: bytes) -> tuple[Chunk, Chunk]:
    """Receive two chunks that are both reported after the second was read."""
    one, other = wire.receive(first), wire.receive(second)
    return one._replace(seq=wire.ingress - len(first)), other


@pytest.mark.parametrize("swapped", [False, True])
def test_a_body_read_by_two_threads_has_its_size_but_no_content(swapped: bool) -> None:
    wire, whole = Wire(), Capture()
    request = post(b"-" * 100)
    whole.feed(wire.socket(), wire.receive(request[:-60]))
    chunks = both_claim_the_end(wire, request[-60:-35], request[-35:])
    whole.feed(*(reversed(chunks) if swapped else chunks))
    [exchange] = whole.feed(wire.send(OK))
    assert outline(exchange) == ("/p", 200, 2, 0, ("request.body",), None)
    assert (exchange.request.body, exchange.request.body_size, exchange.request.truncated) == (b"-" * 40, 100, True)
    assert whole.stats.unseen_bytes == 0


@pytest.mark.parametrize("swapped", [False, True])
def test_a_head_read_by_two_threads_is_not_shown_in_a_guessed_order(swapped: bool) -> None:
    wire, whole = Wire(), Capture()
    request = post(b"body of the request")
    whole.feed(wire.socket(), wire.receive(GET), wire.send(OK))
    chunks = both_claim_the_end(wire, request[:-19], request[-19:])
    whole.feed(*(reversed(chunks) if swapped else chunks))
    [orphan] = whole.feed(wire.send(answer(b"both")))
    assert outline(orphan)[:3] == (None, 200, 4)
    assert "request.path" in orphan.unknown
    assert outlines(whole.feed(wire.receive(GET), wire.send(OK))) == [WHOLE]


def test_two_whole_requests_read_by_two_threads_are_not_shown_in_a_guessed_order() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.send(OK))
    whole.feed(*both_claim_the_end(wire, post(b"first", "/1"), post(b"second", "/2")))
    whole.feed(wire.send(answer(b"one")), wire.send(answer(b"two")))
    whole.feed(wire.receive(GET), wire.send(OK))
    assert [exchange.request.path for exchange in whole.exchanges] == ["/a", None, None, "/a"]
    assert outline(whole.exchanges[-1]) == WHOLE


# -- what a connection speaks --------------------------------------------------------------------------------------


def test_a_request_written_in_pieces_is_recognised_when_it_can_be_and_copied_whole_from_then_on() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), *(wire.send(piece) for piece in (b"G", b"ET", b" ", b"/a HTTP/1.1\r\n")))
    assert whole.table.pop_verdicts() == [(64, VERDICT_KNOWN)]
    assert whole.table.pop_verdicts() == []
    whole.feed(wire.send(b"Host: h.test\r\n\r\n"))
    [exchange] = whole.feed(wire.receive(OK))
    assert outline(exchange) == WHOLE
    assert exchange.timestamp == wire.at - 5_000


@pytest.mark.parametrize("first", [GET, CONNECT, OK, b"M-SEARCH * HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_no_verdict_is_needed_for_what_the_kernel_side_recognises_itself(first: bytes) -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(first))
    assert whole.table.pop_verdicts() == []


def test_what_is_too_short_to_say_gives_way_to_what_does_not_continue_it() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(b"GE"), wire.send(GET), wire.receive(OK))
    assert outlines(whole.exchanges) == [WHOLE]


def test_a_request_line_that_does_not_end_is_given_up_at_4_kib() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(b"X" * 20 + b" " + b"y" * 1003))
    assert whole.stats.unknown_connections == 0
    whole.feed(*(wire.send(b"y" * 1024) for _ in range(3)))
    assert whole.stats.unknown_connections == 1


def test_a_connection_of_no_known_protocol_is_counted_until_it_speaks_one() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(b"\0\1binary"), wire.send(b"\0\1more"), wire.receive(b"\0"))
    assert (whole.stats.unknown_connections, whole.exchanges) == (1, [])
    wire.ingress += 100_000  # the kernel side does not tell of it any more
    wire.egress += 3_000_000
    whole.feed(wire.receive(GET), wire.send(OK))
    assert whole.stats.unknown_connections == 0
    assert outlines(whole.exchanges) == [WHOLE]


def test_tls_is_counted_and_left_to_the_kernel_sides_own_limit() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(TLS_HELLO), wire.send(TLS_HELLO), wire.receive(b"\x17\x03\x03\0\1\0"))
    assert (whole.stats.tls_connections, whole.stats.unknown_connections) == (1, 0)
    assert whole.table.pop_verdicts() == []


def test_an_answer_in_the_clear_on_a_tls_connection_is_shown() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(TLS_HELLO))
    [exchange] = whole.feed(wire.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
    assert outline(exchange)[:2] == (None, 400)
    assert "request.path" in exchange.unknown


def http2(talk: Talk, wire: Wire) -> list[Chunk]:
    """Give what was said as chunks of a traced server."""
    return [wire.receive(sent.data) if sent.side == CLIENT else wire.send(sent.data) for sent in talk.take()]


HTTP2_WHOLE = ("/a", 200, 2, 0, (), None)


@pytest.mark.parametrize("server_first", [False, True])
def test_http_2_is_decoded_from_its_preface_or_from_the_settings_of_its_server(server_first: bool) -> None:
    wire, whole, talk = Wire(), Capture(), Talk()
    if server_first:
        talk.sent.reverse()
    talk.ask()
    talk.answer()
    whole.feed(wire.socket(), *http2(talk, wire))
    [exchange] = whole.exchanges
    assert outline(exchange) == HTTP2_WHOLE
    assert (exchange.protocol, exchange.request.scheme, exchange.connection.stream_id) == ("HTTP/2", "http", 1)
    assert exchange.process.role == "server"
    assert exchange.latency_ns == 1_000
    # The kernel side knows the preface, but not the settings by themselves.
    assert whole.table.pop_verdicts() == []


@pytest.mark.parametrize("by_client", [False, True])
def test_http_2_is_found_in_the_middle_of_a_connection(by_client: bool) -> None:
    wire, whole, talk = Wire(), Capture(), Talk()
    talk.ask()
    talk.answer()
    talk.take()
    if by_client:
        talk.c(talk.client.window(1))
    else:
        talk.s(talk.server.window(1))
    talk.ask(3)
    talk.answer(3)
    whole.feed(wire.socket(egress_total=900, ingress_total=900), *http2(talk, wire))
    [exchange] = whole.exchanges
    unknown = ("request.path", "request.authority", "request.headers", "response.headers")
    assert outline(exchange) == (None, 200, 2, 0, unknown, None)
    assert exchange.process.role == "server"
    assert exchange.connection.stream_id == 3
    assert (whole.stats.joined, whole.stats.partly_known) == (1, 1)


def test_http_2_is_found_after_more_unknown_bytes_than_are_looked_at() -> None:
    wire, whole, talk = Wire(), Capture(), Talk()
    talk.ask()
    talk.take()
    whole.feed(wire.socket(egress_total=900, ingress_total=900))
    for _ in range(9):
        whole.feed(wire.send(b"x" * 1000))
    talk.ask(3)
    wire.egress += 50_000  # the kernel side copies no more
    talk.answer(3)
    whole.feed(*http2(talk, wire))
    assert [exchange.response and exchange.response.status_code for exchange in whole.exchanges] == [200]


def test_settings_in_the_middle_of_a_connection_may_be_those_of_a_client() -> None:
    wire, whole, talk = Wire(), Capture(), Talk(greet=False)
    talk.c(talk.client.settings(max_frame_size=20000))
    talk.ask()
    talk.s(talk.server.settings(), talk.server.ack())
    talk.answer()
    whole.feed(wire.socket(egress_total=900, ingress_total=900), *http2(talk, wire))
    assert outlines(whole.exchanges) == [HTTP2_WHOLE]
    assert whole.exchanges[0].process.role == "server"


H2C = b"POST /up HTTP/1.1\r\nHost: h.test\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\nContent-Length: 4\r\n\r\nbody"
H2C_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


@pytest.mark.parametrize("joined", [False, True])
def test_the_request_of_an_upgrade_is_answered_in_http_2(joined: bool) -> None:
    wire, whole, talk = Wire(), Capture(), Talk(greet=False)
    talk.c(H2C)
    talk.s(H2C_ANSWER, talk.server.hello())
    talk.c(talk.client.hello())
    talk.answer(1)
    talk.ask(3)
    talk.answer(3)
    whole.feed(wire.socket())
    if joined:
        whole.feed(wire.receive(GET), wire.send(OK))
    whole.feed(*http2(talk, wire))
    first, second = whole.exchanges[-2:]
    assert outline(first) == ("/up", 200, 2, 0, (), None)
    assert (first.protocol, first.connection.stream_id) == ("HTTP/2", 1)
    assert (first.request.method, first.request.body) == ("POST", b"body")
    assert outline(second) == HTTP2_WHOLE
    assert len(whole.exchanges) == 2 + joined
    assert whole.stats.open == 0


def test_a_loss_right_behind_an_upgrade_is_told() -> None:
    wire, whole, talk = Wire(), Capture(), Talk(greet=False)
    whole.feed(wire.socket(), wire.receive(H2C), wire.send(H2C_ANSWER, missing=100))
    talk.server.hello()
    talk.c(talk.client.hello())
    talk.answer(1)
    whole.feed(*http2(talk, wire))
    [exchange] = whole.exchanges
    assert outline(exchange) == ("/up", 200, 2, 0, (), None)


def test_nonsense_behind_an_upgrade_ends_the_exchange() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(H2C), wire.send(H2C_ANSWER + b"nonsense"))
    assert outlines(whole.exchanges) == [("/up", None, None, 0, (), "decode")]
    assert whole.stats.undecodable == 1


def test_after_an_upgrade_the_connection_is_left_alone() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(UPGRADE), wire.send(SWITCHING + b"\x81\x05hello"), wire.receive(GET))
    assert outlines(whole.exchanges) == [("/ws", 101, 0, 0, (), None)]
    assert whole.table.pop_verdicts() == [(64, VERDICT_IGNORE)]


def test_http_inside_a_tunnel_is_shown() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(CONNECT), wire.send(CONNECTED), wire.receive(GET), wire.send(OK))
    assert outlines(whole.exchanges) == [("h.test:80", 200, 0, 0, (), None), WHOLE]
    assert [exchange.id for exchange in whole.exchanges] == ["777-40-1", "777-40-2"]


def test_tls_inside_a_tunnel_is_left_to_the_kernel_sides_own_limit() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(CONNECT), wire.send(CONNECTED), wire.receive(TLS_HELLO), wire.receive(GET))
    assert outlines(whole.exchanges) == [("h.test:80", 200, 0, 0, (), None)]
    assert whole.table.pop_verdicts() == []
    assert whole.stats.tls_connections == 1


def test_bytes_that_stop_making_sense_fail_what_is_open_and_a_later_request_is_shown() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET))
    [failed] = whole.feed(wire.send(b"\0\0\0\0 not HTTP at all\r\n\r\n"))
    assert outline(failed) == ("/a", None, None, 0, (), "decode")
    assert whole.feed(wire.receive(b"\0\0\0")) == []
    assert outlines(whole.feed(wire.receive(GET), wire.send(OK))) == [WHOLE]
    assert whole.stats.undecodable == 1


def test_a_chunk_that_makes_no_sense_in_its_place_may_begin_something_else() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.send(OK), wire.receive(TLS_HELLO))
    assert outlines(whole.exchanges) == [WHOLE]
    assert (whole.stats.tls_connections, whole.stats.undecodable) == (1, 1)


class Refusing:
    """A decoder that reads no further than its first chunk, or not even that."""

    open_exchanges = 0

    def __init__(self, refused: str) -> None:
        self._refused = refused

    def _answer(self, what: str) -> list[Message]:
        if what == self._refused:
            message = f"refused: {what}"
            raise DecodeError(message)
        return []

    def receive(self, _side: Side, data: bytes, _at: int) -> list[Message]:
        return self._answer("receive" if data == GET else "more")

    def gap(self, _side: Side, _size: int | None, _at: int) -> list[Message]:
        return self._answer("gap")

    def finish(self, _side: Side, _at: int) -> list[Message]:
        return self._answer("finish")

    def close(self, at: int, kind: str, detail: str) -> list[Message]:
        return [Failed(1, at, kind, detail)]


@pytest.mark.parametrize(("refused", "then"), [
    ("receive", lambda _: []),
    ("more", lambda wire: [wire.receive(b"more", missing=1)]),
    ("gap", lambda wire: [wire.receive(b"more", missing=1)]),
    ("finish", lambda wire: [wire.eof()]),
    ("more", lambda wire: [wire.receive(b"more")]),
])  # fmt: skip
def test_whatever_a_decoder_refuses_it_is_closed_and_the_next_chunk_is_looked_at(
    refused: str, then: Callable[[Wire], list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = module._PROTOCOLS[Detection.HTTP1_REQUEST]
    refusing = protocol._replace(decoder=lambda _joined: Refusing(refused))
    monkeypatch.setitem(module._PROTOCOLS, Detection.HTTP1_REQUEST, refusing)
    wire, table = Wire(), ConnectionTable(stats=Stats())
    batches = [batch for event in (wire.socket(), wire.receive(GET), *then(wire)) for batch in table.feed(event)]
    assert [batch.messages for batch in batches] == [[Failed(1, wire.at, "decode", f"refused: {refused}")]]
    monkeypatch.setitem(module._PROTOCOLS, Detection.HTTP1_REQUEST, protocol)
    [batch] = table.feed(wire.receive(GET))
    assert isinstance(batch.messages[0], RequestHead)


def test_what_waits_when_decoding_stops_is_dropped() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET))
    wire.receive(b"lost")
    whole.feed(wire.receive(b"waits"))
    wire.wait(WAIT_NS)
    early = Wire(at=wire.at - WAIT_NS - 3_500, egress=wire.egress)
    [failed] = whole.feed(early.send(b"\0\0\0\0 not HTTP at all\r\n\r\n"))
    assert outline(failed) == ("/a", None, None, 0, (), "decode")
    assert whole.table._budget.used == 0


def test_what_waited_behind_an_upgrade_is_left_alone() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(UPGRADE))
    first, second, frame = wire.send(SWITCHING[:30]), wire.send(SWITCHING[30:]), wire.receive(GET)
    whole.feed(second, frame, first)
    assert outlines(whole.exchanges) == [("/ws", 101, 0, 0, (), None)]
    assert whole.table._budget.used == 0


def test_a_connection_joined_in_the_middle_of_a_body_shows_the_next_exchange() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(egress_total=5000, ingress_total=300), wire.send(b"rest of a body"))
    whole.feed(wire.receive(GET), wire.send(OK))
    assert outlines(whole.exchanges) == [WHOLE]
    assert (whole.stats.joined, whole.stats.connections) == (1, 1)


def test_the_byte_that_tcp_counts_for_a_syn_is_no_byte_carried_before() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(egress_total=1, ingress_total=0), wire.receive(GET))
    assert whole.stats.joined == 0


def test_a_connection_whose_beginning_was_lost_has_no_addresses_and_is_shown_nevertheless() -> None:
    wire, whole = Wire(), Capture()
    [exchange] = whole.feed(wire.receive(GET), wire.send(OK))
    assert outline(exchange) == WHOLE
    assert (exchange.source, exchange.destination) == (type(exchange.source)(), type(exchange.source)())
    assert (exchange.connection.family, exchange.connection.address_source) == (None, "unknown")
    assert (exchange.connection.id, whole.stats.unannounced) == ("0-40-7d0", 1)


def test_addresses_that_are_told_late_hold_from_then_on() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.receive(GET), wire.send(OK), wire.socket(), wire.receive(GET), wire.send(OK))
    first, second = whole.exchanges
    assert (first.source.ip, second.source.ip) == (None, "10.0.0.2")
    assert (first.connection.id, second.connection.id) == ("0-40-7d0", "777-40")
    assert (first.id, second.id, whole.stats.unannounced) == ("0-40-7d0-1", "777-40-2", 0)


# -- ends ----------------------------------------------------------------------------------------------------------


def test_an_answer_that_ends_with_the_connection_ends_at_the_eof_that_the_client_reads() -> None:
    wire, whole = Wire(), Capture()
    assert whole.feed(wire.socket(), wire.send(GET), wire.receive(UNTIL_CLOSE)) == []
    assert outlines(whole.feed(wire.eof())) == [("/a", 200, 10, 0, (), None)]


def test_an_answer_that_ends_with_the_connection_ends_at_the_fin_that_the_server_sends() -> None:
    wire, whole = Wire(), Capture()
    assert whole.feed(wire.socket(), wire.receive(GET), wire.send(UNTIL_CLOSE)) == []
    assert outlines(whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))) == [("/a", 200, 10, 0, (), None)]
    assert whole.feed(wire.state(FIN_WAIT1, FIN_WAIT1, egress_seq=wire.egress + 1)) == []


def test_a_fin_waits_for_the_last_bytes_sent_which_another_thread_reports_later() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET))
    last = wire.send(UNTIL_CLOSE)
    assert whole.feed(wire.state(ESTABLISHED, FIN_WAIT1)) == []
    assert outlines(whole.feed(last)) == [("/a", 200, 10, 0, (), None)]


def test_bytes_sent_before_the_fin_that_were_never_seen_are_lost() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.send(UNTIL_CLOSE))
    wire.send(b"7 bytes")
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    assert outlines(whole.tick(wire.at + WAIT_NS + 1) + whole.tick(wire.at + WAIT_NS + 2)) == [
        ("/a", 200, 17, 7, (), None)
    ]


def test_a_client_that_closes_before_the_answer_has_ended_was_not_given_all_of_it() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(GET), wire.receive(UNTIL_CLOSE), wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = whole.drain(wire.at)
    assert outline(exchange) == ("/a", 200, 10, 0, (), "closed")
    assert exchange.error is not None
    assert exchange.error.detail == "the process closed the connection; the end of the response body was not seen"


def test_an_open_request_ends_with_the_connection_when_no_late_chunk_can_come() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.state(ESTABLISHED, CLOSE, shut=False, error=errno.ECONNRESET))
    closed = wire.at
    other = Wire(conn=128, at=closed + WAIT_NS - 1_000)
    assert whole.feed(other.socket()) == []
    [exchange] = whole.feed(other.receive(GET))
    assert (exchange.response, exchange.error) == (None, Failure("reset", "the peer reset the connection"))


ENDINGS: dict[str, tuple[Callable[[Wire], StateChanged], str, str]] = {
    "reset": (
        lambda wire: wire.state(ESTABLISHED, CLOSE, error=errno.ECONNRESET),
        "reset", "the peer reset the connection",
    ),
    "reset after its FIN": (
        lambda wire: wire.state(CLOSE_WAIT, CLOSE, error=errno.EPIPE),
        "reset", "the peer reset the connection",
    ),
    "timed out": (
        lambda wire: wire.state(ESTABLISHED, CLOSE, error=errno.ETIMEDOUT),
        "closed", "the connection failed: connection timed out",
    ),
    "closed by the process": (
        lambda wire: wire.state(ESTABLISHED, FIN_WAIT1),
        "closed", "the process closed the connection",
    ),
    "closed by the process with bytes unread": (
        lambda wire: wire.state(ESTABLISHED, CLOSE, received_seq=wire.ingress + 12),
        "closed", "the process closed the connection with 12 bytes unread",
    ),
    "closed by the peer first": (
        lambda wire: wire.state(CLOSE_WAIT, LAST_ACK, received_seq=wire.ingress + 1),
        "closed", "the peer closed the connection",
    ),
    "closed by the peer first, its end read": (
        lambda wire: wire.state(CLOSE_WAIT, LAST_ACK, received_seq=wire.ingress + 1, ingress_seq=wire.ingress + 1),
        "closed", "the peer closed the connection",
    ),
    "closed by the peer, with bytes unread": (
        lambda wire: wire.state(CLOSE_WAIT, CLOSE, received_seq=wire.ingress + 13),
        "closed", "the peer closed the connection with 12 bytes unread",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_error_of_an_open_exchange_says_how_its_connection_ended(ending: str) -> None:
    wire, whole = Wire(), Capture()
    event, kind, detail = ENDINGS[ending]
    whole.feed(wire.socket(), wire.receive(GET), event(wire))
    whole.tick(wire.at + 2 * WAIT_NS)
    [exchange] = whole.tick(wire.at + 2 * WAIT_NS)
    assert (exchange.request.path, exchange.response, exchange.error) == ("/a", None, Failure(kind, detail))


def test_bytes_never_seen_before_a_close_are_lost() -> None:
    wire, whole = Wire(), Capture()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    whole.feed(wire.socket(), wire.send(GET), wire.receive(head + b"x" * 40))
    whole.feed(wire.state(CLOSE_WAIT, LAST_ACK, ingress_seq=wire.ingress + 61, received_seq=wire.ingress + 61))
    assert outlines(whole.drain(wire.at)) == [("/a", 200, 100, 60, (), None)]


@pytest.mark.parametrize(("head", "outcome"), [
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
     ("/a", 200, 3, 60, ("response.body_size", "response.trailers"), "reset")),
    (b"HTTP/1.1 200 OK\r\n\r\nabc", ("/a", 200, 63, 60, (), "reset")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", ("/a", 200, 63, 60, (), "reset")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 63\r\n\r\nabc", ("/a", 200, 63, 60, (), None)),
])  # fmt: skip
def test_bytes_never_seen_before_a_reset_end_well_only_what_surely_ended_in_them(
    head: bytes, outcome: tuple[Any, ...]
) -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET), wire.send(head))
    whole.feed(wire.state(ESTABLISHED, CLOSE, error=errno.ECONNRESET, egress_seq=wire.egress + 60))
    assert outlines(whole.drain(wire.at)) == [outcome]


def test_the_fin_that_was_read_with_the_last_data_is_no_lost_byte() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(GET))
    wire.ingress += 1
    assert whole.feed(wire.receive(UNTIL_CLOSE)) == []
    wire.ingress -= 1
    assert outlines(whole.feed(wire.eof())) == [("/a", 200, 10, 0, (), None)]
    assert whole.stats.unseen_bytes == 0


def test_the_fin_that_was_read_with_the_last_data_is_no_lost_byte_when_a_close_follows() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(GET))
    wire.ingress += 1
    whole.feed(wire.receive(OK))
    whole.feed(wire.state(CLOSE_WAIT, LAST_ACK))
    assert outlines(whole.drain(wire.at)) == [WHOLE]
    assert whole.stats.unseen_bytes == 0


def test_a_chunk_that_another_thread_reports_after_the_close_still_counts() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET))
    late = wire.send(OK)
    whole.feed(wire.state(ESTABLISHED, CLOSE))
    assert outlines(whole.feed(late)) == [WHOLE]


def test_a_process_that_has_shut_down_its_side_may_read_on_after_the_kernel_has_closed() -> None:
    """As `nc -N` does: the answer and the FIN are there before the process has read anything."""
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(GET), wire.state(ESTABLISHED, FIN_WAIT1, shut=False))
    unread = len(UNTIL_CLOSE) + 1
    whole.feed(wire.state(FIN_WAIT2, CLOSE, received_seq=wire.ingress + unread))
    wire.wait(4 * WAIT_NS)
    assert whole.feed(wire.receive(UNTIL_CLOSE)) == []
    assert outlines(whole.feed(wire.eof())) == [("/a", 200, 10, 0, (), None)]


def test_shutting_down_after_the_peers_end_does_not_end_what_is_still_read() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.send(GET))
    whole.feed(wire.state(CLOSE_WAIT, LAST_ACK, received_seq=wire.ingress + len(OK) + 1))
    wire.wait(4 * WAIT_NS)
    assert outlines(whole.feed(wire.receive(OK))) == [WHOLE]


def test_a_connection_that_is_over_is_forgotten() -> None:
    wire, table = Wire(), ConnectionTable(stats=Stats())
    for event in (wire.socket(), wire.receive(GET), wire.send(OK), wire.state(ESTABLISHED, FIN_WAIT1)):
        table.feed(event)
    table.tick(wire.at + 2 * WAIT_NS)
    [batch] = table.tick(wire.at + 2 * WAIT_NS)
    assert batch.messages == [Gone(wire.at)]
    assert table.feed(wire.state(FIN_WAIT2, CLOSE)) == []
    assert table.drain(wire.at) == []


def test_an_af_unix_socket_ends_with_its_last_descriptor() -> None:
    wire, whole = Wire(), Capture()
    seen = wire.socket(family=socket.AF_UNIX, local=("/run/x.sock", 0), remote=("", 0), counted=True)
    whole.feed(seen, wire.receive(GET), wire.send(UNTIL_CLOSE), SocketClosed(wire.at, 10, 64))
    whole.tick(wire.at + 2 * WAIT_NS)
    [exchange] = whole.tick(wire.at + 2 * WAIT_NS)
    assert outline(exchange) == ("/a", 200, 10, 0, (), None)
    assert (exchange.source.path, exchange.destination.path) == ("", "/run/x.sock")


def test_an_af_unix_socket_ends_with_the_process_that_used_it_last() -> None:
    wire, whole = Wire(), Capture()
    seen = wire.socket(family=socket.AF_UNIX, local=("/run/x.sock", 0), remote=("", 0), pid=9)
    whole.feed(seen, wire.receive(GET), Exited(wire.at, 9), Exited(wire.at, 10))
    whole.tick(wire.at + 2 * WAIT_NS)
    [exchange] = whole.tick(wire.at + 2 * WAIT_NS)
    assert exchange.error == Failure("closed", "the process exited")


def test_what_is_open_when_the_capture_ends_is_unanswered() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), wire.receive(GET))
    [exchange] = whole.drain(wire.at)
    assert (exchange.response, exchange.error) == (None, Failure("unanswered", "still open when the capture ended"))
    assert (whole.stats.unanswered, whole.stats.open) == (1, 0)


# -- connects ------------------------------------------------------------------------------------------------------


def connecting(wire: Wire) -> list[Event]:
    seen = wire.socket(connected=True, local=("10.0.0.1", 0), egress_seq=0, ingress_seq=0, egress_total=7)
    return [seen, wire.state(CLOSE, SYN_SENT, shut=False)]


def test_the_time_of_a_connect_is_told_and_positions_begin_with_it() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(*connecting(wire))
    assert whole.stats.connecting == 1
    wire.wait(3 * MS)
    whole.feed(wire.state(SYN_SENT, ESTABLISHED, shut=False, local_port=51000))
    [exchange] = whole.feed(wire.send(GET), wire.receive(OK))
    assert outline(exchange) == WHOLE
    assert (exchange.connection.connect_ns, exchange.source.port) == (3 * MS + 1_000, 51000)
    assert (whole.stats.connecting, whole.stats.joined) == (0, 0)


def test_the_first_bytes_after_a_connect_are_missed_if_they_are_lost() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(*connecting(wire), wire.state(SYN_SENT, ESTABLISHED, shut=False))
    request = post(b"x" * 50)
    wire.send(request[:60])
    whole.feed(wire.send(request[60:]), wire.receive(OK))
    wire.wait(2 * WAIT_NS)
    whole.feed(wire.send(GET), wire.receive(OK))
    whole.drain(wire.at)
    assert [exchange.request.path for exchange in whole.exchanges] == [None, "/a"]


FAILURES = {
    errno.ECONNREFUSED: Failure("refused", "connection refused after 3.0 ms"),
    errno.ETIMEDOUT: Failure("unanswered", "connect timed out after 3.0 ms"),
    errno.ECONNRESET: Failure("reset", "connection reset while connecting after 3.0 ms"),
    errno.EHOSTUNREACH: Failure("unanswered", "no route to host after 3.0 ms"),
    errno.ENETUNREACH: Failure("unanswered", "network is unreachable after 3.0 ms"),
    errno.EPROTO: Failure("closed", "protocol error after 3.0 ms"),
    0: Failure("closed", "closed by the process before the connect was answered after 3.0 ms"),
}


@pytest.mark.parametrize("error", FAILURES)
def test_a_connect_that_fails_is_shown(error: int) -> None:
    wire, whole = Wire(), Capture()
    whole.feed(*connecting(wire))
    began = wire.at
    wire.wait(3 * MS - 1_000)
    [exchange] = whole.feed(wire.state(SYN_SENT, CLOSE, error=error))
    assert exchange.error == FAILURES[error]
    assert (exchange.protocol, exchange.timestamp, exchange.connection.connect_ns) == ("TCP", began, 3 * MS)
    assert (exchange.source.port, exchange.destination.ip, exchange.process.role) == (None, "10.0.0.2", "client")
    assert (exchange.request.method, exchange.response, exchange.unknown) == (None, None, ())
    assert (whole.stats.connecting, whole.table.drain(wire.at)) == (0, [])


def test_a_connect_that_nobody_answers_is_shown_at_the_end() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(*connecting(wire))
    [exchange] = whole.drain(wire.at + 12_340 * MS)
    assert exchange.error == Failure("unanswered", "connect not answered for 12.3 s")
    assert (exchange.protocol, exchange.connection.connect_ns) == ("TCP", None)
    assert (whole.stats.unanswered, whole.stats.open) == (1, 0)


def test_a_failed_connect_whose_beginning_was_lost_is_not_shown_with_a_made_up_time() -> None:
    wire, whole = Wire(), Capture()
    seen, _ = connecting(wire)
    assert whole.feed(seen, wire.state(SYN_SENT, CLOSE, error=errno.ECONNREFUSED)) == []


# -- processes -----------------------------------------------------------------------------------------------------

WEB = Container("3f2a9c01d2aa", "web")


def test_an_exec_changes_what_later_exchanges_are_called() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(ProcessSeen(1, 10, "sh", "/bin/sh", WEB), wire.socket(), wire.receive(GET))
    whole.feed(Executed(wire.at, 10, "server", "/srv/server"), wire.send(OK), wire.receive(GET), wire.send(OK))
    assert [(each.process.comm, each.process.exe, each.process.container) for each in whole.exchanges] == [
        ("sh", "/bin/sh", WEB),
        ("server", "/srv/server", WEB),
    ]


def test_what_was_read_of_a_process_because_of_an_exec_counts_more_than_the_exec() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), ProcessSeen(7, 10, "python3", "/usr/bin/python3.11", None))
    whole.feed(Executed(7, 10, "python3", "/usr/bin/python3"), wire.receive(GET), wire.send(OK))
    assert whole.exchanges[0].process.exe == "/usr/bin/python3.11"


def test_the_name_of_a_program_that_was_not_started_by_its_whole_path_is_not_known() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), Executed(7, 10, "server", "./server"), wire.receive(GET), wire.send(OK))
    assert (whole.exchanges[0].process.comm, whole.exchanges[0].process.exe) == ("server", None)


def test_a_forked_child_is_called_like_its_parent() -> None:
    wire, whole = Wire(pid=20), Capture()
    whole.feed(ProcessSeen(1, 10, "nginx", "/usr/sbin/nginx", WEB), Forked(2, 10, 20), Forked(2, 98, 99))
    [exchange] = whole.feed(wire.socket(), wire.receive(GET), wire.send(OK))
    assert (exchange.process.pid, exchange.process.comm, exchange.process.container) == (20, "nginx", WEB)


def test_a_process_that_nothing_is_known_of_is_called_as_when_the_socket_was_seen() -> None:
    wire = Wire()
    [exchange] = capture([wire.socket(comm="curl"), wire.receive(GET), wire.send(OK)])
    assert (exchange.process.comm, exchange.process.exe, exchange.process.container) == ("curl", None, None)


def test_processes_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROCESSES_LIMIT", 2)
    whole = Capture()
    whole.feed(*(ProcessSeen(at, pid, f"p{pid}", None, None) for at, pid in ((1, 10), (2, 11), (3, 10), (4, 12))))
    assert list(whole.table._processes.programs) == [10, 12]


# -- bounds and counts -----------------------------------------------------------------------------------------------


def test_the_connections_silent_longest_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_LIMIT", 2)
    whole = Capture()
    wires = [Wire(conn=number, at=1_000 * number) for number in (64, 128, 192)]
    whole.feed(*(event for wire in wires[:2] for event in (wire.socket(), wire.receive(GET))))
    wires[0].wait(MS)
    whole.feed(wires[0].send(OK), wires[0].receive(GET))
    [evicted] = whole.feed(wires[2].socket())
    assert evicted.connection.id == "777-80"
    assert evicted.error == Failure("closed", "no longer followed: more than 2 connections are open")
    assert (whole.stats.evicted, whole.stats.connections) == (1, 3)


def test_a_connect_given_up_to_make_room_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_LIMIT", 1)
    whole, wire = Capture(), Wire()
    whole.feed(*connecting(wire))
    [exchange] = whole.feed(Wire(conn=128, at=wire.at).socket())
    assert (exchange.protocol, exchange.error and exchange.error.kind) == ("TCP", "closed")
    assert whole.stats.connecting == 0


def test_the_kernels_counters_are_kept() -> None:
    whole = Capture()
    whole.feed(Counters(5, (100, 2, 300, 0, 0, 0, 0, 0, 0)))
    assert (whole.stats.counter("ring_full"), whole.stats.counter("ring_bytes")) == (2, 300)


def test_events_of_connections_that_are_not_known_are_of_no_account() -> None:
    whole = Capture()
    wire = Wire()
    assert whole.feed(wire.state(ESTABLISHED, CLOSE), SocketClosed(5, 10, 64), Exited(6, 10)) == []
    assert whole.stats.connections == 0
