"""The process that holds the probes: its refusals and its end. tests/live/test_kernel.py has it place real ones."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from apitrace.errors import PlatformError
from apitrace.probes import procfs
from apitrace.probes.uprobes import Uprobes


@pytest.fixture(params=[True, False], ids=["multi", "perf"])
def uprobes(request: pytest.FixtureRequest) -> Iterator[Uprobes]:
    """Probes of a program that is none."""
    program = os.open(os.devnull, os.O_RDONLY)
    made = Uprobes({"program": program}, multi=request.param)
    yield made
    made.close()
    os.close(program)


def test_a_refusal_of_the_kernel_is_an_oserror_and_the_next_is_asked_all_the_same(uprobes: Uprobes) -> None:
    for file in ("/proc/self/exe", "/not-there", "/proc/self/exe"):
        with pytest.raises(OSError) as refused:  # noqa: PT011 - which one is the kernel's affair
            uprobes.place("program", file, [(0, 0)], pid=os.getpid())
        assert refused.value.errno in {errno.EBADF, errno.EINVAL, errno.ENOENT, errno.EPERM, errno.ENOSYS}
        assert len(uprobes) == 0
    uprobes.check()
    uprobes.clear(returns_under_way=True)


def test_closing_ends_the_process_and_nothing_can_be_placed_then(uprobes: Uprobes) -> None:
    process = uprobes._process
    uprobes.close()
    assert procfs.stat(process) is None
    with pytest.raises(OSError, match="descriptor"):
        uprobes.place("program", "/proc/self/exe", [(0, 0)], pid=os.getpid())
    uprobes.clear(returns_under_way=False)
    uprobes.check()


def test_it_is_told_once_that_others_have_ended_the_process(uprobes: Uprobes) -> None:
    os.kill(uprobes._process, signal.SIGKILL)
    os.waitid(os.P_PID, uprobes._process, os.WEXITED | os.WNOWAIT)
    with pytest.raises(PlatformError, match="has been ended, and the probes with it"):
        uprobes.check()
    uprobes.check()
    with pytest.raises(BrokenPipeError):
        uprobes.place("program", "/proc/self/exe", [(0, 0)], pid=os.getpid())
    uprobes.clear(returns_under_way=True)
