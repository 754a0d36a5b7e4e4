"""The built-in workload runs as its own table says, tidies up, and tells how much of it was shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from apitrace import demo


def test_the_expectation_counts_each_call_at_both_ends_and_the_refused_connect_at_one() -> None:
    assert (demo.CALLS_MADE, demo.REFUSED, demo.EXPECTED) == (25, 1, 51)


def workload_is_running(pid: int) -> bool:
    """Whether it has not ended; it is not reaped before its context is left."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_waits_until_it_may_begin_and_then_gets_every_answer_that_its_table_promises() -> None:
    with demo.Workload() as workload:
        [pid] = workload.pids
        tasks = Path(f"/proc/{pid}/task/{pid}/children")
        assert tasks.read_text() == ""
        workload.begin()
        assert workload.wait() == 0


def test_it_ends_with_its_context_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with demo.Workload() as workload:
        [pid] = workload.pids
        workload.begin()
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            assert workload_is_running(pid)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list(tmp_path.iterdir()) == []


def test_its_processes_have_the_names_of_their_parts() -> None:
    expected = {"users", "orders", "payments", "stock", "web", "mobile"}
    with demo.Workload() as workload:
        [pid] = workload.pids
        workload.begin()
        seen: set[str] = set()
        while seen < expected:
            assert workload_is_running(pid)
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                seen.add(Path(f"/proc/{child}/comm").read_text().strip())
            seen &= expected
    assert seen == expected


def test_it_says_whether_all_was_shown() -> None:
    made = "the workload made 25 calls, each with two ends, and 1 connect that was refused: 51 exchanges"
    workload = object.__new__(demo.Workload)
    assert workload.compare(51) == [made, "all of them were shown"]
    assert workload.compare(50) == [
        made,
        "50 were shown, which is right only if the capture was narrowed or interrupted",
    ]
