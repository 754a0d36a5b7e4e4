"""The Python client of the tests: http.client on any number of connections at once, each kept alive.

    python -m tests.live.clients.keepalive [--ca FILE [--name NAME] [--tls VERSION]] JOURNAL ADDRESS CONNECTIONS ROUNDS
                                           REQUEST...

ADDRESS is JSON, as the servers print it. Each REQUEST is JSON: {"method", "path", "headers", "size", "chunked"}, where
all but the path have a default. With --ca it speaks HTTPS, asks for the server NAME and trusts who is certified by that
FILE; --tls limits it to one VERSION ("TLSv1.2"). Each connection sends all REQUESTs in turn, ROUNDS times, each time
that standard input says "go", and they end when that ends: so it can be traced from its first call on, by its PID, or
from a later one.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any

from tests.live.calls import Address, Call, Journal, address, fold
from tests.live.servers.origin import body_of, session_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Recording(http.client.HTTPConnection):
    """Remembers the header lines it sends, and connects to any Address."""

    def __init__(self, to: Address, context: ssl.SSLContext | None = None, name: str = "") -> None:
        super().__init__(to[0] if to[1] else "localhost", to[1] or None)
        self._to = to
        self._context = context
        self._name = name
        self.sent: list[tuple[str, str]] = []

    def connect(self) -> None:
        if self._to[1]:
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(self._to[0].replace("@", "\0", 1))
        if self._context:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)

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
    session = session_of(sock)
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
        tls=session,
    )


def trusting_context(ca: str, version: str | None = None) -> ssl.SSLContext:
    """Return the context of a client that trusts this CA. SSLKEYLOGFILE is heeded."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    if version:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    return context


def main() -> None:
    """Make the calls."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ca")
    parser.add_argument("--name", default="tls.test")
    parser.add_argument("--tls")
    parser.add_argument("journal", type=Journal)
    parser.add_argument("to", type=json.loads)
    parser.add_argument("connections", type=int)
    parser.add_argument("rounds", type=int)
    parser.add_argument("specs", nargs="+", type=json.loads)
    options = parser.parse_args()
    journal, plan = options.journal, options.specs * options.rounds
    context = trusting_context(options.ca, options.tls) if options.ca else None
    numbers = itertools.count()

    opened = [Recording(tuple(options.to), context, options.name) for _ in range(options.connections)]

    def converse(connection: Recording) -> None:
        for spec in plan:
            journal.write(call(connection, str(next(numbers)), spec))

    while sys.stdin.readline() == "go\n":
        threads = [threading.Thread(target=converse, args=(connection,)) for connection in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("done", flush=True)
    for connection in opened:
        connection.close()


if __name__ == "__main__":
    main()
