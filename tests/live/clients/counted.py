"""The other end of programs whose TLS cannot be read: a client and a server that count the bytes on the wire.

    python -m tests.live.clients.counted client JOURNAL ADDRESS CA COUNT
    python -m tests.live.clients.counted server JOURNAL CERTIFICATES

The client sends COUNT requests on one connection each time that its standard input says "go", and then says "done"; the
server prints the address it listens on as one JSON line. For each connection the journal gets one JSON line when it is
over: {"client", "server": addresses, "tls": [version, server name, protocol], "to_server", "to_client": bytes}.
TLS goes through memory and this program carries the records, so that it can count them. The client is the first to
hang up, without an alert; the server hangs up when the client has: so each end reads all that the other one sends.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import threading
from typing import Any

from tests.live.calls import Session, address
from tests.live.clients.keepalive import trusting_context
from tests.live.servers.origin import body_of, serving_context

NAME = "tls.test"


class Counted:
    """A TLS connection over a socket, with the bytes counted in each direction."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self._connection = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=name is None, server_hostname=name)
        self.sent = self.received = 0

    def flush(self) -> None:
        data = self._out.read()
        self._connection.sendall(data)
        self.sent += len(data)

    def fill(self) -> bool:
        """Receive something; return whether there was anything."""
        data = self._connection.recv(1 << 16)
        self.received += len(data)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        return bool(data)

    def do(self, act: Any, *arguments: Any) -> Any:
        """Do something with the session, carrying what that takes."""
        while True:
            try:
                return act(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                self.fill()
            finally:
                self.flush()

    def read_head(self) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.do(self.tls.read, 1)
            if not piece:
                raise ssl.SSLEOFError
            head += piece
        return head

    def report(self, client: Any, server: Any, name: str | None, *, sent_to_server: bool) -> bytes:
        sizes = (self.sent, self.received) if sent_to_server else (self.received, self.sent)
        session = Session(self.tls.version(), name, self.tls.selected_alpn_protocol())
        line = {
            "client": client, "server": server, "tls": session, "to_server": sizes[0], "to_client": sizes[1],
        }  # fmt: skip
        return json.dumps(line).encode() + b"\n"


def call(to: tuple[str, int], ca: str, count: int) -> bytes:
    """Make `count` calls on a connection; return the journal's line."""
    with socket.create_connection(to) as connection:
        ends = address(connection.getsockname()), address(connection.getpeername())
        counted = Counted(connection, trusting_context(ca), NAME)
        counted.do(counted.tls.do_handshake)
        for number in range(count):
            request = f"GET /bytes/{number} HTTP/1.1\r\nHost: {NAME}\r\nX-Call: {number}\r\n\r\n"
            counted.do(counted.tls.write, request.encode())
            head = counted.read_head().lower()
            left = int(head.partition(b"content-length:")[2].partition(b"\r")[0])
            while left:
                left -= len(counted.do(counted.tls.read, left))
        connection.shutdown(socket.SHUT_WR)
        while counted.fill():
            pass
        return counted.report(*ends, NAME, sent_to_server=True)


def serve(connection: socket.socket, context: ssl.SSLContext) -> bytes:
    """Answer until the client hangs up; return the journal's line."""
    with connection:
        ends = address(connection.getpeername()), address(connection.getsockname())
        counted = Counted(connection, context, None)
        counted.do(counted.tls.do_handshake)
        try:
            while True:
                path = counted.read_head().split(b" ")[1].decode()
                body = body_of(int(path.rpartition("/")[2].partition("?")[0]))
                counted.do(counted.tls.write, f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        except ssl.SSLError:  # the end, with or without an alert
            pass
        while counted.fill():
            pass
        return counted.report(*ends, getattr(counted.tls, "sni", None), sent_to_server=False)


def main() -> None:
    """Make the calls, or serve until killed."""
    role, path, *rest = sys.argv[1:]
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    if role == "client":
        to, ca, count = rest
        while sys.stdin.readline() == "go\n":
            os.write(journal, call(tuple(json.loads(to)), ca, int(count)))
            print("done", flush=True)
        return
    context = serving_context(rest[0])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(json.dumps(address(listener.getsockname())), flush=True)
    while True:
        connection, _ = listener.accept()
        serving = threading.Thread(target=lambda c=connection: os.write(journal, serve(c, context)), daemon=True)
        serving.start()


if __name__ == "__main__":
    main()
