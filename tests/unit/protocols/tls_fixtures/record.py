"""Record the TLS fixtures: each is one connection between two real programs, as a relay between them saw it.

    python tests/unit/protocols/tls_fixtures/record.py [NAME ...]

Needs openssl, curl, nginx, node, go, java and gnutls-bin on the path, and curl_cffi (Chrome's TLS stack, BoringSSL) and
tlslite-ng (an SSL 2 hello) in the Python that runs it. Only loopback is used. A fixture is a JSON file:

    client, server   the commands
    said             version, cipher suite and ALPN as the client itself reported them; null where it did not or failed
    sni, offered     what the client was told to ask for
    finished         whether it got through the handshake; null where the wire does not tell (early data)
    chunks           [side, base64] as the relay read them; side 0 is the client
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
REQUEST = "GET / HTTP/1.0\r\n\r\n"
CHROME = "import sys; from curl_cffi import requests as r; r.get(sys.argv[1], impersonate='chrome124', verify=False)"
SSL2 = """
import socket, sys
from tlslite.messages import ClientHello
hello = ClientHello(ssl2=True)
hello.create((3, 3), bytearray(range(32)), bytearray(), [0x2F, 0x35, 0xC02F])
body = hello.write()
plain = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
plain.sendall(bytes([0x80 | len(body) >> 8, len(body) & 255]) + body)
plain.recv(100)
"""


Inputs = tuple[tuple[str, str], ...]
"""What to type to a client: (once it has printed this, that)."""


class Scenario(NamedTuple):
    """A connection to record. In the commands, {port} is where to connect or listen, {dir} holds certificates."""

    name: str
    client: str
    server: str
    sni: str | None = None
    offered: tuple[str, ...] = ()
    finished: bool | None = True
    inputs: Inputs = ()
    warm_up: str | None = None
    """A client to run before, for the session that it leaves."""
    warm_up_inputs: Inputs = (("", REQUEST),)


S_SERVER = "openssl s_server -accept {port} -cert {dir}/cert.pem -key {dir}/key.pem"
S_CLIENT = "openssl s_client -connect 127.0.0.1:{port}"
WWW = S_SERVER + " -www"
HTTP = (("", REQUEST),)
QUIT = (("Post-Handshake New Session Ticket", "Q\n"),)
NGINX = "nginx"
PYTHON_SERVER = "{python} {programs}/server.py {port} {dir}"
PYTHON_CLIENT = "{python} {programs}/client.py {port}"
NODE_SERVER = "node {programs}/server.js {port} {dir}"
GO = "{dir}/go"
GNUTLS_CLIENT = "gnutls-cli --insecure --sni-hostname=f.example --alpn=h2 --port={port}"
GNUTLS_SERVER = "gnutls-serv --http --port={port} --x509certfile={dir}/cert.pem --x509keyfile={dir}/key.pem --alpn=h2"
WEAK = " -cipher DEFAULT:@SECLEVEL=0"

SCENARIOS = (
    Scenario("openssl_tls13_sni", f"{S_CLIENT} -servername a.example", WWW, "a.example", inputs=HTTP),
    Scenario("openssl_tls13_bare", f"{S_CLIENT} -noservername", WWW, inputs=HTTP),
    Scenario(
        "openssl_tls13_alpn",
        f"{S_CLIENT} -servername a.example -alpn h2,http/1.1",
        f"{WWW} -alpn http/1.1",
        "a.example",
        ("h2", "http/1.1"),
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls13_alpn_not_taken",
        f"{S_CLIENT} -noservername -alpn h2",
        WWW,
        offered=("h2",),
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls13_retry",
        f"{S_CLIENT} -servername a.example -groups X25519:P-384",
        f"{WWW} -groups P-384",
        "a.example",
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls13_chacha_key_update",
        f"{S_CLIENT} -noservername -ciphersuites TLS_CHACHA20_POLY1305_SHA256",
        WWW,
        inputs=(("Verify return code", "K\n"), ("KEYUPDATE", REQUEST)),
    ),
    Scenario(
        "openssl_tls13_ccm8",
        f"{S_CLIENT} -noservername -ciphersuites TLS_AES_128_CCM_8_SHA256{WEAK}",
        f"{WWW} -ciphersuites TLS_AES_128_CCM_8_SHA256{WEAK}",
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls13_resumed",
        f"{S_CLIENT} -servername a.example -sess_in {{dir}}/session13",
        WWW,
        "a.example",
        inputs=HTTP,
        warm_up=f"{S_CLIENT} -servername a.example -sess_out {{dir}}/session13",
    ),
    Scenario(
        "openssl_tls13_early_data",
        f"{S_CLIENT} -servername a.example -sess_in {{dir}}/session0 -early_data {{dir}}/early",
        f"{S_SERVER} -early_data -no_anti_replay",
        "a.example",
        finished=None,
        inputs=QUIT,
        warm_up=f"{S_CLIENT} -servername a.example -sess_out {{dir}}/session0",
        warm_up_inputs=QUIT,
    ),
    Scenario(
        "openssl_tls13_early_data_refused",
        f"{S_CLIENT} -servername a.example -sess_in {{dir}}/session0 -early_data {{dir}}/early",
        f"{S_SERVER} -early_data",
        "a.example",
        finished=None,
        inputs=QUIT,
        warm_up=f"{S_CLIENT} -servername a.example -sess_out {{dir}}/session0",
        warm_up_inputs=QUIT,
    ),
    Scenario(
        "openssl_tls13_client_certificate",
        f"{S_CLIENT} -servername a.example -cert {{dir}}/cert.pem -key {{dir}}/key.pem",
        f"{WWW} -Verify 1 -CAfile {{dir}}/cert.pem",
        "a.example",
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls13_client_certificate_missing",  # refused after both Finished
        f"{S_CLIENT} -servername a.example",
        f"{WWW} -Verify 1 -verify_return_error",
        "a.example",
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls13_client_refuses_certificate",
        f"{S_CLIENT} -servername a.example -verify_return_error",
        WWW,
        "a.example",
        finished=False,
    ),
    Scenario(
        "openssl_tls12_alpn",
        f"{S_CLIENT} -tls1_2 -servername a.example -alpn h2,http/1.1",
        f"{WWW} -alpn http/1.1",
        "a.example",
        ("h2", "http/1.1"),
        inputs=HTTP,
    ),
    Scenario("openssl_tls12_bare", f"{S_CLIENT} -tls1_2 -noservername", WWW, inputs=HTTP),
    Scenario(
        "openssl_tls12_cbc_renegotiated",
        f"{S_CLIENT} -tls1_2 -noservername -cipher ECDHE-RSA-AES128-SHA",
        f"{WWW} -client_renegotiation",
        inputs=(("Verify return code", "R\n"), ("RENEGOTIATING", REQUEST)),
    ),
    Scenario(
        "openssl_tls12_client_certificate",
        f"{S_CLIENT} -tls1_2 -servername a.example -cert {{dir}}/cert.pem -key {{dir}}/key.pem",
        f"{WWW} -Verify 1 -CAfile {{dir}}/cert.pem",
        "a.example",
        inputs=HTTP,
    ),
    Scenario(
        "openssl_tls12_resumed_by_ticket",
        f"{S_CLIENT} -tls1_2 -servername a.example -sess_in {{dir}}/session12",
        WWW,
        "a.example",
        inputs=HTTP,
        warm_up=f"{S_CLIENT} -tls1_2 -servername a.example -sess_out {{dir}}/session12",
    ),
    Scenario(
        "openssl_tls12_resumed_by_id",
        f"{S_CLIENT} -tls1_2 -no_ticket -servername a.example -sess_in {{dir}}/session_id",
        f"{WWW} -no_ticket",
        "a.example",
        inputs=HTTP,
        warm_up=f"{S_CLIENT} -tls1_2 -no_ticket -servername a.example -sess_out {{dir}}/session_id",
    ),
    Scenario(
        "openssl_tls12_no_shared_cipher",
        f"{S_CLIENT} -tls1_2 -servername a.example -cipher ECDHE-RSA-AES128-GCM-SHA256",
        f"{WWW} -cipher ECDHE-RSA-AES256-GCM-SHA384",
        "a.example",
        finished=False,
    ),
    Scenario(
        "openssl_tls12_client_refuses_certificate",
        f"{S_CLIENT} -tls1_2 -servername a.example -verify_return_error",
        WWW,
        "a.example",
        finished=False,
    ),
    Scenario(
        "openssl_tls12_client_certificate_missing",
        f"{S_CLIENT} -tls1_2 -servername a.example",
        f"{WWW} -Verify 1 -verify_return_error",
        "a.example",
        finished=False,
    ),
    Scenario(
        "openssl_version_refused",
        f"{S_CLIENT} -tls1_2 -servername a.example",
        f"{WWW} -tls1_3",
        "a.example",
        finished=False,
    ),
    Scenario(
        "openssl_tls11",
        f"{S_CLIENT} -tls1_1 -servername a.example{WEAK}",
        WWW + WEAK,
        "a.example",
        inputs=HTTP,
    ),
    Scenario("openssl_tls10_bare", f"{S_CLIENT} -tls1 -noservername{WEAK}", WWW + WEAK, inputs=HTTP),
    Scenario(
        "openssl_tls13_hello_in_several_records",
        f"{S_CLIENT} -servername a.example -max_send_frag 512 -alpn {','.join(f'protocol-{n:02}' for n in range(60))}",
        WWW,
        "a.example",
        tuple(f"protocol-{n:02}" for n in range(60)),
        inputs=HTTP,
    ),
    Scenario(
        "curl_nginx_tls13_h2",
        "curl -skv -o /dev/null --resolve a.example:{port}:127.0.0.1 https://a.example:{port}/",
        NGINX,
        "a.example",
        ("h2", "http/1.1"),
    ),
    Scenario(
        "curl_nginx_tls12",
        "curl -skv -o /dev/null --tls-max 1.2 --resolve a.example:{port}:127.0.0.1 https://a.example:{port}/",
        NGINX,
        "a.example",
        ("h2", "http/1.1"),
    ),
    Scenario(
        "curl_nginx_tls12_no_sni_no_alpn",
        "curl -skv -o /dev/null --no-alpn --tls-max 1.2 https://127.0.0.1:{port}/",
        NGINX,
    ),
    Scenario(
        "curl_untrusting_nginx",
        "curl -sv -o /dev/null --resolve a.example:{port}:127.0.0.1 https://a.example:{port}/",
        NGINX,
        "a.example",
        ("h2", "http/1.1"),
        finished=False,
    ),
    Scenario("chrome_nginx", "{python} -c {chrome} https://localhost:{port}/", NGINX, "localhost", ("h2", "http/1.1")),
    Scenario(
        "python_tls13",
        f"{PYTHON_CLIENT} b.example http/1.1 TLSv1_3",
        f"{PYTHON_SERVER} http/1.1 5",
        "b.example",
        ("http/1.1",),
    ),
    Scenario(
        "python_tls12_answer_of_40000_bytes",
        f"{PYTHON_CLIENT} b.example - TLSv1_2",
        f"{PYTHON_SERVER} - 40000",
        "b.example",
    ),
    Scenario("python_tls13_bare", f"{PYTHON_CLIENT} - - TLSv1_3", f"{PYTHON_SERVER} http/1.1 5"),
    Scenario(
        "node_tls13",
        "node {programs}/client.js {port} c.example http/1.1 TLSv1.3",
        NODE_SERVER,
        "c.example",
        ("http/1.1",),
    ),
    Scenario(
        "node_tls12",
        "node {programs}/client.js {port} c.example http/1.1 TLSv1.2",
        NODE_SERVER,
        "c.example",
        ("http/1.1",),
    ),
    Scenario(
        "go_tls13_post_quantum",
        f"{GO} client {{port}} d.example h2,http/1.1",
        f"{GO} server {{port}} {{dir}} h2",
        "d.example",
        ("h2", "http/1.1"),
    ),
    Scenario(
        "go_no_shared_protocol",
        f"{GO} client {{port}} d.example h3",
        f"{GO} server {{port}} {{dir}} h2",
        "d.example",
        ("h3",),
        finished=False,
    ),
    Scenario(
        "go_encrypted_client_hello",
        f"ECH=1 {GO} client {{port}} secret.example -",
        f"ECH=1 {GO} server {{port}} {{dir}} -",
        "front.example",
    ),
    Scenario(
        "java_nginx",
        "java {programs}/Client.java {port} e.example h2,http/1.1",
        NGINX,
        "e.example",
        ("h2", "http/1.1"),
    ),
    Scenario(
        "gnutls_tls13",
        f"{GNUTLS_CLIENT} 127.0.0.1",
        GNUTLS_SERVER,
        "f.example",
        ("h2",),
        inputs=(("Simple Client Mode", REQUEST),),
    ),
    Scenario(
        "gnutls_tls12",
        f"{GNUTLS_CLIENT} --priority=NORMAL:-VERS-TLS1.3 127.0.0.1",
        GNUTLS_SERVER,
        "f.example",
        ("h2",),
        inputs=(("Simple Client Mode", REQUEST),),
    ),
    Scenario(
        "go_untrusting",
        f"VERIFY=1 {GO} client {{port}} d.example -",
        f"{GO} server {{port}} {{dir}} -",
        "d.example",
        finished=False,
    ),
    Scenario(
        "java_untrusting",
        "VERIFY=1 java {programs}/Client.java {port} e.example h2",
        NGINX,
        "e.example",
        ("h2",),
        finished=False,
    ),
    Scenario(
        "gnutls_untrusting",
        "gnutls-cli --sni-hostname=f.example --port={port} 127.0.0.1",
        GNUTLS_SERVER,
        "f.example",
        finished=False,
    ),
    Scenario("ssl2_hello", "{python} -c {ssl2} {port}", WWW, finished=False),
)


class Relay:
    """Takes connections on a port of its own, makes each to the server's, and keeps what passed in the last one."""

    def __init__(self, upstream: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._upstream = upstream
        self._lock = threading.Lock()
        self.chunks: list[tuple[int, bytes]] = []
        self._pumps: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._upstream))
            self.chunks = []
            self._pumps = [
                threading.Thread(target=self._pump, args=arguments, daemon=True)
                for arguments in ((0, client, server), (1, server, client))
            ]
            for pump in self._pumps:
                pump.start()

    def _pump(self, side: int, come_from: socket.socket, go_to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := come_from.recv(65536):
                with self._lock:
                    self.chunks.append((side, data))
                go_to.sendall(data)
        with contextlib.suppress(OSError):
            go_to.shutdown(socket.SHUT_WR)

    def wait(self) -> None:
        """Wait until both ends have closed."""
        for pump in self._pumps:
            pump.join(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether someone listens there; a connect would use up an accept."""
    lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return re.search(rf":{port:04X} [0-9A-F]+:0000 0A ", lines) is not None


def arguments(command: str, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Split and fill in a command; NAME=VALUE words in front are its environment."""
    words = command.split()
    environment = dict(os.environ)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words == ["nginx"]:
        config = folder / "nginx.conf"
        config.write_text(NGINX_CONF.format(port=port, dir=folder))
        words += ["-c", str(config)]
    fill = {"port": port, "dir": folder, "python": sys.executable, "programs": PROGRAMS, "chrome": CHROME, "ssl2": SSL2}
    return [word.format(**fill) for word in words], environment


NGINX_CONF = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log /dev/null;
events {{ }}
http {{
    access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
    uwsgi_temp_path {dir}; scgi_temp_path {dir};
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
        location / {{ return 200 "hello from nginx\\n"; }}
    }}
}}
"""


@contextlib.contextmanager
def running(command: str, port: int, folder: Path) -> Iterator[None]:
    words, environment = arguments(command, port, folder)
    server = subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not listens(port):
            assert server.poll() is None, words
            assert time.monotonic() < deadline, words
            time.sleep(0.01)
        yield
    finally:
        server.kill()
        server.wait()


def run_client(command: str, port: int, folder: Path, inputs: Inputs) -> str:
    """Run the client, type the inputs, and return what it printed; what is on stderr too."""
    words, environment = arguments(command, port, folder)
    client = subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert client.stdin is not None
    assert client.stdout is not None
    printed = b""
    pending = list(inputs)
    watchdog = threading.Timer(8, client.kill)
    watchdog.start()
    while True:
        while pending and pending[0][0].encode() in printed:
            _, data = pending.pop(0)
            client.stdin.write(data.encode())
            client.stdin.flush()
        piece = os.read(client.stdout.fileno(), 65536)
        if not piece:
            break
        printed += piece
    client.wait()
    watchdog.cancel()
    return printed.decode("latin-1")


def openssl_names() -> dict[str, str]:
    """IANA's names by OpenSSL's, and by themselves."""
    listing = subprocess.run(
        ["openssl", "ciphers", "-stdname", "ALL:@SECLEVEL=0"], capture_output=True, text=True, check=True
    ).stdout
    pairs = re.findall(r"^(\S+)\s+- (\S+)", listing, re.MULTILINE)
    return {ours: iana for iana, ours in pairs} | {iana: iana for iana, _ in pairs}


SAYINGS = {
    "version": (
        r'"version": "([^"]+)"',
        r"^ +Protocol *: (\S+)",
        r"^(?:New|Reused), (TLSv1\.3),",
        r"SSL connection using (\S+) /",
        r"Description: \((TLS1\.\d)",
    ),
    "cipher": (
        r'"cipher": "([^"]+)"',
        r"^(?:New|Reused), \S+, Cipher is (\S+)",
        r"SSL connection using \S+ / (\S+)",
    ),
    "alpn": (
        r'"alpn": "([^"]+)"',
        r"^ALPN protocol: (\S+)",
        r"ALPN: server accepted (\S+)",
        r"^- Application protocol: (\S+)",
    ),
}
"""How the clients print what was agreed on."""


def said(printed: str, names: dict[str, str]) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    compact = re.sub(r'":"', '": "', printed)
    for field, patterns in SAYINGS.items():
        found = [match[1] for pattern in patterns if (match := re.search(pattern, compact, re.MULTILINE))]
        result[field] = found[0] if found else None
    if result["version"] is not None:
        result["version"] = result["version"].replace("TLS1", "TLSv1")
    if result["cipher"] is not None:
        result["cipher"] = names.get(result["cipher"])
    return result


def record(scenario: Scenario, folder: Path, names: dict[str, str]) -> dict[str, Any]:
    upstream = free_port()
    with running(scenario.server, upstream, folder):
        relay = Relay(upstream)
        if scenario.warm_up is not None:
            run_client(scenario.warm_up, relay.port, folder, scenario.warm_up_inputs)
            relay.wait()
        printed = run_client(scenario.client, relay.port, folder, scenario.inputs)
        relay.wait()
    return {
        "client": scenario.client,
        "server": scenario.server,
        "said": said(printed if scenario.finished is not False else "", names),
        "sni": scenario.sni,
        "offered": scenario.offered,
        "finished": scenario.finished,
        "chunks": [[side, base64.b64encode(data).decode()] for side, data in relay.chunks],
    }


def main() -> None:
    wanted = set(sys.argv[1:])
    names = openssl_names()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=a.example",
             "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(["go", "build", "-o", folder / "go", PROGRAMS / "main.go"], check=True)
        (folder / "early").write_text("early data\n")
        for scenario in SCENARIOS:
            if wanted and scenario.name not in wanted:
                continue
            fixture = record(scenario, folder, names)
            size = sum(len(base64.b64decode(data)) for _, data in fixture["chunks"])
            print(scenario.name, size, fixture["said"])
            (HERE / f"{scenario.name}.json").write_text(json.dumps(fixture, indent=1) + "\n")


if __name__ == "__main__":
    main()
