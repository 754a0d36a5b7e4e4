"""Loaded programs and maps, held by descriptor: attach, map access, the ring buffer. By libbpf, which bcc brings along.

The process that traces never loads bcc, whose compiler takes 140 MB: `loader.load` compiles in a child and hands over
the descriptors. Keys and values are packed bytes, as struct.pack makes them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apitrace.errors import PlatformError

_SONAMES = ("libbpf.so.1", "libbpf.so.0")

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
        library.bpf_raw_tracepoint_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
        library.bpf_map_update_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64]
        library.bpf_map_delete_elem.argtypes = [ctypes.c_int, ctypes.c_char_p]
        library.bpf_map_lookup_elem.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
        library.bpf_map_get_next_key.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
        return library
    message = "libbpf is missing: install libbpf1 (apt), libbpf (dnf, pacman) or libbpf1 (zypper)"
    raise PlatformError(message)


class Kernel:
    """The kernel's side of a capture. Closing it detaches and frees everything."""

    def __init__(self, programs: Mapping[str, int], maps: Mapping[str, int]) -> None:
        """Take over descriptors, by name."""
        self._programs = dict(programs)
        self._maps = dict(maps)
        self._library = _library()
        self._links: dict[str, int] = {}
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

    def detach(self) -> None:
        """Detach everything: no program runs any more; what is in the ring buffer stays readable."""
        while self._links:
            os.close(self._links.popitem()[1])

    # -- maps ------------------------------------------------------------------------------------------------------

    def update(self, name: str, key: bytes, value: bytes) -> bool:
        """Set an entry; return whether there was room."""
        return bool(self._library.bpf_map_update_elem(self._maps[name], key, value, 0) == 0)

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
