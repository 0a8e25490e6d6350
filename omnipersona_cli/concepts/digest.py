"""The digests of a pack: what they cover, how they are computed, what they find.

Every digest is a sha256 over lines. A line is a JSON array in the form of RFC 8785 (no blanks,
UTF-8, only what must be escaped is), and a newline. A tensor's line is ``[name,dtype,[shape]]``;
where its values are covered too, its bytes follow the newline.

=====================  ===========================================================================
``op.hash.<slot>``     the slot's tensors with their bytes, by name within the slot
``op.tensors``         every tensor with its bytes, media included, by name
``op.digest``          ``{"keys":[…],"sha256":"…"}``: a line ``[key,value]`` for each metadata key
                       in ``keys``, which are sorted, then the line of every tensor by name,
                       without its bytes: those stand in ``op.tensors``, which is among the keys
=====================  ===========================================================================

Names and keys are sorted by Unicode code point. ``keys`` must name every key that begins with
``op.`` but ``op.digest``, and every ``modelspec.`` key that a pack is written with. Keys that other
programs added later (tags, notes, a preview) are not named; they are carried and never read, and
the next change covers them. So `op.digest` is checked without reading a tensor, and what it checks
holds the digest of the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Protocol

from omnipersona_cli.concepts.container import RawTensor
from omnipersona_cli.errors import PackError
from omnipersona_cli.reading import Origin, parse_json

DIGEST = "op.digest"
TENSORS = "op.tensors"

_DIFFERS = "its text was changed or damaged after it was written: its digest differs"
_HINT = "get the file again from where it came, or teach it anew: op learn --help"
_ORIGIN = Origin(name=DIGEST, error=PackError, hint=_HINT)


class Shaped(Protocol):
    """A tensor, with values or without."""

    @property
    def dtype(self) -> str:
        """As in the header."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the header."""


def canonical(value: Any) -> str:
    """JSON in its one form; PackError for what a pack cannot keep."""
    try:
        return json.dumps(
            value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise PackError(
            f"a pack keeps text and finite numbers only: {error}", hint="op doctor"
        ) from None


def tensors_hash(tensors: Mapping[str, RawTensor], prefix: str = "") -> str:
    """The digest of the tensors whose name begins with ``prefix``, which is left out of it."""
    digest = sha256()
    for key in sorted(key for key in tensors if key.startswith(prefix)):
        raw = tensors[key]
        digest.update(_tensor_line(key[len(prefix) :], raw))
        digest.update(raw.data)
    return digest.hexdigest()


def header_hash(
    metadata: Mapping[str, str], tensors: Mapping[str, Shaped], keys: Iterable[str]
) -> str:
    """The sha256 in ``op.digest``."""
    digest = sha256()
    for key in keys:
        digest.update(canonical([key, metadata[key]]).encode() + b"\n")
    for name in sorted(tensors):
        digest.update(_tensor_line(name, tensors[name]))
    return digest.hexdigest()


def seal(metadata: Mapping[str, str], tensors: Mapping[str, RawTensor]) -> dict[str, str]:
    """``metadata`` with ``op.tensors`` and ``op.digest``, which covers every key."""
    covered = {key: value for key, value in metadata.items() if key != DIGEST}
    covered[TENSORS] = tensors_hash(tensors)
    keys = sorted(covered)
    digest = {"keys": keys, "sha256": header_hash(covered, tensors, keys)}
    return {**covered, DIGEST: canonical(digest)}


def check_seal(
    metadata: Mapping[str, str], tensors: Mapping[str, Shaped], own: Iterable[str]
) -> None:
    """PackError where ``op.digest`` is not that of the header; ``own`` are the keys besides
    ``op.`` ones that it must cover where they are there."""
    seal = parse_json(metadata.get(DIGEST, "null"), _ORIGIN)
    keys = seal.get("keys") if isinstance(seal, dict) else None
    if not isinstance(seal, dict) or not isinstance(keys, list):
        raise PackError(f"{DIGEST} is missing", hint=_HINT)
    names = [key for key in keys if isinstance(key, str)]
    needed = {key for key in metadata if key.startswith("op.")} | set(own) & set(metadata)
    if (
        len(seal) != 2
        or len(names) != len(keys)
        or names != sorted(set(names))
        or not needed - {DIGEST} <= set(names)
        or not set(names) <= set(metadata) - {DIGEST}
        or seal.get("sha256") != header_hash(metadata, tensors, names)
    ):
        raise PackError(_DIFFERS, hint=_HINT)


def hash_problems(
    metadata: Mapping[str, str], slots: Mapping[str, str], tensors: Mapping[str, RawTensor]
) -> Iterator[str]:
    """What the digests over bytes find; ``slots`` maps each slot to its ``op.hash``. ``tensors``
    are in the order of the file."""
    for name, written in slots.items():
        if tensors_hash(tensors, f"slot/{name}/") != written:
            yield f"slot {name} was changed or damaged: its hash differs"
    whole = sha256(b"".join(raw.data for raw in tensors.values())).hexdigest()
    if metadata.get("modelspec.hash_sha256") != f"0x{whole}":
        yield "its tensors were changed or damaged: their hash differs"
    if DIGEST in metadata and metadata.get(TENSORS) != tensors_hash(tensors):
        yield "its tensors were changed or damaged: their digest differs"


def is_sealed(metadata: Mapping[str, str]) -> bool:
    """False for format 1.0, which had no digest of its text."""
    return DIGEST in metadata or not re.fullmatch(r"1(\.0+)?", metadata.get("op.format", ""))


def _tensor_line(name: str, tensor: Shaped) -> bytes:
    return canonical([name, tensor.dtype, list(tensor.shape)]).encode() + b"\n"
