r"""Captured values as text that a terminal can be trusted with, and quantities as text that a person can read.

`escape` is the one gate between captured text and the terminal: what it returns has no control character (C0, DEL, C1,
hence no escape sequence), no bidi control, no lone surrogate, nothing invisible and nothing unassigned, so it occupies
the cells that `rich.cells` counts, and reads from left to right unless the letters themselves say otherwise. What was
such a character is seen as Python would spell it: "\x1b", "\u202e". Backslashes are left as they are: doubling
them would make every JSON body hard to read.
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

_MARKS_PER_BASE = 2
"""Zero-width marks that may follow a character. Vietnamese, Hebrew and Thai need two; more of them ("Zalgo") would be
drawn over the rows above and below."""

_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
"""What str.isprintable() lets pass although nothing is drawn: Default_Ignorable_Code_Point of the Unicode database that
is not in category Cf, and the blank Braille cell."""


def escape(text: str) -> str:
    """Return the text with everything made visible that a terminal would obey, hide or reorder."""
    if text.isascii() and text.isprintable():  # nearly all of what is captured: 60 ns
        return text
    return _escape_each(text)


def _escape_each(text: str) -> str:
    shown: list[str] = []
    marks = _MARKS_PER_BASE  # none may come first: it would be drawn over what stands before this text
    for char in text:
        drawn = char.isprintable() and char not in _INVISIBLE
        if drawn and cell_len(char):
            marks = 0
        elif drawn and marks < _MARKS_PER_BASE:
            marks += 1
        else:
            marks = _MARKS_PER_BASE
            char = char.encode("unicode_escape").decode("ascii")  # noqa: PLW2901 - what is shown in its place
        shown.append(char)
    return "".join(shown)


def cells(text: str) -> int:
    """Return how many cells of a terminal escaped text occupies."""
    return len(text) if text.isascii() else cell_len(text)


def fit(text: str, width: int, ellipsis_: str) -> str:
    """Return escaped text in exactly so many cells: padded, or cut at the end and marked as cut."""
    used = cells(text)
    if used <= width:
        return text + " " * (width - used)
    if width < len(ellipsis_):
        return " " * width
    return set_cell_size(text, width - len(ellipsis_)) + ellipsis_


def body_text(body: bytes, *, truncated: bool) -> str | None:
    """Return a body as text, None if it is not UTF-8. The character in which a truncated body ends is left out."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        if truncated and error.reason == "unexpected end of data" and error.start:
            return body[: error.start].decode()
        return None


def size(count: int) -> str:
    """Return a number of bytes in at most 5 cells: exact below 10,000, then in units of 1024."""
    if count < 10_000:
        return str(count)
    value = count / 1024
    for unit in "KMGTP":
        if value < 999.5:
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.0f}E"


_DURATION_UNITS = ((1e3, "us"), (1e6, "ms"), (1e9, "s"))


def duration(nanoseconds: int) -> str:
    """Return a duration of three digits in at most 6 cells: "8.31us", "124ms", "16m40s", "27h46m"."""
    for divisor, unit in _DURATION_UNITS:
        value = nanoseconds / divisor
        if value < 999.5:
            digits = 0 if value == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f}{unit}"
    seconds = round(nanoseconds / 1e9)
    minutes = round(seconds / 60)
    return f"{seconds // 60}m{seconds % 60:02}s" if seconds < 6000 else f"{minutes // 60}h{minutes % 60:02}m"
