"""Calls out of exchanges: names, status, messages and their times, from messages of the decoders made by hand."""

from __future__ import annotations

import base64
import gzip
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from apitrace.assemble import Assembler
from apitrace.connection import Batch, Budget, Gone, Processes, TrackedConnection, Unordered
from apitrace.exchange import CallMessage, Exchange, Grpc, Header, Progress
from apitrace.options import ALL, STREAMING, CallOptions
from apitrace.protocols import grpc as module
from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    End,
    Failed,
    Lost,
    RequestHead,
    ResponseHead,
    Trailers,
)
from apitrace.protocols.grpc import STATUSES, ContentType, content_type, names, read_section, timeout_ns
from apitrace.protocols.hpack import Hpack
from apitrace.stats import Stats
from tests.unit.test_connection import Wire

if TYPE_CHECKING:
    from apitrace.connection import AnyMessage
    from apitrace.exchange import Headers

OFFSET = 1_700_000_000_000_000_000
HELLO = b"\x0a\x05hello"
HELLO_DATA = {"1": {"string": "hello"}}


def headers(**fields: str) -> Headers:
    return tuple(Header(name.replace("_", "-"), value, name.replace("_", "-")) for name, value in fields.items())


def framed(content: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BL", flags, len(content)) + content


def request(at: int = 100, **fields: Any) -> RequestHead:
    values: dict[str, Any] = {
        "version": "HTTP/2", "method": "POST", "path": "/pkg.Greeter/Hello", "authority": "h.test", "scheme": "http",
        "headers": headers(content_type="application/grpc", te="trailers"),
    }  # fmt: skip
    return RequestHead(1, at, **(values | fields))


def response(at: int = 300, **fields: Any) -> ResponseHead:
    values: dict[str, Any] = {
        "version": "HTTP/2", "status_code": 200, "reason": None, "headers": headers(content_type="application/grpc"),
    }  # fmt: skip
    return ResponseHead(1, at, **(values | fields))


def sent(content: bytes, at: int = 150, side: int = CLIENT) -> Data:
    return Data(1, at, side, content)


def answered(content: bytes, at: int = 350) -> Data:
    return Data(1, at, SERVER, content)


def trailers(status: str = "0", **fields: str) -> Trailers:
    return Trailers(1, 500, SERVER, headers(grpc_status=status, **fields))


WEB = "application/grpc-web+proto"
WEB_TRAILERS = b"grpc-status: 5\r\ngrpc-message:no%21\r\nX-Cost: 3\r\n"
WEB_BODY = framed(HELLO) + framed(WEB_TRAILERS, 128)

END = (End(1, 200, CLIENT), End(1, 600, SERVER))


class Bench:
    def __init__(self, *, snaplen: int = 65536, live: int = 0, data: bool = True) -> None:
        self.stats = Stats()
        self.assembler = Assembler(
            stats=self.stats, clock_offset_ns=OFFSET, snaplen=snaplen, calls=CallOptions(live, data)
        )
        self.connection = TrackedConnection(Wire().socket(), Processes(), Budget())
        self.connection.role = "server"

    def feed(self, *messages: AnyMessage) -> list[Any]:
        return list(self.assembler.feed(Batch(self.connection, 10, 11, messages)))

    def one(self, *messages: AnyMessage) -> Exchange:
        [exchange] = self.feed(*messages)
        assert isinstance(exchange, Exchange)
        assert self.assembler._terms.room.left == module.ROOM
        return exchange

    def call(self, *messages: AnyMessage) -> Grpc:
        call = self.one(*messages).grpc
        assert call is not None
        return call


def seen(content: bytes, at: int | None, data: Any, **fields: Any) -> CallMessage:
    values: dict[str, Any] = {"compressed": False, "encoding": "guess", "truncated": False, "size": len(content)}
    timestamp = None if at is None else OFFSET + at
    return CallMessage(timestamp=timestamp, data=data, **(values | fields))


# -- a whole call --------------------------------------------------------------------------------------------------


def test_a_unary_call_has_names_status_metadata_and_messages_with_their_times() -> None:
    head = request(
        headers=headers(
            content_type="application/grpc+proto", te="trailers", grpc_timeout="250m", user_agent="test", x_id="7",
            trace_bin="AAE",
        )
    )  # fmt: skip
    answer = response(headers=headers(content_type="application/grpc", x_region="eu", grpc_accept_encoding="gzip"))
    call = Bench().call(
        head, sent(framed(HELLO)), answer, answered(framed(b"\x08\x07")), trailers(x_cost="3", grpc_message=""), *END
    )
    assert call == Grpc(
        service="pkg.Greeter", method="Hello", status_code=0, status="OK", message="", timeout_ns=250_000_000,
        request_metadata=headers(x_id="7", trace_bin="AAE="),
        response_metadata=headers(x_region="eu"),
        trailing_metadata=headers(x_cost="3"),
        requests=(seen(HELLO, 150, HELLO_DATA),),
        responses=(seen(b"\x08\x07", 350, {"1": {"varint": 7}}),),
        request_count=1,
        response_count=1,
    )  # fmt: skip


def test_an_exchange_of_another_kind_is_no_call() -> None:
    head = request(headers=headers(content_type="application/grpcish"))
    assert Bench().one(head, response(headers=()), *END).grpc is None
    assert Bench().one(request(headers=()), response(headers=()), *END).grpc is None


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 11, 13, 24])
def test_messages_are_the_same_however_the_body_is_cut(size: int) -> None:
    body = framed(HELLO) + framed(b"") + framed(b"\x08\x07")
    pieces = [sent(body[at : at + size], at) for at in range(0, len(body), size)]
    call = Bench().call(request(), *pieces, response(), trailers(), *END)
    assert [(message.size, message.data) for message in call.requests] == [
        (7, HELLO_DATA), (0, {}), (2, {"1": {"varint": 7}}),
    ]  # fmt: skip
    assert [message.timestamp for message in call.requests] == [OFFSET + at // size * size for at in (0, 12, 17)]
    assert call.request_count == 3


# -- status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "name"), list(enumerate(STATUSES)))
def test_the_status_comes_from_the_trailers(code: int, name: str) -> None:
    call = Bench().call(request(), response(), trailers(str(code), grpc_message="no%20such%20%F0%9F%AA%91"), *END)
    assert (call.status_code, call.status, call.message) == (code, name, "no such \U0001fa91")


def test_the_status_of_a_response_without_body_comes_from_its_headers() -> None:
    head = response(headers=headers(content_type="application/grpc", grpc_status="5", grpc_message="gone"))
    call = Bench().call(request(), head, *END)
    assert (call.status_code, call.status, call.message) == (5, "NOT_FOUND", "gone")
    assert (call.responses, call.response_count) == ((), 0)


@pytest.mark.parametrize("status", ["", "x", "-1", "\uff11", "0x1", "1" * 10])
def test_a_status_that_is_no_number_is_none(status: str) -> None:
    call = Bench().call(request(), response(), trailers(status), *END)
    assert (call.status_code, call.status) == (None, None)


def test_a_status_that_has_no_name_is_its_number() -> None:
    call = Bench().call(request(), response(), trailers("99"), *END)
    assert (call.status_code, call.status) == (99, None)


def test_an_absent_status_is_none_and_never_ok() -> None:
    for last in ((), (Trailers(1, 500, SERVER, ()),)):
        call = Bench().call(request(), response(), answered(framed(HELLO)), *last, *END)
        assert (call.status_code, call.status, call.message) == (None, None, None)


def test_lost_trailers_make_the_status_unknown() -> None:
    exchange = Bench().one(request(), response(), Lost(1, 500, SERVER, 9, ("response.trailers",)), *END)
    assert exchange.unknown == ("response.trailers", "grpc.status_code")
    assert exchange.grpc is not None
    assert exchange.grpc.status_code is None


@pytest.mark.parametrize(("kind", "detail"), [("cancelled", "the client cancelled"), ("reset", "INTERNAL_ERROR")])
def test_a_call_that_was_cut_short_has_an_error_and_no_status(kind: str, detail: str) -> None:
    exchange = Bench().one(
        request(), sent(framed(HELLO)), End(1, 200, CLIENT), response(),
        answered(framed(b"\x08\x07") + b"\0\0\0\0\x09ab"), Failed(1, 400, kind, detail),
    )  # fmt: skip
    assert exchange.error is not None
    assert exchange.error.kind == kind
    assert exchange.grpc is not None
    assert exchange.grpc.status_code is None
    assert (exchange.grpc.request_count, exchange.grpc.response_count) == (1, 1)


def test_the_answer_of_a_proxy_that_knows_no_grpc_has_no_messages() -> None:
    answer = response(status_code=503, headers=headers(content_type="text/html"))
    call = Bench().call(request(), sent(framed(HELLO)), answer, answered(b"<p>unavailable</p>"), *END)
    assert (call.status_code, call.responses, call.response_count) == (None, (), None)
    assert call.request_count == 1


# -- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.ZstdCompressor().compress)],
)
def test_a_compressed_message_is_inflated(coding: str, compress: Any) -> None:
    packed = compress(HELLO)
    head = request(headers=headers(content_type="application/grpc", grpc_encoding=coding))
    call = Bench().call(head, sent(framed(packed, 1)), sent(framed(HELLO)), response(), trailers(), *END)
    assert call.requests == (seen(packed, 150, HELLO_DATA, compressed=True), seen(HELLO, 150, HELLO_DATA))


def test_a_message_of_an_unknown_coding_is_shown_as_it_was_sent() -> None:
    head = request(headers=headers(content_type="application/grpc", grpc_encoding="snappy"))
    call = Bench().call(head, sent(framed(HELLO, 1)), response(), trailers(), *END)
    text = base64.b64encode(HELLO).decode()
    assert call.requests == (seen(HELLO, 150, text, compressed=True, encoding="base64"),)


def test_gzip_is_known_by_its_magic_where_the_coding_is_not() -> None:
    packed = gzip.compress(HELLO)
    call = Bench().call(request(), sent(framed(packed, 1)), response(), trailers(), *END)
    assert call.requests == (seen(packed, 150, HELLO_DATA, compressed=True),)


def test_inflating_ends_at_the_snap_length() -> None:
    packed = gzip.compress(b"\x0a\x05hello" * 100_000)
    head = request(headers=headers(content_type="application/grpc", grpc_encoding="gzip"))
    [message] = Bench(snaplen=4096).call(head, sent(framed(packed, 1)), response(), trailers(), *END).requests
    assert message.truncated
    assert len(message.data["1"]) == 4096 // 7


def test_what_is_beyond_the_snap_length_is_counted_and_has_no_data() -> None:
    call = Bench(snaplen=20).call(
        request(), sent(framed(HELLO)), sent(framed(HELLO)), sent(framed(HELLO)), response(), trailers(), *END
    )
    assert call.requests == (
        seen(HELLO, 150, HELLO_DATA),
        seen(HELLO, 150, {}, truncated=True),
        seen(HELLO, 150, None, encoding=None, truncated=True),
    )
    assert call.request_count == 3


def test_messages_are_listed_up_to_a_limit_and_counted_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED_LIMIT", 3)
    call = Bench().call(request(), sent(framed(b"") * 10), response(), trailers(), *END)
    assert (len(call.requests), call.request_count) == (3, 10)


def test_without_room_messages_are_counted_and_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 250)
    call = Bench().call(request(), sent(framed(b"") * 10), response(), trailers(), *END)
    assert (len(call.requests), call.request_count) == (2, 10)


def test_json_messages_are_shown_as_json() -> None:
    head = request(headers=headers(content_type="application/grpc+json"))
    body = framed(b'{"a":[1]}') + framed(b"{") + framed(b"[" * 500 + b"]" * 500)
    call = Bench().call(head, sent(body), response(), *END)
    assert [message.encoding for message in call.requests] == ["json", "base64", "base64"]
    assert call.requests[0].data == {"a": [1]}


def test_messages_of_another_codec_are_bytes() -> None:
    head = request(headers=headers(content_type="application/grpc+thrift"))
    [message] = Bench().call(head, sent(framed(HELLO)), response(), *END).requests
    assert (message.data, message.encoding) == (base64.b64encode(HELLO).decode(), "base64")


def test_bytes_that_are_not_frames_make_the_messages_unknown() -> None:
    exchange = Bench().one(request(), sent(framed(HELLO) + b"GET / HTTP/1.1\r\n"), response(), trailers(), *END)
    assert exchange.unknown == ("grpc.requests",)
    assert exchange.grpc is not None
    assert (len(exchange.grpc.requests), exchange.grpc.request_count) == (1, None)


# -- losses --------------------------------------------------------------------------------------------------------


def test_a_hole_inside_a_message_costs_that_message() -> None:
    exchange = Bench().one(
        request(), sent(framed(HELLO)), sent(framed(HELLO)[:7]), Data(1, 160, CLIENT, b"", 5), sent(framed(HELLO), 170),
        response(), trailers(), *END,
    )  # fmt: skip
    call = exchange.grpc
    assert call is not None
    assert exchange.lost_bytes == 5
    assert call.request_count == 3
    assert call.requests == (
        seen(HELLO, 150, HELLO_DATA),
        seen(HELLO, 150, {}, truncated=True),
        seen(HELLO, 170, None, encoding=None, truncated=True),
    )


@pytest.mark.parametrize(
    "loss",
    [Data(1, 160, CLIENT, b"", 6), Unordered(1, 160, CLIENT, 5), Lost(1, 160, CLIENT, 3, ("request.body",))],
    ids=["longer than the message", "unordered", "framing"],
)
def test_after_a_hole_that_hides_where_messages_begin_they_are_unknown(loss: AnyMessage) -> None:
    exchange = Bench().one(
        request(), sent(framed(HELLO)), sent(framed(HELLO)[:7]), loss, sent(framed(HELLO)), response(), trailers(), *END
    )
    assert "grpc.requests" in exchange.unknown
    assert exchange.grpc is not None
    assert (len(exchange.grpc.requests), exchange.grpc.request_count) == (1, None)
    assert exchange.grpc.status_code == 0


UNSEEN = request(
    method=None, path=None, authority=None, scheme=None, headers=(),
    unknown=("request.method", "request.path", "request.headers", "request.body"),
)  # fmt: skip


def test_a_call_joined_at_its_response_is_recognised_by_that() -> None:
    exchange = Bench().one(
        UNSEEN, Lost(1, 90, CLIENT, 0, ("request.body",)), response(), answered(framed(HELLO)), trailers(), *END
    )
    call = exchange.grpc
    assert call is not None
    assert (call.service, call.method, call.status_code) == (None, None, 0)
    assert (call.requests, call.request_count) == ((), None)
    assert call.responses == (seen(HELLO, 350, HELLO_DATA),)
    assert "grpc.requests" in exchange.unknown


HIDDEN = request(headers=(), unknown=("request.headers",))
HIDDEN_ANSWER = response(headers=(), unknown=("response.headers",))


def late(*messages: AnyMessage) -> Exchange:
    return Bench().one(HIDDEN, *messages, *END)


def test_a_call_whose_content_types_are_unknown_is_recognised_by_its_status() -> None:
    call = late(sent(framed(HELLO)), HIDDEN_ANSWER, answered(framed(HELLO)), trailers("5")).grpc
    assert call is not None
    assert (call.service, call.method, call.status) == ("pkg.Greeter", "Hello", "NOT_FOUND")
    assert call.responses == call.requests == (seen(HELLO, None, HELLO_DATA),)


def test_a_call_of_which_even_the_status_is_unknown_is_recognised_by_its_bodies() -> None:
    lost = Lost(1, 500, SERVER, 0, ("response.trailers",))
    exchange = late(sent(framed(HELLO) * 2), HIDDEN_ANSWER, answered(framed(HELLO)), lost)
    assert exchange.unknown == ("request.headers", "response.headers", "response.trailers", "grpc.status_code")
    call = exchange.grpc
    assert call is not None
    assert (call.request_count, call.response_count, call.status_code, call.status) == (2, 1, None, None)
    only_asked = late(sent(framed(HELLO)), HIDDEN_ANSWER).grpc
    assert only_asked is not None
    assert (only_asked.request_count, only_asked.response_count) == (1, 0)


def test_trailers_in_the_body_tell_the_status_of_a_call_whose_content_types_are_unknown() -> None:
    packed = framed(gzip.compress(HELLO), 1) + framed(gzip.compress(b"grpc-status: 5\r\ngrpc-message: no%21\r\n"), 129)
    for body in (WEB_BODY, packed):
        exchange = late(sent(framed(HELLO)), HIDDEN_ANSWER, answered(body))
        assert exchange.unknown == ("request.headers", "response.headers")
        call = exchange.grpc
        assert call is not None
        assert (call.status, call.message, call.response_count) == ("NOT_FOUND", "no!", 1)


def test_the_status_in_a_body_that_is_beyond_the_snap_length_is_unknown() -> None:
    answer = (HIDDEN_ANSWER, answered(framed(HELLO) * 4 + WEB_BODY))
    exchange = Bench(snaplen=24).one(HIDDEN, sent(framed(HELLO)), *answer, *END)
    assert exchange.unknown == ("request.headers", "response.headers", "grpc.responses", "grpc.status_code")


@pytest.mark.parametrize(
    "messages",
    [
        (HIDDEN_ANSWER,),
        (sent(framed(HELLO)[:-1]), HIDDEN_ANSWER),
        (sent(framed(HELLO) + b"x"), HIDDEN_ANSWER),
        (sent(b"name=chair"), HIDDEN_ANSWER),
        (sent(framed(HELLO)), HIDDEN_ANSWER, answered(b"<p>")),
        (sent(framed(HELLO)), response(headers=headers(content_type="text/plain"), unknown=("response.headers",))),
        (sent(framed(HELLO)), response(headers=())),
    ],
    ids=["no bodies", "cut short", "more", "a form", "another answer", "another type", "known headers"],
)
def test_what_may_be_something_else_is_not_taken_for_a_call(messages: tuple[AnyMessage, ...]) -> None:
    assert late(*messages).grpc is None


def test_an_unknown_content_type_of_the_response_is_taken_to_be_the_requests() -> None:
    answer = response(headers=(), unknown=("response.headers",))
    call = Bench().call(request(), answer, answered(framed(HELLO)), trailers(), *END)
    assert call.responses == (seen(HELLO, 350, HELLO_DATA),)


# -- gRPC-Web ------------------------------------------------------------------------------------------------------

def web(kind: str, *pieces: bytes, **fields: str) -> Grpc:
    given = headers(content_type=kind, **fields)
    return Bench().call(
        request(version="HTTP/1.1", headers=given), sent(framed(HELLO)), End(1, 200, CLIENT),
        response(version="HTTP/1.1", headers=given), *map(answered, pieces), End(1, 600, SERVER),
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_grpc_web_has_its_trailers_in_the_body(size: int) -> None:
    call = web(WEB, *(WEB_BODY[at : at + size] for at in range(0, len(WEB_BODY), size)))
    assert (call.status, call.message, call.response_count) == ("NOT_FOUND", "no!", 1)
    assert call.responses == (seen(HELLO, 350, HELLO_DATA),)
    assert call.trailing_metadata == (Header("x-cost", "3", "X-Cost"),)


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_the_text_form_is_in_base64_each_part_of_which_may_be_padded(size: int) -> None:
    text = base64.b64encode(WEB_BODY[:10]) + base64.b64encode(WEB_BODY[10:])
    call = Bench().call(
        request(headers=headers(content_type="application/grpc-web-text")), sent(base64.b64encode(framed(HELLO))),
        End(1, 200, CLIENT), response(headers=headers(content_type="application/grpc-web-text+proto")),
        *(answered(text[at : at + size]) for at in range(0, len(text), size)), End(1, 600, SERVER),
    )  # fmt: skip
    assert call.status == "NOT_FOUND"
    assert call.requests == (seen(HELLO, 150, HELLO_DATA),)
    assert call.responses == (seen(HELLO, 350, HELLO_DATA),)


def test_trailers_in_the_body_are_read_beyond_the_snap_length() -> None:
    given = headers(content_type=WEB)
    call = Bench(snaplen=4).call(request(headers=given), response(headers=given), answered(WEB_BODY), *END)
    assert (call.status, call.response_count) == ("NOT_FOUND", 1)


@pytest.mark.parametrize("named", [{"grpc_encoding": "gzip"}, {}])
def test_trailers_in_the_body_may_be_compressed(named: dict[str, str]) -> None:
    packed = framed(gzip.compress(HELLO), 1) + framed(gzip.compress(WEB_TRAILERS), 129)
    call = web(WEB, packed[:20], packed[20:], **named)
    assert (call.status, call.message, call.response_count) == ("NOT_FOUND", "no!", 1)
    assert call.trailing_metadata == (Header("x-cost", "3", "X-Cost"),)


@pytest.mark.parametrize(
    "pieces",
    [
        (framed(HELLO), framed(WEB_TRAILERS, 129)),  # of a coding that is not known
        (framed(HELLO), framed(gzip.compress(WEB_TRAILERS)[:-9], 129)),
        (framed(HELLO), framed(b"x-long: " + b"v" * module.TRAILERS_LIMIT + b"\r\n" + WEB_TRAILERS, 128)),
        (framed(HELLO), framed(gzip.compress(b"x-long: " + b"v" * module.TRAILERS_LIMIT + b"\r\n"), 129)),
        (framed(HELLO), framed(WEB_TRAILERS, 128)[:9], 3, framed(WEB_TRAILERS, 128)[12:]),
        (framed(HELLO)[:9], 7, framed(WEB_TRAILERS, 128)[4:]),
    ],
)  # fmt: skip
def test_trailers_in_the_body_that_cannot_be_read_make_the_status_unknown(pieces: tuple[bytes | int, ...]) -> None:
    given = headers(content_type=WEB)
    passed = [Data(1, 350, SERVER, b"", each) if isinstance(each, int) else answered(each) for each in pieces]
    exchange = Bench().one(request(headers=given), End(1, 200, CLIENT), response(headers=given), *passed, END[1])
    assert "grpc.status_code" in exchange.unknown
    assert not exchange.complete
    assert exchange.grpc is not None
    assert (exchange.grpc.status_code, exchange.grpc.message) == (None, None)


def test_trailers_that_never_came_are_not_unknown() -> None:
    given = headers(content_type=WEB)
    exchange = Bench().one(
        request(headers=given), End(1, 200, CLIENT), response(headers=given), answered(WEB_BODY[:-9]),
        Failed(1, 400, "reset", "INTERNAL_ERROR"),
    )  # fmt: skip
    assert exchange.unknown == ()
    assert exchange.grpc is not None
    assert exchange.grpc.status_code is None


def test_a_body_that_is_compressed_as_a_whole_is_taken_apart_at_its_end() -> None:
    packed = gzip.compress(WEB_BODY)
    answer = response(headers=headers(content_type=WEB, content_encoding="gzip"))
    call = Bench().call(request(headers=headers(content_type=WEB)), answer, answered(packed), *END)
    assert call.status == "NOT_FOUND"
    assert call.responses == (seen(HELLO, None, HELLO_DATA),)


# -- as it passes --------------------------------------------------------------------------------------------------


def test_every_message_is_shown_as_it_passes_if_all_are_wanted() -> None:
    bench = Bench(live=ALL)
    assert bench.feed(request()) == []
    assert bench.feed(sent(framed(HELLO)[:3])) == []
    [first] = bench.feed(sent(framed(HELLO)[3:], 160))
    assert isinstance(first, Progress)
    assert (first.side, first.ordinal) == ("client", 0)
    assert first.message == seen(HELLO, 150, HELLO_DATA)
    assert first.exchange.request.path == "/pkg.Greeter/Hello"
    assert first.exchange.response is None
    bench.feed(End(1, 200, CLIENT))
    [second] = bench.feed(response(), answered(framed(b"\x08\x07")))
    assert (second.side, second.ordinal) == ("server", 0)
    assert second.exchange.response.status_code == 200
    [exchange] = bench.feed(trailers(), End(1, 600, SERVER))
    assert exchange.id == first.exchange.id == second.exchange.id
    assert bench.assembler._terms.room.left == module.ROOM


def test_a_call_that_turns_out_to_stream_is_opened_and_its_messages_shown() -> None:
    bench = Bench(live=STREAMING)
    assert bench.feed(request(), sent(framed(HELLO)), End(1, 200, CLIENT)) == []
    assert bench.feed(response(), answered(framed(HELLO))) == []
    shown = bench.feed(answered(framed(HELLO), 400))
    assert [(one.side, one.ordinal) for one in shown] == [
        (None, None), ("client", 0), ("server", 0), ("server", 1),
    ]  # fmt: skip
    assert [(one.side, one.ordinal) for one in bench.feed(answered(framed(HELLO), 450))] == [("server", 2)]


def test_a_unary_call_is_not_shown_as_it_passes_unless_it_is_wanted() -> None:
    call = (request(), sent(framed(HELLO)), End(1, 200, CLIENT), response(), answered(framed(HELLO)), trailers())
    [exchange] = Bench(live=STREAMING).feed(*call, End(1, 600, SERVER))
    assert isinstance(exchange, Exchange)


def test_what_waits_to_be_shown_is_counted_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 1000)
    bench = Bench(live=STREAMING)
    bench.feed(request(), sent(framed(b"x" * 500)), End(1, 200, CLIENT))
    assert bench.assembler._terms.room.left == 1000 - 500 - 200
    [exchange] = bench.feed(response(), answered(framed(b"y" * 500)), trailers(), End(1, 600, SERVER))
    assert exchange.grpc.response_count == 1
    assert bench.assembler._terms.room.left == 1000


def test_without_data_messages_are_counted_and_timed_but_not_taken_apart() -> None:
    bench = Bench(live=ALL, data=False)
    [progress, exchange] = bench.feed(request(), sent(framed(HELLO)), response(), trailers(), *END)
    expected = seen(HELLO, 150, None, encoding=None, truncated=True)
    assert progress.message == expected
    assert exchange.grpc.requests == (expected,)


def test_a_connection_that_ends_gives_back_what_its_calls_hold() -> None:
    bench = Bench(live=ALL)
    bench.feed(request(), sent(framed(HELLO) + framed(HELLO)[:8]))
    assert bench.assembler._terms.room.left < module.ROOM
    [exchange] = bench.feed(Gone(500))
    assert exchange.error.kind == "closed"
    assert bench.assembler._terms.room.left == module.ROOM


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("application/grpc", ContentType(False, False, "proto")),
        ("Application/gRPC+Proto; charset=x", ContentType(False, False, "proto")),
        ("application/grpc+json", ContentType(False, False, "json")),
        ("application/grpc-web", ContentType(True, False, "proto")),
        ("application/grpc-web-text+proto", ContentType(True, True, "proto")),
        ("application/grpc-other", None),
        ("application/json", None),
        ("", None),
    ],
)
def test_content_types(value: str, kind: ContentType | None) -> None:
    assert content_type(value) == kind


@pytest.mark.parametrize(
    ("path", "both"),
    [
        ("/pkg.Service/Method", ("pkg.Service", "Method")),
        ("/Service/Method?x=1", ("Service", "Method")),
        ("/a/b.Service/Method", ("a/b.Service", "Method")),
        ("/Service", (None, None)), ("//Method", (None, None)), ("", (None, None)), (None, (None, None)),
    ],
)  # fmt: skip
def test_names_in_a_path(path: str | None, both: tuple[str | None, str | None]) -> None:
    assert names(path) == both


@pytest.mark.parametrize("binary", [b"", b"\xff\xfe7", "größe".encode(), b"\0\0"])
def test_binary_metadata_is_the_same_however_it_was_sent(binary: bytes) -> None:
    """C core sends its like the bytes themselves behind a zero byte, and others base64 without padding."""
    text = base64.b64encode(binary).decode()
    for name, value in ((b"x-data-bin", b"\0" + binary), (b"x-data-bin", text.rstrip("=").encode())):
        block = b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value
        fields = Hpack().decode(block).headers
        assert read_section(fields).metadata == (Header("x-data-bin", text, "x-data-bin"),)


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        ("1H", 3600 * 10**9), ("2M", 120 * 10**9), ("3S", 3 * 10**9), ("4m", 4 * 10**6), ("5u", 5000), ("6n", 6),
        ("99999999S", 99999999 * 10**9), ("999999999S", None), ("1", None), ("S", None), ("1s", None), ("-1S", None),
        ("", None), (None, None),
    ],
)  # fmt: skip
def test_timeouts(value: str | None, nanoseconds: int | None) -> None:
    assert timeout_ns(value) == nanoseconds
