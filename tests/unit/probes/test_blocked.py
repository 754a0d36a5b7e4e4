"""Calls that have not returned: of real clients, which tell what they have called the library with."""

from __future__ import annotations

import contextlib
import json
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from apitrace.probes import procfs
from apitrace.probes.blocked import Awaited, BlockedCalls, Call, Stacks
from apitrace.probes.kernel import Kernel
from apitrace.probes.libraries import Libraries
from apitrace.probes.tls import TlsProbes
from apitrace.probes.uprobes import Probe
from tests.live.harness import ROOT, environment, until

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86-64 only")

READS = ("SSL_read", "SSL_read_ex", "gnutls_record_recv", "gnutls_record_recv_seq")
PIPES: dict[str, Any] = {
    "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT, "env": environment(),
}  # fmt: skip
THREADS_VALUE = 512
"""Any size that holds a frame."""


class Recorded:
    """Takes the place of the kernel: keeps what it is told."""

    def __init__(self) -> None:
        self.maps: dict[tuple[str, bytes], bytes] = {}
        self.probes: dict[Probe, tuple[str, str, tuple[tuple[int, int], ...], int]] = {}
        self.removed: list[Probe] = []

    def update(self, name: str, key: bytes, value: bytes) -> bool:
        self.maps[name, key] = value
        return True

    def insert(self, name: str, key: bytes, value: bytes) -> bool:
        return (name, key) not in self.maps and self.update(name, key, value)

    def lookup(self, name: str, key: bytes, _size: int) -> bytes | None:
        return self.maps.get((name, key))

    def keys(self, name: str, _size: int) -> list[bytes]:
        return [key for of, key in self.maps if of == name]

    def delete(self, name: str, key: bytes) -> None:
        self.maps.pop((name, key), None)

    def value_size(self, _name: str) -> int:
        return THREADS_VALUE

    def probe(
        self, program: str, file: str, places: list[tuple[int, int]], *, pid: int, at_return: bool = False
    ) -> Probe:
        probe = Probe(len(self.probes) + 1000)
        if program == "on_tls_return" and not at_return:
            self.probes[probe] = program, file, tuple(places), pid
        return probe

    def remove(self, probe: Probe) -> None:
        self.removed.append(probe)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Nobody writes the line that its answers wait for: the server is silent."""
    command = [sys.executable, "-m", "tests.live.servers.threads"]
    with subprocess.Popen(command, **PIPES) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())[1]
        server.kill()


@contextlib.contextmanager
def waiting(
    port: int, function: str, *libraries: Path, preload: str = ""
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Run a client until it waits inside a read; give its pid and what it reads with."""
    command = [sys.executable, "-m", "tests.live.clients.waiting", str(port), function, *map(str, libraries)]
    with subprocess.Popen(command, **{**PIPES, "env": environment(LD_PRELOAD=preload)}) as client:
        assert client.stdout is not None
        told = json.loads(client.stdout.readline())
        wchan = Path(f"/proc/{client.pid}/wchan")
        until(lambda: wchan.read_text() == "wait_woken", "the client waits")
        yield client.pid, (told[0], told[1], told[2])
        client.kill()


def awaited_in(pid: int) -> tuple[Libraries, dict[tuple[int, int], tuple[Awaited, ...]]]:
    """Return the functions that calls are looked for of, as the probes' plans have them."""
    known = Libraries()
    probes = TlsProbes(cast("Kernel", Recorded()), known)
    found = {(s.where.device, s.where.inode): probes._plan(s).awaited for s in known.stacks(pid)}
    return known, found


def call_of(pid: int) -> Call | None:
    known, awaited = awaited_in(pid)
    with Stacks(pid, known.code(pid), awaited) as stacks:
        seen = stacks.seen(pid)
        assert seen is not None
        call = stacks.call(seen)
        assert call is None or stacks.stays(call)
        return call


def bundles() -> list[tuple[Path, Path]]:
    """Return (libssl, libcrypto) of the wheels that are installed here."""
    found = [path for entry in sys.path for path in Path(entry).glob("*.libs/libssl*.so*")]
    return [(path, next(path.parent.glob("libcrypto*.so*"))) for path in found]


@pytest.mark.parametrize("function", READS)
def test_the_arguments_of_a_read_that_waits_are_found(port: int, function: str) -> None:
    with waiting(port, function) as (pid, told):
        call = call_of(pid)
    assert call is not None
    assert (call.handle, call.buffer) == told[:2]
    assert not call.replaced
    if function == "SSL_read_ex":
        assert call.counter == told[2]
    elif function.startswith("gnutls"):
        assert call.counter == 0


def test_the_arguments_of_a_write_that_waits_are_found(port: int) -> None:
    """OpenSSL jumps through two pointers, which puts the buffer and the count into other registers."""
    with waiting(port, "SSL_write") as (pid, told):
        call = call_of(pid)
    assert call is not None
    assert (call.handle, call.buffer, call.awaited.kind) == (*told[:2], 2)


def test_a_write_that_is_not_understood_is_left_alone(port: int) -> None:
    """GnuTLS's: its arguments are found right, or not at all."""
    with waiting(port, "gnutls_record_send") as (pid, told):
        call = call_of(pid)
    assert call is None or (call.handle, call.buffer) == told[:2]


@pytest.mark.parametrize("function", READS[:2])
@pytest.mark.parametrize("libraries", bundles(), ids=lambda pair: pair[0].name)
def test_the_arguments_are_found_in_wheels_too(port: int, function: str, libraries: tuple[Path, Path]) -> None:
    with waiting(port, function, *libraries) as (pid, told):
        call = call_of(pid)
    assert call is not None
    assert (call.handle, call.buffer) == told[:2]


PLAIN_READ = r"""
#include <stddef.h>
static __attribute__((noinline)) long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
static __attribute__((noinline)) long checked(volatile long result) { return result < 0 ? -1 : result; }
long read(int fd, void *buffer, size_t size)
{
    long saved[5] = {fd, (long)buffer, (long)size, 0, 0};
    __asm__ volatile("" : : "r"(saved) : "memory", "rbx", "r12", "r13", "r14", "r15", "rbp");
    return checked(call(saved[3], saved[0], saved[1], saved[2]));
}
"""


def test_the_arguments_are_found_behind_a_c_library_without_an_unwind_table(port: int, tmp_path: Path) -> None:
    """As musl is; its functions save registers too."""
    library = tmp_path / "read.so"
    flags = ["-O2", "-shared", "-fPIC", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-stack-protector"]
    subprocess.run(["gcc", *flags, "-xc", "-", "-o", str(library)], input=PLAIN_READ, text=True, check=True)
    with waiting(port, "SSL_read_ex", preload=str(library)) as (pid, told):
        call = call_of(pid)
    assert call is not None
    assert (call.handle, call.buffer, call.counter) == told


def test_a_thread_that_is_not_in_a_read_is_in_no_call(port: int) -> None:
    with waiting(port, "SSL_read") as (pid, _):
        known, awaited = awaited_in(pid)
        writes = {file: tuple(one for one in functions if one.kind == 2) for file, functions in awaited.items()}
        with Stacks(pid, known.code(pid), writes) as stacks:
            seen = stacks.seen(pid)
            assert seen is not None
            assert stacks.call(seen) is None


def test_a_stack_that_makes_no_sense_is_no_call(port: int) -> None:
    with waiting(port, "SSL_read") as (pid, _):
        known, awaited = awaited_in(pid)
        with Stacks(pid, known.code(pid), awaited) as stacks:
            seen = stacks.seen(pid)
            assert seen is not None
            for shift in (-64, -8, 1, 8, 64, 4096, -seen.stack, 1 << 63):
                assert stacks.call(seen._replace(stack=seen.stack + shift)) is None
            for shift in (-40, -1, 1, 8, 4096, -seen.instruction):
                call = stacks.call(seen._replace(instruction=seen.instruction + shift))
                assert call is None or not stacks.stays(call)


def test_a_call_is_entered_and_its_probe_goes_when_it_has_returned(port: int) -> None:
    kernel = Recorded()
    with waiting(port, "SSL_read_ex") as (pid, told):
        known, awaited = awaited_in(pid)
        blocked = BlockedCalls(cast("Kernel", kernel), known)
        assert not blocked.under_way()
        assert blocked.attach(pid, awaited) == 1
        assert blocked.under_way()
        assert procfs.threads(pid) == (pid,)
        ((name, key), value) = kernel.maps.copy().popitem()
        assert (name, key, len(value)) == ("threads", struct.pack("=Q", pid << 32 | pid), THREADS_VALUE)
        depth, handle, buffer, counter, slot, conn, at, _, kind = struct.unpack_from("=I4xQQQQQQII", value)
        assert (depth, handle, buffer, counter, conn, at, kind) == (1, *told, 0, 0, 1)
        assert slot % 8 == 0
        (probe,) = kernel.probes
        assert kernel.probes[probe][0] == "on_tls_return"
        assert kernel.probes[probe][3] == pid
        assert "libssl" in kernel.probes[probe][1]
        blocked.review()
        assert kernel.removed == []
        assert blocked.attach(pid, awaited) == 0  # the entry is the program's now
        kernel.maps[name, key] = struct.pack("=I", 0) + value[4:]  # as on_tls_return leaves it
        assert not blocked.under_way()
        blocked.review()
        assert kernel.removed == [probe]


def test_the_probes_of_a_process_that_has_ended_are_taken_away(port: int) -> None:
    kernel = Recorded()
    with waiting(port, "gnutls_record_recv") as (pid, _):
        known, awaited = awaited_in(pid)
        blocked = BlockedCalls(cast("Kernel", kernel), known)
        assert blocked.attach(pid, awaited) == 1
    assert not blocked.under_way()
    blocked.forget(pid)
    assert kernel.removed == list(kernel.probes)
    assert blocked.attach(pid, awaited) == 0
