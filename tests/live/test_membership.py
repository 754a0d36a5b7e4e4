"""Who is a target, as the kernel programs keep it: forks, execs, renames, cgroup moves, on cgroup v1 and v2."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from apitrace.probes import events
from apitrace.probes.sockets import LiveSource, Narrowing
from apitrace.targets.target import Cgroup, TargetSet

pytestmark = pytest.mark.live

SEND = (
    "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
    "s.send(sys.argv[2].encode()); s.close()"
)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def call(port: int, path: str, **options: object) -> None:
    """Send one request from a new process."""
    text = f"GET /{path} HTTP/1.1\r\n\r\n"
    subprocess.run([sys.executable, "-c", SEND, str(port), text], check=True, **options)  # type: ignore[call-overload]


@contextlib.contextmanager
def tracing(targets: TargetSet) -> Iterator[LiveSource]:
    source = LiveSource(targets, Narrowing(), lambda _: None)
    try:
        source.start()
        yield source
    finally:
        source.close()


def paths(source: LiveSource) -> list[str]:
    """The paths of the requests sent by targets, in order."""
    source.stop()
    decoded = [events.decode(raw) for raw in source.poll(0)]
    return [event.data.split()[1].decode() for event in decoded if isinstance(event, events.Chunk) and event.egress]


def hierarchies() -> list[tuple[int, Path]]:
    """(number, mount point) of the v2 hierarchy and of one v1 controller, as far as this machine has them."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [(0, Path(fields[1])) for fields in mounts if fields[2] == "cgroup2"][:1]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, _ = line.split(":", 2)
        mount = [fields[1] for fields in mounts if fields[2] == "cgroup" and controllers in fields[3].split(",")]
        if controllers == "pids" and mount:
            found.append((int(number), Path(mount[0])))
    return found


@pytest.fixture(params=hierarchies(), ids=lambda item: f"hierarchy{item[0]}")
def cgroup(request: pytest.FixtureRequest) -> Iterator[tuple[int, Path]]:
    number, mount = request.param
    path = mount / f"apitrace-{uuid.uuid4().hex[:8]}"
    (path / "inner").mkdir(parents=True)
    yield number, path
    (path / "inner").rmdir()
    path.rmdir()


def test_there_is_a_cgroup_hierarchy_to_test_with() -> None:
    assert hierarchies()


def test_children_of_a_process_are_followed_through_fork_and_exec(port: int) -> None:
    with tracing(TargetSet(pids=(os.getpid(),))) as source:
        call(port, "child")
        subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -c "{SEND}" {port} "GET /grandchild HTTP/1.1"; true'], check=True
        )
        assert paths(source) == ["/child", "/grandchild"]


def test_without_follow_children_are_left_alone(port: int) -> None:
    with tracing(TargetSet(pids=(os.getpid(),), follow=False)) as source:
        call(port, "child")
        with socket.create_connection(("127.0.0.1", port)) as mine:
            mine.send(b"GET /self HTTP/1.1\r\n\r\n")
        assert paths(source) == ["/self"]


def test_a_process_that_execs_into_a_name_is_a_target_from_then_on(port: int, tmp_path: Path) -> None:
    named = tmp_path / "apitrace-named"
    named.symlink_to("/usr/bin/python3")
    with tracing(TargetSet(comms=("apitrace-named"[:15],))) as source:
        call(port, "other")
        subprocess.run([named, "-c", SEND, str(port), "GET /named HTTP/1.1\r\n\r\n"], check=True)
        assert paths(source) == ["/named"]


def test_a_process_that_renames_itself_is_a_target_from_then_on(port: int) -> None:
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'apitrace-renam', 0, 0, 0);"
    with tracing(TargetSet(comms=("apitrace-renam",))) as source:
        subprocess.run([sys.executable, "-c", rename + SEND, str(port), "GET /renamed HTTP/1.1\r\n\r\n"], check=True)
        assert paths(source) == ["/renamed"]


def test_a_process_that_enters_a_cgroup_is_a_target_until_it_leaves(port: int, cgroup: tuple[int, Path]) -> None:
    number, path = cgroup

    def enter(directory: Path) -> None:
        (directory / "cgroup.procs").write_text(str(os.getpid()))

    def out_again() -> None:
        enter(path)
        enter(path.parent)

    with tracing(TargetSet(cgroups=(Cgroup(str(path), number, path.stat().st_ino),))) as source:
        call(port, "outside")
        call(port, "inside", preexec_fn=lambda: enter(path))
        call(port, "nested", preexec_fn=lambda: enter(path / "inner"))
        call(port, "left", preexec_fn=out_again)
        assert paths(source) == ["/inside", "/nested"]


def test_of_two_cgroups_only_the_named_one_is_traced(port: int, cgroup: tuple[int, Path]) -> None:
    number, path = cgroup
    inner = path / "inner"
    with tracing(TargetSet(cgroups=(Cgroup(str(inner), number, inner.stat().st_ino),))) as source:
        call(port, "outer", preexec_fn=lambda: (path / "cgroup.procs").write_text(str(os.getpid())))
        call(port, "inner", preexec_fn=lambda: (inner / "cgroup.procs").write_text(str(os.getpid())))
        assert paths(source) == ["/inner"]


def test_a_target_that_ends_is_forgotten() -> None:
    process = subprocess.Popen(["sleep", "60"])
    with tracing(TargetSet(pids=(process.pid,))) as source:
        assert source.target_pids() == [process.pid]
        process.kill()
        process.wait()
        assert source.target_pids() == []
        assert not source.has_targets
