"""Which containers run here, and which of them a process is in: asked of the runtimes themselves.

Every runtime is a row of `_SOURCES`: a function that returns what that runtime knows, from its socket or from the state
files it keeps, never by running its command. Several may know one container (Docker's are in containerd's state too):
the first row that knows it counts. One that is absent or fails is left out, and `Containers.silent` says why.

Identification happens while tracing, so it is cheap (reading /proc/PID/cgroup, 0.1 ms; a runtime is asked once for each
container) and never waits long: a socket that does not answer in time is left alone for a while. The calls to the
sockets are made by this process, which the kernel's filter leaves out; with --all the daemon's end of them is seen.

State files of rootless containers belong to their users, so reading one must not block or exhaust us, whatever it is.
"""

from __future__ import annotations

import http.client
import json
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

from apitrace.exchange import Container
from apitrace.probes import procfs

_TIMEOUT = 1.0
"""Seconds that a socket may take to answer. Docker needs some 5 ms for 2 containers; 1 s is noticed by nobody who waits
for a row, and the ring buffer holds more."""

_RETRY_AFTER = 30.0
"""Seconds for which a socket that did not answer in time, and a container that no runtime knew, is not asked about
again: so a hung daemon costs 3 % of the time at most."""

_MAX_BYTES = 64 << 20
"""Of a socket's answer or a state file. Docker writes about 1.5 KB for a container, so this is 40,000 of them."""

_MAX_KNOWN = 4096
"""Containers that are remembered: more than a host runs at once (kubelet: 110 pods; Linux: 1023 ports of a bridge)."""

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

_POD, _NAMESPACE, _NAME = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.container.name"
"""Labels that kubelet gives to every container (kubernetes: pkg/kubelet/types/labels.go)."""


class Unavailable(Exception):
    """A runtime that is absent or does not answer. The text says which and why."""


class Found(NamedTuple):
    """A container as its runtime knows it."""

    container: Container
    names: tuple[str, ...]
    """All that it may be asked for by, but the ID."""
    state: str
    """In the runtime's words: "running", "exited", ..."""
    pid: Callable[[], int | None]
    """Its first process; asked for only when needed, and None if there is none."""

    @property
    def running(self) -> bool:
        """Whether it has processes."""
        return self.state in ("running", "paused")


class _Host(NamedTuple):
    """Where to look."""

    root: Path
    environment: Mapping[str, str]


def _found(
    id_: str,
    names: Iterable[str],
    state: str,
    pid: Callable[[], int | None],
    *,
    runtime: str,
    image: str | None = None,
    labels: Mapping[str, str] | None = None,
    pod: str | None = None,
    namespace: str | None = None,
) -> Found:
    """Put a Found together; kubelet's labels say pod, namespace and name where they are set."""
    labels = labels or {}
    called = tuple(dict.fromkeys(name for name in (labels.get(_NAME), *names) if name))
    container = Container(
        id=id_,
        name=called[0] if called else None,
        image=image,
        runtime=runtime,
        pod=labels.get(_POD) or pod,
        namespace=labels.get(_NAMESPACE) or namespace,
        labels=tuple(sorted(labels.items())),
    )
    return Found(container, called, state, pid)


# -- sockets: Docker's API, which Podman speaks too -------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _get(path: Path, url: str) -> Any:
    """Return the JSON that a socket answers with. Raises Unavailable; TimeoutError if it takes too long."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        body = response.read(_MAX_BYTES)
        if response.status != http.client.OK:
            message = f"{path} answered {response.status}"
            raise Unavailable(message)
        return json.loads(body)
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        message = f"{path}: {getattr(error, 'strerror', None) or type(error).__name__}"
        raise Unavailable(message) from error
    finally:
        connection.close()


class _Api(NamedTuple):
    """A runtime that answers on a socket."""

    runtime: str
    variable: str
    """Of the environment: names another socket."""
    sockets: tuple[str, ...]
    """Where it is: the system's, then every user's own."""
    prefix: str
    """Of the URL. Docker without a version: that is always one which the daemon supports."""


_DOCKER = _Api("docker", "DOCKER_HOST", ("var/run/docker.sock", "run/user/*/docker.sock"), "")
_PODMAN = _Api(
    "podman", "CONTAINER_HOST", ("run/podman/podman.sock", "run/user/*/podman/podman.sock"), "/v4.0.0/libpod"
)


def _sockets(api: _Api, host: _Host) -> list[Path]:
    """Return the sockets there are. Raises Unavailable."""
    named = host.environment.get(api.variable, "")
    if named and not named.startswith("unix://"):
        message = f"{api.variable}={named} is not on this host"
        raise Unavailable(message)
    patterns = (named.removeprefix("unix://").lstrip("/"),) if named else api.sockets
    paths = [path for pattern in patterns for path in sorted(host.root.glob(pattern)) if path.is_socket()]
    if not paths:
        message = f"no socket at {host.root / patterns[0]}"
        raise Unavailable(message)
    return paths


def _ask(api: _Api, host: _Host, id_: str | None) -> list[Found]:
    query = "?all=true" + (f"&filters={quote(json.dumps({'id': [id_]}))}" if id_ else "")
    found = []
    for path in _sockets(api, host):
        for item in _list_of_objects(_get(path, f"{api.prefix}/containers/json{query}"), path):
            # Docker writes "/web", and for a container linked from another "/other/alias" too.
            names = (name.removeprefix("/") for name in item.get("Names") or ())
            found.append(
                _found(
                    str(item.get("Id")),
                    sorted(names, key=lambda name: "/" in name),
                    str(item.get("State")),
                    partial(_pid_of_api, api, path, item),
                    runtime=api.runtime,
                    image=item.get("Image"),
                    labels=item.get("Labels"),
                    pod=item.get("PodName"),
                )
            )
    return found


def _pid_of_api(api: _Api, path: Path, item: Mapping[str, Any]) -> int | None:
    """Return the first process: Podman lists it, Docker wants to be asked for each container."""
    if "Pid" in item:
        return item["Pid"] or None
    try:
        return _get(path, f"{api.prefix}/containers/{item['Id']}/json")["State"]["Pid"] or None
    except (Unavailable, TimeoutError, LookupError, TypeError):
        return None


# -- state files ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes | None:
    """Return a regular file's bytes; None for anything else, and for one that cannot be read or is too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would block for ever
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        status = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path) or b"null")
    except (ValueError, RecursionError):
        return None


def _list_of_objects(value: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        message = f"{path}: not a list of containers"
        raise Unavailable(message)
    return value
