"""Responses that end with their TLS connection: whole if the server ended them, and not if the client gave them up.

The server's journal says how much it sent, and its paths say who ended first (servers/ends.py).
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from tests.live.harness import program, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.live.tls import TlsLab

PATHS = ("/fin", "/notify", "/half", "/cut")
PATIENCE_S = 1
UNSEEN = "the end of the response body was not seen"
LACK = "500 of the 1000 bytes of the response body are missing"

PYTHON = """
import http.client, ssl, sys
port, patience, *paths = sys.argv[1:]
for path in paths:
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("127.0.0.1", int(port), timeout=float(patience), context=context)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    except TimeoutError:
        pass
    connection.close()
"""
STREAMS = """
import asyncio, ssl, sys
port, patience, *paths = sys.argv[1:]
async def call(path):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port), ssl=ssl._create_unverified_context())
    writer.write(b"GET %s HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" % path.encode())
    try:
        await asyncio.wait_for(reader.read(), float(patience))
    except asyncio.TimeoutError:
        pass
    writer.transport.abort()
async def main():
    for path in paths:
        await call(path)
asyncio.run(main())
"""
NODE = """
const https = require("https");
const [port, patience, ...paths] = process.argv.slice(1);
const call = (path) => new Promise((done) => {
  const options = { host: "127.0.0.1", port, path, rejectUnauthorized: false, agent: false };
  https.get(options, (response) => {
    const timer = setTimeout(() => response.destroy(), 1000 * patience);
    response.on("error", () => {}).on("close", () => { clearTimeout(timer); done(); }).resume();
  });
});
(async () => { for (const path of paths) await call(path); })();
"""


End = tuple[bool, dict[str, str] | None]
"""Whether an exchange is complete, and its error."""
WHOLE: End = (True, None)


def closed(by: str, lack: str) -> End:
    return False, {"kind": "closed", "detail": f"{by} closed the connection; {lack}"}


def command(name: str, lab: TlsLab, server: tuple[str, int], go: Path) -> list[str]:
    """Return a command that asks for all paths, one after the other, and gives each up after a while."""
    port = str(server[1])
    asked = [port, str(PATIENCE_S), *PATHS]
    if name == "python":
        return [sys.executable, "-c", PYTHON, *asked]
    if name == "asyncio":
        return [sys.executable, "-c", STREAMS, *asked]
    if name == "node":
        return [program("node"), "-e", NODE, *asked]
    if name == "go":
        requests = [json.dumps({"path": path, "timeout_ms": 1000 * PATIENCE_S}) for path in PATHS]
        client = [str(go), "client", "/dev/null", json.dumps(server), lab.ca, "1", "1", *requests]
        return ["sh", "-c", f"echo go | {shlex.join(client)} >/dev/null"]
    flags = {
        "curl": [program("curl"), "-sk", "--http1.1", f"-m{PATIENCE_S}", "-o/dev/null"],
        "wget": [program("wget"), "-q", "--no-check-certificate", f"-T{PATIENCE_S}", "-t1", "-O/dev/null"],
    }[name]
    urls = [f"https://127.0.0.1:{port}{path}" for path in PATHS]
    return ["sh", "-c", "; ".join(shlex.join([*flags, url]) for url in urls) + "; true"]


@pytest.mark.parametrize("name", ["curl", "wget", "python", "asyncio", "node", "go"])
def test_a_response_is_whole_if_the_server_ended_it_and_not_if_the_client_gave_it_up(
    tls_lab: TlsLab, go_build: Callable[..., Path], name: str
) -> None:
    server = tls_lab.tls_ends()
    flags = ["--pid", str(server.pid)]
    capture = tls_lab.trace_command(*command(name, tls_lab, server.address, go_build("plain")), flags=flags)
    assert capture.status == 0, capture.stderr
    sent = {line["path"]: line["sent"] for line in read_lines(server.journal, len(PATHS))}
    assert len(capture.exchanges) == 2 * len(PATHS)
    gave_up = closed("the process", UNSEEN)
    # In Go no probe tells that close_notify was read, so it is not known who ended first.
    notify = gave_up if name == "go" else WHOLE
    expected = {
        "client": {"/fin": WHOLE, "/notify": notify, "/half": gave_up, "/cut": closed("the process", LACK)},
        # The server knows that what it sent is all, but for a length that it gave and did not reach.
        "server": {"/fin": WHOLE, "/notify": WHOLE, "/half": WHOLE, "/cut": closed("the peer", LACK)},
    }
    for role, ends in expected.items():
        shown = {
            record["request"]["path"]: (record["response"]["body_size"], record["complete"], record["error"])
            for record in capture.at(role)
        }
        assert shown == {path: (sent[path], *end) for path, end in ends.items()}
