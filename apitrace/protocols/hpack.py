"""HPACK (RFC 7541) as a watcher needs it: header blocks of one direction to fields, some of them possibly unknown.

The dynamic table is counted from its newest entry. So after a connection was joined in the middle, or a block was
lost, what is inserted from then on is found exactly, however much lies behind it, whatever its size, and whatever was
evicted; an index that reaches behind it names an entry that was never seen, and gives UNKNOWN, never something else. A
lost block may have inserted any number of entries, which would shift the others, so it empties the table. A field
whose name is not known is UNKNOWN even if its value is.

The size of the table follows the updates in the blocks alone (section 4.2): an encoder says in-band what it uses, from
the first block in which it uses it, and so the SETTINGS that allow it need not be known, nor when they were
acknowledged. Entries are evicted as the peers evict them. Before the first update on a joined connection the size is
not known; then more is kept than the peers have, which no valid index reaches.

`decode` never raises: a block that is not HPACK, or is not whole, gives the fields before the fault and says so.

Why not the library's decoder: it has no unknown entries, and hpack 4.2 takes 82 us for a block of ten fields and 21 us
for one of seven indexed fields (CPython 3.11), of which a gRPC call has three. This one takes 11 us and 0.2 us. Blocks
repeat: as long as the table does not change, a block is remembered by its bytes. Huffman codes are read a byte at a
time, by a table that is filled as it is used, and whole strings are remembered too. The code lengths and the static
table are the library's.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from apitrace.exchange import Header, Headers
from apitrace.protocols.memo import Memo, text

DEFAULT_SIZE = 4096
"""RFC 9113 section 6.5.2: SETTINGS_HEADER_TABLE_SIZE before anything is said."""

SIZE_LIMIT = 64 << 10
"""Bytes of a table, counted as RFC 7541 section 4.1 does, whatever the peers agree on: what Chrome and Firefox offer.
What an encoder keeps beyond that is unknown here."""

BLOCKS_LIMIT = 64
"""Blocks remembered per direction. A client's calls come in few shapes as long as it inserts nothing."""
BLOCK_KEY_LIMIT = 1024
"""Bytes of a block that is remembered. Those with much in them insert it into the table, or do not repeat."""

_ENTRY_COST = 32  # RFC 7541 section 4.1
_STATIC_ENTRIES = 61
_INTEGER_LIMIT = 1 << 24
"""No length or size can be larger: a frame has at most 16 MiB. An index never is."""

_new = tuple.__new__  # NamedTuple's own __new__ is a Python function and takes twice as long

UNKNOWN = Header("", "", "")
"""A field that was on the wire and cannot be resolved. Told by identity: an empty name can be sent."""


class Block(NamedTuple):
    """A header block: pseudo-header fields apart, the other fields in order."""

    method: str | None
    path: str | None
    scheme: str | None
    authority: str | None
    status: str | None
    headers: Headers
    """Without those that are unknown. A pseudo-header field that has no place above, such as :protocol, is here."""
    hidden: int = 0
    """Unknown fields that may be pseudo-header fields: no other field was seen before them."""
    incomplete: bool = False
    """Fields that are surely not pseudo-header fields are unknown."""
    cut: bool = False
    """Any number of fields behind these is unknown, pseudo-header fields only if `hidden`."""


class Hpack:
    """What one direction's encoder has said so far. `joined`: not from its first block on."""

    __slots__ = ("_blocks", "_capacity", "_size", "_table")

    def __init__(self, *, joined: bool = False) -> None:
        self._table: deque[Header] = deque()
        """The entries that are known, the newest last."""
        self._size = 0
        self._capacity = SIZE_LIMIT if joined else DEFAULT_SIZE
        self._blocks: dict[bytes, Block] = {}
        """What blocks meant, since the table last changed."""

    def lose(self) -> None:
        """Take notice that blocks were lost: any number of entries may have been inserted, and the size changed."""
        self._table.clear()
        self._size = 0
        self._capacity = SIZE_LIMIT
        self._blocks.clear()

    def decode(self, block: bytes, *, cut: bool = False) -> Block:
        """Return what a block says. `cut`: its end was not seen."""
        known = self._blocks.get(block)
        if known is not None and not cut:
            return known
        fields: list[Header] = []
        table = self._table
        pos, size = 0, len(block)
        hidden = 0
        changed = False
        try:
            while pos < size:
                start = pos
                byte = block[pos]
                pos += 1
                if byte > 127:  # an indexed field: section 6.1
                    index = byte & 127
                    if index == 127:
                        index, pos = _integer(block, pos, 127)
                    if index <= _STATIC_ENTRIES:
                        fields.append(_STATIC[index])
                    elif index - _STATIC_ENTRIES <= len(table):
                        field = table[_STATIC_ENTRIES - index]
                        hidden += field is UNKNOWN
                        fields.append(field)
                    else:
                        hidden += 1
                        fields.append(UNKNOWN)
                    continue
                if byte > 63:  # to be inserted: section 6.2.1
                    mask = 63
                elif byte > 31:  # a size update: section 6.3
                    capacity = byte & 31
                    if capacity == 31:
                        capacity, pos = _integer(block, pos, 31)
                    self._resize(capacity)
                    changed = True
                    continue
                else:  # not to be inserted: sections 6.2.2 and 6.2.3
                    mask = 15
                index = byte & mask
                if index == mask:
                    index, pos = _integer(block, pos, mask)
                known_name = 0 < index <= _STATIC_ENTRIES
                name: str | None = ""
                if index == 0:
                    name, pos = _string(block, pos)
                elif not known_name:
                    place = index - _STATIC_ENTRIES
                    name = table[-place][2] if place <= len(table) and table[-place] is not UNKNOWN else None
                length = block[pos]  # the value: section 5.2
                pos += 1
                coded = length > 127
                length &= 127
                if length == 127:
                    length, pos = _integer(block, pos, 127)
                end = pos + length
                if end > size:
                    break
                if name is None:
                    hidden += 1
                    field = UNKNOWN
                elif known_name and length < 127:  # nothing in it depends on the table
                    field = _LITERALS[block[start:end]]
                else:
                    raw = block[pos:end]
                    value = _CODED[raw] if coded else text(raw)
                    field = _STATIC[index] if known_name else _header(name)
                    if raw[:1] == b"\0" and not coded and field[0].endswith("-bin"):
                        value = raw.decode("latin-1")  # gRPC's C core sends bytes to its like; read in grpc.metadata
                    field = _new(Header, (field[0], value, field[2]))
                fields.append(field)
                pos = end
                if mask == 63:
                    changed = True
                    # The name of an unknown field counts for nothing: no entry is evicted too early.
                    self._insert(field, len(field[0]) + len(field[1]) + _ENTRY_COST)
            else:
                end = size
            cut = cut or end > size
        except (_Fault, LookupError):  # LookupError: behind the block's end, or index 0
            cut = True
        result = _sort_out(fields, hidden, cut)
        if cut:
            self.lose()
        elif changed:
            if self._blocks:
                self._blocks.clear()
        elif size <= BLOCK_KEY_LIMIT:
            if len(self._blocks) >= BLOCKS_LIMIT:
                self._blocks.clear()
            self._blocks[block] = result
        return result

    def _insert(self, field: Header, cost: int) -> None:
        """RFC 7541 section 4.4. Characters are counted, not bytes: at most what the peers count."""
        table = self._table
        table.append(field)
        self._size += cost
        while self._size > self._capacity and table:
            name, value, _ = table.popleft()
            self._size -= len(name) + len(value) + _ENTRY_COST

    def _resize(self, capacity: int) -> None:
        self._capacity = min(capacity, SIZE_LIMIT)
        table = self._table
        while self._size > self._capacity:
            name, value, _ = table.popleft()
            self._size -= len(name) + len(value) + _ENTRY_COST


class _Fault(Exception):  # noqa: N818 - it does not leave this module
    """The block is not HPACK, or its end is missing."""


def well_formed(block: bytes) -> bool | None:
    """Whether these bytes are a header block by their form, whatever its indices mean: None if they begin like one."""
    pos, size = 0, len(block)
    try:
        while pos < size:
            byte = block[pos]
            pos += 1
            mask = 127 if byte > 127 else 63 if byte > 63 else 31 if byte > 31 else 15
            index = byte & mask
            if index == mask:
                index, pos = _integer(block, pos, mask)
            if mask == 31:
                continue
            if mask == 127:
                if index == 0:
                    return False
                continue
            for _ in range(1 if index else 2):
                length = block[pos] & 127
                if length == 127:
                    length, pos = _integer(block, pos + 1, 127)
                else:
                    pos += 1
                pos += length
    except _Fault:
        return False
    except IndexError:
        return None
    return True if pos == size else None


# Fields.


def _sort_out(fields: list[Header], hidden: int, cut: bool) -> Block:
    """Take the pseudo-header fields apart. They come before all others: RFC 9113 section 8.3."""
    pseudo: dict[str, str] = {}
    others: list[Header] = []
    count = behind = 0
    for field in fields:
        name = field[0]
        if name[:1] == ":":
            if name in _PSEUDO and name not in pseudo:
                pseudo[name] = field[1]
            else:
                others.append(field)
        elif field is not UNKNOWN:
            break
        count += 1
    if hidden:
        behind = sum(field is UNKNOWN for field in fields[count:])
        headers = (*others, *[field for field in fields[count:] if field is not UNKNOWN])
    else:
        headers = (*others, *fields[count:])
    early = hidden - behind
    if cut and count == len(fields):
        early += 1
    get = pseudo.get
    return _new(
        Block,
        (get(":method"), get(":path"), get(":scheme"), get(":authority"), get(":status"), headers, early, behind > 0,
         cut),
    )  # fmt: skip


_PSEUDO = frozenset({":method", ":path", ":scheme", ":authority", ":status"})


def _header(raw_name: str) -> Header:
    """Return a field of this name. Names are sent in lower case: RFC 9113 section 8.2.1."""
    return _new(Header, (raw_name if raw_name.islower() else raw_name.lower(), "", raw_name))


_STATIC = {
    index: Header(name.decode(), value.decode(), name.decode())
    for index, (name, value) in enumerate(HeaderTable.STATIC_TABLE, 1)
}
"""A dict, because an index is numbered from 1, and 0 is a fault."""


# Integers and strings.


def _integer(block: bytes, pos: int, start: int) -> tuple[int, int]:
    """Read what follows a full prefix (RFC 7541 section 5.1); return the integer and the position after it."""
    value, shift = start, 0
    while True:
        byte = block[pos]
        pos += 1
        value += (byte & 127) << shift
        if value > _INTEGER_LIMIT or shift > 28:
            raise _Fault
        if byte < 128:
            return value, pos
        shift += 7


def _string(block: bytes, pos: int) -> tuple[str, int]:
    """Read a string literal (RFC 7541 section 5.2); return it and the position after it."""
    length = block[pos]
    pos += 1
    coded = length > 127
    length &= 127
    if length == 127:
        length, pos = _integer(block, pos, 127)
    end = pos + length
    if end > len(block):
        raise _Fault
    raw = block[pos:end]
    return (_CODED[raw] if coded else text(raw)), end


def _literal(raw: bytes) -> Header:
    """Read a literal field whose name is in the static table and whose value has less than 127 bytes."""
    mask = 63 if raw[0] > 63 else 15
    index, pos = raw[0] & mask, 1
    if index == mask:
        index, pos = _integer(raw, pos, mask)
    value, _ = _string(raw, pos)
    name = _STATIC[index][0]
    return _new(Header, (name, value, name))


# Huffman codes: RFC 7541 appendix B.


def _tree() -> list[list[int]]:
    """Return the code tree: per inner node where a 0 and a 1 lead, to a node, or to a symbol as its complement."""
    nodes = [[0, 0]]
    for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)):
        node = 0
        for bit in range(length - 1, 0, -1):
            step = code >> bit & 1
            if not nodes[node][step]:
                nodes[node][step] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][step]
        nodes[node][code & 1] = ~symbol
    return nodes


class _Steps(dict[int, tuple[int, bytes]]):
    """By node << 8 | byte: the node that the byte leads to, << 8, and the symbols that end in it. Filled when used."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes = _tree()
        self.ends = {0}
        """Where a string may end: at the root, or up to 7 bits of EOS behind it (section 5.2)."""
        node = 0
        for _ in range(7):
            node = self._nodes[node][1]
            self.ends.add(node << 8)

    def __missing__(self, key: int) -> tuple[int, bytes]:
        node, symbols = key >> 8, bytearray()
        for bit in range(7, -1, -1):
            node = self._nodes[node][key >> bit & 1]
            if node < 0:
                if node == ~256:  # EOS
                    raise _Fault
                symbols.append(~node)
                node = 0
        self[key] = found = (node << 8, bytes(symbols))
        return found


_STEPS = _Steps()


def _decoded(raw: bytes) -> str:
    node, steps = 0, _STEPS
    parts = []
    for byte in raw:
        node, symbols = steps[node | byte]
        parts.append(symbols)
    if node not in steps.ends:
        raise _Fault
    return text(b"".join(parts))


_CODED: Memo[str] = Memo(_decoded)
_LITERALS: Memo[Header] = Memo(_literal)
