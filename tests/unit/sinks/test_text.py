"""What reaches the terminal is visible, harmless and as wide as it says."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from apitrace.sinks.text import body_text, cells, duration, escape, fit, size

ANY_TEXT = st.text(st.characters())
"""Lone surrogates included."""


@pytest.mark.parametrize(
    ("captured", "shown"),
    [
        ("plain text, with [red]markup[/red] and \\backslash", "plain text, with [red]markup[/red] and \\backslash"),
        ("größe 日本語 €", "größe 日本語 €"),
        ("\x00\x07\x08\t\n\r", r"\x00\x07\x08\t\n\r"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x7f", r"\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("a\u202etxt.exe\u2066\u2069\u200f", r"a\u202etxt.exe\u2066\u2069\u200f"),
        ("a\u200bb\u200d\ufeff\u2060\u00ad", r"a\u200bb\u200d\ufeff\u2060\xad"),
        ("\u2028\u2029\u00a0", r"\u2028\u2029\xa0"),
        ("\ud800\udc00", r"\ud800\udc00"),
        ("\ue000\uffff\U000e0041\U0010ffff", r"\ue000\uffff\U000e0041\U0010ffff"),
        ("\u3164\u2800\u115f\ufe0f\u034f", r"\u3164\u2800\u115f\ufe0f\u034f"),
        ("e\u0301 a\u0302\u0323", "e\u0301 a\u0302\u0323"),
        ("e\u0301\u0302\u0303\u0304", "e\u0301\u0302\\u0303\\u0304"),
        ("\u0301e", "\\u0301e"),
        ("\n\u0301", r"\n\u0301"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_spelled_out(captured: str, shown: str) -> None:
    assert escape(captured) == shown


@given(ANY_TEXT)
def test_nothing_but_printable_text_comes_out(captured: str) -> None:
    shown = escape(captured)
    assert shown.isprintable()
    assert {unicodedata.category(char)[0] for char in shown} <= set("LMNPSZ")
    assert {unicodedata.bidirectional(char) for char in shown}.isdisjoint(
        {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN", "B", "S"}
    )
    assert shown.encode() is not None
    assert escape(shown) == shown


@given(ANY_TEXT)
def test_printable_ascii_is_left_alone(captured: str) -> None:
    plain = "".join(char for char in captured if " " <= char <= "~")
    assert escape(plain) == plain


@given(ANY_TEXT, st.integers(0, 40), st.sampled_from(["…", "~", ""]))
def test_fitted_text_has_exactly_the_width(captured: str, width: int, ellipsis_: str) -> None:
    text = escape(captured)
    fitted = fit(text, width, ellipsis_)
    assert cell_len(fitted) == cells(fitted) == width
    if cells(text) <= width:
        assert fitted.rstrip(" ") == text.rstrip(" ")


@pytest.mark.parametrize(
    ("text", "width", "fitted"),
    [
        ("abc", 5, "abc  "), ("abc", 3, "abc"), ("abcd", 3, "ab…"), ("abcd", 1, "…"), ("abcd", 0, ""),
        ("日本", 4, "日本"), ("日本", 3, "日…"), ("日本", 2, " …"), ("日本", 5, "日本 "),
    ],
)  # fmt: skip
def test_text_is_padded_or_cut_at_the_end(text: str, width: int, fitted: str) -> None:
    assert fit(text, width, "…") == fitted


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (9_999, "9999"), (10_000, "9.8K"), (10_189, "10K"), (1_000_000, "977K"), (1_023_487, "999K"),
        (1_023_488, "1.0M"), (1 << 20, "1.0M"), (12_345_678, "12M"), (5 << 30, "5.0G"), (3 << 40, "3.0T"),
        (7 << 50, "7.0P"), (2 << 60, "2E"),
    ],
)  # fmt: skip
def test_sizes_are_exact_below_ten_thousand_and_then_of_two_or_three_digits(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0us"), (5, "0.01us"), (8_310, "8.31us"), (9_994, "9.99us"), (9_995, "10.0us"), (99_949, "99.9us"),
        (99_951, "100us"), (999_499, "999us"), (999_500, "1.00ms"), (1_234_567, "1.23ms"), (45_600_000, "45.6ms"),
        (999_500_000, "1.00s"), (12_345_678_901, "12.3s"), (999_499_000_000, "999s"), (1_000_000_000_000, "16m40s"),
        (5_999_000_000_000, "99m59s"), (6_000_000_000_000, "1h40m"), (100_000_000_000_000, "27h47m"),
    ],
)  # fmt: skip
def test_durations_have_three_digits(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


@given(st.integers(0, 1 << 62), st.integers(0, 10**14))
def test_quantities_fit_their_columns(count: int, nanoseconds: int) -> None:
    assert len(size(count)) <= 5
    assert len(duration(nanoseconds)) <= 6


@pytest.mark.parametrize(
    ("body", "truncated", "text"),
    [
        (b"abc", False, "abc"),
        ("7 €".encode(), False, "7 €"),
        ("7 €".encode()[:-1], True, "7 "),
        ("7 €".encode()[:-1], False, None),
        ("€".encode()[:-1], True, None),
        (b"ab\xffcd", True, None),
        (b"\x89PNG", False, None),
    ],
)
def test_only_a_cut_body_may_end_inside_a_character(body: bytes, truncated: bool, text: str | None) -> None:
    assert body_text(body, truncated=truncated) == text
