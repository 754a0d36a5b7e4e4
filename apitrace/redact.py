"""Exchange -> Exchange with its secrets masked, so that what is shown can be pasted into a ticket.

Masked are: the credentials of authorization headers, cookie values, the headers that carry keys and tokens, user
information in URLs and authorities, and well-known secret query parameters, also in headers that hold a URL. Bodies
are not touched: what is secret in one depends on the application.

A mask is comparable. "***43-9f3ac1d2" stands for 43 characters whose keyed hash is 9f3ac1d2: the same secret has the
same mask wherever it stands in a capture, and without the key, which is random and never leaves the process, nobody
can try guesses against it. What is public stays: the scheme of credentials, names of cookies and parameters,
attributes of Set-Cookie. An empty secret stays empty, because a client that sends none is what one is looking for.
A mask consists of characters that RFC 3986 allows in every part of a URL, so a masked URL still parses.

Where nothing is secret the very same Exchange is returned. Hot path: every exchange passes here.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from apitrace.exchange import Exchange, Grpc, Header, Headers, Request, Response

_CREDENTIALS = (
    "authorization", "proxy-authorization", "x-authorization", "x-forwarded-authorization",
    "x-original-authorization", "x-serverless-authorization",
)  # fmt: skip
"""RFC 9110, section 11.4: a scheme, then what is secret."""

_KEYS = (
    "api-key", "apikey", "x-api-key", "x-apikey", "x-api-token", "x-app-key", "x-functions-key", "x-goog-api-key",
    "x-rapidapi-key", "ocp-apim-subscription-key", "x-algolia-api-key", "dd-api-key", "dd-application-key",
    "x-honeycomb-team", "x-insert-key", "x-query-key", "x-secret", "x-secret-key", "x-client-secret",
    "cf-access-client-secret", "cf-access-jwt-assertion", "x-goog-iap-jwt-assertion", "x-jwt-assertion", "x-jwt-token",
    "token", "x-token", "x-auth-token", "x-auth-key", "x-access-token", "x-refresh-token", "x-id-token",
    "x-session-token", "x-session-id", "x-forwarded-access-token", "x-subject-token", "x-service-token",
    "x-csrf-token", "x-csrftoken", "x-xsrf-token", "x-amz-security-token", "x-aws-ec2-metadata-token",
    "x-amzn-oidc-accesstoken", "x-amzn-oidc-data", "x-ms-token-aad-access-token", "x-ms-token-aad-id-token",
    "x-vault-token", "x-consul-token", "x-nomad-token", "x-gitlab-token", "private-token", "job-token",
    "deploy-token", "x-shopify-access-token", "x-figma-token", "x-postmark-server-token", "x-plex-token",
    "x-emby-token", "x-redmine-api-key", "x-registry-auth", "x-registry-config", "dpop",
)  # fmt: skip
"""Headers whose whole value is secret: names of cloud providers, gateways, forges and API vendors. The Docker API sends
a registry's password in X-Registry-Auth."""

_URLS = (
    "referer", "location", "content-location", "destination", "refresh", "link", "x-original-url", "x-original-uri",
    "x-forwarded-uri", "x-rewrite-url", "x-envoy-original-path",
)  # fmt: skip
"""Headers that hold URLs."""

_COOKIE_ATTRIBUTES = frozenset({
    "expires", "max-age", "domain", "path", "secure", "httponly", "samesite", "partitioned", "priority", "version",
    "comment",
})  # fmt: skip
"""RFC 6265 section 4.1.1, those before it and those since. Anything else in a Set-Cookie may be another cookie."""

_SCHEMES = frozenset({
    "basic", "bearer", "concealed", "digest", "dpop", "gnap", "hoba", "mutual", "negotiate", "ntlm", "oauth",
    "privatetoken", "scram-sha-1", "scram-sha-256", "token", "vapid", "aws4-hmac-sha256",
})  # fmt: skip
"""IANA's register of authentication schemes and three more. Only asked for a value of one word: is it a scheme whose
credentials were forgotten, or a secret without scheme?"""

_PARAMETERS = (
    "access_token", "refresh_token", "id_token", "id_token_hint", "auth_token", "session_token", "private_token",
    "token", "jwt", "assertion", "client_assertion", "client_secret", "code_verifier", "api_key", "x_api_key", "key",
    "subscription_key", "secret", "secret_key", "password", "passwd", "pwd", "pass", "session", "session_id", "sid",
    "phpsessid", "sig", "signature", "x_amz_signature", "x_amz_security_token", "x_goog_signature",
)  # fmt: skip
"""Query parameters that are secret, "_" standing for "_", "-" or nothing, in any case."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
_USERINFO = re.compile(r"((?:^|:)//)([^/?#\s]*)@")
_PARAMETER = re.compile(
    rf"([?&#;](?:{'|'.join(name.replace('_', '[-_]?') for name in _PARAMETERS)})=)([^&#\s\"'<>]+)"
    r"|(;jsessionid=)([^/?&#;\s\"'<>]+)",
    re.IGNORECASE,
)

_KEY_BYTES = 16
_HASH_BYTES = 4
"""32 bits: among 1,000 secrets of a capture two share a mask with probability 1e-4."""

_CACHE_ENTRIES = 2048
_CACHED_VALUE_LEN = 4096
"""Masking costs 2 to 4 us, and clients repeat their headers. Together these bound the cache to 16 MiB at the worst;
4 KiB is what browsers allow a cookie (RFC 6265, section 6.1). A full cache starts anew."""


class Redactor:
    """Masks secrets. With `show` it returns what it was given."""

    def __init__(self, show: bool = False, key: bytes | None = None) -> None:
        """`key` is for tests, which want the same masks every time; a capture leaves it out."""
        self._show = show
        self._key = os.urandom(_KEY_BYTES) if key is None else key
        self._masked: dict[Header, Header] = {}
        self._rules: dict[str, Callable[[str], str]] = {
            **dict.fromkeys(_CREDENTIALS, self._credentials),
            **dict.fromkeys(_KEYS, self._mask),
            **dict.fromkeys(_URLS, self._url),
            "cookie": self._cookie,
            "set-cookie": self._set_cookie,
        }

    # -- hot: once per exchange --------------------------------------------------------------------------------------

    def redact(self, exchange: Exchange) -> Exchange:
        """Return the exchange with its secrets masked: the same object if there are none."""
        if self._show:
            return exchange
        request = self._request(exchange.request)
        response = exchange.response and self._response(exchange.response)
        grpc = exchange.grpc and self._grpc(exchange.grpc)
        if request is exchange.request and response is exchange.response and grpc is exchange.grpc:
            return exchange
        return exchange._replace(request=request, response=response, grpc=grpc)

    def _request(self, request: Request) -> Request:
        path, authority = request.path, request.authority
        headers, trailers = self._headers(request.headers), self._headers(request.trailers)
        if path is not None and ("=" in path or "@" in path):
            path = self._path(path)
        if authority is not None and "@" in authority:
            authority = self._authority(authority)
            headers = tuple(
                header._replace(value=self._authority(header.value)) if header.name == "host" else header
                for header in headers
            )
        masked = (path, authority, headers, trailers)
        if masked == (request.path, request.authority, request.headers, request.trailers):
            return request
        return request._replace(path=path, authority=authority, headers=headers, trailers=trailers)

    def _response(self, response: Response) -> Response:
        headers, trailers = self._headers(response.headers), self._headers(response.trailers)
        if (headers, trailers) == (response.headers, response.trailers):
            return response
        return response._replace(headers=headers, trailers=trailers)

    def _grpc(self, call: Grpc) -> Grpc:
        metadata = (call.request_metadata, call.response_metadata, call.trailing_metadata)
        masked = tuple(map(self._headers, metadata))
        if masked == metadata:
            return call
        request, response, trailing = masked
        return call._replace(request_metadata=request, response_metadata=response, trailing_metadata=trailing)

    def _headers(self, headers: Headers) -> Headers:
        rules = self._rules
        for name, _, _ in headers:
            if name in rules:
                break
        else:
            return headers
        return tuple([self._header(header) if header[0] in rules else header for header in headers])

    def _header(self, header: Header) -> Header:
        masked = self._masked.get(header)
        if masked is None:
            masked = header._replace(value=self._rules[header.name](header.value))
            if len(header.value) <= _CACHED_VALUE_LEN:
                if len(self._masked) >= _CACHE_ENTRIES:
                    self._masked.clear()
                self._masked[header] = masked
        return masked

    # -- rules: a value with its secrets -> without ------------------------------------------------------------------

    def _mask(self, secret: str) -> str:
        if not secret:
            return ""
        raw = secret.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(raw, key=self._key, digest_size=_HASH_BYTES).hexdigest()
        return f"***{len(secret)}-{digest}"

    def _credentials(self, value: str) -> str:
        scheme, _, secret = value.partition(" ")
        if secret and _SCHEME.fullmatch(scheme):
            return f"{scheme} {self._mask(secret.lstrip())}"
        return value if value.lower() in _SCHEMES else self._mask(value)

    def _cookie(self, value: str) -> str:
        return ";".join([self._cookie_pair(pair) for pair in value.split(";")])

    def _cookie_pair(self, pair: str) -> str:
        name, separator, secret = pair.partition("=")
        if separator:
            return f"{name}={self._mask(secret)}"
        bare = pair.lstrip()  # a value without a name, as browsers send it for "Set-Cookie: value"
        return pair[: len(pair) - len(bare)] + self._mask(bare)

    def _set_cookie(self, value: str) -> str:
        pair, *attributes = value.split(";")
        return ";".join([self._cookie_pair(pair), *map(self._cookie_attribute, attributes)])

    def _cookie_attribute(self, attribute: str) -> str:
        name, _, value = attribute.partition("=")
        known = name.strip().lower() in _COOKIE_ATTRIBUTES
        # "Path=/, sid=1": two cookies that somebody has folded into one field, which RFC 6265 section 3 forbids.
        return attribute if known and "=" not in value else self._cookie_pair(attribute)

    def _path(self, path: str) -> str:
        """A request target: origin-form, absolute-form, or authority-form, which has neither "/" nor "://"."""
        return self._url(path) if "/" in path or "?" in path else self._authority(path)

    def _url(self, value: str) -> str:
        if "@" in value:
            value = _USERINFO.sub(self._masked_userinfo, value)
        return _PARAMETER.sub(self._masked_parameter, value) if "=" in value else value

    def _masked_parameter(self, match: re.Match[str]) -> str:
        name, secret = match.group(1) or match.group(3), match.group(2) or match.group(4)
        return f"{name}{self._mask(secret)}"

    def _masked_userinfo(self, match: re.Match[str]) -> str:
        return f"{match.group(1)}{self._userinfo(match.group(2))}@"

    def _authority(self, value: str) -> str:
        userinfo, separator, host = value.rpartition("@")
        return f"{self._userinfo(userinfo)}{separator}{host}"

    def _userinfo(self, userinfo: str) -> str:
        """Mask both halves: tokens are found in either ("https://TOKEN:x-oauth-basic@host/")."""
        user, separator, password = userinfo.partition(":")
        return f"{self._mask(user)}{separator}{self._mask(password)}"
