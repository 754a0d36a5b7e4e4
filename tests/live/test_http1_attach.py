"""Where a capture begins: in a server that already waits, or with a command's first instruction."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import pytest

from tests.live.harness import HOOKS, agreed, assert_exactly, blocked_in, program, until

if TYPE_CHECKING:
    from tests.live.harness import Lab

RECORD = {
    "id": str, "metadata": dict, "source": dict, "destination": dict, "process": dict, "connection": dict,
    "tls": None, "protocol": str, "request": dict, "response": dict, "grpc": None, "latency_ns": int, "timing": dict,
    "complete": bool, "lost_bytes": int, "unknown": list, "error": None,
}  # fmt: skip
"""The record of a plain HTTP/1 exchange, and the type of each value (None: null)."""
PARTS = {
    "metadata": {"timestamp", "time", "node_name", "receiver_name", "receiver_version"},
    "source": {"ip", "port", "name", "namespace", "labels", "kind"},
    "destination": {"ip", "port", "name", "namespace", "labels", "kind"},
    "process": {"pid", "tid", "comm", "exe", "role", "container"},
    "connection": {"id", "family", "stream_id", "address_source", "connect_ns"},
    "request": {
        "method", "path", "scheme", "authority", "headers", "trailers", "body", "body_encoding", "body_size",
        "truncated",
    },
    "response": {"status_code", "headers", "trailers", "body", "body_encoding", "body_size", "truncated"},
    "timing": {"request_ns", "wait_ns", "response_ns"},
}  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
def test_the_next_request_to_a_server_that_already_waits_is_shown(lab: Lab) -> None:
    """One thread waits in recv on a kept-alive connection, another in accept, when the probes are put in place."""
    server = lab.origin()
    connection = http.client.HTTPConnection(*server.address)
    connection.request("GET", "/bytes/1")
    connection.getresponse().read()
    server.calls(1)
    until(lambda: blocked_in(server.pid, "wait_woken"), "a thread of the server waits in recv")
    with lab.trace("--pid", str(server.pid)) as capture:
        connection.request("GET", "/bytes/2")
        connection.getresponse().read()
        capture.wait_shown(1)
        assert capture.shown() == 1
        other = http.client.HTTPConnection(*server.address)
        other.request("GET", "/bytes/3")
        other.getresponse().read()
        capture.wait_shown(2)
    assert_exactly(capture, server=server.calls(3)[1:])
    assert [record["request"]["path"] for record in capture.exchanges] == ["/bytes/2", "/bytes/3"]
    connection.close()
    other.close()


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
def test_both_calls_of_a_command_are_shown_in_50_runs_of_50(lab: Lab) -> None:
    server = lab.origin()
    url = f"http://127.0.0.1:{server.address[1]}"
    curl = f"{program('curl')} -s -o /dev/null"
    for run in range(50):
        script = f"{curl} -H 'X-Call: {run}a' {url}/bytes/3; {curl} -H 'X-Call: {run}b' {url}/status/404"
        capture = lab.trace_command("sh", "-c", script)
        assert capture.status == 0, capture.stderr
        assert_exactly(capture, client=server.calls(2 * run + 2)[-2:])
        assert [record["response"]["status_code"] for record in capture.exchanges] == [200, 404]


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 17", 17), ("kill -TERM $$", 143)])
def test_the_exit_status_is_the_commands_own(lab: Lab, script: str, status: int) -> None:
    assert lab.trace_command("sh", "-c", script).status == status


def test_a_command_that_cannot_be_run_is_126_or_127_as_in_a_shell(lab: Lab) -> None:
    plain = lab.path("plain")
    plain.write_text("not a program\n")
    assert lab.trace_command(str(plain)).status == 126
    assert lab.trace_command(str(plain) + ".missing").status == 127


def test_every_key_of_the_record_is_always_there(lab: Lab) -> None:
    server = lab.origin()
    client = lab.client(server, [{"path": "/bytes/5"}])
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, 1)
        capture.wait_shown(2)
    assert_exactly(capture, client=calls, server=calls)
    for record in capture.exchanges:
        assert {key: None if value is None else type(value) for key, value in record.items()} == RECORD
        assert {name: set(record[name]) for name in PARTS} == PARTS
        assert (record["metadata"]["receiver_name"], record["connection"]["address_source"]) == ("apitrace", "socket")
        assert record["request"]["scheme"] == "http"
        assert record["request"]["authority"] == f"127.0.0.1:{server.address[1]}"
        assert record["metadata"]["time"].endswith("Z")
        assert record["metadata"]["timestamp"] % 10**9 == int(record["metadata"]["time"][-10:-1])
        timing = record["timing"]
        assert record["latency_ns"] == timing["request_ns"] + timing["wait_ns"] + timing["response_ns"] > 0
    [client_end], [server_end] = capture.at("client"), capture.at("server")
    assert client_end["connection"]["connect_ns"] > 0
    assert server_end["connection"]["connect_ns"] is None
    assert client_end["latency_ns"] > server_end["latency_ns"]
