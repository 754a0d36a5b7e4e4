"""cgroups as targets: a path of any spelling to a Cgroup, a container to its own Cgroup, a Cgroup to its processes.

The kernel's filter compares a process's cgroup, and those above it, with the targets' ids in one hierarchy each. So
each target is put in one hierarchy: v2 where the target has a cgroup of its own there, else one of v1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from apitrace.errors import TargetError
from apitrace.probes import procfs
from apitrace.targets.target import Cgroup

_PREFERRED = ((), ("pids",), ("memory",), ("name=systemd",))
"""Hierarchies in the order in which they are tried, then all others: v2; of v1 those that container runtimes and
systemd always put their processes into. freezer, net_cls and such are more often left alone."""

_POD = re.compile(r"(?:^|-)pod[0-9a-f]{8}[0-9a-f_-]{24,28}(?:\.slice)?$")
"""The name of a pod's cgroup: pod<uid> by kubelet's cgroupfs driver, kubepods-burstable-pod<uid, "_" for "-">.slice by
its systemd driver. A static pod's uid has no dashes (kubernetes: pkg/kubelet/cm/pod_container_manager_linux.go)."""


def _by_preference(root: Path) -> list[procfs.Hierarchy]:
    def rank(hierarchy: procfs.Hierarchy) -> tuple[int, int]:
        preferred = hierarchy.controllers in _PREFERRED
        return (_PREFERRED.index(hierarchy.controllers) if preferred else len(_PREFERRED), hierarchy.number)

    return sorted(procfs.hierarchies(root=root), key=rank)


def _cgroup(directory: str, hierarchy: procfs.Hierarchy) -> Cgroup | None:
    try:
        (Path(directory) / "cgroup.procs").stat()  # every cgroup's directory has it; directories around them have not
        return Cgroup(directory, hierarchy.number, Path(directory).stat().st_ino)
    except OSError:
        return None


def resolve(path: str, *, root: Path = procfs.ROOT) -> Cgroup:
    """Return the cgroup at this path: its directory, or the path that /proc/PID/cgroup and systemd-cgls show.

    Such a path may be in several hierarchies. Then it means the first that has processes in it. Raises TargetError.
    """
    hierarchies = _by_preference(root)
    problem = None
    if not path:  # a variable that is not set, most likely: it must not mean the root, which is the whole host
        problem = "the cgroup's path is empty: name one as /proc/PID/cgroup does"
    elif not hierarchies:
        problem = f"cannot trace cgroup {path!r}: no cgroup hierarchy is mounted; mount one at /sys/fs/cgroup"
    if problem:
        raise TargetError(problem)
    real = os.path.realpath(path)
    for hierarchy in hierarchies:
        inside = Path(real).is_relative_to(hierarchy.directory)
        if inside and (cgroup := _cgroup(real, hierarchy)) is not None:
            return cgroup
    spelled = os.path.normpath("/" + path.lstrip("/"))
    directories = ((hierarchy, hierarchy.directory_of(spelled)) for hierarchy in hierarchies)
    found = [
        cgroup
        for hierarchy, directory in directories
        if directory is not None and (cgroup := _cgroup(directory, hierarchy)) is not None
    ]
    if not found:
        raise TargetError(_why_none(path, hierarchies))
    return next((cgroup for cgroup in found if members((cgroup,), root=root)), found[0])


def _why_none(path: str, hierarchies: list[procfs.Hierarchy]) -> str:
    place = os.path.commonpath([hierarchy.directory for hierarchy in hierarchies])
    problem = "is no cgroup, though it exists" if Path(path).exists() else "is no cgroup"
    return f"{path!r} {problem}: name one below {place}, or as /proc/PID/cgroup does"


def of_container(pid: int, container_id: str, *, root: Path = procfs.ROOT) -> Cgroup | None:
    """Return the container's own cgroup, given one of its processes; None if it has none (podman --cgroups=disabled).

    That is the one that bears the ID. The process may be deeper: crun makes a "container" below it, systemd in a
    container makes a tree.
    """
    paths = {place.hierarchy: place.path for place in procfs.cgroups(pid, root=root)}
    bears_id = re.compile(rf"(?<![0-9A-Za-z]){re.escape(container_id)}(?![0-9A-Za-z])").search
    for hierarchy in _by_preference(root):
        parts = paths.get(hierarchy.number, "").split("/")
        depth = max((index for index, part in enumerate(parts) if bears_id(part)), default=0)
        directory = hierarchy.directory_of("/".join(parts[: depth + 1])) if depth else None
        if directory is not None and (cgroup := _cgroup(directory, hierarchy)) is not None:
            return cgroup
    return None


def of_pod(cgroup: Cgroup) -> Cgroup:
    """Return the cgroup of the Kubernetes pod around a container's, which outlives its containers; else this one."""
    parent = Path(cgroup.path).parent
    if _POD.search(parent.name):
        with contextlib.suppress(OSError):
            return Cgroup(str(parent), cgroup.hierarchy, parent.stat().st_ino)
    return cgroup


def _directories(top: Path) -> Iterator[Path]:
    yield top
    for directory, names, _ in os.walk(top):
        yield from (Path(directory, name) for name in names)


def _processes(directory: Path, root: Path) -> Iterator[int | None]:
    try:
        yield from map(int, (directory / "cgroup.procs").read_text().split())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # gone, most likely
            return
        # A threaded cgroup's processes are listed in the domain above it only (cgroups(7), "Threaded mode").
        with contextlib.suppress(OSError):
            tids = (directory / "cgroup.threads").read_text().split()
            yield from (procfs.process_of(int(tid), root=root) for tid in tids)


def members(cgroups: Iterable[Cgroup], *, root: Path = procfs.ROOT) -> tuple[int, ...]:
    """Return the processes that are in these cgroups or below them now. A cgroup that is gone has none."""
    found = {
        pid
        for cgroup in cgroups
        for directory in _directories(Path(cgroup.path))
        for pid in _processes(directory, root)
    }
    return tuple(sorted(pid for pid in found if pid))  # 0: of a PID namespace that cannot be seen from here
