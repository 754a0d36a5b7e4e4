"""Certificates for the TLS servers of the tests: made once a session, by a CA of their own.

The directory that `make` fills is what servers and clients are given:

    ca.pem                    what clients trust
    server.pem, server.key    of the server "tls.test", "localhost" and 127.0.0.1
    server.p12                the same for Java, password "changeit"
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.live.harness import program

if TYPE_CHECKING:
    from pathlib import Path

NAME = "tls.test"
PASSWORD = "changeit"  # noqa: S105  of a key that is made and forgotten with the test


def make(directory: Path) -> None:
    """Make the CA and the server's certificate, with elliptic curve keys: the quickest to make and to use."""

    def openssl(*arguments: str) -> None:
        subprocess.run([program("openssl"), *arguments], check=True, capture_output=True, cwd=directory)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "30"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA of the tests",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    openssl(
        "req", "-x509", *key, "-keyout", "server.key", "-out", "server.pem", "-subj", f"/CN={NAME}",
        "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName=DNS:{NAME},DNS:localhost,IP:127.0.0.1",
        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth",
    )  # fmt: skip
    openssl(
        "pkcs12", "-export", "-in", "server.pem", "-inkey", "server.key", "-out", "server.p12", "-name", NAME,
        "-passout", f"pass:{PASSWORD}",
    )  # fmt: skip
