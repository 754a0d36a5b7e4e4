"""Protobuf messages as JSON: by field number without a schema, by name with one.

Sans-IO; raises only DecodeError. Work and result are bounded by the limits below, whatever the bytes are.

By number
---------
Protobuf's encoding says of each field its number and how long it is, but not what it means. `decode` gives an object
from field numbers to values, and a value is an object that names how the bytes are read:

    {"1": {"string": "chair"}, "2": {"varint": 150}, "4": [{"varint": 1}, {"varint": 2}],
     "5": {"fixed64": 4607182418800017408, "double": 1.0}, "6": {"message": {"1": {"varint": 7}}}}

A field that occurs more than once has an array. "varint", "fixed32", "fixed64", "group" and "bytes" (base64) are what
the encoding says; the other names are guesses: "int64" of a varint that would be over 2**63, "float" and "double" of
bits that are a finite number, and of a field with a length

* "string" if it is printable UTF-8 (tabs and line ends allowed) and not empty;
* "message" if it is not, and is a message down to its last byte, every number in it encoded in its shortest form, as
  all encoders do;
* both, if it is text with tabs or line ends in it and also such a message: a field 1 of 32 characters or more begins
  like that;
* "bytes" otherwise. Packed numbers are not guessed at, and are among these.

By name
-------
`Schema` takes descriptor sets, and gives what protobuf's own JSON mapping gives, with the names of the .proto file:
64-bit integers are strings, enumerations names, bytes base64; what was not on the wire is not there. Fields that the
schema does not know stand beside the others by number, as above.
"""

from __future__ import annotations

import binascii
import math
import struct
from typing import TYPE_CHECKING, Any

from apitrace.protocols.decoder import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEPTH_LIMIT = 32
"""Messages within messages that are taken apart; protobuf's own limit is 100. Each is three levels of JSON, and orjson
writes 254. What is deeper is shown as bytes."""

FIELDS_LIMIT = 16384
"""Fields of a message and those within, at 0.4 KiB each: as many as the default snap length has of 4 bytes. A message
with more is not taken apart."""

Fields = dict[str, Any]

_VARINT, _FIXED64, _LEN, _GROUP, _END_GROUP, _FIXED32 = range(6)
_VARINT_LEN = 10
_U64 = 1 << 64
_I64 = 1 << 63
_FIXED64_FORMS = (struct.Struct("<Q"), struct.Struct("<d"))
_FIXED32_FORMS = (struct.Struct("<I"), struct.Struct("<f"))
_NUMBER_LIMIT = (1 << 29) - 1
_TEXT_CONTROLS = str.maketrans("", "", "\t\n\r")


def decode(data: bytes, *, cut: bool = False) -> Fields:
    """Return the message's fields by number. `cut`: it is a beginning, so the field in which it ends is left out."""
    fields, _ = _Walk(data).read(0, DEPTH_LIMIT, None, cut=cut, strict=False)
    return fields


class _CutError(DecodeError):
    """The bytes end inside a field."""


def _add(fields: Fields, name: str, value: Any) -> None:
    """Set a field, or what is there of it already becomes a list: it is repeated."""
    known = fields.get(name)
    if known is None:
        fields[name] = value
    elif isinstance(known, list):
        known.append(value)
    else:
        fields[name] = [known, value]


class _Walk:
    """A way through a message and those in it, with a limit for all of them together."""

    __slots__ = ("_data", "_left")

    def __init__(self, data: bytes, left: int = FIELDS_LIMIT) -> None:
        self._data = data
        self._left = left

    # -- hot: once per message; 1.1 us a field ----------------------------------------------------------------------

    def read(self, pos: int, depth: int, group: int | None, *, cut: bool, strict: bool) -> tuple[Fields, int]:
        """Read fields up to the end of the data, or of the group of this number. `strict`: this is a guess."""
        data = self._data
        end = len(data)
        fields: Fields = {}
        while pos < end:
            start = pos
            try:
                tag = data[pos]
                pos += 1
                if tag > 127:
                    tag, pos = self._varint(start, strict)
                number, kind = tag >> 3, tag & 7
                if not 0 < number <= _NUMBER_LIMIT:
                    message = "not protobuf: a field number that cannot be"
                    raise DecodeError(message)
                if kind == _LEN and pos < end and data[pos] < 128 and data[pos] < end - pos:
                    start = pos + 1  # nearly all fields that have a length are shorter than 128 bytes
                    pos = start + data[pos]
                    value = self.guess(data[start:pos], depth)
                elif kind == _VARINT and pos < end and data[pos] < 128:
                    value = {"varint": data[pos]}
                    pos += 1
                elif kind == _END_GROUP:
                    if number != group:
                        message = "not protobuf: the end of a group that was not begun"
                        raise DecodeError(message)
                    return fields, pos
                else:
                    value, pos = self._value(number, kind, pos, depth, strict)
            except _CutError:
                if not cut or group is not None:
                    raise
                return fields, start
            self._left -= 1
            if self._left < 0:
                message = f"more than {FIELDS_LIMIT} fields"
                raise DecodeError(message)
            _add(fields, str(number), value)
        if group is not None:
            message = "not protobuf: a group without an end"
            raise _CutError(message)
        return fields, pos

    def _value(self, number: int, kind: int, pos: int, depth: int, strict: bool) -> tuple[Any, int]:
        data = self._data
        if kind == _LEN:
            size, pos = self._varint(pos, strict)
            if size > len(data) - pos:
                message = "not protobuf: a field is longer than the message"
                raise _CutError(message)
            return self.guess(data[pos : pos + size], depth), pos + size
        if kind == _VARINT:
            varint, pos = self._varint(pos, strict)
            return varint_value(varint), pos
        if kind == _FIXED64:
            return self._fixed(pos, 8)
        if kind == _FIXED32:
            return self._fixed(pos, 4)
        if kind == _GROUP and depth:
            fields, pos = self.read(pos, depth - 1, number, cut=False, strict=strict)
            return {"group": fields}, pos
        message = "not protobuf: a wire type that cannot be" if kind != _GROUP else "groups too deep in one another"
        raise DecodeError(message)

    def _varint(self, pos: int, strict: bool) -> tuple[int, int]:
        data = self._data
        value = shift = 0
        for at in range(pos, pos + _VARINT_LEN):
            if at >= len(data):
                message = "not protobuf: it ends within a number"
                raise _CutError(message)
            byte = data[at]
            value |= (byte & 127) << shift
            if byte < 128:
                if strict and not byte and shift:
                    break
                return value % _U64, at + 1
            shift += 7
        message = "not protobuf: a number that is too long"
        raise DecodeError(message)

    def _fixed(self, pos: int, size: int) -> tuple[Any, int]:
        raw = self._data[pos : pos + size]
        if len(raw) < size:
            message = "not protobuf: it ends within a number"
            raise _CutError(message)
        return fixed_value(raw), pos + size

    def guess(self, raw: bytes, depth: int) -> Fields:
        """Return a field that has a length."""
        if not raw:
            return {"bytes": ""}
        value: Fields = {}
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            pass
        else:
            if text.isprintable():
                return {"string": text}
            if text.translate(_TEXT_CONTROLS).isprintable():
                value["string"] = text
        if depth > 1:
            inner = _Walk(raw, self._left)
            try:
                fields, _ = inner.read(0, depth - 1, None, cut=False, strict=True)
            except DecodeError:
                pass
            else:
                value["message"] = fields
                self._left = inner._left
        return value or {"bytes": binascii.b2a_base64(raw, newline=False).decode("ascii")}


def varint_value(varint: int) -> Fields:
    """Return the value of a field with a varint."""
    return {"varint": varint} if varint < _I64 else {"varint": varint, "int64": varint - _U64}


def fixed_value(raw: bytes) -> Fields:
    """Return the value of a field of four or eight bytes."""
    (integer, real), name = (_FIXED64_FORMS, "double") if len(raw) == 8 else (_FIXED32_FORMS, "float")
    number = real.unpack(raw)[0]
    fields: Fields = {"fixed64" if name == "double" else "fixed32": integer.unpack(raw)[0]}
    if math.isfinite(number):
        fields[name] = number
    return fields


# -- by name -------------------------------------------------------------------------------------------------------


class Schema:
    """What .proto files say of services and messages. Imports the protobuf library, which nothing else needs."""

    def __init__(self, descriptor_sets: Iterable[bytes]) -> None:
        """Take serialised FileDescriptorSets. Raises DecodeError for what is none, or lacks what it imports."""
        from google.protobuf import (  # noqa: PLC0415
            descriptor_pb2,
            descriptor_pool,
            json_format,
            message,
            message_factory,
            unknown_fields,
        )

        self._json_format, self._unknown = json_format, unknown_fields.UnknownFieldSet
        self._errors = (message.DecodeError, json_format.Error, ValueError, TypeError, KeyError, RecursionError)
        self._class_of = message_factory.GetMessageClass
        self._pool = descriptor_pool.DescriptorPool()
        self._types: dict[tuple[str, str], tuple[Any, Any] | None] = {}
        files: dict[str, Any] = {}
        for raw in descriptor_sets:
            try:
                parsed = descriptor_pb2.FileDescriptorSet.FromString(raw)
            except message.DecodeError as error:
                text = "not a descriptor set"
                raise DecodeError(text) from error
            if not parsed.file or not all(file.name for file in parsed.file):
                text = "not a descriptor set: it names no .proto file"
                raise DecodeError(text)
            files.update({file.name: file for file in parsed.file})
        self._added: set[str] = set()
        for name in files:
            self._add(name, files, ())
        self.services = tuple(
            f"{file.package}.{service.name}" if file.package else service.name
            for file in files.values() for service in file.service
        )  # fmt: skip

    def _add(self, name: str, files: dict[str, Any], within: tuple[str, ...]) -> None:
        """Add a file to the pool, after those that it imports."""
        if name in self._added:
            return
        if name in within:
            text = f"{name} imports itself"
            raise DecodeError(text)
        file = files.get(name) or _well_known(name)
        if file is None:
            text = f"{name} is imported and not there (protoc has --include_imports for this)"
            raise DecodeError(text)
        for imported in file.dependency:
            self._add(imported, files, (*within, name))
        try:
            self._pool.AddSerializedFile(file.SerializeToString())
            self._pool.FindFileByName(name)
        except (TypeError, KeyError) as error:
            text = f"{name} contradicts another file, or itself"
            raise DecodeError(text) from error
        self._added.add(name)

    def decode(self, service: str, method: str, *, request: bool, data: bytes, cut: bool = False) -> Fields | None:
        """Return a message of a method by name; None if the schema has no such method. `cut` as in `decode`."""
        types = self._types_of(service, method)
        if types is None:
            return None
        if cut:
            _, whole = _Walk(data).read(0, 1, None, cut=True, strict=False)
            data = data[:whole]
        try:
            message = types[0 if request else 1].FromString(data)
            named = self._json_format.MessageToDict(
                message, preserving_proto_field_name=True, descriptor_pool=self._pool
            )
        except self._errors as error:
            text = "not a message of the type that the schema says"
            raise DecodeError(text) from error
        fields: Fields = named if isinstance(named, dict) else {"value": named}
        self._add_unknown(message, fields, _Walk(b""), DEPTH_LIMIT)
        return fields

    def _types_of(self, service: str, method: str) -> tuple[Any, Any] | None:
        key = (service, method)
        if key not in self._types:
            try:
                found = self._pool.FindServiceByName(service).methods_by_name[method]
            except KeyError:
                return None  # and not remembered: names on the wire are without number
            self._types[key] = (self._class_of(found.input_type), self._class_of(found.output_type))
        return self._types[key]

    def _add_unknown(self, message: Any, fields: Fields, walk: _Walk, depth: int) -> None:
        """Put beside the named fields those that the schema does not know, here and in the messages within."""
        for field in self._unknown(message):
            _add(fields, str(field.field_number), self._unknown_value(field, walk, depth))
        if not depth:
            return
        for field, value in message.ListFields():
            shown = fields.get(field.name)
            if field.message_type is None or shown is None or field.message_type.file.name.startswith(_WELL_KNOWN):
                continue
            if field.message_type.GetOptions().map_entry:
                continue  # a map's values are rarely of another version than the rest
            inner = zip(value, shown, strict=False) if isinstance(shown, list) else ((value, shown),)
            for one, one_shown in inner:
                if isinstance(one_shown, dict):
                    self._add_unknown(one, one_shown, walk, depth - 1)

    def _unknown_value(self, field: Any, walk: _Walk, depth: int) -> Fields:
        if field.wire_type == _VARINT:
            return varint_value(field.data)
        if field.wire_type == _FIXED64:
            return fixed_value(_FIXED64_FORMS[0].pack(field.data))
        if field.wire_type == _FIXED32:
            return fixed_value(_FIXED32_FORMS[0].pack(field.data))
        if field.wire_type == _LEN:
            return walk.guess(field.data, depth)
        group: Fields = {}
        for inner in field.data if depth else ():
            group.setdefault(str(inner.field_number), []).append(self._unknown_value(inner, walk, depth - 1))
        return {"group": {name: values if len(values) > 1 else values[0] for name, values in group.items()}}


_WELL_KNOWN = "google/protobuf/"


def _well_known(name: str) -> Any:
    """Return a file that comes with protobuf itself, which descriptor sets often leave out."""
    import importlib  # noqa: PLC0415 - only for --proto

    from google.protobuf import descriptor_pb2  # noqa: PLC0415

    module = name.removesuffix(".proto").removeprefix(_WELL_KNOWN)
    if not name.startswith(_WELL_KNOWN) or module not in _WELL_KNOWN_FILES:
        return None
    file = descriptor_pb2.FileDescriptorProto()
    importlib.import_module(f"google.protobuf.{module}_pb2").DESCRIPTOR.CopyToProto(file)
    return file


_WELL_KNOWN_FILES = frozenset({
    "any", "api", "descriptor", "duration", "empty", "field_mask", "source_context", "struct", "timestamp", "type",
    "wrappers",
})  # fmt: skip
