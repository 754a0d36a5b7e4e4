"""One capture: source, connection table, assembler, sinks, from the first event to the summary.

The only place that knows all stages and the clock. Data goes one way; what stops a capture (a signal, a count, a
time, the target's end, a closed pipe, a full disk) is decided here, and whatever stops it, what was captured is
decoded, shown and written before the summary is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from apitrace.assemble import Assembler
from apitrace.connection import Batch, ConnectionTable
from apitrace.errors import OutputError, PlatformError
from apitrace.exchange import Exchange, Outcome, Progress
from apitrace.options import CallOptions
from apitrace.probes import events
from apitrace.redact import Redactor
from apitrace.sinks.recording import Recorder
from apitrace.sinks.sink import MessageSink, Sink
from apitrace.stats import Stats

POLL_MS = 20
"""How long the kernel may fill the ring buffer before it is read: measured, half the cost of waking per event."""

STAGED_EVENTS = 64
"""Events that go through a stage before the next stage runs. One stage's code fits a CPU's instruction cache (32 KiB)
and all of them together do not: event by event, an exchange took twice the time."""

_SILENCE_NS = 5_000_000_000
"""After so long without an exchange, one line says why."""

_TARGET_CHECK_NS = 1_000_000_000
_STATUS_NS = 500_000_000


class Source(Protocol):
    """Where raw events come from: live probes, or a recording."""

    def poll(self, timeout_ms: int) -> list[bytes] | None:
        """Return the next raw events, in order; None when there will be no more."""

    def now(self) -> int | None:
        """Return the present time on the events' clock; None if only the events know it."""

    def counters(self) -> bytes | None:
        """Return the kernel programs' counters as a raw event, None if they have not changed."""

    def verdict(self, conn: int, value: int) -> None:
        """Tell the kernel programs about a connection."""

    def stop(self) -> None:
        """Make no new events; those there are can still be polled."""


@dataclass(slots=True)
class Limits:
    """What ends a capture by itself."""

    count: int | None = None
    duration_ns: int | None = None
    ended: Callable[[], bool] = field(default=lambda: False)
    """Asked once a second and after each exit of a process: has the target gone?"""


class Capture:
    """Runs the stages. `run` returns when the capture is over; the exit status is the caller's affair."""

    def __init__(
        self,
        source: Source,
        sinks: list[Sink],
        *,
        stats: Stats,
        clock_offset_ns: int,
        snaplen: int,
        redactor: Redactor,
        calls: CallOptions | None = None,
        keep: Callable[[Exchange], bool] | None = None,
        recorder: Recorder | None = None,
        limits: Limits | None = None,
        say: Callable[[str], None] = lambda _: None,
        status: Callable[[str], None] | None = None,
    ) -> None:
        """`calls` says what to make of the messages of gRPC calls; they go to the sinks that can show them live."""
        self._source = source
        self._sinks = sinks
        self._message_sinks = [sink for sink in sinks if isinstance(sink, MessageSink)]
        self._stats = stats
        self._table = ConnectionTable(stats=stats)
        self._assembler = Assembler(stats=stats, clock_offset_ns=clock_offset_ns, snaplen=snaplen, calls=calls)
        self._redactor = redactor
        self._keep = keep
        self._recorder = recorder
        self._limits = limits or Limits()
        self._say = say
        self._status = status
        self._stop = False
        self._report = False
        self._counted_out = False
        """The wanted number of exchanges was shown: what else was captured is of no account."""
        self._broken_pipe = False
        self.shown = 0
        """Exchanges that went to the sinks."""
        self.stopped_by: int | None = None
        """The signal that ended the capture, if one did."""

    def request_stop(self, number: int, _frame: FrameType | None = None) -> None:
        """End the capture at the next batch, because of a signal. A second one ends the program at once."""
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = number
        self._stop = True

    def request_report(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Print the counters at the next batch (SIGUSR1)."""
        self._report = True

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGUSR1 for the time of the capture."""
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGINT: self.request_stop,
            signal.SIGTERM: self.request_stop,
            signal.SIGUSR1: self.request_report,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> None:
        """Capture until something ends it; then show what is open, and close the sinks.

        Raises OutputError, or PlatformError if the kernel's side was lost: what was captured is shown all the same.
        """
        lost = None
        try:
            try:
                self._loop()
            except PlatformError as error:
                lost = error
            self._finish()
        except BrokenPipeError:
            self._broken_pipe = True
        finally:
            self._source.stop()
            self._close()
        if lost is not None:
            raise lost

    def _loop(self) -> None:
        source, limits = self._source, self._limits
        began = checked = drawn = time.monotonic_ns()
        live = source.now() is not None
        explained = not live
        shown_before = 0
        while not self._stop:
            raw = source.poll(POLL_MS)
            if raw is None:
                return
            exited = self._take(raw)
            self._flush()
            now = time.monotonic_ns()
            if self._report:
                self._report = False
                self._count_losses()
                for line in self._stats.summary_lines():
                    self._say(line)
            if not explained and (self.shown or now - began > _SILENCE_NS):
                explained = True
                if not self.shown:
                    self._count_losses()
                    self._say(f"nothing yet: {self._stats.why_nothing()}")
            if self._status is not None and now - drawn > _STATUS_NS:
                self._count_losses()
                rate = (self.shown - shown_before) * 1e9 / (now - drawn)
                drawn, shown_before = now, self.shown
                self._status(f"{rate:.0f}/s  {self._stats.open} open  {self._stats.counter('ring_full')} lost")
            if limits.duration_ns is not None and now - began >= limits.duration_ns:
                return
            if live and (exited or now - checked > _TARGET_CHECK_NS):
                checked = now
                if limits.ended():
                    return

    # -- hot -------------------------------------------------------------------------------------------------------

    def _take(self, raw: list[bytes]) -> bool:
        """Put a batch of raw events through the stages. Return whether a process has exited."""
        ended = False
        at = 0
        for start in range(0, len(raw), STAGED_EVENTS):
            records = raw[start : start + STAGED_EVENTS]
            if self._recorder is not None:
                for record in records:
                    self._recorder.write(record)
            decoded = list(map(events.decode, records))
            at = decoded[-1].at
            ended = ended or any(record[0] == events.EXIT for record in records)
            self._show([batch for event in decoded for batch in self._table.feed(event)])
            if self._counted_out:
                return ended
        now = self._source.now() or at
        self._show(self._table.tick(now))
        for notice in self._table.pop_notices():
            self._say(notice)
        for conn, verdict in self._table.pop_verdicts():
            self._source.verdict(conn, verdict)
        return ended

    def _show(self, batches: list[Batch]) -> None:
        """Put batches through the stages behind the table."""
        for outcome in [outcome for batch in batches for outcome in self._assembler.feed(batch)]:
            self._emit(outcome)

    def _emit(self, exchange: Outcome) -> None:
        if self._counted_out:
            return
        if isinstance(exchange, Progress):
            self._emit_progress(exchange)
            return
        if self._keep is not None and not self._keep(exchange):
            self._stats.filtered += 1
            return
        exchange = self._redactor.redact(exchange)
        for sink in self._sinks:
            sink.write(exchange)
        self.shown += 1
        if self.shown == self._limits.count:
            self._counted_out = self._stop = True

    def _emit_progress(self, progress: Progress) -> None:
        """Show a message of a call that goes on. It counts neither as shown nor as filtered: its exchange will."""
        if self._keep is not None and not self._keep(progress.exchange):
            return
        exchange = self._redactor.redact(progress.exchange)
        if exchange is not progress.exchange:
            progress = progress._replace(exchange=exchange)
        for sink in self._message_sinks:
            sink.write_message(progress)

    # -- once per batch or per capture -----------------------------------------------------------------------------

    def _flush(self) -> None:
        for sink in self._sinks:
            sink.flush()
        if self._recorder is not None:
            self._recorder.flush()

    def _count_losses(self) -> None:
        raw = self._source.counters()
        if raw is not None:
            if self._recorder is not None:
                self._recorder.write(raw)
            # An event like any other: with it the time goes on, and connections come to their ends.
            self._show(self._table.feed(events.decode(raw)))

    def _finish(self) -> None:
        """Decode what is still in the ring buffer, then show what is open."""
        self._source.stop()
        while not self._counted_out and self._source.now() is not None:
            raw = self._source.poll(0)
            if not raw:
                break
            self._take(raw)
        self._count_losses()
        if not self._counted_out:
            at = self._source.now() or self._table.newest
            self._show(self._table.drain(at))
            for exchange in self._assembler.drain(at):
                self._emit(exchange)
        self._flush()

    def _close(self) -> None:
        failure: OutputError | None = None
        for sink in self._sinks:
            try:
                sink.close()
            except BrokenPipeError:
                self._broken_pipe = True
            except OutputError as error:
                failure = failure or error
        if self._recorder is not None:
            try:
                self._recorder.close()
            except OutputError as error:
                failure = failure or error
        if self._broken_pipe:
            # The interpreter flushes stdout at exit, and would complain there once more.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if failure is not None and sys.exc_info()[0] is None:
            raise failure
