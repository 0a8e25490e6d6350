"""A judge behind any OpenAI-compatible endpoint, asked anew for every item.

::

    OMNIPERSONA_VLM_URL      http://localhost:8000/v1   (…/chat/completions is asked)
    OMNIPERSONA_VLM_MODEL    the model's name there
    OMNIPERSONA_VLM_KEY      the key, where the endpoint wants one
    OMNIPERSONA_VLM_TIMEOUT  seconds for one whole call, 60 unless said
    OMNIPERSONA_VLM_PLAIN    1 allows http:// to another machine, where anybody between can read

Each item is a call of its own, without what was said before. An answer that is late, broken or not
in the asked form is asked for once more; then the item counts as failed, and no value is made up.
An endpoint that is not there, that refuses the key, or that fails many times in a row stops the
run: what is finished is kept, and the same command goes on.

The key goes into one header and nowhere else: an address with a user, a password or a query is
refused, and where an endpoint sends the key back it is struck out of what is kept or shown.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

import httpx2
from PIL.Image import Image

from omnipersona_cli.errors import MissingError, PersonaError, UsageError
from omnipersona_cli.hookspecs import JudgeItem, JudgeKind, Judgement
from omnipersona_cli.reading import Origin, decode_text, parse_json
from op_judge.questions import RULES, JudgeQuestion, question_of, read_reply, rules_digest

URL, MODEL, KEY, TIMEOUT, PLAIN = (
    f"OMNIPERSONA_VLM_{name}" for name in ("URL", "MODEL", "KEY", "TIMEOUT", "PLAIN")
)

EXAMPLE = "http://localhost:8000/v1"
SECONDS = 60.0
ATTEMPTS = 2
PAUSE = 1.0
"""Seconds between the two attempts, which a crowded server may need."""

MOST_IN_A_ROW = 8
"""Failed items after which the endpoint is taken to be down: failures alone measure nothing."""

LARGEST_REPLY = 1 << 20
"""Bytes; a grade takes a few hundred."""

LARGEST_SIDE = 1024
"""Pixels of the longer side of what is sent."""

LONGEST_DETAIL = 200

_SHORTEST_PART = 6  # characters: fewer of a key tell nothing, and may be a word

_REFUSED = {401: "refuses the key", 403: "refuses the key", 404: "has no such model or path"}
_STRUCK_OUT = "[key]"


class _NoScoreError(Exception):
    """An attempt that gave no score; the message says why."""


class _UnreachableError(Exception):
    """Nobody is there to ask."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, and as whom. The key is never shown."""

    url: str
    model: str
    key: str = field(repr=False)
    seconds: float

    @property
    def host(self) -> str:
        """What a person is told: host and port, no user, path or key."""
        url = httpx2.URL(self.url)
        return url.host if url.port is None else f"{url.host}:{url.port}"


class VlmJudge:
    """Grades answers, facts in pictures, edits and presence."""

    kinds: frozenset[JudgeKind] = frozenset(RULES)

    def __init__(self) -> None:
        self._endpoint = endpoint_from(os.environ)
        self._failed_in_a_row = 0
        self.id = f"vlm:{self._endpoint.model}@{rules_digest()}"
        self.remarks = (
            f"the judge vlm asks {self._endpoint.model} at {self._endpoint.host}: questions, facts "
            "and pictures are sent there",
        )

    def score(self, item: JudgeItem) -> Judgement:
        """The model's verdict; failed where two attempts gave none.

        Raises PersonaError where the endpoint is down or refuses us.
        """
        question = question_of(item)
        if question is None:
            return Judgement(score=None, detail="there is too little to judge", failed=True)
        body = json.dumps(request_body(self._endpoint.model, question)).encode()
        detail = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                asyncio.run(asyncio.sleep(PAUSE))
            try:
                reply = asyncio.run(_asked(self._endpoint, body))
            except _NoScoreError as error:
                detail = str(error)
                continue
            except _UnreachableError as error:
                if attempt + 1 < ATTEMPTS:
                    continue
                raise PersonaError(
                    f"the judge vlm cannot be reached at {self._endpoint.host}",
                    hint="start it, then run the same command again: finished items are kept",
                ) from error
            reply = without_key(reply, self._endpoint.key)
            score = read_reply(item.kind, reply)
            if score is not None:
                self._failed_in_a_row = 0
                return Judgement(score=score, detail=reply[:LONGEST_DETAIL])
            detail = f"not in the asked form: {reply[:LONGEST_DETAIL]!r}"
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MOST_IN_A_ROW:
            raise PersonaError(
                f"the judge vlm failed {MOST_IN_A_ROW} times in a row; the last time: {detail}",
                hint="mend the endpoint, then run the same command with --retry-failed: finished "
                "items are kept",
            )
        return Judgement(score=None, detail=detail, failed=True)


def endpoint_from(environment: Mapping[str, str]) -> Endpoint:
    """Where the environment says to ask.

    Raises MissingError where it does not say, or where the network is forbidden; UsageError for
    values that mean nothing.
    """
    url, model = environment.get(URL, "").strip(), environment.get(MODEL, "").strip()
    for name, value in ((URL, url), (MODEL, model)):
        if not value:
            raise MissingError(
                f"the judge vlm does not know whom to ask: {name} is not set",
                hint=f"export {URL}={EXAMPLE} {MODEL}=NAME",
            )
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise UsageError(f"{URL} is not an address", hint=f"export {URL}={EXAMPLE}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(
            f"{URL} must begin with http:// or https://", hint=f"export {URL}={EXAMPLE}"
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            f"{URL} holds more than an address: a user, a password or a query",
            hint=f"leave that out, and put the key into {KEY}",
        )
    on_this_machine = _is_local(parsed.host)
    if parsed.scheme == "http" and not on_this_machine and environment.get(PLAIN) != "1":
        raise UsageError(
            f"{URL} is plain http to {parsed.host}: anybody between could read the pictures and "
            "the key",
            hint=f"name an https address, or allow it: export {PLAIN}=1",
        )
    offline = environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if offline and not on_this_machine:
        raise MissingError(
            f"the judge vlm cannot ask {parsed.host} offline",
            hint="leave out --offline and HF_HUB_OFFLINE, or name an endpoint on this machine",
        )
    key = environment.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{KEY} holds characters that no key has", hint=f"set {KEY} again")
    try:
        seconds = float(environment.get(TIMEOUT, "") or SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise UsageError(
            f"{TIMEOUT} must be above 0 and at most 3600 seconds", hint=f"export {TIMEOUT}=60"
        )
    return Endpoint(url=url.rstrip("/"), model=model, key=key, seconds=seconds)


def without_key(text: str, key: str) -> str:
    """``text`` without the key, plain, quoted for an address or in base64, whole or in any part
    that would still tell half of it."""
    if not key:
        return text
    encoded = base64.b64encode(key.encode()).decode().rstrip("=")
    for form in dict.fromkeys((key, quote(key, safe=""), encoded)):
        text = text.replace(form, _STRUCK_OUT)
        part = max(len(form) // 2, _SHORTEST_PART)
        for begin in range(len(form) - part + 1):
            text = text.replace(form[begin : begin + part], _STRUCK_OUT)
    return text


def _is_local(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host.lower() == "localhost"


def request_body(model: str, question: JudgeQuestion) -> dict[str, Any]:
    """The call, as OpenAI's chat completions define it: one rule, one turn, nothing before it."""
    content: list[dict[str, Any]] = []
    if question.material:
        content.append({"type": "text", "text": question.material})
    for image in question.images:
        content.append({"type": "image_url", "image_url": {"url": data_url(image)}})
    return {
        "model": model,
        "temperature": 0,
        "max_tokens": 64,
        "messages": [
            {"role": "system", "content": question.rule},
            {"role": "user", "content": content},
        ],
    }


def data_url(image: Image) -> str:
    """The picture as PNG in a data URL, its longer side at most `LARGEST_SIDE`."""
    image = image.convert("RGB")
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def _asked(endpoint: Endpoint, body: bytes) -> str:
    """The reply's text. The deadline holds for the whole call: a server that sends a byte now and
    then would never run into a timeout between bytes."""
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    url = f"{endpoint.url}/chat/completions"
    try:
        async with (
            asyncio.timeout(endpoint.seconds),
            httpx2.AsyncClient(timeout=endpoint.seconds) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            _check_status(endpoint, response.status_code)
            received = b""
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > LARGEST_REPLY:
                    raise _NoScoreError(f"the reply has more than {LARGEST_REPLY:,} bytes")
    except (TimeoutError, httpx2.TimeoutException) as error:
        raise _NoScoreError(f"no reply in {endpoint.seconds:g} s") from error
    except httpx2.ConnectError as error:
        raise _UnreachableError from error
    except httpx2.HTTPError as error:
        raise _NoScoreError(f"the connection broke: {type(error).__name__}") from error
    return _text_of(received)


def _check_status(endpoint: Endpoint, status: int) -> None:
    """PersonaError where asking again is no use for any item, _NoScoreError where it may be."""
    if status == 200:
        return
    if status in _REFUSED or 300 <= status < 400:
        reason = _REFUSED.get(status, "has moved")
        raise PersonaError(
            f"the judge vlm at {endpoint.host} {reason} (HTTP {status})",
            hint=f"check {URL}, {MODEL} and {KEY}, then run the same command again: finished "
            "items are kept",
        )
    raise _NoScoreError(f"HTTP {status}")


def _text_of(received: bytes) -> str:
    """The text of the first choice."""
    origin = Origin(name="the reply")
    try:
        reply: Any = parse_json(decode_text(received, origin), origin)
        text = reply["choices"][0]["message"]["content"]
    except (PersonaError, LookupError, TypeError) as error:
        raise _NoScoreError("the reply is not a chat completion") from error
    if not isinstance(text, str):
        raise _NoScoreError("the reply holds no text")
    return text
