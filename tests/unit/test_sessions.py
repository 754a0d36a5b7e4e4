"""The ledger knows which library a probe point is of, why TLS cannot be read, and how many sessions have no socket."""

from __future__ import annotations

import pytest

from apitrace import sessions as module
from apitrace.probes.events import ProbesPlaced
from apitrace.protocols.decoder import CLIENT, SERVER
from apitrace.sessions import TlsLedger, Verdict
from tests.unit.protocols.tls_fixtures import RECORDINGS, observe

NONE_FOUND = "no TLS library that can be probed was found in it"
ENDED = Verdict("reset", "the peer reset the connection")


def placed(
    pid: int = 10,
    *,
    libraries: tuple[tuple[int, str], ...] = (),
    unreadable: tuple[str, ...] = (),
    probed: bool = True,
) -> ProbesPlaced:
    return ProbesPlaced(1, pid, libraries, unreadable, probed)


def ledger(*found: ProbesPlaced) -> TlsLedger:
    made = TlsLedger()
    for each in found:
        made.placed(each)
    return made


# -- libraries and reasons -------------------------------------------------------------------------------------------


def test_a_probe_point_belongs_to_the_library_that_was_told() -> None:
    one = ledger(placed(libraries=((1, "OpenSSL 3.0.15"),)), placed(11, libraries=((2, "GnuTLS 3.7.9"),)))
    assert [one.library(point) for point in (1, 2, 3)] == ["OpenSSL 3.0.15", "GnuTLS 3.7.9", "TLS"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ((), NONE_FOUND),
        ((placed(11),), NONE_FOUND),
        ((placed(),), None),
        ((placed(unreadable=("JSSE: not readable",)),), None),
        ((placed(probed=False),), NONE_FOUND),
        ((placed(probed=False, unreadable=("JSSE: not readable",)),), "JSSE: not readable"),
        ((placed(probed=False, unreadable=("a: x", "b: y")),), "a: x; b: y"),
        ((placed(probed=False), placed()), None),
        ((placed(), placed(probed=False)), NONE_FOUND),
    ],
)
def test_why_the_tls_of_a_process_cannot_be_read_is_what_was_told_last(
    found: tuple[ProbesPlaced, ...], reason: str | None
) -> None:
    assert ledger(*found).why_unreadable(10) == reason


def test_a_notice_is_given_once_for_each_process() -> None:
    one = ledger(placed(10, probed=False), placed(11), placed(12, probed=False, unreadable=("JSSE: not readable",)))
    told = [one.notice(pid) for pid in (10, 10, 11, 12, 12, 10)]
    assert told == [NONE_FOUND, None, None, "JSSE: not readable", None, None]


def test_where_some_of_a_process_s_tls_can_be_read_the_notice_comes_with_the_first_connection_that_was_not() -> None:
    half, one = ("BoringSSL: stripped",), TlsLedger()
    for found in (placed(10, unreadable=half), placed(11), placed(12, probed=False, unreadable=half)):
        one.placed(found)
    assert [one.notice(pid) for pid in (10, 11, 12, 13)] == [None, None, *half, NONE_FOUND]
    assert [one.notice_unread(pid) for pid in (10, 10, 11, 12, 13)] == [*half, None, None, None, None]


def test_a_forked_child_has_its_parents_libraries_unless_it_was_told_of_itself() -> None:
    one = ledger(placed(10), placed(12, probed=False))
    for parent, child in ((10, 11), (10, 12), (98, 99)):
        one.forked(parent, child)
    assert [one.why_unreadable(pid) for pid in (11, 12, 99)] == [None, NONE_FOUND, NONE_FOUND]


def test_a_process_that_cannot_be_read_any_more_is_noticed_then() -> None:
    one = ledger(placed())
    assert one.notice(10) is None
    one.placed(placed(probed=False))
    assert one.notice(10) == NONE_FOUND


# -- sessions without a socket ---------------------------------------------------------------------------------------


def test_each_session_without_a_socket_settles_one_connection_of_its_process() -> None:
    one = TlsLedger()
    for pid in (10, 10, 11):
        one.begin(pid)
    assert [one.settle(pid) for pid in (10, 10, 10, 11, 11, 12)] == [True, True, False, True, False, False]
    one.begin(10)
    assert one.settle(10)


def test_of_too_many_processes_those_told_of_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROCESSES_LIMIT", 2)
    one = ledger(*(placed(pid) for pid in (10, 11, 10, 12)))
    assert [one.why_unreadable(pid) for pid in (10, 11, 12)] == [None, NONE_FOUND, None]
    for pid in (20, 21, 20, 22):
        one.begin(pid)
    assert [one.settle(pid) for pid in (20, 20, 21, 22)] == [True, True, False, True]
    assert [one.notice(pid) for pid in (30, 31, 32, 32, 30)] == [NONE_FOUND] * 3 + [None, NONE_FOUND]


# -- connections without a session -----------------------------------------------------------------------------------


def judge(
    recording: str, one: TlsLedger, *, client: int = CLIENT, joined: bool = False, chunks: int | None = None
) -> Verdict | None:
    """Judge a recorded connection, or the first chunks of it."""
    observer = observe(RECORDINGS[recording].chunks[:chunks])
    return one.judge(10, observer, client, joined=joined, ended=ENDED)


UNREADABLE = placed(probed=False, unreadable=("JSSE: not readable",))


@pytest.mark.parametrize("found", [placed(), UNREADABLE])
def test_a_fatal_alert_is_the_verdict_whether_or_not_the_process_can_be_read(found: ProbesPlaced) -> None:
    assert judge("openssl_version_refused", ledger(found)) == Verdict(
        "closed", "the TLS handshake failed: the server sent protocol_version"
    )
    assert judge("curl_untrusting_nginx", ledger(found)) == Verdict(
        "closed", "the TLS handshake failed: the client sent unknown_ca"
    )
    assert judge("curl_untrusting_nginx", ledger(found), client=SERVER) == Verdict(
        "closed", "the TLS handshake failed: the server sent unknown_ca"
    )


@pytest.mark.parametrize("found", [placed(), UNREADABLE])
@pytest.mark.parametrize(("recording", "chunks"), [("gnutls_untrusting", None), ("openssl_tls12_alpn", 2)])
def test_a_handshake_that_did_not_end_has_the_kind_of_what_ended_it(
    recording: str, chunks: int | None, found: ProbesPlaced
) -> None:
    assert judge(recording, ledger(found), chunks=chunks) == Verdict(
        "reset", "the TLS handshake did not end: the peer reset the connection"
    )


def test_the_reason_of_the_process_is_the_verdict_on_a_connection_that_was_set_up() -> None:
    assert judge("java_nginx", ledger(UNREADABLE)) == Verdict("unreadable", "JSSE: not readable")
    assert judge("openssl_tls12_alpn", ledger(UNREADABLE), chunks=4) == Verdict("unreadable", "JSSE: not readable")
    assert judge("java_nginx", TlsLedger(), joined=True) == Verdict("unreadable", NONE_FOUND)


NO_CALL = Verdict("unreadable", "no call on its TLS library was seen")


@pytest.mark.parametrize(
    ("recording", "chunks", "verdict"),
    [
        ("openssl_tls12_alpn", 4, None),  # up to both Finished
        ("openssl_tls12_alpn", None, NO_CALL),  # "GET /" and its answer
        ("openssl_tls13_sni", 3, None),
        ("go_tls13_post_quantum", None, None),  # it has asked nothing
        ("python_tls13", None, NO_CALL),
        ("curl_nginx_tls13_h2", None, NO_CALL),
    ],
)
def test_of_a_process_that_can_be_read_only_connections_that_asked_something_are_told_of(
    recording: str, chunks: int | None, verdict: Verdict | None
) -> None:
    assert judge(recording, ledger(placed()), chunks=chunks) == verdict
    assert judge(recording, ledger(placed()), chunks=chunks, joined=True) is None
    # Where some of its TLS cannot be read, that is the reason, and none to think that its calls were made before.
    for joined in (False, True):
        told = judge(recording, ledger(placed(unreadable=("BoringSSL: stripped",))), chunks=chunks, joined=joined)
        assert told == (verdict and Verdict("unreadable", f"{verdict.detail}; BoringSSL: stripped"))
