"""A client that sends all its requests in one write and only then reads the answers.

    python -m tests.live.clients.pipelined JOURNAL ADDRESS COUNT

Starts when its standard input says "go" and ends when that ends, as keepalive.py does.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import sys
from typing import Any

from tests.live.calls import Call, Journal, address, fold
from tests.live.servers.origin import body_of

METHODS = ("GET", "HEAD", "POST", "GET", "PUT")


class Shared(io.BufferedReader):
    """The connection's one reader: a response that has been read must not close it."""

    def makefile(self, *_: object) -> Shared:
        return self

    def close(self) -> None:
        """Stay open for the next response."""


def main() -> None:
    """Make the calls."""
    path, to, count = sys.argv[1:]
    journal = Journal(path)
    connection = socket.create_connection(json.loads(to))
    host = f"{json.loads(to)[0]}:{json.loads(to)[1]}"
    reader: Any = Shared(socket.SocketIO(connection, "r"))
    flight = []
    for number in range(int(count)):
        method = METHODS[number % len(METHODS)]
        size = number * 131 if method in {"POST", "PUT"} else 0
        target = "/echo" if size else f"/bytes/{number * 257}?n={number}"
        headers = [("Host", host), ("X-Call", str(number)), *([("Content-Length", str(size))] if size else [])]
        flight.append((method, target, headers, size))
    if sys.stdin.readline() != "go\n":
        return
    connection.sendall(
        b"".join(
            f"{method} {target} HTTP/1.1\r\n".encode()
            + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers)
            + b"\r\n"
            + body_of(size)
            for method, target, headers, size in flight
        ),
    )
    for method, target, headers, size in flight:
        response = http.client.HTTPResponse(reader, method=method)
        response.begin()
        received = response.read()
        journal.write(
            Call(
                method=method,
                path=target,
                status=response.status,
                request_headers=fold(headers),
                request_size=size,
                response_headers=fold(response.getheaders()),
                response_size=len(received),
                client=address(connection.getsockname()),
                server=address(connection.getpeername()),
            ),
        )
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
