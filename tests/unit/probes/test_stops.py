"""Whoever was stopped goes on: when let go, when the capture ends, and when the capturing process is killed.

Real processes, and a real watchdog. The programs' map is a file in memory here, which fork shares as it does a map.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from apitrace.probes import procfs, stops
from apitrace.probes.stops import STOPPING_NS, Stops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apitrace.probes.kernel import Kernel

PATIENCE = 20.0
PID = struct.Struct("=I")
NOTE = struct.Struct("=IQ")
FIRST, SECOND = 1000, 2000
"""Times of events that tell of a stop."""


class Map:
    """The map `stopped`, with the methods of Kernel that are used on it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("stopped")

    def add(self, pid: int, at: int = FIRST) -> None:
        self._write({**self._notes(), pid: at})

    def pids(self) -> list[int]:
        return list(self._notes())

    def _notes(self) -> dict[int, int]:
        return dict(NOTE.iter_unpack(os.pread(self.descriptor, NOTE.size << 10, 0)))

    def _write(self, notes: dict[int, int]) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b"".join(NOTE.pack(*note) for note in notes.items()), 0)

    def keys(self, name: str, size: int) -> Iterator[bytes]:
        assert (name, size) == ("stopped", PID.size)
        return map(PID.pack, self._notes())

    def lookup(self, name: str, key: bytes, size: int) -> bytes | None:
        assert (name, size) == ("stopped", 8)
        at = self._notes().get(*PID.unpack(key))
        return None if at is None else struct.pack("=Q", at)

    def delete(self, name: str, key: bytes) -> None:
        assert name == "stopped"
        self._write({pid: at for pid, at in self._notes().items() if PID.pack(pid) != key})

    def map_descriptor(self, name: str) -> int:
        assert name == "stopped"
        return self.descriptor


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.002)


def state(pid: int) -> str | None:
    seen = procfs.stat(pid)
    return seen and seen.state


class Sleeper:
    """A process that waits for its standard input to end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        until(lambda: state(self.pid) == "S", "it waits")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: state(self.pid) == "T", "it is stopped")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sleepers() -> Iterator[Callable[[], Sleeper]]:
    with contextlib.ExitStack() as stack:

        def make() -> Sleeper:
            sleeper = Sleeper()
            stack.callback(sleeper.end)
            return sleeper

        yield make


@pytest.fixture
def noted() -> Iterator[Map]:
    made = Map()
    yield made
    os.close(made.descriptor)


def make_stops(noted: Map) -> Stops:
    return Stops(cast("Kernel", noted))


def test_a_process_that_is_let_go_runs_on_and_is_noted_no_longer(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    one, other, held = sleepers(), sleepers(), make_stops(noted)
    for each in (one, other):
        each.stop()
        noted.add(each.pid)
    held.release(one.pid, FIRST)
    until(lambda: state(one.pid) == "S", "it runs")
    assert (state(other.pid), noted.pids()) == ("T", [other.pid])
    held.close()
    until(lambda: state(other.pid) == "S", "the other runs")


def test_a_process_that_is_about_to_stop_is_let_go_after_it_has(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    """The signal is sent by the programs before their event is read, and may be delivered after."""
    one, held = sleepers(), make_stops(noted)
    noted.add(one.pid)
    late = subprocess.Popen(["/bin/sh", "-c", f"kill -STOP {one.pid}"])  # any time now
    held.release(one.pid, FIRST)
    late.wait()
    held.release(one.pid, FIRST)
    until(lambda: state(one.pid) == "S", "it runs")
    held.close()


def test_of_two_events_of_one_stop_the_last_lets_the_process_go(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    """Else the second waited for the process to stop again, and would have ended a stop that is not its own."""
    one, held = sleepers(), make_stops(noted)
    one.stop()
    noted.add(one.pid, SECOND)
    held.release(one.pid, FIRST)
    assert (state(one.pid), noted.pids()) == ("T", [one.pid])
    held.release(one.pid, SECOND)
    until(lambda: state(one.pid) == "S", "it runs")
    assert noted.pids() == []
    held.close()


def test_a_process_that_never_stops_holds_nobody_up_for_long(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    one, held = sleepers(), make_stops(noted)
    noted.add(one.pid)
    began = time.monotonic_ns()
    held.release(one.pid, FIRST)
    assert STOPPING_NS <= time.monotonic_ns() - began < 20 * STOPPING_NS
    assert (state(one.pid), noted.pids()) == ("S", [])
    held.close()


def test_a_process_that_is_gone_is_noted_no_longer(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    one, held = sleepers(), make_stops(noted)
    noted.add(one.pid)
    one.end()
    began = time.monotonic_ns()
    held.release(one.pid, FIRST)
    assert time.monotonic_ns() - began < STOPPING_NS
    assert noted.pids() == []
    held.close()


def test_the_end_of_the_capture_lets_everybody_go_and_ends_the_watchdog(
    sleepers: Callable[[], Sleeper], noted: Map
) -> None:
    two, held = [sleepers(), sleepers()], make_stops(noted)
    for each in two:
        each.stop()
        noted.add(each.pid)
    watchdog = held._watchdog
    assert state(watchdog) is not None
    held.close()
    assert state(watchdog) is None
    until(lambda: [state(each.pid) for each in two] == ["S", "S"], "both run")
    held.close()  # a second time is nothing


def test_the_watchdog_works_where_a_thousand_files_are_open(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    """As many as whoever starts apitrace leaves open."""
    one = sleepers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as many:
        for _ in range(1100):
            many.callback(os.close, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        held = make_stops(noted)
        one.stop()
        noted.add(one.pid)
        until(lambda: state(one.pid) == "S", "it runs")  # nobody has let it go but the watchdog
        held.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_signals_that_end_a_program_do_not_end_the_watchdog(sleepers: Callable[[], Sleeper], noted: Map) -> None:
    """Ctrl-C and a terminal that hangs up are for apitrace, which ends the watchdog itself."""
    one, held = sleepers(), make_stops(noted)
    one.stop()
    noted.add(one.pid)
    until(lambda: os.getsid(held._watchdog) == held._watchdog, "it has a session of its own")
    until(lambda: b"SigIgn" in (status := Path(f"/proc/{held._watchdog}/status").read_bytes()) and int(
        next(line for line in status.splitlines() if line.startswith(b"SigIgn")).split()[1], 16
    ) & 1 << (signal.SIGTERM - 1), "it ignores SIGTERM")  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(held._watchdog, number)
    assert state(held._watchdog) in {"S", "R"}
    assert state(one.pid) == "T"
    held.close()
    until(lambda: state(one.pid) == "S", "it runs")


OWNER = """
import os, sys
from tests.unit.probes.test_stops import Map, make_stops
noted = Map()
for pid in map(int, sys.argv[1:]):
    noted.add(pid)
made = make_stops(noted)
print(made._watchdog, flush=True)
sys.stdin.read()
"""


def test_a_killed_capture_leaves_nobody_stopped(sleepers: Callable[[], Sleeper]) -> None:
    two = [sleepers(), sleepers()]
    for each in two:
        each.stop()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, *(str(each.pid) for each in two)],
        cwd=Path(__file__).parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    watchdog = int(owner.stdout.readline())
    assert [state(each.pid) for each in two] == ["T", "T"]
    owner.kill()
    rest, _ = owner.communicate()  # ends only when the watchdog does not hold the output open
    assert rest == ""
    until(lambda: [state(each.pid) for each in two] == ["S", "S"], "both run")
    until(lambda: state(watchdog) in {None, "Z"}, "the watchdog has ended")


def test_the_watchdog_keeps_no_descriptor_but_its_own(noted: Map) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    held = make_stops(noted)
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # ends: nobody has the other end
    descriptors = Path(f"/proc/{held._watchdog}/fd")
    until(lambda: len(list(descriptors.iterdir())) == 2, "it has two")
    held.close()
    os.close(read_end)


def test_who_stays_stopped_is_let_go_after_a_while_and_at_once_as_long_as_the_owner_is_held_up() -> None:
    patience, seven, eight, nine = stops.Patience(), (7, FIRST), (8, FIRST), (9, FIRST)
    assert patience.overdue([seven], 10.0) == []
    assert patience.interval == stops.GRACE_S / 2
    assert patience.overdue([seven], 10.0 + stops.GRACE_S / 2) == []
    assert patience.overdue([seven, eight], 10.0 + stops.GRACE_S) == [seven]
    assert patience.interval == stops.HELD_UP_S
    assert patience.overdue([eight], 10.0 + stops.GRACE_S + 2 * stops.HELD_UP_S) == [eight]
    assert patience.overdue([nine], 20.0) == []
    assert patience.overdue([], 20.005) == []  # the owner let 9 go: it is back
    assert patience.interval == stops.GRACE_S / 2


def test_a_process_that_is_stopped_again_waits_anew() -> None:
    patience = stops.Patience()
    assert patience.overdue([(7, FIRST)], 10.0) == []
    assert patience.overdue([(7, SECOND)], 10.0 + stops.GRACE_S) == []
    assert patience.overdue([(7, SECOND)], 10.0 + 2 * stops.GRACE_S) == [(7, SECOND)]
