"""A recording as a Source: the second way into the pipe, without root.

Events come in batches, each with the loss counters that were recorded among them. There is no clock but the events'.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apitrace.files.recording import Recording

_BATCH = 1024
"""Events a batch: sinks are flushed between batches, so not one; memory is bounded, so not all."""


class Replay:
    """Gives a recording's events to a Capture."""

    def __init__(self, recording: Recording) -> None:
        self._events: Iterator[bytes] = iter(recording)

    def poll(self, timeout_ms: int) -> list[bytes] | None:
        """Return the next batch, None at the end."""
        return list(itertools.islice(self._events, _BATCH)) or None

    def now(self) -> int | None:
        """Return None: only the events know the time."""
        return None

    def counters(self) -> bytes | None:
        """Return None: counters are among the events."""
        return None

    def verdict(self, conn: int, value: int) -> None:
        """Nothing to tell: what was copied was copied."""

    def stop(self) -> None:
        """Nothing to stop."""
