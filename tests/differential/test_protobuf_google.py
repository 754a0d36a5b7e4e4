"""What google.protobuf has written is read as it was meant: by number as far as the wire tells, by name exactly."""

from __future__ import annotations

import base64
import struct
from typing import Any

from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from apitrace.files import proto
from apitrace.protocols.protobuf import decode
from tests.unit.protocols.test_protobuf import SHOP

SCHEMA = proto.load([str(SHOP)])
TYPES = SCHEMA._types_of("test.shop.Shop", "Find")
assert TYPES is not None
ITEM = TYPES[1]

text = st.text(max_size=20)
values = st.fixed_dictionaries(
    {},
    optional={
        "name": text,
        "number": st.integers(-(2**63), 2**63 - 1),
        "sizes": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
        "raw": st.binary(max_size=30),
        "price": st.floats(allow_nan=False, allow_infinity=False),
        "kind": st.sampled_from([0, 1, 7]),
        "labels": st.dictionaries(text, text, max_size=3),
    },
)
items = st.recursive(values, lambda inner: st.tuples(values, st.lists(inner, max_size=3)).map(
    lambda pair: {**pair[0], "parts": pair[1]}), max_leaves=6)  # fmt: skip


@given(items)
def test_by_name_it_is_what_protobufs_own_json_says(fields: dict[str, Any]) -> None:
    message = ITEM(**fields)
    raw = message.SerializeToString()
    expected = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=SCHEMA._pool)
    assert SCHEMA.decode("test.shop.Shop", "Find", request=False, data=raw) == expected


def readings(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else [value]


def check(message: Any, shown: dict[str, Any]) -> None:
    """Fail unless each field is shown with its value, in the reading that the wire tells or among those guessed."""
    present = {field.number: (field, value) for field, value in message.ListFields()}
    assert set(shown) == {str(number) for number in present}
    for number, (field, value) in present.items():
        seen = readings(shown[str(number)])
        if field.name in {"number", "kind"}:
            [one] = seen
            assert one["varint"] == value % 2**64
            assert one.get("int64", one["varint"]) == value
        elif field.name == "price":
            [one] = seen
            assert one == {"fixed64": int.from_bytes(struct.pack("<d", value), "little"), "double": value}
        elif field.name in {"name", "raw"}:
            [one] = seen
            raw = value.encode() if isinstance(value, str) else value
            assert one.get("string", "").encode() == raw or "message" in one or base64.b64decode(one["bytes"]) == raw
            assert "message" not in one or decode(raw) == one["message"]
        elif field.name == "parts":
            assert len(seen) == len(value)
            for part, one in zip(value, seen, strict=True):
                if "message" in one:
                    check(part, one["message"])
                else:
                    assert one.get("string", "").encode() == part.SerializeToString() or one == {"bytes": ""}


@given(items)
def test_by_number_no_field_is_missing_and_none_is_wrong(fields: dict[str, Any]) -> None:
    message = ITEM(**fields)
    check(message, decode(message.SerializeToString()))
