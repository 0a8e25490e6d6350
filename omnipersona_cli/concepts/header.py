"""What the strings in a pack's header mean, and how they are written.

`omnipersona_cli.concepts.pack` documents the format; this is its metadata half. No numpy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn

from omnipersona_cli.concepts import container
from omnipersona_cli.concepts.container import RawTensor
from omnipersona_cli.concepts.digest import (
    DIGEST,
    TENSORS,
    canonical,
    check_seal,
    is_sealed,
    seal,
    tensors_hash,
)
from omnipersona_cli.concepts.facts import FACT_COUNT, WORD_LENGTH, Fact, Source, clean_fact
from omnipersona_cli.errors import PackError
from omnipersona_cli.language.mentions import NAME_PATTERN
from omnipersona_cli.reading import Origin, parse_json

FORMAT = "1.1"
"""What is written. A minor version above it is kept, because its keys are."""
SLOT_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
LINE_LENGTH = 400
"""The most characters of a licence, a date, and of what names the base of a slot."""
SLOT_COUNT = 64
"""The most slots that a pack may have."""
ALIAS_COUNT = 64
"""The most aliases that a pack may have."""
ROW_COUNT = 1024
"""The most rows that a token tensor may have; a prompt has to hold them."""

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
    (
        *("op.format", "op.concept", "op.facts", "op.slots", "op.eval", "op.provenance"),
        *(TENSORS, DIGEST),
        *_DERIVED,
    )
)
PLACE = r"/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\|file:|\.\.?/"
"""How a path of somebody's machine begins."""
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
    sealed: bool
    """False for format 1.0, whose text no digest covers; the next change rewrites it as 1.1."""


def interpret(opened: container.Header) -> PackHeader:
    """What the strings and the names of tensors of a safetensors header mean."""
    metadata = opened.metadata
    concept = _table(metadata, "op.concept")
    name = concept.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        _refuse("its concept has no proper name")
    tensor_hash = metadata.get("modelspec.hash_sha256", "")
    if not re.fullmatch(r"0x[0-9a-f]{64}", tensor_hash):
        _refuse("modelspec.hash_sha256 is missing")
    slots = _interpret_slots(opened)
    evals = _table(metadata, "op.eval")
    _check_evals(evals)
    sealed = is_sealed(metadata)
    header = PackHeader(
        name=name,
        aliases=_interpret_aliases(concept),
        class_word=_word(concept, "class_word"),
        kind=_word(concept, "kind"),
        facts=_interpret_facts(metadata, name),
        slots=slots,
        evals=evals,
        provenance=_table(metadata, "op.provenance"),
        licence=_line(metadata.get("modelspec.license", ""), "modelspec.license"),
        date=_line(metadata.get("modelspec.date", ""), "modelspec.date"),
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
        sealed=sealed,
    )
    if sealed:  # last, so that what is wrong is told more exactly where it can be
        check_seal(metadata, opened.entries, _DERIVED)
    return header


def _interpret_aliases(concept: Mapping[str, Any]) -> tuple[str, ...]:
    aliases = concept.get("aliases", [])
    if not isinstance(aliases, list) or not all(
        isinstance(alias, str) and re.fullmatch(NAME_PATTERN, alias) for alias in aliases
    ):
        _refuse("its aliases are not names")
    if len(aliases) > ALIAS_COUNT:
        _refuse(f"it has more than {ALIAS_COUNT} aliases")
    return tuple(aliases)


def _word(concept: Mapping[str, Any], key: str) -> str:
    word = concept.get(key, "")
    if not isinstance(word, str) or len(word) > WORD_LENGTH or clean_fact(word) != word:
        _refuse(f"its {key} is not a plain word")
    return word


def _check_evals(evals: Mapping[str, Any]) -> None:
    """Every entry is a table, and what this version computes with is of its type."""
    for slot, figures in evals.items():
        if not isinstance(figures, dict):
            _refuse("op.eval does not hold a table for each slot")
        where = f"op.eval of {slot[:40]}"
        _check_types(figures, where, numbers=("threshold",), tables=("card", "calibration"))
        _check_types(figures, where, lines=("verdict",))


def _check_types(
    table: Mapping[str, Any],
    where: str,
    *,
    numbers: Iterable[str] = (),
    tables: Iterable[str] = (),
    lines: Iterable[str] = (),
) -> None:
    for key in numbers:
        if key in table and type(table[key]) not in (int, float):
            _refuse(f"{where}: {key} is not a number")
    for key in tables:
        if key in table and not isinstance(table[key], dict):
            _refuse(f"{where}: {key} is not a table")
    for key in lines:
        if key in table and (not isinstance(table[key], str) or len(table[key]) > LINE_LENGTH):
            _refuse(f"{where}: {key} is not a line of text")


def _interpret_slots(opened: container.Header) -> dict[str, SlotHeader]:
    abouts = _table(opened.metadata, "op.slots")
    if len(abouts) > SLOT_COUNT:
        _refuse(f"it has more than {SLOT_COUNT} slots")
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
        digest = opened.metadata.get(f"op.hash.{name}", "")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            _refuse(f"op.hash.{name} is missing")
        _check_shapes(name, tensors)
        _check_types(
            abouts[name],
            f"op.slots of {name}",
            lines=("backend", "base", "fingerprint", "dtype"),
            numbers=("seed", "steps", "best_step", "width"),
            tables=("recipe", "revisions", "versions"),
        )
        if re.match(PLACE, abouts[name].get("base", "")):
            _refuse(f"op.slots of {name}: base is a place on a machine, not the name of weights")
        slots[name] = SlotHeader(tensors=tensors, about=abouts[name], hash=digest)
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
        if TOKENS.fullmatch(key) and tensor.shape[0] > ROW_COUNT:
            _refuse(f"slot {slot}: {key} has more than {ROW_COUNT} rows")


def _interpret_facts(metadata: Mapping[str, str], name: str) -> tuple[Fact, ...]:
    listed = parse_json(metadata.get("op.facts", "[]"), _origin("op.facts"))
    if not isinstance(listed, list) or len(listed) > FACT_COUNT:
        _refuse(f"its facts are not a list of at most {FACT_COUNT}")
    facts = []
    for value in listed:
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(text, str):
            _refuse("a fact has no text")
        more = {key: rest for key, rest in value.items() if key not in {"text", "source"}}
        _check_plain(more, "op.facts")
        if cleaned := clean_fact(text, name=name):
            source: Source = "auto" if value.get("source") == "auto" else "user"
            facts.append(Fact(text=cleaned, source=source, more=more))
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
        "op.format": header.format if header.sealed else FORMAT,
        "op.concept": canonical(
            {
                **header.more,
                "name": header.name,
                "aliases": list(header.aliases),
                "class_word": header.class_word,
                "kind": header.kind,
            }
        ),
        "op.facts": canonical(
            [
                {
                    **fact.more,
                    "text": clean_fact(fact.text, name=header.name),
                    "source": fact.source,
                }
                for fact in header.facts
            ]
        ),
        "op.slots": canonical({name: dict(slot.about) for name, slot in header.slots.items()}),
        "op.eval": canonical(dict(header.evals)),
        "op.provenance": canonical(dict(header.provenance)),
        **{f"op.hash.{name}": tensors_hash(tensors, f"slot/{name}/") for name in header.slots},
    }
    try:
        data = container.to_bytes(seal(metadata, tensors), tensors)
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


def _table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object of the metadata, free of control characters."""
    value: Any = parse_json(metadata.get(key, "{}"), _origin(key))
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


def _line(text: str, where: str) -> str:
    if len(text) > LINE_LENGTH:
        _refuse(f"{where} has more than {LINE_LENGTH} characters")
    return _plain(text, where)


def _origin(key: str) -> Origin:
    return Origin(name=key, error=PackError, hint=CHECK_HINT)


def _refuse(what: str) -> NoReturn:
    raise PackError(what, hint=CHECK_HINT)
