"""How a capture ends: each way ends well, says what it must, and loses nothing already captured."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.calls import of_record
from tests.live.harness import APITRACE, assert_exactly, environment, until

if TYPE_CHECKING:
    from tests.live.harness import Lab, Program


def get(server: Program, path: str) -> int:
    """Make one call on a connection of its own; return its status."""
    connection = http.client.HTTPConnection(*server.address)
    connection.request("GET", path, headers={"Connection": "close"})
    response = connection.getresponse()
    response.read()
    return response.status


def start(*flags: str, stdout: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*APITRACE, *flags], stdin=subprocess.DEVNULL, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(),
    )  # fmt: skip


def said(*flags: str) -> tuple[int, list[str]]:
    """Run apitrace to its end; return its status and what it says. It prints nothing on standard output."""
    run = subprocess.run([*APITRACE, *flags], capture_output=True, text=True, env=environment(), check=False)
    assert run.stdout == ""
    return run.returncode, run.stderr.splitlines()


def test_it_stops_after_so_many_exchanges(lab: Lab) -> None:
    server = lab.origin()
    ready = lab.path("ready")
    run = start("-j", "-c", "3", "--ready-file", str(ready), "-p", str(server.pid))
    until(ready.exists, "apitrace is ready")
    paths = [f"/bytes/{number}" for number in range(5)]
    assert [get(server, path) for path in paths] == [200] * 5
    calls = {call.path: call for call in server.calls(5)}  # its threads may write them in another order
    out, err = run.communicate(timeout=30)
    assert run.returncode == 0, err
    assert [of_record(json.loads(line)) for line in out.splitlines()] == [calls[path] for path in paths[:3]]
    assert not ready.exists()


def test_it_stops_after_the_duration(lab: Lab) -> None:
    server = lab.origin()
    with lab.trace("--pid", str(server.pid), "--duration", "0.7") as capture:
        get(server, "/bytes/1")
        assert capture.wait() == 0
        assert_exactly(capture, server=server.calls(1))


def test_it_stops_when_its_target_has_ended(lab: Lab) -> None:
    server = lab.origin()
    with lab.trace("--pid", str(server.pid)) as capture:
        get(server, "/bytes/1")
        calls = server.calls(1)
        server.kill()
        assert capture.wait() == 0
    assert_exactly(capture, server=calls)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(lab: Lab, number: signal.Signals) -> None:
    server = lab.origin()
    ready = lab.path("ready")
    run = start("-j", "--ready-file", str(ready), "-p", str(server.pid))
    until(ready.exists, "apitrace is ready")
    get(server, "/status/404")
    run.send_signal(number)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 0
    assert [of_record(json.loads(line)) for line in out.splitlines()] == server.calls(1)
    assert err.splitlines()[1:] == [
        "apitrace: 1 exchange captured, 0 unanswered, 0 filtered",
        "apitrace: 0 events dropped by kernel, 0 bytes unseen",
        "apitrace: 1 connection, 0 joined mid-stream",
    ]


def test_sigusr1_prints_the_counters_and_the_capture_goes_on(lab: Lab) -> None:
    server = lab.origin()
    with lab.trace("--pid", str(server.pid)) as capture:
        get(server, "/bytes/1")
        capture.wait_shown(1)
        os.kill(capture.pid, signal.SIGUSR1)
        until(lambda: "1 exchange captured" in capture.stderr, "the counters are printed")
        get(server, "/bytes/2")
        capture.wait_shown(2)
    assert_exactly(capture, server=server.calls(2))
    assert "2 exchanges captured" in capture.stderr


def test_a_reader_that_goes_away_ends_it_quietly(lab: Lab) -> None:
    server = lab.origin()
    ready = lab.path("ready")
    run = start("-j", "-q", "--ready-file", str(ready), "-p", str(server.pid))
    until(ready.exists, "apitrace is ready")
    get(server, "/bytes/1")
    assert run.stdout is not None
    assert json.loads(run.stdout.readline())["request"]["path"] == "/bytes/1"
    run.stdout.close()
    until(lambda: run.poll() is not None or get(server, "/bytes/2") != 200, "apitrace has ended")
    assert run.stderr is not None
    assert (run.returncode, run.stderr.read()) == (0, "")
    run.stderr.close()


def test_a_full_disk_is_exit_status_4(lab: Lab) -> None:
    server = lab.origin()
    ready = lab.path("ready")
    with Path("/dev/full").open("wb") as full:
        run = start("-j", "-q", "--ready-file", str(ready), "-p", str(server.pid), stdout=full.fileno())
    until(ready.exists, "apitrace is ready")
    get(server, "/bytes/1")
    _, err = run.communicate(timeout=30)
    assert run.returncode == 4
    [line] = err.splitlines()
    assert line.startswith("apitrace: ")
    assert "No space left on device" in line


def test_after_five_silent_seconds_one_line_says_why(lab: Lab) -> None:
    server = lab.origin()
    with lab.trace("--pid", str(server.pid)) as capture:
        until(lambda: "nothing yet: " in capture.stderr, "the line is printed")
        assert capture.stderr.splitlines()[-1] == "apitrace: nothing yet: no socket I/O by the target yet"


def test_a_process_that_does_not_exist_is_exit_status_1() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    status, lines = said("--pid", str(gone.pid))
    assert status == 1
    assert len(lines) == 1
    assert str(gone.pid) in lines[0]


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        (["--cgroup", "/proc"], 1, "/proc"),
        (["--cgroup", "/sys/fs/cgroup/no/such/group"], 1, "/sys/fs/cgroup/no/such/group"),
        (["--container", "no-such-container"], 1, "no-such-container"),
        (["--pod", "no-such-namespace/no-such-pod"], 1, "no-such-pod"),
        (["--pid", "0"], 2, "'0' is not a process id"),
        (["--pid", "x"], 2, "'x' is not a process id"),
        (["--port", "65536", "-a"], 2, "'65536' is not a port"),
        (["--host", "example.com", "-a"], 2, "'example.com' is not an IP address"),
        (["--snaplen", "many", "-a"], 2, "'many' is not a number of bytes"),
        (["-o", "xml", "-a"], 2, "xml"),
        (["-w", "capture.pdf", "-a"], 2, "capture.pdf"),
        ([], 2, "nothing to trace"),
        (["--"], 125, "no command"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["-r", "/no/such/file.apitrace"], 2, "/no/such/file.apitrace"),
        (["-a", "-w", "/no/such/directory/x.jsonl"], 4, "/no/such/directory/x.jsonl"),
        (["-a", "-w", "/no/such/directory/x.apitrace"], 4, "/no/such/directory/x.apitrace"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(flags: list[str], status: int, text: str) -> None:
    code, lines = said(*flags)
    assert (code, len(lines)) == (status, 1), lines
    assert lines[0].startswith("apitrace: ")
    assert text in lines[0]


def test_without_privilege_it_says_what_is_missing() -> None:
    nobody = pwd.getpwnam("nobody")
    code = f"import sys; sys.path.insert(0, {str(Path(APITRACE[0]).parents[2])!r})\n"
    code += "from apitrace import cli; sys.exit(cli.run(['--all']))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/",
        user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], env=environment(),
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (3, "")
    assert run.stderr == "apitrace: tracing needs root, or CAP_BPF and CAP_PERFMON: run it with sudo\n"
