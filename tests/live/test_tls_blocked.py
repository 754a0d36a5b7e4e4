"""Threads that are inside a read on a TLS session when the capture begins: the usual state of an idle connection."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.harness import HOOKS, Capture, Program, program, until

if TYPE_CHECKING:
    from tests.live.harness import Lab

CONNECTIONS, ROUNDS = 8, 3
READS = ("SSL_read", "SSL_read_ex", "gnutls_record_recv", "gnutls_record_recv_seq")


def serve(lab: Lab) -> Program:
    program("openssl")
    server = lab.start(sys.executable, "-m", "tests.live.servers.threads", journal=lab.path("journal"))
    server.address = tuple(json.loads(server.read_line()))
    return server


def ask(connection: http.client.HTTPSConnection, path: str) -> tuple[str, int]:
    connection.request("GET", path)
    assert connection.getresponse().read() == path.encode()
    return path, connection.sock.getsockname()[1]


def idle(server: Program, connections: int) -> None:
    """Wait until so many threads of the server wait for a request."""
    tasks = Path(f"/proc/{server.pid}/task")
    until(
        lambda: sum((task / "wchan").read_text() == "wait_woken" for task in tasks.iterdir()) == connections,
        f"{connections} threads wait",
    )


def connect(server: Program, connections: int) -> list[http.client.HTTPSConnection]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    made = [http.client.HTTPSConnection(*server.address, context=context) for _ in range(connections)]
    for number, connection in enumerate(made):
        ask(connection, f"/before/{number}")
    idle(server, connections)
    return made


def told(capture: Capture) -> list[tuple[str, int]]:
    return sorted((record["request"]["path"], record["source"]["port"]) for record in capture.exchanges)


def assert_whole(records: list[dict[str, Any]], server: Program) -> None:
    for record in records:
        assert record["complete"], record
        assert record["unknown"] == []
        assert record["lost_bytes"] == 0
        assert record["error"] is None
        assert record["response"]["status_code"] == 200
        assert record["connection"]["address_source"] == "socket"
        assert (record["destination"]["ip"], record["destination"]["port"]) == server.address


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
def test_the_next_requests_on_idle_connections_are_whole_also_in_a_second_capture(lab: Lab) -> None:
    """In the second one, the threads wait in calls that the first has left its return probes on."""
    server = serve(lab)
    connections = connect(server, CONNECTIONS)
    for capturing in ("first", "second"):
        with lab.trace("--pid", str(server.pid)) as capture:
            asked = [
                ask(connection, f"/{capturing}/{turn}/{number}")
                for turn in range(ROUNDS)
                for number, connection in enumerate(connections)
            ]
            capture.wait_shown(len(asked))
            idle(server, CONNECTIONS)
        assert told(capture) == sorted(asked)
        assert_whole(capture.exchanges, server)
    for connection in connections:
        connection.close()


def test_the_next_requests_on_idle_connections_are_whole_also_after_a_capture_that_was_killed(lab: Lab) -> None:
    """It is killed right after calls that its return probes were still lent to."""
    server = serve(lab)
    connections = connect(server, CONNECTIONS)
    killed = lab._apitrace(["--pid", str(server.pid)])
    killed.wait_ready()
    for number, connection in enumerate(connections):
        ask(connection, f"/before/{number}")
    idle(server, CONNECTIONS)
    killed.kill()
    with lab.trace("--pid", str(server.pid)) as capture:
        asked = [ask(connection, f"/after/{number}") for number, connection in enumerate(connections)]
        capture.wait_shown(len(asked))
    assert told(capture) == sorted(asked)
    assert_whole(capture.exchanges, server)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("function", READS)
def test_the_answer_to_a_request_from_before_is_shown_and_the_request_is_not_made_up(lab: Lab, function: str) -> None:
    server = serve(lab)
    client = lab.start(
        sys.executable, "-m", "tests.live.clients.waiting", str(server.address[1]), function,
        journal=lab.path("journal"),
    )  # fmt: skip
    port = json.loads(client.read_line())[-1]
    idle(client, 1)
    with lab.trace("--pid", str(client.pid)) as capture:
        server.go()  # any line
        assert json.loads(client.read_line()).endswith("/held/1")
        client.go()
        client.read_line()
        server.go()
        assert json.loads(client.read_line()).endswith("/held/2")
        capture.wait_shown(2)
    first, second = capture.exchanges
    assert first["request"]["path"] is None
    assert "request.path" in first["unknown"]
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"] == "/held/1"
    assert first["lost_bytes"] == 0
    assert_whole([second], server)
    assert second["request"]["path"] == "/held/2"
    for record in (first, second):
        assert record["process"]["role"] == "client"
        assert (record["source"]["port"], record["destination"]["port"]) == (port, server.address[1])
        assert record["connection"]["address_source"] == "socket"
