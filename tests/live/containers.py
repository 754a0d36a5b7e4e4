"""Container runtimes of a test's own: Docker, Podman, and containerd's CRI as kubelet uses it.

Each is a context manager that starts its daemons with directories, sockets and cgroups of their own, and ends with no
process, mount, cgroup or file of theirs left, but for what they keep in fixed places (/run/containerd/s, Podman's cache
in /var/lib/containers, Docker's key in /etc/docker). So several can run at a time, and beside the system's own.
`environment` leads other programs to them, by the variables that docker, podman and ctr heed.

The image holds hardly more than links and directories: a container gets the host's /usr and this checkout, read-only,
and the directory `shared`, all at the same paths; so what runs on the host runs in it. Nothing is downloaded.
Containers are on the host's network. Debian's packages: docker.io (brings containerd and runc), podman.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived

from tests.live.harness import PATIENCE, ROOT, environment, program, until

IMAGE = "localhost/host:1"
PYTHON = "/usr/bin/python3"
"""In a container; its path there is the same as here."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


# -- the image --------------------------------------------------------------------------------------------------------


def _tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, directories: Sequence[str] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in directories:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def with_libraries(path: str) -> dict[str, bytes]:
    """Return a program and the libraries it is linked with, for an image: path there -> content."""
    path = os.path.realpath(path)
    said = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    paths = [path, *(word for word in said.split() if word.startswith("/"))]
    names = (path if path.startswith("/usr/") else f"/usr{path}" for path in paths)  # /lib and /lib64 are links
    return {name.lstrip("/"): Path(path).read_bytes() for name, path in zip(names, paths, strict=True)}


def image_of(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, name: str = IMAGE) -> bytes:
    """Return an image with these files as `docker save` writes one, which all three runtimes can load."""
    layer = _tar(
        {"etc/passwd": b"root:x:0:0:root:/:/bin/sh\n", "etc/group": b"root:x:0:\n", **files},
        {**{name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}, **(links or {})},
        ("dev", "etc", "proc", "run", "sys", "tmp", "usr", "var"),
    )
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "infinity"], "Env": ["PATH=/usr/sbin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "manifest.json": json.dumps(manifest).encode(),
            "config.json": json.dumps(config).encode(),
            "layer.tar": layer,
        }
    )


def _image() -> bytes:
    """Return the image that gets the host's programs by mounts, but for what a pod's sandbox runs, which gets none."""
    return image_of(with_libraries(program("sleep")))


# -- what all runtimes need -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a runtime lives."""

    directory: Path
    cgroup: str
    """The cgroup above all of its containers'."""


def _cgroup_mounts() -> list[Path]:
    rows = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(row[1]) for row in rows if row[2] in ("cgroup", "cgroup2")]


def _remove_cgroup(top: Path) -> bool:
    """Remove a cgroup and those below; return whether it is gone. A process that ends keeps it for a moment."""
    with contextlib.suppress(OSError):
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()
    return not top.exists()


def _remove_tree(top: Path) -> bool:
    shutil.rmtree(top, ignore_errors=True)
    return not top.exists()


def _kill_leftovers(place: _Place) -> None:
    """Kill what a runtime that failed has left: containers, by their cgroup; shims and monitors, by their arguments."""
    lists = (path for mount in _cgroup_mounts() for path in (mount / place.cgroup[1:]).glob("**/cgroup.procs"))
    pids = {pid for path in lists for pid in path.read_text().split()}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"{place.directory}/".encode() in (entry / "cmdline").read_bytes():
                pids.add(entry.name)
    for pid in pids - {"0"}:  # 0 is a process of another PID namespace; to kill(2) it would be our own group
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _unmount_below(top: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(top):
            subprocess.run([program("umount"), "--lazy", mount], check=True)


@contextlib.contextmanager
def _place() -> Iterator[_Place]:
    """Give directories and cgroups, and take them away with all that is mounted there.

    The directory is not pytest's: the path of a socket has 107 bytes.
    """
    place = _Place(Path(tempfile.mkdtemp(prefix="apitrace-")), f"/apitrace-{uuid.uuid4().hex[:8]}")
    with contextlib.ExitStack() as cleanup:  # each step is taken, whatever becomes of the others
        cgroups = [mount / place.cgroup[1:] for mount in _cgroup_mounts()]
        cleanup.callback(until, lambda: all(map(_remove_cgroup, cgroups)), f"{place.cgroup} is empty")
        # What conmon starts when a container ends ("podman container cleanup") may still write.
        cleanup.callback(until, lambda: _remove_tree(place.directory), f"{place.directory} is removed")
        cleanup.callback(_unmount_below, place.directory)
        cleanup.callback(_kill_leftovers, place)
        yield place


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False


@contextlib.contextmanager
def _daemon(arguments: Sequence[str], socket_path: Path, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a daemon from when its socket answers; end it as its service manager would."""
    log = socket_path.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(**(variables or {}))
        )
    try:
        until(lambda: process.poll() is not None or _answers(socket_path), f"{arguments[0]} answers")
        assert process.poll() is None, f"{arguments[0]} ended:\n{log.read_text()[-3000:]}"
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


def _containerd_config(directory: Path, *, cri: bool) -> str:
    return f"""
version = 2
root = "{directory}/containerd-root"
state = "{directory}/containerd"
{"" if cri else 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'}
[grpc]
  address = "{directory}/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  # Without CAP_SYS_RESOURCE the sandbox's oom_score_adj of -998 cannot be set.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{directory}/runc"
"""


@contextlib.contextmanager
def _containerd(place: _Place, *, cri: bool) -> Iterator[Path]:
    """Run containerd; give its socket."""
    state = place.directory / "containerd"
    state.mkdir()
    config = place.directory / "containerd.toml"
    config.write_text(_containerd_config(place.directory, cri=cri))
    address = state / "containerd.sock"
    with _daemon([program("containerd"), "--config", str(config)], address):
        yield address


# -- Docker and Podman ------------------------------------------------------------------------------------------------


class Engine:
    """Docker or Podman, whose commands are the same."""

    def __init__(self, command: str, variables: Mapping[str, str], cgroup: str, shared: Path) -> None:
        self.environment = variables
        self._command = program(command)
        self._flags = [
            "--network=host", "--stop-timeout=0", f"--cgroup-parent={cgroup}",
            f"--volume={shared}:{shared}",
        ]  # fmt: skip
        self._host = [
            f"--workdir={ROOT}", f"--env=PYTHONPATH={ROOT}", "--volume=/usr:/usr:ro", f"--volume={ROOT}:{ROOT}:ro",
        ]  # fmt: skip

    def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run the command with these arguments; return what it prints."""
        done = subprocess.run(
            [self._command, *arguments], input=stdin, capture_output=True, env=environment(**self.environment),
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments} failed:\n{done.stderr.decode()}"
        return done.stdout.decode().strip()

    def run_arguments(
        self, name: str, *command: str, flags: Sequence[str] = (), image: str | None = None
    ) -> list[str]:
        """Return the arguments that run a container in the foreground, its stdin and stdout connected.

        `image`: one that has all it needs and gets nothing of the host's but `shared`.
        """
        flags = [*self._flags, *([] if image else self._host), *flags]
        return [self._command, "run", "--interactive", f"--name={name}", *flags, image or IMAGE, *command]

    def exec_arguments(self, name: str, *command: str) -> list[str]:
        """Return the arguments that run a further command in a container, its stdin and stdout connected."""
        return [self._command, "exec", "--interactive", name, *command]

    def run(self, name: str, *command: str, flags: Sequence[str] = ()) -> str:
        """Run a container in the background; return its ID."""
        return self("run", "--detach", f"--name={name}", *self._flags, *self._host, *flags, IMAGE, *command)

    def exec(self, name: str, *command: str) -> str:
        """Run a further command in a container to its end; return what it prints."""
        return self("exec", name, *command)

    def load(self, image: bytes) -> None:
        """Make an image known."""
        self("load", stdin=image)

    def pid(self, name: str) -> int:
        """Return a container's first process."""
        return int(self("inspect", "--format={{.State.Pid}}", name))

    def kill(self, name: str) -> None:
        """Stop a container at once; it is still known."""
        self("kill", name)
        until(lambda: self("inspect", "--format={{.State.Running}}", name) == "false", f"{name} has ended")

    def remove(self, *names: str) -> None:
        """Remove containers, running or not."""
        if names:
            self("rm", "--force", *names)

    def remove_all(self) -> None:
        self.remove(*self("ps", "--all", "--quiet").split())


@contextlib.contextmanager
def start_docker(shared: Path) -> Iterator[Engine]:
    """Run dockerd with a containerd of its own. Containers may write to `shared`."""
    with _place() as place, _containerd(place, cri=False) as containerd:
        directory, address = place.directory, place.directory / "docker.sock"
        arguments = [
            program("dockerd"), f"--host=unix://{address}", f"--containerd={containerd}",
            f"--data-root={directory}/docker", f"--exec-root={directory}/exec", f"--pidfile={directory}/docker.pid",
            "--exec-opt=native.cgroupdriver=cgroupfs", "--storage-driver=vfs",
            # Leave the host's network and firewall as they are.
            "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        ]  # fmt: skip
        variables = {"DOCKER_HOST": f"unix://{address}", "CONTAINERD_ADDRESS": str(containerd)}
        with _daemon(arguments, address):
            docker = Engine("docker", variables, place.cgroup, shared)
            docker.load(_image())
            try:
                yield docker
            finally:
                docker.remove_all()


_CONTAINERS_CONF = """
[containers]
# Podman's own defaults are above what a host without CAP_SYS_RESOURCE allows.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/tmp"
# crun, Debian's choice, refuses a hybrid of cgroup v1 and v2.
runtime = "runc"
"""

_STORAGE_CONF = """
[storage]
driver = "vfs"
runroot = "{directory}/run"
graphroot = "{directory}/graph"
"""


@contextlib.contextmanager
def start_podman(shared: Path) -> Iterator[Engine]:
    """Set up a Podman (which has no daemon). Containers may write to `shared`."""
    program("runc")
    with _place() as place:
        variables = {}
        for name, text in (("CONTAINERS_CONF", _CONTAINERS_CONF), ("CONTAINERS_STORAGE_CONF", _STORAGE_CONF)):
            path = place.directory / name.lower()
            path.write_text(text.format(directory=place.directory))
            variables[name] = str(path)
        podman = Engine("podman", variables, place.cgroup, shared)
        podman.load(_image())
        try:
            yield podman
        finally:
            podman.remove_all()


@contextlib.contextmanager
def podman_service(podman: Engine, directory: Path) -> Iterator[Mapping[str, str]]:
    """Run Podman's API on a socket; give the variables that lead to it."""
    address = directory / "podman.sock"
    arguments = [program("podman"), "system", "service", "--time=0", f"unix://{address}"]
    with _daemon(arguments, address, podman.environment):
        yield {**podman.environment, "CONTAINER_HOST": f"unix://{address}"}


# -- Kubernetes pods --------------------------------------------------------------------------------------------------

Field = tuple[int, "int | str | bytes"]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _message(*fields: Field) -> bytes:
    """Encode a protobuf message: numbers, strings, and messages as bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def _map(number: int, values: Mapping[str, str]) -> list[Field]:
    return [(number, _message((1, key), (2, value))) for key, value in values.items()]


class Pods:
    """Pods on containerd, made by the calls that kubelet makes (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto)."""

    def __init__(self, address: Path, cgroup: str, shared: Path) -> None:
        self.environment = {"CONTAINERD_ADDRESS": str(address)}
        self._address = address
        self._cgroup = cgroup
        self._mounts = [
            _message((1, path), (2, path), (3, readonly))
            for path, readonly in (("/usr", True), (str(ROOT), True), (str(shared), False))
        ]
        self._sandboxes: dict[str, str] = {}

    def _call(self, method: str, request: bytes) -> bytes:
        """Make one gRPC call; return the encoded response."""
        http2 = H2Connection(H2Configuration(client_side=True))
        body = bytearray()
        trailers: dict[str, str] = {}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self._address))
            http2.initiate_connection()
            http2.send_headers(1, [
                (":method", "POST"), (":scheme", "http"), (":authority", "localhost"),
                (":path", f"/runtime.v1.RuntimeService/{method}"), ("content-type", "application/grpc"),
                ("te", "trailers"),
            ])  # fmt: skip
            http2.send_data(1, struct.pack(">BI", 0, len(request)) + request, end_stream=True)
            ended = False
            while not ended:
                connection.sendall(http2.data_to_send())
                data = connection.recv(1 << 16)
                assert data, f"containerd hung up on {method}"
                for event in http2.receive_data(data):
                    if isinstance(event, DataReceived):
                        body += event.data
                        http2.acknowledge_received_data(event.flow_controlled_length, 1)
                    elif isinstance(event, TrailersReceived | ResponseReceived):  # no body: trailers come as headers
                        trailers |= {_decoded(name): _decoded(value) for name, value in event.headers}
                    ended = ended or isinstance(event, StreamEnded)
        assert trailers.get("grpc-status") == "0", f"{method}: {trailers}"
        return bytes(body[5:])

    def _sandbox_config(self, namespace: str, pod: str) -> bytes:
        uid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{namespace}/{pod}"))
        labels = {"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid}
        host_network = _message((1, _message((1, 2), (2, 1))))  # NamespaceOption: network NODE, pid CONTAINER
        return _message(
            (1, _message((1, pod), (2, uid), (3, namespace))),  # PodSandboxMetadata
            *_map(6, labels),
            (8, _message((1, f"{self._cgroup}/kubepods/besteffort/pod{uid}"), (2, host_network))),
        )

    def run(self, namespace: str, pod: str, name: str, *command: str) -> str:
        """Run a container in a pod, which is made if need be; return the container's ID."""
        config = self._sandbox_config(namespace, pod)
        full = f"{namespace}/{pod}"
        if full not in self._sandboxes:
            self._sandboxes[full] = _first_string(self._call("RunPodSandbox", _message((1, config))))
        label = "io.kubernetes"
        labels = {f"{label}.container.name": name, f"{label}.pod.name": pod, f"{label}.pod.namespace": namespace}
        container = _message(
            (1, _message((1, name))),  # ContainerMetadata
            (2, _message((1, IMAGE))),
            *((3, word) for word in command),
            (5, str(ROOT)),
            (6, _message((1, "PYTHONPATH"), (2, str(ROOT)))),
            *((7, mount) for mount in self._mounts),
            *_map(9, labels),
            (15, _message((2, _message((3, _message((1, 2), (2, 1))))))),  # as the sandbox's namespaces
        )
        request = _message((1, self._sandboxes[full]), (2, container), (3, config))
        id_ = _first_string(self._call("CreateContainer", request))
        self._call("StartContainer", _message((1, id_)))
        return id_

    def exec(self, id_: str, *command: str) -> None:
        """Run a further command in a container to its end."""
        self._call("ExecSync", _message((1, id_), *((2, word) for word in command), (3, int(PATIENCE))))

    def remove_all(self) -> None:
        for sandbox in self._sandboxes.values():
            self._call("StopPodSandbox", _message((1, sandbox)))
            self._call("RemovePodSandbox", _message((1, sandbox)))


def _decoded(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _first_string(message: bytes) -> str:
    """Return the first field of a response: an ID, hence shorter than 128 bytes."""
    return message[2 : 2 + message[1]].decode()


@contextlib.contextmanager
def start_pods(shared: Path) -> Iterator[Pods]:
    """Run containerd with its CRI. Containers may write to `shared`."""
    with _place() as place, _containerd(place, cri=True) as address:
        image = place.directory / "image.tar"
        image.write_bytes(_image())
        ctr = [program("ctr"), f"--address={address}", "--namespace=k8s.io", "images", "import"]
        subprocess.run([*ctr, "--snapshotter=native", str(image)], check=True, stdout=subprocess.DEVNULL)
        pods = Pods(address, place.cgroup, shared)
        try:
            yield pods
        finally:
            pods.remove_all()
