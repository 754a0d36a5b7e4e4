"""HTTP/2 and gRPC at a steady rate, live: what is shown of what was called, and what an exchange costs apitrace.

    sudo .venv/bin/python -m tests.bench.bench_http2_live [--seconds 4]

h2load calls nghttpd in clear, nginx over TLS, and a method of grpc-go's, over 4 connections with 10 streams each at a
time, at a steady rate. "behind" is how long apitrace goes on when the load is over: at a rate that it cannot keep up
with, that grows with --seconds. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.bench_http1_live import apitrace, free_port, nginx
from tests.bench.bench_tls_live import TLS_NGINX, certificate, worker

RATES = (5_000, 10_000, 15_000)
GRPC_GO = Path(__file__).resolve().parents[1] / "live/programs/grpc_go"
UNARY = b"\0\0\0\0\x09\x0a\x05world\x10\x01"
"""A message as that program takes it: a name and a count."""
CONNECTIONS = 4
H2_NGINX = TLS_NGINX.replace(" ssl;", " ssl http2;", 1)


Load = tuple[int, list[str]]
"""PID of the server, and what h2load is to call."""


@contextlib.contextmanager
def nghttpd(directory: Path) -> Iterator[Load]:
    """Serve in clear."""
    port = free_port()
    (directory / "index").write_bytes(b"x" * 100)
    with subprocess.Popen(
        ["nghttpd", "--no-tls", "-n", "1", "-a", "127.0.0.1", "-d", str(directory), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if time.monotonic() > deadline:
                    message = "nghttpd did not start"
                    raise RuntimeError(message)
                time.sleep(0.05)
            yield process.pid, [f"http://127.0.0.1:{port}/index"]
        finally:
            process.terminate()


@contextlib.contextmanager
def grpc_go(directory: Path) -> Iterator[Load]:
    """Serve gRPC in clear."""
    server, message = directory / "server", directory / "message"
    subprocess.run(["go", "build", "-o", str(server), "."], check=True, cwd=GRPC_GO)
    message.write_bytes(UNARY)
    fields = [word for field in ("content-type: application/grpc", "te: trailers") for word in ("-H", field)]
    with subprocess.Popen([str(server), "server", "/dev/null"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            host, port = json.loads(process.stdout.readline())
            yield process.pid, ["-d", str(message), *fields, f"http://{host}:{port}/test.Calls/Unary"]
        finally:
            process.terminate()


@contextlib.contextmanager
def nginx_tls(directory: Path) -> Iterator[Load]:
    """Serve over TLS, with one worker."""
    port = free_port()
    certificate(directory)
    with nginx(directory, port, H2_NGINX) as master:
        yield worker(master), [f"https://127.0.0.1:{port}/index"]


SERVERS = {"nghttpd, h2c": nghttpd, "nginx, TLS": nginx_tls, "grpc-go, h2c": grpc_go}


def once(name: str, rate: int, seconds: int) -> str:
    """Run a load; return a line of what was measured."""
    count = rate * seconds
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)
        fact: dict[str, float] = {}
        with SERVERS[name](directory) as (pid, call), apitrace("-j")(pid, 0, directory, fact):
            load = ["-c", str(CONNECTIONS), "-m", "10", "-n", str(count), "--rps", str(rate // CONNECTIONS)]
            said = subprocess.run(["h2load", *load, *call], check=True, capture_output=True, text=True).stdout
    reached = re.search(r"([\d.]+) req/s", said)
    succeeded = re.search(r"(\d+) succeeded", said)
    dropped = re.search(r"(\d[\d,]*) events dropped", str(fact["summary"]))
    assert reached
    assert succeeded
    return (
        f"{name:14} asked {rate:6}/s, reached {float(reached[1]):6.0f}/s: {succeeded[1]} called, "
        f"{fact['lines']:.0f} shown, {dropped[1] if dropped else '?'} events dropped; "
        f"apitrace {1e6 * fact['cpu_s'] / count:5.1f} us CPU/exchange, {fact['rss_mb']:.0f} MB, "
        f"{fact['drain_s']:.1f} s behind"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=4)
    arguments = parser.parse_args()
    for name in SERVERS:
        for rate in RATES:
            print(once(name, rate, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
