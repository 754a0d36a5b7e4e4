"""ELF files, against binutils' reading of the same files, and against files that are not what they should be."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.probes.elf import EM_X86_64, Elf, ElfError, Symbol

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
LIBSSL, LIBCRYPTO, LIBGNUTLS = (LIBRARIES / name for name in ("libssl.so.3", "libcrypto.so.3", "libgnutls.so.30"))
NODE, GO = Path(shutil.which("node") or "node"), Path(shutil.which("go") or "go").resolve()
Build = Callable[..., Path]
NAMES = (
    "SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_do_handshake", "SSL_free", "BIO_write",
    "gnutls_record_recv", "gnutls_record_send", "ssl_read_internal", "main", "crypto/tls.(*Conn).Read",
)  # fmt: skip

SOURCE = r"""
static int counter = 7;
int *pointer = &counter;
__attribute__((noinline)) static int hidden(int value) { return value * counter; }
__attribute__((noinline)) int my_SSL_read(int value) { return hidden(value) + 1; }
__attribute__((noinline)) int SSL_read(int value) { return my_SSL_read(value) * 2; }
int main(int argc, char **argv) { return SSL_read(argc); }
"""


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory = tmp_path_factory.mktemp("elf")
    (directory / "source.c").write_text(SOURCE)

    def compiled(name: str, *flags: str) -> Path:
        target = directory / name
        if not target.exists():
            run("gcc", "-O1", *flags, "-o", target, directory / "source.c")
        return target

    return compiled


def by_nm(path: Path, *flags: str) -> dict[str, tuple[int, int]]:
    found = {}
    for line in run("nm", "--defined-only", "-S", *flags, path).splitlines():
        match = re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) [TtWwiVvDdRrBb] (\S.*)", line)
        if match:
            found.setdefault(match[3].split("@")[0], (int(match[1], 16), int(match[2], 16)))
    return found


@pytest.mark.parametrize("path", [LIBSSL, LIBCRYPTO, LIBGNUTLS, NODE], ids=lambda path: path.name)
def test_exported_symbols_are_those_that_nm_lists(path: Path) -> None:
    expected = {name: value for name, value in by_nm(path, "-D").items() if name in NAMES}
    with Elf.open(path) as elf:
        found = elf.symbols(NAMES)
    assert expected
    assert {name: (s.address, s.size) for name, s in found.items() if s.exported} == expected


def test_symbols_of_a_go_program_are_those_that_nm_lists() -> None:
    with Elf.open(GO) as elf:
        found = elf.symbols(["crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write"])
    listed = re.findall(r"^ *([0-9a-f]+) +(\d+) T (crypto/tls\.\(\*Conn\)\.(?:Read|Write))$",
                        run(GO, "tool", "nm", "-size", GO), re.MULTILINE)  # fmt: skip
    assert {(s.name, s.address, s.size) for s in found.values()} == {(n, int(a, 16), int(z)) for a, z, n in listed}


def test_a_dozen_names_in_node_take_well_under_a_second() -> None:
    start = time.perf_counter()
    with Elf.open(NODE) as elf:
        assert len(elf.symbols(NAMES)) >= 7
    assert time.perf_counter() - start < 0.5


def test_a_name_stored_inside_a_longer_one_is_found(build: Build) -> None:
    # Linkers keep "SSL_read" as the end of "my_SSL_read".
    path = build("plain")
    with Elf.open(path) as elf:
        address, size = by_nm(path)["SSL_read"]
        assert elf.symbols(["SSL_read"]) == {"SSL_read": Symbol("SSL_read", address, size, exported=False)}


def test_what_a_file_only_imports_is_not_a_symbol_of_it() -> None:
    module = next(Path("/usr/lib/python3.11/lib-dynload").glob("_ssl*.so"))
    with Elf.open(module) as elf:
        assert "SSL_read_ex" in run("nm", "-D", "--undefined-only", module)
        assert elf.symbols(["SSL_read_ex", "PyInit__ssl"]).keys() == {"PyInit__ssl"}
        assert "libssl.so.3" in elf.needed()


def test_stripping_removes_local_symbols_but_not_where_functions_begin(build: Build) -> None:
    path = build("library.so", "-shared", "-fPIC")
    hidden = by_nm(path)["hidden"][0]
    stripped = build("stripped.so", "-shared", "-fPIC", "-s")
    with Elf.open(path) as elf, Elf.open(stripped) as bare:
        assert elf.symbols(["hidden"])["hidden"].exported is False
        assert bare.symbols(["hidden", "SSL_read"]).keys() == {"SSL_read"}
        start, end = bare.bounds(hidden + 2)
        assert start == hidden
        assert end == bare.symbols(["my_SSL_read"])["my_SSL_read"].address


@pytest.mark.parametrize("path", [LIBSSL, LIBGNUTLS], ids=lambda path: path.name)
def test_function_starts_are_those_of_the_unwind_table(path: Path) -> None:
    listed = {int(start, 16) for start in re.findall(r" FDE .*pc=([0-9a-f]+)\.\.", run("readelf", "-wf", path))}
    with Elf.open(path) as elf:
        assert elf.function_starts == sorted(listed)


def test_without_an_unwind_table_functions_begin_where_symbols_say(build: Build) -> None:
    path = build("tableless.so", "-shared", "-fPIC", "-fno-asynchronous-unwind-tables", "-nostdlib", "-s")
    with Elf.open(path) as elf:
        exported = by_nm(path, "-D")
        assert elf.function_starts == sorted(exported[name][0] for name in ("my_SSL_read", "SSL_read", "main"))
        # The local function is not among them: what is known is only where the next one begins.
        assert elf.next_function(elf.sections[".text"].address) == min(elf.function_starts)


@pytest.mark.parametrize("path", [LIBSSL, NODE, GO], ids=lambda path: path.name)
def test_build_id_and_kind_are_those_that_readelf_says(path: Path) -> None:
    with Elf.open(path) as elf:
        assert re.search(r"Build ID: (\w+)", run("readelf", "-n", path))[1] == elf.build_id
        assert elf.position_independent is ("DYN" in re.search(r"Type: +(\w+)", run("readelf", "-h", path))[1])
        assert elf.machine == EM_X86_64


def test_the_libraries_asked_for_are_those_that_readelf_says() -> None:
    with Elf.open(LIBGNUTLS) as elf:
        assert elf.needed() == re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-dW", LIBGNUTLS))


@pytest.mark.parametrize("path", [LIBSSL, NODE], ids=lambda path: path.name)
def test_an_address_leads_to_the_bytes_that_objdump_shows_there(path: Path) -> None:
    with Elf.open(path) as elf:
        address = elf.symbols(["SSL_write"])["SSL_write"].address
        shown = run("objdump", "-s", f"--start-address={address:#x}", f"--stop-address={address + 16:#x}", path)
        expected = bytes.fromhex("".join(shown.splitlines()[-1].split()[1:5]))
        assert elf.read(address, 16) == expected
        with path.open("rb") as file:
            file.seek(elf.offset_of(address))
            assert file.read(16) == expected
        assert elf.is_code(address)
        assert not elf.is_code(elf.sections[".rodata"].address)
        assert elf.section_at(address).name == ".text"
        assert elf.offset_of(1 << 60) is None
        assert elf.bounds(1 << 60) is None


@pytest.mark.parametrize("flags", [("-pie", "-fPIE"), ("-no-pie",)], ids=["pie", "fixed"])
def test_pointers_are_followed_and_found_before_relocation(build: Build, flags: tuple[str, ...]) -> None:
    path = build("pointer" + flags[0], *flags)
    symbols = by_nm(path)
    with Elf.open(path) as elf:
        assert elf.pointer(symbols["pointer"][0]) == symbols["counter"][0]
        assert elf.pointers_to(symbols["counter"][0]) == [symbols["pointer"][0]]


def test_a_got_entry_has_the_name_that_readelf_says() -> None:
    listed = run("readelf", "-rW", LIBSSL)
    places = dict(re.findall(r"^([0-9a-f]+) .*R_X86_64_JUMP_SLO\w* +\w+ (\w+)", listed, re.MULTILINE))
    with Elf.open(LIBSSL) as elf:
        for place, name in list(places.items())[::50]:
            assert elf.imported(int(place, 16)) == name
        assert elf.imported(0) is None


def test_a_search_finds_what_lies_across_two_reads(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "large"
    mark = b"the needle"
    (tmp_path / "data").write_bytes(b"\0" * ((1 << 22) - 5) + mark + b"\0" * 100)
    run("objcopy", "--add-section", f".large={tmp_path / 'data'}", build("plain"), path)
    with Elf.open(path) as elf:
        assert elf.search(elf.sections[".large"], re.compile(mark).search, 64)[0] == mark
        assert elf.search(elf.sections[".large"], re.compile(b"absent").search, 64) is None


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 10, b"\x7fELF\1\1\1" + b"\0" * 60, b"\x7fELF\2\2\1" + b"\0" * 60]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ElfError):
        Elf.open(tmp_path / "file")


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ElfError):
        Elf.open(tmp_path / "pipe")


def test_a_file_that_is_not_there_raises_what_open_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Elf.open(tmp_path / "none")


def question(path: Path) -> None:
    """Ask everything there is to ask."""
    with Elf.open(path) as elf:
        address = next(iter(elf.symbols(["SSL_read", "hidden"]).values()), Symbol("", 0, 0, exported=False)).address
        assert elf.build_id is None or elf.build_id.isascii()
        elf.needed()
        elf.bounds(address)
        elf.next_function(address)
        elf.pointers_to(address)
        elf.imported(address)
        for section in elf.sections.values():
            elf.search(section, re.compile(b"x").search, 16)
        elf.read(address, 8)
        elf.pointer(address)


def test_a_file_cut_short_anywhere_raises_only_the_one_error(tmp_path: Path, build: Build) -> None:
    whole = build("stripped.so", "-shared", "-fPIC", "-s").read_bytes()
    question(build("stripped.so"))
    for size in range(0, len(whole), 97):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(ElfError):
            question(tmp_path / "cut")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=8))
def test_a_damaged_file_raises_only_the_one_error(
    tmp_path_factory: pytest.TempPathFactory, build: Build, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(build("stripped.so", "-shared", "-fPIC", "-s").read_bytes())
    tables = [struct.unpack_from("<Q", data, 40)[0], 64]  # where damage matters most: section and segment tables
    for at, value in changes:
        start = (at, tables[0] + at % 1600, tables[1] + at % 600)[at % 3] % (len(data) - 8)
        data[start : start + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with contextlib.suppress(ElfError):
        question(path)
