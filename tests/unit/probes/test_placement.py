"""Where probes go: in code written for the purpose, and in every TLS library and executable of this machine.

The oracle for the latter is objdump: its instruction boundaries, its branch targets, its reading of the code.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apitrace.probes.elf import EM_AARCH64, Elf, ElfError
from apitrace.probes.placement import (
    GO_ARGUMENTS,
    NAMES,
    Function,
    Kind,
    Location,
    Placement,
    ProbePoint,
    Result,
    emulated,
    plan_gnutls,
    plan_openssl,
)

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
LIBSSL, LIBCRYPTO, LIBGNUTLS = (LIBRARIES / name for name in ("libssl.so.3", "libcrypto.so.3", "libgnutls.so.30"))
NODE = Path(shutil.which("node") or "node")
Assemble = Callable[[str], Path]


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


# The kernel's rule


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("53", True),  # push rbx
        ("4154", True),  # push r12
        ("54", True),  # push rsp
        ("4054", False),  # push rsp with an empty REX prefix: longer than the kernel takes
        ("6653", False),  # push bx
        ("ff3424", False),  # push [rsp]
        ("6a00", False),  # push 0
        ("e800000000", True),  # call
        ("66e800000000", False),  # with operand size: the kernel refuses it
        ("f2e800000000", True),  # bnd call
        ("ffd0", False),  # call rax
        ("ff15b2440800", False),  # call [rip+...]
        ("e900000000", True),  # jmp
        ("eb00", True),
        ("ffe0", False),  # jmp rax
        ("7805", True),  # js
        ("0f8805000000", True),  # js, near
        ("3e7805", False),  # with a branch hint: the kernel refuses it
        ("e305", False),  # jrcxz
        ("90", True),  # nop
        ("6690", False),  # xchg ax, ax
        ("f390", True),  # pause
        ("4990", False),  # xchg r8, rax
        ("0f1f4000", False),  # longer nop: by the newest kernels only
        ("f30f1efa", False),  # endbr64
        ("4883ec18", False),  # sub rsp, 0x18
        ("4889f8", False),  # mov rax, rdi
        ("58", False),  # pop rax
        ("c3", False),  # ret
        ("0f05", False),  # syscall
        ("66", False),
        ("", False),
    ],
)
def test_the_kernel_emulates_calls_jumps_pushes_and_nops_only(code: str, expected: bool) -> None:
    assert emulated(bytes.fromhex(code)) is expected


# Single functions

HEAD = ".text\n"
FUNCTION = """
.globl {name}
.type {name}, @function
{name}:
.cfi_startproc
{body}
.cfi_endproc
.size {name}, .-{name}
.p2align 4
"""


def function(name: str, body: str) -> str:
    return FUNCTION.format(name=name, body="\n".join(line.strip() for line in body.replace(";", "\n").splitlines()))


@pytest.fixture(scope="module")
def assemble(tmp_path_factory: pytest.TempPathFactory) -> Assemble:
    directory = tmp_path_factory.mktemp("placement")

    @functools.cache
    def assembled(text: str) -> Path:
        number = len(list(directory.iterdir()))
        source, library = directory / f"{number}.s", directory / f"{number}.so"
        source.write_text(HEAD + text + '.section .note.GNU-stack,"",@progbits\n')
        run("gcc", "-shared", "-nostdlib", "-Wl,-z,lazy", "-o", library, source)
        return library

    return assembled


def placed(library: Path, count: int, name: str = "f") -> tuple[Placement, Placement]:
    with Elf.open(library) as elf:
        symbol = elf.symbols([name])[name]
        code = Function.at(elf, symbol.address, symbol.size)
        return code.entry(count), code.returns()


def registers(*names: str) -> tuple[Location, ...]:
    return tuple(Location(name) for name in names)


@pytest.mark.parametrize(
    ("body", "delta", "stack", "arguments"),
    [
        ("push %rbx; pop %rbx; ret", 0, 0, registers("rdi", "rsi", "rdx")),
        ("endbr64; push %rbx; pop %rbx; ret", 4, 0, registers("rdi", "rsi", "rdx")),
        ("test %rdi,%rdi; je 1f; nop; 1: ret", 3, 0, registers("rdi", "rsi", "rdx")),
        ("sub $0x18,%rsp; test %edx,%edx; js 1f; nop; 1: add $0x18,%rsp; ret", 6, 24, registers("rdi", "rsi", "rdx")),
        ("sub $0x8,%rsp; call g@plt; add $8,%rsp; ret", 4, 8, registers("rdi", "rsi", "rdx")),
        ("xor %eax,%eax; xor %ecx,%ecx; jmp g@plt", 4, 0, registers("rdi", "rsi", "rdx")),
        # Moved to another register; a C int that is extended is still that argument.
        ("mov %rdi,%r9; xor %edi,%edi; movslq %edx,%rdx; jmp g@plt", 8, 0, registers("r9", "rsi", "rdx")),
        ("mov %edx,%ecx; mov %rdi,%rax; xor %edx,%edx; jmp g@plt", 7, 0, registers("rdi", "rsi", "rcx")),
        # On the stack, by way of rsp and of a frame pointer.
        (
            "sub $0x20,%rsp; mov %rdi,8(%rsp); xor %edi,%edi; call g@plt",
            11,
            32,
            (Location("rsp", 8), *registers("rsi", "rdx")),
        ),
        (
            "lea -16(%rsp),%rbp; mov %rsi,(%rbp); xor %esi,%esi; nop; ret",
            11,
            0,
            (Location("rdi"), Location("rsp", -16), Location("rdx")),
        ),
        ("xchg %rdi,%rax; mov %rsi,%rdi; jmp g@plt", None, 0, registers("rdi", "rsi", "rdx")),
        ("mov %rdi,%rax; lock cmpxchg %rcx,(%rsi); xor %edi,%edi; jmp g@plt", None, 0, registers("rdi", "rsi", "rdx")),
        (
            "sub $8,%rsp; mov %rdi,(%rsp); xor %edi,%edi; movl $0,4(%rsp); call g@plt",
            None,
            0,
            registers("rdi", "rsi", "rdx"),
        ),
        ("and $-16,%rsp; nop; ret", None, 0, registers("rdi", "rsi", "rdx")),
        ("xor %edi,%edi; push %rbx; pop %rbx; ret", None, 0, registers("rdi", "rsi", "rdx")),
        ("ret", None, 0, registers("rdi", "rsi", "rdx")),
        ("mov (%rdi),%rax; jmp *8(%rax)", None, 0, registers("rdi", "rsi", "rdx")),
    ],
)
def test_an_entry_probe_goes_on_the_first_emulated_instruction_that_has_all_arguments(
    assemble: Assemble, body: str, delta: int | None, stack: int, arguments: tuple[Location, ...]
) -> None:
    entry, _ = placed(assemble(function("f", body)), 3)
    assert entry.cheap is (delta is not None)
    assert bool(entry.reason) is not entry.cheap
    assert (entry.delta, entry.stack, entry.arguments) == (delta or 0, stack, arguments)


def test_arguments_that_are_not_asked_for_may_be_gone(assemble: Assemble) -> None:
    library = assemble(function("f", "xor %esi,%esi; push %rbx; pop %rbx; ret"))
    assert placed(library, 1)[0][2:5] == (2, "push rbx", True)
    assert placed(library, 2)[0].reason == "the arguments are gone before the first emulated instruction"


def test_a_probe_on_a_conditional_branch_says_so(assemble: Assemble) -> None:
    assert placed(assemble(function("f", "test %rdi,%rdi; je 1f; nop; 1: ret")), 1)[0].conditional
    assert not placed(assemble(function("f", "mov %rdi,%rax; jmp g@plt")), 1)[0].conditional


@pytest.mark.parametrize(
    ("body", "delta"),
    [
        ("push %rbx; pop %rbx; ret", 0),
        ("endbr64; push %rbx; pop %rbx; ret", 4),
        ("xor %edi,%edi; jmp g@plt", 2),
        ("sub $8,%rsp; call g@plt; add $8,%rsp; ret", None),
        ("sub $8,%rsp; add $8,%rsp; nop; ret", None),
        ("ret", None),
    ],
)
def test_a_return_probe_goes_where_the_return_address_is_on_top_of_the_stack(
    assemble: Assemble, body: str, delta: int | None
) -> None:
    _, returns = placed(assemble(function("f", body)), 0)
    assert (returns.delta, returns.cheap) == (delta or 0, delta is not None)


@pytest.mark.parametrize(
    "body",
    [
        "mov %rdi,%rax; 1: dec %rax; jne 1b; ret",  # between the entry and the first emulated instruction
        "mov %rdi,%rax; 1: nop; dec %rax; jne 1b; ret",  # on it
        "mov %rdi,%rax; nop; jmp *(%rsi,%rax,8)",  # anywhere
        "mov %rdi,%rax; nop; movslq (%rsi,%rax,4),%rcx; add %rsi,%rcx; jmp *%rcx",
        "mov %rdi,%rax; 1: nop; ret; .cfi_endproc; .cfi_startproc; dec %rax; je 1b; ret",  # from code moved elsewhere
    ],
)
def test_no_probe_goes_where_a_branch_may_land(assemble: Assemble, body: str) -> None:
    if ".cfi_startproc" in body:  # reached by a branch out of the function
        body = body.replace("ret; .cfi_endproc", "je 2f; ret; .cfi_endproc").replace("dec %rax", "2: dec %rax")
        text = function("f", body).replace(".size f, .-f", "")
    else:
        text = function("f", body)
    entry, _ = placed(assemble(text), 1)
    assert (entry.delta, entry.cheap) == (0, False)
    assert entry.reason == "a branch may land before the first emulated instruction, or on it"


def test_a_jump_through_a_table_does_not_land_on_a_push_of_the_prologue(assemble: Assemble) -> None:
    entry, returns = placed(assemble(function("f", "endbr64; push %rbx; jmp *(%rsi,%rdi,8)")), 2)
    assert (entry.delta, entry.cheap, returns.delta, returns.cheap) == (4, True, 4, True)


def test_a_tail_call_through_a_pointer_is_not_a_jump_through_a_table(assemble: Assemble) -> None:
    entry, _ = placed(assemble(function("f", "test %rdi,%rdi; je 1f; mov 8(%rdi),%rax; jmp *%rax; 1: ret")), 1)
    assert entry.cheap


def test_what_follows_a_call_that_does_not_return_does_not_blur_what_is_known(assemble: Assemble) -> None:
    # As Go lays out its stack check: the block at 2 is reached from the top only, where nothing is on the stack.
    body = """0: test %rax,%rax; je 2f; sub $0x20,%rsp; mov %rax,0x28(%rsp); test %rbx,%rbx; je 1f
              call g@plt; nop; add $0x20,%rsp; ret; 1: call g@plt; nop; 2: mov %rax,8(%rsp); call g@plt
              mov 8(%rsp),%rax; jmp 0b"""
    with Elf.open(assemble(function("f", body))) as elf:
        symbol = elf.symbols(["f"])["f"]
        code = Function(elf, symbol.address, symbol.address + symbol.size, GO_ARGUMENTS)
        first = next(instruction for instruction in code.instructions.values() if instruction.mnemonic == "call")
        assert code.states[first.address + first.size] == {"rsp": ("stack", -0x20), 8: 0}


# Functions of one purpose

INTERNAL = ".type internal, @function; internal: .cfi_startproc; push %rbx; pop %rbx; ret; .cfi_endproc; .p2align 4\n"
OTHER = INTERNAL.replace("internal", "other")
READ = "sub $0x18,%rsp; test %edx,%edx; js 1f; movslq %edx,%rdx; lea 8(%rsp),%rcx; call {}; 1: add $0x18,%rsp; ret"
READ_EX = "sub $8,%rsp; call {}; add $8,%rsp; ret"


def test_the_internal_function_that_both_call_is_probed_if_they_cannot_be_cheaply(assemble: Assemble) -> None:
    text = INTERNAL + function("SSL_read", READ.format("internal"))
    text += function("SSL_read_ex", READ_EX.format("internal"))
    with Elf.open(assemble(text)) as elf:
        (point,) = plan_openssl(elf)
        assert point.entry.address == point.returns.address == elf.sections[".text"].address
        name = f"SSL_read and SSL_read_ex, in the function they call at {point.entry.address:#x}"
        assert point[:2] == (Kind.READ, name)
        assert (point.entry.cheap, point.returns.cheap) == (True, True)
        assert point[4:] == (*registers("rdi", "rsi", "rdx", "rcx"), Result.POINTED)


def test_an_internal_function_with_one_more_argument_gets_its_count_from_where_it_is_handed(assemble: Assemble) -> None:
    # OpenSSL 3.3 and later: SSL_write_ex2(s, buf, num, flags, written), which SSL_write_ex calls.
    write = READ.replace("lea 8(%rsp),%rcx", "xor %ecx,%ecx; lea 8(%rsp),%r8").format("internal")
    text = INTERNAL + function("SSL_write", write) + function("SSL_write_ex2", READ_EX.format("internal"))
    text += function("SSL_write_ex", "mov %rcx,%r8; xor %ecx,%ecx; jmp SSL_write_ex2@plt")
    with Elf.open(assemble(text)) as elf:
        (point,) = plan_openssl(elf)
        assert point.function.startswith("SSL_write and SSL_write_ex2, ")
        assert point[4:] == (*registers("rdi", "rsi", "rdx", "r8"), Result.POINTED)


@pytest.mark.parametrize(("first", "second"), [("internal", "other"), ("internal", "internal + 1")])
def test_functions_that_share_none_are_probed_themselves(assemble: Assemble, first: str, second: str) -> None:
    text = INTERNAL + OTHER + function("SSL_read", READ.format(first)) + function("SSL_read_ex", READ_EX.format(second))
    with Elf.open(assemble(text)) as elf:
        points = plan_openssl(elf)
    assert [(p.function, p.entry.delta, p.entry.cheap, p.returns.cheap) for p in points] == [
        ("SSL_read", 6, True, False), ("SSL_read_ex", 4, True, False),
    ]  # fmt: skip
    assert [(p.count_pointer, p.result) for p in points] == [(None, Result.BYTES), (Location("rcx"), Result.POINTED)]


def test_a_function_that_hands_on_to_another_of_its_family_is_covered_by_it(assemble: Assemble) -> None:
    text = function("gnutls_record_send", "xor %r8d,%r8d; xor %ecx,%ecx; jmp gnutls_record_send2@plt")
    text += function("gnutls_record_send2", "push %rbx; pop %rbx; ret")
    with Elf.open(assemble(text)) as elf:
        (point,) = plan_gnutls(elf)
    assert (point.kind, point.function, point.entry.cheap) == (Kind.WRITE, "gnutls_record_send2", True)


def test_a_file_that_defines_none_of_it_has_no_plan() -> None:
    with Elf.open(LIBSSL) as elf:
        assert plan_gnutls(elf) == []
    with Elf.open(LIBRARIES / "libc.so.6") as elf:
        assert plan_openssl(elf) == []


@pytest.mark.parametrize(("machine", "handle"), [(EM_AARCH64, "x0"), (243, None)], ids=["arm64", "riscv"])
def test_other_architectures_get_the_plain_entry_or_an_error(tmp_path: Path, machine: int, handle: str | None) -> None:
    data = bytearray(LIBSSL.read_bytes())
    struct.pack_into("<H", data, 18, machine)
    (tmp_path / "libssl.so").write_bytes(data)
    with Elf.open(tmp_path / "libssl.so") as elf:
        if handle is None:
            with pytest.raises(ElfError):
                plan_openssl(elf)
            return
        points = plan_openssl(elf)
    assert [point.function for point in points] == [
        "SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_do_handshake", "SSL_free",
    ]  # fmt: skip
    assert {(p.entry.delta, p.entry.cheap, p.entry.reason, str(p.handle)) for p in points} == {
        (0, False, "no placement for this architecture", handle)
    }


class CodeOnly(Elf):
    """Code without a file around it."""

    def __init__(self, code: bytes) -> None:
        self._code = code
        self.position_independent = False

    def read(self, address: int, size: int) -> bytes:
        return self._code[address : address + size]

    def offset_of(self, address: int) -> int | None:
        return address

    def is_code(self, address: int) -> bool:
        return True

    def bounds(self, address: int) -> tuple[int, int] | None:
        return None

    def section_at(self, address: int) -> None:
        return None


TANGLES = st.sampled_from([bytes.fromhex(code) for code in (
    "50", "57", "5f", "8f00", "668f00", "6650", "c9", "c8100000", "e8faffffff", "ebfc", "75f0", "7502", "4883ec08",
    "4883c410", "488d6c2410", "4889e5", "48897c24f8", "488b7c24f8", "ffe0", "ff24c7", "c3", "0f0b", "f348ab", "4887fc",
    "488d24c7", "8ed8", "0fc70f", "f00fb10f", "4831e4", "5c", "54", "c4e2f3f6c2", "e90000ff7f", "90", "f4",
)])  # fmt: skip
"""Pushes, pops, jumps, calls, and what else bends the stack pointer."""


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(TANGLES, max_size=80).map(b"".join)))
def test_any_bytes_can_be_walked_through(code: bytes) -> None:
    elf = CodeOnly(code)
    for arguments in (GO_ARGUMENTS, ("rdi", "rsi", "rdx", "rcx", "r8", "r9")):
        decoded = Function(elf, 0, len(code), arguments)
        for placement in (decoded.entry(3), decoded.returns()):
            assert placement.delta == 0 or placement.delta in decoded.instructions
            assert not {target for target in decoded.targets if 0 < target <= placement.delta}
        try:
            assert list(decoded.handed_on()) is not None
        except ElfError as error:
            assert str(error) == "the function's flow is too tangled"  # noqa: PT017 - raising at all is optional


# Every library and executable there is


def tls_files() -> list[Path]:
    """Return what on this machine defines any of the functions, once per file."""
    candidates = [p for n in ("ssl", "crypto", "gnutls", "node") for p in Path("/usr/lib").rglob(f"lib{n}*.so*")]
    for directory in os.get_exec_path():
        if Path(directory).is_dir():
            candidates += [Path(entry.path) for entry in os.scandir(directory)]
    found = {}
    for path in candidates:
        try:
            status = path.stat()
            key = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and status.st_size > 200_000 and key not in found:
                with Elf.open(path) as elf:
                    if plan_openssl(elf) + plan_gnutls(elf):
                        found[key] = path.resolve()
        except (OSError, ElfError):
            continue
    return sorted(found.values())


FILES = tls_files()


@functools.cache
def disassembled(path: Path, start: int, end: int) -> dict[int, str]:
    """Return objdump's instructions by address."""
    window = (f"--start-address={start:#x}", f"--stop-address={end:#x}")
    lines = run("objdump", "-d", "--no-show-raw-insn", "-w", *window, path).splitlines()
    return {int(m[1], 16): m[2] for m in (re.fullmatch(r" +([0-9a-f]+):\t(.+)", line) for line in lines) if m}


@functools.cache
def planned(path: Path) -> tuple[ProbePoint, ...]:
    with Elf.open(path) as elf:
        return tuple(plan_openssl(elf) + plan_gnutls(elf))


def text_of(path: Path, near: int) -> tuple[int, int]:
    """Return the bounds of the code section; of what is within 64 KiB, if it is too large to disassemble whole."""
    match = re.search(r" \.text +PROGBITS +([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)", run("readelf", "-SW", path))
    start, end = int(match[1], 16), int(match[1], 16) + int(match[2], 16)
    return (start, end) if end - start < 1 << 20 else (max(start, near - (1 << 16)), min(end, near + (1 << 16)))


def test_the_machine_has_the_libraries_and_executables_that_matter() -> None:
    assert {LIBSSL, LIBCRYPTO, LIBGNUTLS.resolve(), NODE.resolve()} <= set(FILES)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_placement_is_inside_an_instruction_or_where_a_branch_lands(path: Path) -> None:
    for point in planned(path):
        for placement in (point.entry, point.returns):
            if placement is None:
                continue
            entry = placement.address - placement.delta
            around = disassembled(path, *text_of(path, entry))
            line = {address: text for address, text in around.items() if entry <= address <= placement.address}
            assert min(line) == entry
            assert max(line) == placement.address, "inside an instruction"
            landings = {
                int(match[1], 16)
                for text in around.values()
                if (match := re.match(r"(?:bnd |notrack )?(?:j\w+|loop\w*)(?:,p[nt])? +([0-9a-f]+)\b", text))
            }
            assert not [hex(a) for a in landings if entry < a <= placement.address], "a branch lands there"
            if placement.cheap:
                assert re.match(r"(push +%r|call +[0-9a-f]|jmp +[0-9a-f]|j\w+ +[0-9a-f]|nop$)", line[placement.address])
            before = [text for address, text in line.items() if address < placement.address]
            assert not [text for text in before if re.match(r"(call|j|ret|push|loop)", text)]


# Each register under all its names, as objdump writes a destination: last.
ALIASES = {"rdi": "[re]?di|dil", "rsi": "[re]?si|sil", "rdx": "[re]?dx|d[lh]", "rcx": "[re]?cx|c[lh]", "r8": "r8[dwb]?"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_argument_registers_are_intact_at_every_entry_probe(path: Path) -> None:
    for point in planned(path):
        entry = point.entry.address - point.entry.delta
        line = disassembled(path, *text_of(path, entry))
        for location in point.entry.arguments:
            assert location.offset is None
            for address in range(entry, point.entry.address):
                changed = re.search(rf"%({ALIASES[location.register]})$", line.get(address, "").split("#")[0].strip())
                assert not changed or re.match(r"test|cmp", line[address]), (point.function, line[address])
        moved = sum(int(m[1], 16) for a in range(entry, point.entry.address)
                    if (m := re.match(r"sub +\$0x([0-9a-f]+),%rsp", line.get(a, ""))))  # fmt: skip
        assert point.entry.stack == moved


@pytest.mark.parametrize("path", FILES, ids=str)
def test_functions_probed_by_name_are_where_nm_says(path: Path) -> None:
    listed = {}
    for flags in (("-D",), ()):
        for match in re.finditer(r"^([0-9a-f]+) \w (\S+)", run("nm", "--defined-only", *flags, path), re.MULTILINE):
            listed.setdefault(match[2].split("@")[0], int(match[1], 16))
    for point in planned(path):
        if point.function in NAMES:
            assert point.entry.address - point.entry.delta == listed[point.function]


def test_openssl_3_of_debian_is_probed_cheaply_throughout_and_in_two_functions() -> None:
    points = {point.kind: point for point in planned(LIBSSL)}
    assert [point.kind for point in planned(LIBSSL)] == [Kind.READ, Kind.WRITE, Kind.HANDSHAKE, Kind.FREE]
    with Elf.open(LIBSSL) as elf:
        symbols = elf.symbols(["SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex"])
    for kind, names in ((Kind.READ, ("SSL_read", "SSL_read_ex")), (Kind.WRITE, ("SSL_write", "SSL_write_ex"))):
        point = points[kind]
        for name in names:
            start, end = symbols[name].address, symbols[name].address + symbols[name].size
            body = disassembled(LIBSSL, start, end).values()
            assert [t for t in body if re.match(rf"call +{point.entry.address:x} ", t)], "objdump sees no such call"
        assert (point.entry.delta, point.returns.delta) == (0, 0)
        assert point[4:] == (*registers("rdi", "rsi", "rdx", "rcx"), Result.POINTED)
    assert all(p.entry.cheap and (p.returns is None or p.returns.cheap) for p in points.values())


def test_node_is_probed_cheaply_throughout_in_its_own_functions() -> None:
    points = planned(NODE)
    assert [point.function for point in points] == [
        "SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_do_handshake", "SSL_free", "BIO_write",
    ]  # fmt: skip
    assert all(p.entry.cheap and (p.returns is None or p.returns.cheap) for p in points)


def test_gnutls_is_probed_cheaply_throughout() -> None:
    points = planned(LIBGNUTLS)
    assert [point.kind for point in points] == [Kind.READ, Kind.WRITE, Kind.HANDSHAKE, Kind.FREE]
    assert all(p.entry.cheap and (p.returns is None or p.returns.cheap) for p in points)
    read = points[0]  # _gnutls_recv_int, whose second argument is the type of record
    assert (read.handle, read.buffer, read.length, read.result) == (*registers("rdi", "rdx", "rcx"), Result.BYTES)


def test_libcrypto_has_only_bio_write() -> None:
    (point,) = planned(LIBCRYPTO)
    assert (point.kind, point.returns, point.entry.cheap) == (Kind.BIO_WRITE, None, True)
    assert point[4:8] == (*registers("rdi", "rsi", "rdx"), None)
