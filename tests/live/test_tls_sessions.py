"""Which socket a TLS session speaks through, when threads, objects and descriptors are shared and used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.tls import TlsLab, assert_exactly_over_tls

SCENARIOS = {
    "plain": 1, "ex": 1, "peek": 1, "two": 2, "threads": 1, "halves": 1, "freed": 10, "reused": 10, "memory": 1,
    "partial": 1, "forking": 1,
}  # fmt: skip
"""Scenario of openssl.c -> connections that ten calls take."""


BUILDS = {"shared": tuple(SCENARIOS), "musl": ("ex", "two", "freed", "memory", "partial"), "static": ("two", "memory")}
"""Each OpenSSL has ways of its own from a session to its socket: 1.1.1, 3.x, and one without a library's symbols."""


@pytest.mark.parametrize(("build", "scenario"), [(build, each) for build, some in BUILDS.items() for each in some])
def test_each_call_is_shown_once_with_its_own_connection(
    tls_lab: TlsLab, c_build: Callable[[str], Path], scenario: str, build: str
) -> None:
    """In "forking" the program fails if one of its 500 fork()s does."""
    server = tls_lab.tls_origin()
    client = tls_lab.start(
        str(c_build(build)), "client", str(server.address[1]), tls_lab.ca, scenario, "10", journal=tls_lab.path("none")
    )
    with tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture:
        client.go()
        client.wait_done()
        calls = server.calls(10)
        capture.wait_shown(20)
    assert_exactly_over_tls(capture, client=calls, server=calls)
    assert len({call.client for call in calls}) == SCENARIOS[scenario]
    source = {record["connection"]["address_source"] for record in capture.at("client")}
    assert source == {"bio" if scenario == "memory" else "socket"}
