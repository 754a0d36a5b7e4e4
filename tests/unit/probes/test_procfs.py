"""/proc as it is, of processes started here; and as it was on hosts of other kinds, from trees made up."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apitrace.probes import procfs
from apitrace.probes.procfs import Hierarchy, Listener, Membership, Stat


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process, from when it has printed a line."""
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.kill()


def rename(name: bytes) -> str:
    """A program that calls itself so, then waits."""
    return f"import ctypes; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0); print(flush=True); input()"


GONE = 1 << 22  # above the kernel's limit for a pid on 64-bit systems (PID_MAX_LIMIT)


def test_a_process_that_is_gone_is_none_or_empty_everywhere() -> None:
    assert procfs.stat(GONE) is None
    assert procfs.process_of(GONE) is None
    assert procfs.threads(GONE) == ()
    assert procfs.comm(GONE) is None
    assert procfs.exe(GONE) is None
    assert procfs.cmdline(GONE) is None
    assert procfs.pid_namespace(GONE) is None
    assert procfs.cgroups(GONE) == ()
    assert procfs.descendants([GONE]) == ()
    assert not procfs.any_listens_on_unix([GONE])


def test_a_host_without_proc_has_no_processes_and_no_cgroups(tmp_path: Path) -> None:
    assert procfs.pids(root=tmp_path) == []
    assert procfs.own_pid(root=tmp_path) is None
    assert procfs.named("x", root=tmp_path) == ()
    assert procfs.hierarchies(root=tmp_path) == ()


def test_of_this_process_everything_is_known() -> None:
    pid = os.getpid()
    assert procfs.own_pid() == pid
    assert pid in procfs.pids()
    assert procfs.comm(pid) == Path("/proc/self/comm").read_text()[:-1]
    assert procfs.exe(pid) == os.path.realpath(sys.executable)
    arguments = procfs.cmdline(pid)
    assert arguments is not None
    assert arguments[-len(sys.argv) + 1 :] == tuple(sys.argv[1:]) or len(sys.argv) == 1
    assert procfs.process_of(pid) == pid
    assert procfs.pid_namespace(pid) == procfs.pid_namespace("self") == str(Path("/proc/self/ns/pid").readlink())
    seen = procfs.stat(pid)
    assert seen is not None
    assert (seen.state, seen.ppid) == ("R", os.getppid())
    started = seen.start_ticks / os.sysconf("SC_CLK_TCK")
    assert 0 < started < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_thread_is_no_process_but_tells_whose_it_is() -> None:
    go, told = threading.Event(), threading.Event()
    tids: list[int] = []

    def work() -> None:
        tids.append(threading.get_native_id())
        told.set()
        go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    told.wait()
    try:
        assert procfs.process_of(tids[0]) == os.getpid()
        assert tids[0] in procfs.threads(os.getpid())
        assert tids[0] not in procfs.pids()
    finally:
        go.set()
        thread.join()


def test_children_and_theirs_are_descendants_but_no_one_else() -> None:
    script = "sleep 60 & (sleep 60 & echo $!; wait)"
    with running("sh", "-c", f"{script}; wait") as shell, running("sh", "-c", "echo; read line") as other:
        found = procfs.descendants([shell.pid])
        assert len(found) == 3
        assert sorted(map(len, (procfs.children().get(pid, []) for pid in (shell.pid, *found)))) == [0, 0, 1, 2]
        assert procfs.descendants([shell.pid, found[0]]) == tuple(pid for pid in found if pid != found[0])
        assert {shell.pid, other.pid, *found} <= set(procfs.descendants([os.getpid()]))
        assert procfs.descendants([other.pid]) == ()
        for pid in found:
            os.kill(pid, 9)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a) b (c", "a) b (c"),
        (b"two\nlines", "two\nlines"),
        ("grüße".encode(), "grüße"),
        (b"latin-\xe4", r"latin-\xe4"),
        (b"exactly-15-byte", "exactly-15-byte"),
    ],
)
def test_a_name_may_hold_anything(name: bytes, shown: str) -> None:
    with running(sys.executable, "-c", rename(name)) as process:
        assert procfs.comm(process.pid) == shown
        seen = procfs.stat(process.pid)
        assert seen is not None
        assert seen.ppid == os.getpid()
        assert process.pid in procfs.named(os.fsdecode(name))


def test_of_a_long_name_15_bytes_count() -> None:
    with running(sys.executable, "-c", rename(b"apitrace-long-name-of-a-program")) as process:
        assert procfs.comm(process.pid) == "apitrace-long-n"
        assert procfs.named("apitrace-long-name-of-a-program") == (process.pid,)
        assert procfs.named("apitrace-long-name-of-another") == (process.pid,)
        assert procfs.named("apitrace-long") == ()


def test_a_program_that_was_replaced_while_it_runs_keeps_its_path(tmp_path: Path) -> None:
    program = tmp_path / "server"
    shutil.copy(shutil.which("sh") or "/bin/sh", program)
    with running(str(program), "-c", "echo; read line") as process:
        program.unlink()
        assert str(Path(f"/proc/{process.pid}/exe").readlink()) == f"{program} (deleted)"
        assert procfs.exe(process.pid) == str(program)


def test_a_process_that_nobody_has_waited_for_is_a_zombie() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seen = procfs.stat(process.pid)
        assert seen is not None
        assert seen.state == "Z"
        assert procfs.exe(process.pid) is None
        assert procfs.cmdline(process.pid) == ()


def test_listening_on_an_af_unix_socket_is_told_from_being_connected_to_one(tmp_path: Path) -> None:
    pid = os.getpid()
    with socket.socket(socket.AF_UNIX) as listener, socket.create_server(("127.0.0.1", 0)):
        assert not procfs.any_listens_on_unix([pid])
        listener.bind(str(tmp_path / "a path with blanks"))
        assert not procfs.any_listens_on_unix([pid])
        listener.listen()
        assert procfs.any_listens_on_unix([GONE, pid])
        with running("sh", "-c", "echo; read line") as other:
            assert not procfs.any_listens_on_unix([other.pid])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0apitrace-abstract")
        listener.listen()
        assert procfs.any_listens_on_unix([pid])


# -- cgroups: what a machine has one of, in trees that have them all ---------------------------------------------------


def put(root: Path, **files: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    for name, text in files.items():
        (root / "proc/self" / name).write_text(text)


def test_stat_is_read_from_behind_the_last_parenthesis(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    # Of a kernel thread of Linux 6.18.
    line = "7 (kworker/0:0) I 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 20 0 1 0 14 0 0 18446744073709551615 0 0 0\n"
    (tmp_path / "proc/7/stat").write_text(line.replace("kworker", "k) S 9 (worker"))
    assert procfs.stat(7, root=tmp_path) == Stat("I", 2, 14)


def test_the_cgroup_file_names_v1_v2_and_named_hierarchies(tmp_path: Path) -> None:
    put(tmp_path, cgroup="12:cpu,cpuacct:/a:b\n1:name=systemd:/user.slice\n0::/system.slice/x.service\n")
    assert procfs.cgroups("self", root=tmp_path) == (
        Membership(12, ("cpu", "cpuacct"), "/a:b"),
        Membership(1, ("name=systemd",), "/user.slice"),
        Membership(0, (), "/system.slice/x.service"),
    )


HYBRID = """\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,name=systemd
37 31 0:34 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
38 31 0:35 / /srv/with\\040blank rw,nosuid - cgroup cgroup rw,memory
"""


def test_hybrid_hierarchies_are_matched_with_their_mounts_by_controllers(tmp_path: Path) -> None:
    put(tmp_path, cgroup="5:pids:/\n4:memory:/\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n", mountinfo=HYBRID)
    assert procfs.hierarchies(root=tmp_path) == (
        Hierarchy(0, (), f"{tmp_path}/sys/fs/cgroup/unified", "/"),
        Hierarchy(1, ("name=systemd",), f"{tmp_path}/sys/fs/cgroup/systemd", "/"),
        Hierarchy(3, ("cpu", "cpuacct"), f"{tmp_path}/sys/fs/cgroup/cpu,cpuacct", "/"),
        Hierarchy(4, ("memory",), f"{tmp_path}/srv/with blank", "/"),
    )


def test_of_a_hierarchy_that_is_mounted_twice_the_wider_view_counts(tmp_path: Path) -> None:
    narrow = "40 30 0:26 /docker/ab /mnt/inner rw - cgroup2 cgroup2 rw\n"
    wide = "41 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    put(tmp_path, cgroup="0::/\n", mountinfo=narrow + wide)
    assert procfs.hierarchies(root=tmp_path) == (Hierarchy(0, (), f"{tmp_path}/sys/fs/cgroup", "/"),)


@pytest.mark.parametrize(
    ("top", "path", "directory"),
    [
        ("/", "/", "/cg"),
        ("/", "/a/b", "/cg/a/b"),
        ("/", "/a/", "/cg/a"),
        ("/docker/ab", "/docker/ab", "/cg"),  # a container's view: only its own part is mounted
        ("/docker/ab", "/docker/ab/c", "/cg/c"),
        ("/docker/ab", "/docker/abc", None),
        ("/docker/ab", "/", None),
        ("/", "/../other", None),  # above the reader's cgroup namespace, and not mounted
        ("/../..", "/../../other", "/cg/other"),  # above it, and mounted
        ("/", "/a/../../etc", None),
    ],
)
def test_a_cgroups_directory_is_found_below_what_is_mounted(top: str, path: str, directory: str | None) -> None:
    assert Hierarchy(0, (), "/cg", top).directory_of(path) == directory


def test_tcp_connections_are_told_from_listeners_and_other_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        before = procfs.tcp_connections(os.getpid())
        with socket.create_connection(listener.getsockname()) as client:
            more = procfs.tcp_connections(os.getpid()) - before
            assert more == {os.fstat(client.fileno()).st_ino}
        assert os.fstat(listener.fileno()).st_ino not in before
        assert os.fstat(datagrams.fileno()).st_ino not in before
    assert procfs.tcp_connections(GONE) == set()


# -- TCP ------------------------------------------------------------------------------------------------------------

TCP_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
QUEUES = "00000000:00000000 00:00000000 00000000     0        0"
TCP_LISTENS = f"   0: 0100007F:1F90 00000000:0000 0A {QUEUES} {{}} 1 0 100 0 0 10 0\n"
TCP_TALKS = f"   1: 0100007F:D2F0 0100007F:1F90 01 {QUEUES} {{}} 1 0 20 4 30 10 -1\n"
TCP6_LISTENS = f"   0: {{:032}}:01BB {'0' * 32}:0000 0A {QUEUES} {{}} 1 0 100 0 0 10 0\n"


def made_process(
    root: Path, pid: int, *, sockets: tuple[int, ...], namespace: str, tcp: str = "", tcp6: str = ""
) -> None:
    directory = root / "proc" / str(pid)
    for name in ("ns", "fd", "net"):
        (directory / name).mkdir(parents=True)
    (directory / "ns/net").symlink_to(namespace)
    for number, inode in enumerate(sockets):
        (directory / f"fd/{number}").symlink_to(f"socket:[{inode}]")
    (directory / "net/tcp").write_text(TCP_HEAD + tcp)
    (directory / "net/tcp6").write_text(TCP_HEAD + tcp6)


@pytest.mark.skipif(sys.byteorder != "little", reason="the recorded lines are of a little-endian machine")
def test_listeners_are_those_whose_socket_a_process_holds_in_its_own_network(tmp_path: Path) -> None:
    tcp = TCP_LISTENS.format(11) + TCP_TALKS.format(12)
    mapped = "0000000000000000FFFF0000" + "0100007F"
    tcp6 = TCP6_LISTENS.format(0, 13) + TCP6_LISTENS.format(0, 14).replace("0" * 32, mapped, 1)
    made_process(tmp_path, 1, sockets=(11, 12, 13), namespace="net:[1]", tcp=tcp, tcp6=tcp6)
    made_process(tmp_path, 2, sockets=(14, 99), namespace="net:[1]")  # the same network: read once, by way of the first
    made_process(tmp_path, 3, sockets=(11,), namespace="net:[2]")  # another one: its own tables, which are empty
    assert procfs.tcp_listeners([1, 2, 3, 4], root=tmp_path) == {
        1: (Listener("::", 443), Listener("127.0.0.1", 8080)),
        2: (Listener("127.0.0.1", 443),),
        3: (),
    }


def test_lines_that_are_cut_short_are_passed_over(tmp_path: Path) -> None:
    made_process(tmp_path, 1, sockets=(11,), namespace="net:[1]", tcp="   0: 0100007F:1F90\n\n")
    assert procfs.tcp_listeners([1], root=tmp_path) == {1: ()}


def test_a_process_of_ones_own_may_be_looked_into_and_one_that_is_gone_may_not() -> None:
    assert procfs.may_look_into(os.getpid())
    assert not procfs.may_look_into(GONE)
