"""Each TLS library is probed where it was planned, in the process asked for, and what cannot be is told.

The libraries are this machine's, in a process of the tests' own; the kernel is a fake that keeps what it is given.
"""

from __future__ import annotations

import errno
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest

from apitrace.probes import libraries, tls
from apitrace.probes.elf import Elf
from apitrace.probes.golang import GoFunction, GoSite, GoTls
from apitrace.probes.layout import Path as Way
from apitrace.probes.layout import ssl_layout
from apitrace.probes.libraries import Libraries, MappedCode, MappedFile, Stack
from apitrace.probes.loader import source_directory
from apitrace.probes.placement import Kind, Location, Placement, Result, plan_gnutls, plan_openssl
from apitrace.probes.tls import Found, TlsProbes
from apitrace.probes.uprobes import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apitrace.probes.kernel import Kernel

POINT = struct.Struct("=4I 8i 16i 4Q")
"""struct point: head, four locations, four paths, and the tail."""
LAYOUT = """
#include <stddef.h>
#include <stdio.h>
#include <linux/types.h>
#include "apitrace.h"
#define SHOW(m) printf("%s %zu\\n", #m, offsetof(struct point, m));
int main(void) {
    SHOW(kind) SHOW(stack) SHOW(counted) SHOW(restarts) SHOW(handle) SHOW(buffer) SHOW(length) SHOW(counter)
    SHOW(random) SHOW(alpn) SHOW(alpn_len) SHOW(shutdown) SHOW(address) SHOW(tables) SHOW(hits)
    printf("size %zu\\nlocation %zu\\npath %zu\\n", sizeof(struct point), sizeof(struct location), sizeof(struct path));
    printf("kinds %d%d%d%d%d%d\\n",
        POINT_READ, POINT_WRITE, POINT_HANDSHAKE, POINT_FREE, POINT_BIO_WRITE, POINT_LOADER);
    printf("no_register %d\\nin_register %d\\nno_path %u\\n", NO_REGISTER, IN_REGISTER, NO_PATH);
    return 0;
}
"""


class Row(NamedTuple):
    """A row of the programs' table, decoded."""

    kind: int
    stack: int
    counted: int
    restarts: int
    locations: tuple[Location | None, ...]
    paths: tuple[Way | None, ...]
    address: int
    tables: tuple[int, int]
    hits: int


REGISTERS = {offset: name for name, offset in tls._REGISTERS["x86_64"].items()}


def decoded(raw: bytes) -> Row:
    values = POINT.unpack(raw)
    locations = [values[at : at + 2] for at in range(4, 12, 2)]
    paths = [values[at : at + 4] for at in range(12, 28, 4)]
    return Row(
        *values[:4],
        tuple(
            None if register == 0xFFFF else Location(REGISTERS[register], None if at == 0x7FFFFFFF else at)
            for register, at in locations
        ),
        tuple(None if steps == -1 else Way((first, second)[:steps], last) for steps, first, second, last in paths),
        values[28], values[29:31], values[31],
    )  # fmt: skip


class Placed(NamedTuple):
    """A call of Kernel.probe."""

    program: str
    file: str
    places: tuple[tuple[int, int], ...]
    pid: int
    at_return: bool


class Fake:
    """A kernel that keeps what it is given. `refuses` says which probes it does not place."""

    def __init__(self, refuses: Callable[[Placed], bool] = lambda _: False) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {"points": {}, "targets": {}}
        self.probes: dict[Probe, Placed] = {}
        self.asked: list[Placed] = []
        self.refuses = refuses

    def probe(
        self, program: str, file: str, places: Sequence[tuple[int, int]], *, pid: int, at_return: bool = False
    ) -> Probe:
        placed = Placed(program, file, tuple(places), pid, at_return)
        self.asked.append(placed)
        if self.refuses(placed):
            raise OSError(errno.EINVAL, "")
        probe = Probe(len(self.asked))
        self.probes[probe] = placed
        return probe

    def remove(self, probe: Probe) -> None:
        self.probes.pop(probe, None)

    def update(self, name: str, key: bytes, value: bytes) -> bool:
        self.tables[name][key] = value
        return True

    def lookup(self, name: str, key: bytes, size: int) -> bytes | None:
        value = self.tables[name].get(key)
        assert value is None or len(value) == size
        return value

    def row(self, point: int) -> Row:
        return decoded(self.tables["points"][struct.pack("=I", point)])

    @property
    def in_place(self) -> list[Placed]:
        return list(self.probes.values())

    def offsets(self, program: str) -> set[int]:
        return {offset for placed in self.in_place if placed.program == program for offset, _ in placed.places}


class Known(NamedTuple):
    """Libraries of one process, as told."""

    stacks_of: dict[int, list[Stack]]

    def mapped(self, pid: int) -> list[MappedFile]:
        return [stack.where for stack in self.stacks_of.get(pid, [])]

    def stacks(self, pid: int, files: list[MappedFile] | None = None) -> list[Stack]:
        return self.stacks_of.get(pid, [])

    def code(self, pid: int) -> list[MappedCode]:
        return []


def probes(kernel: Fake, known: object = None, *, everything: bool = False) -> TlsProbes:
    return TlsProbes(
        cast("Kernel", kernel), cast("Libraries", known or Libraries()), everything=everything
    )


class Growing(Libraries):
    """Libraries of a process that goes on: it has but its loader mapped when it is first looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def mapped(self, pid: int) -> list[MappedFile]:
        self.looks += 1
        everything = super().mapped(pid)
        return [each for each in everything if "/ld-" in each.path] if self.looks == 1 else everything


PROGRAM = """
import ctypes, ssl, sys
try:
    ctypes.CDLL("libgnutls.so.30")
except OSError:
    pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def pids() -> Iterator[tuple[int, int]]:
    """Two processes with OpenSSL, and GnuTLS where there is one."""
    made = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for each in made:
        assert each.stdout is not None
        assert each.stdout.readline() == b"ready\n"
    yield made[0].pid, made[1].pid
    for each in made:
        each.kill()
        each.communicate()


@pytest.fixture
def openssl(pids: tuple[int, int]) -> Stack:
    return next(stack for stack in Libraries().stacks(pids[0]) if stack.kind == libraries.OPENSSL)


@pytest.fixture
def gnutls(pids: tuple[int, int]) -> Stack:
    found = [stack for stack in Libraries().stacks(pids[0]) if stack.kind == libraries.GNUTLS]
    return found[0] if found else pytest.skip("there is no GnuTLS on this machine")


# -- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_is_laid_out_as_the_c_compiler_does(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: the layouts cannot be compared"
    (tmp_path / "layout.c").write_text(LAYOUT)
    built = tmp_path / "layout"
    subprocess.run([compiler, "-I", str(source_directory()), "-o", str(built), str(tmp_path / "layout.c")], check=True)
    out = subprocess.run([str(built)], check=True, capture_output=True, text=True).stdout
    assert dict(line.split() for line in out.splitlines()) == {
        "kind": "0", "stack": "4", "counted": "8", "restarts": "12",
        "handle": "16", "buffer": "24", "length": "32", "counter": "40",
        "random": "48", "alpn": "64", "alpn_len": "80", "shutdown": "96",
        "address": "112", "tables": "120", "hits": "136",
        "size": str(tls._POINT_SIZE), "location": str(tls._LOCATION.size), "path": str(tls._PATH.size),
        "kinds": "".join(map(str, (*(tls._KINDS[kind] for kind in Kind), tls._LOADER))),
        "no_register": str(tls._NO_REGISTER), "in_register": str(tls._IN_REGISTER), "no_path": str(tls._NO_PATH),
    }  # fmt: skip
    assert POINT.size == tls._POINT_SIZE


def test_registers_lie_where_the_kernel_puts_them() -> None:
    """As in struct pt_regs of x86-64: arch/x86/include/asm/ptrace.h."""
    header = (source_directory() / "arch_x86_64.h").read_text()
    names = header[header.index("struct registers") : header.index("}", header.index("struct registers"))]
    words = names.replace(";", ",").replace("\n", " ").split("{")[1].split(",")
    declared = [word.split()[-1] for word in words if word.split()]
    assert [tls._REGISTERS["x86_64"][name] for name in tls._X86_REGISTERS] == [8 * n for n in range(len(declared))]


def test_each_row_of_openssl_says_what_was_planned(pids: tuple[int, int], openssl: Stack) -> None:
    kernel = Fake()
    found = probes(kernel).look(pids[0])
    assert found is not None
    with Elf.open(openssl.where.file) as elf:
        points, layout = plan_openssl(elf), ssl_layout(elf)
    assert openssl.bio is not None
    with Elf.open(openssl.bio.file) as elf:
        points += [point for point in plan_openssl(elf) if point.kind is Kind.BIO_WRITE]
    rows = {row.address: row for row in map(decoded, kernel.tables["points"].values())}
    paths = (layout.client_random, layout.alpn, *(f and f.path for f in (layout.alpn_len, layout.shutdown)))
    assert None not in paths
    for point in points:
        counter = point.count_pointer if point.result is Result.POINTED else None
        row = rows[point.entry.address]
        assert row._replace(paths=()) == Row(
            list(Kind).index(point.kind) + 1, point.entry.stack, 0, 0,
            (point.handle, point.buffer, point.length, counter), (), point.entry.address, (0, 0), 0,
        )  # fmt: skip
        if point.kind is not Kind.BIO_WRITE:
            assert row.paths == paths
    assert {point.kind for point in points} == set(Kind)


def test_each_function_is_probed_at_its_entry_and_return_with_its_row_as_the_cookie(
    pids: tuple[int, int], openssl: Stack
) -> None:
    kernel = Fake()
    probes(kernel).look(pids[0], fresh=True)
    with Elf.open(openssl.where.file) as elf:
        points = {point.entry.address: point for point in plan_openssl(elf) if point.kind is not Kind.BIO_WRITE}
    seen = set()
    for placed in kernel.in_place:
        if placed.file != openssl.where.file:
            continue
        assert placed.pid == pids[0]
        for offset, cookie in placed.places:
            point = points[kernel.row(cookie).address]
            place = point.returns if placed.at_return else point.entry
            assert place is not None
            assert offset == place.offset
            expected = "on_tls_free" if point.kind is Kind.FREE else "on_tls_entry"
            assert placed.program == ("on_tls_return" if placed.at_return else expected)
            seen.add((point.entry.address, placed.at_return))
    assert seen == {(address, False) for address in points} | {
        (address, True) for address, point in points.items() if point.returns is not None
    }


def test_return_probes_are_placed_before_entries(pids: tuple[int, int], openssl: Stack) -> None:
    kernel = Fake()
    probes(kernel).look(pids[0], fresh=True)
    order = [placed.at_return for placed in kernel.asked if placed.file == openssl.where.file]
    assert order == sorted(order, reverse=True)
    assert set(order) == {True, False}


def test_the_dynamic_loader_is_probed_so_that_a_library_mapped_later_is_found(pids: tuple[int, int]) -> None:
    kernel = Fake()
    probes(kernel).look(pids[0], fresh=True)
    [loader] = [placed for placed in kernel.in_place if placed.program == "on_loader"]
    [(_, cookie)] = loader.places
    row = kernel.row(cookie)
    assert (row.kind, row.locations, loader.at_return) == (6, (None,) * 4, False)
    assert "ld-linux" in loader.file
    assert row.tables[0] > 0  # r_debug.r_state


def test_gnutls_is_probed_beside_openssl(pids: tuple[int, int], gnutls: Stack, openssl: Stack) -> None:
    kernel = Fake()
    found = probes(kernel).look(pids[0], fresh=True)
    assert found is not None
    with Elf.open(gnutls.where.file) as elf:
        points = plan_gnutls(elf)
    own = [placed for placed in kernel.in_place if placed.file == gnutls.where.file]
    entries = {offset for placed in own if not placed.at_return for offset, _ in placed.places}
    assert entries == {point.entry.offset for point in points}
    for placed in own:
        for _, cookie in placed.places:
            assert kernel.row(cookie).paths == (None,) * 4
            assert found.libraries[cookie] == f"GnuTLS {gnutls.version}"
    assert set(found.libraries.values()) == {f"GnuTLS {gnutls.version}", f"OpenSSL {openssl.version}"}
    assert (found.unreadable, found.probed) == ((), True)


def place(address: int, *arguments: Location) -> Placement:
    return Placement(address, address - 0x1000, 0, "push rbp", True, False, 0, arguments, "")


def test_rows_of_go_say_what_is_known_at_the_call_and_what_behind_it() -> None:
    kernel = Fake()
    conn, buffer, length, moved = Location("rax"), Location("rbx"), Location("rsp", 24), Location("rcx")
    known = GoSite(Kind.WRITE, place(0x5000), conn, buffer, length, None, None)
    later = GoSite(Kind.READ, place(0x6000), conn, buffer, length, place(0x6010), moved)
    plain = GoFunction(Kind.READ, "Read", 0x7000, 99, (), place(0x7000, conn, buffer, length), True, (place(0x7050),))
    functions = (
        GoFunction(Kind.WRITE, "Write", 0x5000, 99, (known,), place(0x5000), False, ()),
        GoFunction(Kind.READ, "Read", 0x6000, 99, (later,), place(0x6000), False, ()),
        plain,
    )
    hooks = list(probes(kernel)._go_hooks(GoTls("go1.19.8", functions, (0x9000,), "")))
    assert [(hook.program, hook.place.offset, hook.at_return) for hook in hooks] == [
        ("on_go_call", 0x4000, False), ("on_go_call", 0x5000, False), ("on_go_return", 0x5010, False),
        ("on_go_call", 0x6000, False), ("on_go_return", 0x6050, False),
    ]  # fmt: skip
    arguments = (conn, buffer, length, None)
    none = (None,) * 4
    tables = (0x9000, 0)
    assert [kernel.row(hook.point) for hook in hooks] == [
        Row(2, 0, 0, 0, arguments, none, 0x5000, tables, 0),
        Row(1, 0, 1, 0, arguments, none, 0x6000, tables, 0),
        Row(1, 0, 0, 0, (None, None, moved, None), none, 0x6010, tables, 0),
        Row(1, 0, 1, 1, arguments, none, 0x7000, tables, 0),
        Row(1, 0, 0, 0, (None, None, Location("rax"), None), none, 0x7050, tables, 0),
    ]


@pytest.mark.parametrize(
    ("way", "row"),
    [
        (None, (0xFFFFFFFF, 0, 0, 0)),
        (Way((), 8), (0, 0, 0, 8)),
        (Way((16,), -8), (1, 16, 0, -8)),
        (Way((16, 24), 0), (2, 16, 24, 0)),
        (Way((16, 24, 32), 0), (0xFFFFFFFF, 0, 0, 0)),
    ],
)
def test_a_path_of_more_pointers_than_the_programs_follow_is_not_known(
    way: Way | None, row: tuple[int, int, int, int]
) -> None:
    assert struct.unpack("=Iiii", tls._path(way)) == row


# -- processes -------------------------------------------------------------------------------------------------------


def test_a_second_look_places_and_tells_nothing(pids: tuple[int, int]) -> None:
    kernel = Fake()
    one = probes(kernel)
    assert one.look(pids[0], fresh=True) is not None
    asked = len(kernel.asked)
    assert one.look(pids[0]) is None
    assert len(kernel.asked) == asked


def test_a_second_process_shares_the_rows_and_is_probed_for_itself(pids: tuple[int, int]) -> None:
    kernel = Fake()
    one = probes(kernel)
    first, rows = one.look(pids[0], fresh=True), len(kernel.tables["points"])
    asked = len(kernel.asked)
    assert one.look(pids[1], fresh=True) == first
    assert len(kernel.tables["points"]) == rows
    assert [placed._replace(pid=pids[0], file="") for placed in kernel.asked[asked:]] == [
        placed._replace(file="") for placed in kernel.asked[:asked]
    ]
    assert {placed.pid for placed in kernel.asked[asked:]} == {pids[1]}


def test_where_every_process_is_a_target_a_file_is_probed_once_for_all(pids: tuple[int, int]) -> None:
    kernel = Fake()
    kernel.tables["targets"][struct.pack("=I", pids[0])] = b"\1"
    one = probes(kernel, everything=True)
    first = one.look(pids[0])
    asked = len(kernel.asked)
    assert one.look(pids[1]) == first
    assert len(kernel.asked) == asked
    assert {placed.pid for placed in kernel.asked} == {-1}
    assert kernel.offsets("on_bio_write") == set()
    assert kernel.tables["targets"] == {struct.pack("=I", pids[0]): b"\1"}


@pytest.mark.parametrize("flags", [1, 2, 3, 7])
def test_a_target_with_probes_is_marked_and_keeps_what_else_it_is(pids: tuple[int, int], flags: int) -> None:
    kernel = Fake()
    kernel.tables["targets"][struct.pack("=I", pids[0])] = bytes([flags])
    one = probes(kernel)
    one.look(pids[0])
    one.look(pids[1])  # is no target any more
    assert kernel.tables["targets"] == {struct.pack("=I", pids[0]): bytes([flags | 4])}


def test_a_process_that_is_forgotten_loses_its_probes_and_no_other_does(pids: tuple[int, int]) -> None:
    kernel = Fake()
    one = probes(kernel)
    first = one.look(pids[0])
    one.look(pids[1], fresh=True)
    one.forget(pids[0])
    assert {placed.pid for placed in kernel.in_place} == {pids[1]}
    assert not one.is_fresh(pids[0])
    assert not one.watches_bio(pids[0])
    assert one.status(pids[0]) == []
    one.forget(pids[0])  # a second time is nothing
    again = one.look(pids[0], fresh=True)
    assert again == first
    assert one.is_fresh(pids[0])


def test_a_process_that_is_gone_has_nothing_to_probe() -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    kernel = Fake()
    reason = "it had ended before it could be looked at"
    assert probes(kernel).look(child.pid) == Found({}, (reason,), probed=False)
    assert kernel.asked == []


# -- BIO_write -------------------------------------------------------------------------------------------------------


def test_bio_write_is_probed_only_in_a_process_that_was_there_before(pids: tuple[int, int], openssl: Stack) -> None:
    kernel = Fake()
    one = probes(kernel)
    one.look(pids[0], fresh=True)
    assert (one.watches_bio(pids[0]), kernel.offsets("on_bio_write")) == (False, set())
    one.look(pids[1])
    assert one.watches_bio(pids[1])
    assert openssl.bio is not None
    with Elf.open(openssl.bio.file) as elf:
        [point] = [point for point in plan_openssl(elf) if point.kind is Kind.BIO_WRITE]
    assert kernel.offsets("on_bio_write") == {point.entry.offset}
    assert {placed.pid for placed in kernel.in_place if placed.program == "on_bio_write"} == {pids[1]}


def test_bio_write_may_be_left_and_watched_again(pids: tuple[int, int]) -> None:
    kernel = Fake()
    one = probes(kernel)
    one.look(pids[0])
    others = {placed for placed in kernel.in_place if placed.program != "on_bio_write"}
    for _ in range(2):
        one.leave_bio(pids[0])
        assert (one.watches_bio(pids[0]), set(kernel.in_place)) == (False, others)
        one.watch_bio(pids[0])
        assert one.watches_bio(pids[0])
        assert len(kernel.offsets("on_bio_write")) == 1
    one.watch_bio(pids[0])  # it is watched
    one.watch_bio(pids[1])  # not looked at
    assert len([placed for placed in kernel.in_place if placed.program == "on_bio_write"]) == 1


# -- what cannot be probed -------------------------------------------------------------------------------------------


def test_a_library_that_the_kernel_refuses_does_not_stop_the_rest(
    pids: tuple[int, int], openssl: Stack, gnutls: Stack
) -> None:
    kernel = Fake(lambda placed: placed.file == openssl.where.file)
    one = probes(kernel)
    found = one.look(pids[0], fresh=True)
    assert found is not None
    assert (found.unreadable, found.probed) == ((f"OpenSSL {openssl.version}: invalid argument",), True)
    assert any(placed.file == gnutls.where.file for placed in kernel.in_place)
    status = {stack.library: hooks for stack, _, hooks in one.status(pids[0])}
    assert {(placed.probe, placed.why) for placed in status["OpenSSL"]} == {(None, "invalid argument")}
    assert all(placed.probe is not None and placed.why == "" for placed in status["GnuTLS"])


def test_where_nothing_can_be_placed_the_process_is_not_marked(pids: tuple[int, int]) -> None:
    kernel = Fake(lambda _: True)
    kernel.tables["targets"][struct.pack("=I", pids[0])] = b"\1"
    found = probes(kernel).look(pids[0])
    assert found is not None
    assert found.probed is False
    assert found.unreadable
    assert kernel.tables["targets"] == {struct.pack("=I", pids[0]): b"\1"}


def test_one_place_that_is_refused_costs_that_place_alone(pids: tuple[int, int], openssl: Stack) -> None:
    with Elf.open(openssl.where.file) as elf:
        bad = next(point for point in plan_openssl(elf) if point.kind is Kind.HANDSHAKE)
    kernel = Fake(
        lambda placed: placed.file == openssl.where.file and bad.entry.offset in {at for at, _ in placed.places}
    )
    one = probes(kernel)
    found = one.look(pids[0], fresh=True)
    assert found is not None
    assert (found.unreadable, found.probed) == ((), True)
    [hooks] = [hooks for stack, _, hooks in one.status(pids[0]) if stack.where == openssl.where]
    refused = {placed.hook.function for placed in hooks if placed.probe is None}
    assert refused == {bad.function}
    own = [placed for placed in kernel.in_place if placed.file == openssl.where.file]
    entries = [placed for placed in own if placed.program == "on_tls_entry"]
    assert all(len(placed.places) == 1 for placed in entries)
    assert len(entries) == len([placed for placed in hooks if placed.hook.program == "on_tls_entry"]) - 1
    one.forget(pids[0])
    assert kernel.in_place == []


def test_a_table_of_points_that_is_full_stops_what_comes_after_it_and_says_so(
    pids: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "POINTS_LIMIT", 3)
    kernel = Fake()
    found = probes(kernel).look(pids[0], fresh=True)
    assert found is not None
    assert found.probed is False
    assert all(reason.endswith(": more than 3 probe points") for reason in found.unreadable)
    assert len(kernel.tables["points"]) == 3


def stack(kind: str, library: str, file: Path, *, reason: str = "", version: str | None = None) -> Stack:
    where = MappedFile(str(file), str(file), 1, hash(str(file)) & 0xFFFF)
    return Stack(kind, library, version, where, None, libraries.SHARED, None, reason)


def test_tls_that_cannot_be_read_is_told_with_its_reason_and_costs_no_row(tmp_path: Path) -> None:
    (tmp_path / "not-elf").write_bytes(b"#!/bin/sh\n")
    known = Known({5: [
        stack(libraries.OTHER, "JSSE", tmp_path / "libjvm.so", reason="not readable", version="17"),
        stack(libraries.OPENSSL, "OpenSSL", tmp_path / "not-elf"),
        stack(libraries.GNUTLS, "GnuTLS", tmp_path / "gone", version="3.7.9"),
        stack(libraries.GO, "crypto/tls", Path("/bin/true")),
        stack(libraries.OTHER, "JSSE", tmp_path / "libjvm.so", reason="not readable", version="17"),
    ]})  # fmt: skip
    kernel = Fake()
    found = probes(kernel, known).look(5)
    assert found is not None
    assert (found.libraries, found.probed) == ({}, False)
    reasons = dict(reason.split(": ", 1) for reason in found.unreadable)
    assert list(reasons) == ["JSSE 17", "OpenSSL", "GnuTLS 3.7.9", "crypto/tls"]
    assert reasons["JSSE 17"] == "not readable"
    assert reasons["crypto/tls"] == "no crypto/tls in it"
    assert reasons["GnuTLS 3.7.9"] == "no such file or directory"
    assert (kernel.asked, kernel.tables["points"]) == ([], {})


def test_a_file_that_could_not_be_opened_through_one_process_is_planned_through_the_next(openssl: Stack) -> None:
    """A short-lived process has ended by the time that its library is opened."""
    gone = openssl._replace(where=openssl.where._replace(file="/proc/4194305/root/libssl.so.3"), bio=None)
    kernel = Fake()
    one = probes(kernel, Known({5: [gone], 6: [openssl]}))
    first, second = one.look(5), one.look(6)
    assert first == Found({}, (f"OpenSSL {openssl.version}: no such file or directory",), probed=False)
    assert second is not None
    assert (second.unreadable, second.probed) == ((), True)


def test_how_often_a_point_was_hit_is_read_from_its_row(pids: tuple[int, int]) -> None:
    kernel = Fake()
    one = probes(kernel)
    one.look(pids[0], fresh=True)
    key = struct.pack("=I", 1)
    kernel.tables["points"][key] = kernel.tables["points"][key][:-8] + struct.pack("=Q", 4711)
    assert (one.hits(0), one.hits(1), one.hits(tls.POINTS_LIMIT - 1)) == (0, 4711, 0)


def test_a_library_that_is_mapped_while_the_loader_is_probed_is_found_at_once(pids: tuple[int, int]) -> None:
    """The loader told nobody of it: its hook came later."""
    kernel, known = Fake(), Growing()
    found = probes(kernel, known).look(pids[0])
    assert found is not None
    assert found.probed
    assert kernel.offsets("on_tls_entry")


def test_a_library_that_is_mapped_later_is_probed_then(openssl: Stack) -> None:
    known: dict[int, list[Stack]] = {5: [stack(libraries.OTHER, "JSSE", Path("libjvm.so"), reason="not readable")]}
    kernel = Fake()
    one = probes(kernel, Known(known))
    assert one.look(5, fresh=True) == Found({}, ("JSSE: not readable",), probed=False)
    known[5].append(openssl)
    found = one.look(5)
    assert found is not None
    assert (found.probed, set(found.libraries.values())) == (True, {f"OpenSSL {openssl.version}"})
    assert one.is_fresh(5)
