from __future__ import annotations

import pytest

from apitrace.protocols.decoder import CLIENT, SERVER
from apitrace.protocols.detect import Detection, detect
from apitrace.protocols.frames import inside, sender, starts
from tests.unit.protocols.http2_tools import GET, OK, Peer

client, server = Peer(CLIENT), Peer(SERVER)
ASK, ANSWER = client.headers(3, GET, end=True), server.headers(3, OK)
STARTS = {
    "a header block": ASK,
    "a padded header block with a priority": Peer(CLIENT).headers(3, GET, pad=9, priority=True),
    "a window update": client.window(),
    "two window updates": client.window() + client.window(3),
    "settings": client.settings(max_frame_size=20000),
    "an acknowledgement": client.ack(),
    "a reset": client.reset(3, 8),
    "a body and its end": client.data(3, b"x" * 30) + client.data(3, b"", end=True),
    "three frames and the begin of a fourth": client.data(3, b"x" * 30) * 3 + client.data(3, b"x" * 30)[:20],
    "a window update and a header block": client.window() + ASK,
}


@pytest.mark.parametrize("name", STARTS)
def test_frames_begin_here(name: str) -> None:
    data = STARTS[name]
    assert starts(data)
    assert all(starts(data[:size]) is not False for size in range(len(data)))


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", None),
        (b"\0\0", None),
        (client.data(3, b"x" * 30), None),  # one frame of many forms
        (client.data(3, b"x" * 30)[:20], None),
        (client.data(3, b"x" * 30) * 2 + b"\0\0", None),
        (client.ping() + b"\0\0\1\1\4\0\0\0\3", None),
        (bytes(9), False),
        (bytes(900), False),
        (b"\0\0\0\0\0\0\0\0\1", False),  # an empty body that does not end
        (b"\0\0\4\x0b\0\0\0\0\1abcd", False),
        (b"\0\0\4\1\xff\0\0\0\1abcd", False),
        (b"\0\0\4\1\4\0\0\0\0abcd", False),
        (b"\0\0\4\1\4\x80\0\0\1abcd", False),
        (b"\0\x41\0\0\0\0\0\0\1", False),
        (b"\0\0\4\1\4\0\0\0\1\x40\x7fab", False),  # a header block that is none
        (b"\0\0\5\x08\0\0\0\0\0", False),
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", False),  # PostgreSQL SSLRequest
        (b"\0\0\0\x14\0\x12\0\x04", False),  # Kafka
        (b"\x00\x00\x00\x01\x00\x00\x00\x00\x00", False),
    ],
)
def test_frames_may_begin_here_or_not(data: bytes, answer: bool | None) -> None:
    assert starts(data) is answer


def test_frames_inside_are_found_only_where_the_chain_is_longer_than_a_frame() -> None:
    frames = server.data(3, bytes(range(256)) * 8)
    assert inside(b"x" * 100 + frames * 9) == 100
    assert inside(b"x" * 100 + frames * 7) is None
    assert inside(b"x" * 100) is None
    assert inside(b"x" * 100 + frames * 3 + b"x" + frames * 9) == 100 + 3 * len(frames) + 1


@pytest.mark.parametrize(
    ("data", "side"),
    [
        (ASK, CLIENT),
        (client.window() + ASK, CLIENT),
        (ANSWER, SERVER),
        (server.ping() + server.headers(3, (("grpc-status", "0"),), end=True), SERVER),
        (server.headers(1, GET, promised=2), SERVER),
        (server.headers(3, (("x-sum", "0"),), end=True), None),
        (client.settings() + client.ping(), None),
        (client.headers(3, (("a", "b"),))[:-1], None),
    ],
)
def test_a_header_block_tells_who_sends_it(data: bytes, side: int | None) -> None:
    assert sender(data) is side


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ASK, Detection.HTTP2_REQUEST),
        (ANSWER, Detection.HTTP2_RESPONSE),
        (server.settings(max_concurrent_streams=3), Detection.HTTP2_SETTINGS),
        (server.settings() + ANSWER, Detection.HTTP2_RESPONSE),
        (server.window(), Detection.NOT_YET),
        (server.ack(), Detection.NOT_YET),
        (server.data(3, b"abc"), Detection.NOT_YET),
        (b"\0", Detection.NOT_YET),
        (b"\0\0\0\x10\0\0", Detection.UNKNOWN),
    ],
)
def test_frames_without_a_preface_are_detected(data: bytes, found: Detection) -> None:
    assert detect(data) is found
