"""Attached to connections that are open already: the next request is shown, with the right addresses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.calls import Call, Session, of_record
from tests.live.harness import Capture, Program, assert_same
from tests.live.tls import REQUESTS, TlsLab

Builds = Callable[[str], Path]
SERVERS: dict[str, Callable[[TlsLab, Builds, Builds], Program]] = {
    "python": lambda lab, _c, _go: lab.tls_origin(),
    "asyncio": lambda lab, _c, _go: lab.tls_streams(),
    "uvicorn": lambda lab, _c, _go: lab.tls_uvicorn(),
    "node": lambda lab, _c, _go: lab.tls_node(),
    "nginx": lambda lab, _c, _go: lab.tls_nginx(),
    "go": lambda lab, _c, go: lab.tls_go(go("plain")),
    "go, stripped": lambda lab, _c, go: lab.tls_go(go("stripped")),
    "openssl, static": lambda lab, c, _go: lab.silent(str(c("static")), "server", "@PORT@", str(lab.certificates)),
}
CLIENTS: dict[str, Callable[..., Program]] = {
    "python": lambda lab, to, *_: lab.tls_client(to, connections=3),
    "requests": lambda lab, to, *_: lab.library_client("requests", to, connections=3),
    "httpx": lambda lab, to, *_: lab.library_client("httpx", to),
    "aiohttp": lambda lab, to, *_: lab.library_client("aiohttp", to),
    "asyncio": lambda lab, to, *_: lab.library_client("asyncio", to, connections=3),
    "node agent": lambda lab, to, *_: lab.node_client("agent", to, connections=3),
    "node fetch": lambda lab, to, *_: lab.node_client("fetch", to),
    "go": lambda lab, to, _c, go: lab.go_client(go("plain"), to, connections=3),
    "openssl": lambda lab, to, c, _go: lab.start(
        str(c("shared")), "client", str(to.address[1]), lab.ca, "plain", str(len(REQUESTS)), journal=lab.path("none")
    ),
}


CONNECTIONS = {"python": 3, "requests": 3, "asyncio": 3, "node agent": 3, "go": 3}


def assert_as_called(capture: Capture, calls: list[Call], role: str) -> None:
    """Fail unless these calls were shown at this end. Of the session what the handshake told may be unknown."""
    records = capture.exchanges
    shown = [of_record(record) for record in records]
    assert_same([call._replace(tls=None) for call in shown], [call._replace(tls=None) for call in calls])
    known = {(call.client, call.server): call.tls or Session(None, None, None) for call in calls}
    for record, call in zip(records, shown, strict=True):
        assert call.tls is not None, record
        truth = known[call.client, call.server]
        assert all(each in {None, true} for each, true in zip(call.tls, truth, strict=True)), (call.tls, truth)
        assert record["process"]["role"] == role
        assert record["complete"], record
        assert record["connection"]["address_source"] in {"socket", "bio"}


@pytest.mark.parametrize("name", SERVERS)
def test_the_next_request_on_an_open_connection_of_a_server(
    tls_lab: TlsLab, c_build: Builds, go_build: Builds, name: str
) -> None:
    server = SERVERS[name](tls_lab, c_build, go_build)
    requests = [{"path": "/page.html"}] if name == "nginx" else [{"path": "/bytes/17"}, {"path": "/bytes/70001"}]
    client = tls_lab.tls_client(server, requests, connections=3)
    count = 3 * len(requests)
    client.go()
    client.wait_done()
    client.calls(count)
    with tls_lab.trace("--pid", str(server.pid)) as capture:
        client.go()
        client.wait_done()
        calls = client.calls(2 * count)[count:]
        capture.wait_shown(count)
    assert_as_called(capture, calls, "server")


@pytest.mark.parametrize("name", CLIENTS)
def test_the_next_request_on_an_open_connection_of_a_client(
    tls_lab: TlsLab, c_build: Builds, go_build: Builds, name: str
) -> None:
    server = tls_lab.tls_origin()
    client = CLIENTS[name](tls_lab, server, c_build, go_build)
    client.go()
    client.wait_done()
    first = CONNECTIONS.get(name, 1) * len(REQUESTS)
    server.calls(first)
    with tls_lab.trace("--pid", str(client.pid)) as capture:
        client.go()
        client.wait_done()
        calls = server.calls(2 * first)[first:]
        capture.wait_shown(len(calls))
    kept = {call.client for call in calls} & {call.client for call in server.calls()[:first]}
    assert kept, "no connection was used again"
    assert_as_called(capture, calls, "client")
