"""A TLS server whose responses end with the connection, each in the way that its path names.

    python -m tests.live.servers.ends JOURNAL CERTIFICATES

Prints the address it listens on as one JSON line. For each connection one line of the journal: `path`, and `sent`, the
bytes of the body. Paths: /fin, close_notify and the FIN in one segment; /notify, close_notify, and the FIN when the
client's has come; /half, half of the body, and nothing more until the client has gone; /cut, the same with the length
of the whole body in the head.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
from pathlib import Path

from tests.live.servers.origin import body_of, serving_context

SIZE = 1000


def end(connection: ssl.SSLSocket, path: str) -> None:
    """End a direction as the path says, and wait until the client has ended its own."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, path == "/fin")
    if path == "/cut":
        connection.settimeout(30)
        while connection.recv(65536):
            pass
    elif path != "/half":
        connection.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):  # it is sent; the client's may take its time
            connection.unwrap()
    with socket.socket(fileno=connection.detach()) as bare:
        bare.settimeout(30)
        if path == "/fin":
            bare.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while bare.recv(65536):
                pass


def main() -> None:
    """Serve until killed."""
    journal, context = Path(sys.argv[1]), serving_context(sys.argv[2])
    writing = threading.Lock()

    def serve(accepted: socket.socket) -> None:
        with context.wrap_socket(accepted, server_side=True) as connection:
            path = connection.recv(65536).split(b" ")[1].decode()
            sent = body_of(SIZE // 2 if path in {"/half", "/cut"} else SIZE)
            length = f"Content-Length: {SIZE}\r\n" if path == "/cut" else ""
            connection.sendall(f"HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n".encode() + sent)
            end(connection, path)
        with writing, journal.open("a") as lines:
            print(json.dumps({"path": path, "sent": len(sent)}), file=lines, flush=True)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(json.dumps(listener.getsockname()), flush=True)
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()


if __name__ == "__main__":
    main()
