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


@pytest.mark.parametrize("kind", [events.SOCKET, events.CHUNK, events.STATE, events.EXEC, events.FORK])
def test_an_event_cut_short_is_the_one_error(kind: int) -> None:
    with pytest.raises(events.EventError):
        events.decode(head(kind))
