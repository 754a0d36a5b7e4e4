"""Calls on TLS sessions that were under way when the probes were placed: threads blocked inside SSL_read.

A return probe sees the end of a call only if its entry was probed: it puts its own address in place of the return
address there. But the usual state of a thread that serves a connection, or waits for an answer, is to be inside a read.
So when a process is attached to, each of its threads that is in a system call is looked at once:

 - its stack is unwound (unwind.py) from the system call outward, up to the innermost call on a probed function;
 - the handle, the buffer and where the count goes are found where that function keeps them at the call that it has not
   returned from (placement.py), or where a function keeps them that it handed them on to: in registers as the functions
   further in have saved them, or on the stack;
 - the call is entered into the programs' table `threads` as if its entry had been seen, and the program for returns is
   placed behind the call, for this process alone, until every such call has returned. If an earlier capture has left
   the address of its return probe on the stack, the kernel knows the call still, and reports its end to whoever probes
   the function by then (kernel/events/uprobes.c: what waits for a return keeps the uprobe, and a new probe on the same
   instruction joins it): there nothing is placed. Kernel.detach sees to it that the kernel does know the call; it does
   not if that capture was killed (SIGKILL) within a tenth of a second after the call began.

Nothing is guessed. A thread whose stack or code is not understood is left alone: what its call returns is not seen
then, and is reported as unknown. A thread that moves while it is looked at is left alone too. The process is not
stopped, and only its memory is read; that may be hostile, so everything is bounded and nothing but addresses is taken
from it: the worst that a process can achieve is to have other bytes of its own memory shown.

For x86-64 only.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from capstone import x86_const as x86

from apitrace.probes import procfs
from apitrace.probes.elf import EM_X86_64, Elf, ElfError
from apitrace.probes.placement import ARGUMENTS, Function, State, behind_stub, branch_target
from apitrace.probes.unwind import Row, Unwinder, way_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from apitrace.probes.kernel import Kernel
    from apitrace.probes.libraries import Libraries, MappedCode, MappedFile
    from apitrace.probes.uprobes import Probe

MOST_THREADS = 4096
"""Threads of one process that are looked at, 0.8 ms each: thread-per-connection servers have hundreds."""
MOST_SECONDS = 5.0
"""Time for one process: 500 threads took 0.4 s. A hostile file could have code that takes forever to be understood."""
MOST_WAYS = 64
"""Functions that it may have become, at a time: in OpenSSL one."""
MOST_FRAMES = 64
"""Calls between the system call and the read: a dozen in every library seen."""
STACK_BYTES = 64 << 10
"""Of a thread's stack, from the system call outward: inside TLS libraries 2 KB were seen; a record has 16 KB."""
MOST_TAILS = 3
"""Jumps by which a probed function may have become another: OpenSSL makes two."""
MOST_PLACES = 64
"""Return addresses in one process: callers of SSL_read, so a handful."""
REVIEWED = 256
"""Calls looked after in one review: 10 us each."""

_TRAMPOLINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*\[uprobes\]$", re.MULTILINE)
_WORD = struct.Struct("=Q")
_FRAME = struct.Struct("=QQQQQQII")  # struct tls_frame in bpf/sessions.bpf.c
_DEPTH = struct.Struct("=I4x")  # depth, reserved of struct tls_thread; its frames follow
_KEY = struct.Struct("=Q")
_PRESERVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
_ENDBR, _BND, _JUMP_MEMORY, _CALL_MEMORY, _CALL = b"\xf3\x0f\x1e\xfa", b"\xf2", b"\xff\x25", b"\xff\x15", 0xE8


class Awaited(NamedTuple):
    """A probed function whose calls are looked for."""

    address: int
    """Where it begins, in the file's own addresses."""
    point: int
    kind: int
    """enum point_kind in bpf/apitrace.h."""
    handle: int
    """Which of its arguments is what; the first is 0."""
    buffer: int
    counter: int | None


class Seen(NamedTuple):
    """Where a thread is: a system call, and its caller."""

    tid: int
    stack: int
    instruction: int


class Call(NamedTuple):
    """A call that has not returned."""

    seen: Seen
    awaited: Awaited
    handle: int
    buffer: int
    counter: int
    """0: the result tells the number of bytes."""
    slot: int
    """Where on the stack its return address is."""
    returns: int
    """Its return address."""
    replaced: bool
    """That is a return probe's: of a capture that has ended since, or of another program."""


@dataclass(slots=True)
class _Frame:
    """A function that has not returned."""

    code: _Code
    row: Row
    """In the file's own addresses; so is the next."""
    at: int
    """The instruction that it goes on with."""
    registers: dict[str, int]
    """Those that callees preserve, as far as they are known."""
    base: int
    """The stack pointer before the call: its return address is 8 bytes below."""


class _Code:
    """The code of one mapped file."""

    def __init__(self, elf: Elf, where: MappedFile, deadline: float) -> None:
        self.elf = elf
        self.where = where
        self._deadline = deadline
        self._unwinder = Unwinder(elf)
        # Threads are mostly in the same few places: each is worked out once.
        self._rows: dict[tuple[int, int], Row] = {}
        self._functions: dict[int, Function] = {}
        self._reloaded: dict[tuple[int, int], bool] = {}
        self._tails: dict[int, list[_Tail]] = {}

    def function(self, address: int) -> Function:
        """Return the function that begins at an address. Raises ElfError."""
        if time.monotonic() > self._deadline:
            message = "no time left"
            raise ElfError(message)
        if address not in self._functions:
            self._functions[address] = Function.at(self.elf, address)
        return self._functions[address]

    def row(self, within: int, at: int) -> Row:
        """Return how to leave a function, given an address in it, and the instruction that is next. Raises ElfError."""
        if (within, at) not in self._rows:
            self._rows[within, at] = self._unwinder.row(within) or way_out(self.elf, at)
        return self._rows[within, at]

    def reloads(self, function: Function, slot: int) -> bool:
        """Return whether a function reads this slot of its stack."""
        key = (function.start, slot)
        if key not in self._reloaded:
            self._reloaded[key] = _reloads(function, slot)
        return self._reloaded[key]

    def call_before(self, start: int, at: int) -> tuple[Function, State, int | None]:
        """Return what a function knows at its call that returns to `at`, and whom it calls. Raises ElfError."""
        function = self.function(start)
        for size in range(2, 8):
            instruction = function.instructions.get(at - size)
            if instruction is not None and instruction.size == size and instruction.id == x86.X86_INS_CALL:
                state = function.states.get(instruction.address)
                if state is not None:
                    return function, state, branch_target(instruction)
        message = "a return address that is not behind a call"
        raise ElfError(message)

    def tails(self, address: int) -> list[_Tail]:
        """Return the jumps by which a function becomes another. Raises ElfError."""
        if address not in self._tails:
            function = self.function(address)
            self._tails[address] = []
            for at, state in function.states.items():
                jump = function.instructions.get(at)
                if jump is None or state.get("rsp") != ("stack", 0) or not jump.group(x86.X86_GRP_JUMP):
                    continue
                target = branch_target(jump)
                if target is None:
                    self._tails[address].append(_Tail(None, _path(function, at), state))
                elif not function.start <= target < function.end:
                    self._tails[address].append(_Tail(behind_stub(self.elf, target), None, state))
        return self._tails[address]


def _path(function: Function, jump: int) -> tuple[int, tuple[int, ...]] | None:
    """Return where the pointer of a jump comes from: (argument, the distances at which pointers are followed).

    None: not known. Only what always comes before the jump is looked at.
    """
    if function.switches:
        return None
    before: list[Any] = []
    for instruction in function.instructions.values():
        if instruction.address >= jump:
            break
        if instruction.address in function.targets:
            before.clear()
        before.append(instruction)
    distances: list[int] = []
    operand = function.instructions[jump].operands[0]
    while True:
        if operand.type == x86.X86_OP_MEM:
            if operand.mem.index or operand.mem.segment:
                return None
            register = operand.mem.base
            distances.insert(0, operand.mem.disp)
        else:
            register = operand.reg
        while before and register not in before[-1].regs_access()[1]:
            before.pop()
        if not before:
            return None
        load = before.pop()
        if load.mnemonic != "mov" or load.operands[1].type not in (x86.X86_OP_MEM, x86.X86_OP_REG):
            return None
        operand = load.operands[1]
        base = operand.mem.base if operand.type == x86.X86_OP_MEM else operand.reg
        held = function.states.get(load.address, {}).get(load.reg_name(base) or "")
        if isinstance(held, int):
            if operand.type == x86.X86_OP_MEM:
                distances.insert(0, operand.mem.disp)
            return held, tuple(distances)


class _Tail(NamedTuple):
    """A jump by which a function becomes another."""

    target: int | None
    """None: a pointer tells."""
    path: tuple[int, tuple[int, ...]] | None
    """Where that pointer is; None: not known."""
    state: State

    def renamed(self, way: Mapping[int, int]) -> dict[int, int] | None:
        """Return which argument is which after the jump, given which was which before; None: one is not handed on."""
        after = {}
        for wanted, position in way.items():
            registers = enumerate(ARGUMENTS[EM_X86_64])
            held = [index for index, register in registers if self.state.get(register) == position]
            if not held:
                return None
            after[wanted] = held[0]
        return after


class Stacks:
    """The stacks of one process's threads. Use it as a context manager."""

    def __init__(
        self, pid: int, code: Sequence[MappedCode], awaited: Mapping[tuple[int, int], Sequence[Awaited]]
    ) -> None:
        """`awaited`: device and inode of a file -> the functions in it. Raises OSError if the process is gone."""
        self.pid = pid
        self._mapped = code
        self._codes: dict[tuple[int, int], _Code | None] = {}
        self._deadline = time.monotonic() + MOST_SECONDS
        self._closing = contextlib.ExitStack()
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._closing.callback(os.close, self._memory)
        trampoline = _TRAMPOLINE.search(Path(f"/proc/{pid}/maps").read_bytes())
        self._trampoline = (0, 0) if trampoline is None else (int(trampoline[1], 16), int(trampoline[2], 16))
        """Where return probes have calls return to."""
        self._awaited: dict[int, Awaited] = {}
        """Where a function begins in this process -> it."""
        for where in code:
            for function in awaited.get((where.file.device, where.file.inode), ()):
                opened = self._code(where)
                address = None if opened is None else self._address(opened, function.address)
                if address is not None:
                    self._awaited[address] = function

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    def seen(self, tid: int) -> Seen | None:
        """Return where a thread is in a system call; None: it is in none."""
        try:
            words = Path(f"/proc/{self.pid}/task/{tid}/syscall").read_text("ascii").split()
        except OSError:
            return None
        if len(words) < 9:  # "running", or a page fault
            return None
        return Seen(tid, int(words[-2], 16), int(words[-1], 16))

    def stays(self, call: Call) -> bool:
        """Return whether the thread is still where it was, and its call will return unseen."""
        return self._word(call.slot) == call.returns and self.seen(call.seen.tid) == call.seen

    def _read(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            return b""

    def _word(self, address: int) -> int | None:
        raw = self._read(address, 8)
        return int(_WORD.unpack(raw)[0]) if len(raw) == _WORD.size else None

    def _code(self, where: MappedCode) -> _Code | None:
        key = (where.file.device, where.file.inode)
        if key not in self._codes:
            self._codes[key] = None
            with contextlib.suppress(OSError, ElfError):
                elf = self._closing.enter_context(Elf.open(where.file.file))
                self._codes[key] = _Code(elf, where.file, self._deadline)
        return self._codes[key]

    def at(self, address: int) -> tuple[MappedCode, _Code, int] | None:
        """Return where in which file an address of the process lies: (mapping, code, the file's own address)."""
        for where in self._mapped:
            if where.start <= address < where.end:
                code = self._code(where)
                offset = address - where.start + where.offset
                if code is not None and code.elf.machine == EM_X86_64:
                    for segment in code.elf.segments:
                        if segment.executable and segment.offset <= offset < segment.offset + segment.size:
                            return where, code, offset - segment.offset + segment.address
        return None

    def _address(self, code: _Code, address: int) -> int | None:
        """Return where in the process the file's own address is."""
        offset = code.elf.offset_of(address)
        for where in self._mapped:
            if offset is not None and where.file == code.where and where.offset <= offset < where.offset + where.size:
                return offset - where.offset + where.start
        return None

    # -- calls -------------------------------------------------------------------------------------------------------

    def call(self, seen: Seen) -> Call | None:
        """Return the innermost call on an awaited function that a thread is in; None: it is in none, or in riddles."""
        frames: list[_Frame] = []
        stack = self._read(seen.stack, STACK_BYTES)

        def word(address: int) -> int | None:
            at = address - seen.stack
            return int(_WORD.unpack_from(stack, at)[0]) if 0 <= at <= len(stack) - 8 and at % 8 == 0 else None

        try:
            registers, address = {"rsp": seen.stack}, seen.instruction
            while len(frames) < MOST_FRAMES:
                place = self.at(address)
                if place is None or time.monotonic() > self._deadline:
                    return None
                frame = self._leave(place, registers, innermost=not frames)
                frames.append(frame)
                returns = word(frame.base - 8)
                if returns is None:
                    return None
                replaced = self._trampoline[0] <= returns < self._trampoline[1]
                if replaced:
                    every = set(self._awaited.values())
                    calls = [self._complete(seen, frames, one, returns, word, replaced=True) for one in every]
                    known = [call for call in calls if call is not None]
                    return known[0] if len(known) == 1 else None
                if not self._behind_call(returns):
                    return None
                function = self._called(returns, frame)
                if function is not None:
                    return self._complete(seen, frames, function, returns, word, replaced=False)
                for register, offset in frame.row.saved.items():
                    value = word(frame.base + offset)
                    registers.pop(register, None)
                    if register in _PRESERVED and value is not None:
                        registers[register] = value
                for register in frame.row.lost:
                    registers.pop(register, None)
                registers = {**registers, "rsp": frame.base}
                address = returns
        except ElfError:
            pass
        return None

    def _leave(self, place: tuple[MappedCode, _Code, int], registers: dict[str, int], *, innermost: bool) -> _Frame:
        _, code, at = place
        # A call may be a function's last instruction: what is behind it is another's.
        row = code.row(at - (not innermost), at)
        base = registers.get(row.register)
        if base is None or row.saved.get("rip") != -8 or base + row.offset <= registers["rsp"]:
            message = "a frame that is not known"
            raise ElfError(message)
        return _Frame(code, row, at, dict(registers), base + row.offset)

    def _called(self, returns: int, frame: _Frame) -> Awaited | None:
        """Return the awaited function that was called, where a call has this return address."""
        start = self._address(frame.code, frame.row.start)
        if start in self._awaited:
            return self._awaited[start]
        raw = self._read(returns - 6, 6)
        if len(raw) < 6:
            return None
        distance = int.from_bytes(raw[2:], "little", signed=True)
        if raw[1] == _CALL:
            target = returns + distance
            known = self._awaited.get(target)
            return known or self._awaited.get(self._behind_stub(target) or 0)
        if raw[:2] == _CALL_MEMORY:
            return self._awaited.get(self._word(returns + distance) or 0)
        return None

    def _behind_call(self, address: int) -> bool:
        """Return whether what comes before an address may be a call: what else the stack holds is mostly not."""
        raw = self._read(address - 7, 7)
        through = (raw[-size] == _CALL_MEMORY[0] and raw[1 - size] >> 3 & 7 == 2 for size in (2, 3, 4, 6, 7))
        return len(raw) == 7 and (raw[2] == _CALL or any(through))

    def _behind_stub(self, address: int) -> int | None:
        """Return where a stub of the procedure linkage table leads to, if it is one."""
        code = self._read(address, 16)
        length = len(code)
        code = code.removeprefix(_ENDBR).removeprefix(_BND)
        if not code.startswith(_JUMP_MEMORY) or len(code) < 6:
            return None
        following = address + length - len(code) + 6
        return self._word(following + int.from_bytes(code[2:6], "little", signed=True))

    def _complete(
        self, seen: Seen, frames: list[_Frame], function: Awaited, returns: int, word: Callable[[int], int | None],
        *, replaced: bool,
    ) -> Call | None:  # fmt: skip
        """Return the call that the last of the frames is of, if it is one of `function`, with its arguments.

        Where the return address does not say which function was called, what it would have become does.
        """
        frame, last = frames[-1], len(frames) - 1
        found = set()
        for way in self._ways(frames, function, word):
            handle = _argument(frames, last, way[function.handle], word)
            buffer = _argument(frames, last, way[function.buffer], word)
            counter = None if function.counter is None else _argument(frames, last, way[function.counter], word)
            if not handle or not buffer or (function.counter is not None and not counter):
                return None
            found.add((handle, buffer, counter or 0))
        if len(found) != 1:
            return None
        return Call(seen, function, *found.pop(), frame.base - 8, returns, replaced)

    def _ways(
        self, frames: list[_Frame], function: Awaited, word: Callable[[int], int | None]
    ) -> list[dict[int, int]]:
        """Return, for each way by which `function` becomes the last of the frames, which argument is which there.

        Mostly it is that function itself. OpenSSL's becomes another, by jumps through pointers that the handle leads
        to: they are read, so what is found is what it must have become. Empty: it did not, or there may be other ways.
        """
        frame = frames[-1]
        wanted = [position for position in (function.handle, function.buffer, function.counter) if position is not None]
        pending = [(function.address, {position: position for position in wanted}, 0)]
        if frame.row.start == function.address:
            return [pending[0][1]]
        found = []
        handle = _argument(frames, len(frames) - 1, function.handle, word)
        while pending:
            address, way, depth = pending.pop()
            for tail in frame.code.tails(address):
                after = tail.renamed(way)
                target = tail.target
                if target is None:
                    if tail.path is not None and tail.path[0] == way[function.handle]:
                        target = self._follow(handle, tail.path[1], frame.code)
                    if target is None and after is not None:
                        return []
                section = None if target is None else frame.code.elf.section_at(target)
                if target is None or section is None or section.name.startswith(".plt"):
                    continue
                if after is None:
                    if target == frame.row.start:
                        return []
                    continue
                if target == frame.row.start:
                    found.append(after)
                elif depth == MOST_TAILS or len(pending) == MOST_WAYS:
                    return []
                else:
                    pending.append((target, after, depth + 1))
        return found

    def _follow(self, value: int | None, distances: tuple[int, ...], code: _Code) -> int | None:
        """Return the function in a file that pointers lead to, as the file's own address."""
        for distance in distances:
            value = None if value is None else self._word(value + distance)
        place = None if value is None else self.at(value)
        return place[2] if place is not None and place[1] is code else None

def _argument(frames: list[_Frame], index: int, position: int, word: Callable[[int], int | None]) -> int | None:
    """Return an argument that a function was called with; None: it is not known any more."""
    if index == 0:  # it makes the system call, and is not seen to keep anything
        return None
    frame = frames[index]
    function, state, target = frame.code.call_before(frame.row.start, frame.at)
    found = set()
    handed_on = None
    for place, held in state.items():
        if held != position:
            continue
        if place in _PRESERVED:
            found.add(frame.registers.get(str(place)))
        elif isinstance(place, int):
            # What only the called function reads is its own to change.
            if frame.code.reloads(function, place):
                found.add(word(frame.base - 8 + place))
        elif place in function.arguments:
            handed_on = function.arguments.index(place)
    found.discard(None)
    if not found and handed_on is not None and target == frames[index - 1].row.start:
        return _argument(frames, index - 1, handed_on, word)
    return found.pop() if len(found) == 1 else None


def _reloads(function: Function, slot: int) -> bool:
    """Return whether a function reads this slot of its stack."""
    for address, state in function.states.items():
        instruction = function.instructions.get(address)
        stack = state.get("rsp")
        if instruction is None or not isinstance(stack, tuple):
            continue
        for operand in instruction.operands[1:]:
            if operand.type == x86.X86_OP_MEM and not operand.mem.index and instruction.mnemonic != "lea":
                base = state.get(instruction.reg_name(operand.mem.base) or "")
                if isinstance(base, tuple) and base[1] + operand.mem.disp == slot:
                    return True
    return False


# -- in the kernel -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Place:
    """The probe behind one call instruction of a process."""

    probe: Probe
    calls: dict[int, Call] = field(default_factory=dict)
    """By thread."""


class BlockedCalls:
    """The calls that were under way, in all processes attached to."""

    def __init__(self, kernel: Kernel, libraries: Libraries) -> None:
        self._kernel = kernel
        self._libraries = libraries
        self._places: dict[int, dict[int, _Place]] = {}
        """Process -> return address -> what is there."""
        self._size = 0

    def attach(self, pid: int, awaited: Mapping[tuple[int, int], Sequence[Awaited]]) -> int:
        """Have the ends of calls seen that the threads of a process are in. Return how many.

        The probes on the functions are in place: a call that begins now is seen as ever. `awaited`: see Stacks.
        """
        if platform.machine() != "x86_64" or not any(awaited.values()):
            return 0
        with contextlib.suppress(OSError), Stacks(pid, self._libraries.code(pid), awaited) as stacks:
            calls = []
            for tid in procfs.threads(pid)[:MOST_THREADS]:
                seen = stacks.seen(tid)
                call = None if seen is None else stacks.call(seen)
                if call is not None:
                    calls.append(call)
            return sum(self._enter(stacks, call) for call in calls)
        return 0

    def _enter(self, stacks: Stacks, call: Call) -> bool:
        places = self._places.setdefault(stacks.pid, {})
        if not call.replaced and call.returns not in places:
            probe = None if len(places) >= MOST_PLACES else self._place(stacks, call.returns)
            if probe is None:
                return False
            places[call.returns] = _Place(probe)
        if not stacks.stays(call):
            return False
        frame = _FRAME.pack(
            call.handle, call.buffer, call.counter, call.slot, 0, 0, call.awaited.point, call.awaited.kind
        )
        # A thread that was blocked before the probes were there has no entry. If there is one now it has moved on.
        key = _key(stacks.pid, call.seen.tid)
        if not self._kernel.insert("threads", key, (_DEPTH.pack(1) + frame).ljust(self._value_size, b"\0")):
            return False
        if not stacks.stays(call):  # it may have returned before the entry was there
            self._kernel.delete("threads", key)
            return False
        if not call.replaced:
            places[call.returns].calls[call.seen.tid] = call
        return True

    def _place(self, stacks: Stacks, returns: int) -> Probe | None:
        """Place the program for returns where a call returns to, or a little further where that costs less."""
        place = stacks.at(returns)
        if place is None:
            return None
        where, code, address = place
        with contextlib.suppress(ElfError):
            bounds = code.elf.bounds(address)
            function = None if bounds is None else code.function(bounds[0])
            found = function and function.next_emulated(address, {"rsp": ("stack", 0), "rax": 0})
            if found:
                instruction, state = found
                if state.get("rsp") == ("stack", 0) and state.get("rax") == 0:
                    address = instruction.address
        offset = code.elf.offset_of(address)
        if offset is None:
            return None
        with contextlib.suppress(OSError):
            return self._kernel.probe("on_tls_return", where.file.file, [(offset, 0)], pid=stacks.pid)
        return None

    @property
    def _value_size(self) -> int:
        if not self._size:
            self._size = self._kernel.value_size("threads")
        return self._size

    def review(self) -> None:
        """Take away the probes behind calls all of which have returned."""
        left = REVIEWED
        for pid, places in list(self._places.items()):
            for returns, place in list(places.items()):
                for tid, call in list(place.calls.items())[:left]:
                    left -= 1
                    del place.calls[tid]
                    if self._waits(pid, call):
                        place.calls[tid] = call  # at the end: the next review begins with others
                if not place.calls:
                    self._kernel.remove(place.probe)
                    del places[returns]
            if not places:
                del self._places[pid]

    def under_way(self) -> bool:
        """Return whether any thread is in a call, seen by its entry or found later."""
        return any(self._slot(key) is not None for key in self._kernel.keys("threads", _KEY.size))

    def _waits(self, pid: int, call: Call) -> bool:
        """Return whether a call has not returned yet."""
        return self._slot(_key(pid, call.seen.tid)) == call.slot

    def _slot(self, key: bytes) -> int | None:
        """Return where on its stack the outermost call of a thread returns; None: it is in none, or has ended."""
        value = self._kernel.lookup("threads", key, self._value_size)
        if value is None or not _DEPTH.unpack_from(value)[0]:
            return None
        pid, tid = divmod(_KEY.unpack(key)[0], 1 << 32)
        return int(_FRAME.unpack_from(value, _DEPTH.size)[3]) if Path(f"/proc/{pid}/task/{tid}").exists() else None

    def forget(self, pid: int) -> None:
        """The process has ended, or has exec'd."""
        for place in self._places.pop(pid, {}).values():
            self._kernel.remove(place.probe)


def _key(pid: int, tid: int) -> bytes:
    return _KEY.pack(pid << 32 | tid)
