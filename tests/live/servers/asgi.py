"""The ASGI application of the tests, for uvicorn: answers /bytes/N, /status/CODE and /echo, and keeps the journal.

The journal's path is in the environment variable JOURNAL. The headers of the answers are not in it, because the
server adds to them; the client's journal has them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tests.live.calls import Call, Journal, fold
from tests.live.servers.streams import answer_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

journal = Journal(os.environ["JOURNAL"])


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer one request."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    path = scope["raw_path"].decode()
    status, content = answer_to(path, body)
    empty = status in {204, 304}
    lines = [] if empty else [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": b"" if empty else content})
    query = scope["query_string"].decode()
    journal.write(
        Call(
            method=scope["method"],
            path=f"{path}?{query}" if query else path,
            status=status,
            request_headers=fold((name.decode(), value.decode()) for name, value in scope["headers"]),
            request_size=len(body),
            response_headers=(),
            response_size=0 if empty or scope["method"] == "HEAD" else len(content),
            client=(scope["client"][0], scope["client"][1]),
            server=(scope["server"][0], scope["server"][1]),
        )
    )
