"""Both ends of a TLS connection in one thread, for bench_tls_live: how long an undisturbed exchange takes.

    python -m tests.bench.tls_loop DIRECTORY

Prints "ready"; then for each line of input runs so many batches, and prints the shortest batch's time per exchange in
us. A batch is so short (0.3 ms) that on a busy machine too some of them run without being interrupted.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from pathlib import Path

BATCH = 10
CALLS = 4
"""Of the TLS library, in an exchange: both ends write and read once."""
REQUEST = b"GET /index?page=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 26 Nov 2026 14:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 100\r\nConnection: keep-alive\r\n\r\n" + b"x" * 100
)


def connected(directory: Path) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    made: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: made.append(serving.wrap_socket(far, server_side=True)))
    thread.start()
    context = ssl.create_default_context(cafile=str(directory / "certificate.pem"))
    client = context.wrap_socket(near, server_hostname="localhost")
    thread.join()
    return client, made[0]


def main() -> None:
    client, server = connected(Path(sys.argv[1]))
    ask, hear, answer, get = client.send, server.recv, server.send, client.recv

    def batch() -> float:
        began = time.perf_counter_ns()
        for _ in range(BATCH):
            ask(REQUEST)
            hear(4096)
            answer(RESPONSE)
            get(4096)
        return (time.perf_counter_ns() - began) / BATCH / 1000

    print("ready", flush=True)
    for line in sys.stdin:
        print(min(batch() for _ in range(int(line))), flush=True)


if __name__ == "__main__":
    main()
