"""The workload of the recorded TLS capture: 5 calls by curl and node to an asyncio server, and one that trusts nobody.

curl reads and writes its socket inside OpenSSL's calls; node and asyncio give OpenSSL memory. Run it under apitrace, as
test_recording.py says. The server is a forked child.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

from tests.live import certificates
from tests.live.harness import program

NODE = """
const https = require("https"), fs = require("fs");
const [port, ca] = process.argv.slice(1);
const agent = new https.Agent({keepAlive: true, maxSockets: 1, ca: fs.readFileSync(ca)});
const call = (method, path, body) => new Promise((resolve) => {
  const request = https.request({host: "localhost", port, path, method, agent}, (response) => {
    response.resume();
    response.on("end", resolve);
  });
  request.end(body);
});
(async () => {
  await call("GET", "/node/1");
  await call("PUT", "/node/2", JSON.stringify({name: "é", tags: [1, 2]}));
  agent.destroy();
})();
"""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its own method, path and body size; the path /gone with 404."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            sizes = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
            body = await reader.readexactly(int(sizes[0])) if sizes else b""
            content = f'{{"method": "{method}", "path": "{path}", "size": {len(body)}}}\n'.encode()
            status = "404 Not Found" if path == "/gone" else "200 OK"
            fields = f"Content-Type: application/json\r\nContent-Length: {len(content)}"
            writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + content)
            await writer.drain()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        writer.close()
        await writer.wait_closed()


async def serve(directory: Path, parent: socket.socket) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    parent.sendall(str(server.sockets[0].getsockname()[1]).encode())
    await asyncio.get_running_loop().run_in_executor(None, parent.recv, 1)  # until the other end is closed
    server.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        certificates.make(directory)
        ca = str(directory / "ca.pem")
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server = os.fork()
        if server == 0:
            ours.close()
            asyncio.run(serve(directory, its))
            os._exit(0)
        its.close()
        port = ours.recv(9).decode()
        url = f"https://localhost:{port}"
        trusting = ["-s", "-o", "/dev/null", "--cacert", ca]
        form = ["--data", "name=apitrace&note=two+words", f"{url}/items"]
        subprocess.run([program("curl"), *trusting, f"{url}/items?q=1", "--next", *trusting, *form], check=True)
        secret = ["--tls-max", "1.2", "-H", "Authorization: Bearer secret"]
        subprocess.run([program("curl"), *trusting, *secret, f"{url}/gone"], check=True)
        subprocess.run([program("node"), "-e", NODE, port, ca], check=True)
        subprocess.run([program("curl"), *trusting[:3], f"{url}/untrusting"], check=False)
        ours.close()
        os.waitpid(server, 0)


if __name__ == "__main__":
    main()
