"""A TLS server with a thread for each connection, which spends its idle time inside a read.

    python -m tests.live.servers.threads

Prints the address it listens on as one JSON line. Answers each request with its own path; one below /held only when a
line is written to the standard input.
"""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import sys
import tempfile
from typing import Any


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers with the path that was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/held"):
            sys.stdin.readline()
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def server() -> http.server.ThreadingHTTPServer:
    """Return the server, with a certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        key, certificate = f"{directory}/key.pem", f"{directory}/certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
        subprocess.run([*command, "-subj", "/CN=localhost"], check=True, capture_output=True)
        context.load_cert_chain(certificate, key)
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    listening.socket = context.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    return listening


if __name__ == "__main__":
    with server() as listening:
        print(json.dumps(listening.server_address), flush=True)
        listening.serve_forever()
