"""gRPC-Web by connect-go, by the package that browsers use, and by a wrapper of grpc-go: every call as it was made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.live.grpc import GIVEN_UP, agreed, assert_same, named, start, told_live, traced_with_messages
from tests.live.test_grpc import CALLS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.grpc import GrpcEnd
    from tests.live.harness import Lab

TEXT = ("grpc-web", "text")
SERVERS = ("connect", "wrapped")
CLIENTS = (("grpc-go", "1"), ("grpc-go", "2"), TEXT, ("grpc-web", "binary"))
"""Which program, and its HTTP version or the form of its bodies."""
PAIRS = [(client, server) for client in CLIENTS for server in SERVERS if (client, server) != (TEXT, "connect")]
"""connect-go does not take the text form."""
METHODS = {
    "1": {"Unary", "List", "Break", "Store", "Fail", "Slow"},
    "2": {"Unary", "List", "Break", "Store", "Fail", "Talk", "Slow"},  # which connect-go refuses over HTTP/1.1
    "text": {"Unary", "List", "Break", "Fail"},
    "binary": {"Unary", "List", "Break", "Fail"},
}


def ends(
    lab: Lab, grpc_go: Path, client: tuple[str, str], server_kind: str, certificates: list[str]
) -> tuple[GrpcEnd, GrpcEnd]:
    """Start a server and a client."""
    kind, way = client
    server = start(lab, "grpc-go", grpc_go, "web-server", server_kind, *certificates)
    name = "web-client" if kind == "grpc-go" else "client"
    return server, start(lab, kind, grpc_go, name, *map(str, server.address), way, *certificates)


@pytest.mark.parametrize("transport", ["plain", "tls"])
@pytest.mark.parametrize(("client_kind", "server_kind"), PAIRS)
def test_every_call_is_shown_at_both_ends_as_it_was_made(
    lab: Lab, grpc_go: Path, certificates: Path, client_kind: tuple[str, str], server_kind: str, transport: str
) -> None:
    way = client_kind[1]
    asked = [call for call in CALLS if call["method"] in METHODS[way] and (way in "12" or not call.get("gzip"))]
    security = [str(certificates)] if transport == "tls" else []
    server, client = ends(lab, grpc_go, client_kind, server_kind, security)
    with lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture:
        client.go(json.dumps(asked))
        client.wait_done()
        calls = agreed(server, client, len(asked))
        capture.wait_shown(2 * len(asked))
    protocol = "HTTP/2" if way == "2" else "HTTP/1.1"
    assert_same(capture.at("client"), calls, protocol)
    assert_same(capture.at("server"), calls, protocol)
    assert len(capture.exchanges) == 2 * len(asked)
    kinds = {record["request"]["headers"]["content-type"].partition("+")[0] for record in capture.exchanges}
    assert kinds == {"application/grpc-web-text" if way == "text" else "application/grpc-web"}
    assert {record["tls"] is not None for record in capture.exchanges} == {transport == "tls"}


def test_a_server_that_does_not_take_the_text_form_answers_without_a_grpc_status(lab: Lab, grpc_go: Path) -> None:
    asked = [call for call in CALLS if call["method"] in {"Unary", "List"} and not call.get("gzip")]
    server, client = ends(lab, grpc_go, TEXT, "connect", [])
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go(json.dumps(asked))
        client.wait_done()
        capture.wait_shown(2 * len(asked))
    assert {entry["message"].rpartition(" ")[2] for entry in client.entries(len(asked)).values()} == {"415"}
    assert server.calls_so_far() == []
    assert len(capture.exchanges) == 2 * len(asked)
    for record in capture.exchanges:
        call = asked[int(record["grpc"]["request_metadata"]["x-call"])]
        assert record["response"]["status_code"] == 415
        assert (record["grpc"]["status_code"], record["grpc"]["message"]) == (None, None)
        assert (record["grpc"]["service"], record["grpc"]["method"]) == ("test.Calls", call["method"])
        assert [message["data"]["2"]["varint"] for message in record["grpc"]["requests"]] == [call["send"][0][1]]
        assert record["grpc"]["responses"] == []
        assert (record["unknown"], record["error"], record["complete"]) == ([], None, True)


@pytest.mark.parametrize("client_kind", CLIENTS)
def test_messages_are_shown_as_they_pass_and_then_the_call(
    lab: Lab, grpc_go: Path, client_kind: tuple[str, str]
) -> None:
    asked = [call for call in CALLS if call["method"] in {"Unary", "List", "Break"} and not call.get("gzip")]
    server, client = ends(lab, grpc_go, client_kind, "wrapped", [])
    calls, lines = traced_with_messages(lab, server, client, asked)
    for call in calls:
        exchange, own = told_live(lines, call)
        for side, key, said in (("client", "requests", call.requests), ("server", "responses", call.responses)):
            passed = [line for line in own if line["side"] == side]
            assert [line["index"] for line in passed] == list(range(len(said)))
            listed = exchange["grpc"][key]
            assert tuple(map(named, listed)) == said
            assert [{name: line[name] for name in each} for line, each in zip(passed, listed, strict=True)] == listed
            assert {(line["service"], line["method"]) for line in passed} <= {("test.Calls", call.method)}


@pytest.mark.parametrize("server_kind", SERVERS)
def test_attached_late_every_later_call_is_shown_with_its_status(
    lab: Lab, grpc_go: Path, server_kind: str
) -> None:
    """On an HTTP/2 connection that has had such calls: what is in the encoders' tables is unknown, bodies are not."""
    asked = [call for call in CALLS if call["method"] in METHODS["2"] - {GIVEN_UP}]
    server, client = ends(lab, grpc_go, ("grpc-go", "2"), server_kind, [])
    client.go(json.dumps(asked))
    client.wait_done()
    with lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture:
        client.go(json.dumps(asked))
        client.wait_done()
        later = agreed(server, client, 2 * len(asked))[len(asked) :]
        capture.wait_shown(2 * len(later))
    assert len(capture.exchanges) == 2 * len(later)
    for role in ("client", "server"):
        records = sorted(capture.at(role), key=lambda record: int(record["metadata"]["timestamp"]))
        for record, call in zip(records, later, strict=True):
            shown, unknown = record["grpc"], set(record["unknown"])
            # Without a message to stand behind, the trailers are headers.
            assert "grpc.status_code" not in unknown or not call.responses
            if "grpc.status_code" in unknown:
                assert (shown["status_code"], shown["message"]) in {(None, None), (None, call.message)}
            else:
                assert (shown["status_code"], shown["message"] or "") == (call.status, call.message)
            known = (None, None) if "request.path" in unknown else ("test.Calls", call.method)
            assert (shown["service"], shown["method"]) == known
            assert tuple(map(named, shown["responses"])) == call.responses
            assert shown["response_count"] == len(call.responses)
            if "grpc.requests" in unknown:  # how frames that were on their way go on is not known
                assert shown["requests"] is shown["request_count"] is None
            else:
                assert tuple(map(named, shown["requests"])) == call.requests
                assert shown["request_count"] == len(call.requests)
            number = shown["request_metadata"].get("x-call")
            assert number == call.number or (number is None and "request.headers" in unknown)
            assert record["complete"] is not bool(unknown)
            assert record["error"] is None
