"""What was recorded is read back, byte for byte; what is no recording is refused in one line."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apitrace.errors import UsageError
from apitrace.files.recording import Recording, RecordingHeader
from apitrace.probes import events
from apitrace.sinks.recording import Recorder

HEADER = RecordingHeader("node-1", "1.2.3", -5, 1_700_000_000_000_000_000, "pid 4121 (nginx)", "x86_64", sys.byteorder)
EVENT = bytes(range(40))


def written(path: Path, *raw: bytes) -> bytes:
    """Write a recording; return its bytes."""
    recorder = Recorder(str(path), HEADER)
    for event in raw:
        recorder.write(event)
    recorder.close()
    return path.read_bytes()


def refused(path: Path, content: bytes) -> str:
    """Return why this is not read: in the constructor, or when the damage is reached."""
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        list(Recording(str(path)))
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert message.isprintable()
    return message.removeprefix(f"{path} ")


def with_header(changes: dict[str, Any]) -> bytes:
    fields = {name: value for name, value in (HEADER._asdict() | changes).items() if value is not ...}
    raw = orjson.dumps(fields)
    return struct.pack("<8sHHI", b"APITRACE", 1, events.EVENT_ABI, len(raw)) + raw


@given(st.lists(st.binary(min_size=events.HEAD.size, max_size=200), max_size=20))
def test_what_is_read_is_what_was_written(raw: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.apitrace")
        written(path, *raw)
        recording = Recording(str(path))
        assert recording.header == HEADER
        assert list(recording) == raw
        assert not recording.truncated


def test_events_of_every_size_are_read(tmp_path: Path) -> None:
    raw = [bytes([number % 256]) * size for number, size in enumerate((32, 4096, 8191, 8192, 65536, (1 << 20) + 40))]
    written(tmp_path / "a", *raw)
    assert list(Recording(str(tmp_path / "a"))) == raw


def test_events_made_in_user_space_come_back_as_they_were(tmp_path: Path) -> None:
    seen = events.ProcessSeen(5, 4121, "nginx", "/usr/sbin/nginx", None)
    counters = events.Counters(9, tuple(range(len(events.COUNTER_NAMES))))
    written(tmp_path / "a", events.encode_process(seen), events.encode_counters(counters))
    assert [events.decode(raw) for raw in Recording(str(tmp_path / "a"))] == [seen, counters]


def test_a_cut_tail_ends_it_with_a_note_wherever_the_cut_is(tmp_path: Path) -> None:
    whole = written(tmp_path / "a", EVENT, EVENT)
    start = len(whole) - 2 * (4 + len(EVENT))
    for end in range(start, len(whole) + 1):
        (tmp_path / "a").write_bytes(whole[:end])
        recording = Recording(str(tmp_path / "a"))
        events_left, rest = divmod(end - start, 4 + len(EVENT))
        assert list(recording) == [EVENT] * events_left
        assert recording.truncated == (rest > 0)


def test_a_file_cut_in_its_header_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "a")
    reasons = {refused(tmp_path / "a", whole[:end]) for end in range(len(whole))}
    assert reasons == {"is not a recording of apitrace", "ends within its header", "has a damaged header"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a recording of apitrace"),
        (b"\xd4\xc3\xb2\xa1" + bytes(100), "is not a recording of apitrace"),
        (b'{"id":"1f-1"}\n', "is not a recording of apitrace"),
        (struct.pack("<8sHHI", b"APITRACE", 2, 1, 0), "has format 2; this apitrace reads format 1"),
        (struct.pack("<8sHHI", b"APITRACE", 1, 7, 0), "holds events of ABI 7; this apitrace reads ABI 1 and 2"),
        (struct.pack("<8sHHI", b"APITRACE", 1, 1, 1 << 31) + b"{}", "has a damaged header"),
        (struct.pack("<8sHHI", b"APITRACE", 1, 1, 2) + b"[]", "has a damaged header"),
        (with_header({"node_name": ...}), "has a damaged header"),
        (with_header({"clock_offset_ns": "5"}), "has a damaged header"),
        (with_header({"clock_offset_ns": True}), "has a damaged header"),
        (with_header({"start_ns": (1 << 63) + 1}), "has a damaged header"),
        (with_header({"targets": None}), "has a damaged header"),
        (
            with_header({"byte_order": "other\x1b[31m"}),
            f"was made on a machine of the other byte order; this one is {sys.byteorder}-endian",
        ),
        (with_header({}) + struct.pack("<I", 31) + bytes(31), "is damaged: it claims to hold an event of 31 bytes"),
        (with_header({}) + b"\xff" * 50, "is damaged: it claims to hold an event of 4294967295 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    assert refused(tmp_path / "a", content) == problem


def test_a_field_of_a_later_version_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(with_header({"colour": "green"}))
    assert Recording(str(tmp_path / "a")).header == HEADER


@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_refused_or_read_but_nothing_else_happens(garbage: bytes, as_events: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.apitrace")
        path.write_bytes((with_header({}) if as_events else b"APITRACE\1\0\1\0") + garbage)
        with contextlib.suppress(UsageError):
            for raw in Recording(str(path)):
                assert raw in garbage


def test_a_file_that_is_not_there_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError) as caught:
            Recording(str(path))
        assert str(caught.value) == f"{path} cannot be read: {problem}"


def test_a_file_that_fails_while_it_is_read_is_refused(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    written(tmp_path / "a", EVENT)
    recording = Recording(str(tmp_path / "a"))
    recording._file.close()
    recording._file = Failing()
    with pytest.raises(UsageError) as caught:
        list(recording)
    assert str(caught.value) == f"{tmp_path / 'a'} cannot be read: Input/output error"


def test_a_dash_is_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(tmp_path / "a", EVENT)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert list(Recording("-")) == [EVENT]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    with pytest.raises(UsageError, match=r"^standard input is not a recording of apitrace$"):
        Recording("-")


def test_the_file_is_closed_when_it_has_been_read(tmp_path: Path) -> None:
    written(tmp_path / "a", EVENT)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors, not files
    recording = Recording(str(tmp_path / "a"))
    assert list(recording) == [EVENT]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
