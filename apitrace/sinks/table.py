"""The table: one row per exchange, for a person at a terminal.

    TIME         PROCESS         HTTP METHOD HOST AND PATH        STAT  SIZE    LAT
    22:13:20.123 nginx[4121]  <- h1.1 GET  127.0.0.1:8000/items/7 200     17 1.23ms

A row never wraps and never exceeds the terminal's width, which is asked for once per batch; at 80 columns it has 79
cells. Only the request's column grows and shrinks with the width; before it becomes too small other columns go, the
least telling first. Without a width (output to a file) nothing of it is cut. The arrow is the direction of the request
as the traced process sees it: "->" it is the client, "<-" it is the server. SIZE is the response body's.

A gRPC call has "grpc" in the column of the protocol, its status behind the path unless that is OK, and the numbers of
its messages each way (">3 <5") unless it has one and one. One that is seen to carry more than that has rows before it
ends: when it is found to be such a call ("open"), and for each message, whose LAT is the time since the call began.

What is not true and complete is marked: "!" at the status, and the reason behind the path. Where there is no response,
the kind of the failure takes the place of status and size. "?" stands for what was on the wire and could not be
recovered, "-" for what does not exist.

Captured text passes through `text.escape`, so it cannot act on the terminal. The status line is the last line of the
screen: it is erased before rows are written and drawn again after them.
"""

from __future__ import annotations

import codecs
import json
import time
from typing import TYPE_CHECKING, NamedTuple, TextIO

from apitrace.sinks.output import Output
from apitrace.sinks.text import body_text, cells, duration, escape, fit, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apitrace.exchange import CallMessage, Container, Endpoint, Exchange, Grpc, Process, Progress, Request, Response

_RESET = "\x1b[0m"
_BOLD, _DIM, _RED, _GREEN, _YELLOW, _CYAN = (f"\x1b[{code}m" for code in (1, 2, 31, 32, 33, 36))
_STATUS_COLORS = {1: _CYAN, 2: _GREEN, 3: _CYAN, 4: _YELLOW, 5: _RED}
"""By the first digit of the status code."""
_ERASE = "\r\x1b[K"
"""To the start of the line, and erase to its end: ECMA-48, sections 8.3.15 and 8.3.41."""

_ARROWS = {"client": "->", "server": "<-"}
_SIDE_MARKS = {"client": ">", "server": "<"}
_PROTOCOLS = {"HTTP/1.0": "h1.0", "HTTP/1.1": "h1.1", "HTTP/2": "h2"}

_CLOCK, _NO_TIME, _UNIX_TIME, _SINCE_PREVIOUS, _DATE, _SINCE_FIRST = range(6)
"""What the time column holds, by how often -t was given: as in tcpdump, but for milliseconds where a clock is shown."""
_TIME_CELLS = (12, 0, 17, 16, 23, 16)
_CLOCK_FORMATS = {_CLOCK: "%H:%M:%S", _DATE: "%Y-%m-%d %H:%M:%S"}
_PROCESS_CELLS = (12, 24)
"""Least, at 80 columns, and most, from 152 on: a comm has up to 15 characters, a pid up to 7."""
_DIRECTION_CELLS, _PROTOCOL_CELLS, _STATUS_CELLS, _SIZE_CELLS, _LATENCY_CELLS = 2, 4, 4, 5, 6
_OUTCOME_CELLS = _STATUS_CELLS + 1 + _SIZE_CELLS
"""Room for "unanswered" and "unreadable" where there is neither status nor size."""
_REQUEST_CELLS = 20
"""The request's column is not made smaller than this as long as another can go instead."""
_UNCUT_REQUEST_CELLS = 40
"""Without a width the request is padded to this, so that most rows are still aligned."""
_LEAST_WIDTH = 24
"""What is narrower than an outcome and a dozen characters of request is written as if it were so wide."""

_DISPENSABLE = ("protocol", "process", "time", "direction", "latency")
"""Columns in the order in which they go from a terminal that is too narrow for all."""

_BODIES = 2
"""The verbosity from which on bodies are shown."""
_BINARY_PREVIEW_BYTES = 16
"""A row of a hex dump: enough for every magic number."""
_TAB_CELLS = 4

_SECOND_NS, _MILLISECOND_NS, _MICROSECOND_NS = 1_000_000_000, 1_000_000, 1_000


class _Layout(NamedTuple):
    """Which columns there are at one width, and how wide they are."""

    widths: dict[str, int]
    """Cells by column, but for the request's."""
    request: int | None
    """Cells of the request's column; None: as many as it takes."""

    @classmethod
    def of(cls, width: int | None, time_cells: int) -> _Layout:
        """Return the layout for so many columns of terminal."""
        least, most = _PROCESS_CELLS
        widths = {
            "time": time_cells,
            "process": most if width is None else min(max(least, (width - 8) // 6), most),
            "direction": _DIRECTION_CELLS,
            "protocol": _PROTOCOL_CELLS,
            "outcome": _OUTCOME_CELLS,
            "latency": _LATENCY_CELLS,
        }
        if not time_cells:
            del widths["time"]
        if width is None:
            return cls(widths, None)

        def left() -> int:  # the last cell stays empty: some terminals wrap when it is written
            return max(width, _LEAST_WIDTH) - 1 - sum(widths.values()) - len(widths)

        for name in _DISPENSABLE:
            if left() >= _REQUEST_CELLS:
                break
            widths.pop(name, None)
        return cls(widths, left())


class Table:
    """Writes rows to a terminal or a text file."""

    def __init__(
        self,
        stream: TextIO,
        *,
        width: Callable[[], int | None],
        color: bool,
        verbosity: int,
        timestamps: int = 0,
        status_line: bool = False,
    ) -> None:
        """`width` gives the terminal's columns, or None if there is no terminal. `verbosity`: 1 adds headers, 2 bodies.

        `timestamps` is how often -t was given, with tcpdump's meanings. `status_line`: the stream is a terminal, and
        what `set_status` is given is to be shown on it.
        """
        stream.flush()
        self._stream = stream  # it would close what is below it if nobody held it
        self._output = Output(stream.buffer, "standard output")
        self._encoding = codecs.lookup(stream.encoding).name
        self._ellipsis = "…" if self._encoding == "utf-8" else "~"
        self._width = width
        self._color = color
        self._verbosity = verbosity
        self._time_kind = min(timestamps, _SINCE_FIRST)
        self._layout: _Layout | None = None
        self._begun = False
        self._second: int | None = None
        self._clock = ""
        self._first_ns: int | None = None
        self._previous_ns = 0
        self._has_status_line = status_line
        self._status = ""
        self._drawn = False

    # -- the Sink ----------------------------------------------------------------------------------------------------

    def write(self, exchange: Exchange) -> None:
        """Take one exchange."""
        layout = self._layout or self._lay_out()
        lines = [self._row(exchange, layout)]
        if self._verbosity:
            lines += self._details(exchange)
        lines.append("")
        self._put("\n".join(lines))

    def write_message(self, progress: Progress) -> None:
        """Take a message of a call that goes on, or that there is such a call."""
        exchange, message = progress.exchange, progress.message
        layout = self._layout or self._lay_out()
        if message is None:
            self._put(self._row(exchange, layout, outcome=f"{'open':>{_OUTCOME_CELLS}}") + "\n")
            return
        mark = _SIDE_MARKS.get(progress.side or "", "?")
        at = exchange.timestamp if message.timestamp is None else message.timestamp
        lines = [
            self._row(
                exchange._replace(timestamp=at, latency_ns=at - exchange.timestamp),
                layout,
                method=f"{mark}{'?' if progress.ordinal is None else progress.ordinal + 1}",
                outcome=f"{size(message.size):>{_OUTCOME_CELLS}}",
            )
        ]
        if self._verbosity >= _BODIES:
            lines.append(self._clean(f"    {mark} {_said(message)}"))
        lines.append("")
        self._put("\n".join(lines))

    def flush(self) -> None:
        """Push out the rows that are held."""
        self._layout = None
        if self._status and not self._drawn:
            text = fit(self._clean(self._status), max(1, (self._width() or 80) - 1), self._ellipsis).rstrip()
            # The cursor goes back to the line's start: what others write to the terminal then covers the status line.
            self._put(f"{self._paint(text, _DIM)}\r")
            self._drawn = True
        self._output.flush()

    def close(self) -> None:
        """Flush and let go; the status line goes away."""
        self.set_status("")
        self.flush()
        self._output.close()

    def set_status(self, text: str) -> None:
        """Show this as the last line of the screen, at once; nothing, if it is empty."""
        if self._has_status_line and text != self._status:
            self._status = text
            self._put("")
            self.flush()

    def _put(self, text: str) -> None:
        if self._drawn:
            self._drawn = False
            text = _ERASE + text
        self._output.put(text.encode(self._encoding, "backslashreplace"))

    def _lay_out(self) -> _Layout:
        """Ask how wide the terminal is now. Before the first row, write the column titles."""
        layout = self._layout = _Layout.of(self._width(), _TIME_CELLS[self._time_kind])
        if not self._begun:
            self._begun = True
            titles = {"time": "TIME", "process": "PROCESS", "direction": "", "protocol": "HTTP"}
            left = [f"{title:<{layout.widths[name]}}" for name, title in titles.items() if name in layout.widths]
            request = fit("METHOD HOST AND PATH", layout.request or _UNCUT_REQUEST_CELLS, self._ellipsis)
            right = [f"{'STAT':>{_STATUS_CELLS}} {'SIZE':>{_SIZE_CELLS}}"]
            if "latency" in layout.widths:
                right.append(f"{'LAT':>{_LATENCY_CELLS}}")
            self._put(self._paint(" ".join([*left, request, *right]), _BOLD) + "\n")
        return layout

    # -- a row -------------------------------------------------------------------------------------------------------

    def _row(
        self, exchange: Exchange, layout: _Layout, *, method: str | None = None, outcome: str | None = None
    ) -> str:
        """Return a row; `method` and `outcome` stand in place of the exchange's, for a call that goes on."""
        widths = layout.widths
        row = []
        if "time" in widths:
            row.append(f"{self._time(exchange.timestamp):<{widths['time']}}")
        if "process" in widths:
            row.append(self._process_cell(exchange.process, widths["process"]))
        if "direction" in widths:
            row.append(_ARROWS.get(exchange.process.role or "", "? "))
        if "protocol" in widths:
            protocol = _PROTOCOLS.get(exchange.protocol, exchange.protocol) if exchange.grpc is None else "grpc"
            row.append(f"{protocol:<{_PROTOCOL_CELLS}}")
        row.append(self._request_cell(exchange, layout.request, method, outcome is None))
        row.append(self._outcome_cell(exchange) if outcome is None else outcome)
        if "latency" in widths:
            latency = "-" if exchange.latency_ns is None else duration(exchange.latency_ns)
            row.append(f"{latency:>{_LATENCY_CELLS}}")
        return " ".join(row)

    def _time(self, timestamp: int) -> str:
        """Return the row's time in the way that was asked for."""
        if self._first_ns is None:
            self._first_ns = self._previous_ns = timestamp
        previous_ns, self._previous_ns = self._previous_ns, timestamp
        second, nanosecond = divmod(timestamp, _SECOND_NS)
        if self._time_kind == _SINCE_PREVIOUS:
            return _elapsed(timestamp - previous_ns)
        if self._time_kind == _SINCE_FIRST:
            return _elapsed(timestamp - self._first_ns)
        if self._time_kind == _UNIX_TIME:
            return f"{second}.{nanosecond // _MICROSECOND_NS:06}"
        if second != self._second:
            self._second = second
            self._clock = time.strftime(_CLOCK_FORMATS[self._time_kind], time.localtime(second))
        return f"{self._clock}.{nanosecond // _MILLISECOND_NS:03}"

    def _process_cell(self, process: Process, width: int) -> str:
        if process.container is not None:
            return fit(self._clean(process.container.name or process.container.id[:12]), width, self._ellipsis)
        pid = f"[{process.pid}]"
        comm = self._clean(process.comm)
        if cells(comm) + len(pid) > width:
            return fit(comm, width - len(pid), self._ellipsis) + pid
        return fit(comm + pid, width, self._ellipsis)

    def _request_cell(self, exchange: Exchange, width: int | None, method: str | None, ended: bool) -> str:
        """Return method, host and path, and behind them what is wrong with the exchange."""
        request = exchange.request
        if method is None:
            method = self._clean(request.method or ("?" if "request.method" in exchange.unknown else "-"))
        host, path = (self._clean(part) for part in _target(exchange))
        call = _call_note(exchange.grpc) if ended and exchange.grpc is not None else ""
        note = self._clean(call + _note(exchange))
        well = exchange.complete and (exchange.grpc is None or exchange.grpc.status_code == 0)
        color = _DIM if well else _RED
        if width is None:
            text = f"{method:<4} {host}{path}"
            return fit(text, max(cells(text), _UNCUT_REQUEST_CELLS - cells(note)), "") + self._paint(note, color)
        if note:
            note = fit(note, min(cells(note), width // 2), self._ellipsis)
        width -= cells(note)
        room = width - max(4, cells(method)) - 1
        if cells(host) + cells(path) > room > 0:  # the path tells more: it gets two thirds if it needs them
            host = fit(host, min(cells(host), max(room // 3, room - cells(path))), self._ellipsis)
        return fit(f"{method:<4} {host}{path}", width, self._ellipsis) + self._paint(note, color)

    def _outcome_cell(self, exchange: Exchange) -> str:
        response, error = exchange.response, exchange.error
        if response is None:
            kind = "-" if error is None else error.kind
            return self._paint(f"{kind:>{_OUTCOME_CELLS}}", _RED)
        code = response.status_code
        status = f"{'?' if code is None else code:>{_STATUS_CELLS - 1}}{' ' if exchange.complete else '!'}"
        color = _RED if error or code is None else _STATUS_COLORS.get(code // 100, _RED)
        body = "?" if "response.body_size" in exchange.unknown else size(response.body_size)
        return f"{self._paint(status, color)} {body:>{_SIZE_CELLS}}"

    # -- what -v and -vv add -----------------------------------------------------------------------------------------

    def _details(self, exchange: Exchange) -> Iterator[str]:
        """Give the lines under a row. They are whole, so a URL can be copied; the terminal may wrap them."""
        yield from (f"    {self._clean(line)}" for line in _about(exchange))
        request, response, unknown, call = exchange.request, exchange.response, exchange.unknown, exchange.grpc
        if request.method is not None or request.path is not None:
            yield self._clean(f"    > {request.method or '?'} {request.path or '?'} {exchange.protocol}")
            yield from self._message(request, "    >", "request.body_size" in unknown, call and call.requests)
        if response is not None:
            code = "?" if response.status_code is None else response.status_code
            yield self._clean(f"    < {exchange.protocol} {code} {response.reason or ''}".rstrip())
            yield from self._message(response, "    <", "response.body_size" in unknown, call and call.responses)

    def _message(
        self, message: Request | Response, mark: str, unsized: bool, inner: Sequence[CallMessage] | None
    ) -> Iterator[str]:
        """Give the lines of a request or response; `inner` are the messages in its body."""
        for header in message.headers:
            yield self._clean(f"{mark} {header.raw_name}: {header.value}")
        if inner and self._verbosity >= _BODIES:
            yield mark
            yield from (self._clean(f"{mark} {_said(each)}") for each in inner)
        elif message.body_size or message.body or unsized:
            yield mark
            yield from (f"{mark} {line}" for line in self._body(message, "?" if unsized else str(message.body_size)))
        for header in message.trailers:
            yield self._clean(f"{mark} trailer {header.raw_name}: {header.value}")

    def _body(self, message: Request | Response, sent: str) -> Iterator[str]:
        body = message.body
        if self._verbosity == 1 or not body:
            yield f"<body of {sent} bytes{'' if body else ', not kept'}>"
            return
        text = body_text(body, truncated=message.truncated)
        if text is None or "\0" in text:
            more = "..." if len(body) > _BINARY_PREVIEW_BYTES else ""
            yield f"<binary, {len(body)} bytes: {body[:_BINARY_PREVIEW_BYTES].hex()}{more}>"
        else:
            for line in text.removesuffix("\n").split("\n"):
                yield self._clean(line.removesuffix("\r").expandtabs(_TAB_CELLS))
        if message.truncated:
            yield f"<truncated: {len(body)} bytes are shown, {sent} were sent>"

    def _clean(self, text: str) -> str:
        """Escape captured text, also what the stream's encoding has no character for."""
        text = escape(text)
        if self._encoding == "utf-8":
            return text
        return text.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _paint(self, text: str, color: str) -> str:
        return f"{color}{text}{_RESET}" if self._color and text else text


def _elapsed(nanoseconds: int) -> str:
    """Return a span as tcpdump does; negative if this request began before that of the row it is measured from."""
    seconds, microseconds = divmod(abs(nanoseconds) // _MICROSECOND_NS, 1_000_000)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{microseconds:06}"


def _address(end: Endpoint) -> str:
    if end.path is not None:
        return end.path or "(unnamed)"
    if end.ip is None:
        return "?"
    ip = f"[{end.ip}]" if ":" in end.ip else end.ip
    return ip if end.port is None else f"{ip}:{end.port}"


def _target(exchange: Exchange) -> tuple[str, str]:
    """Return host and path as the row shows them: together the URL without its scheme."""
    request = exchange.request
    sni = exchange.tls.sni if exchange.tls is not None else None
    host = request.authority or sni or _address(exchange.destination)
    if request.path is None:
        return host, " ?" if "request.path" in exchange.unknown else ""
    if request.path.startswith("/"):
        return host, request.path
    if request.path == "*":  # OPTIONS *, about the server as a whole: RFC 9110 section 9.3.7
        return host, " *"
    return "", request.path  # absolute-form or authority-form: the host is in it


def _note(exchange: Exchange) -> str:
    """Return what is wrong with an exchange and is not said by its outcome."""
    if exchange.complete:
        return ""
    reasons = [exchange.error.kind] if exchange.error is not None and exchange.response is not None else []
    if exchange.lost_bytes:
        reasons.append(f"lost {size(exchange.lost_bytes)}")
    if exchange.unknown:
        reasons.append(f"unknown {' '.join(exchange.unknown)}")
    return f" !{', '.join(reasons)}" if reasons else ""


def _call_note(call: Grpc) -> str:
    """Return what an ended call has to tell besides its exchange."""
    parts = [] if call.status_code == 0 else [f"status {'?' if call.status_code is None else call.status_code}"]
    if call.status is not None and parts:
        parts = [call.status]
    counts = (call.request_count, call.response_count)
    if counts != (1, 1) and (counts != (1, 0) or call.status_code == 0):
        sent, received = ("?" if count is None else count for count in counts)
        parts.append(f">{sent} <{received}")
    return f" {' '.join(parts)}" if parts else ""


def _said(message: CallMessage) -> str:
    """Return what a message says, on one line."""
    if message.encoding is None:
        return f"<message of {message.size} bytes, not kept>"
    text = json.dumps(message.data, ensure_ascii=False, separators=(",", ":"))
    if message.encoding == "base64":
        text = f"<message of {message.size} bytes, base64: {text[1:-1]}>"
    return f"{text} <truncated: {message.size} bytes were sent>" if message.truncated else text


def _about(exchange: Exchange) -> Iterator[str]:
    """Give the lines that belong to neither message."""
    if exchange.url is not None:
        yield exchange.url
    process, connection, timing, error = exchange.process, exchange.connection, exchange.timing, exchange.error
    connect = "" if connection.connect_ns is None else f", connected in {duration(connection.connect_ns)}"
    yield f"{_address(exchange.source)} -> {_address(exchange.destination)}{connect}"
    container = "" if process.container is None else f", container {_container(process.container)}"
    yield f"{process.role or 'traced'} {process.comm}[{process.pid}]{container}"
    spans = {"request": timing.request_ns, "wait": timing.wait_ns, "response": timing.response_ns}
    known = [f"{name} {duration(span)}" for name, span in spans.items() if span is not None]
    if known:
        yield ", ".join(known)
    if exchange.grpc is not None:
        yield from _about_call(exchange.grpc)
    if error is not None:
        yield f"{error.kind}: {error.detail}"
    if exchange.lost_bytes:
        yield f"{exchange.lost_bytes} bytes were not seen"
    if exchange.unknown:
        yield f"not known: {', '.join(exchange.unknown)}"


def _about_call(call: Grpc) -> Iterator[str]:
    code = "none seen" if call.status_code is None else f"{call.status_code} {call.status or ''}".rstrip()
    message = f": {call.message}" if call.message else ""
    limit = "" if call.timeout_ns is None else f", timeout {duration(call.timeout_ns)}"
    yield f"gRPC {call.service or '?'} {call.method or '?'}{limit}, status {code}{message}"


def _container(container: Container) -> str:
    runtime = f", {container.runtime}" if container.runtime else ""
    return f"{container.name or '?'} ({container.id[:12]}{runtime})"
