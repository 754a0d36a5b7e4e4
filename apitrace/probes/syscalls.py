"""The two system calls that the C library has no functions for: bpf and perf_event_open."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from typing import Any

_NUMBERS = {"x86_64": (298, 321), "aarch64": (241, 280)}
"""perf_event_open and bpf, by machine."""


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(which: int, *arguments: int | bytes) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(38, os.strerror(38))
    result: int = _libc().syscall(
        ctypes.c_long(numbers[which]),
        *(argument if isinstance(argument, bytes) else ctypes.c_long(argument) for argument in arguments),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def bpf(command: int, attr: bytes) -> int:
    """Make the system call, with a union bpf_attr; return the descriptor, or 0. Raises OSError."""
    return _call(1, command, attr, len(attr))


def perf_event_open(attr: bytes, pid: int, cpu: int, flags: int) -> int:
    """Make the system call, with a struct perf_event_attr and no group; return the descriptor. Raises OSError."""
    return _call(0, attr, pid, cpu, -1, flags)
