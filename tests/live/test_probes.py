"""The kernel programs against the sockets themselves: every way into and out of a socket, byte for byte, on both hooks.

The traced process is a child of ours that runs one function; what it moved is known here, so nothing is compared with
anything that apitrace made.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator

import pytest

from apitrace.probes import events
from apitrace.probes.sockets import LiveSource, Narrowing
from apitrace.targets.target import TargetSet

pytestmark = pytest.mark.live

HEAD = b"GET /probe HTTP/1.1\r\nHost: t\r\n\r\n"  # a known protocol: else copying ends after 4 KiB


@pytest.fixture(params=["sock_length", "sys_exit"])
def hook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tcp_pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    listener = socket.socket(family)
    listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    listener.listen()
    client = socket.create_connection(listener.getsockname()[:2])
    server, _ = listener.accept()
    listener.close()
    for end in (client, server):  # so that one call can move a MiB without a reader
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return client, server


def unix_pair() -> tuple[socket.socket, socket.socket]:
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (client, server):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return client, server


@contextlib.contextmanager
def traced_child(function: Callable[[], None], hook: str, **narrow: tuple[object, ...]) -> Iterator[LiveSource]:
    """Run `function` in a traced child between attach and detach; it has ended when the block is entered."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        code = 1
        try:
            os.read(read, 1)
            function()
            code = 0
        finally:
            os._exit(code)
    os.close(read)
    source = LiveSource(TargetSet(pids=(pid,)), Narrowing(**narrow), lambda _: None, hook=hook)  # type: ignore[arg-type]
    try:
        source.start()
        os.write(write, b"!")
        assert os.waitpid(pid, 0)[1] == 0
        source.stop()
        yield source
    finally:
        os.close(write)
        source.close()


def chunks(source: LiveSource) -> list[events.Chunk]:
    found = [event for raw in source.poll(0) if isinstance(event := events.decode(raw), events.Chunk)]
    counters = events.decode(source.counters() or b"")
    assert isinstance(counters, events.Counters)
    assert dict(zip(events.COUNTER_NAMES, counters.values, strict=True))["ring_full"] == 0
    return found


def stream(found: list[events.Chunk], *, egress: bool) -> bytes:
    """Join a direction's chunks by position; fail on any hole or overlap."""
    mine = [chunk for chunk in found if chunk.egress == egress and not chunk.eof]
    assert mine, "nothing was seen"
    position, out = mine[0].seq, b""
    for chunk in mine:
        assert chunk.seq == position, "a hole or an overlap"
        assert chunk.missing == 0, "bytes not copied"
        out += chunk.data
        position = (position + len(chunk.data)) & 0xFFFFFFFF
    return out


def payload(size: int) -> bytes:
    return HEAD + b"".join(struct.pack(">I", number) for number in range(size // 4 + 1))[: size - len(HEAD)]


def send_write(sock: socket.socket, data: bytes) -> int:
    return os.write(sock.fileno(), data)


def send_send(sock: socket.socket, data: bytes) -> int:
    return sock.send(data)


def send_writev(sock: socket.socket, data: bytes) -> int:
    # 1024 buffers (UIO_MAXIOV), uneven and some empty.
    step = len(data) // 1000 + 1
    parts = [data[:7], b"", data[7:8], *(data[at : at + step] for at in range(8, len(data), step))]
    assert len(parts) <= 1024
    return os.writev(sock.fileno(), parts)


def send_sendmsg(sock: socket.socket, data: bytes) -> int:
    return sock.sendmsg([data[:1], data[1:3], data[3:100], data[100:]])


def receive_read(sock: socket.socket, size: int) -> bytes:
    return os.read(sock.fileno(), size)


def receive_recv(sock: socket.socket, size: int) -> bytes:
    return sock.recv(size)


def receive_readv(sock: socket.socket, size: int) -> bytes:
    parts = [bytearray(1), bytearray(10), bytearray(0), bytearray(5000), bytearray(size)]
    moved = os.readv(sock.fileno(), parts)
    return b"".join(parts)[:moved]


def receive_recvmsg(sock: socket.socket, size: int) -> bytes:
    parts = [bytearray(3), bytearray(size)]
    moved = sock.recvmsg_into(parts)[0]
    return b"".join(parts)[:moved]


SENDERS = [send_write, send_send, send_writev, send_sendmsg]
RECEIVERS = [receive_read, receive_recv, receive_readv, receive_recvmsg]
PAIRS = {"ipv4": tcp_pair, "ipv6": lambda: tcp_pair(socket.AF_INET6), "unix": unix_pair}


SIZES = [40, 256, 257, 1024, 1025, 2049, 4096, 4097, 8192, 8193, 16_385, 32_768, 32_769, 65_536, 65_537, 1 << 20]
"""Both sides of each size class of the ring buffer's records, a page-size multiple, and the copy limit."""


@pytest.mark.parametrize("send", SENDERS)
def test_what_any_send_call_moves_is_copied_whole(send: Callable[..., int], hook: str) -> None:
    pairs = [tcp_pair() for _ in SIZES]
    told, tell = os.pipe()

    def work() -> None:
        for size, (client, _) in zip(SIZES, pairs, strict=True):
            os.write(tell, struct.pack("=q", send(client, payload(size))))

    with traced_child(work, hook) as source:
        found = chunks(source)
    by_connection: dict[int, list[events.Chunk]] = {}
    for chunk in found:
        by_connection.setdefault(chunk.conn, []).append(chunk)
    assert len(by_connection) == len(SIZES)
    for size, mine in zip(SIZES, by_connection.values(), strict=True):
        assert struct.unpack("=q", os.read(told, 8))[0] == size
        assert stream(mine, egress=True) == payload(size)


@pytest.mark.parametrize("receive", RECEIVERS)
def test_what_any_receive_call_moves_is_copied_whole(receive: Callable[..., bytes], hook: str) -> None:
    data = payload(150_000)
    pairs = [make() for make in PAIRS.values()]
    for _, server in pairs:
        server.sendall(data)
        server.shutdown(socket.SHUT_WR)

    def work() -> None:
        for client, _ in pairs:
            got = b""
            while part := receive(client, 70_000):
                got += part
            assert got == data

    with traced_child(work, hook) as source:
        found = chunks(source)
    by_connection: dict[int, list[events.Chunk]] = {}
    for chunk in found:
        by_connection.setdefault(chunk.conn, []).append(chunk)
    assert len(by_connection) == len(PAIRS)
    for mine in by_connection.values():
        assert stream(mine, egress=False) == data
        assert [chunk.eof for chunk in mine].count(True) == 1
        assert mine[-1].eof


def test_more_than_the_copy_limit_of_one_call_is_a_marked_gap(hook: str) -> None:
    client, server = unix_pair()
    data = payload((1 << 20) + 5000)

    def work() -> None:
        client.settimeout(5)
        assert client.send(data) == len(data)

    with traced_child(work, hook) as source:
        found = [chunk for chunk in chunks(source) if chunk.egress]
        assert b"".join(chunk.data for chunk in found) == data[: 1 << 20]
        assert [chunk.missing for chunk in found] == [0] * (len(found) - 1) + [5000]
    del server


def test_peeked_bytes_are_not_stream_data(hook: str) -> None:
    client, server = tcp_pair()
    server.sendall(HEAD)

    def work() -> None:
        assert client.recv(100, socket.MSG_PEEK) == HEAD
        assert client.recv(100, socket.MSG_PEEK) == HEAD
        assert client.recv(100) == HEAD

    with traced_child(work, hook) as source:
        assert [chunk.data for chunk in chunks(source)] == [HEAD]


def test_bytes_discarded_by_msg_trunc_are_a_gap_and_not_what_lay_in_the_buffer(hook: str) -> None:
    client, server = tcp_pair()
    server.sendall(HEAD + b"x" * 100)

    def work() -> None:
        assert client.recv(len(HEAD)) == HEAD
        assert len(client.recv(100, socket.MSG_TRUNC)) == 100

    with traced_child(work, hook) as source:
        assert [(chunk.data, chunk.missing) for chunk in chunks(source)] == [(HEAD, 0), (b"", 100)]


def test_sendfile_is_a_gap_of_the_right_length(hook: str) -> None:
    client, server = tcp_pair()
    with tempfile.TemporaryFile() as file:
        file.write(b"z" * 5000)
        file.flush()

        def work() -> None:
            client.send(HEAD)
            assert os.sendfile(client.fileno(), file.fileno(), 0, 5000) == 5000
            client.send(HEAD)

        with traced_child(work, hook) as source:
            found = chunks(source)
    first, last = found[0], found[-1]
    assert first.data == last.data == HEAD
    assert (last.seq - first.seq) & 0xFFFFFFFF == len(HEAD) + 5000
    assert sum(chunk.missing for chunk in found) == 5000
    del server


def test_a_receive_of_no_bytes_is_not_the_end(hook: str) -> None:
    client, server = tcp_pair()
    server.sendall(HEAD)

    def work() -> None:
        assert client.recv(10) == HEAD[:10]
        assert client.recv(0) == b""
        assert client.recv(100) == HEAD[10:]

    with traced_child(work, hook) as source:
        found = chunks(source)
        assert stream(found, egress=False) == HEAD
        assert not any(chunk.eof for chunk in found)


def test_a_bulk_transfer_of_no_known_protocol_causes_few_events_and_a_later_request_is_seen(hook: str) -> None:
    client, server = tcp_pair()
    pid = os.fork()
    if pid == 0:
        left = 100_000_000
        while left > 0:
            left -= len(server.recv(1 << 20))
        server.sendall(b"k")
        os._exit(0)

    def work() -> None:
        block = b"\x07" * 1_000_000
        for _ in range(100):
            client.sendall(block)
        assert client.recv(1) == b"k"
        client.send(HEAD)

    with traced_child(work, hook) as source:
        raw = source.poll(0)
    os.waitpid(pid, 0)
    assert len(raw) < 50
    last = [event for item in raw if isinstance(event := events.decode(item), events.Chunk)][-1]
    assert last.data == HEAD


def test_other_ports_and_hosts_are_left_alone_in_the_kernel(hook: str) -> None:
    wanted, other = tcp_pair(), tcp_pair()
    port = wanted[1].getsockname()[1]

    def work() -> None:
        other[0].send(HEAD)
        wanted[0].send(HEAD)

    with traced_child(work, hook, ports=(port,)) as source:
        seen = [events.decode(raw) for raw in source.poll(0)]
    sockets = [event for event in seen if isinstance(event, events.SocketSeen)]
    assert [event.remote for event in sockets] == [("127.0.0.1", port)]
    with traced_child(work, hook, hosts=("127.0.0.2",)) as source:
        assert not any(isinstance(events.decode(raw), events.SocketSeen | events.Chunk) for raw in source.poll(0))


def test_an_address_of_a_host_filter_is_compared_in_both_families(hook: str) -> None:
    four, six = tcp_pair(), tcp_pair(socket.AF_INET6)

    def work() -> None:
        four[0].send(HEAD)
        six[0].send(HEAD)

    for host, end in (("127.0.0.1", four), ("::1", six)):
        with traced_child(work, hook, hosts=(host,)) as source:
            seen = [event for raw in source.poll(0) if isinstance(event := events.decode(raw), events.SocketSeen)]
        assert [event.local[1] for event in seen] == [end[0].getsockname()[1]]


def test_processes_that_are_no_targets_leave_no_event(hook: str) -> None:
    client, _server = tcp_pair()

    def work() -> None:
        pass

    client.send(HEAD)
    with traced_child(work, hook) as source:
        client.send(HEAD)
        assert not any(isinstance(events.decode(raw), events.Chunk) for raw in source.poll(0))
