"""Go executables: what version built them, where crypto/tls is in them, and where its plaintext passes.

Names come from the function table that every Go program carries for its own tracebacks (.gopclntab): neither
`-ldflags=-s -w` nor strip removes it. There are no return probes in Go, because its stacks move, and a `ret` is
not emulated by the kernel; but the two methods have better places than their ends, found by disassembly:

* (*Conn).Read copies decrypted bytes out with one `call runtime.memmove`. The probe is on that call: source and number
  of bytes are its arguments, the *tls.Conn is in its home on the stack. It is hit once per read that gives data.
* (*Conn).Write calls writeRecordLocked, once, or twice if it splits a TLS 1.0 record. One probe is on the call,
  with the bytes as its arguments; behind it the number of bytes written would be known, but an answer may be read by
  another goroutine before that place is reached, so it is of use only to those who want the number (not tls.py).

All of these are cheap (placement.py), need no state from the entry, and a restart after the stack was grown cannot make
them fire twice. If a build has no such calls, there are the entry and every `ret`.
The register r14 holds the goroutine wherever these fire: the key to keep state by, as goroutines change threads.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from apitrace.probes.elf import EM_X86_64, Elf, ElfError
from apitrace.probes.placement import (
    GO_ARGUMENTS,
    Function,
    Kind,
    Location,
    Placement,
    State,
    branch_target,
    locate,
    plain_entry,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apitrace.probes.elf import Section

READ, WRITE = "crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write"

CONN_ITAB, CONN_DATA = 0, 8
"""*tls.Conn -> its net.Conn, the first field (src/crypto/tls/conn.go): interface table, pointer to the connection."""
NET_FD = 0
"""*net.TCPConn or *net.UnixConn -> *netFD: both begin with `conn`, which is one pointer (src/net/net.go)."""
SYSFD = 16
"""*netFD -> descriptor: poll.FD comes first (src/net/fd_posix.go), and in it fdMutex (src/internal/poll/fd_unix.go).
These four are the same from Go 1.17 to 1.26; a test asks each version's own reflection."""

_OLDEST = 17  # arguments in registers, on amd64

_BUILD_INFO = b"\xff Go buildinf:"
_INLINE_STRINGS = 2  # flag, from Go 1.18 on

_TABLE_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab", ".data.rel.ro", ".rodata")
"""An external linker merges the second into the third."""
# Magic number -> words of the header before the offsets, size of an entry of the function table, of what precedes
# the name in a function's record (src/internal/abi/symtab.go, src/runtime/symtab.go).
_LAYOUTS = {0xFFFFFFFA: (2, 16, 8), 0xFFFFFFF0: (3, 8, 4), 0xFFFFFFF1: (3, 8, 4)}
_MAGIC = re.compile(rb"[\xfa\xf0\xf1]\xff\xff\xff\x00\x00\x01\x08")  # quantum 1 (x86), 8-byte pointers
_MOST_FUNCTIONS = 4 << 20  # kubelet, among the largest, has 100,000

_MINPC = 20  # runtime.moduledata: six slices and a pointer come before findfunctab, then minpc

_CONN_METHODS = (
    "Close", "LocalAddr", "Read", "RemoteAddr", "SetDeadline", "SetReadDeadline", "SetWriteDeadline", "Write",
)  # fmt: skip
"""net.Conn's, in the order of its interface table."""
_ITAB_METHODS = 24  # runtime.itab: interface, type, hash, padding, then the methods


class GoSite(NamedTuple):
    """A call inside Read or Write through which plaintext passes."""

    kind: Kind
    at: Placement
    """The call; the probe fires before it."""
    conn: Location
    """The *tls.Conn, when `at` fires; so are the next two."""
    buffer: Location
    length: Location
    after: Placement | None
    """The first emulated place after the call. None: all is known at the call."""
    moved: Location | None
    """When `after` fires: the number of bytes, from `buffer` on, that were read or written."""


class GoFunction(NamedTuple):
    """Read or Write. Where there are sites, entry and returns need no probes."""

    kind: Kind
    name: str
    address: int
    size: int
    sites: tuple[GoSite, ...]
    entry: Placement
    """Arguments: *tls.Conn, buffer, its length."""
    restarts: bool
    """The entry probe is on the stack check: if carry or zero flag is set, the function begins again: skip that hit."""
    returns: tuple[Placement, ...]
    """Every ret: rax is the number of bytes, rbx is not 0 on error. Never cheap."""


class GoTls(NamedTuple):
    """What to probe in a Go executable that has crypto/tls in it."""

    version: str | None
    """"go1.26.8"."""
    functions: tuple[GoFunction, ...]
    """Empty: not readable."""
    net_conns: tuple[int, ...]
    """Addresses, in the file, of the interface tables of *net.TCPConn and *net.UnixConn as net.Conn. Only a tls.Conn
    whose first word is one of these (plus where the file is loaded) may be followed to its descriptor: any other
    net.Conn is a wrapper of unknown make."""
    reason: str
    """Why it is not readable; else empty."""


# Version

def version(elf: Elf) -> str | None:
    """Return the version of Go that built the file, as "go1.26.8"; None if it is no Go file. Raises ElfError."""
    section = elf.sections.get(".go.buildinfo")
    if section is None:
        return None
    head = elf.content(section)
    if not head.startswith(_BUILD_INFO) or len(head) < 32:
        return None
    if head[15] & _INLINE_STRINGS:
        size, at = _varint(head, 32)
        text = head[at : at + min(size, 256)]
    else:
        string = elf.pointer(section.address + 16)
        text = elf.read(elf.pointer(string), min(elf.pointer(string + 8), 256))
    return text.decode("ascii", "replace").partition(" ")[0] or None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for position in range(at, min(at + 10, len(data))):
        value |= (data[position] & 0x7F) << shift
        shift += 7
        if data[position] < 0x80:
            return value, position + 1
    return 0, at


# Function table

class FunctionTable:
    """The function table of a Go file. Raises ElfError if there is none, or none that is understood."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        section, start = self._find()
        base, data = section.address + start, elf.content(section)[start:]
        try:
            words, self._entry_size, self._name_at = _LAYOUTS[struct.unpack_from("<I", data)[0]]
            self._count = min(struct.unpack_from("<Q", data, 8)[0], _MOST_FUNCTIONS)
            names, units, _, _, functions = struct.unpack_from("<5Q", data, 8 + 8 * words)
            self._names = data[names:units]
            self._functions = data[functions:]
            self._functions_at = base + functions
            self._text = None if self._entry_size == 16 else self._text_start(base, base + names)
        except struct.error as error:
            message = "a Go function table that is cut short"
            raise ElfError(message) from error

    def _find(self) -> tuple[Section, int]:
        for name in _TABLE_SECTIONS:
            section = self._elf.sections.get(name)
            if section is not None and section.loaded:
                match = _MAGIC.search(self._elf.content(section))
                if match:
                    return section, match.start()
        message = "no Go function table that is understood"
        raise ElfError(message)

    def _text_start(self, header: int, names: int) -> int:
        """Return the address that functions are counted from: in the header until Go 1.25, then in the module data."""
        text = self._elf.pointer(header + 24)
        if text:
            return text
        for module in self._elf.pointers_to(header):
            if self._elf.pointer(module + 8) == names:
                first: int = struct.unpack_from("<I", self._functions)[0]
                return self._elf.pointer(module + 8 * _MINPC) - first
        message = "a Go function table without its module data"
        raise ElfError(message)

    def find(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Return start and end (where the next one starts) of the named functions. Raises ElfError."""
        offsets = {}
        for name in names:
            at = self._names.find(b"\0" + name.encode() + b"\0")
            if at >= 0:
                offsets[at + 1] = name
        found: dict[str, tuple[int, int]] = {}
        size, table, unpack = self._entry_size, self._functions, struct.Struct("<i").unpack_from
        position = struct.Struct("<Q" if size == 16 else "<I").unpack_from
        try:
            for index in range(self._count):
                (at,) = position(table, index * size + size // 2)
                name_offset = unpack(table, at + self._name_at)[0]
                if name_offset in offsets:
                    found[offsets[name_offset]] = self._entry(index), self._entry(index + 1)
        except struct.error as error:
            message = "a Go function table that is cut short"
            raise ElfError(message) from error
        return found

    def _entry(self, index: int) -> int:
        if self._text is None:
            return self._elf.pointer(self._functions_at + 16 * index)
        offset: int = struct.unpack_from("<I", self._functions, 8 * index)[0]
        return self._text + offset


# Plan

class _Call(NamedTuple):
    """A function called by Read or Write, and which of its registers carry the plaintext."""

    kind: Kind
    name: str
    buffer: str
    length: str
    conn: str | None
    """None: the *tls.Conn is not one of its arguments."""
    counted: bool
    """The number of bytes is known only when it returns, in rax."""


_CALLS = (
    _Call(Kind.READ, "runtime.memmove", "rbx", "rcx", None, counted=False),
    _Call(Kind.READ, "bytes.(*Reader).Read", "rbx", "rcx", None, counted=True),  # if not inlined: -gcflags=-l
    _Call(Kind.READ, "runtime.slicecopy", "rcx", "rdi", None, counted=True),  # in its stead, with -race
    _Call(Kind.WRITE, "crypto/tls.(*Conn).writeRecordLocked", "rcx", "rdi", "rax", counted=True),
)
_METHODS = {Kind.READ: READ, Kind.WRITE: WRITE}
_CONN_TYPES = ("net.(*TCPConn)", "net.(*UnixConn)")
_EMBEDDED = "net.(*conn)"
_PRUNED = "runtime.unreachableMethod"
"""What the linker puts into an interface table for a method that nothing in the program calls."""


def plan_go(elf: Elf) -> GoTls | None:
    """Return what to probe in a Go executable; None if it is not one, or has no crypto/tls in it. Raises ElfError."""
    built_by = version(elf)
    if built_by is None:
        return None
    try:
        table = FunctionTable(elf)
        methods = [f"{owner}.{method}" for owner in (*_CONN_TYPES, _EMBEDDED) for method in _CONN_METHODS]
        functions = table.find([READ, WRITE, _PRUNED, *(call.name for call in _CALLS), *methods])
    except ElfError as error:
        return GoTls(built_by, (), (), str(error))
    if READ not in functions or WRITE not in functions:
        return None
    match = re.search(r"go1\.(\d+)", built_by)
    if match and int(match[1]) < _OLDEST:
        return GoTls(built_by, (), (), "Go before 1.17 passes arguments on the stack")
    if elf.machine != EM_X86_64:
        return GoTls(built_by, (), (), "Go's calling convention of this architecture is not known")
    try:
        planned = tuple(_function(elf, kind, functions) for kind in _METHODS)
        return GoTls(built_by, planned, tuple(_net_conns(elf, functions)), "")
    except ElfError as error:
        return GoTls(built_by, (), (), str(error))


def _function(elf: Elf, kind: Kind, functions: dict[str, tuple[int, int]]) -> GoFunction:
    start, end = functions[_METHODS[kind]]
    function = Function(elf, start, end, GO_ARGUMENTS)
    sites: list[GoSite] = []
    for call in _CALLS:
        if call.kind == kind and call.name in functions and not sites:
            target = functions[call.name][0]
            calls = [a for a, i in function.instructions.items() if i.mnemonic == "call" and branch_target(i) == target]
            found = [_site(function, call, address) for address in calls]
            sites = [site for site in found if site is not None] if None not in found else []
    entry = function.entry(3)
    restarts = start in function.targets
    if restarts and not entry.instruction.startswith("jbe "):
        entry = plain_entry(elf, start, GO_ARGUMENTS[:3], "its stack check is not of the usual form")
    returns = [plain_entry(elf, a, (), "a ret is not emulated", i) for a, i in function.instructions.items()
               if i.mnemonic == "ret"]  # fmt: skip
    returns = [place._replace(delta=place.address - start) for place in returns]
    return GoFunction(kind, _METHODS[kind], start, end - start, tuple(sites), entry, restarts, tuple(returns))


def _site(function: Function, call: _Call, address: int) -> GoSite | None:
    state = function.states.get(address, {})
    conn = Location(call.conn) if call.conn else locate(state, 0)
    at = function.place(address, state, 0)
    if conn is None or at is None:
        return None
    buffer, length = Location(call.buffer), Location(call.length)
    if not call.counted:
        return GoSite(call.kind, at, conn, buffer, length, None, None)
    # From here on the "argument" that is followed is the call's first result.
    following = address + function.instructions[address].size
    if following not in function.instructions:
        return None
    returned: State = {"rsp": state["rsp"], "rax": 0}
    instruction, reached = function.next_emulated(following, returned) or (None, {})
    after = function.place(instruction.address, reached, 1) if instruction else None
    after = after or function.place(following, returned, 1, "the result is used up before an emulated instruction")
    return None if after is None else GoSite(call.kind, at, conn, buffer, length, after, after.arguments[0])


def _net_conns(elf: Elf, functions: dict[str, tuple[int, int]]) -> Iterable[int]:
    """Yield the addresses of interface tables that have net.Conn's methods, as TCP and Unix sockets have them."""
    read = _CONN_METHODS.index("Read")
    for owner in _CONN_TYPES:
        names = [(f"{owner}.{method}", f"{_EMBEDDED}.{method}", _PRUNED) for method in _CONN_METHODS]
        methods = [{functions[name][0] for name in alike if name in functions} for alike in names]
        for address in methods[read] - {functions.get(_PRUNED, (0, 0))[0]}:
            for place in elf.pointers_to(address):
                first = place - 8 * read
                if all(elf.pointer(first + 8 * index) in known for index, known in enumerate(methods)):
                    yield first - _ITAB_METHODS
