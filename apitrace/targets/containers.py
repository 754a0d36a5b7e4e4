"""Which containers run here, and which of them a process is in: asked of the runtimes themselves.

Every runtime is a row of `_RUNTIMES`: its socket, or the state files that it keeps; its command is never run. Several
may know one container (Docker's are in containerd's state too): the first that knows it counts. One that is absent or
fails is left out, and `Containers.silent` says why.

Identification happens while tracing, so it is cheap (reading /proc/PID/cgroup takes 0.1 ms, and the runtimes are asked
once for each container) and never waits long: a socket that does not answer in time is left alone for a while. The
calls to the sockets are made by this process, which the kernel's filter leaves out; with --all the daemon's end of
them is seen.

Sockets and state files of rootless containers are their users': whatever they hold, they neither block nor fail us.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from apitrace.exchange import Container
from apitrace.probes import procfs

_TIMEOUT = 1.0
"""Seconds that a socket may take for its whole answer. Docker takes 3 ms for 2 containers; the ring buffer holds what
passes meanwhile."""

_RETRY_AFTER = 30.0
"""Seconds for which a socket that did not answer in time, and a container that nobody knew, are not asked about again:
so a daemon that hangs costs 3 % of the time at most."""

_MAX_BYTES = 64 << 20
"""Of a socket's answer, or of a state file. Docker writes 1.5 KB for a container: enough for 40,000."""

_MAX_KNOWN = 4096
"""Containers that are remembered: forty times the pods that kubelet lets a host run at once (110)."""

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
"""The ID that Docker, Podman, CRI-O and containerd's CRI (not ctr) give a container, anywhere in a cgroup's name."""

_POD, _NAMESPACE, _NAME = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.container.name"
"""Labels that kubelet gives to every container (pkg/kubelet/types/labels.go)."""


class UnavailableError(Exception):
    """A runtime that is absent or fails. The text says where and why."""


class Found(NamedTuple):
    """A container as its runtime knows it."""

    container: Container
    names: tuple[str, ...]
    """All that it may be asked for by, besides the ID."""
    state: str
    """In the runtime's words: "running", "exited", ..."""
    pid: Callable[[], int | None]
    """Asks for its first process; None if there is none."""

    @property
    def running(self) -> bool:
        """Whether it has processes."""
        return self.state in ("running", "paused")


class Host(NamedTuple):
    """Where to look."""

    root: Path
    environment: Mapping[str, str]


class Source(NamedTuple):
    """A socket or a directory that says which containers there are."""

    runtime: str
    path: Path
    find: Callable[[str | None], Iterator[Found]]
    """All containers, or the one with this ID. Raises UnavailableError; TimeoutError if it takes too long."""


# What others wrote has any type: these give what was asked for, or nothing.


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(raw: bytes | bytearray | str) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _found(
    id_: str,
    names: Iterable[Any],
    state: str,
    pid: Callable[[], int | None],
    *,
    runtime: str,
    image: str | None,
    labels: Mapping[str, Any],
    pod: str | None = None,
    namespace: str | None = None,
) -> Found:
    """Put a Found together. kubelet's labels say name, pod and namespace where they are set."""
    called = tuple(dict.fromkeys(name for name in map(_str, (labels.get(_NAME), *names)) if name))
    container = Container(
        id=id_,
        name=called[0] if called else None,
        image=image,
        runtime=runtime,
        pod=_str(labels.get(_POD)) or pod,
        namespace=_str(labels.get(_NAMESPACE)) or namespace,
        labels=tuple(sorted((key, value) for key, value in labels.items() if isinstance(value, str))),
    )
    return Found(container, called, state, pid)


# -- sockets: Docker's API, which Podman speaks too -------------------------------------------------------------------


def _get(path: Path, url: str) -> Any:
    """Return the JSON that a socket answers with. Raises UnavailableError; TimeoutError if it takes too long.

    Not with http.client, whose timeout starts again with every byte. Asked in HTTP/1.0, Go's server, which all of these
    are, neither chunks its answer nor keeps the connection.
    """
    deadline = time.monotonic() + _TIMEOUT
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            connection.sendall(f"GET {url} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            while len(answer) < _MAX_BYTES and (data := connection.recv(1 << 16)):
                answer += data
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
    except TimeoutError:
        raise
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        raise UnavailableError(message) from error
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[: head.find(b"\r\n")].split()[1:2]
    if status != [b"200"]:
        message = f"{path} answers {status[0].decode('latin-1')}" if status else f"{path} does not speak HTTP"
        raise UnavailableError(message)
    return _json(body)


class _Api(NamedTuple):
    """A runtime that answers on a socket."""

    runtime: str
    variable: str
    """Of the environment: may name another socket."""
    sockets: tuple[str, ...]
    """The system's, then every user's own."""
    prefix: str
    """Of the URL. Docker's has no version: it is then the daemon's own, which it always supports."""


_DOCKER = _Api("docker", "DOCKER_HOST", ("var/run/docker.sock", "run/user/*/docker.sock"), "")
_PODMAN = _Api(
    "podman", "CONTAINER_HOST", ("run/podman/podman.sock", "run/user/*/podman/podman.sock"), "/v4.0.0/libpod"
)


def _api_sources(api: _Api, host: Host) -> list[Source]:
    named = host.environment.get(api.variable)
    if named and not named.startswith("unix:///"):
        message = f"{api.variable}={named} is no socket of this host"
        raise UnavailableError(message)
    if named:
        paths = [host.root / named.removeprefix("unix:///")]
    else:
        found = (path for pattern in api.sockets for path in sorted(host.root.glob(pattern)))
        # The package podman-docker has Docker's name point at Podman's socket.
        paths = [path for path in found if path.name == path.resolve().name]
    if not paths:
        message = f"no {host.root / api.sockets[0]}"
        raise UnavailableError(message)
    return [Source(api.runtime, path, partial(_ask, api, path)) for path in paths]


def _ask(api: _Api, path: Path, id_: str | None) -> Iterator[Found]:
    query = "?all=true" + (f"&filters={quote(orjson.dumps({'id': [id_]}))}" if id_ else "")
    for item in map(_dict, _list(_get(path, f"{api.prefix}/containers/json{query}"))):
        if (its_id := _str(item.get("Id"))) is None:
            continue
        # Docker writes "/web", and for a container that another is linked to "/other/alias" too.
        names = [name.removeprefix("/") for name in map(_str, _list(item.get("Names"))) if name]
        yield _found(
            its_id,
            sorted(names, key=lambda name: "/" in name),
            _str(item.get("State")) or "unknown",
            partial(_pid_of_api, api, path, item),
            runtime=api.runtime,
            image=_str(item.get("Image")),
            labels=_dict(item.get("Labels")),
            pod=_str(item.get("PodName")),
        )


def _pid_of_api(api: _Api, path: Path, item: Mapping[str, Any]) -> int | None:
    """Return the first process: Podman lists it, Docker wants to be asked about each container."""
    pid = item.get("Pid")
    if pid is None:
        with contextlib.suppress(UnavailableError, TimeoutError):
            details = _dict(_get(path, f"{api.prefix}/containers/{item['Id']}/json"))
            pid = _dict(details.get("State")).get("Pid")
    return pid if isinstance(pid, int) and pid > 0 else None


# -- state files ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """Return what is in a regular file; nothing for anything else, and for what cannot be read or is too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would block for ever
    except OSError:
        return b""
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, no path
        status = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES else b""


def _pid_of_file(path: Path, id_: str, root: Path) -> int | None:
    """Return the process that a pid file names.

    The file stays when the container stops (podman 4.3), and its number may go to any other process: so one that is in
    another container, or is gone, is not it.
    """
    raw = _read(path).strip()
    pid = int(raw) if raw.isdigit() else 0
    if not pid or procfs.stat(pid, root=root) is None:
        return None
    ids = container_ids(pid, root=root)
    return pid if id_ in ids or not ids else None


def _file_state(pid: Callable[[], int | None]) -> str:
    return "running" if pid() is not None else "stopped"


class _Storage(NamedTuple):
    """The two directories of containers/storage, the library under Podman, CRI-O and Buildah."""

    run: Path
    graph: Path


_MANAGERS = {"libpod": "podman", "cri-o": "cri-o"}
"""Annotation io.container.manager -> runtime. Buildah's working containers have none, and no processes of their own."""

_STORAGE_SETTING = re.compile(rb'^\s*(runroot|graphroot)\s*=\s*"([^"\n]+)"', re.MULTILINE)


def _storages(host: Host) -> Iterator[_Storage]:
    """Yield the system's storage, as containers-storage.conf(5) says, then that of every user who is logged in."""
    usual = {b"runroot": b"/run/containers/storage", b"graphroot": b"/var/lib/containers/storage"}
    named = host.environment.get("CONTAINERS_STORAGE_CONF", "/etc/containers/storage.conf")
    places = {**usual, **dict(_STORAGE_SETTING.findall(_read(host.root / named.lstrip("/"))))}
    yield _Storage(*(host.root / os.fsdecode(places[key]).lstrip("/") for key in (b"runroot", b"graphroot")))
    for run in sorted(host.root.glob("run/user/*/containers")):
        with contextlib.suppress(KeyError, ValueError):
            home = pwd.getpwuid(int(run.parent.name)).pw_dir
            yield _Storage(run, host.root / home.lstrip("/") / ".local/share/containers/storage")


def _storage_sources(host: Host) -> list[Source]:
    sources = [
        Source("podman/cri-o", storage.graph, partial(_read_storage, storage, host.root))
        for storage in _storages(host)
        if storage.graph.is_dir()
    ]
    if not sources:
        message = f"no {next(_storages(host)).graph}"
        raise UnavailableError(message)
    return sources


def _read_storage(storage: _Storage, root: Path, id_: str | None) -> Iterator[Found]:
    """Yield what DRIVER-containers/*containers.json lists: of --rm containers in volatile-containers.json."""
    for directory in sorted(storage.graph.glob("*-containers")):
        run = storage.run / directory.name
        for file in ("containers.json", "volatile-containers.json"):
            # With storage's transient mode the list is in the run directory.
            for item in map(_dict, _list(_json(_read(directory / file))) or _list(_json(_read(run / file)))):
                its_id = _str(item.get("id")) or ""
                if _ID.fullmatch(its_id) and id_ in (None, its_id):
                    yield from _stored(item, its_id, (run / its_id, directory / its_id), root)


def _stored(item: Mapping[str, Any], id_: str, places: tuple[Path, Path], root: Path) -> Iterator[Found]:
    # Podman keeps config.json with the graph, CRI-O beside the pid file.
    configs = (_dict(_json(_read(place / "userdata/config.json"))) for place in places)
    annotations = next((_dict(config.get("annotations")) for config in configs if config), {})
    runtime = _MANAGERS.get(_str(annotations.get("io.container.manager")) or "")
    if runtime is None:
        return
    metadata = _dict(_json(_str(item.get("metadata")) or "null"))
    labels = _dict(_json(_str(annotations.get("io.kubernetes.cri-o.Labels")) or "null"))
    pid = partial(_pid_of_file, places[0] / "userdata/pidfile", id_, root)
    yield _found(
        id_,
        _list(item.get("names")),
        _file_state(pid),
        pid,
        runtime=runtime,
        image=_str(annotations.get("io.kubernetes.cri-o.ImageName")) or _str(metadata.get("image-name")),
        labels=labels,
    )


_CONTAINERD_STATES = (
    "run/containerd",
    "run/k3s/containerd",
    "run/k0s/containerd",
    "var/snap/microk8s/common/run/containerd",
    "run/docker/containerd/daemon",
)
"""containerd's `state` directory, as packaged by itself, k3s, k0s, MicroK8s, and by Docker that starts its own."""


def _containerd_sources(host: Host) -> list[Source]:
    named = host.environment.get("CONTAINERD_ADDRESS", "")  # as for ctr(8); the socket is in the state directory
    states = (named.removeprefix("unix://").rpartition("/")[0].lstrip("/"),) if named else _CONTAINERD_STATES
    directories = [host.root / state / "io.containerd.runtime.v2.task" for state in states]
    sources = [
        Source("containerd", directory.parent, partial(_read_tasks, directory, host.root))
        for directory in directories
        if directory.is_dir()
    ]
    if not sources:
        message = f"no {directories[0].parent}"
        raise UnavailableError(message)
    return sources


def _read_tasks(directory: Path, root: Path, id_: str | None) -> Iterator[Found]:
    """Yield the tasks of all of containerd's namespaces: NAMESPACE/ID/config.json."""
    for task in sorted(directory.glob(f"*/{id_ or '*'}")):
        config = _dict(_json(_read(task / "config.json")))
        if not config:
            continue
        annotations = _dict(config.get("annotations"))
        pid = partial(_pid_of_file, task / "init.pid", task.name, root)
        yield _found(
            task.name,
            (
                annotations.get("io.kubernetes.cri.container-name"),
                annotations.get("nerdctl/name"),
                None if _ID.fullmatch(task.name) else task.name,  # ctr has its user choose the ID
            ),
            _file_state(pid),
            pid,
            runtime="docker" if task.parent.name == "moby" else "containerd",
            image=_str(annotations.get("io.kubernetes.cri.image-name")),
            labels={},
            pod=_str(annotations.get("io.kubernetes.cri.sandbox-name")),
            namespace=_str(annotations.get("io.kubernetes.cri.sandbox-namespace")),
        )


_RUNTIMES: tuple[tuple[str, Callable[[Host], list[Source]]], ...] = (
    ("docker", partial(_api_sources, _DOCKER)),
    ("podman", partial(_api_sources, _PODMAN)),
    ("podman/cri-o", _storage_sources),
    ("containerd", _containerd_sources),
)
"""In the order in which they are believed."""


# -- identification ---------------------------------------------------------------------------------------------------


def container_ids(pid: int, *, root: Path = procfs.ROOT) -> tuple[str, ...]:
    """Return the IDs of the containers that a process is in, outermost first; by the hierarchy that tells most.

    conmon, which watches a container from outside, bears its ID too.
    """
    paths = (place.path for place in procfs.cgroups(pid, root=root) if "conmon-" not in place.path)
    return max((tuple(dict.fromkeys(_ID.findall(path))) for path in paths), key=len, default=())


class _Known(NamedTuple):
    container: Container | None
    """None: no runtime knew it."""
    asked_at: float


class Containers:
    """The containers of this host."""

    def __init__(self, *, root: Path = procfs.ROOT, environment: Mapping[str, str] = os.environ) -> None:
        self._host = Host(root, environment)
        self._known: dict[str, _Known] = {}
        self._hung: dict[Path, float] = {}
        self.asked: tuple[str, ...] = ()
        """The runtimes that answered the last time."""
        self.silent: dict[str, str] = {}
        """Those that did not: why."""

    def all(self) -> list[Found]:
        """Return every container, stopped ones too."""
        found: dict[str, Found] = {}
        for one in self._find(None):
            found.setdefault(one.container.id, one)
        for one in found.values():
            self._remember(one.container.id, one.container)
        return list(found.values())

    def identify(self, pid: int) -> Container | None:
        """Return the container that a process is in: of several, one in another, the innermost that a runtime knows.

        Where none does, all but the ID is unknown. None: in no container, or the process is gone.
        """
        ids = container_ids(pid, root=self._host.root)
        for id_ in reversed(ids):
            if (container := self._lookup(id_)) is not None:
                return container
        return Container(id=ids[-1]) if ids else None

    def describe(self, pid: int) -> tuple[str, str | None, Container | None] | None:
        """Return (name, program, container) of a process; None if it is gone."""
        comm = procfs.comm(pid, root=self._host.root)
        return None if comm is None else (comm, procfs.exe(pid, root=self._host.root), self.identify(pid))

    def _lookup(self, id_: str) -> Container | None:
        known = self._known.get(id_)
        if known is None or (known.container is None and time.monotonic() - known.asked_at > _RETRY_AFTER):
            found = next((one.container for one in self._find(id_) if one.container.id == id_), None)
            self._remember(id_, found)
            return found
        return known.container

    def _remember(self, id_: str, container: Container | None) -> None:
        if len(self._known) >= _MAX_KNOWN:
            del self._known[next(iter(self._known))]  # the one that was found longest ago
        self._known[id_] = _Known(container, time.monotonic())

    def _find(self, id_: str | None) -> Iterator[Found]:
        """Yield what the runtimes know, one after the other; note who did not answer."""
        self.asked, self.silent = (), {}
        for runtime, sources_of in _RUNTIMES:
            try:
                sources = sources_of(self._host)
            except (UnavailableError, OSError) as error:
                self.silent[runtime] = str(error)
                continue
            for source in sources:
                if time.monotonic() - self._hung.get(source.path, -_RETRY_AFTER) < _RETRY_AFTER:
                    self.silent[runtime] = f"{source.path} does not answer"
                    continue
                try:
                    yield from source.find(id_)
                    self.asked += (runtime,)
                except TimeoutError:
                    self._hung[source.path] = time.monotonic()
                    self.silent[runtime] = f"{source.path} does not answer"
                except (UnavailableError, OSError) as error:
                    self.silent[runtime] = str(error)
