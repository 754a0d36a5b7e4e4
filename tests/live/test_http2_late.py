"""Attached in the middle of a long-lived HTTP/2 connection: every later call is shown, and nothing shown is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.live.calls import Call
from tests.live.harness import HOOKS, program
from tests.live.test_http2 import TRANSPORTS, url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tests.live.harness import Lab

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

OLD = [
    {"path": "/bytes/10", "headers": {"x-old": "1"}}, {"path": "/status/418"}, {"path": "/status/404"},
    {"path": "/trailers/20"}, {"path": "/echo", "method": "POST", "size": 100},
]  # fmt: skip
"""Each round makes these: so all after the first find their fields in the encoders' tables."""


def assert_true(record: dict[str, Any], call: Call) -> None:
    """Fail if anything that the record shows is not as it was, or is missing without a word."""
    unknown = set(record["unknown"])
    for side in ("request", "response"):
        assert not unknown & {side, f"{side}.body", f"{side}.body_size"}, record
    request, response = record["request"], record["response"]
    shown = {
        "request.method": (request["method"], call.method),
        "request.path": (request["path"], call.path),
        "request.authority": (request["authority"], f"{call.server[0]}:{call.server[1]}"),
        "response.status_code": (response["status_code"], call.status),
    }
    for name, (value, true) in shown.items():
        assert value == (None if name in unknown else true), (name, record, call)
    assert (request["body_size"], response["body_size"]) == (call.request_size, call.response_size)
    for side, headers, true in (
        ("request", request["headers"], dict(call.request_headers)),
        ("response", response["headers"], dict(call.response_headers)),
    ):
        assert (headers or {}).items() <= true.items(), (record, call)
        assert headers == true or f"{side}.headers" in unknown, (record, call)
    assert record["error"] is None
    assert record["lost_bytes"] == 0
    assert record["complete"] is not bool(unknown)


def assert_later_calls(
    records: Iterable[dict[str, Any]], calls: Iterable[Call], unread: Collection[Call] = ()
) -> None:
    """Fail unless exactly these calls are shown. `unread`: those whose requests may be unknown."""
    by_stream = {(record["source"]["port"], record["connection"]["stream_id"]): record for record in records}
    calls = list(calls)
    assert sorted(by_stream) == sorted((call.client[1], call.stream or 0) for call in calls)
    for call in calls:
        record = by_stream[call.client[1], call.stream or 0]
        if call in unread and "request.body" in record["unknown"]:
            assert record["request"]["method"] is record["request"]["path"] is record["request"]["headers"] is None
            record["unknown"] = [name for name in record["unknown"] if not name.startswith("request.body")]
            record["request"]["body_size"] = call.request_size
        assert_true(record, call)


def read_before(transport: str, role: str, calls: list[Call]) -> list[Call]:
    """Return those of the first calls that a server may have waited for in SSL_read when the probes came."""
    return calls if (transport, role) == ("tls", "server") else []


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
@pytest.mark.parametrize("client_kind", ["python", "node"])
@pytest.mark.parametrize("server_kind", ["python", "node"])
def test_every_later_call_is_shown_with_its_stream_and_nothing_wrong(
    lab: Lab, server_kind: str, client_kind: str, transport: str
) -> None:
    server = lab.http2(server_kind, transport)
    client = lab.http2_client(client_kind, server, OLD, transport)
    for _ in range(3):
        client.go()
        client.wait_done()
    before = len(client.calls(3 * len(OLD)))
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        for _ in range(4):
            client.go()
            client.wait_done()
        later = client.calls(7 * len(OLD))[before:]
        capture.wait_shown(2 * len(later))
    assert len(later) == 4 * len(OLD)
    for role in ("client", "server"):
        records = capture.at(role)
        assert_later_calls(records, later, read_before(transport, role, later[: len(OLD)]))
        known = {record["response"]["status_code"] for record in records}
        assert {200, 404} <= known
    assert "2 connections, 2 joined mid-stream" in capture.stderr


def test_calls_of_a_connection_that_was_joined_in_a_large_download_are_shown(lab: Lab, transport: str) -> None:
    """More unknown bytes pass than the kernel side copies before the next call begins."""
    server = lab.http2("python", transport)
    large = {"path": "/bytes/3000000"}
    client = lab.http2_client("python", server, [large, *OLD], transport)
    client.go()
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.wait_done()
        first = len(client.calls(1 + len(OLD)))
        for _ in range(2):
            client.go()
            client.wait_done()
        later = client.calls(3 * (1 + len(OLD)))[first:]
        capture.wait_shown(2 * len(later))
    for role in ("client", "server"):
        records = [
            record for record in capture.at(role)
            if record["connection"]["stream_id"] > max(call.stream or 0 for call in client.calls()[:first])
        ]  # fmt: skip
        assert_later_calls(records, later, read_before(transport, role, later[: 1 + len(OLD)]))


@pytest.mark.parametrize("generator", ["h2load", "nghttp"])
def test_joined_in_the_middle_of_a_load_generators_run(lab: Lab, generator: str, transport: str) -> None:
    """It makes calls for longer than the test takes. For curl, which cannot, see test_http2_curl.py."""
    server = lab.http2("python", transport)
    place = url(server, transport, "/slow/5/x")
    command = {
        "h2load": [program("h2load"), "-n", "100000", "-c", "1", "-m", "1", place],
        "nghttp": [program("nghttp"), "-n", "-m", "100000", place],
    }[generator]
    load = lab.start(*command, journal=lab.path("none"))
    server.calls(20)
    with lab.trace("--pid", f"{server.pid},{load.pid}") as capture:
        capture.wait_shown(500)
    load.kill()
    calls = {call.stream: call for call in server.calls()}
    for role in ("client", "server"):
        records = [record for record in capture.at(role) if record["error"] is None]
        streams = sorted(record["connection"]["stream_id"] for record in records)
        assert len(streams) >= 90
        assert streams == list(range(streams[0], streams[-1] + 2, 2))
        unasked = {r["connection"]["stream_id"]: r for r in records if "request.body" in r["unknown"]}
        seen = [record for record in records if record["connection"]["stream_id"] not in unasked]
        # What was on its way: its requests were not seen, or at the end the call that read them had not returned.
        assert len(unasked) <= 102
        assert all(record["request"]["path"] is None for record in unasked.values())
        assert {record["response"]["status_code"] for record in unasked.values()} <= {200, None}
        asked = [record["connection"]["stream_id"] for record in seen]
        assert not [stream for stream in unasked if min(asked) < stream < max(asked)]
        for record in seen:
            assert_true(record, calls[record["connection"]["stream_id"]])
