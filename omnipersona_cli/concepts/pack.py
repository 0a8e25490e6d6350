"""The ``.opconcept`` format, version 1.1: one concept in one safetensors file.

Tensors (little-endian; F32, F16 or BF16; bytes as U8 under ``media/`` only)

======================================  =======  ==============================================
``slot/<slot>/id``                      1 x d    stands wherever the name is written
``slot/<slot>/und``                     N_u x d  understanding tokens
``slot/<slot>/gen``                     N_g x d  generation tokens
``slot/<slot>/deep.<layer>.und, .gen``  n x d    optional tokens of one layer, from 1 on
``slot/<slot>/lora.<task>.…``           any      optional adapters, only when asked for
``media/thumbnail, media/photo.<i>``    n        encoded picture files, only when asked for
======================================  =======  ==============================================

A slot is what was learned on one backbone; its name matches ``[a-z0-9][a-z0-9._-]{0,63}``. Other
tensors, in a slot or beside the slots, belong to newer versions and survive a rewrite.

Metadata (strings; those that start with ``op.`` are JSON, keys sorted)

=====================  ==========================================================================
``modelspec.*``        ModelSpec 1.0.1, for model managers: sai_model_spec, architecture, title,
                       implementation, date, license, trigger_phrase, usage_hint, and
                       hash_sha256 ("0x" and the sha256 of the tensor part; required)
``op.format``          "1.<minor>", or "1" for 1.0; a higher major version is refused
``op.concept``         {name, aliases, class_word, kind}
``op.facts``           [{text, source: "user" or "auto"}]; at most 256, each at most 300 characters
``op.slots``           {<slot>: {base, revisions, fingerprint, dtype, recipe, seed, steps, …}}
``op.eval``            {<slot>: {threshold, held-out scores, …}}
``op.provenance``      {photos: count, …}; no paths, no EXIF, no user or host names
``op.hash.<slot>``     sha256 over the slot's tensors by name: for each one line of JSON
                       ``[name,dtype,[shape]]``, a newline, the bytes; so a slot stands alone
``op.tensors``         sha256 over every tensor, media included, in the same way
``op.digest``          {keys, sha256}: over all metadata that op wrote and the tensors' shapes; how
                       it is computed stands in `omnipersona_cli.concepts.digest`
=====================  ==========================================================================

Unknown metadata keys, and unknown keys in ``op.concept`` and in a fact, survive a rewrite.

Format 1.0 had neither ``op.tensors`` nor ``op.digest``. It is read, with a note, and written as 1.1
at the next change.

Rules. Content decides, not the suffix; nothing is ever unpickled. Header at most 1 MiB, file at
most 64 MiB, at most 4096 tensors, 64 slots, and 1024 rows in a tensor of tokens; no holes,
overlaps, duplicate keys, deep nesting; finite values; one width d in a slot; a base is a name of
weights, never a path. Tensors are laid out F32, BF16, F16, U8, then by name, the header is padded
with spaces to a multiple of 8, and nothing comes from the clock (the date is a field): equal
content gives equal bytes. A pack's hash is the sha256 of its header, which holds the digests of the
rest. Facts are text from strangers: see `omnipersona_cli.concepts.facts`. Other strings that carry
control or bidi characters are refused.

Reading a header and rewriting a pack work on raw bytes and import no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnipersona_cli.concepts import container
from omnipersona_cli.concepts.arrays import to_array, to_raw, value_problems
from omnipersona_cli.concepts.container import RawTensor
from omnipersona_cli.concepts.digest import hash_problems, is_sealed
from omnipersona_cli.concepts.facts import Fact, clean_fact
from omnipersona_cli.concepts.header import (
    CHECK_HINT,
    FORMAT,
    PLACE,
    SLOT_PATTERN,
    PackHeader,
    SlotHeader,
    TensorShape,
    build,
    interpret,
)
from omnipersona_cli.errors import PackError
from omnipersona_cli.language.mentions import rename_mentions
from omnipersona_cli.reading import Origin, parse_json

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "SUFFIX",
    "UNCLEAN",
    "Fact",
    "Pack",
    "PackHeader",
    "RawTensor",
    "Slot",
    "SlotHeader",
    "TensorShape",
    "age_note",
    "clean_fact",
    "named",
    "parse_pack",
    "read_header",
    "read_pack",
    "rewrite",
    "to_bytes",
    "verify",
    "verify_bytes",
    "write_pack",
]

SUFFIX = ".opconcept"
UNCLEAN = "a fact holds what does not belong in text; importing it strips that"
"""What `verify` says of a pack whose facts are cleaned as they are read."""

# strings, not compiled: only writing needs them, and listing should not wait
_LARGE = rf"slot/{SLOT_PATTERN}/lora\..+|media/photo\..+"
_PLACE = (  # a path of somebody's machine
    rf"^({PLACE})"
    r"|(^|[\s\"'=:,(])(/(home|Users|root|tmp|mnt|var)/|[A-Za-z]:\\)"
)
_PRIVATE = (
    r"(?i)(file_?)?(path|name)s?|files?|folders?|dir(ectory|s)?|exif|gps|location|user(_?name)?"
    r"|login|e?_?mail|host(_?name)?|machine|computer|cwd|home"
)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What was learned on one backbone.

    ``tensors`` are float arrays under the format's names ("id" [1, d], "und" [N_u, d], …).
    ``about`` is its entry in ``op.slots``. ``dtypes`` names tensors stored in another dtype than
    their array's; bfloat16, which numpy has not, is a float32 array and "BF16" here.
    """

    tensors: Mapping[str, np.ndarray[Any, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One concept, tensors included.

    ``class_word`` is what a model would call it ("dog"), ``kind`` what it is to the engine
    ("object", "person", …). ``evals`` has one entry for each slot. ``date`` is ISO 8601.
    ``extra_metadata`` and ``extra_tensors`` are what this version does not interpret, ``more``
    unknown keys of ``op.concept``; all are kept. ``hash`` is "" until written or read.
    """

    name: str
    aliases: tuple[str, ...] = ()
    class_word: str = ""
    kind: str = ""
    facts: tuple[Fact, ...] = ()
    slots: Mapping[str, Slot] = field(default_factory=dict)
    evals: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    date: str = ""
    format: str = FORMAT
    more: Mapping[str, Any] = field(default_factory=dict)
    extra_metadata: Mapping[str, str] = field(default_factory=dict)
    extra_tensors: Mapping[str, RawTensor] = field(default_factory=dict)
    hash: str = ""


def read_header(path: Path) -> PackHeader:
    """The header of a pack. Reads no tensor, so hashes and values are not checked."""
    with named(path.name):
        data, size = container.read_start(path)
        return interpret(container.parse_header(data, size))


def read_pack(path: Path, *, norm_limit: float | Mapping[str, float] | None = None) -> Pack:
    """A pack with everything verified.

    ``norm_limit`` is the largest l2 norm that a token row may have, for every slot or by slot.
    Raises MissingError for no such file, PackError for all else.
    """
    with named(path.name):
        return parse_pack(container.read_file(path), norm_limit=norm_limit)


def parse_pack(data: bytes, *, norm_limit: float | Mapping[str, float] | None = None) -> Pack:
    """`read_pack` for the bytes of a file."""
    header, tensors = _opened(data)
    for problem in value_problems(header, tensors, norm_limit):
        raise PackError(problem, hint=CHECK_HINT)
    slots = {}
    for name, slot in header.slots.items():
        raw = {key: tensors[f"slot/{name}/{key}"] for key in slot.tensors}
        slots[name] = Slot(
            tensors={key: to_array(tensor) for key, tensor in raw.items()},
            about=slot.about,
            dtypes={key: tensor.dtype for key, tensor in raw.items() if tensor.dtype == "BF16"},
        )
    return Pack(
        name=header.name,
        aliases=header.aliases,
        class_word=header.class_word,
        kind=header.kind,
        facts=header.facts,
        slots=slots,
        evals=header.evals,
        provenance=header.provenance,
        licence=header.licence,
        date=header.date,
        format=header.format,
        more=header.more,
        extra_metadata=header.extra_metadata,
        extra_tensors={key: tensors[key] for key in header.extra_tensors},
        hash=header.hash,
    )


def write_pack(pack: Pack, path: Path, *, overwrite: bool = False, large: bool = False) -> str:
    """Write ``pack`` at ``path``, whole or not at all; returns its hash.

    ``large`` allows adapters and photos. Raises PackError for a pack that `read_pack` would
    refuse or that tells of its maker's machine, PersonaError for a path that is taken, and
    ResourceError for a place that cannot be written.
    """
    data = to_bytes(pack, large=large)
    container.write_file(path, data, overwrite=overwrite)
    return container.parse_header(data, len(data)).hash


def to_bytes(pack: Pack, *, large: bool = False) -> bytes:
    """The file that `write_pack` writes."""
    tensors = dict(pack.extra_tensors)
    for name, slot in pack.slots.items():
        for key, array in slot.tensors.items():
            tensors[f"slot/{name}/{key}"] = to_raw(array, slot.dtypes.get(key, ""), key)
    if not large and (
        found := next((key for key in sorted(tensors) if re.fullmatch(_LARGE, key)), "")
    ):
        raise PackError(
            f"{found} is only kept when asked for", hint="adapters and photos need large=True"
        )
    _check_private(pack)
    header = PackHeader(
        name=pack.name,
        aliases=tuple(pack.aliases),
        class_word=pack.class_word,
        kind=pack.kind,
        facts=tuple(pack.facts),
        slots={
            name: SlotHeader(tensors=_shapes(slot.tensors), about=slot.about, hash="")
            for name, slot in pack.slots.items()
        },
        evals=pack.evals,
        provenance=pack.provenance,
        licence=pack.licence,
        date=pack.date,
        format=pack.format,
        more=pack.more,
        extra_metadata=pack.extra_metadata,
        extra_tensors=_shapes(pack.extra_tensors),
        tensor_hash="",
        hash="",
        size=0,
        sealed=is_sealed({"op.format": pack.format}),
    )
    data = build(header, tensors)
    opened, raw = _opened(data)  # nothing is written that would be refused
    for problem in value_problems(opened, raw, None):
        raise PackError(problem, hint="learn it again with another --seed or a lower rate")
    return data


def rewrite(data: bytes, *, name: str = "", facts: Sequence[Fact] | None = None) -> bytes:
    """The bytes of a pack with another name or other facts; tensors are copied untouched.

    With a new name the mentions in its facts follow. With neither, the pack in canonical form:
    one that this code wrote comes out as it went in. Hashes are checked, values are not.
    """
    header, tensors = _opened(data)
    if facts is not None:
        header = replace(header, facts=tuple(facts))
    if name and name != header.name:
        renamed = (
            replace(fact, text=rename_mentions(fact.text, header.name, name))
            for fact in header.facts
        )
        header = replace(header, name=name, facts=tuple(renamed))
    return build(header, tensors)


def verify(path: Path, *, norm_limit: float | Mapping[str, float] | None = None) -> list[str]:
    """All that is wrong with a file, one sentence each; empty when it is sound.

    Raises MissingError when there is no such file.
    """
    try:
        return verify_bytes(container.read_file(path), norm_limit=norm_limit)
    except PackError as error:
        return [str(error)]


def verify_bytes(
    data: bytes, *, norm_limit: float | Mapping[str, float] | None = None
) -> list[str]:
    """`verify` for the bytes of a file."""
    try:
        opened = container.parse_header(data, len(data))
        header, tensors = interpret(opened), container.tensors_of(data, opened)
    except PackError as error:
        return [str(error)]
    problems = [
        *hash_problems(opened.metadata, _hashes(header), tensors),
        *value_problems(header, tensors, norm_limit),
    ]
    listed = parse_json(opened.metadata.get("op.facts", "[]"), Origin(name="op.facts"))
    texts = (
        [fact["text"] for fact in listed if isinstance(fact, dict)]
        if isinstance(listed, list)
        else []
    )
    if texts != [fact.text for fact in header.facts]:
        problems.append(UNCLEAN)
    return problems


def age_note(header: PackHeader) -> str:
    """A sentence about a pack of format 1.0; empty for one whose text a digest covers."""
    if header.sealed:
        return ""
    return (
        f"<{header.name}> is of format 1.0, in which damage to its text is not noticed; "
        "the next change to it writes format 1.1"
    )


def _opened(data: bytes) -> tuple[PackHeader, dict[str, RawTensor]]:
    """Header and raw tensors, every digest checked, values not."""
    opened = container.parse_header(data, len(data))
    header, tensors = interpret(opened), container.tensors_of(data, opened)
    for problem in hash_problems(opened.metadata, _hashes(header), tensors):
        raise PackError(problem, hint=CHECK_HINT)
    return header, tensors


def _hashes(header: PackHeader) -> dict[str, str]:
    return {name: slot.hash for name, slot in header.slots.items()}


def _shapes(tensors: Mapping[str, Any]) -> dict[str, TensorShape]:
    return {
        key: TensorShape(dtype=str(tensor.dtype), shape=tuple(tensor.shape))
        for key, tensor in tensors.items()
    }


def _check_private(pack: Pack) -> None:
    """Refuse what tells of the machine or the person that made the pack."""
    for where, value in (
        ("op.provenance", pack.provenance),
        ("op.slots", {name: slot.about for name, slot in pack.slots.items()}),
        ("op.eval", pack.evals),
    ):
        for key, text in _leaves(value, where):
            private = where == "op.provenance" and any(
                re.fullmatch(_PRIVATE, part) for part in key.split(".")
            )
            if private or re.search(_PLACE, text):
                raise PackError(
                    f"{key} would tell of this machine", hint="keep paths and names out of a pack"
                )


def _leaves(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text below ``value``, with its dotted place."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part, where)
    elif isinstance(value, str):
        yield where, value


@contextmanager
def named(file: str) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except PackError as error:
        raise PackError(f"{file}: {error}", hint=error.hint) from error.__cause__
