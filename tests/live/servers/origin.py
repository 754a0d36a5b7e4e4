"""The Python servers of the tests: a threaded HTTP/1.1 one, and http.server's own files over HTTP/1.0.

    python -m tests.live.servers.origin JOURNAL [--family inet|inet6|unix] [--socket PATH] [--files DIRECTORY]
                                                [--tls DIRECTORY [--tls-version VERSION]] [--fork]

With --tls it speaks HTTPS, with the certificate of that directory (see certificates.py); with --fork each connection
is served by a process of its own, which makes the handshake too.
Prints the address it listens on as one JSON line. What an HTTP/1.1 request gets is in its path:

    /status/CODE      an empty answer (a short text where that status has a body)
    /bytes/N          N bytes with a Content-Length
    /chunked/N/SIZE   N bytes in chunks of SIZE, then a trailer field
    /echo             the body of the request, framed as the request was
    /close/N          N bytes that end with the connection
    /repeats          an answer with repeated header fields
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import socket
import socketserver
import ssl
from http import HTTPStatus
from typing import Any

from tests.live.calls import Call, Journal, Session, address, fold

PATTERN = bytes(range(97, 123))


def body_of(size: int) -> bytes:
    """Return the body that stands for this size: the alphabet over and over."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def session_of(connection: socket.socket) -> Session | None:
    """Return the TLS session of a connection; a server's names the SNI only if `serving_context` made it."""
    if not isinstance(connection, ssl.SSLSocket):
        return None
    sni = getattr(connection, "sni", None) or connection.server_hostname
    return Session(connection.version(), sni, connection.selected_alpn_protocol())


def serving_context(directory: str) -> ssl.SSLContext:
    """Return the context of a server with this directory's certificate, whose sockets know the SNI they were sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/server.pem", f"{directory}/server.key")
    context.set_alpn_protocols(["http/1.1"])

    def remember(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.sni = name  # type: ignore[union-attr]

    context.sni_callback = remember
    return context


class BodyCounter:
    """A file that counts the body bytes written to it: head and framing are taken off by those who write them."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Journalled(http.server.BaseHTTPRequestHandler):
    """Writes each call to the server's journal when it has been answered."""

    journal: Journal

    def setup(self) -> None:
        super().setup()
        self.wfile: Any = BodyCounter(self.wfile)

    def handle_one_request(self) -> None:
        self._status: int | None = None
        self._lines: list[tuple[str, str]] = []
        self.request_size = 0
        self.wfile.count = 0
        super().handle_one_request()
        if self._status is not None:
            self.journal.write(
                Call(
                    method=self.command,
                    path=self.path,
                    status=self._status,
                    request_headers=fold(self.headers.items()),
                    request_size=self.request_size,
                    response_headers=fold(self._lines),
                    response_size=self.wfile.count,
                    client=address(self.connection.getpeername()),
                    server=address(self.connection.getsockname()),
                    tls=session_of(self.connection),
                ),
            )

    def send_response(self, code: int, message: str | None = None) -> None:
        self._status = int(code)
        super().send_response(code, message)

    def send_header(self, keyword: str, value: str) -> None:
        self._lines.append((keyword, str(value)))
        super().send_header(keyword, value)

    def flush_headers(self) -> None:
        self.wfile.count -= sum(map(len, getattr(self, "_headers_buffer", ())))
        super().flush_headers()

    def log_message(self, *_: object) -> None:
        """The journal is the log."""


class Files(Journalled, http.server.SimpleHTTPRequestHandler):
    """http.server's own handler: HTTP/1.0, one request per connection."""


class Origin(Journalled):
    """Answers as the path says, over HTTP/1.1."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self._read_body()
        kind, *numbers = self.path.partition("?")[0].strip("/").split("/")
        getattr(self, f"_answer_{kind}")(body, *map(int, numbers))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  http.server looks for these names

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        else:
            pieces = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailer section
                pass
            body = b"".join(pieces)
        self.request_size = len(body)
        return body

    def _start(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _answer_status(self, _body: bytes, code: int) -> None:
        if code in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            self._start(code, ("ETag", '"17"'))
        else:
            self._send_body(code, HTTPStatus(code).phrase.encode())

    def _answer_bytes(self, _body: bytes, size: int) -> None:
        self._send_body(200, body_of(size))

    def _answer_repeats(self, _body: bytes) -> None:
        self._send_body(200, b"ok", ("Via", "1.1 first"), ("X-Empty", ""), ("via", "1.1 second"))

    def _answer_echo(self, body: bytes) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self._send_chunks(body, 16384)
        else:
            self._send_body(200, body)

    def _answer_chunked(self, _body: bytes, size: int, chunk_size: int) -> None:
        self._send_chunks(body_of(size), chunk_size)

    def _answer_close(self, _body: bytes, size: int) -> None:
        self.close_connection = True
        self._start(200, ("Connection", "close"))
        self.wfile.write(body_of(size))

    def _send_body(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self._start(status, ("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_chunks(self, body: bytes, chunk_size: int) -> None:
        self._start(200, ("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum"))
        for at in range(0, len(body), chunk_size):
            piece = body[at : at + chunk_size]
            self._write_framing(b"%x\r\n" % len(piece))
            self.wfile.write(piece)
            self._write_framing(b"\r\n")
        self._write_framing(b"0\r\nX-Sum: %d\r\n\r\n" % len(body))

    def _write_framing(self, framing: bytes) -> None:
        self.wfile.count -= len(framing)
        self.wfile.write(framing)


class TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class TcpServer6(TcpServer):
    address_family = socket.AF_INET6


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class ForkingServer(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    max_children = 200


class Secured(http.server.BaseHTTPRequestHandler):
    """Speaks TLS: the handshake is made by the thread or process that serves the connection."""

    context: ssl.SSLContext

    def setup(self) -> None:
        self.request = self.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()  # socketserver knows only the socket below, which this one took over


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("journal")
    parser.add_argument("--family", choices=["inet", "inet6", "unix"], default="inet")
    parser.add_argument("--socket", help="path of the AF_UNIX socket; with a leading @ an abstract name")
    parser.add_argument("--files", help="serve this directory over HTTP/1.0 instead")
    parser.add_argument("--tls", help="speak TLS, with the certificate in this directory")
    parser.add_argument("--tls-version", help="the newest that it speaks: TLSv1.2", default="TLSv1.3")
    parser.add_argument("--fork", action="store_true", help="a process for each connection, instead of a thread")
    options = parser.parse_args()
    attributes: dict[str, Any] = {"journal": Journal(options.journal)}
    bases: tuple[type, ...] = (Files if options.files else Origin,)
    if options.tls:
        bases = (Secured, *bases)
        attributes["context"] = serving_context(options.tls)
        attributes["context"].maximum_version = ssl.TLSVersion[options.tls_version.replace(".", "_")]
    handler: Any = type("Handler", bases, attributes)
    if options.files:
        handler = functools.partial(handler, directory=options.files)
    server: socketserver.BaseServer
    if options.fork:
        server = ForkingServer(("127.0.0.1", 0), handler)
    elif options.family == "unix":
        server = UnixServer(options.socket.replace("@", "\0", 1), handler)
    else:
        server = TcpServer6(("::1", 0), handler) if options.family == "inet6" else TcpServer(("127.0.0.1", 0), handler)
    print(json.dumps(address(server.server_address)), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
