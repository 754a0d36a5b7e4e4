"""A server on bare sockets, for what no well-behaved server does.

    python -m tests.live.servers.raw JOURNAL BEHAVIOUR

Prints the address it listens on as one JSON line; serves each connection in a thread of its own. Behaviours:

    peek           looks at the bytes with MSG_PEEK before each read
    two-readers    two threads read the same connection
    silent         reads requests and never answers
    early          answers as soon as the head is there, then reads the body
    endless        sends a chunked body until the client is gone; the journal then has what the kernel took of it
    flood          does the same, with a line in the journal when it begins
    cut            sends 100 bytes of a body of 1,000, then closes
    informational  sends 100 and 103 before the answer
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from typing import TYPE_CHECKING

from tests.live.calls import Address, Call, Headers, Journal, address, fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READ = 65536


class Head:
    """A request's head, parsed."""

    def __init__(self, raw: bytes) -> None:
        start, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.method, self.path, _ = start.split(" ")
        self.headers: Headers = fold((name, value) for name, _, value in (line.partition(": ") for line in lines))
        self.body_size = int(dict(self.headers).get("content-length", 0))


class Peer:
    """One connection, with what has been read of it and not yet used."""

    def __init__(self, sock: socket.socket, journal: Journal) -> None:
        self.sock = sock
        self.ends: tuple[Address, Address] = (address(sock.getpeername()), address(sock.getsockname()))
        self._journal = journal
        self._held = b""

    def read(self) -> bytes:
        """Read once. Raises EOFError at the end."""
        data = self.sock.recv(READ)
        if not data:
            raise EOFError
        return data

    def read_head(self) -> Head:
        while b"\r\n\r\n" not in self._held:
            self._held += self.read()
        raw, _, self._held = self._held.partition(b"\r\n\r\n")
        return Head(raw + b"\r\n\r\n")

    def read_body(self, size: int) -> None:
        size -= len(self._held)
        self._held = b""
        while size > 0:
            size -= len(self.read())

    def answer(self, status: str, body: bytes = b"", *headers: tuple[str, str], size: int | None = None) -> Headers:
        """Send an answer that announces `size` body bytes, the body's own if not told; return its headers."""
        lines = [("Server", "raw"), ("Content-Length", str(len(body) if size is None else size)), *headers]
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        self.sock.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)
        return fold(lines)

    def note(self, head: Head, status: int | None, headers: Headers, size: int) -> None:
        self._journal.write(
            Call(head.method, head.path, status, head.headers, head.body_size, headers, size, *self.ends),
        )


class PeekingPeer(Peer):
    """Peeks before each read."""

    def read(self) -> bytes:
        self.sock.recv(READ, socket.MSG_PEEK)
        return super().read()


def peek(peer: Peer) -> None:
    peer = PeekingPeer(peer.sock, peer._journal)
    while True:
        head = peer.read_head()
        peer.read_body(head.body_size)
        peer.note(head, 200, peer.answer("200 OK", b"seen twice"), 10)


def two_readers(peer: Peer) -> None:
    """Answer when the two threads together have read a whole request; only the head's bytes are looked at."""
    lock = threading.Condition()
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while True:
                piece = peer.read()
                with lock:
                    pieces.append(piece)
                    lock.notify()
        except EOFError:
            with lock:
                pieces.append(b"")
                lock.notify()

    for _ in range(2):
        threading.Thread(target=read, daemon=True).start()
    with lock:
        while True:
            lock.wait_for(lambda: b"" in pieces or any(piece.startswith(b"POST ") for piece in pieces))
            if b"" in pieces:
                return
            first = next(piece for piece in pieces if piece.startswith(b"POST "))
            raw = first.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            head = Head(raw)
            while sum(map(len, pieces)) < len(raw) + head.body_size:
                lock.wait()
            pieces.clear()
            peer.note(head, 200, peer.answer("200 OK", b"both"), 4)


def silent(peer: Peer) -> None:
    while True:
        head = peer.read_head()
        peer.note(head, None, (), 0)


def early(peer: Peer) -> None:
    head = peer.read_head()
    headers = peer.answer("413 Content Too Large", b"too large", ("Connection", "close"))
    peer.read_body(head.body_size)
    peer.note(head, 413, headers, 9)


CHUNKED = fold([("Transfer-Encoding", "chunked")])


def pour(peer: Peer) -> Iterator[int]:
    """Send a chunked body, and tell after each send how many of its bytes the kernel has taken in all."""
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    before, size, after, sent = b"3e8\r\n", 1000, b"\r\n", 0
    piece = before + b"e" * size + after
    while True:  # the last send may take a part only
        sent += peer.sock.send(piece[sent % len(piece) :])
        pieces, rest = divmod(sent, len(piece))
        yield size * pieces + min(size, max(0, rest - len(before)))


def endless(peer: Peer) -> None:
    head, size = peer.read_head(), 0
    try:
        for size in pour(peer):  # noqa: B007 - the last one is used
            pass
    finally:
        peer.note(head, 200, CHUNKED, size)


def flood(peer: Peer) -> None:
    peer.note(peer.read_head(), 200, CHUNKED, 0)
    for _ in pour(peer):
        pass


def cut(peer: Peer) -> None:
    head = peer.read_head()
    peer.note(head, 200, peer.answer("200 OK", b"c" * 100, size=1000), 100)


def informational(peer: Peer) -> None:
    while True:
        head = peer.read_head()
        peer.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        peer.read_body(head.body_size)
        peer.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        peer.note(head, 200, peer.answer("200 OK", b"final"), 5)


BEHAVIOURS: dict[str, Callable[[Peer], None]] = {
    "peek": peek,
    "two-readers": two_readers,
    "silent": silent,
    "early": early,
    "endless": endless,
    "flood": flood,
    "cut": cut,
    "informational": informational,
}


def main() -> None:
    """Serve until killed."""
    journal, behave = Journal(sys.argv[1]), BEHAVIOURS[sys.argv[2]]
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps(listener.getsockname()), flush=True)

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                behave(Peer(sock, journal))
            except (EOFError, ConnectionError):
                sock.close()

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
