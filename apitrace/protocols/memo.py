"""What captured bytes meant, remembered: most come again.

What comes only once (request ids, entity tags) is not remembered: it would push out the rest, and keeping it took a
fifth of the HTTP/1 decoder's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

MEMO_BUDGET = 2 << 20
"""Bytes that one memo may cost. The eight of them stay under 16 MiB; one holds 5,000 header lines or 500 sections."""
MEMO_LINE_COST = 300
"""Bytes of a line besides its text: a Header, three strings, a dict slot (sys.getsizeof, CPython 3.11)."""
MEMO_KEY_LIMIT = 2048
"""Longer lines and sections (big cookies) are parsed every time: they would push out the rest, and repeat less."""
MEMO_ONCE_LIMIT = 4096
"""Hashes kept of what came once: 400 KiB a memo, and a few seconds of a busy service."""


Value = TypeVar("Value")


class Memo(dict[bytes, Value], Generic[Value]):
    """What `parse` made of the bytes that came more than once. Bounded by MEMO_BUDGET."""

    def __init__(self, parse: Callable[[bytes], Value]) -> None:
        super().__init__()
        self._parse = parse
        self._once: set[int] = set()
        """Hashes of keys that came once."""
        self._cost = 0

    def __missing__(self, key: bytes) -> Value:
        value = self._parse(key)
        once, hashed = self._once, hash(key)
        if hashed not in once:
            if len(once) >= MEMO_ONCE_LIMIT:
                once.clear()
            once.add(hashed)
        elif len(key) <= MEMO_KEY_LIMIT:
            cost = MEMO_LINE_COST * (1 + key.count(b"\n")) + 2 * len(key)
            if self._cost + cost > MEMO_BUDGET:
                self.clear()
                self._cost = 0
            self._cost += cost
            self[key] = value
        return value


def text(raw: bytes) -> str:
    """Return captured bytes as text: UTF-8, or Latin-1 if they are not."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
