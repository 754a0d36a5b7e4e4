"""gRPC between grpcio, grpc-go and @grpc/grpc-js, each as client and as server: every call exactly as it was made."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.live.grpc import (
    ENDS,
    GIVEN_UP,
    TLS_ENDS,
    agreed,
    assert_same,
    by_tshark,
    start,
    told_live,
    traced_with_messages,
    wire_of,
)  # fmt: skip
from tests.live.harness import HOOKS, environment, listening, program, until, unused_port
from tests.live.test_tls_crosscheck import packets

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.harness import Lab, Program, Record

CALLS: list[Record] = [
    {"method": "Unary", "send": [["chair", 1]]},
    {"method": "Unary", "send": [["x" * 3000, 300]], "gzip": True},
    {"method": "Unary", "send": [["y" * 40_000, 7]]},
    {"method": "List", "send": [["leg", 5]]},
    {"method": "List", "send": [["none", 0]]},
    {"method": "Store", "send": [["a", 1], ["b", 20], ["c", 300]]},
    {"method": "Store", "send": []},
    {"method": "Talk", "send": [[f"word {number}", number] for number in range(7)]},
    {"method": "Talk", "send": [["zip", 1], ["zip " * 500, 2]], "gzip": True},
    *({"method": "Fail", "send": [["no such chair", code]]} for code in range(1, 17)),
    {"method": "Fail", "send": [["größe: 50% of 7 €", 5]]},
    {"method": "Break", "send": [["half of it", 3]]},
    {"method": "Slow", "send": [["wait", 1]], "cancel": True},
    {"method": "Slow", "send": [["wait", 0]], "timeout_ms": 1500},
    {"method": "Slow", "send": [["wait", 1]], "timeout_ms": 1500},
    {"method": "Unary", "send": [["last", 1]], "timeout_ms": 20_000},
]


def all_calls_traced(lab: Lab, server: Program, client: Program) -> list[Record]:
    """Return the records of CALLS. Fails unless each end shows exactly what was made."""
    with lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture:
        client.go(json.dumps(CALLS))
        client.wait_done()
        calls = agreed(server, client, len(CALLS))
        capture.wait_shown(2 * len(CALLS))
    assert_same(capture.at("client"), calls)
    assert_same(capture.at("server"), calls)
    assert len(capture.exchanges) == 2 * len(CALLS)
    return capture.exchanges


@pytest.mark.parametrize("server_kind", ENDS)
@pytest.mark.parametrize("client_kind", ENDS)
def test_every_call_is_shown_at_both_ends_as_it_was_made(
    lab: Lab, grpc_go: Path, client_kind: str, server_kind: str
) -> None:
    server = start(lab, server_kind, grpc_go, "server")
    client = start(lab, client_kind, grpc_go, "client", *map(str, server.address))
    for record in all_calls_traced(lab, server, client):
        number = int(record["grpc"]["request_metadata"]["x-call"])
        compressed = [message["compressed"] for message in record["grpc"]["requests"]]
        packed = record["request"]["headers"].get("grpc-encoding", "identity") != "identity"
        assert any(compressed) == packed, record
        # grpc-js compresses only for servers that list what they accept without spaces, as grpcio does not.
        assert packed == bool(CALLS[number].get("gzip")) or (client_kind, server_kind) == ("grpc-js", "grpcio")
        limit = record["grpc"]["timeout_ns"]
        assert (limit is not None) == ("timeout_ms" in CALLS[number])
        # What is sent is what was left then; C core rounds it up to three digits.
        assert limit is None or 0 < limit <= CALLS[number]["timeout_ms"] * 1_010_000


@pytest.mark.parametrize("server_kind", TLS_ENDS)
@pytest.mark.parametrize("client_kind", TLS_ENDS)
def test_every_call_is_shown_over_tls_too(
    lab: Lab, grpc_go: Path, certificates: Path, client_kind: str, server_kind: str
) -> None:
    server = start(lab, server_kind, grpc_go, "server", str(certificates))
    client = start(lab, client_kind, grpc_go, "client", *map(str, server.address), str(certificates))
    records = all_calls_traced(lab, server, client)
    assert {record["request"]["scheme"] for record in records} == {"https"}
    assert {record["tls"]["alpn"] for record in records} <= {"h2", None}


def test_attached_late_every_later_call_is_shown_right_or_as_unknown(lab: Lab, grpc_go: Path) -> None:
    """A client that has made calls on its connection already: names and statuses are there, or said to be unknown."""
    for server_kind, client_kind in (("grpc-go", "grpcio"), ("grpcio", "grpc-go"), ("grpc-go", "grpc-js")):
        server = start(lab, server_kind, grpc_go, "server")
        client = start(lab, client_kind, grpc_go, "client", *map(str, server.address))
        # The tenth call waits until its time is up: by then the probes are in place.
        waiting: Record = {"method": "Slow", "send": [["wait", 1]], "timeout_ms": 6000}
        client.go(json.dumps([*CALLS[:9], waiting, *CALLS[:26]]))
        until(lambda: len(server.calls_so_far()) >= 9, "nine calls were made")  # noqa: B023 - called here
        with lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture:
            client.wait_done()
            made = {call.number: call for call in agreed(server, client, 36)}
            capture.wait_shown(2 * 26)
        for role in ("client", "server"):
            records = sorted(capture.at(role), key=lambda record: int(record["metadata"]["timestamp"]))
            # The client's time may be up before the server's: then the next call begins before the open one has ended.
            begun = [record for record in records if "request.method" in record["unknown"]]
            later = [record for record in records if record not in begun]
            assert len(begun) <= 1  # of the call that was open already, the end may be seen
            assert all(record["grpc"] is None or record["grpc"]["status_code"] in {None, 4} for record in begun)
            for record, number in zip(later, range(10, 36), strict=True):
                call, shown = made[str(number)], record["grpc"]
                assert shown is not None
                unknown = set(record["unknown"])
                if call.method != GIVEN_UP and "grpc.status_code" not in unknown:
                    assert shown["status_code"] == call.status
                assert record["response"]["status_code"] == 200
                if "request.path" in unknown:
                    assert (shown["service"], shown["method"]) == (None, None)
                else:
                    assert (shown["service"], shown["method"]) == ("test.Calls", call.method)
                for key, messages in (("requests", call.requests), ("responses", call.responses)):
                    assert [message["data"] for message in shown[key]] == [
                        {"1": {"string": name}, "2": {"varint": count}} for name, count in messages
                    ]
                    assert shown[f"{key[:-1]}_count"] == len(messages)
                named = shown["request_metadata"].get("x-call")
                assert named == call.number or "request.headers" in unknown


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
def test_messages_are_shown_as_they_pass_and_then_the_call(lab: Lab, grpc_go: Path) -> None:
    server = start(lab, "grpc-go", grpc_go, "server")
    client = start(lab, "grpcio", grpc_go, "client", *map(str, server.address))
    asked = CALLS[:9]
    calls, lines = traced_with_messages(lab, server, client, asked)
    over: set[str] = set()
    for call in calls:
        exchange, own = told_live(lines, call)
        for side, key in (("client", "requests"), ("server", "responses")):
            passed = [line for line in own if line["side"] == side]
            assert [line["index"] for line in passed] == list(range(len(passed)))
            listed = exchange["grpc"][key]
            assert [{name: line[name] for name in listed[0]} for line in passed] == listed
            assert {(line["service"], line["method"]) for line in passed} <= {("test.Calls", call.method)}
            times = [line["timestamp"] for line in passed]
            assert times == sorted(times)
        over.add(exchange["id"])
    assert len(over) == len(asked)


@pytest.mark.parametrize("server_kind", ENDS)
def test_calls_that_share_a_connection_are_kept_apart(lab: Lab, grpc_go: Path, server_kind: str) -> None:
    calls = CALLS[:26] * 11
    server = start(lab, server_kind, grpc_go, "server")
    client = start(lab, "grpc-go", grpc_go, "client", *map(str, server.address))
    with lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture:
        client.go(json.dumps({"workers": 31, "calls": calls}))
        client.wait_done()
        made = agreed(server, client, len(calls))
        capture.wait_shown(2 * len(calls))
    assert_same(capture.at("client"), made)
    assert_same(capture.at("server"), made)
    assert len(capture.exchanges) == 2 * len(calls)
    for role in ("client", "server"):
        assert len({record["connection"]["stream_id"] for record in capture.at(role)}) == len(calls)


@pytest.mark.parametrize("kind", ENDS)
def test_tshark_counts_the_same_messages_paths_and_statuses(lab: Lab, grpc_go: Path, kind: str) -> None:
    server = start(lab, kind, grpc_go, "server")
    client = start(lab, kind, grpc_go, "client", *map(str, server.address))
    calls = CALLS[:26]
    with (
        packets(lab.directory, server.address[1]) as path,
        lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture,
    ):
        client.go(json.dumps(calls))
        client.wait_done()
        agreed(server, client, len(calls))
        capture.wait_shown(2 * len(calls))
    theirs = by_tshark(path, server.address[1])
    assert theirs.paths.total() == len(calls)
    for role in ("client", "server"):
        assert wire_of(capture.at(role)) == theirs


def test_messages_are_shown_by_the_names_of_a_schema(lab: Lab, grpc_go: Path, tmp_path: Path) -> None:
    source = tmp_path / "calls.proto"
    source.write_text(
        'syntax = "proto3"; package test; message Word { string name = 1; int32 count = 2; }'
        "service Calls { rpc Talk(stream Word) returns (stream Word); }"
    )
    server = start(lab, "grpc-go", grpc_go, "server")
    client = start(lab, "grpc-go", grpc_go, "client", *map(str, server.address))
    asked = [{"method": "Talk", "send": [["a", 1], ["b", 2]]}, {"method": "Unary", "send": [["c", 3]]}]
    with lab.trace("--pid", str(client.pid), "--proto", str(source)) as capture:
        client.go(json.dumps(asked))
        client.wait_done()
        capture.wait_shown(2)
    named, unnamed = (record["grpc"] for record in capture.exchanges)
    assert [message["data"] for message in named["responses"]] == [{"name": "a", "count": 1}, {"name": "b", "count": 2}]
    assert {message["data_encoding"] for message in named["requests"]} == {"proto"}
    assert {message["data_encoding"] for message in unnamed["requests"]} == {"guess"}


# -- a server and a client that were not made for this ----------------------------------------------------------


def test_etcd_and_its_client_are_shown_as_they_talk(lab: Lab) -> None:
    """Debian's etcd, and etcdctl: n puts, gets and one watch; what passed is in what etcdctl prints."""
    client_port, peer_port = unused_port(), unused_port()
    url, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    server = lab.start(
        program("etcd"), "--data-dir", str(lab.path("etcd")), "--listen-client-urls", url,
        "--advertise-client-urls", url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", f"default={peer}", "--log-level", "error", journal=lab.path("none"),
        extra={"ETCD_UNSUPPORTED_ARCH": "arm64"} if os.uname().machine == "aarch64" else None,
    )  # fmt: skip

    def ask(*words: str) -> Record:
        done = subprocess.run(
            [program("etcdctl"), "--endpoints", url, "-w", "json", *words], check=True, capture_output=True,
            env=environment(ETCDCTL_API="3"),
        )  # fmt: skip
        answer: Record = json.loads(done.stdout)
        return answer

    until(lambda: listening(client_port), "etcd listens")
    ask("get", "nothing")
    with lab.trace("--pid", str(server.pid), "--port", str(client_port)) as capture:
        answers = [ask("put", f"key {number}", f"value {number}") for number in range(7)]
        found = ask("get", "key", "--prefix")
        deleted = ask("del", "key 3")
        capture.wait_shown(9)
    calls = [record for record in capture.exchanges if record["grpc"]["service"] == "etcdserverpb.KV"]
    assert [record["grpc"]["method"] for record in calls] == ["Put"] * 7 + ["Range", "DeleteRange"]
    assert {record["grpc"]["status"] for record in capture.exchanges} == {"OK"}
    for number, (record, answer) in enumerate(zip(calls, answers, strict=False)):
        assert record["complete"]
        [put], [reply] = record["grpc"]["requests"], record["grpc"]["responses"]
        assert put["data"] == {"1": {"string": f"key {number}"}, "2": {"string": f"value {number}"}}
        header = reply["data"]["1"]["message"]
        assert header["3"]["varint"] == answer["header"]["revision"]
        assert header["1"]["varint"] == answer["header"]["cluster_id"]
    [range_reply] = calls[7]["grpc"]["responses"]
    pairs = [each["message"] for each in range_reply["data"]["2"]]
    keys = [base64.b64encode(pair["1"]["string"].encode()).decode() for pair in pairs]
    assert keys == [kv["key"] for kv in found["kvs"]]
    assert [pair["3"]["varint"] for pair in pairs] == [kv["mod_revision"] for kv in found["kvs"]]
    [delete_reply] = calls[8]["grpc"]["responses"]
    assert delete_reply["data"]["2"]["varint"] == deleted["deleted"]
