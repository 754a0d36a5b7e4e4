"""Truths about the HTTP/2 decoder that hold for every conversation, however it is cut, ordered, damaged or lost.

hyperframe and hpack write the conversations. The stream's number is in the path, in a header of each block and in the
bodies: that is how a value of another stream would show.
"""

from __future__ import annotations

from typing import NamedTuple

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    Lost,
    Message,
    Side,
)
from apitrace.protocols.hpack import Hpack, well_formed
from apitrace.protocols.http2 import Http2
from tests.property.anything import Action, actions_with, survived
from tests.unit.protocols.http1_tools import Call, Half, Sent
from tests.unit.protocols.http2_tools import Pairs, Peer, calls


class Message_(NamedTuple):  # noqa: N801 - Message is the decoder's
    """One message to send."""

    head: Pairs
    headers: Pairs
    body: tuple[bytes, ...]
    trailers: Pairs
    parts: int
    pad: int | None


class Truth(NamedTuple):
    """One exchange: what is asked and what is answered."""

    stream: int
    request: Message_
    interim: tuple[int, ...]
    response: Message_

    def expected(self) -> Call:
        asked, answered = dict(self.request.head), dict(self.response.head)
        return Call(
            Half(
                (asked[":method"], asked[":path"], "HTTP/2", asked[":authority"], asked[":scheme"]),
                self.request.headers, b"".join(self.request.body), trailers=self.request.trailers, ended=True,
            ),
            Half(
                (int(answered[":status"]), None, "HTTP/2"), self.response.headers, b"".join(self.response.body),
                trailers=self.response.trailers, ended=True,
            ),
        )  # fmt: skip


names = st.sampled_from(["x-a", "accept", "user-agent", "cookie", "date", "x-long-name-that-is-new"])
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12) | st.sampled_from(["same", "é€"])
headers = st.lists(st.tuples(names, values), max_size=4).map(tuple)
plain = st.text("abcdefgh", min_size=1, max_size=60).map(str.encode)
frames = st.sampled_from(
    [
        Peer(CLIENT).headers(77, ((":method", "GET"), (":scheme", "http"), (":path", "/no"), (":authority", "no"))),
        Peer(SERVER).headers(77, ((":status", "500"),), end=True),
        Peer(SERVER).data(77, b"no", end=True),
        Peer(SERVER).window() * 4,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
)


@st.composite
def messages(draw: st.DrawFn, head: Pairs, stream: int, bodies: st.SearchStrategy[bytes]) -> Message_:
    number = (("number", str(stream)),)
    return Message_(
        head, (*number, *draw(headers)), tuple(draw(st.lists(bodies, max_size=3))),
        draw(st.sampled_from([(), (("sum", str(stream)),), (("sum", str(stream)), ("sum", "same"))])),
        draw(st.sampled_from([1, 1, 2, 5])), draw(st.sampled_from([None, None, 0, 3, 40])),
    )  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> list[Truth]:
    truths = []
    for number in range(draw(st.integers(1, 6))):
        stream = 2 * number + 1
        method, status = draw(st.sampled_from(["GET", "POST", "PUT"])), draw(st.sampled_from([200, 204, 201, 418]))
        head = ((":method", method), (":scheme", "http"), (":path", f"/{stream}"), (":authority", "h.test"))
        if draw(st.booleans()):
            head = (head[0], head[2], head[1], head[3])
        truths.append(
            Truth(
                stream, draw(messages(head, stream, bodies)),
                tuple(draw(st.lists(st.sampled_from([100, 103]), max_size=2))),
                draw(messages(((":status", str(status)),), stream, bodies)),
            )
        )  # fmt: skip
    return truths


class Step(NamedTuple):
    """Something that one side sends of one stream: a header block, or a piece of a body."""

    stream: int
    pairs: Pairs = ()
    data: bytes = b""
    end: bool = False
    parts: int = 1
    pad: int | None = None


def steps(truth: Truth, side: Side) -> list[Step]:
    message = truth.request if side == CLIENT else truth.response
    interim = truth.interim if side == SERVER else ()
    more = [Step(truth.stream, data=piece, pad=message.pad) for piece in message.body]
    if message.trailers:
        more.append(Step(truth.stream, message.trailers, parts=message.parts, pad=message.pad))
    head = Step(truth.stream, (*message.head, *message.headers), parts=message.parts, pad=message.pad)
    *before, last = [head, *more]
    return [
        *[Step(truth.stream, ((":status", str(code)), ("interim", str(truth.stream)))) for code in interim],
        *before, last._replace(end=True),
    ]  # fmt: skip


@st.composite
def schedules(draw: st.DrawFn, truths: list[Truth]) -> list[Sent]:
    """Writes of both sides, in an order in which they can happen. Each begins with a frame."""
    peers = (Peer(CLIENT), Peer(SERVER))
    unasked = list(truths)
    going: list[tuple[Side, list[Step]]] = []
    sent = [Sent(CLIENT, peers[CLIENT].hello()), Sent(SERVER, peers[SERVER].hello() + peers[SERVER].ack())]
    if draw(st.booleans()):
        sent.reverse()
    while unasked or going:
        if unasked and (not going or draw(st.booleans())):
            truth = unasked.pop(0)
            going += [(CLIENT, steps(truth, CLIENT)), (SERVER, steps(truth, SERVER))]
            side, todo = going[-2]
        else:
            side, todo = draw(st.sampled_from(going))
        step, peer = todo.pop(0), peers[side]
        if step.pairs:
            data = peer.headers(step.stream, step.pairs, end=step.end, parts=step.parts, pad=step.pad)
        else:
            data = peer.data(step.stream, step.data, end=step.end, pad=step.pad)
        if draw(st.integers(0, 7)) == 0:
            data += draw(st.sampled_from([peer.ping(), peer.window(step.stream), peer.window()]))
        if sent[-1].side == side and draw(st.booleans()):
            sent[-1] = Sent(side, sent[-1].data + data)
        else:
            sent.append(Sent(side, data))
        going = [entry for entry in going if entry[1]]
    return sent


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces."""
    places = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


# Nothing is lost.


@settings(deadline=None, max_examples=200)
@given(st.data(), conversations(plain | frames))
def test_every_split_and_every_order_of_the_two_directions_gives_the_same_calls(
    data: st.DataObject, truths: list[Truth]
) -> None:
    schedule = data.draw(schedules(truths))
    pieces = [data.draw(cuts(b"".join(sent.data for sent in schedule if sent.side == side))) for side in (0, 1)]
    order = data.draw(st.permutations([CLIENT] * len(pieces[CLIENT]) + [SERVER] * len(pieces[SERVER])))
    chunks = [iter(each) for each in pieces]
    decoder = Http2()
    found = calls(m for at, side in enumerate(order) for m in decoder.receive(side, next(chunks[side]), at))
    assert found == {truth.stream: truth.expected() for truth in truths}
    assert decoder.open_exchanges == 0
    assert decoder.close(len(order), "closed", "") == []


# Something is lost.


class Gap(NamedTuple):
    """Bytes of a direction that are lost."""

    side: Side
    start: int
    end: int
    known: bool
    """Its size is known."""


def deliver(decoder: Http2, schedule: list[Sent], gaps: list[Gap]) -> list[Message]:
    """Feed what is left."""
    out: list[Message] = []
    position = {CLIENT: 0, SERVER: 0}
    for at, sent in enumerate(schedule):
        start = position[sent.side]
        position[sent.side] = start + len(sent.data)
        lost = [None] * len(sent.data)
        for gap in gaps:
            if gap.side == sent.side:
                for i in range(max(gap.start, start), min(gap.end, start + len(sent.data))):
                    lost[i - start] = gap  # type: ignore[call-overload]
        i = 0
        while i < len(lost):
            j = i
            while j < len(lost) and (lost[j] is None) == (lost[i] is None):
                j += 1
            if lost[i] is None:
                out += decoder.receive(sent.side, sent.data[i:j], at)
            else:
                known = all(gap.known for gap in lost[i:j])  # type: ignore[attr-defined]
                out += decoder.gap(sent.side, j - i if known else None, at)
            i = j
    for side in (CLIENT, SERVER):
        out += decoder.finish(side, len(schedule))
    out += decoder.close(len(schedule), "closed", "")
    assert decoder.open_exchanges == 0
    return out


@st.composite
def losses(draw: st.DrawFn, schedule: list[Sent]) -> list[Gap]:
    """Whole writes, as a full ring buffer drops them, or any bytes."""
    position = {CLIENT: 0, SERVER: 0}
    writes = []
    for sent in schedule:
        writes.append((sent.side, position[sent.side], position[sent.side] + len(sent.data)))
        position[sent.side] += len(sent.data)
    if draw(st.booleans()):
        lost = draw(st.lists(st.sampled_from(writes), min_size=1, max_size=5))
        return [Gap(*each, draw(st.booleans())) for each in lost]
    gaps = []
    for _ in range(draw(st.integers(1, 3))):
        side = draw(st.sampled_from([CLIENT, SERVER]))
        start = draw(st.integers(0, position[side] - 1))
        gaps.append(Gap(side, start, draw(st.integers(start + 1, position[side])), draw(st.booleans())))
    return gaps


def recut(data: st.DataObject, schedule: list[Sent]) -> list[Sent]:
    """Cut some of the writes: as they are read, or sent in part."""
    cut = []
    for sent in schedule:
        pieces = data.draw(cuts(sent.data)) if data.draw(st.integers(0, 3)) == 0 else [sent.data]
        cut += [Sent(sent.side, piece) for piece in pieces]
    return cut


@settings(deadline=None, max_examples=150)
@given(st.data(), conversations(plain), st.booleans())
def test_whatever_is_lost_no_value_is_wrong(data: st.DataObject, truths: list[Truth], cut: bool) -> None:
    schedule = data.draw(schedules(truths))
    gaps = data.draw(losses(schedule))
    if cut:
        schedule = recut(data, schedule)
    check(deliver(Http2(), schedule, gaps), truths)


@settings(deadline=None, max_examples=150)
@given(st.data(), conversations(plain), st.booleans())
def test_wherever_a_connection_is_joined_no_value_is_wrong(
    data: st.DataObject, truths: list[Truth], cut: bool
) -> None:
    schedule = data.draw(schedules(truths))
    if cut:
        schedule = recut(data, schedule)
    joined_at = data.draw(st.integers(0, len(schedule)))
    found = check(deliver(Http2(joined=True), schedule[joined_at:], []), truths)
    if not cut:  # what is asked and answered later is all there
        position = {CLIENT: b"", SERVER: b""}
        for sent in schedule[joined_at:]:
            position[sent.side] += sent.data
        for truth in truths:
            if position[CLIENT] and _asked_later(schedule, joined_at, truth.stream):
                assert found[truth.stream].request.ended
                assert found[truth.stream].response.ended
                assert found[truth.stream].failed is None


def _asked_later(schedule: list[Sent], joined_at: int, stream: int) -> bool:
    """Whether the stream was opened after that, and after the next write of each side had begun."""
    mark = b"\x01"
    for sent in schedule[:joined_at]:
        place = 0
        data = sent.data.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        while place < len(data):
            size = int.from_bytes(data[place : place + 3], "big")
            if data[place + 3 : place + 4] == mark and int.from_bytes(data[place + 5 : place + 9], "big") == stream:
                return False
            place += 9 + size
    return True


def check(out: list[Message], truths: list[Truth]) -> dict[int, Call]:
    by_stream = {truth.stream: truth for truth in truths}
    found = calls(out)
    for stream, call in found.items():
        truth = by_stream[stream].expected()
        for half, true in ((call.request, truth.request), (call.response, truth.response)):
            assert all(value in {None, other} for value, other in zip(half.start, true.start, strict=False))
            assert is_part(half.headers, true.headers)
            assert is_part(half.trailers, true.trailers)
        whole = not (call.request.unknown or call.response.unknown or call.request.lost or call.response.lost)
        if whole and call.failed is None:
            assert call == truth
    check_bodies(out, by_stream)
    return found


def is_part(pairs: Pairs, of: Pairs) -> bool:
    """Whether these pairs are there in this order."""
    others = iter(of)
    return all(pair in others for pair in pairs)


def check_bodies(out: list[Message], truths: dict[int, Truth]) -> None:
    """What is kept of a body, up to where something of it may be missing, is a prefix of it."""
    kept: dict[tuple[int, Side], bytes] = {}
    cut: set[tuple[int, Side]] = set()
    for message in out:
        if isinstance(message, Data):
            key = message.stream, message.side
            if message.lost:
                cut.add(key)
            elif key not in cut:
                kept[key] = kept.get(key, b"") + message.data
        elif isinstance(message, Lost) and any(".body" in name for name in message.unknown):
            cut.add((message.stream, message.side))
    for (stream, side), body in kept.items():
        message_ = truths[stream].request if side == CLIENT else truths[stream].response
        assert b"".join(message_.body).startswith(body)


# Anything at all.

pieces = st.sampled_from(
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Peer(CLIENT).settings(), Peer(CLIENT).ack(), Peer(CLIENT).ping(),
        Peer(CLIENT).settings(max_frame_size=1 << 20, header_table_size=0), Peer(SERVER).goaway(1),
        *[Peer(CLIENT).headers(n, ((":method", "GET"), (":path", "/"), ("a", "b")), end=n == 1) for n in (1, 3)],
        *[Peer(CLIENT).headers(n, (("a", "b"),), end=True, parts=2) for n in (1, 3)],
        *[Peer(SERVER).headers(n, ((":status", "200"),), end=n == 1) for n in (1, 2, 3)],
        *[Peer(SERVER).headers(n, ((":status", "100"),)) for n in (1, 3)],
        *[Peer(SERVER).data(n, b"data", end=n == 1, pad=n) for n in (1, 2, 3)],
        *[Peer(SERVER).data(n, b"data") for n in (1, 2, 3)],
        *[Peer(SERVER).reset(n, n) for n in (1, 2, 3)],
        Peer(SERVER).headers(1, ((":method", "GET"),), promised=2),
        *[b"\0\0\1\1" + rest for rest in (b"\4\0\0\0\3\xc0", b"\5\0\0\0\5\xbe", b"\5\0\0\0\1\xbe", b"\0\0\0\0\1\x88")],
        b"\0\0\1\x09\4\0\0\0\1\x88", b"\0\0\x09", b"\0\0\4\0\x0b\0\0\0\1\2", b"\0", b"",
        b"\4\xff\xff\x01\5\0\0\0\1\x82",
    ]
)  # fmt: skip
chunk = st.lists(pieces | st.binary(max_size=6), max_size=4).map(b"".join)
actions = actions_with(chunk)


@settings(deadline=None, max_examples=300)
@given(actions, st.booleans(), st.booleans())
def test_nothing_makes_the_decoder_fail_or_contradict_itself(
    actions: list[Action], joined: bool, greeted: bool
) -> None:
    decoder = Http2(joined=joined)
    out: list[Message] = []
    if greeted:
        out += decoder.receive(CLIENT, Peer(CLIENT).hello(), 0) + decoder.receive(SERVER, Peer(SERVER).hello(), 0)
    calls(survived(decoder, actions, out))


# Header blocks.


def pairs_of(block: object) -> list[tuple[str, str]]:
    method, path, scheme, authority, status, fields, *_ = block  # type: ignore[misc]
    pseudo = ((":method", method), (":path", path), (":scheme", scheme), (":authority", authority), (":status", status))
    return sorted([pair for pair in pseudo if pair[1] is not None] + [(name, value) for name, value, _ in fields])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_read_as_hpack_reads_them_or_refused_with_it(blocks: list[bytes]) -> None:
    ours, theirs = Hpack(), hpack.Decoder()
    for raw in blocks:
        block = ours.decode(raw)
        try:
            fields = theirs.decode(raw, raw=True)
        except (hpack.HPACKError, UnicodeDecodeError):
            # It refuses also what was evicted or never inserted, and sizes that were not allowed.
            assert block.cut or block.hidden or block.incomplete or any(31 < byte < 64 for byte in raw)
            return
        if not (block.cut or block.hidden or block.incomplete) and len({name for name, _ in fields}) == len(fields):
            expected = sorted((_text(name).lower(), _text(value)) for name, value in fields)
            assert pairs_of(block) == expected
        assert well_formed(raw) is not False
        if any(31 < byte < 64 for byte in raw):
            return  # it has a limit on the size of its own


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(headers, st.sampled_from([None, None, None, 0, 100, 4096]), st.booleans()), max_size=12),
    st.data(),
)
def test_what_an_encoder_says_is_understood_and_joined_late_never_misunderstood(
    blocks: list[tuple[Pairs, int | None, bool]], data: st.DataObject
) -> None:
    encoder, whole = hpack.Encoder(), Hpack()
    joined_at = data.draw(st.integers(0, len(blocks)))
    late = Hpack(joined=True)
    for number, (pairs, size, huffman) in enumerate(blocks):
        if size is not None:
            encoder.header_table_size = size
        raw = encoder.encode(list(pairs), huffman=huffman)
        assert [(name, value) for name, value, _ in whole.decode(raw).headers] == list(pairs)
        if number >= joined_at:
            block = late.decode(raw)
            shown = tuple((name, value) for name, value, _ in block.headers)
            assert is_part(shown, pairs)
            assert len(shown) == len(pairs) or block.hidden or block.incomplete
