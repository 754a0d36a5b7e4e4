"""What the tests of TLS are made of, beside harness.py: servers and clients that speak HTTPS.

Their journals have the same shape, with the session of each call. What one end does not know of a call (its own
headers where a library adds some, its addresses, the server name) it leaves empty, and the other end tells: at least
one of both always knows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.live.calls import Call, Session, of_record
from tests.live.harness import SERVERS, Lab, Program, assert_exactly, children, listening, program, until, unused_port

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tests.live.harness import Capture, Record

CLIENTS = Path(__file__).with_name("clients")
MADE = Path(sys.executable).parents[1] / "tests"
"""What set-up has fetched for these tests: see the Makefile."""

REQUESTS: list[Record] = [
    {"path": "/bytes/17?q=1&r=%C3%A9"},
    {"method": "POST", "path": "/echo", "size": 1999, "headers": {"Content-Type": "application/json"}},
    {"method": "HEAD", "path": "/bytes/5000"},
    {"path": "/status/404"},
    {"path": "/bytes/0"},
    {"method": "POST", "path": "/echo", "size": 70001, "chunked": True},
    {"path": "/bytes/100003"},
]
"""Seven calls: with and without bodies, of less and of more than one TLS record (16 KiB)."""


class TlsLab(Lab):
    """A Lab whose servers speak HTTPS, with the certificates of a directory that certificates.py filled."""

    def __init__(self, directory: Path, certificates: Path) -> None:
        super().__init__(directory, None)
        self.certificates = certificates
        self.ca = str(certificates / "ca.pem")

    # Servers

    def tls_origin(self, *flags: str, python: str = sys.executable, extra: Mapping[str, str] | None = None) -> Program:
        """Start the threaded Python server; with `--fork` one that forks for each connection."""
        journal = self.path("origin")
        command = [python, "-m", "tests.live.servers.origin", str(journal), "--tls", str(self.certificates), *flags]
        return self._serve(*command, journal=journal, extra=extra)

    def tls_streams(self) -> Program:
        journal = self.path("streams")
        command = [sys.executable, "-m", "tests.live.servers.streams", str(journal), str(self.certificates)]
        return self._serve(*command, journal=journal)

    def tls_ends(self) -> Program:
        journal = self.path("ends")
        command = [sys.executable, "-m", "tests.live.servers.ends", str(journal), str(self.certificates)]
        return self._serve(*command, journal=journal)

    def tls_node(self) -> Program:
        journal = self.path("node")
        command = [program("node"), str(SERVERS / "node.js"), str(journal), str(self.certificates)]
        return self._serve(*command, journal=journal)

    def tls_go(self, binary: Path) -> Program:
        journal = self.path("go")
        return self._serve(str(binary), str(journal), str(self.certificates), journal=journal)

    def tls_nginx(self, workers: int = 1, protocols: str = "TLSv1.2 TLSv1.3") -> Program:
        return self.nginx(workers, tls=(self.certificates, protocols))

    def tls_gunicorn(self, workers: int) -> Program:
        pair = self._key_and_certificate("--keyfile", "--certfile")
        return self.gunicorn(workers, *pair)

    def tls_uvicorn(self) -> Program:
        journal, port = self.path("uvicorn"), unused_port()
        arguments = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--timeout-keep-alive", "60"]
        arguments += self._key_and_certificate("--ssl-keyfile", "--ssl-certfile")
        server = self.start(
            sys.executable, "-m", "uvicorn", *arguments, "tests.live.servers.asgi:application",
            journal=journal, extra={"JOURNAL": str(journal)},
        )  # fmt: skip
        server.address = ("127.0.0.1", port)
        until(lambda: listening(port), "uvicorn listens")
        return server

    def _key_and_certificate(self, key: str, certificate: str) -> list[str]:
        return [key, str(self.certificates / "server.key"), certificate, str(self.certificates / "server.pem")]

    def silent(self, *command: str, extra: Mapping[str, str] | None = None) -> Program:
        """Start a server that keeps no journal; "@PORT@" in its arguments and variables is the port to listen on."""
        port = unused_port()
        arguments = [word.replace("@PORT@", str(port)) for word in command]
        variables = {name: value.replace("@PORT@", str(port)) for name, value in (extra or {}).items()}
        server = self.start(*arguments, journal=self.path("none"), extra=variables)
        server.address = ("127.0.0.1", port)
        until(lambda: listening(port), f"{command[0]} listens")
        return server

    # Clients

    def tls_client(
        self, to: Program, requests: Iterable[Record] = REQUESTS, *, connections: int = 1, rounds: int = 1,
        flags: Iterable[str] = (), python: str = sys.executable, extra: Mapping[str, str] | None = None,
    ) -> Program:  # fmt: skip
        """Start the keep-alive Python client, which waits for `go`."""
        journal = self.path("client")
        return self.start(
            python, "-m", "tests.live.clients.keepalive", "--ca", self.ca, *flags, str(journal),
            json.dumps(to.address), str(connections), str(rounds), *map(json.dumps, requests),
            journal=journal, extra=extra,
        )  # fmt: skip

    def _calling(
        self, *command: str, to: Program, requests: Iterable[Record], connections: int, rounds: int,
        extra: Mapping[str, str] | None = None,
    ) -> Program:  # fmt: skip
        journal = self.path("client")
        return self.start(
            *command, str(journal), json.dumps(to.address), self.ca, str(connections), str(rounds),
            *map(json.dumps, requests), journal=journal, extra=extra,
        )  # fmt: skip

    def library_client(
        self, library: str, to: Program, requests: Iterable[Record] = REQUESTS, *, connections: int = 1, rounds: int = 1
    ) -> Program:
        """Start a Python library's client, which waits for `go`; see clients/libraries.py."""
        command = (sys.executable, "-m", "tests.live.clients.libraries", library)
        return self._calling(*command, to=to, requests=requests, connections=connections, rounds=rounds)

    def node_client(
        self, kind: str, to: Program, requests: Iterable[Record] = REQUESTS, *, connections: int = 1, rounds: int = 1
    ) -> Program:
        """Start a node client, which waits for `go`; see clients/node.js."""
        command = (program("node"), str(CLIENTS / "node.js"), kind)
        return self._calling(
            *command, to=to, requests=requests, connections=connections, rounds=rounds,
            extra={"NODE_EXTRA_CA_CERTS": self.ca},
        )  # fmt: skip

    def go_client(
        self, binary: Path, to: Program, requests: Iterable[Record] = REQUESTS, *, connections: int = 1, rounds: int = 1
    ) -> Program:
        """Start the Go client, which waits for `go`; see servers/go/client.go."""
        return self._calling(
            str(binary), "client", to=to, requests=requests, connections=connections, rounds=rounds
        )


def _both(one: Call, other: Call) -> Call:
    """Return what `one` tells of a call, and where it does not know, what `other` tells."""
    left, right = one.tls or Session(None, None, None), other.tls or Session(None, None, None)
    session = Session(*(mine or theirs for mine, theirs in zip(left, right, strict=True)))
    return one._replace(
        request_headers=one.request_headers if len(one.request_headers) > 1 else other.request_headers,
        response_headers=one.response_headers or other.response_headers,
        client=one.client if one.client[1] else other.client,
        server=one.server if one.server[1] else other.server,
        tls=session if any(session) else None,
    )


def told(server: Program, client: Program, count: int) -> list[Call]:
    """Return the `count` calls that were made, as both ends' journals tell: where both know, they must agree."""
    served = {call.number: call for call in server.calls(count)}
    made = {call.number: call for call in client.calls(count)}
    assert len(served) == len(made) == count
    calls = []
    for number, call in made.items():
        assert _both(call, served[number]) == _both(served[number], call)
        calls.append(_both(call, served[number]))
    return calls


def assert_exactly_over_tls(
    capture: Capture, *, client: Iterable[Call] = (), server: Iterable[Call] = (), unknown: Collection[str] = (),
    leave_out: Collection[str] = (), protocol: str = "HTTP/1.1",
) -> None:  # fmt: skip
    """Fail unless apitrace has shown exactly these calls at these ends, each whole, with its session and its socket.

    TLS 1.3 encrypts the protocol that the server chose: null stands for it where the library does not tell.
    """
    silent = set()
    for record in capture.exchanges:
        call = of_record(record)
        assert call.tls is not None, record
        if call.tls.version == "TLSv1.3" and call.tls.alpn is None:
            silent.add((record["process"]["role"], call.client, call.server))
        assert record["request"]["scheme"] == "https", record
        assert record["connection"]["address_source"] in {"socket", "bio"}, record["connection"]

    def tellable(call: Call, role: str) -> Call:
        if call.tls and (role, call.client, call.server) in silent:
            return call._replace(tls=call.tls._replace(alpn=None))
        return call

    assert_exactly(
        capture,
        client=[tellable(call, "client") for call in client],
        server=[tellable(call, "server") for call in server],
        unknown=unknown,
        leave_out=leave_out,
        protocol=protocol,
    )


def workers_of(server: Program) -> str:
    """Return the PIDs of a server and of its children, as --pid takes them."""
    return ",".join(map(str, (server.pid, *children(server.pid))))
