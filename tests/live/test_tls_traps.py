"""The traps that tracing TLS takes, in steady state.

Each costs the traced process some half a microsecond, and one that is single-stepped some sixteen.
"""

from __future__ import annotations

import pytest

from tests.bench import traps
from tests.live.harness import program

pytestmark = pytest.mark.live


def assert_few(counted: traps.Traps, calls: int) -> None:
    """Two for each call on the library at most, none of them single-stepped, and none elsewhere."""
    assert counted.calls >= calls * traps.COUNTED  # a read and a write are the least that an exchange takes
    assert counted.cheap + counted.stepped <= 2 * counted.calls
    assert counted.stepped == 0
    assert counted.elsewhere == 0
    assert not counted.watches_bio


@pytest.mark.parametrize("name", traps.SERVERS)
def test_a_server_in_steady_state_takes_two_cheap_traps_a_call_and_no_other(name: str) -> None:
    program(traps.SERVERS[name][0])
    assert_few(traps.of_server(name), calls=2)


@pytest.mark.parametrize("name", traps.CLIENTS)
def test_a_client_in_steady_state_takes_two_cheap_traps_a_call_and_no_other(name: str) -> None:
    program(traps.CLIENTS[name][0])
    assert_few(traps.of_client(name), calls=2)
