"""The same traffic, seen by apitrace and by tshark with the keys: the same requests and the same statuses."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.harness import PATIENCE, environment, program, until
from tests.live.tls import REQUESTS, TlsLab, told

FIELDS = ("tcp.srcport", "tcp.dstport", "http.request.method", "http.request.uri", "http.response.code")
LAST = b"the last packet of this capture"
Seen = tuple[str, ...]


@contextmanager
def packets(directory: Path, port: int) -> Iterator[Path]:
    """Capture the packets of a port on the loopback interface, from when the capture is in place, to the last.

    The last is one of our own: when it has been written, so have those before it.
    """
    path, said = directory / "packets.pcap", directory / "tcpdump.err"
    command = [program("tcpdump"), "-i", "lo", "-s0", "-U", "-B", "16384", "-Z", "root", "-w", str(path)]
    with said.open("wb") as err:
        process = subprocess.Popen([*command, "tcp", "port", str(port)], stderr=err, env=environment())
    try:
        until(lambda: process.poll() is not None or "listening on" in said.read_text(), "tcpdump listens")
        yield path
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(LAST)
            until(lambda: LAST in path.read_bytes(), "tcpdump has written all packets")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert re.search(r"^0 packets dropped by kernel", said.read_text(), re.MULTILINE), said.read_text()


def by_tshark(path: Path, keys: Path, port: int) -> list[Seen]:
    """Return (client's port, method, path, status) of each call, as tshark reads them from packets and keys."""
    fields = [word for name in FIELDS for word in ("-e", name)]
    command = [
        program("tshark"), "-r", str(path), "-o", f"tls.keylog_file:{keys}", "-d", f"tcp.port=={port},tls",
        "-Y", "http.request || http.response", "-T", "fields", *fields,
    ]  # fmt: skip
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout
    requests: dict[str, list[tuple[str, str]]] = {}
    statuses: dict[str, list[str]] = {}
    for line in said.splitlines():
        source, destination, method, uri, status = line.split("\t")
        if method:
            requests.setdefault(source, []).append((method, uri))
        else:
            statuses.setdefault(destination, []).append(status)
    assert requests.keys() == statuses.keys()
    return [
        (client, *request, status)
        for client, made in requests.items()
        for request, status in zip(made, statuses[client], strict=True)
    ]


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_tshark_reads_the_same_calls_with_the_keys(tls_lab: TlsLab, version: str) -> None:
    server, keys = tls_lab.tls_node(), tls_lab.path("keys")
    client = tls_lab.tls_client(
        server, connections=5, rounds=3, flags=["--tls", version], extra={"SSLKEYLOGFILE": str(keys)}
    )
    count = 15 * len(REQUESTS)
    with (
        packets(tls_lab.directory, server.address[1]) as path,
        tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture,
    ):
        client.go()
        client.wait_done()
        told(server, client, count)
        capture.wait_shown(2 * count)
    read = by_tshark(path, keys, server.address[1])
    assert len(read) == count
    for role in ("client", "server"):
        shown = [
            (
                str(record["source"]["port"]), record["request"]["method"], record["request"]["path"],
                str(record["response"]["status_code"]),
            )
            for record in capture.at(role)
        ]  # fmt: skip
        assert sorted(shown) == sorted(read)
