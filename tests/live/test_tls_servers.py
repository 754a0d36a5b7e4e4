"""Servers that speak TLS, each in the way of its kind, and the Python client: exactly the calls made, at both ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.calls import without
from tests.live.harness import Program, Record, assert_same, cannot, children, program
from tests.live.tls import MADE, REQUESTS, TlsLab, assert_exactly_over_tls, told

JOURNALLED: dict[str, Callable[[TlsLab], Program]] = {
    "python http.server": TlsLab.tls_origin,
    "python, a fork for each connection": lambda lab: lab.tls_origin("--fork"),
    "asyncio": TlsLab.tls_streams,
    "uvicorn": TlsLab.tls_uvicorn,
    "gunicorn": lambda lab: lab.tls_gunicorn(2),
    "node": TlsLab.tls_node,
}


def converse(
    lab: TlsLab, server: Program, client: Program, count: int, *, pids: str | None = None, journal: bool = True,
    protocol: str = "HTTP/1.1",
) -> None:  # fmt: skip
    """Trace both ends while the client makes its calls, and compare. Without a journal the client's is the truth."""
    with lab.trace("--pid", pids or f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = told(server, client, count) if journal else client.calls(count)
        capture.wait_shown(2 * count)
    assert_exactly_over_tls(capture, client=calls, server=calls, protocol=protocol)


@pytest.mark.parametrize("name", JOURNALLED)
def test_a_server_and_its_client_show_the_calls_that_were_made(tls_lab: TlsLab, name: str) -> None:
    server = JOURNALLED[name](tls_lab)
    client = tls_lab.tls_client(server, connections=3, rounds=2)
    converse(tls_lab, server, client, 6 * len(REQUESTS))


@pytest.mark.parametrize("name", ["asyncio", "node", "python http.server"])
def test_fifty_connections_at_a_time_are_told_apart(tls_lab: TlsLab, name: str) -> None:
    server = JOURNALLED[name](tls_lab)
    client = tls_lab.tls_client(server, connections=50)
    converse(tls_lab, server, client, 50 * len(REQUESTS))


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("workers", [1, 2])
def test_nginx_with_the_openssl_of_the_system(tls_lab: TlsLab, version: str, workers: int) -> None:
    server = tls_lab.tls_nginx(workers)
    requests = [{"path": "/page.html"}, {"path": "/missing"}, {"method": "HEAD", "path": "/page.html"}]
    client = tls_lab.tls_client(server, requests, connections=3, rounds=2, flags=["--tls", version])
    with tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = client.calls(18)
        assert_same(without(calls, "date", "connection"), server.calls(18))
        capture.wait_shown(36)
    assert_exactly_over_tls(capture, client=calls, server=calls)
    assert {call.tls.version for call in calls if call.tls} == {version}


def test_a_server_that_was_linked_statically_with_openssl(tls_lab: TlsLab, c_build: Callable[[str], Path]) -> None:
    """Its probes are found by the symbols of the program itself."""
    server = tls_lab.silent(str(c_build("static")), "server", "@PORT@", str(tls_lab.certificates))
    requests: list[Record] = [
        {"path": "/bytes/17"}, {"method": "POST", "path": "/echo", "size": 70001}, {"path": "/bytes/100003"},
    ]  # fmt: skip
    client = tls_lab.tls_client(server, requests, connections=3, rounds=2)
    converse(tls_lab, server, client, 18, journal=False)


@pytest.fixture(scope="session")
def python_with_openssl_inside() -> tuple[str, dict[str, str]]:
    """A CPython whose _ssl is linked statically with OpenSSL, and its environment."""
    for binary in MADE.glob("python/org/bytedeco/cpython/*/bin/python3.13"):
        binary.chmod(0o755)
        home = str(binary.parents[1])
        return str(binary), {"LD_LIBRARY_PATH": home, "PYTHONHOME": home}
    return cannot("there is no Python with OpenSSL inside: make .venv/.test fetches one")


def test_a_python_that_carries_openssl_inside(
    tls_lab: TlsLab, python_with_openssl_inside: tuple[str, dict[str, str]]
) -> None:
    python, extra = python_with_openssl_inside
    server = tls_lab.tls_origin(python=python, extra=extra)
    client = tls_lab.tls_client(server, connections=3, rounds=2, python=python, extra=extra)
    converse(tls_lab, server, client, 6 * len(REQUESTS))


CADDYFILE = """
{
    admin off
    auto_https off
    servers {
        protocols h1
    }
}
https://:@PORT@ {
    bind 127.0.0.1
    tls @CERTIFICATES@/server.pem @CERTIFICATES@/server.key
    respond /missing 404
    respond "hello from a packaged server"
}
"""


def test_a_go_server_that_was_stripped_by_its_packager(tls_lab: TlsLab) -> None:
    config = tls_lab.path("Caddyfile")
    home = {"HOME": str(tls_lab.directory), "XDG_DATA_HOME": str(tls_lab.directory), "LISTEN_ON": "@PORT@"}
    config.write_text(CADDYFILE.replace("@CERTIFICATES@", str(tls_lab.certificates)).replace("@PORT@", "{$LISTEN_ON}"))
    run = ["sh", "-c", 'exec "$@" 2>"$HOME/caddy.log"', "sh", program("caddy"), "run", "--adapter=caddyfile"]
    server = tls_lab.silent(*run, f"--config={config}", extra=home)
    requests: list[Record] = [
        {"path": "/a?b=c"}, {"path": "/missing"}, {"method": "HEAD", "path": "/"},
        {"method": "POST", "path": "/", "size": 1999},
    ]  # fmt: skip
    client = tls_lab.tls_client(server, requests, connections=3, rounds=2)
    converse(tls_lab, server, client, 24, journal=False)


def test_a_gnutls_server(tls_lab: TlsLab) -> None:
    """gnutls-serv answers each request with a page that ends with the connection."""
    pair = [f"--x509certfile={tls_lab.certificates}/server.pem", f"--x509keyfile={tls_lab.certificates}/server.key"]
    run = ["sh", "-c", 'exec "$@" >/dev/null', "sh", program("gnutls-serv"), "--http", "--quiet", "--port=@PORT@"]
    server = tls_lab.silent(*run, *pair)
    client = tls_lab.tls_client(server, [{"path": "/"}], connections=3, rounds=3)
    converse(tls_lab, server, client, 9, journal=False)


def test_a_preforking_server_is_exact_by_its_parents_pid(tls_lab: TlsLab) -> None:
    """Each connection has a child of its own, which is born after the probes were placed."""
    server = tls_lab.tls_origin("--fork")
    client = tls_lab.tls_client(server, connections=10, rounds=3)
    count = 30 * len(REQUESTS)
    with tls_lab.trace("--pid", str(server.pid)) as capture:
        client.go()
        client.wait_done()
        calls = told(server, client, count)
        capture.wait_shown(count)
    assert_exactly_over_tls(capture, server=calls)
    assert server.pid not in {record["process"]["pid"] for record in capture.exchanges}
    assert len({record["process"]["pid"] for record in capture.exchanges}) == 10
    assert len(children(server.pid)) <= 10
