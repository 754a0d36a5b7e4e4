"""TLS that cannot be read is reported once for each connection, with what the wire tells and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.harness import Record, program, read_lines
from tests.live.tls import TlsLab

JSSE = str(Path(__file__).with_name("programs") / "Jsse.java")
Builds = Callable[[str], Path]


def command(kind: str, c_build: Builds) -> list[str]:
    """Return what begins the command of a program whose TLS cannot be read."""
    return [program("java"), JSSE] if kind == "JSSE" else [str(c_build("stripped"))]


def assert_reported(records: list[Record], connections: list[Record], role: str) -> None:
    """Fail unless these records tell of each connection once, as it was on the wire: by the count of its other end."""
    told = []
    for record in records:
        assert record["protocol"] == "TLS"
        assert record["process"]["role"] == role
        assert record["error"]["kind"] == "unreadable"
        assert record["error"]["detail"]
        assert record["complete"] is False
        assert (record["lost_bytes"], record["unknown"]) == (0, [])
        assert (record["request"]["method"], record["request"]["path"]) == (None, None)
        told.append({
            "client": [record["source"]["ip"], record["source"]["port"]],
            "server": [record["destination"]["ip"], record["destination"]["port"]],
            "tls": [record["tls"]["version"], record["tls"]["sni"], record["tls"]["alpn"]],
            "to_server": record["request"]["body_size"],
            "to_client": record["response"]["body_size"],
        })  # fmt: skip
    assert sorted(told, key=str) == sorted(connections, key=str)


def in_the_clear(lines: list[Record]) -> list[Record]:
    """Return a journal's lines as the wire tells them: TLS 1.3 encrypts the protocol that the server chose."""
    assert {line["tls"][0] for line in lines} == {"TLSv1.3"}
    return [{**line, "tls": [*line["tls"][:2], None]} for line in lines]


def counted(lab: TlsLab, *arguments: str) -> tuple[list[str], Path]:
    journal = lab.path("counted")
    role, *rest = arguments
    return [sys.executable, "-m", "tests.live.clients.counted", role, str(journal), *rest], journal


@pytest.mark.parametrize("kind", ["JSSE", "stripped static OpenSSL"])
def test_a_server_that_cannot_be_read(tls_lab: TlsLab, c_build: Builds, kind: str) -> None:
    server = tls_lab.silent(*command(kind, c_build), "server", "@PORT@", str(tls_lab.certificates))
    arguments, journal = counted(tls_lab, "client", json.dumps(server.address), tls_lab.ca, "5")
    client = tls_lab.start(*arguments, journal=journal)
    with tls_lab.trace("--pid", str(server.pid)) as capture:
        for _ in range(3):
            client.go()
            client.wait_done()
        capture.wait_shown(3)
    assert_reported(capture.exchanges, in_the_clear(read_lines(journal, 3)), "server")
    assert "TLS" in capture.stderr


@pytest.mark.parametrize("kind", ["JSSE", "stripped static OpenSSL"])
def test_a_client_that_cannot_be_read(tls_lab: TlsLab, c_build: Builds, kind: str) -> None:
    arguments, journal = counted(tls_lab, "server", str(tls_lab.certificates))
    server = tls_lab._serve(*arguments, journal=journal)
    arguments = [*command(kind, c_build), "client", str(server.address[1]), tls_lab.ca]
    client = tls_lab.start(*arguments, *(["3"] if kind == "JSSE" else ["freed", "3"]), journal=journal)
    if kind == "JSSE":
        assert client.read_line() == "ready\n"
    count = 1 if kind == "JSSE" else 3
    with tls_lab.trace("--pid", str(client.pid)) as capture:
        client.go()
        client.wait_done()
        lines = read_lines(journal, count)
        capture.wait_shown(count)
    assert_reported(capture.exchanges, in_the_clear(lines), "client")
