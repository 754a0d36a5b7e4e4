"""A call, as its server, its client and apitrace each tell of it, in one shape: so that the three can be compared.

Servers and clients of these tests append one JSON line per call to a journal, the moment the call is over for them;
`of_record` gives the same shape from apitrace's JSON. Equality of two Calls is what the tests mean by "exact".
Headers are folded as the record promises: lower-case names, repeats joined in order. Every client numbers its calls
in an `X-Call` header, so that what the two ends wrote of one call can be put side by side.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Headers = tuple[tuple[str, str], ...]
Address = tuple[str, int]
"""(ip, port), or (path, 0) of an AF_UNIX end: ("", 0) for one that has no name."""


class Session(NamedTuple):
    """The TLS session that a call went through."""

    version: str | None
    """As OpenSSL spells it: "TLSv1.3"."""
    sni: str | None
    alpn: str | None


_JOINTS = {"cookie": "; ", "set-cookie": "\n"}


class Call(NamedTuple):
    """One request and what answered it. `status` is None, and its headers are empty, where nothing did."""

    method: str
    path: str
    status: int | None
    request_headers: Headers
    request_size: int
    """Body bytes without framing."""
    response_headers: Headers
    response_size: int
    client: Address
    server: Address
    tls: Session | None = None
    stream: int | None = None
    """The HTTP/2 stream, where the journal's writer knows it."""

    @property
    def number(self) -> str:
        """The client's number of the call."""
        return dict(self.request_headers)["x-call"]


def fold(headers: Iterable[tuple[str, str]]) -> Headers:
    """Fold header lines into the record's mapping, as sorted pairs."""
    folded: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        folded[key] = folded[key] + _JOINTS.get(key, ", ") + value if key in folded else value
    return tuple(sorted(folded.items()))


def address(name: tuple[Any, ...] | str | bytes) -> Address:
    """Turn what getsockname() or getpeername() returned into an Address."""
    if isinstance(name, bytes):  # abstract AF_UNIX name
        name = "@" + name[1:].decode()
    return (name, 0) if isinstance(name, str) else (name[0], name[1])


def of_record(record: dict[str, Any]) -> Call:
    """Return the call that one line of apitrace's JSON tells of."""
    request, response = record["request"], record["response"]
    ends = (record["source"], record["destination"])
    client, server = ((end.get("path") or "", 0) if end.get("ip") is None else (end["ip"], end["port"]) for end in ends)
    return Call(
        method=request["method"],
        path=request["path"],
        status=response and response["status_code"],
        request_headers=tuple(sorted((request["headers"] or {}).items())),
        request_size=request["body_size"],
        response_headers=tuple(sorted((response["headers"] or {}).items())) if response else (),
        response_size=response["body_size"] if response else 0,
        client=client,
        server=server,
        tls=record["tls"] and Session(*(record["tls"][name] for name in Session._fields)),
        stream=record["connection"]["stream_id"],
    )


def of_line(line: str) -> Call:
    """Return the call that one line of a journal tells of."""
    fields = json.loads(line)
    for name in ("request_headers", "response_headers"):
        fields[name] = tuple((key, value) for key, value in fields[name])
    for name in ("client", "server"):
        fields[name] = tuple(fields[name])
    session = Session(*(value or None for value in fields.get("tls") or (None,) * 3))
    fields["tls"] = session if any(session) else None
    return Call(**fields)


def read_journal(path: Path) -> list[Call]:
    """Return the calls of a journal. A line that is still being written is left for the next time."""
    if not path.exists():
        return []
    return [of_line(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Journal:
    """A file that calls are appended to; one write per call, so threads and processes can share it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, call: Call) -> None:
        os.write(self._descriptor, json.dumps(call._asdict()).encode() + b"\n")


def without(calls: Iterable[Call], *names: str) -> list[Call]:
    """Leave these response headers out, for a server that cannot tell what it sent."""
    return [
        call._replace(response_headers=tuple(pair for pair in call.response_headers if pair[0] not in names))
        for call in calls
    ]
