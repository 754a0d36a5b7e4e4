"""What /proc says of processes, of their cgroups and of the sockets they listen on.

A process can end while it is read. So no function here raises for that, nor for one that may not be read: what is not
there is None, or missing from the result. `root` is where the host's / is seen; the tests give recorded trees. Text
that is not UTF-8 is shown with backslash escapes, as in the kernel's own events (events.py), so that it can always be
printed and written as JSON; names are compared as bytes, before that.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")

COMM_LEN = 15
"""Bytes of a process's name that the kernel keeps (TASK_COMM_LEN less the NUL, include/linux/sched.h)."""

_DELETED = " (deleted)"
"""What the kernel appends to a link whose file was unlinked: a program replaced by an upgrade while it runs."""

_LISTENS = 1 << 16
"""__SO_ACCEPTCON in the Flags column of /proc/net/unix (include/uapi/linux/net.h)."""

_OCTAL = re.compile(r"\\([0-7]{3})")
"""How mountinfo spells blanks and backslashes in a path (proc(5))."""


class Stat(NamedTuple):
    """The few fields of /proc/PID/stat that are needed here."""

    state: str
    """One letter; "Z" for a process that has ended and was not waited for."""
    ppid: int
    start_ticks: int
    """When it started, in clock ticks since boot: with the pid, an identity that is never used twice."""


class Membership(NamedTuple):
    """A line of /proc/PID/cgroup: where a process is in one hierarchy."""

    hierarchy: int
    """0 for v2."""
    controllers: tuple[str, ...]
    """Of v1: ("cpu", "cpuacct"), or ("name=systemd",); empty for v2."""
    path: str


class Hierarchy(NamedTuple):
    """A cgroup hierarchy that is mounted."""

    number: int
    controllers: tuple[str, ...]
    directory: str
    """Where it is mounted, seen through `root`."""
    top: str
    """Which of its cgroups is mounted there: "/", unless this is a container's own view."""

    def directory_of(self, path: str) -> str | None:
        """Return the directory of a cgroup, given its path as in /proc/PID/cgroup; None if it is outside the mount.

        Both paths begin with "/.." for what is above the cgroup namespace of the reader (cgroup_namespaces(7)).
        """
        top = self.top.rstrip("/")
        below = path[len(top) :]
        if not f"{path}/".startswith(f"{top}/") or ".." in below.split("/"):
            return None
        return self.directory + below.rstrip("/")



def _path(root: Path, *parts: object) -> Path:
    return root.joinpath("proc", *map(str, parts))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


def _numbers(directory: Path) -> list[int]:
    """Return the directory's entries that are numbers: ids of processes, threads, descriptors."""
    with contextlib.suppress(OSError):
        return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())
    return []


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


# -- processes ------------------------------------------------------------------------------------------------------


def pids(*, root: Path = ROOT) -> list[int]:
    """Return the processes there are."""
    return _numbers(_path(root))


def own_pid(*, root: Path = ROOT) -> int | None:
    """Return this process's pid, as this /proc numbers it."""
    link = _read_link(_path(root, "self"))
    return int(link) if link is not None else None


def stat(pid: int, *, root: Path = ROOT) -> Stat | None:
    """Return state, parent and start time."""
    raw = _read(_path(root, pid, "stat"))
    if not raw:
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()  # the name before may itself hold blanks and parentheses
    return Stat(fields[0].decode("ascii"), int(fields[1]), int(fields[19]))


def process_of(tid: int, *, root: Path = ROOT) -> int | None:
    """Return the process that a thread belongs to: itself for a process. Threads are not listed, but can be read."""
    for line in (_read(_path(root, tid, "status")) or b"").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line[5:])
    return None


def threads(pid: int, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the ids of a process's threads."""
    return tuple(_numbers(_path(root, pid, "task")))


def _comm(pid: int, root: Path) -> bytes | None:
    raw = _read(_path(root, pid, "comm"))
    return None if raw is None else raw.removesuffix(b"\n")


def comm(pid: int, *, root: Path = ROOT) -> str | None:
    """Return the name that the kernel keeps."""
    raw = _comm(pid, root)
    return None if raw is None else _text(raw)


def exe(pid: int, *, root: Path = ROOT) -> str | None:
    """Return the program's path: in a container as the container sees it. None for a kernel thread."""
    link = _read_link(_path(root, pid, "exe"))
    return None if link is None else _text(os.fsencode(link.removesuffix(_DELETED)))


def may_look_into(pid: int, *, root: Path = ROOT) -> bool:
    """Return whether this process may see what that one has mapped and open (ptrace(2), access mode checking)."""
    try:
        with _path(root, pid, "maps").open("rb"):
            return True
    except OSError:
        return False


def cmdline(pid: int, *, root: Path = ROOT) -> tuple[str, ...] | None:
    """Return the arguments; none for a kernel thread."""
    raw = _read(_path(root, pid, "cmdline"))
    return None if raw is None else tuple(map(_text, raw.split(b"\0")[:-1]))


def named(name: str, *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the processes with this name, of which only the first 15 bytes count."""
    wanted = os.fsencode(name)[:COMM_LEN]
    return tuple(pid for pid in pids(root=root) if _comm(pid, root) == wanted)


def children(*, root: Path = ROOT) -> dict[int, list[int]]:
    """Return the children of every process that has some.

    From every process's own word on its parent: /proc/PID/task/TID/children leaves some out unless all are stopped
    (proc(5)), and needs CONFIG_PROC_CHILDREN.
    """
    found: dict[int, list[int]] = defaultdict(list)
    for pid in pids(root=root):
        if (seen := stat(pid, root=root)) is not None:
            found[seen.ppid].append(pid)
    return dict(found)


def descendants(ancestors: Iterable[int], *, root: Path = ROOT) -> tuple[int, ...]:
    """Return the children of these processes, their children, and so on; without the processes themselves."""
    tree = children(root=root)
    ancestors = set(ancestors)
    found: set[int] = set()
    todo = list(ancestors)
    while todo:
        more = [pid for pid in tree.get(todo.pop(), ()) if pid not in found]
        found.update(more)
        todo += more
    return tuple(sorted(found - ancestors))


def pid_namespace(pid: int | str, *, root: Path = ROOT) -> str | None:
    """Return what tells a process's PID namespace from others; of our own for "self"."""
    return _read_link(_path(root, pid, "ns", "pid"))


# -- cgroups --------------------------------------------------------------------------------------------------------


def cgroups(pid: int | str, *, root: Path = ROOT) -> tuple[Membership, ...]:
    """Return where a process is, in each hierarchy."""
    found = []
    for line in (_read(_path(root, pid, "cgroup")) or b"").splitlines():
        number, controllers, path = os.fsdecode(line).split(":", 2)
        found.append(Membership(int(number), tuple(filter(None, controllers.split(","))), path))
    return tuple(found)


def _cgroup_mounts(root: Path) -> Iterator[tuple[frozenset[str], str, str]]:
    """Yield (controllers among other options, directory, mounted cgroup) of each mount; no options for v2."""
    for line in (_read(_path(root, "self", "mountinfo")) or b"").splitlines():
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue   (proc(5))
        fields, _, rest = os.fsdecode(line).partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        top, directory = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), path) for path in fields.split(" ")[3:5])
        v1 = frozenset(options.split(",")) if kind == "cgroup" else frozenset()
        yield v1, str(root / directory.lstrip("/")), top


def hierarchies(*, root: Path = ROOT) -> tuple[Hierarchy, ...]:
    """Return the hierarchies that are mounted, v2 first; of one mounted twice the view that shows most.

    v1, v2 and both side by side ("hybrid": v2 mounted below the v1 mounts, without controllers) are all in use.
    """
    mounts = list(_cgroup_mounts(root))
    found = []
    for number, controllers, _ in cgroups("self", root=root):
        views = [
            Hierarchy(number, controllers, directory, top)
            for options, directory, top in mounts
            if bool(options) == bool(controllers) and options.issuperset(controllers)
        ]
        if views:
            found.append(min(views, key=lambda view: len(view.top.rstrip("/"))))
    return tuple(sorted(found))


# -- AF_UNIX --------------------------------------------------------------------------------------------------------


def socket_inodes(pid: int, *, root: Path = ROOT) -> set[int]:
    """Return the inodes of the sockets that a process has open."""
    directory = _path(root, pid, "fd")
    links = (_read_link(directory / str(number)) or "" for number in _numbers(directory))
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def any_listens_on_unix(processes: Iterable[int], *, root: Path = ROOT) -> bool:
    """Return whether one of these processes listens on an AF_UNIX socket."""
    listening: dict[str, set[int]] = {}  # by network namespace, whose list is read once
    for pid in processes:
        namespace = _read_link(_path(root, pid, "ns", "net"))
        if namespace is None:
            continue
        if namespace not in listening:
            rows = (line.split() for line in (_read(_path(root, pid, "net", "unix")) or b"").splitlines()[1:])
            # Num RefCount Protocol Flags Type St Inode [Path]
            listening[namespace] = {int(row[6]) for row in rows if int(row[3], 16) & _LISTENS}
        if listening[namespace] and not listening[namespace].isdisjoint(socket_inodes(pid, root=root)):
            return True
    return False


# -- TCP ------------------------------------------------------------------------------------------------------------

_TCP_LISTEN = "0A"
"""TCP_LISTEN in the st column of /proc/net/tcp (include/net/tcp_states.h)."""


class Listener(NamedTuple):
    """A TCP socket that a process accepts connections on."""

    ip: str
    """"0.0.0.0" or "::" for every address."""
    port: int


def _address(spelled: str) -> Listener:
    """Return "0100007F:1F90" as 127.0.0.1, 8080: words of 32 bits in the machine's order, then the port."""
    words, port = spelled.split(":")
    raw = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8)
    )
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return Listener(str(mapped or address), int(port, 16))


def _tcp_rows(pid: int, root: Path) -> Iterator[list[str]]:
    """Yield the columns of each TCP socket in a process's network namespace: local address 1, state 3, inode 9."""
    for table in ("tcp", "tcp6"):
        for line in (_read(_path(root, pid, "net", table)) or b"").decode("ascii", "replace").splitlines()[1:]:
            fields = line.split()
            # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
            if len(fields) > 9:
                yield fields


def _listening(pid: int, root: Path) -> dict[int, Listener]:
    """Return the listening sockets of a process's network namespace, by inode."""
    return {int(row[9]): _address(row[1]) for row in _tcp_rows(pid, root) if row[3] == _TCP_LISTEN}


def tcp_connections(pid: int, *, root: Path = ROOT) -> set[int]:
    """Return the inodes of the TCP sockets that a process has open, without those that listen."""
    inodes = {int(row[9]) for row in _tcp_rows(pid, root) if row[3] != _TCP_LISTEN}
    return inodes & socket_inodes(pid, root=root)


def tcp_listeners(processes: Iterable[int], *, root: Path = ROOT) -> dict[int, tuple[Listener, ...]]:
    """Return the TCP sockets that these processes listen on, by process; those that may not be read are left out."""
    namespaces: dict[str, dict[int, Listener]] = {}  # whose tables are read once
    found = {}
    for pid in processes:
        namespace = _read_link(_path(root, pid, "ns", "net"))
        if namespace is None:
            continue
        if namespace not in namespaces:
            namespaces[namespace] = _listening(pid, root)
        listening = namespaces[namespace]
        held = socket_inodes(pid, root=root) if listening else set()
        found[pid] = tuple(sorted({listening[inode] for inode in held & listening.keys()}, key=lambda one: one[::-1]))
    return found
