"""The record is the one that the design promises: its keys are typed here once more, from there."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apitrace import __version__
from apitrace.exchange import Container, Endpoint, Exchange, Header, Process, Response
from apitrace.sinks import jsonl
from apitrace.sinks.jsonl import JsonLines, to_record
from tests.golden.exchanges import EXCHANGES, PLAIN, WEB, asked, headers

ENDPOINT = {"ip": "string|null", "port": "int|null", "name": "string|null", "namespace": "string|null",
            "labels": "object|null", "kind": "string|null"}  # fmt: skip
UNIX = {"path": "string", "name": "string|null", "namespace": "string|null", "labels": "object|null",
        "kind": "string|null"}  # fmt: skip
MESSAGE = {"headers": "object|null", "trailers": "object", "body": "string|null", "body_encoding": "string|null",
           "body_size": "int|null", "truncated": "bool"}  # fmt: skip
RECORD: dict[str, Any] = {
    "id": "string",
    "metadata": {"timestamp": "int", "time": "string", "node_name": "string", "receiver_name": "string",
                 "receiver_version": "string"},
    "source": ENDPOINT,
    "destination": ENDPOINT,
    "process": {"pid": "int", "tid": "int", "comm": "string", "exe": "string|null", "role": "string|null",
                "container": {"id": "string", "name": "string|null", "image": "string|null", "runtime": "string|null",
                              "pod": "string|null", "namespace": "string|null"}},
    "connection": {"id": "string", "family": "string", "stream_id": "int|null", "address_source": "string",
                   "connect_ns": "int|null"},
    "tls": {"library": "string|null", "version": "string|null", "sni": "string|null", "alpn": "string|null"},
    "protocol": "string",
    "request": {"method": "string|null", "path": "string|null", "scheme": "string|null", "authority": "string|null",
                **MESSAGE},
    "response": {"status_code": "int|null", **MESSAGE},
    "grpc": "object|null",
    "latency_ns": "int|null",
    "timing": {"request_ns": "int|null", "wait_ns": "int|null", "response_ns": "int|null"},
    "complete": "bool",
    "lost_bytes": "int",
    "unknown": "array",
    "error": {"kind": "string", "detail": "string"},
}  # fmt: skip
"""Section 5 of the design: every key, in its order, with its type. An object may be null where NULLABLE says so."""
NULLABLE = {"container", "tls", "response", "error"}
TYPES = {str: "string", int: "int", bool: "bool", dict: "object", list: "array", type(None): "null"}


def lines(*exchanges: Exchange, raw_headers: bool = False) -> bytes:
    stream = io.BytesIO()
    sink = JsonLines(stream, raw_headers=raw_headers, node_name="node-1")
    for exchange in exchanges:
        sink.write(exchange)
    sink.flush()
    return stream.getvalue()


def record(exchange: Exchange, *, raw_headers: bool = False) -> Any:
    return json.loads(lines(exchange, raw_headers=raw_headers))


def assert_shape(value: Any, shape: Any, name: str = "record") -> None:
    if isinstance(shape, str):
        assert TYPES[type(value)] in shape.split("|"), f"{name}: {value!r}"
    elif value is None:
        assert name.rpartition(".")[2] in NULLABLE, name
    else:
        assert list(value) == list(shape), name
        for key, inner in shape.items():
            assert_shape(value[key], inner, f"{name}.{key}")


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.id)
def test_every_key_is_there_in_its_order_and_of_its_type(exchange: Exchange) -> None:
    ends = UNIX if exchange.connection.family == "unix" else ENDPOINT
    assert_shape(record(exchange), RECORD | {"source": ends, "destination": ends})


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.id)
def test_a_line_and_the_record_say_the_same(exchange: Exchange) -> None:
    for raw_headers in (False, True):
        whole = to_record(exchange, node_name="node-1", raw_headers=raw_headers)
        assert record(exchange, raw_headers=raw_headers) == whole


def test_one_exchange_is_one_line() -> None:
    out = lines(*EXCHANGES)
    assert out.endswith(b"\n")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [exchange.id for exchange in EXCHANGES]


def test_nothing_is_written_before_the_flush() -> None:
    stream = io.BytesIO()
    sink = JsonLines(stream, node_name="node-1")
    sink.write(PLAIN)
    assert stream.getvalue() == b""
    sink.flush()
    assert stream.getvalue().count(b"\n") == 1
    sink.close()
    assert stream.closed


def test_metadata_gives_the_time_twice_and_exactly() -> None:
    assert record(PLAIN)["metadata"] == {
        "timestamp": 1700000000123456789,
        "time": "2023-11-14T22:13:20.123456789Z",
        "node_name": "node-1",
        "receiver_name": "apitrace",
        "receiver_version": __version__,
    }


@given(st.lists(st.integers(-(2**63), 2**64), min_size=1))
def test_the_time_is_rfc_3339_with_nine_digits(timestamps: list[int]) -> None:
    out = lines(*(PLAIN._replace(timestamp=timestamp) for timestamp in timestamps))
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    for timestamp, line in zip(timestamps, out.splitlines(), strict=True):
        text = json.loads(line)["metadata"]["time"]
        second, _, fraction = text.partition(".")
        shown = dt.datetime.fromisoformat(f"{second}+00:00")
        assert (shown - epoch) // dt.timedelta(seconds=1) * 10**9 + int(fraction.removesuffix("Z")) == timestamp
        assert len(text) == len("2023-11-14T22:13:20.123456789Z")


def test_repeated_headers_are_joined_each_in_its_way() -> None:
    fields = headers(
        "Accept: a", "X-One: 1", "ACCEPT: b", "Cookie: a=1", "cookie: b=2", "Set-Cookie: a=1, 2", "Set-Cookie: b",
        "accept: c",
    )  # fmt: skip
    shown = record(asked(headers=fields, trailers=fields))["request"]
    joined = {"accept": "a, b, c", "x-one": "1", "cookie": "a=1; b=2", "set-cookie": "a=1, 2\nb"}
    assert shown["headers"] == shown["trailers"] == joined
    assert list(shown["headers"]) == list(joined)


def test_raw_headers_add_a_list_with_case_order_and_repeats_kept() -> None:
    fields = headers("Accept: a", "X-One: 1", "ACCEPT: b")
    assert PLAIN.response is not None
    exchange = PLAIN._replace(
        request=PLAIN.request._replace(headers=fields), response=PLAIN.response._replace(headers=fields)
    )
    shown = record(exchange, raw_headers=True)
    for side in ("request", "response"):
        assert list(shown[side])[-1] == "header_list"
        assert shown[side].pop("header_list") == [["Accept", "a"], ["X-One", "1"], ["ACCEPT", "b"]]
    assert shown == record(exchange)


@pytest.mark.parametrize(
    ("body", "truncated", "shown"),
    [
        (b"", False, (None, None)),
        (b"abc\n", False, ("abc\n", "utf8")),
        ("7 €".encode(), False, ("7 €", "utf8")),
        ("7 €".encode()[:-1], True, ("7 ", "utf8")),
        ("7 €".encode()[:-1], False, ("NyDigg==", "base64")),
        (b"\x00\x1b", False, ("\x00\x1b", "utf8")),
        (b"\xff\x00", False, ("/wA=", "base64")),
    ],
)
def test_a_body_is_text_where_it_can_be(body: bytes, truncated: bool, shown: tuple[str | None, str | None]) -> None:
    request = PLAIN.request._replace(body=body, body_size=99, truncated=truncated)
    fields = record(PLAIN._replace(request=request))["request"]
    assert (fields["body"], fields["body_encoding"]) == shown
    assert (fields["body_size"], fields["truncated"]) == (99, truncated)


def test_what_is_unknown_is_null_unless_some_of_it_was_seen() -> None:
    unknown = ("request.method", "request.headers", "request.body", "request.version", "response.headers",
               "response.body", "response.body_size", "odd")  # fmt: skip
    exchange = asked(method=None, headers=())._replace(response=Response(200, "OK", headers("A: b"), (), b"tail", 4))
    shown = record(exchange._replace(unknown=unknown))
    request, response = shown["request"], shown["response"]
    assert (request["method"], request["headers"], request["body"], request["body_size"]) == (None, None, None, None)
    assert (response["headers"], response["body"], response["body_size"]) == ({"a": "b"}, "tail", None)
    assert (shown["unknown"], shown["complete"]) == (list(unknown), False)
    assert record(PLAIN._replace(response=None, unknown=("response.headers",)))["response"] is None


def test_labels_are_an_object_where_they_are_known() -> None:
    end = Endpoint("::1", 1)
    ends = (end, end._replace(kind="Container"), end._replace(labels=(("a", "b"), ("c", "d"))))
    assert [record(PLAIN._replace(source=end))["source"]["labels"] for end in ends] == [None, {}, {"a": "b", "c": "d"}]


def test_the_parts_of_a_connection_are_never_mixed_up() -> None:
    """They are remembered serialised: by value, so by whichever object they come."""
    exchanges = [
        PLAIN._replace(
            source=Endpoint("10.0.0.1", 1000 + number % 3),
            destination=Endpoint("10.0.0.2", 80, name=f"name-{number % 5}"),
            process=Process(number % 7, 1, "x", None, "server", WEB if number % 2 else None),
        )
        for number in range(210)
    ]
    assert [json.loads(line) for line in lines(*exchanges).splitlines()] == [
        to_record(exchange, node_name="node-1") for exchange in exchanges
    ]


def test_the_memory_of_serialised_parts_is_bounded() -> None:
    sink = JsonLines(io.BytesIO(), node_name="node-1")
    for number in range(jsonl._MEMO_ENTRIES + 10):
        sink.write(PLAIN._replace(source=Endpoint(f"10.0.0.{number}", 1)))
        assert len(sink._memo) <= jsonl._MEMO_ENTRIES


def test_lone_surrogates_are_spelled_with_backslashes() -> None:
    odd = PLAIN._replace(
        process=Process(1, 1, "a\udc80", None, "server", Container("id\ud800")),
        request=PLAIN.request._replace(path="/\ud83d\ude00\\u", headers=(Header("x\udfff", "v", "X\udfff"),)),
    )
    shown = orjson.loads(lines(odd))
    assert (shown["process"]["comm"], shown["process"]["container"]["id"]) == (r"a\udc80", r"id\ud800")
    assert (shown["request"]["path"], shown["request"]["headers"]) == (r"/\ud83d\ude00\u", {r"x\udfff": "v"})


def test_integers_beyond_64_bits_are_written() -> None:
    request = PLAIN.request._replace(body_size=10**30)
    assert record(PLAIN._replace(request=request))["request"]["body_size"] == 10**30


ANY = st.text(st.characters(), max_size=20)


@given(text=ANY, body=st.binary(max_size=20), truncated=st.booleans(), raw_headers=st.booleans())
def test_whatever_was_captured_is_one_valid_line(text: str, body: bytes, truncated: bool, raw_headers: bool) -> None:
    exchange = PLAIN._replace(
        source=Endpoint(path=text, name=text, labels=((text, text),)),
        request=PLAIN.request._replace(
            method=text, path=text, headers=(Header(text, text, text),), body=body, truncated=truncated
        ),
        response=Response(200, text, (Header(text, text, text),) * 2, (), body, 1),
        unknown=(text,),
    )
    out = lines(exchange, raw_headers=raw_headers)
    assert out.count(b"\n") == 1
    shown = orjson.loads(out)
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert shown["request"]["path"] == text
