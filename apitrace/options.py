"""What the command line asked for, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

NO_LIVE, STREAMING, ALL = range(3)
"""Which messages of calls are wanted as they pass: none; those of calls that are seen to carry more than one a side;
all."""


class MessageSchema(Protocol):
    """What knows the types of a service's messages. Raises the decoders' DecodeError."""

    def decode(
        self, service: str, method: str, *, request: bool, data: bytes, cut: bool = False
    ) -> dict[str, Any] | None:
        """Return a message by the names of its fields, or None. `cut`: the data are only its beginning."""


class CallOptions(NamedTuple):
    """What is to be made of the messages in calls."""

    live: int = NO_LIVE
    data: bool = True
    """Whether to take messages apart: it costs more than all else about them."""
    schema: MessageSchema | None = None



@dataclass(frozen=True, slots=True)
class Options:
    """Every option, parsed and checked, but not yet resolved against the machine."""

    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    everything: bool = False
    command: tuple[str, ...] = ()
    follow: bool = True
    ports: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    read: str | None = None
    count: int | None = None
    duration: float | None = None
    """Seconds."""
    snaplen: int = 65536
    output: str | None = None
    """"table" or "json"; None: table on a terminal, else JSON lines."""
    write: str | None = None
    print_too: bool = False
    """With `write`: show on stdout as well."""
    verbosity: int = 0
    quiet: bool = False
    timestamps: int = 0
    """How often -t was given, as in tcpdump."""
    direction: str | None = None
    """"in": the traced process is the server; "out": the client."""
    color: str = "auto"
    show_secrets: bool = False
    raw_headers: bool = False
    messages: bool = False
    """Show each message of a gRPC call as it passes."""
    proto: tuple[str, ...] = ()
    """Files that name what is in these messages."""
    ready_file: str | None = None
    demo: bool = False
    listing: bool = False
    """--list."""
    doctor: bool = False
    hook: str | None = None
    """"sock_length" or "sys_exit": for the tests, both paths of which must run."""

    @property
    def has_target(self) -> bool:
        """Whether anything was named to trace."""
        return bool(
            self.pids or self.comms or self.containers or self.pods or self.cgroups or self.everything or self.command
        )
