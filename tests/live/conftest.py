"""Live tests: apitrace on a real kernel, against real servers and clients. They need root and BTF."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.harness import APITRACE, SERVERS, Lab, cannot, environment, program

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.fixture(scope="session")
def go_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go server, built with the standard library alone."""
    binary = tmp_path_factory.mktemp("go") / "server"
    command = [program("go"), "build", "-o", str(binary), str(SERVERS / "go/main.go")]
    subprocess.run(command, check=True, env=environment(GOTOOLCHAIN="local", GOPROXY="off", GOFLAGS=""))
    return binary
