"""Ten thousand calls by load generators through nginx, at both ends: each exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.live.calls import of_record, without
from tests.live.harness import HOOKS, assert_same, program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.live.harness import Lab

pytestmark = pytest.mark.parametrize("hook", HOOKS, indirect=True)

CALLS = 10_000


@pytest.mark.parametrize(
    "generator",
    [
        ("ab", "-q", "-k", "-n", str(CALLS), "-c", "20"),
        ("ab", "-q", "-n", str(CALLS), "-c", "20"),
        ("h2load", "--h1", "-n", str(CALLS), "-c", "20"),
    ],
    ids=["ab keep-alive", "ab", "h2load"],
)
def test_ten_thousand_calls_are_shown_at_both_ends(lab: Lab, generator: Sequence[str]) -> None:
    server = lab.nginx()
    name, *options = generator
    url = f"http://127.0.0.1:{server.address[1]}/hello"
    # The command shares apitrace's standard output, which is to hold nothing but exchanges.
    command = ["sh", "-c", 'exec "$@" >/dev/null', "sh", program(name), *options, url]
    capture = lab.trace_command(*command, flags=["--pid", str(server.pid)])
    assert capture.status == 0, capture.stderr
    served = server.calls(CALLS)
    assert len(served) == len({dict(call.response_headers)["x-request-id"] for call in served}) == CALLS
    for role in ("client", "server"):
        records = capture.at(role)
        assert_same(without(map(of_record, records), "date", "connection"), served)
        assert [record["id"] for record in records if not record["complete"]] == []
        assert {record["response"]["body"] for record in records} == {"hello\n"}
    assert len(capture.exchanges) == 2 * CALLS
