"""Bytes go out once per batch, whole; failures come back once, as the package's own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from apitrace.errors import OutputError
from apitrace.sinks.output import Output


class Stream(io.RawIOBase):
    """Notes what is written; accepts at most `limit` bytes a call."""

    def __init__(self, limit: int = 1 << 30, failure: OSError | None = None) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self._limit = limit
        self.failure = failure

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.failure is not None:
            raise self.failure
        self.writes.append(bytes(data[: self._limit]))
        return len(self.writes[-1])


def test_nothing_is_written_before_the_flush_and_then_all_at_once() -> None:
    stream = Stream()
    output = Output(stream, "out")  # type: ignore[arg-type]  # a raw stream is enough
    output.put(b"one ")
    output.put(b"two")
    assert stream.writes == []
    output.flush()
    output.flush()
    assert stream.writes == [b"one two"]


def test_a_mebibyte_is_not_held() -> None:
    stream = Stream()
    output = Output(stream, "out")  # type: ignore[arg-type]
    output.put(bytes(1 << 20))
    assert stream.writes == []
    output.put(b"x")
    assert [len(data) for data in stream.writes] == [(1 << 20) + 1]


def test_a_short_write_is_continued() -> None:
    stream = Stream(limit=3)
    output = Output(stream, "out")  # type: ignore[arg-type]
    output.put(b"abcdefgh")
    output.flush()
    assert stream.writes == [b"abc", b"def", b"gh"]


def test_nothing_stays_in_a_buffer_below(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"before ")
        output = Output(file, "file")
        output.put(b"after")
        output.flush()
        assert (tmp_path / "file").read_bytes() == b"before after"


def test_a_failure_is_reported_once_and_what_was_held_is_dropped() -> None:
    stream = Stream(failure=OSError(28, "No space left on device"))
    output = Output(stream, "file.jsonl")  # type: ignore[arg-type]
    output.put(b"lost")
    with pytest.raises(OutputError, match=r"^cannot write file\.jsonl: No space left on device$"):
        output.flush()
    stream.failure = None
    output.close()
    assert stream.writes == []
    assert stream.closed


def test_a_closed_pipe_stays_a_broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stream:
        output = Output(stream, "pipe")
        output.put(b"x")
        with pytest.raises(BrokenPipeError):
            output.close()


def test_a_full_disk_is_reported() -> None:
    with Path("/dev/full").open("wb") as stream:
        output = Output(stream, "full")
        output.put(b"x")
        with pytest.raises(OutputError, match="No space left on device"):
            output.close()


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 65536):
            got.append(data)

    thread = threading.Thread(target=read)
    with os.fdopen(writer, "wb", buffering=0) as stream:
        output = Output(stream, "pipe")
        output.put(bytes(900_000))
        thread.start()
        output.close()
    thread.join()
    os.close(reader)
    assert sum(map(len, got)) == 900_000


def test_standard_output_is_not_closed_and_leaves_nothing_to_complain_about_at_exit() -> None:
    code = """if True:
        import sys
        from apitrace.errors import OutputError
        from apitrace.sinks.output import Output
        output = Output(sys.stdout.buffer, "standard output")
        output.put(b"x")
        try:
            output.close()
        except OutputError as error:
            sys.stderr.write(str(error))
        assert not sys.stdout.closed
    """
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert (run.returncode, run.stderr) == (0, "cannot write standard output: No space left on device")
