"""Loaded programs and maps, held by descriptor: attach, map access, the ring buffer. By libbpf, which bcc brings along.

The process that traces never loads bcc, whose compiler takes 140 MB: `loader.load` compiles in a child. Keys and values
are packed bytes, as struct.pack makes them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apitrace.errors import PlatformError
from apitrace.probes.uprobes import Probe, Uprobes

_SONAMES = ("libbpf.so.1", "libbpf.so.0")

_NO_EXIST = 1
"""BPF_NOEXIST, a flag of BPF_MAP_UPDATE_ELEM."""

_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
"""ring_buffer_sample_fn: (context, address, size) -> 0 to go on."""


def _library() -> Any:
    for name in _SONAMES:
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        library.ring_buffer__new.restype = ctypes.c_void_p
        library.ring_buffer__new.argtypes = [ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p]
        library.ring_buffer__poll.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.ring_buffer__consume.argtypes = [ctypes.c_void_p]
        library.ring_buffer__free.argtypes = [ctypes.c_void_p]
        library.bpf_raw_tracepoint_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
        library.bpf_map_update_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64]
        library.bpf_map_delete_elem.argtypes = [ctypes.c_int, ctypes.c_char_p]
        library.bpf_map_lookup_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
        library.bpf_map_get_next_key.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
        return library
    message = "libbpf is missing: install libbpf1 (apt), libbpf (dnf, pacman) or libbpf1 (zypper)"
    raise PlatformError(message)


class Kernel:
    """The kernel's side of a capture. `close` it when nothing is to be read of it any more."""

    def __init__(self, programs: Mapping[str, int], maps: Mapping[str, int], *, multi: bool = False) -> None:
        """Take over descriptors, by name. `multi`: the uprobe programs are for links of many probes."""
        self._programs = dict(programs)
        self._maps = dict(maps)
        self._library = _library()
        self._links: dict[str, int] = {}
        self.uprobes = Uprobes(programs, multi=multi)
        self._ring: Any = None
        self._sample: Any = None

    def attach(self, tracepoint: str, program: str) -> None:
        """Run a program at a raw tracepoint. Raises PlatformError."""
        link = self._library.bpf_raw_tracepoint_open(tracepoint.encode(), self._programs[program])
        if link < 0:
            reason = os.strerror(ctypes.get_errno() or -link)
            message = f"this kernel ({platform.release()}) does not let {program} attach to {tracepoint}: {reason}"
            raise PlatformError(message)
        self._links[tracepoint] = link

    def probe(
        self, program: str, file: str, places: Sequence[tuple[int, int]], *, pid: int, at_return: bool = False
    ) -> Probe:
        """Run a program whenever a process executes one of these instructions of a file, or such a function returns.

        `places`: (offset in the file, cookie). `pid`: only in this process, all of its threads; -1: in all. Raises
        OSError; then nothing is in place.
        """
        return self.uprobes.place(program, file, places, pid=pid, at_return=at_return)

    def remove(self, probe: Probe) -> None:
        """Take a probe away, in the background."""
        self.uprobes.remove(probe)

    def detach(self, *, returns_under_way: bool = False) -> None:
        """Detach everything: no program runs any more; what is in the ring buffer stays readable.

        `returns_under_way`: a thread is in a call whose return is probed. Then this takes RETURN_LEASE_S longer.
        """
        while self._links:
            os.close(self._links.popitem()[1])
        self.uprobes.clear(returns_under_way=returns_under_way)

    def close(self) -> None:
        """Detach and free everything."""
        self.detach()
        self.uprobes.close()
        if self._ring is not None:
            self._library.ring_buffer__free(self._ring)
            self._ring = None
        for descriptors in (self._programs, self._maps):
            while descriptors:
                os.close(descriptors.popitem()[1])

    # -- maps ------------------------------------------------------------------------------------------------------

    def update(self, name: str, key: bytes, value: bytes) -> bool:
        """Set an entry; return whether there was room."""
        return bool(self._library.bpf_map_update_elem(self._maps[name], key, value, 0) == 0)

    def insert(self, name: str, key: bytes, value: bytes) -> bool:
        """Make an entry unless there is one; return whether it was made."""
        return bool(self._library.bpf_map_update_elem(self._maps[name], key, value, _NO_EXIST) == 0)

    def lookup(self, name: str, key: bytes, size: int) -> bytes | None:
        """Return an entry of `size` bytes, or None if there is none."""
        buffer = ctypes.create_string_buffer(size)
        found = self._library.bpf_map_lookup_elem(self._maps[name], key, buffer) == 0
        return buffer.raw if found else None

    def map_descriptor(self, name: str) -> int:
        """Return the descriptor of a map."""
        return self._maps[name]

    def value_size(self, name: str) -> int:
        """Return the size of a map's entries (fs/proc/fd.c shows it, bpf_map_show_fdinfo)."""
        info = Path(f"/proc/self/fdinfo/{self._maps[name]}").read_text("ascii")
        return int(info.partition("value_size:")[2].split()[0])

    def delete(self, name: str, key: bytes) -> None:
        """Remove an entry, if it is there."""
        self._library.bpf_map_delete_elem(self._maps[name], key)

    def keys(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the keys of a hash map, each of `size` bytes; entries that come and go meanwhile may be missed."""
        following = ctypes.create_string_buffer(size)
        key: bytes | None = None
        while self._library.bpf_map_get_next_key(self._maps[name], key, following) == 0:
            key = following.raw
            yield key

    def sums(self, name: str, entries: int) -> tuple[int, ...]:
        """Return the entries of a per-CPU array of u64, each summed over the CPUs."""
        cpus = self._library.libbpf_num_possible_cpus()
        buffer = ctypes.create_string_buffer(8 * cpus)
        totals = []
        for index in range(entries):
            self._library.bpf_map_lookup_elem(self._maps[name], struct.pack("=I", index), buffer)
            totals.append(sum((ctypes.c_uint64 * cpus).from_buffer(buffer)))
        return tuple(totals)

    # -- ring buffer -------------------------------------------------------------------------------------------------

    def open_ring(self, sample: Callable[[int, int, int], int]) -> None:
        """Have `sample(context, address, size)` called for each record by `poll`. It must not raise."""
        self._sample = _SAMPLE(sample)  # kept: the library does not
        self._ring = self._library.ring_buffer__new(self._maps["events"], self._sample, None, None)
        if not self._ring:
            message = f"the ring buffer cannot be mapped: {os.strerror(ctypes.get_errno())}"
            raise PlatformError(message)

    def poll(self, timeout_ms: int) -> None:
        """Wait until the kernel wakes us or the time is over, then take all there is."""
        if timeout_ms:
            self._library.ring_buffer__poll(self._ring, timeout_ms)
        self._library.ring_buffer__consume(self._ring)
