"""The HTTP/2 client of the tests: the h2 library, one connection, all requests of a round at once.

    python -m tests.live.clients.http2 JOURNAL ADDRESS TRANSPORT REQUEST...

ADDRESS is JSON, as the servers print it. TRANSPORT is "h2c" or "tls". Each REQUEST is JSON: {"method", "path",
"headers", "size", "cancel"}, where all but the path have a default; one with "cancel" is cancelled at once. Connects at
the first line "go" on standard input; with each "go" it sends all REQUESTs, waits for their answers and says "done".
"""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import sys
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.live.calls import Address, Call, Journal, address, fold
from tests.live.servers.origin import body_of

Pairs = list[tuple[str, str]]


def connect(to: Address, transport: str) -> socket.socket:
    """Connect, with ALPN if over TLS."""
    sock = socket.create_connection(to)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if transport == "h2c":
        return sock
    context = ssl._create_unverified_context()  # noqa: S323 - the certificate is the test's own
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(sock, server_hostname="localhost")


class Conversation:
    """The connection."""

    def __init__(self, to: Address, transport: str, journal: Journal) -> None:
        self._sock = connect(to, transport)
        self._to = to
        self._scheme = "http" if transport == "h2c" else "https"
        self._journal = journal
        self._ends = address(self._sock.getsockname()), address(self._sock.getpeername())
        self._numbers = itertools.count()
        self._open: dict[int, tuple[dict[str, Any], Pairs, list[Any], int]] = {}
        """By stream: what was asked, with which headers, the response's headers, and how many bytes came."""
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()

    def round(self, specs: list[dict[str, Any]]) -> None:
        """Make these calls at once."""
        for spec in specs:
            stream = self._h2.get_next_available_stream_id()
            size = spec.get("size")
            headers = [("x-call", str(next(self._numbers))), *spec.get("headers", {}).items()]
            pseudo = [
                (":method", spec.get("method", "GET")), (":authority", f"{self._to[0]}:{self._to[1]}"),
                (":scheme", self._scheme), (":path", spec["path"]),
            ]  # fmt: skip
            self._h2.send_headers(stream, pseudo + headers, end_stream=size is None)
            if size is not None:
                self._h2.send_data(stream, body_of(size), end_stream=True)
            self._open[stream] = (spec, headers, [], 0)
            if spec.get("cancel"):
                self._sock.sendall(self._h2.data_to_send())
                self._h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                self._close(stream, cancelled=True)
        self._sock.sendall(self._h2.data_to_send())
        while self._open:
            for event in self._h2.receive_data(self._sock.recv(65536)):
                self._take(event)
            self._sock.sendall(self._h2.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        stream = getattr(event, "stream_id", None)
        if stream not in self._open:
            return
        if isinstance(event, h2.events.ResponseReceived):
            self._open[stream][2].extend(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            spec, headers, answered, size = self._open[stream]
            self._open[stream] = (spec, headers, answered, size + len(event.data))
            self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            self._close(stream)

    def _close(self, stream: int, *, cancelled: bool = False) -> None:
        spec, headers, answered, size = self._open.pop(stream)
        status = dict(answered).get(":status")
        self._journal.write(
            Call(
                method=spec.get("method", "GET"),
                path=spec["path"],
                status=None if cancelled or status is None else int(status),
                request_headers=fold(headers),
                request_size=spec.get("size") or 0,
                response_headers=fold(pair for pair in answered if not pair[0].startswith(":")),
                response_size=size,
                client=self._ends[0],
                server=self._ends[1],
                stream=stream,
            )
        )


def main() -> None:
    """Make the calls."""
    path, to, transport, *specs = sys.argv[1:]
    plan = [json.loads(spec) for spec in specs]
    conversation = None
    for line in sys.stdin:
        assert line == "go\n"
        conversation = conversation or Conversation(tuple(json.loads(to)), transport, Journal(path))
        conversation.round(plan)
        print("done", flush=True)


if __name__ == "__main__":
    main()
