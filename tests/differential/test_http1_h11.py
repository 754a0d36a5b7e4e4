"""h11 decodes the same streams to the same heads, bodies and trailers.

The streams are written here, in the spellings that both accept: bare LF, folded lines, white space around values,
lengths said twice, chunk extensions, HTTP/1.0, no reason phrase. h11 is an endpoint, so it reads the requests as a
server that answers each, and the responses as a client that asked for each.
"""

from __future__ import annotations

from typing import NamedTuple

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.protocols.decoder import CLIENT, SERVER
from apitrace.protocols.http1 import Http1
from tests.unit.protocols.http1_tools import calls

Pairs = tuple[tuple[str, str], ...]


class Read(NamedTuple):
    """A message as either decoder reads it."""

    start: tuple[object, ...]
    headers: Pairs
    body: bytes
    trailers: Pairs


token = st.text(st.sampled_from("abcXYZ09-_.!~"), min_size=1, max_size=8)
text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=10)
space = st.sampled_from(["", " ", "\t", "  "])
line_end = st.sampled_from(["\r\n", "\r\n", "\n"])


@st.composite
def field_lines(draw: st.DrawFn, end: str) -> str:
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        value = draw(text) + draw(st.sampled_from(["", " and more", f"{end} folded", f"{end}\tfolded{end} twice"]))
        lines.append(f"X-{draw(token)}:{draw(space)}{value}{draw(space)}{end}")
    return "".join(lines)


@st.composite
def framings(draw: st.DrawFn, end: str) -> tuple[str, bytes]:
    """The header lines that frame a body, and the body."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
    whole = b"".join(pieces)
    size = len(whole)
    if draw(st.booleans()):
        lines = draw(st.sampled_from([f"Content-Length: {size}{end}", f"content-length:{size}, {size}{end}"]))
        return lines, whole
    spelling = draw(st.sampled_from(["%x", "%X", "0%x"]))
    extension = draw(st.sampled_from([b"", b";a", b";a=b;c"]))
    body = b"".join((spelling % len(piece)).encode() + extension + b"\r\n" + piece + b"\r\n" for piece in pieces)
    trailers = draw(field_lines("\r\n")).encode()
    return f"Transfer-Encoding: chunked{end}", body + b"0" + extension + b"\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    end = draw(line_end)
    lines, body = draw(framings(end)) if draw(st.booleans()) else ("", b"")
    start = f"{draw(token)} /{draw(text)} HTTP/1.1{end}Host: h{end}"
    return (start + draw(field_lines(end)) + lines + end).encode() + body


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    end = draw(line_end)
    status = draw(st.sampled_from([200, 204, 206, 304, 404, 503]))
    lines, body = draw(framings(end))
    if status in {204, 304}:
        body = b""
    reason = draw(st.sampled_from(["", " ", " OK", " Not  at all"]))
    start = f"HTTP/1.1 {status}{reason}{end}"
    return (start + draw(field_lines(end)) + lines + end).encode() + body


def by_h11(connection: h11.Connection, data: bytes) -> tuple[Read, bytes]:
    """Let h11 read one message, and return it and the bytes after it."""
    connection.receive_data(data)
    start: tuple[object, ...] = ()
    headers: Pairs = ()
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            start, headers = (event.method.decode(), event.target.decode(), _version(event)), _pairs(event)
        elif isinstance(event, h11.Response):
            start, headers = (event.status_code, event.reason.decode(), _version(event)), _pairs(event)
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            assert isinstance(event, h11.EndOfMessage), event
            return Read(start, headers, body, _pairs(event)), connection.trailing_data[0]


def _version(event: h11.Request | h11.Response) -> str:
    return f"HTTP/{event.http_version.decode()}"


def _pairs(event: h11.Request | h11.Response | h11.EndOfMessage) -> Pairs:
    return tuple((name.decode(), value.decode()) for name, value in event.headers)


def without_lengths(read: Read) -> Read:
    """h11 rewrites "5, 5" as "5", and moves nothing else."""
    return read._replace(headers=tuple(pair for pair in read.headers if pair[0] != "content-length"))


@settings(deadline=None)
@given(st.lists(st.tuples(requests(), responses()), min_size=1, max_size=4), st.integers(1, 50))
def test_h11_reads_the_same(exchanges: list[tuple[bytes, bytes]], size: int) -> None:
    asked, answered = (b"".join(stream) for stream in zip(*exchanges, strict=True))
    decoder = Http1()
    messages = [
        message
        for side, stream in ((CLIENT, asked), (SERVER, answered))
        for i in range(0, len(stream), size)
        for message in decoder.receive(side, stream[i : i + size], i)
    ]
    found = calls(messages)
    assert len(found) == len(exchanges)
    for call in found.values():
        request, asked = by_h11(h11.Connection(h11.SERVER), asked)
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=str(request.start[0]), target="/", headers=[("Host", "h")]))
        client.send(h11.EndOfMessage())
        response, answered = by_h11(client, answered)
        start = (*call.request.start[:3],)
        assert without_lengths(Read(start, *call.request[1:3], call.request.trailers)) == without_lengths(request)
        assert without_lengths(Read(*call.response[:3], call.response.trailers)) == without_lengths(response)
    assert asked == answered == b""


@settings(deadline=None)
@given(st.binary(max_size=100), st.sampled_from([b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"]))
def test_h11_reads_the_same_body_until_the_server_closes(body: bytes, head: bytes) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head + body)
    client.receive_data(b"")
    expected = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        expected += event.data if isinstance(event, h11.Data) else b""
    decoder = Http1()
    messages = decoder.receive(CLIENT, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 1)
    messages += decoder.receive(SERVER, head + body, 2)
    messages += decoder.finish(SERVER, 3)
    response = calls(messages)[1].response
    assert response.ended
    assert response.body == expected
