"""What recorded TLS connections tell without their keys equals what their ends said; what is not TLS is refused."""

from __future__ import annotations

import re
import ssl
import subprocess

import pytest

from apitrace.protocols import tls
from apitrace.protocols.decoder import DecodeError
from apitrace.protocols.tls import Alert, TlsObserver, Traffic, looks_like_tls
from tests.unit.protocols.tls_fixtures import CLIENT, RECORDINGS, SERVER, SSL2, Recording, observe, observed

every_recording = pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)


def joined(*chunks: tuple[int, bytes]) -> TlsObserver:
    observer = TlsObserver(joined=True)
    for at, (side, data) in enumerate(chunks):
        observer.receive(side, data, at)
    return observer


def records(stream: bytes) -> list[bytes]:
    """Cut a whole stream into its records."""
    found = []
    while stream:
        end = 5 + int.from_bytes(stream[3:5], "big")
        found.append(stream[:end])
        stream = stream[end:]
    return found


ENCRYPTED_ALERTS = ("go_untrusting", "gnutls_untrusting", "java_untrusting")
"""Handshakes of TLS 1.3 that the client broke off with an alert that nobody else can read."""

CLIENT_HELLO = records(RECORDINGS["openssl_tls12_alpn"].sent(CLIENT))[0]
SERVER_HELLO = records(RECORDINGS["openssl_tls12_alpn"].sent(SERVER))[0]
CIPHER_SUITES_AT = 5 + 4 + 2 + 32 + 1 + CLIENT_HELLO[43]


def changed(hello: bytes, at: int, value: bytes) -> bytes:
    return hello[:at] + value + hello[at + len(value) :]


def resized(hello: bytes) -> bytes:
    """Return the record with the lengths of itself and of its message made true."""
    hello = changed(hello, 3, (len(hello) - 5).to_bytes(2, "big"))
    return changed(hello, 6, (len(hello) - 9).to_bytes(3, "big"))


# What the ends said.


@every_recording
def test_version_cipher_suite_and_outcome_are_what_the_client_said(recording: Recording) -> None:
    observer = observe(recording.chunks)
    assert observer.finished is recording.finished
    if recording.version is not None:
        assert observer.version == recording.version
    if recording.cipher_suite is not None:
        assert observer.cipher_suite == recording.cipher_suite


@every_recording
def test_sni_and_offered_protocols_are_what_the_client_was_told_to_ask_for(recording: Recording) -> None:
    observer = observe(recording.chunks)
    assert (observer.client, observer.sni, observer.alpn_offered) == (CLIENT, recording.sni, recording.offered)


@every_recording
def test_the_protocol_chosen_is_told_up_to_tls_1_2_and_then_named_as_unknown(recording: Recording) -> None:
    observer = observe(recording.chunks)
    if observer.version == tls.TLS13:
        assert observer.alpn is None
        assert observer.unknown == (("tls.alpn",) if recording.offered else ())
    else:
        assert observer.alpn == recording.alpn
        assert observer.unknown == ()


@every_recording
def test_the_sides_may_be_numbered_either_way(recording: Recording) -> None:
    there = observed(observe(recording.chunks))
    back = observed(observe(tuple((1 - side, data) for side, data in recording.chunks)))
    assert back.pop("client") == 1 - CLIENT
    assert there.pop("client") == CLIENT
    assert back.pop("traffic") == there.pop("traffic")[::-1]
    assert back.pop("alerts") == [(1 - side, *rest) for side, *rest in there.pop("alerts")]
    assert back == there


@every_recording
def test_every_byte_is_placed_when_nothing_was_lost(recording: Recording) -> None:
    observer = observe(recording.chunks)
    for side in (CLIENT, SERVER):
        sent = recording.sent(side)
        application = sum(len(record) - 5 for record in records(sent) if record[0] == tls.APPLICATION_DATA)
        assert observer.traffic(side) == Traffic(len(sent), application, 0)


@every_recording
def test_once_settled_nothing_but_the_traffic_changes_if_the_rest_is_not_seen(recording: Recording) -> None:
    whole, first = TlsObserver(), TlsObserver()
    settled = []
    for at, (side, data) in enumerate(recording.chunks):
        whole.receive(side, data, at)
        settled.append(first.settled)
        if first.settled:
            first.gap(side, len(data), at)
        else:
            first.receive(side, data, at)
    assert settled == sorted(settled)  # it stays so
    assert first.settled or recording.name in ENCRYPTED_ALERTS
    after, before = observed(whole), observed(first)
    for side, (seen, counted) in enumerate(zip(after.pop("traffic"), before.pop("traffic"), strict=True)):
        assert counted.wire_bytes == seen.wire_bytes, side
        assert counted.application_bytes <= seen.application_bytes <= counted.application_bytes + counted.unknown_bytes
    assert after == before


def test_settled_comes_with_the_last_finished_not_before() -> None:
    recording = RECORDINGS["node_tls12"]
    observer = TlsObserver()
    for side, stream in ((CLIENT, recording.sent(CLIENT)), (SERVER, recording.sent(SERVER))):
        for record in records(stream):
            if record[0] == tls.APPLICATION_DATA:
                break
            assert not observer.settled
            assert observer.finished is False
            observer.receive(side, record, 0)
    assert observer.settled
    assert observer.finished is True


# Single facts.


def test_the_application_bytes_are_the_answer_and_24_bytes_of_aes_gcm_for_each_of_its_records() -> None:
    observer = observe(RECORDINGS["python_tls12_answer_of_40000_bytes"].chunks)
    answer = len(b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n") + 40000
    assert observer.traffic(SERVER).application_bytes == answer + 3 * 24


def test_a_hello_retry_request_is_told_and_the_version_is_known_from_it() -> None:
    recording = RECORDINGS["openssl_tls13_retry"]
    assert observe(recording.chunks).retried
    assert not observe(RECORDINGS["openssl_tls13_sni"].chunks).retried
    until_retry = observe(recording.chunks[:2])
    assert (until_retry.version, until_retry.cipher_suite, until_retry.finished, until_retry.settled) == (
        "TLSv1.3",
        "TLS_AES_256_GCM_SHA384",
        False,
        False,
    )


def test_an_encrypted_client_hello_shows_the_name_of_the_front_and_says_so() -> None:
    observer = observe(RECORDINGS["go_encrypted_client_hello"].chunks)
    assert (observer.sni, observer.ech) == ("front.example", True)


def test_the_decoy_that_chrome_sends_cannot_be_told_from_an_encrypted_client_hello() -> None:
    assert observe(RECORDINGS["chrome_nginx"].chunks).ech


@pytest.mark.parametrize(
    ("name", "alert"),
    [
        ("openssl_tls12_no_shared_cipher", Alert(SERVER, 1, "fatal", "handshake_failure")),
        ("openssl_version_refused", Alert(SERVER, 1, "fatal", "protocol_version")),
        ("go_no_shared_protocol", Alert(SERVER, 1, "fatal", "no_application_protocol")),
        ("openssl_tls12_client_refuses_certificate", Alert(CLIENT, 2, "fatal", "unknown_ca")),
        ("openssl_tls13_client_refuses_certificate", Alert(CLIENT, 2, "fatal", "unknown_ca")),
        ("curl_untrusting_nginx", Alert(CLIENT, 2, "fatal", "unknown_ca")),
        ("openssl_tls12_client_certificate_missing", Alert(SERVER, 3, "fatal", "handshake_failure")),
    ],
)
def test_why_a_handshake_failed_is_told_by_its_alert(name: str, alert: Alert) -> None:
    observer = observe(RECORDINGS[name].chunks)
    assert observer.alerts == (alert,)
    assert observer.finished is False
    assert observer.settled


@pytest.mark.parametrize("name", ENCRYPTED_ALERTS)
def test_an_encrypted_alert_of_a_client_is_not_taken_for_its_finished(name: str) -> None:
    observer = observe(RECORDINGS[name].chunks)
    assert (observer.version, observer.finished, observer.alerts) == ("TLSv1.3", False, ())


def test_an_alert_is_not_the_last_word_before_the_other_side_was_heard() -> None:
    recording = RECORDINGS["go_no_shared_protocol"]
    observer = TlsObserver()
    observer.receive(SERVER, recording.sent(SERVER), 1)
    assert not observer.settled
    observer.receive(CLIENT, recording.sent(CLIENT), 0)
    assert observer.settled
    assert observer.sni == "d.example"


def test_a_client_that_starts_to_send_before_the_servers_finished_has_not_finished() -> None:
    recording = RECORDINGS["node_tls12"]
    observer = TlsObserver()
    observer.receive(CLIENT, recording.sent(CLIENT), 0)
    observer.receive(SERVER, b"".join(records(recording.sent(SERVER))[:4]), 0)
    assert observer.traffic(CLIENT).application_bytes == 84
    assert observer.finished is False


def test_only_the_first_alerts_of_a_side_are_kept() -> None:
    observer = TlsObserver()
    observer.receive(SERVER, bytes.fromhex("15030300020170") * (tls.ALERT_LIMIT + 1), 7)
    assert observer.alerts == (Alert(SERVER, 7, "warning", "unrecognized_name"),) * tls.ALERT_LIMIT


def test_an_alert_without_a_name_is_told_by_its_number() -> None:
    observer = TlsObserver()
    observer.receive(SERVER, bytes.fromhex("150303000202ff"), 0)
    assert observer.alerts == (Alert(SERVER, 0, "fatal", "alert 255"),)


def test_an_unregistered_version_and_cipher_suite_are_told_by_their_numbers() -> None:
    hello = bytearray(records(RECORDINGS["openssl_tls12_bare"].sent(SERVER))[0])
    hello[9:11] = b"\x03\x7f"
    suite = 5 + 4 + 2 + 32 + 1 + hello[43]
    hello[suite : suite + 2] = b"\xc0\xff"
    observer = TlsObserver()
    observer.receive(SERVER, bytes(hello), 0)
    assert (observer.client, observer.version, observer.cipher_suite) == (CLIENT, "0x037f", "0xc0ff")


def test_nothing_is_known_before_the_first_byte() -> None:
    assert observed(TlsObserver()) == {
        "client": None,
        "sni": None,
        "ech": False,
        "alpn_offered": None,
        "alpn": None,
        "version": None,
        "cipher_suite": None,
        "retried": False,
        "alerts": [],
        "finished": False,
        "settled": False,
        "unknown": (),
        "traffic": (Traffic(0, 0, 0), Traffic(0, 0, 0)),
    }


def test_a_hello_may_end_before_the_extensions() -> None:
    suites_end = CIPHER_SUITES_AT + 2 + int.from_bytes(CLIENT_HELLO[CIPHER_SUITES_AT : CIPHER_SUITES_AT + 2], "big")
    observer = TlsObserver()
    observer.receive(CLIENT, resized(CLIENT_HELLO[: suites_end + 2]), 0)
    observer.receive(SERVER, resized(SERVER_HELLO[: 44 + SERVER_HELLO[43] + 3]), 0)
    assert (observer.sni, observer.alpn_offered, observer.version) == (None, (), "TLSv1.2")


def test_a_name_that_is_no_host_name_is_not_taken_for_one() -> None:
    hello = CLIENT_HELLO.replace(b"\x00\x00\x09a.example", b"\x01\x00\x02ab\x00\x00\x04a.ex")
    observer = TlsObserver()
    observer.receive(CLIENT, hello, 0)
    assert observer.sni == "a.ex"


# Losses.


def test_a_gap_inside_a_record_of_application_data_costs_nothing() -> None:
    recording = RECORDINGS["python_tls12_answer_of_40000_bytes"]
    stream = recording.sent(SERVER)
    answer = stream.index(b"\x17\x03\x03\x40\x18")
    observer = observe(tuple(chunk for chunk in recording.chunks if chunk[0] == CLIENT))
    observer.receive(SERVER, stream[: answer + 5 + 100], 0)
    observer.gap(SERVER, 16408 - 100, 0)
    observer.receive(SERVER, stream[answer + 5 + 16408 :], 0)
    assert observed(observer) == observed(observe(recording.chunks))


def test_after_a_longer_gap_counting_resumes_at_the_next_record_and_the_rest_is_told_as_unknown() -> None:
    recording = RECORDINGS["python_tls12_answer_of_40000_bytes"]
    stream = recording.sent(SERVER)
    first = stream.index(b"\x17\x03\x03\x40\x18")
    second = first + 5 + 16408
    observer = TlsObserver()
    observer.receive(SERVER, stream[: first + 5 + 16000], 0)
    observer.gap(SERVER, 1000, 0)
    observer.receive(SERVER, stream[first + 5 + 17000 :], 0)
    # Of the second record nothing can be told, the third is followed by the header of the alert.
    assert observer.traffic(SERVER) == Traffic(len(stream), 16408 + 7298, second + 5 + 16408 - (first + 5 + 16408))


def test_a_gap_of_unknown_size_leaves_the_unknown_bytes_unknown() -> None:
    recording = RECORDINGS["python_tls12_answer_of_40000_bytes"]
    stream = recording.sent(SERVER)
    first = stream.index(b"\x17\x03\x03\x40\x18")
    observer = TlsObserver()
    observer.receive(SERVER, stream[: first + 5], 0)
    observer.gap(SERVER, None, 0)
    observer.receive(SERVER, stream[first + 5 + 16408 :], 0)
    assert observer.traffic(SERVER) == Traffic(len(stream) - 16408, 16408 + 7298, None)


def test_a_gap_of_no_bytes_is_none() -> None:
    recording = RECORDINGS["node_tls13"]
    observer = TlsObserver()
    for at, (side, data) in enumerate(recording.chunks):
        observer.gap(side, 0, at)
        observer.receive(side, data[:3], at)
        observer.gap(side, 0, at)
        observer.receive(side, data[3:], at)
    assert observed(observer) == observed(observe(recording.chunks))


def test_a_client_hello_with_a_byte_missing_is_not_used() -> None:
    recording = RECORDINGS["node_tls12"]
    hello = records(recording.sent(CLIENT))[0]
    name = hello.index(b"c.example")
    observer = TlsObserver()
    observer.receive(CLIENT, hello[: name + 2], 0)
    observer.gap(CLIENT, 1, 0)
    observer.receive(CLIENT, recording.sent(CLIENT)[name + 3 :], 0)
    observer.receive(SERVER, recording.sent(SERVER), 0)
    assert (observer.client, observer.sni, observer.alpn_offered) == (CLIENT, None, None)
    assert (observer.alpn, observer.version, observer.finished) == ("http/1.1", "TLSv1.2", True)
    assert observer.unknown == ("tls.sni",)
    assert observer.settled


def test_a_lost_server_hello_leaves_version_and_protocol_unknown() -> None:
    recording = RECORDINGS["node_tls12"]
    first, *rest = records(recording.sent(SERVER))
    observer = TlsObserver()
    observer.receive(CLIENT, recording.sent(CLIENT), 0)
    observer.gap(SERVER, len(first), 0)
    observer.receive(SERVER, b"".join(rest), 0)
    assert (observer.sni, observer.version, observer.alpn, observer.finished) == ("c.example", None, None, None)
    assert observer.unknown == ("tls.version", "tls.alpn")
    assert observer.settled


# Joined in the middle.


@every_recording
def test_joined_before_the_first_byte_what_was_agreed_on_is_known_all_the_same(recording: Recording) -> None:
    observer = joined(*recording.chunks)
    whole = observe(recording.chunks)
    assert (observer.sni, observer.alpn_offered, observer.version, observer.cipher_suite, observer.alpn) == (
        whole.sni,
        whole.alpn_offered,
        whole.version,
        whole.cipher_suite,
        whole.alpn,
    )
    assert observer.finished in {whole.finished, None}


def test_joined_after_the_handshake_the_records_are_counted_and_nothing_else_is_claimed() -> None:
    recording = RECORDINGS["python_tls12_answer_of_40000_bytes"]
    stream = recording.sent(SERVER)
    answer = stream[stream.index(b"\x17\x03\x03\x40\x18") :]
    observer = joined((SERVER, answer[5000:]), (CLIENT, records(recording.sent(CLIENT))[-1]))
    assert observed(observer) == observed(TlsObserver(joined=True)) | {
        # No record follows the client's only one that could confirm it.
        "traffic": (Traffic(83, 0, 83), Traffic(len(answer) - 5000, 16408 + 7298, 5 + 16408 - 5000)),
    }
    assert observer.unknown == ("tls.sni", "tls.version", "tls.alpn")


def test_joined_after_the_handshake_it_is_settled_when_both_sides_are_seen_to_be_past_it() -> None:
    recording = RECORDINGS["openssl_tls13_chacha_key_update"]
    observer = joined((CLIENT, b"".join(records(recording.sent(CLIENT))[2:])))
    assert not observer.settled
    observer.receive(SERVER, b"".join(records(recording.sent(SERVER))[-3:]), 0)
    assert observer.settled
    assert observer.finished is None


def test_early_data_before_a_second_hello_is_not_taken_for_the_finished() -> None:
    recording = RECORDINGS["openssl_tls13_retry"]
    _, _, second_hello, *_ = records(recording.sent(CLIENT))
    early_data = records(recording.sent(SERVER))[4]
    assert early_data[0] == tls.APPLICATION_DATA
    observer = joined((CLIENT, early_data + second_hello), (SERVER, recording.sent(SERVER)))
    assert (observer.sni, observer.traffic(CLIENT).application_bytes) == ("a.example", len(early_data) - 5)
    assert observer.finished is None


def test_joined_bytes_before_and_after_a_gap_are_not_put_together() -> None:
    record = records(RECORDINGS["python_tls12_answer_of_40000_bytes"].sent(SERVER))[-2]
    observer = joined((SERVER, record[:100]))
    observer.gap(SERVER, 1, 0)
    observer.receive(SERVER, record[100:] + record, 0)
    assert observer.traffic(SERVER) == Traffic(2 * len(record) + 1, 0, 2 * len(record) + 1)


def test_joined_to_what_is_not_tls_it_says_so_once_a_record_cannot_have_been_missed() -> None:
    observer = TlsObserver(joined=True)
    observer.receive(SERVER, b"x" * (tls.SEARCH_LIMIT - 1), 0)
    with pytest.raises(DecodeError, match=r"^expected TLS records$"):
        observer.receive(SERVER, b"x", 0)


def test_the_largest_records_are_found_within_the_search_limit() -> None:
    header = bytes([tls.APPLICATION_DATA, 3, 3, *tls.PAYLOAD_LIMIT.to_bytes(2, "big")])
    record = header + b"x" * tls.PAYLOAD_LIMIT
    observer = joined((SERVER, record[1:] + record + header))
    assert observer.traffic(SERVER) == Traffic(tls.SEARCH_LIMIT - 1, tls.PAYLOAD_LIMIT, len(record) - 1)


# What is not TLS.


def test_a_hello_of_ssl_2_is_refused() -> None:
    assert SSL2.sent(CLIENT)[2:5] == b"\x01\x03\x03"  # ClientHello of TLS 1.2 in the clothes of SSL 2
    with pytest.raises(DecodeError, match=r"^expected a TLS record$"):
        observe(SSL2.chunks)
    assert not looks_like_tls(SSL2.sent(CLIENT))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "expected a TLS record"),
        (changed(CLIENT_HELLO, 1, b"\x03\x00"), "expected a TLS record"),
        (changed(CLIENT_HELLO, 3, b"\xff"), "expected a TLS record"),
        (CLIENT_HELLO + b"GET /", "expected a TLS record"),
        (b"\x17\x03\x03\x00\x20", "expected a ClientHello or ServerHello"),
        (CLIENT_HELLO[:5] + b"\x0b", "expected a ClientHello or ServerHello"),
        (b"\x15\x03\x03\x00\x02\x03\x28", "expected an alert"),
        (changed(CLIENT_HELLO, 9, b"\x03\x00"), "expected TLS 1.0 or later"),
        (changed(CLIENT_HELLO, 9, b"\x02\x03"), "expected TLS 1.0 or later"),
        (changed(SERVER_HELLO, 9, b"\x03\x00"), "expected TLS 1.0 or later"),
        (changed(CLIENT_HELLO, CIPHER_SUITES_AT, b"\x00\x00"), "expected cipher suites"),
        (changed(CLIENT_HELLO, CIPHER_SUITES_AT, b"\xff"), "expected a hello whose lengths add up"),
        (changed(CLIENT_HELLO, CLIENT_HELLO.index(b"a.example") - 1, b"\x0a"), "expected a hello whose lengths add up"),
        (resized(CLIENT_HELLO + b"x"), "expected a hello whose lengths add up"),
        (CLIENT_HELLO.replace(b"\x00\x16\x00\x00", b"\x00\x17\x00\x00"), "expected each extension once"),
        (CLIENT_HELLO[:6] + b"\x01\x00\x00", "expected a hello of at most 65536 bytes"),
    ],
)
def test_what_is_not_tls_or_not_a_hello_is_refused(data: bytes, message: str) -> None:
    observer = TlsObserver()
    with pytest.raises(DecodeError, match=f"^{message}$"):
        observer.receive(CLIENT, data, 0)
    with pytest.raises(DecodeError, match=f"^{message}$"):
        observer.receive(SERVER, b"", 0)


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
def test_two_sides_that_send_the_same_kind_of_hello_are_refused_and_the_first_stays(sender: int) -> None:
    observer = TlsObserver()
    observer.receive(SERVER, records(RECORDINGS["node_tls12"].sent(sender))[0], 0)
    before = observed(observer) | {"traffic": None}
    with pytest.raises(DecodeError, match=r"^expected a ClientHello from one side and a ServerHello from the other$"):
        observer.receive(CLIENT, records(RECORDINGS["gnutls_tls13"].sent(sender))[0], 0)
    assert observed(observer) | {"traffic": None} == before


def test_a_message_may_not_be_interrupted_by_another_record() -> None:
    half = len(CLIENT_HELLO) // 2
    observer = TlsObserver()
    observer.receive(CLIENT, changed(CLIENT_HELLO[:half], 3, (half - 5).to_bytes(2, "big")), 0)
    with pytest.raises(DecodeError, match=r"^expected a ClientHello or ServerHello$"):
        observer.receive(CLIENT, b"\x17\x03\x03\x00\x20", 0)


def test_a_client_hello_of_the_largest_size_in_the_smallest_records_is_read() -> None:
    size = tls.HELLO_LIMIT - (len(CLIENT_HELLO) - 5)
    padding = b"\x00\x15" + (size - 4).to_bytes(2, "big") + bytes(size - 4)  # RFC 7685
    message = CLIENT_HELLO[5:] + padding
    extensions = message.index(b"\x00\x00\x00\x0e\x00\x0c\x00\x00\x09a.example") - 2
    message = changed(message, 1, (len(message) - 4).to_bytes(3, "big"))
    message = changed(message, extensions, (len(message) - extensions - 2).to_bytes(2, "big"))
    assert len(message) == tls.HELLO_LIMIT
    observer = TlsObserver()
    for byte in message:
        observer.receive(CLIENT, b"\x16\x03\x01\x00\x01" + bytes([byte]), 0)
    assert (observer.sni, observer.alpn_offered) == ("a.example", ("h2", "http/1.1"))


# Detection.


@every_recording
def test_every_record_looks_like_tls_alone_and_with_what_follows(recording: Recording) -> None:
    for side in (CLIENT, SERVER):
        stream = recording.sent(side)
        at = 0
        for record in records(stream):
            assert looks_like_tls(record[:5])
            assert looks_like_tls(record)
            assert looks_like_tls(stream[at:])
            at += len(record)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        CLIENT_HELLO[:4],
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x17\x03\x00\x00\x20",  # SSL 3
        b"\x17\x03\x05\x00\x20",
        b"\x13\x03\x03\x00\x20",
        b"\x19\x03\x03\x00\x20",
        b"\x14\x03\x03\x00\x00",
        b"\x14\x03\x03\x01\x43",
        b"\x15\x03\x03\x00\x01",
        b"\x16\x03\x03\x00\x00",
        b"\x16\x03\x03\x48\x01",
        b"\x17\x03\x03\x00\x08",
        b"\x17\x03\x03\x48\x01",
        b"\x18\x03\x03\x00\x12",
        CLIENT_HELLO + b"GET /",
    ],
)
def test_what_cannot_be_a_record_does_not_look_like_tls(data: bytes) -> None:
    assert not looks_like_tls(data)


# The tables.


TLS13_SUITES = [name for number, name in tls.CIPHER_SUITES.items() if number >> 8 == 0x13]


def test_the_cipher_suites_have_the_names_that_openssl_gives_them() -> None:
    listing = subprocess.run(
        ["openssl", "ciphers", "-V", "-stdname", "-ciphersuites", ":".join(TLS13_SUITES), "ALL:@SECLEVEL=0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = {
        int(high + low, 16): name for high, low, name in re.findall(r"0x([0-9A-F]{2}),0x([0-9A-F]{2}) - (\S+)", listing)
    }
    assert {number: known.get(number, name) for number, name in tls.CIPHER_SUITES.items()} == tls.CIPHER_SUITES
    assert tls.CIPHER_SUITES.keys() - known.keys() <= {0x000A, 0xC012}  # distributions build it without 3DES


def test_the_alerts_have_the_names_that_python_gives_them() -> None:
    names = {number.value: number.name.removeprefix("ALERT_DESCRIPTION_").lower() for number in ssl.AlertDescription}
    names[90] = names[90].replace("cancelled", "canceled")  # as the registry spells it
    assert {number: tls.ALERTS[number] for number in names} == names
