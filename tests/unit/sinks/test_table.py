"""Rows fit, mean what they say, and let nothing captured act on the terminal. Whole outputs are in tests/golden."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import time
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from apitrace.errors import OutputError
from apitrace.exchange import Endpoint, Exchange, Failure, Header, Process, Response
from apitrace.sinks.table import Table
from tests.golden.exchanges import EXCHANGES, PLAIN, START, asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SGR = re.compile(r"\x1b\[\d+m")


class Screen(io.BytesIO):
    """Can still be read when it has been closed."""

    def close(self) -> None:
        pass


class Terminal:
    """A table on a stream in memory, and what has come out of it."""

    def __init__(
        self, width: int | None = 80, *, color: bool = False, verbosity: int = 0, timestamps: int = 1,
        status_line: bool = False, encoding: str = "utf-8",
    ) -> None:  # fmt: skip
        self.width = width
        self._bytes = Screen()
        self._encoding = encoding
        self.table = Table(
            io.TextIOWrapper(self._bytes, encoding=encoding), width=lambda: self.width, color=color,
            verbosity=verbosity, timestamps=timestamps, status_line=status_line,
        )  # fmt: skip
        self._taken = 0

    def write(self, *exchanges: Exchange) -> None:
        for exchange in exchanges:
            self.table.write(exchange)
        self.table.flush()

    def take(self) -> str:
        """Return what has been written since the last time."""
        out = self._bytes.getvalue()[self._taken :]
        self._taken += len(out)
        return out.decode(self._encoding)

    def rows(self, *exchanges: Exchange) -> list[str]:
        """Return the lines that these exchanges make, without the column titles."""
        if not self._taken:
            self.write(PLAIN)
        self.take()
        self.write(*exchanges)
        return self.take().splitlines()


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_titles_stand_above_the_first_row_and_nowhere_else() -> None:
    terminal = Terminal(80, timestamps=0)
    terminal.table.flush()
    assert terminal.take() == ""
    terminal.write(PLAIN)
    terminal.write(PLAIN)
    row = "22:13:20.123 nginx[4121]  <- h1.1 GET  127.0.0.1:8000/items/7 200     17 1.23ms\n"
    title = "TIME         PROCESS         HTTP METHOD HOST AND PATH        STAT  SIZE    LAT\n"
    assert terminal.take() == title + row + row
    assert len(title) == len(row) == 80


@pytest.mark.parametrize("width", [1, 23, 24, 25, 30, 40, 47, 53, 60, 70, 79, 80, 81, 100, 132, 250])
def test_every_row_has_one_cell_less_than_the_terminal(width: int) -> None:
    for timestamps in range(6):
        terminal = Terminal(width, timestamps=timestamps)
        terminal.write(*EXCHANGES)
        assert {cell_len(line) for line in terminal.take().splitlines()} == {max(width, 24) - 1}


def test_the_width_is_asked_for_once_per_batch() -> None:
    terminal = Terminal(80)
    terminal.write(PLAIN)
    terminal.table.write(PLAIN)
    terminal.width = 60
    terminal.table.write(PLAIN)
    terminal.table.flush()
    terminal.table.write(PLAIN)
    terminal.table.flush()
    assert [len(line) for line in terminal.take().splitlines()] == [79, 79, 79, 79, 59]


def test_a_narrow_terminal_loses_the_least_telling_columns_first() -> None:
    request = ["METHOD", "HOST", "AND", "PATH", "STAT", "SIZE"]
    titles = {
        (80, 73): ["TIME", "PROCESS", "HTTP", *request, "LAT"],
        (72, 68): ["TIME", "PROCESS", *request, "LAT"],
        (67, 55): ["TIME", *request, "LAT"],
        (54, 39): [*request, "LAT"],
        (38, 35): request,
    }
    for widths, shown in titles.items():
        for width in widths:
            terminal = Terminal(width, timestamps=0)
            terminal.write(PLAIN)
            assert terminal.take().splitlines()[0].split() == shown


def test_without_a_terminal_nothing_is_cut() -> None:
    exchange = asked(path="/" + "x" * 300)
    [row] = Terminal(None).rows(exchange)
    assert f"GET  127.0.0.1:8000/{'x' * 300} 200 " in row


@pytest.mark.parametrize(
    ("timestamps", "times"),
    [
        (0, ["22:13:20.123", "22:13:20.123", "22:13:21.625", "22:13:20.123", "23:13:20.123"]),
        (1, ["nginx[4121]"] * 5),
        (2, ["1700000000.123456", "1700000000.123456", "1700000001.625123", "1700000000.123455", "1700003600.123456"]),
        (3, ["00:00:00.000000", "00:00:00.000000", "00:00:01.501666", "-00:00:01.501667", "01:00:00.000001"]),
        (4, ["2023-11-14"] * 5),
        (5, ["00:00:00.000000", "00:00:00.000000", "00:00:01.501666", "-00:00:00.000001", "01:00:00.000000"]),
        (6, ["00:00:00.000000", "00:00:00.000000", "00:00:01.501666", "-00:00:00.000001", "01:00:00.000000"]),
    ],
)
def test_the_time_is_shown_as_by_tcpdump(timestamps: int, times: list[str]) -> None:
    terminal = Terminal(132, timestamps=timestamps)
    moments = (START, START, START + 1_501_666_666, START - 1000, START + 3_600_000_000_000)
    terminal.write(*(PLAIN._replace(timestamp=moment) for moment in moments))
    assert [line.split()[0] for line in terminal.take().splitlines()[1:]] == times


def test_the_date_is_shown_before_the_clock() -> None:
    [row] = Terminal(132, timestamps=4).rows(PLAIN)
    assert row.startswith("2023-11-14 22:13:20.123 nginx[4121]")


def test_the_arrow_says_who_asked() -> None:
    processes = [PLAIN.process._replace(role=role) for role in ("client", "server", None)]
    rows = Terminal().rows(*(PLAIN._replace(process=process) for process in processes))
    assert [row.split()[1] for row in rows] == ["->", "<-", "?"]


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (PLAIN, "h1.1 GET 127.0.0.1:8000/items/7 200 17 1.23ms"),
        (
            PLAIN._replace(response=None, latency_ns=None, error=Failure("unanswered", "")),
            "h1.1 GET 127.0.0.1:8000/items/7 unanswered -",
        ),
        (PLAIN._replace(response=None, latency_ns=None), "h1.1 GET 127.0.0.1:8000/items/7 - -"),
        (PLAIN._replace(lost_bytes=17), "h1.1 GET 127.0.0.1:8000/items/7 !lost 17 200! 17 1.23ms"),
        (
            PLAIN._replace(lost_bytes=12_000, error=Failure("reset", ""), unknown=("request.trailers",)),
            "h1.1 GET 127.0.0.1:8000/items/7 !reset, lost 12K, unknown request.trailers 200! 17 1.23ms",
        ),
        (
            PLAIN._replace(response=None, lost_bytes=17, error=Failure("closed", "")),
            "h1.1 GET 127.0.0.1:8000/items/7 !lost 17 closed 1.23ms",
        ),
        (
            PLAIN._replace(
                request=PLAIN.request._replace(method=None, path=None, authority=None),
                response=Response(None),
                unknown=("request.method", "request.path", "response.body_size"),
            ),
            "h1.1 ? 127.0.0.1:8000 ? !unknown request.method request.path response.body_size ?! ? 1.23ms",
        ),
        (
            PLAIN._replace(
                protocol="TCP", request=type(PLAIN.request)(), response=None, latency_ns=None,
                destination=Endpoint("2001:db8::1", 9), error=Failure("refused", "ECONNREFUSED"),
            ),
            "TCP - [2001:db8::1]:9 refused -",
        ),
        (asked(path="http://a.org/b"), "h1.1 GET http://a.org/b 200 17 1.23ms"),
        (asked(method="CONNECT", path="a.org:443"), "h1.1 CONNECT a.org:443 200 17 1.23ms"),
        (asked(method="OPTIONS", path="*"), "h1.1 OPTIONS 127.0.0.1:8000 * 200 17 1.23ms"),
        (
            PLAIN._replace(request=PLAIN.request._replace(authority=None), destination=Endpoint(path="@abstract")),
            "h1.1 GET @abstract/items/7 200 17 1.23ms",
        ),
    ],
)  # fmt: skip
def test_a_row_says_what_was_asked_and_what_came_of_it(exchange: Exchange, words: str) -> None:
    [row] = Terminal(300).rows(exchange)
    assert row.split()[2:] == words.split()


def test_a_container_is_named_instead_of_the_process() -> None:
    [row] = Terminal().rows(EXCHANGES[2])
    assert row.startswith("web          -> ")


def test_a_long_process_name_leaves_the_pid_whole() -> None:
    [row] = Terminal().rows(PLAIN._replace(process=Process(1234567, 1, "gunicorn: master", None, "server")))
    assert row.startswith("gu…[1234567] <- ")


def test_a_long_host_leaves_room_for_the_path() -> None:
    request = PLAIN.request._replace(authority="a-very-long-host.example.com", path="/v1/items/1234567890")
    rows = Terminal(80, timestamps=0).rows(
        PLAIN._replace(request=request), PLAIN._replace(request=request._replace(path="/v1"))
    )
    assert [row[34:61] for row in rows] == ["GET  a-very…/v1/items/1234…", "GET  a-very-long-host.e…/v1"]


def test_only_the_status_and_what_is_wrong_have_a_colour() -> None:
    codes = (101, 204, 302, 404, 503, 999, None)
    exchanges = [PLAIN._replace(response=Response(code)) for code in codes]
    terminal = Terminal(80, color=True)
    reset = PLAIN._replace(response=None, error=Failure("reset", ""))
    rows = terminal.rows(*exchanges, PLAIN._replace(lost_bytes=5), reset)
    assert [re.findall(r"\x1b\[(\d+)m([^\x1b]*)\x1b\[0m", row) for row in rows] == [
        [("36", "101 ")], [("32", "204 ")], [("36", "302 ")], [("33", "404 ")], [("31", "503 ")], [("31", "999 ")],
        [("31", "  ? ")], [("31", " !lost 5"), ("32", "200!")], [("31", "     reset")],
    ]  # fmt: skip
    assert {cell_len(SGR.sub("", row)) for row in rows} == {79}


def test_without_colour_there_is_no_escape_sequence() -> None:
    terminal = Terminal(80, verbosity=2)
    terminal.write(*EXCHANGES)
    assert "\x1b" not in terminal.take()


def test_a_body_is_shown_as_lines_or_as_what_it_is() -> None:
    response = Response(200, "OK")
    bodies = [
        response._replace(body=b"a\tb\r\nc\n\nd", body_size=9),
        response._replace(body=b"a\0b", body_size=3),
        response._replace(body=bytes(range(240, 256)), body_size=16),
        response._replace(body=bytes(range(239, 256)), body_size=99, truncated=True),
        response._replace(body="7 €".encode()[:-1], body_size=5, truncated=True),
        response._replace(body_size=5, truncated=True),
        response,
    ]
    terminal = Terminal(80, verbosity=2)
    shown = []
    for body in bodies:
        lines = terminal.rows(PLAIN._replace(response=body))
        shown.append(lines[lines.index("    < HTTP/1.1 200 OK") + 1 :])
    assert shown == [
        ["    <", "    < a   b", "    < c", "    < ", "    < d"],
        ["    <", "    < <binary, 3 bytes: 610062>"],
        ["    <", "    < <binary, 16 bytes: f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff>"],
        [
            "    <",
            "    < <binary, 17 bytes: eff0f1f2f3f4f5f6f7f8f9fafbfcfdfe...>",
            "    < <truncated: 17 bytes are shown, 99 were sent>",
        ],
        ["    <", "    < 7 ", "    < <truncated: 4 bytes are shown, 5 were sent>"],
        ["    <", "    < <body of 5 bytes, not kept>"],
        [],
    ]


def test_the_url_is_whole_however_narrow_the_terminal() -> None:
    request = PLAIN.request._replace(path="/" + "x" * 200)
    assert f"    http://127.0.0.1:8000/{'x' * 200}" in Terminal(40, verbosity=1).rows(PLAIN._replace(request=request))


def test_an_encoding_without_the_character_gets_its_escape() -> None:
    terminal = Terminal(80, encoding="iso-8859-1", verbosity=1)
    request = PLAIN.request._replace(path="/größe/€/" + "x" * 30, headers=(Header("a", "日本", "A"),))
    row, *details = terminal.rows(PLAIN._replace(request=request))
    assert "/größe/\\u20ac/x" in details[0]
    assert "    > A: \\u65e5\\u672c" in details
    assert "~ 200 " in row
    assert len(row) == 79


ERASE = "\r\x1b[K"


def test_the_status_line_is_erased_before_rows_and_drawn_after_them() -> None:
    terminal = Terminal(80, status_line=True)
    terminal.write(PLAIN)
    terminal.take()
    terminal.table.set_status("12/s, 3 open")
    assert terminal.take() == "12/s, 3 open\r"
    terminal.table.flush()
    assert terminal.take() == ""
    terminal.write(PLAIN, PLAIN)
    first, second, last = terminal.take().split("\n")
    assert first.startswith(f"{ERASE}nginx[4121] ")
    assert second.startswith("nginx[4121] ")
    assert last == "12/s, 3 open\r"
    terminal.table.set_status("0/s")
    assert terminal.take() == f"{ERASE}0/s\r"
    terminal.table.close()
    assert terminal.take() == ERASE


def test_the_status_line_is_cut_escaped_and_dimmed() -> None:
    terminal = Terminal(10, status_line=True, color=True)
    terminal.table.set_status("a\x1b[2Jbcdefgh")
    assert terminal.take() == "\x1b[2ma\\x1b[2J…\x1b[0m\r"


def test_an_empty_status_erases_the_line() -> None:
    terminal = Terminal(80, status_line=True)
    terminal.table.set_status("1/s")
    terminal.table.set_status("")
    terminal.write(PLAIN)
    assert terminal.take().startswith(f"1/s\r{ERASE}PROCESS")


def test_without_a_terminal_there_is_no_status_line() -> None:
    terminal = Terminal(None)
    terminal.table.set_status("1/s")
    terminal.write(PLAIN)
    terminal.table.close()
    out = terminal.take()
    assert "1/s" not in out
    assert "\x1b" not in out


def screen(stream: bytes) -> list[str]:
    """Return what a terminal shows of these bytes: carriage return, line feed and erase-to-end-of-line are obeyed."""
    lines, at = [""], 0
    for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", stream.decode()):
        if part == "\x1b[K":
            lines[-1] = lines[-1][:at]
        elif part == "\r":
            at = 0
        elif part == "\n":
            lines.append("")
            at = 0
        else:
            lines[-1] = lines[-1][:at] + part + lines[-1][at + len(part) :]
            at += len(part)
    return lines


@given(st.lists(st.sampled_from(["row", "flush", "status 1", "a longer status", ""])))
def test_whatever_the_order_the_screen_shows_all_rows_and_then_the_status(actions: list[str]) -> None:
    terminal = Terminal(80, status_line=True)
    terminal.write(PLAIN)
    titles, row = terminal.take().splitlines()
    rows, status = 1, ""
    for action in actions:
        if action == "row":
            terminal.table.write(PLAIN)
            rows += 1
        elif action == "flush":
            terminal.table.flush()
        else:
            status = action
            terminal.table.set_status(status)
    terminal.table.flush()
    assert screen(terminal._bytes.getvalue()) == [titles, *[row] * rows, status]


def test_it_works_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as stream:
        table = Table(stream, width=lambda: os.get_terminal_size(follower).columns or 80, color=True, verbosity=0,
                      status_line=stream.isatty())  # fmt: skip
        table.set_status("1/s")
        table.write(PLAIN)
        table.close()
        out = ""
        while not out.endswith("1.23ms\r\n"):  # a terminal hands over in pieces
            assert select.select([leader], [], [], 10)[0], out
            out += os.read(leader, 65536).decode()
    os.close(leader)
    assert out.startswith(f"\x1b[2m1/s\x1b[0m\r{ERASE}\x1b[1mTIME ")


def test_a_full_disk_is_an_output_error() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123 - a text stream, as stdout is
        table = Table(stream, width=lambda: None, color=False, verbosity=0)
        table.write(PLAIN)
        with pytest.raises(OutputError, match="No space left on device"):
            table.flush()
        table.close()


ANY = st.text(st.characters(), max_size=20)
CAPTURED: dict[str, Callable[[str], Exchange]] = {
    "method": lambda text: asked(method=text),
    "path": lambda text: asked(path=text),
    "authority": lambda text: asked(authority=text),
    "header": lambda text: asked(headers=(Header(text, text, text),)),
    "body": lambda text: asked(body=text.encode("utf-8", "surrogatepass"), body_size=1, truncated=True),
    "reason": lambda text: PLAIN._replace(response=Response(200, text)),
    "trailer": lambda text: PLAIN._replace(response=Response(200, "OK", (), (Header(text, text, text),))),
    "comm": lambda text: PLAIN._replace(process=Process(1, 1, text, None, "server")),
    "socket": lambda text: PLAIN._replace(source=Endpoint(path=text), destination=Endpoint(path=text)),
    "detail": lambda text: PLAIN._replace(response=None, error=Failure("closed", text)),
}


@given(field=st.sampled_from(sorted(CAPTURED)), text=ANY, verbosity=st.integers(0, 2), width=st.integers(24, 140))
def test_nothing_captured_reaches_the_terminal_unescaped(field: str, text: str, verbosity: int, width: int) -> None:
    terminal = Terminal(width, verbosity=verbosity)
    row, *details = terminal.rows(CAPTURED[field](text))
    assert cell_len(row) == width - 1
    for line in (row, *details):
        assert line.isprintable()
        assert {unicodedata.category(char) for char in line}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert bool(details) == bool(verbosity)


def test_markup_of_rich_is_text() -> None:
    [row] = Terminal(120).rows(asked(path="/[bold]x[/bold]:smile:"))
    assert "/[bold]x[/bold]:smile: " in row
