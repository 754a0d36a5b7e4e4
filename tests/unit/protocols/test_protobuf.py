"""Protobuf without a schema: what the encoding says, guesses that are marked, and bounds; and with one, by name."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import orjson
import pytest

from apitrace.errors import UsageError
from apitrace.files import proto
from apitrace.protocols.decoder import DecodeError
from apitrace.protocols.protobuf import DEPTH_LIMIT, FIELDS_LIMIT, Schema, decode

SHOP = Path(__file__).with_name("shop.proto")


def length(raw: bytes) -> bytes:
    size, out = len(raw), b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size]) + raw


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        (b"", {}),
        (b"\x08\x96\x01", {"1": {"varint": 150}}),
        (b"\x12\x07testing", {"2": {"string": "testing"}}),
        (b"\x1a\x03\x08\x96\x01", {"3": {"message": {"1": {"varint": 150}}}}),
        (b"\x08" + b"\xff" * 9 + b"\x01", {"1": {"varint": 2**64 - 1, "int64": -1}}),
        (b"\x09" + struct.pack("<d", 1.5), {"1": {"fixed64": 0x3FF8000000000000, "double": 1.5}}),
        (b"\x0d" + struct.pack("<f", 1.5), {"1": {"fixed32": 0x3FC00000, "float": 1.5}}),
        (b"\x0d\x00\x00\xc0\x7f", {"1": {"fixed32": 0x7FC00000}}),
        (b"\x12\x00", {"2": {"bytes": ""}}),
        (b"\x12\x02\xff\xfe", {"2": {"bytes": "//4="}}),
        (b"\x12\x03\x01\x02\x03", {"2": {"bytes": "AQID"}}),
        (b"\x08\x01\x08\x02\x08\x03", {"1": [{"varint": 1}, {"varint": 2}, {"varint": 3}]}),
        (b"\x0b\x10\x05\x0c", {"1": {"group": {"2": {"varint": 5}}}}),
        ("\x12\x05größ".encode()[:1] + length("größe".encode()), {"2": {"string": "größe"}}),
        (b"\xfa\xff\xff\xff\x0f\x01a", {str(2**29 - 1): {"string": "a"}}),
    ],
)  # fmt: skip
def test_fields_are_shown_by_number_with_the_name_of_how_they_are_read(raw: bytes, fields: dict[str, Any]) -> None:
    assert decode(raw) == fields


def test_text_that_is_also_a_message_is_shown_as_both() -> None:
    inner = b"\x0a" + length(b"a" * 36)  # "\n$aaaa...": printable but for the line end
    assert decode(b"\x12" + length(inner)) == {
        "2": {"string": "\n$" + "a" * 36, "message": {"1": {"string": "a" * 36}}},
    }


def test_a_guessed_message_has_its_numbers_in_their_shortest_form() -> None:
    assert decode(b"\x12\x03\x08\x81\x00") == {"2": {"bytes": base64.b64encode(b"\x08\x81\x00").decode()}}
    assert decode(b"\x08\x81\x00") == {"1": {"varint": 1}}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00", b"\x07", b"\x08", b"\x08\xff", b"\x12\x05abc", b"\x0d\x00", b"\x09\x00", b"\x0b", b"\x0c", b"\x0b\x14",
        b"\x08" + b"\xff" * 10, b"\x0e\x00", b"\x0b" * (DEPTH_LIMIT + 2) + b"\x0c" * (DEPTH_LIMIT + 2),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(raw)


def test_a_beginning_is_shown_up_to_its_last_whole_field() -> None:
    raw = b"\x08\x01\x12\x03abc\x1a\x03def"
    whole = [decode(raw[:size], cut=True) for size in range(len(raw) + 1)]
    assert whole[2] == whole[6] == {"1": {"varint": 1}}
    assert whole[7] == {"1": {"varint": 1}, "2": {"string": "abc"}}
    assert whole[-1] == decode(raw)


def test_messages_within_messages_are_taken_apart_to_a_depth_that_can_be_written() -> None:
    raw = b"\x08\x01"
    for _ in range(DEPTH_LIMIT + 10):
        raw = b"\x0a" + length(raw)
    assert b'"bytes"' in orjson.dumps(decode(raw))


def test_fields_are_limited_for_a_message_and_those_within() -> None:
    assert len(decode(b"\x08\x01" * FIELDS_LIMIT)["1"]) == FIELDS_LIMIT
    with pytest.raises(DecodeError, match="more than"):
        decode(b"\x08\x01" * (FIELDS_LIMIT + 1))
    inner = b"\x08\x01" * (FIELDS_LIMIT // 2)
    with pytest.raises(DecodeError, match="more than"):
        decode((b"\x0a" + length(inner)) + b"\x08\x01" * (FIELDS_LIMIT // 2 + 1))


# -- with a schema -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> Schema:
    return proto.load([str(SHOP)])


def item(schema: Schema, **fields: Any) -> Any:
    types = schema._types_of("test.shop.Shop", "Find")
    assert types is not None
    return types[1](**fields)


def test_a_source_names_its_services(schema: Schema) -> None:
    assert schema.services == ("test.shop.Shop",)


def test_a_message_is_shown_by_the_names_of_its_fields(schema: Schema) -> None:
    message = item(
        schema, name="chair", number=-1, sizes=[1, 2], raw=b"\xff", price=1.5, kind=1, labels={"a": "b"},
        parts=[{"name": "leg"}], seen={"seconds": 3},
    )  # fmt: skip
    assert schema.decode("test.shop.Shop", "Find", request=False, data=message.SerializeToString()) == {
        "name": "chair", "number": "-1", "sizes": [1, 2], "raw": "/w==", "price": 1.5, "kind": "CHAIR",
        "labels": {"a": "b"}, "parts": [{"name": "leg"}], "seen": "1970-01-01T00:00:03Z",
    }  # fmt: skip


def test_fields_that_the_schema_lacks_stand_beside_the_others_by_number(schema: Schema) -> None:
    inner = item(schema, name="leg").SerializeToString() + b"\x98\x06\x05"
    raw = item(schema, name="chair").SerializeToString()
    raw += b"\x42" + length(inner) + b"\x98\x06\x05\x98\x06\x06\xa2\x06\x01x"
    assert schema.decode("test.shop.Shop", "Find", request=False, data=raw) == {
        "name": "chair", "99": [{"varint": 5}, {"varint": 6}], "100": {"string": "x"},
        "parts": [{"name": "leg", "99": {"varint": 5}}],
    }  # fmt: skip


def test_an_unknown_method_has_no_message(schema: Schema) -> None:
    assert schema.decode("test.shop.Shop", "Lose", request=True, data=b"") is None
    assert schema.decode("test.shop.Other", "Find", request=True, data=b"") is None


def test_what_is_not_of_the_type_is_refused(schema: Schema) -> None:
    with pytest.raises(DecodeError):
        schema.decode("test.shop.Shop", "Find", request=False, data=b"\x0a\x05ab")
    with pytest.raises(DecodeError):
        schema.decode("test.shop.Shop", "Find", request=False, data=b"\x0a\x02\xff\xfe")


def test_of_a_beginning_the_whole_fields_are_shown(schema: Schema) -> None:
    raw = item(schema, name="chair", raw=b"12345").SerializeToString()
    assert schema.decode("test.shop.Shop", "Find", request=False, data=raw[:-2], cut=True) == {"name": "chair"}


def test_a_descriptor_set_does_as_well(schema: Schema, tmp_path: Path) -> None:
    (tmp_path / "shop.pb").write_bytes(proto._compiled(str(SHOP), ()))
    assert proto.load([str(tmp_path / "shop.pb")]).services == schema.services


def test_a_source_may_import_from_beside_it_and_from_beside_the_others(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/a.proto").write_text('syntax = "proto3"; import "b.proto"; service S { rpc M(B) returns (B); }')
    (tmp_path / "two/b.proto").write_text('syntax = "proto3"; message B { string name = 1; }')
    loaded = proto.load([str(tmp_path / "one/a.proto"), str(tmp_path / "two/b.proto")])
    assert loaded.decode("S", "M", request=True, data=b"\x0a\x01x") == {"name": "x"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.proto", b"message {", "Expected message name"),
        ("a.proto", b'syntax = "proto3"; import "missing.proto";', "missing.proto"),
        ("a.pb", b"\xff\xff", "not a descriptor set"),
        ("a.pb", b"\x08\x01", "not a descriptor set"),
        ("a.pb", b"", "neither"),
        ("a.pb", b"\x0a\x12\x0a\x07a.proto\x1a\x07b.proto", "b.proto is imported and not there"),
    ],
)
def test_a_bad_file_is_a_usage_error_of_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        proto.load([str(path)])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        proto.load([str(tmp_path / "none.proto")])
