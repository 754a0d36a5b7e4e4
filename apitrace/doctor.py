"""--doctor: what can be decoded for the processes named, and why not; and whether this machine can trace at all.

Values in, lines of text out. `planned` says where probes would go in a file; `observed` says the same of probes that
were placed, with how often each was hit. The lines have one row per process and TLS implementation first, then one
paragraph per file, however many processes map it, then the machine's needs. What is not known is said to be so. Names
come from processes and files: nothing of them reaches a terminal unescaped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from apitrace.exchange import Container
from apitrace.listing import container_of, name_of
from apitrace.probes import golang
from apitrace.probes.elf import Elf, ElfError
from apitrace.probes.host import Need
from apitrace.probes.layout import ssl_layout
from apitrace.probes.libraries import GNUTLS, GO, OPENSSL, Stack
from apitrace.probes.placement import Kind, Placement, ProbePoint, plan_gnutls, plan_openssl
from apitrace.probes.tls import PlacedHook, TlsProbes
from apitrace.sinks.text import cells, escape, fit

_WIDTH = 79
"""Cells of a line: paragraphs read well at this width, wherever they are shown."""
_CHEAP, _STEPPED = "0.45 us", "16 us"
"""What a hit costs the process: measured on Linux 6.18 (placement.py)."""
_ELLIPSIS = "…"
_ENTRY, _RETURN, _INSIDE = "entry", "return", "call"


class PointStatus(NamedTuple):
    """A probe on a function: planned, or tried to place."""

    function: str
    """For people: "SSL_read_ex", or "SSL_read and SSL_read_ex, in the function they call at 0x35290"."""
    at: str
    """"entry", "return" or, inside the function, "call"."""
    place: Placement
    placed: bool | None
    """None: it was not tried."""
    why: str = ""
    """Why it is not in place; else empty."""
    hits: int | None = None
    """In all processes; None: not counted here."""
    passing: bool = False
    """Needed only while sessions are open whose handshake was not seen: BIO_write."""


class ProbeStatus(NamedTuple):
    """A TLS implementation in a process, and the probes for it."""

    stack: Stack
    reason: str
    """Why it cannot be read; else empty."""
    points: tuple[PointStatus, ...]


class Process(NamedTuple):
    """A process that was named."""

    pid: int
    comm: str
    container: Container | None
    found: tuple[ProbeStatus, ...] | None
    """None: it may not be looked into."""


# -- what would be placed -------------------------------------------------------------------------------------------


def _of_point(point: ProbePoint) -> Iterator[PointStatus]:
    passing = point.kind is Kind.BIO_WRITE
    yield PointStatus(point.function, _ENTRY, point.entry, None, passing=passing)
    if point.returns is not None:
        yield PointStatus(point.function, _RETURN, point.returns, None, passing=passing)


def _of_go(elf: Elf) -> tuple[str, list[PointStatus]]:
    go = golang.plan_go(elf)
    if go is None or go.reason:
        return (go.reason if go else "it has no crypto/tls"), []
    points = []
    for function in go.functions:
        if function.sites:
            places = [(_INSIDE, site.at) for site in function.sites]
            places += [(_INSIDE, site.after) for site in function.sites if site.after is not None]
        else:
            places = [(_ENTRY, function.entry), *((_RETURN, place) for place in function.returns)]
        points += [PointStatus(function.name, at, place, None) for at, place in places]
    return "", points


def planned(stack: Stack) -> ProbeStatus:
    """Return the probes that would be placed for a TLS implementation. Never raises: what cannot be read says why."""
    if stack.reason:
        return ProbeStatus(stack, stack.reason, ())
    try:
        with Elf.open(stack.where.file) as elf:
            if stack.kind == GO:
                reason, points = _of_go(elf)
                return ProbeStatus(stack, reason, tuple(points))
            plan = plan_gnutls(elf) if stack.kind == GNUTLS else plan_openssl(elf)
        if stack.kind == OPENSSL and stack.bio not in (None, stack.where):
            with Elf.open(stack.bio.file) as elf:
                plan += [point for point in plan_openssl(elf) if point.kind is Kind.BIO_WRITE]
    except (OSError, ElfError) as error:
        return ProbeStatus(stack, f"the file cannot be read: {error}", ())
    return ProbeStatus(stack, "", tuple(status for point in plan for status in _of_point(point)))


# -- what was placed ------------------------------------------------------------------------------------------------


def observed(tls: TlsProbes, pid: int) -> tuple[ProbeStatus, ...]:
    """Return the TLS implementations that were found in a process, and what became of the probes for them."""
    return tuple(
        ProbeStatus(stack, reason, tuple(_of_hook(tls, placed) for placed in hooks))
        for stack, reason, hooks in tls.status(pid)
    )


def _of_hook(tls: TlsProbes, placed: PlacedHook) -> PointStatus:
    hook = placed.hook
    at = _RETURN if hook.at_return or hook.place.instruction.startswith("ret") else _ENTRY
    if hook.program.startswith("on_go_") and hook.place.instruction.startswith(("call", "j")):
        at = _INSIDE
    return PointStatus(
        hook.function, at, hook.place, placed.probe is not None, placed.why,
        # A function's return is not counted apart from its entry.
        None if hook.at_return or placed.probe is None else tls.hits(hook.point), hook.kind is Kind.BIO_WRITE,
    )  # fmt: skip


# -- lines ----------------------------------------------------------------------------------------------------------


def _wrapped(text: str, indent: int, *, first: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first.ljust(indent), subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _readable(status: ProbeStatus) -> str:
    steady = [point for point in status.points if not point.passing]
    if status.reason:
        return "no"
    if not steady or all(point.placed is False for point in steady):
        return "no"
    return "partly" if any(point.placed is False for point in steady) else "yes"


def _probes(status: ProbeStatus) -> str:
    steady = [point for point in status.points if not point.passing]
    if not steady:
        return "-"
    placed = sum(point.placed is True for point in steady)
    tried = any(point.placed is not None for point in steady)
    slow = sum(not point.place.cheap for point in steady)
    text = f"{placed} of {len(steady)}" if tried else f"{len(steady)}, not placed"
    return f"{text}, {slow} slow" if slow else text


def _hits(status: ProbeStatus) -> str:
    hits = [point.hits for point in status.points if point.hits is not None]
    return str(sum(hits)) if hits else "-"


def _rows(processes: Sequence[Process]) -> Iterator[str]:
    """Yield the table: a row for each process, or for each of its TLS implementations."""
    head = ("PROCESS", "CONTAINER", "TLS", "READABLE", "PROBES", "HITS")
    body = []
    for process in processes:
        who = f"{escape(process.comm)}[{process.pid}]"
        container = container_of(process.container)
        if process.found is None:
            body.append((who, container, "? (may not be read)", "?", "?", "-"))
        elif not process.found:
            body.append((who, container, "none found", "-", "-", "-"))
        body += [
            (who, container, escape(name_of(status.stack)), _readable(status), _probes(status), _hits(status))
            for status in process.found or ()
        ]
    widths = [max(cells(line[column]) for line in (head, *body)) for column in range(len(head))]
    widths[1] = min(widths[1], 16)
    for line in (head, *body):
        yield "  ".join(fit(text, width, _ELLIPSIS) for text, width in zip(line, widths, strict=True)).rstrip()


def _cost(place: Placement) -> str:
    return f"cheap, about {_CHEAP}" if place.cheap else f"single-stepped, about {_STEPPED}: {place.reason}"


def _point_lines(points: Sequence[PointStatus]) -> Iterator[str]:
    """Yield the lines of one function's probes, the same in every process but for whether they are placed."""
    yield from _wrapped(escape(points[0].function), 4, first="  ")
    if points[0].passing:
        yield from _wrapped("only while sessions are open whose handshake was not seen", 6)
    places = dict.fromkeys((point.at, point.place) for point in points)
    for at, place in sorted(places, key=lambda key: key[0] == _RETURN):
        here = [point for point in points if (point.at, point.place) == (at, place)]
        text = f"{at} at +{place.delta:#x} ({escape(place.instruction)}): {_cost(place)}"
        tried = [point for point in here if point.placed is not None]
        if tried:
            placed = sum(point.placed is True for point in tried)
            text += f"; placed in {placed} of {len(tried)} processes" if len(tried) > 1 else ""
            text += "; placed" if len(tried) == placed == 1 else ""
            whys = dict.fromkeys(point.why for point in tried if point.why)
            text += f"; not placed: {escape(', '.join(whys))}" if whys else ""
        hits = [point.hits for point in here if point.hits is not None]
        text += f"; {max(hits)} hits" if hits else ""
        yield from _wrapped(text, 6)


def _file_lines(statuses: Sequence[ProbeStatus]) -> Iterator[str]:
    """Yield the paragraph on one file's TLS."""
    stack, reason = statuses[0].stack, statuses[0].reason
    yield escape(name_of(stack))
    yield from _wrapped(escape(stack.where.path), 4, first="  ")
    yield from _wrapped(f"{stack.linked}, build id {escape(stack.build_id or 'none')}", 4, first="  ")
    if reason:
        yield from _wrapped(f"not readable: {escape(reason)}; plaintext is still shown", 4, first="  ")
        return
    points = [point for status in statuses for point in status.points]
    for function in dict.fromkeys(point.function for point in points):
        yield from _point_lines([point for point in points if point.function == function])
    yield from _wrapped(f"sockets: {_sockets(stack)}", 4, first="  ")


def _sockets(stack: Stack) -> str:
    """Say how what passes is tied to its socket."""
    nested = "by the socket call that its thread makes inside the TLS call"
    unknown = "where that does not tell, addresses are shown as unknown"
    if stack.kind == GO:
        return f"by the descriptor that the connection object leads to; {unknown}"
    if stack.kind == GNUTLS:
        return f"{nested}; {unknown}"
    try:
        with Elf.open(stack.where.file) as elf:
            layout = ssl_layout(elf)
    except (OSError, ElfError) as error:
        return f"{nested}; where its SSL objects keep the client random cannot be told: {escape(str(error))}"
    if layout.client_random is None:
        known = f"its client random is not found ({layout.reasons.get('client_random')})"
    else:
        *pointers, offset = (*layout.client_random.derefs, layout.client_random.offset)
        way = "".join(f"pointer at {at}, " for at in pointers)
        known = f"the client random, found in its SSL objects ({way}offset {offset})"
    other = "by the bytes handed to BIO_write" if stack.bio is not None else "BIO_write was not found"
    return f"{nested}; for a program that hands it memory instead: {known}, or {other}; {unknown}"


def process_lines(processes: Sequence[Process]) -> Iterator[str]:
    """Yield the report on the processes that were named."""
    if not processes:
        return
    yield from _rows(processes)
    files: dict[tuple[int, int, str, str], list[ProbeStatus]] = {}
    for process in processes:
        for status in process.found or ():
            stack = status.stack
            key = (stack.where.device, stack.where.inode, stack.kind, stack.library)
            files.setdefault(key, []).append(status)
    for statuses in files.values():
        yield ""
        yield from _file_lines(statuses)
    silent = sum(process.found is None for process in processes)
    if silent:
        yield ""
        yield from _wrapped(
            f"{silent} of {len(processes)} processes may not be looked into: which TLS they have, and so whether it "
            "can be read, cannot be told without root", 0,
        )  # fmt: skip


def host_lines(needs: Iterable[Need]) -> Iterator[str]:
    """Yield the report on the machine."""
    marks = {True: "ok", False: "MISSING", None: "?"}
    yield "this machine"
    for need in needs:
        yield from _wrapped(f"{escape(need.text)}", 24, first=f"  {marks[need.met]:<8}{need.name}")


def can_trace(needs: Iterable[Need]) -> bool:
    """Return whether nothing is known to be missing without which nothing is traced."""
    return all(need.met is not False for need in needs if need.vital)
