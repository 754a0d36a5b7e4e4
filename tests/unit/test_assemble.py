"""Messages become exchanges: exact records, from messages made by hand and from whole conversations."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import TYPE_CHECKING, Any

import brotli
import pytest
import zstandard

from apitrace import assemble as module
from apitrace.assemble import Assembler
from apitrace.connection import Batch, ConnectFailed, Gone, Processes, TrackedConnection, Unordered
from apitrace.exchange import (
    Connection,
    Container,
    Endpoint,
    Exchange,
    Failure,
    Header,
    Process,
    Request,
    Response,
    Timing,
)
from apitrace.probes.events import ProcessSeen
from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    End,
    Failed,
    Lost,
    RequestHead,
    ResponseHead,
    Switched,
    Trailers,
)
from apitrace.stats import Stats
from apitrace.streams import Budget
from tests.unit.test_connection import GET, OK, Capture, Wire, answer, capture, post

if TYPE_CHECKING:
    from collections.abc import Callable

    from apitrace.connection import AnyMessage
    from apitrace.exchange import Headers

OFFSET = 1_700_000_000_000_000_000
HOST = (Header("host", "h.test", "Host"),)


def request(stream: int = 1, at: int = 100, **fields: Any) -> RequestHead:
    values: dict[str, Any] = {
        "version": "HTTP/1.1", "method": "GET", "path": "/a", "authority": "h.test", "scheme": None, "headers": HOST,
    }  # fmt: skip
    return RequestHead(stream, at, **(values | fields))


def response(stream: int = 1, at: int = 300, headers: Headers = (), **fields: Any) -> ResponseHead:
    values: dict[str, Any] = {"version": "HTTP/1.1", "status_code": 200, "reason": "OK"}
    return ResponseHead(stream, at, headers=headers, **(values | fields))


UNSEEN = request(
    method=None, path=None, authority=None, headers=(), at=300,
    unknown=("request.method", "request.path", "request.authority", "request.headers", "request.body"),
)  # fmt: skip


class Bench:
    """An assembler, and a connection to feed it for."""

    def __init__(self, *, snaplen: int = 65536, role: str = "server", **fields: Any) -> None:
        self.stats = Stats()
        self.assembler = Assembler(stats=self.stats, clock_offset_ns=OFFSET, snaplen=snaplen)
        self.processes = Processes()
        self.connection = TrackedConnection(Wire().socket(**fields), self.processes, Budget())
        self.connection.role = role

    def feed(self, *messages: AnyMessage) -> list[Exchange]:
        return self.assembler.feed(Batch(self.connection, 10, 11, messages))

    def one(self, *messages: AnyMessage) -> Exchange:
        [exchange] = self.feed(*messages)
        return exchange


ASKED = (request(), End(1, 200, CLIENT))
ANSWERED = (response(), End(1, 600, SERVER))


def body_of(data: bytes, *codings: str, snaplen: int = 65536, header: str = "content-encoding") -> tuple[bytes, bool]:
    """Return the response body shown, and whether it is truncated."""
    headers = tuple(Header(header, coding, header.title()) for coding in codings)
    exchange = Bench(snaplen=snaplen).one(
        *ASKED, response(headers=headers), Data(1, 400, SERVER, data), End(1, 600, SERVER)
    )
    assert exchange.response is not None
    assert exchange.response.body_size == len(data)
    return exchange.response.body, exchange.response.truncated


# -- the whole record ----------------------------------------------------------------------------------------------


def test_an_exchange_is_put_together_from_its_messages() -> None:
    bench = Bench()
    trailer = Header("x-sum", "5", "X-Sum")
    exchange = bench.one(
        request(method="POST"),
        Data(1, 150, CLIENT, b"ab"),
        Data(1, 160, CLIENT, b"cd"),
        Data(1, 170, CLIENT, b"e"),
        Trailers(1, 200, CLIENT, (trailer,)),
        End(1, 200, CLIENT),
        response(status_code=201, reason="Created"),
        Data(1, 310, SERVER, b"done"),
        End(1, 600, SERVER),
    )
    assert exchange == Exchange(
        id="777-40-1",
        timestamp=OFFSET + 100,
        source=Endpoint(ip="10.0.0.2", port=40000),
        destination=Endpoint(ip="10.0.0.1", port=80),
        process=Process(10, 11, "comm", None, "server"),
        connection=Connection("777-40", "ipv4"),
        tls=None,
        protocol="HTTP/1.1",
        request=Request("POST", "/a", "http", "h.test", HOST, (trailer,), b"abcde", 5),
        response=Response(201, "Created", (), (), b"done", 4),
        latency_ns=500,
        timing=Timing(100, 100, 300),
    )
    assert exchange.complete
    assert (bench.stats.captured, bench.stats.opened, bench.stats.unanswered) == (1, 1, 0)


def test_a_conversation_of_one_connection_gives_each_exchange_once_with_ids_in_order() -> None:
    wire = Wire()
    seen, asked = wire.socket(), [wire.receive(post(str(number).encode(), f"/{number}")) for number in range(23)]
    exchanges = capture([seen, *asked, *(wire.send(answer(b"%d" % number)) for number in range(23))])
    assert [each.id for each in exchanges] == [f"777-40-{number}" for number in range(1, 24)]
    assert [each.request.path for each in exchanges] == [f"/{number}" for number in range(23)]
    assert [each.response and each.response.body for each in exchanges] == [b"%d" % number for number in range(23)]
    assert all(each.complete for each in exchanges)


def test_trailers_belong_to_the_side_that_sent_them() -> None:
    trailer = Header("x-sum", "5", "X-Sum")
    exchange = Bench().one(*ASKED, response(), Trailers(1, 600, SERVER, (trailer,)), End(1, 600, SERVER))
    assert exchange.response is not None
    assert (exchange.request.trailers, exchange.response.trailers) == ((), (trailer,))


def test_the_protocol_is_that_of_the_request() -> None:
    assert Bench().one(request(version="HTTP/1.0"), End(1, 200, CLIENT), *ANSWERED).protocol == "HTTP/1.0"


def test_the_scheme_of_the_request_line_counts_more_than_that_of_the_transport() -> None:
    asked = request(scheme="ftp", path="ftp://h.test/a")
    assert Bench().one(asked, End(1, 200, CLIENT), *ANSWERED).request.scheme == "ftp"


def test_a_switch_of_protocols_ends_nothing_by_itself() -> None:
    assert Bench().feed(*ASKED, Switched(1, 300, "websocket")) == []


# -- time ----------------------------------------------------------------------------------------------------------


def test_an_answer_that_comes_before_the_request_has_ended_was_not_waited_for() -> None:
    exchange = Bench().one(request(), *ANSWERED, End(1, 900, CLIENT))
    assert (exchange.timing, exchange.latency_ns) == (Timing(800, 0, 300), 500)


def test_an_early_answer_waits_for_the_whole_request_so_that_its_size_is_right() -> None:
    bench = Bench()
    assert bench.feed(request(), Data(1, 110, CLIENT, b"x" * 10), *ANSWERED) == []
    exchange = bench.one(Data(1, 700, CLIENT, b"y" * 20), End(1, 700, CLIENT))
    assert (exchange.request.body_size, exchange.error) == (30, None)


def test_when_a_send_began_that_blocked_beyond_the_answer_is_not_known() -> None:
    exchange = Bench().one(request(at=700), End(1, 700, CLIENT), *ANSWERED)
    assert (exchange.timing, exchange.latency_ns) == (Timing(None, None, 300), None)
    assert (exchange.timestamp, exchange.complete) == (OFFSET + 300, True)


def test_an_answer_without_its_request_has_the_time_of_the_answer() -> None:
    exchange = Bench().one(UNSEEN, End(1, 300, CLIENT), *ANSWERED)
    assert (exchange.timestamp, exchange.timing, exchange.latency_ns) == (OFFSET + 300, Timing(None, None, 300), None)
    assert (exchange.request, exchange.unknown) == (Request(), UNSEEN.unknown)


def test_a_request_without_its_answer_has_the_time_that_it_took() -> None:
    exchange = Bench().one(*ASKED, Failed(1, 900, "reset", "the peer reset the connection"))
    assert (exchange.timing, exchange.latency_ns) == (Timing(100, None, None), None)
    assert (exchange.response, exchange.error) == (None, Failure("reset", "the peer reset the connection"))


def test_an_answer_that_is_cut_short_has_no_end() -> None:
    exchange = Bench().one(*ASKED, response(), Data(1, 400, SERVER, b"half"), Failed(1, 900, "closed", "gone"))
    assert (exchange.timing, exchange.latency_ns) == (Timing(100, 100, None), None)
    assert exchange.response == Response(200, "OK", (), (), b"half", 4)


# -- what is not known ---------------------------------------------------------------------------------------------


def test_a_body_is_shown_up_to_the_first_byte_that_was_lost() -> None:
    exchange = Bench().one(
        *ASKED, response(), Data(1, 400, SERVER, b"abc"), Data(1, 410, SERVER, b"", 7), Data(1, 420, SERVER, b"xyz"),
        End(1, 600, SERVER),
    )  # fmt: skip
    assert exchange.response == Response(200, "OK", (), (), b"abc", 13, truncated=True)
    assert (exchange.lost_bytes, exchange.unknown, exchange.complete) == (7, (), False)


def test_a_body_is_shown_up_to_the_first_byte_whose_place_is_not_known() -> None:
    exchange = Bench().one(
        request(), Data(1, 110, CLIENT, b"abc"), Unordered(1, 120, CLIENT, 7), Data(1, 130, CLIENT, b"xyz"),
        End(1, 200, CLIENT), *ANSWERED,
    )  # fmt: skip
    assert exchange.request._replace(headers=()) == Request(
        "GET", "/a", "http", "h.test", (), (), b"abc", 13, truncated=True
    )
    assert (exchange.lost_bytes, exchange.unknown, exchange.complete) == (0, ("request.body",), False)


def test_parts_that_were_lost_are_named_once() -> None:
    exchange = Bench().one(
        request(unknown=("request.headers",)), End(1, 200, CLIENT),
        response(unknown=("response.headers",)), Data(1, 400, SERVER, b"abc"),
        Lost(1, 500, SERVER, 9, ("response.body_size", "response.trailers")),
        Lost(1, 500, SERVER, 1, ("response.trailers",)),
        End(1, 600, SERVER),
    )  # fmt: skip
    assert exchange.lost_bytes == 10
    assert exchange.unknown == ("request.headers", "response.headers", "response.body_size", "response.trailers")
    assert exchange.response is not None
    assert (exchange.response.body, exchange.response.truncated) == (b"abc", True)


def test_lost_trailers_do_not_make_a_body_truncated() -> None:
    exchange = Bench().one(
        *ASKED, response(), Data(1, 400, SERVER, b"abc"), Lost(1, 500, SERVER, 9, ("response.trailers",)),
        End(1, 600, SERVER),
    )  # fmt: skip
    assert exchange.response is not None
    assert exchange.response.truncated is False


def test_an_answer_that_was_lost_is_unknown_and_not_an_error() -> None:
    exchange = Bench().one(*ASKED, Lost(1, 500, SERVER, 0, ("response",)), End(1, 500, SERVER))
    assert (exchange.response, exchange.unknown, exchange.error) == (None, ("response",), None)
    assert exchange.complete is False


def test_messages_of_an_exchange_that_is_over_are_of_no_account() -> None:
    bench = Bench()
    bench.one(*ASKED, *ANSWERED)
    assert bench.feed(response(), Data(1, 1, SERVER, b"x"), Trailers(1, 1, SERVER, ()), End(1, 1, SERVER)) == []
    assert bench.feed(Failed(1, 1, "closed", "")) == []
    assert bench.stats.captured == 1


# -- ends of a connection --------------------------------------------------------------------------------------------


def test_what_a_decoder_left_open_ends_with_its_connection() -> None:
    bench = Bench()
    exchange = bench.one(*ASKED, Gone(900))
    assert exchange.error == Failure("closed", "the connection is over")
    assert bench.assembler._calls == {}


def test_what_is_open_at_the_end_of_the_capture_is_unanswered() -> None:
    bench = Bench()
    bench.feed(*ASKED)
    [exchange] = bench.assembler.drain(900)
    assert exchange.error == Failure("unanswered", "still open when the capture ended")
    assert (bench.stats.unanswered, bench.stats.open, bench.assembler.drain(901)) == (1, 0, [])


def test_a_connect_that_failed_is_an_exchange_without_request_or_response() -> None:
    bench = Bench(role="client", local=("10.0.0.1", 0), remote=("10.0.0.9", 81))
    bench.connection.connect_ns = 300
    exchange = bench.one(ConnectFailed(100, 400, "refused", "connection refused after 0.0 ms"))
    assert exchange == Exchange(
        id="777-40-1",
        timestamp=OFFSET + 100,
        source=Endpoint(ip="10.0.0.1"),
        destination=Endpoint(ip="10.0.0.9", port=81),
        process=Process(10, 11, "comm", None, "client"),
        connection=Connection("777-40", "ipv4", connect_ns=300),
        tls=None,
        protocol="TCP",
        request=Request(),
        response=None,
        latency_ns=None,
        timing=Timing(),
        error=Failure("refused", "connection refused after 0.0 ms"),
    )


# -- the two ends --------------------------------------------------------------------------------------------------

WEB = Container("3f2a9c01d2aa", "web", labels=(("app", "shop"),))
POD = Container("3f2a9c01d2aa", "k8s_web", pod="web-1", namespace="shop")


def ends(bench: Bench, head: RequestHead | None = None) -> tuple[Endpoint, Endpoint]:
    exchange = bench.one(head or request(), End(1, 200, CLIENT), *ANSWERED)
    return exchange.source, exchange.destination


def test_a_server_in_a_container_bears_the_containers_name() -> None:
    bench = Bench()
    bench.processes.seen(ProcessSeen(1, 10, "nginx", "/usr/sbin/nginx", WEB))
    assert ends(bench) == (
        Endpoint("10.0.0.2", 40000),
        Endpoint("10.0.0.1", 80, name="web", labels=(("app", "shop"),), kind="Container"),
    )


def test_a_client_in_a_pod_bears_the_pods_name_and_its_server_that_of_the_host() -> None:
    bench = Bench(role="client")
    bench.processes.seen(ProcessSeen(1, 10, "curl", "/usr/bin/curl", POD))
    assert ends(bench) == (
        Endpoint("10.0.0.1", 80, name="web-1", namespace="shop", kind="Pod"),
        Endpoint("10.0.0.2", 40000, name="h.test"),
    )


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("h.test:8080", "h.test"), ("h.test", "h.test"), ("user@h.test", "h.test"), ("10.1.2.3", None),
        ("10.1.2.3:80", None), ("[::1]:80", None), ("[::1]", None), (":80", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_a_server_bears_the_name_that_was_asked_for_unless_that_is_an_address(
    authority: str | None, name: str | None
) -> None:
    assert ends(Bench(role="client"), request(authority=authority))[1].name == name


@pytest.mark.parametrize(("method", "path"), [("CONNECT", "h.test:443"), ("GET", "http://h.test/a"), ("OPTIONS", "*")])
def test_a_proxy_does_not_bear_the_name_of_what_is_asked_of_it(method: str, path: str) -> None:
    assert ends(Bench(role="client"), request(method=method, path=path))[1].name is None


def test_names_may_differ_between_the_exchanges_of_one_connection() -> None:
    bench = Bench(role="client")
    assert [
        bench.one(request(number, authority=name), End(number, 200, CLIENT), response(number), End(number, 600, SERVER))
        .destination.name
        for number, name in ((1, "one.test"), (2, "two.test"), (3, "two.test"))
    ] == ["one.test", "two.test", "two.test"]  # fmt: skip


# -- bodies --------------------------------------------------------------------------------------------------------

TEXT = b"The quick brown fox jumps over the lazy dog. " * 20


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_body_is_shown_decompressed(coding: str) -> None:
    assert body_of(CODINGS[coding](TEXT), coding) == (TEXT, False)


def test_deflate_without_its_zlib_wrapping_is_understood_too() -> None:
    assert body_of(raw_deflate(TEXT), "deflate") == (TEXT, False)


def test_several_gzip_members_and_zstd_frames_are_one_body() -> None:
    assert body_of(gzip.compress(b"one ") + gzip.compress(b"two") + b"\0\0", "gzip") == (b"one two", False)
    assert body_of(zstandard.compress(b"one ") + zstandard.compress(b"two"), "zstd") == (b"one two", False)


def test_codings_are_undone_in_the_reverse_of_their_order() -> None:
    twice = brotli.compress(gzip.compress(TEXT))
    assert body_of(twice, "gzip, br") == (TEXT, False)
    assert body_of(twice, "gzip", "br") == (TEXT, False)


def test_identity_is_no_coding() -> None:
    assert body_of(TEXT, "identity") == (TEXT, False)


def test_a_transfer_coding_other_than_chunked_is_undone_too() -> None:
    assert body_of(gzip.compress(TEXT), "gzip, chunked", header="transfer-encoding") == (TEXT, False)


@pytest.mark.parametrize("coding", ["aws-chunked", "gzip, unheard-of", "unheard-of, gzip", ", ".join(["gzip"] * 5)])
def test_a_body_with_a_coding_that_is_not_understood_is_shown_as_it_was_sent(coding: str) -> None:
    packed = gzip.compress(TEXT)
    assert body_of(packed, coding) == (packed, False)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_is_not_in_its_coding_is_shown_as_it_was_sent(coding: str) -> None:
    assert body_of(b"\xff\xff plainly not compressed", coding) == (b"\xff\xff plainly not compressed", False)


NOISE = random.Random(7).randbytes(200_000).hex().encode()
"""Compresses to half: several blocks of every coding."""


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_of_a_body_that_is_cut_short_what_can_be_decompressed_is_shown(coding: str) -> None:
    packed = CODINGS[coding](NOISE)
    shown, truncated = body_of(packed[: len(packed) * 9 // 10], coding, snaplen=1 << 20)
    assert (NOISE.startswith(shown), truncated) == (True, True)
    assert len(shown) > len(NOISE) // 2


def test_a_body_of_which_nothing_can_be_decompressed_is_shown_as_it_was_sent() -> None:
    packed = zstandard.compress(TEXT)[:40]
    assert body_of(packed, "zstd") == (packed, False)


def test_of_a_body_whose_checksum_is_wrong_all_but_the_last_bytes_are_shown() -> None:
    packed = bytearray(gzip.compress(NOISE))
    packed[-8] ^= 1
    shown, truncated = body_of(bytes(packed), "gzip", snaplen=1 << 20)
    assert (NOISE.startswith(shown), truncated, len(NOISE) - len(shown) < 200) == (True, True, True)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_no_body_however_corrupt_does_any_harm(coding: str) -> None:
    dice = random.Random(11)
    whole = CODINGS[coding](NOISE[:5_000])
    for _ in range(200):
        packed = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            packed[dice.randrange(len(packed))] = dice.randrange(256)
        shown, _ = body_of(bytes(packed), coding)
        assert len(shown) <= 65536


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_decompression_ends_at_the_snap_length(coding: str) -> None:
    bomb = CODINGS[coding](b"a" * 50_000_000)
    assert body_of(bomb, coding, snaplen=1 << 16) == (b"a" * (1 << 16), True)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_just_fits_the_snap_length_when_decompressed_is_whole(coding: str) -> None:
    assert body_of(CODINGS[coding](TEXT), coding, snaplen=len(TEXT)) == (TEXT, False)
    assert body_of(CODINGS[coding](TEXT), coding, snaplen=len(TEXT) - 1) == (TEXT[:-1], True)


def test_a_zstd_window_larger_than_http_allows_is_not_allocated() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packed.compress(b"a" * 200_000) + packed.flush()
    assert body_of(data, "zstd") == (data, False)


def test_an_answer_to_head_has_nothing_to_decompress() -> None:
    exchange = Bench().one(
        request(method="HEAD"), End(1, 200, CLIENT),
        response(headers=(Header("content-encoding", "gzip", "Content-Encoding"),)), End(1, 600, SERVER),
    )  # fmt: skip
    assert exchange.response is not None
    assert (exchange.response.body, exchange.response.body_size, exchange.response.truncated) == (b"", 0, False)


@pytest.mark.parametrize("pieces", [[b"abcdefgh"], [b"ab", b"cdefgh"], [b"abcde", b"fgh"], [b"ab", b"", b"cdefgh"]])
def test_a_body_is_kept_up_to_the_snap_length_and_counted_beyond(pieces: list[bytes]) -> None:
    exchange = Bench(snaplen=5).one(
        *ASKED, response(), *(Data(1, 400, SERVER, piece) for piece in pieces), End(1, 600, SERVER)
    )
    assert exchange.response is not None
    assert (exchange.response.body, exchange.response.body_size, exchange.response.truncated) == (b"abcde", 8, True)
    assert exchange.complete


def test_a_body_as_long_as_the_snap_length_is_whole() -> None:
    assert body_of(b"abcde", snaplen=5) == (b"abcde", False)


# -- bounds --------------------------------------------------------------------------------------------------------


def test_bodies_of_all_open_exchanges_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_LIMIT", 10)
    bench = Bench()
    bench.feed(request(1), Data(1, 110, CLIENT, b"x" * 8), request(2), Data(2, 120, CLIENT, b"y" * 3))
    bench.feed(End(1, 200, CLIENT), End(2, 200, CLIENT))
    one = bench.one(response(1), End(1, 600, SERVER))
    assert (one.request.body, one.request.truncated) == (b"x" * 8, False)
    two = bench.one(response(2), Data(2, 500, SERVER, b"z" * 10), End(2, 600, SERVER))
    assert (two.request.body, two.request.body_size, two.request.truncated) == (b"", 3, True)
    assert two.response is not None
    assert (two.response.body, two.response.truncated) == (b"z" * 10, False)
    assert bench.assembler._kept == 0


def test_the_exchanges_open_longest_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_LIMIT", 2)
    bench = Bench()
    bench.feed(request(1, at=300), request(2, at=100))
    given_up = bench.one(request(3, at=400))
    assert (given_up.timestamp, given_up.error) == (
        OFFSET + 100,
        Failure("closed", "no longer followed: more than 2 exchanges are open"),
    )
    assert bench.feed(End(2, 500, CLIENT), response(2), End(2, 500, SERVER)) == []
    assert len(bench.feed(End(1, 500, CLIENT), response(1), End(1, 500, SERVER))) == 1
    assert (bench.stats.opened, bench.stats.captured, bench.stats.open) == (3, 2, 1)


def test_exchanges_of_a_capture_replayed_are_the_same() -> None:
    def conversation() -> list[Exchange]:
        whole = Capture(clock_offset_ns=OFFSET)
        for conn in (64, 128):
            wire = Wire(conn=conn)
            whole.feed(wire.socket(), wire.receive(GET), wire.send(OK), wire.receive(GET), wire.send(OK))
        return whole.exchanges

    assert conversation() == conversation()
    assert len({exchange.id for exchange in conversation()}) == 4
