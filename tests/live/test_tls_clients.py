"""Clients that speak TLS, each in the way of its kind, and the Python server: exactly the calls made, at both ends."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.live.certificates import NAME
from tests.live.harness import Program, program
from tests.live.tls import REQUESTS, TlsLab, assert_exactly_over_tls, told

CLIENTS: dict[str, Callable[..., Program]] = {
    "requests": lambda lab, *to, **how: lab.library_client("requests", *to, **how),
    "httpx": lambda lab, *to, **how: lab.library_client("httpx", *to, **how),
    "aiohttp": lambda lab, *to, **how: lab.library_client("aiohttp", *to, **how),
    "asyncio": lambda lab, *to, **how: lab.library_client("asyncio", *to, **how),
    "node agent": lambda lab, *to, **how: lab.node_client("agent", *to, **how),
    "node fetch": lambda lab, *to, **how: lab.node_client("fetch", *to, **how),
}


@pytest.mark.parametrize(("name", "connections"), [
    ("requests", 3), ("httpx", 5), ("aiohttp", 5), ("asyncio", 50), ("node agent", 50), ("node fetch", 50),
])  # fmt: skip
def test_a_client_and_its_server_show_the_calls_that_were_made(tls_lab: TlsLab, name: str, connections: int) -> None:
    server = tls_lab.tls_origin()
    client = CLIENTS[name](tls_lab, server, connections=connections)
    count = connections * len(REQUESTS)
    with tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = told(server, client, count)
        capture.wait_shown(2 * count)
    assert_exactly_over_tls(capture, client=calls, server=calls)


def commands(lab: TlsLab, port: int) -> dict[str, tuple[list[Sequence[str]], int]]:
    """Return for each program of the command line what to run, and how many calls that makes."""
    base, named = f"https://127.0.0.1:{port}", f"https://{NAME}:{port}"
    resolve = ["--resolve", f"{NAME}:{port}:127.0.0.1"]
    curl = [program("curl"), "-sS", "--http1.1", "-o/dev/null", "--cacert", lab.ca, *resolve]
    more = [f"{named}/bytes/{size}" for size in (0, 1, 70001)]
    urls = [word for url in more for word in ("-o/dev/null", url)]
    wget = [program("wget"), "-q", "-O/dev/null", f"--ca-certificate={lab.ca}"]
    gnutls = [
        program("gnutls-cli"), f"--x509cafile={lab.ca}", f"--port={port}", f"--sni-hostname={NAME}",
        f"--verify-hostname={NAME}", "--logfile=/dev/null", "127.0.0.1",
    ]  # fmt: skip
    request = f"GET /close/1999 HTTP/1.1\\r\\nHost: {NAME}\\r\\n\\r\\n"
    return {
        "curl": (
            [[*curl, *urls[1:]], [*curl, "-d@/etc/passwd", f"{named}/echo"], [*curl, "-k", f"{base}/status/404"]], 5,
        ),
        "curl, TLS 1.2": ([[*curl, "--tls-max", "1.2", *urls[1:]]], 3),
        "wget": ([[*wget, f"{base}/bytes/17", f"{base}/bytes/70001", f"{base}/chunked/9000/1000"]], 3),
        # Its input must stay open until it has read the answer: a pipe that it has open for writing too.
        "gnutls-cli": ([["sh", "-c", f"""
            mkfifo {lab.directory}/pipe && exec 3<>{lab.directory}/pipe && printf '{request}' >&3
            exec {shlex.join(gnutls)} <&3 >/dev/null"""]], 1),
    }


@pytest.mark.parametrize("name", ["curl", "curl, TLS 1.2", "wget", "gnutls-cli"])
def test_a_command_and_its_server_show_the_calls_that_were_made(tls_lab: TlsLab, name: str) -> None:
    server = tls_lab.tls_origin()
    parts, count = commands(tls_lab, server.address[1])[name]
    script = "; ".join(map(shlex.join, parts))
    capture = tls_lab.trace_command("sh", "-c", script, flags=["--pid", str(server.pid)])
    calls = server.calls(count)
    assert len(calls) == count
    assert_exactly_over_tls(capture, client=calls, server=calls)


def test_curl_and_nginx(tls_lab: TlsLab) -> None:
    server = tls_lab.tls_nginx()
    urls = [f"https://{NAME}:{server.address[1]}/{path}" for path in ("hello", "page.html", "missing", "hello?a=b")]
    resolve = ["--resolve", f"{NAME}:{server.address[1]}:127.0.0.1"]
    curl = [program("curl"), "-sS", "--http1.1", "--cacert", tls_lab.ca, *resolve]
    script = f"exec {shlex.join([*curl, *urls])} >/dev/null"
    capture = tls_lab.trace_command("sh", "-c", script, flags=["--pid", str(server.pid)])
    assert capture.status == 0, capture.stderr
    calls = server.calls(4)
    assert_exactly_over_tls(capture, client=calls, server=calls, leave_out=["date", "connection"])


@pytest.mark.parametrize("build", ["static", "musl"])
def test_openssl_inside_a_program_and_openssl_for_musl(
    tls_lab: TlsLab, c_build: Callable[[str], Path], build: str
) -> None:
    server = tls_lab.tls_origin()
    capture = tls_lab.trace_command(
        "sh", "-c", f"echo go | {c_build(build)} client {server.address[1]} {tls_lab.ca} plain 7 >/dev/null",
        flags=["--pid", str(server.pid)],
    )  # fmt: skip
    assert capture.status == 0, capture.stderr
    calls = server.calls(7)
    assert_exactly_over_tls(capture, client=calls, server=calls)
    [library] = {record["tls"]["library"] for record in capture.at("client")}
    assert library.startswith("OpenSSL 1.1.1" if build == "musl" else "OpenSSL")
