"""What the gRPC tests are made of, beside harness.py: ends in three languages, with journals of the same shape.

The programs are those of programs/grpc_end.py, whose text says what the methods do and how calls are written. `told`
gives the same shape from apitrace's JSON. What one end does not know of a call (the client its address), the other's
journal tells; the status of a call that was given up is different for each end, and on the wire there may be none.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.live.harness import Lab, Program, Record, environment, program, until

if TYPE_CHECKING:
    from tests.live.calls import Address

PROGRAMS = Path(__file__).with_name("programs")
NODE_MODULES = Path(sys.executable).parents[1] / "tests/grpc_js/node_modules"
"""Where set-up has put @grpc/grpc-js and grpc-web."""
ENDS = ("grpcio", "grpc-go", "grpc-js")
TLS_ENDS = ("grpc-go", "grpc-js")
"""Those whose TLS can be read: grpcio has a BoringSSL inside, without symbols."""
GIVEN_UP = "Slow"
"""The method whose calls end with CANCELLED (1) or DEADLINE_EXCEEDED (4)."""

Messages = tuple[tuple[str, int], ...]


class GrpcCall(NamedTuple):
    """A call as a program or apitrace tells of it. Messages are pairs of the fields name and count."""

    number: str
    method: str
    requests: Messages
    responses: Messages
    status: int | None
    message: str
    client: Address
    server: Address


def _pairs(messages: list[Any]) -> Messages:
    return tuple((name, count) for name, count in messages)


def named(message: Record) -> tuple[str, int]:
    """Return the fields of a message that is shown."""
    assert not message["truncated"], message
    assert message["data_encoding"] == "guess", message
    fields = message["data"]
    assert set(fields) == {"1", "2"}
    return fields["1"]["string"], fields["2"]["varint"]


def _text(value: str) -> str:
    return base64.b64decode(value, validate=True).removeprefix(b"\x00\xff").decode()


def told(record: Record) -> GrpcCall:
    """Return the call that a line of apitrace's JSON tells of; its metadata must agree on its number."""
    call = record["grpc"]
    assert call["service"] == "test.Calls"
    assert record["request"]["path"] == f"/test.Calls/{call['method']}"
    number = call["request_metadata"]["x-call"]
    assert _text(call["request_metadata"]["x-data-bin"]) == number
    after = {**(call["response_metadata"] or {}), **(call["trailing_metadata"] or {})}
    if call["method"] != GIVEN_UP:
        assert after["x-served"] == _text(after["x-done-bin"]) == number
    for side in ("request", "response"):
        assert call[f"{side}_count"] == len(call[f"{side}s"])
    source, destination = record["source"], record["destination"]
    return GrpcCall(
        number=number,
        method=call["method"],
        requests=tuple(map(named, call["requests"])),
        responses=tuple(map(named, call["responses"])),
        status=call["status_code"],
        message=call["message"] or "",
        client=(source["ip"], source["port"]),
        server=(destination["ip"], destination["port"]),
    )


def told_live(lines: list[Record], call: GrpcCall) -> tuple[Record, list[Record]]:
    """Return the line of a call and those of its messages, all of which must come before it."""
    [exchange] = [
        line for line in lines
        if "kind" not in line and line["grpc"]["request_metadata"]["x-call"] == call.number
    ]  # fmt: skip
    own = [line for line in lines if line.get("kind") == "message" and line["id"] == exchange["id"]]
    assert all(lines.index(line) < lines.index(exchange) for line in own)
    return exchange, own


class GrpcEnd(Program):
    """A started server or client."""

    def entries(self, count: int) -> dict[str, Record]:
        """Return the journal's entries by the calls' numbers, once there are so many."""
        until(lambda: len(self._lines()) >= count, f"{self.name} has noted {count} calls")
        entries = [json.loads(line) for line in self._lines()]
        assert len(entries) == count
        return {entry["call"]: entry for entry in entries}

    def calls_so_far(self) -> list[Record]:
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        if not self.journal.exists():
            return []
        return [line for line in self.journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def start(lab: Lab, kind: str, go_binary: Path, *arguments: str) -> GrpcEnd:
    """Start the end in this language: ("server",) or ("client", host, port), or what else it can be."""
    journal = lab.path(f"{kind}-{arguments[0]}")
    command = {
        "grpcio": [sys.executable, "-m", "tests.live.programs.grpc_end"],
        "grpc-go": [str(go_binary)],
        "grpc-js": [program("node"), str(PROGRAMS / "grpc_js/end.js")],
        "grpc-web": [program("node"), str(PROGRAMS / "grpc_js/web.js")],
    }[kind]
    end = lab.start(
        *command, arguments[0], str(journal), *arguments[1:], journal=journal, kind=GrpcEnd,
        extra={"NODE_PATH": str(NODE_MODULES), "NODE_EXTRA_CA_CERTS": f"{arguments[-1]}/ca.pem"},
    )  # fmt: skip
    assert isinstance(end, GrpcEnd)
    if arguments[0] in {"server", "web-server"}:
        host, port = json.loads(end.read_line())
        end.address = (host, port)
    return end


def agreed(server: GrpcEnd, client: GrpcEnd, count: int) -> list[GrpcCall]:
    """Return the calls that were made, as both journals tell. They must agree, but for how a call was given up.

    Clients do not tell the message of a call that went well.
    """
    served, made = server.entries(count), client.entries(count)
    calls = []
    for number, entry in made.items():
        other = served[number]
        for name in ("method", "requests", "responses"):
            assert entry[name] == other[name], (entry, other)
        if entry["method"] != GIVEN_UP:
            assert entry["status"] == other["status"]
            assert entry["status"] == 0 or entry["message"] == other["message"]
        calls.append(
            GrpcCall(
                number, entry["method"], _pairs(entry["requests"]), _pairs(entry["responses"]), entry["status"],
                other["message"], tuple(other["client"]), server.address,
            )
        )  # fmt: skip
    return calls


def traced_with_messages(
    lab: Lab, server: GrpcEnd, client: GrpcEnd, asked: list[dict[str, Any]]
) -> tuple[list[GrpcCall], list[Record]]:
    """Trace a server with --messages while a client makes calls; return these, and the lines: one for each message."""
    with lab.trace("--pid", str(server.pid), "--messages") as capture:
        client.go(json.dumps(asked))
        client.wait_done()
        calls = agreed(server, client, len(asked))
        expected = len(calls) + sum(len(call.requests) + len(call.responses) for call in calls)
        capture.wait_shown(expected)
    assert len(capture.exchanges) == expected
    return calls, capture.exchanges


def noted(server: GrpcEnd) -> list[GrpcCall]:
    """Return the calls that a server has noted so far, whoever made them."""
    return [
        GrpcCall(
            entry["call"], entry["method"], _pairs(entry["requests"]), _pairs(entry["responses"]), entry["status"],
            entry["message"], tuple(entry["client"]), server.address,
        )
        for entry in server.calls_so_far()
    ]  # fmt: skip


def assert_same(records: list[Record], calls: list[GrpcCall], protocol: str = "HTTP/2") -> None:
    """Fail unless these records tell of exactly these calls, each whole, but for those that were given up."""
    # HTTP/1.1 has no other way than to end the connection, which the server may notice before, in or after its answer.
    given_up = {"cancelled"} if protocol == "HTTP/2" else {"closed", "reset"}
    shown = {record["grpc"]["request_metadata"]["x-call"]: record for record in records}
    assert len(shown) == len(records)
    assert set(shown) == {call.number for call in calls}
    for call in calls:
        record = shown[call.number]
        seen = told(record)
        assert record["protocol"] == protocol
        assert record["lost_bytes"] == 0
        assert record["unknown"] == []
        if call.method == GIVEN_UP:
            # Whether a status was still sent depends on who was faster; without one there is an error and no status.
            # In gRPC-Web the status does not end the stream, so a call may have one and be given up all the same.
            if record["request"]["headers"]["content-type"].startswith("application/grpc-web"):
                assert seen.status is None or seen.message == call.message, record
            else:
                assert (seen.status is None) == (record["error"] is not None), record
            assert seen.status in (None, 1, 4), record
            assert record["error"] is None or record["error"]["kind"] in given_up, record
            seen = seen._replace(status=call.status, message=call.message)
        else:
            assert record["error"] is None, record
            assert record["complete"]
            assert record["response"]["status_code"] == 200
            # A request whose sending is told of after its answer has no known start.
            assert record["latency_ns"] is None or record["latency_ns"] > 0
        assert seen == call


class Wire(NamedTuple):
    """What tshark tells of the calls on a port: how often each message, path and status was seen."""

    messages: Counter[tuple[str, int]]
    """(side, length)."""
    paths: Counter[str]
    statuses: Counter[str]


def by_tshark(path: Path, port: int) -> Wire:
    """Return what tshark reads from packets."""
    fields = ("tcp.srcport", "grpc.message_length", "http2.headers.path", "http2.header.name", "http2.header.value")
    command = [
        program("tshark"), "-r", str(path), "-d", f"tcp.port=={port},http2", "-Y", "http2", "-T", "fields",
        "-E", "aggregator=|", *(word for name in fields for word in ("-e", name)),
    ]  # fmt: skip
    told = Wire(Counter(), Counter(), Counter())
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout
    for line in printed.splitlines():
        source, lengths, paths, names, values = line.split("\t")
        side = "responses" if source == str(port) else "requests"
        told.messages.update((side, int(length)) for length in lengths.split("|") if length)
        told.paths.update(filter(None, paths.split("|")))
        told.statuses.update(
            value for name, value in zip(names.split("|"), values.split("|"), strict=True) if name == "grpc-status"
        )
    return told


def wire_of(records: list[Record]) -> Wire:
    """Return the same of apitrace's records."""
    calls = [record["grpc"] for record in records]
    sides = ("requests", "responses")
    return Wire(
        Counter((side, message["size"]) for call in calls for side in sides for message in call[side]),
        Counter(record["request"]["path"] for record in records),
        Counter(str(call["status_code"]) for call in calls if call["status_code"] is not None),
    )
