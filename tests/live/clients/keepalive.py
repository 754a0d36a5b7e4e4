"""The Python client of the tests: http.client on any number of connections at once, each kept alive.

    python -m tests.live.clients.keepalive JOURNAL ADDRESS CONNECTIONS ROUNDS REQUEST...

ADDRESS is JSON, as the servers print it. Each REQUEST is JSON: {"method", "path", "headers", "size", "chunked"}, where
all but the path have a default. Each connection sends all REQUESTs in turn, ROUNDS times. Starts when its standard
input says "go" and ends when that ends: so it can be traced from its first call on, by its PID.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from tests.live.calls import Address, Call, Journal, address, fold
from tests.live.servers.origin import body_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Recording(http.client.HTTPConnection):
    """Remembers the header lines it sends, and connects to any Address."""

    def __init__(self, to: Address) -> None:
        super().__init__(to[0] if to[1] else "localhost", to[1] or None)
        self._to = to
        self.sent: list[tuple[str, str]] = []

    def connect(self) -> None:
        if self._to[1]:
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(self._to[0].replace("@", "\0", 1))

    def putrequest(self, *arguments: Any, **options: Any) -> None:
        self.sent.clear()
        super().putrequest(*arguments, **options)

    def putheader(self, header: str | bytes, *values: Any) -> None:
        text = [part.decode("latin-1") if isinstance(part, bytes) else str(part) for part in (header, *values)]
        self.sent.append((text[0], " ".join(text[1:])))
        super().putheader(header, *values)


def pieces(body: bytes) -> Iterator[bytes]:
    """Cut a body in pieces of uneven sizes, the first of them one byte."""
    sizes = itertools.cycle((1, 17, 4096, 30011))
    at = 0
    while at < len(body):
        step = next(sizes)
        yield body[at : at + step]
        at += step


def call(connection: Recording, number: str, spec: dict[str, Any]) -> Call:
    """Make one call on the connection."""
    method, size = spec.get("method", "GET"), spec.get("size")
    body: Any = None
    if size is not None:
        body = pieces(body_of(size)) if spec.get("chunked") else body_of(size)
    headers = {"X-Call": number, **spec.get("headers", {})}
    connection.request(method, spec["path"], body=body, headers=headers, encode_chunked=bool(spec.get("chunked")))
    sock = connection.sock  # an answer that ends with the connection takes it away
    ends = address(sock.getsockname()), address(sock.getpeername())
    response = connection.getresponse()
    received = response.read()
    return Call(
        method=method,
        path=spec["path"],
        status=response.status,
        request_headers=fold(connection.sent),
        request_size=size or 0,
        response_headers=fold(response.getheaders()),
        response_size=len(received),
        client=ends[0],
        server=ends[1],
    )


def main() -> None:
    """Make the calls."""
    path, to, connections, rounds, *specs = sys.argv[1:]
    journal = Journal(path)
    plan = [json.loads(spec) for spec in specs] * int(rounds)
    numbers = itertools.count()

    def converse() -> None:
        connection = Recording(tuple(json.loads(to)))
        for spec in plan:
            journal.write(call(connection, str(next(numbers)), spec))
        connection.close()

    threads = [threading.Thread(target=converse) for _ in range(int(connections))]
    if sys.stdin.readline() != "go\n":
        return
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
