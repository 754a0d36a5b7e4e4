"""Where an SSL object keeps what a program asks it for, and where the dynamic loader tells debuggers of libraries.

The structures behind OpenSSL's and BoringSSL's API are private and differ from version to version and from build to
build. But each field wanted here has a small exported function that returns it, and the way of the value through that
function's code says where the field lies. So the function is run, symbolically: the SSL is an unknown pointer, and
what is loaded through it is remembered by the way that led to it (`Path`). Where a branch depends on such a value,
both ways are taken. An answer is given only if every way that ends with one agrees, but for two rules: from OpenSSL 3.2
on an SSL begins with its type, and the way of type 0, a connection of TLS, counts; and of ways that differ in the
number of pointers followed (BoringSSL, during early data), the shortest one counts.

All of this is for x86-64. Anything not understood is None, and `reasons` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from capstone import x86_const as x86

from apitrace.probes.elf import EM_X86_64, Elf, ElfError
from apitrace.probes.placement import (
    ARGUMENTS,
    FULL,
    Function,
    Placement,
    behind_stub,
    branch_target,
    disassembler,
    plain_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

RANDOM_SIZE = 32
"""Bytes of a ClientHello's random (RFC 8446, 4.1.2)."""

_STEPS = 2000
"""Instructions in all of one function's ways: the longest seen takes 150."""
_WAYS = 64
"""Ways through a function: the most seen are 12."""
_DEEPEST = 4
"""Calls within calls that are followed; none of those seen needs more than 1."""
_LONGEST_COPY = 64


class Path(NamedTuple):
    """The way from an SSL to something: pointer = ssl; for d in derefs: pointer = *(u64 *)(pointer + d)."""

    derefs: tuple[int, ...]
    offset: int
    """It lies at pointer + this."""


class Field(NamedTuple):
    """A little-endian integer at a path: its value is `(loaded >> shift) & mask`."""

    path: Path
    size: int
    """Bytes to load: 1, 2, 4 or 8."""
    shift: int = 0
    mask: int = (1 << 64) - 1


class SslLayout(NamedTuple):
    """Where things lie in the SSL objects of one library or executable."""

    client_random: Path | None
    """RANDOM_SIZE bytes, as on the wire: they say which connection's ClientHello this SSL sent or received."""
    alpn: Path | None
    """The bytes of the protocol agreed on. A null pointer on the way: none was."""
    alpn_len: Field | None
    server: Field | None
    """Not 0: it is the accepting end."""
    version: Field | None
    """As on the wire: 0x0303 is TLS 1.2."""
    shutdown: Field | None
    """The flags that SSL_get_shutdown returns."""
    type: Field | None
    """If not None, the paths hold only for an SSL in which this is 0 (others are of QUIC)."""
    reasons: dict[str, str]
    """Field -> why it is None."""


class _Place(NamedTuple):
    """An address: what `root` points to, after so many dereferences, plus an offset."""

    root: str
    derefs: tuple[int, ...] = ()
    offset: int = 0


class _Bits(NamedTuple):
    """Part of what was loaded from a place: (loaded >> shift) & mask."""

    place: _Place
    size: int
    shift: int
    mask: int


_Value = int | _Place | _Bits | None
"""A number, an address, loaded bits; None: not known. A pointer that was loaded is the address that it holds."""

_SSL, _STACK = "ssl", "stack"
_DONE = (1 << 64) - 1  # the return address of the function that is run

def _mask(size: int) -> int:
    return (1 << 8 * size) - 1


def _loaded(place: _Place, size: int) -> _Value:
    if size == 8:
        return _Place(place.root, (*place.derefs, place.offset))
    return _Bits(place, size, 0, _mask(size))


def _truncated(value: _Value, size: int) -> _Value:
    """Return the low bytes of a value."""
    if isinstance(value, int):
        return value & _mask(size)
    if isinstance(value, _Place) and size < 8:
        # Of an address only what was loaded as a whole has low bytes that are known.
        return None if value.offset or not value.derefs else _loaded(_origin(value), size)
    if isinstance(value, _Bits) and size < 8:
        return value._replace(mask=value.mask & _mask(size))
    return value


def _origin(pointer: _Place) -> _Place:
    """Return the place that a loaded pointer was loaded from."""
    return _Place(pointer.root, pointer.derefs[:-1], pointer.derefs[-1])


def _byte_at(value: _Value, index: int) -> _Place | None:
    """Return where the nth byte of a value was loaded from; None: it was not, or not as it is."""
    if isinstance(value, _Place) and not value.offset and value.derefs and index < 8:
        origin = _origin(value)
    elif isinstance(value, _Bits) and not value.shift and value.mask == _mask(value.size) and index < value.size:
        origin = value.place
    else:
        return None
    return origin._replace(offset=origin.offset + index)


_TYPE = _Bits(_Place(_SSL), 4, 0, (1 << 32) - 1)


class _Way:
    """One way through a function: the machine's state so far, and what was assumed."""

    def __init__(self, registers: dict[str, tuple[_Value, int]]) -> None:
        self.registers = registers
        """Name -> (value, how many of its low bytes that is)."""
        self.memory: dict[tuple[str, tuple[int, ...], int], tuple[_Value, int]] = {}
        """Place of a byte that was written -> (value, which byte of it)."""
        self.compared: tuple[str, _Value, _Value, int] | None = None
        """(instruction, left, right, size): what the flags are of."""
        self.zero: set[_Bits] = set()
        """What was taken to be 0."""
        self.bounds: list[tuple[int, int]] = []
        """Of the functions that it is in."""
        self.at = 0

    def copy(self) -> _Way:
        other = _Way(dict(self.registers))
        other.memory, other.compared, other.at = dict(self.memory), self.compared, self.at
        other.zero, other.bounds = set(self.zero), list(self.bounds)
        return other

    # Registers and memory

    def get(self, register: str, size: int = 8) -> _Value:
        value, width = self.registers.get(register, (None, 0))
        return _truncated(value, size) if size <= width else None

    def set(self, register: str, value: _Value, size: int = 8) -> None:
        width = 8 if size == 4 else size
        if size < 4:
            # What is above a part of a register stays: the whole is known where that is 0.
            before, known = self.registers.get(register, (None, 0))
            bits = before if isinstance(before, int) else before.mask if isinstance(before, _Bits) else None
            if bits is not None and not bits >> 8 * size:
                width = max(known, size)
        self.registers[register] = (_truncated(value, size), width)

    def store(self, place: _Value, value: _Value, size: int) -> None:
        if isinstance(place, _Place):
            value = _truncated(value, size)
            for index in range(size):
                self.memory[place.root, place.derefs, place.offset + index] = (value, index)

    def load(self, place: _Value, size: int) -> _Value:
        if not isinstance(place, _Place):
            return None
        written = [self.memory.get((place.root, place.derefs, place.offset + index)) for index in range(size)]
        if all(byte is None for byte in written):
            return None if place.root == _STACK else _loaded(place, size)
        values = {byte[0] for byte in written if byte is not None}
        in_order = all(byte is not None and byte[1] == index for index, byte in enumerate(written))
        return _truncated(values.pop(), size) if in_order and len(values) == 1 else None

    def push(self, value: _Value) -> None:
        self.set("rsp", _sum(self.get("rsp"), -8))
        self.store(self.get("rsp"), value, 8)

    def pop(self) -> _Value:
        value = self.load(self.get("rsp"), 8)
        self.set("rsp", _sum(self.get("rsp"), 8))
        return value

    # Operands

    def address(self, instruction: Any, operand: Any) -> _Value:
        memory = operand.mem
        if memory.segment:
            return None
        value: _Value = 0
        for register, scale in ((memory.base, 1), (memory.index, memory.scale)):
            if register:
                name = instruction.reg_name(register)
                part = instruction.address + instruction.size if name == "rip" else self.get(FULL.get(name, name))
                if scale != 1:
                    part = part * scale if isinstance(part, int) else None
                value = _sum(value, part)
        return _sum(value, memory.disp)

    def read(self, instruction: Any, operand: Any) -> _Value:
        if operand.type == x86.X86_OP_IMM:
            return int(operand.imm) & _mask(8)
        if operand.type == x86.X86_OP_REG:
            name = instruction.reg_name(operand.reg)
            return None if name in _HIGH else self.get(FULL.get(name, name), operand.size)
        return self.load(self.address(instruction, operand), operand.size)

    def write(self, instruction: Any, operand: Any, value: _Value) -> None:
        if operand.type == x86.X86_OP_REG:
            name = instruction.reg_name(operand.reg)
            if name in _HIGH:
                self.set(FULL[name], None)
            else:
                self.set(FULL.get(name, name), value, operand.size)
        elif operand.type == x86.X86_OP_MEM:
            self.store(self.address(instruction, operand), value, operand.size)

    def copied(self, target: _Value, source: _Value, size: _Value) -> bool:
        """Carry out a copy of bytes from an SSL to elsewhere, if this is one."""
        if not (isinstance(target, _Place) and isinstance(source, _Place) and isinstance(size, int)):
            return False
        if source.root != _SSL or target.root == _SSL or not 0 < size <= _LONGEST_COPY:
            return False
        for index in range(size):
            byte = _loaded(source._replace(offset=source.offset + index), 1)
            self.store(target._replace(offset=target.offset + index), byte, 1)
        return True


_HIGH = frozenset({"ah", "bh", "ch", "dh"})
_CALLER_SAVED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")


def _signed(value: int, size: int = 8) -> int:
    value &= _mask(size)
    return value - (1 << 8 * size) if value >> (8 * size - 1) else value


def _sum(left: _Value, right: _Value, sign: int = 1) -> _Value:
    if isinstance(left, int) and isinstance(right, int):
        return (left + sign * right) & _mask(8)
    if isinstance(left, _Place) and isinstance(right, int):
        return left._replace(offset=left.offset + sign * _signed(right))
    if isinstance(left, int) and isinstance(right, _Place) and sign > 0:
        return _sum(right, left)
    if isinstance(left, _Place) and isinstance(right, _Place) and sign < 0 and left[:2] == right[:2]:
        return (left.offset - right.offset) & _mask(8)
    return None


def _and(left: _Value, right: _Value) -> _Value:
    if isinstance(left, int) and isinstance(right, int):
        return left & right
    if isinstance(left, _Bits) and isinstance(right, int):
        return left._replace(mask=left.mask & right)
    if isinstance(left, _Place) and isinstance(right, int) and right in _ALIGNING and not left.derefs:
        # What was given as `out` is taken to be as aligned as can be.
        return left._replace(offset=left.offset & _signed(right))
    return None


_ALIGNING = frozenset(_mask(8) ^ low for low in (3, 7, 15, 31))


def _shifted(value: _Value, by: _Value) -> _Value:
    if isinstance(value, int) and isinstance(by, int):
        return value >> (by & 63)
    if isinstance(value, _Bits) and isinstance(by, int):
        return value._replace(shift=value.shift + by, mask=value.mask >> by)
    return None


_ARITHMETIC: dict[str, Callable[[_Value, _Value], _Value]] = {
    "add": _sum,
    "sub": lambda left, right: _sum(left, right, -1),
    "and": _and,
    "or": lambda left, right: left | right if isinstance(left, int) and isinstance(right, int) else None,
    "xor": lambda left, right: left ^ right if isinstance(left, int) and isinstance(right, int) else None,
    "shl": lambda left, right: left << (right & 63) if isinstance(left, int) and isinstance(right, int) else None,
    "shr": _shifted,
}
_MOVES = frozenset({
    "mov", "movabs", "movzx", "movd", "movq", "movdqu", "movdqa", "movups", "movaps", "vmovdqu", "vmovdqa", "vmovups",
    "vmovaps", "lddqu",
})  # fmt: skip
_COMPARES = frozenset({"cmp", "test"})
_QUIET = frozenset({"nop", "endbr64", "vzeroupper", "pause"})

# Condition -> what it says of a comparison of two numbers, given as (left, right, their signed readings).
_CONDITIONS: dict[str, Callable[[int, int, int, int], bool]] = {
    "e": lambda a, b, *_: a == b,
    "ne": lambda a, b, *_: a != b,
    "b": lambda a, b, *_: a < b,
    "ae": lambda a, b, *_: a >= b,
    "be": lambda a, b, *_: a <= b,
    "a": lambda a, b, *_: a > b,
    "l": lambda _a, _b, a, b: a < b,
    "ge": lambda _a, _b, a, b: a >= b,
    "le": lambda _a, _b, a, b: a <= b,
    "g": lambda _a, _b, a, b: a > b,
    "s": lambda _a, _b, a, b: a < b,
    "ns": lambda _a, _b, a, b: a >= b,
}


_OF_RESULT = frozenset({"e", "ne", "s", "ns"})
"""Conditions that say of an operation's result the same as of its comparison with 0."""


class _UnclearError(Exception):
    """What a condition depends on is not known."""


def _decide(way: _Way, condition: str) -> bool:
    """Return whether a condition holds. Raises _UnclearError."""
    test = _CONDITIONS.get(condition)
    if test is None or way.compared is None:
        raise _UnclearError
    name, left, right, size = way.compared
    if name == "test":
        left, right = left if left == right else _and(left, right), 0
    elif name == "result" and condition not in _OF_RESULT:
        raise _UnclearError
    if isinstance(left, int) and isinstance(right, int):
        left, right = left & _mask(size), right & _mask(size)
        if condition in {"s", "ns"}:
            left, right = (left - right) & _mask(size), 0
        return test(left, right, _signed(left, size), _signed(right, size))
    if isinstance(left, _Place) and not left.derefs and right == 0:
        return test(1, 0, 1, 0)  # what the function was given is not null
    if isinstance(left, _Bits) and right == 0 and any(_covers(known, left) for known in way.zero):
        return test(0, 0, 0, 0)
    raise _UnclearError


def _covers(whole: _Bits, part: _Bits) -> bool:
    return whole.place == part.place and not (part.mask << part.shift) & ~(whole.mask << whole.shift)


def _assume(way: _Way, condition: str, holds: bool) -> None:
    """Note what is the case where a condition that is not known holds, or does not."""
    if way.compared is not None and condition in {"e", "ne"} and (condition == "e") is holds:
        name, left, right, _ = way.compared
        if isinstance(left, _Bits) and (left == right if name == "test" else right == 0):
            way.zero.add(left)


class _Run:
    """All ways through a function that begin with the same arguments."""

    def __init__(self, elf: Elf, start: int, arguments: Iterable[_Value]) -> None:
        self._elf = elf
        self._code: dict[int, Any] = {}
        self._budget = _STEPS
        first = _Way({name: (value, 8) for name, value in zip(ARGUMENTS[EM_X86_64], arguments, strict=False)})
        first.set("rsp", _Place(_STACK))
        first.push(_DONE)
        self._pending = [first] if self._enter(first, start) else []
        self._begun = 1

    def ways(self) -> Iterator[_Way]:
        """Yield each way that comes to the function's end."""
        while self._pending:
            way = self._pending.pop()
            while self._budget and self._step(way):
                pass
            if way.at == _DONE:
                yield way

    def _enter(self, way: _Way, address: int) -> bool:
        bounds = self._elf.bounds(address)
        if bounds is None or len(way.bounds) >= _DEEPEST:
            return False
        way.bounds.append(bounds)
        way.at = address
        return True

    def _instruction(self, address: int) -> Any:
        if address not in self._code:
            section = self._elf.section_at(address)
            end = section.address + section.size if section else address
            code = self._elf.read(address, min(15, end - address)) if end > address else b""
            self._code[address] = next(iter(disassembler(detail=True).disasm(code, address, 1)), None)
        return self._code[address]

    def _step(self, way: _Way) -> bool:
        """Carry out an instruction; return whether the way goes on."""
        self._budget -= 1
        if not way.bounds[-1][0] <= way.at < way.bounds[-1][1]:
            return False  # it ran on behind a call that does not return
        instruction = self._instruction(way.at)
        if instruction is None:
            return False
        way.at += instruction.size
        name, target = instruction.mnemonic.split()[-1], branch_target(instruction)
        if name == "ret":
            return self._return(way)
        if name == "call":
            return self._call(way, target)
        if name == "jmp":
            return self._jump(way, target)
        if instruction.group(x86.X86_GRP_JUMP):
            return target is not None and self._branch(way, name[1:], target)
        if name in {"ud2", "hlt", "int3"}:
            return False
        self._other(way, instruction, name)
        return True

    def _return(self, way: _Way) -> bool:
        address = way.pop()
        way.bounds.pop()
        if not isinstance(address, int):
            return False
        way.at = address
        return address != _DONE and bool(way.bounds)

    def _call(self, way: _Way, target: int | None) -> bool:
        if self._copy_call(way):
            return True
        following = way.at
        if target is not None:
            target = behind_stub(self._elf, target)
            if way.bounds[-1][0] <= target < way.bounds[-1][1]:
                return False
            section = self._elf.section_at(target)
            if section is not None and not section.name.startswith(".plt"):
                way.push(following)
                if self._enter(way, target):
                    return True
                way.pop()
        for register in _CALLER_SAVED:
            way.set(register, None)
        return True

    def _copy_call(self, way: _Way) -> bool:
        """Carry out what is called with target, source and size of a copy: memcpy, by whatever name."""
        target = way.get("rdi")
        if not way.copied(target, way.get("rsi"), way.get("rdx")):
            return False
        for register in _CALLER_SAVED:
            way.set(register, None)
        way.set("rax", target)
        return True

    def _jump(self, way: _Way, target: int | None) -> bool:
        if target is None:
            return False
        if way.bounds[-1][0] <= target < way.bounds[-1][1]:
            way.at = target
            return True
        if self._copy_call(way):
            return self._return(way)
        target = behind_stub(self._elf, target)
        way.bounds.pop()
        return self._enter(way, target)

    def _branch(self, way: _Way, condition: str, target: int) -> bool:
        try:
            taken = _decide(way, condition)
        except _UnclearError:
            if self._begun < _WAYS:
                self._begun += 1
                other = way.copy()
                _assume(other, condition, holds=True)
                if self._jump(other, target):
                    self._pending.append(other)
            _assume(way, condition, holds=False)
            return True
        return self._jump(way, target) if taken else True

    def _other(self, way: _Way, instruction: Any, name: str) -> None:
        operands = instruction.operands
        if name in _QUIET:
            return
        if name in _COMPARES:
            left, right = (way.read(instruction, operand) for operand in operands)
            way.compared = (name, left, right, operands[0].size)
        elif name in _MOVES:
            way.write(instruction, operands[0], way.read(instruction, operands[1]))
        elif name == "lea":
            way.write(instruction, operands[0], way.address(instruction, operands[1]))
        elif name == "push":
            way.push(way.read(instruction, operands[0]))
        elif name == "pop":
            way.write(instruction, operands[0], way.pop())
        elif name == "leave":
            way.set("rsp", way.get("rbp"))
            way.set("rbp", way.pop())
        elif name == "xor" and _same_register(operands):
            way.write(instruction, operands[0], 0)
            way.compared = ("cmp", 0, 0, operands[0].size)
        elif name in _ARITHMETIC and len(operands) == 2:
            left, right = way.read(instruction, operands[0]), way.read(instruction, operands[1])
            if left is None and name == "and" and isinstance(right, int) and operands[0].type == x86.X86_OP_REG:
                # Of a register only some low bytes may be known, and no more be asked for.
                register = instruction.reg_name(operands[0].reg)
                left = way.get(FULL.get(register, register), 1) if right < 0x100 and register not in _HIGH else None
            result = _ARITHMETIC[name](left, right)
            way.write(instruction, operands[0], result)
            way.compared = ("result", _truncated(result, operands[0].size), 0, operands[0].size)
        elif name.startswith("cmov"):
            try:
                if _decide(way, name[4:]):
                    way.write(instruction, operands[0], way.read(instruction, operands[1]))
                elif operands[0].size == 4:
                    way.write(instruction, operands[0], way.read(instruction, operands[0]))
            except _UnclearError:
                way.write(instruction, operands[0], None)
        elif instruction.mnemonic.startswith("rep movs"):
            count = way.get("rcx")
            size = count * operands[0].size if isinstance(count, int) else None
            if not way.copied(way.get("rdi"), way.get("rsi"), size):
                way.store(way.get("rdi"), None, RANDOM_SIZE)
            for register in ("rdi", "rsi", "rcx"):
                way.set(register, None)
        else:
            _forget(way, instruction, name)


def _same_register(operands: Any) -> bool:
    left, right = operands
    return bool(left.type == right.type == x86.X86_OP_REG and left.reg == right.reg)


def _forget(way: _Way, instruction: Any, name: str) -> None:
    """Forget whatever an instruction may change that is not known here."""
    way.compared = None
    for register in instruction.regs_access()[1]:
        written = instruction.reg_name(register)
        way.set(FULL.get(written, written), None)
    for operand in instruction.operands:
        if operand.type == x86.X86_OP_REG:
            written = instruction.reg_name(operand.reg)
            if operand is instruction.operands[0] or name in {"xchg", "xadd"}:
                way.set(FULL.get(written, written), None)
        elif operand.type == x86.X86_OP_MEM and operand is instruction.operands[0]:
            way.store(way.address(instruction, operand), None, operand.size)


# What is asked of the ways


class _Answer(NamedTuple):
    found: tuple[Any, ...]
    derefs: int
    typed: bool
    """The type had to be 0."""


_NOT_DEFINED = "the file does not define {}"
_NO_WAY = "the way of the value through {} is not understood"
_SEVERAL = "{} takes it from one of several places"


def _ask(
    elf: Elf,
    functions: dict[str, int],
    name: str,
    arguments: tuple[_Value, ...],
    read: Callable[[_Way], tuple[tuple[Any, ...], int] | None],
) -> tuple[_Answer | None, str]:
    """Return what `read` finds at the end of the ways through a function, and if that is nothing, why."""
    if name not in functions:
        return None, _NOT_DEFINED.format(name)
    answers = []
    for way in _Run(elf, functions[name], arguments).ways():
        found = read(way)
        if found is not None:
            answers.append(_Answer(*found, _TYPE in way.zero))
    if not answers:
        return None, _NO_WAY.format(name)
    if any(answer.typed for answer in answers):
        answers = [answer for answer in answers if answer.typed]
    shortest = min(answer.derefs for answer in answers)
    best = {answer.found: answer for answer in answers if answer.derefs == shortest}
    return (next(iter(best.values())), "") if len(best) == 1 else (None, _SEVERAL.format(name))


def _path(place: _Place) -> Path:
    return Path(place.derefs, place.offset)


def _field(value: _Value) -> Field | None:
    if isinstance(value, _Place) and value.root == _SSL and value.derefs and not value.offset:
        return Field(_path(_origin(value)), 8)
    if isinstance(value, _Bits) and value.place.root == _SSL:
        return Field(_path(value.place), value.size, value.shift, value.mask)
    return None


def _copied_random(way: _Way) -> tuple[tuple[Path], int] | None:
    bytes_at = []
    for index in range(RANDOM_SIZE):
        value, which = way.memory.get(("out", (), index), (None, 0))
        at = _byte_at(value, which)
        if at is None or at.root != _SSL:
            return None
        bytes_at.append(at._replace(offset=at.offset - index))
    return ((_path(bytes_at[0]),), len(bytes_at[0].derefs)) if len(set(bytes_at)) == 1 else None


def _stored_alpn(way: _Way) -> tuple[tuple[Path, Field], int] | None:
    data, length = way.load(_Place("data"), 8), _field(way.load(_Place("len"), 4))
    if length is None or not isinstance(data, _Place) or data.root != _SSL or not (data.derefs or data.offset):
        return None
    return (_path(data), length), len(data.derefs)


def _returned(way: _Way) -> tuple[tuple[Field], int] | None:
    field = _field(way.get("rax", 4))
    return None if field is None else ((field,), len(field.path.derefs))


_ASKED: tuple[tuple[str, tuple[str, ...], tuple[_Value, ...], Callable[[_Way], Any]], ...] = (
    ("SSL_get_client_random", ("client_random",), (_Place(_SSL), _Place("out"), RANDOM_SIZE), _copied_random),
    ("SSL_get0_alpn_selected", ("alpn", "alpn_len"), (_Place(_SSL), _Place("data"), _Place("len")), _stored_alpn),
    ("SSL_is_server", ("server",), (_Place(_SSL),), _returned),
    ("SSL_version", ("version",), (_Place(_SSL),), _returned),
    ("SSL_get_shutdown", ("shutdown",), (_Place(_SSL),), _returned),
)  # fmt: skip


def ssl_layout(elf: Elf) -> SslLayout:
    """Return where things lie in the SSL objects of a file that defines OpenSSL's or BoringSSL's API.

    Raises ElfError if the file cannot be read.
    """
    names = [name for name, *_ in _ASKED]
    functions = {name: symbol.address for name, symbol in elf.symbols(names).items() if elf.is_code(symbol.address)}
    fields: dict[str, Any] = dict.fromkeys(SslLayout._fields[:-1])
    reasons: dict[str, str] = {}
    for name, wanted, arguments, read in _ASKED:
        answer, reason = None, "not known for this architecture"
        if elf.machine == EM_X86_64:
            answer, reason = _ask(elf, functions, name, arguments, read)
        if answer is None:
            reasons.update(dict.fromkeys(wanted, reason))
            continue
        fields.update(zip(wanted, answer.found, strict=True))
        if answer.typed:
            fields["type"] = _field(_TYPE)
    return SslLayout(**fields, reasons=reasons)


# The dynamic loader

_LOADER_HOOKS = ("_dl_debug_state", "dl_debug_state")


class LoaderHook(NamedTuple):
    """Where a dynamic loader (ld-linux, ld-musl) tells debuggers that its list of libraries is about to change or has.

    It calls an empty function for that (glibc's manual of <link.h>, r_brk). Seen with glibc and musl: when a program
    starts, a call comes when all the libraries that it asks for are mapped and before any of their constructors runs;
    the same in each dlopen that maps something. Before, and at dlclose, there are calls while the list is not
    consistent.
    """

    entry: Placement
    state: int | None
    """Address, in the file's own addresses, of an int that is 0 while the list is consistent; None: not known."""


_STATE_AT = 24  # r_debug.r_state: behind an int, padded, and two pointers (<link.h>)


def loader_hook(elf: Elf) -> LoaderHook | None:
    """Return a dynamic loader's hook; None if the file is none, or has its symbols stripped. Raises ElfError."""
    symbols = elf.symbols([*_LOADER_HOOKS, "_r_debug", "_dl_debug_addr"])
    hook = next((symbols[name] for name in _LOADER_HOOKS if name in symbols), None)
    if hook is None or not elf.is_code(hook.address):
        return None
    try:
        entry = Function.at(elf, hook.address, hook.size).entry(0) if elf.machine == EM_X86_64 else None
    except ElfError:
        entry = None
    if entry is None:
        entry = plain_entry(elf, hook.address, (), "its code is not known")
    debug = None
    if "_r_debug" in symbols:
        debug = symbols["_r_debug"].address
    elif "_dl_debug_addr" in symbols:  # musl: a pointer to it
        debug = elf.pointer(symbols["_dl_debug_addr"].address)
    return LoaderHook(entry, debug + _STATE_AT if debug else None)
