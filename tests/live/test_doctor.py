"""--doctor on a real server: probes placed, their hits counted, and nothing told that may not be known."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.harness import APITRACE, environment, program, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = """
import http.server, ssl, sys
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
CALLS = 7


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """(pid, port) of a TLS server of the system's Python."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    command = ["/usr/bin/python3", "-c", SERVER, str(certificate), str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


def test_the_hits_of_a_known_number_of_calls_are_counted(server: tuple[int, int], tmp_path: Path) -> None:
    pid, port = server
    ready = tmp_path / "ready"
    command = [*APITRACE, "--doctor", "-p", str(pid), "--duration", "120", "--ready-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as run:
        until(ready.exists, "the probes are in place")
        context = ssl._create_unverified_context()  # noqa: S323 - a certificate of our own
        for _ in range(CALLS):
            with urllib.request.urlopen(f"https://127.0.0.1:{port}/", context=context) as answer:
                assert answer.status == 200
        run.send_signal(signal.SIGINT)
        out, err = run.communicate()
    assert run.returncode == 0, err
    assert re.search(rf"^python3\[{pid}\] +- +OpenSSL 3\S+ +yes +(\d+) of \1 +\d+$", out, re.MULTILINE), out
    text = " ".join(out.split())
    assert re.search(rf"SSL_do_handshake entry at [^:]*: cheap, about 0.45 us; placed; {CALLS} hits", text), out
    assert "MISSING" not in out
    assert not ready.exists()


def test_without_root_it_says_what_it_cannot_tell(server: tuple[int, int]) -> None:
    pid, _ = server
    drop = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    reachable = subprocess.run([*drop, APITRACE[0], "--version"], capture_output=True, check=False, env=environment())
    if reachable.returncode:
        pytest.skip("another user cannot read this checkout")
    run = subprocess.run(
        [*drop, APITRACE[0], "--doctor", "-p", str(pid)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert f"python3[{pid}]" in run.stdout
    assert "? (may not be read)" in run.stdout
    assert "MISSING privileges    no CAP_BPF and no CAP_PERFMON: run it with sudo" in run.stdout
    listed = subprocess.run(
        [*drop, APITRACE[0], "--list", "-p", str(pid)], capture_output=True, text=True, check=False, env=environment()
    )
    assert listed.returncode == 0
    assert listed.stdout.splitlines()[1].split() == [str(pid), "python3", "-", "?", "?"]
    assert "run it with sudo" in listed.stderr
