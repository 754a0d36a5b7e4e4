"""Recorded HTTP/2 in, whole output out. record_http2.sh made recorded/http2*, on Linux 6.18."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from apitrace import __version__

HERE = Path(__file__).with_name("recorded")
COMMAND = [sys.executable, "-m", "apitrace", "-r", str(HERE / "http2.apitrace"), "-q", "--show-secrets", "-s", "256"]


def replay(*flags: str) -> bytes:
    environment = {**os.environ, "TZ": "UTC", "PYTHONPATH": str(HERE.parents[2])}
    return subprocess.run([*COMMAND, *flags], env=environment, capture_output=True, check=True).stdout


@pytest.mark.parametrize(("flags", "golden"), [(("-j",), "http2.jsonl"), (("-o", "table", "-v"), "http2-v.txt")])
def test_recorded_http_2_gives_the_same_output_again(flags: tuple[str, ...], golden: str) -> None:
    out = replay(*flags).replace(f'"receiver_version":"{__version__}"'.encode(), b'"receiver_version":"0.1.0"')
    assert out == (HERE / golden).read_bytes()


def test_it_is_what_was_called() -> None:
    """Two rounds of nine calls by Python, three by node and one by curl, all of them seen at both ends."""
    records = [orjson.loads(line) for line in replay("-j").splitlines()]
    calls = {
        role: Counter(
            (record["request"]["path"], (record["response"] or {}).get("status_code"))
            for record in records if record["process"]["role"] == role
        )
        for role in ("client", "server")
    }  # fmt: skip
    assert calls["client"] == {
        ("/bytes/5", 200): 3, ("/status/404", 404): 2, ("/status/418", 418): 2, ("/trailers/26", 200): 3,
        ("/echo", 200): 3, ("/early", 200): 2, ("/reset", None): 2, ("/slow/20/x", None): 2, ("/bytes/20000", 200): 2,
        ("/bytes/7", 200): 1,
    }  # fmt: skip
    cancelled = Counter({("/slow/20/x", None): 2})
    assert calls["server"] == calls["client"] - cancelled + Counter({("/slow/20/x", 200): 2})  # it had answered
    assert {(record["protocol"], bool(record["unknown"])) for record in records} == {("HTTP/2", False)}
