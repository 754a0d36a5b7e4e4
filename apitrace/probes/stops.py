"""Letting go of processes that the kernel programs have stopped, whatever becomes of this one.

A target is stopped for the moment between mapping a TLS library and the probes being in place (process.bpf.c), and it
must never stay so. The programs note whom they stop in the map `stopped`. `Stops.release` lets one go; a small process
of our own lets go whoever stays stopped for too long, and outlives us by as long as it takes to let go all that are
noted when our end of a pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time
from typing import TYPE_CHECKING

from apitrace.probes import aide, procfs

if TYPE_CHECKING:
    from apitrace.probes.kernel import Kernel

_PID = struct.Struct("=I")
_TIME = struct.Struct("=Q")

STOPPING_NS = 50_000_000
"""How long a process may take to stop: the signal is sent when the programs return, but delivered when the task next
leaves the kernel. A SIGCONT before that would be in vain."""
_NOT_RUNNING = frozenset("TtZX")
"""States of /proc/PID/stat: stopped, traced, ended."""

GRACE_S = 2.0
"""Seconds that a process may stay stopped. Placing probes takes a millisecond; the first time, when a library is looked
through, 0.1 s, and on a machine that is busy more than 0.25."""
HELD_UP_S = 0.01
"""The same, once the one who places them was late."""


class Stops:
    """The stopped processes of one capture."""

    def __init__(self, kernel: Kernel) -> None:
        """Start the watchdog. Call it before any program may stop a process."""
        self._kernel = kernel
        read_end, self._alive = os.pipe()
        keep = (read_end, kernel.map_descriptor("stopped"))
        self._watchdog = aide.fork(lambda: self._watch(read_end), keep)
        os.close(read_end)

    def release(self, pid: int, at: int) -> None:
        """Let a process go that was stopped, as the event of this time says, once it has stopped.

        If it was stopped again before that, the later event lets it go: two stops that came together are one, and the
        first event's release would be followed by another, which waited for the next stop and ended that too soon.
        """
        if self._noted(pid) not in {None, at}:
            return
        deadline = time.monotonic_ns() + STOPPING_NS
        while (seen := procfs.stat(pid)) and seen.state not in _NOT_RUNNING and time.monotonic_ns() < deadline:
            os.sched_yield()
        self._let_go(pid, at)

    def close(self) -> None:
        """Let go whoever is still stopped, and end the watchdog. The programs must be detached."""
        if self._alive >= 0:
            # Said, and not by the pipe's end alone: a child that was forked meanwhile may hold it open.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._alive, b"!")
            os.close(self._alive)
            self._alive = -1
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._watchdog, 0)

    def _watch(self, read_end: int) -> None:
        """Be the watchdog: let go whoever waits for too long, and everybody at a word or the pipe's end."""
        patience = Patience()
        told = select.poll()  # not select(): it takes no descriptor above 1023
        told.register(read_end, select.POLLIN)
        while not told.poll(1000 * patience.interval):
            for pid, at in patience.overdue(self._stopped(), time.monotonic()):
                self._let_go(pid, at)
        for pid, at in self._stopped():
            self._let_go(pid, at)

    def _stopped(self) -> list[tuple[int, int]]:
        pids = [_PID.unpack(key)[0] for key in self._kernel.keys("stopped", _PID.size)]
        return [(pid, at) for pid in pids if (at := self._noted(pid)) is not None]

    def _noted(self, pid: int) -> int | None:
        """Return the time of the event that tells of a process's last stop; None if it was let go since."""
        value = self._kernel.lookup("stopped", _PID.pack(pid), _TIME.size)
        return None if value is None else int(_TIME.unpack(value)[0])

    def _let_go(self, pid: int, at: int) -> None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
        if self._noted(pid) == at:  # else it has been stopped anew already
            self._kernel.delete("stopped", _PID.pack(pid))


class Patience:
    """How long the watchdog leaves a stopped process to its owner, who may be held up by a pager that reads nothing."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int], float] = {}
        self._held_up = False

    @property
    def interval(self) -> float:
        """Seconds until it should look again."""
        return HELD_UP_S if self._held_up else GRACE_S / 2

    def overdue(self, stopped: list[tuple[int, int]], now: float) -> list[tuple[int, int]]:
        """Return whom to let go of those that are stopped: (pid, time of the stop's event).

        Once the owner was late, others wait for HELD_UP_S only.
        """
        if set(self._since) - set(stopped):  # somebody was let go, and not by us
            self._held_up = False
        self._since = {stop: self._since.get(stop, now) for stop in stopped}
        grace = HELD_UP_S if self._held_up else GRACE_S
        late = [stop for stop, since in self._since.items() if now - since >= grace]
        for stop in late:
            del self._since[stop]
            self._held_up = True
        return late
