"""Uprobes by links of many and by perf events: both see every call, in the process asked for and in no other.

The traced process is a C program of the tests' own, whose "TLS library" is two functions; the programs are apitrace's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apitrace.errors import PlatformError
from apitrace.probes import events
from apitrace.probes.btf import Btf
from apitrace.probes.elf import Elf
from apitrace.probes.kernel import Kernel
from apitrace.probes.loader import Settings, has_multi, load
from apitrace.probes.placement import Location, Placement, plain_entry
from apitrace.probes.tls import PROGRAMS, TlsProbes
from apitrace.probes.uprobes import Probe
from tests.live.harness import cannot, environment, program, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = """
#include <pthread.h>
#include <stdio.h>
#include <string.h>
static char session;
__attribute__((noinline)) int fake_write(void *ssl, const char *data, int size)
{ __asm__ volatile("" : : "r"(ssl), "r"(data) : "memory"); return size; }
__attribute__((noinline)) int other_write(void *ssl, const char *data, int size)
{ __asm__ volatile("" : : "r"(ssl), "r"(data) : "memory"); return size - 1; }
static void *run(void *line)
{ fake_write(&session, line, strlen(line)); other_write(&session + 8, line, strlen(line)); return NULL; }
int main(void)
{
    char line[256];
    pthread_t thread;
    while (fgets(line, sizeof(line), stdin)) {
        if (line[0] == 't') { pthread_create(&thread, NULL, run, line); pthread_join(thread, NULL); }
        else run(line);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
"""
BREAKPOINT = b"\xcc"
FUNCTIONS = ("fake_write", "other_write")
WRITE = 2
"""POINT_WRITE in bpf/apitrace.h."""
ARGUMENTS = (Location("rdi"), Location("rsi"), Location("rdx"), None)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("uprobes")
    (directory / "target.c").write_text(SOURCE)
    built = directory / "target"
    command = [program("cc"), "-O1", "-pthread", "-o", str(built), str(directory / "target.c")]
    subprocess.run(command, check=True, env=environment())
    return built


@pytest.fixture(scope="module")
def places(binary: Path) -> dict[str, Placement]:
    with Elf.open(binary) as elf:
        symbols = elf.symbols(list(FUNCTIONS))
        return {name: plain_entry(elf, symbols[name].address, (), "") for name in FUNCTIONS}


class Target:
    """The program, which calls both functions with each line that it is given."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.process = subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        until(lambda: str(binary) in Path(f"/proc/{self.pid}/maps").read_text(), "the program is mapped")

    def call(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def byte_at(self, place: Placement) -> bytes:
        """Return the byte that the process has in memory at this place of the file."""
        start = next(
            int(line.split("-")[0], 16) - int(line.split()[2], 16)
            for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines()
            if line.endswith(str(self.binary)) and line.split()[1][2] == "x"
        )
        with Path(f"/proc/{self.pid}/mem").open("rb") as memory:
            memory.seek(start + place.offset)
            return memory.read(1)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(binary: Path) -> Iterator[Callable[[], Target]]:
    started: list[Target] = []

    def make() -> Target:
        started.append(Target(binary))
        return started[-1]

    yield make
    for target in started:
        target.close()


class Loaded:
    """The kernel's side, and the events that it has made."""

    def __init__(self, *, multi: bool) -> None:
        settings = Settings({"FOLLOW": 1, "STOP": 0}, ("on_exit",), PROGRAMS, 1 << 20, multi=multi)
        self.kernel: Kernel = load(settings, Btf.of_kernel())
        self.raw: list[bytes] = []
        self.sessions: dict[tuple[int, int], int] = {}
        self.kernel.open_ring(self._take)
        rows = TlsProbes(self.kernel, None)  # type: ignore[arg-type] # only for its rows
        self.points = [rows._row(WRITE, locations=ARGUMENTS) for _ in FUNCTIONS]

    def _take(self, _context: int, address: int, size: int) -> int:
        self.raw.append(ctypes.string_at(address, size))
        return 0

    def watch(self, target: Target) -> None:
        self.kernel.update("targets", struct.pack("=I", target.pid), b"\1")

    def probe(self, target: Target, places: dict[str, Placement], *, pid: int | None = None) -> list[Probe]:
        where = [(places[name].offset, point) for name, point in zip(FUNCTIONS, self.points, strict=True)]
        pid = target.pid if pid is None else pid
        return [
            self.kernel.probe("on_tls_return", str(target.binary), where, pid=pid, at_return=True),
            self.kernel.probe("on_tls_entry", str(target.binary), where, pid=pid),
        ]

    def seen(self) -> list[tuple[int, int, bytes]]:
        """Return (pid, number of the probe point, data) of each piece of plaintext."""
        self.kernel.poll(0)
        decoded = [events.decode(raw) for raw in self.raw]
        self.raw.clear()
        self.sessions |= {
            (each.pid, each.session): each.point for each in decoded if isinstance(each, events.SessionSeen)
        }
        return [
            (each.pid, self.sessions[each.pid, each.conn], each.data)
            for each in decoded if isinstance(each, events.Chunk)
        ]  # fmt: skip


def loaded(multi: bool) -> Iterator[Loaded]:
    if multi and not has_multi(os.uname().release):
        cannot("this kernel has no links of many uprobes")
    made = Loaded(multi=multi)
    yield made
    made.kernel.close()


@pytest.fixture(params=[True, False], ids=["multi", "perf"])
def side(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    yield from loaded(request.param)


def test_every_call_is_seen_at_its_point_on_every_thread(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    target = start()
    side.watch(target)
    side.probe(target, places)
    first, second = side.points
    expected = []
    for number in range(23):
        line = f"{'t' if number % 2 else 'm'}{number}"
        target.call(line)
        expected += [(target.pid, first, f"{line}\n".encode()), (target.pid, second, line.encode())]
    assert side.seen() == expected


def test_no_other_process_is_touched(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    target, bystander = start(), start()
    for each in (target, bystander):
        side.watch(each)
    own = bystander.byte_at(places["fake_write"])
    side.probe(target, places)
    assert [each.byte_at(places["fake_write"]) for each in (target, bystander)] == [BREAKPOINT, own]
    target.call("x")
    bystander.call("y")
    assert {pid for pid, _, _ in side.seen()} == {target.pid}


def test_without_a_process_all_that_map_the_file_are_seen(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    two = [start(), start()]
    for each in two:
        side.watch(each)
    side.probe(two[0], places, pid=-1)
    for each in two:
        each.call("x")
    assert [pid for pid, _, _ in side.seen()] == [two[0].pid] * 2 + [two[1].pid] * 2


def test_a_probe_that_is_taken_away_leaves_the_code_as_it_was(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    target = start()
    side.watch(target)
    own = [target.byte_at(place) for place in places.values()]
    probes = side.probe(target, places)
    target.call("x")
    assert len(side.seen()) == 2
    for probe in probes:
        side.kernel.remove(probe)
        side.kernel.remove(probe)  # a second time is nothing
    until(lambda: [target.byte_at(place) for place in places.values()] == own, "the breakpoints are gone")
    target.call("x")
    assert side.seen() == []
    side.probe(target, places)
    target.call("x")
    assert len(side.seen()) == 2


def test_detaching_takes_every_probe_away_and_what_was_seen_stays_readable(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    target = start()
    side.watch(target)
    own = [target.byte_at(place) for place in places.values()]
    side.probe(target, places)
    target.call("x")
    side.kernel.detach()
    assert [target.byte_at(place) for place in places.values()] == own
    target.call("y")
    assert [data for _, _, data in side.seen()] == [b"x\n", b"x"]


def test_what_cannot_be_placed_is_an_oserror_and_leaves_nothing_behind(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    target, gone = start(), start()
    gone.close()
    file, good = str(target.binary), (places["fake_write"].offset, side.points[0])
    own = target.byte_at(places["fake_write"])
    for where, path, pid in (
        ([good], f"{file}.not-there", target.pid),
        ([good, (1 << 30, side.points[1])], file, target.pid),
        ([good], file, gone.pid),
        ([good], str(target.binary.parent), target.pid),
    ):
        for at_return in (False, True):
            name = "on_tls_return" if at_return else "on_tls_entry"
            with pytest.raises(OSError) as failure:  # noqa: PT011 - which one is the kernel's affair
                side.kernel.probe(name, path, where, pid=pid, at_return=at_return)
            assert failure.value.errno in {errno.ENOENT, errno.EINVAL, errno.ESRCH, errno.EISDIR, errno.EBADF}
    assert target.byte_at(places["fake_write"]) == own
    assert len(side.kernel.uprobes) == 0


def until_untouched(target: Target, places: dict[str, Placement], own: list[bytes]) -> None:
    until(lambda: [target.byte_at(place) for place in places.values()] == own, "the target's code is as it was")


RESTLESS = """
import sys
from pathlib import Path
from tests.live.test_kernel import Loaded
multi, pid, file, *offsets = sys.argv[1:]
kernel = Loaded(multi=multi == "True").kernel
print("ready", flush=True)
while True:
    for at_return, name in ((True, "on_tls_return"), (False, "on_tls_entry")):
        for offset in offsets:
            kernel.probe(name, file, [(int(offset), 0)], pid=int(pid), at_return=at_return)
    kernel.detach()
"""
"""Places probes and takes them away, for ever."""


@pytest.mark.parametrize("multi", [True, False], ids=["multi", "perf"])
def test_one_who_is_killed_while_it_places_or_takes_away_leaves_the_code_as_it_was(
    multi: bool, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    """A system call that SIGKILL ends in the middle would leave breakpoints for ever: so the killed one makes none."""
    if multi and not has_multi(os.uname().release):
        cannot("this kernel has no links of many uprobes")
    target = start()
    own = [target.byte_at(place) for place in places.values()]
    offsets = [str(place.offset) for place in places.values()]
    command = [sys.executable, "-c", RESTLESS, str(multi), str(target.pid), str(target.binary), *offsets]
    moments = random.Random(1)
    for _ in range(12):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as restless:
            assert restless.stdout is not None
            assert restless.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, 0.2))
            restless.kill()
        until_untouched(target, places, own)
    target.call("x")


def test_it_is_told_when_the_process_that_holds_the_probes_is_killed(
    side: Loaded, start: Callable[[], Target], places: dict[str, Placement]
) -> None:
    target = start()
    own = [target.byte_at(place) for place in places.values()]
    side.probe(target, places)
    side.kernel.uprobes.check()
    holder = side.kernel.uprobes._process
    os.kill(holder, signal.SIGKILL)
    until_untouched(target, places, own)
    until(lambda: Path(f"/proc/{holder}/stat").read_text().split()[2] == "Z", "it has ended")
    with pytest.raises(PlatformError, match="holds the TLS probes has been ended"):
        side.kernel.uprobes.check()
    side.kernel.uprobes.check()  # once
    with pytest.raises(BrokenPipeError):
        side.probe(target, places)
    side.kernel.detach()
