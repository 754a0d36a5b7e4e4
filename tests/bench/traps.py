"""How often the processor traps for apitrace, by runtime: in steady state, for one exchange.

    sudo .venv/bin/python -m tests.bench.traps

Steady state: the connection is kept alive, and its first exchanges are over. What is counted is what the probe points
count themselves (`hits`): a call on a TLS library traps once for each breakpoint that it runs over, and once more when
it returns to a return probe. A breakpoint is cheap where the kernel emulates the instruction under it, and not where
that is single-stepped; a return is always cheap, as nothing lies under it.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from apitrace.probes.placement import Kind
from apitrace.probes.sockets import LiveSource, Narrowing
from apitrace.probes.tls import PlacedHook
from apitrace.targets.target import TargetSet
from tests.bench.bench_http1_live import free_port, nginx
from tests.bench.bench_tls_live import TLS_NGINX, certificate, worker

FIRST = 23
"""Exchanges until the state is steady: the handshake's late messages (session tickets) are read with the first."""
COUNTED = 101
PATIENCE = 30.0
"""Seconds to wait for what takes a tenth of one."""
BODY = b"x" * 100


class Traps(NamedTuple):
    """Of a number of exchanges."""

    exchanges: int
    calls: int
    """Of the library's read and write functions."""
    cheap: int
    stepped: int
    """Of breakpoints whose instruction is single-stepped."""
    elsewhere: int
    """Of the traps, those that are not at read and write calls: handshakes, ends, BIO_write, the dynamic loader."""
    watches_bio: bool
    """Whether BIO_write is still probed."""


class Tracer:
    """apitrace's probes on a process, and a thread that takes what they send."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.source = LiveSource(TargetSet(pids=(pid,)), Narrowing(), lambda _: ("traced", None, None))
        self.source.start()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            self.source.poll(20)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.source.close()

    def settle(self, use: Callable[[int], None] = lambda _: None) -> None:
        """Wait until BIO_write is probed no longer, or give up: then the result tells.

        `use(1)` keeps a connection from being closed for idleness: node does so after 5 s.
        """
        deadline = time.monotonic() + PATIENCE
        while self.source.tls.watches_bio(self.pid) and time.monotonic() < deadline:
            use(1)
            time.sleep(0.02)

    def hits(self) -> list[tuple[PlacedHook, int]]:
        """Return what is in place, the hook in the dynamic loader too, and how often its points were hit."""
        tls = self.source.tls
        process = tls._processes[self.pid]
        placed = [one for hooks in (*process.files.values(), *process.bio.values()) for one in hooks]
        return [(one, tls.hits(one.hook.point)) for one in placed if one.probe is not None]

    def since(self, before: list[tuple[PlacedHook, int]], exchanges: int) -> Traps:
        """Return what has been hit since `before`."""
        earlier = {(one.hook.point, one.hook.at_return): hits for one, hits in before}
        entries = {one.hook.point: one.hook.place.offset for one, _ in before if not one.hook.at_return}
        calls = cheap = stepped = elsewhere = 0
        for one, hits in self.hits():
            hook = one.hook
            more = hits - earlier.get((hook.point, hook.at_return), 0)
            moves = hook.kind in (Kind.READ, Kind.WRITE)
            # A return probe at its entry probe's place shares the breakpoint, and has the return for itself.
            breakpoints = int(not hook.at_return or entries.get(hook.point) != hook.place.offset)
            cheap += more * (int(hook.at_return) + (breakpoints if hook.place.cheap else 0))
            stepped += 0 if hook.place.cheap else more * breakpoints
            if not moves:
                elsewhere += more * (int(hook.at_return) + breakpoints)
            elif hook.program in ("on_tls_entry", "on_go_call"):
                calls += more
        return Traps(exchanges, calls, cheap, stepped, elsewhere, self.source.tls.watches_bio(self.pid))


# -- servers: the load is one connection from here ------------------------------------------------------------------

PYTHON_THREADED = """
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 100)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("certificate.pem", "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

PYTHON_ASYNCIO = """
import asyncio, ssl, sys
async def serve(reader, writer):
    while await reader.readuntil(b"\\r\\n\\r\\n"):
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\n" + b"x" * 100)
        await writer.drain()
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("certificate.pem", "key.pem")
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), ssl=context)
    await server.serve_forever()
asyncio.run(main())
"""

NODE = """
const fs = require("fs");
require("https").createServer({cert: fs.readFileSync("certificate.pem"), key: fs.readFileSync("key.pem")},
  (request, response) => { response.end("x".repeat(100)); }).listen(+process.argv[1], "127.0.0.1");
"""

GO = """
package main

import (
	"net/http"
	"os"
)

func main() {
	body := make([]byte, 100)
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
	server := &http.Server{Addr: "127.0.0.1:" + os.Args[1], TLSNextProto: nil}
	server.ListenAndServeTLS("certificate.pem", "key.pem")
}
"""


def _python(text: str) -> Callable[[Path, int], list[str]]:
    return lambda _, port: [sys.executable, "-c", text, str(port)]


def _node(_: Path, port: int) -> list[str]:
    return ["node", "-e", NODE, str(port)]


def _go(directory: Path, port: int) -> list[str]:
    (directory / "main.go").write_text(textwrap.dedent(GO))
    command = ["go", "build", "-o", "server", "main.go"]
    settings = {"GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "", "GO111MODULE": "off"}
    subprocess.run(command, check=True, cwd=directory, env={**os.environ, **settings})
    return [str(directory / "server"), str(port)]


@contextlib.contextmanager
def _started(command: list[str], directory: Path, port: int) -> Iterator[int]:
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    message = f"{command[0]} does not serve"
                    raise RuntimeError(message)
                time.sleep(0.02)
            yield process.pid
        finally:
            process.kill()


SERVERS: dict[str, tuple[str, Callable[[Path, int], list[str]] | None]] = {
    "nginx": ("nginx", None),
    "Python, http.server": ("openssl", _python(PYTHON_THREADED)),
    "Python, asyncio": ("openssl", _python(PYTHON_ASYNCIO)),
    "node, https": ("node", _node),
    "Go, net/http": ("go", _go),
}
"""Name -> the program that it needs, and how its command is made; None: nginx."""


def of_server(name: str) -> Traps:
    """Count at a server: the connection is open already when the probes are placed, as in a running service."""
    _, command = SERVERS[name]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        directory.chmod(0o755)
        certificate(directory)
        port = free_port()
        if command is None:
            pid = worker(stack.enter_context(nginx(directory, port, TLS_NGINX)))
        else:
            pid = stack.enter_context(_started(command(directory, port), directory, port))
        context = ssl.create_default_context(cafile=str(directory / "certificate.pem"))
        client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE)
        stack.callback(client.close)

        def exchanges(count: int) -> None:
            for _ in range(count):
                client.request("GET", "/index")
                client.getresponse().read()

        exchanges(1)
        tracer = Tracer(pid)
        stack.callback(tracer.close)
        exchanges(FIRST)
        tracer.settle(exchanges)
        before = tracer.hits()
        exchanges(COUNTED)
        return tracer.since(before, COUNTED)


# -- clients: the server is here ------------------------------------------------------------------------------------

PYTHON_CLIENT = """
import http.client, ssl, sys
context = ssl.create_default_context(cafile="certificate.pem")
client = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=context)
for _ in range(int(sys.argv[2])):
    client.request("GET", "/index")
    client.getresponse().read()
"""

NODE_CLIENT = """
const https = require("https");
const agent = new https.Agent({keepAlive: true, maxSockets: 1, ca: require("fs").readFileSync("certificate.pem")});
const ask = (left) => left && https.get({host: "127.0.0.1", port: +process.argv[1], path: "/index", agent},
  (response) => { response.resume(); response.on("end", () => ask(left - 1)); });
ask(+process.argv[2]);
"""



def _urls(port: int, count: int) -> list[str]:
    return [f"https://127.0.0.1:{port}/index"] * count


CLIENTS: dict[str, tuple[str, Callable[[int, int], list[str]]]] = {
    "curl": ("curl", lambda port, count: ["curl", "-sk", "--http1.1", *_urls(port, count)]),
    "wget (GnuTLS)": (
        "wget", lambda port, count: ["wget", "-qO", "/dev/null", "--no-check-certificate", *_urls(port, count)],
    ),
    "Python, http.client": (
        "openssl", lambda port, count: [sys.executable, "-c", PYTHON_CLIENT, str(port), str(count)],
    ),
    "node, https.Agent": ("node", lambda port, count: ["node", "-e", NODE_CLIENT, str(port), str(count)]),
}  # fmt: skip


class _Server(http.server.ThreadingHTTPServer):
    """Calls `on_request(number)` in the middle of each request: its client waits meanwhile."""

    daemon_threads = True
    on_request: Callable[[int], None]
    count = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.server.count += 1
        self.server.on_request(self.server.count)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the name is the base class's
        pass


def of_client(name: str) -> Traps:
    """Count at a client: the probes are placed while it waits for its first answer."""
    _, command = CLIENTS[name]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        certificate(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
        server = _Server(("127.0.0.1", 0), _Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        arrived, begin = threading.Event(), threading.Event()
        tracers: list[Tracer] = []
        counted: list[list[tuple[PlacedHook, int]]] = []
        results: list[Traps] = []

        def on_request(number: int) -> None:
            if number == 1:
                arrived.set()
                begin.wait(PATIENCE)
            elif number == FIRST:
                tracers[0].settle()
                counted.append(tracers[0].hits())
            elif number == FIRST + COUNTED:
                results.append(tracers[0].since(counted[0], COUNTED))

        server.on_request = on_request
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        stack.callback(lambda: (server.shutdown(), thread.join(), server.server_close()))
        port = server.server_address[1]
        process = subprocess.Popen(
            command(port, FIRST + COUNTED + 1), cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(lambda: (process.kill(), process.wait()))
        if not arrived.wait(PATIENCE):
            message = f"{name} has asked nothing"
            raise RuntimeError(message)
        tracers.append(Tracer(process.pid))
        stack.callback(tracers[0].close)
        begin.set()
        process.wait(PATIENCE)
        return results[0]


def main() -> None:
    rows = [(name, of_server, needed) for name, (needed, _) in SERVERS.items()]
    rows += [(name, of_client, needed) for name, (needed, _) in CLIENTS.items()]
    print(f"{'traps per exchange':24} {'calls':>6} {'cheap':>6} {'single-stepped':>15}  elsewhere")
    for name, measure, needed in rows:
        if shutil.which(needed) is None:
            print(f"{name:24} {needed} is not installed")
            continue
        traps = measure(name)
        print(
            f"{name:24} {traps.calls / traps.exchanges:6.2f} {traps.cheap / traps.exchanges:6.2f} "
            f"{traps.stepped / traps.exchanges:15.2f}  {traps.elsewhere / traps.exchanges:9.2f}"
            + ("  BIO_write still probed" if traps.watches_bio else ""),
            flush=True,
        )


if __name__ == "__main__":
    main()
