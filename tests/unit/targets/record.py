"""Records the fixtures of these tests from real container runtimes: what /proc, cgroupfs, state files and sockets say.

    python -m tests.unit.targets.record

as root, where docker.io and podman are installed (see tests/live/containers.py). Each fixture is one JSON file: files,
links and answers of sockets by path. Left out is what no reader looks at: of config.json all but the annotations, of
a socket's answer all but the fields named here, of mountinfo all but cgroups and tmpfs.
"""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.live.containers import Engine, podman_service, start_docker, start_podman, start_pods
from tests.live.harness import environment

FIXTURES = Path(__file__).with_name("fixtures")

_KERNEL = platform.release().split(".")
SLEEP = ("/usr/bin/sleep", "infinity")

_FIELDS = ("Id", "Names", "Image", "Labels", "State", "Pid", "PodName")


class Recording:
    """What was read so far."""

    def __init__(self, made_from: str, variables: Mapping[str, str]) -> None:
        self._content: dict[str, Any] = {
            "recorded": f"python -m tests.unit.targets.record: {made_from}, Linux {'.'.join(_KERNEL[:2])}",
            "environment": dict(variables),
            "files": {},
            "links": {},
            "answers": {},
        }
        self.process("self")
        self.file(Path("/proc/self/mountinfo"), _without_devices)

    def file(self, path: Path, reduce: Callable[[str], str] = str) -> None:
        self._content["files"][str(path)[1:]] = reduce(path.read_text())

    def process(self, pid: int | str) -> None:
        directory = Path(f"/proc/{pid}")
        for name in ("stat", "status", "comm", "cmdline", "cgroup") if pid != "self" else ("cgroup",):
            self.file(directory / name)
        for name in ("exe", "ns/pid", "ns/net") if pid != "self" else ("ns/pid",):
            self._content["links"][str(directory / name)[1:]] = str((directory / name).readlink())

    def cgroups(self, pid: int) -> None:
        """Take the tree of cgroups that holds a process's, in every hierarchy."""
        top = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::/")[2].partition("/")[0]
        for path in sorted(Path("/sys/fs/cgroup").glob(f"*/{top}/**/cgroup.procs")):
            self.file(path)

    def tasks(self, variables: Mapping[str, str]) -> list[int]:
        """Take containerd's state; return the tasks' first processes."""
        state = Path(variables["CONTAINERD_ADDRESS"]).parent / "io.containerd.runtime.v2.task"
        self.configs(state.glob("*/*/config.json"))
        pid_files = list(state.glob("*/*/init.pid"))
        for path in pid_files:
            self.file(path)
        return [int(path.read_text()) for path in pid_files]

    def configs(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.file(path, lambda text: json.dumps({"annotations": json.loads(text).get("annotations")}))

    def answer(self, address: str, url: str) -> Any:
        """Take what a socket answers, in HTTP/1.0 as apitrace asks."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address.removeprefix("unix://"))
            connection.sendall(f"GET {url} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            with connection.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
        said = json.loads(body)
        reduced = [_reduce(item) for item in said] if isinstance(said, list) else _reduce(said)
        self._content["answers"].setdefault(address.removeprefix("unix:///"), {})[url] = [head.decode(), reduced]
        return said

    def lists(self, address: str, url: str) -> list[str]:
        """Take the list of all containers, and each alone as by its ID; return the IDs."""
        ids = [item["Id"] for item in self.answer(address, url)]
        for id_ in ids:
            only = quote(json.dumps({"id": [id_]}, separators=(",", ":")))
            self.answer(address, f"{url}&filters={only}")
        return ids

    def save(self, name: str) -> None:
        (FIXTURES / f"{name}.json").write_text(json.dumps(self._content, indent=1, sort_keys=True) + "\n")


def _reduce(item: dict[str, Any]) -> dict[str, Any]:
    state = item.get("State")
    kept = {name: item[name] for name in _FIELDS if name in item}
    return {**kept, "State": {name: state[name] for name in ("Status", "Pid")}} if isinstance(state, dict) else kept


def _without_devices(mountinfo: str) -> str:
    kinds = (" - cgroup", " - tmpfs tmpfs")
    return "".join(line for line in mountinfo.splitlines(keepends=True) if any(kind in line for kind in kinds))


def _version(command: str) -> str:
    return subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def _members(pid: int) -> list[int]:
    """Return the processes in a process's v2 cgroup."""
    path = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip()
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    mount = next(mount[1] for mount in mounts if mount[2] == "cgroup2")
    return [int(line) for line in Path(f"{mount}{path}/cgroup.procs").read_text().split()]


def _containers(recording: Recording, engine: Engine) -> None:
    """Record two containers that run, one of them with a process that joined later, and one that has ended."""
    engine.run("web", *SLEEP, flags=["--label=tier=front", "--label=io.kubernetes.pod.name=cart-0"])
    engine.run("web-2", *SLEEP)
    engine.run("old", *SLEEP)
    engine.kill("old")
    first = engine.pid("web")
    arguments = engine.exec_arguments("web", "/bin/sh", "-c", "echo; read line")
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(**engine.environment)
    ) as joined:
        assert joined.stdin is not None
        assert joined.stdout is not None
        joined.stdout.readline()
        for pid in (*_members(first), engine.pid("web-2")):
            recording.process(pid)
        recording.cgroups(first)
        joined.stdin.close()


def _docker(shared: Path) -> None:
    with start_docker(shared) as docker:
        recording = Recording(_version("dockerd"), docker.environment)
        _containers(recording, docker)
        address = docker.environment["DOCKER_HOST"]
        for id_ in recording.lists(address, "/containers/json?all=true"):
            recording.answer(address, f"/containers/{id_}/json")
        recording.tasks(docker.environment)
        recording.save("docker")


def _podman(shared: Path) -> None:
    with start_podman(shared) as podman:
        configuration = Path(podman.environment["CONTAINERS_STORAGE_CONF"])
        with podman_service(podman, configuration.parent) as variables:
            recording = Recording(_version("podman"), variables)
            _containers(recording, podman)
            recording.file(configuration)
            for path in configuration.parent.glob("graph/*-containers/*containers.json"):
                recording.file(path)
            recording.configs(configuration.parent.glob("graph/*-containers/*/userdata/config.json"))
            for path in configuration.parent.glob("run/*-containers/*/userdata/pidfile"):
                recording.file(path)
            recording.lists(variables["CONTAINER_HOST"], "/v4.0.0/libpod/containers/json?all=true")
            recording.save("podman")


def _pods(shared: Path) -> None:
    with start_pods(shared) as pods:
        recording = Recording(_version("containerd"), pods.environment)
        pods.run("shop", "cart-0", "web", *SLEEP)
        pods.run("shop", "cart-0", "cache", *SLEEP)
        pods.run("test", "cart-0", "web", *SLEEP)
        for pid in recording.tasks(pods.environment):
            recording.process(pid)
        recording.cgroups(pid)
        recording.save("containerd")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for record in (_docker, _podman, _pods):
            record(Path(directory))


if __name__ == "__main__":
    main()
