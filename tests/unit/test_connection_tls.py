"""Plaintext of TLS sessions gets its socket's addresses and end; TLS that cannot be read is told of, once.

The handshakes are recorded ones (protocols/tls_fixtures); plaintext and its events are built by hand, as in
test_connection.py.
"""

from __future__ import annotations

import errno
import itertools
import socket
from typing import TYPE_CHECKING, Any

import pytest

from apitrace import connection as module
from apitrace.connection import VERDICT_IGNORE, VERDICT_KNOWN
from apitrace.endings import WAIT_NS
from apitrace.exchange import Failure, Tls
from apitrace.probes.events import Chunk, Exited, Forked, ProbesPlaced, ProcessSeen, SessionFreed, SessionSeen
from apitrace.protocols.decoder import CLIENT, SERVER
from tests.unit.protocols.tls_fixtures import RECORDINGS
from tests.unit.test_connection import (
    CLOSE,
    CLOSE_WAIT,
    CONNECT,
    CONNECTED,
    ESTABLISHED,
    FIN_WAIT1,
    GET,
    LAST_ACK,
    MS,
    OK,
    TLS_HELLO,
    UNTIL_CLOSE,
    WHOLE,
    Capture,
    Wire,
    connecting,
    outline,
    outlines,
    post,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from apitrace.exchange import Exchange
    from apitrace.probes.events import Event, StateChanged

OPENSSL = "OpenSSL 3.0.15"
TLS12, TLS13 = RECORDINGS["openssl_tls12_alpn"], RECORDINGS["curl_nginx_tls13_h2"]
RAW = ("127.0.0.1", 4433)


class Session:
    """The events of one TLS session, on the clock of its wire."""

    def __init__(self, wire: Wire, *, number: int = 1001, point: int = 3, pid: int | None = None) -> None:
        self.wire, self.number, self.point = wire, number, point
        self.pid = wire.pid if pid is None else pid
        self.egress = self.ingress = 0
        """The position of the next byte."""

    def _tick(self) -> int:
        self.wire.at += 1_000
        return self.wire.at

    def seen(self, *, tied: bool = True, **fields: Any) -> SessionSeen:
        """Give its first event, or that of its tie."""
        values: dict[str, Any] = {
            "at": self._tick(), "pid": self.pid, "tid": 12, "session": self.number, "handle": 0x7F00,
            "conn": self.wire.conn if tied else 0, "egress_seq": self.egress, "ingress_seq": self.ingress,
            "point": self.point, "by_bytes": False, "whole": True, "alpn": None, "comm": "comm",
        }  # fmt: skip
        return SessionSeen(**(values | fields))

    def tie(self, **fields: Any) -> SessionSeen:
        """Give the event that tells its socket, by bytes."""
        return self.seen(by_bytes=True, **fields)

    def _chunk(self, data: bytes, missing: int, *, egress: bool) -> Chunk:
        seq = self.egress if egress else self.ingress
        if egress:
            self.egress += len(data) + missing
        else:
            self.ingress += len(data) + missing
        return Chunk(
            self._tick(), self.pid, 12, self.number, egress, seq & 0xFFFF_FFFF, data, missing, eof=False, plaintext=True
        )

    def write(self, data: bytes, missing: int = 0) -> Chunk:
        return self._chunk(data, missing, egress=True)

    def read(self, data: bytes, missing: int = 0) -> Chunk:
        return self._chunk(data, missing, egress=False)

    def ended(self) -> Chunk:
        """Tell that the peer's close_notify was read."""
        return self._chunk(b"", 0, egress=False)._replace(eof=True)

    def freed(self) -> SessionFreed:
        return SessionFreed(self._tick(), self.pid, self.number)


def placed(pid: int = 10, *, unreadable: tuple[str, ...] = (), probed: bool = True, at: int = 1) -> ProbesPlaced:
    return ProbesPlaced(at, pid, ((3, OPENSSL), (4, "GnuTLS 3.7.9"), (5, "crypto/tls go1.19.8")), unreadable, probed)


def handshake(wire: Wire, recording: str = "curl_nginx_tls13_h2", *, client: bool = False) -> list[Event]:
    """Give a whole recorded connection as chunks of a traced server, or of its client."""
    own = CLIENT if client else SERVER
    return [wire.send(data) if side == own else wire.receive(data) for side, data in RECORDINGS[recording].chunks]


def sizes(recording: str) -> tuple[int, int]:
    """Return how many bytes client and server sent."""
    return len(RECORDINGS[recording].sent(CLIENT)), len(RECORDINGS[recording].sent(SERVER))


def begun(**fields: Any) -> tuple[Wire, Session, Capture]:
    """Return a capture in which a server's connection has shaken hands, and its session, not seen yet."""
    wire, whole = Wire(), Capture()
    whole.feed(placed(), wire.socket(probed=True, **fields), *handshake(wire))
    return wire, Session(wire), whole


def later(whole: Capture, wire: Wire, duration_ns: int = 2 * WAIT_NS) -> list[Exchange]:
    """Let time pass, as two looks at the clock do."""
    wire.wait(duration_ns)
    return whole.tick(wire.at) + whole.tick(wire.at + 1)


TLS_OF_13 = Tls(OPENSSL, "TLSv1.3", "a.example", None)


# -- a session and its socket ----------------------------------------------------------------------------------------


def test_plaintext_of_a_session_that_is_tied_at_once_is_shown_at_once_with_its_sockets_addresses() -> None:
    _, session, whole = begun()
    assert whole.feed(session.seen(), session.read(GET)) == []
    [exchange] = whole.feed(session.write(OK))
    assert outline(exchange) == WHOLE
    assert exchange.tls == TLS_OF_13
    assert (exchange.connection.id, exchange.connection.family) == ("777-40", "ipv4")
    assert exchange.connection.address_source == "socket"
    assert (exchange.source.ip, exchange.source.port) == ("10.0.0.2", 40000)
    assert (exchange.destination.ip, exchange.destination.port) == ("10.0.0.1", 80)
    assert (exchange.request.scheme, exchange.url) == ("https", "https://h.test/a")
    assert (exchange.process.role, exchange.process.pid, exchange.process.tid) == ("server", 10, 12)
    assert exchange.latency_ns == 1_000
    assert (whole.stats.connections, whole.stats.joined, whole.stats.tls_connections) == (1, 0, 1)


def test_a_client_s_session_has_the_time_of_the_connect_that_its_socket_saw() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(placed(), *connecting(wire))
    wire.wait(3 * MS)
    whole.feed(wire.state(2, ESTABLISHED, shut=False, local_port=51000), *handshake(wire, client=True))
    session = Session(wire)
    [exchange] = whole.feed(session.seen(alpn="http/1.1"), session.write(GET), session.read(OK))
    assert (exchange.connection.connect_ns, exchange.source.port) == (3 * MS + 1_000, 51000)
    assert (exchange.process.role, exchange.destination.name) == ("client", "h.test")
    assert exchange.tls == Tls(OPENSSL, "TLSv1.3", "a.example", "http/1.1")


def test_the_protocol_that_the_object_names_counts_more_than_the_one_on_the_wire() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(), *handshake(wire, "openssl_tls12_alpn"))
    [first] = whole.feed(session.seen(), session.read(GET), session.write(OK))
    assert first.tls == Tls(OPENSSL, "TLSv1.2", "a.example", "http/1.1")
    [second] = whole.feed(session.seen(alpn="acme"), session.read(GET), session.write(OK))
    assert second.tls == Tls(OPENSSL, "TLSv1.2", "a.example", "acme")


def test_plaintext_waits_for_the_tie_and_is_shown_with_it() -> None:
    _, session, whole = begun()
    assert whole.feed(session.seen(tied=False), session.read(GET), session.write(OK)) == []
    [exchange] = whole.feed(session.tie())
    assert outline(exchange) == WHOLE
    assert exchange.connection.address_source == "bio"
    assert (exchange.connection.id, exchange.source.port, exchange.tls) == ("777-40", 40000, TLS_OF_13)
    assert outlines(whole.feed(session.read(GET), session.write(OK))) == [WHOLE]


def test_what_was_held_for_a_tie_is_decoded_in_the_order_in_which_it_was_moved() -> None:
    _, session, whole = begun()
    whole.feed(session.seen(tied=False))
    for number in range(5):
        whole.feed(session.read(post(b"q%d" % number, f"/{number}")))
        assert whole.feed(session.write(OK)) == []
    done = whole.feed(session.tie())
    assert [exchange.request.path for exchange in done] == ["/0", "/1", "/2", "/3", "/4"]
    assert [exchange.request.body for exchange in done] == [b"q0", b"q1", b"q2", b"q3", b"q4"]
    assert len({exchange.id for exchange in done}) == 5
    assert whole.table._budget.used == 0


def test_plaintext_that_no_tie_comes_for_is_shown_after_50_ms_without_addresses() -> None:
    wire, session, whole = begun()
    assert whole.feed(session.seen(tied=False), session.read(GET), session.write(OK)) == []
    moved = wire.at
    wire.at = moved + WAIT_NS
    assert whole.tick(wire.at) + whole.tick(wire.at) == []
    [exchange] = later(whole, wire, 2_000)
    assert outline(exchange) == WHOLE
    assert exchange.connection.address_source == "unknown"
    assert (exchange.connection.family, exchange.source, exchange.destination) == (None, *2 * (exchange.source,))
    assert (exchange.source.ip, exchange.source.port, exchange.source.path) == (None, None, None)
    assert (exchange.tls, exchange.request.scheme) == (Tls(OPENSSL), "https")


def test_a_tie_that_comes_after_some_exchanges_were_shown_gives_the_later_ones_addresses_and_new_ids() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(tied=False), session.read(GET), session.write(OK))
    later(whole, wire)
    [late] = whole.feed(session.read(GET), session.write(OK), session.tie())
    assert [exchange.connection.address_source for exchange in whole.exchanges] == ["unknown", "bio"]
    assert late.source.port == 40000
    assert len({exchange.id for exchange in whole.exchanges}) == 2
    assert whole.stats.connections == 1


def test_go_s_sessions_are_tied_at_once_or_never_and_wait_for_nothing() -> None:
    wire, _, whole = begun()
    session = Session(wire, point=5)
    [exchange] = whole.feed(session.seen(tied=False), session.read(GET), session.write(OK))
    assert (exchange.tls, exchange.connection.address_source) == (Tls("crypto/tls go1.19.8"), "unknown")


def test_a_session_tied_to_a_socket_that_is_not_known_has_no_addresses() -> None:
    """The SocketSeen was lost, and no chunk of the socket came either."""
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), session.seen(), session.read(GET), session.write(OK))
    [exchange] = later(whole, wire)
    assert (outline(exchange), exchange.connection.address_source) == (WHOLE, "unknown")


def test_a_session_tied_by_bytes_to_a_socket_of_unknown_address_does_not_claim_to_know_one() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), *handshake(wire), session.seen(tied=False), session.read(GET), session.write(OK))
    [exchange] = whole.feed(session.tie())
    assert exchange.connection.address_source == "unknown"
    assert exchange.tls is not None
    assert exchange.tls.library == OPENSSL


def test_two_sessions_of_one_connection_one_after_the_other_give_unique_ids() -> None:
    """SSL_clear, or a server that begins TLS anew on the same socket."""
    wire, first, whole = begun()
    second = Session(wire, number=1002)
    whole.feed(first.seen(), first.read(GET), first.write(OK), first.freed())
    whole.feed(second.seen(), second.read(GET), second.write(OK), second.read(GET), second.write(OK))
    assert [exchange.id for exchange in whole.exchanges] == ["777-40.1-1", "777-40.2-1", "777-40.2-2"]
    assert {exchange.connection.id for exchange in whole.exchanges} == {"777-40"}


def test_a_call_through_a_proxy_and_the_connect_that_made_its_tunnel_have_different_ids() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(probed=True), wire.send(CONNECT), wire.receive(CONNECTED))
    whole.feed(*handshake(wire, client=True), session.seen(), session.write(GET), session.read(OK))
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    later(whole, wire)
    assert outlines(whole.exchanges) == [("h.test:80", 200, 0, 0, (), None), WHOLE]
    assert [exchange.tls for exchange in whole.exchanges] == [None, TLS_OF_13]
    assert len({exchange.id for exchange in whole.exchanges}) == 2


def test_tls_inside_tls_is_shown_once_and_its_outer_session_is_not_unreadable() -> None:
    """An HTTPS proxy: the outer session carries CONNECT and then the inner one's records."""
    wire, outer, whole = begun()
    inner = Session(wire, number=1002)
    whole.feed(outer.seen(), outer.write(CONNECT), outer.read(CONNECTED))
    for side, data in TLS13.chunks:
        whole.feed(outer.write(data) if side == CLIENT else outer.read(data))
    whole.feed(inner.seen(), inner.write(GET), inner.read(OK))
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    later(whole, wire)
    assert outlines(whole.exchanges) == [("h.test:80", 200, 0, 0, (), None), WHOLE]
    assert len({exchange.id for exchange in whole.exchanges}) == 2


def test_two_processes_sessions_with_the_same_handle_are_two() -> None:
    wire, first, whole = begun()
    other = Wire(conn=128, at=wire.at, pid=20)
    second = Session(other, number=2002)
    whole.feed(placed(20), other.socket(inode=888, remote=("10.0.0.2", 50000)), *handshake(other))
    whole.feed(first.seen(), second.seen(), first.read(GET), second.read(post(b"", "/b")))
    whole.feed(second.write(OK), first.write(OK))
    assert [(each.request.path, each.source.port, each.process.pid) for each in whole.exchanges] == [
        ("/b", 50000, 20), ("/a", 40000, 10),
    ]  # fmt: skip


def test_the_library_of_a_session_is_named_once_it_is_known() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(wire.socket(), *handshake(wire))
    [first] = whole.feed(session.seen(), session.read(GET), session.write(OK))
    [second] = whole.feed(placed(), session.seen(), session.read(GET), session.write(OK))
    assert [each.tls and each.tls.library for each in (first, second)] == ["TLS", OPENSSL]


@pytest.mark.parametrize(
    ("session_fields", "socket_fields", "joined"),
    [
        ({"whole": True}, {}, False),
        ({"whole": False}, {"probed": True}, False),
        ({"whole": False}, {"probed": False}, True),
        ({"whole": False}, {"probed": True, "egress_total": 9000}, True),
        ({"whole": True, "egress_seq": 7}, {"probed": True}, True),
        ({"whole": True, "ingress_seq": 7}, {"probed": True}, True),
        ({"whole": False, "tied": False}, {"probed": True}, True),
    ],
)
def test_a_session_is_whole_if_its_handshake_was_seen_or_its_socket_was_probed_from_its_first_byte_on(
    session_fields: dict[str, Any], socket_fields: dict[str, Any], joined: bool
) -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(**socket_fields), session.seen(**session_fields))
    assert whole.table._connections[session.number].joined is joined


def test_of_a_session_joined_late_the_next_message_is_shown_and_nothing_is_made_up() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    session.egress, session.ingress = 3000, 500
    whole.feed(placed(), wire.socket(egress_total=9000, ingress_total=900))
    whole.feed(session.seen(whole=False), session.write(b"the end of a body"))
    assert whole.exchanges == []
    [exchange] = whole.feed(session.read(GET), session.write(OK))
    assert outline(exchange) == WHOLE
    assert exchange.tls == Tls(OPENSSL)
    assert exchange.source.port == 40000


def test_bytes_of_a_session_that_were_not_copied_are_lost_bytes() -> None:
    _, session, whole = begun()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    whole.feed(session.seen(), session.read(GET), session.write(head + b"x" * 10, missing=90))
    assert outlines(whole.exchanges) == [("/a", 200, 100, 90, (), None)]
    assert whole.stats.unseen_bytes == 90


def test_a_hole_in_a_session_is_declared_after_50_ms() -> None:
    wire, session, whole = begun()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    whole.feed(session.seen(), session.read(GET), session.write(head))
    session.write(b"x" * 30)
    assert whole.feed(session.write(b"y" * 70)) == []
    assert outlines(later(whole, wire)) == [("/a", 200, 100, 30, (), None)]


def test_plaintext_of_no_known_protocol_is_left_to_the_kernel_sides_own_limit() -> None:
    _, session, whole = begun()
    whole.feed(session.seen(), session.read(b"\x10\x20MQTT"), session.write(b"\x20\x02\0\0"))
    assert whole.table.pop_verdicts() == [(64, VERDICT_IGNORE)]
    assert (whole.stats.unknown_connections, whole.exchanges) == (1, [])


def test_a_request_that_the_kernel_side_does_not_recognise_gets_its_session_copied_whole() -> None:
    _, session, whole = begun()
    whole.table.pop_verdicts()
    whole.feed(session.seen(), *(session.read(piece) for piece in (b"G", b"ET", b" /a HTTP/1.1\r\n")))
    assert (session.number, VERDICT_KNOWN) in whole.table.pop_verdicts()


# -- a lost SessionSeen ----------------------------------------------------------------------------------------------


def test_a_session_whose_event_was_lost_is_shown_without_addresses_but_as_https() -> None:
    wire, session, whole = begun()
    whole.feed(session.read(GET), session.write(OK))
    [exchange] = later(whole, wire)
    assert outline(exchange) == WHOLE
    assert exchange.tls == Tls("TLS")
    assert (exchange.request.scheme, exchange.connection.address_source) == ("https", "unknown")
    assert whole.stats.unannounced == 1


def test_a_session_whose_first_event_was_lost_is_tied_by_the_next() -> None:
    _, session, whole = begun()
    whole.feed(session.read(GET), session.write(OK))
    [exchange] = whole.feed(session.seen())
    assert (outline(exchange), exchange.tls) == (WHOLE, TLS_OF_13)
    assert (exchange.source.port, whole.stats.unannounced) == (40000, 0)


def test_the_connection_of_a_session_whose_event_was_lost_is_not_unreadable() -> None:
    wire, session, whole = begun()
    whole.feed(session.read(GET), session.write(OK), wire.state(ESTABLISHED, FIN_WAIT1))
    assert outlines(later(whole, wire)) == [WHOLE]
    whole.drain(wire.at)
    assert len(whole.exchanges) == 1


def test_a_session_whose_event_was_lost_does_not_settle_another_ones_connection() -> None:
    """Two sessions: one never tied, one whose first event was lost and which is tied after all."""
    wire, lost, whole = begun()
    other = Wire(conn=128, at=wire.at)
    untied = Session(other, number=2002)
    whole.feed(other.socket(probed=True), *handshake(other))
    whole.feed(untied.seen(tied=False), untied.read(GET), untied.write(OK))
    wire.at = other.at
    whole.feed(lost.read(GET), lost.write(OK), lost.seen())
    other.at = wire.at
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1), other.state(ESTABLISHED, FIN_WAIT1))
    later(whole, wire)
    whole.drain(wire.at)
    assert outlines(whole.exchanges) == [WHOLE, WHOLE]


# -- how sessions end ------------------------------------------------------------------------------------------------

ENDINGS: dict[str, tuple[Callable[[Wire], StateChanged], Failure]] = {
    "reset": (
        lambda wire: wire.state(ESTABLISHED, CLOSE, error=errno.ECONNRESET),
        Failure("reset", "the peer reset the connection"),
    ),
    "closed by the process": (
        lambda wire: wire.state(ESTABLISHED, FIN_WAIT1),
        Failure("closed", "the process closed the connection"),
    ),
    "closed by the peer": (
        lambda wire: wire.state(CLOSE_WAIT, LAST_ACK, received_seq=wire.ingress + 1),
        Failure("closed", "the peer closed the connection"),
    ),
    "timed out": (
        lambda wire: wire.state(ESTABLISHED, CLOSE, error=errno.ETIMEDOUT),
        Failure("closed", "the connection failed: connection timed out"),
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("freed", [None, "before", "after"])
def test_an_open_exchange_of_a_session_ends_as_its_socket_does(ending: str, freed: str | None) -> None:
    wire, session, whole = begun()
    event, failure = ENDINGS[ending]
    whole.feed(session.seen(), session.read(GET))
    if freed == "before":
        whole.feed(session.freed())
    whole.feed(event(wire))
    if freed == "after":
        whole.feed(session.freed())
    [exchange] = later(whole, wire)
    assert (outline(exchange)[:2], exchange.error) == (("/a", None), failure)
    assert whole.table.drain(wire.at) == []


@pytest.mark.parametrize("ending", ["closed by the process", "closed by the peer"])
def test_a_body_that_ends_with_its_session_ends_well(ending: str) -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), session.write(UNTIL_CLOSE), ENDINGS[ending][0](wire))
    assert outlines(later(whole, wire)) == [("/a", 200, 10, 0, (), None)]


def test_a_body_that_would_end_with_its_session_does_not_end_well_in_a_reset() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), session.write(UNTIL_CLOSE), ENDINGS["reset"][0](wire))
    assert outlines(later(whole, wire)) == [("/a", 200, 10, 0, (), "reset")]


def asked(reply: bytes) -> tuple[Wire, Session, Capture]:
    """Begin a client's session in which this has been read."""
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(probed=True), *handshake(wire, client=True))
    whole.feed(session.seen(), session.write(GET), session.read(reply))
    return wire, session, whole


def test_a_body_that_ends_with_close_notify_is_whole_at_once_whoever_closes_first() -> None:
    wire, session, whole = asked(UNTIL_CLOSE)
    whole.feed(session.ended())
    assert outlines(whole.exchanges) == [("/a", 200, 10, 0, (), None)]
    whole.feed(session.ended(), ENDINGS["closed by the process"][0](wire))
    assert later(whole, wire) == []
    assert whole.stats.open == 0


@pytest.mark.parametrize("freed", [False, True])
@pytest.mark.parametrize("event", [(CLOSE_WAIT, LAST_ACK, 0), (CLOSE_WAIT, CLOSE, errno.EPIPE)])
def test_a_body_that_ends_with_the_peer_s_fin_is_whole_even_if_a_reset_follows(
    event: tuple[int, int, int], freed: bool
) -> None:
    wire, session, whole = asked(UNTIL_CLOSE)
    old, new, error = event
    wire.ingress += 1
    whole.feed(*([session.freed()] if freed else []))
    whole.feed(wire.state(old, new, error=error, received_seq=wire.ingress))
    assert outlines(later(whole, wire)) == [("/a", 200, 10, 0, (), None)]


@pytest.mark.parametrize("freed", [False, True])
@pytest.mark.parametrize(
    ("reply", "lack"),
    [
        (UNTIL_CLOSE, "the end of the response body was not seen"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789",
         "90 of the 100 bytes of the response body are missing"),
    ],
)  # fmt: skip
def test_a_body_that_the_client_gives_up_is_not_whole_and_not_ended_by_the_server(
    reply: bytes, lack: str, freed: bool
) -> None:
    wire, session, whole = asked(reply)
    whole.feed(*([session.freed()] if freed else []), ENDINGS["closed by the process"][0](wire))
    [exchange] = later(whole, wire)
    assert outline(exchange) == ("/a", 200, 10, 0, (), "closed")
    assert exchange.error == Failure("closed", f"the process closed the connection; {lack}")


@pytest.mark.parametrize("told", [False, True])
def test_a_client_that_gives_up_is_what_ends_the_call_though_the_server_closes_then(told: bool) -> None:
    """Whether it is close_notify or only the FIN that the server was told by."""
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET))
    whole.feed(session.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789"))
    whole.feed(*([session.ended()] if told else []))
    wire.ingress += 1
    whole.feed(wire.state(CLOSE_WAIT, LAST_ACK))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure(
        "closed", "the peer closed the connection; 90 of the 100 bytes of the response body are missing"
    )


def test_a_body_of_which_the_process_left_bytes_unread_does_not_end_well() -> None:
    wire, _, whole = asked(UNTIL_CLOSE)
    whole.feed(wire.state(ESTABLISHED, CLOSE, received_seq=wire.ingress + 5000))
    [exchange] = later(whole, wire)
    assert outline(exchange) == ("/a", 200, 10, 0, (), "closed")
    assert exchange.error == Failure(
        "closed", "the process closed the connection with 5000 bytes unread; the end of the response body was not seen"
    )


@pytest.mark.parametrize("freed", [False, True])
@pytest.mark.parametrize(
    ("how", "client", "kind"),
    [
        ("reset", False, "reset"),
        ("timed out", False, "closed"),
        ("capture", False, "unanswered"),
        ("capture", True, "unanswered"),
    ],
)
def test_a_body_that_would_end_with_its_session_does_not_end_well_without_a_close(
    how: str, client: bool, kind: str, freed: bool
) -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(probed=True), *handshake(wire, client=client), session.seen())
    ask, reply = (session.write, session.read) if client else (session.read, session.write)
    whole.feed(ask(GET), reply(UNTIL_CLOSE))
    if how == "capture":
        whole.drain(wire.at)
    else:
        whole.feed(*([session.freed()] if freed else []), ENDINGS[how][0](wire))
        later(whole, wire)
    assert outlines(whole.exchanges) == [("/a", 200, 10, 0, (), kind)]


def test_what_was_written_to_a_session_is_whole_if_it_was_freed_before_a_close_with_bytes_unread() -> None:
    """The peer's close_notify, which nobody waits for: the kernel sends a reset."""
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), session.write(UNTIL_CLOSE), session.freed())
    whole.feed(wire.state(CLOSE_WAIT, CLOSE, received_seq=wire.ingress + 25))
    assert outlines(later(whole, wire)) == [("/a", 200, 10, 0, (), None)]


def test_a_session_that_is_freed_while_its_socket_stays_open_ends_after_50_ms() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), session.freed())
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("closed", "the process ended the TLS session")
    assert whole.stats.open == 0


def test_a_chunk_that_another_thread_reports_after_the_session_was_freed_still_counts() -> None:
    _, session, whole = begun()
    whole.feed(session.seen(), session.read(GET))
    late = session.write(OK)
    whole.feed(session.freed())
    assert outlines(whole.feed(late)) == [WHOLE]


def test_an_untied_session_that_is_freed_ends_and_shows_what_it_held() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(tied=False), session.read(GET), session.write(OK), session.freed())
    assert outlines(later(whole, wire)) == [WHOLE]
    assert whole.table._budget.used == 0


def test_an_untied_session_ends_with_its_process() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(tied=False), session.read(GET))
    later(whole, wire)
    whole.feed(Exited(wire.at, 10))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("closed", "the process exited")


def test_an_untied_session_ends_with_its_process_although_its_connection_is_over() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(tied=False), session.read(GET))
    later(whole, wire)
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    assert later(whole, wire) == []
    whole.feed(Exited(wire.at, 10))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("closed", "the process exited")
    assert whole.table.drain(wire.at) == []


def test_a_tied_session_ends_with_its_socket_and_not_with_its_process() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), Exited(wire.at, 10), wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("closed", "the process closed the connection")


def test_what_is_open_in_sessions_when_the_capture_ends_is_unanswered_once() -> None:
    wire, session, whole = begun()
    other = Wire(conn=128, at=wire.at)
    untied = Session(other, number=2002)
    whole.feed(session.seen(), session.read(GET))
    whole.feed(other.socket(probed=True), *handshake(other), untied.seen(tied=False), untied.read(GET))
    whole.drain(other.at)
    assert [outline(exchange)[::5] for exchange in whole.exchanges] == 2 * [("/a", "unanswered")]
    assert (whole.stats.open, whole.stats.unanswered, whole.table._budget.used) == (0, 2, 0)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_a_connection_is_left_alone_once_its_handshake_was_read_and_its_session_is_known() -> None:
    _, session, whole = begun()
    assert whole.table.pop_verdicts() == []
    whole.feed(session.seen())
    assert whole.table.pop_verdicts() == [(64, VERDICT_IGNORE)]
    whole.feed(session.tie(), session.read(GET), session.write(OK))
    assert whole.table.pop_verdicts() == []


def test_a_connection_whose_session_is_known_first_is_left_alone_when_the_handshake_was_read() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(probed=True), session.seen())
    verdicts = []
    for event in handshake(wire):
        whole.feed(event)
        verdicts.append(whole.table.pop_verdicts())
    settled = verdicts.index([(64, VERDICT_IGNORE)])
    assert 1 < settled < len(verdicts) - 1
    assert all(each == [] for place, each in enumerate(verdicts) if place != settled)


def test_a_connection_joined_late_is_left_alone_as_soon_as_its_session_is_known() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    whole.feed(placed(), wire.socket(egress_total=9000, ingress_total=900))
    whole.feed(session.seen(whole=False))
    assert whole.table.pop_verdicts() == [(64, VERDICT_IGNORE)]


def test_a_connection_whose_session_is_not_known_is_not_left_alone() -> None:
    _, session, whole = begun()
    whole.feed(session.seen(tied=False), session.read(GET), session.write(OK))
    assert whole.table.pop_verdicts() == []


# -- what cannot be read -----------------------------------------------------------------------------------------------

JSSE = ("JSSE: not readable",)


def unreadable(recording: str, *, client: bool = True, why: ProbesPlaced | None = None) -> tuple[Wire, Capture]:
    """Return a capture of a recorded connection that nothing can read, still open."""
    wire, whole = Wire(), Capture()
    whole.feed(why or placed(unreadable=JSSE, probed=False), wire.socket(probed=False, connected=False))
    whole.feed(*handshake(wire, recording, client=client))
    return wire, whole


@pytest.mark.parametrize("client", [False, True])
def test_a_connection_that_cannot_be_read_is_told_of_once_with_what_is_in_the_clear(client: bool) -> None:
    wire, whole = unreadable("openssl_tls12_alpn", client=client)
    began = 2_000
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert (exchange.protocol, exchange.id, exchange.timestamp) == ("TLS", "777-40-1", began)
    assert exchange.tls == Tls(None, "TLSv1.2", "a.example", "http/1.1")
    assert exchange.error == Failure("unreadable", "JSSE: not readable")
    assert exchange.response is not None
    assert (exchange.request.body_size, exchange.response.body_size) == sizes("openssl_tls12_alpn")
    assert (exchange.request.truncated, exchange.response.truncated) == (True, True)
    assert exchange.process.role == ("client" if client else "server")
    near, far = (exchange.source, exchange.destination) if client else (exchange.destination, exchange.source)
    assert (near.ip, near.port, far.ip, far.port) == ("10.0.0.1", 80, "10.0.0.2", 40000)
    assert exchange.destination.name == ("a.example" if client else None)
    assert (exchange.request.authority, exchange.request.method, exchange.request.path) == ("a.example", None, None)
    assert (exchange.response.status_code, exchange.lost_bytes, exchange.unknown) == (None, 0, ())
    assert (whole.stats.captured, whole.stats.opened, whole.stats.unseen_bytes) == (1, 1, 0)
    assert later(whole, wire) == []
    assert whole.drain(wire.at) == []


def test_bytes_that_the_kernel_side_did_not_copy_count_by_the_positions_at_the_close() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(placed(unreadable=JSSE, probed=False), wire.socket())
    room, more = 4096, [0, 0]
    for side, data in RECORDINGS["python_tls12_answer_of_40000_bytes"].chunks:
        seen = data[:room]
        room -= len(seen)
        if seen:
            whole.feed((wire.send if side == CLIENT else wire.receive)(seen, len(data) - len(seen)))
        elif side == CLIENT:
            wire.egress += len(data)
            more[0] += len(data)
        else:
            wire.ingress += len(data)
            more[1] += len(data)
    assert more[1] > 16000
    wire.egress += 1_000_000
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    sent, received = sizes("python_tls12_answer_of_40000_bytes")
    assert exchange.response is not None
    assert (exchange.request.body_size, exchange.response.body_size) == (sent + 1_000_000, received)
    assert (exchange.error and exchange.error.kind, exchange.lost_bytes, whole.stats.unseen_bytes) == (
        "unreadable", 0, 0,
    )  # fmt: skip


def test_sizes_of_a_connection_that_is_open_when_the_capture_ends_are_not_known() -> None:
    """The kernel side copies 4 KiB of such a connection, and tells of no byte after them."""
    wire, whole = unreadable("openssl_tls12_alpn")
    [exchange] = whole.drain(wire.at)
    assert exchange.unknown == ("request.body_size", "response.body_size")
    assert exchange.error == Failure("unreadable", "JSSE: not readable")


def test_bytes_that_went_by_before_a_connection_was_joined_count_too() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(placed(unreadable=JSSE, probed=False), wire.socket(egress_total=100_000, ingress_total=3_000))
    record = b"\x17\x03\x03\0\x20" + bytes(32)
    whole.feed(wire.send(record * 2), wire.receive(record), wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert exchange.response is not None
    assert (exchange.request.body_size, exchange.response.body_size) == (100_000 + 74, 3_000 + 37)
    assert (exchange.tls, exchange.request.authority) == (Tls(None, None, None, None), None)
    assert exchange.process.role is None


def test_the_reason_is_that_no_library_was_found_where_nothing_was_told_of_the_process() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(), *handshake(wire), wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("unreadable", "no TLS library that can be probed was found in it")


def test_a_connection_of_a_probed_process_on_which_no_call_was_seen_is_told_of() -> None:
    wire, whole = unreadable("curl_nginx_tls13_h2", why=placed())
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("unreadable", "no call on its TLS library was seen")


@pytest.mark.parametrize("client", [False, True])
def test_a_connection_that_carried_more_than_is_copied_is_told_of_like_any_other(client: bool) -> None:
    """The kernel side leaves out what follows the first 4 KiB: for that it was not joined late."""
    wire, whole = unreadable("curl_nginx_tls13_h2", client=client, why=placed())
    record = b"\x17\x03\x03\x40\0" + bytes(5)
    whole.feed(wire.send(record, 50_000), wire.receive(record, 60_000), wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("unreadable", "no call on its TLS library was seen")
    sent, received = sizes("curl_nginx_tls13_h2")
    more = (50_010, 60_010) if client else (60_010, 50_010)
    assert exchange.response is not None
    assert (exchange.request.body_size, exchange.response.body_size) == (sent + more[0], received + more[1])


@pytest.mark.parametrize("recording", ["curl_nginx_tls12_no_sni_no_alpn", "python_tls13_bare", "go_tls13_post_quantum"])
def test_even_a_short_request_of_a_probed_process_is_told_of_if_no_call_was_seen(recording: str) -> None:
    """The last one asks nothing."""
    wire, whole = unreadable(recording, why=placed())
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    asked = recording != "go_tls13_post_quantum"
    assert [exchange.protocol for exchange in later(whole, wire)] == ["TLS"] * asked


def test_an_idle_connection_of_a_probed_process_is_not_told_of() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(placed(), wire.socket())
    for side, data in itertools.islice(RECORDINGS["openssl_tls12_alpn"].chunks, 4):  # up to the Finished of both
        whole.feed(wire.send(data) if side == CLIENT else wire.receive(data))
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    assert later(whole, wire) == []
    assert whole.drain(wire.at) == []
    assert (whole.stats.captured, whole.stats.tls_connections) == (0, 1)


def test_a_connection_of_a_probed_process_that_was_joined_late_is_not_told_of() -> None:
    """Its calls may have been made before."""
    wire, whole = Wire(), Capture()
    whole.feed(placed(), wire.socket(egress_total=100_000, ingress_total=3_000))
    whole.feed(wire.send((b"\x17\x03\x03\0\x20" + bytes(32)) * 30), wire.state(ESTABLISHED, FIN_WAIT1))
    assert later(whole, wire) == []


def test_a_connection_whose_plaintext_was_that_of_an_untied_session_is_not_told_of() -> None:
    wire, session, whole = begun()
    whole.feed(session.seen(tied=False), session.read(GET), session.write(OK))
    assert outlines(later(whole, wire)) == [WHOLE]
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    assert later(whole, wire) == []
    assert whole.drain(wire.at) == []


def test_of_two_connections_and_one_untied_session_one_is_told_of() -> None:
    wire, session, whole = begun()
    other = Wire(conn=128, at=wire.at)
    whole.feed(other.socket(probed=True), *handshake(other))
    wire.at = other.at
    whole.feed(session.seen(tied=False), session.read(GET), session.write(OK))
    other.at = wire.at
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1), other.state(ESTABLISHED, FIN_WAIT1))
    later(whole, other)
    assert sorted(exchange.protocol for exchange in whole.exchanges) == ["HTTP/1.1", "TLS"]


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize(
    ("recording", "detail"),
    [
        ("openssl_tls12_client_refuses_certificate", "the TLS handshake failed: the client sent unknown_ca"),
        ("openssl_version_refused", "the TLS handshake failed: the server sent protocol_version"),
        ("go_no_shared_protocol", "the TLS handshake failed: the server sent no_application_protocol"),
        ("go_untrusting", "the TLS handshake did not end: the process closed the connection"),
    ],
)
@pytest.mark.parametrize("client", [False, True])
def test_a_handshake_that_fails_is_told_of_whether_or_not_calls_can_be_seen(
    recording: str, detail: str, client: bool, probed: bool
) -> None:
    why = placed(probed=probed, unreadable=() if probed else JSSE)
    wire, whole = unreadable(recording, client=client, why=why)
    whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("closed", detail)
    assert exchange.process.role == ("client" if client else "server")


def test_a_handshake_that_a_reset_ends_is_told_of_as_that() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(placed(), wire.socket(), wire.send(TLS13.chunks[0][1]))
    whole.feed(wire.state(ESTABLISHED, CLOSE, error=errno.ECONNRESET))
    [exchange] = later(whole, wire)
    assert exchange.error == Failure("reset", "the TLS handshake did not end: the peer reset the connection")
    assert exchange.tls == Tls(None, None, "a.example", None)


def test_a_handshake_that_is_not_over_when_the_capture_ends_is_unanswered() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(placed(), wire.socket(), wire.send(TLS13.chunks[0][1]))
    [exchange] = whole.drain(wire.at)
    assert exchange.error == Failure(
        "unanswered", "the TLS handshake did not end: still open when the capture ended"
    )
    assert (whole.stats.unanswered, whole.stats.open) == (1, 0)


def test_tls_that_stops_making_sense_is_counted_and_not_told_of_as_something_that_it_is_not() -> None:
    wire, whole = unreadable("openssl_tls12_alpn")
    whole.feed(wire.send(b"\0\0\0\0\0\0\0\0 nonsense"), wire.state(ESTABLISHED, FIN_WAIT1))
    later(whole, wire)
    assert whole.stats.undecodable == 1
    assert whole.drain(wire.at) == []


# -- notices -----------------------------------------------------------------------------------------------------------


def test_the_user_is_told_once_of_a_process_whose_tls_cannot_be_read() -> None:
    whole = Capture()
    whole.feed(ProcessSeen(1, 10, "java", "/usr/bin/java", None), placed(unreadable=JSSE, probed=False))
    for number in (64, 128):
        wire = Wire(conn=number, at=10_000 * number)
        whole.feed(wire.socket(), wire.send(TLS_HELLO))
    assert whole.table.pop_notices() == ["java[10] uses TLS that cannot be read: JSSE: not readable"]
    assert whole.table.pop_notices() == []


def test_the_user_is_told_once_of_a_process_of_whose_tls_some_cannot_be_read_when_a_connection_was_not() -> None:
    """Python has its OpenSSL, and grpcio a BoringSSL of its own."""
    whole = Capture()
    whole.feed(placed(unreadable=("BoringSSL: stripped",)))
    told = []
    for number in (64, 128):
        wire = Wire(conn=number, at=10**9 * number)
        whole.feed(wire.socket(connected=False), *handshake(wire, client=True))
        assert whole.table.pop_notices() == []
        whole.feed(wire.state(ESTABLISHED, FIN_WAIT1))
        told += [exchange.error for exchange in later(whole, wire)]
        told += whole.table.pop_notices()
    unread = Failure("unreadable", "no call on its TLS library was seen; BoringSSL: stripped")
    assert told == [unread, "comm[10] uses TLS that cannot be read: BoringSSL: stripped", unread]


def test_the_user_is_not_told_of_a_process_whose_tls_can_be_read() -> None:
    _, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), session.write(OK))
    assert whole.table.pop_notices() == []


def test_the_user_is_not_told_of_a_forked_child_of_a_process_whose_tls_can_be_read() -> None:
    """As of a pre-forking server's where every process is a target: the probes are there already."""
    wire, whole = Wire(pid=20), Capture()
    whole.feed(placed(10), Forked(2, 10, 20), wire.socket(), *handshake(wire))
    assert whole.table.pop_notices() == []


def test_a_notice_names_the_process_as_its_socket_does_if_nothing_else_is_known() -> None:
    wire, whole = Wire(), Capture()
    whole.feed(wire.socket(comm="curl\x1b[0m"), wire.send(TLS_HELLO))
    [notice] = whole.table.pop_notices()
    assert notice.endswith("[10] uses TLS that cannot be read: no TLS library that can be probed was found in it")


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_session_in_use_keeps_its_silent_socket_from_being_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel side tells nothing of the socket once the session's plaintext is seen."""
    monkeypatch.setattr(module, "CONNECTIONS_LIMIT", 3)
    wire, session, whole = begun()
    idle = Wire(conn=128, at=wire.at)
    whole.feed(session.seen(), idle.socket(), idle.receive(post(b"", "/idle")))
    wire.at = idle.at
    whole.feed(session.read(GET))
    late = Wire(conn=192, at=wire.at)
    [evicted] = whole.feed(late.socket())
    assert evicted.request.path == "/idle"
    assert outlines(whole.feed(session.write(OK))) == [WHOLE]


def test_a_socket_that_is_given_up_takes_its_session_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_LIMIT", 2)
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET))
    other = Wire(conn=128, at=wire.at)
    [evicted] = whole.feed(other.socket())
    assert evicted.error == Failure("closed", "no longer followed: more than 2 connections are open")
    assert (whole.stats.open, whole.table._budget.used) == (0, 0)


def test_a_session_whose_socket_is_given_up_to_make_room_for_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_LIMIT", 1)
    wire, session, whole = begun()
    whole.feed(session.seen(), session.read(GET), session.write(OK))
    later(whole, wire)
    whole.drain(wire.at)
    assert outlines(whole.exchanges)[-1] == WHOLE
    assert (whole.stats.open, whole.table._budget.used) == (0, 0)


def test_what_a_session_holds_until_it_is_tied_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from apitrace import streams

    monkeypatch.setattr(streams, "HELD_TOTAL_LIMIT", 1000)
    wire, session, whole = begun()
    whole.feed(session.seen(tied=False))
    for _ in range(40):
        whole.feed(session.read(post(b"x" * 200)), session.write(OK))
        assert whole.table._budget.used <= 1500
    later(whole, wire)
    assert len(whole.exchanges) == 40


def test_an_af_unix_socket_carries_a_session_too() -> None:
    wire, whole = Wire(), Capture()
    session = Session(wire)
    seen = wire.socket(family=socket.AF_UNIX, local=("/run/x.sock", 0), remote=("", 0), counted=True, probed=True)
    whole.feed(placed(), seen, *handshake(wire))
    [exchange] = whole.feed(session.seen(), session.read(GET), session.write(OK))
    assert (exchange.destination.path, exchange.connection.family, exchange.tls) == ("/run/x.sock", "unix", TLS_OF_13)
