"""Offsets from BTF, against blobs made by hand and against the C compiler's own view of the running kernel's rules."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from apitrace.errors import PlatformError
from apitrace.probes.btf import Btf

INT, PTR, STRUCT, UNION, ENUM, TYPEDEF, FWD = 1, 2, 4, 5, 6, 8, 7


class Blob:
    """Writes BTF as Documentation/bpf/btf.rst describes it."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self.strings.find(b"\0" + text.encode() + b"\0")  # BTF keeps each string once
        if at >= 0:
            return at + 1
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(
        self, name: str, kind: int, size: int, members: Sequence[tuple[str, int, int]] = (), extra: bytes = b""
    ) -> None:
        self.types += struct.pack("=III", self.name(name), kind << 24 | len(members), size) + extra
        for member, type_id, bits in members:
            if kind == ENUM:
                self.types += struct.pack("=Ii", self.name(member), type_id)
            else:
                self.types += struct.pack("=III", self.name(member), type_id, bits)

    def bytes(self) -> bytes:
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings


@pytest.fixture
def btf() -> Btf:
    blob = Blob()
    blob.add("int", INT, 4, extra=struct.pack("=I", 32))  # 1
    blob.add("sock", FWD, 0)  # 2: a forward declaration of the same name must not be taken
    blob.add("", UNION, 8, [("a", 1, 0), ("b", 1, 32)])  # 3: anonymous
    blob.add("inner", STRUCT, 16, [("x", 1, 0), ("", 3, 64)])  # 4
    blob.add("alias", TYPEDEF, 4)  # 5 -> inner
    blob.add("sock", STRUCT, 64, [("flag", 1, 1 << 24 | 96), ("inner", 5, 128)])  # 6
    blob.add("color", ENUM, 4, [("RED", 0, 0), ("BLUE", -7, 0)])  # 7
    blob.add("btf_trace_sock_send_length", TYPEDEF, 1)  # 8
    return Btf(blob.bytes())


def test_members_are_found_through_anonymous_unions_typedefs_and_paths(btf: Btf) -> None:
    assert btf.offset("inner", "x") == 0
    assert btf.offset("inner", "b") == 12
    assert btf.offset("sock", "inner") == 16
    assert btf.offset("sock", "inner.b") == 28
    assert btf.offset("sock", "flag") == 12
    assert btf.size("sock") == 64


def test_what_is_not_there_is_a_key_error(btf: Btf) -> None:
    for structure, path in (("none", "x"), ("sock", "none"), ("sock", "inner.none"), ("int", "x")):
        with pytest.raises(KeyError):
            btf.offset(structure, path)


def test_enumerators_and_tracepoints(btf: Btf) -> None:
    assert btf.enumerator("color", "BLUE") == -7
    with pytest.raises(KeyError):
        btf.enumerator("color", "GREEN")
    assert btf.has_tracepoint("sock_send_length")
    assert not btf.has_tracepoint("sock_send")


@pytest.mark.parametrize("blob", [b"", b"\x7fELF" + b"\0" * 100, Blob().bytes()[:10]])
def test_other_files_are_one_clear_error(blob: bytes) -> None:
    with pytest.raises(PlatformError, match="not a BTF file"):
        Btf(blob)


def test_an_unknown_kind_is_one_clear_error() -> None:
    blob = Blob()
    blob.add("x", 30, 0)
    with pytest.raises(PlatformError, match="a kind that is not known: 30"):
        Btf(blob.bytes()).offset("x", "y")
