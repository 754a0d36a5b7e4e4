"""What tracing must not do to those it traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.harness import Program, until
from tests.live.tls import TlsLab, assert_exactly_over_tls, told

Builds = Callable[[str], Path]
KILLS = 10
REQUESTS = [{"path": "/bytes/17"}, {"method": "POST", "path": "/echo", "size": 1999}, {"path": "/bytes/40009"}]


@pytest.mark.parametrize("name", ["python", "node", "go"])
def test_a_server_under_load_survives_that_apitrace_is_killed_and_attached_again(
    tls_lab: TlsLab, go_build: Builds, name: str
) -> None:
    start: dict[str, Callable[[], Program]] = {
        "python": tls_lab.tls_origin,
        "node": tls_lab.tls_node,
        "go": lambda: tls_lab.tls_go(go_build("plain")),
    }
    server = start[name]()
    client = tls_lab.tls_client(server, REQUESTS, connections=4)
    rounds = 0
    for _ in range(KILLS):
        capture = tls_lab._apitrace(["--pid", f"{server.pid},{client.pid}"])
        capture.wait_ready()
        client.go()
        client.wait_done()
        rounds += 1
        until(lambda: capture.shown() > 0, "calls are shown")  # noqa: B023  at once
        client.go()
        capture.kill()
        client.wait_done()
        rounds += 1
    calls = told(server, client, 4 * len(REQUESTS) * rounds)
    assert {call.status for call in calls} == {200}
    with tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        capture.wait_shown(2 * 4 * len(REQUESTS))
    assert capture.shown() >= 2 * 4 * len(REQUESTS)


def test_fork_never_fails_in_a_traced_program_and_its_children_are_left_alone(
    tls_lab: TlsLab, c_build: Builds
) -> None:
    """The program ends with an error if one fork() fails; each child leaves at once, with _exit."""
    server = tls_lab.tls_origin()
    arguments = ["client", str(server.address[1]), tls_lab.ca, "forking", "40"]
    client = tls_lab.start(str(c_build("shared")), *arguments, journal=tls_lab.path("none"))
    with tls_lab.trace("--pid", str(client.pid)) as capture:
        client.go()
        client.wait_done()
        calls = server.calls(40)
        capture.wait_shown(40)
    assert_exactly_over_tls(capture, client=calls)
