"""Makes the golden outputs of the sinks from exchanges.py.

To make them anew: python -m tests.golden.make_outputs. Look at the difference before it is committed: these files are
what users see.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from apitrace import __version__
from apitrace.exchange import Exchange, Progress
from apitrace.redact import Redactor
from apitrace.sinks.jsonl import JsonLines
from apitrace.sinks.table import Table
from tests.golden.exchanges import CALLS, EXCHANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apitrace.exchange import Outcome
    from apitrace.sinks.sink import MessageSink

HERE = Path(__file__).parent
REDACTED = tuple(map(Redactor(key=b"golden").redact, EXCHANGES))
REDACTED_CALLS = tuple(
    Redactor(key=b"golden").redact(call) if isinstance(call, Exchange) else call for call in CALLS
)


def write(sink: MessageSink, outcomes: Iterable[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Progress):
            sink.write_message(outcome)
        else:
            sink.write(outcome)
    sink.flush()


def table(
    width: int | None = None, *, color: bool = False, verbosity: int = 0, exchanges: Iterable[Outcome] = REDACTED
) -> bytes:
    """Return what the table prints, with UTC as the local time."""
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        sink = Table(stream, width=lambda: width, color=color, verbosity=verbosity)
        write(sink, exchanges)
        return stream.buffer.getvalue()
    finally:
        os.environ.pop("TZ")
        if zone is not None:
            os.environ["TZ"] = zone
        time.tzset()


def records(*, raw_headers: bool = False, exchanges: Iterable[Outcome] = REDACTED) -> bytes:
    """Return the JSON lines, with VERSION in place of this version."""
    stream = io.BytesIO()
    sink = JsonLines(stream, raw_headers=raw_headers, messages=True, node_name="node-1")
    write(sink, exchanges)
    return stream.getvalue().replace(f'"receiver_version":"{__version__}"'.encode(), b'"receiver_version":"VERSION"')


OUTPUTS: dict[str, Callable[[], bytes]] = {
    "table-80.txt": lambda: table(80),
    "table-132.txt": lambda: table(132),
    "table-24.txt": lambda: table(24),
    "table-file.txt": lambda: table(None),
    "table-132-color.txt": lambda: table(132, color=True),
    "table-80-v.txt": lambda: table(80, verbosity=1),
    "table-80-vv.txt": lambda: table(80, verbosity=2),
    "table-80-calls.txt": lambda: table(80, exchanges=REDACTED_CALLS),
    "table-132-calls-vv.txt": lambda: table(132, verbosity=2, exchanges=REDACTED_CALLS),
    "records.jsonl": records,
    "records-calls.jsonl": lambda: records(exchanges=REDACTED_CALLS),
    "records-raw-headers.jsonl": lambda: records(raw_headers=True),
    "records-show-secrets.jsonl": lambda: records(exchanges=EXCHANGES),
}
"""File name to what makes its content."""


if __name__ == "__main__":
    for name, make in OUTPUTS.items():
        (HERE / name).write_bytes(make())
