"""Where in a function's code a uprobe goes, so that it is cheap and still finds the arguments.

A breakpoint costs 0.45 us if it sits on an instruction that the kernel emulates, 16 us if the kernel must single-step
the displaced instruction. So an entry probe goes on the first emulated instruction on the straight line from the
function's entry, if every argument asked for is still somewhere (register or stack) and no branch lands between the
entry and it: then it is hit exactly once per call, just as the entry is. On a conditional branch the probe fires before
the branch is decided, whichever way it goes. A return probe replaces the return address, which it expects at the top of
the stack: it goes on such an instruction only where the stack pointer is what it was at the entry.

Where nothing suits, the answer is the plain entry, `cheap` is false, and `reason` says why. Nothing here knows versions
of libraries: OpenSSL's internal read and write functions, which stripping leaves without a name, are found as the one
function that both SSL_read and SSL_read_ex hand their arguments to.

The walk through the code keeps, for each register and stack slot, which argument it holds. It assumes what compilers
keep to: nothing writes to a spill slot through a pointer. All of this is for x86-64; elsewhere it is the plain entry.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import capstone
from capstone import x86_const as x86

from apitrace.probes.elf import EM_AARCH64, EM_X86_64, Elf, ElfError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ARGUMENTS = {
    EM_X86_64: ("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    EM_AARCH64: ("x0", "x1", "x2", "x3", "x4", "x5"),
}
"""Where C passes its first arguments (System V psABI, AAPCS64)."""
GO_ARGUMENTS = ("rax", "rbx", "rcx", "rdi", "rsi", "r8", "r9", "r10", "r11")
"""Where Go passes them from 1.17 on (cmd/compile/abi-internal.md, amd64)."""

_C_PRESERVED = frozenset({"rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"})
_GO_PRESERVED = frozenset({"rsp", "rbp", "r14"})  # no callee-saved registers; r14 is the goroutine

_LARGEST = 64 << 10
"""Bytes of a function that are decoded: 20 times those of the largest one probed here (gnutls_handshake)."""
_VISITS = 16
"""Times that an instruction is walked over, on average, before giving up: real functions need fewer than 3."""
_MAX_PLACES = 64
"""Registers and stack slots that are followed: more than any function keeps its few arguments in."""


class Location(NamedTuple):
    """Where a value is when the probe fires."""

    register: str
    offset: int | None = None
    """None: in the register. Else in memory, 8 bytes at register + offset."""

    def __str__(self) -> str:
        return self.register if self.offset is None else f"[{self.register}{self.offset:+#x}]"


class Placement(NamedTuple):
    """A place for a probe."""

    address: int
    """In the file's own addresses."""
    offset: int
    """In the file: what a uprobe is given."""
    delta: int
    """Bytes after the function's entry."""
    instruction: str
    """For people: "push r13"."""
    cheap: bool
    """The kernel emulates the instruction."""
    conditional: bool
    """It is a conditional branch: the probe fires whether it will be taken or not."""
    stack: int
    """The return address is at rsp + this."""
    arguments: tuple[Location, ...]
    """Where the function's arguments are, in their order, as many as were asked for."""
    reason: str
    """If not cheap, why; else empty."""


class Kind(enum.Enum):
    """What a probed function does."""

    READ = "read"
    WRITE = "write"
    HANDSHAKE = "handshake"
    FREE = "free"
    BIO_WRITE = "bio_write"


class Result(enum.Enum):
    """How a function tells that it succeeded, and how many bytes it moved. The returned value is a C int."""

    BYTES = "bytes"
    """The returned value, if positive, is the number of bytes."""
    POINTED = "pointed"
    """If the returned value is positive, `count_pointer` points to the number of bytes, 64 bits wide."""
    STATUS = "status"
    """1 is success; nothing is counted."""


class ProbePoint(NamedTuple):
    """One function to probe: a row for the programs' tables."""

    kind: Kind
    function: str
    """For people: "SSL_read_ex", or "SSL_read and SSL_read_ex, in the function they call at 0x35290"."""
    entry: Placement
    returns: Placement | None
    """None: nothing is to be learned from its return."""
    handle: Location
    """The SSL, BIO or gnutls_session_t pointer, when the entry probe fires; so are the next three."""
    buffer: Location | None
    length: Location | None
    """The size asked for. A C int in SSL_read, SSL_write and BIO_write: only the low 32 bits count."""
    count_pointer: Location | None
    """The size_t pointer that receives the number of bytes."""
    result: Result


class _Signature(NamedTuple):
    kind: Kind
    result: Result
    buffer: int | None = 1
    length: int | None = 2
    count_pointer: int | None = None
    returns: bool = True

    @property
    def arguments(self) -> int:
        return 1 + max(index for index in (0, self.buffer, self.length, self.count_pointer) if index is not None)


_SIGNATURES = {
    "SSL_read": _Signature(Kind.READ, Result.BYTES),
    "SSL_read_ex": _Signature(Kind.READ, Result.POINTED, count_pointer=3),
    "SSL_write": _Signature(Kind.WRITE, Result.BYTES),
    "SSL_write_ex": _Signature(Kind.WRITE, Result.POINTED, count_pointer=3),
    "SSL_write_ex2": _Signature(Kind.WRITE, Result.POINTED, count_pointer=4),
    "SSL_do_handshake": _Signature(Kind.HANDSHAKE, Result.STATUS, None, None),
    "SSL_free": _Signature(Kind.FREE, Result.STATUS, None, None, returns=False),
    "BIO_write": _Signature(Kind.BIO_WRITE, Result.BYTES, returns=False),
    "gnutls_record_recv": _Signature(Kind.READ, Result.BYTES),
    "gnutls_record_recv_seq": _Signature(Kind.READ, Result.BYTES),
    "gnutls_record_send": _Signature(Kind.WRITE, Result.BYTES),
    "gnutls_record_send2": _Signature(Kind.WRITE, Result.BYTES),
    "gnutls_handshake": _Signature(Kind.HANDSHAKE, Result.STATUS, None, None),
    "gnutls_deinit": _Signature(Kind.FREE, Result.STATUS, None, None, returns=False),
}

# Functions of one purpose. They may call each other, or one unnamed function; a call must not be seen twice.
_OPENSSL = (
    ("SSL_read", "SSL_read_ex"),
    ("SSL_write", "SSL_write_ex", "SSL_write_ex2"),
    ("SSL_do_handshake",),
    ("SSL_free",),
    ("BIO_write",),
)
# _gnutls_recv_int, which both receiving functions call, has two other callers, which pass no buffer. What it does not
# see is kernel TLS, whose plaintext is seen at the socket.
_GNUTLS = (
    ("gnutls_record_recv", "gnutls_record_recv_seq"),
    ("gnutls_record_send", "gnutls_record_send2"),
    ("gnutls_handshake",),
    ("gnutls_deinit",),
)

NAMES = tuple(_SIGNATURES)
"""Every function that may be probed by name."""


# What the kernel does with an instruction: arch/x86/kernel/uprobes.c

_REFUSED_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0xF0})  # is_prefix_bad: segment overrides and lock
_PREFIXES = _REFUSED_PREFIXES | {0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3}
_CALL, _JUMP, _SHORT_JUMP, _NOP = 0xE8, 0xE9, 0xEB, 0x90


def emulated(instruction: bytes) -> bool:
    """Return whether the kernel emulates this x86-64 instruction, from Linux 4.16 on.

    branch_setup_xol_ops: call, jmp and conditional jumps, relative, and nop, all without operand-size prefix, with
    which older kernels refuse the probe. push_setup_xol_ops: push of a register. Longer nops are emulated by the newest
    kernels only: not counted on.
    """
    at = next((index for index, byte in enumerate(instruction) if byte not in _PREFIXES), len(instruction))
    prefixes = set(instruction[:at])
    rex = instruction[at] if at < len(instruction) and instruction[at] & 0xF0 == 0x40 else 0
    opcode = instruction[at + bool(rex) :]
    if not opcode or prefixes & _REFUSED_PREFIXES:
        return False
    if 0x50 <= opcode[0] <= 0x57:
        return not prefixes and rex in (0, 0x41)
    if 0x66 in prefixes:
        return False
    if opcode[0] == _NOP:
        return rex == 0
    if opcode[0] == 0x0F:
        return len(opcode) > 1 and 0x80 <= opcode[1] <= 0x8F
    return opcode[0] in (_CALL, _JUMP, _SHORT_JUMP) or 0x70 <= opcode[0] <= 0x7F


# Walking through code

Value = int | tuple[str, int]
"""What a place holds: an argument, by its index, or ("stack", n): the stack pointer as at the entry plus n."""
State = dict["str | int", Value]
"""Place -> value. A place is a register, or a stack slot of 8 bytes by its distance from the stack pointer at entry."""

FULL = {
    alias: full
    for full, aliases in {
        **{f"r{n}": f"r{n}d r{n}w r{n}b" for n in range(8, 16)},
        **{f"r{n}x": f"e{n}x {n}x {n}l {n}h" for n in "abcd"},
        **{f"r{n}": f"e{n} {n} {n}l" for n in ("si", "di", "bp", "sp")},
    }.items()
    for alias in (full, *aliases.split())
}
"""Name of a part of a register -> name of the whole."""

# Which operands an instruction leaves as they are; the disassembler's own word on that is not reliable for memory.
_READS_ONLY = frozenset({"cmp", "test", "nop", "jmp", "bt"})
# Registers that it does not say are written.
_ALSO_WRITTEN = {"cmpxchg": ("rax",), "cmpxchg16b": ("rax", "rdx"), "syscall": ("rax", "rcx", "r11")}
_EXCHANGES = frozenset({"xchg", "xadd", "mulx"})


@functools.cache
def disassembler(detail: bool) -> Any:
    """Return a disassembler for x86-64; `detail`: it tells operands, and takes five times as long."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = detail
    return engine


def _register(instruction: Any, operand: Any) -> str:
    name: str = instruction.reg_name(operand.reg)
    return FULL.get(name, name)


def _stack_slot(state: State, instruction: Any, operand: Any) -> int | None:
    """Return a memory operand's distance from the stack pointer at entry; None: it is elsewhere, or not known."""
    memory = operand.mem
    if not memory.base or memory.index or memory.segment:
        return None
    base = state.get(FULL.get(instruction.reg_name(memory.base), ""))
    return base[1] + memory.disp if isinstance(base, tuple) else None


def _forget_slots(state: State, start: int, size: int) -> None:
    for place in [place for place in state if isinstance(place, int) and start - 8 < place < start + size]:
        del state[place]


def _value_of(state: State, instruction: Any, operand: Any) -> Value | None:
    """Return what a source operand holds. An int sign- or zero-extended to a register is still that argument."""
    if operand.type == x86.X86_OP_REG and operand.size >= 4:
        return state.get(_register(instruction, operand))
    if operand.type == x86.X86_OP_MEM and operand.size == 8:
        slot = _stack_slot(state, instruction, operand)
        return None if slot is None else state.get(slot)
    return None


def _assign(state: State, place: str | int, value: Value | None) -> None:
    if isinstance(place, int):
        _forget_slots(state, place, 8)
    else:
        state.pop(place, None)
    if value is not None and (len(state) < _MAX_PLACES or place == "rsp"):
        state[place] = value


def _step(state: State, instruction: Any, preserved: frozenset[str]) -> None:
    """Carry the state over one instruction."""
    name = instruction.mnemonic.split()[-1]  # without lock, rep, notrack
    operands = instruction.operands
    stack = state.get("rsp")
    depth = stack[1] if isinstance(stack, tuple) else None
    if name == "push" and operands[0].size == 8:
        if depth is not None:
            _assign(state, depth - 8, _value_of(state, instruction, operands[0]))
            state["rsp"] = ("stack", depth - 8)
    elif name == "leave" or (name == "pop" and operands[0].type == x86.X86_OP_REG and operands[0].size == 8):
        if name == "leave":
            stack = state.get("rbp")
            depth = stack[1] if isinstance(stack, tuple) else None
        _assign(state, "rsp", None if depth is None else ("stack", depth + 8))
        target = "rbp" if name == "leave" else _register(instruction, operands[0])
        _assign(state, target, None if depth is None else state.get(depth))
    elif name == "call":
        for place in list(state):
            # Go functions may use the words above their return address; beyond our own, they are our arguments' homes.
            lost = place not in preserved if isinstance(place, str) else preserved is _GO_PRESERVED and place < 8
            if lost:
                del state[place]
    elif name in {"mov", "movabs", "movsxd"} and operands[0].size >= (4 if name == "mov" else 8):
        _move(state, instruction)
    elif name in {"add", "sub", "lea"} and operands[0].type == x86.X86_OP_REG:
        _assign(state, _register(instruction, operands[0]), _address(state, instruction, name))
    else:
        _other(state, instruction, name)


def _move(state: State, instruction: Any) -> None:
    target, source = instruction.operands
    value = _value_of(state, instruction, source)
    if target.type == x86.X86_OP_REG:
        _assign(state, _register(instruction, target), value)
        return
    slot = _stack_slot(state, instruction, target)
    if slot is not None:
        _assign(state, slot, value if target.size == 8 else None)


def _address(state: State, instruction: Any, name: str) -> Value | None:
    """Return the stack address that add, sub or lea makes, if it makes one."""
    target, source = instruction.operands[:2]
    if name == "lea":
        slot = _stack_slot(state, instruction, source)
        return None if slot is None or target.size != 8 else ("stack", slot)
    base = state.get(_register(instruction, target))
    if not isinstance(base, tuple) or source.type != x86.X86_OP_IMM or target.size != 8:
        return None
    return "stack", base[1] + (source.imm if name == "add" else -source.imm)


def _other(state: State, instruction: Any, name: str) -> None:
    """Forget whatever any other instruction may change."""
    written = {instruction.reg_name(register) for register in instruction.regs_access()[1]}
    written.update(_ALSO_WRITTEN.get(name, ()))
    for index, operand in enumerate(instruction.operands):
        if name in _READS_ONLY or (index and name not in _EXCHANGES):
            continue
        if operand.type == x86.X86_OP_REG:
            written.add(instruction.reg_name(operand.reg))
        elif operand.type == x86.X86_OP_MEM:
            slot = _stack_slot(state, instruction, operand)
            if slot is not None:
                # A repeated store goes on upwards; at most to the return address.
                _forget_slots(state, slot, max(operand.size, -slot) if "rep" in instruction.mnemonic else operand.size)
    for register in written:
        state.pop(FULL.get(register, register), None)


def _initial(arguments: Iterable[str]) -> State:
    state: State = {"rsp": ("stack", 0)}
    state.update({register: index for index, register in enumerate(arguments)})
    return state


def locate(state: State, value: Value, preferred: str = "") -> Location | None:
    """Return where a value is: preferably in that register, else in any, else on the stack."""
    places = [place for place, held in state.items() if held == value]
    registers = [place for place in places if isinstance(place, str)]
    if registers:
        return Location(preferred if preferred in registers else registers[0])
    base = state.get("rsp")
    if isinstance(base, tuple):
        for place in places:
            if isinstance(place, int):
                return Location("rsp", place - base[1])
    return None


class Function:
    """A function's code, decoded. Raises ElfError if it cannot be."""

    def __init__(self, elf: Elf, start: int, end: int, arguments: tuple[str, ...] = ARGUMENTS[EM_X86_64]) -> None:
        """Decode what lies from `start` to `end`; `arguments` are the registers that it is called with."""
        self.elf = elf
        self.start = start
        self.end = min(end, start + _LARGEST)
        self.arguments = arguments
        self._preserved = _GO_PRESERVED if arguments is GO_ARGUMENTS else _C_PRESERVED
        code = elf.read(start, self.end - start)
        self.instructions: dict[int, Any] = {i.address: i for i in disassembler(detail=True).disasm(code, start)}
        self.targets: set[int] = set()
        """Where branches land: those of the function, and those of parts of it that the compiler moved elsewhere."""
        self.switches = False
        """It jumps through a table: it may land anywhere."""
        self._find_targets()

    @classmethod
    def at(cls, elf: Elf, address: int, size: int = 0) -> Function:
        """Decode the C function that begins at an address. Raises ElfError."""
        end = address + size if size else elf.next_function(address)
        if end is None or not elf.is_code(address):
            message = "not an address of code"
            raise ElfError(message)
        return cls(elf, address, end)

    def _find_targets(self) -> None:
        outside = set()
        loaded: dict[str, bool] = {}  # register -> it was last written from memory at a fixed distance from a pointer
        for instruction in self.instructions.values():
            target, operands = branch_target(instruction), instruction.operands
            if target is not None:
                if self.start <= target < self.end:
                    self.targets.add(target)
                elif instruction.id != x86.X86_INS_CALL:
                    outside.add(target)
            elif instruction.mnemonic.endswith("jmp"):
                # A tail call through a pointer in memory leaves the function; any other may land anywhere in it.
                if operands[0].type == x86.X86_OP_MEM:
                    self.switches |= bool(operands[0].mem.index)
                else:
                    self.switches |= not loaded.get(_register(instruction, operands[0]))
            elif operands and operands[0].type == x86.X86_OP_REG and instruction.mnemonic not in _READS_ONLY:
                source = operands[-1]
                fixed = instruction.mnemonic == "mov" and source.type == x86.X86_OP_MEM and not source.mem.index
                loaded[_register(instruction, operands[0])] = fixed
        for target in outside:
            bounds = self.elf.bounds(target)
            if bounds is None or bounds[1] - bounds[0] > _LARGEST:
                continue
            code = self.elf.read(bounds[0], bounds[1] - bounds[0])
            for _, _, mnemonic, operand in disassembler(detail=False).disasm_lite(code, bounds[0]):
                if mnemonic[0] == "j" and operand.startswith("0x") and self.start <= int(operand, 16) < self.end:
                    self.targets.add(int(operand, 16))

    def place(self, address: int, state: State, count: int, reason: str = "") -> Placement | None:
        """Return a place at an instruction; None if one of the first `count` arguments is no longer anywhere."""
        instruction = self.instructions[address]
        locations = [locate(state, index, self.arguments[index]) for index in range(count)]
        stack, offset = state.get("rsp"), self.elf.offset_of(address)
        if None in locations or not isinstance(stack, tuple) or offset is None:
            return None
        return Placement(
            address, offset, address - self.start, f"{instruction.mnemonic} {instruction.op_str}".strip(),
            not reason, instruction.mnemonic[0] == "j" and instruction.mnemonic != "jmp", -stack[1],
            tuple(location for location in locations if location), reason,
        )  # fmt: skip

    def entry(self, count: int) -> Placement:
        """Return where an entry probe goes that needs the first `count` arguments."""
        return self._first_emulated(count, unmoved=False)

    def returns(self) -> Placement:
        """Return where a return probe goes."""
        return self._first_emulated(0, unmoved=True)

    def _first_emulated(self, count: int, unmoved: bool) -> Placement:
        state, reason = _initial(self.arguments), "its first instructions are not code that is known"
        for instruction in self.straight_line(self.start):
            address = instruction.address
            is_emulated = emulated(bytes(instruction.bytes))
            # A jump through a table may land anywhere, but not on a push of the prologue: it comes after the prologue.
            switched = self.switches and is_emulated and instruction.mnemonic != "push"
            if address != self.start and (switched or self._branch_lands(self.start + 1, address)):
                reason = "a branch may land before the first emulated instruction, or on it"
                break
            if unmoved and state.get("rsp") != ("stack", 0):
                reason = "the stack pointer moves before the first emulated instruction"
                break
            if is_emulated:
                placement = self.place(address, state, count)
                if placement is not None:
                    return placement
                reason = "the arguments are gone before the first emulated instruction"
                break
            reason = "the kernel emulates none of its first instructions"
            _step(state, instruction, self._preserved)
        return plain_entry(self.elf, self.start, self.arguments[:count], reason, self.instructions.get(self.start))

    def _branch_lands(self, first: int, last: int) -> bool:
        return any(first <= target <= last for target in self.targets)

    def straight_line(self, address: int) -> Iterator[Any]:
        """Yield the instructions from one on, up to and with the first that does not always go on to the next."""
        while instruction := self.instructions.get(address):
            yield instruction
            if instruction.group(x86.X86_GRP_JUMP) or instruction.group(x86.X86_GRP_RET):
                return
            address += instruction.size

    def next_emulated(self, address: int, state: State) -> tuple[Any, State] | None:
        """Return the first emulated instruction from `address` on, if reached from there only, and the state there."""
        state = dict(state)
        for instruction in self.straight_line(address):
            if self.switches or self._branch_lands(address, instruction.address):
                return None
            if emulated(bytes(instruction.bytes)):
                return instruction, state
            _step(state, instruction, self._preserved)
        return None

    @functools.cached_property
    def states(self) -> dict[int, State]:
        """For each instruction that the entry leads to: what holds which argument there, whichever way was taken."""
        states: dict[int, State] = {}
        pending: list[int] = []
        # A call that does not return is followed by code that it does not lead to. Such code is reached by branches, so
        # they go first; the way over the call is believed only if it finds the stack as deep as they do.
        doubtful: list[tuple[int, State]] = []
        budget = _VISITS * len(self.instructions)

        def reach(address: int, state: State) -> None:
            known = states.get(address)
            merged = state if known is None else {p: v for p, v in known.items() if state.get(p) == v}
            if known is None or len(merged) != len(known):
                states[address] = merged
                pending.append(address)

        reach(self.start, _initial(self.arguments))
        while (pending or doubtful) and budget:
            budget -= 1
            if not pending:
                address, state = doubtful.pop()
                if address not in states or states[address].get("rsp") == state.get("rsp"):
                    reach(address, state)
                continue
            instruction = self.instructions.get(pending[-1])
            state = dict(states[pending.pop()])
            if instruction is None:
                continue
            _step(state, instruction, self._preserved)
            if instruction.group(x86.X86_GRP_JUMP) and branch_target(instruction) in self.instructions:
                reach(instruction.operands[0].imm, state)
            if instruction.group(x86.X86_GRP_RET) or instruction.mnemonic.endswith(("jmp", "ud2")):
                continue
            following = self._skip_nops(instruction.address + instruction.size)
            if instruction.id == x86.X86_INS_CALL and following in self.targets:
                doubtful.append((following, state))
            else:
                reach(instruction.address + instruction.size, state)
        if not budget:
            message = "the function's flow is too tangled"
            raise ElfError(message)
        return states

    def _skip_nops(self, address: int) -> int:
        while address not in self.targets and address in self.instructions:
            instruction = self.instructions[address]
            if instruction.mnemonic != "nop":
                break
            address += instruction.size
        return address

    def handed_on(self) -> Iterator[tuple[int, State]]:
        """Yield (address called or jumped to, state there) for each function that is reached directly."""
        for address, state in self.states.items():
            instruction = self.instructions.get(address)
            target = None if instruction is None else branch_target(instruction)
            if target is not None and not self.start <= target < self.end:
                yield behind_stub(self.elf, target), state


def branch_target(instruction: Any) -> int | None:
    """Return where a direct jump or call goes; None if the instruction is neither."""
    if instruction.group(x86.X86_GRP_JUMP) or instruction.group(x86.X86_GRP_CALL):
        operand = instruction.operands[0]
        if operand.type == x86.X86_OP_IMM:
            return int(operand.imm)
    return None


def behind_stub(elf: Elf, address: int) -> int:
    """Return the function that a PLT stub leads to if the file itself defines it, else the address as it is."""
    section = elf.section_at(address)
    if section is None or not section.name.startswith(".plt"):
        return address
    for instruction in disassembler(detail=True).disasm(elf.read(address, 16), address):
        if instruction.mnemonic.endswith("jmp") and instruction.operands[0].type == x86.X86_OP_MEM:
            name = elf.imported(instruction.address + instruction.size + instruction.operands[0].mem.disp)
            symbol = elf.symbols([name]).get(name) if name else None
            return symbol.address if symbol else address
    return address


def plain_entry(elf: Elf, address: int, arguments: Iterable[str], reason: str, instruction: Any = None) -> Placement:
    """Return the place of last resort: the first instruction. Raises ElfError if the address is not in the file."""
    offset = elf.offset_of(address)
    if offset is None or not elf.is_code(address):
        message = "a function that is not in the file"
        raise ElfError(message)
    text = "" if instruction is None else f"{instruction.mnemonic} {instruction.op_str}".strip()
    cheap = instruction is not None and emulated(bytes(instruction.bytes))
    locations = tuple(Location(register) for register in arguments)
    return Placement(address, offset, 0, text, cheap, False, 0, locations, "" if cheap else reason)


# Plans

def _decode(elf: Elf, name: str, functions: Mapping[str, tuple[int, int]]) -> Function | None:
    try:
        return Function.at(elf, *functions[name])
    except ElfError:
        return None


def _point(elf: Elf, name: str, address: int, function: Function | None, signature: _Signature) -> ProbePoint:
    """Return the probe for a function as it is called, with `signature` saying which argument is what."""
    returns = None
    if function is not None:
        entry = function.entry(signature.arguments)
        returns = function.returns() if signature.returns else None
    else:
        reason = "its code cannot be read" if elf.machine == EM_X86_64 else "no placement for this architecture"
        entry = plain_entry(elf, address, ARGUMENTS[elf.machine][: signature.arguments], reason)
        returns = entry._replace(arguments=()) if signature.returns else None
    at = entry.arguments
    optional = (signature.buffer, signature.length, signature.count_pointer)
    buffer, length, count = (None if index is None else at[index] for index in optional)
    return ProbePoint(signature.kind, name, entry, returns, at[0], buffer, length, count, signature.result)


def _forwards(function: Function, signature: _Signature) -> dict[int, tuple[int, ...]]:
    """Return the functions that handle, buffer, length (and count pointer) are handed to -> their positions there."""
    found = {}
    values = (0, signature.buffer, signature.length, signature.count_pointer)
    wanted = tuple(value for value in values if value is not None)
    for target, state in function.handed_on():
        positions = []
        for value in wanted:
            held = [place for place, register in enumerate(function.arguments) if state.get(register) == value]
            positions += held[:1]
        if len(positions) == len(wanted):
            found[target] = tuple(positions)
    return found


def _shared(decoded: Mapping[str, Function]) -> tuple[int, _Signature] | None:
    """Return the one function that all of these hand their arguments to, and what its arguments are."""
    if len(decoded) < 2:
        return None
    forwards = {name: _forwards(function, _SIGNATURES[name]) for name, function in decoded.items()}
    common = set.intersection(*(set(targets) for targets in forwards.values()))
    if len(common) != 1:
        return None
    (target,) = common
    positions = {targets[target][:3] for targets in forwards.values()}
    counts = {targets[target][3] for targets in forwards.values() if len(targets[target]) > 3}
    kind = _SIGNATURES[next(iter(decoded))].kind
    if len(positions) != 1 or len(counts) > 1:
        return None
    ((handle, buffer, length),) = positions
    if handle != 0:
        return None
    result = Result.POINTED if counts else Result.BYTES
    return target, _Signature(kind, result, buffer, length, next(iter(counts), None))


def _cheap(point: ProbePoint) -> bool:
    return point.entry.cheap and (point.returns is None or point.returns.cheap)


def _family(elf: Elf, names: tuple[str, ...], functions: Mapping[str, tuple[int, int]]) -> list[ProbePoint]:
    """Return the probes for functions of one purpose: on each, or on the one that they all call if that is cheaper."""
    names = tuple(name for name in names if name in functions)
    code = {name: _decode(elf, name, functions) for name in names} if elf.machine == EM_X86_64 else {}
    decoded = {name: function for name, function in code.items() if function is not None}
    if len(names) > 1:
        # One that hands on to another of the family is covered by it.
        starts = {functions[name][0] for name in names}
        names = tuple(n for n in names if n not in decoded or not starts & set(_forwards(decoded[n], _SIGNATURES[n])))
        decoded = {name: decoded[name] for name in names if name in decoded}
    points = [_point(elf, name, functions[name][0], decoded.get(name), _SIGNATURES[name]) for name in names]
    shared = _shared(decoded) if len(decoded) == len(names) and not all(map(_cheap, points)) else None
    if shared is not None:
        target, signature = shared
        try:
            function = Function.at(elf, target)
        except ElfError:
            return points
        text = f"{' and '.join(names)}, in the function they call at {target:#x}"
        point = _point(elf, text, target, function, signature)
        if _cheap(point):
            return [point]
    return points


def _plan(elf: Elf, families: Iterable[tuple[str, ...]]) -> list[ProbePoint]:
    if elf.machine not in ARGUMENTS:
        message = "the calling convention of this architecture is not known"
        raise ElfError(message)
    families = tuple(families)
    symbols = elf.symbols(name for names in families for name in names)
    functions = {name: (s.address, s.size) for name, s in symbols.items() if elf.is_code(s.address)}
    return [point for names in families for point in _family(elf, names, functions)]


def plan_openssl(elf: Elf) -> list[ProbePoint]:
    """Return the probes for what a file defines of OpenSSL's or BoringSSL's API: libssl, libcrypto, or an executable.

    Raises ElfError. An empty list: it defines nothing of it.
    """
    return _plan(elf, _OPENSSL)


def plan_gnutls(elf: Elf) -> list[ProbePoint]:
    """Return the probes for what a file defines of GnuTLS's API. Raises ElfError."""
    return _plan(elf, _GNUTLS)
