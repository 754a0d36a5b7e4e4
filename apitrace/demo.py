"""The built-in workload of `--demo`: a small shop on loopback that makes every kind of call worth seeing, then ends.

`Workload` starts one process, which waits; `begin` lets it run. It forks the servers `users`, `orders` and `payments`
on TCP and `stock` on an AF_UNIX socket, and the clients `web` and `mobile`. Those make the calls of CALLS, PIPELINED
and REFUSED and no others, and insist on the answers: so it is known beforehand how many exchanges a complete capture
shows. It needs nothing but the standard library, prints nothing, takes about six seconds, and can be run alone:
`python -m apitrace.demo`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self

Address = tuple[str, int] | str
"""(ip, port), or the path of an AF_UNIX socket."""

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_WAIT = "--wait"
_PAUSE_S = 0.45
"""Between two calls of a client: slow enough to read the rows as they come."""


class Call(NamedTuple):
    """One step of a client."""

    server: str
    method: str
    path: str
    status: int
    """The answer that the client insists on."""
    body: object = None
    """Sent as JSON; bytes are sent as they are."""
    headers: Mapping[str, str] = {}
    causes: int = 0
    """Calls to further servers that the server makes to answer this one."""


_JPEG = {"Content-Type": "image/jpeg"}
_LOGIN = {"Authorization": "Bearer demo-token-0123456789", "Cookie": "session=5f2c81; theme=dark"}

CALLS: dict[str, tuple[Call, ...]] = {
    "web": (
        Call("users", "POST", "/v1/login", 200, {"user": "ada", "password": "lovelace"}),
        Call("users", "GET", "/v1/users/7", 200, headers=_LOGIN),
        Call("orders", "GET", "/v1/orders?user=7&state=open", 200, headers=_LOGIN),
        Call("orders", "POST", "/v1/orders", 201, {"user": 7, "item": 42, "count": 2}, _LOGIN, causes=2),
        Call("orders", "GET", "/v1/orders/1001", 200, headers=_LOGIN),
        Call("orders", "GET", "/v1/orders/999", 404, headers=_LOGIN),
        Call("orders", "GET", "/v1/orders/export", 200, headers=_LOGIN),
        Call("payments", "GET", "/v1/charges/broken", 500),
        Call("users", "PUT", "/v1/users/7/photo", 200, b"\xff\xd8\xff" + bytes(200_000), _JPEG),
        Call("orders", "DELETE", "/v1/orders/1001", 204, headers=_LOGIN),
        Call("users", "GET", "/v1/users/7", 200, headers=_LOGIN),
    ),
    "mobile": (
        Call("users", "HEAD", "/v1/users/7", 200),
        Call("users", "GET", "/v1/users/8", 404),
        Call("orders", "GET", "/v1/orders/slow", 200),
        Call("stock", "GET", "/v1/items/42", 200),
        Call("orders", "POST", "/v1/orders", 201, {"user": 9, "item": 42, "count": 1}, causes=2),
        Call("payments", "POST", "/v1/charges", 402, {"order": 1002, "amount": 1_000_000}),
        Call("orders", "GET", "/v1/orders?user=9", 200),
    ),
}

PIPELINED = ("/v1/users/7", "/v1/users/8", "/v1/users/7")
"""What `mobile` sends in one write, before it reads the first answer."""

_TCP_SERVERS = ("users", "orders", "payments")

CALLS_MADE = sum(1 + call.causes for calls in CALLS.values() for call in calls) + len(PIPELINED)
REFUSED = 1
"""Connects to a port on which nothing listens: they are seen at one end only."""
EXPECTED = 2 * CALLS_MADE + REFUSED
"""Exchanges that a complete capture shows: each call once per end."""


class Workload:
    """A workload to trace. Leaving the context ends it, if it has not ended by itself."""

    def __init__(self) -> None:
        # Run by path and isolated: no module in the user's directory can take the place of one of ours. In a session
        # of its own: Ctrl-C is for apitrace alone.
        command = [sys.executable, "-I", __file__, _WAIT]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes to trace: one, all others are its children."""
        return (self._process.pid,)

    def begin(self) -> None:
        """Let the workload run."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """Wait until it has ended; return its exit status, 0 if every call was answered as it should be."""
        return self._process.wait()

    def compare(self, shown: int) -> list[str]:
        """Return lines that tell the user how many exchanges were made and how many of them were shown."""
        made = (
            f"the workload made {CALLS_MADE} calls, each with two ends, and {REFUSED} connect that was refused: "
            f"{EXPECTED} exchanges"
        )
        if shown == EXPECTED:
            return [made, "all of them were shown"]
        return [made, f"{shown} were shown, which is right only if the capture was narrowed or interrupted"]


# The servers


class _Answer(NamedTuple):
    status: int
    body: object = None
    """Sent as JSON; None: no body."""


_ANSWERS: dict[tuple[str, str, str], _Answer] = {
    ("users", "POST", "/v1/login"): _Answer(200, {"token": "demo-token-0123456789", "expires_in": 3600}),
    ("users", "GET", "/v1/users/7"): _Answer(200, {"id": 7, "name": "Ada", "city": "Zürich"}),
    ("users", "PUT", "/v1/users/7/photo"): _Answer(200, {"stored": True}),
    ("orders", "GET", "/v1/orders"): _Answer(200, {"orders": [{"id": 1001, "total": "59.80"}], "next": None}),
    ("orders", "GET", "/v1/orders/1001"): _Answer(200, {"id": 1001, "item": 42, "count": 2, "total": "59.80"}),
    ("orders", "DELETE", "/v1/orders/1001"): _Answer(204),
    ("payments", "POST", "/v1/charges"): _Answer(402, {"error": "card declined"}),
    ("payments", "POST", "/v1/charges/small"): _Answer(201, {"charge": "ch_1", "state": "paid"}),
    ("payments", "GET", "/v1/charges/broken"): _Answer(500, {"error": "division by zero"}),
    ("stock", "GET", "/v1/items/42"): _Answer(200, {"item": 42, "left": 17}),
}
_NOT_FOUND = _Answer(404, {"error": "not found"})


class _Handler(http.server.BaseHTTPRequestHandler):
    """A server of the shop."""

    protocol_version = "HTTP/1.1"
    server_version = "shop"
    sys_version = ""
    disable_nagle_algorithm = False  # not there on AF_UNIX
    name: str
    shop: Mapping[str, Address]

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        special = _SPECIAL.get((self.name, self.command, path))
        if special is not None:
            special(self)
        else:
            method = "GET" if self.command == "HEAD" else self.command
            self._send(_ANSWERS.get((self.name, method, path), _NOT_FOUND))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names http.server looks for

    def _send(self, answer: _Answer) -> None:
        body = b"" if answer.body is None else json.dumps(answer.body, ensure_ascii=False).encode()
        self.send_response(answer.status)
        if body:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _order(self) -> None:
        """Look into the stock and charge the card, then answer."""
        for call in (
            Call("stock", "GET", "/v1/items/42", 200),
            Call("payments", "POST", "/v1/charges/small", 201, {"amount": "59.80"}),
        ):
            with contextlib.closing(_Connection(self.shop[call.server])) as connection:
                _make(connection, call)
        self._send(_Answer(201, {"id": 1001, "state": "paid"}))

    def _slow(self) -> None:
        time.sleep(0.7)
        self._send(_Answer(200, {"took": "a while"}))

    def _stream(self) -> None:
        """Send a chunk now and then."""
        self.send_response(200)
        self.send_header("Content-Type", "text/csv")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in (b"id,total\n", b"1001,59.80\n", b"1002,29.90\n"):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            time.sleep(_PAUSE_S / 2)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


_SPECIAL: dict[tuple[str, str, str], Callable[[_Handler], None]] = {
    ("orders", "POST", "/v1/orders"): _Handler._order,  # noqa: SLF001
    ("orders", "GET", "/v1/orders/slow"): _Handler._slow,  # noqa: SLF001
    ("orders", "GET", "/v1/orders/export"): _Handler._stream,  # noqa: SLF001
}


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Serves each connection in a thread, on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[_Handler]) -> None:
        super().__init__(listener.getsockname(), handler)
        self.socket = listener

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def shutdown_request(self, request: Any) -> None:
        request.close()


def _run_server(name: str, listener: socket.socket, shop: Mapping[str, Address]) -> None:
    handler = type("_Handler", (_Handler,), {"name": name, "shop": shop})
    _Server(listener, handler).serve_forever()


# The clients


class _Connection(http.client.HTTPConnection):
    """A connection to any server of the shop."""

    def __init__(self, to: Address) -> None:
        super().__init__(*(("localhost",) if isinstance(to, str) else to))
        self._to = to

    def connect(self) -> None:
        if isinstance(self._to, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(self._to)
        else:
            super().connect()


def _make(connection: _Connection, call: Call) -> None:
    """Make one call, and insist on its answer."""
    headers = {"Host": call.server, **call.headers}
    body = call.body if isinstance(call.body, bytes) or call.body is None else json.dumps(call.body).encode()
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    connection.request(call.method, call.path, body, headers)
    response = connection.getresponse()
    response.read()
    if response.status != call.status:
        message = f"{call.method} {call.path}: {response.status} instead of {call.status}"
        raise RuntimeError(message)


def _run_client(name: str, shop: Mapping[str, Address], closed: Address) -> None:
    connections = {server: _Connection(to) for server, to in shop.items()}
    for call in CALLS[name]:
        _make(connections[call.server], call)
        time.sleep(_PAUSE_S)
    if name == "mobile":
        _pipeline(shop["users"])
        with contextlib.suppress(ConnectionRefusedError):
            _Connection(closed).connect()
    for connection in connections.values():
        connection.close()


def _pipeline(to: Any) -> None:
    """Send all requests at once; the last asks the server to close, so that its end is the end of all answers."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: users\r\n" for path in PIPELINED]
    with socket.create_connection(to) as connection:
        connection.sendall(("\r\n".join(requests) + "Connection: close\r\n\r\n").encode())
        received = b"".join(iter(functools.partial(connection.recv, 65536), b""))
    if received.count(b"HTTP/1.1 ") != len(PIPELINED):
        message = "pipelined requests went unanswered"
        raise RuntimeError(message)


# The processes


def _fork(name: str, run: Callable[[], None]) -> int:
    """Run this in a child of this name, that ends with its parent; return its PID."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        libc.prctl(_PR_SET_NAME, name.encode())
        run()
        status = 0
    finally:
        os._exit(status)


@contextlib.contextmanager
def _listeners() -> Iterator[dict[str, socket.socket]]:
    """Open the sockets of all servers, so that none has to be waited for."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="apitrace-demo-"))
        listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in _TCP_SERVERS}
        listeners["stock"] = socket.socket(socket.AF_UNIX)
        listeners["stock"].bind(str(Path(directory) / "stock.sock"))
        listeners["stock"].listen()
        for listener in listeners.values():
            stack.enter_context(listener)
        yield listeners


def main() -> int:
    """Run the workload; return 0 if every call was answered as it should be."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by an exception, so that everything is tidied up
    if _WAIT in sys.argv and sys.stdin.readline() != "go\n":
        return 1
    running: list[int] = []
    with _listeners() as listeners, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, so that nobody else listens there, but not listening
        shop: dict[str, Address] = {name: listener.getsockname() for name, listener in listeners.items()}
        roles = {name: functools.partial(_run_server, name, listener, shop) for name, listener in listeners.items()}
        roles |= {name: functools.partial(_run_client, name, shop, closed.getsockname()) for name in CALLS}
        try:
            # No signal between a fork and the note of it, or the child would be forgotten.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            running += [_fork(name, run) for name, run in roles.items()]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            statuses = [_reap(running, pid) for pid in running[len(listeners) :]]
        finally:
            for pid in running:
                os.kill(pid, signal.SIGTERM)
            while running:
                _reap(running, running[0])
    return 1 if any(statuses) else 0


def _reap(running: list[int], pid: int) -> int:
    """Wait for this child, and return its wait status."""
    status = os.waitpid(pid, 0)[1]
    running.remove(pid)
    return status


if __name__ == "__main__":
    sys.exit(main())
