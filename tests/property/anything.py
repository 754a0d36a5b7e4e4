"""Anything at all, for a decoder: what it may be given in any order, and what it must keep to whatever that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from apitrace.protocols.decoder import CLIENT, SERVER, DecodeError, End, Failed, RequestHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from apitrace.protocols.decoder import Decoder, Message

SIDES = st.sampled_from([CLIENT, SERVER])

Action = "tuple[str, Side, bytes | int | None]"


def actions_with(chunk: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[Any]]:
    """Give actions on a decoder: what it receives, gaps, and ends."""
    return st.lists(
        st.tuples(st.just("receive"), SIDES, chunk)
        | st.tuples(st.just("gap"), SIDES, st.none() | st.integers(0, 40))
        | st.tuples(st.just("finish"), SIDES, st.none()),
        max_size=25,
    )


def survived(decoder: Decoder, actions: Sequence[Action], out: list[Message]) -> list[Message]:
    """Act on a decoder that has given `out`, and close it; return all messages.

    Fails if it raises anything but its own error, or its count of open exchanges is not that of the messages.
    """
    for at, (name, of, argument) in enumerate(actions):
        try:
            if isinstance(argument, bytes):
                out += decoder.receive(of, argument, at)
            elif name == "gap":
                out += decoder.gap(of, argument, at)
            else:
                out += decoder.finish(of, at)
        except DecodeError:
            break
        assert decoder.open_exchanges == len(open_streams(out))
    was_open = open_streams(out)
    closing = decoder.close(len(actions), "closed", "")
    assert was_open <= {message.stream for message in closing if isinstance(message, End | Failed)}
    assert decoder.open_exchanges == 0
    assert open_streams([*out, *closing]) == set()
    return [*out, *closing]


def open_streams(messages: Iterable[Message]) -> set[int]:
    """Return the streams whose request has begun, and of whose two ends one has not come."""
    ends: dict[int, int] = {}
    for message in messages:
        if isinstance(message, RequestHead):
            ends[message.stream] = 2
        elif isinstance(message, End):
            ends[message.stream] -= 1
        elif isinstance(message, Failed):
            ends[message.stream] = 0
    return {stream for stream, left in ends.items() if left}
