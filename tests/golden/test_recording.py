"""Recorded kernel events in, whole output out: every stage behind the probes, without root.

The recordings were made, in the root directory, with

    apitrace --demo -w demo.apitrace
    apitrace -w tls.apitrace -- python -m tests.golden.tls_workload

and the outputs of both, in tests/golden/recorded, with

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
COMMAND = [sys.executable, "-m", "apitrace", "--show-secrets", "-s", "256"]


def replay(*flags: str, name: str = "demo") -> tuple[bytes, str]:
    environment = {**os.environ, "TZ": "UTC", "PYTHONPATH": str(HERE.parents[2])}
    command = [*COMMAND, "-r", str(HERE / f"{name}.apitrace"), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return done.stdout, done.stderr.decode()


@pytest.mark.parametrize("name", ["demo", "tls"])
@pytest.mark.parametrize(("flags", "suffix"), [(("-j",), ".jsonl"), (("-o", "table", "-v"), "-v.txt")])
def test_a_recording_gives_the_same_output_again(name: str, flags: tuple[str, ...], suffix: str) -> None:
    out, err = replay(*flags, "-q", name=name)
    expected = (HERE / f"{name}{suffix}").read_bytes()
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


CALLS = [
    ("curl", "GET", "/items?q=1", 200, "TLSv1.3", "socket"),
    ("curl", "POST", "/items", 200, "TLSv1.3", "socket"),
    ("curl", "GET", "/gone", 404, "TLSv1.2", "socket"),
    ("node", "GET", "/node/1", 200, "TLSv1.3", "bio"),
    ("node", "PUT", "/node/2", 200, "TLSv1.3", "bio"),
]


def test_of_tls_it_is_what_its_workload_does_at_both_ends() -> None:
    """Five calls, and one that trusts nobody (see tls_workload.py). The server gives OpenSSL memory, as node does."""
    records = [orjson.loads(line) for line in replay("-j", "-q", name="tls")[0].splitlines()]
    for role in ("client", "server"):
        own = [record for record in records if record["process"]["role"] == role]
        assert [
            (
                each["process"]["comm"], each["request"]["method"], each["request"]["path"],
                each["response"]["status_code"], each["tls"]["version"], each["connection"]["address_source"],
            )
            for each in own if each["protocol"] != "TLS"
        ] == [call if role == "client" else ("python", *call[1:5], "bio") for call in CALLS]  # fmt: skip
        [failed] = [each for each in own if each["protocol"] == "TLS"]
        assert failed["error"] == {
            "kind": "closed", "detail": "the TLS handshake failed: the client sent unknown_ca",
        }  # fmt: skip
        assert {each["tls"]["sni"] for each in own} == {"localhost"}
    ends = [
        {(each["request"]["path"], each["source"]["port"], each["destination"]["port"]) for each in records
         if each["process"]["role"] == role} for role in ("client", "server")
    ]  # fmt: skip
    assert ends[0] == ends[1]
    assert len({each["id"] for each in records}) == len(records) == 12


def test_the_summary_of_recorded_tls_is_that_of_its_capture() -> None:
    assert replay("-j", name="tls")[1] == (
        "apitrace: 12 exchanges captured, 0 unanswered, 0 filtered\n"
        "apitrace: 0 events dropped by kernel, 0 bytes unseen\n"
        "apitrace: 10 connections, 0 joined mid-stream, 8 TLS\n"
    )
