"""Each kind of HTTP/1 server and client, seen at both ends where both are traced: exactly the calls made."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.live.calls import of_record, without
from tests.live.harness import HOOKS, agreed, assert_exactly, assert_same, children, environment, program, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.harness import Lab, Program, Record

pytestmark = pytest.mark.parametrize("hook", HOOKS, indirect=True)

REQUESTS: list[Record] = [
    {"path": "/bytes/17?q=1&r=%C3%A9"},
    {"method": "POST", "path": "/echo", "size": 1999, "headers": {"Content-Type": "application/json"}},
    {"method": "HEAD", "path": "/bytes/5000"},
    {"method": "PUT", "path": "/echo", "size": 0},
    {"path": "/bytes/0"},
    {"method": "POST", "path": "/echo", "size": 70001, "chunked": True},
    {"path": "/bytes/100003"},
]
STATUSES: list[Record] = [{"path": f"/status/{code}"} for code in (200, 204, 304, 404, 500, 503)]


def converse(lab: Lab, server: Program, requests: list[Record], *, connections: int = 1, rounds: int = 1) -> None:
    """Trace both ends while the keep-alive client makes its calls, and compare."""
    client = lab.client(server, requests, connections=connections, rounds=rounds)
    count = len(requests) * connections * rounds
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, count)
        capture.wait_shown(2 * count)
    assert_exactly(capture, client=calls, server=calls)


@pytest.mark.parametrize("connections", [1, 2, 100])
def test_a_threaded_python_server_with_keep_alive_connections(lab: Lab, connections: int) -> None:
    converse(lab, lab.origin(), REQUESTS + STATUSES, connections=connections, rounds=max(1, 10 // connections))


def test_repeated_headers_are_joined_and_an_answer_may_end_with_its_connection(lab: Lab) -> None:
    converse(lab, lab.origin(), [{"path": "/repeats"}, {"path": "/close/3333"}, {"path": "/repeats"}])


def test_an_ipv6_server(lab: Lab) -> None:
    converse(lab, lab.origin("inet6"), REQUESTS)


def test_an_af_unix_server(lab: Lab) -> None:
    converse(lab, lab.origin("unix"), REQUESTS, connections=3)


def test_an_af_unix_server_with_an_abstract_name(lab: Lab) -> None:
    converse(lab, lab.origin("unix", "--socket", f"@apitrace-test-{os.getpid()}"), REQUESTS)


def test_nodes_http_module(lab: Lab) -> None:
    converse(lab, lab.node(), REQUESTS + STATUSES, connections=3, rounds=2)


def test_gos_net_http(lab: Lab, go_server: Path) -> None:
    converse(lab, lab.go(go_server), REQUESTS + STATUSES, connections=3, rounds=2)


def test_a_preforking_server_traced_by_its_parents_pid(lab: Lab) -> None:
    server = lab.gunicorn(workers=3)
    client = lab.client(server, REQUESTS, connections=6, rounds=2)
    count = len(REQUESTS) * 12
    with lab.trace("--pid", str(server.pid)) as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, count)
        capture.wait_shown(count)
    assert_exactly(capture, server=calls)
    assert {record["process"]["pid"] for record in capture.exchanges} <= set(children(server.pid))


def test_no_follow_leaves_the_children_of_a_preforking_server_alone(lab: Lab) -> None:
    server = lab.gunicorn(workers=1)
    worker = children(server.pid)[0]
    client = lab.client(server, REQUESTS)
    with lab.trace("--pid", str(server.pid), "--no-follow") as parent, lab.trace("--pid", str(worker)) as child:
        client.go()
        client.wait_done()
        calls = agreed(server, client, len(REQUESTS))
        child.wait_shown(len(REQUESTS))
    assert_exactly(child, server=calls)
    assert_exactly(parent)


@pytest.mark.parametrize("sendfile", [False, True], ids=["read", "sendfile"])
def test_nginx_and_its_static_files(lab: Lab, sendfile: bool) -> None:
    """What sendfile moves has no user buffer: its size is known, its content is not, and the record says so."""
    server = lab.nginx(workers=2, sendfile=sendfile)
    requests = [{"path": "/page.html"}, {"path": "/missing"}, {"method": "HEAD", "path": "/page.html"}]
    client = lab.client(server, requests, connections=3)
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = client.calls(9)
        assert_same(without(calls, "date", "connection"), server.calls(9))
        capture.wait_shown(18)
    assert len(capture.exchanges) == 18
    for role in ("client", "server"):
        assert_same(map(of_record, capture.at(role)), calls)
    lost = [(record["lost_bytes"], record["complete"]) for record in capture.at("server")]
    assert sorted(lost) == [(0, True)] * (6 if sendfile else 9) + [(1400, False)] * (3 if sendfile else 0)


def test_curl_and_the_http_server_of_python(lab: Lab, tmp_path: Path) -> None:
    """HTTP/1.0: one request per connection, and bodies that end with it or with their length."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.txt").write_bytes(b"a" * 12345)
    server = lab.origin("inet", "--files", str(files))
    url = f"http://127.0.0.1:{server.address[1]}"
    unmodified = "If-Modified-Since: Tue, 19 Jan 2038 03:14:07 GMT"
    calls = [["/a.txt"], ["/"], ["/missing?x=y"], ["-I", "/a.txt"], ["-H", unmodified, "/a.txt"]]
    with lab.trace("--pid", str(server.pid)) as capture:
        statuses = [
            subprocess.run(
                [program("curl"), "-s", "-o", str(tmp_path / "body"), "-w", "%{http_code}", *flags, url + path],
                check=True, capture_output=True, text=True, env=environment(),
            ).stdout
            for *flags, path in calls
        ]  # fmt: skip
        served = server.calls(len(calls))
        capture.wait_shown(len(calls))
    assert statuses == ["200", "200", "404", "200", "304"] == [str(call.status) for call in served]
    assert_same(map(of_record, capture.exchanges), served)
    assert [(record["complete"], record["process"]["role"]) for record in capture.exchanges] == [(True, "server")] * 5


def test_only_the_named_process_is_shown(lab: Lab) -> None:
    named, other = lab.origin(), lab.origin()
    clients = [lab.client(server, REQUESTS) for server in (named, other)]
    with lab.trace("--pid", str(named.pid)) as capture:
        for client in clients:
            client.go()
        for client in clients:
            client.wait_done()
        until(lambda: len(other.calls()) == len(REQUESTS), "the other server has answered")
        calls = agreed(named, clients[0], len(REQUESTS))
        capture.wait_shown(len(REQUESTS))
    assert_exactly(capture, server=calls)


def test_port_and_host_narrow_the_targets(lab: Lab) -> None:
    servers = [lab.origin(), lab.origin(), lab.origin("inet6")]
    clients = [lab.client(server, REQUESTS) for server in servers]
    pids = ",".join(str(server.pid) for server in servers)
    with (
        lab.trace("--pid", pids, "--port", str(servers[0].address[1])) as by_port,
        lab.trace("--pid", pids, "--host", "::1") as by_host,
    ):
        for client in clients:
            client.go()
        calls = [agreed(*ends, len(REQUESTS)) for ends in zip(servers, clients, strict=True)]
        by_port.wait_shown(len(REQUESTS))
        by_host.wait_shown(len(REQUESTS))
    assert_exactly(by_port, server=calls[0])
    assert_exactly(by_host, server=calls[2])
