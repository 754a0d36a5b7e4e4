"""What the HTTP/1 tests share: feeding a conversation to the decoder, and reading its messages as calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from apitrace.protocols.decoder import (
    CLIENT,
    SERVER,
    Data,
    End,
    Failed,
    Lost,
    Message,
    RequestHead,
    ResponseHead,
    Side,
    Switched,
    Trailers,
)
from apitrace.protocols.http1 import Http1


class Sent(NamedTuple):
    """Bytes that one side sends."""

    side: Side
    data: bytes


class Half(NamedTuple):
    """One message as the decoder gave it: times left out, body pieces joined."""

    start: tuple[object, ...] = ()
    """(method, path, version, authority, scheme) or (status, reason, version)."""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    lost: int = 0
    """Body bytes that were not seen."""
    trailers: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    ended: bool = False


class Call(NamedTuple):
    """One exchange as the decoder gave it."""

    request: Half = Half()
    response: Half = Half()
    failed: tuple[str, str] | None = None
    switched: str | None = None


def client(data: bytes) -> Sent:
    return Sent(CLIENT, data)


def server(data: bytes) -> Sent:
    return Sent(SERVER, data)


def feed(decoder: Http1, conversation: Iterable[Sent], at: int = 0) -> list[Message]:
    """Feed one chunk per Sent, at times that count up from `at`."""
    messages: list[Message] = []
    for now, sent in enumerate(conversation, at):
        messages += decoder.receive(sent.side, sent.data, now)
    return messages


def byte_by_byte(conversation: Iterable[Sent]) -> list[Sent]:
    return [Sent(sent.side, sent.data[i : i + 1]) for sent in conversation for i in range(len(sent.data))]


def calls(messages: Iterable[Message]) -> dict[int, Call]:
    """Return the calls by stream. Checks what every consumer relies on: the order of messages within an exchange."""
    found: dict[int, Call] = {}
    for message in messages:
        call = found.get(message.stream)
        if call is None:
            assert isinstance(message, RequestHead), f"{message} before its request"
            assert message.stream == len(found) + 1, f"{message} skips a number"
            call = Call()
        assert call.failed is None, f"{message} after Failed"
        found[message.stream] = _add(call, message)
    return found


def _add(call: Call, message: Message) -> Call:
    if isinstance(message, Failed):
        assert not (call.request.ended and call.response.ended), f"{message} after both ends"
        return call._replace(failed=(message.kind, message.detail))
    if isinstance(message, Switched):
        assert call.request.ended, f"{message} before the request's end"
        assert call.response.ended, f"{message} before the response's end"
        return call._replace(switched=message.protocol)
    of_client = isinstance(message, RequestHead) or (not isinstance(message, ResponseHead) and message.side == CLIENT)
    half = call.request if of_client else call.response
    assert not half.ended, f"{message} after the end"
    if isinstance(message, RequestHead):
        start: tuple[object, ...] = (
            message.method, message.path, message.version, message.authority, message.scheme,
        )  # fmt: skip
        half = half._replace(start=start, headers=_pairs(message), unknown=message.unknown)
    elif isinstance(message, ResponseHead):
        assert not half.start, f"{message} is the second"
        start = (message.status_code, message.reason, message.version)
        half = half._replace(start=start, headers=_pairs(message), unknown=message.unknown)
    elif isinstance(message, Data):
        assert half.start, f"{message} before the head"
        assert bool(message.data) != bool(message.lost), f"{message} says nothing"
        half = half._replace(body=half.body + message.data, lost=half.lost + message.lost)
    elif isinstance(message, Trailers):
        half = half._replace(trailers=_pairs(message))
    elif isinstance(message, Lost):
        half = half._replace(unknown=half.unknown + message.unknown)
    else:
        assert isinstance(message, End)
        half = half._replace(ended=True)
    return call._replace(request=half) if of_client else call._replace(response=half)


def _pairs(message: RequestHead | ResponseHead | Trailers) -> tuple[tuple[str, str], ...]:
    return tuple((header.name, header.value) for header in message.headers)
