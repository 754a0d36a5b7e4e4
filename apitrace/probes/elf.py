"""What apitrace needs to know of an ELF file: symbols, sections, where an address lies in the file, relocations.

The files belong to traced processes and may be anything: cut short, hostile, or changed while they are read. So they
are read with pread and never mapped (a mapped file that is truncated kills its reader with SIGBUS), every size taken
from the file is bounded, and whatever is wrong with one is an ElfError. Only what is asked for is read: of node's
99 MB the symbol tables, 13 MB, in which a dozen names are found in about 30 ms.

64-bit little-endian files only; addresses are those in the file (0-based for shared objects), never of a process.
"""

from __future__ import annotations

import bisect
import functools
import os
import struct
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

EM_X86_64, EM_AARCH64 = 62, 183

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL_SIZE = 24
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_DYNAMIC = struct.Struct("<qQ")
_NOTE = struct.Struct("<III")

_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X = 1
_SHT_SYMTAB, _SHT_RELA, _SHT_DYNAMIC, _SHT_NOTE, _SHT_NOBITS, _SHT_DYNSYM = 2, 4, 6, 7, 8, 11
_SHF_WRITE, _SHF_ALLOC = 1, 2
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2
_DT_NEEDED = 1
# Relocation types (psABI of each machine): a pointer into the file itself, and the two that bind a GOT entry to a name.
_RELATIVE = {EM_X86_64: 8, EM_AARCH64: 1027}
_IMPORTED = {EM_X86_64: (6, 7), EM_AARCH64: (1025, 1026)}  # GLOB_DAT, JUMP_SLOT

_MAX_READ = 128 << 20
"""Bytes of one section that are read at once: node has 6 MB of symbol names, and ten times that is still common."""
_MAX_CANDIDATES = 4096
"""Places at which the wanted names may stand in one string table: libssl has some 30."""
_CHUNK = 1 << 22
"""Bytes per read when searching through a section."""


class ElfError(ValueError):
    """Not an ELF file that can be read. The message says why, without quoting the file."""


class Section(NamedTuple):
    """A row of the section table."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int

    @property
    def loaded(self) -> bool:
        """Whether it is part of the running process and has content in the file."""
        return bool(self.flags & _SHF_ALLOC) and self.type != _SHT_NOBITS

    @property
    def writable(self) -> bool:
        """Whether the process, or its dynamic linker, writes to it."""
        return bool(self.flags & _SHF_WRITE)


class Segment(NamedTuple):
    """A part of the file that is mapped."""

    address: int
    offset: int
    size: int
    """In the file."""
    executable: bool


class Symbol(NamedTuple):
    """A function or object that the file itself defines."""

    name: str
    address: int
    size: int
    """0: not known."""
    exported: bool
    """Found in .dynsym; else in .symtab, which stripping removes."""


def _guarded(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Turn what a malformed file provokes into ElfError."""

    @functools.wraps(function)
    def guarded(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except ElfError:
            raise
        except (struct.error, LookupError, ArithmeticError, ValueError, TypeError, OSError, MemoryError) as error:
            message = f"malformed or unreadable ELF file ({type(error).__name__})"
            raise ElfError(message) from error

    return guarded


class Elf:
    """An open ELF file. Use it as a context manager; each method may raise ElfError."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open file descriptor."""
        self._descriptor = descriptor
        self.machine = 0
        """EM_X86_64, EM_AARCH64, or another machine's number."""
        self.position_independent = False
        """A shared object or PIE: loaded at an address that differs from process to process."""
        self.sections: dict[str, Section] = {}
        """By name; of sections with equal names, the first."""
        self.segments: list[Segment] = []
        self._table: list[Section] = []
        self._notes: list[tuple[int, int]] = []
        self._read_headers()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file. Raises OSError, or ElfError if it is not a 64-bit little-endian ELF file."""
        # Not to wait for the other end of what turns out to be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pread(self, offset: int, size: int) -> bytes:
        if size > _MAX_READ:
            message = f"a part of the file is too large to be read ({size >> 20} MiB)"
            raise ElfError(message)
        data = os.pread(self._descriptor, size, offset)
        while 0 < len(data) < size:  # one read gives at most 2 GiB, and less on some file systems
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        if len(data) != size:
            message = "the file is cut short"
            raise ElfError(message)
        return data

    @_guarded
    def _read_headers(self) -> None:
        head = os.pread(self._descriptor, _HEADER.size, 0)
        if head[:4] != b"\x7fELF" or len(head) < _HEADER.size:
            message = "not an ELF file"
            raise ElfError(message)
        if head[4:6] != b"\2\1":
            message = "a 32-bit or big-endian ELF file"
            raise ElfError(message)
        (_, kind, self.machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx) = (
            _HEADER.unpack(head)
        )
        self.position_independent = kind == _ET_DYN
        if kind not in (_ET_EXEC, _ET_DYN):
            message = "neither an executable nor a shared object"
            raise ElfError(message)
        if phnum and phentsize == _SEGMENT.size:
            for row in _SEGMENT.iter_unpack(self._pread(phoff, phnum * phentsize)):
                kind, flags, offset, address, _, size, _, _ = row
                if kind == _PT_LOAD:
                    self.segments.append(Segment(address, offset, size, bool(flags & _PF_X)))
                elif kind == _PT_NOTE:
                    self._notes.append((offset, size))
        if not shnum or shentsize != _SECTION.size:
            return
        rows = list(_SECTION.iter_unpack(self._pread(shoff, shnum * shentsize)))
        names = self._pread(rows[shstrndx][4], rows[shstrndx][5])
        for name_at, kind, flags, address, offset, size, link, _, _, _ in rows:
            name = names[name_at : names.index(b"\0", name_at)].decode("utf-8", "replace") if name_at else ""
            section = Section(name, kind, flags, address, offset, size, link)
            self._table.append(section)
            if kind == _SHT_NOTE:
                self._notes.append((offset, size))
            self.sections.setdefault(name, section)

    # Content

    @_guarded
    def content(self, section: Section) -> bytes:
        """Return a section's bytes."""
        return b"" if section.type == _SHT_NOBITS else self._pread(section.offset, section.size)

    @_guarded
    def search(self, section: Section, find: Callable[[bytes], Result | None], overlap: int) -> Result | None:
        """Return the first result of `find` on successive pieces of a section, which overlap by so many bytes."""
        tail = b""
        for position in range(0, section.size, _CHUNK):
            piece = tail + self._pread(section.offset + position, min(_CHUNK, section.size - position))
            found = find(piece)
            if found is not None:
                return found
            tail = piece[-overlap:]
        return None

    def offset_of(self, address: int) -> int | None:
        """Return where in the file an address lies; None: nowhere."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    @_guarded
    def read(self, address: int, size: int) -> bytes:
        """Return the bytes at an address, as the file has them: before relocation."""
        offset = self.offset_of(address)
        if offset is None:
            message = "an address that is not in the file"
            raise ElfError(message)
        return self._pread(offset, size)

    def is_code(self, address: int) -> bool:
        """Return whether an address lies in an executable segment."""
        return any(s.executable and s.address <= address < s.address + s.size for s in self.segments)

    def section_at(self, address: int) -> Section | None:
        """Return the loaded section that an address lies in."""
        for section in self._table:
            if section.loaded and section.address <= address < section.address + section.size:
                return section
        return None

    # Names

    @functools.cached_property
    def build_id(self) -> str | None:
        """The GNU build id in hex; else Go's, as it is; None: there is none."""
        return self._build_id()

    @_guarded
    def _build_id(self) -> str | None:
        go_build_id = None
        for offset, whole in self._notes:
            notes, position = self._pread(offset, min(whole, _CHUNK)), 0
            while position + _NOTE.size <= len(notes):
                name_size, size, kind = _NOTE.unpack_from(notes, position)
                name_at = position + _NOTE.size
                at = name_at + (name_size + 3 & ~3)
                name, description = notes[name_at : name_at + name_size], notes[at : at + size]
                if (name, kind) == (b"GNU\0", 3):
                    return description.hex()
                if (name, kind) == (b"Go\0\0", 4):
                    go_build_id = description.decode("ascii", "replace")
                position = at + (size + 3 & ~3)
        return go_build_id

    @_guarded
    def symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Return those of the named functions and objects that the file defines, exported ones in preference."""
        wanted, found = set(names), dict[str, Symbol]()
        for kind in (_SHT_DYNSYM, _SHT_SYMTAB):
            for section in self._table:
                if section.type == kind and len(found) < len(wanted):
                    for symbol in self._lookup(section, wanted - found.keys()):
                        known = found.get(symbol.name)
                        if known is None or (known.size == 0 and symbol.size):
                            found[symbol.name] = symbol
        return found

    def _lookup(self, section: Section, names: set[str]) -> Iterator[Symbol]:
        strings = self.content(self._table[section.link])
        # Linkers store a name that is the end of another inside it: every occurrence is a candidate.
        offsets: dict[int, str] = {}
        for name in names:
            text = name.encode() + b"\0"
            at = strings.find(text)
            while at >= 0 and len(offsets) < _MAX_CANDIDATES:
                offsets[at] = name
                at = strings.find(text, at + 1)
        if not offsets:
            return
        table = self.content(section)
        table = table[: len(table) // _SYMBOL_SIZE * _SYMBOL_SIZE]
        # The names' column alone, as one C-speed pass: node has 184,000 symbols.
        column = memoryview(table).cast("I")[:: _SYMBOL_SIZE // 4].tolist()
        exported = section.type == _SHT_DYNSYM
        hits = [index for index, name_at in enumerate(column) if name_at in offsets]
        # Global before local: a static function elsewhere may have the same name.
        rows = sorted((_SYMBOL.unpack_from(table, hit * _SYMBOL_SIZE) for hit in hits), key=lambda row: not row[1] >> 4)
        for name_at, info, _, section_index, address, size in rows:
            if section_index and info & 15 in (_STT_NOTYPE, _STT_OBJECT, _STT_FUNC):
                yield Symbol(offsets[name_at], address, size, exported)

    @_guarded
    def needed(self) -> list[str]:
        """Return the names of the shared objects that the file asks for."""
        names = []
        for section in self._table:
            if section.type == _SHT_DYNAMIC:
                strings = self.content(self._table[section.link])
                for tag, value in _DYNAMIC.iter_unpack(self.content(section)):
                    if tag == _DT_NEEDED:
                        names.append(strings[value : strings.index(b"\0", value)].decode("utf-8", "replace"))
        return names

    # Functions

    @functools.cached_property
    def function_starts(self) -> list[int]:
        """Where functions begin, ascending: local ones and their cold parts too if there is an unwind table."""
        return self._unwind_table() or self._symbol_starts()

    @_guarded
    def _unwind_table(self) -> list[int]:
        # The search table of .eh_frame_hdr (LSB Core, 10.6.2): sorted pairs of signed 32-bit offsets from its start.
        # Stripping leaves it.
        section = self.sections.get(".eh_frame_hdr")
        if section is None:
            return []
        data = self.content(section)
        if len(data) < 12 or data[0] != 1 or data[2:4] != b"\x03\x3b":
            return []
        table = data[12 : 12 + 8 * struct.unpack_from("<I", data, 8)[0]]
        table = table[: len(table) // 8 * 8]
        return sorted(section.address + start for start in memoryview(table).cast("i")[::2].tolist())

    @_guarded
    def _symbol_starts(self) -> list[int]:
        starts = set()
        for section in self._table:
            if section.type in (_SHT_DYNSYM, _SHT_SYMTAB):
                table = self.content(section)
                for _, info, _, section_index, address, _ in _SYMBOL.iter_unpack(table):
                    if section_index and info & 15 == _STT_FUNC:
                        starts.add(address)
        return sorted(starts)

    def next_function(self, address: int) -> int | None:
        """Return where the next function after an address begins, or its section ends; None: not an address of code."""
        section = self.section_at(address)
        if section is None or not self.is_code(address):
            return None
        starts, end = self.function_starts, section.address + section.size
        index = bisect.bisect_right(starts, address)
        return min(starts[index], end) if index < len(starts) else end

    def bounds(self, address: int) -> tuple[int, int] | None:
        """Return where the function that an address lies in begins, and where the next one does; None: not known."""
        index, end = bisect.bisect_right(self.function_starts, address), self.next_function(address)
        return None if end is None or not index else (self.function_starts[index - 1], end)

    # Pointers

    def _relocations(self, column: int, value: int) -> Iterator[tuple[Section, int, int, int]]:
        """Yield (section, place, info, addend) of the relocations with this value as 0: place, 2: addend."""
        raw, size = value.to_bytes(8, "little"), _RELOCATION.size
        for section in self._table:
            if section.type == _SHT_RELA and section.flags & _SHF_ALLOC:
                data = self.content(section)
                at = data.find(raw, 8 * column)
                while at >= 0:
                    if at % size == 8 * column:
                        yield section, *_RELOCATION.unpack_from(data, at - 8 * column)
                    at = data.find(raw, at + 1)

    @_guarded
    def pointer(self, address: int) -> int:
        """Return the pointer stored at an address, as relocation leaves it (but for the base it adds)."""
        for _, _, info, addend in self._relocations(0, address):
            if info & 0xFFFFFFFF == _RELATIVE.get(self.machine):
                return addend
        return int.from_bytes(self.read(address, 8), "little")

    @_guarded
    def pointers_to(self, target: int) -> list[int]:
        """Return the addresses at which a pointer to `target` is stored."""
        relative = _RELATIVE.get(self.machine)
        places = [place for _, place, info, _ in self._relocations(2, target) if info & 0xFFFFFFFF == relative]
        if self.position_independent:
            return places
        raw = target.to_bytes(8, "little")
        for section in self._table:
            if section.loaded and not self.is_code(section.address):
                data = self.content(section)
                at = data.find(raw)
                while at >= 0:
                    if (section.address + at) % 8 == 0:
                        places.append(section.address + at)
                    at = data.find(raw, at + 1)
        return places

    @_guarded
    def imported(self, got_entry: int) -> str | None:
        """Return the name that the dynamic linker binds a GOT entry to; None: none."""
        for section, _, info, _ in self._relocations(0, got_entry):
            if info & 0xFFFFFFFF in _IMPORTED.get(self.machine, ()):
                table = self._table[section.link]
                (name_at,) = struct.unpack("<I", self._pread(table.offset + (info >> 32) * _SYMBOL_SIZE, 4))
                strings = self.content(self._table[table.link])
                return strings[name_at : strings.index(b"\0", name_at)].decode("utf-8", "replace")
        return None
