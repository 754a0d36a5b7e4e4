"""A recorded host, put up again below a directory: its files, links, and sockets that answer as they did."""

from __future__ import annotations

import contextlib
import json
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

FIXTURES = Path(__file__).with_name("fixtures")

V2_ONLY = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
"""mountinfo of a host that has v2 alone: systemd's default since 2019."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answer: Callable[[str], Iterable[bytes]]
    asked: list[str]


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("_Server", self.server)
        url = self.rfile.readline().decode().split()[1]
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        server.asked.append(url)
        with contextlib.suppress(BrokenPipeError):  # who asks does not wait for ever
            for part in server.answer(url):
                self.wfile.write(part)


class Host:
    """What `root` shows. Its path is short, for the sake of sockets: theirs have 107 bytes at most."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="at-"))
        self.environment: dict[str, str] = {}
        self._servers: list[_Server] = []

    def load(self, name: str) -> None:
        """Put up what was recorded under this name."""
        content = json.loads((FIXTURES / f"{name}.json").read_text())
        for path, text in content["files"].items():
            self.write(path, text)
        for path, target in content["links"].items():
            self.link(path, target)
        for path, answers in content["answers"].items():
            self.serve(path, partial(_replay, answers))
        self.environment.update(content["environment"])

    def write(self, path: str, text: str) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def link(self, path: str, target: str) -> None:
        link = self.root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def process(self, pid: int, comm: str = "app", *, ppid: int = 1, state: str = "S", cgroup: str = "0::/\n") -> None:
        """Make up a process."""
        self.write(f"proc/{pid}/stat", f"{pid} ({comm}) {state} {ppid} {pid} {pid}" + " 0" * 15 + " 4711 0 0\n")
        self.write(f"proc/{pid}/status", f"Name:\t{comm}\nTgid:\t{pid}\nPid:\t{pid}\n")
        self.write(f"proc/{pid}/comm", f"{comm}\n")
        self.write(f"proc/{pid}/cgroup", cgroup)

    def cgroup(self, path: str, *pids: int) -> Path:
        """Make up a cgroup's directory."""
        return self.write(f"{path}/cgroup.procs", "".join(f"{pid}\n" for pid in pids)).parent

    def serve(self, path: str, answer: Callable[[str], Iterable[bytes]]) -> list[str]:
        """Answer on a socket; return the list of URLs that it is asked for."""
        address = self.root / path.lstrip("/")
        address.parent.mkdir(parents=True, exist_ok=True)
        server = _Server(str(address), _Handler)
        server.answer, server.asked = answer, []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self._servers.append(server)
        return server.asked

    @property
    def asked(self) -> list[str]:
        """The URLs that any of its sockets was asked for."""
        return [url for server in self._servers for url in server.asked]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        shutil.rmtree(self.root)


def ok(value: Any) -> list[bytes]:
    """Return an answer with this JSON."""
    return [b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(value).encode()]


def _replay(answers: Mapping[str, Any], url: str) -> Iterable[bytes]:
    if url not in answers:
        return [b"HTTP/1.0 404 Not Found\r\n\r\n{}"]
    head, body = answers[url]
    return [head.encode() + b"\r\n\r\n", json.dumps(body).encode()]
