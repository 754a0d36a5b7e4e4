"""What a live test is made of: servers and clients that keep a journal, and apitrace run against them.

A test has four inputs: the set-up, the traffic, apitrace's flags and what is expected; the last comes from the journals
(see calls.py), never from the test's own idea of what was sent. Nothing here sleeps to let something happen: it waits
for a condition, with a deadline that only a failing test reaches. Every process is started in a Lab, which ends what
it has started, and knows it by its handle, never by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.live.calls import Address, Call, of_record, read_journal, without

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
SERVERS = Path(__file__).with_name("servers")
APITRACE = (str(Path(sys.executable).with_name("apitrace")),)
HOOKS = ("sock_length", "sys_exit") if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 3) else ("sys_exit",)
"""The kernel's ways of reporting socket I/O; the first came with Linux 6.3, the second is always there."""
PATIENCE = 30.0
"""Seconds until a condition that should hold soon counts as never holding: fifty times what was measured."""

Record = dict[str, Any]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of started programs: this one's, without what sudo says of its caller.

    A command that apitrace runs under sudo runs as that caller, who could not write to the test's directory.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    return {**kept, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **extra}


def until(condition: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
    """Wait until the condition holds, and return what it gave. Fails the test at the deadline."""
    deadline = time.monotonic() + within
    while not (outcome := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"after {within:g} s still not: {what}")
        time.sleep(0.005)
    return outcome


def cannot(reason: str) -> NoReturn:
    """End a test that cannot run here: a failure where CI runs, a skip with its reason elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str) -> str:
    """Return the path of a program that a test needs."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or cannot(f"{name} is not installed")


def read_lines(path: Path, count: int) -> list[Any]:
    """Return the values of a file of JSON lines, once it has `count`."""
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"{path.name} has {count} lines")
    return [json.loads(line) for line in path.read_text().splitlines()]


def unused_port() -> int:
    """Return a TCP port that nothing listens on, outside the range that connects draw theirs from."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Program:
    """A started server or client, with its journal."""

    def __init__(self, arguments: Sequence[str], journal: Path, extra: Mapping[str, str]) -> None:
        self.name = Path(arguments[0]).name
        self.journal = journal
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(**extra), cwd=ROOT
        )
        self.pid = self._process.pid
        self.address: Address = ("", 0)

    def read_line(self) -> str:
        """Return the next line that the program prints: programs print one when they are ready or done."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended: status {self._process.wait()}"
        return line

    def go(self, line: str = "go", last: str = "") -> None:
        """Let a client make its calls: those that the line tells, or those that it knows.

        `last`: more for it to read, up to the end of its input.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n{last}")
        self._process.stdin.flush()
        if last:
            self._process.stdin.close()
            self._process.stdin = None

    def wait_done(self) -> None:
        """Wait until a client has made its calls."""
        assert self.read_line() == "done\n"

    def calls(self, count: int | None = None) -> list[Call]:
        """Return the journal, once it has `count` calls."""
        if count is not None:
            until(lambda: len(read_journal(self.journal)) >= count, f"{self.name} has noted {count} calls")
        return read_journal(self.journal)

    def kill(self) -> None:
        """End the program at once, and wait for that."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Nginx(Program):
    """nginx, whose journal has empty values for header fields that were not there."""

    def calls(self, count: int | None = None) -> list[Call]:
        return [
            call._replace(
                request_headers=tuple(sorted(pair for pair in call.request_headers if pair[1])),
                response_headers=tuple(sorted(pair for pair in call.response_headers if pair[1])),
                request_size=int(call.request_size or 0),
            )
            for call in super().calls(count)
        ]


def configure_nginx(
    prefix: Path, port: int, workers: int = 1, *, sendfile: bool = False, tls: tuple[Path, str] | None = None,
    http2: str | None = None, pem: Path | None = None,
) -> None:
    """Make the directory of an nginx, with its configuration and its files. `pem`: certificate and key for HTTP/2."""
    (prefix / "files").mkdir(parents=True)
    (prefix / "files/page.html").write_bytes(b"<p>static</p>\n" * 100)
    certificate = ""
    if tls:
        pair = f"ssl_certificate {tls[0]}/server.pem; ssl_certificate_key {tls[0]}/server.key;"
        certificate = f"{pair} ssl_protocols {tls[1]};"
    if pem:
        certificate = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
    listen = [*(["ssl"] if tls or http2 == "tls" else []), *(["http2"] if http2 else [])]
    config = (SERVERS / "nginx.conf").read_text()
    for name, value in {
        "@PREFIX@": prefix, "@PORT@": port, "@WORKERS@": workers, "@SENDFILE@": "on" if sendfile else "off",
        "@LISTEN@": " ".join(listen), "@CERTIFICATE@": certificate,
    }.items():  # fmt: skip
        config = config.replace(name, str(value))
    (prefix / "nginx.conf").write_text(config)


class Capture:
    """An apitrace that runs, and when it has ended all that it printed."""

    def __init__(self, flags: Sequence[str], directory: Path) -> None:
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        self._counted = (0, 0)
        ready = directory / "ready"
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._process = subprocess.Popen(
                [*APITRACE, "-j", "--ready-file", str(ready), *flags],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(),
            )  # fmt: skip
        self.pid = self._process.pid
        self.status: int | None = None
        self._ready = ready

    def wait_ready(self) -> None:
        until(lambda: self._ready.exists() or self._process.poll() is not None, "apitrace is ready")
        assert self._ready.exists(), f"apitrace ended with status {self._process.wait()}:\n{self.stderr}"

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def shown(self) -> int:
        """Return how many exchanges have been printed so far."""
        size, count = self._counted
        with self._stdout.open("rb") as file:
            file.seek(size)
            more = file.read()
        self._counted = (size + len(more), count + more.count(b"\n"))
        return self._counted[1]

    def wait_shown(self, count: int, within: float = PATIENCE) -> None:
        """Wait until `count` exchanges have been printed. At the deadline the comparison that follows will tell."""
        deadline = time.monotonic() + within
        while self.shown() < count and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Wait until apitrace has ended, and return its status."""
        try:
            self.status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            pytest.fail(f"apitrace did not end:\n{self.stderr}")
        return self.status

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def exchanges(self) -> list[Record]:
        """What was printed, in that order."""
        return [json.loads(line) for line in self._stdout.read_bytes().splitlines()]

    def at(self, role: str) -> list[Record]:
        """Return the exchanges that were seen at the client's or at the server's end."""
        return [record for record in self.exchanges if record["process"]["role"] == role]


class Lab:
    """Starts the servers, clients and apitraces of one test, and ends them with it."""

    def __init__(self, directory: Path, hook: str | None) -> None:
        self.directory = directory
        self._flags = ["--hook", hook] if hook else []
        self._stack = contextlib.ExitStack()
        self._started = 0

    def close(self) -> None:
        self._stack.close()

    def path(self, name: str) -> Path:
        """Return a path of the test's own, new with each call."""
        self._started += 1
        return self.directory / f"{self._started}-{name}"

    def start(
        self, *arguments: str, journal: Path, kind: type[Program] = Program, extra: Mapping[str, str] | None = None
    ) -> Program:
        started = kind(arguments, journal, extra or {})
        self._stack.callback(started.close)
        return started

    def _serve(self, *arguments: str, journal: Path, extra: Mapping[str, str] | None = None) -> Program:
        server = self.start(*arguments, journal=journal, extra=extra)
        host, port = json.loads(server.read_line())
        server.address = (host, port)
        return server

    # Servers

    def origin(self, family: str = "inet", *flags: str) -> Program:
        """Start the threaded HTTP/1.1 server, or with `--files DIRECTORY` http.server's own."""
        journal = self.path("origin")
        unix = ["--socket", str(self.path("sock"))] if family == "unix" and "--socket" not in flags else []
        command = [sys.executable, "-m", "tests.live.servers.origin", str(journal), "--family", family, *unix, *flags]
        return self._serve(*command, journal=journal)

    def raw(self, behaviour: str) -> Program:
        """Start the bare-socket server; see servers/raw.py for the behaviours."""
        journal = self.path(behaviour)
        return self._serve(sys.executable, "-m", "tests.live.servers.raw", str(journal), behaviour, journal=journal)

    def node(self) -> Program:
        journal = self.path("node")
        return self._serve(program("node"), str(SERVERS / "node.js"), str(journal), journal=journal)

    def certificate(self) -> Path:
        """Make a certificate for localhost, with its key, in one PEM file."""
        path = self.path("certificate")
        command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-keyout", str(path), "-out", f"{path}.crt"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
        return path

    def http2(self, kind: str, transport: str = "h2c") -> Program:
        """Start an HTTP/2 server: "python" or "node"; see servers/http2.py. `transport`: "h2c" or "tls"."""
        journal = self.path(f"http2-{kind}")
        command = {
            "python": [sys.executable, "-m", "tests.live.servers.http2"],
            "node": [program("node"), str(SERVERS / "node_http2.js")],
        }[kind]  # fmt: skip
        certificate = [str(self.certificate())] if transport == "tls" else []
        return self._serve(*command, str(journal), *certificate, journal=journal)

    def nghttpd(self, transport: str = "h2c") -> Program:
        """Start nghttpd on a directory with the files hello and large. It keeps no journal."""
        port, root = unused_port(), self.path("nghttpd")
        root.mkdir()
        (root / "hello").write_bytes(b"hello\n")
        (root / "large").write_bytes(b"0123456789abcdef" * 20_000)
        ways = {"h2c": ["--no-tls", str(port)], "tls": [str(port), *[str(self.certificate())] * 2]}
        server = self.start(program("nghttpd"), "-d", str(root), *ways[transport], journal=root / "journal")
        server.address = ("127.0.0.1", port)
        until(lambda: listening(port), "nghttpd listens")
        return server

    def hypercorn(self, transport: str = "h2c") -> Program:
        """Start hypercorn, which takes prior knowledge and Upgrade."""
        journal, port = self.path("hypercorn"), unused_port()
        pem = self.certificate() if transport == "tls" else None
        tls = [f"--certfile={pem}", f"--keyfile={pem}"] if pem else []
        server = self.start(
            sys.executable, "-m", "hypercorn", *tls, "--bind", f"127.0.0.1:{port}", "--log-level", "error",
            "tests.live.servers.asgi_http2:application", journal=journal, extra={"JOURNAL": str(journal)},
        )  # fmt: skip
        server.address = ("127.0.0.1", port)
        until(lambda: listening(port), "hypercorn listens")
        return server

    def go(self, binary: Path) -> Program:
        journal = self.path("go")
        return self._serve(str(binary), str(journal), journal=journal)

    def gunicorn(self, workers: int, *flags: str) -> Program:
        """Start gunicorn: the returned PID is that of the parent, which serves nothing itself."""
        journal, port = self.path("gunicorn"), unused_port()
        arguments = ["--workers", str(workers), "--worker-class", "gthread", "--threads", "2", "--keep-alive", "60"]
        arguments += ["--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(self.directory), "--log-level", "error"]
        server = self.start(
            sys.executable, "-m", "gunicorn", *arguments, *flags, "tests.live.servers.prefork:application",
            journal=journal, extra={"JOURNAL": str(journal)},
        )  # fmt: skip
        server.address = ("127.0.0.1", port)
        until(lambda: len(children(server.pid)) == workers and listening(port), "gunicorn's workers run")
        return server

    def nginx(
        self, workers: int = 1, *, sendfile: bool = False, tls: tuple[Path, str] | None = None, http2: str | None = None
    ) -> Program:
        """Start nginx in the foreground, in a directory of its own; the PID is the master's.

        `tls`: the directory with the certificates, and the versions of TLS to speak. `http2`: "h2c" or "tls".
        """
        port, prefix = unused_port(), self.path("nginx")
        pem = self.certificate() if http2 == "tls" else None
        configure_nginx(prefix, port, workers, sendfile=sendfile, tls=tls, http2=http2, pem=pem)
        arguments = ["-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", str(prefix / "error.log")]
        server = self.start(program("nginx"), *arguments, journal=prefix / "journal", kind=Nginx)
        server.address = ("127.0.0.1", port)
        until(lambda: len(children(server.pid)) == workers and listening(port), "nginx's workers run")
        return server

    # Clients

    def client(self, to: Program, requests: Iterable[Record], *, connections: int = 1, rounds: int = 1) -> Program:
        """Start the keep-alive client, which waits for `go`; see clients/keepalive.py."""
        journal = self.path("client")
        return self.start(
            sys.executable, "-m", "tests.live.clients.keepalive", str(journal), json.dumps(to.address),
            str(connections), str(rounds), *map(json.dumps, requests), journal=journal,
        )  # fmt: skip

    def pipelined(self, to: Program, count: int) -> Program:
        """Start the pipelining client, which waits for `go`."""
        journal = self.path("client")
        return self.start(
            sys.executable, "-m", "tests.live.clients.pipelined", str(journal), json.dumps(to.address), str(count),
            journal=journal,
        )  # fmt: skip

    def http2_client(self, kind: str, to: Program, requests: Iterable[Record], transport: str = "h2c") -> Program:
        """Start an HTTP/2 client, "python" or "node", which makes a round of calls with each `go`."""
        journal = self.path(f"http2-client-{kind}")
        command = {
            "python": [sys.executable, "-m", "tests.live.clients.http2"],
            "node": [program("node"), str(SERVERS.with_name("clients") / "node_http2.js")],
        }[kind]  # fmt: skip
        arguments = [str(journal), json.dumps(to.address), transport, *map(json.dumps, requests)]
        return self.start(*command, *arguments, journal=journal)

    # apitrace

    def _apitrace(self, flags: Sequence[str]) -> Capture:
        directory = self.path("apitrace")
        directory.mkdir()
        capture = Capture([*self._flags, *flags], directory)
        self._stack.callback(capture.kill)
        return capture

    @contextlib.contextmanager
    def trace(self, *flags: str) -> Iterator[Capture]:
        """Run apitrace from when its probes are in place until the block ends; then interrupt it.

        A block that makes apitrace end by itself waits for that, and there is nothing to interrupt.
        """
        capture = self._apitrace(flags)
        capture.wait_ready()
        yield capture
        if capture.status is None:
            capture.interrupt()
            capture.wait()
        assert capture.status == 0, capture.stderr

    def trace_command(self, *command: str, flags: Sequence[str] = ()) -> Capture:
        """Run apitrace with this command until both have ended."""
        capture = self._apitrace([*flags, "--", *command])
        capture.wait()
        return capture


def children(pid: int) -> list[int]:
    """Return the PIDs of a process's children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def listening(port: int) -> bool:
    """Whether a TCP socket listens on this port; asked without connecting to it."""
    suffix = f":{port:04X}"
    tables = (Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    rows = (line.split() for table in tables for line in table)
    return any(row[1].endswith(suffix) and row[3] == "0A" for row in rows)


def blocked_in(pid: int, *calls: str) -> bool:
    """Whether some thread of the process waits in each of these kernel functions."""
    waiting = {(task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}
    return waiting >= set(calls)


def agreed(server: Program, client: Program, count: int) -> list[Call]:
    """Return the `count` calls that were made, as both ends' journals tell: they must agree.

    Where the server does not know what headers it sent, the client's journal tells.
    """
    served = {call.number: call for call in server.calls(count)}
    made = {call.number: call for call in client.calls(count)}
    assert len(served) == len(made) == count
    for number, call in made.items():
        other = served[number]
        assert other._replace(response_headers=other.response_headers or call.response_headers) == call
    return list(made.values())


def assert_same(shown: Iterable[Call], expected: Iterable[Call]) -> None:
    """Fail unless both have the same calls, each as often. Says what differs without printing the rest."""
    balance = Counter(expected)
    balance.subtract(Counter(shown))
    missing = [call for call, count in balance.items() if count > 0]
    surplus = [call for call, count in balance.items() if count < 0]
    lines = [f"missing: {call}" for call in missing[:3]] + [f"not made: {call}" for call in surplus[:3]]
    assert not lines, f"{len(missing)} calls missing, {len(surplus)} too many:\n" + "\n".join(lines)


def assert_exactly(
    capture: Capture, *, client: Iterable[Call] = (), server: Iterable[Call] = (), protocol: str = "HTTP/1.1",
    unknown: Collection[str] = (), leave_out: Collection[str] = (),
) -> None:
    """Fail unless apitrace has shown exactly these calls at these ends, each whole, and nothing else.

    `unknown`: fields that a record may name as not known, where not even the kernel can tell them. `leave_out`:
    headers of responses that were not noted.
    """
    client, server = list(client), list(server)
    assert_same(without(map(of_record, capture.at("client")), *leave_out), client)
    assert_same(without(map(of_record, capture.at("server")), *leave_out), server)
    records = capture.exchanges
    assert len(records) == len(client) + len(server)
    flawed = [
        record for record in records
        if not set(record["unknown"]) <= set(unknown) or record["lost_bytes"] or record["error"]
        or record["complete"] is bool(record["unknown"]) or record["protocol"] != protocol
    ]  # fmt: skip
    assert not flawed, flawed[:3]
    assert len({record["id"] for record in records}) == len(records)
