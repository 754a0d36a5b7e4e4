"""The WSGI application of the tests, for a pre-forking server: answers /bytes/N and /echo, and keeps the journal.

The journal's path is in the environment variable JOURNAL. The headers of the answers are not in it, because the
server adds to them; the client's journal has them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tests.live.calls import Call, Journal, fold
from tests.live.servers.origin import body_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

journal = Journal(os.environ["JOURNAL"])


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request."""
    body = environ["wsgi.input"].read()
    path = environ["RAW_URI"]
    kind, _, argument = path.partition("?")[0].strip("/").partition("/")
    body_out = body_of(int(argument)) if kind == "bytes" else body
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body_out)))])
    sent = b"" if environ["REQUEST_METHOD"] == "HEAD" else body_out
    headers = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_")]
    headers += [
        (name.replace("_", "-"), environ[name]) for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(name)
    ]
    journal.write(
        Call(
            method=environ["REQUEST_METHOD"],
            path=path,
            status=200,
            request_headers=fold(headers),
            request_size=len(body),
            response_headers=(),
            response_size=len(sent),
            client=(environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"])),
            server=(environ["SERVER_NAME"], int(environ["SERVER_PORT"])),
        ),
    )
    return [sent]
