"""Secrets are masked wherever they stand, comparably, and nothing else is touched."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apitrace import redact
from apitrace.exchange import Exchange, Header
from apitrace.redact import Redactor
from tests.golden.exchanges import CALL, PLAIN, asked, headers

KEY = b"0123456789abcdef"


def mask(secret: str) -> str:
    """Return the mask as the documentation describes it."""
    return f"***{len(secret)}-{hashlib.blake2b(secret.encode(), key=KEY, digest_size=4).hexdigest()}"


ABC, BOB, HUNTER2 = mask("abc"), mask("bob"), mask("hunter2")


def masked(exchange: Exchange) -> Exchange:
    return Redactor(key=KEY).redact(exchange)


def in_request(line: str) -> str:
    """Return the value of this header line once it has passed as a request's."""
    [header] = masked(asked(headers=headers(line))).request.headers
    assert f"{header.raw_name}: " == line[: len(header.raw_name) + 2]
    return header.value


def path(text: str) -> str | None:
    return masked(asked(path=text)).request.path


def test_a_mask_is_length_and_keyed_hash() -> None:
    assert in_request("X-Api-Key: abc") == "***3-cb73319d"
    assert in_request("X-Api-Key: größe €") == mask("größe €") == "***7-fc1cfa87"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("Authorization: Bearer abc", f"Bearer {ABC}"),
        ("authorization: bearer  abc", f"bearer {ABC}"),
        ("Proxy-Authorization: Basic abc", f"Basic {ABC}"),
        ("Authorization: AWS4-HMAC-SHA256 abc", f"AWS4-HMAC-SHA256 {ABC}"),
        ("Authorization: abc", ABC),
        ("Authorization: Bearer", "Bearer"),
        ("Authorization: ", ""),
        ("Authorization: _._ abc", mask("_._ abc")),
        ("Cookie: sid=abc", f"sid={ABC}"),
        ("Cookie: a=abc; b=; c=hunter2", f"a={ABC}; b=; c={HUNTER2}"),
        ("Cookie: a=abc;  abc", f"a={ABC};  {ABC}"),
        ("Set-Cookie: sid=abc", f"sid={ABC}"),
        (
            "Set-Cookie: sid=abc; Path=/a; Expires=Wed, 09 Jun 2027 10:18:14 GMT; Secure; SameSite=Lax",
            f"sid={ABC}; Path=/a; Expires=Wed, 09 Jun 2027 10:18:14 GMT; Secure; SameSite=Lax",
        ),
        ("Set-Cookie: a=abc; Path=/, b=abc", f"a={ABC}; Path={mask('/, b=abc')}"),
        ("Set-Cookie: a=abc; token=abc", f"a={ABC}; token={ABC}"),
        ("X-Api-Key: abc", ABC),
        ("X-AUTH-TOKEN: abc", ABC),
        ("X-Registry-Auth: abc", ABC),
        ("Location: https://bob:hunter2@example.com/a?b=c", f"https://{BOB}:{HUNTER2}@example.com/a?b=c"),
        ("Location: //bob@example.com/", f"//{BOB}@example.com/"),
        ("Location: /callback#access_token=abc&state=1", f"/callback#access_token={ABC}&state=1"),
        ("Referer: https://example.com/?q=x&api_key=abc", f"https://example.com/?q=x&api_key={ABC}"),
        ("Refresh: 5; url=/next?token=abc", f"5; url=/next?token={ABC}"),
        ('Link: </p?sig=abc>; rel="next"', f'</p?sig={ABC}>; rel="next"'),
    ],
)
def test_a_secret_in_a_header_is_masked_and_the_rest_stays(line: str, value: str) -> None:
    assert in_request(line) == value


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/?access_token=abc", f"/?access_token={ABC}"),
        ("/a?x=1&ACCESS-TOKEN=abc&y=2", f"/a?x=1&ACCESS-TOKEN={ABC}&y=2"),
        ("/a?accessToken=abc", f"/a?accessToken={ABC}"),
        ("/a?X-Amz-Signature=abc&X-Amz-Date=1", f"/a?X-Amz-Signature={ABC}&X-Amz-Date=1"),
        ("/a;jsessionid=abc?x=1", f"/a;jsessionid={ABC}?x=1"),
        ("http://bob:hunter2@example.com/?key=abc", f"http://{BOB}:{HUNTER2}@example.com/?key={ABC}"),
        ("http://bob:h@nter2@example.com/", f"http://{BOB}:{mask('h@nter2')}@example.com/"),
        ("bob:hunter2@example.com:443", f"{BOB}:{HUNTER2}@example.com:443"),
        ("/?token=", "/?token="),
        ("/?keyboard=abc&tokens=3&monkey=abc", "/?keyboard=abc&tokens=3&monkey=abc"),
        ("/@scope/package?v=1", "/@scope/package?v=1"),
        ("/user@example.com/x=1", "/user@example.com/x=1"),
        ("*", "*"),
    ],
)
def test_a_secret_in_the_path_is_masked_and_the_rest_stays(before: str, after: str) -> None:
    assert path(before) == after


def test_user_information_is_masked_in_authority_and_host() -> None:
    host = "bob:hunter2@a.org:80"
    after = masked(asked(authority=host, headers=headers(f"Host: {host}", "A: b"))).request
    assert after.authority == f"{BOB}:{HUNTER2}@a.org:80"
    assert after.headers == headers(f"Host: {BOB}:{HUNTER2}@a.org:80", "A: b")


def test_an_authority_without_host_header_is_masked_too() -> None:
    after = masked(asked(authority="bob@a.org", headers=())).request
    assert (after.authority, after.headers) == (f"{BOB}@a.org", ())


def test_responses_and_trailers_are_masked_too() -> None:
    assert PLAIN.response is not None
    secret = headers("X-Api-Key: abc", "X-Sum: 1")
    clear = headers(f"X-Api-Key: {ABC}", "X-Sum: 1")
    before = PLAIN._replace(
        request=PLAIN.request._replace(trailers=secret),
        response=PLAIN.response._replace(headers=secret, trailers=secret),
    )
    after = PLAIN._replace(
        request=PLAIN.request._replace(trailers=clear),
        response=PLAIN.response._replace(headers=clear, trailers=clear),
    )
    assert masked(before) == after


def test_an_exchange_without_secrets_is_returned_as_it_is() -> None:
    assert masked(PLAIN) is PLAIN
    assert masked(unanswered := PLAIN._replace(response=None)) is unanswered
    with_url = asked(path="/?a=b@c", headers=headers("Referer: http://a.org/?b=c"))
    assert masked(with_url) is with_url


def test_with_show_nothing_is_masked() -> None:
    exchange = asked(headers=headers("Authorization: Bearer abc"))
    assert Redactor(show=True).redact(exchange) is exchange


def test_a_body_is_left_alone() -> None:
    exchange = asked(body=b"password=abc", body_size=12)
    assert masked(exchange) is exchange


def test_equal_secrets_are_equal_in_a_capture_and_different_in_the_next() -> None:
    first, second = Redactor(), Redactor()
    exchange = asked(path="/?token=abc", headers=headers("Authorization: Bearer abc", "Cookie: a=abc; b=abd"))
    masks = []
    for redactor in (first, second):
        request = redactor.redact(exchange).request
        found = re.findall(r"\*\*\*3-[0-9a-f]{8}", f"{request.path} {[header.value for header in request.headers]}")
        assert len(found) == 4
        assert len(set(found[:3])) == 1
        assert found[3] != found[0]
        masks.append(found[0])
    assert masks[0] != masks[1]


def test_the_memory_of_masked_headers_is_bounded() -> None:
    redactor = Redactor(key=KEY)
    for number in range(2 * redact._CACHE_ENTRIES + 7):
        redactor.redact(asked(headers=headers(f"X-Api-Key: {number}")))
        assert len(redactor._masked) <= redact._CACHE_ENTRIES
    long = asked(headers=headers(f"X-Api-Key: {'x' * 5000}"))
    before = len(redactor._masked)
    assert redactor.redact(long).request.headers[0].value.startswith("***5000-")
    assert len(redactor._masked) == before


def test_the_same_header_is_masked_once() -> None:
    redactor = Redactor(key=KEY)
    exchanges = [asked(headers=headers("Cookie: a=abc")) for _ in range(2)]
    first, second = (redactor.redact(exchange).request.headers[0] for exchange in exchanges)
    assert first is second


SECRET = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=12, max_size=30)
TEXT = st.text(st.characters(), max_size=30)


@given(secret=SECRET, name=st.sampled_from(sorted(Redactor()._rules)), prefix=TEXT)
def test_no_secret_of_any_listed_header_survives(secret: str, name: str, prefix: str) -> None:
    value = {
        "authorization": f"Bearer {secret}", "cookie": f"a={secret}; {secret}", "set-cookie": f"a={secret}; b={secret}",
        **dict.fromkeys(redact._URLS, f"http://u:{secret}@h/?token={secret}"),
        **dict.fromkeys(redact._KEYS, prefix + secret),
    }.get(name, f"Basic {secret}")  # fmt: skip
    assert secret not in repr(masked(asked(headers=(Header(name, value, name),))))


@given(path=TEXT, authority=TEXT, name=st.sampled_from(sorted(Redactor()._rules)), value=TEXT)
def test_odd_text_never_raises(path: str, authority: str, name: str, value: str) -> None:
    masked(asked(path=path, authority=authority, headers=(Header(name, value, name),)))


def test_a_masked_url_still_has_the_same_parts() -> None:
    parts = urlsplit(path("http://bob:hunter2@example.com:81/a;b?x=1&key=abc&y=2") or "")
    assert (parts.username, parts.password, parts.hostname, parts.port) == (BOB, HUNTER2, "example.com", 81)
    assert (parts.path, parse_qs(parts.query)) == ("/a;b", {"x": ["1"], "key": [ABC], "y": ["2"]})


def test_metadata_of_a_grpc_call_is_masked_like_the_headers_that_it_comes_from() -> None:
    assert CALL.grpc is not None
    for name in ("request_metadata", "response_metadata", "trailing_metadata"):
        given_ = CALL.grpc._replace(**{name: headers("authorization: Bearer abc", "x-id: 7")})
        call = masked(CALL._replace(grpc=given_)).grpc
        assert call is not None
        assert getattr(call, name) == headers(f"authorization: Bearer {ABC}", "x-id: 7")
    plain = CALL._replace(grpc=CALL.grpc._replace(request_metadata=()))
    assert masked(plain).grpc is plain.grpc
