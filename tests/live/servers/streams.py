"""The asyncio server of the tests: TLS streams, whose SSL objects are fed through memory and never see a socket.

    python -m tests.live.servers.streams JOURNAL CERTIFICATES

Prints the address it listens on as one JSON line. Paths: /bytes/N, /status/CODE, /echo.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

from tests.live.calls import Call, Journal, Session, address, fold
from tests.live.servers.origin import body_of, serving_context


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Read the body of a request."""
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (await reader.readline()).strip():  # trailer section
        pass
    return body


def answer_to(path: str, body: bytes) -> tuple[int, bytes]:
    """Return the status and the body that the path asks for."""
    kind, _, argument = path.partition("?")[0].strip("/").partition("/")
    if kind == "status":
        return int(argument), b""
    return 200, body_of(int(argument)) if kind == "bytes" else body


async def main() -> None:
    """Serve until killed."""
    journal = Journal(sys.argv[1])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await answer(reader, writer)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        body = await read_body(reader, dict(fold(headers)))
        status, content = answer_to(path, body)
        sent = b"" if method == "HEAD" or status in {204, 304} else content
        answered = [("Server", "streams"), ("Content-Length", str(len(content)))]
        writer.write(f"HTTP/1.1 {status} Whatever\r\n".encode())
        writer.write("".join(f"{name}: {value}\r\n" for name, value in answered).encode() + b"\r\n")
        writer.write(sent)
        await writer.drain()
        tls = writer.get_extra_info("ssl_object")
        journal.write(
            Call(
                method=method,
                path=path,
                status=status,
                request_headers=fold(headers),
                request_size=len(body),
                response_headers=fold(answered),
                response_size=len(sent),
                client=address(writer.get_extra_info("peername")),
                server=address(writer.get_extra_info("sockname")),
                tls=Session(tls.version(), tls.sni, tls.selected_alpn_protocol()),
            )
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=serving_context(sys.argv[2]), backlog=128)
    print(json.dumps(address(server.sockets[0].getsockname())), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
