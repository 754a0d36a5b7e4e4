"""The sinks print, byte for byte, what was looked at and committed; make_outputs.py makes the files."""

from __future__ import annotations

import pytest

from tests.golden.make_outputs import HERE, OUTPUTS


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_is_the_committed_one(name: str) -> None:
    assert OUTPUTS[name]().decode() == (HERE / name).read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in HERE.glob("*.txt")} | {path.name for path in HERE.glob("*.jsonl")} == set(OUTPUTS)
