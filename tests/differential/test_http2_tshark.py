"""tshark and apitrace tell the same of the same HTTP/2: streams, header fields, trailers, body sizes, resets.

The conversations are those of the golden recording: h2, node and curl, as they were read and written at both ends. They
go into one capture file, cut into segments as a network would. What is compared is what both print, not how.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from apitrace.files.recording import Recording
from apitrace.probes import events
from apitrace.probes.events import Chunk
from tests.differential.test_tls_tshark import write_capture
from tests.golden.test_http2_recording import HERE, replay

pytestmark = pytest.mark.skipif(
    shutil.which("tshark") is None and "CI" not in os.environ, reason="tshark is not installed"
)

PORT = 443  # of write_capture
Told = dict[str, Any]


def conversations() -> dict[str, tuple[tuple[int, bytes], ...]]:
    """Return what passed on each connection as (side, bytes), by the second part of the connection's id."""
    found: dict[int, list[tuple[bool, bytes]]] = {}
    for raw in Recording(HERE / "http2.apitrace"):
        event = events.decode(raw)
        if isinstance(event, Chunk) and event.data:
            found.setdefault(event.conn, []).append((event.egress, event.data))
    told = {}
    for conn, chunks in found.items():
        client_is_traced = next(egress for egress, data in chunks if data.startswith(b"PRI"))
        told[f"{conn:x}"] = tuple((int(egress is not client_is_traced), data) for egress, data in chunks)
    return told


def layers(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def told_by_tshark(path: Path) -> dict[tuple[int, int], Told]:
    """Return what it tells of each stream, by connection and stream."""
    command = ["tshark", "-r", str(path), "-d", f"tcp.port=={PORT},http2", "-T", "json", "--no-duplicate-keys"]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    told: dict[tuple[int, int], Told] = {}
    for packet in orjson.loads(printed):
        parts = packet["_source"]["layers"]
        side = "response" if parts["tcp"]["tcp.srcport"] == str(PORT) else "request"
        for layer in layers(parts.get("http2", [])):
            for frame in layers(layer.get("http2.stream", [])):
                stream = int(frame.get("http2.streamid", "0"))
                if not stream or "http2.type" not in frame:
                    continue
                call = told.setdefault((int(parts["tcp"]["tcp.stream"]), stream), _nothing())
                _take(call, side, frame)
    return told


def _nothing() -> Told:
    return {"request": [], "response": [], "request_size": 0, "response_size": 0, "reset": None}


def _take(call: Told, side: str, frame: Told) -> None:
    kind = int(frame["http2.type"])
    if kind == 0:
        call[f"{side}_size"] += int(frame["http2.length"])
    elif kind == 1:
        fields = [(field["http2.header.name"], field.get("http2.header.value", "")) for field in _fields(frame)]
        if not any(name == ":status" and value.startswith("1") for name, value in fields):
            call[side].append(sorted(fields))
    elif kind == 3 and call["reset"] is None:
        call["reset"] = side


def _fields(frame: Told) -> list[Told]:
    return layers(frame.get("http2.header", []))


def told_by_us(record: Told) -> Told:
    request, response, error = record["request"], record["response"], record["error"]
    told = _nothing()
    pseudo = [(f":{name}", request[name]) for name in ("method", "scheme", "path", "authority")]
    told["request"] = [sorted([*pseudo, *map(tuple, request["header_list"])])]
    told["request_size"] = request["body_size"]
    if response is not None:
        status = (":status", str(response["status_code"]))
        told["response"] = [sorted([status, *map(tuple, response["header_list"])])]
        told["response_size"] = response["body_size"]
        if response["trailers"]:
            told["response"].append(sorted(response["trailers"].items()))
    if error is not None:
        told["reset"] = "response" if "the server" in error["detail"] else "request"
    return told


def test_the_same_is_told_of_every_stream(tmp_path: Path) -> None:
    known = conversations()
    capture = tmp_path / "http2.pcap"
    write_capture(capture, list(known.values()))
    theirs = told_by_tshark(capture)
    records = [orjson.loads(line) for line in replay("-j", "--raw-headers").splitlines()]
    numbers = {name: number for number, name in enumerate(known)}
    ours = {
        (numbers[record["connection"]["id"].partition("-")[2]], record["connection"]["stream_id"]): told_by_us(record)
        for record in records
    }
    assert ours.keys() == theirs.keys()
    late = {key for key, told in ours.items() if told["reset"] is None and theirs[key]["reset"] is not None}
    assert len(late) == 2  # cancelled when the whole answer was on its way: that is no failure for the server
    for key, told in ours.items():
        if told["reset"] == "request":  # cancelled: what was answered meanwhile is not shown
            assert (told["request"], told["reset"]) == (theirs[key]["request"], theirs[key]["reset"])
        elif key in late:
            assert told == {**theirs[key], "reset": None}, key
        else:
            assert told == theirs[key], key
