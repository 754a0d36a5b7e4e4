"""curl over one connection of HTTP/2 that it uses again: by ALPN and by Upgrade, from the first call or joined late.

By prior knowledge curl 7.88 cannot use a connection again, so test_http2.py makes one call a connection.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.harness import HOOKS, program, until
from tests.live.test_http2 import assert_whole, quietly, url
from tests.live.test_http2_late import assert_later_calls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live.harness import Lab, Program

ROUND = [
    ["-H", "X-Old: 1", "/bytes/10"], ["/status/404"], ["/bytes/70000"], ["-d", "x" * 100, "/echo"],
    ["-X", "PUT", "-H", "X-Kind: of the client", "-d", "y", "/echo"], ["/status/418"],
]  # fmt: skip
"""Options and paths. Each round makes these, so those after the first find their fields in the encoders' tables."""

ENOUGH = (
    {"kind": "reset", "detail": "the client reset the stream: STREAM_CLOSED"},
    {"kind": "closed", "detail": "the process closed the connection; the end of the response is missing"},
    {"kind": "closed", "detail": "the peer closed the connection; the end of the response is missing"},
)
"""How curl 7.88 gives up a response whose body it has, before the frame that ends it: see has_had_enough."""


def curl(server: Program, transport: str, calls: list[list[str]]) -> list[str]:
    """Return a curl that makes these calls, one after the other."""
    flags = {"tls": ["-sk", "--http2"], "h2c": ["-s", "--http2"]}[transport]
    words = [program("curl")]
    for number, (*options, path) in enumerate(calls):
        between = ["--next"] if number else []
        words += [*between, *flags, *options, "-H", f"X-Call: {number}", url(server, transport, path)]
    return words


def let_through(gate: Path) -> int | None:
    """Open what a server waits for; None while none does. It goes on when the descriptor is closed."""
    with contextlib.suppress(OSError):  # ENXIO: nobody has it open for reading
        return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    return None


def own_headers(records: list[dict[str, Any]]) -> None:
    """Leave out what hypercorn adds to the headers of the application."""
    for record in records:
        for name in ("date", "server"):
            (record["response"]["headers"] or {}).pop(name, None)


def test_an_upgrade(lab: Lab) -> None:
    """The first call is asked for in HTTP/1.1, answered with 101, and answered again on stream 1."""
    server = lab.hypercorn()
    urls = [url(server, "h2c", path) for path in ("/bytes/9", "/status/404", "/bytes/70000")]
    capture = lab.trace_command(*quietly(program("curl"), "-s", "--http2", *urls), flags=["--pid", str(server.pid)])
    assert capture.status == 0, capture.stderr
    assert_whole(capture, curl=True)
    served = Counter((call.path, call.status, call.response_size) for call in server.calls(3))
    for role in ("client", "server"):
        records = capture.at(role)
        shown = Counter(
            (r["request"]["path"], r["response"]["status_code"], r["response"]["body_size"]) for r in records
        )
        assert shown == served
        assert [record["connection"]["stream_id"] for record in records] == [1, 3, 5]
        assert records[0]["request"]["headers"]["upgrade"] == "h2c"


@pytest.mark.parametrize("hook", HOOKS, indirect=True)
@pytest.mark.parametrize(
    ("server_kind", "transport"), [("python", "tls"), ("node", "tls"), ("hypercorn", "tls"), ("hypercorn", "h2c")]
)
def test_attached_late_every_later_call_is_shown_with_its_stream_and_nothing_wrong(
    lab: Lab, server_kind: str, transport: str
) -> None:
    """One answer is held back until the probes are in place; what had been asked before is not shown."""
    server = lab.hypercorn(transport) if server_kind == "hypercorn" else lab.http2(server_kind, transport)
    gate = server.journal.with_name(f"{server.journal.name}.gate")
    os.mkfifo(gate)
    calls = [*ROUND, ["/held"], *ROUND, *ROUND, *ROUND]
    client = lab.start(*quietly(*curl(server, transport, calls)), journal=lab.path("none"))
    held = until(lambda: let_through(gate), "the server holds an answer back")
    before = len(ROUND)
    with lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture:
        os.close(held)
        served = server.calls(len(calls))
        capture.wait_shown(2 * (len(calls) - before))
    made = [call._replace(stream=1 + 2 * number) for number, call in enumerate(served)]
    assert len({call.client for call in made}) == 1
    assert [call.number for call in made] == [str(number) for number in range(len(calls))]
    for role in ("client", "server"):
        records = capture.at(role)
        if server_kind == "hypercorn":
            own_headers(records)
        for record in records:
            # The size of the body is compared below. hypercorn may read of it before it has written the last frame.
            if record["error"] in ENOUGH and (role == "client" or server_kind == "hypercorn"):
                record["error"], record["complete"] = None, not record["unknown"]
        assert_later_calls(records, made[before:], [made[before]])
