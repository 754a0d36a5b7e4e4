"""Call frames from a file's unwind table: where the caller's stack pointer, registers and return address are.

The table (.eh_frame, with its index .eh_frame_hdr) is what exceptions and backtraces go by; every compiler writes it
on x86-64 and stripping leaves it. Its format: Linux Standard Base Core 5.0, chapter 10, and DWARF 5, section 6.4. What
is read here is what compilers write for functions: a frame address that is a register plus a number, and registers
saved at fixed distances from it. Expressions are for stubs and signal frames, which no caller is found through: as
everything else that is not understood they are an ElfError.

musl's C library has no such table. `way_out` follows its code instead, which is simple: from an instruction on to the
return, which finds the stack as the call left it.
"""

from __future__ import annotations

import bisect
import functools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from capstone.x86_const import X86_OP_IMM, X86_OP_REG

from apitrace.probes.elf import EM_X86_64, Elf, ElfError
from apitrace.probes.placement import FULL, disassembler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_REGISTERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip")
"""By DWARF number (System V psABI, figure 3.36)."""
_PC_RELATIVE = 0x1B
"""DW_EH_PE_pcrel | DW_EH_PE_sdata4: how gcc, clang and their linkers write addresses here."""
_FOUR_BYTES = (0x03, 0x0B)
"""DW_EH_PE_udata4, DW_EH_PE_sdata4."""
_INDEX = b"\x03\x3b"
"""DW_EH_PE_udata4, and DW_EH_PE_datarel | DW_EH_PE_sdata4: the index is a count and sorted pairs."""
_LONGEST = 64 << 10
"""Bytes of one entry: the longest in libcrypto has under 400."""
_WAY_OUT = 256
"""Instructions on the way out of a function: in musl's system calls, at most 20."""
_DEEPEST = 16
"""Rows remembered at a time; compilers remember one."""


class Row(NamedTuple):
    """How to leave a function from one of its instructions."""

    start: int
    """Where the function begins."""
    register: str
    """The frame address is this register ..."""
    offset: int
    """... plus this."""
    saved: Mapping[str, int]
    """Register of the caller's -> where it was saved, from the frame address. "rip": the return address."""
    lost: frozenset[str] = frozenset()
    """Registers of the caller's that were not saved, and are written to."""


class _Cursor:
    """Reads numbers from an entry."""

    def __init__(self, data: bytes, address: int) -> None:
        self.data, self.address, self.at = data, address, 0

    def fixed(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def uleb(self, *, signed: bool = False) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 70:
                _refuse("a number that is too long")
            if byte < 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value

    def pointer(self) -> int:
        place = self.address + self.at
        return place + self.fixed("<i")

    def text(self) -> bytes:
        end = self.data.index(b"\0", self.at)
        text, self.at = self.data[self.at : end], end + 1
        return text


class _Common(NamedTuple):
    """What entries share (CIE)."""

    code_factor: int
    data_factor: int
    has_length: bool
    program: bytes


class _Draft:
    """One row of the table that an entry's program writes."""

    def __init__(self) -> None:
        self.register, self.offset = "", 0
        self.saved: dict[str, int] = {}

    def copy(self) -> _Draft:
        row = _Draft()
        row.register, row.offset, row.saved = self.register, self.offset, dict(self.saved)
        return row


class Unwinder:
    """The unwind table of an open file. Each method may raise ElfError."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf

    @functools.cached_property
    def _index(self) -> tuple[int, Sequence[int]]:
        """Address of the index; and by turns where a function begins and where its entry is, from that address."""
        section = self._elf.sections.get(".eh_frame_hdr")
        if self._elf.machine != EM_X86_64:
            _refuse("call frames of another architecture")
        if section is None:
            return 0, ()
        data = self._elf.content(section)
        if len(data) < 12 or data[0] != 1 or data[2:4] != _INDEX:
            _refuse("an unknown kind of index of call frames")
        table = data[12 : 12 + 8 * struct.unpack_from("<I", data, 8)[0]]
        return section.address, memoryview(table[: len(table) // 8 * 8]).cast("i")

    def row(self, address: int) -> Row | None:
        """Return how to leave the function that has an instruction at this address; None: the table lacks it."""
        try:
            return self._find(address)
        except ElfError:
            raise
        except (LookupError, ValueError, struct.error) as error:
            message = f"malformed call frames ({type(error).__name__})"
            raise ElfError(message) from error

    def _find(self, address: int) -> Row | None:
        base, table = self._index
        place = bisect.bisect_right(table[::2], address - base) - 1
        if place < 0:
            return None
        entry = self._entry(base + table[2 * place + 1])
        distance = entry.fixed("<I")
        common = self._common(entry.address + entry.at - 4 - distance)
        start = entry.pointer()
        if not start <= address < start + entry.fixed("<I"):
            return None
        if common.has_length:
            entry.at += entry.uleb()
        row = _Draft()
        _run(_Cursor(common.program, 0), row, common, 0, 1, {})
        _run(entry, row, common, start, address, dict(row.saved))
        if not row.register or "rip" not in row.saved:
            _refuse("a call frame without a caller")
        return Row(start, row.register, row.offset, row.saved)

    def _entry(self, address: int) -> _Cursor:
        """Return an entry, from behind its length."""
        size = int.from_bytes(self._elf.read(address, 4), "little")
        if not 4 <= size <= _LONGEST:
            _refuse("a call frame entry of impossible size")
        return _Cursor(self._elf.read(address + 4, size), address + 4)

    def _common(self, address: int) -> _Common:
        entry = self._entry(address)
        if entry.fixed("<I") != 0:
            _refuse("a call frame entry that leads to none")
        version, augmentation = entry.fixed("<B"), entry.text()
        if version not in (1, 3) or (augmentation and augmentation[:1] != b"z"):
            _refuse("an unknown kind of call frame entry")
        code_factor, data_factor = entry.uleb(), entry.uleb(signed=True)
        if (entry.fixed("<B") if version == 1 else entry.uleb()) != _REGISTERS.index("rip"):
            _refuse("a return address elsewhere")
        program = entry.at
        if augmentation:
            length = entry.uleb()
            program = entry.at + length
        relative = False
        for letter in augmentation[1:].decode("latin-1"):
            if letter == "R":
                relative = entry.fixed("<B") == _PC_RELATIVE
            elif letter == "L":
                entry.at += 1
            elif letter == "P" and entry.data[entry.at] & 0x0F in _FOUR_BYTES:
                entry.at += 5
            else:  # "S": a signal frame
                _refuse("an unknown kind of call frame entry")
        if not relative:
            _refuse("an unknown way of writing addresses")
        return _Common(code_factor, data_factor, bool(augmentation), entry.data[program:])


def way_out(elf: Elf, address: int) -> Row:
    """Return how a function is left from one of its instructions, by its code. Raises ElfError if that is not simple.

    Calls on the way are passed over, conditional branches not taken, other jumps followed. `start` is not known: -1.
    """
    depth, saved, lost = 0, dict[str, int](), set[str]()
    code = _instructions(elf, address)
    for _ in range(_WAY_OUT):
        instruction = next(code, None)
        if instruction is None:
            break
        name, operands = instruction.mnemonic, instruction.operands
        first = operands[0].reg if operands and operands[0].type == X86_OP_REG else 0
        target = FULL.get(instruction.reg_name(first) or "")
        if name == "ret" and not operands:
            base = depth + 8
            known = {register: at - base for register, at in saved.items()}
            return Row(-1, "rsp", base, {**known, "rip": -8}, frozenset(lost - saved.keys()))
        if name == "call":
            continue
        if name == "jmp" and operands[0].type == X86_OP_IMM:
            code = _instructions(elf, operands[0].imm)
        elif name == "push":
            depth -= 8
        elif name in {"add", "sub"} and target == "rsp" and operands[1].type == X86_OP_IMM:
            depth += operands[1].imm if name == "add" else -operands[1].imm
        elif name == "pop" and target and target != "rsp" and operands[0].size == 8:
            lost.add(target)
            saved.pop(target, None)
            if depth >= 0:  # else it was pushed on the way
                saved[target] = depth
            depth += 8
        else:
            written = _written(instruction)
            if name == "jmp" or "rsp" in written:
                break
            lost |= written
            saved = {register: at for register, at in saved.items() if register not in written}
    message = "code that is not simple"
    raise ElfError(message)


def _written(instruction: Any) -> set[str]:
    names = {instruction.reg_name(register) for register in instruction.regs_access()[1]}
    return {FULL[name] for name in names if name in FULL}


def _instructions(elf: Elf, address: int) -> Iterator[Any]:
    section = elf.section_at(address)
    if section is None or not elf.is_code(address):
        _refuse("not an address of code")
    size = min(section.address + section.size - address, _WAY_OUT * 16)
    yield from disassembler(detail=True).disasm(elf.read(address, size), address)


def _run(code: _Cursor, row: _Draft, common: _Common, location: int, address: int, initial: Mapping[str, int]) -> None:
    """Carry a row on to an address, by the instructions DW_CFA_*. `initial`: what is saved where a function begins."""
    kept: list[_Draft] = []
    while code.at < len(code.data):
        operation = code.fixed("<B")
        high, low = operation & 0xC0, operation & 0x3F
        if high == 0x40:  # advance_loc
            location += low * common.code_factor
        elif operation in _ADVANCES:
            location += code.fixed(_ADVANCES[operation]) * common.code_factor
        elif high == 0x80:  # offset
            row.saved[_name(low)] = code.uleb() * common.data_factor
        elif high == 0xC0 or operation == 0x06:  # restore, restore_extended
            _restore(row, _name(low if high else code.uleb()), initial)
        elif operation == 0x0A:  # remember_state
            if len(kept) == _DEEPEST:
                _refuse("call frames that are too tangled")
            kept.append(row.copy())
        elif operation == 0x0B:  # restore_state
            last = kept.pop()
            row.register, row.offset, row.saved = last.register, last.offset, last.saved
        else:
            _define(operation, code, row, common)
        if location > address:
            return


def _define(operation: int, code: _Cursor, row: _Draft, common: _Common) -> None:
    """Carry out one of the rarer instructions."""
    if operation == 0x0C:  # def_cfa
        row.register, row.offset = _name(code.uleb()), code.uleb()
    elif operation == 0x0D:  # def_cfa_register
        row.register = _name(code.uleb())
    elif operation == 0x0E:  # def_cfa_offset
        row.offset = code.uleb()
    elif operation == 0x12:  # def_cfa_sf
        row.register, row.offset = _name(code.uleb()), code.uleb(signed=True) * common.data_factor
    elif operation == 0x13:  # def_cfa_offset_sf
        row.offset = code.uleb(signed=True) * common.data_factor
    elif operation == 0x05:  # offset_extended
        row.saved[_name(code.uleb())] = code.uleb() * common.data_factor
    elif operation == 0x11:  # offset_extended_sf
        row.saved[_name(code.uleb())] = code.uleb(signed=True) * common.data_factor
    elif operation == 0x08:  # same_value
        _restore(row, _name(code.uleb()), {})
    elif operation == 0x2E:  # GNU_args_size: what exceptions need only
        code.uleb()
    elif operation != 0x00:  # nop
        _refuse("a call frame that is not a register plus a number")


_ADVANCES = {0x02: "<B", 0x03: "<H", 0x04: "<I"}


def _name(number: int) -> str:
    if number >= len(_REGISTERS):
        _refuse("a call frame that saves other registers")
    return _REGISTERS[number]


def _restore(row: _Draft, register: str, initial: Mapping[str, int]) -> None:
    row.saved.pop(register, None)
    if register in initial:
        row.saved[register] = initial[register]


def _refuse(why: str) -> NoReturn:
    raise ElfError(why)
