"""The Python HTTP libraries of the tests as clients over TLS: each makes the calls in the way its users do.

    python -m tests.live.clients.libraries LIBRARY JOURNAL ADDRESS CA CONCURRENT ROUNDS REQUEST...

LIBRARY is requests, httpx (its asynchronous client), aiohttp or asyncio (streams). As keepalive.py: each of CONCURRENT
loops sends all REQUESTs in turn, ROUNDS times, each time that standard input says "go", and ends when that ends.
Of what was sent the journal has what the caller knows: no header fields, and neither addresses nor sessions, which
libraries hide; the server's journal has them.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import itertools
import json
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any

from tests.live.calls import Call, Journal
from tests.live.clients.keepalive import pieces, trusting_context
from tests.live.servers.origin import body_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

NAME = "tls.test"
Answer = tuple[int, int]
"""Status, and bytes of the body."""
Converse = "Callable[[Sequence[Callable[..., Awaitable[Answer]]]], Awaitable[None]]"
"""Makes the calls with these functions, one loop with each."""


def _body(spec: dict[str, Any]) -> Any:
    if spec.get("size") is None:
        return None
    return pieces(body_of(spec["size"])) if spec.get("chunked") else body_of(spec["size"])


def _requests(base: str, ca: str) -> Callable[..., Answer]:
    import requests

    session = requests.Session()
    session.trust_env = False  # REQUESTS_CA_BUNDLE would count more than verify
    session.verify = ca

    def send(method: str, spec: dict[str, Any], headers: dict[str, str]) -> Answer:
        response = session.request(method, base + spec["path"], data=_body(spec), headers=headers)
        return response.status_code, len(response.content)

    return send


async def _asynchronous(body: Any) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


def _content(spec: dict[str, Any]) -> Any:
    body = _body(spec)
    return _asynchronous(body) if spec.get("chunked") else body


async def _httpx(base: str, ca: str, converse: Converse, concurrent: int) -> None:
    import httpx

    async def send(method: str, spec: dict[str, Any], headers: dict[str, str]) -> Answer:
        extensions = {"sni_hostname": NAME}
        content = _content(spec)
        response = await client.request(
            method, base + spec["path"], content=content, headers=headers, extensions=extensions
        )
        return response.status_code, len(response.content)

    async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=ca), timeout=30) as client:
        await converse([send] * concurrent)


async def _aiohttp(base: str, ca: str, converse: Converse, concurrent: int) -> None:
    import aiohttp

    async def send(method: str, spec: dict[str, Any], headers: dict[str, str]) -> Answer:
        url, data = base + spec["path"], _content(spec)
        async with client.request(method, url, data=data, headers=headers, server_hostname=NAME) as response:
            return response.status, len(await response.read())

    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca))
    async with aiohttp.ClientSession(connector=connector) as client:
        await converse([send] * concurrent)


class _Answer(io.BytesIO):
    """A response that has been read, for http.client to take apart."""

    def makefile(self, *_: object) -> _Answer:
        return self


async def _read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    """Read one response with a length or in chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    response = http.client.HTTPResponse(_Answer(head), method=method)  # type: ignore[arg-type]
    response.begin()
    if method == "HEAD" or response.status in {204, 304}:
        return response.status, 0
    if not response.chunked:
        return response.status, len(await reader.readexactly(response.length or 0))
    total = 0
    while size := int(await reader.readline(), 16):
        total += size
        await reader.readexactly(size + 2)
    while (await reader.readline()).strip():  # trailer section
        pass
    return response.status, total


async def _asyncio(base: str, ca: str, converse: Converse, concurrent: int) -> None:
    host, port = base.removeprefix("https://").split(":")
    context = trusting_context(ca)

    async def connect() -> Callable[..., Awaitable[Answer]]:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=NAME)

        async def send(method: str, spec: dict[str, Any], headers: dict[str, str]) -> Answer:
            lines = [f"{method} {spec['path']} HTTP/1.1", f"Host: {NAME}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            body = _body(spec)
            if body is not None:
                lines.append("Transfer-Encoding: chunked" if spec.get("chunked") else f"Content-Length: {len(body)}")
            writer.write("\r\n".join([*lines, "", ""]).encode())
            for piece in [body] if isinstance(body, bytes) else [b"%x\r\n%b\r\n" % (len(p), p) for p in body or ()]:
                writer.write(piece)
                await writer.drain()
            if spec.get("chunked"):
                writer.write(b"0\r\n\r\n")
            await writer.drain()
            return await _read_answer(reader, method)

        return send

    # The first request makes the connection, so that whoever traces from "go" on sees it from its beginning.
    connected: dict[int, Callable[..., Awaitable[Answer]]] = {}

    def sender(index: int) -> Callable[..., Awaitable[Answer]]:
        async def send(*arguments: Any) -> Answer:
            if index not in connected:
                connected[index] = await connect()
            return await connected[index](*arguments)

        return send

    await converse([sender(index) for index in range(concurrent)])


ASYNCHRONOUS = {"httpx": _httpx, "aiohttp": _aiohttp, "asyncio": _asyncio}


def main() -> None:
    """Make the calls."""
    library, path, to, ca, concurrent, rounds, *specs = sys.argv[1:]
    journal = Journal(path)
    host, port = json.loads(to)
    base = f"https://{host}:{port}"
    plan = [json.loads(spec) for spec in specs] * int(rounds)
    numbers = itertools.count()

    def note(number: str, method: str, spec: dict[str, Any], answer: Answer) -> None:
        journal.write(
            Call(
                method=method,
                path=spec["path"],
                status=answer[0],
                request_headers=(("x-call", number),),
                request_size=spec.get("size") or 0,
                response_headers=(),
                response_size=answer[1],
                client=("", 0),
                server=("", 0),
            )
        )

    async def converse(senders: Sequence[Callable[..., Awaitable[Answer]]]) -> None:
        async def call_all(send: Callable[..., Awaitable[Answer]]) -> None:
            for spec in plan:
                number, method = str(next(numbers)), spec.get("method", "GET")
                headers = {**spec.get("headers", {}), "X-Call": number}
                note(number, method, spec, await send(method, spec, headers))

        while await asyncio.to_thread(sys.stdin.readline) == "go\n":
            await asyncio.gather(*map(call_all, senders))
            print("done", flush=True)

    def call_all_here(send: Callable[..., Answer]) -> None:
        for spec in plan:
            number, method = str(next(numbers)), spec.get("method", "GET")
            note(number, method, spec, send(method, spec, {**spec.get("headers", {}), "X-Call": number}))

    if library in ASYNCHRONOUS:
        asyncio.run(ASYNCHRONOUS[library](base, ca, converse, int(concurrent)))
        return
    senders = [_requests(base, ca) for _ in range(int(concurrent))]
    while sys.stdin.readline() == "go\n":
        threads = [threading.Thread(target=call_all_here, args=(send,)) for send in senders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("done", flush=True)


if __name__ == "__main__":
    main()
