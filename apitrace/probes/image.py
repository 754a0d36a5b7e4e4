"""Compiled programs as a value: what bcc has made, without bcc; and loading that by bpf(2) alone.

An image names its maps, and for each program its instructions, in which every reference to a map stands as (index of
the instruction, name of the map) and not as a descriptor. So it can be kept, and loaded by another process. It holds
nothing else that is only true of one run. `load` is the only way into the kernel, for a new image as for a kept one.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import os
import resource
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from apitrace.errors import PlatformError
from apitrace.probes.syscalls import bpf

KPROBE, RAW_TRACEPOINT = 2, 17
"""Of enum bpf_prog_type: uprobes have the type of kprobes."""

_MAP_CREATE, _PROG_LOAD, _OBJ_GET_INFO_BY_FD = 0, 5, 15
_INSTRUCTION = struct.Struct("=BBhi")
"""struct bpf_insn: code, registers (source in the high half), offset, immediate."""
_LOAD_64, _CALL = 0x18, 0x85
_PSEUDO_MAP_FD = 1
_MAP_INFO = struct.Struct("=IIIIII")
"""The head of struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags."""
_LICENSE = ctypes.create_string_buffer(b"GPL")
_NAME_LIMIT = 15
"""BPF_OBJ_NAME_LEN without its NUL."""
_LOG_BYTES = 16 << 20
"""For the verifier's words on a program that it refuses, which it does not cut but fails with ENOSPC. libbpf, too, goes
to 16 MiB."""
_MOST_LOADERS = 8
"""Threads that have programs verified: the verifier runs in the caller, and the largest program takes a third of it."""


class ImageError(Exception):
    """This is no image."""


@dataclass(frozen=True, slots=True)
class Map:
    """What BPF_MAP_CREATE asks."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """What BPF_PROG_LOAD asks."""

    name: str
    type: int
    attach_type: int
    instructions: bytes
    references: tuple[tuple[int, str], ...]
    """(index of the instruction, name of the map)."""


@dataclass(frozen=True, slots=True)
class Image:
    """Programs and the maps that they share."""

    maps: tuple[Map, ...]
    programs: tuple[Program, ...]

    def encode(self) -> bytes:
        """Return it as bytes."""

        def text(value: Any) -> str:
            return base64.b64encode(value).decode()

        return zlib.compress(orjson.dumps(self, default=text), 1)

    @classmethod
    def decode(cls, encoded: bytes) -> Image:
        """Return what `encode` was given. Raises ImageError."""
        try:
            fields = orjson.loads(zlib.decompress(encoded))
            maps = tuple(Map(**row) for row in fields["maps"])
            programs = tuple(
                Program(
                    **{
                        **row,
                        "instructions": base64.b64decode(row["instructions"]),
                        "references": tuple((int(index), str(name)) for index, name in row["references"]),
                    }
                )
                for row in fields["programs"]
            )
        except (zlib.error, ValueError, TypeError, KeyError) as error:
            message = f"not an image: {error}"
            raise ImageError(message) from error
        return cls(maps, programs)


def map_of(name: str, descriptor: int) -> Map:
    """Return what a map was created with. Raises OSError."""
    info = ctypes.create_string_buffer(_MAP_INFO.size)
    bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    kind, _, key_size, value_size, max_entries, flags = _MAP_INFO.unpack(info.raw)
    return Map(name, kind, key_size, value_size, max_entries, flags)


def program_of(name: str, kind: int, attach_type: int, code: bytes, maps: Mapping[int, str]) -> Program:
    """Return a program whose instructions refer to maps by descriptor. `maps`: descriptor -> name.

    Raises ImageError for instructions that mean something in one run only, and are not references to these maps.
    """
    instructions = bytearray(code)
    references = []
    index, count = 0, len(code) // _INSTRUCTION.size
    while index < count:
        opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code, index * _INSTRUCTION.size)
        meaning = registers >> 4
        if opcode == _CALL and meaning:
            message = f"{name} calls what is no helper, at instruction {index}"
            raise ImageError(message)
        if opcode == _LOAD_64:
            if meaning:
                if meaning != _PSEUDO_MAP_FD or immediate not in maps:
                    message = f"{name} refers to what is no map, at instruction {index}"
                    raise ImageError(message)
                _INSTRUCTION.pack_into(instructions, index * _INSTRUCTION.size, opcode, registers, offset, 0)
                references.append((index, maps[immediate]))
            index += 1  # it takes two
        index += 1
    return Program(name, kind, attach_type, bytes(instructions), tuple(references))


def _object_name(name: str) -> bytes:
    return name.encode("ascii")[:_NAME_LIMIT]


def _create(row: Map) -> int:
    # struct { map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node; map_name[16] }
    attr = struct.pack(
        "=IIIIIII16s", row.type, row.key_size, row.value_size, row.max_entries, row.flags, 0, 0, _object_name(row.name)
    )
    return bpf(_MAP_CREATE, attr)


def _load(program: Program, maps: Mapping[str, int]) -> int:
    instructions = ctypes.create_string_buffer(program.instructions, len(program.instructions))
    for index, name in program.references:
        struct.pack_into("=i", instructions, index * _INSTRUCTION.size + 4, maps[name])

    def attempt(log: Any = None) -> int:
        # struct { prog_type, insn_cnt; insns, license; log_level, log_size; log_buf; kern_version, prog_flags;
        # prog_name[16]; prog_ifindex, expected_attach_type }
        attr = struct.pack(
            "=IIQQIIQII16sII", program.type, len(instructions) // _INSTRUCTION.size, ctypes.addressof(instructions),
            ctypes.addressof(_LICENSE), int(log is not None), len(log) if log is not None else 0,
            ctypes.addressof(log) if log is not None else 0, 0, 0, _object_name(program.name), 0, program.attach_type,
        )  # fmt: skip
        return bpf(_PROG_LOAD, attr)

    try:
        return attempt()
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        refused = error
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        return attempt(log)
    except OSError:
        lines = [line for line in log.value.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = next((line for line in reversed(lines) if not line.startswith("processed ")), "no detail")
    message = f"the kernel refuses the program {program.name}: {refused.strerror} ({telling[:500]})"
    raise PlatformError(message) from refused


@contextlib.contextmanager
def _memory_unlocked() -> Iterator[None]:
    """Allow maps more memory, as Linux before 5.11 asks. Not being allowed to is no error: the limit may suffice."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (before[1], resource.RLIM_INFINITY):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def _load_all(image: Image, opened: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    def noted(descriptor: int) -> int:
        opened.append(descriptor)
        return descriptor

    maps = {}
    for row in image.maps:
        try:
            maps[row.name] = noted(_create(row))
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
            message = f"the kernel refuses the map {row.name}: {error.strerror}"
            raise PlatformError(message) from error
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_LOADERS)) as pool:
        # The largest first, or the last thread to end would begin with it.
        largest_first = sorted(image.programs, key=lambda program: -len(program.instructions))
        loading = {program.name: pool.submit(lambda row: noted(_load(row, maps)), program) for program in largest_first}
    return {program.name: loading[program.name].result() for program in image.programs}, maps


def load(image: Image) -> tuple[dict[str, int], dict[str, int]]:
    """Create the maps and load the programs; return their descriptors by name, the caller's to close.

    Raises PlatformError with the verifier's word; then nothing stays open.
    """
    opened: list[int] = []
    try:
        try:
            return _load_all(image, opened)
        except OSError:  # not permitted: for a capability that is missing, or for the limit on locked memory
            while opened:
                os.close(opened.pop())
            with _memory_unlocked():
                return _load_all(image, opened)
    except BaseException as error:
        for descriptor in opened:
            os.close(descriptor)
        if isinstance(error, OSError):
            message = f"the kernel refuses maps: {error.strerror}"
            raise PlatformError(message) from error
        raise
