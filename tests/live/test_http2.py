"""HTTP/2 by its usual servers and clients: what was called is shown once at each end, whole and right."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.calls import Session, of_record, without
from tests.live.harness import APITRACE, HOOKS, agreed, assert_exactly, assert_same, environment, program

if TYPE_CHECKING:
    from tests.live.harness import Capture, Lab, Program

TRANSPORTS = ("h2c", "tls")
SCHEMES = {"h2c": "http", "tls": "https"}
SESSIONS = {"python": Session("TLSv1.3", "localhost", "h2"), "node": Session("TLSv1.3", None, "h2")}
"""What is told of TLS, by client: of an IP address there is no SNI, and only one client names the host regardless."""

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

CALLS = 10_000
REQUESTS = [
    {"path": "/bytes/0"}, {"path": "/bytes/100000"}, {"path": "/status/404"}, {"path": "/status/418"},
    {"path": "/trailers/70"}, {"path": "/echo", "method": "POST", "size": 3000, "headers": {"x-kind": "of the client"}},
    {"path": "/echo", "method": "PUT", "size": 0}, {"path": "/bytes/7", "headers": {"x-long": "v" * 3000}},
]  # fmt: skip


def url(server: Program, transport: str, path: str) -> str:
    return f"{SCHEMES[transport]}://127.0.0.1:{server.address[1]}{path}"


def quietly(*command: str) -> list[str]:
    """Return a command that prints nothing: it shares apitrace's standard output, which is to hold only exchanges."""
    return ["sh", "-c", 'exec "$@" >/dev/null', "sh", *command]


def has_had_enough(record: dict[str, Any]) -> bool:
    """Whether a client gave up a response whose body it had, before the frame that ends it.

    curl 7.88 does: when Content-Length is reached it closes, or takes what comes on the stream then for an error.
    """
    response, error = record["response"], record["error"]
    return (
        record["process"]["role"] == "client" and error["kind"] in {"reset", "closed"}
        and response["headers"].get("content-length") == str(response["body_size"])
    )  # fmt: skip


def assert_whole(capture: Capture, *, curl: bool = False) -> None:
    """Fail unless every exchange is whole and HTTP/2. `curl`: but for ends that curl does not wait for."""
    records = capture.exchanges
    flawed = [
        record for record in records
        if record["unknown"] or record["lost_bytes"] or record["protocol"] != "HTTP/2"
        or (record["error"] and not (curl and has_had_enough(record)))
    ]  # fmt: skip
    assert not flawed, flawed[:3]
    assert len({record["id"] for record in records}) == len(records)
    streams = Counter((record["connection"]["id"], record["connection"]["stream_id"]) for record in records)
    assert max(streams.values()) == 1


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
@pytest.mark.parametrize("client_kind", ["python", "node"])
@pytest.mark.parametrize("server_kind", ["python", "node"])
def test_concurrent_calls_are_shown_at_both_ends(
    lab: Lab, server_kind: str, client_kind: str, transport: str
) -> None:
    server = lab.http2(server_kind, transport)
    client = lab.http2_client(client_kind, server, REQUESTS, transport)
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        for _ in range(5):
            client.go()
            client.wait_done()
        session = SESSIONS[client_kind] if transport == "tls" else None
        calls = [call._replace(tls=session) for call in agreed(server, client, 5 * len(REQUESTS))]
        capture.wait_shown(2 * len(calls))
    assert_exactly(capture, client=calls, server=calls, protocol="HTTP/2")
    assert_whole(capture)
    for record in capture.exchanges:
        request, response = record["request"], record["response"]
        assert request["scheme"] == SCHEMES[transport]
        assert request["authority"] == f"127.0.0.1:{server.address[1]}"
        trailers = {"x-sum": "70", "x-kind": "same"} if request["path"] == "/trailers/70" else {}
        assert response["trailers"] == trailers
        if request["path"] == "/echo":
            assert request["body"] == response["body"]
        assert record["latency_ns"] > 0


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
@pytest.mark.parametrize("server_kind", ["nghttpd", "nginx"])
def test_ten_thousand_calls_over_ten_connections_of_a_hundred_streams_are_shown_at_both_ends(
    lab: Lab, server_kind: str, transport: str
) -> None:
    server = lab.nghttpd(transport) if server_kind == "nghttpd" else lab.nginx(http2=transport)
    command = [program("h2load"), "-n", str(CALLS), "-c", "10", "-m", "100", url(server, transport, "/hello")]
    log = lab.path("h2load")
    capture = lab.trace_command("sh", "-c", 'exec "$@" >"$0"', str(log), *command, flags=["--pid", str(server.pid)])
    assert capture.status == 0, capture.stderr
    assert f"{CALLS} succeeded, 0 failed" in log.read_text()
    assert_whole(capture)
    for role in ("client", "server"):
        records = capture.at(role)
        assert len(records) == CALLS
        streams = Counter(record["connection"]["stream_id"] for record in records)
        assert (len(streams), set(streams.values())) == (CALLS // 10, {10})
        assert len({record["connection"]["id"] for record in records}) == 10
        assert {(record["response"]["status_code"], record["response"]["body"]) for record in records} == {
            (200, "hello\n")
        }
        if server_kind == "nginx":
            served = server.calls(CALLS)
            shown = [call._replace(stream=None, tls=None) for call in map(of_record, records)]
            assert_same(
                without(shown, "date", "connection"),
                [
                    call._replace(
                        request_headers=tuple(pair for pair in call.request_headers if pair[0] != "host"), tls=None
                    )
                    for call in served
                ],
            )
    assert len(capture.exchanges) == 2 * CALLS


@pytest.mark.parametrize("server_kind", ["nghttpd", "nginx"])
def test_nghttp_with_its_priorities_and_padding(lab: Lab, server_kind: str, transport: str) -> None:
    server = lab.nghttpd(transport) if server_kind == "nghttpd" else lab.nginx(http2=transport)
    paths = ["/hello", "/hello?again", "/missing"]
    command = [program("nghttp"), "-n", "-b", "60", "-m", "7", *[url(server, transport, path) for path in paths]]
    capture = lab.trace_command(*quietly(*command), flags=["--pid", str(server.pid)])
    assert capture.status == 0, capture.stderr
    assert_whole(capture)
    for role in ("client", "server"):
        shown = Counter((r["request"]["path"], r["response"]["status_code"]) for r in capture.at(role))
        assert shown == {("/hello", 200): 7, ("/hello?again", 200): 7, ("/missing", 404): 7}


def test_a_large_body_is_counted_to_the_last_byte(lab: Lab, transport: str) -> None:
    server = lab.nghttpd(transport)
    command = [program("nghttp"), "-n", "-m", "5", url(server, transport, "/large")]
    capture = lab.trace_command(*quietly(*command), flags=["--pid", str(server.pid)])
    assert_whole(capture)
    assert [record["response"]["body_size"] for record in capture.exchanges] == [320_000] * 10
    assert {record["response"]["truncated"] for record in capture.exchanges} == {True}


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
@pytest.mark.parametrize("server_kind", ["python", "node", "nginx", "hypercorn"])
def test_curl_with_prior_knowledge(lab: Lab, server_kind: str, transport: str) -> None:
    server = _server(lab, server_kind, transport)
    path = "/hello" if server_kind == "nginx" else "/bytes/30"
    # One call a run: curl 7.88 fails when it uses such a connection again.
    curl = f"{program('curl')} -sk --http2-prior-knowledge -H 'X-Call: 1' {url(server, transport, path)}"
    capture = lab.trace_command(*quietly("sh", "-c", f"{curl} && {curl} && {curl}"), flags=["--pid", str(server.pid)])
    assert capture.status == 0, capture.stderr
    assert_whole(capture, curl=True)
    for role in ("client", "server"):
        records = capture.at(role)
        assert [record["connection"]["stream_id"] for record in records] == [1, 1, 1]
        assert {(record["request"]["path"], record["response"]["status_code"]) for record in records} == {(path, 200)}
        if server_kind in {"python", "node"}:
            session = SESSIONS["node"] if transport == "tls" else None
            assert_same(map(of_record, records), [call._replace(tls=session) for call in server.calls(3)])


def _server(lab: Lab, kind: str, transport: str) -> Program:
    if kind == "nginx":
        return lab.nginx(http2=transport)
    return lab.hypercorn(transport) if kind == "hypercorn" else lab.http2(kind, transport)


def test_interim_responses_resets_and_cancellations(lab: Lab, transport: str) -> None:
    server = lab.http2("python", transport)
    requests = [{"path": "/early"}, {"path": "/reset"}, {"path": "/slow/50/x", "cancel": True}, {"path": "/bytes/3"}]
    client = lab.http2_client("python", server, requests, transport)
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        capture.wait_shown(7)
    for role in ("client", "server"):
        records = {record["request"]["path"]: record for record in capture.at(role)}
        assert (records["/early"]["response"]["status_code"], records["/early"]["complete"]) == (200, True)
        assert "link" not in records["/early"]["response"]["headers"]
        error = records["/reset"]["error"]
        assert error == {"kind": "reset", "detail": "the server reset the stream: INTERNAL_ERROR"}
        assert records["/bytes/3"]["complete"]
    cancelled = {record["request"]["path"]: record for record in capture.at("client")}["/slow/50/x"]
    assert cancelled["response"] is None
    assert cancelled["error"] == {"kind": "cancelled", "detail": "the client cancelled the stream: CANCEL"}


def test_a_row_of_the_table(lab: Lab, transport: str) -> None:
    server = lab.http2("python", transport)
    command = [program("curl"), "-sk", "--http2-prior-knowledge", url(server, transport, "/bytes/5")]
    traced = subprocess.run(
        [*APITRACE, "-o", "table", "--", *quietly(*command)],
        check=True, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    [row] = [line for line in traced.stdout.splitlines() if "curl" in line]
    assert re.search(rf" -> h2 +GET +127\.0\.0\.1:{server.address[1]}/bytes/5 +200 +5 ", row)
