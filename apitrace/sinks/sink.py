"""What every sink does: take exchanges, push out what it holds, let go."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from apitrace.exchange import Exchange, Progress


class Sink(Protocol):
    """A place that exchanges go to. A failed write raises OutputError; a closed pipe raises BrokenPipeError."""

    def write(self, exchange: Exchange) -> None:
        """Take one exchange; may hold it until flush."""

    def flush(self) -> None:
        """Push out what is held. Called after every batch that the source gave, some 50 times a second."""

    def close(self) -> None:
        """Flush and let go. Called once."""


@runtime_checkable
class MessageSink(Sink, Protocol):
    """A sink that can show the messages of a call while it is open. Failures are as in Sink."""

    def write_message(self, progress: Progress) -> None:
        """Take what has just passed on a call. The call's exchange comes to `write` when it has ended."""
