"""Go executables of several versions and ways of linking, built here, against `go tool nm`, objdump and reflection."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from apitrace.probes.elf import Elf, ElfError
from apitrace.probes.golang import (
    CONN_DATA,
    CONN_ITAB,
    NET_FD,
    READ,
    SYSFD,
    WRITE,
    FunctionTable,
    GoTls,
    plan_go,
    version,
)
from apitrace.probes.placement import Kind, Location

GO = Path(shutil.which("go") or "go").resolve()
FETCHES = subprocess.run([GO, "version"], capture_output=True, text=True, check=True).stdout.split()[2] >= "go1.21"
"""From 1.21 on, go fetches the toolchain that it is asked for; an older one builds with itself alone."""
DOCKER = Path(shutil.which("docker") or "docker")

# One that has *net.TCPConn and *net.UnixConn as net.Conn; run, it tells the offsets that the tracer follows.
PROGRAM = """
package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"reflect"
)

func main() {
	if len(os.Args) > 1 {
		raw, _ := net.Dial("tcp", os.Args[1])
		conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		conn.Write([]byte("x"))
		conn.Read(make([]byte, 1))
	}
	field, _ := reflect.TypeOf(tls.Conn{}).FieldByName("conn")
	tcp := reflect.TypeOf(net.TCPConn{}).Field(0)
	unix := reflect.TypeOf(net.UnixConn{}).Field(0)
	fd := tcp.Type.Field(0)
	poll := fd.Type.Elem().Field(0)
	sysfd, _ := poll.Type.FieldByName("Sysfd")
	fmt.Println(field.Offset, field.Type.String(), tcp.Offset, unix.Offset, unix.Type == tcp.Type, fd.Offset,
		fd.Type.String(), poll.Offset, sysfd.Offset, sysfd.Type.Size())
}
"""


class Build(NamedTuple):
    """A way to build it."""

    toolchain: str
    """A version of Go, or "local"."""
    flags: tuple[str, ...] = ()
    cgo: bool = False
    strip: bool = False


STRIPPED, PIE, EXTERNAL = "-ldflags=-s -w", "-buildmode=pie", "-ldflags=-s -w -linkmode=external"
# One of each layout of the function table: absolute addresses (1.17), two magic numbers of offsets from a text start
# that is in the header (1.18, 1.20), and offsets from one that is not (the local version, 1.26).
BUILDS = [
    Build("go1.17.13"),
    Build("go1.17.13", (PIE, STRIPPED)),
    Build("go1.17.13", (PIE, EXTERNAL), cgo=True),
    Build("go1.18.10", (STRIPPED,)),
    Build("go1.20.14"),
    Build("go1.20.14", (PIE, EXTERNAL), cgo=True),
    Build("local"),
    Build("local", (STRIPPED,)),
    Build("local", strip=True),
    Build("local", (PIE, STRIPPED)),
    Build("local", (PIE, EXTERNAL), cgo=True),
    Build("local", ("-gcflags=crypto/tls=-l",)),
    Build("local", ("-gcflags=crypto/tls=-N -l",)),
]
ADDRESS = "(?:0x)?([0-9a-f]+)\\b"
"""As objdump writes one: without 0x where there are symbols."""
CompileGo = Callable[[Build], Path]


def run(*command: object, **environment: str) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    ).stdout


@pytest.fixture(scope="module")
def compile_go(tmp_path_factory: pytest.TempPathFactory) -> CompileGo:
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(PROGRAM)
    (directory / "go.mod").write_text("module program\ngo 1.17\n")

    @functools.cache
    def compiled(build: Build) -> Path:
        if build.toolchain != "local" and not FETCHES:
            pytest.skip("this go is older than 1.21 and cannot fetch other toolchains")
        target = directory / f"program{len(list(directory.iterdir()))}"
        # Neither this machine's nor this user's settings: older versions refuse flags that they do not know.
        environment = {"GOENV": "off", "GOFLAGS": "", "GOTOOLCHAIN": build.toolchain}
        environment["CGO_ENABLED"] = str(int(build.cgo))
        command = ["go", "build", *build.flags, "-o", str(target)]
        subprocess.run(command, cwd=directory, check=True, env={**os.environ, **environment})
        if build.strip:
            run("strip", target)
        return target

    return compiled


def planned(path: Path) -> GoTls:
    with Elf.open(path) as elf:
        plan = plan_go(elf)
    assert plan is not None
    return plan


def by_go_nm(path: Path) -> dict[str, tuple[int, int]]:
    """Return address and size by name."""
    listed = re.findall(r"^ *([0-9a-f]+) +(\d+) [TtRrDd] (.+)$", run("go", "tool", "nm", "-size", path), re.MULTILINE)
    return {name: (int(address, 16), int(size)) for address, size, name in listed}


def disassembled(path: Path, start: int, size: int) -> dict[int, str]:
    window = (f"--start-address={start:#x}", f"--stop-address={start + size:#x}")
    lines = run("objdump", "-d", "--no-show-raw-insn", "-w", *window, path).splitlines()
    return {int(m[1], 16): m[2] for m in (re.fullmatch(r" +([0-9a-f]+):\t(.+)", line) for line in lines) if m}


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_every_build_is_probed_at_the_calls_that_plaintext_passes_through(compile_go: CompileGo, build: Build) -> None:
    plan = planned(compile_go(build))
    if build.toolchain != "local":
        assert plan.version == build.toolchain
    assert plan.reason == ""
    read, write = plan.functions
    assert (read.name, write.name) == (READ, WRITE)
    assert [(site.kind, site.at.cheap) for site in read.sites] == [(Kind.READ, True)]
    assert [(site.kind, site.at.cheap) for site in write.sites] == [(Kind.WRITE, True)] * 2
    assert (read.sites[0].buffer, read.sites[0].length) == (Location("rbx"), Location("rcx"))
    for site in write.sites:
        assert (site.conn, site.buffer, site.length) == (Location("rax"), Location("rcx"), Location("rdi"))
        assert site.after is not None
    optimised = not any("-gcflags" in flag for flag in build.flags)
    if optimised:
        assert read.sites[0].after is None
        assert all(site.after.cheap for site in write.sites)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_every_placement_is_where_objdump_sees_an_instruction_and_no_branch_lands(
    compile_go: CompileGo, build: Build
) -> None:
    path = compile_go(build)
    for function in planned(path).functions:
        code = disassembled(path, function.address, function.size)
        landings = {int(m[1], 16) for text in code.values() if (m := re.match(rf"j\w+ +{ADDRESS}", text))}
        returns = [address for address, text in code.items() if text.split()[0] == "ret"]
        assert [place.address for place in function.returns] == returns
        assert [place.delta for place in function.returns] == [address - function.address for address in returns]
        assert not any(place.cheap for place in function.returns)
        # The entry: the stack check, which nothing but the function's restart can reach.
        entry = function.entry
        assert code[entry.address].startswith("jbe ")
        assert (entry.cheap, entry.conditional, function.restarts) == (True, True, function.address in landings)
        assert not [a for a in landings if function.address < a <= entry.address]
        assert [str(location) for location in entry.arguments] == ["rax", "rbx", "rcx"]
        for site in function.sites:
            assert re.match(rf"call +{ADDRESS}", code[site.at.address])
            assert site.at.address not in landings
            if site.after is not None:
                between = [text for a, text in code.items() if site.at.address < a < site.after.address]
                assert not [text for text in between if re.match(r"call|ret|j", text)]
                assert not [a for a in landings if site.at.address < a <= site.after.address]
                if site.after.cheap:
                    assert re.match(rf"call +{ADDRESS}|j\w+ +{ADDRESS}|nop$|push", code[site.after.address])


def test_the_calls_are_to_the_functions_that_go_nm_names(compile_go: CompileGo) -> None:
    path = compile_go(Build("local"))
    names = {address: name for name, (address, _) in by_go_nm(path).items()}
    read, write = planned(path).functions
    code = disassembled(path, read.address, read.size) | disassembled(path, write.address, write.size)
    called = [names[int(code[site.at.address].split()[1], 16)] for site in (*read.sites, *write.sites)]
    assert called == ["runtime.memmove"] + ["crypto/tls.(*Conn).writeRecordLocked"] * 2


WITH_SYMBOLS = [build for build in BUILDS if "-s -w" not in " ".join(build.flags) and not build.strip]


@pytest.mark.parametrize("build", WITH_SYMBOLS, ids=str)
def test_the_function_table_says_what_go_nm_says(compile_go: CompileGo, build: Build) -> None:
    path = compile_go(build)
    listed = by_go_nm(path)
    names = [READ, WRITE, "runtime.memmove", "main.main", "net.(*TCPConn).Read", "runtime.text", "no.such.function"]
    with Elf.open(path) as elf:
        found = FunctionTable(elf).find(names)
    assert {name: start for name, (start, _) in found.items()} == {n: listed[n][0] for n in names if n in found}
    assert {READ, WRITE, "runtime.memmove", "main.main", "net.(*TCPConn).Read"} == found.keys()
    for name, (start, end) in found.items():  # the end is where the next one starts, padding included
        assert 0 <= end - start - listed[name][1] < 64


@pytest.mark.parametrize("toolchain", ["go1.17.13", "go1.20.14", "local"])
def test_the_interface_tables_are_those_of_tcp_and_unix_connections(compile_go: CompileGo, toolchain: str) -> None:
    path = compile_go(Build(toolchain))
    listed = by_go_nm(path)
    pattern = re.compile(r"go[.:]itab\.\*net\.(TCP|Unix)Conn,net\.Conn")
    expected = [address for name, (address, _) in listed.items() if pattern.fullmatch(name)]
    assert expected
    assert sorted(planned(path).net_conns) == sorted(expected)


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_every_build_has_the_interface_table_of_tcp_connections(compile_go: CompileGo, build: Build) -> None:
    path = compile_go(build)
    with Elf.open(path) as elf:
        methods = {start for start, _ in FunctionTable(elf).find(["net.(*TCPConn).Read"]).values()}
        tables = [[elf.pointer(table + 24 + 8 * index) for index in range(8)] for table in planned(path).net_conns]
    assert [table[2] for table in tables if table[2] in methods]


@pytest.mark.parametrize("stripped", [Build("local", (STRIPPED,)), Build("local", strip=True)], ids=str)
def test_stripping_changes_nothing(compile_go: CompileGo, stripped: Build) -> None:
    whole, bare = planned(compile_go(Build("local"))), planned(compile_go(stripped))
    assert [f.address for f in bare.functions] == [f.address for f in whole.functions]
    assert [f.sites for f in bare.functions] == [f.sites for f in whole.functions]


@pytest.mark.parametrize("toolchain", ["go1.17.13", "go1.18.10", "go1.20.14", "local"])
def test_the_way_from_connection_to_descriptor_is_what_reflection_says(compile_go: CompileGo, toolchain: str) -> None:
    said = run(compile_go(Build(toolchain))).split()
    assert said == [str(CONN_ITAB), "net.Conn", str(NET_FD), "0", "true", "0", "*net.netFD", "0", str(SYSFD), "8"]
    assert CONN_DATA == CONN_ITAB + 8


@pytest.mark.parametrize("path", [GO, DOCKER], ids=lambda path: path.name)
def test_go_programs_of_this_machine_are_probed_cheaply(path: Path) -> None:
    plan = planned(path)
    assert plan.version == re.search(r"go[\d.]+", run("go", "version", path))[0]
    assert [len(function.sites) for function in plan.functions] == [1, 2]
    assert all(s.at.cheap and (s.after is None or s.after.cheap) for f in plan.functions for s in f.sites)
    assert len(plan.net_conns) == 2


def test_other_executables_are_not_go() -> None:
    with Elf.open("/usr/bin/python3") as elf:
        assert (version(elf), plan_go(elf)) == (None, None)
        with pytest.raises(ElfError):
            FunctionTable(elf)


def test_a_go_program_without_tls_has_no_plan(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text('package main\nfunc main() { println("x") }\n')
    run("go", "build", "-o", tmp_path / "program", tmp_path / "main.go", GOFLAGS="", GOENV="off")
    with Elf.open(tmp_path / "program") as elf:
        assert version(elf)
        assert plan_go(elf) is None


def damaged(path: Path, target: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    target.write_bytes(data.replace(old, new))
    return target


def test_a_version_before_arguments_went_into_registers_is_said_to_be_unreadable(
    compile_go: CompileGo, tmp_path: Path
) -> None:
    path = damaged(compile_go(Build("go1.17.13")), tmp_path / "old", b"go1.17.13", b"go1.16.13")
    assert planned(path) == GoTls("go1.16.13", (), (), "Go before 1.17 passes arguments on the stack")


def test_a_function_table_of_a_new_kind_is_said_to_be_unreadable(compile_go: CompileGo, tmp_path: Path) -> None:
    header = b"\xf1\xff\xff\xff\0\0\1\x08"
    path = damaged(compile_go(Build("local")), tmp_path / "new", header, b"\xf2" + header[1:])
    assert planned(path)[1:] == ((), (), "no Go function table that is understood")


def test_a_damaged_function_table_raises_only_the_one_error(compile_go: CompileGo, tmp_path: Path) -> None:
    whole = compile_go(Build("local", (STRIPPED,)))
    data = whole.read_bytes()
    at = data.index(b"\xf1\xff\xff\xff\0\0\1\x08")
    for place in range(8, 72, 8):
        for value in (b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\0" * 7):
            (tmp_path / "damaged").write_bytes(data[: at + place] + value + data[at + place + 8 :])
            with Elf.open(tmp_path / "damaged") as elf:
                plan = plan_go(elf)
                assert plan is None or plan.version
