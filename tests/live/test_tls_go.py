"""Go's crypto/tls, in programs built in all the ways that move or take away what probes are placed by."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.conftest import GO_BUILDS
from tests.live.harness import SERVERS, environment, program
from tests.live.tls import REQUESTS, TlsLab, assert_exactly_over_tls, told
from tests.unit.probes.test_golang import BUILDS, FETCHES

OLDER = sorted({build.toolchain for build in BUILDS if build.toolchain != "local"})


def converse(lab: TlsLab, binary: Path, role: str, connections: int = 5) -> None:
    """Trace the Go program as this end, and a Python program as the other one."""
    if role == "server":
        server = lab.tls_go(binary)
        client = lab.tls_client(server, connections=connections, rounds=2)
    else:
        server = lab.tls_origin()
        client = lab.go_client(binary, server, connections=connections, rounds=2)
    count = 2 * connections * len(REQUESTS)
    with lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = told(server, client, count)
        capture.wait_shown(2 * count)
    assert_exactly_over_tls(capture, client=calls, server=calls)


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("name", GO_BUILDS)
def test_a_go_program_shows_the_calls_that_were_made(
    tls_lab: TlsLab, go_build: Callable[[str], Path], name: str, role: str
) -> None:
    converse(tls_lab, go_build(name), role)


def test_fifty_connections_of_a_go_server_and_a_go_client(tls_lab: TlsLab, go_build: Callable[[str], Path]) -> None:
    for role in ("server", "client"):
        converse(tls_lab, go_build("plain"), role, connections=50)


VERSIONS = os.environ.get("GO_VERSIONS", " ".join(toolchain for toolchain in OLDER if FETCHES)).split()
"""Other releases, as GOTOOLCHAIN names them: by default those that the unit tests have fetched already."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("role", ["server", "client"])
def test_other_releases_of_go(tls_lab: TlsLab, tmp_path: Path, version: str, role: str) -> None:
    binary = tmp_path / "program"
    sources = [str(SERVERS / "go" / name) for name in ("main.go", "client.go")]
    command = [program("go"), "build", "-o", str(binary), *sources]
    subprocess.run(command, check=True, env=environment(GOTOOLCHAIN=version, CGO_ENABLED="0", GOFLAGS="", GOENV="off"))
    converse(tls_lab, binary, role)
