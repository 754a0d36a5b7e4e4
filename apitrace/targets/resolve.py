"""The command line's targets to a TargetSet: what exists is looked up now; what may come is the kernel filter's affair.

Everything that was named must be there, but --comm, which waits for it. Each failure is one TargetError that says
what, why and what to do. Containers and pods become cgroups, so that what joins them later is traced too.

Between the looking up and the moment when the kernel's programs watch forks and execs, processes come and go:
`Resolver.named` and `Resolver.members` look again, to be called when the programs are in place.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apitrace.errors import TargetError
from apitrace.exchange import Container
from apitrace.probes import procfs
from apitrace.targets import cgroups
from apitrace.targets.containers import Containers, Found
from apitrace.targets.target import Cgroup, TargetSet

_ID_SHOWN = 12
"""Digits of a container's ID that are shown, as by `docker ps` and `podman ps`."""

def _seen(text: str | None) -> str:
    """Return text that others chose, fit for a message on one line."""
    return "?" if text is None else "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )  # fmt: skip


def _and(words: Sequence[str], last: str = " and ") -> str:
    return ", ".join(words[:-1]) + last + words[-1] if len(words) > 1 else "".join(words)


def _pod(container: Container) -> str:
    return f"{container.namespace}/{container.pod}" if container.namespace else container.pod or ""


def _call(container: Container) -> str:
    """Return how a container is called in messages: "web (3f2a9c01d2aa, docker)"."""
    pod = f"pod {_pod(container)}, " if container.pod else ""
    return _seen(f"{container.name or 'unnamed'} ({container.id[:_ID_SHOWN]}, {pod}{container.runtime})")


@dataclass(slots=True)
class _Targets:
    """A TargetSet in the making."""

    pids: list[int] = field(default_factory=list)
    cgroups: list[Cgroup] = field(default_factory=list)
    comms: list[str] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Resolver:
    """Looks targets up on this host."""

    def __init__(self, containers: Containers, *, root: Path = procfs.ROOT) -> None:
        self._containers = containers
        self._root = root

    def resolve(
        self,
        *,
        pids: Sequence[int] = (),
        comms: Sequence[str] = (),
        containers: Sequence[str] = (),
        pods: Sequence[str] = (),
        cgroups: Sequence[str] = (),
        everything: bool = False,
        follow: bool = True,
    ) -> TargetSet:
        """Return what these options name. Raises TargetError for what is not there, or more than one thing.

        The processes that are in cgroups now are not in `pids`: `members` returns them.
        """
        targets = _Targets()
        for pid in dict.fromkeys(pids):
            self._add_pid(targets, pid, follow=follow)
        for comm in dict.fromkeys(comms):
            self._add_comm(targets, comm, follow=follow)
        for path in dict.fromkeys(cgroups):
            self._add_cgroup(targets, path)
        if containers or pods:
            found = self._containers.all()
            for name in dict.fromkeys(containers):
                self._add_container(targets, name, found)
            for name in dict.fromkeys(pods):
                self._add_pod(targets, name, found)
        only_containers = bool(containers) and not (pids or comms or cgroups or pods or everything)
        if everything:
            targets.said.insert(0, "every process of this host")
        return TargetSet(
            pids=tuple(dict.fromkeys(targets.pids)),
            cgroups=tuple(dict.fromkeys(targets.cgroups)),
            comms=tuple(dict.fromkeys(targets.comms)),
            everything=everything,
            container=targets.containers[0] if only_containers and len(targets.containers) == 1 else None,
            follow=follow,
            description=_and(targets.said),
        )

    def members(self, targets: TargetSet) -> tuple[int, ...]:
        """Return the processes that are in the targets' cgroups now."""
        return self._others(cgroups.members(targets.cgroups, root=self._root))

    def named(self, targets: TargetSet) -> tuple[int, ...]:
        """Return the processes that are targets now for another reason than a cgroup; descendants too, if followed."""
        alive = [pid for pid in targets.pids if procfs.stat(pid, root=self._root) is not None]
        alive += [pid for comm in targets.comms for pid in self._named(comm)]
        return tuple(dict.fromkeys((*alive, *self._below(alive, follow=targets.follow))))

    def _others(self, pids: Iterable[int]) -> tuple[int, ...]:
        """Return all but this process: it is traced only if its number is given."""
        own = procfs.own_pid(root=self._root)
        return tuple(pid for pid in pids if pid != own)

    def _named(self, comm: str) -> tuple[int, ...]:
        return self._others(procfs.named(comm, root=self._root))

    def _below(self, pids: Sequence[int], *, follow: bool) -> tuple[int, ...]:
        return self._others(procfs.descendants(pids, root=self._root)) if follow and pids else ()

    # -- processes ----------------------------------------------------------------------------------------------------

    def _add_pid(self, targets: _Targets, pid: int, *, follow: bool) -> None:
        seen = procfs.stat(pid, root=self._root)
        comm = _seen(procfs.comm(pid, root=self._root))
        owner = procfs.process_of(pid, root=self._root)
        problem = None
        if seen is None or owner is None:
            problem = f"no process has the id {pid}: it may have ended; --comm NAME waits for one by its name"
        elif owner != pid:
            process = _seen(procfs.comm(owner, root=self._root))
            problem = f"{pid} is a thread of process {owner} ({process}), and processes are traced: use --pid {owner}"
        elif seen.state == "Z":
            problem = f"process {pid} ({comm}) has ended, and only waits for its parent {seen.ppid} to take note"
        if problem:
            raise TargetError(problem)
        below = self._below([pid], follow=follow)
        targets.pids += [pid, *below]
        children = f" and {len(below)} below it" if below else ""
        targets.said.append(f"pid {pid} ({comm}){children}")

    def _add_comm(self, targets: _Targets, name: str, *, follow: bool) -> None:
        # As the kernel cuts it. Half a character at the end is kept as it is, to be the same bytes again.
        kept = os.fsdecode(os.fsencode(name)[: procfs.COMM_LEN])
        present = self._named(kept)
        targets.pids += [*present, *self._below(present, follow=follow)]
        targets.comms.append(kept)
        cut = "" if kept == name else f", as the kernel cuts {_seen(name)!r} to {procfs.COMM_LEN} bytes"
        number = f"{len(present)} now" if present else "none yet"
        targets.said.append(f"processes named {_seen(kept)} ({number}{cut})")

    # -- cgroups ------------------------------------------------------------------------------------------------------

    def _add_cgroup(self, targets: _Targets, path: str) -> None:
        cgroup = cgroups.resolve(path, root=self._root)
        targets.cgroups.append(cgroup)
        targets.said.append(f"cgroup {_seen(cgroup.path)}")

    # -- containers ---------------------------------------------------------------------------------------------------

    def _add_container(self, targets: _Targets, name: str, known: Sequence[Found]) -> None:
        found = self._one(name, known)
        if not found.running:
            message = f"container {_call(found.container)} is not running ({_seen(found.state)}): start it first"
            raise TargetError(message)
        alone = self._enter(targets, found, pod=False)
        targets.containers.append(found.container)
        targets.said.append(f"container {_call(found.container)}{alone}")

    def _one(self, name: str, known: Sequence[Found]) -> Found:
        """Return the container of this name, else of this ID, else the one whose ID begins so."""
        candidates = (
            [one for one in known if name in one.names]
            or [one for one in known if name == one.container.id]
            or [one for one in known if name and one.container.id.startswith(name)]
        )
        # Kubernetes keeps the predecessors of a container that it has restarted.
        candidates = [one for one in candidates if one.running] or candidates
        if not candidates:
            raise TargetError(self._unknown("container", name, [word for one in known for word in one.names]))
        if len(candidates) > 1:
            listed = _and([_call(one.container) for one in candidates])
            message = f"{name!r} may be any of {len(candidates)} containers: {listed}; name it by its ID"
            raise TargetError(message)
        return candidates[0]

    def _add_pod(self, targets: _Targets, name: str, known: Sequence[Found]) -> None:
        namespace, _, pod = name.rpartition("/")
        found = [
            one for one in known
            if one.container.pod == pod and (not namespace or one.container.namespace == namespace)
        ]  # fmt: skip
        if not found:
            names = [(_pod(one.container) if namespace else one.container.pod) or "" for one in known]
            raise TargetError(self._unknown("pod", name, names))
        namespaces = sorted({one.container.namespace or "" for one in found})
        if len(namespaces) > 1:
            listed = _and(sorted({_seen(_pod(one.container)) for one in found}), " or ")
            message = f"pods of {len(namespaces)} namespaces are called {name!r}: say {listed}"
            raise TargetError(message)
        running = [one for one in found if one.running]
        if not running:
            message = f"no container of pod {name!r} is running ({_seen(found[0].state)}): start it first"
            raise TargetError(message)
        alone = {self._enter(targets, one, pod=True) for one in running}
        containers = f"{len(running)} container{'s' if len(running) > 1 else ''}"
        targets.said.append(f"pod {_seen(_pod(running[0].container))} ({containers}){''.join(sorted(alone))}")

    def _enter(self, targets: _Targets, found: Found, *, pod: bool) -> str:
        """Take a container in by its cgroup or, `pod`, by that of its pod. Return what the user should know of it."""
        pid = found.pid()
        if pid is None or procfs.stat(pid, root=self._root) is None:
            message = f"container {_call(found.container)} has just ended: start it first"
            raise TargetError(message)
        cgroup = cgroups.of_container(pid, found.container.id, root=self._root)
        if cgroup is not None:
            targets.cgroups.append(cgroups.of_pod(cgroup) if pod else cgroup)
            return ""
        # Podman's --cgroups=disabled: what tells its processes from others is the PID namespace, if it has one.
        own = procfs.pid_namespace(pid, root=self._root)
        shared = own is None or own == procfs.pid_namespace("self", root=self._root)
        targets.pids += [pid, *procfs.descendants([pid], root=self._root)]
        if not shared:
            everyone = procfs.pids(root=self._root)
            targets.pids += [one for one in everyone if procfs.pid_namespace(one, root=self._root) == own]
        return ", which has no cgroup of its own: what is exec'd into it later is not seen"

    def _unknown(self, kind: str, name: str, names: Iterable[str]) -> str:
        """Return the message for a name that nobody knows."""
        near = difflib.get_close_matches(name, sorted(set(names)), n=3)
        offer = f"; did you mean {_and([repr(_seen(one)) for one in near], ' or ')}?" if near else ""
        asked = _and(list(dict.fromkeys(self._containers.asked)))
        answered = f"asked {asked}" if asked else "no container runtime answers"
        silent = "".join(f"; {runtime}: {_seen(why)}" for runtime, why in self._containers.silent.items())
        prefix = ", nor has an ID that begins so" if kind == "container" else ""
        return f"no {kind} is called {name!r}{prefix}{offer} ({answered}{silent})"
