"""Wheels that bring a TLS of their own, which cannot be read: rustls in uv, a BoringSSL without symbols in grpcio.

What apitrace tells of their connections is compared with what tshark reads from the packets.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.live import grpc
from tests.live.calls import of_record
from tests.live.harness import Capture, Program, Record, assert_same, cannot, environment, program, until
from tests.live.test_tls_crosscheck import packets
from tests.live.test_tls_unreadable import assert_reported
from tests.live.tls import TlsLab

UV = Path(sys.executable).with_name("uv")
RUSTLS = r"rustls \d+\.\d+\.\d+: rustls, compiled in: its functions have no names to probe"
BESIDE = "no call on its TLS library was seen; "
"""How the reason begins in Python, which has an OpenSSL too, and that one could be read."""
BORINGSSL = "BoringSSL: BoringSSL, linked in statically; its symbols were stripped"
VERSIONS = {"0x0303": "TLSv1.2", "0x0304": "TLSv1.3"}
FIELDS = (
    "tcp.stream", "ip.src", "ipv6.src", "tcp.srcport", "ip.dst", "ipv6.dst", "tcp.dstport", "tcp.seq", "tcp.len",
    "tcp.flags.str", "tls.handshake.extensions_server_name", "tls.handshake.extensions_alpn_str",
    "tls.handshake.version", "tls.handshake.extensions.supported_version",
)  # fmt: skip
FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}
PACKAGES = tuple(f"package-{number}" for number in range(7))
REQUESTS = 3 * len(PACKAGES)
"""uv asks for a package's page, its metadata and its wheel; http.server closes the connection after each answer."""


def on_the_wire(path: Path, port: int, role: str) -> list[Record]:
    """Return what tshark tells of the TLS connections in a capture, as the end in that role moved their bytes.

    What arrives after that end has hung up, like a server's answer to the alert, is nothing that it moves.
    """
    command = [program("tshark"), "-r", str(path), "-d", f"tcp.port=={port},tls", "-Y", "tcp", "-T", "fields"]
    command += [word for name in FIELDS for word in ("-e", name)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout
    found: dict[str, Record] = {}
    over = set()
    for line in printed.splitlines():
        values = dict(zip(FIELDS, line.split("\t"), strict=True))
        number = values["tcp.stream"]
        source = [values["ip.src"] or values["ipv6.src"], int(values["tcp.srcport"])]
        destination = [values["ip.dst"] or values["ipv6.dst"], int(values["tcp.dstport"])]
        sender = "server" if source[1] == port else "client"
        ends = {"client": source, "server": destination} if sender == "client" else {}
        of = found.setdefault(number, {**ends, "tls": [None, None, None], "to_server": 0, "to_client": 0})
        way = "to_server" if sender == "client" else "to_client"
        size = int(values["tcp.len"])
        if size and (sender == role or number not in over):  # by positions, which a segment sent twice does not move
            of[way] = max(of[way], int(values["tcp.seq"]) - 1 + size)
        if sender == role and {"F", "R"} & set(values["tcp.flags.str"]):
            over.add(number)
        if sender == "client":
            of["tls"][1] = of["tls"][1] or values["tls.handshake.extensions_server_name"] or None
        elif spoken := values["tls.handshake.extensions.supported_version"] or values["tls.handshake.version"]:
            of["tls"][::2] = VERSIONS[spoken], values["tls.handshake.extensions_alpn_str"] or None
    return [of for of in found.values() if of["tls"][0]]  # the last, which ends the capture, is no TLS


def assert_told(capture: Capture, records: list[Record], reason: str, name: str) -> None:
    """Fail unless all records give this reason, a pattern, and standard error one line of it for each process."""
    reasons = {(record["process"]["pid"], record["error"]["detail"]) for record in records}
    assert all(re.fullmatch(reason, detail) for _, detail in reasons), reasons
    said = [line for line in capture.stderr.splitlines() if "cannot be read" in line]
    assert sorted(said) == sorted(
        f"apitrace: {name}[{pid}] uses TLS that cannot be read: {detail.removeprefix(BESIDE)}"
        for pid, detail in reasons
    )


# -- rustls ------------------------------------------------------------------------------------------------------------


def make_index(root: Path) -> None:
    """Make a package index of plain files: a page, a wheel and its metadata for each of PACKAGES."""
    files = root / "files"
    files.mkdir(parents=True)
    for number, name in enumerate(PACKAGES):
        module = name.replace("-", "_")
        wheel, about = files / f"{module}-1.0-py3-none-any.whl", f"{module}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        kind = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{module}.py", "#" * 20_011 * number)
            archive.writestr(f"{about}/METADATA", metadata)
            archive.writestr(f"{about}/WHEEL", kind)
            archive.writestr(f"{about}/RECORD", "")
        wheel.with_name(f"{wheel.name}.metadata").write_text(metadata)
        page = root / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f'<!DOCTYPE html><a href="/files/{wheel.name}" data-core-metadata="true">{wheel.name}</a>\n')


def installing(lab: TlsLab, port: int) -> list[str]:
    """Return the command that has uv install all packages of the index on this port, and knows of nothing else."""
    if not UV.exists():
        cannot(f"{UV} is missing: it comes with the packages of `make test`")
    place = lab.path("uv")
    return [
        program("env"), "-i", f"HOME={place}", f"PATH={os.environ['PATH']}", f"SSL_CERT_FILE={lab.ca}",
        str(UV), "pip", "install", "--quiet", "--no-config", "--cache-dir", f"{place}/cache", "--target", f"{place}/to",
        "--python", sys.executable, "--default-index", f"https://localhost:{port}/simple", *PACKAGES,
    ]  # fmt: skip


def index(lab: TlsLab, version: str) -> Program:
    """Start the package index, at the address that "localhost" stands for first."""
    root = lab.path("index")
    make_index(root)
    family = FAMILIES[socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)[0][0]]
    return lab.tls_origin("--files", str(root), "--family", family, "--tls-version", version)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_command_that_uses_rustls(tls_lab: TlsLab, version: str) -> None:
    server = index(tls_lab, version)
    with packets(tls_lab.directory, server.address[1]) as path:
        capture = tls_lab.trace_command(*installing(tls_lab, server.address[1]))
    assert capture.status == 0, capture.stderr
    assert len(server.calls(REQUESTS)) == len(capture.exchanges) == REQUESTS
    lines = on_the_wire(path, server.address[1], "client")
    chosen = None if version == "TLSv1.3" else "http/1.1"
    assert [line["tls"] for line in lines] == [[version, "localhost", chosen]] * REQUESTS
    assert_reported(capture.exchanges, lines, "client")
    assert_told(capture, capture.exchanges, RUSTLS, "uv")


def test_a_server_shows_what_a_client_with_rustls_asks_for(tls_lab: TlsLab) -> None:
    """Both ends in one capture: each call at the end that can be read, each connection at the other."""
    server = index(tls_lab, "TLSv1.3")
    command = installing(tls_lab, server.address[1])
    client = tls_lab.start("sh", "-c", 'read go; "$@" && echo done; read go', "sh", *command, journal=tls_lab.path("j"))
    with (
        packets(tls_lab.directory, server.address[1]) as path,
        tls_lab.trace("--pid", f"{server.pid},{client.pid}") as capture,
    ):
        client.go()
        client.wait_done()
        calls = server.calls(REQUESTS)
        capture.wait_shown(2 * REQUESTS)
    lines = on_the_wire(path, server.address[1], "client")
    assert len(capture.exchanges) == 2 * REQUESTS
    assert_same(map(of_record, capture.at("server")), calls)
    assert_reported(capture.at("client"), lines, "client")
    assert_told(capture, capture.at("client"), RUSTLS, "uv")


# -- BoringSSL in grpcio -----------------------------------------------------------------------------------------------

CALLS: list[Record] = [
    {"method": "Unary", "send": [["chair", 1]]},
    {"method": "Unary", "send": [["y" * 40_000, 7]]},
    {"method": "Talk", "send": [[f"word {number}", number] for number in range(7)]},
    {"method": "Fail", "send": [["no such chair", 5]]},
    {"method": "Store", "send": [["a", 1], ["b", 20], ["c", 300]]},
]
COUNT = 3
"""Clients, with a connection each."""


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_clients_with_grpcio_and_the_calls_at_their_server(tls_lab: TlsLab, grpc_go: Path, version: str) -> None:
    server = grpc.start(tls_lab, "grpc-go", grpc_go, "server", str(tls_lab.certificates), version)
    told = [*map(str, server.address), str(tls_lab.certificates)]
    clients = [grpc.start(tls_lab, "grpcio", grpc_go, "client", *told) for _ in range(COUNT)]
    pids, calls = ",".join(str(end.pid) for end in (server, *clients)), COUNT * len(CALLS)
    with (
        packets(tls_lab.directory, server.address[1]) as path,
        tls_lab.trace("--pid", pids, "--show-secrets") as capture,
    ):
        for client in clients:
            client.go(json.dumps(CALLS))
        for client in clients:
            client.wait_done()
        until(lambda: len(server.calls_so_far()) >= calls, "the server has noted all calls")
        capture.wait_shown(calls + COUNT)
    lines = on_the_wire(path, server.address[1], "client")
    chosen = None if version == "TLSv1.3" else "h2"
    assert [line["tls"] for line in lines] == [[version, "localhost", chosen]] * COUNT
    assert_reported(capture.at("client"), lines, "client")
    assert_told(capture, capture.at("client"), re.escape(BESIDE + BORINGSSL), "python")
    assert sorted(map(grpc.told, capture.at("server"))) == sorted(grpc.noted(server))
    assert len(capture.exchanges) == calls + COUNT


@pytest.mark.parametrize("client_kind", ["grpc-go", "grpc-js"])
def test_a_server_with_grpcio_and_the_calls_at_its_client(tls_lab: TlsLab, grpc_go: Path, client_kind: str) -> None:
    server = grpc.start(tls_lab, "grpcio", grpc_go, "server", str(tls_lab.certificates))
    told = [*map(str, server.address), str(tls_lab.certificates)]
    client = grpc.start(tls_lab, client_kind, grpc_go, "client", *told)
    with (
        packets(tls_lab.directory, server.address[1]) as path,
        tls_lab.trace("--pid", f"{server.pid},{client.pid}", "--show-secrets") as capture,
    ):
        client.go(json.dumps(CALLS))
        client.wait_done()
        made = grpc.agreed(server, client, len(CALLS))
        client.close()
        capture.wait_shown(len(CALLS) + 1)
    lines = on_the_wire(path, server.address[1], "server")
    assert [line["tls"] for line in lines] == [["TLSv1.3", "localhost", None]]
    grpc.assert_same(capture.at("client"), made)
    assert_reported(capture.at("server"), lines, "server")
    assert_told(capture, capture.at("server"), re.escape(BESIDE + BORINGSSL), "python")
    assert len(capture.exchanges) == len(CALLS) + 1
