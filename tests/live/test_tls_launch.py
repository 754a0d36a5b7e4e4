"""From the first byte: commands, what they start, and programs that load TLS late or live for a moment."""

from __future__ import annotations

import shlex
import shutil
import uuid
from pathlib import Path

from tests.live.containers import PYTHON, Engine
from tests.live.harness import program
from tests.live.tls import TlsLab, assert_exactly_over_tls

RUNS = 50
BRIEF = """
import socket, ssl, sys
host, port, ca, number = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname="tls.test") as connection:
    connection.sendall(b"GET /close/17 HTTP/1.1\\r\\nHost: tls.test\\r\\nX-Call: %d\\r\\n\\r\\n" % int(number))
    while connection.recv(4096):
        pass
"""
"""A Python client that does nothing else, so that it lives for hardly more than its one call."""


def test_the_call_of_curl_is_shown_in_50_runs_of_50(tls_lab: TlsLab) -> None:
    server = tls_lab.tls_origin()
    url = f"https://127.0.0.1:{server.address[1]}/bytes/17"
    for run in range(RUNS):
        command = [program("curl"), "-sk", "--http1.1", "-o", "/dev/null", "-H", f"X-Call: {run}", url]
        capture = tls_lab.trace_command(*command)
        assert capture.status == 0, capture.stderr
        assert_exactly_over_tls(capture, client=server.calls(run + 1)[run:])


def test_the_call_of_a_python_client_is_shown_in_50_runs_of_50(tls_lab: TlsLab) -> None:
    server = tls_lab.tls_origin()
    for run in range(RUNS):
        arguments = [server.address[0], str(server.address[1]), tls_lab.ca, str(run)]
        capture = tls_lab.trace_command(PYTHON, "-I", "-c", BRIEF, *arguments)
        assert capture.status == 0, capture.stderr
        assert_exactly_over_tls(capture, client=server.calls(run + 1)[run:])


def test_all_descendants_of_a_command_are_shown_forked_or_started(tls_lab: TlsLab) -> None:
    """A shell starts programs of three kinds, beside each other and below each other."""
    server = tls_lab.tls_origin()
    url = f"https://127.0.0.1:{server.address[1]}"
    curl = f"{program('curl')} -sk --http1.1 -o /dev/null"
    wget = f"{program('wget')} -q --no-check-certificate -O /dev/null"
    python = shlex.join([PYTHON, "-I", "-c", BRIEF, server.address[0], str(server.address[1]), tls_lab.ca, "3"])
    script = f"{curl} {url}/bytes/1 & sh -c '{wget} {url}/bytes/2; {curl} {url}/bytes/3' & {python} & wait"
    capture = tls_lab.trace_command("sh", "-c", script)
    assert capture.status == 0, capture.stderr
    assert_exactly_over_tls(capture, client=server.calls(4))


def test_a_library_that_is_loaded_after_the_attach(tls_lab: TlsLab) -> None:
    server = tls_lab.tls_origin()
    late = "import sys; print('started', flush=True); sys.stdin.readline(); exec(sys.stdin.read())"
    arguments = [server.address[0], str(server.address[1]), tls_lab.ca, "0"]
    client = tls_lab.start(PYTHON, "-I", "-c", late, *arguments, journal=tls_lab.path("none"))
    assert client.read_line() == "started\n"
    with tls_lab.trace("--pid", str(client.pid)) as capture:
        client.go(last=BRIEF)
        calls = server.calls(1)
        assert capture.wait() == 0  # with its target
    assert_exactly_over_tls(capture, client=calls)


def test_50_clients_that_docker_exec_runs_are_all_shown(tls_lab: TlsLab, docker: Engine, shared: Path) -> None:
    server, name = tls_lab.tls_origin(), f"web-{uuid.uuid4().hex[:6]}"
    ca = shutil.copy(tls_lab.ca, shared)
    docker.run(name, "/bin/sleep", "600")
    try:
        with tls_lab.trace("--container", name) as capture:
            for run in range(RUNS):
                docker.exec(name, PYTHON, "-I", "-c", BRIEF, *map(str, server.address), str(ca), str(run))
            calls = server.calls(RUNS)
            capture.wait_shown(RUNS)
        assert_exactly_over_tls(capture, client=calls)
    finally:
        docker.remove(name)
