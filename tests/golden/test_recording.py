"""Recorded kernel events in, whole output out: every stage behind the probes, without root.

The recording and the outputs were made, in tests/golden/recorded, with

    apitrace --demo -w demo.apitrace
    apitrace -r demo.apitrace -q --show-secrets -s 256 -j > demo.jsonl
    TZ=UTC apitrace -r demo.apitrace -q --show-secrets -s 256 -o table -v > demo-v.txt
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from apitrace import __version__

HERE = Path(__file__).with_name("recorded")
COMMAND = [sys.executable, "-m", "apitrace", "-r", str(HERE / "demo.apitrace"), "--show-secrets", "-s", "256"]


def replay(*flags: str) -> tuple[bytes, str]:
    environment = {**os.environ, "TZ": "UTC", "PYTHONPATH": str(HERE.parents[2])}
    done = subprocess.run([*COMMAND, *flags], env=environment, capture_output=True, check=True)
    return done.stdout, done.stderr.decode()


@pytest.mark.parametrize(("flags", "golden"), [(("-j",), "demo.jsonl"), (("-o", "table", "-v"), "demo-v.txt")])
def test_a_recorded_demo_gives_the_same_output_again(flags: tuple[str, ...], golden: str) -> None:
    out, err = replay(*flags, "-q")
    expected = (HERE / golden).read_bytes()
    assert out.replace(f'"receiver_version":"{__version__}"'.encode(), b'"receiver_version":"0.1.0"') == expected
    assert err == ""


def test_it_is_what_the_workload_does() -> None:
    """25 calls with two ends, and one connect that is refused (see apitrace/demo.py)."""
    records = [orjson.loads(line) for line in replay("-j", "-q")[0].splitlines()]
    assert len(records) == 51
    assert [record["protocol"] for record in records].count("TCP") == 1
    calls = {
        role: sorted(
            (each["request"]["method"], each["request"]["path"], each["response"]["status_code"])
            for each in records if each["process"]["role"] == role and each["protocol"] != "TCP"
        )
        for role in ("client", "server")
    }  # fmt: skip
    assert calls["client"] == calls["server"]
    assert len(calls["client"]) == 25


def test_the_summary_of_a_replay_is_that_of_the_capture() -> None:
    assert replay("-j")[1] == (
        "apitrace: 51 exchanges captured, 0 unanswered, 0 filtered\n"
        "apitrace: 0 events dropped by kernel, 0 bytes unseen\n"
        "apitrace: 25 connections, 0 joined mid-stream\n"
    )
