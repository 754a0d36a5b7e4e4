"""The outcome of resolving the target options: what the kernel's filter is told.

A TargetSet is a value. Its members add up: a process is traced if it is one of `pids`, or runs in one of
`cgroups`, or has (or gets, at exec or rename) one of `comms`, or if `everything` is set. Children of traced
processes are traced too where `follow` is set.
"""

from __future__ import annotations

from dataclasses import dataclass

from apitrace.exchange import Container


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup directory, v2 or v1."""

    path: str
    """Absolute path of the directory."""
    hierarchy: int
    """As in the first column of /proc/PID/cgroup: 0 for v2."""
    inode: int
    """st_ino of the directory, which is the kernel's cgroup id (kernfs node id) on 64-bit systems."""


@dataclass(frozen=True, slots=True)
class TargetSet:
    """What to trace."""

    pids: tuple[int, ...] = ()
    cgroups: tuple[Cgroup, ...] = ()
    comms: tuple[str, ...] = ()
    """At most 15 bytes each, as the kernel keeps them."""
    everything: bool = False
    follow: bool = True
    container: Container | None = None
    """The one container that every target runs in, if there is such a one."""
    description: str = ""
    """For the banner: "pid 4121 (nginx)", "container web (3f2a9c01d2aa, docker)"."""
