"""What a client is told when something cannot be done: OpenAI's error object, status and headers.

The OpenAI clients send a request again on 409, 429 and every 5xx. So an expected failure is a 4xx
other than 409, and what would fail again says so (``x-should-retry``).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

from omnipersona_cli.concepts.library import NoConceptError
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError, UsageError
from op_serve.worker import BusyError, NotReadyError, Stopped


class FieldError(UsageError):
    """A field of a request has no sensible value; ``field`` is its name. Without a hint of its own
    it points to the description, which says what the field may be."""

    def __init__(self, message: str, *, hint: str = "", field: str) -> None:
        super().__init__(message, hint=hint or f"/openapi.json says what {field!r} may be")
        self.field = field


class ModelError(MissingError):
    """The client asked for a model that is not the one served here."""


class DeniedError(PersonaError):
    """The client may not do this: ``status`` is 401, 403 or another 4xx."""

    def __init__(self, message: str, *, status: int, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An HTTP answer: ``error`` is the value of the key of that name. Beside what OpenAI's has, it
    says ``hint`` and ``exit_code``, for `op` itself."""

    status: int
    error: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": self.error}


def refusal_of(error: BaseException) -> Refusal:
    """How ``error`` is told. A bug is told without its words: they may hold anything."""
    if isinstance(error, BusyError):
        return _refusal(error, 429, "rate_limit_error", seconds=error.seconds)
    if isinstance(error, NotReadyError):
        return _refusal(error, 503, "server_error", seconds=error.seconds)
    if isinstance(error, DeniedError):
        return _refusal(error, error.status, "invalid_request_error", code=error.code)
    if isinstance(error, FieldError):
        return _refusal(error, 400, "invalid_request_error", param=error.field)
    if isinstance(error, ModelError):
        return _refusal(error, 404, "invalid_request_error", code="model_not_found", param="model")
    if isinstance(error, NoConceptError):
        missing = _refusal(error, 404, "invalid_request_error")
        missing.error.update(concept=error.name, near=error.near)
        return missing
    if isinstance(error, MissingError):
        return _refusal(error, 404, "invalid_request_error")
    if isinstance(error, ResourceError):
        return _refusal(error, 503, "server_error", retry=False)
    if isinstance(error, PersonaError):
        return _refusal(error, 400, "invalid_request_error")
    if isinstance(error, Stopped):
        stopped = NotReadyError("this was stopped before it was done", hint="send it again")
        return _refusal(stopped, 503, "server_error", retry=False)
    bug = PersonaError("this is a bug in op", hint="the server's log has the traceback")
    return _refusal(bug, 500, "server_error", code="bug", retry=False)


def trail_of(error: BaseException) -> str:
    """What kind of bug and where, without its words, which may be somebody's prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join([*lines, f"  {type(error).__name__}"])


def _refusal(
    error: PersonaError,
    status: int,
    kind: str,
    *,
    code: str = "",
    param: str | None = None,
    retry: bool | None = None,
    seconds: int | None = None,
) -> Refusal:
    headers = {} if retry is None else {"x-should-retry": "true" if retry else "false"}
    if seconds is not None:
        headers["retry-after"] = str(seconds)
    message = f"{error}. Hint: {error.hint}" if error.hint else str(error)
    return Refusal(
        status=status,
        error={
            "message": message,
            "type": kind,
            "param": param,
            "code": code or type(error).__name__,
            "hint": error.hint,
            "exit_code": error.exit_code,
        },
        headers=headers,
    )
