"""Compiled programs as values: what is taken from instructions, to bytes and back, and what the kernel is asked."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import zlib
from typing import TYPE_CHECKING

import orjson
import pytest

from apitrace.errors import PlatformError
from apitrace.probes import image
from apitrace.probes.image import Image, ImageError, Map, Program

if TYPE_CHECKING:
    from collections.abc import Callable

MOVE, LOAD_64, CALL, EXIT = 0xB7, 0x18, 0x85, 0x95


def instruction(code: int, source: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | 1, 0, immediate)


def map_reference(descriptor: int) -> bytes:
    return instruction(LOAD_64, 1, descriptor) + bytes(8)


RETURN_0 = instruction(MOVE)[:1] + bytes(7) + instruction(EXIT)[:1] + bytes(7)
EXAMPLE = Image(
    (Map("numbers", 2, 4, 8, 3, 0), Map("a_rather_long_name_of_a_map", 1, 4, 4, 100, 1)),
    (
        Program("first", image.RAW_TRACEPOINT, 0, map_reference(0) + RETURN_0, ((0, "numbers"),)),
        Program("second", image.KPROBE, 48, RETURN_0, ()),
    ),
)


def test_references_to_maps_are_taken_out_by_name() -> None:
    code = instruction(MOVE) + map_reference(7) + instruction(CALL, 0, 1) + map_reference(9) + RETURN_0
    program = image.program_of("p", image.KPROBE, 0, code, {7: "one", 9: "two"})
    assert program.references == ((1, "one"), (4, "two"))
    assert program.instructions == (
        instruction(MOVE) + map_reference(0) + instruction(CALL, 0, 1) + map_reference(0) + RETURN_0
    )


def test_a_plain_64_bit_constant_is_no_reference_and_its_second_half_no_instruction() -> None:
    code = instruction(LOAD_64, 0, 7) + instruction(CALL, 1, 7) + RETURN_0
    program = image.program_of("p", image.KPROBE, 0, code, {7: "one"})
    assert program.references == ()
    assert program.instructions == code


@pytest.mark.parametrize(
    "code",
    [map_reference(8), instruction(LOAD_64, 2, 7) + bytes(8), instruction(CALL, 1, 5), instruction(CALL, 2, 5)],
    ids=["unknown descriptor", "map value", "program call", "kernel function"],
)
def test_what_is_true_of_one_run_only_is_not_taken(code: bytes) -> None:
    with pytest.raises(ImageError, match=r"^p "):
        image.program_of("p", image.KPROBE, 0, code + RETURN_0, {7: "one"})


def test_an_image_survives_the_way_to_bytes_and_back() -> None:
    assert Image.decode(EXAMPLE.encode()) == EXAMPLE


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", zlib.compress(b""), zlib.compress(b"[1]"), zlib.compress(b'{"maps": [], "programs": [3]}'),
        zlib.compress(b'{"maps": [{"name": "x"}], "programs": []}'),
        zlib.compress(orjson.dumps({"maps": [], "programs": [{"instructions": "!", "references": [[1]]}]})),
    ],
)  # fmt: skip
def test_what_is_no_image_is_one_error(content: bytes) -> None:
    with pytest.raises(ImageError):
        Image.decode(content)


class FakeKernel:
    """Answers bpf(2) with descriptors of real files, so that leaks can be seen; `refuse(command, name)`: an errno."""

    def __init__(self, refuse: Callable[[int, str], int] = lambda *_: 0) -> None:
        self.refuse = refuse
        self.instructions: dict[str, bytes] = {}
        self.descriptors: list[int] = []

    def bpf(self, command: int, attr: bytes) -> int:
        start = 28 if command == 0 else 48
        name = attr[start : start + 16].rstrip(b"\0").decode()
        number = self.refuse(command, name)
        if number:
            raise OSError(number, os.strerror(number))
        if command == 5:
            count, address = struct.unpack_from("=IQ", attr, 4)
            self.instructions[name] = ctypes.string_at(address, 8 * count)
        self.descriptors.append(os.open("/dev/null", os.O_RDONLY))
        return self.descriptors[-1]

    def is_open(self) -> list[bool]:
        return [os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in self.descriptors]  # noqa: PTH110


def test_loading_puts_the_maps_descriptors_where_the_references_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(image, "bpf", kernel.bpf)
    programs, maps = image.load(EXAMPLE)
    assert list(programs) == ["first", "second"]
    assert list(maps) == ["numbers", "a_rather_long_name_of_a_map"]
    assert kernel.instructions == {"first": map_reference(maps["numbers"]) + RETURN_0, "second": RETURN_0}
    for descriptor in kernel.descriptors:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("command", "name", "words"),
    [(0, "numbers", "refuses the map numbers"), (5, "second", "refuses the program second")],
)
def test_what_the_kernel_refuses_is_named_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch, command: int, name: str, words: str
) -> None:
    kernel = FakeKernel(lambda *asked: errno.EINVAL if asked == (command, name) else 0)
    monkeypatch.setattr(image, "bpf", kernel.bpf)
    with pytest.raises(PlatformError, match=words):
        image.load(EXAMPLE)
    assert not any(kernel.is_open())


@pytest.mark.parametrize("capped", [False, True])
def test_the_limit_on_locked_memory_is_raised_only_where_the_kernel_asks(
    monkeypatch: pytest.MonkeyPatch, capped: bool
) -> None:
    before, limits = resource.getrlimit(resource.RLIMIT_MEMLOCK), []

    def set_limit(_which: int, limit: tuple[int, int]) -> None:
        limits.append(limit)
        if capped:
            raise ValueError

    kernel = FakeKernel(lambda *_: 0 if limits else errno.EPERM)
    monkeypatch.setattr(image, "bpf", kernel.bpf)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    programs, _ = image.load(EXAMPLE)
    assert len(programs) == 2
    assert limits == [(before[1], before[1]), (resource.RLIM_INFINITY, resource.RLIM_INFINITY), before]
    for descriptor in kernel.descriptors:
        os.close(descriptor)


def test_what_is_not_permitted_at_all_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(lambda command, _: errno.EPERM if command == 5 else 0)
    monkeypatch.setattr(image, "bpf", kernel.bpf)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(PlatformError, match="Operation not permitted"):
        image.load(EXAMPLE)
    assert not any(kernel.is_open())
