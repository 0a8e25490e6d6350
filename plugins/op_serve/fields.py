"""Fields of a request, whether JSON or a form sent them: the right type, or a `FieldError`.

A form sends numbers and booleans as text. Keys that nobody reads are ignored, as clients of this
dialect expect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omnipersona_cli.backend import Box
from omnipersona_cli.errors import UsageError
from omnipersona_cli.reading import Origin, Plain, parse_json
from op_serve.refusals import FieldError

Fields = Mapping[str, Any]

LONGEST_TEXT = 20_000
"""The most characters of one text; what is a sensible request is the engine's business."""


def text(fields: Fields, name: str, default: str | None = None) -> str:
    """A text; without a default it has to be there."""
    value = _last(fields.get(name))
    if value is None:
        if default is None:
            raise FieldError(f"{name} is missing", hint=f'send "{name}": "..."', field=name)
        return default
    if not isinstance(value, str):
        raise FieldError(f"{name} is not a text", hint=f'send "{name}": "..."', field=name)
    if len(value) > LONGEST_TEXT:
        raise FieldError(f"{name} is longer than {LONGEST_TEXT:,} characters", field=name)
    return value


def whole(fields: Fields, *names: str, low: int, high: int) -> int | None:
    """A whole number under the first of ``names`` that is there; None where none is."""
    name, value = _first(fields, names)
    if value is None:
        return None
    number = _number(name, value)
    if number != int(number) or not low <= number <= high:
        raise FieldError(
            f"{name} is not a whole number from {low} to {high}",
            hint=f"leave it out, or send {low}",
            field=name,
        )
    return int(number)


def real(fields: Fields, *names: str, low: float, high: float) -> float | None:
    """A number, as `whole`."""
    name, value = _first(fields, names)
    if value is None:
        return None
    number = _number(name, value)
    if not low <= number <= high:
        raise FieldError(f"{name} is not a number from {low:g} to {high:g}", field=name)
    return number


def flag(fields: Fields, name: str, default: bool) -> bool:
    """True or false."""
    value = _last(fields.get(name))
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise FieldError(f"{name} is neither true nor false", field=name)


def names(fields: Fields, name: str) -> tuple[str, ...]:
    """Names of concepts: a list, or a text with commas."""
    value = fields.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise FieldError(f"{name} is not a list of names", hint=f'"{name}": ["bo"]', field=name)
    parts = [piece.strip() for part in value for piece in part.split(",")]
    return tuple(part for part in parts if part)


def texts(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of texts."""
    value = fields.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise FieldError(f"{name} is not a list of texts", field=name)
    return tuple(value)


def box(fields: Fields, name: str) -> Box | None:
    """``x, y, width, height`` in pixels, as (left, top, right, bottom)."""
    value = fields.get(name)
    if value is None:
        return None
    parts = re.split(r"[\s,]+", value.strip(" []")) if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or len(parts) != 4:
        raise FieldError(f"{name} is not x, y, width, height", field=name)
    x, y, width, height = (_pixel(name, part) for part in parts)
    if min(width, height) < 1:
        raise FieldError(f"{name} is empty", hint="x, y, width, height", field=name)
    return x, y, x + width, y + height


def size(fields: Fields, name: str) -> tuple[int, int] | None:
    """``WxH`` as two numbers; None for none, and for "auto"."""
    value = text(fields, name, "auto").strip().lower()
    if value in ("", "auto"):
        return None
    match = re.fullmatch(r"(\d{1,5})\s*x\s*(\d{1,5})", value)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise FieldError(f"{name} is not a size", hint='"auto" or "512x512"', field=name)
    return int(match[1]), int(match[2])


def choice(fields: Fields, name: str, known: Sequence[str], default: str) -> str:
    """One of a few words."""
    value = text(fields, name, default) or default
    if value not in known:
        raise FieldError(f"{name} is not one of {', '.join(known)}", field=name)
    return value


def mapping(fields: Fields, name: str) -> Mapping[str, Any]:
    """An object; a form sends it as JSON text."""
    value = fields.get(name)
    if value is None:
        return {}
    if isinstance(value, str):
        value = json_text(value, name)
    if not isinstance(value, Mapping):
        raise FieldError(f"{name} is not an object", field=name)
    return value


def json_text(text: str, name: str, *, hint: str = "") -> Plain:
    """What is written as JSON, in the field ``name`` or in the whole body ("")."""
    try:
        return parse_json(text, Origin(name=name or "the body"))
    except UsageError as error:
        raise FieldError(str(error), hint=hint, field=name) from error


def _first(fields: Fields, known: Sequence[str]) -> tuple[str, Any]:
    for name in known:
        if (value := _last(fields.get(name))) is not None:
            return name, value
    return known[0], None


def _last(value: Any) -> Any:
    """A form that repeats a field means the last; an empty part means none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return None if value == "" else value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise FieldError(f"{name} is not a number", field=name)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise FieldError(f"{name} is not a number", field=name) from error
    if not math.isfinite(number):
        raise FieldError(f"{name} is not a number", field=name)
    return number


def _pixel(name: str, value: Any) -> int:
    number = _number(name, value)
    if number != int(number) or not -100_000 <= number <= 100_000:
        raise FieldError(f"{name} is not in whole pixels", field=name)
    return int(number)
