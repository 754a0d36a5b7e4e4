"""Call frames: every row that readelf tells of this machine's TLS and C libraries is found here too."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.probes.elf import Elf, ElfError
from apitrace.probes.unwind import Row, Unwinder, way_out

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
NAMES = ("libc.so.6", "libssl.so.3", "libcrypto.so.3", "libgnutls.so.30")
_FUNCTION = re.compile(r"\w+ \w+ \w+ FDE cie=\w+ pc=(\w+)\.\.(\w+)")
_ADDRESS = re.compile(r"[0-9a-f]{16}")
_EVERY = 11
"""libcrypto has 72,487 rows: one in eleven takes a second."""


def rows_of(path: Path) -> Iterator[tuple[int, int, str, dict[str, int]]]:
    """Yield (instruction, function, frame address, what is saved where) of each row, as readelf reads them."""
    command = ["readelf", "--debug-dump=frames-interp", "-wN", str(path)]
    columns: list[str] = []
    start = end = 0
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        words = line.split()
        function = _FUNCTION.match(line)
        if function:
            start, end, columns = int(function[1], 16), int(function[2], 16), []
        elif " CIE" in line:
            end = 0
        elif words[:2] == ["LOC", "CFA"]:
            columns = ["rip" if word == "ra" else word for word in words[2:]]
        elif end and columns and _ADDRESS.fullmatch(words[0] if words else "") and int(words[0], 16) < end:
            saved = {name: int(word[1:]) for name, word in zip(columns, words[2:], strict=False) if word[0] == "c"}
            yield int(words[0], 16), start, words[1], saved


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_as_readelf_has_them_or_are_refused(name: str) -> None:
    """Refused are expressions, which readelf shows as the row before them, and nothing else."""
    refused = checked = 0
    with Elf.open(LIBRARIES / name) as elf:
        unwinder = Unwinder(elf)
        for number, (address, start, frame, saved) in enumerate(rows_of(LIBRARIES / name)):
            if number % _EVERY:
                continue
            try:
                row = unwinder.row(address)
            except ElfError:
                refused += 1
                continue
            assert row is not None, hex(address)
            checked += 1
            assert (row.start, f"{row.register}+{row.offset}", dict(row.saved)) == (start, frame, saved), hex(address)
    assert checked > 500
    assert refused <= checked // 100


def test_an_address_in_no_function_has_no_row() -> None:
    with Elf.open(LIBRARIES / "libc.so.6") as elf:
        for address in (0, 1 << 29):
            assert Unwinder(elf).row(address) is None


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("unwind") / "small.so"
    source = "int g(int); int f(int n) { return g(n) + g(n + 1); }"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-xc", "-", "-o", path], input=source, text=True, check=True)
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_table_gives_a_row_or_the_one_error(
    small: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.so"
    path.write_bytes(small)
    with Elf.open(path) as elf:
        address = elf.symbols(["f"])["f"].address
        sections = [elf.sections[name] for name in (".eh_frame", ".eh_frame_hdr")]
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        section = data.draw(st.sampled_from(sections))
        damaged[section.offset + data.draw(st.integers(0, section.size - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with Elf.open(path) as elf:
        try:
            row = Unwinder(elf).row(address + 8)
        except ElfError:
            return
        assert row is None or (row.register and "rip" in row.saved)


LEAVING = {
    "ret": Row(-1, "rsp", 8, {"rip": -8}),
    "pop %rbx; pop %r12; ret": Row(-1, "rsp", 24, {"rbx": -24, "r12": -16, "rip": -8}),
    "add $0x18, %rsp; mov %rax, %rdi; jmp 1f; ud2; 1: cmp $-4096, %rdi; ja 2f; mov %rdi, %rax; ret; 2: ud2":
        Row(-1, "rsp", 32, {"rip": -8}, frozenset({"rdi", "rax"})),
    "mov %eax, %ebp; call *%r12; mov %ebp, %eax; pop %rbp; ret":
        Row(-1, "rsp", 16, {"rbp": -16, "rip": -8}, frozenset({"rax"})),
    "push $1; pop %rbx; ret": Row(-1, "rsp", 8, {"rip": -8}, frozenset({"rbx"})),
    "pop %r13; xor %r13d, %r13d; ret": Row(-1, "rsp", 16, {"rip": -8}, frozenset({"r13"})),
}  # fmt: skip
UNCLEAR = ("leave; ret", "mov %rbp, %rsp; ret", "jmp *%rax", "1: jmp 1b", "ud2", "pop %rsp; ret", "ret $8")


def leave(code: str, path: Path) -> Row:
    text = f".text; .globl f; f: {code}; nop\n" + '.section .note.GNU-stack,"",@progbits\n'
    command = ["gcc", "-shared", "-nostdlib", "-xassembler", "-", "-o", str(path)]
    subprocess.run(command, input=text, text=True, check=True)
    with Elf.open(path) as elf:
        return way_out(elf, elf.symbols(["f"])["f"].address)


@pytest.mark.parametrize("code", LEAVING)
def test_the_way_out_of_simple_code_is_found(code: str, tmp_path: Path) -> None:
    row = leave(code, tmp_path / "f.so")
    assert row._replace(lost=row.lost - {"rflags"}) == LEAVING[code]


@pytest.mark.parametrize("code", UNCLEAR)
def test_the_way_out_of_other_code_is_refused(code: str, tmp_path: Path) -> None:
    with pytest.raises(ElfError):
        leave(code, tmp_path / "f.so")
