"""The grpcio ends of the gRPC tests.

    python -m tests.live.programs.grpc_end server JOURNAL [CERTIFICATES]
    python -m tests.live.programs.grpc_end client JOURNAL HOST PORT [CERTIFICATES]

CERTIFICATES is a directory that ../certificates.py has filled: TLS, for the name "localhost".
The server prints its address as one JSON line. The client reads one JSON line, the calls to make, makes one after the
other on one connection, prints "done" and keeps its process until its input ends. A call is {"method": ...,
"send": [[name, count], ...], "timeout_ms": ..., "cancel": true, "gzip": true}; a message has the fields name = 1 and
count = 2, put together here, so that no generated code is needed. Methods of test.Calls:

    Unary   answers with the same
    List    answers with `count` messages
    Break   answers with `count` messages, and ends with the status 10 (ABORTED), and the name as its message, once the
            request has ended: @grpc/grpc-js throws away messages that it has not unpacked yet when it learns of an
            error, so its client ends the request when it has them all
    Store   takes messages until there are no more, and answers with the sum of their counts
    Talk    answers each message with the same
    Fail    ends with the status `count`, and the name as its message
    Slow    answers once with the same if `count` is not 0, and then waits until the call is given up

Both ends append to their journals what they sent and received, and the status as they know it. Metadata: x-call and
x-data-bin with the request, x-served with the answer, x-done-bin behind it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

SERVICE = "test.Calls"
GIVEN_UP = object()
_AFTER_DEADLINE_S = 5.0
"""So long after a deadline it has surely passed for the library too."""
_LONGEST_S = 60.0
"""Without a deadline the time that remains is more than a lock can wait."""


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def encode(message: tuple[str, int]) -> bytes:
    name = message[0].encode()
    return b"\x0a" + _varint(len(name)) + name + b"\x10" + _varint(message[1])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at


def decode(data: bytes) -> tuple[str, int]:
    size, at = _read_varint(data, 1)
    return data[at : at + size].decode(), _read_varint(data, at + size + 1)[0]


class Journal:
    """Appends entries, one line each, with one write."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, **entry: Any) -> None:
        os.write(self._descriptor, json.dumps(entry).encode() + b"\n")


def _peer(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("ipv4:").rpartition(":")
    return host, int(port)


class Handler(grpc.GenericRpcHandler):
    """Answers every method, and writes it down."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]

        def behave(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            number = str(dict(context.invocation_metadata())["x-call"])
            context.send_initial_metadata((("x-served", number),))
            context.set_trailing_metadata((("x-done-bin", b"\x00\xff" + number.encode()),))
            received: list[Any] = []
            sent: list[Any] = []
            over = threading.Event()
            outcome = [(0, "")]
            written: list[bool] = []

            def note() -> None:
                if written:
                    return
                written.append(True)
                status, message = outcome[0]
                self._journal.write(
                    call=number, method=method, requests=received, responses=sent, status=status, message=message,
                    client=_peer(context.peer()), server=None,
                )  # fmt: skip

            def end() -> None:
                over.set()
                note()

            if not context.add_callback(end):
                end()

            def noted() -> Iterator[Any]:
                for request in requests:
                    received.append(request)
                    yield request

            for answer in self._answers(method, noted()):
                if answer is GIVEN_UP:
                    # Written now: not every deadline is told to us, and no generator is run to its end after one.
                    note()
                    over.wait(min(context.time_remaining() + _AFTER_DEADLINE_S, _LONGEST_S))
                elif isinstance(answer[0], grpc.StatusCode):
                    outcome[0] = (answer[0].value[0], answer[1])
                    context.set_code(answer[0])
                    context.set_details(answer[1])
                else:
                    sent.append(answer)
                    yield answer

        return grpc.stream_stream_rpc_method_handler(behave, decode, encode)

    def _answers(self, method: str, requests: Iterator[Any]) -> Iterator[Any]:
        total = 0
        for name, count in requests:
            total += count
            if method in {"Unary", "Talk"} or (method == "Slow" and count):
                yield name, count
            if method in {"List", "Break"}:
                yield from ((name, number) for number in range(count))
            if method == "Break":
                assert next(requests, None) is None
                yield grpc.StatusCode.ABORTED, name
            if method == "Fail":
                yield next(code for code in grpc.StatusCode if code.value[0] == count), name
            if method == "Slow":
                yield GIVEN_UP
                return
        if method == "Store":
            yield "stored", total


def serve(journal: Journal, certificates: Path | None = None) -> None:
    server = grpc.server(ThreadPoolExecutor(4), handlers=(Handler(journal),), options=(("grpc.so_reuseport", 0),))
    if certificates is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    print(json.dumps(["127.0.0.1", port]), flush=True)
    server.wait_for_termination()


def make(channel: grpc.Channel, number: int, call: dict[str, Any], journal: Journal) -> None:
    method = channel.stream_stream(f"/{SERVICE}/{call['method']}", encode, decode)
    text = str(number)
    answers = method(
        iter([(name, count) for name, count in call["send"]]),
        timeout=call["timeout_ms"] / 1000 if call.get("timeout_ms") else None,
        metadata=(("x-call", text), ("x-data-bin", b"\x00\xff" + text.encode())),
        compression=grpc.Compression.Gzip if call.get("gzip") else None,
    )
    received: list[Any] = []
    try:
        for answer in answers:
            received.append(answer)
            if call.get("cancel"):
                answers.cancel()
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    journal.write(
        call=text, method=call["method"], requests=call["send"], responses=received, status=answers.code().value[0],
        message=answers.details(), client=None, server=None,
    )  # fmt: skip


def open_channel(target: str, certificates: Path | None) -> grpc.Channel:
    if certificates is None:
        return grpc.insecure_channel(target)
    trusted = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    return grpc.secure_channel(target, trusted, (("grpc.ssl_target_name_override", "localhost"),))


def ask(journal: Journal, host: str, port: str, certificates: Path | None = None) -> None:
    calls = json.loads(sys.stdin.readline())
    with open_channel(f"{host}:{port}", certificates) as channel:
        for number, call in enumerate(calls):
            make(channel, number, call, journal)
    print("done", flush=True)
    sys.stdin.read()


def main() -> None:
    """Serve until killed, or make the calls."""
    role, path, *rest = sys.argv[1:]
    act, count = (serve, 0) if role == "server" else (ask, 2)
    act(Journal(path), *rest[:count], *map(Path, rest[count:]))


if __name__ == "__main__":
    main()
