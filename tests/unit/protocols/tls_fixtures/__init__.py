"""TLS connections between real programs, recorded by record.py, and what their ends said of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

from apitrace.protocols.tls import TlsObserver

CLIENT, SERVER = 0, 1
Chunk = tuple[int, bytes]


class Recording(NamedTuple):
    """One connection. `version`, `cipher_suite` and `alpn` are as the client reported them, None where it did not."""

    name: str
    version: str | None
    cipher_suite: str | None
    alpn: str | None
    sni: str | None
    offered: tuple[str, ...]
    finished: bool | None
    chunks: tuple[Chunk, ...]

    def sent(self, side: int) -> bytes:
        return b"".join(data for sender, data in self.chunks if sender == side)


def _load(path: Path) -> Recording:
    fixture = json.loads(path.read_text())
    said = fixture["said"]
    return Recording(
        path.stem,
        said["version"],
        said["cipher"],
        said["alpn"],
        fixture["sni"],
        tuple(fixture["offered"]),
        fixture["finished"],
        tuple((side, base64.b64decode(data)) for side, data in fixture["chunks"]),
    )


RECORDINGS = {path.stem: _load(path) for path in sorted(Path(__file__).parent.glob("*.json"))}
SSL2 = RECORDINGS.pop("ssl2_hello")


def observed(observer: TlsObserver) -> dict[str, Any]:
    """Everything that the observer tells, but the times."""
    return {
        "client": observer.client,
        "sni": observer.sni,
        "ech": observer.ech,
        "alpn_offered": observer.alpn_offered,
        "alpn": observer.alpn,
        "version": observer.version,
        "cipher_suite": observer.cipher_suite,
        "retried": observer.retried,
        "alerts": [(alert.side, alert.level, alert.name) for alert in observer.alerts],
        "finished": observer.finished,
        "settled": observer.settled,
        "unknown": observer.unknown,
        "traffic": (observer.traffic(CLIENT), observer.traffic(SERVER)),
    }


def observe(chunks: tuple[Chunk, ...]) -> TlsObserver:
    """Return an observer that was fed these chunks, the nth at time n."""
    observer = TlsObserver()
    for at, (side, data) in enumerate(chunks):
        observer.receive(side, data, at)
    return observer
