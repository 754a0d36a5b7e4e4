"""The HTTP/2 server of the tests: the h2 library on threads, with a journal.

    python -m tests.live.servers.http2 JOURNAL [CERTIFICATE]

Prints the address it listens on as one JSON line. With a certificate (a PEM file with its key) it speaks TLS, else h2c
by prior knowledge. Paths: /bytes/N, /status/CODE, /echo, /trailers/N (a body and trailers), /early (an interim response
first), /reset (RST_STREAM), /slow/MS/... (answers after so long), /held (answers when the FIFO JOURNAL.gate has been
written to its end).
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.live.calls import Call, Journal, address, fold
from tests.live.servers.origin import body_of

Pairs = list[tuple[str, str]]


class Conversation:
    """One connection."""

    def __init__(self, sock: socket.socket, journal: Journal, gate: Path) -> None:
        self._sock = sock
        self._gate = gate
        self._journal = journal
        self._ends = address(sock.getpeername()), address(sock.getsockname())
        self._requests: dict[int, tuple[Pairs, bytearray]] = {}
        self._waiting: dict[int, tuple[bytes, Pairs]] = {}
        """What flow control keeps back: data and trailers by stream."""
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()

    def run(self) -> None:
        self._sock.sendall(self._h2.data_to_send())
        while data := self._sock.recv(65536):
            events = self._h2.receive_data(data)
            reset = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
            for event in events:
                if getattr(event, "stream_id", None) not in reset:
                    self._take(event)
            for stream in list(self._waiting):
                self._send(stream)
            self._sock.sendall(self._h2.data_to_send())
        self._sock.close()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._requests[event.stream_id] = (list(event.headers), bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self._requests[event.stream_id][1].extend(event.data)
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._answer(event.stream_id)

    def _answer(self, stream: int) -> None:
        headers, body = self._requests.pop(stream)
        asked = dict(headers)
        _, kind, *arguments = asked[":path"].split("/")
        number = int(arguments[0]) if arguments else 0
        status, content, trailers = 200, bytes(body), []
        if kind == "bytes":
            content = body_of(number)
        elif kind == "status":
            status, content = number, b""
        elif kind == "trailers":
            content, trailers = body_of(number), [("x-sum", str(number)), ("x-kind", "same")]
        elif kind == "early":
            self._h2.send_headers(stream, [(":status", "103"), ("link", "</style.css>")])
        elif kind == "slow":
            self._sock.sendall(self._h2.data_to_send())
            time.sleep(number / 1000)  # this is what is asked of it
        elif kind == "held":
            self._sock.sendall(self._h2.data_to_send())
            self._gate.read_bytes()
        said = [("server", "h2"), ("x-kind", kind), ("content-length", str(len(content))), ("x-number", str(stream))]
        if kind == "reset":
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
            status, content, said = None, b"", []
        else:
            self._h2.send_headers(stream, [(":status", str(status)), *said])
            self._waiting[stream] = (content, trailers)
        self._journal.write(
            Call(
                method=asked[":method"],
                path=asked[":path"],
                status=status,
                request_headers=fold(pair for pair in headers if not pair[0].startswith(":")),
                request_size=len(body),
                response_headers=fold(said),
                response_size=len(content),
                client=self._ends[0],
                server=self._ends[1],
                stream=stream,
            )
        )

    def _send(self, stream: int) -> None:
        data, trailers = self._waiting[stream]
        room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
        while data and room > 0:
            piece, data = data[:room], data[room:]
            self._h2.send_data(stream, piece)
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
        self._waiting[stream] = (data, trailers)
        if data:
            return
        del self._waiting[stream]
        if trailers:
            self._h2.send_headers(stream, trailers, end_stream=True)
        else:
            self._h2.end_stream(stream)


def main() -> None:
    """Serve until killed."""
    path, *certificate = sys.argv[1:]
    journal = Journal(path)
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate[0])
        context.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(json.dumps(listener.getsockname()), flush=True)

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock = context.wrap_socket(sock, server_side=True)
        Conversation(sock, journal, Path(f"{path}.gate")).run()

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
