"""--list: the processes of this host that could be traced, as a table or JSON lines.

A process that may not be looked into is listed all the same, with what is known of it: null in JSON, "?" in the table.
Kernel threads and what has ended are left out. Which TLS a file has is found out once for each file, however many
processes map it. Names come from processes and images: nothing of them reaches a terminal unescaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import orjson

from apitrace.exchange import Container
from apitrace.probes import procfs
from apitrace.probes.libraries import GO, Libraries, Stack
from apitrace.sinks.text import cells, escape, fit

_ID_SHOWN = 12
"""Digits of a container's ID where it has no name, as `docker ps` shows."""
_WIDEST = {"COMMAND": 15, "CONTAINER": 20, "LISTENS": 17}
"""Cells of columns that may be cut on a terminal: with a pid of 7 and two spaces between, 16 are left of 80."""
_ELLIPSIS = "…"
_GAP = "  "

Describe = Callable[[int], "tuple[str, str | None, Container | None] | None"]
"""pid -> (name, program, container); None if the process is gone."""


class Row(NamedTuple):
    """A process."""

    pid: int
    comm: str
    exe: str | None
    container: Container | None
    listeners: tuple[procfs.Listener, ...] | None
    """None: may not be read."""
    stacks: tuple[Stack, ...] | None
    """None: may not be read."""


def name_of(stack: Stack) -> str:
    """Return what a TLS implementation is called: "OpenSSL 3.0.15", "Go 1.22.1", "JSSE (Java 17.0.9)"."""
    if stack.kind == GO:
        return f"Go {stack.version}" if stack.version else "Go"
    if stack.library == "JSSE":
        return f"JSSE (Java {stack.version})" if stack.version else "JSSE (Java)"
    return f"{stack.library} {stack.version}" if stack.version else stack.library


def scan(
    pids: Iterable[int], describe: Describe, libraries: Libraries, *, ports: Sequence[int] = ()
) -> Iterator[Row]:
    """Yield the processes among `pids` that run a program; with `ports`, those that listen on one of them."""
    running = [pid for pid in pids if procfs.cmdline(pid) or procfs.exe(pid)]
    listeners = procfs.tcp_listeners(running)
    for pid in running:
        here = listeners.get(pid)
        if ports and not any(listener.port in ports for listener in here or ()):
            continue
        described = describe(pid)
        if described is not None:
            readable = procfs.may_look_into(pid)
            yield Row(pid, *described, here, tuple(libraries.stacks(pid)) if readable else None)


# -- table ----------------------------------------------------------------------------------------------------------


def _ports(row: Row) -> str:
    if row.listeners is None:
        return "?"
    return ",".join(str(port) for port in dict.fromkeys(one.port for one in row.listeners)) or "-"


def _tls(row: Row) -> str:
    if row.stacks is None:
        return "?"
    names = (f"{name_of(stack)}, not readable" if stack.reason else name_of(stack) for stack in row.stacks)
    return escape("; ".join(dict.fromkeys(names))) or "-"


def container_of(container: Container | None) -> str:
    """Return what a table says of a process's container: its name, or the start of its ID."""
    return "-" if container is None else escape(container.name or container.id[:_ID_SHOWN])


def table(rows: Sequence[Row], width: int | None) -> Iterator[str]:
    """Yield the table's lines, cut to a terminal's width; None: not cut."""
    head = ("PID", "COMMAND", "CONTAINER", "LISTENS", "TLS")
    body = [(str(row.pid), escape(row.comm), container_of(row.container), _ports(row), _tls(row)) for row in rows]
    widths = [max(cells(line[column]) for line in (head, *body)) for column in range(len(head) - 1)]
    if width is not None:
        widths = [min(used, _WIDEST.get(name, used)) for used, name in zip(widths, head, strict=False)]
    for line in (head, *body):
        pid = " " * (widths[0] - cells(line[0])) + line[0]
        fitted = [fit(text, size, _ELLIPSIS) for text, size in zip(line[1:-1], widths[1:], strict=True)]
        text = _GAP.join((pid, *fitted, line[-1])).rstrip()
        yield text if width is None or cells(text) <= width else fit(text, width, _ELLIPSIS).rstrip()


# -- JSON -----------------------------------------------------------------------------------------------------------


def json_line(row: Row) -> bytes:
    """Return a process as one line of JSON. Names of keys are those of the record where it has them."""
    container = row.container
    return orjson.dumps({
        "pid": row.pid,
        "comm": row.comm,
        "exe": row.exe,
        "container": None if container is None else {
            "id": container.id, "name": container.name, "image": container.image, "runtime": container.runtime,
            "pod": container.pod, "namespace": container.namespace,
        },
        "listens": None if row.listeners is None else [{"ip": ip, "port": port} for ip, port in row.listeners],
        "tls": None if row.stacks is None else [
            {
                "library": stack.library, "version": stack.version, "file": stack.where.path,
                "build_id": stack.build_id, "linked": stack.linked, "readable": not stack.reason,
                "reason": stack.reason or None,
            }
            for stack in row.stacks
        ],
    }, option=orjson.OPT_APPEND_NEWLINE)  # fmt: skip


def unread(rows: Iterable[Row]) -> int:
    """Return how many of the processes could not be looked into."""
    return sum(row.stacks is None or row.listeners is None for row in rows)
