"""The live Source: socket probes on targets, raw events out.

`start` compiles, fills the filters and attaches; the order matters: probes first, then the list of processes is read
again, so that a process that starts meanwhile is not missed. `poll` returns raw events in the order in which the kernel
made them. Before the first event of a process it puts one of its own (PROCESS), so that a recording says all that
the output says. Nothing here decodes more of an event than its first bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apitrace.errors import PlatformError, TargetError
from apitrace.probes import events, procfs
from apitrace.probes.btf import Btf
from apitrace.probes.kernel import Kernel
from apitrace.probes.libraries import Libraries
from apitrace.probes.loader import Attachment, Settings, load
from apitrace.probes.stops import Stops
from apitrace.probes.tls import PROGRAMS, TlsProbes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apitrace.exchange import Container
    from apitrace.targets.target import TargetSet


_HOOKS = {
    "sock_length": (
        Attachment("sock_send_length", "on_send_length"),
        Attachment("sock_recv_length", "on_recv_length"),
    ),
    "sys_exit": (Attachment("sys_exit", "on_sys_exit"),),
}
_ALWAYS = (
    Attachment("inet_sock_set_state", "on_tcp_state"),
    Attachment("sched_process_fork", "on_fork"),
    Attachment("sched_process_exec", "on_exec"),
    Attachment("sched_process_exit", "on_exit"),
)
_CLOSE = Attachment("sys_enter", "on_sys_enter")
_BIRTHS = Attachment("page_fault_user", "on_page_fault")
_BIRTHS_ELSEWHERE = Attachment("sys_exit", "on_page_fault")
"""Where the architecture has no such tracepoint: the child's return from fork is its first of these."""
_BY_NAME = b"\1"
_BY_CGROUP = b"\2"
_YES = b"\1"
_PID = struct.Struct("=I")
_FIRST = struct.pack("=I", 0)
"""The key of an array's first entry."""
_U16 = struct.Struct("=H")
_PRIORITY = -10
"""Of nice(2)."""
_BATCH = 8192
"""Records taken at once, so that a full ring buffer is not copied whole before any of it is decoded: some 4 MB."""
_FAMILY_AT = events.HEAD.size + 36  # socket_event.family


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What narrows any target, decided in the kernel."""

    ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    """IP addresses."""


class LiveSource:
    """Events of the targets, from now on."""

    def __init__(
        self,
        targets: TargetSet,
        narrowing: Narrowing,
        describe: Callable[[int], tuple[str, str | None, Container | None] | None],
        *,
        hook: str | None = None,
        ring_bytes: int = 32 << 20,
        named: Callable[[], Iterable[int]] | None = None,
        members: Callable[[], Iterable[int]] = tuple,
        libraries: Libraries | None = None,
        commanded: bool = False,
        unix_listeners: Callable[[Iterable[int]], bool] = lambda _: False,
    ) -> None:
        """Prepare; nothing is loaded yet.

        `describe(pid)` says (comm, exe, container), or None if the process is gone. `named()` and `members()` read
        again which processes the targets' pids and names stand for, and which the cgroups hold. `unix_listeners(pids)`
        says whether one of these listens on an AF_UNIX socket. `libraries` finds TLS in processes. `commanded`: the
        targets are a command of ours, so all of them may be stopped while probes are placed.
        """
        self._targets = targets
        self._narrowing = narrowing
        self._describe = describe
        self._hook = hook
        self._ring_bytes = ring_bytes
        self._named = named or (lambda: targets.pids)
        self._members = members
        self._unix_listeners = unix_listeners
        self._libraries = libraries or Libraries()
        self._commanded = commanded
        self._tls: TlsProbes | None = None
        self._stops: Stops | None = None
        self._sockets: dict[int, int] = {}
        """Connection -> inode of its socket, in processes in which BIO_write is probed."""
        self._old_sockets: dict[int, set[int]] = {}
        """Process -> inodes of those of its sockets that may carry TLS sessions from before the capture. Of TCP: event
        loops have a pair of AF_UNIX sockets for themselves, and TLS on such is rare."""
        self._looked = 0
        self._born_watched = False
        self._news: list[bytes] = []
        self._raw: list[bytes] = []
        self._known: set[bytes] = set()
        self._closes_watched = False
        self._kernel: Kernel | None = None
        self._last_counters: tuple[int, ...] = ()

    def start(self) -> None:
        """Load and attach.

        Raises PlatformError, or TargetError if every target ended before the probes were in place.
        """
        btf = Btf.of_kernel()
        hook = self._hook or ("sock_length" if btf.has_tracepoint("sock_send_length") else "sys_exit")
        if hook == "sock_length" and not btf.has_tracepoint("sock_send_length"):
            message = "this kernel has no sock_send_length tracepoint (Linux 6.3 and newer have): leave --hook out"
            raise PlatformError(message)
        targets = self._targets
        stop = 0 if targets.everything else 2 if self._commanded else 1
        switches = {"FOLLOW": int(targets.follow), "STOP": stop}
        plan = _HOOKS[hook] + _ALWAYS
        self._births = _BIRTHS if btf.has_tracepoint(_BIRTHS.tracepoint) else _BIRTHS_ELSEWHERE
        births = () if targets.everything else (self._births.program,)
        if hook == "sys_exit":
            switches["HOOK_SYS_EXIT"] = 1
        if targets.everything:
            switches["TARGET_ALL"] = 1
        if targets.cgroups:
            switches["TARGET_CGROUPS"] = 1
            hierarchies = 0
            for cgroup in targets.cgroups:
                hierarchies |= 1 << cgroup.hierarchy
            switches["CGROUP_HIERARCHIES"] = hierarchies
            plan += (Attachment("cgroup_attach_task", "on_cgroup_attach_task"),)
        if targets.comms:
            switches["TARGET_COMMS"] = 1
            plan += (Attachment("task_rename", "on_task_rename"),)
        if self._narrowing.ports:
            switches["FILTER_PORTS"] = 1
        if self._narrowing.hosts:
            switches["FILTER_HOSTS"] = 1
        programs = (*(row.program for row in (*plan, _CLOSE)), *births)
        self._kernel = load(Settings(switches, programs, PROGRAMS, self._ring_bytes), btf)
        self._stops = Stops(self._kernel)
        self._tls = TlsProbes(self._kernel, self._libraries, everything=targets.everything)
        self._fill_filters()
        self._kernel.open_ring(self._on_record)
        for row in plan:
            self._kernel.attach(row.tracepoint, row.program)
        named, members = tuple(self._named()), tuple(self._members())
        self.add(named, by_cgroup=False)
        self.add(set(members) - set(named), by_cgroup=True)
        # What ended between being found and being added has sent no exit event: its entry would stay.
        for pid in (*named, *members):
            if not Path(f"/proc/{pid}").exists():
                self._kernel.delete("targets", _PID.pack(pid))
        if targets.pids and not self.has_targets and not (targets.cgroups or targets.comms or targets.everything):
            message = f"{targets.description or 'the target'} ended before the probes were in place"
            raise TargetError(message)
        if self._unix_listeners(self.target_pids()):
            self._watch_closes()
        for pid in procfs.pids() if targets.everything else self.target_pids():
            self._look(pid)
        # The reader must run while the targets keep every core busy: measured, 4 of 6 runs at nice 0 lost events that
        # none lost at -10.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)

    def _loaded(self) -> Kernel:
        if self._kernel is None:
            message = "the source has not been started"
            raise RuntimeError(message)
        return self._kernel

    def _fill_filters(self) -> None:
        kernel = self._loaded()
        if self._targets.everything:
            kernel.update("self", _FIRST, _PID.pack(os.getpid()))
        for cgroup in self._targets.cgroups:
            kernel.update("cgroups", struct.pack("=QQ", cgroup.inode, cgroup.hierarchy), _YES)
        for comm in self._targets.comms:
            kernel.update("comms", os.fsencode(comm)[:15].ljust(16, b"\0"), _YES)
        for port in self._narrowing.ports:
            kernel.update("ports", struct.pack("=H", port), _YES)
        for host in self._narrowing.hosts:
            kernel.update("hosts", _mapped(host), _YES)

    def add(self, pids: Iterable[int], *, by_cgroup: bool = False) -> None:
        """Make processes targets."""
        if not self._targets.everything:
            for pid in pids:
                self._loaded().update("targets", _PID.pack(pid), _BY_CGROUP if by_cgroup else _BY_NAME)

    def target_pids(self) -> list[int]:
        """Return the processes that are targets now (none are listed with --all)."""
        if self._targets.everything:
            return []
        return [_PID.unpack(key)[0] for key in self._loaded().keys("targets", _PID.size)]

    @property
    def has_targets(self) -> bool:
        """Whether a target is alive, or may yet appear."""
        targets = self._targets
        return bool(
            targets.everything
            or targets.comms
            or any(Path(cgroup.path).exists() for cgroup in targets.cgroups)
            or self.target_pids()
        )

    # -- TLS ---------------------------------------------------------------------------------------------------------

    def _look(self, pid: int, *, fresh: bool = False) -> None:
        """Place the TLS probes that a process lacks; tell what is new of it."""
        assert self._tls is not None  # noqa: S101 - for the type checker: it has been started
        found = self._tls.look(pid, fresh=fresh)
        if found is None:
            return
        if found.probed and self._targets.follow and not self._targets.everything and not self._born_watched:
            self._born_watched = True
            self._loaded().attach(self._births.tracepoint, self._births.program)
        if self._tls.watches_bio(pid) and pid not in self._old_sockets:
            self._old_sockets[pid] = procfs.tcp_connections(pid)
        placed = events.ProbesPlaced(
            time.monotonic_ns(), pid, tuple(found.libraries.items()), found.unreadable, found.probed
        )
        self._news.append(events.encode_probes(placed))

    def _tend(self, record: bytes, kind: int, pid: int) -> None:
        """See to the TLS probes of a process that has begun, exec'd, mapped a library or ended."""
        assert self._tls is not None  # noqa: S101 - as above
        if kind == events.EXIT:
            self._tls.forget(pid)
            self._old_sockets.pop(pid, None)
            return
        if kind == events.EXEC:
            self._tls.forget(pid)
        self._look(pid, fresh=kind in _BEGINNINGS or self._tls.is_fresh(pid))
        if record[1] & events.FLAG_STOPPED and self._stops is not None:
            self._stops.release(pid, events.HEAD.unpack_from(record)[6])

    def _tend_bio(self, record: bytes, kind: int, pid: int) -> None:
        """Probe BIO_write for as long as there may be sessions whose handshake was not seen, and no longer."""
        tls = self._tls
        assert tls is not None  # noqa: S101 - as above
        if kind == events.SOCKET:
            seen = events.decode(record)
            if isinstance(seen, events.SocketSeen) and pid in self._old_sockets:
                self._sockets[seen.conn] = seen.inode
            return
        session = events.decode(record)
        if not isinstance(session, events.SessionSeen):
            return
        if session.conn and not session.by_bytes:
            tls.leave_bio(pid)  # its sessions are tied by its own socket calls
            self._old_sockets.pop(pid, None)
        elif session.conn:
            self._old_sockets.get(pid, set()).discard(self._sockets.pop(session.conn, 0))
        elif not tls.watches_bio(pid) and not self._targets.everything:
            tls.watch_bio(pid)
            self._old_sockets[pid] = procfs.tcp_connections(pid)

    def _review_bio(self) -> None:
        """Leave BIO_write in processes all of whose old sockets are known or gone."""
        for pid, inodes in list(self._old_sockets.items()):
            inodes.intersection_update(procfs.socket_inodes(pid))
            if not inodes and self._tls is not None:
                self._tls.leave_bio(pid)
                del self._old_sockets[pid]

    @property
    def tls(self) -> TlsProbes:
        """The TLS probes, to be asked what is in place."""
        assert self._tls is not None  # noqa: S101 - as above
        return self._tls

    def _watch_closes(self) -> None:
        if not self._closes_watched:
            self._closes_watched = True
            self._loaded().attach(_CLOSE.tracepoint, _CLOSE.program)

    # -- hot: once per event --------------------------------------------------------------------------------------

    def _on_record(self, _context: int | None, address: int, size: int) -> int:
        """Copy a record out of the ring buffer: all of a small one, of a large one what it says it uses."""
        if size > 1024:
            used = events.CHUNK_SIZE + ctypes.c_uint32.from_address(address + 12).value
            size = min(size, used)
        raw = self._raw
        raw.append(ctypes.string_at(address, size))
        return -1 if len(raw) >= _BATCH else 0  # libbpf stops behind this record

    def poll(self, timeout_ms: int) -> list[bytes]:
        """Return the raw events of the last `timeout_ms` at most, in order. Raises PlatformError, once, if lost."""
        kernel = self._loaded()
        kernel.uprobes.check()
        kernel.poll(timeout_ms)
        raw, self._raw = self._raw, []
        known = self._known
        out: list[bytes] = []
        add = out.append
        for record in raw:
            pid = record[4:8]
            kind = record[0]
            if pid not in known or kind in _RARE:
                self._introduce(record, kind, pid, out)
            add(record)
        now = time.monotonic_ns()
        if now - self._looked > _REVIEW_NS:
            self._looked = now
            self._review_bio()
            if self._tls is not None:
                self._tls.review()
        if self._news:
            out[:0] = self._news
            self._news.clear()
        return out

    # -- rare: once per process or socket ---------------------------------------------------------------------------

    def _introduce(self, record: bytes, kind: int, raw_pid: bytes, out: list[bytes]) -> None:
        """Say who a process is before its first event, and again after exec."""
        pid = _PID.unpack(raw_pid)[0]
        if kind in _TENDED:
            self._tend(record, kind, pid)
        elif kind in (events.SOCKET, events.SESSION):
            self._tend_bio(record, kind, pid)
        if kind == events.EXIT:
            self._known.discard(raw_pid)
            return
        if kind == events.SOCKET and _U16.unpack_from(record, _FAMILY_AT)[0] == socket.AF_UNIX:
            self._watch_closes()
        if raw_pid in self._known and kind != events.EXEC:
            return
        if kind in _NAMELESS:
            return
        if kind in (events.SOCKET, events.CHUNK) and not self._targets.everything:
            self._look(pid)  # it has become a target without fork or exec: by a move into a cgroup, or a name
        self._known.add(raw_pid)
        described = self._describe(pid) or self._described_by(record, kind)
        at = events.HEAD.unpack_from(record)[6]
        if described is not None:
            out.append(events.encode_process(events.ProcessSeen(at, pid, *described)))

    def _described_by(self, record: bytes, kind: int) -> tuple[str, str | None, Container | None] | None:
        """Say what an event tells of a process that is gone already, if its container is known all the same."""
        container = self._targets.container
        event = events.decode(record) if container is not None and kind in (events.EXEC, events.SOCKET) else None
        if isinstance(event, events.Executed):
            return event.comm, event.filename if event.filename.startswith("/") else None, container
        if isinstance(event, events.SocketSeen):
            return event.comm, None, container
        return None

    def now(self) -> int:
        """Return the present time on the events' clock (CLOCK_MONOTONIC)."""
        return time.monotonic_ns()

    def verdict(self, conn: int, value: int) -> None:
        """Tell the programs about a connection: 1 to leave it alone, 2 to copy it whole."""
        self._loaded().update("verdicts", struct.pack("=Q", conn), bytes([value]))

    def counters(self) -> bytes | None:
        """Return the programs' counters as a raw event, or None if nothing has changed."""
        values = self._loaded().sums("counters", len(events.COUNTER_NAMES))
        if values == self._last_counters:
            return None
        self._last_counters = values
        return events.encode_counters(events.Counters(time.monotonic_ns(), values))

    def stop(self) -> None:
        """Detach. What is in the ring buffer can still be polled."""
        if self._kernel is not None:
            self._kernel.detach(returns_under_way=self._tls is not None and self._tls.call_under_way())
        if self._stops is not None:
            self._stops.close()

    def close(self) -> None:
        """Detach, and free what the kernel holds for the capture: that is the end of it."""
        self.stop()
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = self._tls = None


_RARE = frozenset({events.SOCKET, events.EXEC, events.EXIT, events.SESSION, events.LOADED, events.BORN})
_TENDED = frozenset({events.EXEC, events.EXIT, events.LOADED, events.BORN})
_NAMELESS = frozenset({events.STATE, events.FORK, events.LOADED, events.BORN})
"""Events of which the name of their process is not told; it may yet get another one before it is."""
_BEGINNINGS = frozenset({events.EXEC, events.BORN})
_REVIEW_NS = 1_000_000_000


def _mapped(host: str) -> bytes:
    """Return an address as the programs compare it: IPv4 in its IPv6-mapped form."""
    address = ipaddress.ip_address(host)
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed
