"""What the strings in a pack's header mean, and how they are written.

`omnipersona_cli.concepts.pack` documents the format; this is its metadata half. No numpy.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn

from omnipersona_cli.concepts import container
from omnipersona_cli.concepts.container import RawTensor
from omnipersona_cli.concepts.facts import FACT_COUNT, Fact, clean_fact
from omnipersona_cli.errors import PackError
from omnipersona_cli.language.mentions import NAME_PATTERN

SLOT_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
WORD_LENGTH = 64
"""The most characters of a class word or a kind."""

_CORE = ("id", "und", "gen")
SLOT_TENSOR = re.compile(rf"slot/({SLOT_PATTERN})/(.+)")
TOKENS = re.compile(r"id|und|gen|deep\.[0-9]+\.(und|gen)")
_DERIVED = frozenset(
    f"modelspec.{key}"
    for key in (
        "architecture",
        "date",
        "hash_sha256",
        "implementation",
        "license",
        "sai_model_spec",
        "title",
        "trigger_phrase",
        "usage_hint",
    )
)
_OWN = frozenset(
    ("op.format", "op.concept", "op.facts", "op.slots", "op.eval", "op.provenance", *_DERIVED)
)
CHECK_HINT = "op concepts verify FILE lists all that is wrong with it"


@dataclass(frozen=True, kw_only=True)
class TensorShape:
    """A tensor without its values."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SlotHeader:
    """A slot without its values; ``hash`` is ``op.hash.<slot>``."""

    tensors: Mapping[str, TensorShape]
    about: Mapping[str, Any]
    hash: str


@dataclass(frozen=True, kw_only=True)
class PackHeader:
    """Everything of a pack but the values of tensors. ``size`` is the file's, in bytes."""

    name: str
    aliases: tuple[str, ...]
    class_word: str
    kind: str
    facts: tuple[Fact, ...]
    slots: Mapping[str, SlotHeader]
    evals: Mapping[str, Any]
    provenance: Mapping[str, Any]
    licence: str
    date: str
    format: str
    more: Mapping[str, Any]
    extra_metadata: Mapping[str, str]
    extra_tensors: Mapping[str, TensorShape]
    tensor_hash: str
    hash: str
    size: int


def interpret(opened: container.Header) -> PackHeader:
    """What the strings and the names of tensors of a safetensors header mean."""
    metadata = opened.metadata
    concept = _table(metadata, "op.concept")
    name = concept.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        _refuse("its concept has no proper name")
    aliases = concept.get("aliases", [])
    if not isinstance(aliases, list) or not all(
        isinstance(alias, str) and re.fullmatch(NAME_PATTERN, alias) for alias in aliases
    ):
        _refuse("its aliases are not names")
    words = {key: concept.get(key, "") for key in ("class_word", "kind")}
    for key, word in words.items():
        if not isinstance(word, str) or len(word) > WORD_LENGTH or clean_fact(word) != word:
            _refuse(f"its {key} is not a plain word")
    tensor_hash = metadata.get("modelspec.hash_sha256", "")
    if not re.fullmatch(r"0x[0-9a-f]{64}", tensor_hash):
        _refuse("modelspec.hash_sha256 is missing")
    slots = _interpret_slots(opened)
    return PackHeader(
        name=name,
        aliases=tuple(aliases),
        class_word=words["class_word"],
        kind=words["kind"],
        facts=_interpret_facts(metadata, name),
        slots=slots,
        evals=_table(metadata, "op.eval"),
        provenance=_table(metadata, "op.provenance"),
        licence=_plain(metadata.get("modelspec.license", ""), "modelspec.license"),
        date=_plain(metadata.get("modelspec.date", ""), "modelspec.date"),
        format=metadata["op.format"],
        more={
            key: value
            for key, value in concept.items()
            if key not in {"name", "aliases", "class_word", "kind"}
        },
        extra_metadata={
            key: value
            for key, value in metadata.items()
            if key not in _OWN and not (key.startswith("op.hash.") and key[8:] in slots)
        },
        extra_tensors={
            key: TensorShape(dtype=entry.dtype, shape=entry.shape)
            for key, entry in opened.entries.items()
            if not key.startswith("slot/")
        },
        tensor_hash=tensor_hash,
        hash=opened.hash,
        size=opened.size,
    )


def _interpret_slots(opened: container.Header) -> dict[str, SlotHeader]:
    abouts = _table(opened.metadata, "op.slots")
    shapes: dict[str, dict[str, TensorShape]] = {name: {} for name in sorted(abouts)}
    for key, entry in sorted(opened.entries.items()):
        if not key.startswith("slot/"):
            continue
        found = SLOT_TENSOR.fullmatch(key)
        if found is None or found[1] not in shapes:
            _refuse(f"tensor {key} belongs to no slot that op.slots describes")
        shapes[found[1]][found[2]] = TensorShape(dtype=entry.dtype, shape=entry.shape)
    slots = {}
    for name, tensors in shapes.items():
        if not re.fullmatch(SLOT_PATTERN, name) or not isinstance(abouts[name], dict):
            _refuse("op.slots does not describe slots")
        said = opened.metadata.get(f"op.hash.{name}", "")
        if not re.fullmatch(r"[0-9a-f]{64}", said):
            _refuse(f"op.hash.{name} is missing")
        _check_shapes(name, tensors)
        slots[name] = SlotHeader(tensors=tensors, about=abouts[name], hash=said)
    return slots


def _check_shapes(slot: str, tensors: Mapping[str, TensorShape]) -> None:
    for key in _CORE:
        if key not in tensors:
            _refuse(f"slot {slot} has no tensor {key}")
    width = tensors["id"].shape[-1] if len(tensors["id"].shape) == 2 else 0
    if tensors["id"].shape != (1, width) or not width:
        _refuse(f"slot {slot}: id is not one row")
    for key, tensor in tensors.items():
        if TOKENS.fullmatch(key) and (len(tensor.shape) != 2 or tensor.shape[1] != width):
            _refuse(f"slot {slot}: {key} is not rows of width {width}")


def _interpret_facts(metadata: Mapping[str, str], name: str) -> tuple[Fact, ...]:
    said = container.parse_json(metadata.get("op.facts", "[]"), "op.facts")
    if not isinstance(said, list) or len(said) > FACT_COUNT:
        _refuse(f"its facts are not a list of at most {FACT_COUNT}")
    facts = []
    for value in said:
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            _refuse("a fact has no text")
        more = {key: rest for key, rest in value.items() if key not in {"text", "source"}}
        _check_plain(more, "op.facts")
        if text := clean_fact(value["text"], name=name):
            source = "auto" if value.get("source") == "auto" else "user"
            facts.append(Fact(text=text, source=source, more=more))  # type: ignore[arg-type]
    return tuple(facts)


def build(header: PackHeader, tensors: Mapping[str, RawTensor]) -> bytes:
    """The canonical bytes of a pack; hashes are computed anew."""
    bad = next(
        (key for key, raw in tensors.items() if raw.dtype not in container.BYTES_PER_VALUE), ""
    )
    if bad:
        _refuse(f"tensor {bad} has the type {tensors[bad].dtype}")
    metadata = {
        **header.extra_metadata,
        **_modelspec(header),
        "modelspec.hash_sha256": "0x" + sha256(container.lay_out(tensors)[1]).hexdigest(),
        "op.format": header.format,
        "op.concept": _to_json(
            {
                **header.more,
                "name": header.name,
                "aliases": list(header.aliases),
                "class_word": header.class_word,
                "kind": header.kind,
            }
        ),
        "op.facts": _to_json(
            [
                {
                    **fact.more,
                    "text": clean_fact(fact.text, name=header.name),
                    "source": fact.source,
                }
                for fact in header.facts
            ]
        ),
        "op.slots": _to_json({name: dict(slot.about) for name, slot in header.slots.items()}),
        "op.eval": _to_json(dict(header.evals)),
        "op.provenance": _to_json(dict(header.provenance)),
        **{f"op.hash.{name}": slot_hash(name, tensors) for name in header.slots},
    }
    try:
        data = container.to_bytes(metadata, tensors)
    except UnicodeEncodeError:
        _refuse("its text is not Unicode")
    interpret(container.parse_header(data, len(data)))  # also the limits
    return data


def _modelspec(header: PackHeader) -> dict[str, str]:
    """What other programs may show; all of it follows from the rest."""
    title = f"{header.name} ({header.class_word})" if header.class_word else header.name
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{'+'.join(sorted(header.slots)) or 'none'}/op-concept",
        "modelspec.implementation": "omnipersona",
        "modelspec.title": title,
        "modelspec.trigger_phrase": f"<{header.name}>",
        "modelspec.usage_hint": f'op gen "<{header.name}> at the beach"',
        **({"modelspec.date": header.date} if header.date else {}),
        **({"modelspec.license": header.licence} if header.licence else {}),
    }


def slot_hash(slot: str, tensors: Mapping[str, RawTensor]) -> str:
    digest = sha256()
    prefix = f"slot/{slot}/"
    for key in sorted(key for key in tensors if key.startswith(prefix)):
        raw = tensors[key]
        line = _to_json([key[len(prefix) :], raw.dtype, list(raw.shape)])
        digest.update(line.encode() + b"\n")
        digest.update(raw.data)
    return digest.hexdigest()


def hash_problems(header: PackHeader, tensors: Mapping[str, RawTensor]) -> Iterator[str]:
    for name, slot in header.slots.items():
        if slot_hash(name, tensors) != slot.hash:
            yield f"slot {name} was changed or damaged: its hash differs"
    whole = sha256(b"".join(raw.data for raw in tensors.values())).hexdigest()
    if f"0x{whole}" != header.tensor_hash:
        yield "its tensors were changed or damaged: their hash differs"


def _table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object of the metadata, free of control characters."""
    value = container.parse_json(metadata.get(key, "{}"), key)
    if not isinstance(value, dict):
        _refuse(f"{key} is not a table")
    _check_plain(value, key)
    return value


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, str):
        _plain(value, where)
    elif isinstance(value, dict):
        for key, part in value.items():
            _plain(key, where)
            _check_plain(part, where)
    elif isinstance(value, list):
        for part in value:
            _check_plain(part, where)


def _plain(text: str, where: str) -> str:
    """``text``, refused where it could move a cursor or reverse a line."""
    if not text.isascii() or not text.isprintable():
        for character in text:
            if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
                _refuse(f"{where} holds a control character (U+{ord(character):04X})")
    return text


def _to_json(value: Any) -> str:
    try:
        return json.dumps(
            value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (ValueError, TypeError) as error:
        raise PackError(
            f"a pack keeps text and finite numbers only: {error}", hint="op doctor"
        ) from None


def _refuse(what: str) -> NoReturn:
    raise PackError(what, hint=CHECK_HINT)
