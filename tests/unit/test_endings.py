"""What TCP's state changes say of both directions; test_connection.py has what comes of it."""

from __future__ import annotations

import errno

import pytest

from apitrace import endings
from apitrace.endings import LINGER_NS, WAIT_NS
from apitrace.probes.events import StateChanged
from tests.unit.test_connection import CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_SENT

SENT, READ = 1000, 2000
PEER, PROCESS = "the peer closed the connection", "the process closed the connection"


def changed(old: int, new: int, *, error: int = 0, unread: int = 0, shut: bool = True, sent: int = 0) -> StateChanged:
    """Return a change at which so many bytes lie unread, and the process's FIN has been counted as `sent`."""
    return StateChanged(
        at=5, pid=10, conn=64, old=old, new=new, error=error, egress_seq=SENT + sent, ingress_seq=READ,
        received_seq=READ + unread, local_port=0, remote_port=80, shut=shut,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("event", "kind", "detail", "fins", "positions"),
    [
        (changed(ESTABLISHED, FIN_WAIT1), "closed", PROCESS, (True, False), (SENT, READ)),
        (changed(ESTABLISHED, CLOSE, unread=7), "closed", f"{PROCESS} with 7 bytes unread", (False, False),
         (SENT, READ)),
        # The peer's FIN counts as one byte, read or not.
        (changed(CLOSE_WAIT, LAST_ACK), "closed", PEER, (True, True), (SENT, READ - 1)),
        (changed(CLOSE_WAIT, LAST_ACK, unread=1), "closed", PEER, (True, False), (SENT, READ)),
        (changed(CLOSE_WAIT, CLOSE, unread=8), "closed", f"{PEER} with 7 bytes unread", (False, False), (SENT, READ)),
        (changed(LAST_ACK, CLOSE, sent=1), "closed", PEER, (True, True), (SENT, READ - 1)),
        (changed(FIN_WAIT2, CLOSE, sent=1), "closed", "the connection was closed", (True, True), (SENT, READ - 1)),
        (changed(ESTABLISHED, CLOSE, error=errno.ECONNRESET), "reset", "the peer reset the connection", (False, False),
         (SENT, READ)),
        (changed(CLOSE_WAIT, CLOSE, error=errno.EPIPE), "reset", "the peer reset the connection", (False, True),
         (SENT, READ - 1)),
        (changed(ESTABLISHED, CLOSE, error=errno.ETIMEDOUT), "closed", "the connection failed: connection timed out",
         (False, False), (SENT, READ)),
    ],
)  # fmt: skip
def test_an_ending_says_who_ended_what_and_where(
    event: StateChanged, kind: str, detail: str, fins: tuple[bool, bool], positions: tuple[int, int]
) -> None:
    ending = endings.of_tcp(event)
    assert ending is not None
    assert (ending.at, ending.kind, ending.detail) == (5, kind, detail)
    assert (ending.egress_fin, ending.ingress_fin) == fins
    assert (ending.egress_end, ending.ingress_end) == positions
    assert ending.orderly == (event.error == 0)


@pytest.mark.parametrize(
    "event",
    [changed(ESTABLISHED, FIN_WAIT1, shut=False), changed(ESTABLISHED, FIN_WAIT1, unread=7),
     changed(CLOSE_WAIT, LAST_ACK, unread=8)],
)  # fmt: skip
def test_a_connection_goes_on_whose_process_may_yet_read(event: StateChanged) -> None:
    assert endings.of_tcp(event) is None
    assert endings.sends_fin(event)


def test_a_fin_that_was_sent_before_is_not_sent_by_a_later_change() -> None:
    assert not endings.sends_fin(changed(FIN_WAIT1, FIN_WAIT1, sent=1))
    assert not endings.sends_fin(changed(ESTABLISHED, CLOSE))


def test_what_the_kernel_closed_with_bytes_unread_is_kept_for_the_process_to_read() -> None:
    mine = endings.of_tcp(changed(ESTABLISHED, CLOSE, unread=7))
    kernels = endings.of_tcp(changed(ESTABLISHED, CLOSE, unread=7, shut=False, error=errno.ETIMEDOUT))
    assert mine is not None
    assert kernels is not None
    assert (mine.due, kernels.due) == (5 + WAIT_NS, 5 + LINGER_NS)


@pytest.mark.parametrize(
    ("error", "kind", "detail"),
    [
        (errno.ECONNREFUSED, "refused", "connection refused after 3.0 ms"),
        (errno.ETIMEDOUT, "unanswered", "connect timed out after 3.0 ms"),
        (errno.EACCES, "closed", "permission denied after 3.0 ms"),
        (0, "closed", "closed by the process before the connect was answered after 3.0 ms"),
    ],
)
def test_a_connect_that_failed_says_why_and_how_long_it_took(error: int, kind: str, detail: str) -> None:
    ending = endings.of_connect(changed(SYN_SENT, CLOSE, error=error), 3_000_000)
    assert (ending.kind, ending.detail) == (kind, detail)


@pytest.mark.parametrize("freed", [False, True])
@pytest.mark.parametrize(
    ("event", "fins"),
    [
        (changed(ESTABLISHED, FIN_WAIT1), (True, False)),
        (changed(CLOSE_WAIT, LAST_ACK), (True, True)),
        (changed(ESTABLISHED, CLOSE, unread=7), (None, False)),
        (changed(ESTABLISHED, CLOSE, error=errno.ECONNRESET), (False, False)),
        (changed(CLOSE_WAIT, CLOSE, error=errno.ECONNRESET), (False, True)),
        (None, (None, False)),
    ],
)
def test_a_session_ends_with_its_carrier_and_had_written_all_if_it_was_freed_in_order(
    event: StateChanged | None, fins: tuple[bool | None, bool], freed: bool
) -> None:
    carrier = None if event is None else endings.of_tcp(event)
    ending = endings.of_session(carrier, 9, freed=freed)
    expected = (freed if fins[0] is None else fins[0], fins[1])
    assert (ending.egress_fin, ending.ingress_fin) == expected
    assert ending.egress_end is ending.ingress_end is None
    assert ending.due == 9 + WAIT_NS
    assert ending.detail == ("the process ended the TLS session" if carrier is None else carrier.detail)
