"""tshark and the observer tell the same of the same TLS connections, field by field.

The connections are the recorded ones, and handshakes made afresh by Python's ssl, one for each cipher suite, version,
name and list of protocols. All of them go into one capture file, cut into segments as a network would.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import dpkt
import pytest

from apitrace.protocols import tls
from apitrace.protocols.tls import TlsObserver
from tests.unit.protocols.tls_fixtures import CLIENT, RECORDINGS, SERVER, Chunk, observe

pytestmark = [
    pytest.mark.skipif(shutil.which("tshark") is None and "CI" not in os.environ, reason="tshark is not installed"),
    pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning"),  # 1.0 and 1.1 are wanted here
]

SEGMENT_BYTES = 1448  # of Ethernet
PORT = 443
FIELDS = (
    "tcp.stream",
    "tcp.srcport",
    "tls.handshake.type",
    "tls.handshake.extensions_server_name",
    "tls.handshake.extensions_alpn_str",
    "tls.handshake.ciphersuite",
    "tls.handshake.version",
    "tls.handshake.extensions.supported_version",
    "tls.alert_message.level",
    "tls.alert_message.desc",
    "tls.app_data",
)
DLT_RAW = 101


class Facts(NamedTuple):
    """What both tell of a connection."""

    sni: str | None
    alpn_offered: tuple[str, ...]
    alpn: str | None
    version: str | None
    cipher_suite: str | None
    alerts: tuple[tuple[int, str, str], ...]
    application_bytes: tuple[int, int]


# Handshakes made afresh.


class Terms(NamedTuple):
    """What the two ends of a fresh handshake are told."""

    version: ssl.TLSVersion
    cipher: str | None
    sni: str | None
    offered: tuple[str, ...]
    taken: tuple[str, ...]


V10, V11, V12, V13 = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NAMES = (None, "a.example", "xn--bcher-kva.example", "a" * 63 + "." + "b" * 63 + ".example")
OFFERS = ((), ("http/1.1",), ("h2", "http/1.1"), ("x" * 255, "y", "h2"))
TAKEN = ((), ("http/1.1",), ("h2",))


def tls12_ciphers() -> list[str]:
    """OpenSSL's names of the suites that a server with an RSA certificate and no group of its own can take."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:!PSK:!SRP:!aECDSA:!aDSS:!aNULL:!DHE:@SECLEVEL=0")
    return [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]


def terms() -> Iterator[Terms]:
    for version, sni, offered, taken in product((V12, V13), NAMES, OFFERS, TAKEN):
        yield Terms(version, None, sni, offered, taken)
    for version in (V10, V11):
        yield Terms(version, None, "a.example", ("h2",), ("h2",))
    for cipher in tls12_ciphers():
        yield Terms(V12, cipher, "a.example", (), ())


def context(role: int, version: ssl.TLSVersion, cipher: str | None) -> ssl.SSLContext:
    made = ssl.SSLContext(role)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_ciphers(f"{cipher or 'ALL'}:@SECLEVEL=0")
    made.minimum_version = made.maximum_version = version
    return made


def handshake(made: Terms, certificate: tuple[Path, Path]) -> tuple[ssl.SSLObject, tuple[Chunk, ...]]:
    """Carry it out, with a little data after it, and return the client's end and what passed."""
    client_context = context(ssl.PROTOCOL_TLS_CLIENT, made.version, made.cipher)
    server_context = context(ssl.PROTOCOL_TLS_SERVER, made.version, made.cipher)
    server_context.load_cert_chain(*certificate)
    if made.offered:
        client_context.set_alpn_protocols(list(made.offered))
    if made.taken:
        server_context.set_alpn_protocols(list(made.taken))
    received = (ssl.MemoryBIO(), ssl.MemoryBIO())  # by the client, by the server
    sent = (ssl.MemoryBIO(), ssl.MemoryBIO())
    client = client_context.wrap_bio(received[CLIENT], sent[CLIENT], server_hostname=made.sni)
    server = server_context.wrap_bio(received[SERVER], sent[SERVER], server_side=True)
    chunks: list[Chunk] = []

    def pass_on() -> None:
        for side in (CLIENT, SERVER):
            if data := sent[side].read():
                chunks.append((side, data))
                received[1 - side].write(data)

    waiting = [client, server]
    while waiting:
        for end in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
            pass_on()
    client.write(b"a question")
    server.write(b"an answer" * 3000)
    pass_on()
    return client, tuple(chunks)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


# What tshark tells.


def write_capture(path: Path, connections: list[tuple[Chunk, ...]]) -> None:
    """Write each connection as a TCP connection between 10.0.0.1 and 10.0.0.2, to PORT, from a port of its own."""
    hosts = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file, linktype=DLT_RAW)
        for number, chunks in enumerate(connections):
            ports = (20000 + number, PORT)
            positions = [1, 1]

            def send(
                side: int,
                flags: int,
                data: bytes = b"",
                ports: tuple[int, int] = ports,
                positions: list[int] = positions,
            ) -> None:
                segment = dpkt.tcp.TCP(
                    sport=ports[side],
                    dport=ports[1 - side],
                    seq=positions[side] - bool(flags & dpkt.tcp.TH_SYN),
                    ack=positions[1 - side],
                    flags=flags,
                    data=data,
                )
                packet = dpkt.ip.IP(src=hosts[side], dst=hosts[1 - side], p=dpkt.ip.IP_PROTO_TCP, data=segment)
                packet.len = len(packet)
                writer.writepkt(bytes(packet), ts=0)
                positions[side] += len(data)

            send(CLIENT, dpkt.tcp.TH_SYN)
            send(SERVER, dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK)
            for side, data in chunks:
                for at in range(0, len(data), SEGMENT_BYTES):
                    send(side, dpkt.tcp.TH_ACK, data[at : at + SEGMENT_BYTES])


def tshark(path: Path) -> list[dict[str, list[str]]]:
    """Return the fields of each packet, each with all its values."""
    command = ["tshark", "-r", str(path), "-d", f"tcp.port=={PORT},tls", "-T", "fields", "-E", "aggregator=|"]
    for field in FIELDS:
        command += ["-e", field]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in printed.splitlines()]
    return [
        {field: value.split("|") if value else [] for field, value in zip(FIELDS, row, strict=True)} for row in rows
    ]


def facts_of(packets: list[dict[str, list[str]]]) -> Facts:
    sni: str | None = None
    offered: tuple[str, ...] | None = None
    alpn = version = suite = None
    alerts: list[tuple[int, str, str]] = []
    application = [0, 0]
    for packet in packets:
        side = SERVER if packet["tcp.srcport"] == [str(PORT)] else CLIENT
        application[side] += sum(len(data) // 2 for data in packet["tls.app_data"])
        for level, name in zip(packet["tls.alert_message.level"], packet["tls.alert_message.desc"], strict=True):
            alerts.append((side, tls.LEVELS[int(level)], tls.ALERTS[int(name)]))
        if "1" in packet["tls.handshake.type"] and offered is None:
            sni = next(iter(packet["tls.handshake.extensions_server_name"]), None)
            offered = tuple(packet["tls.handshake.extensions_alpn_str"])
        if "2" in packet["tls.handshake.type"]:
            alpn = next(iter(packet["tls.handshake.extensions_alpn_str"]), None)
            [number] = packet["tls.handshake.ciphersuite"]
            suite = int(number, 0)
            version = int(
                (packet["tls.handshake.extensions.supported_version"] or packet["tls.handshake.version"])[0], 0
            )
    return Facts(
        sni,
        offered or (),
        alpn,
        None if version is None else tls.VERSIONS[version],
        None if suite is None else tls.CIPHER_SUITES.get(suite, f"0x{suite:04x}"),
        tuple(alerts),
        (application[CLIENT], application[SERVER]),
    )


def told_by_tshark(path: Path, connections: list[tuple[Chunk, ...]]) -> list[Facts]:
    write_capture(path, connections)
    packets: list[list[dict[str, list[str]]]] = [[] for _ in connections]
    for packet in tshark(path):
        [stream] = packet["tcp.stream"]
        packets[int(stream)].append(packet)
    return [facts_of(of_one) for of_one in packets]


def told_by_us(observer: TlsObserver) -> Facts:
    return Facts(
        observer.sni,
        observer.alpn_offered or (),
        observer.alpn,
        observer.version,
        observer.cipher_suite,
        tuple((alert.side, alert.level, alert.name) for alert in observer.alerts),
        (observer.traffic(CLIENT).application_bytes, observer.traffic(SERVER).application_bytes),
    )


def test_the_recorded_connections_are_told_alike(tmp_path: Path) -> None:
    connections = [recording.chunks for recording in RECORDINGS.values()]
    theirs = told_by_tshark(tmp_path / "recorded.pcap", connections)
    ours = [told_by_us(observe(chunks)) for chunks in connections]
    assert dict(zip(RECORDINGS, ours, strict=True)) == dict(zip(RECORDINGS, theirs, strict=True))


def test_fresh_handshakes_are_told_alike_and_as_their_ends_do(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    wanted = list(terms())
    assert len(wanted) > 100
    made = [handshake(one, certificate) for one in wanted]
    connections = [chunks for _, chunks in made]
    theirs = told_by_tshark(tmp_path / "fresh.pcap", connections)
    ours = [told_by_us(observe(chunks)) for chunks in connections]
    assert dict(zip(wanted, ours, strict=True)) == dict(zip(wanted, theirs, strict=True))
    for one, (client, chunks), facts in zip(wanted, made, ours, strict=True):
        assert (facts.sni, facts.alpn_offered, facts.version) == (one.sni, one.offered, client.version()), one
        assert facts.alpn == (None if one.version == V13 else client.selected_alpn_protocol()), one
        assert observe(chunks).finished, one
