"""The record, one JSON object a line: for jq, for files, for other programs.

`to_record` is the only place that spells the record; its keys, their order and their types are promised to users.
Every key is always present; what is not known is null, so a field that `unknown` names is null unless some of it was
seen. An AF_UNIX end has `path` in place of `ip` and `port`. An
empty body is null, and so is its encoding; `body_size` tells whether there was none or none was kept. A body that is
UTF-8 is a string, any other is base64; where a truncated body ends inside a character, that character is left out.
A gRPC call has `grpc`; its messages are in `requests` and `responses`, and again, framed as they were, in the bodies.

With `messages`, each message of a gRPC call is a line of its own as well, when it passes. Such a line has `kind`, which
is "message"; the lines of exchanges have no such key. `id` is that of the exchange, whose line follows at its end.

Each line is written whole or not at all (but for a failure of the stream), and nothing captured makes it invalid:
text that Unicode cannot encode (lone surrogates) is spelled with backslashes.
"""

from __future__ import annotations

import binascii
import json
import re
import time
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from apitrace import __version__
from apitrace.exchange import Endpoint, Process, Tls
from apitrace.sinks.output import Output
from apitrace.sinks.text import body_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from apitrace.exchange import CallMessage, Container, Exchange, Grpc, Headers, Progress, Request, Response

_JOINTS = {"cookie": "; ", "set-cookie": "\n"}
"""Between repeated values: ", " is right for all others (RFC 9110 section 5.3); cookies are joined with "; " (RFC 9113
section 8.2.3); Set-Cookie cannot be joined with either, because its dates contain commas."""

_MEMO_ENTRIES = 8192
"""Serialised ends that are remembered: at 0.5 KiB each 4 MiB. A full memo starts anew."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def to_record(exchange: Exchange, *, node_name: str, raw_headers: bool = False) -> dict[str, Any]:
    """Return the exchange as the record that design and man page promise."""
    ends = {
        "source": _endpoint(exchange.source),
        "destination": _endpoint(exchange.destination),
        "process": _process(exchange.process),
        "tls": _tls(exchange.tls),
    }
    return _record(exchange, ends, _Clock(), node_name, raw_headers)


class _Clock:
    """Unix ns to RFC 3339 with nine digits."""

    def __init__(self) -> None:
        self._second: int | None = None
        self._prefix = ""

    def text(self, timestamp: int) -> str:
        second, nanosecond = divmod(timestamp, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{nanosecond:09d}Z"


def _record(
    exchange: Exchange, ends: dict[str, Any], clock: _Clock, node_name: str, raw_headers: bool
) -> dict[str, Any]:
    """Build the record. `ends` holds the parts that _SPELLINGS is about, as objects or serialised."""
    connection, timing, response, error = exchange.connection, exchange.timing, exchange.response, exchange.error
    record = {
        "id": exchange.id,
        "metadata": {
            "timestamp": exchange.timestamp,
            "time": clock.text(exchange.timestamp),
            "node_name": node_name,
            "receiver_name": "apitrace",
            "receiver_version": __version__,
        },
        "source": ends["source"],
        "destination": ends["destination"],
        "process": ends["process"],
        "connection": {
            "id": connection.id,
            "family": connection.family,
            "stream_id": connection.stream_id,
            "address_source": connection.address_source,
            "connect_ns": connection.connect_ns,
        },
        "tls": ends["tls"],
        "protocol": exchange.protocol,
        "request": _request(exchange.request, raw_headers),
        "response": None if response is None else _response(response, raw_headers),
        "grpc": None if exchange.grpc is None else _grpc(exchange.grpc, clock),
        "latency_ns": exchange.latency_ns,
        "timing": {
            "request_ns": timing.request_ns,
            "wait_ns": timing.wait_ns,
            "response_ns": timing.response_ns,
        },
        "complete": exchange.complete,
        "lost_bytes": exchange.lost_bytes,
        "unknown": list(exchange.unknown),
        "error": None if error is None else {"kind": error.kind, "detail": error.detail},
    }
    if exchange.unknown:
        _unset_unknown(record)
    return record


def _unset_unknown(record: dict[str, Any]) -> None:
    """Make null what is unknown; a field of which some was seen keeps that, but part of a size is no size."""
    for name in record["unknown"]:
        side, _, field = name.partition(".")
        message = record[side] if side in {"request", "response", "grpc"} else None
        if message is None or field not in message:
            continue
        if field == "body_size" or not message[field]:
            message[field] = None
        if field == "body" and not message["body_size"]:
            message["body_size"] = None


def _request(request: Request, raw_headers: bool) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "scheme": request.scheme,
        "authority": request.authority,
        **_message(request, raw_headers),
    }


def _response(response: Response, raw_headers: bool) -> dict[str, Any]:
    return {"status_code": response.status_code, **_message(response, raw_headers)}


def _message(message: Request | Response, raw_headers: bool) -> dict[str, Any]:
    """Return what requests and responses have in common."""
    body, encoding = _body(message.body, message.truncated) if message.body else (None, None)
    fields: dict[str, Any] = {
        "headers": _merged(message.headers),
        "trailers": _merged(message.trailers),
        "body": body,
        "body_encoding": encoding,
        "body_size": message.body_size,
        "truncated": message.truncated,
    }
    if raw_headers:
        fields["header_list"] = [[header.raw_name, header.value] for header in message.headers]
    return fields


def _grpc(call: Grpc, clock: _Clock) -> dict[str, Any]:
    return {
        "service": call.service,
        "method": call.method,
        "status_code": call.status_code,
        "status": call.status,
        "message": call.message,
        "timeout_ns": call.timeout_ns,
        "request_metadata": _merged(call.request_metadata),
        "response_metadata": _merged(call.response_metadata),
        "trailing_metadata": _merged(call.trailing_metadata),
        "requests": [_call_message(message, clock) for message in call.requests],
        "responses": [_call_message(message, clock) for message in call.responses],
        "request_count": call.request_count,
        "response_count": call.response_count,
    }


def _call_message(message: CallMessage, clock: _Clock) -> dict[str, Any]:
    timestamp, size, compressed, data, encoding, truncated = message
    return {
        "timestamp": timestamp,
        "time": None if timestamp is None else clock.text(timestamp),
        "size": size,
        "compressed": compressed,
        "data": data,
        "data_encoding": encoding,
        "truncated": truncated,
    }


def to_message_record(progress: Progress, message: CallMessage, clock: _Clock) -> dict[str, Any]:
    """Return the line of a message that has passed."""
    exchange = progress.exchange
    service, method = (exchange.grpc.service, exchange.grpc.method) if exchange.grpc is not None else (None, None)
    return {
        "kind": "message",
        "id": exchange.id,
        "stream_id": exchange.connection.stream_id,
        "pid": exchange.process.pid,
        "service": service,
        "method": method,
        "side": progress.side,
        "index": progress.ordinal,
        **_call_message(message, clock),
    }


def _merged(headers: Headers) -> dict[str, str]:
    """Return lower-case names to values, repeated ones joined."""
    if not headers:
        return {}
    merged = {name: value for name, value, _ in headers}
    if len(merged) == len(headers):
        return merged
    merged = {}
    for name, value, _ in headers:
        merged[name] = f"{merged[name]}{_JOINTS.get(name, ', ')}{value}" if name in merged else value
    return merged


def _body(body: bytes, truncated: bool) -> tuple[str, str]:
    text = body_text(body, truncated=truncated)
    if text is not None:
        return text, "utf8"
    return binascii.b2a_base64(body, newline=False).decode("ascii"), "base64"


def _endpoint(end: Endpoint) -> dict[str, Any]:
    address = {"ip": end.ip, "port": end.port} if end.path is None else {"path": end.path}
    return {
        **address,
        "name": end.name,
        "namespace": end.namespace,
        "labels": dict(end.labels) if end.labels or end.kind else None,
        "kind": end.kind,
    }


def _process(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "tid": process.tid,
        "comm": process.comm,
        "exe": process.exe,
        "role": process.role,
        "container": _container(process.container),
    }


def _container(container: Container | None) -> dict[str, Any] | None:
    if container is None:
        return None
    return {
        "id": container.id,
        "name": container.name,
        "image": container.image,
        "runtime": container.runtime,
        "pod": container.pod,
        "namespace": container.namespace,
    }


def _tls(tls: Tls | None) -> dict[str, Any] | None:
    if tls is None:
        return None
    return {"library": tls.library, "version": tls.version, "sni": tls.sni, "alpn": tls.alpn}


_SPELLINGS: dict[type, Callable[[Any], dict[str, Any] | None]] = {
    Endpoint: _endpoint,
    Process: _process,
    Tls: _tls,
    type(None): _tls,
}


class _Memo(dict[Any, orjson.Fragment]):
    """What stays the same while a connection lasts, serialised: 2 us less for each exchange.

    One memo serves all: an Endpoint, a Process and a Tls have different lengths and so are never equal.
    """

    def __missing__(self, part: Any) -> orjson.Fragment:
        fragment = orjson.Fragment(orjson.dumps(_SPELLINGS[type(part)](part)))
        if len(self) >= _MEMO_ENTRIES:
            self.clear()
        self[part] = fragment
        return fragment


class JsonLines:
    """Writes records to a stream."""

    def __init__(
        self, stream: BinaryIO, *, raw_headers: bool = False, messages: bool = False, node_name: str
    ) -> None:
        name = getattr(stream, "name", "the output")
        self._output = Output(stream, "standard output" if name == "<stdout>" else str(name))
        self._raw_headers = raw_headers
        self._messages = messages
        self._node_name = node_name
        self._clock = _Clock()
        self._memo = _Memo()

    # -- hot: once per exchange; 6 us with ten headers and a body of 120 bytes ---------------------------------------

    def write(self, exchange: Exchange) -> None:
        """Take one exchange."""
        memo = self._memo
        try:
            ends = {
                "source": memo[exchange.source],
                "destination": memo[exchange.destination],
                "process": memo[exchange.process],
                "tls": memo[exchange.tls],
            }
            record = _record(exchange, ends, self._clock, self._node_name, self._raw_headers)
            line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:
            line = _dumps_anything(to_record(exchange, node_name=self._node_name, raw_headers=self._raw_headers))
        self._output.put(line)

    def write_message(self, progress: Progress) -> None:
        """Take a message of a call that goes on."""
        if not self._messages or progress.message is None:
            return
        record = to_message_record(progress, progress.message, self._clock)
        try:
            line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:
            line = _dumps_anything(record)
        self._output.put(line)

    # -- once per batch ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Push out the lines that are held."""
        self._output.flush()

    def close(self) -> None:
        """Flush and let go."""
        self._output.close()


def _dumps_anything(record: dict[str, Any]) -> bytes:
    """Serialise what orjson refuses: lone surrogates, integers beyond 64 bits."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    # Spelled with two backslashes, which is one backslash of text: JSON's own escape would be half of a pair.
    return _SURROGATE.sub(lambda match: rf"\\u{ord(match[0]):x}", text).encode() + b"\n"
