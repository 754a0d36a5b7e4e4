"""The built-in workload through the whole pipe: what the newcomer's first command shows."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from apitrace import demo
from tests.live.harness import APITRACE, HOOKS, environment

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("hook", HOOKS)
def test_the_demo_shows_every_call_at_both_ends_and_says_so(hook: str, tmp_path: Path) -> None:
    recording = tmp_path / "demo.apitrace"
    run = subprocess.run(
        [*APITRACE, "--hook", hook, "--demo", "-j", "-w", str(recording), "--print"],
        capture_output=True, text=True, check=True, env=environment(),
    )  # fmt: skip
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(records) == demo.EXPECTED
    assert Counter(record["process"]["role"] for record in records) == {
        "client": demo.CALLS_MADE + demo.REFUSED,
        "server": demo.CALLS_MADE,
    }
    assert Counter(record["error"]["kind"] for record in records if not record["complete"]) == {"refused": 1}
    assert {record["process"]["comm"] for record in records} == {
        "users", "orders", "payments", "stock", "web", "mobile",
    }  # fmt: skip
    assert run.stderr.splitlines()[-1] == "apitrace: all of them were shown"
    assert "lovelace" in run.stdout  # a body
    assert "demo-token" not in json.dumps([record["request"]["headers"] for record in records])
    replayed = subprocess.run(
        [*APITRACE, "-j", "-q", "-r", str(recording)], capture_output=True, text=True, check=True, env=environment()
    )
    assert replayed.stderr == ""
    again = [json.loads(line) for line in replayed.stdout.splitlines()]
    masked = {"authorization", "cookie"}  # masked with a key of the run's own
    for record in (*records, *again):
        record["request"]["headers"] = {k: v for k, v in record["request"]["headers"].items() if k not in masked}
    assert again == records
