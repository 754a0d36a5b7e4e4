"""The small process: it has nothing of ours but what it is to keep, and ends by nobody's word but its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from apitrace.probes import aide


def test_it_has_no_descriptors_but_those_to_keep() -> None:
    ours, theirs = os.pipe()
    with Path(os.devnull).open("rb") as other:

        def report() -> None:
            left = [int(each.name) for each in list(Path("/proc/self/fd").iterdir()) if each.exists()]
            os.write(theirs, repr((sorted(left), os.getsid(0))).encode())

        child = aide.fork(report, (theirs,))
        assert other.fileno() != theirs
    os.close(theirs)
    with os.fdopen(ours, "rb") as told:
        assert told.read().decode() == repr(([theirs], child))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_what_ends_a_terminals_job_does_not_end_it(number: signal.Signals) -> None:
    ours, theirs = os.pipe()
    go, gone = os.pipe()

    def wait() -> None:
        os.write(theirs, b"here")
        os.read(go, 1)
        os.write(theirs, b"still")

    child = aide.fork(wait, (theirs, go))
    assert os.read(ours, 9) == b"here"
    os.kill(child, number)
    os.write(gone, b"!")
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(ours, 9) == b"still"
    for descriptor in (ours, theirs, go, gone):
        os.close(descriptor)


def test_one_that_fails_ends_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        message = "failed"
        raise ValueError(message)

    assert os.waitpid(aide.fork(fail, ()), 0)[1] == 0
    assert capfd.readouterr() == ("", "")
