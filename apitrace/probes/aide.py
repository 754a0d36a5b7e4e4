"""A small process of our own for what must be seen to whatever becomes of this one, be it ended by SIGKILL."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def fork(run: Callable[[], None], keep: Iterable[int]) -> int:
    """Start a process that does this and ends; return its PID. It has no descriptors but those to keep.

    Nothing that is meant for a terminal's job ends it. The caller must not have started threads.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()  # the terminal's Ctrl-C is not for us
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        kept = sorted(keep)
        # The output's pipe is among the others: its reader waits for its end.
        for low, high in zip([-1, *kept], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        run()
    finally:
        os._exit(0)
