"""A recording is its owner's alone, and is written event by event. Reading it is tested in tests/unit/files."""

from __future__ import annotations

import os
import pty
import stat
import struct
import sys
import threading
from typing import TYPE_CHECKING

import orjson
import pytest

from apitrace import __version__
from apitrace.errors import OutputError
from apitrace.files.recording import Recording, RecordingHeader
from apitrace.sinks.recording import Recorder, new_header

if TYPE_CHECKING:
    from pathlib import Path

HEADER = RecordingHeader("node-1", "1.2.3", -5, 1_700_000_000_000_000_000, "pid 4121 (nginx)", "x86_64", sys.byteorder)
EVENT = bytes(range(40))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_is_laid_out_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "a.apitrace"
    recorder = Recorder(str(path), HEADER)
    recorder.write(EVENT)
    recorder.write(EVENT + b"!")
    recorder.close()
    fields = orjson.dumps(HEADER._asdict())
    assert path.read_bytes() == b"".join([
        b"APITRACE", struct.pack("<HHI", 1, 2, len(fields)), fields,
        struct.pack("<I", 40), EVENT, struct.pack("<I", 41), EVENT, b"!",
    ])  # fmt: skip


def test_a_header_says_where_and_when_it_was_made() -> None:
    header = new_header(node_name="node-1", clock_offset_ns=7, targets="command a\udc80b")
    assert header == RecordingHeader(
        "node-1", __version__, 7, header.start_ns, r"command a\udc80b", os.uname().machine, sys.byteorder
    )
    assert header.start_ns > HEADER.start_ns


def test_the_header_is_written_at_once_and_events_at_the_flush(tmp_path: Path) -> None:
    path = tmp_path / "a.apitrace"
    recorder = Recorder(str(path), HEADER)
    start = path.stat().st_size
    assert list(Recording(str(path))) == []
    recorder.write(EVENT)
    assert path.stat().st_size == start
    recorder.flush()
    assert list(Recording(str(path))) == [EVENT]
    recorder.close()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_owner_may_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Recorder(str(tmp_path / "a.apitrace"), HEADER).close()
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.apitrace") == 0o600


def test_an_existing_file_is_overwritten_and_becomes_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.apitrace"
    path.write_bytes(b"x" * 10_000)
    path.chmod(0o666)
    Recorder(str(path), HEADER).close()
    assert mode(path) == 0o600
    assert list(Recording(str(path))) == []


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "a.apitrace"
    os.mkfifo(path)
    events: list[bytes] = []
    reader = threading.Thread(target=lambda: events.extend(Recording(str(path))))
    reader.start()
    recorder = Recorder(str(path), HEADER)
    recorder.write(EVENT)
    recorder.close()
    reader.join()
    assert events == [EVENT]


def test_what_is_thrown_away_may_be_written_to_the_null_device() -> None:
    before = os.stat(os.devnull).st_mode  # noqa: PTH116 - a device, no file
    recorder = Recorder(os.devnull, HEADER)
    recorder.write(EVENT)
    recorder.close()
    assert os.stat(os.devnull).st_mode == before  # noqa: PTH116


def test_a_full_disk_is_an_output_error() -> None:
    with pytest.raises(OutputError, match=r"^cannot write /dev/full: No space left on device$"):
        Recorder("/dev/full", HEADER)


def test_what_was_written_before_the_disk_was_full_is_good(tmp_path: Path) -> None:
    """The file's size is limited as a disk's would be: 1,000 events fit, and part of the next."""
    path = tmp_path / "a.apitrace"
    start = len(orjson.dumps(HEADER._asdict())) + 16
    child = os.fork()
    if child == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (start + 1000 * 44 + 20,) * 2)
        recorder = Recorder(str(path), HEADER)
        try:
            for _ in range(2000):
                recorder.write(EVENT)
            recorder.close()
        except OutputError:
            os._exit(4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    recording = Recording(str(path))
    assert list(recording) == [EVENT] * 1000
    assert recording.truncated


@pytest.mark.parametrize(
    ("name", "problem"), [("", "Is a directory"), ("missing/a.apitrace", "No such file or directory")]
)
def test_a_path_that_cannot_be_written_is_an_output_error(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(OutputError) as caught:
        Recorder(str(tmp_path / name), HEADER)
    assert str(caught.value) == f"cannot write {tmp_path / name}: {problem}"


def test_a_terminal_is_refused() -> None:
    leader, follower = pty.openpty()
    name = os.ttyname(follower)
    with pytest.raises(OutputError) as caught:
        Recorder(name, HEADER)
    assert str(caught.value) == f"cannot write {name}: it is a terminal, not a file"
    os.close(follower)
    os.close(leader)


def test_a_recording_made_under_sudo_belongs_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "23456")
    path = tmp_path / "x.apitrace"
    Recorder(str(path), new_header(node_name="n", clock_offset_ns=0, targets="t")).close()
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert path.stat().st_mode & 0o777 == 0o600
