"""Truths about bytes on their way from events to exchanges: however they are cut, reported, overlapped or lost.

Each call of a conversation carries its number in the request's path and in the response's reason phrase: that is how
a wrong pair would show. Bodies are made of their number and place, so that a byte in the wrong place would show.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.probes.events import (
    Chunk,
    Exited,
    Forked,
    ProbesPlaced,
    SessionFreed,
    SessionSeen,
    SocketClosed,
    SocketSeen,
    StateChanged,
)
from tests.unit.protocols.tls_fixtures import RECORDINGS
from tests.unit.test_connection import CLOSE, ESTABLISHED, FIN_WAIT1, LAST_ACK, SYN_SENT, Capture, Wire, capture
from tests.unit.test_connection_tls import Session, handshake, later, placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apitrace.exchange import Exchange
    from apitrace.probes.events import Event


class Call(NamedTuple):
    """A request and its answer."""

    number: int
    request_body: bytes
    response_body: bytes
    chunked: bool
    """The answer's body, in chunks of 7 bytes."""

    @property
    def path(self) -> str:
        return f"/{self.number}"

    @property
    def request(self) -> bytes:
        body = self.request_body
        return f"POST {self.path} HTTP/1.1\r\nHost: h.test\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    @property
    def response_head(self) -> bytes:
        framing = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(self.response_body)}"
        return f"HTTP/1.1 200 {self.number}\r\n{framing}\r\n\r\n".encode()

    @property
    def response(self) -> bytes:
        body = self.response_body
        if self.chunked:
            pieces = [body[place : place + 7] for place in range(0, len(body), 7)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        return self.response_head + body


def content(side: str, number: int, size: int) -> bytes:
    return b"".join(b"%s%d.%d " % (side.encode(), number, place) for place in range(size))[:size]


def make_call(number: int, request_size: int, response_size: int, chunked: bool) -> Call:
    return Call(number, content("q", number, request_size), content("a", number, response_size), chunked)


SIZES = st.sampled_from([0, 1, 5, 30, 100])
CALLS = st.lists(st.tuples(SIZES, SIZES, st.booleans()), min_size=1, max_size=4).map(
    lambda sizes: [make_call(number, *each) for number, each in enumerate(sizes, 1)]
)
STARTS = st.sampled_from([0, 5_000, 0xFFFF_FFFF, 0xFFFF_FFC0])


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut bytes into one to four pieces."""
    places = draw(st.lists(st.integers(1, max(1, len(data) - 1)), max_size=3))
    edges = [0, *sorted({place for place in places if place < len(data)}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@st.composite
def conversations(draw: st.DrawFn, *, client: bool | None = None) -> tuple[Wire, list[Event], list[Chunk], list[Call]]:
    """Return a wire, the events that begin its connection, the chunks of calls made in turns, and the calls."""
    is_client = draw(st.booleans()) if client is None else client
    wire = Wire(egress=draw(STARTS), ingress=draw(STARTS))
    calls = draw(CALLS)
    begin: list[Event] = [wire.socket(connected=is_client)]
    if is_client:
        begin += [wire.state(CLOSE, SYN_SENT, shut=False), wire.state(SYN_SENT, ESTABLISHED, shut=False)]
    ask, reply = (wire.send, wire.receive) if is_client else (wire.receive, wire.send)
    chunks = [
        move(piece)
        for call in calls
        for move, data in ((ask, call.request), (reply, call.response))
        for piece in draw(cut(data))
    ]
    return wire, begin, chunks, calls


def assert_whole(exchanges: Sequence[Exchange], calls: Sequence[Call]) -> None:
    """Fail unless these calls were shown, exactly."""
    assert [outline(exchange) for exchange in exchanges] == [
        (call.path, call.request_body, str(call.number), call.response_body) for call in calls
    ]
    assert all(exchange.complete for exchange in exchanges)


def outline(exchange: Exchange) -> tuple[str | None, bytes, str | None, bytes]:
    response = exchange.response
    return (
        exchange.request.path, exchange.request.body, response and response.reason, response.body if response else b"",
    )  # fmt: skip


def assert_true(exchanges: Sequence[Exchange], calls: Sequence[Call]) -> None:
    """Fail if anything that is shown is not what was said, or is said to be known and is not."""
    by_path = {call.path: call for call in calls}
    shown = [exchange.request.path for exchange in exchanges if exchange.request.path is not None]
    assert len(shown) == len(set(shown))
    for exchange in exchanges:
        request, response, unknown = exchange.request, exchange.response, exchange.unknown
        if exchange.complete:
            assert_whole([exchange], [by_path[str(request.path)]])
        if request.path is None:
            assert "request.path" in unknown
        else:
            call = by_path[request.path]
            assert_body(request.body, request.body_size, call.request_body, exact=is_exact("request", exchange))
            if "request.headers" not in unknown and exchange.error is None:
                assert [header.name for header in request.headers] == ["host", "content-length"]
        if response is not None:
            call = by_path[f"/{response.reason}"]
            assert request.path in {None, call.path}
            assert_body(response.body, response.body_size, call.response_body, exact=is_exact("response", exchange))
    assert len({exchange.id for exchange in exchanges}) == len(exchanges)


def is_exact(side: str, exchange: Exchange) -> bool:
    """Whether the record claims to know the size of this body."""
    lost = {f"{side}.body_size", f"{side}.headers"}
    if side == "response":
        lost.add("request.method")  # whether the answer to an unseen request has a body may stay open
    return exchange.error is None and not lost & set(exchange.unknown)


def assert_body(shown: bytes, size: int, truth: bytes, *, exact: bool) -> None:
    assert truth.startswith(shown)
    assert size == len(truth) if exact else size <= len(truth)


@settings(max_examples=300)
@given(conversations(), st.data())
def test_chunks_in_any_order_give_the_same_exchanges(
    made: tuple[Wire, list[Event], list[Chunk], list[Call]], data: st.DataObject
) -> None:
    """Each is reported at most a few places from where it belongs, within the time that the table waits."""
    _, begin, chunks, calls = made
    delays = data.draw(st.lists(st.integers(0, 5), min_size=len(chunks), max_size=len(chunks)))
    order = sorted(range(len(chunks)), key=lambda index: index + delays[index])
    times = [chunk.at for chunk in chunks]
    reported = [chunks[index]._replace(at=at) for index, at in zip(order, times, strict=True)]
    exchanges = capture([*begin, *reported])
    assert_whole(exchanges, calls)


@settings(max_examples=300)
@given(conversations(), st.data())
def test_of_a_conversation_with_chunks_lost_nothing_wrong_is_shown(
    made: tuple[Wire, list[Event], list[Chunk], list[Call]], data: st.DataObject
) -> None:
    wire, begin, chunks, calls = made
    lost = data.draw(st.sets(st.sampled_from(range(len(chunks))), min_size=1, max_size=2))
    late = data.draw(st.booleans())
    whole = Capture()
    whole.feed(*begin, *(chunk for index, chunk in enumerate(chunks) if index not in lost))
    if late:  # when it is declared, instead of at the end
        wire.wait(1_000_000_000)
        whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    whole.drain(wire.at + 1_000)
    assert_true(whole.exchanges, calls)
    assert whole.stats.open == 0
    assert whole.table._budget.used == 0


@settings(max_examples=200)
@given(conversations(client=False), st.data())
def test_bytes_of_a_body_of_known_length_that_are_lost_cost_these_bytes_only(
    made: tuple[Wire, list[Event], list[Chunk], list[Call]], data: st.DataObject
) -> None:
    """The lost chunk is cut out of a response body that goes on behind it."""
    wire, begin, _, calls = made
    wire.egress, wire.ingress = 5_000, 9_000
    victim = data.draw(st.sampled_from(calls))
    size = data.draw(st.integers(1, 40))
    victim = victim._replace(chunked=False, response_body=content("a", victim.number, size + 10))
    calls[victim.number - 1] = victim
    events: list[Event] = [wire.socket()]
    for call in calls:
        events.append(wire.receive(call.request))
        if call is not victim:
            events.append(wire.send(call.response))
            continue
        before = data.draw(st.integers(0, 10))
        events.append(wire.send(call.response_head + call.response_body[:before]))
        wire.send(call.response_body[before : before + size])
        events += [wire.send(rest) for rest in [call.response_body[before + size :]] if rest]
    events.append(wire.state(ESTABLISHED, FIN_WAIT1))
    exchanges = capture(events)
    assert [exchange.lost_bytes for exchange in exchanges] == [size if call is victim else 0 for call in calls]
    assert_true(exchanges, calls)
    assert_whole(
        [exchange for exchange in exchanges if not exchange.lost_bytes], [call for call in calls if call is not victim]
    )
    assert begin


@settings(max_examples=300)
@given(conversations(client=False), st.data())
def test_two_threads_that_read_one_socket_get_nothing_wrong_shown(
    made: tuple[Wire, list[Event], list[Chunk], list[Call]], data: st.DataObject
) -> None:
    """Some neighbours among the chunks received are both reported when the second was read, in either order."""
    _, begin, chunks, calls = made
    events: list[Chunk] = []
    index = 0
    while index < len(chunks):
        pair = chunks[index : index + 2]
        if len(pair) == 2 and not (pair[0].egress or pair[1].egress) and data.draw(st.booleans()):
            end = pair[1].seq + len(pair[1].data)
            pair[0] = pair[0]._replace(seq=(end - len(pair[0].data)) & 0xFFFF_FFFF)
            events += reversed(pair) if data.draw(st.booleans()) else pair
            index += 2
        else:
            events.append(chunks[index])
            index += 1
    whole = Capture()
    whole.feed(*begin, *events)
    whole.drain(events[-1].at)
    assert_true(whole.exchanges, calls)
    assert len(whole.exchanges) >= len(calls) - 1


# -- TLS -------------------------------------------------------------------------------------------------------------

FINISHED = [name for name, recording in RECORDINGS.items() if recording.finished]


class Tls(NamedTuple):
    """A TLS connection: what its socket and what its session gave, each in order, and what was said."""

    wire: Wire
    session: Session
    outside: list[Event]
    inside: list[Event]
    calls: list[Call]


@st.composite
def tls_connections(draw: st.DrawFn, *, conn: int = 64, at: int = 1_000) -> Tls:
    """Make a connection whose session is tied at its first event, later, or never."""
    is_client = draw(st.booleans())
    wire = Wire(conn=conn, at=at)
    session = Session(wire, number=conn + 1_000, point=draw(st.sampled_from([3, 5, 99])))
    outside: list[Event] = [wire.socket(probed=draw(st.booleans()))]
    outside += handshake(wire, draw(st.sampled_from(FINISHED)), client=is_client)
    calls = draw(CALLS)
    ask, reply = (session.write, session.read) if is_client else (session.read, session.write)
    tied = draw(st.booleans())
    inside: list[Event] = [session.seen(tied=tied)]
    inside += [
        move(piece)
        for call in calls
        for move, data in ((ask, call.request), (reply, call.response))
        for piece in draw(cut(data))
    ]
    if not tied and draw(st.booleans()):
        inside.insert(draw(st.integers(1, len(inside))), session.tie())
    if draw(st.booleans()):
        inside.append(session.freed())
    return Tls(wire, session, outside, inside, calls)


def interleaved(data: st.DataObject, *sequences: Sequence[Event]) -> list[Event]:
    """Merge sequences in any way that keeps the order of each, and give them times in that order."""
    order = data.draw(st.permutations([place for place, each in enumerate(sequences) for _ in each]))
    following = [iter(each) for each in sequences]
    events = [next(following[place]) for place in order]
    return [event._replace(at=2_000 + 1_000 * number) for number, event in enumerate(events)]


def assert_all_over(whole: Capture) -> None:
    assert whole.stats.open == 0
    assert whole.table._budget.used == 0
    assert whole.table._untied == {}
    assert min(whole.stats.unannounced, whole.stats.tls_connections, whole.stats.unknown_connections) >= 0
    assert len({exchange.id for exchange in whole.exchanges}) == len(whole.exchanges)


@settings(max_examples=300)
@given(tls_connections(), st.booleans(), st.data())
def test_however_a_session_and_its_socket_take_turns_the_exchanges_are_the_same(
    made: Tls, closed: bool, data: st.DataObject
) -> None:
    wire, _, outside, inside, calls = made
    whole = Capture()
    whole.feed(placed(), *(events := interleaved(data, outside, inside)))
    wire.at = max(event.at for event in events)
    if closed:
        whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
        later(whole, wire)
    whole.drain(wire.at)
    assert_whole(whole.exchanges, calls)
    for exchange in whole.exchanges:
        assert exchange.tls is not None
        assert (exchange.connection.address_source == "unknown") is (exchange.source.ip is None)
        if exchange.source.ip is not None:
            assert {exchange.source.port, exchange.destination.port} == {80, 40000}
    assert_all_over(whole)


@settings(max_examples=100)
@given(tls_connections(), tls_connections(conn=128), st.data())
def test_of_two_tls_connections_of_one_process_neither_gets_anything_of_the_other(
    one: Tls, other: Tls, data: st.DataObject
) -> None:
    outside = [
        event._replace(remote=("10.0.0.2", 50000)) if isinstance(event, SocketSeen) else event
        for event in other.outside
    ]
    whole = Capture()
    events = interleaved(data, one.outside, one.inside, outside, other.inside)
    whole.feed(placed(), *events)
    one.wire.at = other.wire.at = max(event.at for event in events)
    whole.feed(one.wire.state(ESTABLISHED, FIN_WAIT1), other.wire.state(ESTABLISHED, FIN_WAIT1))
    later(whole, one.wire)
    whole.drain(one.wire.at)
    shown = {40000: list(one.calls), 50000: list(other.calls)}
    for exchange in sorted(whole.exchanges, key=lambda each: each.source.port is None):
        ports = {exchange.source.port, exchange.destination.port} & shown.keys()
        for calls in [shown[port] for port in ports] or shown.values():
            match = [call for call in calls if outline(exchange) == outline_of(call)]
            if match:
                calls.remove(match[0])
                break
        else:
            raise AssertionError(exchange)
    assert len(whole.exchanges) == len(one.calls) + len(other.calls)
    assert_all_over(whole)


def outline_of(call: Call) -> tuple[str | None, bytes, str | None, bytes]:
    return call.path, call.request_body, str(call.number), call.response_body


@settings(max_examples=200)
@given(tls_connections(), st.data())
def test_of_a_tls_connection_with_events_lost_nothing_wrong_is_shown(made: Tls, data: st.DataObject) -> None:
    """Any event may be lost: of the socket, the session, the tie, the end, or bytes of either."""
    wire, _, outside, inside, calls = made
    events = interleaved(data, outside, inside)
    lost = data.draw(st.sets(st.sampled_from(range(len(events))), min_size=1, max_size=3))
    whole = Capture()
    whole.feed(placed(), *(event for number, event in enumerate(events) if number not in lost))
    wire.at = max(event.at for event in events)
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    later(whole, wire)
    whole.drain(wire.at)
    assert_true([exchange for exchange in whole.exchanges if exchange.protocol != "TLS"], calls)
    assert all(exchange.tls is not None for exchange in whole.exchanges)
    assert_all_over(whole)


# -- nonsense --------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    b"", b"G", b"GET /x HTTP/1.1\r\n\r\n", b"GET /x HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"hello", b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0", b"\x16\x03\x01\x00\x20\x01" + bytes(31), b"\r\n",
    b"CONNECT h:1 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n123",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
])  # fmt: skip
NONSENSE = st.lists(
    st.one_of(
        st.builds(
            Chunk, st.integers(0, 10**9), st.just(10), st.just(11), st.sampled_from([1, 2]), st.booleans(),
            st.integers(0, 60) | st.just(0xFFFF_FFF0), PIECES, st.sampled_from([0, 0, 0, 3]), st.booleans(),
        ),
        st.builds(
            StateChanged, st.integers(0, 10**9), st.just(10), st.sampled_from([1, 2]), st.integers(1, 12),
            st.sampled_from([SYN_SENT, FIN_WAIT1, LAST_ACK, CLOSE, ESTABLISHED]), st.sampled_from([0, 104, 110, 111]),
            st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.just(0), st.just(80), st.booleans(),
        ),
        st.builds(SocketClosed, st.integers(0, 10**9), st.just(10), st.sampled_from([1, 2])),
        st.builds(lambda at, conn: Wire(conn=conn, at=at, egress=0, ingress=0).socket(), st.integers(0, 10**9),
                  st.sampled_from([1, 2])),
        st.builds(
            Chunk, st.integers(0, 10**9), st.sampled_from([10, 20]), st.just(11), st.sampled_from([1, 3, 4]),
            st.booleans(), st.integers(0, 60), PIECES, st.sampled_from([0, 0, 3]), st.just(False), st.just(True),
        ),
        st.builds(
            SessionSeen, st.integers(0, 10**9), st.sampled_from([10, 20]), st.just(11), st.sampled_from([1, 3, 4]),
            st.just(0x7F00), st.sampled_from([0, 0, 1, 2, 3]), st.integers(0, 60), st.integers(0, 60),
            st.sampled_from([3, 5, 99]), st.booleans(), st.booleans(), st.sampled_from([None, "h2"]), st.just("comm"),
        ),
        st.builds(SessionFreed, st.integers(0, 10**9), st.just(10), st.sampled_from([1, 3, 4])),
        st.builds(
            ProbesPlaced, st.integers(0, 10**9), st.sampled_from([10, 20]),
            st.sampled_from([(), ((3, "OpenSSL 3.0.15"), (5, "crypto/tls go1.19.8"))]), st.just(()), st.booleans(),
        ),
        st.builds(Exited, st.integers(0, 10**9), st.sampled_from([10, 20])),
        st.builds(Forked, st.integers(0, 10**9), st.just(10), st.just(20)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=500)
@given(NONSENSE)
def test_no_events_however_senseless_raise_or_leave_anything_open(events: list[Event]) -> None:
    whole = Capture()
    for event in events:
        whole.feed(event)
        whole.tick(event.at)
    whole.drain(10**9)
    stats = whole.stats
    assert (stats.open, stats.connecting, stats.captured) == (0, 0, len(whole.exchanges))
    assert min(stats.unknown_connections, stats.tls_connections, stats.unannounced) >= 0
    assert whole.table._budget.used == 0
    assert whole.table._untied == {}
    assert whole.assembler._kept == 0
    assert whole.table.drain(10**9) == []
