from __future__ import annotations

import pytest

from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    DecodeError,
    End,
    Failed,
    RequestHead,
    ResponseHead,
    Trailers,
)
from apitrace.protocols.http2 import BLOCK_LIMIT, HELD_LIMIT, STREAMS_LIMIT, Http2
from tests.unit.protocols.http1_tools import Half, Sent, byte_by_byte
from tests.unit.protocols.http2_tools import GET, OK, PREFACE, Pairs, Peer, Talk, calls, feed

REQUEST = Half(("GET", "/a", "HTTP/2", "h.test", "http"), (("user-agent", "t"),), ended=True)
RESPONSE = Half((200, None, "HTTP/2"), (("server", "s"),), b"ok", ended=True)
POST: Pairs = ((":method", "POST"), *GET[1:])
NOTHING_KNOWN = (
    "request.method", "request.path", "request.scheme", "request.authority", "request.headers", "request.body",
)  # fmt: skip


def values(call_failed: tuple[str, str] | None) -> str | None:
    return call_failed and call_failed[0]


# Whole conversations: in one piece per call, and byte by byte.


def both_ways(talk: Talk) -> list[list[Sent]]:
    return [talk.sent, byte_by_byte(talk.sent)]


def test_a_request_and_its_response() -> None:
    talk = Talk()
    talk.ask()
    talk.answer()
    for chunks in both_ways(talk):
        decoder = Http2()
        [call] = calls(feed(decoder, chunks)).values()
        assert call == (REQUEST, RESPONSE, None, None)
        assert decoder.open_exchanges == 0
        assert decoder.close(99, "closed", "") == []


def test_times_are_those_of_the_first_and_the_last_byte() -> None:
    talk = Talk(greet=False)
    talk.client.huffman = False
    data = talk.client.hello() + talk.client.headers(1, GET, end=True)
    answer = talk.server.headers(1, OK) + talk.server.data(1, b"ok", end=True)
    decoder = Http2()
    cut = len(talk.client.hello()) + 3
    assert decoder.receive(CLIENT, data[:cut], 1) == []
    head, end = decoder.receive(CLIENT, data[cut:], 2)
    assert (head.at, end.at) == (1, 2)
    assert decoder.receive(SERVER, talk.server.hello() + answer[:5], 3) == []
    messages = decoder.receive(SERVER, answer[5:-1], 4) + decoder.receive(SERVER, answer[-1:], 5)
    assert [type(message) for message in messages] == [ResponseHead, Data, Data, End]
    assert [message.at for message in messages] == [3, 4, 5, 5]


def test_concurrent_streams_are_kept_apart() -> None:
    talk = Talk()
    for stream in range(1, 200, 2):
        talk.ask(stream, (*GET[:3], (":path", f"/{stream}")), b"%d" % stream)
    for stream in range(199, 0, -2):
        talk.s(talk.server.headers(stream, ((":status", str(200 + stream)), ("n", str(stream)))))
    for stream in range(1, 200, 2):
        talk.s(talk.server.data(stream, b"a%d" % stream))
    for stream in range(1, 200, 2):
        talk.s(talk.server.data(stream, b"b%d" % stream, end=True))
    for chunks in both_ways(talk):
        found = calls(feed(Http2(), chunks))
        for stream in range(1, 200, 2):
            request, response, failed, _ = found[stream]
            assert (request.start[1], request.body) == (f"/{stream}", b"%d" % stream)
            assert (response.start[0], response.headers) == (200 + stream, (("n", str(stream)),))
            assert response.body == b"a%db%d" % (stream, stream)
            assert failed is None
        assert len(found) == 100


@pytest.mark.parametrize("parts", [2, 3, 40])
@pytest.mark.parametrize("pad", [None, 0, 7, 255])
@pytest.mark.parametrize("priority", [False, True])
def test_continuations_padding_and_priority(parts: int, pad: int | None, priority: bool) -> None:
    talk = Talk()
    talk.c(talk.client.headers(1, POST, parts=parts, pad=pad, priority=priority))
    talk.c(talk.client.data(1, b"he", pad=pad), talk.client.data(1, b"llo", pad=pad, end=True))
    talk.s(talk.server.headers(1, OK, parts=parts, pad=pad))
    talk.s(talk.server.data(1, b"ok", pad=pad), talk.server.data(1, b"", pad=pad))
    talk.s(talk.server.headers(1, (("sum", "1"),), end=True, parts=parts, pad=pad))
    for chunks in both_ways(talk):
        [call] = calls(feed(Http2(), chunks)).values()
        assert call.request == REQUEST._replace(start=("POST", *REQUEST.start[1:]), body=b"hello")
        assert call.response == RESPONSE._replace(trailers=(("sum", "1"),))


def test_frames_that_carry_no_messages_are_passed_over() -> None:
    talk = Talk()
    talk.c(talk.client.ack(), talk.client.window(), talk.client.ping(), talk.client.priority(3))
    talk.c(b"\0\0\3\x4d\0\0\0\0\0abc")  # an extension
    talk.c(b"\xff\xff\xff\xfa\0\0\0\0\0" + bytes(70000))
    talk.c(bytes(0xFFFFFF - 70000) + talk.client.headers(1, GET, end=True), talk.client.window(1))
    talk.answer()
    [call] = calls(feed(Http2(), talk.sent)).values()
    assert call[:2] == (REQUEST, RESPONSE)


def test_trailers_are_kept_apart_from_headers() -> None:
    talk = Talk()
    talk.c(talk.client.headers(1, POST), talk.client.data(1, b"x"), talk.client.headers(1, (("sum", "1"),), end=True))
    talk.answer(trailers=(("grpc-status", "0"), ("grpc-message", "")))
    for chunks in both_ways(talk):
        [call] = calls(feed(Http2(), chunks)).values()
        assert (call.request.headers, call.request.trailers) == (REQUEST.headers, (("sum", "1"),))
        assert (call.response.headers, call.response.trailers) == (
            RESPONSE.headers, (("grpc-status", "0"), ("grpc-message", "")),
        )  # fmt: skip


def test_a_response_may_be_one_header_block() -> None:
    talk = Talk()
    talk.ask()
    talk.s(talk.server.headers(1, ((":status", "200"), ("grpc-status", "5")), end=True))
    messages = feed(Http2(), talk.sent)
    assert not any(isinstance(message, Trailers) for message in messages)
    [call] = calls(messages).values()
    assert call.response.headers == (("grpc-status", "5"),)


def test_interim_responses_are_not_the_response() -> None:
    talk = Talk()
    talk.ask()
    talk.s(talk.server.headers(1, ((":status", "100"),)), talk.server.headers(1, ((":status", "103"), ("link", "x"))))
    talk.answer()
    [call] = calls(feed(Http2(), talk.sent)).values()
    assert call.response == RESPONSE


def test_repeated_headers_and_cookie_crumbs_are_kept_in_order() -> None:
    talk = Talk()
    crumbs = (("cookie", "a=1"), ("x", "1"), ("cookie", "b=2"), ("x", "2"))
    talk.ask(1, (*GET[:4], *crumbs))
    talk.answer(1, ((":status", "200"), ("set-cookie", "a"), ("set-cookie", "b")))
    [call] = calls(feed(Http2(), talk.sent)).values()
    assert call.request.headers == crumbs
    assert call.response.headers == (("set-cookie", "a"), ("set-cookie", "b"))


def test_without_authority_the_host_header_is_taken() -> None:
    talk = Talk()
    talk.ask(1, (*GET[:2], GET[3], ("host", "other")))
    talk.ask(3, (*GET[:4], ("host", "other")))
    found = calls(feed(Http2(), talk.sent))
    assert found[1].request.start[3] == "other"
    assert found[3].request.start[3] == "h.test"


def test_connect_and_extended_connect() -> None:
    talk = Talk()
    talk.c(talk.client.headers(1, ((":method", "CONNECT"), (":authority", "h:443"))))
    talk.s(talk.server.headers(1, ((":status", "200"),)))
    talk.c(talk.client.data(1, b"to"))
    talk.s(talk.server.data(1, b"from", end=True))
    talk.c(talk.client.data(1, b"", end=True))
    websocket = ((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/c"), GET[2])
    talk.c(talk.client.headers(3, websocket))
    talk.s(talk.server.headers(3, ((":status", "200"),)))
    found = calls(feed(Http2(), talk.sent))
    assert found[1].request == Half(("CONNECT", "h:443", "HTTP/2", "h:443", None), (), b"to", ended=True)
    assert found[1].response.body == b"from"
    assert found[3].request.start == ("CONNECT", "/c", "HTTP/2", "h.test", "https")
    assert found[3].request.headers == ((":protocol", "websocket"),)
    assert found[3].request.unknown == ()


def test_a_pushed_response_is_an_exchange() -> None:
    talk = Talk()
    talk.ask()
    talk.s(talk.server.headers(1, (*GET[:3], (":path", "/pushed")), promised=2, parts=2, pad=3))
    talk.answer(1)
    talk.answer(2, body=b"pushed")
    for chunks in both_ways(talk):
        found = calls(feed(Http2(), chunks))
        assert found[1][:2] == (REQUEST, RESPONSE)
        assert found[2].request.start[:2] == ("GET", "/pushed")
        assert found[2].response == RESPONSE._replace(body=b"pushed")


def test_the_table_is_that_of_its_direction_and_its_size_that_of_the_blocks() -> None:
    talk = Talk()
    for number, size in enumerate((100, 0, 4096, 8192, 50)):
        stream = 2 * number + 1
        talk.c(talk.client.settings(header_table_size=size))
        talk.server.encoder.header_table_size = size
        talk.s(talk.server.ack())
        talk.ask(stream, (*GET, ("x", "y" * 20), ("n", str(number))))
        talk.answer(stream, (*OK, ("x", "z" * 20), ("n", str(number))))
    found = calls(feed(Http2(), talk.sent))
    assert [call.response.headers[1:] for call in found.values()] == [
        (("x", "z" * 20), ("n", str(number))) for number in range(5)
    ]


# How exchanges end.


@pytest.mark.parametrize(
    ("side", "code", "kind", "detail"),
    [
        (SERVER, 2, "reset", "the server reset the stream: INTERNAL_ERROR"),
        (SERVER, 0, "reset", "the server reset the stream: NO_ERROR"),
        (SERVER, 7, "refused", "the server refused the stream: REFUSED_STREAM"),
        (CLIENT, 8, "cancelled", "the client cancelled the stream: CANCEL"),
        (CLIENT, 99, "reset", "the client reset the stream: error code 0x63"),
    ],
)
def test_a_reset_fails_the_exchange(side: int, code: int, kind: str, detail: str) -> None:
    talk = Talk()
    talk.ask()
    reset = (talk.client if side == CLIENT else talk.server).reset(1, code)
    talk.sent.append(Sent(side, reset))
    talk.answer()  # was on its way
    decoder = Http2()
    [call] = calls(feed(decoder, talk.sent)).values()
    assert call.failed == (kind, detail)
    assert decoder.open_exchanges == 0


@pytest.mark.parametrize("side", [CLIENT, SERVER])
@pytest.mark.parametrize("code", [0, 8])
def test_a_reset_after_a_whole_response_only_ends_the_request(side: int, code: int) -> None:
    talk = Talk()
    talk.c(talk.client.headers(1, POST), talk.client.data(1, b"part"))
    talk.answer()
    talk.sent.append(Sent(side, (talk.client if side == CLIENT else talk.server).reset(1, code)))
    talk.c(talk.client.data(1, b"on its way"))
    decoder = Http2()
    [call] = calls(feed(decoder, talk.sent)).values()
    assert (call.failed, call.request.body, call.request.ended) == (None, b"part", True)
    assert call.response == RESPONSE
    assert decoder.open_exchanges == 0


def test_goaway_refuses_the_streams_above_its_last_one() -> None:
    talk = Talk()
    for stream in (1, 3, 5):
        talk.ask(stream)
    talk.s(talk.server.goaway(3, 11))
    talk.ask(7)
    talk.answer(1)
    decoder = Http2()
    messages = [*feed(decoder, talk.sent), *decoder.close(99, "closed", "gone")]
    found = calls(messages)
    assert found[1].failed is None
    detail = "the server went away after stream 3 without processing this one: ENHANCE_YOUR_CALM"
    assert found[5].failed == found[7].failed == ("refused", detail)
    assert found[3].failed == (
        "closed", "gone; the response is missing; the server had announced the end: ENHANCE_YOUR_CALM",
    )  # fmt: skip


def test_the_end_of_the_connection_fails_what_is_open() -> None:
    talk = Talk()
    talk.ask(1)
    talk.c(talk.client.headers(3, POST))
    talk.answer(3)
    talk.ask(5)
    talk.s(talk.server.headers(5, OK), talk.server.data(5, b"o"))
    decoder = Http2()
    messages = feed(decoder, talk.sent)
    assert decoder.open_exchanges == 3
    found = calls([*messages, *decoder.close(9, "reset", "why")])
    assert {stream: call.failed for stream, call in found.items()} == {
        1: ("reset", "why; the response is missing"),
        3: ("reset", "why; the end of the request is missing"),
        5: ("reset", "why; the end of the response is missing"),
    }
    assert decoder.open_exchanges == 0
    assert decoder.receive(CLIENT, b"anything", 10) == []


def test_when_the_server_has_sent_its_last_byte_no_answer_comes() -> None:
    talk = Talk()
    talk.ask(1)
    decoder = Http2()
    feed(decoder, talk.sent)
    assert decoder.finish(SERVER, 9) == [
        Failed(1, 9, "closed", "the server closed the connection; the response is missing")
    ]


def test_a_server_that_closes_after_its_client_has_not_given_up_the_call() -> None:
    talk = Talk()
    talk.ask(1)
    decoder = Http2()
    feed(decoder, talk.sent)
    assert decoder.finish(CLIENT, 8) == decoder.finish(SERVER, 9) == []
    assert decoder.close(10, "closed", "the peer closed the connection") == [
        Failed(1, 10, "closed", "the peer closed the connection; the response is missing")
    ]


# Order.


def test_a_response_that_is_reported_before_its_request_waits_for_it() -> None:
    talk = Talk()
    talk.ask(1)
    talk.answer(1)
    talk.ask(3)
    hello, greeting, ask_1, answer_1, ask_3 = talk.sent
    decoder = Http2()
    assert feed(decoder, [hello, greeting, answer_1]) == []
    assert decoder.open_exchanges == 0
    [call] = calls(feed(decoder, [ask_1], 5)).values()
    assert call[:2] == (REQUEST, RESPONSE)
    assert decoder.open_exchanges == 0
    assert len(feed(decoder, [ask_3])) == 2


def test_a_reset_before_its_request_waits_too() -> None:
    talk = Talk()
    talk.ask(1)
    talk.s(talk.server.reset(1, 7))
    hello, greeting, ask, reset = talk.sent
    decoder = Http2()
    [call] = calls(feed(decoder, [hello, greeting, reset, ask])).values()
    assert values(call.failed) == "refused"
    assert decoder.open_exchanges == 0


def test_an_answer_to_a_stream_that_was_never_opened_is_shown_without_its_request() -> None:
    talk = Talk()
    talk.answer(1)
    talk.ask(3)
    decoder = Http2()
    found = calls(feed(decoder, talk.sent))
    assert found[1].request.unknown[:6] == NOTHING_KNOWN
    assert found[1].response == RESPONSE
    assert found[3].request == REQUEST


def test_held_answers_are_bounded() -> None:
    talk = Talk()
    for stream in range(1, 2 * HELD_LIMIT // 128, 2):
        talk.s(talk.server.headers(stream, OK))
    decoder = Http2()
    feed(decoder, talk.sent)
    assert sum(map(len, decoder._held.values())) * 128 <= HELD_LIMIT
    talk = Talk()
    talk.s(talk.server.headers(1, OK), *[talk.server.data(1, bytes(16000)) for _ in range(30)])
    decoder = Http2()
    feed(decoder, talk.sent)
    assert decoder._held == {}
    assert decoder.open_exchanges == 1


# What is not HTTP/2, and what is too much.


@pytest.mark.parametrize(
    ("side", "data"),
    [
        (CLIENT, b"PRI * HTTP/2.0\r\n\r\nXM"),
        (CLIENT, PREFACE + Peer(CLIENT).ping()),
        (SERVER, b"HTTP/1.1 400 Bad Request\r\n"),
        (SERVER, Peer(SERVER).hello() + b"\0\0\0\0\0\0\0\0\0"),  # DATA without a stream
        (SERVER, Peer(SERVER).hello() + b"\0\0\1\1\4\0\0\0\0\x88"),  # HEADERS without a stream
        (SERVER, Peer(SERVER).hello() + b"\0\0\0\1\4\0\0\0\1"),  # HEADERS of no bytes
        (SERVER, Peer(SERVER).hello() + b"\0\0\1\0\x08\0\0\0\1\1"),  # more padding than data
        (SERVER, Peer(SERVER).hello() + b"\0\0\0\0\x08\0\0\0\1"),
        (SERVER, Peer(SERVER).hello() + b"\0\0\1\1\x0c\0\0\0\1\1"),
        (SERVER, Peer(SERVER).hello() + b"\0\0\1\1\x08\0\0\0\1\1"),
        (SERVER, Peer(SERVER).hello() + b"\0\0\5\3\0\0\0\0\1abcde"),  # RST_STREAM of five bytes
        (SERVER, Peer(SERVER).hello() + b"\0\0\5\4\0\0\0\0\0abcde"),  # SETTINGS of five bytes
        (SERVER, Peer(SERVER).hello() + b"\0\0\0\x09\4\0\0\0\1"),  # CONTINUATION of nothing
        (SERVER, Peer(SERVER).hello() + b"\0\0\1\1\0\0\0\0\1\x88" + Peer(SERVER).ping()),  # an interrupted block
        (SERVER, Peer(SERVER).hello() + b"\0\0\1\1\0\0\0\0\1\x88" + b"\0\0\0\x09\4\0\0\0\3"),
    ],
)
def test_what_is_not_http_2_is_an_error(side: int, data: bytes) -> None:
    decoder = Http2()
    if side == SERVER:
        decoder.receive(CLIENT, Peer(CLIENT).hello(), 0)
    with pytest.raises(DecodeError, match="expected"):
        decoder.receive(side, data, 1)
    with pytest.raises(DecodeError, match="expected"):
        decoder.receive(side, b"more", 2)
    assert decoder.close(3, "decode", "") == []


def test_what_came_before_an_error_is_given_before_it_is_raised() -> None:
    talk = Talk()
    talk.c(talk.client.headers(1, GET, end=True), b"\0\0\0\x09\4\0\0\0\1")
    decoder = Http2()
    assert len(feed(decoder, talk.sent)) == 2
    with pytest.raises(DecodeError):
        decoder.receive(SERVER, b"", 9)
    [failed] = decoder.close(9, "decode", "why")
    assert isinstance(failed, Failed)


def test_a_block_that_is_not_hpack_costs_its_fields_and_the_table() -> None:
    talk = Talk()
    talk.ask(1)
    talk.c(b"\0\0\3\1\5\0\0\0\3\x82\x84\x80")  # index 0
    talk.ask(5)
    found = calls(feed(Http2(), talk.sent))
    assert found[3].request.start == ("GET", "/", "HTTP/2", None, None)
    assert found[3].request.unknown == ("request.scheme", "request.authority", "request.headers")
    assert found[5].request.start[:2] == ("GET", None)
    assert "request.path" in found[5].request.unknown


def test_a_block_beyond_the_limit_counts_as_lost_and_is_not_kept() -> None:
    talk = Talk()
    decoder = Http2()
    feed(decoder, talk.take())
    first = talk.client.headers(1, (*GET[:4], ("a", "b")), end=True)
    talk.c(first[:4] + bytes([first[4] & ~4]) + first[5:])
    for _ in range(BLOCK_LIMIT // 8000 + 5):
        talk.c(b"\0\x1f\x40\x09\0\0\0\0\1" + b"\0\1a\x7d" * 2000)
    talk.c(b"\0\0\0\x09\4\0\0\0\1")
    talk.ask(3, POST)
    messages = []
    for at, sent in enumerate(talk.sent):
        messages += decoder.receive(sent.side, sent.data, at)
        assert len(decoder._client.block or b"") + len(decoder._client.buffer) <= BLOCK_LIMIT + 8000
    found = calls(messages)
    assert found[1].request.start[:2] == ("GET", "/a")
    assert "request.headers" in found[1].request.unknown
    assert found[3].request.start[0] == "POST"


def test_streams_are_bounded() -> None:
    talk = Talk()
    decoder = Http2()
    messages = feed(decoder, talk.take())
    block = b"\x82\x86\x84"
    for stream in range(1, 2 * STREAMS_LIMIT + 20, 2):
        messages += decoder.receive(CLIENT, b"\0\0\3\1\5" + stream.to_bytes(4, "big") + block, stream)
        assert decoder.open_exchanges <= STREAMS_LIMIT
    failed = [message for message in messages if isinstance(message, Failed)]
    assert len(failed) == 10
    assert {message.kind for message in failed} == {"closed"}


# After an upgrade.


def test_the_request_that_asked_for_the_upgrade_is_answered_on_stream_1() -> None:
    talk = Talk()
    talk.answer(1)
    talk.ask(3)
    talk.answer(3)
    decoder = Http2(upgraded=True)
    assert decoder.open_exchanges == 1
    messages = feed(decoder, talk.sent)
    assert [type(message) for message in messages[:3]] == [ResponseHead, Data, End]
    found = calls([RequestHead(1, 0, "HTTP/1.1", "GET", "/", None, None, ()), End(1, 0, CLIENT), *messages])
    assert found[1].response == found[3].response == RESPONSE
    assert decoder.open_exchanges == 0


# Gaps.


def lose(decoder: Http2, sent: Sent, at: int, start: int, size: int, *, known: bool = True) -> list[object]:
    """Feed a chunk of which some bytes are lost."""
    side, data = sent
    messages: list[object] = [*decoder.receive(side, data[:start], at)] if start else []
    messages += decoder.gap(side, size if known else None, at)
    rest = data[start + size :]
    return messages + (decoder.receive(side, rest, at) if rest else [])


@pytest.mark.parametrize("pad", [None, 9])
def test_a_gap_inside_a_body_costs_that_and_nothing_else(pad: int | None) -> None:
    for start in range(9 + (pad is not None), 29):
        for size in range(1, 30 - start):
            talk = Talk()
            talk.ask()
            talk.s(talk.server.headers(1, OK))
            before = talk.take()
            talk.s(talk.server.data(1, b"a" * 20 if pad is None else b"a" * 11, end=True, pad=pad))
            talk.ask(3)
            talk.answer(3)
            frame, *after = talk.sent
            decoder = Http2()
            messages = [*feed(decoder, before), *lose(decoder, frame, 5, start, size), *feed(decoder, after, 6)]
            found = calls(messages)  # type: ignore[arg-type]
            assert len(found[1].response.body) + found[1].response.lost == (20 if pad is None else 11)
            assert found[1].response.unknown == ()
            assert found[1].response.ended
            assert found[3][:2] == (REQUEST, RESPONSE)


def test_a_gap_inside_a_header_block_costs_what_is_behind_it_in_the_block_and_the_table() -> None:
    talk = Talk()
    talk.client.huffman = False
    before = talk.take()
    block = (*GET[:3], (":path", "/long/enough"), ("x", "y"))
    talk.c(talk.client.headers(1, block, end=True))
    talk.answer(1)
    talk.ask(3, block)
    talk.ask(5, (*block, ("new", "1")))
    talk.ask(7, (*block, ("new", "1")))
    frame, *after = talk.sent
    decoder = Http2()
    place = frame.data.index(b"/long")
    messages = [*feed(decoder, before), *lose(decoder, frame, 5, place + 2, 3), *feed(decoder, after, 6)]
    found = calls(messages)  # type: ignore[arg-type]
    assert found[1].request.start == ("GET", None, "HTTP/2", "h.test", "http")
    assert found[1].request.unknown == ("request.path", "request.headers")
    assert found[1].request.ended
    assert found[1].response == RESPONSE
    assert found[3].request.start == ("GET", None, "HTTP/2", None, "http")
    assert found[3].request.unknown == ("request.path", "request.authority", "request.headers")
    assert found[7].request.headers == (("new", "1"),)
    assert "request.headers" in found[7].request.unknown


@pytest.mark.parametrize("known", [False, True])
def test_after_lost_frames_the_next_chunk_that_begins_with_frames_is_read(known: bool) -> None:
    talk = Talk()
    talk.ask(1)
    talk.answer(1)
    before = talk.take()
    talk.ask(3)
    lost = talk.sent.pop()
    talk.answer(3, body=b"three")
    talk.ask(5)
    talk.answer(5, body=b"five")
    decoder = Http2()
    messages = feed(decoder, before)
    messages += decoder.gap(CLIENT, len(lost.data) if known else None, 9)
    messages += feed(decoder, talk.sent, 10)
    found = calls(messages)
    assert list(found) == [1, 3, 5]
    assert found[3].request.start == (None, None, "HTTP/2", None, None)
    assert found[3].response == RESPONSE._replace(body=b"three")
    assert found[5].request.start == ("GET", None, "HTTP/2", None, "http")
    assert found[5].request.unknown == ("request.path", "request.authority", "request.headers")
    assert found[5].response == RESPONSE._replace(body=b"five")
    assert decoder.open_exchanges == 0


def test_a_response_whose_head_was_lost_has_an_unknown_head_and_keeps_its_trailers() -> None:
    talk = Talk()
    talk.ask(1)
    before = talk.take()
    talk.s(talk.server.headers(1, OK))
    lost = talk.sent.pop()
    talk.s(talk.server.data(1, b"data"), talk.server.headers(1, (("grpc-status", "0"),), end=True))
    decoder = Http2()
    messages = [*feed(decoder, before), *decoder.gap(SERVER, len(lost.data), 5), *feed(decoder, talk.sent, 6)]
    [call] = calls(messages).values()
    assert call.request == REQUEST
    assert call.response.start == (None, None, "HTTP/2")
    assert call.response.trailers == (("grpc-status", "0"),)
    assert set(call.response.unknown) == {
        "response.status_code", "response.headers", "response.body", "response.body_size",
    }  # fmt: skip


def test_a_response_that_was_lost_whole_is_unknown_when_the_connection_ends() -> None:
    talk = Talk()
    talk.ask(1)
    before = talk.take()
    talk.answer(1)
    lost = talk.take()[0]
    talk.ask(3)
    talk.answer(3)
    decoder = Http2()
    messages = [*feed(decoder, before), *decoder.gap(SERVER, len(lost.data), 5), *feed(decoder, talk.sent, 6)]
    assert decoder.open_exchanges == 1
    found = calls([*messages, *decoder.close(9, "closed", "over")])
    assert found[1].response.unknown == ("response",)
    assert found[1].failed == ("closed", "over; the end of the response is missing")
    assert found[3].response.start[0] == 200


# Joined in the middle.


def joined(talk: Talk) -> dict[int, object]:
    decoder = Http2(joined=True)
    found = calls([*feed(decoder, talk.sent), *decoder.close(99, "unanswered", "")])
    assert decoder.open_exchanges == 0
    return dict(found)


def test_joined_late_what_is_in_the_static_table_is_known_and_older_entries_are_not() -> None:
    talk = Talk()
    talk.ask(1)
    talk.answer(1)
    talk.take()
    talk.ask(3)
    talk.answer(3)
    found = calls(feed(Http2(joined=True), talk.sent))
    assert found[3].request == Half(
        ("GET", None, "HTTP/2", None, "http"), (),
        unknown=("request.path", "request.authority", "request.headers"), ended=True,
    )  # fmt: skip
    assert found[3].response == Half((200, None, "HTTP/2"), (), b"ok", unknown=("response.headers",), ended=True)


def test_joined_late_what_is_inserted_then_is_known_from_then_on() -> None:
    talk = Talk()
    talk.ask(1)
    talk.take()
    path = (":path", "/new")
    for stream in (3, 5):
        talk.ask(stream, (*GET[:3], path, ("x", "y")))
    found = calls(feed(Http2(joined=True), talk.sent))
    for stream in (3, 5):
        assert found[stream].request.start == ("GET", "/new", "HTTP/2", None, "http")
        assert found[stream].request.headers == (("x", "y"),)
        # The unknown field came before :path, so it is :authority, but that need not be there.
        assert found[stream].request.unknown == ("request.authority", "request.headers")


def test_if_only_as_many_fields_are_unknown_as_must_be_there_it_is_these() -> None:
    talk = Talk()
    pairs = ((":method", "GET"), (":scheme", "http"), (":path", "/only"), (":authority", "x"))
    talk.ask(1, pairs)
    talk.take()
    talk.ask(3, (*pairs[:3], (":authority", "new"), ("a", "b")))
    found = calls(feed(Http2(joined=True), talk.sent))
    assert found[3].request == Half(
        ("GET", None, "HTTP/2", "new", "http"), (("a", "b"),), unknown=("request.path",), ended=True
    )


def test_joined_late_an_unknown_status_may_be_interim() -> None:
    early, final = ((":status", "103"), ("link", "a")), ((":status", "201"), ("server", "s"))
    talk = Talk()
    talk.ask(1)
    talk.s(talk.server.headers(1, early), talk.server.headers(1, final, end=True))
    talk.take()
    for stream in (3, 5, 7, 9):
        talk.ask(stream)
    talk.s(talk.server.headers(3, early), talk.server.headers(3, (*OK, ("last", "1"))), talk.server.data(3, end=True))
    talk.s(talk.server.headers(5, final), talk.server.data(5, b"body", end=True))
    talk.s(talk.server.headers(7, final, end=True))
    talk.s(talk.server.headers(9, final))
    found = calls(feed(decoder := Http2(joined=True), talk.sent))
    found = calls([*feed(decoder := Http2(joined=True), talk.sent), *decoder.close(99, "closed", "")])
    assert found[3].response.start[0] == 200
    assert found[3].response.headers[-1] == ("last", "1")
    for stream in (5, 7, 9):
        assert found[stream].response.start[0] is None
        assert "response.status_code" in found[stream].response.unknown
    assert found[5].response.body == b"body"


def test_joined_late_an_answer_to_what_was_not_seen_is_shown_once() -> None:
    talk = Talk()
    talk.ask(1)
    talk.ask(3)
    talk.s(talk.server.headers(3, OK))
    talk.take()
    talk.answer(1)
    talk.s(talk.server.data(3, b"rest", end=True))
    talk.s(talk.server.window(3), talk.server.data(3, b"late", end=True))
    talk.ask(5)
    talk.s(talk.server.data(1, b"late", end=True))
    talk.answer(5)
    decoder = Http2(joined=True)
    found = calls(feed(decoder, talk.sent))
    assert sorted(found) == [1, 3, 5]
    assert set(NOTHING_KNOWN) <= set(found[1].request.unknown)
    assert found[1].response.start[0] == 200
    assert found[3].response.start[0] is None
    assert set(found[3].response.unknown) == {
        "response.status_code", "response.headers", "response.body", "response.body_size",
    }  # fmt: skip
    assert decoder.open_exchanges == 0


def test_joined_before_the_preface_everything_is_known() -> None:
    talk = Talk()
    talk.ask(1)
    talk.answer(1)
    for chunks in ([talk.sent[0], *talk.sent[1:]], byte_by_byte([talk.sent[0]]) + talk.sent[1:]):
        [call] = calls(feed(Http2(joined=True), chunks)).values()
        assert call[:2] == (REQUEST, RESPONSE)


def test_joined_in_a_large_response_the_next_frames_are_found_inside_a_chunk() -> None:
    talk = Talk()
    talk.ask(1)
    talk.take()
    body = bytes(range(256)) * 64
    stream = b"".join([talk.server.headers(1, OK), *[talk.server.data(1, body) for _ in range(12)]])
    stream += talk.server.data(1, b"", end=True)
    talk.ask(3)
    stream += talk.server.headers(3, OK, end=True)
    decoder = Http2(joined=True)
    messages = feed(decoder, talk.sent)
    for at, place in enumerate(range(1000, len(stream), 8192)):
        messages += decoder.receive(SERVER, stream[place : place + 8192], at)
        assert len(decoder._server.buffer) <= 5 * 16384
    found = calls(messages)
    assert found[1].response.ended
    assert found[3].response.start[0] == 200
    assert decoder.open_exchanges == 0


def test_what_looks_like_frames_inside_a_body_is_not_taken_for_frames() -> None:
    talk = Talk()
    other = Talk()
    other.answer(9, body=b"not to be seen")
    fake = other.sent[-1].data * 20
    talk.ask(1)
    talk.take()
    stream = b"".join([talk.server.headers(1, OK), *[talk.server.data(1, fake) for _ in range(40)]])
    talk.ask(3)
    decoder = Http2(joined=True)
    messages = feed(decoder, talk.sent)
    at = 0
    for at, place in enumerate(range(1000, len(stream), 8191)):
        messages += decoder.receive(SERVER, stream[place : place + 8191], at)
    messages += decoder.receive(SERVER, talk.server.headers(3, OK, end=True), at)
    assert 9 not in calls(messages)


def test_frames_that_turn_out_not_to_be_cost_a_new_search() -> None:
    talk = Talk()
    talk.ask(1)
    talk.take()
    decoder = Http2(joined=True)
    assert decoder.receive(SERVER, talk.server.ping() + b"nothing of the kind", 1) == []
    assert decoder.receive(SERVER, talk.server.ping(), 2) == []
    assert decoder.receive(SERVER, b"nothing of the kind, again and longer", 3) == []
    talk.answer(1)
    found = calls(feed(decoder, talk.sent))
    assert found[1].response.start[0] == 200
