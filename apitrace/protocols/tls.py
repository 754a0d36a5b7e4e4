"""What a TLS connection tells without its keys: who speaks, for whom, by which parameters, and how much.

A TlsObserver is fed the bytes of both directions as they are on the wire and never the plaintext. Like a decoder
(decoder.py) it is sans-IO and raises nothing but `DecodeError`; unlike one it gives no messages, but properties.
It reads TLS 1.0 to 1.3: record headers (RFC 8446 section 5.1), the first hello of each side, and alerts in the clear.
SSL 2 (also its ClientHello in front of TLS, RFC 5246 appendix E.2) and SSL 3 are refused.

Invariants
----------
* Each direction is read on its own and the properties put the two together, so they depend neither on how the bytes
  are cut nor on which direction is reported first.
* A property is None as long as it is not known for sure. What only a key would tell stays None: TLS 1.3 encrypts the
  ALPN that the server chose, and that one protocol was offered does not mean that it was taken.
* `sni` is what the ClientHello says in the clear. With Encrypted Client Hello (RFC 9849) that may be the name of the
  provider's front and not of the origin; `ech` tells. Browsers send a decoy that looks the same (GREASE).
* Of each direction no more is kept than an unfinished hello of at most HELLO_LIMIT or, after a loss, a record in doubt.

After a loss
------------
A gap inside one record costs nothing but what it held, for the header told where it ends. After a longer one, or when
joined in the middle, any position may be inside a record. The reader resumes where a plausible header is followed
at the announced distance by another one, or where a record holds a whole hello. Ciphertext passes for a header once in
5 million positions, for two once in 2 * 10**13. The bytes passed over are told as `Traffic.unknown_bytes`.
A hello of which a byte is missing is not used at all. From then on a stray handshake message is passed over; in
a stream that is whole from its first byte, anything that RFC 8446 does not allow there is a DecodeError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from apitrace.protocols.decoder import CLIENT, SERVER, DecodeError, Message, Side
from apitrace.protocols.memo import text

HEADER_BYTES: Final = 5
"""A record's type, version and length."""

PAYLOAD_LIMIT: Final = (1 << 14) + 2048
"""Bytes of a record after its header: RFC 5246 section 6.2.3. TLS 1.3 allows 2**14 + 256 (RFC 8446 section 5.2)."""

SMALL_LIMIT: Final = 322
"""Bytes of an alert or change_cipher_spec record: 2, and under a CBC cipher (RFC 5246 section 6.2.3.2) at most 16 of
IV, 48 of MAC and 256 of padding."""

HELLO_LIMIT: Final = 64 << 10
"""Bytes of a hello. Go (maxHandshake) and rustls (0xffff) take 64 KiB, OpenSSL 128 KiB (CLIENT_HELLO_MAX_LENGTH); one
with a post-quantum key has 1.8 KB. Over it DecodeError."""

ALERT_LIMIT: Final = 5
"""Alerts kept of each side. OpenSSL gives up after 5 warnings in a row (MAX_WARN_ALERT_COUNT), Go after 16 records that
bring nothing (maxUselessRecords); an alert in the clear is as a rule the only one."""

SEARCH_LIMIT: Final = 2 * (HEADER_BYTES + PAYLOAD_LIMIT) + HEADER_BYTES
"""Bytes without a loss in which two headers in a row cannot be missed if this is TLS. Over it DecodeError."""

LEAST_FINISHED: Final = 45
"""Bytes of the smallest encrypted Finished of TLS 1.3: header 4, SHA-256 32, type 1, CCM_8 tag 8. Of what a client may
send before it, an alert has 19 and an empty Certificate 25 (by JSSE, which pads, 35 and 41); any other Certificate goes
out together with the Finished."""

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, HEARTBEAT = range(20, 25)
_PASSED_OVER = 0
"""Stands for the type of a record whose payload is of no interest."""

_RECORD_SIZES = {
    CHANGE_CIPHER_SPEC: (1, SMALL_LIMIT),
    ALERT: (2, SMALL_LIMIT),
    HANDSHAKE: (1, PAYLOAD_LIMIT),
    APPLICATION_DATA: (9, PAYLOAD_LIMIT),  # TLS 1.3 with a CCM_8 tag and no content: RFC 8446 section 5.2
    HEARTBEAT: (19, PAYLOAD_LIMIT),  # RFC 6520 section 4: 16 bytes of padding at least
}
_HEADER = re.compile(rb"[\x14-\x18]\x03[\x01-\x04]")
_HEADER_MATCH_BYTES = 3

_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_MESSAGE_HEADER_BYTES = 4

_SERVER_NAME, _ALPN, _EARLY_DATA, _SUPPORTED_VERSIONS, _ENCRYPTED_CLIENT_HELLO = 0, 16, 42, 43, 0xFE0D
_HOST_NAME = 0

_HELLO_RETRY_REQUEST = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random that makes a ServerHello a HelloRetryRequest: RFC 8446 section 4.1.3."""

TLS13: Final = "TLSv1.3"
VERSIONS: Final = {0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: TLS13}
"""As SSL_get_version, curl and Wireshark spell them."""

LEVELS: Final = {1: "warning", 2: "fatal"}

ALERTS: Final = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    21: "decryption_failed",
    22: "record_overflow",
    30: "decompression_failure",
    40: "handshake_failure",
    41: "no_certificate",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    60: "export_restriction",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    109: "missing_extension",
    110: "unsupported_extension",
    111: "certificate_unobtainable",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    114: "bad_certificate_hash_value",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
    121: "ech_required",
}
"""RFC 8446 section 6 and IANA's TLS Alerts registry."""

CIPHER_SUITES: Final = {
    0x000A: "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    0x002F: "TLS_RSA_WITH_AES_128_CBC_SHA",
    0x0033: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA",
    0x0035: "TLS_RSA_WITH_AES_256_CBC_SHA",
    0x0039: "TLS_DHE_RSA_WITH_AES_256_CBC_SHA",
    0x003C: "TLS_RSA_WITH_AES_128_CBC_SHA256",
    0x003D: "TLS_RSA_WITH_AES_256_CBC_SHA256",
    0x0067: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA256",
    0x006B: "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256",
    0x009C: "TLS_RSA_WITH_AES_128_GCM_SHA256",
    0x009D: "TLS_RSA_WITH_AES_256_GCM_SHA384",
    0x009E: "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
    0x009F: "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
    0xC009: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    0xC00A: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    0xC012: "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    0xC013: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    0xC014: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    0xC023: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    0xC024: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
    0xC027: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    0xC028: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
    0xC02B: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    0xC02C: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    0xC02F: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    0xC030: "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    0xCCA8: "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCA9: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCAA: "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}
"""IANA's names of the suites that OpenSSL 3, Go and JSSE accept by default and of what they accepted lately (without
PSK and SRP). Any other is shown by its number, as "0xc0a0"."""


def looks_like_tls(data: bytes) -> bool:
    """Whether these bytes, of the start or the middle of a stream, begin with a TLS record; below 5 bytes never.

    Where the record's end is within the data, another one has to follow. A yes by one header is wrong for one in
    5 million pieces of random data, for text never.
    """
    size = _payload_size(data, 0)
    following = HEADER_BYTES + size
    return size > 0 and (len(data) < following + HEADER_BYTES or _payload_size(data, following) > 0)


class Alert(NamedTuple):
    """An alert that was sent in the clear."""

    side: Side
    at: int
    level: str
    """"warning" or "fatal". TLS 1.3 gives it no meaning: all but close_notify and user_canceled are fatal."""
    name: str
    """As in RFC 8446 section 6.2, or "alert N"."""


class Traffic(NamedTuple):
    """Bytes that one side sent, those that are known to have been missed included."""

    wire_bytes: int
    """All of them, but for gaps of unknown size and what went before a connection was joined."""
    application_bytes: int
    """Of these, payload of application_data records: as encrypted, and in TLS 1.3 with the encrypted handshake."""
    unknown_bytes: int | None
    """Bytes of which it is not known whether they belong there too; None if there was a gap of unknown size."""


class ClientHello(NamedTuple):
    """What is used of a ClientHello: RFC 8446 section 4.1.2."""

    sni: str | None
    alpn: tuple[str, ...]
    ech: bool
    early_data: bool


class ServerHello(NamedTuple):
    """What is used of a ServerHello or HelloRetryRequest, which both bind: RFC 8446 sections 4.1.3 and 4.1.4."""

    version: str
    cipher_suite: str
    alpn: str | None
    retry: bool


class TlsObserver:
    """The observer of one connection. `joined`: it was joined in the middle, so either side may begin mid-record.

    The sides are the two ends as the caller numbers them (0 and 1); `client` tells which one is the client.
    """

    def __init__(self, *, joined: bool = False) -> None:
        self._directions = (_Direction(CLIENT, joined), _Direction(SERVER, joined))
        self._refusal: str | None = None

    def receive(self, side: Side, data: bytes, at: int) -> None:
        """Take the next bytes that `side` sent, seen at `at`. Raises DecodeError; what was learnt stays."""
        if self._refusal is not None:
            raise DecodeError(self._refusal)
        direction = self._directions[side]
        try:
            direction.receive(data, at)
            if direction.hello is not None and type(direction.hello) is type(self._directions[1 - side].hello):
                direction.hello = None
                _refuse("expected a ClientHello from one side and a ServerHello from the other")
        except DecodeError as error:
            self._refusal = str(error)
            raise

    def gap(self, side: Side, size: int | None, at: int) -> None:
        """Take notice that the next `size` bytes that `side` sent were not seen (None: an unknown number)."""
        if size != 0:
            self._directions[side].gap(size)

    @property
    def client(self) -> Side | None:
        """The side that the hellos show to be the client."""
        for direction in self._directions:
            if direction.hello is not None:
                return direction.side if isinstance(direction.hello, ClientHello) else 1 - direction.side
        return None

    @property
    def sni(self) -> str | None:
        """The server name that the client asked for; None also if it asked for none. See `ech`."""
        hello = self._client_hello
        return hello and hello.sni

    @property
    def ech(self) -> bool:
        """Whether the ClientHello holds an encrypted one, or a decoy: `sni` may then not be the origin's name."""
        hello = self._client_hello
        return hello is not None and hello.ech

    @property
    def alpn_offered(self) -> tuple[str, ...] | None:
        """The protocols that the client offered, in its order; empty if none."""
        hello = self._client_hello
        return hello and hello.alpn

    @property
    def alpn(self) -> str | None:
        """The protocol that the server chose; None also if it chose none, and always in TLS 1.3. See `unknown`."""
        hello = self._server_hello
        return hello and hello.alpn

    @property
    def version(self) -> str | None:
        """The version negotiated: a value of VERSIONS, or for an unregistered one its number, "0x7f1c"."""
        hello = self._server_hello
        return hello and hello.version

    @property
    def cipher_suite(self) -> str | None:
        """The cipher suite negotiated, by its name at IANA or its number."""
        hello = self._server_hello
        return hello and hello.cipher_suite

    @property
    def retried(self) -> bool:
        """Whether the server sent a HelloRetryRequest."""
        hello = self._server_hello
        return hello is not None and hello.retry

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The alerts sent in the clear, in order of time: at most ALERT_LIMIT of each side."""
        client, server = self._directions
        return tuple(sorted(client.alerts + server.alerts, key=lambda alert: alert.at))

    @property
    def finished(self) -> bool | None:
        """Whether the handshake has ended well: each side's Finished is on the wire. None: cannot be told.

        In TLS 1.3 the client's is recognised by its size, which a padded alert could feign, and not at all if the
        client offered early data; and a server may still refuse the client's certificate after it.
        """
        client_side = self.client
        if client_side is None:
            return False if all(direction.whole for direction in self._directions) else None
        client, server = self._directions[client_side], self._directions[1 - client_side]
        hello = self._client_hello
        if self.version == TLS13:
            if hello is None or hello.early_data:
                return None
            over = client.largest >= LEAST_FINISHED
        else:
            # A server sends nothing before it has checked the client's Finished; a client may (False Start, RFC 7918).
            over = self.version is not None and (server.largest > 0 or (client.guarded and server.guarded))
        if over:
            return True
        return False if client.whole and server.whole else None

    @property
    def settled(self) -> bool:
        """Whether everything but `traffic` is as it will stay, so that what follows may be passed to `gap`.

        Where `finished` is None it is given as soon as no hello can follow, and an alert after that may be missed.
        """
        first, second = self._directions
        if first.done and second.done and self.finished is not False:
            return True
        return (first.aborted and second.done) or (second.aborted and first.done)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Fields of the record that were on the wire, or may have been, and could not be read."""
        lost = not all(direction.whole for direction in self._directions)
        client, server = self._client_hello, self._server_hello
        names = []
        if client is None and lost:
            names.append("tls.sni")
        if server is None and lost:
            names.append("tls.version")
        offered = client is None or client.alpn != ()
        if offered and (lost if server is None else server.version == TLS13):
            names.append("tls.alpn")
        return tuple(names)

    def traffic(self, side: Side) -> Traffic:
        """Return how much `side` has sent."""
        return self._directions[side].traffic()

    @property
    def _client_hello(self) -> ClientHello | None:
        for direction in self._directions:
            if isinstance(direction.hello, ClientHello):
                return direction.hello
        return None

    @property
    def _server_hello(self) -> ServerHello | None:
        for direction in self._directions:
            if isinstance(direction.hello, ServerHello):
                return direction.hello
        return None


class TlsDecoder:
    """The observer in the shape of a Decoder (decoder.py): it gives no messages, for the calls are inside."""

    def __init__(self, *, joined: bool) -> None:
        self.observer = TlsObserver(joined=joined)

    def receive(self, side: Side, data: bytes, at: int) -> list[Message]:
        """Take the next bytes that `side` sent. Raises DecodeError."""
        self.observer.receive(side, data, at)
        return []

    def gap(self, side: Side, size: int | None, at: int) -> list[Message]:
        """Take notice of bytes that were not seen."""
        self.observer.gap(side, size, at)
        return []

    def finish(self, side: Side, at: int) -> list[Message]:
        """Take notice of a direction's end."""
        return []

    def close(self, at: int, kind: str, detail: str) -> list[Message]:
        """Take notice of the connection's end."""
        return []

    @property
    def open_exchanges(self) -> int:
        """There are none."""
        return 0


class _Direction:
    """What one side sent: the record that is being read, what the records told so far, and how far it is sure."""

    __slots__ = (
        "aborted",
        "alert",
        "alerts",
        "application",
        "buffer",
        "changed",
        "guarded",
        "header",
        "hello",
        "kind",
        "largest",
        "measured",
        "message",
        "past",
        "placed",
        "position",
        "remaining",
        "run",
        "searching",
        "side",
        "whole",
    )

    def __init__(self, side: Side, joined: bool) -> None:
        self.side = side
        self.whole = not joined
        """Nothing that could tell of the handshake has been missed."""
        self.searching = joined
        """The position may be inside a record, so the next sure header is looked for."""
        self.buffer = bytearray()
        """While searching: from the first place on where a record may begin."""
        self.run = 0
        """While searching: bytes without a loss."""
        self.header = b""
        """The part of a record's header that has come."""
        self.kind = _PASSED_OVER
        self.remaining = 0
        """Bytes of the record's payload still to come."""
        self.message = bytearray()
        """The part of a hello that has come."""
        self.alert = b""
        self.hello: ClientHello | ServerHello | None = None
        self.past = False
        """Records that come after a hello were seen."""
        self.changed = False
        """A change_cipher_spec was seen after the hello."""
        self.guarded = False
        """And after that a handshake record: up to TLS 1.2 that is the Finished."""
        self.largest = 0
        """The size of the largest application_data record after the hello."""
        self.alerts: list[Alert] = []
        self.aborted = False
        """One of them was fatal."""
        self.position = 0
        self.measured = True
        """No gap was of unknown size."""
        self.placed = 0
        """Bytes of which it is known to which record they belong."""
        self.application = 0
        """Bytes of these that are the payload of application_data."""

    @property
    def done(self) -> bool:
        return self.hello is not None or self.past

    def traffic(self) -> Traffic:
        unknown = self.position - self.placed if self.measured else None
        return Traffic(self.position, self.application, unknown)

    def receive(self, data: bytes, at: int) -> None:
        self.position += len(data)
        if self.searching:
            data = self._search(data)
        pos, size = 0, len(data)
        self.placed += size
        while pos < size:
            if not self.remaining:
                pos = self._begin(data, pos)
                continue
            end = min(size, pos + self.remaining)
            self.remaining -= end - pos
            if self.kind == APPLICATION_DATA:
                self.application += end - pos
            elif self.kind == HANDSHAKE:
                self._read_handshake(data[pos:end])
            elif self.kind == ALERT:
                self._read_alert(data[pos:end], at)
            pos = end

    def gap(self, size: int | None) -> None:
        known = self.remaining if size is None else min(size, self.remaining)
        if size is not None:
            self.position += size
            self.placed += known
            self.remaining -= known
            if self.kind == APPLICATION_DATA:
                self.application += known
        if self.kind in {HANDSHAKE, ALERT}:  # only as long as they are read
            self._give_up()
        if size != known:
            self._lose()
        self.measured &= size is not None

    def _lose(self) -> None:
        """Go on as if joined: what comes next may be anywhere in a record."""
        self._give_up()
        self.header = b""
        self.remaining = 0
        self.searching = True
        self.buffer.clear()
        self.run = 0

    def _give_up(self) -> None:
        """Drop what was being read; the rest of the record is of no use."""
        self.whole = False
        self.message.clear()
        self.alert = b""
        self.kind = _PASSED_OVER

    def _search(self, data: bytes) -> bytes:
        """Return what came from the first sure record on; nothing as long as there is none."""
        self.run += len(data)
        buffer = self.buffer
        buffer += data
        pos = 0
        while match := _HEADER.search(buffer, pos):
            pos = match.start()
            sure = _is_sure(buffer, pos)
            if sure:
                found = bytes(buffer[pos:])
                buffer.clear()
                self.searching = False
                return found
            if sure is None:
                break
            pos += 1
        else:
            pos = max(pos, len(buffer) - _HEADER_MATCH_BYTES + 1)
        del buffer[:pos]
        if self.run >= SEARCH_LIMIT:
            _refuse("expected TLS records")
        return b""

    def _begin(self, data: bytes, pos: int) -> int:
        """Read the header of a record at `pos`, or the rest of it, and return the position after that."""
        end = pos + HEADER_BYTES - len(self.header)
        header = self.header + data[pos:end]
        if len(header) < HEADER_BYTES:
            self.header = header
            return len(data)
        self.header = b""
        self.remaining = size = _payload_size(header, 0)
        if size < 0:
            _refuse("expected a TLS record")
        self.kind = kind = header[0]
        if kind == HANDSHAKE:
            self.guarded |= self.changed
            if self.hello is not None:
                self.kind = _PASSED_OVER
        elif kind == ALERT:
            if size != 2:  # under a cipher
                self.kind = _PASSED_OVER
        elif self.hello is None and self.whole:
            _refuse("expected a ClientHello or ServerHello")
        else:
            self.past = True
            self.changed |= kind == CHANGE_CIPHER_SPEC
            if kind == APPLICATION_DATA:
                self.largest = max(self.largest, size)
            else:
                self.kind = _PASSED_OVER
        return end

    def _read_handshake(self, piece: bytes) -> None:
        """Read on in the hello. After a loss the message may be any other, and its start may be missing."""
        message = self.message
        message += piece
        try:
            hello = _hello(message)
        except DecodeError:
            if self.whole:
                raise
            self._give_up()
            return
        if hello is not None:
            self.hello = hello
            self.kind = _PASSED_OVER
            message.clear()
            self.changed = self.guarded = False
            self.largest = 0

    def _read_alert(self, piece: bytes, at: int) -> None:
        self.alert += piece
        if len(self.alert) < 2:
            return
        level, number = self.alert
        self.alert = b""
        if level not in LEVELS:
            _refuse("expected an alert")
        self.aborted |= LEVELS[level] == "fatal"
        if len(self.alerts) < ALERT_LIMIT:
            self.alerts.append(Alert(self.side, at, LEVELS[level], ALERTS.get(number, f"alert {number}")))


def _payload_size(data: bytes | bytearray, pos: int) -> int:
    """Return the payload's length by the record header at `pos`, -1 if none can be there or it is not whole."""
    if len(data) < pos + HEADER_BYTES or not _HEADER.match(data, pos):
        return -1
    size = data[pos + 3] << 8 | data[pos + 4]
    least, most = _RECORD_SIZES[data[pos]]
    return size if least <= size <= most else -1


def _is_sure(data: bytearray, pos: int) -> bool | None:
    """Whether a record begins at `pos`; None if more bytes are needed."""
    if len(data) < pos + HEADER_BYTES:
        return None
    size = _payload_size(data, pos)
    if size < 0:
        return False
    end = pos + HEADER_BYTES + size
    if data[pos] == HANDSHAKE and len(data) >= end:
        try:
            if _hello(data[pos + HEADER_BYTES : end]) is not None:
                return True
        except DecodeError:
            pass
    return None if len(data) < end + HEADER_BYTES else _payload_size(data, end) > 0


# Hellos.


def _hello(message: bytearray) -> ClientHello | ServerHello | None:
    """Return the hello that these bytes begin with; None if it is not whole. Raises DecodeError."""
    parse = _HELLOS.get(message[0])
    if parse is None:
        _refuse("expected a ClientHello or ServerHello")
    if len(message) < _MESSAGE_HEADER_BYTES:
        return None
    end = _MESSAGE_HEADER_BYTES + int.from_bytes(message[1:4], "big")
    if end > HELLO_LIMIT:
        _refuse(f"expected a hello of at most {HELLO_LIMIT} bytes")
    if len(message) < end:
        return None
    return parse(_Vector(bytes(message[_MESSAGE_HEADER_BYTES:end])))


def _client_hello(body: _Vector) -> ClientHello:
    _version(body)
    body.take(32)  # random
    body.vector(1)  # session id
    suites = body.vector(2)
    if suites.left < 2 or suites.left % 2:
        _refuse("expected cipher suites")
    body.vector(1)  # compression methods
    extensions = _extensions(body)
    return ClientHello(
        sni=_server_name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else None,
        alpn=_names(extensions[_ALPN]) if _ALPN in extensions else (),
        ech=_ENCRYPTED_CLIENT_HELLO in extensions,
        early_data=_EARLY_DATA in extensions,
    )


def _server_hello(body: _Vector) -> ServerHello:
    version = _version(body)
    random = body.take(32)
    body.vector(1)  # session id
    suite = body.number(2)
    body.number(1)  # compression method
    extensions = _extensions(body)
    if _SUPPORTED_VERSIONS in extensions:
        version = extensions[_SUPPORTED_VERSIONS].number(2)
    chosen = _names(extensions[_ALPN]) if _ALPN in extensions else ()
    return ServerHello(
        version=VERSIONS.get(version) or f"0x{version:04x}",
        cipher_suite=CIPHER_SUITES.get(suite) or f"0x{suite:04x}",
        alpn=chosen[0] if chosen else None,
        retry=random == _HELLO_RETRY_REQUEST,
    )


_HELLOS: dict[int, Callable[[_Vector], ClientHello | ServerHello]] = {
    _CLIENT_HELLO: _client_hello,
    _SERVER_HELLO: _server_hello,
}


class _Vector:
    """The bytes of a variable-length vector (RFC 8446 section 3.4), taken from the front; what is short is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._pos

    def take(self, size: int) -> bytes:
        if size > self.left:
            _refuse("expected a hello whose lengths add up")
        self._pos += size
        return self._data[self._pos - size : self._pos]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> _Vector:
        return _Vector(self.take(self.number(length_size)))

    def end(self) -> None:
        if self.left:
            _refuse("expected a hello whose lengths add up")


def _version(body: _Vector) -> int:
    version = body.number(2)
    if version >> 8 != 3 or version == 0x0300:
        _refuse("expected TLS 1.0 or later")
    return version


def _extensions(body: _Vector) -> dict[int, _Vector]:
    """Return the extensions by number; a hello of TLS 1.2 or before may end without any (RFC 5246 section 7.4.1.2)."""
    extensions: dict[int, _Vector] = {}
    if body.left:
        block = body.vector(2)
        while block.left:
            number = block.number(2)
            if number in extensions:
                _refuse("expected each extension once")
            extensions[number] = block.vector(2)
    body.end()
    return extensions


def _server_name(extension: _Vector) -> str | None:
    """RFC 6066 section 3: a list of names, of which only host_name was ever defined."""
    names = extension.vector(2)
    extension.end()
    found = None
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == _HOST_NAME and found is None:
            found = text(name.take(name.left))
    return found


def _names(extension: _Vector) -> tuple[str, ...]:
    """RFC 7301 section 3.1."""
    names = extension.vector(2)
    extension.end()
    found = []
    while names.left:
        name = names.vector(1)
        found.append(text(name.take(name.left)))
    return tuple(found)


def _refuse(message: str) -> NoReturn:
    raise DecodeError(message)
