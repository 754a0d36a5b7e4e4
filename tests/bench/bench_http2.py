"""How fast HTTP/2 is decoded on one core, from a recording and from packets by tshark: run it by hand, as root.

    sudo .venv/bin/python -m tests.bench.bench_http2 [CALLS]

h2load makes CALLS calls to nghttpd in clear, once with 100 streams on each of 4 connections and once with one at a
time, and to grpc-go, while apitrace records what the server does and tcpdump keeps the packets. Then both read the same
traffic from their files: apitrace to JSON lines, tshark to path, status and gRPC status as columns. Start-up is counted
for both, so that CALLS should be large. The first table is the decoder alone, by shape of call. Nothing here passes or
fails.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from apitrace.protocols.decoder import CLIENT, SERVER
from apitrace.protocols.http2 import Http2
from tests.bench.bench_http2_live import CONNECTIONS, SERVERS
from tests.unit.protocols.http2_tools import Peer

ROOT = Path(__file__).resolve().parents[2]
APITRACE = os.environ.get("APITRACE", str(ROOT / ".venv/bin/apitrace"))
FIELDS = ("http2.headers.path", "http2.headers.status", "grpc.status_code")
ROUNDS = 5

GRPC = (
    (":method", "POST"), (":scheme", "http"), (":path", "/helloworld.Greeter/SayHello"), (":authority", "h:50051"),
    ("content-type", "application/grpc"), ("user-agent", "grpc-go/1.64.0"), ("te", "trailers"),
)  # fmt: skip
BROWSER = (
    (":method", "GET"), (":authority", "api.example.com"), (":scheme", "https"), (":path", "/api/v1/items/%d?page=2"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"), ("accept", "*/*"),
    ("accept-language", "en-US,en;q=0.5"), ("accept-encoding", "gzip, deflate, br"), ("x-request-id", "7f3c2a90-%d"),
    ("cookie", "session=5f2b8c1e9d"), ("cookie", "theme=dark"),
)  # fmt: skip
ANSWER = (
    (":status", "200"), ("server", "nginx"), ("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("content-type", "text/plain"),
    ("content-length", "%d"), ("etag", 'W/"%d"'), ("cache-control", "max-age=0"), ("vary", "Accept-Encoding"),
)  # fmt: skip

Chunks = list[tuple[int, bytes]]


def grpc_call(client: Peer, server: Peer, stream: int) -> Chunks:
    return [
        (CLIENT, client.headers(stream, GRPC) + client.data(stream, b"\0\0\0\0\x07\x0a\x05world", end=True)),
        (SERVER, server.headers(stream, ((":status", "200"), ("content-type", "application/grpc")))
         + server.data(stream, b"\0\0\0\0\x0d\x0a\x0bHello world")
         + server.headers(stream, (("grpc-status", "0"), ("grpc-message", "")), end=True)),
    ]  # fmt: skip


def web_call(client: Peer, server: Peer, stream: int) -> Chunks:
    def numbered(pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        return [(name, value.replace("%d", str(stream))) for name, value in pairs]

    return [
        (CLIENT, client.headers(stream, numbered(BROWSER), end=True)),
        (SERVER, server.headers(stream, numbered(ANSWER)) + server.data(stream, b"x" * 500, end=True)),
    ]


def decoder_rate(make: Callable[[Peer, Peer, int], Chunks], calls: int = 10_000) -> float:
    """Return the calls a second that one decoder takes."""
    client, server = Peer(CLIENT), Peer(SERVER)
    chunks: Chunks = [(CLIENT, client.hello()), (SERVER, server.hello())]
    for stream in range(1, 2 * calls, 2):
        chunks += make(client, server, stream)
    best = 0.0
    for _ in range(ROUNDS):
        receive = Http2().receive
        gc.collect()
        gc.freeze()  # the conversation itself is no affair of the collector
        begin = time.process_time()
        for side, data in chunks:
            receive(side, data, 0)
        best = max(best, calls / (time.process_time() - begin))
    return best


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        if time.monotonic() > deadline:
            sys.exit("something did not start")
        time.sleep(0.02)


@contextlib.contextmanager
def started(*command: str, end: int = signal.SIGTERM) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(end)
        process.wait()


def record(directory: Path, name: str, load: list[str]) -> tuple[Path, Path, int]:
    """Return a recording and the packets of this load, and the server's port."""
    recording, packets, ready = directory / "load.apitrace", directory / "load.pcap", directory / "ready"
    with SERVERS[name](directory) as (pid, call):
        port = urlsplit(call[-1]).port
        assert port
        flags = ["-i", "lo", "-s", "0", "-B", "262144", "-w", str(packets), f"tcp port {port}"]
        with (
            started("tcpdump", *flags, end=signal.SIGINT),
            started(APITRACE, "-w", str(recording), "--ready-file", str(ready), "--pid", str(pid), end=signal.SIGINT),
        ):
            wait_for(lambda: ready.exists() and packets.exists())
            done = subprocess.run(["h2load", *load, *call], check=True, capture_output=True, text=True)
            speed = re.search(r"([0-9.]+) req/s", done.stdout)
            print(f"  recorded at {speed[1] if speed else '?'} calls/s")
            time.sleep(1)  # for tcpdump to write what it holds
    return recording, packets, port


def timed(*command: str) -> tuple[float, bytes]:
    """Return the CPU seconds and the output of a command."""
    before = os.times()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, output


def known_fields() -> list[str]:
    """Return those fields that this tshark has: 4.0 has no gRPC status of its own."""
    listed = subprocess.run(["tshark", "-G", "fields"], check=True, capture_output=True).stdout
    names = {line.split(b"\t")[2].decode() for line in listed.splitlines() if line.startswith(b"F\t")}
    return [field for field in FIELDS if field in names]


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    print("decoder alone")
    for name, make in (("unary gRPC call", grpc_call), ("GET with 11 and 7 fields", web_call)):
        rate = decoder_rate(make)
        print(f"  {name:28}{rate:12,.0f}/s {1e6 / rate:8.1f} us")
    for program in ("nghttpd", "go", "h2load", "tcpdump", "tshark"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed")
    for name, streams in (("nghttpd, h2c", 100), ("nghttpd, h2c", 1), ("grpc-go, h2c", 10)):
        print(f"{name}: {CONNECTIONS} connections, {streams} streams at a time, {calls:,} calls")
        with tempfile.TemporaryDirectory() as temporary:
            load = ["-n", str(calls), "-c", str(CONNECTIONS), "-m", str(streams)]
            recording, packets, port = record(Path(temporary), name, load)
            ours, lines = timed(APITRACE, "-r", str(recording), "-j")
            found = lines.count(b"\n")
            fields = [word for field in known_fields() for word in ("-e", field)]
            decode = ["-d", f"tcp.port=={port},http2", "-Y", "http2.headers.status"]
            theirs, rows = timed("tshark", "-r", str(packets), *decode, "-T", "fields", *fields)
            print(f"  apitrace -r    {found:8,} exchanges {found / ours:10,.0f}/s {1e6 * ours / found:8.1f} us")
            statuses = sum(row.split(b"\t")[1].count(b",") + 1 for row in rows.splitlines())
            print(f"  tshark -T      {statuses:8,} statuses  {statuses / theirs:10,.0f}/s")
            print(f"  ratio {found / ours / (statuses / theirs):.1f}")


if __name__ == "__main__":
    main()
