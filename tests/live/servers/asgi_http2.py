"""The application that hypercorn serves in the tests: as servers/origin.py, with a journal named by JOURNAL."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.live.calls import Call, Journal, fold
from tests.live.servers.origin import body_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

journal = Journal(os.environ["JOURNAL"])
gate = Path(f"{os.environ['JOURNAL']}.gate")


async def application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answer /bytes/N, /status/CODE, /echo and, when the FIFO JOURNAL.gate has been written to its end, /held."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    _, kind, *arguments = scope["path"].split("/")
    status, content = 200, body
    if kind == "bytes":
        content = body_of(int(arguments[0]))
    elif kind == "status":
        status, content = int(arguments[0]), b""
    elif kind == "held":
        await asyncio.to_thread(gate.read_bytes)
    said = [(b"content-length", str(len(content)).encode()), (b"x-kind", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": content})
    journal.write(
        Call(
            method=scope["method"],
            path=scope["path"],
            status=status,
            request_headers=fold((name.decode(), value.decode()) for name, value in scope["headers"]),
            request_size=len(body),
            response_headers=fold((name.decode(), value.decode()) for name, value in said),
            response_size=len(content),
            client=tuple(scope["client"]),
            server=tuple(scope["server"]),
        )
    )
