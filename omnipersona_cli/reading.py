"""Text, JSON and YAML from outside, read in one bounded way by everybody.

What is read here may be a stranger's. So a file is a regular file of at most so many bytes; text is
decoded by its byte-order mark, else as UTF-8, else refused; JSON and YAML nest at most `DEPTH`
deep, hold at most `VALUES` values and no number that a float cannot hold, and never say a key
twice. YAML has no aliases, no tags, and every scalar of it is a string: ``12:30``, ``0123`` and
``yes`` stay what was written.

Each function takes an `Origin`: what the source is called, and which error says what is wrong.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeAlias

from omnipersona_cli.errors import MissingError, PersonaError, UsageError, nearest, shell_word

if TYPE_CHECKING:
    from yaml import Event

TEXT_LIMIT = 1 << 20
"""Bytes that a file of text may have where nothing else is said."""
DEPTH = 32
"""How deep lists and tables may nest."""
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
"""Possessive: nothing is remembered of a string's length, which may be a picture's."""

VALUES = 200_000
"""How many values one document may hold."""
TENSOR_HEADER = 32 << 20
"""Bytes that the header of a safetensors file of weights may have; those of released models have a
few hundred thousand."""
TENSOR_VALUES = 2_000_000
"""How many values such a header may hold, about ten for each tensor."""
DIGITS = 40
"""How many characters a whole number may have; a fraction ten times as many."""

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
"""A value of JSON."""
Tree: TypeAlias = "str | list[Tree] | dict[str, Tree]"
"""A value of YAML as it is read here: strings only."""

BINARY = getattr(os, "O_BINARY", 0)
"""What `os.open` wants for bytes on Windows; nothing elsewhere."""
_MARKS = (  # the longer mark first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where something comes from: ``name`` begins the sentence that says what is wrong with it
    ("the settings file op.yaml"), ``error`` and ``hint`` are how it is said."""

    name: str
    error: type[PersonaError] = UsageError
    hint: str = ""

    def refuse(self, what: str) -> NoReturn:
        """Raise the error: ``name``, then ``what``."""
        raise self.error(f"{self.name} {what}", hint=self.hint) from None


def read_bytes(path: Path, origin: Origin, *, limit: int = TEXT_LIMIT) -> bytes:
    """All of a regular file of at most ``limit`` bytes. Raises MissingError for no such file."""
    data, _ = read_start(path, origin, limit=limit + 1, largest=limit)
    if len(data) > limit:  # it grew
        origin.refuse(f"is larger than {said_size(limit)}")
    return data


def read_start(path: Path, origin: Origin, *, limit: int, largest: int) -> tuple[bytes, int]:
    """The first ``limit`` bytes of a regular file, and its size, which is at most ``largest``.

    A named pipe or a device is refused and never waited for.
    """
    with _opened(path, origin) as (file, size):
        if size > largest:
            origin.refuse(f"is larger than {said_size(largest)}")
        return file.read(limit), size


def read_tensor_header(path: Path, origin: Origin) -> tuple[dict[str, Any], int, int]:
    """The header of a safetensors file of any size (what each tensor is, and ``__metadata__``), the
    place of the first byte of tensors, and the file's size. Nothing else is read."""
    with _opened(path, origin) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if length > min(TENSOR_HEADER, size - 8):
            origin.refuse("is cut off in its header, or no safetensors file")
        text = file.read(length)
    header = parse_json(decode_text(text, origin), origin, most=TENSOR_VALUES)
    if not isinstance(header, dict):
        origin.refuse("has no table for a header")
    return header, 8 + length, size


@contextlib.contextmanager
def _opened(path: Path, origin: Origin) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open for reading, and its size in bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | BINARY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                origin.refuse("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a file")
            yield file, status.st_size
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"there is no file {path}", hint=where_to_look(path)) from None
    except IsADirectoryError:
        origin.refuse("is a folder")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise origin.error(f"{origin.name} cannot be read: {reason}", hint=origin.hint) from error


def decode_text(data: bytes, origin: Origin) -> str:
    """Text by its byte-order mark, else UTF-8; the mark is not part of it."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        origin.refuse("is not UTF-8 text")


def read_text(path: Path, origin: Origin, *, limit: int = TEXT_LIMIT) -> str:
    """`read_bytes`, decoded."""
    return decode_text(read_bytes(path, origin, limit=limit), origin)


def read_json(path: Path, origin: Origin, *, limit: int = TEXT_LIMIT) -> Plain:
    """The JSON in a file."""
    return parse_json(read_text(path, origin, limit=limit), origin)


def parse_json(text: str, origin: Origin, *, most: int = VALUES) -> Plain:
    """JSON of at most ``most`` values, without duplicate keys, NaN, infinities, endless numbers,
    deep nesting or halves of surrogate pairs."""

    def unique(pairs: list[tuple[str, Plain]]) -> dict[str, Plain]:
        table = dict(pairs)
        if len(table) != len(pairs):
            _refuse_twice(origin, [key for key, _ in pairs])
        return table

    def whole(number: str) -> int:
        if len(number) > DIGITS:
            raise ValueError(number)
        return int(number)

    def finite(number: str) -> float:
        value = float(number) if len(number) <= 10 * DIGITS else math.inf
        if not math.isfinite(value):
            raise ValueError(number)
        return value

    if len(text) > most:  # counted before anything is built of it
        bare = _STRINGS.sub("", text)
        if bare.count(",") + bare.count("[") + bare.count("{") > 2 * most:
            origin.refuse(f"holds more than {most:,} values")
    value: Plain
    try:
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=finite,
            parse_constant=finite,
        )
    except RecursionError:
        origin.refuse("is nested too deep")
    except ValueError:
        origin.refuse("is not proper JSON")
    _check_nesting(value, origin, most)
    if "\\u" in text:  # nothing else makes half a pair
        for part in strings_of(value):
            _check_whole_characters(part, origin)
    return value


def parse_yaml(text: str, origin: Origin) -> Tree:
    """One YAML document; every scalar is a string, and nothing at all is an empty string.

    Says the line where something is wrong.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _tree(yaml.parse(text, Loader=loader), origin)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        origin.refuse(f"is not YAML{f', line {mark.line + 1}' if mark else ''}")


def strings_of(value: Plain) -> Iterator[str]:
    """Every string in a value of JSON, keys included."""
    rest: list[Plain] = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            rest.extend(part)
        elif isinstance(part, dict):
            yield from part
            rest.extend(part.values())


def where_to_look(path: Path | str) -> str:
    """A hint about a file or folder that is not there: the name that looks like it, or the nearest
    folder that exists; what to do about an address, or about ``~`` that no shell has replaced."""
    text = str(path)
    address = re.match(r"(https?):/+(.+)", text)
    if address:
        url = f"{address[1]}://{address[2]}"
        return f"nothing is fetched from there; save it first: curl -LO {shell_word(url)}"
    if text.startswith("~"):
        whole = shell_word(os.path.expanduser(text))
        return f"a shell replaces ~ only outside quotes; write {whole}"
    parent = Path(path).parent
    folder = next((place for place in (parent, *parent.parents) if place.is_dir()), Path())
    with contextlib.suppress(OSError):
        names = [entry.name for entry in folder.iterdir()] if folder == parent else []
        near = nearest(Path(path).name, names)
        if near:
            return f"did you mean {shell_word(folder / near)}?"
    return f"ls {shell_word(folder)}"


def said_size(size: int) -> str:
    """Bytes as a person says them."""
    if size >= 1 << 20:
        return f"{size / (1 << 20):.4g} MiB"
    return f"{size / 1024:.4g} KiB" if size >= 1024 else f"{size} bytes"


def _tree(events: Iterator[Event], origin: Origin) -> Tree:
    """The document that parser events describe. A table's keys wait in ``keys``."""
    import yaml

    root: list[Tree] = []
    stack: list[list[Tree] | dict[str, Tree]] = [root]
    keys: list[str | None] = [None]
    count = documents = 0

    def put(value: Tree, line: int) -> None:
        inner = stack[-1]
        if isinstance(inner, list):
            inner.append(value)
        elif keys[-1] is None:
            if not isinstance(value, str):
                origin.refuse(f"has a key that is no text, line {line}")
            if value in inner:
                origin.refuse(f"says the key {value[:40]!a} twice, line {line}")
            keys[-1] = value
        else:
            inner[keys[-1]] = value
            keys[-1] = None

    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                origin.refuse(f"holds more than one document, line {line}")
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            origin.refuse(f"uses an alias (& or *), line {line}; put such text in quotes")
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if count > VALUES:
                origin.refuse(f"holds more than {VALUES} values")
            if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
                origin.refuse(f"uses a tag (!), line {line}; put such text in quotes")
            if isinstance(event, yaml.ScalarEvent):
                put(event.value, line)
                continue
            opened: list[Tree] | dict[str, Tree] = (
                {} if isinstance(event, yaml.MappingStartEvent) else []
            )
            put(opened, line)
            stack.append(opened)
            keys.append(None)
            if len(stack) > DEPTH + 1:
                origin.refuse(f"is nested too deep, line {line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            keys.pop()
    return root[0] if root else ""


def _check_nesting(value: Plain, origin: Origin, most: int) -> None:
    layer: list[Any] = [value]
    depth = count = 0
    while layer := [
        child
        for parent in layer
        if isinstance(parent, dict | list)
        for child in (parent.values() if isinstance(parent, dict) else parent)
    ]:
        depth += 1
        count += len(layer)
        if depth > DEPTH:
            origin.refuse("is nested too deep")
        if count > most:
            origin.refuse(f"holds more than {most} values")


def _check_whole_characters(text: str, origin: Origin) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        origin.refuse("holds half a character (a lone surrogate)")


def _refuse_twice(origin: Origin, keys: list[str]) -> NoReturn:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            origin.refuse(f"says the key {key[:40]!a} twice")
        seen.add(key)
    raise AssertionError("no key is said twice")
