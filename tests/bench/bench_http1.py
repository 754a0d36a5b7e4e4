"""How many exchanges a second the HTTP/1 decoder takes on one core: run it by hand, it prints a table.

    python -m tests.bench.bench_http1 [SECONDS]

Each row decodes requests and their responses, given whole, one chunk each, over one long connection. `repeated`
heads are the same bytes every time, as from a load generator; `varied` ones have a new path, request id, content
length, entity tag and date every time, as from a real service. A round takes SECONDS; the table shows the best of
twenty, because everything that disturbs a round makes it slower.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator

from apitrace.protocols.decoder import CLIENT, SERVER
from apitrace.protocols.http1 import Http1

ROUNDS = 20

REQUEST = (
    b"GET /api/v1/items/%d?page=2&sort=name HTTP/1.1\r\nHost: api.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: application/json, text/plain, */*\r\nAccept-Language: en-US,en;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo\r\n"
    b"X-Request-Id: 7f3c2a90-%d\r\nCookie: session=5f2b8c1e9d; theme=dark\r\nConnection: keep-alive\r\n\r\n"
)
POST = REQUEST.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 200\r\n\r\n") + b"%0200d"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 06 Nov 1994 08:49:%d GMT\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nConnection: keep-alive\r\n"
    b'ETag: W/"%d"\r\nCache-Control: max-age=0, private, must-revalidate\r\nVary: Accept-Encoding\r\n'
    b"X-Frame-Options: SAMEORIGIN\r\n\r\n%b"
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 06 Nov 1994 08:49:%d GMT\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\nX-Id: %d\r\n\r\n"
    b"100\r\n%b\r\n0\r\n\r\n"
)
Pair = tuple[bytes, bytes]


def _get(n: int) -> Pair:
    return REQUEST % (n, n), RESPONSE % (n % 1000, 512 + n % 1000, n, b"x" * (512 + n % 1000))


def _post(n: int) -> Pair:
    return POST % (n, n, n), RESPONSE % (n % 1000, 512 + n % 1000, n, b"x" * (512 + n % 1000))


def _chunked(n: int) -> Pair:
    return REQUEST % (n, n), CHUNKED % (n % 1000, n, b"x" * 256)


def _small(n: int) -> Pair:
    return b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


CASES = {
    "GET, 10 header lines": _get,
    "POST, 200 byte body": _post,
    "chunked answer": _chunked,
    "1 header line": _small,
}


def rate(pairs: Iterator[Pair], seconds: float) -> float:
    """Return the exchanges a second that one decoder takes, in batches that fit the CPU's cache, as new events do."""
    decoder = Http1()
    receive = decoder.receive
    count, spent = 0, 0.0
    while spent < seconds:
        batch = list(itertools.islice(pairs, 100))
        begin = time.process_time()
        for at, (request, response) in enumerate(batch):
            receive(CLIENT, request, at)
            receive(SERVER, response, at)
        spent += time.process_time() - begin
        count += len(batch)
    return count / spent


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1
    print(f"{'':24}{'repeated':>20}{'varied':>20}")
    for name, make in CASES.items():
        repeated = max(rate(itertools.repeat(make(7)), seconds) for _ in range(ROUNDS))
        varied = max(rate(map(make, itertools.count()), seconds) for _ in range(ROUNDS))
        print(f"{name:24}", *(f"{each:9,.0f}/s {1e6 / each:5.2f} us" for each in (repeated, varied)))


if __name__ == "__main__":
    main()
