"""Uprobes, which a process of their own places and takes away: what the kernel begins with them, it must end.

SIGKILL reaches a process inside a system call. The kernel then writes no more to a target's memory (a fatal signal ends
__get_user_pages in mm/gup.c with EINTR), so that uprobe_register and uprobe_unregister leave breakpoints in the target
for as long as it lives ("failed to unregister, leaking uprobe" in the kernel's log, kernel/events/uprobes.c). So nobody
who may be killed for being apitrace makes these calls: they are asked of a process that outlives us by as long as it
takes to put every target's code back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import marshal
import os
import resource
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from apitrace.errors import PlatformError
from apitrace.probes import aide
from apitrace.probes.syscalls import bpf, perf_event_open

UPROBES = Path("/sys/bus/event_source/devices/uprobe")
_PERF_ATTR = struct.Struct("=IIQQQQQIIQQ40x")
"""struct perf_event_attr up to config2, PERF_ATTR_SIZE_VER5 (include/uapi/linux/perf_event.h)."""
_CLOSE_ON_EXEC = 8
_PERF_ENABLE = 0x2400
_LINK_CREATE, _PERF_EVENT, UPROBE_MULTI = 28, 41, 48
"""enum bpf_cmd, and in enum bpf_attach_type (include/uapi/linux/bpf.h)."""

MULTI_SINCE = (6, 10)
"""Linux 6.6 has links of many uprobes, but until 6.10 they see a process's first thread only. They are worth it: to
take away a perf event's uprobe, the kernel waits for all CPUs under a lock that placing one needs too
(perf_uprobe_destroy): 33 ms measured, for each."""

CLOSERS = 32
"""Threads that take probes away. Each removal waits for all CPUs to have left the programs (uprobe_unregister_sync in
kernel/events/uprobes.c: tens of ms), but any number of them wait at once."""

RETURN_LEASE_S = 0.15
"""How long return probes stay after the last entry, when calls are under way. Since Linux 6.13 a call that is entered
has only lent its probe from the kernel for HZ/10, and takes a reference of its own after that (RI_TIMER_PERIOD and
ri_timer in kernel/events/uprobes.c). A probe that goes before is gone for the call: the next capture, which finds the
call under way, would not hear of its return."""

_PRIORITY = -10
"""Nice value: a target is stopped while its probes are placed, and others may keep every core busy."""
_LONGEST = 1 << 20
"""Bytes that no message reaches: the system's limit for a socket is 212,992, and a place takes 20."""
_PLACE, _REMOVE, _CLEAR = range(3)


class Probe(NamedTuple):
    """A uprobe program that is in place, at any number of places of a file."""

    number: int


class Uprobes:
    """The uprobes of one capture, and the process that holds them."""

    def __init__(self, programs: Mapping[str, int], *, multi: bool) -> None:
        """Start the process. `programs`: their descriptors. `multi`: they are for links of many probes."""
        self._programs = dict(programs)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._numbers = 0
        self._placed: set[Probe] = set()
        run = functools.partial(_Holder(theirs, multi=multi).run)
        self._process = aide.fork(run, (theirs.fileno(), *programs.values()))
        theirs.close()

    def __len__(self) -> int:
        """Return how many are in place."""
        return len(self._placed)

    def place(
        self, program: str, file: str, places: Sequence[tuple[int, int]], *, pid: int, at_return: bool = False
    ) -> Probe:
        """Place a program, as `Kernel.probe` has it."""
        self._numbers += 1
        number = self._numbers
        failure = self._ask(_PLACE, number, self._programs[program], file, list(places), pid, at_return)
        if failure:
            raise OSError(failure, os.strerror(failure))
        probe = Probe(number)
        self._placed.add(probe)
        return probe

    def remove(self, probe: Probe) -> None:
        """Take a probe away, in the background. A second time is nothing."""
        if probe in self._placed:
            self._placed.remove(probe)
            with contextlib.suppress(OSError):  # the process has been ended, and the probe with it
                self._channel.send(marshal.dumps((_REMOVE, probe.number)))

    def clear(self, *, returns_under_way: bool) -> None:
        """Take all away, and return when they are gone.

        `returns_under_way`: a thread is in a call whose return is probed. Then this takes RETURN_LEASE_S longer.
        """
        self._placed.clear()
        with contextlib.suppress(OSError):  # it is closed, or the process has been ended: nothing is in place
            self._ask(_CLEAR, returns_under_way)

    def check(self) -> None:
        """Raise PlatformError, once, if the process has been ended by others: the probes are gone with it."""
        if self._process and os.waitpid(self._process, os.WNOHANG)[0]:
            self._process = 0
            message = "the process of apitrace's own that holds the TLS probes has been ended, and the probes with it"
            raise PlatformError(message)

    def close(self) -> None:
        """End the process; whatever is in place goes with it."""
        self._channel.close()
        if self._process:
            os.waitpid(self._process, 0)
            self._process = 0

    def _ask(self, *request: Any) -> int:
        """Return the answer: an errno, or 0. Raises OSError if the process has been ended."""
        self._channel.send(marshal.dumps(request))
        answer = self._channel.recv(_LONGEST)
        return int(marshal.loads(answer)) if answer else errno.EPIPE  # noqa: S302 - from our own child


class _Holder:
    """What the process does: it holds descriptors, each of which keeps a program in place."""

    def __init__(self, channel: socket.socket, *, multi: bool) -> None:
        self._channel = channel
        self._open = _multi if multi else _single
        self._held: dict[int, tuple[tuple[int, ...], bool]] = {}
        """By number: the descriptors, and whether it is on returns."""
        self._closer: ThreadPoolExecutor | None = None

    def run(self) -> None:
        """Do as asked, until apitrace closes its end or is ended; then take away what is left."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
        with contextlib.suppress(ConnectionError):
            while message := self._channel.recv(_LONGEST):
                kind, *arguments = marshal.loads(message)  # noqa: S302 - from our own parent
                if kind == _REMOVE:
                    self._remove(*arguments)
                    continue
                answer = self._place(*arguments) if kind == _PLACE else self._clear(*arguments)
                self._channel.send(marshal.dumps(answer))
        self._clear(returns_under_way=True)

    def _place(
        self, number: int, program: int, file: str, places: list[tuple[int, int]], pid: int, at_return: bool
    ) -> int:
        try:
            self._held[number] = self._open(program, file, places, pid, at_return), at_return
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _remove(self, number: int) -> None:
        if self._closer is None:
            self._closer = ThreadPoolExecutor(CLOSERS, thread_name_prefix="closer")
        self._closer.submit(_close, self._held.pop(number)[0])

    def _clear(self, returns_under_way: bool) -> int:
        for number in [number for number, (_, at_return) in self._held.items() if not at_return]:
            self._remove(number)
        if self._held and returns_under_way:
            self._settle()
            time.sleep(RETURN_LEASE_S)
        for number in list(self._held):
            self._remove(number)
        self._settle()
        return 0

    def _settle(self) -> None:
        """Wait until what is being taken away is gone."""
        if self._closer is not None:
            self._closer.shutdown()
            self._closer = None


def _multi(
    program: int, file: str, places: Sequence[tuple[int, int]], pid: int, at_return: bool
) -> tuple[int, ...]:
    """Make one link of all the places."""
    count = len(places)
    path = ctypes.create_string_buffer(os.fsencode(file))
    offsets, cookies = ((ctypes.c_uint64 * count)(*column) for column in zip(*places, strict=True))
    # struct { prog_fd, target_fd, attach_type, flags; path, offsets, ref_ctr_offsets, cookies; cnt, flags, pid }
    attr = struct.pack(
        "=IIIIQQQQIII4x", program, 0, UPROBE_MULTI, 0, ctypes.addressof(path), ctypes.addressof(offsets), 0,
        ctypes.addressof(cookies), count, int(at_return), max(pid, 0),
    )  # fmt: skip
    return (bpf(_LINK_CREATE, attr),)


def _single(
    program: int, file: str, places: Sequence[tuple[int, int]], pid: int, at_return: bool
) -> tuple[int, ...]:
    """Do the same by perf events, one for each place: before Linux 6.10."""
    kind, return_bit = _uprobe_type()
    path = ctypes.create_string_buffer(os.fsencode(file))
    descriptors: list[int] = []
    try:
        for offset, cookie in places:
            attr = _PERF_ATTR.pack(
                kind, _PERF_ATTR.size, return_bit if at_return else 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(path), offset
            )
            event = perf_event_open(attr, pid, -1 if pid > 0 else 0, _CLOSE_ON_EXEC)
            descriptors.append(event)
            # struct { prog_fd, target_fd, attach_type, flags; bpf_cookie }
            descriptors.append(bpf(_LINK_CREATE, struct.pack("=IIIIQ", program, event, _PERF_EVENT, 0, cookie)))
            fcntl.ioctl(event, _PERF_ENABLE, 0)
    except OSError:
        _close(descriptors)
        raise
    return tuple(descriptors)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in reversed(descriptors):
        os.close(descriptor)


@functools.cache
def _uprobe_type() -> tuple[int, int]:
    """Return the perf event type of uprobes, and the bit of its config that makes a return probe. Raises OSError."""
    try:
        kind = int((UPROBES / "type").read_text())
        bit = int((UPROBES / "format/retprobe").read_text().strip().removeprefix("config:"))
    except ValueError as error:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
    return kind, 1 << bit
