"""A running `op serve`, asked instead of opening a model here: no torch, no waiting for weights.

Only a server that a person names is asked (``--server`` or ``OMNIPERSONA_SERVER``). It gets the
words, the pictures as they are stored, and nothing else; concepts are those of its own library.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
from click.core import ParameterSource

from omnipersona_cli import __version__
from omnipersona_cli.cli.picture_output import Made
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError, UsageError
from omnipersona_cli.hookspecs import OnProgress, Progress
from omnipersona_cli.language.mentions import NAME_PATTERN
from omnipersona_cli.reading import Origin, decode_text, parse_json

VARIABLE, TOKEN = "OMNIPERSONA_SERVER", "OMNIPERSONA_TOKEN"
EXAMPLE = "http://127.0.0.1:8765"

CONNECT_SECONDS = 10
SILENCE_SECONDS = 60
"""A server that works says so every few seconds."""

LONGEST_LINE = 256 << 20
"""Bytes of one event; a picture in base64 is the longest."""

_OPENING = ("device", "dtype", "memory", "offload", "quantize")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is, and the token that it wants (which is never shown)."""

    host: str
    port: int
    path: str = ""
    tls: bool = False
    token: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Its address, without the token."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.tls else 80)
        port = "" if usual else f":{self.port}"
        return f"{'https' if self.tls else 'http'}://{name}{port}{self.path}"


class Address(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """The address that `op serve` printed, as a `Server`."""

    name = "url"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Server:
        """The server; UsageError for what is no address, or not one to send pictures to."""
        return value if isinstance(value, Server) else server_at(str(value), os.environ)


def server_at(address: str, environment: Mapping[str, str]) -> Server:
    """The server at ``address``, which may end in ``?token=…`` as `op serve` prints it.

    Raises UsageError for what is no address and for plain http to another machine, MissingError
    for another machine where the network is forbidden.
    """
    example = f"--server {EXAMPLE}"
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("the server's address is none", hint=example) from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.fragment:
        raise UsageError(
            "the server's address does not begin with http://HOST or https://HOST", hint=example
        )
    query = parse_qs(parts.query)
    if not query.keys() <= {"token"}:
        raise UsageError("the server's address holds more than a token", hint=example)
    here = _is_this_machine(host)
    if parts.scheme == "http" and not here:
        raise UsageError(
            f"plain http to {host}: anybody between could read the pictures and the token",
            hint=f"name an https address, or dig a tunnel: ssh -NL 8765:127.0.0.1:8765 {host}",
        )
    offline = environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if offline and not here:
        raise MissingError(
            f"the server {host} cannot be asked offline",
            hint="leave out --offline and HF_HUB_OFFLINE, or name a server on this machine",
        )
    token = query.get("token", [environment.get(TOKEN, "")])[-1].strip()
    if not (token.isascii() and (token.isprintable())):
        raise UsageError("the token holds characters that none has", hint=f"export {TOKEN}=…")
    tls = parts.scheme == "https"
    return Server(
        host=host,
        port=port or (443 if tls else 80),
        path=parts.path.rstrip("/").removesuffix("/v1"),
        tls=tls,
        token=token,
    )


def _named_by_a_person(
    ctx: click.Context, param: click.Parameter, value: Server | None
) -> Server | None:
    """A settings file may come with a folder of somebody else's, and would send pictures away."""
    if value is not None and ctx.get_parameter_source("server") == ParameterSource.DEFAULT_MAP:
        raise named_by_a_file()
    return value


def named_by_a_file(place: str = "") -> UsageError:
    """The refusal of a server that a settings file names, at ``place``."""
    return UsageError(
        f"a settings file names a server, which only you may do{place}",
        hint=f"take it out of the file, and export {VARIABLE}={EXAMPLE}",
    )


option = click.option(
    "--server",
    type=Address(),
    metavar="URL",
    envvar=VARIABLE,
    callback=_named_by_a_person,
    help="Ask this running `op serve`, with its concepts, instead of opening a model.",
)
"""``--server``, for commands that a server can answer."""


def ask(
    server: Server,
    question: str,
    *,
    images: Sequence[bytes] = (),
    on_progress: OnProgress,
    on_text: Callable[[str], None] | None = None,
    **more: Any,
) -> Mapping[str, Any]:
    """The answer as plain values, as `op ask --json` tells it; ``more`` are fields of /api/ask."""
    body = {"question": question, "images": [*map(_base64, images)] or None, **more}
    for event in _events(server, "/api/ask", body, on_progress):
        if event["event"] == "piece" and on_text is not None:
            on_text(str(event.get("text", "")))
        if event["event"] == "answer":
            return {key: value for key, value in event.items() if key != "event"}
    raise _broken_off(server)


def paint(
    server: Server,
    prompt: str,
    *,
    source: bytes | None = None,
    mask: bytes | None = None,
    on_progress: OnProgress,
    on_trace: Callable[[Mapping[str, Any]], None] | None = None,
    on_picture: Callable[[Made], None],
    **more: Any,
) -> None:
    """Paint, or change ``source``; ``more`` are fields of /api/paint."""
    body = {"prompt": prompt, "source": _base64(source), "mask": _base64(mask), **more}
    expected, got = int(more.get("n", 1)), 0
    for event in _events(server, "/api/paint", body, on_progress):
        if event["event"] == "trace" and on_trace is not None:
            on_trace(event)
        if event["event"] == "picture":
            got += 1
            on_picture(_made(server, event))
    if got < expected:
        raise _broken_off(server)


def asked_for(ctx: click.Context) -> dict[str, Any]:
    """The backend and the weights that a person named, for the server to check against its own.

    Raises UsageError where the command line says how to open a model, which nobody does here.
    """
    for name in _OPENING:
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--{name} says how to open a model, and the server's is open",
                hint=f"leave out --{name}, or --server",
            )
    named = {"backend": ctx.params.get("backend"), "weights": ctx.params.get("model")}
    return {key: value for key, value in named.items() if value}


def _events(
    server: Server, path: str, body: Mapping[str, Any], on_progress: OnProgress
) -> Iterator[dict[str, Any]]:
    """What the server says, line by line; what it says on the way is told."""
    with _asked(server, "GET", "/health") as response:
        health = _json(server, response.read(1 << 16))
    if "version" not in health or "waiting" not in health:
        raise _no_server(server)
    if health["version"] != __version__:
        raise MissingError(
            f"the server is op {str(health['version'])[:20]}, and this is {__version__}",
            hint="start it anew with this version: op serve",
        )
    if health.get("status") == "loading":
        on_progress(Progress(phase="loading", note="the server is loading its model ..."))
    sent = {key: value for key, value in body.items() if value is not None}
    behind = 0
    with _asked(server, "POST", path, json.dumps(sent).encode()) as response:
        if response.status != 200:
            raise _refused(server, response.status, _json(server, response.read(1 << 20)))
        while line := response.readline(LONGEST_LINE):
            event = _json(server, line)
            kind = event.setdefault("event", "")
            if kind == "error":
                raise _refused(server, int(event.get("status", 500)), {"error": event})
            if kind == "note":
                on_progress(Progress(phase=str(event.get("phase")), note=str(event.get("text"))))
            elif kind == "progress":
                on_progress(_progress(event))
            elif kind == "waiting" and event.get("position") not in (0, behind):
                behind = event["position"]
                others = "another request" if behind == 1 else f"{behind} other requests"
                on_progress(Progress(phase="waiting", note=f"waiting for {others} ..."))
            yield event


@contextmanager
def _asked(
    server: Server, method: str, path: str, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The response to one request, its connection closed afterwards: who leaves, ends the work."""
    kind = http.client.HTTPSConnection if server.tls else http.client.HTTPConnection
    connection = kind(server.host, server.port, timeout=CONNECT_SECONDS)
    headers = {"content-type": "application/json"} if body is not None else {}
    if server.token:
        headers["authorization"] = f"Bearer {server.token}"
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        raise MissingError(
            f"no server answers at {server.url}: {error.strerror or error}",
            hint=f"start it: op serve --port {server.port}; or leave out --server and {VARIABLE}",
        ) from error
    try:
        connection.sock.settimeout(SILENCE_SECONDS)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may say why before it closes
            connection.request(method, server.path + path, body=body, headers=headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(server) from error
    finally:
        connection.close()


def _json(server: Server, data: bytes) -> dict[str, Any]:
    with suppress(PersonaError):
        origin = Origin(name="the answer")
        value = parse_json(decode_text(data, origin), origin)
        if isinstance(value, dict):
            return value
    raise _no_server(server)


def _refused(server: Server, status: int, body: Mapping[str, Any]) -> PersonaError:
    """What the server said, with the exit code that the same failure has here."""
    error = body.get("error")
    if not isinstance(error, dict):
        return _no_server(server)
    if status == 401:
        wants = "does not take this token" if server.token else "wants its token"
        return UsageError(
            f"the server at {server.url} {wants}",
            hint=f"copy the whole address that op serve printed: --server '{EXAMPLE}/?token=…'",
        )
    hint = str(error.get("hint", ""))
    message = str(error.get("message", "")).removesuffix(f". Hint: {hint}")
    name, near = (_plain_name(error.get(key)) for key in ("concept", "near"))
    if error.get("code") == "NoConceptError" and name:
        message = f"the server has {message.removeprefix('there is ')} in its library"
        hint = (
            f"did you mean <{near}>?"
            if near
            else f'bring yours there: curl -H "Authorization: Bearer ${TOKEN}" --data-binary '
            f"@{name}.opconcept {server.url}/api/concepts"
        )
    told = PersonaError(message or f"the server answered {status}", hint=hint)
    code = error.get("exit_code")
    told.exit_code = code if code in (1, 2, 3) else 1
    return told


def _plain_name(value: Any) -> str:
    """What a server says is a name, where it is one: it is put into a command to be pasted."""
    return value if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value) else ""


def _no_server(server: Server) -> MissingError:
    return MissingError(
        f"what answers at {server.url} is no op serve",
        hint=f"start it: op serve --port 0; or leave out --server and {VARIABLE}",
    )


def _broken_off(server: Server) -> ResourceError:
    return ResourceError(
        f"the server at {server.url} ended before the answer was there",
        hint="look at what it printed, start it again: op serve",
    )


def _progress(event: Mapping[str, Any]) -> Progress:
    metrics = event.get("metrics")
    return Progress(
        phase=str(event.get("phase", "")),
        step=int(event.get("step", 0)),
        total=int(event.get("total", 0)),
        metrics=metrics if isinstance(metrics, dict) else {},
    )


def _made(server: Server, event: Mapping[str, Any]) -> Made:
    try:
        png = base64.b64decode(event.get("png", ""), validate=True)
    except (ValueError, TypeError):
        png = b""
    about, trace = event.get("about"), event.get("trace")
    if not (png.startswith(b"\x89PNG") and isinstance(about, dict) and isinstance(trace, dict)):
        raise _no_server(server)
    return Made(png=png, about=about, trace=trace)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
