"""Uprobes on the TLS libraries of the targets: which are in place, in which process, and what their points mean.

`TlsProbes.look(pid)` finds the TLS implementations that a process has mapped (libraries.py), plans where probes go
(placement.py, golang.py) and places those that are not there yet, for that process alone: no other process takes a
breakpoint. It is called when a target is found, when it has exec'd, when it was forked from a probed one, and whenever
its dynamic loader has mapped something. A plan is made once per file and shared by all processes that map it; its
points are rows of the programs' table `points`, and the row's number is the probe's cookie.

A library that cannot be probed never stops the rest: what could not be placed and why is part of what `status` tells.

BIO_write is probed only where something is to be learnt from it: in a process that was there before the capture and
may have sessions whose handshake was not seen (sessions.bpf.c says what for).
"""

from __future__ import annotations

import os
import platform
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from apitrace.probes import golang, libraries, placement
from apitrace.probes.blocked import Awaited, BlockedCalls
from apitrace.probes.elf import Elf, ElfError
from apitrace.probes.layout import Path, SslLayout, loader_hook, ssl_layout
from apitrace.probes.placement import Kind, Location, Placement, ProbePoint, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apitrace.probes.golang import GoTls
    from apitrace.probes.kernel import Kernel
    from apitrace.probes.libraries import Libraries, MappedFile, Stack
    from apitrace.probes.uprobes import Probe

POINTS_LIMIT = 8192
"""Rows of the programs' table: 7 for an OpenSSL, so a thousand different files."""

TARGET_PROBED = 4
"""In the programs' table of targets: TARGET_PROBED in bpf/maps.bpf.c."""

_KINDS = {Kind.READ: 1, Kind.WRITE: 2, Kind.HANDSHAKE: 3, Kind.FREE: 4, Kind.BIO_WRITE: 5}
_LOADER = 6
_NO_REGISTER, _IN_REGISTER, _NO_PATH = 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF

# struct registers in bpf/arch_*.h
_X86_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "flags", "rsp", "ss",
)  # fmt: skip
_REGISTERS = {
    "x86_64": {
        name: 8 * index
        for index, name in enumerate(_X86_REGISTERS)
    },
    "aarch64": {**{f"x{number}": 8 * number for number in range(31)}, "sp": 8 * 31},
}
_LOCATION = struct.Struct("=Ii")
_PATH = struct.Struct("=Iiii")
_PATHS = 4  # of struct point
_POINT_HEAD = struct.Struct("=IIII")
_POINT_TAIL = struct.Struct("=QQQQ")

_LOADER_NAMES = ("ld-", "ld.", "libc.musl", "libc.so")

_PROGRAMS = {
    Kind.READ: "on_tls_entry", Kind.WRITE: "on_tls_entry", Kind.HANDSHAKE: "on_tls_entry", Kind.FREE: "on_tls_free",
    Kind.BIO_WRITE: "on_bio_write",
}  # fmt: skip

PROGRAMS = (
    "on_tls_entry", "on_tls_return", "on_tls_free", "on_bio_write", "on_go_call", "on_go_return", "on_loader",
)  # fmt: skip
"""The uprobe programs to load."""


class Hook(NamedTuple):
    """One probe to place: a program at an offset of a file."""

    program: str
    place: Placement
    at_return: bool
    point: int
    function: str
    kind: Kind | None


class Plan(NamedTuple):
    """What to place in a file."""

    hooks: tuple[Hook, ...]
    bio: tuple[Hook, ...]
    """BIO_write."""
    reason: str
    """Why there is nothing to place; else empty."""
    awaited: tuple[Awaited, ...] = ()
    """The functions that threads may be blocked in."""


@dataclass(slots=True)
class PlacedHook:
    """A hook in one process."""

    hook: Hook
    probe: Probe | None
    why: str
    """Why it is not in place; else empty."""


@dataclass(slots=True)
class _Process:
    """What is placed in a process, or for pid -1 in all."""

    files: dict[tuple[int, int], list[PlacedHook]] = field(default_factory=dict)
    bio: dict[tuple[int, int], list[PlacedHook]] = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
    fresh: bool = False
    """It was under watch from its first instruction: there is no session whose handshake was not seen."""


class Found(NamedTuple):
    """What `look` found new: for events.encode_probes."""

    libraries: dict[int, str]
    """Point -> library, as in the record: "OpenSSL 3.0.15"."""
    unreadable: tuple[str, ...]
    """TLS in the process that cannot be read, and why, in words."""
    probed: bool
    """Whether probes are in place for some TLS."""


class TlsProbes:
    """The TLS probes of one capture."""

    def __init__(self, kernel: Kernel, known: Libraries, *, everything: bool = False) -> None:
        """`everything`: every process is a target, so a file is probed once, for all."""
        self._kernel = kernel
        self._libraries = known
        self._everything = everything
        self._plans: dict[tuple[int, int, str], Plan] = {}
        self._processes: dict[int, _Process] = {}
        self._next_point = 0
        self._told: dict[int, Found] = {}
        self._blocked = BlockedCalls(kernel, known)
        self._examined: set[int] = set()
        """Processes whose threads were looked at for calls under way."""
        self._registers = _REGISTERS.get(platform.machine(), {})

    # -- processes ---------------------------------------------------------------------------------------------------

    def look(self, pid: int, *, fresh: bool = False) -> Found | None:
        """Place what is missing in a process. Return what is to be told of it, if that is news.

        `fresh`: its first instruction was not executed before it was under watch.
        """
        owner = -1 if self._everything else pid
        process = self._processes.setdefault(owner, _Process())
        if fresh:
            process.fresh = True
        mapped = self._libraries.mapped(pid)
        if self._place_loader(process, owner, mapped):
            mapped = self._libraries.mapped(pid)  # anew: unless it is stopped, it may have mapped more meanwhile
        stacks = tuple(self._libraries.stacks(pid, mapped))
        process.stacks = stacks
        names: dict[int, str] = {}
        unreadable = [] if mapped else ["it had ended before it could be looked at"]
        for stack in stacks:
            plan = self._plan(stack)
            hooks = self._place(process.files, owner, stack.where, plan.hooks)
            names |= {hook.point: _library(stack) for hook in plan.hooks}
            if not process.fresh and not self._everything and stack.bio is not None:
                self.watch_bio(pid)
            reason = stack.reason or plan.reason
            if not reason and not any(placed.probe for placed in hooks):
                reason = next((placed.why for placed in hooks if placed.why), "no probe could be placed")
            if reason:
                unreadable.append(f"{_library(stack)}: {reason}")
        probed = any(
            placed.probe and placed.hook.kind in (Kind.READ, Kind.WRITE)
            for hooks in process.files.values() for placed in hooks
        )  # fmt: skip
        found = Found(names, tuple(dict.fromkeys(unreadable)), probed)
        if probed and not self._everything:
            self._mark(pid)
        if probed and not process.fresh and pid not in self._examined:
            self._examined.add(pid)
            self._blocked.attach(pid, {(s.where.device, s.where.inode): self._plan(s).awaited for s in stacks})
        if self._told.get(pid) == found:
            return None
        self._told[pid] = found
        return found

    def forget(self, pid: int) -> None:
        """The process has ended, or has exec'd: its memory is gone."""
        self._told.pop(pid, None)
        self._examined.discard(pid)
        self._blocked.forget(pid)
        process = self._processes.pop(pid, None)
        if process is not None:
            self._remove(process.files)
            self._remove(process.bio)

    def review(self) -> None:
        """Take away what has served its purpose. To be called about once a second."""
        self._blocked.review()

    def call_under_way(self) -> bool:
        """Whether a thread is in a call that has been entered, and has not returned yet."""
        return self._blocked.under_way()

    def is_fresh(self, pid: int) -> bool:
        """Whether the process was under watch from its first instruction."""
        process = self._processes.get(pid)
        return process is not None and process.fresh

    def watches_bio(self, pid: int) -> bool:
        """Whether BIO_write is probed in the process."""
        process = self._processes.get(pid)
        return process is not None and bool(process.bio)

    def watch_bio(self, pid: int) -> None:
        """Probe BIO_write in the process."""
        process = self._processes.get(pid)
        if process is None:
            return
        for stack in process.stacks:
            if stack.bio is not None:
                plan = self._plan_of_file(stack.bio, libraries.OPENSSL)
                self._place(process.bio, pid, stack.bio, plan.bio)

    def leave_bio(self, pid: int) -> None:
        """Probe BIO_write no longer."""
        process = self._processes.get(pid)
        if process is not None:
            self._remove(process.bio)

    def status(self, pid: int) -> list[tuple[Stack, str, list[PlacedHook]]]:
        """Return the TLS found in a process when it was last looked at: why it is not read, and the probes for it."""
        process = self._processes.get(-1 if self._everything else pid)
        if process is None:
            return []
        found = []
        for stack in process.stacks:
            hooks = list(process.files.get((stack.where.device, stack.where.inode), ()))
            if stack.bio is not None:
                hooks += process.bio.get((stack.bio.device, stack.bio.inode), ())
            found.append((stack, stack.reason or self._plan(stack).reason, hooks))
        return found

    def hits(self, point: int) -> int:
        """Return how often a point's probes were hit, in all processes."""
        raw = self._kernel.lookup("points", struct.pack("=I", point), _POINT_SIZE)
        return 0 if raw is None else int(_POINT_TAIL.unpack_from(raw, _POINT_SIZE - _POINT_TAIL.size)[3])

    def _mark(self, pid: int) -> None:
        key = struct.pack("=I", pid)
        flags = self._kernel.lookup("targets", key, 1)
        if flags is not None:
            self._kernel.update("targets", key, bytes([flags[0] | TARGET_PROBED]))

    # -- placing -----------------------------------------------------------------------------------------------------

    def _place(
        self, placed: dict[tuple[int, int], list[PlacedHook]], pid: int, where: MappedFile, hooks: Iterable[Hook]
    ) -> list[PlacedHook]:
        """Place hooks in a file, for a process, if they are not there."""
        key = (where.device, where.inode)
        if key not in placed:
            groups: dict[tuple[bool, str], list[Hook]] = {}
            for hook in hooks:
                groups.setdefault((not hook.at_return, hook.program), []).append(hook)
            # Return probes first: a call that they see the end of, and not the beginning, is of no account.
            placed[key] = [
                done for _, group in sorted(groups.items()) for done in self._place_group(pid, where, tuple(group))
            ]
        return placed[key]

    def _remove(self, placed: dict[tuple[int, int], list[PlacedHook]]) -> None:
        """Take away what was placed."""
        for hooks in placed.values():
            for hook in hooks:
                if hook.probe is not None:
                    self._kernel.remove(hook.probe)
        placed.clear()

    def _place_group(self, pid: int, where: MappedFile, hooks: tuple[Hook, ...]) -> list[PlacedHook]:
        """Place hooks of the same program; where they cannot be placed together, each on its own."""
        program, _, at_return = hooks[0][:3]
        places = [(hook.place.offset, hook.point) for hook in hooks]
        try:
            probe = self._kernel.probe(program, where.file, places, pid=pid, at_return=at_return)
        except OSError as error:
            if len(hooks) == 1:
                return [PlacedHook(hooks[0], None, os.strerror(error.errno or 0).lower())]
            return [done for hook in hooks for done in self._place_group(pid, where, (hook,))]
        return [PlacedHook(hook, probe, "") for hook in hooks]

    def _place_loader(self, process: _Process, owner: int, mapped: list[MappedFile]) -> bool:
        """Be told when the process maps another library. Return whether that begins now."""
        before = len(process.files)
        for where in mapped:
            if where.path.rpartition("/")[2].startswith(_LOADER_NAMES):
                plan = self._plan_of_file(where, "loader")
                if plan.hooks:
                    self._place(process.files, owner, where, plan.hooks)
        return len(process.files) > before

    # -- plans -------------------------------------------------------------------------------------------------------

    def _plan(self, stack: Stack) -> Plan:
        if stack.reason:
            return Plan((), (), stack.reason)
        return self._plan_of_file(stack.where, stack.kind)

    def _plan_of_file(self, where: MappedFile, kind: str) -> Plan:
        key = (where.device, where.inode, kind)
        plan = self._plans.get(key)
        if plan is None:
            try:
                with Elf.open(where.file) as elf:
                    plan = self._make_plan(elf, kind)
            except OSError as error:  # of this process's path to it: another one may be good
                return Plan((), (), (error.strerror or str(error)).lower())
            except ElfError as error:
                plan = Plan((), (), str(error))
            self._plans[key] = plan
        return plan

    def _make_plan(self, elf: Elf, kind: str) -> Plan:
        if kind == libraries.GO:
            go = golang.plan_go(elf)
            if go is None or go.reason:
                return Plan((), (), go.reason if go else "no crypto/tls in it")
            return Plan(tuple(self._go_hooks(go)), (), "")
        if kind == "loader":
            hook = loader_hook(elf)
            if hook is None:
                return Plan((), (), "its loader has no hook for debuggers")
            number = self._row(_LOADER, address=hook.entry.address, tables=(hook.state or 0, 0))
            return Plan((Hook("on_loader", hook.entry, False, number, "the dynamic loader's hook", None),), (), "")
        if kind == libraries.GNUTLS:
            points, layout = placement.plan_gnutls(elf), None
        else:
            points, layout = placement.plan_openssl(elf), ssl_layout(elf)
        hooked = [(point, tuple(self._hooks(point, layout))) for point in points]
        hooks = [hook for _, its in hooked for hook in its]
        return Plan(
            tuple(hook for hook in hooks if hook.kind != Kind.BIO_WRITE),
            tuple(hook for hook in hooks if hook.kind == Kind.BIO_WRITE),
            "",
            tuple(_awaited(point, its[0].point) for point, its in hooked if point.kind in (Kind.READ, Kind.WRITE)),
        )

    def _hooks(self, point: ProbePoint, layout: SslLayout | None) -> Iterator[Hook]:
        counter = point.count_pointer if point.result is Result.POINTED else None
        number = self._row(
            _KINDS[point.kind], stack=point.entry.stack,
            locations=(point.handle, point.buffer, point.length, counter), address=point.entry.address,
            paths=_paths(layout),
        )  # fmt: skip
        yield Hook(_PROGRAMS[point.kind], point.entry, False, number, point.function, point.kind)
        if point.returns is not None:
            yield Hook("on_tls_return", point.returns, True, number, point.function, point.kind)

    def _go_hooks(self, go: GoTls) -> Iterator[Hook]:
        tables = (*go.net_conns, 0, 0)[:2]
        for function in go.functions:
            kind = _KINDS[function.kind]
            for site in function.sites:
                # A write is told at the call, before anything can answer it: its number of bytes is known there but for
                # a write that fails, which is the connection's end (src/crypto/tls/conn.go: the error is permanent).
                counted = site.after is not None and site.kind is not Kind.WRITE
                number = self._row(
                    kind, locations=(site.conn, site.buffer, site.length, None), address=site.at.address,
                    counted=counted, tables=tables,
                )  # fmt: skip
                yield Hook("on_go_call", site.at, False, number, function.name, function.kind)
                if counted and site.after is not None:
                    number = self._row(
                        kind, locations=(None, None, site.moved, None), address=site.after.address, tables=tables
                    )
                    yield Hook("on_go_return", site.after, False, number, function.name, function.kind)
            if function.sites:
                continue
            conn, buffer, length = function.entry.arguments
            number = self._row(
                kind, locations=(conn, buffer, length, None), address=function.entry.address, counted=True,
                restarts=function.restarts, tables=tables,
            )  # fmt: skip
            yield Hook("on_go_call", function.entry, False, number, function.name, function.kind)
            for place in function.returns:
                number = self._row(
                    kind, locations=(None, None, Location("rax"), None), address=place.address, tables=tables
                )
                yield Hook("on_go_return", place, False, number, function.name, function.kind)

    def _row(
        self,
        kind: int,
        *,
        stack: int = 0,
        locations: tuple[Location | None, ...] = (None,) * 4,
        address: int = 0,
        counted: bool = False,
        restarts: bool = False,
        tables: tuple[int, ...] = (0, 0),
        paths: tuple[Path | None, ...] = (),
    ) -> int:
        """Write a row of the programs' table of points; return its number. Raises ElfError if there is no room."""
        number = self._next_point
        if number >= POINTS_LIMIT:
            message = f"more than {POINTS_LIMIT} probe points"
            raise ElfError(message)
        self._next_point += 1
        known = (*paths, *(None,) * _PATHS)[:_PATHS]
        row = b"".join((
            _POINT_HEAD.pack(kind, stack, counted, restarts),
            *(self._location(location) for location in locations),
            *(_path(path) for path in known),
            _POINT_TAIL.pack(address, *tables, 0),
        ))  # fmt: skip
        self._kernel.update("points", struct.pack("=I", number), row)
        return number

    def _location(self, location: Location | None) -> bytes:
        if location is None:
            return _LOCATION.pack(_NO_REGISTER, _IN_REGISTER)
        register = self._registers.get(location.register)
        if register is None:
            message = f"an argument in {location.register}"
            raise ElfError(message)
        return _LOCATION.pack(register, _IN_REGISTER if location.offset is None else location.offset)


_POINT_SIZE = _POINT_HEAD.size + 4 * _LOCATION.size + _PATHS * _PATH.size + _POINT_TAIL.size


def _paths(layout: SslLayout | None) -> tuple[Path | None, ...]:
    if layout is None:
        return ()
    fields = (layout.alpn_len, layout.shutdown)
    return layout.client_random, layout.alpn, *(None if field is None else field.path for field in fields)


def _path(path: Path | None) -> bytes:
    """Return a path as the programs read it: at most two pointers are followed."""
    if path is None or len(path.derefs) > 2:
        return _PATH.pack(_NO_PATH, 0, 0, 0)
    first, second = (*path.derefs, 0, 0)[:2]
    return _PATH.pack(len(path.derefs), first, second, path.offset)


def _awaited(point: ProbePoint, number: int) -> Awaited:
    arguments = point.entry.arguments
    return Awaited(
        point.entry.address - point.entry.delta, number, _KINDS[point.kind], arguments.index(point.handle),
        arguments.index(point.buffer or point.handle),
        arguments.index(point.count_pointer) if point.count_pointer and point.result is Result.POINTED else None,
    )  # fmt: skip


def _library(stack: Stack) -> str:
    return f"{stack.library} {stack.version}" if stack.version else stack.library
