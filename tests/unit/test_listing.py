"""--list: real processes started here, and rows made up, hostile names among them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apitrace import listing
from apitrace.cli import run
from apitrace.exchange import Container
from apitrace.listing import Row, json_line, name_of, scan, table
from apitrace.probes import procfs
from apitrace.probes.libraries import GO, OPENSSL, OTHER, RUNTIME, SHARED, Libraries, MappedFile, Stack
from apitrace.probes.procfs import Listener
from apitrace.targets.containers import Containers

FILE = MappedFile("/usr/lib/libssl.so.3", "/proc/1/root/usr/lib/libssl.so.3", 1, 2)
OPENSSL_3 = Stack(OPENSSL, "OpenSSL", "3.0.15", FILE, "ab12", SHARED, None, "")
JSSE = Stack(OTHER, "JSSE", "17.0.9", FILE, None, RUNTIME, None, "compiled while it runs")
GO_122 = Stack(GO, "crypto/tls", "1.22.1", FILE, None, SHARED, None, "")
WEB = Container(id="3f2a9c01d2aa" + "0" * 52, name="web", image="nginx", runtime="docker")


def row(**fields: object) -> Row:
    return Row(4121, "nginx", "/usr/sbin/nginx", None, (), ())._replace(**fields)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child
        child.stdin.close()


SERVER = """
import socket, ssl, sys
sockets = [socket.create_server((host, 0), family=family) for host, family in
           (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))]
print(*(one.getsockname()[1] for one in sockets), flush=True)
sys.stdin.read()
"""


def test_a_server_is_listed_with_its_ports_and_its_tls() -> None:
    with running("/usr/bin/python3", "-c", SERVER) as child:
        four, six = map(int, child.stdout.readline().split())
        (found,) = scan([child.pid], Containers().describe, Libraries())
        assert (found.pid, found.comm, found.container) == (child.pid, "python3", None)
        assert set(found.listeners) == {Listener("127.0.0.1", four), Listener("::1", six)}
        (stack,) = found.stacks
        assert stack.library == "OpenSSL"


def test_only_listeners_on_the_ports_that_are_named_are_listed() -> None:
    with running("/usr/bin/python3", "-c", SERVER) as child:
        port, _ = map(int, child.stdout.readline().split())
        everyone = procfs.pids()
        assert [found.pid for found in scan(everyone, Containers().describe, Libraries(), ports=[port])] == [child.pid]


def test_kernel_threads_and_processes_that_are_gone_are_left_out() -> None:
    threads = [pid for pid in procfs.pids() if (seen := procfs.stat(pid)) and seen.ppid == 2]
    assert list(scan([*threads, 1 << 22], Containers().describe, Libraries())) == []


def test_a_process_that_may_not_be_looked_into_is_listed_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "may_look_into", lambda _: False)
    monkeypatch.setattr(procfs, "tcp_listeners", lambda _: {})
    with running("/usr/bin/python3", "-c", SERVER) as child:
        child.stdout.readline()
        (found,) = scan([child.pid], Containers().describe, Libraries())
        assert (found.comm, found.listeners, found.stacks) == ("python3", None, None)
        assert listing.unread([found, row()]) == 1
        assert list(table([found], None))[1].split() == [str(child.pid), "python3", "-", "?", "?"]
        shown = json.loads(json_line(found))
        assert (shown["listens"], shown["tls"]) == (None, None)


@pytest.mark.parametrize(
    ("stack", "name"),
    [
        (OPENSSL_3, "OpenSSL 3.0.15"),
        (JSSE, "JSSE (Java 17.0.9)"),
        (GO_122, "Go 1.22.1"),
        (GO_122._replace(version=None), "Go"),
        (JSSE._replace(version=None), "JSSE (Java)"),
        (OPENSSL_3._replace(version=None), "OpenSSL"),
    ],
)
def test_what_a_tls_implementation_is_called(stack: Stack, name: str) -> None:
    assert name_of(stack) == name


def test_the_table() -> None:
    rows = [
        row(listeners=(Listener("0.0.0.0", 80), Listener("::", 80), Listener("0.0.0.0", 443)), stacks=(OPENSSL_3,)),
        row(pid=7, comm="java", container=WEB, stacks=(JSSE,)),
        row(pid=1234567, comm="api", container=Container(WEB.id), stacks=(GO_122, OPENSSL_3, OPENSSL_3)),
    ]
    assert list(table(rows, 80)) == [
        "    PID  COMMAND  CONTAINER     LISTENS  TLS",
        "   4121  nginx    -             80,443   OpenSSL 3.0.15",
        "      7  java     web           -        JSSE (Java 17.0.9), not readable",
        "1234567  api      3f2a9c01d2aa  -        Go 1.22.1; OpenSSL 3.0.15",
    ]


def test_on_a_terminal_no_line_is_wider_than_it_and_in_a_pipe_nothing_is_cut() -> None:
    ports = tuple(Listener("::", port) for port in range(40000, 40020))
    wide = row(comm="x" * 15, container=Container("a" * 64, name="n" * 60), listeners=ports, stacks=(JSSE, OPENSSL_3))
    for width in (40, 80, 132):
        assert max(map(len, table([wide, row()], width))) <= width
    assert "n" * 60 in list(table([wide], None))[1]
    assert "40019" in list(table([wide], None))[1]


def test_names_reach_the_terminal_escaped() -> None:
    evil = "\x1b[31mred\u202e\n"
    container = Container("a" * 64, name=evil)
    (_, line) = table([row(comm=evil, container=container, stacks=(OPENSSL_3._replace(version=evil),))], None)
    assert line.isprintable()
    assert line.count("\\x1b[31mred\\u202e\\n") == 3


def test_json_has_the_records_names_and_null_for_what_there_is_none_of() -> None:
    assert json.loads(json_line(row(container=WEB, listeners=(Listener("::", 80),), stacks=(JSSE,)))) == {
        "pid": 4121,
        "comm": "nginx",
        "exe": "/usr/sbin/nginx",
        "container": {
            "id": WEB.id, "name": "web", "image": "nginx", "runtime": "docker", "pod": None, "namespace": None,
        },
        "listens": [{"ip": "::", "port": 80}],
        "tls": [{
            "library": "JSSE", "version": "17.0.9", "file": "/usr/lib/libssl.so.3", "build_id": None,
            "linked": "part of the runtime", "readable": False, "reason": "compiled while it runs",
        }],
    }  # fmt: skip


def test_the_command_lists_what_its_targets_name(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with running("/usr/bin/python3", "-c", SERVER) as child:
        port = child.stdout.readline().split()[0]
        assert run(["--list", "--pid", str(child.pid)]) == 0
        out, err = capfdbinary.readouterr()
        head, line = out.decode().splitlines()
        assert head.split() == ["PID", "COMMAND", "CONTAINER", "LISTENS", "TLS"]
        assert line.split()[:3] == [str(child.pid), "python3", "-"]
        assert port in line
        assert err == b""
        assert run(["--list", "-j", "--pid", str(child.pid)]) == 0
        (shown,) = map(json.loads, capfdbinary.readouterr().out.splitlines())
        assert shown["pid"] == child.pid
        assert run(["--list", "--pid", str(1 << 22)]) == 1


def test_a_reader_that_goes_away_ends_the_list_quietly() -> None:
    command = f"{sys.executable} -m apitrace --list -j | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_a_socket_that_only_connects_does_not_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        here = procfs.tcp_listeners([procfs.own_pid() or 0])
        ports = {listener.port for listeners in here.values() for listener in listeners}
        assert server.getsockname()[1] in ports
        assert client.getsockname()[1] not in ports
