"""Recorded gRPC calls in, whole output out: every kind of streaming, every status, a cancellation and deadlines.

The recording was made with

    apitrace -p PID -w grpc.apitrace

of tests/live/programs/grpc_end.py as the server, which the client of tests/live/programs/grpc_go asked for CALLS of
tests/live/test_grpc.py, but for the one of 40,000 bytes; and the outputs, in tests/golden/recorded, with

    apitrace -r grpc.apitrace -q --show-secrets -s 256 -j > grpc.jsonl
    TZ=UTC apitrace -r grpc.apitrace -q --show-secrets -s 256 -o table -vv > grpc-vv.txt
"""

from __future__ import annotations

import orjson
import pytest

from apitrace import __version__
from tests.golden.test_recording import HERE, replay


@pytest.mark.parametrize(("flags", "suffix"), [(("-j",), ".jsonl"), (("-o", "table", "-vv"), "-vv.txt")])
def test_recorded_calls_give_the_same_output_again(flags: tuple[str, ...], suffix: str) -> None:
    out, err = replay(*flags, "-q", name="grpc")
    expected = (HERE / f"grpc{suffix}").read_bytes()
    assert out.replace(f'"receiver_version":"{__version__}"'.encode(), b'"receiver_version":"0.1.0"') == expected
    assert err == ""


def test_messages_as_they_pass_are_those_of_the_calls() -> None:
    lines = [orjson.loads(line) for line in replay("-j", "-q", "--messages", name="grpc")[0].splitlines()]
    calls = [line for line in lines if "kind" not in line]
    passed = [line for line in lines if "kind" in line]
    assert len(calls) == 29
    assert len(passed) == sum(line["grpc"]["request_count"] + line["grpc"]["response_count"] for line in calls)
