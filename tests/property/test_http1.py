"""Truths about the HTTP/1 decoder that hold for every conversation, however it is cut, ordered, damaged or lost.

h11 writes the conversations, so that what the decoder reads does not come from the same head. The request's path and
the response's reason phrase carry the exchange's number: that is how a wrong pair would show.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    DecodeError,
    Message,
    RequestHead,
    ResponseHead,
    Side,
)
from apitrace.protocols.http1 import HEAD_LIMIT, HELD_LIMIT, Http1
from tests.property.anything import SIDES, Action, actions_with, survived
from tests.unit.protocols.http1_tools import Call, Half, calls

Pairs = tuple[tuple[str, str], ...]


class Body(NamedTuple):
    """A body to send: in pieces, of announced length or chunked."""

    pieces: tuple[bytes, ...]
    chunked: bool
    trailers: Pairs

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces)


class Truth(NamedTuple):
    """One exchange: what is asked and what is answered, and the bytes of both."""

    method: str
    path: str
    request_headers: Pairs
    request_body: Body
    status: int
    reason: str
    response_headers: Pairs
    response_body: Body
    request: bytes
    response: bytes


names = st.sampled_from(["X-A", "x-b", "Accept", "User-Agent", "Cookie", "ETag"])
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
headers = st.lists(st.tuples(names, values), max_size=4).map(tuple)
trailers = st.lists(st.tuples(st.sampled_from(["X-Sum", "x-t"]), values), max_size=2).map(tuple)

MISLEADING = (
    b"GET /no HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200 no\r\nContent-Length: 0\r\n\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
)


def bodies(pieces: st.SearchStrategy[bytes]) -> st.SearchStrategy[Body]:
    return st.builds(
        lambda pieces, chunked, trailers: Body(tuple(pieces), chunked, trailers if chunked else ()),
        st.lists(pieces, max_size=4),
        st.booleans(),
        trailers,
    )


plain = st.binary(min_size=1, max_size=60).map(lambda data: data.replace(b"H", b"h").replace(b"T", b"t"))
misleading = st.sampled_from(MISLEADING)


def conversations(pieces: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[Truth]]:
    exchange = st.tuples(
        st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH"]),
        headers,
        bodies(pieces),
        st.sampled_from([200, 201, 204, 304, 404, 500]),
        headers,
        bodies(pieces),
        st.lists(st.sampled_from([100, 102, 103]), max_size=2),
    )
    return st.lists(exchange, min_size=1, max_size=5).map(
        lambda drawn: [_truth(number, *each) for number, each in enumerate(drawn, 1)]
    )


def _truth(
    number: int, method: str, asked: Pairs, sent: Body, status: int, said: Pairs, got: Body, interim: list[int]
) -> Truth:
    if method in {"GET", "HEAD", "DELETE"}:
        sent = Body((), chunked=False, trailers=())
    if method == "HEAD" or status in {204, 304}:
        got = Body((), chunked=False, trailers=())
    framed = bool(sent.pieces or sent.chunked)
    request_headers = (("Host", "example.com"), *asked, *(_framing(sent) if framed else ()))
    response_headers = (*said, *_framing(got))
    client, server = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER)
    request = client.send(h11.Request(method=method, target=f"/{number}", headers=list(request_headers)))
    request += _send(client, sent)
    server.receive_data(request)
    while not isinstance(server.next_event(), h11.EndOfMessage):
        pass
    response = b"".join(
        server.send(h11.InformationalResponse(status_code=code, headers=[("x-i", "1")], reason=b"interim"))
        for code in interim
    )
    response += server.send(
        h11.Response(status_code=status, headers=list(response_headers), reason=f"R{number}".encode())
    )
    response += _send(server, got)
    return Truth(
        method, f"/{number}", _lower(request_headers), sent, status, f"R{number}", _lower(response_headers), got,
        request, response,
    )  # fmt: skip


def _framing(body: Body) -> Pairs:
    return (("Transfer-Encoding", "chunked"),) if body.chunked else (("Content-Length", str(len(body.whole))),)


def _lower(pairs: Pairs) -> Pairs:
    return tuple((name.lower(), value) for name, value in pairs)


def _send(connection: h11.Connection, body: Body) -> bytes:
    data = b"".join(connection.send(h11.Data(data=piece)) or b"" for piece in body.pieces)
    return data + (connection.send(h11.EndOfMessage(headers=list(body.trailers))) or b"")


def expected(truth: Truth) -> Call:
    return Call(
        Half(
            (truth.method, truth.path, "HTTP/1.1", "example.com", None), truth.request_headers,
            truth.request_body.whole, trailers=_lower(truth.request_body.trailers), ended=True,
        ),
        Half(
            (truth.status, truth.reason, "HTTP/1.1"), truth.response_headers,
            truth.response_body.whole, trailers=_lower(truth.response_body.trailers), ended=True,
        ),
    )  # fmt: skip


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces."""
    places = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


# Nothing is lost.


@settings(deadline=None)
@given(st.data(), conversations(plain | misleading))
def test_every_split_and_every_order_of_the_two_directions_gives_the_same_calls(
    data: st.DataObject, truths: list[Truth]
) -> None:
    asked = data.draw(cuts(b"".join(truth.request for truth in truths)))
    answered = data.draw(cuts(b"".join(truth.response for truth in truths)))
    order = data.draw(st.permutations([CLIENT] * len(asked) + [SERVER] * len(answered)))
    chunks = {CLIENT: iter(asked), SERVER: iter(answered)}
    decoder = Http1()
    messages = [m for at, side in enumerate(order) for m in decoder.receive(side, next(chunks[side]), at)]
    assert list(calls(messages).values()) == [expected(truth) for truth in truths]
    assert decoder.open_exchanges == 0
    assert decoder.close(len(order), "closed", "") == []


# Something is lost.


class Piece(NamedTuple):
    """Bytes at a place of a direction's stream."""

    side: Side
    start: int
    data: bytes


@st.composite
def schedules(draw: st.DrawFn, truths: list[Truth]) -> list[Piece]:
    """The chunks of a conversation in an order in which they can happen; a message begins with a chunk of its own.

    Either the client takes turns, and an answer may begin once the head of its request was sent; or it sends all its
    requests in its first chunk.
    """
    position = {CLIENT: 0, SERVER: 0}

    def place(side: Side, chunks: list[bytes]) -> Iterator[Piece]:
        for chunk in chunks:
            yield Piece(side, position[side], chunk)
            position[side] += len(chunk)

    schedule: list[Piece] = []
    if draw(st.booleans()):
        schedule += place(CLIENT, [b"".join(truth.request for truth in truths)])
        for truth in truths:
            schedule += place(SERVER, draw(cuts(truth.response)))
        return schedule
    for truth in truths:
        head_end = position[CLIENT] + truth.request.index(b"\r\n\r\n") + 4
        pieces = list(place(CLIENT, draw(cuts(truth.request))))
        head = [piece for piece in pieces if piece.start < head_end]
        body, answer = pieces[len(head) :], list(place(SERVER, draw(cuts(truth.response))))
        order = draw(st.permutations([CLIENT] * len(body) + [SERVER] * len(answer)))
        later = {CLIENT: iter(body), SERVER: iter(answer)}
        schedule += [*head, *(next(later[side]) for side in order)]
    return schedule


class Gap(NamedTuple):
    """Bytes of a direction that are lost."""

    side: Side
    start: int
    end: int
    known: bool
    """Its size is known."""


def deliver(schedule: list[Piece], gaps: list[Gap], *, late: bool) -> list[Message]:
    """Feed what is left. A gap is told of in its place or, `late`, with the next bytes of its direction."""
    decoder = Http1()
    messages: list[Message] = []
    seen = {CLIENT: 0, SERVER: 0}
    unsure = {CLIENT: False, SERVER: False}

    def tell(side: Side, upto: int, at: int) -> None:
        if upto > seen[side]:
            size = None if unsure[side] else upto - seen[side]
            messages.extend(decoder.gap(side, size, at))
            seen[side] = upto
            unsure[side] = False

    for at, piece in enumerate(schedule):
        lost = [False] * len(piece.data)
        for gap in gaps:
            if gap.side == piece.side:
                for i in range(max(gap.start, piece.start), min(gap.end, piece.start + len(piece.data))):
                    lost[i - piece.start] = True
                    unsure[piece.side] |= not gap.known
        i = 0
        while i < len(lost):
            j = i
            while j < len(lost) and lost[j] == lost[i]:
                j += 1
            if not lost[i]:
                tell(piece.side, piece.start + i, at)
                messages.extend(decoder.receive(piece.side, piece.data[i:j], at))
                seen[piece.side] = piece.start + j
            elif not late:
                tell(piece.side, piece.start + j, at)
            i = j
    for side in (CLIENT, SERVER):  # the last bytes of a direction are known to be missing from TCP's final state
        end = max((piece.start + len(piece.data) for piece in schedule if piece.side == side), default=0)
        tell(side, end, len(schedule))
        messages.extend(decoder.finish(side, len(schedule)))
    messages.extend(decoder.close(len(schedule), "closed", ""))
    assert decoder.open_exchanges == 0
    return messages


def chunk_gap(piece: Piece, *, known: bool) -> Gap:
    return Gap(piece.side, piece.start, piece.start + len(piece.data), known)


@st.composite
def losses(draw: st.DrawFn, truths: list[Truth], schedule: list[Piece]) -> list[Gap]:
    """Whole chunks, as a full ring buffer drops them, or any bytes. A client that pipelines is first seen to do so."""
    if draw(st.booleans()):
        lost = draw(st.sets(st.integers(0, len(schedule) - 1), min_size=1, max_size=6))
        return [chunk_gap(schedule[i], known=draw(st.booleans())) for i in sorted(lost)]
    total = {CLIENT: sum(len(t.request) for t in truths), SERVER: sum(len(t.response) for t in truths)}
    pipelined = len(truths) > 1 and len(schedule[0].data) == total[CLIENT]
    first = {CLIENT: sum(len(truth.request) for truth in truths[:2]) if pipelined else 0, SERVER: 0}
    gaps = []
    for _ in range(draw(st.integers(1, 3))):
        side = draw(st.sampled_from([side for side in (CLIENT, SERVER) if first[side] < total[side]]))
        start = draw(st.integers(first[side], total[side] - 1))
        gaps.append(Gap(side, start, draw(st.integers(start + 1, total[side])), draw(st.booleans())))
    return gaps


@settings(deadline=None, max_examples=300)
@given(st.data(), conversations(plain), st.booleans())
def test_whatever_is_lost_no_value_is_wrong_and_no_pair_is_wrong(
    data: st.DataObject, truths: list[Truth], late: bool
) -> None:
    schedule = data.draw(schedules(truths))
    check(deliver(schedule, data.draw(losses(truths, schedule)), late=late), truths)


def check(messages: list[Message], truths: list[Truth]) -> None:
    for call in calls(messages).values():
        check_against_truth(call, truths)
    check_bodies(messages, truths)


def check_against_truth(call: Call, truths: list[Truth]) -> None:
    by_path = {truth.path: truth for truth in truths}
    by_reason = {truth.reason: truth for truth in truths}
    asked = answered = None
    if call.request.start[0] is not None:
        asked = by_path[str(call.request.start[1])]
        assert call.request.start[0] == asked.method
        assert set(call.request.headers) <= set(asked.request_headers)
        assert set(call.request.trailers) <= set(_lower(asked.request_body.trailers))
    else:
        assert "request.method" in call.request.unknown
    if call.response.start:
        answered = by_reason[str(call.response.start[1])]
        assert call.response.start[0] == answered.status
        assert set(call.response.headers) <= set(answered.response_headers)
        assert set(call.response.trailers) <= set(_lower(answered.response_body.trailers))
    if asked is not None and answered is not None:
        assert asked is answered
    if call.request.unknown == call.response.unknown == () and not call.request.lost and not call.response.lost:
        assert call.failed is not None or call == expected(asked)  # says of itself that it is whole


def check_bodies(messages: list[Message], truths: list[Truth]) -> None:
    """Each piece of a body is where the body has it."""
    whole: dict[tuple[int, Side], bytes] = {}
    place: dict[tuple[int, Side], int] = {}
    for message in messages:
        if isinstance(message, RequestHead) and message.path is not None:
            whole[message.stream, CLIENT] = truths[int(message.path[1:]) - 1].request_body.whole
        elif isinstance(message, ResponseHead):
            assert message.reason is not None
            whole[message.stream, SERVER] = truths[int(message.reason[1:]) - 1].response_body.whole
        elif isinstance(message, Data):
            key = message.stream, message.side
            start = place.get(key, 0)
            end = start + len(message.data) + message.lost
            assert end <= len(whole[key])
            assert message.lost or whole[key][start:end] == message.data
            place[key] = end


@settings(deadline=None)
@given(st.data(), conversations(plain))
def test_a_loss_inside_a_body_of_known_length_costs_nothing_else(data: st.DataObject, truths: list[Truth]) -> None:
    gaps, start = [], {CLIENT: 0, SERVER: 0}
    for truth in truths:
        for side, message, body in (
            (CLIENT, truth.request, truth.request_body),
            (SERVER, truth.response, truth.response_body),
        ):
            start[side] += len(message)
            size = len(body.whole)
            if size and not body.chunked:
                first = data.draw(st.integers(0, size - 1))
                end = data.draw(st.integers(first, size))
                gaps.append(Gap(side, start[side] - size + first, start[side] - size + end, known=True))
    messages = deliver(data.draw(schedules(truths)), gaps, late=data.draw(st.booleans()))
    found = calls(messages)
    assert len(found) == len(truths)
    for call, truth in zip(found.values(), truths, strict=True):
        for half, want in zip(call[:2], expected(truth)[:2], strict=True):
            assert half._replace(body=b"", lost=0) == want._replace(body=b"")
            assert len(half.body) + half.lost == len(want.body)
    check_bodies(messages, truths)


@settings(deadline=None)
@given(st.data(), conversations(plain))
def test_wherever_a_connection_is_joined_no_value_is_wrong_and_no_pair_is_wrong(
    data: st.DataObject, truths: list[Truth]
) -> None:
    schedule = data.draw(schedules(truths))
    joined_at = data.draw(st.integers(0, len(schedule)))
    decoder = Http1(joined=True)
    messages = [m for at, piece in enumerate(schedule[joined_at:]) for m in decoder.receive(piece.side, piece.data, at)]
    check([*messages, *decoder.close(len(schedule), "closed", "")], truths)


NOTHING = Body((), chunked=False, trailers=())
SOME = Body((b"some", b"more"), chunked=False, trailers=())
CHUNKS = Body((b"some", b"more"), chunked=True, trailers=(("x-t", "1"),))


def turns(truths: list[Truth]) -> list[Piece]:
    """Each message in two chunks, its head and what follows, in turns."""
    schedule = []
    position = {CLIENT: 0, SERVER: 0}
    for truth in truths:
        for side, message in ((CLIENT, truth.request), (SERVER, truth.response)):
            end = message.index(b"\r\n\r\n") + 4
            for chunk in filter(None, (message[:end], message[end:])):
                schedule.append(Piece(side, position[side], chunk))
                position[side] += len(chunk)
    return schedule


LATE_KNOWN = list(itertools.product([False, True], [False, True]))


@pytest.mark.parametrize(("late", "known"), LATE_KNOWN)
def test_whichever_chunks_are_lost_of_a_client_that_takes_turns_no_pair_is_wrong(late: bool, known: bool) -> None:
    truths = [
        _truth(1, "GET", (), NOTHING, 200, (), SOME, []),
        _truth(2, "POST", (), SOME, 200, (), CHUNKS, [100]),
        _truth(3, "GET", (), NOTHING, 204, (), NOTHING, []),
        _truth(4, "PUT", (), CHUNKS, 200, (), SOME, []),
    ]
    schedule = turns(truths)
    for lost in itertools.product([False, True], repeat=len(schedule)):
        gaps = [chunk_gap(piece, known=known) for piece in itertools.compress(schedule, lost)]
        check(deliver(schedule, gaps, late=late), truths)


@pytest.mark.parametrize(("late", "known"), LATE_KNOWN)
@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_whichever_messages_of_a_side_are_lost_of_a_client_that_was_seen_to_pipeline_no_pair_is_wrong(
    side: Side, late: bool, known: bool
) -> None:
    truths = [_truth(number, "GET", (), NOTHING, 200, (), SOME, []) for number in range(1, 8)]
    places = {
        CLIENT: list(itertools.accumulate((len(truth.request) for truth in truths), initial=0)),
        SERVER: list(itertools.accumulate((len(truth.response) for truth in truths), initial=0)),
    }
    schedule = [Piece(CLIENT, 0, b"".join(truth.request for truth in truths))]
    schedule += [Piece(SERVER, place, truth.response) for place, truth in zip(places[SERVER], truths, strict=False)]
    for lost in itertools.product([False, True], repeat=len(truths) - 2):
        ranges = itertools.compress(itertools.pairwise(places[side]), [False, False, *lost])
        check(deliver(schedule, [Gap(side, start, end, known) for start, end in ranges], late=late), truths)


@pytest.mark.parametrize(("late", "known"), LATE_KNOWN)
@pytest.mark.parametrize("body", [NOTHING, SOME, CHUNKS], ids=["nothing", "some", "chunks"])
def test_one_lost_chunk_costs_one_call_of_a_client_that_takes_turns(body: Body, late: bool, known: bool) -> None:
    truths = [_truth(number, "POST", (), body, 200, (), body, []) for number in range(1, 6)]
    schedule = turns(truths)
    for lost in schedule:
        found = calls(deliver(schedule, [chunk_gap(lost, known=known)], late=late))
        whole = [call.request.start[1] for call in found.values() if call in map(expected, truths)]
        assert len(whole) == len(truths) - 1


# Anything at all.

snippets = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.0\r\n", b"HEAD * HTTP/1.1\r\n", b"CONNECT h:1 HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404\r\n", b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 100 C\r\n", b"HTTP/1.1 204 \r\n",
        b"Content-Length: 5\r\n", b"Content-Length: x\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: h2c, x\r\n",
        b"Expect: 100-continue\r\n", b"Host: h\r\n", b": \r\n", b" fold\r\n", b"\n", b"\r", b"\r\n", b"\r\n\r\n",
        b"5\r\nhello\r\n", b"0\r\n", b"0\r\n\r\n", b"ffffffffff\r\n", b"hello", b"\x16\x03\x01", b"\0", b"",
    ]
)  # fmt: skip
chunk = st.lists(snippets | st.binary(max_size=6), max_size=6).map(b"".join)
steps = actions_with(chunk)


@settings(deadline=None, max_examples=500)
@given(steps, st.booleans())
def test_nothing_makes_the_decoder_fail_or_contradict_itself(
    steps: list[Action], joined: bool
) -> None:
    calls(survived(Http1(joined=joined), steps, []))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SIDES, chunk, st.integers(1, 3000)), max_size=20))
def test_what_is_kept_stays_within_the_limits(feeds: list[tuple[Side, bytes, int]]) -> None:
    decoder = Http1()
    try:
        for at, (of, data, times) in enumerate(feeds):
            decoder.receive(of, data * times, at)
            assert len(decoder._requests.buffer) <= HEAD_LIMIT
            assert len(decoder._responses.buffer) <= HEAD_LIMIT
            assert sum(len(held.data) for held in decoder._held) <= HELD_LIMIT
    except DecodeError:
        pass
