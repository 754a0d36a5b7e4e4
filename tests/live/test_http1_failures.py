"""Calls that do not end as they should are shown too, once, with what went wrong."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.live.calls import address, of_record
from tests.live.harness import HOOKS, program, unused_port

if TYPE_CHECKING:
    from tests.live.harness import Lab, Program

pytestmark = pytest.mark.parametrize("hook", HOOKS, indirect=True)

REQUEST = b"GET /slow?n=1 HTTP/1.1\r\nHost: lab\r\nX-Call: 1\r\n\r\n"


def connect(server: Program) -> socket.socket:
    return socket.create_connection(server.address)


def reset(connection: socket.socket) -> None:
    """Close the connection with a reset instead of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_request_never_answered_is_shown_at_the_end(lab: Lab) -> None:
    server = lab.raw("silent")
    with connect(server) as connection:
        with lab.trace("--pid", str(server.pid)) as capture:
            connection.sendall(REQUEST)
            calls = server.calls(1)
            capture.wait_shown(1, within=0.2)
            assert capture.shown() == 0
        [record] = capture.exchanges
        assert of_record(record) == calls[0]
        assert calls[0].client == address(connection.getsockname())
    assert (record["response"], record["latency_ns"], record["complete"]) == (None, None, False)
    assert (record["error"]["kind"], record["process"]["role"]) == ("unanswered", "server")


@pytest.mark.parametrize("ending", ["closed", "reset"])
def test_a_client_that_gives_up_before_the_answer(lab: Lab, ending: str) -> None:
    server = lab.raw("silent")
    with lab.trace("--pid", str(server.pid)) as capture:
        connection = connect(server)
        connection.sendall(REQUEST)
        calls = server.calls(1)
        connection.close() if ending == "closed" else reset(connection)
        capture.wait_shown(1)
        assert capture.shown() == 1
    [record] = capture.exchanges
    assert of_record(record) == calls[0]
    assert (record["error"]["kind"], record["response"], record["complete"]) == (ending, None, False)


@pytest.mark.parametrize("ending", ["closed", "reset"])
def test_a_client_that_dies_in_the_middle_of_the_answer(lab: Lab, ending: str) -> None:
    """A client that closes with unread bytes resets the connection: both ways end as a reset for the server."""
    server = lab.raw("endless")
    with lab.trace("--pid", str(server.pid)) as capture:
        connection = connect(server)
        connection.sendall(REQUEST)
        received = connection.recv(4096)
        connection.close() if ending == "closed" else reset(connection)
        capture.wait_shown(1)
        assert capture.shown() == 1
    [record] = capture.exchanges
    [call] = server.calls(1)
    assert received.startswith(b"HTTP/1.1 200 OK")
    # A send in the kernel while the reset comes in may be reported after it: then its bytes are a gap.
    if "response.body_size" in record["unknown"]:
        record["response"]["body_size"] = call.response_size
    else:
        assert record["unknown"] == []
    assert of_record(record) == call
    assert (record["error"]["kind"], record["complete"]) == ("reset", False)


def test_strangers_that_get_the_memory_of_a_reset_connection_do_not_change_what_is_shown(lab: Lab) -> None:
    """The kernel gives the memory of a closed socket to the next one, here to this untraced process."""
    server, other = lab.raw("endless"), lab.origin()
    with lab.trace("--pid", str(server.pid)) as capture:
        for _ in range(10):
            connection = connect(server)
            connection.sendall(REQUEST)
            connection.recv(4096)
            reset(connection)
            strangers = [connect(other) for _ in range(20)]
            for stranger in strangers:
                stranger.close()
        calls = server.calls(10)
        capture.wait_shown(10)
    shown = [of_record(record) for record in capture.exchanges]
    assert sorted(call.client for call in shown) == sorted(call.client for call in calls)
    assert {call.server for call in shown} == {server.address}
    assert {record["error"]["kind"] for record in capture.exchanges} == {"reset"}


def test_an_answer_cut_short_by_its_server(lab: Lab) -> None:
    server = lab.raw("cut")
    with lab.trace("--pid", str(server.pid)) as capture, connect(server) as connection:
        connection.sendall(REQUEST)
        calls = server.calls(1)
        capture.wait_shown(1)
        assert capture.shown() == 1
    [record] = capture.exchanges
    assert of_record(record) == calls[0]
    assert (record["response"]["body_size"], record["error"]["kind"], record["complete"]) == (100, "closed", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_refused_connect_is_a_row_of_its_own(lab: Lab, host: str) -> None:
    port = unused_port()
    capture = lab.trace_command(program("curl"), "-s", f"http://{host}:{port}/never")
    assert capture.status == 7  # curl's own: failed to connect
    [record] = capture.exchanges
    assert (record["protocol"], record["error"]["kind"], record["response"]) == ("TCP", "refused", None)
    assert (record["destination"]["ip"], record["destination"]["port"]) == (host.strip("[]"), port)
    assert (record["process"]["role"], record["process"]["comm"]) == ("client", "curl")
    assert (record["request"]["method"], record["request"]["path"]) == (None, None)


def test_a_server_that_is_killed_while_it_answers(lab: Lab) -> None:
    server = lab.raw("flood")
    client = lab.client(server, [{"path": "/endless"}])
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        server.calls(1)
        server.kill()
        capture.wait_shown(2)
        assert capture.shown() == 2
    roles = {record["process"]["role"]: record for record in capture.exchanges}
    assert set(roles) == {"client", "server"}
    for record in roles.values():
        assert (record["request"]["path"], record["response"]["status_code"]) == ("/endless", 200)
        assert (record["error"] is not None, record["complete"]) == (True, False)


def test_a_target_that_exits_loses_nothing_already_captured(lab: Lab) -> None:
    server = lab.raw("silent")
    with connect(server) as connection, lab.trace("--pid", str(server.pid)) as capture:
        connection.sendall(REQUEST)
        calls = server.calls(1)
        server.kill()
        assert capture.wait() == 0
    [record] = capture.exchanges
    assert [of_record(record)] == calls
    assert (record["error"] is not None, record["response"], record["complete"]) == (True, None, False)
