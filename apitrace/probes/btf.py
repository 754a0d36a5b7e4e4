"""Kernel structure offsets from BTF, in plain Python.

`Btf` indexes a BTF blob (the kernel's Documentation/bpf/btf.rst) just enough to answer for named structures, unions and
enums: one pass over the type section, 65 to 180 ms for the 5.5 MB of a distribution's kernel, made when the first
structure is asked for. What is learnt from a blob may be kept under its `digest`, and then nothing is asked.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from pathlib import Path

from apitrace.errors import PlatformError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_MAGIC = 0xEB9F

_STRUCT, _UNION, _ENUM = 4, 5, 6
# Bytes that follow struct btf_type, fixed and per element, by kind (enum BTF_KIND_* in uapi/linux/btf.h).
_TRAILER = {
    1: (4, 0), 2: (0, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 7: (0, 0), 8: (0, 0), 9: (0, 0), 10: (0, 0),
    11: (0, 0), 12: (0, 0), 13: (0, 8), 14: (4, 0), 15: (0, 12), 16: (0, 0), 17: (4, 0), 18: (0, 0), 19: (0, 12),
}  # fmt: skip
_MODIFIERS = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag


class Btf:
    """A BTF blob. Every method raises PlatformError if the blob is not BTF, or of a kind that is not known."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEADER.size or _HEADER.unpack_from(blob)[0] != _MAGIC:
            message = "kernel type information (BTF) is not readable: not a BTF file of this byte order"
            raise PlatformError(message)
        _, _, _, header_len, type_off, type_len, string_off, string_len = _HEADER.unpack_from(blob)
        self._types = blob[header_len + type_off : header_len + type_off + type_len]
        self._strings = blob[header_len + string_off : header_len + string_off + string_len]
        self._blob = blob

    @classmethod
    def of_kernel(cls) -> Btf:
        """Return the running kernel's. Raises PlatformError if it has none."""
        try:
            return cls(VMLINUX.read_bytes())
        except OSError as error:
            message = (
                f"no kernel type information at {VMLINUX} ({error.strerror}): a kernel 5.8 or newer that was built "
                "with CONFIG_DEBUG_INFO_BTF=y is needed"
            )
            raise PlatformError(message) from error

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the whole blob: the same structures, to the last member."""
        return hashlib.sha256(self._blob).hexdigest()

    @functools.cached_property
    def _index(self) -> tuple[list[int], dict[int, list[int]]]:
        """Type id -> offset in _types (id 0 is void); name's offset -> ids of structs, unions, enums with members."""
        offsets = [0]
        named: dict[int, list[int]] = {}
        types = self._types
        unpack, end, position, trailer = struct.Struct("=II").unpack_from, len(self._types), 0, _TRAILER
        add = offsets.append
        while position < end:
            add(position)
            name, info = unpack(types, position)
            kind = info >> 24 & 0x1F
            count = info & 0xFFFF
            if name and count and 4 <= kind <= 6:
                named.setdefault(name, []).append(len(offsets) - 1)
            try:
                fixed, per_element = trailer[kind]
            except KeyError as error:
                message = f"kernel type information (BTF) has a kind that is not known: {kind}"
                raise PlatformError(message) from error
            position += 12 + fixed + per_element * count
        return offsets, named

    def _name_offset(self, name: str) -> int:
        return self._strings.find(b"\0" + name.encode() + b"\0") + 1

    def _lookup(self, name: str, kinds: tuple[int, ...]) -> int:
        # A string may be stored more than once only as the tail of another, which the NULs exclude.
        for type_id in self._index[1].get(self._name_offset(name), ()):
            if self._info(type_id)[1] in kinds:
                return type_id
        raise KeyError(name)

    def _info(self, type_id: int) -> tuple[int, int, int, int]:
        """Return (offset of the members, kind, number of members, size or referred type)."""
        offset = self._index[0][type_id]
        _, info, size = _TYPE.unpack_from(self._types, offset)
        return offset + 12, info >> 24 & 0x1F, info & 0xFFFF, size

    def _string(self, offset: int) -> bytes:
        return self._strings[offset : self._strings.index(b"\0", offset)]

    def _resolve(self, type_id: int) -> int:
        while type_id:
            _, kind, _, target = self._info(type_id)
            if kind not in _MODIFIERS:
                break
            type_id = target
        return type_id

    def _member(self, type_id: int, wanted: bytes) -> tuple[int, int] | None:
        """Return (byte offset, type id) of a member, those of anonymous members included."""
        members, _, count, _ = self._info(type_id)
        for index in range(count):
            name, member_type, offset = _MEMBER.unpack_from(self._types, members + 12 * index)
            offset = (offset & 0xFFFFFF) // 8  # the high byte is a bit field's width
            if not name:
                inner = self._resolve(member_type)
                if self._info(inner)[1] in (_STRUCT, _UNION):
                    found = self._member(inner, wanted)
                    if found:
                        return offset + found[0], found[1]
            elif self._string(name) == wanted:
                return offset, member_type
        return None

    def offset(self, structure: str, path: str) -> int:
        """Return the byte offset of a member; `path` may lead through embedded structures ("a.b").

        Raises KeyError if the structure or the member is not there.
        """
        type_id, total = self._lookup(structure, (_STRUCT, _UNION)), 0
        for name in path.split("."):
            found = self._member(self._resolve(type_id), name.encode())
            if found is None:
                missing = f"{structure}.{path}"
                raise KeyError(missing)
            total, type_id = total + found[0], found[1]
        return total

    def has_tracepoint(self, name: str) -> bool:
        """Return whether the kernel has a tracepoint of that name (a typedef that its macros make)."""
        return self._name_offset(f"btf_trace_{name}") > 0

    def size(self, structure: str) -> int:
        """Return a structure's size in bytes. Raises KeyError."""
        return self._info(self._lookup(structure, (_STRUCT, _UNION)))[3]

    def enumerator(self, enumeration: str, name: str) -> int:
        """Return the value of an enumerator. Raises KeyError."""
        members, _, count, _ = self._info(self._lookup(enumeration, (_ENUM,)))
        for index in range(count):
            name_offset, value = struct.unpack_from("=Ii", self._types, members + 8 * index)
            if self._string(name_offset) == name.encode():
                return int(value)
        missing = f"{enumeration}.{name}"
        raise KeyError(missing)
