"""--container, --pod and --cgroup against real runtimes: the named one is shown whole, the one beside it not at all."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.live.containers import IMAGE, PYTHON, Engine, Pods, start_docker, start_podman, start_pods
from tests.live.harness import APITRACE, Lab, Program, assert_exactly, cannot, environment

ENGINES = {"docker": start_docker, "podman": start_podman}
CALL = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1]).read()"


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, shared: Path) -> Iterator[Engine]:
    start: Callable[[Path], AbstractContextManager[Engine]] = ENGINES[request.param]
    with start(shared) as engine:
        yield engine


def runtime(engine: Engine) -> str:
    return "docker" if "DOCKER_HOST" in engine.environment else "podman"


def serve(lab: Lab, engine: Engine, shared: Path, name: str) -> Program:
    """Run the origin server in a container of this name."""
    journal = shared / f"{name}-{uuid.uuid4().hex[:8]}"
    command = (PYTHON, "-m", "tests.live.servers.origin", str(journal), "--family", "inet")
    server = lab.start(*engine.run_arguments(name, *command), journal=journal, extra=engine.environment)
    host, port = json.loads(server.read_line())
    server.address = (host, port)
    return server


def get(server: Program, path: str) -> None:
    connection = http.client.HTTPConnection(*server.address)
    connection.request("GET", path)
    connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("by", ["name", "id", "prefix"])
def test_only_the_named_of_two_containers_is_shown(lab: Lab, engine: Engine, shared: Path, by: str) -> None:
    names = [f"{word}-{uuid.uuid4().hex[:6]}" for word in ("web", "other")]
    web, other = (serve(lab, engine, shared, name) for name in names)
    id_ = engine("inspect", "--format={{.Id}}", names[0])
    try:
        with lab.trace("--container", {"name": names[0], "id": id_, "prefix": id_[:12]}[by]) as capture:
            for number in range(23):
                get(web, f"/bytes/{number}")
                get(other, f"/bytes/{number}")
            capture.wait_shown(23)
        assert_exactly(capture, server=web.calls(23))
        assert len(other.calls(23)) == 23
        container = capture.exchanges[0]["process"]["container"]
        assert (container["id"], container["name"], container["runtime"]) == (id_, names[0], runtime(engine))
        assert container["image"] == IMAGE
        ends = {(record["destination"]["name"], record["destination"]["kind"]) for record in capture.exchanges}
        assert ends == {(names[0], "Container")}
    finally:
        engine.remove(*names)


def test_a_container_is_listed_with_its_ports_and_its_name(lab: Lab, engine: Engine, shared: Path) -> None:
    name = f"web-{uuid.uuid4().hex[:6]}"
    server = serve(lab, engine, shared, name)
    try:
        command = [*APITRACE, "--list", "--container", name]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        head, *rows = run.stdout.splitlines()
        assert head.split() == ["PID", "COMMAND", "CONTAINER", "LISTENS", "TLS"]
        (row,) = [row.split() for row in rows if str(server.address[1]) in row]
        assert row[:4] == [str(engine.pid(name)), row[1], name, str(server.address[1])]
        assert {line.split()[2] for line in rows} == {name}
        assert run.stderr == ""
    finally:
        engine.remove(name)


def test_what_is_run_in_the_container_later_is_shown(lab: Lab, engine: Engine) -> None:
    name, server = f"web-{uuid.uuid4().hex[:6]}", lab.origin()
    url = f"http://127.0.0.1:{server.address[1]}"
    engine.run(name, "/bin/sleep", "600")
    try:
        with lab.trace("--container", name) as capture:
            for number in range(7):
                engine.exec(name, PYTHON, "-c", CALL, f"{url}/bytes/{number}")
            capture.wait_shown(7)
        assert_exactly(capture, client=server.calls(7))
        assert {record["process"]["container"]["name"] for record in capture.exchanges} == {name}
    finally:
        engine.remove(name)


def test_processes_that_end_at_once_are_shown_with_their_container(lab: Lab, engine: Engine) -> None:
    """A shell sends one request itself: the process is gone before apitrace could look it up."""
    name, server = f"web-{uuid.uuid4().hex[:6]}", lab.origin()
    port = server.address[1]
    request = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /bytes/1 HTTP/1.0\\r\\n\\r\\n' >&3; read -r -u 3 line"
    engine.run(name, "/bin/sleep", "600")
    try:
        with lab.trace("--container", name) as capture:
            for _ in range(5):
                engine.exec(name, "/bin/bash", "-c", request)
            capture.wait_shown(5)
        ends = [(record["process"]["comm"], record["process"]["container"]["name"]) for record in capture.exchanges]
        assert ends == [("bash", name)] * 5
        assert [record["request"]["path"] for record in capture.exchanges] == ["/bytes/1"] * 5
        assert [record["response"]["status_code"] for record in capture.exchanges] == [200] * 5
    finally:
        engine.remove(name)


def test_a_container_that_is_not_there_is_one_clear_line_with_the_nearest_name(lab: Lab, engine: Engine) -> None:
    name = f"twin-{uuid.uuid4().hex[:6]}"
    engine.run(name, "/bin/sleep", "600")
    try:
        for wanted, said in (("no-such-container", "no container is called"), (name[:-1], name)):
            missing = lab.trace_command("true", flags=("--container", wanted))
            assert missing.status == 125
            assert missing.stderr.count("\n") == 1
            assert wanted in missing.stderr
            assert said in missing.stderr
    finally:
        engine.remove(name)


@pytest.fixture(scope="module")
def pods(shared: Path) -> Iterator[Pods]:
    with start_pods(shared) as pods:
        yield pods


def test_all_containers_of_a_pod_are_shown_and_no_others(lab: Lab, pods: Pods) -> None:
    server = lab.origin()
    url = f"http://127.0.0.1:{server.address[1]}"
    one = pods.run("shop", "cart-1", "app", "/bin/sleep", "600")
    two = pods.run("shop", "cart-1", "sidecar", "/bin/sleep", "600")
    other = pods.run("shop", "cart-2", "app", "/bin/sleep", "600")
    with lab.trace("--pod", "shop/cart-1") as capture:
        for number, id_ in enumerate((one, two, other, one)):
            pods.exec(id_, PYTHON, "-c", CALL, f"{url}/bytes/{number}")
        capture.wait_shown(3)
    calls = server.calls(4)
    assert_exactly(capture, client=[calls[0], calls[1], calls[3]])
    containers = [record["process"]["container"] for record in capture.exchanges]
    assert [(each["pod"], each["namespace"], each["name"]) for each in containers] == [
        ("cart-1", "shop", "app"), ("cart-1", "shop", "sidecar"), ("cart-1", "shop", "app"),
    ]  # fmt: skip


def cgroup_mounts() -> dict[str, Path]:
    """Mount points of the v2 hierarchy, and of a v1 controller."""
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            found.setdefault("v2", Path(fields[1]))
        elif fields[2] == "cgroup" and "pids" in fields[3].split(","):
            found.setdefault("v1", Path(fields[1]))
    return found


@pytest.mark.parametrize("version", cgroup_mounts())
@pytest.mark.parametrize("absolute", [True, False])
def test_a_cgroup_is_traced_with_what_is_in_it_and_what_enters_it(lab: Lab, version: str, absolute: bool) -> None:
    top = cgroup_mounts().get(version) or cannot("no cgroup hierarchy is mounted")
    path = top / f"apitrace-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    server, called, outside = lab.origin(), lab.origin(), lab.origin()

    def enter() -> None:
        (path / "cgroup.procs").write_text(str(os.getpid()))

    try:
        (path / "cgroup.procs").write_text(str(server.pid))
        with lab.trace("--cgroup", str(path) if absolute else f"/{path.name}") as capture:
            for number in range(5):
                get(server, f"/bytes/{number}")
                url = f"http://127.0.0.1:{called.address[1]}/bytes/{number}"
                subprocess.run([sys.executable, "-c", CALL, url], check=True, preexec_fn=enter)
                get(outside, "/bytes/0")
            capture.wait_shown(10)
        assert_exactly(capture, server=server.calls(5), client=called.calls(5))
        assert len(outside.calls(5)) == 5
    finally:
        (top / "cgroup.procs").write_text(str(server.pid))
        path.rmdir()
