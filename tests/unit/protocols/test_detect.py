from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apitrace.protocols.detect import LINE_LIMIT, Detection, detect

# The first six bytes of hellos as OpenSSL 3 sends them (record header, handshake type), and what follows.
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
SERVER_HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"

POSITIVE = [
    (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", Detection.HTTP1_REQUEST),
    (b"POST /a?b=c HTTP/1.0\n", Detection.HTTP1_REQUEST),
    (b"OPTIONS * HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"CONNECT h:443 HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"GET http://h/ HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"PROPFIND /dav HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"M-SEARCH * HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"x!y  \t/\xe9  HTTP/1.1 \r\n", Detection.HTTP1_REQUEST),
    (b"HEAD / HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"HELLO / HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"PRINT / HTTP/1.1\r\n", Detection.HTTP1_REQUEST),
    (b"HTTP/1.1 200 OK\r\n", Detection.HTTP1_RESPONSE),
    (b"HTTP/1.0  404\r\n", Detection.HTTP1_RESPONSE),
    (b"HTTP/1.1 999 \r\n", Detection.HTTP1_RESPONSE),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04", Detection.HTTP2_PREFACE),
    (CLIENT_HELLO, Detection.TLS),
    (SERVER_HELLO, Detection.TLS),
]


@pytest.mark.parametrize(("data", "expected"), POSITIVE)
def test_a_protocol_is_recognised_and_never_taken_for_another_on_the_way(data: bytes, expected: Detection) -> None:
    assert detect(data) is expected
    seen = [detect(data[:size]) for size in range(len(data) + 1)]
    assert set(seen) <= {Detection.NOT_YET, expected}
    assert seen == sorted(seen, key=[Detection.NOT_YET, expected].index)


@pytest.mark.parametrize(("data", "expected"), POSITIVE)
def test_empty_lines_before_it_do_not_matter(data: bytes, expected: Detection) -> None:
    assert detect(b"\r\n\n" + data) is expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET /", Detection.HTTP1_REQUEST),
        (b"GET /a b", Detection.HTTP1_REQUEST),
        (b"GET https://", Detection.HTTP1_REQUEST),
        (b"DELETE /" + b"a" * (LINE_LIMIT - 100), Detection.HTTP1_REQUEST),
        (b"GET", Detection.NOT_YET),
        (b"GET ", Detection.NOT_YET),
        (b"GET key", Detection.NOT_YET),
        (b"CONNECT h:443", Detection.NOT_YET),
        (b"OPTIONS *", Detection.NOT_YET),
        (b"FROB / HTTP/1.1", Detection.NOT_YET),
        (b"FROB / HTTP/1.1 \r", Detection.NOT_YET),
        (b"HTTP/1.1 200", Detection.NOT_YET),
        (b"H", Detection.NOT_YET),
        (b"", Detection.NOT_YET),
        (b"\r\n", Detection.NOT_YET),
        (b"hello", Detection.NOT_YET),
        (b"PRI * HTTP/2.0\r\n", Detection.NOT_YET),
        (b"\x16\x03", Detection.NOT_YET),
    ],
)
def test_a_beginning_says_as_much_as_it_can(data: bytes, expected: Detection) -> None:
    assert detect(data) is expected


@pytest.mark.parametrize(
    "data",
    [
        b"GET key\r\n",  # Redis inline, memcached
        b"GET /\r\n",  # HTTP/0.9
        b"OPTIONS * RTSP/1.0\r\n",
        b"OPTIONS sip:h SIP/2.0\r\n",
        b"GET / HTTP/1.1x\r\n",
        b"GET / HTTP/3.0\r\n",
        b"A" * 33 + b" / HTTP/1.1\r\n",
        b"A" * 33,
        b"FROB /" + b"a" * LINE_LIMIT,
        b"*3\r\n$3\r\nSET\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 2000\r\n",
        b"HTTP/1.1 099 \r\n",
        b"HTTP/1.x",
        b"ICY 200 OK\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",  # PostgreSQL SSLRequest
        b"\x4a\0\0\0\x0a8.0.36\0",  # MySQL greeting
        b"\x16\x02",
        b"\x16\x03\x09",
        b"\x16\x03\x03\x00\x10\x14",  # an encrypted Finished
        b"\x16\x03\x03\xff\xff\x01",
        b"\x16\x03\x03\x00\x01\x01",
        b"\x17\x03\x03\x00\x20",
        b" GET / HTTP/1.1\r\n",
        b'{"jsonrpc": "2.0"}',
        b"\xff",
    ],
)
def test_other_protocols_are_not_recognised(data: bytes) -> None:
    assert detect(data) is Detection.UNKNOWN


words = st.lists(st.sampled_from([b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\x16"])).map(b"".join)


@given(st.binary(max_size=40) | words)
def test_any_bytes_get_an_answer_that_more_bytes_refine_but_do_not_revoke(data: bytes) -> None:
    answers = [detect(data[:size]) for size in range(len(data) + 1)]
    final = next((answer for answer in answers if answer is not Detection.NOT_YET), Detection.NOT_YET)
    if final is Detection.UNKNOWN:
        assert answers[-1] is Detection.UNKNOWN
    if final in {Detection.TLS, Detection.HTTP1_RESPONSE, Detection.HTTP2_PREFACE}:
        assert answers[-1] is final
