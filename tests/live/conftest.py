"""Live tests: apitrace on a real kernel, against real servers and clients. They need root and BTF."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.certificates import make
from tests.live.containers import start_docker
from tests.live.grpc import PROGRAMS
from tests.live.harness import APITRACE, SERVERS, Lab, cannot, environment, program
from tests.live.programs.build import build
from tests.live.tls import MADE, TlsLab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.live.containers import Engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    """Say once and clearly why live tests cannot run."""
    if os.geteuid() != 0:
        cannot("live tests load BPF programs, which needs root")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        cannot("this kernel has no BTF: /sys/kernel/btf/vmlinux is missing")
    if not Path(APITRACE[0]).exists():
        cannot(f"{APITRACE[0]} is missing: run `make setup`")


@pytest.fixture
def hook(request: pytest.FixtureRequest) -> str | None:
    """The kernel hook to use; apitrace's own choice unless the test is parametrized with `hook`."""
    return getattr(request, "param", None)


@pytest.fixture
def lab(tmp_path: Path, hook: str | None) -> Iterator[Lab]:
    lab = Lab(tmp_path, hook)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that containers can write to."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def docker(shared: Path) -> Iterator[Engine]:
    with start_docker(shared) as docker:
        yield docker


@pytest.fixture(autouse=True)
def _runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have apitrace find the runtime of the test."""
    for fixture in ("docker", "engine", "pods"):
        if fixture in request.fixturenames:
            for name, value in request.getfixturevalue(fixture).environment.items():
                monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a server's certificate and its CA's."""
    directory = tmp_path_factory.mktemp("certificates")
    make(directory)
    return directory


@pytest.fixture
def tls_lab(tmp_path: Path, certificates: Path) -> Iterator[TlsLab]:
    lab = TlsLab(tmp_path, certificates)
    yield lab
    lab.close()


GO_SOURCES = ("main.go", "client.go")
GO_BUILDS: dict[str, tuple[Sequence[str], Mapping[str, str], Sequence[str]]] = {
    "plain": ((), {}, GO_SOURCES),
    "-s -w": (("-ldflags=-s -w",), {}, GO_SOURCES),
    "stripped": ((), {}, GO_SOURCES),
    "PIE": (("-buildmode=pie",), {}, GO_SOURCES),
    "PIE -s -w": (("-buildmode=pie", "-ldflags=-s -w"), {}, GO_SOURCES),
    "cgo": ((), {"CGO_ENABLED": "1"}, (*GO_SOURCES, "cgo.go")),
}
"""Name of a build -> flags, environment, sources."""


@pytest.fixture(scope="session")
def go_build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the Go program that is server and client, built in one of these ways with the standard library alone."""
    directory = tmp_path_factory.mktemp("go")

    @functools.cache
    def build_go(name: str) -> Path:
        flags, variables, sources = GO_BUILDS[name]
        binary = directory / name.replace(" ", "_")
        paths = [str(SERVERS / "go" / source) for source in sources]
        variables = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "", **variables}
        command = [program("go"), "build", *flags, "-o", str(binary), *paths]
        subprocess.run(command, check=True, env=environment(**variables))
        if name == "stripped":
            subprocess.run([program("strip"), str(binary)], check=True)
        return binary

    return build_go


@pytest.fixture(scope="session")
def go_server(go_build: Callable[[str], Path]) -> Path:
    return go_build("plain")


@pytest.fixture(scope="session")
def c_build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give openssl.c, built in one of the ways that programs/build.py names."""
    directory = tmp_path_factory.mktemp("c")
    return functools.cache(lambda name: build(name, MADE, directory))


@pytest.fixture(scope="session")
def grpc_go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gRPC ends in Go, built with the modules that set-up has fetched."""
    binary = tmp_path_factory.mktemp("grpc") / "end"
    subprocess.run(
        [program("go"), "build", "-o", str(binary), "."], check=True, cwd=PROGRAMS / "grpc_go",
        env=environment(GOTOOLCHAIN="local", GOPROXY="off", GOFLAGS="-mod=readonly"),
    )  # fmt: skip
    return binary
