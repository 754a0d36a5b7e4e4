"""One exchange of each kind that a sink must show: the input of the golden outputs, and of the sinks' unit tests."""

from __future__ import annotations

from typing import Any

from apitrace.exchange import (
    CallMessage,
    Connection,
    Container,
    Endpoint,
    Exchange,
    Failure,
    Grpc,
    Header,
    Headers,
    Process,
    Progress,
    Request,
    Response,
    Timing,
    Tls,
)

START = 1_700_000_000_123_456_789
"""2023-11-14T22:13:20.123456789Z."""


def headers(*lines: str) -> Headers:
    """Return header fields from lines as they are on the wire."""
    pairs = (line.split(": ", 1) for line in lines)
    return tuple(Header(name.lower(), value, name) for name, value in pairs)


def later(milliseconds: int) -> int:
    return START + milliseconds * 1_000_000


CLIENT = Endpoint("127.0.0.1", 51234)
SERVER = Endpoint("127.0.0.1", 8000)
NGINX = Process(4121, 4122, "nginx", "/usr/sbin/nginx", "server")
CURL = Process(4200, 4200, "curl", "/usr/bin/curl", "client")
WEB = Container("3f2a9c01d2aa" + "0" * 52, "web", "registry.local/web:1.2", "docker", labels=(("tier", "front"),))
POD = Container("77aa" * 16, "app", "shop:7", "containerd", "shop-5d9", "prod")

PLAIN = Exchange(
    id="1f-1",
    timestamp=START,
    source=CLIENT,
    destination=SERVER,
    process=NGINX,
    connection=Connection("1f", "ipv4"),
    tls=None,
    protocol="HTTP/1.1",
    request=Request(
        "GET", "/items/7", "http", "127.0.0.1:8000",
        headers("Host: 127.0.0.1:8000", "User-Agent: curl/7.88.1", "Accept: */*"),
    ),
    response=Response(
        200, "OK", headers("Content-Type: application/json", "Content-Length: 17"), (), b'{"name": "chair"}', 17
    ),
    latency_ns=1_234_567,
    timing=Timing(12_000, 1_192_567, 30_000),
)  # fmt: skip
"""A plain call that was seen whole."""


def asked(**changes: Any) -> Exchange:
    """Return PLAIN with another request."""
    return PLAIN._replace(request=PLAIN.request._replace(**changes))



EXCHANGES = (
    PLAIN,
    PLAIN._replace(  # both ways chunked with trailers, repeated headers, a connect that was seen
        id="20-1",
        timestamp=later(20),
        process=CURL,
        connection=Connection("20", "ipv4", connect_ns=83_000),
        request=Request(
            "POST", "/items?dry-run=1", "http", "api.example.com:8000",
            headers("Host: api.example.com:8000", "Accept: text/html", "accept: */*", "Cookie: a=1", "Cookie: b=2"),
            headers("X-Sum: 9"), b"one\ttwo\r\nthree\n", 15,
        ),
        response=Response(
            201, "Created", headers("Set-Cookie: sid=4f5a; Path=/; HttpOnly", "Set-Cookie: lang=en"),
            headers("X-Sum: 17"), "größe: 7 €".encode(), 13,
        ),
        latency_ns=45_600_000,
        timing=Timing(600_000, 44_000_000, 1_000_000),
    ),
    PLAIN._replace(  # credentials everywhere
        id="21-1",
        timestamp=later(40),
        process=Process(4300, 4301, "python3", None, "client", WEB),
        connection=Connection("21", "ipv4"),
        request=Request(
            "GET", "http://bob:hunter2@api.example.com/me?access_token=abc&page=2", "http", "api.example.com",
            headers("Authorization: Bearer abc", "X-Api-Key: k-1", "Referer: https://example.com/?sid=abc#top"),
        ),
        response=Response(302, "Found", headers("Location: /login?token=abc", "Set-Cookie: sid=abc; Secure")),
        latency_ns=999_499,
        timing=Timing(0, 999_000, 499),
    ),
    PLAIN._replace(  # binary, cut at the snap length
        id="22-1",
        timestamp=later(60),
        request=PLAIN.request._replace(method="DELETE", path="/images/" + "x" * 60),
        response=Response(
            500, "Internal Server Error", headers("Content-Type: image/png"), (),
            b"\x89PNG\r\n\x1a\n" + bytes(24), 1_048_576, truncated=True,
        ),
        latency_ns=12_345_678_901,
        timing=Timing(12_000, 12_000_000_000, 345_666_901),
    ),
    PLAIN._replace(  # what a terminal would obey
        id="23-1",
        timestamp=later(80),
        source=Endpoint("2001:db8::5", 40000),
        destination=Endpoint("2001:db8::1", 80),
        connection=Connection("23", "ipv6"),
        request=Request(
            "GET", "/日本語/\x1b]0;owned\x07/\u202etxt.exe", "http", "[2001:db8::1]",
            headers("X-Odd: a\x00\x9b2J\u200bb"),
        ),
        response=Response(404, "Not\x1b[2J Found", (), (), "[red]e\u0301\u0301\u0301[/red]\n".encode(), 19),
    ),
    PLAIN._replace(  # nothing answered
        id="24-1",
        timestamp=later(100),
        process=Process(4400, 4400, "app", "/app", "server", POD),
        destination=Endpoint("10.0.0.7", 80, None, "shop-5d9", "prod", (("app", "shop"),), "Pod"),
        connection=Connection("24", "ipv4"),
        protocol="HTTP/1.0",
        request=Request("PUT", "/slow", "http", "shop.prod.svc.cluster.local", (), (), b"", 5_000_000, truncated=True),
        response=None,
        latency_ns=None,
        timing=Timing(),
        error=Failure("unanswered", "still open when the capture ended"),
    ),
    PLAIN._replace(  # cut short, with bytes lost
        id="25-1",
        timestamp=later(120),
        response=PLAIN.response._replace(body=b"abc", body_size=12_000, truncated=True) if PLAIN.response else None,
        latency_ns=None,
        timing=Timing(12_000, 1_000_000, None),
        lost_bytes=11_000,
        error=Failure("reset", "the server reset the connection"),
    ),
    PLAIN._replace(  # joined when the request was over
        id="26-2",
        timestamp=later(140),
        request=Request(),
        response=Response(None, None, (), (), b"tail", 4, truncated=True),
        latency_ns=None,
        timing=Timing(None, None, 10_000),
        unknown=("request.method", "request.path", "request.headers", "request.body", "response.body_size"),
    ),
    Exchange(  # a connect that was refused
        "27-1", later(160), Endpoint("127.0.0.1"), Endpoint("127.0.0.1", 9), CURL, Connection("27", "ipv4"),
        None, "TCP", Request(), None, None, Timing(), error=Failure("refused", "ECONNREFUSED"),
    ),
    PLAIN._replace(  # AF_UNIX
        id="28-1",
        timestamp=later(3_600_180),
        source=Endpoint(path=""),
        destination=Endpoint(path="/run/docker.sock"),
        process=Process(900, 901, "dockerd", "/usr/bin/dockerd", "server"),
        connection=Connection("28", "unix"),
        request=Request("GET", "/v1.41/info", "http", None),
    ),
    PLAIN._replace(  # asterisk-form
        id="29-1",
        timestamp=later(3_600_200),
        request=Request("OPTIONS", "*", "http", "example.com"),
        response=Response(204, "No Content"),
    ),
    PLAIN._replace(  # TLS that could not be read
        id="30-1",
        timestamp=later(3_600_220),
        source=Endpoint(),
        destination=Endpoint(),
        process=Process(4500, 4500, "java", "/usr/bin/java", None),
        connection=Connection("30", "ipv4", address_source="unknown"),
        tls=Tls("jsse", "TLSv1.3", "db.example.com", "h2"),
        protocol="TLS",
        request=Request(),
        response=None,
        latency_ns=None,
        timing=Timing(),
        error=Failure("unreadable", "no probe for this TLS library"),
    ),
)  # fmt: skip


def message(milliseconds: int, data: Any, **fields: Any) -> CallMessage:
    """Return a message of 7 bytes, as a gRPC call has them."""
    values: dict[str, Any] = {"size": 7, "compressed": False, "encoding": "guess", "truncated": False}
    return CallMessage(later(milliseconds), data=data, **(values | fields))


CALL = PLAIN._replace(
    id="30-1",
    connection=Connection("30", "ipv4", 5),
    protocol="HTTP/2",
    request=Request(
        "POST", "/shop.Items/Find", "http", "shop:50051",
        headers("content-type: application/grpc", "te: trailers", "grpc-timeout: 250m", "x-api-key: k1"),
        (), b"\0\0\0\0\x07\x0a\x05chair", 12,
    ),
    response=Response(
        200, None, headers("content-type: application/grpc"), headers("grpc-status: 0"),
        b"\0\0\0\0\x02\x10\x07", 7,
    ),
    grpc=Grpc(
        "shop.Items", "Find", 0, "OK", None, 250_000_000, headers("x-api-key: k1"), (), (),
        (message(0, {"1": {"string": "chair"}}),), (message(1, {"count": 7}, size=2, encoding="proto"),), 1, 1,
    ),
)  # fmt: skip
"""A unary call."""
FAILED_CALL = CALL._replace(
    id="30-2",
    response=Response(
        200, None, headers("content-type: application/grpc", "grpc-status: 5", "grpc-message: no such%0athing")
    ),
    grpc=Grpc("shop.Items", "Find", 5, "NOT_FOUND", "no such\nthing", None, requests=(
        message(0, "//8=", compressed=True, encoding="base64"),), request_count=1, response_count=0),
)  # fmt: skip
STREAM = CALL._replace(id="30-3", request=CALL.request._replace(path="/shop.Items/Watch"))
CALLS: tuple[Exchange | Progress, ...] = (
    CALL,
    FAILED_CALL,
    Progress(STREAM._replace(response=None, latency_ns=None, grpc=Grpc("shop.Items", "Watch"))),
    Progress(STREAM, "client", 0, message(5, {"1": {"string": "chair\x1b"}})),
    Progress(STREAM, "server", 0, message(900, None, encoding=None, truncated=True)),
    STREAM._replace(
        latency_ns=2_000_000_000,
        lost_bytes=9,
        unknown=("grpc.responses",),
        error=Failure("cancelled", "the client cancelled the stream: CANCEL"),
        grpc=Grpc(
            "shop.Items", "Watch", requests=(message(5, {"1": {"string": "chair\x1b"}}),),
            responses=(message(900, {}, truncated=True),), request_count=1,
        ),
    ),
)  # fmt: skip
"""gRPC calls, and what is shown while one is open."""
