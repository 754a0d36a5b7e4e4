"""Programs that were kept see what newly compiled ones see; and whatever is wrong with the file, apitrace starts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apitrace.probes import cache, events
from apitrace.probes.image import Image
from apitrace.probes.sockets import LiveSource, Narrowing
from apitrace.targets.target import TargetSet
from tests.live.harness import APITRACE, HOOKS, agreed, assert_exactly, environment, until

if TYPE_CHECKING:
    from tests.live.harness import Lab

REQUESTS = [{"path": "/bytes/1000"}, {"method": "POST", "path": "/echo", "size": 2003}]
REQUEST = b"GET /own HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    place = tmp_path / "cache"
    monkeypatch.setenv(cache.ENVIRONMENT, str(place))
    return place


def trace_exactly(lab: Lab) -> None:
    """Trace 46 calls at both ends, all of which must be seen."""
    server = lab.origin()
    client = lab.client(server, REQUESTS, rounds=23)
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = agreed(server, client, 46)
        capture.wait_shown(92)
    assert_exactly(capture, client=calls, server=calls)


def only_file(place: Path) -> Path:
    (file,) = place.iterdir()
    return file


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
def test_a_second_start_takes_what_the_first_kept_and_sees_the_same(lab: Lab, kept: Path) -> None:
    trace_exactly(lab)
    written = only_file(kept).stat()
    trace_exactly(lab)
    again = only_file(kept).stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def moved_by(source: LiveSource, sender: int) -> dict[int, bytes]:
    """Return what was sent, by PID, once the process `sender` was seen to have sent something."""
    sent: dict[int, bytes] = {}

    def poll() -> bool:
        for raw in source.poll(20):
            event = events.decode(raw)
            if isinstance(event, events.Chunk) and event.egress:
                sent[event.pid] = sent.get(event.pid, b"") + event.data
        return sender in sent

    until(poll, "the child's request is seen")
    return sent


@pytest.mark.usefixtures("kept")
def test_kept_programs_leave_out_the_process_that_loads_them_and_not_the_one_they_were_compiled_for() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def converse() -> None:
            with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as server:
                client.sendall(REQUEST)
                server.recv(len(REQUEST))

        for _ in range(2):
            tracer = os.fork()
            if tracer == 0:
                code = 1
                try:
                    source = LiveSource(TargetSet(everything=True), Narrowing(ports=(port,)), lambda _: None)
                    source.start()
                    converse()
                    child = os.fork()
                    if child == 0:
                        converse()
                        os._exit(0)
                    sent = moved_by(source, child)
                    os.waitpid(child, 0)
                    source.close()
                    code = 0 if sent[child] == REQUEST and os.getpid() not in sent else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == 0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a start has filled, to be copied."""
    place = tmp_path_factory.mktemp("good") / "cache"
    command = [*APITRACE, "-q", "-j", "--pid", str(os.getpid()), "--duration", "0.01"]
    subprocess.run(command, check=True, env=environment(**{cache.ENVIRONMENT: str(place)}))
    return place


@pytest.mark.parametrize("damage", ["changed", "refused", "writable"])
def test_a_file_that_cannot_be_used_is_compiled_again(lab: Lab, kept: Path, good: Path, damage: str) -> None:
    shutil.copytree(good, kept)
    file = only_file(kept)
    whole, before = file.read_bytes(), file.stat()
    content = cache.read(file.name)
    assert content is not None
    if damage == "changed":
        file.write_bytes(whole[:-100] + bytes(100))
    elif damage == "refused":  # whole, and ours, but nothing that the verifier would take
        first, *others = Image.decode(content).programs
        empty = replace(first, instructions=bytes(len(first.instructions)))
        cache.write(file.name, replace(Image.decode(content), programs=(empty, *others)).encode())
    else:
        file.chmod(0o666)
    trace_exactly(lab)
    assert only_file(kept).stat().st_ino != before.st_ino
    assert only_file(kept).stat().st_mode & 0o777 == 0o600
    assert Image.decode(cache.read(file.name) or b"") == Image.decode(content)


def test_without_a_place_to_keep_anything_apitrace_starts(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "file" / "below"))
    trace_exactly(lab)
