"""Raw events to values; the layout is checked against the C compiler's, not against itself."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apitrace.exchange import Container
from apitrace.probes import events
from apitrace.probes.loader import source_directory

LAYOUT = """
#include <stddef.h>
#include <stdio.h>
#include <linux/types.h>
#include "apitrace.h"
#define SHOW(s, m) printf("%s.%s %zu\\n", #s, #m, offsetof(struct s, m));
int main(void) {
    printf("event %zu\\nchunk_event %zu\\n", sizeof(struct event), sizeof(struct chunk_event));
    printf("EVENT_ABI %d\\nCOUNT_MAX %d\\n", EVENT_ABI, COUNT_MAX);
    SHOW(event, pid) SHOW(event, tid) SHOW(event, len) SHOW(event, at) SHOW(event, conn)
    SHOW(socket_event, sock) SHOW(socket_event, egress_total)
    SHOW(socket_event, egress_seq) SHOW(socket_event, inode)
    SHOW(socket_event, family) SHOW(socket_event, local_port) SHOW(socket_event, remote_port)
    SHOW(socket_event, local_addr) SHOW(socket_event, comm)
    SHOW(socket_event, local_path) SHOW(socket_event, remote_path)
    SHOW(chunk_event, seq) SHOW(chunk_event, missing)
    SHOW(state_event, old_state) SHOW(state_event, error) SHOW(state_event, egress_seq) SHOW(state_event, received_seq)
    SHOW(state_event, local_port) SHOW(exec_event, comm) SHOW(exec_event, filename) SHOW(fork_event, child)
    SHOW(session_event, handle) SHOW(session_event, socket) SHOW(session_event, egress_seq)
    SHOW(session_event, ingress_seq) SHOW(session_event, point) SHOW(session_event, source)
    SHOW(session_event, alpn_len) SHOW(session_event, alpn) SHOW(session_event, comm)
    printf("session_event %zu\\nTIE_BIO %d\\n", sizeof(struct session_event), TIE_BIO);
    printf("types %d%d%d%d\\n", EVENT_SESSION, EVENT_FREED, EVENT_LOADED, EVENT_BORN);
    printf("flags %d\\n", FLAG_PLAINTEXT | FLAG_PROBED << 4 | FLAG_WHOLE << 8 | FLAG_STOPPED << 12);
}
"""


def test_the_layout_is_the_c_compilers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: the layouts cannot be compared"
    (tmp_path / "layout.c").write_text(LAYOUT)
    program = tmp_path / "layout"
    subprocess.run(
        [compiler, "-I", str(source_directory()), "-o", str(program), str(tmp_path / "layout.c")], check=True
    )
    out = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    told = {name: int(number) for name, number in (line.split() for line in out.splitlines())}
    head = events.HEAD.size
    assert told == {
        "event": head,
        "chunk_event": events.CHUNK_SIZE,
        "EVENT_ABI": events.EVENT_ABI,
        "COUNT_MAX": len(events.COUNTER_NAMES),
        "event.pid": 4, "event.tid": 8, "event.len": 12, "event.at": 16, "event.conn": 24,
        "socket_event.sock": head, "socket_event.egress_total": head + 8, "socket_event.egress_seq": head + 24,
        "socket_event.inode": head + 32, "socket_event.family": head + 36, "socket_event.local_port": head + 38,
        "socket_event.remote_port": head + 40, "socket_event.local_addr": head + 44, "socket_event.comm": head + 76,
        "socket_event.local_path": head + 92, "socket_event.remote_path": head + 200,
        "chunk_event.seq": head, "chunk_event.missing": head + 4,
        "state_event.old_state": head, "state_event.error": head + 4, "state_event.egress_seq": head + 8,
        "state_event.received_seq": head + 16, "state_event.local_port": head + 20,
        "exec_event.comm": head, "exec_event.filename": head + 16, "fork_event.child": head,
        "session_event.handle": head, "session_event.socket": head + 8, "session_event.egress_seq": head + 16,
        "session_event.ingress_seq": head + 20, "session_event.point": head + 24, "session_event.source": head + 28,
        "session_event.alpn_len": head + 32, "session_event.alpn": head + 40, "session_event.comm": head + 56,
        "session_event": head + 72, "TIE_BIO": events._TIE_BIO,
        "types": int(f"{events.SESSION}{events.FREED}{events.LOADED}{events.BORN}"),
        "flags": (
            events.FLAG_PLAINTEXT | events.FLAG_PROBED << 4 | events.FLAG_WHOLE << 8 | events.FLAG_STOPPED << 12
        ),
    }  # fmt: skip


def head(kind: int, flags: int = 0, length: int = 0) -> bytes:
    return struct.pack("=BBHIIIQQ", kind, flags, 0, 7, 8, length, 99, 55)


def socket_event(family: int, local: bytes, remote: bytes, local_path: bytes = b"", remote_path: bytes = b"") -> bytes:
    return head(events.SOCKET, events.FLAG_CONNECTED) + struct.pack(
        "=QQQIIIHHHH16s16s16s108s108s",
        0xFFFF0000, 10, 20, 1, 2, 4711, family, 80, 5000, 0, local, remote, b"curl\0junk", local_path, remote_path,
    )  # fmt: skip


def test_a_chunk_is_cut_to_the_length_it_names() -> None:
    raw = head(events.CHUNK, events.FLAG_EGRESS, 3) + struct.pack("=II", 1000, 2) + b"abcPADDING"
    expected = events.Chunk(at=99, pid=7, tid=8, conn=55, egress=True, seq=1000, data=b"abc", missing=2, eof=False)
    assert events.decode(raw) == expected
    assert events.used_size(raw) == len(raw) - len(b"PADDING")


def test_addresses_of_both_families_and_mapped_ones() -> None:
    four = events.decode(socket_event(socket.AF_INET, bytes([127, 0, 0, 1]), bytes([10, 0, 0, 9])))
    assert isinstance(four, events.SocketSeen)
    assert (four.family, four.local, four.remote) == (socket.AF_INET, ("127.0.0.1", 80), ("10.0.0.9", 5000))
    assert (four.comm, four.connected, four.inode, four.egress_total) == ("curl", True, 4711, 10)
    mapped = b"\0" * 10 + b"\xff\xff" + bytes([192, 0, 2, 1])
    six = events.decode(socket_event(socket.AF_INET6, mapped, mapped))
    assert isinstance(six, events.SocketSeen)
    assert (six.family, six.local[0]) == (socket.AF_INET, "192.0.2.1")
    six = events.decode(socket_event(socket.AF_INET6, b"\0" * 15 + b"\1", b"\0" * 15 + b"\1"))
    assert isinstance(six, events.SocketSeen)
    assert (six.family, six.local[0]) == (socket.AF_INET6, "::1")


def test_unix_paths_and_abstract_names() -> None:
    seen = events.decode(socket_event(socket.AF_UNIX, b"", b"", b"/run/docker.sock\0\0", b"\0abstract\0\0"))
    assert isinstance(seen, events.SocketSeen)
    assert (seen.local, seen.remote) == (("/run/docker.sock", 0), ("@abstract", 0))
    unnamed = events.decode(socket_event(socket.AF_UNIX, b"", b""))
    assert isinstance(unnamed, events.SocketSeen)
    assert unnamed.local == ("", 0)


def test_state_exec_fork_exit_and_close() -> None:
    state = head(events.STATE, events.FLAG_EOF) + struct.pack("=HHIIIIHH", 2, 7, 111, 1, 2, 3, 0, 80)
    assert events.decode(state) == events.StateChanged(99, 7, 55, 2, 7, 111, 1, 2, 3, 0, 80, shut=True)
    executed = head(events.EXEC) + struct.pack("=16s232s", b"curl", b"/usr/bin/curl")
    assert events.decode(executed) == events.Executed(99, 7, "curl", "/usr/bin/curl")
    assert events.decode(head(events.FORK) + struct.pack("=II", 12, 0)) == events.Forked(99, 7, 12)
    assert events.decode(head(events.EXIT)) == events.Exited(99, 7)
    assert events.decode(head(events.CLOSED)) == events.SocketClosed(99, 7, 55)


@pytest.mark.parametrize(("flag", "plaintext"), [(0, False), (events.FLAG_PLAINTEXT, True)])
def test_a_chunk_says_whether_it_is_plaintext_of_a_session(flag: int, plaintext: bool) -> None:
    raw = head(events.CHUNK, flag | events.FLAG_EOF, 0) + struct.pack("=II", 7, 0)
    assert events.decode(raw) == events.Chunk(99, 7, 8, 55, False, 7, b"", 0, eof=True, plaintext=plaintext)


def session_event(source: int, alpn: bytes = b"", alpn_len: int | None = None, flags: int = 0) -> bytes:
    size = len(alpn) if alpn_len is None else alpn_len
    return head(events.SESSION, flags) + struct.pack(
        "=QQIIIIII16s16s", 0x7F0012345678, 64, 1, 2, 3, source, size, 0, alpn, b"python3\0junk"
    )


def test_a_session_names_its_socket_how_that_was_told_and_its_protocol() -> None:
    whole = session_event(1, b"http/1.1", flags=events.FLAG_WHOLE)
    assert events.decode(whole) == events.SessionSeen(
        at=99, pid=7, tid=8, session=55, handle=0x7F0012345678, conn=64, egress_seq=1, ingress_seq=2, point=3,
        by_bytes=False, whole=True, alpn="http/1.1", comm="python3",
    )  # fmt: skip
    by_bytes = events.decode(session_event(2))
    assert isinstance(by_bytes, events.SessionSeen)
    assert (by_bytes.by_bytes, by_bytes.whole, by_bytes.alpn) == (True, False, None)
    untied = events.decode(session_event(0))
    assert isinstance(untied, events.SessionSeen)
    assert untied.by_bytes is False


@pytest.mark.parametrize(
    ("alpn", "size", "shown"),
    [
        (b"h2", 2, "h2"), (b"h2\xff", 3, "h2\\xff"), (b"h2-and-more-of-it", 0xFFFF_FFFF, "h2-and-more-of-i"),
        (b"h2", 0, None),
    ],
)
def test_a_protocol_of_a_session_is_as_long_as_it_says_and_no_longer_than_its_place(
    alpn: bytes, size: int, shown: str | None
) -> None:
    seen = events.decode(session_event(1, alpn, size))
    assert isinstance(seen, events.SessionSeen)
    assert seen.alpn == shown


def test_freed_loaded_and_born() -> None:
    assert events.decode(head(events.FREED)) == events.SessionFreed(99, 7, 55)
    assert events.decode(head(events.LOADED, events.FLAG_STOPPED)) == events.Watched(99, 7)
    assert events.decode(head(events.BORN)) == events.Watched(99, 7)


def test_a_socket_says_whether_its_process_was_probed_when_it_was_first_used() -> None:
    raw = bytearray(socket_event(socket.AF_INET, bytes(4), bytes(4)))
    for flags, probed in ((0, False), (events.FLAG_PROBED, True), (events.FLAG_CONNECTED, False)):
        raw[1] = flags
        seen = events.decode(bytes(raw))
        assert isinstance(seen, events.SocketSeen)
        assert seen.probed is probed


@pytest.mark.parametrize(
    "placed",
    [
        events.ProbesPlaced(5, 6, (), (), probed=False),
        events.ProbesPlaced(5, 6, ((0, "OpenSSL 3.0.15"), (8191, "GnuTLS 3.7.9")), (), probed=True),
        events.ProbesPlaced(5, 0xFFFF_FFFF, (), ("JSSE: not readable", "crypto/tls go1.4: zu alt: ä"), probed=False),
    ],
)
def test_what_tls_was_found_in_a_process_survives_the_round_trip(placed: events.ProbesPlaced) -> None:
    raw = events.encode_probes(placed)
    assert raw[0] == events.PROBES
    assert events.HEAD.unpack_from(raw)[5] == len(raw) - events.HEAD.size
    assert events.decode(raw) == placed
    assert events.used_size(raw) == len(raw)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"libraries": [], "unreadable": [], "prob', b'{"libraries": [], "unreadable": []}',
        b'{"libraries": [[1]], "unreadable": [], "probed": true}',
        b'{"libraries": 1, "unreadable": [], "probed": true}',
        b'{"libraries": [["x", "y"]], "unreadable": [], "probed": true}',
        b'{"libraries": [[null, "y"]], "unreadable": [], "probed": true}',
        b'{"libraries": [], "unreadable": 7, "probed": true}', b"null",
    ],
)  # fmt: skip
def test_what_is_no_account_of_the_tls_found_is_the_one_error(body: bytes) -> None:
    with pytest.raises(events.EventError):
        events.decode(head(events.PROBES) + body)


def test_recordings_of_both_abis_are_read() -> None:
    assert (events.EVENT_ABI, events.EVENT_ABIS) == (2, (1, 2))


def test_what_user_space_adds_survives_the_round_trip() -> None:
    container = Container("3f2a", "web", "nginx:1", "docker", None, None, (("a", "b"),))
    seen = events.ProcessSeen(5, 6, "nginx", "/usr/sbin/nginx", container)
    assert events.decode(events.encode_process(seen)) == seen
    bare = events.ProcessSeen(5, 6, "x\udcff", None, None)
    assert events.decode(events.encode_process(bare._replace(comm="x"))) == bare._replace(comm="x")
    counters = events.Counters(9, tuple(range(len(events.COUNTER_NAMES))))
    assert events.decode(events.encode_counters(counters)) == counters


@given(st.binary(max_size=400))
def test_any_bytes_are_an_event_or_the_one_error(raw: bytes) -> None:
    with contextlib.suppress(events.EventError):
        assert isinstance(events.decode(raw), tuple)


@pytest.mark.parametrize("kind", [events.SOCKET, events.CHUNK, events.STATE, events.EXEC, events.FORK, events.SESSION])
def test_an_event_cut_short_is_the_one_error(kind: int) -> None:
    with pytest.raises(events.EventError):
        events.decode(head(kind))
