"""Tracing TLS leaves processes as they were: nobody stays stopped, and nobody but a target takes a breakpoint."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apitrace.probes.libraries import Libraries
from tests.live.harness import PATIENCE, children, environment, program, until
from tests.live.tls import assert_exactly_over_tls, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.harness import Program
    from tests.live.tls import TlsLab


def state(pid: int) -> str | None:
    """Return a process's state, as /proc/PID/stat has it; None if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


def descendants(pid: int) -> list[int]:
    """Return the PIDs of a process's children and of theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in children(pid):
            found += [child, *descendants(child)]
    return found


def touched(pid: int) -> set[str]:
    """Return the files of which a process has other code in memory than they hold: where there are breakpoints."""
    different = set()
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for code in Libraries().code(pid):
            memory.seek(code.start)
            with Path(code.file.file).open("rb") as file:
                file.seek(code.offset)
                held = file.read(code.size)
            if memory.read(code.size)[: len(held)] != held:
                different.add(Path(code.file.path).name)
    return different


def is_tls(names: set[str]) -> bool:
    return any(name.startswith("libssl") for name in names)


@contextlib.contextmanager
def shell() -> Iterator[subprocess.Popen[str]]:
    """Start a shell without a terminal that runs /bin/true for each line that it reads, and then prints the line."""
    script = "while read line; do /bin/true; echo $line; done"
    running = subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    yield running
    running.kill()
    running.communicate()


def tell(running: subprocess.Popen[str], line: str) -> None:
    assert running.stdin is not None
    running.stdin.write(f"{line}\n")
    running.stdin.flush()


def hear(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    ready, _, _ = select.select([running.stdout], [], [], PATIENCE)
    assert ready, "the shell's child is still stopped"
    return running.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_apitrace_that_ends_while_a_target_is_stopped_leaves_nobody_stopped(
    tls_lab: TlsLab, number: signal.Signals
) -> None:
    """It is held up, so that the target stays stopped, and then ended. SIGTERM lets it see to that itself."""
    with shell() as running:
        capture = tls_lab._apitrace(["--pid", str(running.pid)])
        capture.wait_ready()
        tell(running, "before")
        assert hear(running) == "before\n"
        os.kill(capture.pid, signal.SIGSTOP)
        until(lambda: state(capture.pid) == "T", "apitrace is held up")
        tell(running, "meanwhile")
        until(lambda: [state(pid) for pid in descendants(running.pid)] == ["T"], "the child is stopped")
        os.kill(capture.pid, number)
        if number != signal.SIGKILL:
            os.kill(capture.pid, signal.SIGCONT)
        assert hear(running) == "meanwhile\n"
        capture.kill()
        tell(running, "after")
        assert hear(running) == "after\n"
        assert state(running.pid) != "T"


def test_a_command_without_a_terminal_is_shown_with_all_its_descendants(tls_lab: TlsLab) -> None:
    server = tls_lab.tls_origin()
    url = f"https://localhost:{server.address[1]}"
    curl = f"{program('curl')} -s -o /dev/null --cacert {tls_lab.ca}"
    script = f"{curl} {url}/bytes/1; (setsid {curl} {url}/bytes/2) & wait; exec {curl} {url}/bytes/3"
    capture = tls_lab.trace_command("sh", "-c", script)
    assert capture.status == 0, capture.stderr
    assert sorted(record["request"]["path"] for record in capture.exchanges) == ["/bytes/1", "/bytes/2", "/bytes/3"]
    assert all(record["complete"] for record in capture.exchanges)


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment(PS1="", PS2="", TERM="dumb"))
        self.output = ""
        self.run("set +o emacs; set +o vi")

    def run(self, command: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Run a command in the foreground, until the shell has gone on behind it; do something meanwhile."""
        mark = f"done-{time.monotonic_ns()}"
        # The terminal echoes what is typed: so the mark is typed in two parts.
        os.write(self._master, f"{command}\necho {mark[:4]}''{mark[4:]}\n".encode())
        meanwhile()
        deadline = time.monotonic() + PATIENCE
        while mark not in self.output:
            assert time.monotonic() < deadline, self.output
            if select.select([self._master], [], [], 0.1)[0]:
                self.output += os.read(self._master, 65536).decode(errors="replace")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.close(self._master)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_an_interactive_shell_never_sees_a_stopped_job_and_each_of_its_childrens_calls_is_told_of(
    tls_lab: TlsLab, terminal: Terminal
) -> None:
    """Its children are not stopped: so of one that calls within milliseconds it may be all that can be told."""
    server = tls_lab.tls_origin()
    url = f"https://localhost:{server.address[1]}"
    with tls_lab.trace("--pid", str(terminal.pid)) as capture:
        for number in range(11):
            terminal.run(f"{program('curl')} -s -o /dev/null --cacert {tls_lab.ca} {url}/bytes/{number}")
        terminal.run("jobs; echo jobs-are-told")
        capture.wait_shown(11)
    assert "topped" not in terminal.output
    assert "[1]" not in terminal.output
    records = capture.exchanges
    assert len({record["source"]["port"] for record in records}) == len(records) == 11
    for record in records:
        assert record["complete"] or record["protocol"] == "TLS" or record["unknown"]
        assert record["protocol"] != "TLS" or record["error"]["kind"] == "unreadable"


def test_a_child_of_an_interactive_shell_that_takes_its_time_is_shown(tls_lab: TlsLab, terminal: Terminal) -> None:
    """Here curl waits for its configuration, until the probes are there."""
    server = tls_lab.tls_origin()
    gate = tls_lab.path("configuration")
    os.mkfifo(gate)

    def let_go() -> None:
        until(lambda: any(is_tls(touched(pid)) for pid in children(terminal.pid)), "curl is probed")
        gate.write_text(f'url = "https://localhost:{server.address[1]}/bytes/1"\n')

    with tls_lab.trace("--pid", str(terminal.pid)) as capture:
        for _ in range(3):
            terminal.run(f"{program('curl')} -s -o /dev/null --cacert {tls_lab.ca} -K {gate}", let_go)
        capture.wait_shown(3)
    assert "topped" not in terminal.output
    assert [record["request"]["path"] for record in capture.exchanges] == ["/bytes/1"] * 3
    assert all(record["complete"] for record in capture.exchanges)


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process that has the same libraries as the targets, and is none."""
    running = subprocess.Popen(
        [sys.executable, "-c", "import ssl, sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None
    running.stdout.readline()
    yield running.pid
    running.kill()
    running.communicate()


def started(tls_lab: TlsLab) -> tuple[Program, Program]:
    server = tls_lab.tls_origin()
    client = tls_lab.tls_client(server, rounds=5)
    until(lambda: any("libssl" in code.file.path for code in Libraries().code(client.pid)), "the client has OpenSSL")
    return server, client


def test_a_process_that_is_no_target_takes_no_breakpoint(tls_lab: TlsLab, bystander: int) -> None:
    server, client = started(tls_lab)
    assert touched(bystander) == touched(client.pid) == set()
    with tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        assert is_tls(touched(server.pid))
        assert is_tls(touched(client.pid))
        assert touched(bystander) == set()
        client.go()
        client.wait_done()
        assert touched(bystander) == set()
        calls = told(server, client, 35)
        capture.wait_shown(70)
    assert_exactly_over_tls(capture, client=calls, server=calls)
    assert touched(server.pid) == touched(client.pid) == touched(bystander) == set()


def test_a_killed_apitrace_leaves_its_targets_code_as_it_was_and_them_running(tls_lab: TlsLab) -> None:
    server, client = started(tls_lab)
    capture = tls_lab._apitrace(["--pid", f"{server.pid},{client.pid}"])
    capture.wait_ready()
    assert is_tls(touched(server.pid))
    client.go()
    capture.wait_shown(1)
    capture.kill()
    until(lambda: not touched(server.pid), "the breakpoints in the server are gone")
    client.wait_done()
    assert len(told(server, client, 35)) == 35
    assert touched(client.pid) == set()
    assert state(server.pid) not in {"T", "Z", None}


def holder(capture: int) -> int:
    """Return the process that holds the probes of an apitrace: one of its children, with the links' descriptors."""
    return next(
        child for child in children(capture)
        if any("bpf_link" in str(each.readlink()) for each in Path(f"/proc/{child}/fd").iterdir())
    )  # fmt: skip


def test_where_the_process_that_holds_the_probes_is_killed_the_capture_ends_and_loses_nothing(
    tls_lab: TlsLab,
) -> None:
    server, client = started(tls_lab)
    capture = tls_lab._apitrace(["--pid", f"{server.pid},{client.pid}"])
    capture.wait_ready()
    client.go()
    client.wait_done()
    calls = told(server, client, 35)
    capture.wait_shown(70)
    os.kill(holder(capture.pid), signal.SIGKILL)
    assert capture.wait() == 3
    assert "holds the TLS probes has been ended" in capture.stderr
    assert "Traceback" not in capture.stderr
    assert_exactly_over_tls(capture, client=calls, server=calls)
    assert touched(server.pid) == touched(client.pid) == set()
