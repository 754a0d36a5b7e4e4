"""Each decoding case runs whole (one chunk a line), byte by byte, and with the next message's first bytes trailing."""

from __future__ import annotations

import pytest

from apitrace.protocols import headers, http1, memo
from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    DecodeError,
    End,
    Failed,
    Lost,
    RequestHead,
    ResponseHead,
    Switched,
    Trailers,
)
from apitrace.protocols.http1 import HELD_LIMIT, Http1
from tests.unit.protocols.http1_tools import Call, Half, Sent, byte_by_byte, calls, client, feed, server

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCH = b"HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

Row = tuple[object, object, bytes, object, bytes]
"""Method, path, request body, status, response body."""


def rows(found: dict[int, Call]) -> list[Row]:
    """The calls, each of which is whole."""
    listed: list[Row] = []
    for call in found.values():
        assert call.request.ended
        assert call.response.ended
        assert call.failed is None
        assert call.request.unknown == call.response.unknown == ()
        assert call.request.lost == call.response.lost == 0
        listed.append((*call.request.start[:2], call.request.body, call.response.start[0], call.response.body))
    return listed


CONVERSATIONS: dict[str, tuple[list[Sent], list[Row]]] = {
    "a get": ([client(GET), server(OK)], [("GET", "/", b"", 200, b"ok")]),
    "keep-alive": (
        [client(GET), server(OK), client(b"DELETE /b HTTP/1.1\r\n\r\n"), server(NO_CONTENT)],
        [("GET", "/", b"", 200, b"ok"), ("DELETE", "/b", b"", 204, b"")],
    ),
    "a body of known length each way": (
        [client(b"POST /p HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), server(OK)],
        [("POST", "/p", b"hello", 200, b"ok")],
    ),
    "an empty body of known length": (
        [
            client(b"POST /p HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ],
        [("POST", "/p", b"", 200, b"")],
    ),
    "chunks each way, with extensions and trailers": (
        [
            client(
                b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"5;a=b\r\nhello\r\n6 ; c\r\n world\r\n0\r\nT: 1\r\n\r\n"
            ),
            server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n00000A\r\n0123456789\r\n0;last\r\n\r\n"),
        ],
        [("PUT", "/", b"hello world", 200, b"0123456789")],
    ),
    "a chunked body of nothing": (
        [client(GET), server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")],
        [("GET", "/", b"", 200, b"")],
    ),
    "a list of codings that ends in chunked": (
        [
            client(GET),
            server(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
            ),
        ],
        [("GET", "/", b"", 200, b"x")],
    ),
    "chunked overrides a length": (
        [
            client(GET),
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
        ],
        [("GET", "/", b"", 200, b"x")],
    ),
    "the identity coding does nothing": (
        [client(GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: identity\r\n\r\nx")],
        [("GET", "/", b"", 200, b"x")],
    ),
    "one length said three times": (
        [client(GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 02\r\n\r\nok")],
        [("GET", "/", b"", 200, b"ok")],
    ),
    "a bare LF ends lines": (
        [
            client(b"POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n2\nhi\n0\nT: 1\n\n"),
            server(b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\nok"),
        ],
        [("POST", "/", b"hi", 200, b"ok")],
    ),
    "a bare LF ends the head, and CRLF CRLF comes later": (
        [
            client(b"POST / HTTP/1.1\nContent-Length: 4\n\n\r\n\r\n"),
            server(b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok"),
        ],
        [("POST", "/", b"\r\n\r\n", 200, b"ok")],
    ),
    "empty lines between messages": (
        [client(b"\r\n" + GET), server(b"\n\r\n" + OK), client(b"\r\n\r\n" + GET), server(OK)],
        [("GET", "/", b"", 200, b"ok")] * 2,
    ),
    "no reason phrase, and odd spaces": (
        [client(b"GET  \t/a   HTTP/1.1 \r\n\r\n"), server(b"HTTP/1.1  200\r\nContent-Length:0\r\n\r\n")],
        [("GET", "/a", b"", 200, b"")],
    ),
    "a target with spaces": (
        [client(b"GET /a b  c HTTP/1.1\r\n\r\n"), server(OK)],
        [("GET", "/a b  c", b"", 200, b"ok")],
    ),
    "an unknown method": (
        [client(b"F-OO!bar /a HTTP/1.1\r\n\r\n"), server(OK)],
        [("F-OO!bar", "/a", b"", 200, b"ok")],
    ),
    "an asterisk": (
        [client(b"OPTIONS * HTTP/1.1\r\n\r\n"), server(NO_CONTENT)],
        [("OPTIONS", "*", b"", 204, b"")],
    ),
    "head, 204 and 304 have no body": (
        [
            client(b"HEAD / HTTP/1.1\r\n\r\n"),
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
            client(b"HEAD / HTTP/1.1\r\n\r\n"),
            server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            client(GET),
            server(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
            client(GET),
            server(b"HTTP/1.1 204 No Content\r\nContent-Length: 99\r\n\r\n"),
        ],
        [("HEAD", "/", b"", 200, b"")] * 2 + [("GET", "/", b"", 304, b""), ("GET", "/", b"", 204, b"")],
    ),
    "interim responses pair with nothing": (
        [
            client(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
            server(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"),
            client(b"hi"),
            server(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
            client(GET),
            server(NO_CONTENT),
        ],
        [("POST", "/", b"hi", 200, b"ok"), ("GET", "/", b"", 204, b"")],
    ),
    "the answer comes before the request is whole": (
        [
            client(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"),
            server(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"),
            client(b"cd" + GET),
            server(OK),
        ],
        [("POST", "/", b"abcd", 413, b"no"), ("GET", "/", b"", 200, b"ok")],
    ),
    "the answer is seen before its request": (
        [server(OK), client(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"), server(NO_CONTENT), client(GET)],
        [("POST", "/", b"hi", 200, b"ok"), ("GET", "/", b"", 204, b"")],
    ),
    "pipelined requests": (
        [
            client(b"GET /1 HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"),
            client(b"HEAD /3 HTTP/1.1\r\n\r\n"),
            server(OK + NO_CONTENT),
            server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        ],
        [("GET", "/1", b"", 200, b"ok"), ("POST", "/2", b"hi", 204, b""), ("HEAD", "/3", b"", 200, b"")],
    ),
    "a rejected expectation: the body is left out, the next request follows (curl, after 417)": (
        [
            client(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"),
            server(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"),
            client(b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"),
            server(OK),
        ],
        [("PUT", "/", b"", 417, b""), ("PUT", "/", b"hi", 200, b"ok")],
    ),
    "a rejected expectation: the body is sent nevertheless": (
        [
            client(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"),
            server(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"),
            client(b"2\r\nhi\r\n0\r\n\r\n"),
            client(GET),
            server(OK),
        ],
        [("PUT", "/", b"hi", 417, b""), ("GET", "/", b"", 200, b"ok")],
    ),
    "a final answer in the middle of a body that waited for nothing": (
        [
            client(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 19\r\n\r\nG"),
            server(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
            client(b"GET / HTTP/1.1\r\n\r\n"),
        ],
        [("PUT", "/", b"GGET / HTTP/1.1\r\n\r\n", 500, b"")],
    ),
    "a refused upgrade and a refused tunnel": (
        [
            client(b"CONNECT h:443 HTTP/1.1\r\n\r\n"),
            server(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno"),
            client(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"),
            server(OK),
            client(GET),
            server(OK),
        ],
        [("CONNECT", "h:443", b"", 407, b"no"), ("GET", "/", b"", 200, b"ok"), ("GET", "/", b"", 200, b"ok")],
    ),
    "text that looks like messages, inside bodies": (
        [
            client(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (2 * len(GET) + 4)),
            client(GET + b"\r\n\r\n" + GET),
            server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(OK)),
            server(OK),
            server(b"\r\n0\r\n\r\n"),
        ],
        [("POST", "/", GET + b"\r\n\r\n" + GET, 200, OK)],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_gives_its_calls(name: str) -> None:
    conversation, expected = CONVERSATIONS[name]
    decoder = Http1()
    assert rows(calls(feed(decoder, conversation))) == expected
    assert decoder.open_exchanges == 0
    assert decoder.close(99, "closed", "") == []


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_byte_by_byte_gives_the_same_calls(name: str) -> None:
    conversation, expected = CONVERSATIONS[name]
    decoder = Http1()
    assert rows(calls(feed(decoder, byte_by_byte(conversation)))) == expected
    assert decoder.close(99, "closed", "") == []


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_with_the_next_call_trailing_gives_the_same_calls(name: str) -> None:
    conversation, expected = CONVERSATIONS[name]
    trailing = {CLIENT: b"GET /next HTTP/1.1\r\nX", SERVER: b"HTTP/1.1 2"}
    last = {sent.side: i for i, sent in enumerate(conversation)}
    conversation = [
        Sent(sent.side, sent.data + trailing[sent.side]) if last[sent.side] == i else sent
        for i, sent in enumerate(conversation)
    ]
    decoder = Http1()
    messages = feed(decoder, [*conversation, client(b": y\r\n\r\n"), server(b"04\r\n\r\n")])
    assert rows(calls(messages)) == [*expected, ("GET", "/next", b"", 204, b"")]


def test_messages_carry_everything_there_is_to_say() -> None:
    decoder = Http1()
    assert decoder.receive(CLIENT, b"POST /p?q=1 HTTP/1.1\r\nhOst: a:1\r\nTransfer-Encoding: ch", 10) == []
    assert decoder.receive(CLIENT, b"unked\r\n\r\n2\r\nhi\r\n0\r\nSum: 7\r\n\r\n", 20) == [
        RequestHead(
            1, 10, "HTTP/1.1", "POST", "/p?q=1", "a:1", None,
            (("host", "a:1", "hOst"), ("transfer-encoding", "chunked", "Transfer-Encoding")),
        ),
        Data(1, 20, CLIENT, b"hi"),
        Trailers(1, 20, CLIENT, (("sum", "7", "Sum"),)),
        End(1, 20, CLIENT),
    ]  # fmt: skip
    assert decoder.open_exchanges == 1
    assert decoder.receive(SERVER, b"HTTP/1.0 404 Not Found\r\nContent-Length: 3\r\n\r\na", 30) == [
        ResponseHead(1, 30, "HTTP/1.0", 404, "Not Found", (("content-length", "3", "Content-Length"),)),
        Data(1, 30, SERVER, b"a"),
    ]
    assert decoder.receive(SERVER, b"bc", 40) == [Data(1, 40, SERVER, b"bc"), End(1, 40, SERVER)]
    assert decoder.open_exchanges == 0


@pytest.mark.parametrize(
    ("line", "path", "authority", "scheme"),
    [
        (b"GET /a?b HTTP/1.1\r\nHost: h:80", "/a?b", "h:80", None),
        (b"GET / HTTP/1.1\r\nHost: one\r\nHost: two", "/", "one", None),
        (b"GET / HTTP/1.0", "/", None, None),
        (b"GET / HTTP/1.0\r\nHost:", "/", "", None),
        (b"GET HTTP://u:p@h:81/a?b HTTP/1.1\r\nHost: other", "HTTP://u:p@h:81/a?b", "h:81", "http"),
        (b"GET http://h?q=//@ HTTP/1.1", "http://h?q=//@", "h", "http"),
        (b"CONNECT h:443 HTTP/1.1\r\nHost: other:443", "h:443", "h:443", None),
        (b"OPTIONS * HTTP/1.1\r\nHost: h", "*", "h", None),
        (b"GET /?u=http://x/ HTTP/1.1\r\nHost: h", "/?u=http://x/", "h", None),
        (b"GET /\xe9 HTTP/1.1\r\nHost: h", "/é", "h", None),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h", "/é", "h", None),
    ],
)
def test_targets_and_authorities(line: bytes, path: str, authority: str | None, scheme: str | None) -> None:
    head = Http1().receive(CLIENT, line + b"\r\n\r\n", 1)[0]
    assert isinstance(head, RequestHead)
    assert (head.path, head.authority, head.scheme) == (path, authority, scheme)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"HTTP/1.1 200 OK", (200, "OK", "HTTP/1.1")),
        (b"HTTP/1.0 200 Still  fine ", (200, "Still  fine", "HTTP/1.0")),
        (b"HTTP/1.1 200", (200, "", "HTTP/1.1")),
        (b"HTTP/1.1 200 ", (200, "", "HTTP/1.1")),
        (b"HTTP/1.1 999 \xfcber", (999, "über", "HTTP/1.1")),
        (b"HTTP/1.7 200 OK", (200, "OK", "HTTP/1.1")),
    ],
)
def test_status_lines(line: bytes, expected: tuple[int, str, str]) -> None:
    found = calls(feed(Http1(), [client(GET), server(line + b"\r\n\r\n")]))
    assert found[1].response.start == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"A: 1\r\nA:2\r\na :\t3 ", (("a", "1", "A"), ("a", "2", "A"), ("a", "3", "a"))),
        (b"A:", (("a", "", "A"),)),
        (b"A: b:c", (("a", "b:c", "A"),)),
        (b"no colon", (("no colon", "", "no colon"),)),
        (b": value", (("", "value", ""),)),
        (b"A: one\r\n two\r\n\tthree\r\nB: 4", (("a", "one two three", "A"), ("b", "4", "B"))),
        (b" A: 1\r\nB: 2", (("a", "1", "A"), ("b", "2", "B"))),
        (b"A: 1\nB: 2\r\nC: 3", (("a", "1", "A"), ("b", "2", "B"), ("c", "3", "C"))),
        (b"A: \xff\r\nB: \xe2\x82\xac", (("a", "ÿ", "A"), ("b", "€", "B"))),
        (b"A: nul\0nul", (("a", "nul\0nul", "A"),)),
    ],
)
def test_header_lines_are_taken_as_they_come(lines: bytes, expected: tuple[tuple[str, str, str], ...]) -> None:
    data = b"GET / HTTP/1.1\r\n" + lines + b"\r\n\r\n"
    for chunks in ([client(data)], byte_by_byte([client(data)])):
        head = feed(Http1(), chunks)[0]
        assert isinstance(head, RequestHead)
        assert head.headers == expected


def test_no_memo_grows_beyond_its_budget() -> None:
    memos = (headers.REQUEST_LINES, headers.STATUS_LINES, headers._SECTIONS, headers._HEADER_LINES, headers._NAMES)
    for n in (number // 2 for number in range(20_000)):
        feed(Http1(), [client(b"GET /%d HTTP/1.1\r\nA%d: b\r\n\r\n" % (n, n)), server(b"HTTP/1.1 200 %d\r\n\r\n" % n)])
        assert all(len(each) * memo.MEMO_LINE_COST <= memo.MEMO_BUDGET for each in memos)
        assert all(len(each._once) <= memo.MEMO_ONCE_LIMIT for each in memos)
    assert headers.REQUEST_LINES[b"GET /9999 HTTP/1.1"].path == "/9999"
    assert b"GET /9999 HTTP/1.1" in headers.REQUEST_LINES


# Bytes that are not HTTP/1.


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"\x00",
        b"GET",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / http/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * RTSP/1.0\r\n",
        b"*3\r\n$3\r\nSET\r\n",
        b"EHLO example.com\r\n",
        b'{"jsonrpc": "2.0"}\n',
        b" GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"A" * 33 + b" / HTTP/1.1\r\n\r\n",
        b"G@T / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_client_that_does_not_speak_http1_is_refused(data: bytes) -> None:
    if data == b"GET":
        assert Http1().receive(CLIENT, data, 1) == []
        return
    for chunks in ([client(data)], byte_by_byte([client(data)])):
        decoder = Http1()
        with pytest.raises(DecodeError):
            feed(decoder, chunks)
        with pytest.raises(DecodeError):
            decoder.receive(CLIENT, GET, 2)
        assert decoder.close(3, "closed", "") == []


@pytest.mark.parametrize(
    "data",
    [
        b"220 smtp.example.com\r\n",
        b"\x16",
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 20\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1 099 OK\r\n",
        b"HTTP/1.1\r\n",
        b"ICY 200 OK\r\n",
        b"ok",
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_a_server_that_does_not_speak_http1_is_refused(data: bytes, asked: bool) -> None:
    for chunks in ([server(data)], byte_by_byte([server(data)])):
        decoder = Http1()
        feed(decoder, [client(GET)] if asked else [])
        with pytest.raises(DecodeError):
            feed(decoder, [*chunks, client(GET), server(b"")])
        if asked:
            assert decoder.close(9, "decode", "not HTTP/1") == [Failed(1, 9, "decode", "not HTTP/1")]


def test_messages_before_the_bad_bytes_are_given_and_the_next_call_raises() -> None:
    decoder = Http1()
    decoder.receive(CLIENT, GET, 1)
    assert rows(calls(feed(Http1(), [client(GET), server(OK + b"garbage")]))) == [("GET", "/", b"", 200, b"ok")]
    assert len(decoder.receive(SERVER, OK + b"garbage", 2)) == 3
    for call in (
        lambda: decoder.receive(CLIENT, b"", 3),
        lambda: decoder.gap(SERVER, 1, 3),
        lambda: decoder.finish(SERVER, 3),
    ):
        with pytest.raises(DecodeError, match="status line"):
            call()
    assert decoder.close(4, "closed", "") == []


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 20000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xd9\xa3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    ],
)
def test_a_response_with_faulty_framing_is_shown_and_then_refused(data: bytes) -> None:
    for chunks in ([server(data)], byte_by_byte([server(data)])):
        decoder = Http1()
        messages = feed(decoder, [client(GET)])
        with pytest.raises(DecodeError):
            messages += [message for sent in [*chunks, server(b"")] for message in decoder.receive(*sent, 5)]
        assert decoder.close(9, "decode", "broken")[-1][:3] == (1, 9, "decode")


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\nab",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nab",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_a_request_with_faulty_framing_is_shown_with_the_400_that_answers_it(data: bytes) -> None:
    answer = server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    for chunks in ([client(data)], byte_by_byte([client(data)])):
        found = calls(feed(Http1(), [*chunks, answer, client(GET), server(OK)]))
        assert [call.request.start[0] for call in found.values()] == ["POST", "GET"]
        assert [call.response.start[0] for call in found.values()] == [400, 200]
        assert found[1].request.unknown == ("request.body_size", "request.trailers")


# Ends.


def test_a_body_without_length_ends_with_the_connection() -> None:
    decoder = Http1()
    found = calls(feed(decoder, [client(GET), server(b"HTTP/1.0 200 OK\r\n\r\nsome"), server(b" text")]))
    assert not found[1].response.ended
    assert found[1].response.body == b"some text"
    assert decoder.finish(SERVER, 9) == [End(1, 9, SERVER)]
    assert decoder.open_exchanges == 0


def test_a_coding_other_than_chunked_ends_with_the_connection() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxy")])
    assert decoder.finish(SERVER, 9) == [End(1, 9, SERVER)]


@pytest.mark.parametrize(
    ("data", "lack"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "7 of the 10 bytes of the response body are missing"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc", "the end of the response body is missing"),
        (b"HTTP/1.1 200 OK\r\nServer: x\r\nDa", "the end of the response head is missing"),
    ],
)
def test_a_server_that_closes_in_the_middle_fails_the_call(data: bytes, lack: str) -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET), server(data)])
    messages += decoder.finish(SERVER, 9)
    assert messages[-1] == Failed(1, 9, "closed", f"the server closed the connection; {lack}")
    assert calls(messages)[1].response.start == (200, "OK", "HTTP/1.1")
    assert decoder.open_exchanges == 0
    assert decoder.close(10, "closed", "") == []


def test_a_server_that_closes_after_its_client_has_not_given_up_the_call() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")])
    assert decoder.finish(CLIENT, 8) == decoder.finish(SERVER, 9) == []
    assert decoder.close(10, "closed", "the peer closed the connection") == [
        Failed(1, 10, "closed", "the peer closed the connection; 7 of the 10 bytes of the response body are missing")
    ]


def test_an_upload_ends_with_the_answer_that_the_server_breaks_off() -> None:
    decoder = Http1()
    upload = client(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\na")
    feed(decoder, [upload, server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nb")])
    assert [type(message) for message in decoder.finish(SERVER, 5)] == [Failed]
    assert decoder.open_exchanges == 0
    assert decoder.receive(CLIENT, b"bcd", 6) == decoder.close(7, "closed", "") == []


def test_a_body_that_was_refused_and_not_sent_is_no_failure() -> None:
    for finish in (True, False):
        decoder = Http1()
        put = client(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        feed(decoder, [put, server(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")])
        assert decoder.open_exchanges == 1
        messages = decoder.finish(CLIENT, 5) if finish else decoder.close(5, "closed", "")
        assert messages == [End(1, 0, CLIENT)]
        assert decoder.open_exchanges == 0


def test_a_connection_reset_in_the_middle_of_a_response_fails_the_call_as_told() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")])
    messages += decoder.close(9, "reset", "reset by the client")
    assert calls(messages)[1].response.body == b"abc"
    assert messages[-1] == Failed(
        1, 9, "reset", "reset by the client; 7 of the 10 bytes of the response body are missing"
    )


def test_requests_that_are_never_answered_fail_at_the_close_as_told() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), client(GET + b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na")])
    assert decoder.open_exchanges == 3
    assert decoder.close(9, "unanswered", "no answer") == [
        Failed(1, 9, "unanswered", "no answer"),
        Failed(2, 9, "unanswered", "no answer"),
        Failed(3, 9, "unanswered", "no answer; 2 of the 3 bytes of the request body are missing"),
    ]
    assert decoder.open_exchanges == 0
    assert decoder.receive(CLIENT, GET, 10) == []


def test_an_upload_that_was_answered_and_given_up_fails_at_the_close() -> None:
    decoder = Http1()
    feed(decoder, [client(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\na"), server(OK)])
    assert decoder.open_exchanges == 1
    assert decoder.close(9, "reset", "reset") == [
        Failed(1, 9, "reset", "reset; 8 of the 9 bytes of the request body are missing")
    ]


@pytest.mark.parametrize("half_close", [True, False])
def test_a_request_cut_in_its_head_is_a_call_too(half_close: bool) -> None:
    decoder = Http1()
    messages = feed(decoder, [client(b"GET /slow HTTP/1.1\r\nHost: h\r\nX-Part")])
    if half_close:
        messages += decoder.finish(CLIENT, 5)
        assert len(messages) == 1
    messages += decoder.close(9, "closed", "closed by the client")
    assert messages == [
        RequestHead(1, 0, "HTTP/1.1", "GET", "/slow", "h", None, (("host", "h", "Host"),)),
        Failed(1, 9, "closed", "closed by the client; the end of the request head is missing"),
    ]


def test_a_timeout_answer_belongs_to_the_request_that_never_became_whole() -> None:
    decoder = Http1()
    messages = feed(
        decoder,
        [
            client(b"GET /slow HTTP/1.1\r\nHost: h\r\nX-Part"),
            server(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"),
        ],
    )
    messages += decoder.close(9, "closed", "")
    found = calls(messages)
    assert found[1].request.start[1] == "/slow"
    assert found[1].response.start[0] == 408
    assert found[1].failed == ("closed", "the end of the request head is missing")


def test_an_answer_that_nobody_asked_for_is_an_orphan_at_the_close() -> None:
    decoder = Http1()
    messages = feed(
        decoder, [client(GET), server(OK), server(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")]
    )
    messages += decoder.finish(SERVER, 8)
    assert len(calls(messages)) == 1
    messages += decoder.close(9, "closed", "")
    found = calls(messages)
    assert found[2] == Call(
        Half((None, None, "HTTP/1.1", None, None), unknown=http1._ORPHAN_UNKNOWN, ended=True),
        Half((408, "Request Timeout", "HTTP/1.1"), (("connection", "close"),),
             unknown=("response.body", "response.body_size"), ended=True),
    )


def test_a_held_answer_that_turns_out_not_to_be_http1_is_refused_when_it_is_read() -> None:
    held = [server(b"HTTP/1.1 20"), server(b"x OK\r\n\r\n")]
    for read in (
        lambda decoder: decoder.gap(CLIENT, None, 5),
        lambda decoder: decoder.finish(CLIENT, 5),
        lambda decoder: decoder.receive(CLIENT, GET, 5) and decoder.receive(CLIENT, b"", 6),
    ):
        decoder = Http1()
        assert feed(decoder, held) == []
        with pytest.raises(DecodeError):
            read(decoder)
    decoder = Http1()
    feed(decoder, held)
    assert decoder.close(5, "closed", "") == []


def test_nothing_is_held_after_the_end_of_what_is_held() -> None:
    decoder = Http1()
    feed(decoder, [server(b"HTTP/1.0 200 OK\r\n\r\na")])
    assert decoder.finish(SERVER, 1) == decoder.gap(SERVER, 5, 2) == decoder.finish(SERVER, 3) == []
    found = calls(feed(decoder, [client(GET)], 4))
    assert found[1].response == Half((200, "OK", "HTTP/1.0"), body=b"a", ended=True)


# Leaving HTTP/1.


@pytest.mark.parametrize(
    ("ask", "answer", "protocol"),
    [
        (b"GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n", b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n", "websocket"),
        (b"GET / HTTP/1.1\r\nUpgrade: a\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 101 U\r\nUpgrade: b, c\r\n\r\n", "b"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 101 S\r\n\r\n", "unknown"),
        (b"CONNECT h:443 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 Connected\r\nContent-Length: 5\r\n\r\n", "tunnel"),
    ],
)  # fmt: skip
def test_a_switch_ends_the_exchange_and_everything_after_it_is_ignored(
    ask: bytes, answer: bytes, protocol: str
) -> None:
    for chunks in ([client(ask), server(answer + b"\x81\x05hello")], byte_by_byte([client(ask), server(answer)])):
        decoder = Http1()
        messages = feed(decoder, chunks)
        assert messages[-2:] == [End(1, len(chunks) - 1, SERVER), Switched(1, len(chunks) - 1, protocol)]
        assert decoder.switched
        assert feed(decoder, [server(OK), client(GET), client(b"\x81\x85")], 50) == []
        assert decoder.gap(SERVER, None, 60) == decoder.finish(CLIENT, 61) == decoder.close(62, "reset", "") == []


def test_a_switch_waits_for_the_request_to_end() -> None:
    decoder = Http1()
    messages = feed(
        decoder,
        [
            client(b"POST / HTTP/1.1\r\nUpgrade: x\r\nContent-Length: 4\r\n\r\nab"),
            server(b"HTTP/1.1 101 S\r\n\r\n\0\0\0"),
        ],
    )
    assert messages[-1] == End(1, 1, SERVER)
    assert not decoder.switched
    assert decoder.receive(CLIENT, b"cdPRI * HTTP/2.0\r\n", 2) == [
        Data(1, 2, CLIENT, b"cd"), End(1, 2, CLIENT), Switched(1, 2, "x"),
    ]  # fmt: skip


def test_an_upgrade_to_http_2_leaves_the_exchange_open_and_hands_over_what_follows() -> None:
    decoder = Http1()
    messages = feed(
        decoder,
        [
            client(GET), server(OK),
            client(b"POST / HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nab"),
            server(SWITCH + b"\0\0"), server(b"\6\4"),
        ],
    )  # fmt: skip
    assert isinstance(messages[-2], RequestHead)
    assert messages[-1] == Data(2, 2, CLIENT, b"ab")
    assert decoder.receive(CLIENT, b"cdPRI * HTTP/2.0\r\n", 5) == [
        Data(2, 5, CLIENT, b"cd"), End(2, 5, CLIENT), Switched(2, 5, "h2c", 1),
    ]  # fmt: skip
    assert decoder.rest(SERVER) == (b"\0\0\6\4", True)
    assert decoder.rest(CLIENT) == (b"PRI * HTTP/2.0\r\n", True)
    assert decoder.open_exchanges == 0


def test_what_is_handed_over_after_an_upgrade_is_bounded() -> None:
    decoder = Http1()
    feed(decoder, [client(b"POST / HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\n"), server(SWITCH)])
    for _ in range(5):
        decoder.receive(SERVER, bytes(HELD_LIMIT // 4), 2)
    decoder.receive(CLIENT, b"a", 3)
    assert decoder.rest(SERVER) == (bytes(HELD_LIMIT), False)


@pytest.mark.parametrize("ask", [b"CONNECT h:443 HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n"])
@pytest.mark.parametrize("early", [b"\x16\x03\x01\0\x05\x01", b"hello\r\n", b"hello"])
def test_what_the_client_sends_ahead_of_the_switch_is_no_error(ask: bytes, early: bytes) -> None:
    for chunks in ([client(early)], byte_by_byte([client(early)])):
        decoder = Http1()
        messages = feed(decoder, [client(ask), *chunks, server(b"HTTP/1.1 101 S\r\n\r\n")])
        assert isinstance(messages[-1], Switched)


def test_what_the_client_sends_into_a_body_without_end_is_no_error() -> None:
    decoder = Http1()
    feed(decoder, [client(b"POST /exec HTTP/1.1\r\n\r\n"), server(b"HTTP/1.1 200 OK\r\n\r\nout"), client(b"\0stdin")])
    assert decoder.receive(SERVER, b"put", 5) == [Data(1, 5, SERVER, b"put")]


# Gaps. `Http1` is told of them between the chunks of a conversation.


def test_a_gap_inside_a_body_of_known_length_costs_those_bytes_only() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab")])
    assert decoder.gap(CLIENT, 4, 5) == [Data(1, 5, CLIENT, b"", 4)]
    messages += feed(decoder, [client(b"xyz"), server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")], 6)
    assert decoder.gap(SERVER, 4, 9) == [Data(1, 9, SERVER, b"", 4)]
    messages += feed(decoder, [server(b"e"), client(GET), server(OK)], 10)
    found = calls(messages)
    assert found[1].request.body == b"abxyz"
    assert found[1].response.body == b"e"
    assert rows({2: found[2]}) == [("GET", "/", b"", 200, b"ok")]


def test_a_gap_that_ends_with_the_body_keeps_step() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET + GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na")])
    assert decoder.gap(SERVER, 4, 5) == [Data(1, 5, SERVER, b"", 4), End(1, 5, SERVER)]
    messages = feed(decoder, [server(OK)], 6)
    assert messages[0][:4] == (2, 6, "HTTP/1.1", 200)


def test_a_gap_that_is_noticed_after_the_next_request_does_not_make_the_client_one_that_pipelines() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na"), client(GET)])
    decoder.gap(SERVER, 4, 3)
    feed(decoder, [server(OK), client(GET)], 4)
    decoder.gap(SERVER, None, 6)
    messages = feed(decoder, [client(GET), server(OK)], 7)
    assert messages[-1] == End(4, 8, SERVER)


def test_a_gap_inside_a_chunk_costs_those_bytes_only() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na")])
    assert decoder.gap(SERVER, 4, 5) == [Data(1, 5, SERVER, b"", 4)]
    assert decoder.receive(SERVER, b"\r\n1\r\nx\r\n0\r\n\r\n", 6) == [Data(1, 6, SERVER, b"x"), End(1, 6, SERVER)]


def test_a_gap_in_a_body_without_length_costs_those_bytes_only() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\n\r\na")])
    assert decoder.gap(SERVER, 4, 5) == [Data(1, 5, SERVER, b"", 4)]
    assert decoder.gap(SERVER, None, 6) == [Lost(1, 6, SERVER, 0, ("response.body_size",))]
    assert decoder.finish(SERVER, 7) == [End(1, 7, SERVER)]


@pytest.mark.parametrize("size", [8, 5000, None])
def test_a_gap_beyond_a_body_ends_it_and_the_next_call_is_whole(size: int | None) -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")])
    assert decoder.gap(SERVER, size, 5) == [Data(1, 5, SERVER, b"", 7), End(1, 5, SERVER)]
    messages = feed(decoder, [server(b"rest of something"), client(b"GET /2 HTTP/1.1\r\n\r\n"), server(OK)], 6)
    assert [type(message) for message in messages] == [RequestHead, End, ResponseHead, Data, End]
    assert {message.stream for message in messages} == {2}


@pytest.mark.parametrize(
    ("before", "unknown"),
    [
        (b"5\r\na", ("response.body_size", "response.trailers")),
        (b"5", ("response.body_size", "response.trailers")),
        (b"5\r\nabcde", ("response.body_size", "response.trailers")),
        (b"0\r\n", ("response.trailers",)),
        (b"0\r\nA: b\r\n", ("response.trailers",)),
    ],
)
def test_a_gap_in_chunk_framing_ends_the_message_and_says_what_is_not_known(
    before: bytes, unknown: tuple[str, ...]
) -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + before)])
    assert decoder.gap(SERVER, 20, 5) == [Lost(1, 5, SERVER, 20, unknown), End(1, 5, SERVER)]
    assert feed(decoder, [server(b"\r\n5\r\nhello\r\n0\r\n\r\n"), server(b"HTTP/1.1"), server(b"X")], 6) == []
    assert rows(calls(_renumbered(feed(decoder, [client(GET), server(OK)], 10)))) == [("GET", "/", b"", 200, b"ok")]


def test_a_gap_in_a_request_head_keeps_what_is_whole() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(b"POST /a HTTP/1.1\r\nHost: h\r\nA: b\r\n")])
    messages += decoder.gap(CLIENT, 10, 5)
    assert messages == [
        RequestHead(
            1, 0, "HTTP/1.1", "POST", "/a", "h", None, (("host", "h", "Host"),), ("request.headers", "request.body")
        ),
        Lost(1, 5, CLIENT, 10, ("request.body_size", "request.trailers")),
        End(1, 5, CLIENT),
    ]
    found = calls([*messages, *feed(decoder, [client(b": c\r\n\r\n"), server(OK), client(GET), server(NO_CONTENT)], 6)])
    assert [call.response.start[0] for call in found.values()] == [200, 204]


def test_a_gap_in_a_response_head_keeps_what_is_whole() -> None:
    decoder = Http1()
    feed(decoder, [client(GET), server(b"HTTP/1.1 500 Oh\r\nServer: s\r\nContent-Le")])
    assert decoder.gap(SERVER, 10, 5) == [
        ResponseHead(1, 1, "HTTP/1.1", 500, "Oh", (("server", "s", "Server"),), ("response.headers", "response.body")),
        Lost(1, 5, SERVER, 10, ("response.body_size", "response.trailers")),
        End(1, 5, SERVER),
    ]


def test_an_authority_that_was_in_the_gap_is_not_known() -> None:
    decoder = Http1()
    decoder.receive(CLIENT, b"GET / HTTP/1.1\r\nHo", 1)
    head = decoder.gap(CLIENT, None, 5)[0]
    assert isinstance(head, RequestHead)
    assert head.unknown == ("request.authority", "request.headers", "request.body")


def test_a_lost_request_makes_its_answer_an_orphan_and_the_next_call_is_whole() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET), server(OK)])
    messages += decoder.gap(CLIENT, 30, 5)
    messages += feed(decoder, [server(NO_CONTENT), client(b"GET /3 HTTP/1.1\r\n\r\n"), server(OK)], 6)
    found = calls(messages)
    assert [call.request.start[1] for call in found.values()] == ["/", None, "/3"]
    assert [call.response.start[0] for call in found.values()] == [200, 204, 200]
    assert found[2].request.unknown == http1._ORPHAN_UNKNOWN
    assert found[3].response.ended


def test_an_answer_older_than_the_request_seen_after_a_gap_is_an_orphan() -> None:
    decoder = Http1()
    messages = decoder.gap(CLIENT, 30, 1)
    messages += decoder.receive(CLIENT, b"GET /2 HTTP/1.1\r\n\r\n", 5)
    messages += decoder.receive(SERVER, b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 4)
    messages += decoder.receive(SERVER, OK, 6)
    found = calls(messages)
    assert {number: (call.request.start[1], call.response.start[0]) for number, call in found.items()} == {
        1: ("/2", 200), 2: (None, 201),
    }  # fmt: skip


def test_requests_before_a_gap_still_get_their_answers() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")])
    messages += decoder.gap(CLIENT, 30, 5)
    messages += feed(decoder, [server(OK), server(NO_CONTENT), server(OK)], 6)
    found = calls(messages)
    assert [call.request.start[1] for call in found.values()] == ["/1", "/2", None]


def test_a_held_answer_is_an_orphan_once_its_request_is_known_to_be_lost() -> None:
    decoder = Http1()
    assert feed(decoder, [server(OK)]) == []
    messages = decoder.gap(CLIENT, None, 5)
    assert [type(message) for message in messages] == [RequestHead, End, ResponseHead, Data, End]
    messages += decoder.receive(CLIENT, GET, 6)
    messages += decoder.close(7, "closed", "")
    found = calls(messages)
    assert found[1].response.body == b"ok"
    assert found[2].failed == ("closed", "")


def test_a_lost_answer_is_marked_and_the_next_call_of_a_client_that_takes_turns_is_whole() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(b"GET /1 HTTP/1.1\r\n\r\n"), client(b"GET /2 HTTP/1.1\r\n\r\n")])
    messages += decoder.gap(SERVER, 40, 5)
    messages += feed(decoder, [server(OK), client(b"GET /3 HTTP/1.1\r\n\r\n"), server(NO_CONTENT)], 6)
    found = calls(messages)
    assert found[1] == Call(
        Half(("GET", "/1", "HTTP/1.1", None, None), ended=True), Half(unknown=("response",), ended=True)
    )
    assert [call.response.start[0] for call in (found[2], found[3])] == [200, 204]
    assert decoder.open_exchanges == 0


def test_a_lost_answer_is_reported_when_the_next_request_begins() -> None:
    decoder = Http1()
    decoder.receive(CLIENT, GET, 1)
    decoder.gap(SERVER, 40, 2)
    messages = decoder.receive(CLIENT, GET, 3)
    assert messages[:2] == [Lost(1, 3, SERVER, 0, ("response",)), End(1, 3, SERVER)]
    assert decoder.open_exchanges == 1


def test_after_a_lost_answer_the_answers_to_a_client_that_pipelines_are_orphans() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET + GET), client(GET)])
    messages += decoder.gap(SERVER, 40, 5)
    messages += feed(decoder, [server(OK), server(NO_CONTENT), client(GET), server(OK)], 6)
    found = calls(messages)
    lost = [number for number, call in found.items() if call.response.unknown == ("response",)]
    orphans = [number for number, call in found.items() if call.request.start[0] is None]
    assert (lost, orphans) == ([1, 2, 3, 6], [4, 5, 7])


def test_a_client_that_takes_turns_again_is_trusted_again() -> None:
    decoder = Http1()
    feed(decoder, [client(GET + GET), server(OK + OK)])
    for _ in range(http1.TURNS):
        feed(decoder, [client(GET), server(OK)])
    messages = feed(decoder, [client(GET), client(b"GET /next HTTP/1.1\r\n\r\n")], 50)
    messages += decoder.gap(SERVER, 40, 60)
    assert decoder.receive(SERVER, OK, 61) == []
    last = messages[-1].stream
    assert [message[:2] for message in decoder.receive(CLIENT, GET, 62)] == [
        (last - 1, 61), (last - 1, 61), (last, 61), (last, 61), (last, 61), (last + 1, 62), (last + 1, 62),
    ]  # fmt: skip


def test_an_answer_that_may_have_been_lost_is_not_called_unanswered_alone() -> None:
    decoder = Http1()
    decoder.receive(CLIENT, GET, 1)
    decoder.gap(SERVER, None, 2)
    assert decoder.close(3, "unanswered", "no answer") == [
        Lost(1, 3, SERVER, 0, ("response",)),
        Failed(1, 3, "unanswered", "no answer"),
    ]


def test_a_gap_of_nothing_is_nothing() -> None:
    decoder = Http1()
    feed(decoder, [client(GET)])
    assert decoder.gap(SERVER, 0, 2) == []
    assert len(decoder.receive(SERVER, OK, 3)) == 3


def test_resynchronising_needs_a_message_at_the_start_of_a_chunk() -> None:
    decoder = Http1()
    feed(decoder, [client(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")])
    decoder.gap(CLIENT, 100, 1)
    for noise in (
        b"see " + GET,
        b"\r\n\r\n" + GET,
        b"GET /index.html",
        b" or so",
        b"GET / HTTP/2\r\n\r\n",
        b"x" * 9000,
    ):
        assert decoder.receive(CLIENT, noise, 2) == []
    messages = feed(decoder, byte_by_byte([client(b"GET /real HTTP/1.1\r\n\r\n")]), 3)
    assert messages[0][:5] == (2, 3, "HTTP/1.1", "GET", "/real")


# Joined in the middle.


def test_a_connection_joined_between_messages_is_in_step_at_once() -> None:
    assert rows(calls(feed(Http1(joined=True), [client(GET), server(OK)]))) == [("GET", "/", b"", 200, b"ok")]


def test_a_connection_joined_inside_bodies_goes_on_with_the_next_messages() -> None:
    decoder = Http1(joined=True)
    messages = feed(decoder, [client(b"end of a body"), server(b"of a\r\n\r\nbody"), client(GET), server(OK)])
    assert rows(calls(messages)) == [("GET", "/", b"", 200, b"ok")]


def test_an_answer_to_a_request_before_the_join_is_an_orphan() -> None:
    found = calls(feed(Http1(joined=True), [server(OK), client(GET), server(NO_CONTENT)]))
    assert [(call.request.start[0], call.response.start[0]) for call in found.values()] == [(None, 200), ("GET", 204)]
    assert found[1].response.body == b"ok"


def test_an_orphan_that_began_after_the_request_did_was_its_answer() -> None:
    decoder = Http1(joined=True)
    begin, rest = client(b"GET / HTTP/1.1\r\nHo"), client(b"st: h\r\n\r\n")
    messages = feed(decoder, [begin, server(OK), rest, server(NO_CONTENT)])
    found = calls(messages)
    assert [(call.request.start[0], call.response.start[:1]) for call in found.values()] == [
        (None, (200,)), ("GET", ()), (None, (204,)),
    ]  # fmt: skip
    assert found[2].response == Half(unknown=("response",), ended=True)


def test_a_joined_connection_that_has_taken_turns_holds_an_early_answer_again() -> None:
    decoder = Http1(joined=True)
    for _ in range(http1.TURNS):
        feed(decoder, [client(GET), server(OK)])
    messages = feed(decoder, [server(NO_CONTENT), client(b"GET /late HTTP/1.1\r\n\r\n")])
    assert [message.stream for message in messages] == [http1.TURNS + 1] * 4


def test_a_joined_connection_with_an_answer_too_many_pairs_nothing_more() -> None:
    decoder = Http1(joined=True)
    messages = feed(decoder, [client(b"GET /1 HTTP/1.1\r\n\r\n"), server(OK), server(OK), client(GET), server(OK)])
    found = calls(messages)
    assert [bool(call.request.start[0] and call.response.start) for call in found.values()] == [
        True,
        False,
        False,
        False,
    ]


def test_the_answer_to_an_unseen_head_is_not_given_the_next_answer_as_its_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    for chunks in ([server(head + OK)], [server(head), server(OK)], byte_by_byte([server(head + OK)])):
        found = calls(feed(Http1(joined=True), chunks))
        assert [(call.response.body, call.response.ended) for call in found.values()] == [(b"", True), (b"ok", True)]


def test_the_body_of_an_orphan_may_begin_like_a_status_line() -> None:
    decoder = Http1(joined=True)
    messages = feed(decoder, byte_by_byte([server(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nHTTP/1.1")]))
    messages += decoder.finish(SERVER, 99)
    found = calls(messages)
    assert (found[1].response.body, found[1].response.ended) == (b"HTTP/1.1", True)


def test_an_orphan_without_its_body_says_so() -> None:
    decoder = Http1(joined=True)
    messages = feed(decoder, [server(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")])
    assert decoder.open_exchanges == 1
    messages += decoder.finish(SERVER, 9)
    assert calls(messages)[1].response.unknown == ("response.body", "response.body_size")
    assert decoder.open_exchanges == 0


def test_an_orphan_that_switches_protocols_switches() -> None:
    decoder = Http1(joined=True)
    assert feed(decoder, [server(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n")])[-1] == Switched(1, 0, "websocket")


# Limits.


def test_a_head_over_the_limit_is_cut_and_its_call_goes_on() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(b"GET /big HTTP/1.1\r\nA: b\r\nCookie: "), client(b"x" * http1.HEAD_LIMIT)])
    assert isinstance(messages[0], RequestHead)
    assert messages[0].path == "/big"
    assert messages[0].unknown == ("request.authority", "request.headers", "request.body")
    assert len(decoder._requests.buffer) == 0
    messages += feed(decoder, [client(b"x" * 100), server(b"HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\n\r\n")], 5)
    found = calls(messages)
    assert found[1].response.start[0] == 431


def test_trailers_over_the_limit_are_cut() -> None:
    decoder = Http1()
    messages = feed(decoder, [client(GET), server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ")])
    messages += decoder.receive(SERVER, b"x" * http1.HEAD_LIMIT, 5)
    assert calls(messages)[1].response.unknown == ("response.trailers",)


def test_too_many_requests_without_an_answer_are_refused() -> None:
    decoder = Http1()
    for _ in range(http1.PENDING_LIMIT):
        decoder.receive(CLIENT, GET, 1)
    with pytest.raises(DecodeError):
        decoder.receive(CLIENT, GET, 2)


@pytest.mark.parametrize("piece", [1, 100_000])
def test_a_held_answer_over_the_limit_keeps_its_pair_and_marks_what_is_lost(piece: int) -> None:
    size = 1_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    decoder = Http1()
    feed(decoder, [server(head), *(server(b"x" * piece) for _ in range(min(size // piece, 5000)))])
    sent = min(size, 5000 * piece)
    assert sum(len(held.data) for held in decoder._held) < http1.HELD_LIMIT
    assert len(decoder._held) < http1.HELD_LIMIT / http1.HELD_ENTRY_COST + 3
    feed_rest = decoder.gap(SERVER, size - sent, 7)
    assert feed_rest == []
    messages = feed(decoder, [server(OK), client(GET), client(GET)], 10)
    found = calls(messages)
    assert found[1].response.ended
    assert len(found[1].response.body) + found[1].response.lost == size
    assert found[1].response.lost > 0
    assert decoder.open_exchanges == 1


def _renumbered(messages: list[object]) -> list[object]:
    first = messages[0].stream - 1
    return [message._replace(stream=message.stream - first) for message in messages]
