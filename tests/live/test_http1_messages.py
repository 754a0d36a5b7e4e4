"""What HTTP/1 messages can look like on the wire, and how processes read them: exactly the calls made."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.live.calls import of_record
from tests.live.harness import HOOKS, agreed, assert_exactly, environment, program

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tests.live.harness import Lab, Program, Record

pytestmark = pytest.mark.parametrize("hook", HOOKS, indirect=True)

MEBIBYTE = 1 << 20


def converse(
    lab: Lab, server: Program, client: Program, count: int, unknown: Collection[str] = ()
) -> list[Record]:
    """Trace both ends while the client makes its `count` calls, compare, and return what was shown."""
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, count)
        capture.wait_shown(2 * count)
    assert_exactly(capture, client=calls, server=calls, unknown=unknown)
    return capture.exchanges


@pytest.mark.parametrize("kind", ["python", "node"])
def test_23_requests_sent_at_once(lab: Lab, kind: str) -> None:
    server = lab.origin() if kind == "python" else lab.node()
    records = converse(lab, server, lab.pipelined(server, 23), 23)
    for role in ("client", "server"):
        numbers = [record["request"]["headers"]["x-call"] for record in records if record["process"]["role"] == role]
        assert numbers == [str(number) for number in range(23)]


def test_chunks_both_ways_with_trailers(lab: Lab) -> None:
    server = lab.origin()
    requests = [{"method": "POST", "path": "/echo", "size": 200003, "chunked": True}, {"path": "/chunked/50001/999"}]
    records = converse(lab, server, lab.client(server, requests, rounds=3), 6)
    sums = [record["response"]["trailers"]["x-sum"] for record in records if record["process"]["role"] == "server"]
    assert sums == ["200003", "50001"] * 3


def test_a_mebibyte_each_way(lab: Lab) -> None:
    server = lab.origin()
    requests = [
        {"method": "POST", "path": "/echo", "size": MEBIBYTE},
        {"method": "POST", "path": "/echo", "size": MEBIBYTE, "chunked": True},
    ]
    records = converse(lab, server, lab.client(server, requests, rounds=2), 4)
    assert {record["response"]["body_size"] for record in records} == {MEBIBYTE}
    assert {(record["request"]["truncated"], record["response"]["truncated"]) for record in records} == {(True, True)}
    assert {len(record["response"]["body"]) for record in records} == {64 << 10}


def test_the_snap_length_bounds_the_bodies_shown_and_nothing_else(lab: Lab) -> None:
    server = lab.origin()
    client = lab.client(server, [{"method": "POST", "path": "/echo", "size": 1000}])
    with lab.trace("--pid", str(server.pid), "-s", "26") as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, 1)
        capture.wait_shown(1)
    assert_exactly(capture, server=calls)
    [record] = capture.exchanges
    for side in ("request", "response"):
        assert (record[side]["body"], record[side]["truncated"]) == ("abcdefghijklmnopqrstuvwxyz", True)


@pytest.mark.parametrize("behaviour", ["origin", "informational"])
def test_a_request_that_waits_for_100_continue(lab: Lab, tmp_path: Path, behaviour: str) -> None:
    server = lab.origin() if behaviour == "origin" else lab.raw(behaviour)
    body = tmp_path / "body"
    body.write_bytes(b"x" * 100_000)
    curl = [program("curl"), "-s", "-o", str(tmp_path / "answer"), "-w", "%{http_code} %{size_upload}"]
    curl += ["--expect100-timeout", "20", "-H", "Expect: 100-continue", "-H", "X-Call: 1", "--data-binary", f"@{body}"]
    with lab.trace("--pid", str(server.pid)) as capture:
        said = subprocess.run(
            [*curl, f"http://127.0.0.1:{server.address[1]}/echo"], check=True, capture_output=True, env=environment()
        )
        [call] = server.calls(1)
        capture.wait_shown(1)
    assert (said.stdout, call.request_size) == (b"200 100000", 100_000)
    assert_exactly(capture, server=[call])


def test_answers_that_have_no_body_whatever_their_headers_say(lab: Lab) -> None:
    server = lab.origin()
    requests = [
        {"method": "HEAD", "path": "/bytes/777"},
        {"path": "/status/204"},
        {"path": "/status/304"},
        {"method": "HEAD", "path": "/status/404"},
        {"method": "DELETE", "path": "/status/204"},
        {"path": "/bytes/1"},
    ]
    converse(lab, server, lab.client(server, requests, rounds=4), 24)


def test_a_server_that_peeks_before_each_read(lab: Lab) -> None:
    server = lab.raw("peek")
    requests = [{"path": "/"}, {"method": "POST", "path": "/post", "size": 100_000}]
    converse(lab, server, lab.client(server, requests, connections=2, rounds=5), 20)


def test_two_threads_that_read_one_socket(lab: Lab) -> None:
    """Count, heads and sizes are exact; of the body's content that it is not known may be said.

    The hooks run after the socket is unlocked: both threads can report the same position, and nothing tells whose
    bytes came first.
    """
    server = lab.raw("two-readers")
    requests = [{"method": "POST", "path": "/both", "size": 400_000}]
    converse(lab, server, lab.client(server, requests, connections=2, rounds=5), 10, unknown=["request.body"])


def test_an_upload_of_24_mebibytes_that_is_answered_early(lab: Lab) -> None:
    """The client sends the body in one call, of which one mebibyte is copied: the rest is a gap of known size."""
    size = 24 * MEBIBYTE
    server = lab.raw("early")
    client = lab.client(server, [{"method": "POST", "path": "/upload", "size": size}])
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, 1)
        capture.wait_shown(2)
    [at_client], [at_server] = capture.at("client"), capture.at("server")
    assert [of_record(at_client)] == [of_record(at_server)] == calls
    assert calls[0].status == 413
    assert (at_client["complete"], at_client["lost_bytes"]) == (False, size - MEBIBYTE)
    assert (at_server["complete"], at_server["lost_bytes"]) == (True, 0)
    assert at_server["timing"]["wait_ns"] == 0  # the answer came before the request had ended
