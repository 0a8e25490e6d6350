"""What every request passes before anything looks at it: names, size, origin, token.

A server on a person's own machine is reached by every page that her browser shows. So the Host has
to be ours (a name that was bound to this address does not get in), what changes anything has to
come from our own page or to carry the token, and nothing is readable from elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import secrets
import time
from dataclasses import dataclass, field
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from op_serve.refusals import DeniedError, refusal_of, trail_of
from op_serve.waiting import model_seconds

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Host names that mean this machine."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

MOST_BYTES = 48 << 20
"""The largest body of a request."""

MOST_PHOTO_BYTES = 256 << 20
"""The largest body where photos to learn from are sent."""

PHOTO_PATHS = ("/api/drafts",)

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Sent with every answer that does not bring its own."""

log = logging.getLogger("op_serve")
access = logging.getLogger("op_serve.access")


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who gets in. ``token`` "" lets everybody on this machine in; ``hosts`` are the names under
    which the server may be addressed, ``origins`` pages of other servers that may talk to it."""

    token: str
    port: int
    hosts: frozenset[str] = LOOPBACK
    origins: frozenset[str] = field(default_factory=frozenset)

    @property
    def cookie(self) -> str:
        """The cookie's name: servers on other ports of this machine share the jar."""
        return f"op_{self.port}"

    @property
    def cookie_value(self) -> str:
        """What a browser keeps instead of the token."""
        return hmac.new(self.token.encode(), b"omnipersona cookie", sha256).hexdigest()


class Guard:
    """ASGI middleware around everything, static files and unknown paths included."""

    def __init__(self, app: ASGIApp, *, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks WebSocket
        began, status = time.monotonic(), 0
        model_seconds.set(None)  # requests of one connection may share a context
        request_id = f"req_{secrets.token_hex(8)}"
        origin = Headers(scope=scope).get("origin", "")

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                worked = model_seconds.get()
                if worked is not None:
                    headers["server-timing"] = f"model;dur={1000 * worked:.2f}"
                if origin in self.door.origins:
                    headers["access-control-allow-origin"] = origin
                    headers["cross-origin-resource-policy"] = "cross-origin"
                    headers.add_vary_header("origin")
            await send(message)

        try:
            answer = self._answer(scope)
            if answer is not None:
                await answer(scope, receive, answered)
            else:
                await self.app(scope, _limited(receive, _most_bytes(scope["path"])), answered)
        except Exception as error:  # a bug: told without its words, to the client and to the log
            log.error("a bug at %s %s\n%s", scope["method"], scope["path"], trail_of(error))
            if not status:
                refused = refusal_of(error)
                told = JSONResponse(refused.body, refused.status, headers=refused.headers)
                await told(scope, receive, answered)
        finally:
            took = 1000 * (time.monotonic() - began)
            access.info("%s %s %d %.0f ms", scope["method"], scope["path"], status, took)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer to a request that does not get in; None for one that does."""
        headers = Headers(scope=scope)
        try:
            _check_host(headers, self.door.hosts)
            _check_length(headers, _most_bytes(scope["path"]))
            if scope["method"] == "OPTIONS":
                return _options(headers, self.door)
            bearer = _is_token(_bearer(headers), self.door.token)
            if scope["method"] not in SAFE_METHODS or _is_ours_alone(scope["path"]):
                if not bearer:
                    _check_origin(headers, self.door.origins)
            if not self.door.token or scope["path"] == "/health" or bearer:
                return None
            return self._with_cookie(scope, headers)
        except DeniedError as error:
            refused = refusal_of(error)
            return JSONResponse(refused.body, refused.status, headers=refused.headers)

    def _with_cookie(self, scope: Scope, headers: Headers) -> Response | None:
        """None for a browser that was let in before, or an A1111 client; the way in for others."""
        door = self.door
        if same(_cookie(headers, door.cookie), door.cookie_value):
            return None
        if _is_token(_basic(headers), door.token):
            return None
        if scope["path"] == "/" and scope["method"] == "GET":
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            token = query.pop("token", None)
            if token is not None and _is_token(token, door.token):
                rest = f"?{urlencode(query)}" if query else ""
                response: Response = RedirectResponse(f"/{rest}", status_code=303)
                response.set_cookie(
                    door.cookie, door.cookie_value, httponly=True, samesite="strict", path="/"
                )
                return response
            return HTMLResponse(_page_for_strangers(wrong=token is not None), status_code=401)
        raise DeniedError(
            "a token is needed here",
            hint="send the header `Authorization: Bearer TOKEN`; op serve prints the token",
            status=401,
            code="invalid_api_key",
        )


def same(given: str, wanted: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def host_of(authority: str) -> str:
    """The name in a Host header, its port left out; "[::1]" keeps its brackets."""
    if authority.startswith("["):
        return authority[: authority.find("]") + 1].lower()
    return authority.partition(":")[0].lower()


def _is_token(given: str, token: str) -> bool:
    return bool(token) and same(given, token)


def _is_ours_alone(path: str) -> bool:
    """Paths that only our own page and clients with a token may even read."""
    return path.startswith(("/api/", "/mcp"))


def _most_bytes(path: str) -> int:
    return MOST_PHOTO_BYTES if path.startswith(PHOTO_PATHS) else MOST_BYTES


def _check_host(headers: Headers, hosts: frozenset[str]) -> None:
    if host_of(headers.get("host", "")) not in hosts:
        raise DeniedError(
            "this server does not go by that name",
            hint="use the address that op serve printed, or start it with --allow-host NAME",
            status=400,
            code="unknown_host",
        )


def _check_length(headers: Headers, most: int) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        raise _too_much(most)


def _check_origin(headers: Headers, origins: frozenset[str]) -> None:
    """Refuse what a page of another server asks, by what browsers say of themselves."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and origin in origins:
        return
    foreign = origin is not None and origin.partition("://")[2] != headers.get("host", "")
    if foreign or site not in (None, "same-origin", "none"):
        raise DeniedError(
            "pages of other servers may not use this one",
            hint="send a token, or start op serve with --allow-origin ORIGIN",
            status=403,
            code="foreign_origin",
        )


def _options(headers: Headers, door: Door) -> Response:
    """The answer to OPTIONS: only pages that were named are told that they may."""
    told = {"allow": "GET, POST, PUT, DELETE, OPTIONS"}
    if headers.get("origin", "") in door.origins:
        asked = headers.get("access-control-request-headers", "").lower().split(",")
        may = [name.strip() for name in asked if _is_plain_header(name.strip())]
        told["access-control-allow-methods"] = "GET, POST, PUT, DELETE"
        told["access-control-allow-headers"] = ", ".join(may) or "content-type"
    return Response(status_code=204, headers=told)


def _is_plain_header(name: str) -> bool:
    """Headers that clients of the dialect send."""
    return name in ("authorization", "content-type") or name.startswith("x-stainless-")


def _bearer(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _basic(headers: Headers) -> str:
    """The password of HTTP Basic, as clients of A1111 send it."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _limited(receive: Receive, most: int) -> Receive:
    """``receive`` that counts: a body may come in pieces, without saying how long it is."""
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise _too_much(most)
        return message

    return counted


def _too_much(most: int) -> DeniedError:
    return DeniedError(
        f"the request is larger than {most >> 20} MB",
        hint="send smaller pictures",
        status=413,
        code="too_large",
    )


def _page_for_strangers(*, wrong: bool) -> str:
    notice = "That is not the token." if wrong else "This studio opens with a token."
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>omnipersona</title><h1>omnipersona</h1><p>{notice} "
        "<code>op serve</code> printed it, with the address to open.</p>"
        '<form action="/"><label>Token <input name="token" type="password" required '
        'autocomplete="off"></label> <button>Open</button></form></html>'
    )
