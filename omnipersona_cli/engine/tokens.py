"""Between a pack's slot and the tokens that a backend can use.

A concept is an identifier and two groups of learned input embeddings: the understanding part is
processed by the understanding expert, the generation part by the generation expert (paper, section
3.1). A slot holds them for one backbone, bound to it by the backbone's fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, ConceptTokens, is_hub_id
from omnipersona_cli.concepts.pack import Pack, Slot
from omnipersona_cli.errors import PackError, SlotError
from omnipersona_cli.hookspecs import Base

NORM_SLACK = 1.001
"""Rounding allowance when a row's norm is compared with the backbone's limit."""


def base_of(backend: Backend) -> Base:
    """What a slot that is learned on ``backend`` is bound to."""
    return Base(
        backend=backend.info.name,
        model=backend.model,
        fingerprint=backend.fingerprint,
        width=backend.width,
        norm_limit=backend.norm_limit,
        deep_layers=backend.info.deep_layers,
    )


def slot_name(backend: Backend | Base) -> str:
    """The short name of the slot that fits ``backend``: its fingerprint up to the first "@"."""
    return backend.fingerprint.split("@")[0]


def named_tensors(tokens: ConceptTokens) -> dict[str, Tensor]:
    """The tensors of ``tokens`` under the names that a slot gives them, in a fixed order."""
    named = {"id": tokens.id, "und": tokens.und, "gen": tokens.gen}
    return named | {key: tokens.extra[key] for key in sorted(tokens.extra)}


def from_named_tensors(
    name: str, tensors: Mapping[str, Tensor], *, fact_tokens: int = 0
) -> ConceptTokens:
    """The inverse of `named_tensors`; ``fact_tokens`` is no tensor."""
    extra = {key: value for key, value in tensors.items() if key not in ("id", "und", "gen")}
    return ConceptTokens(
        name=name,
        id=tensors["id"],
        und=tensors["und"],
        gen=tensors["gen"],
        extra=extra,
        fact_tokens=fact_tokens,
    )


def with_depth(tokens: ConceptTokens, depth: int) -> ConceptTokens:
    """``tokens`` with deep ones in all of the layers 1 to ``depth``, a row for each of their own
    but those for facts; new ones add nothing yet."""
    looks = tokens.of_looks()
    deep = {
        f"deep.{layer}.{part}": torch.zeros_like(rows)
        for layer in range(1, depth + 1)
        for part, rows in (("und", looks.und), ("gen", looks.gen))
    }
    return replace(tokens, extra={**deep, **tokens.extra})


def copy_of(tokens: ConceptTokens, *, trainable: bool = False) -> ConceptTokens:
    """The same values in float32 tensors of their own, with or without gradients."""
    return from_named_tensors(
        tokens.name,
        {
            key: value.detach().to(torch.float32).clone().requires_grad_(trainable)
            for key, value in named_tensors(tokens).items()
        },
        fact_tokens=tokens.fact_tokens,
    )


def to_slot(tokens: ConceptTokens, backend: Backend | Base, about: Mapping[str, Any]) -> Slot:
    """What a pack keeps of ``tokens``: float32 arrays, and which backbone they belong to."""
    base = backend if isinstance(backend, Base) else base_of(backend)
    arrays = {
        key: np.ascontiguousarray(value.detach().to("cpu", torch.float32).numpy())
        for key, value in named_tensors(tokens).items()
    }
    binding = {
        "backend": base.backend,
        "base": base.model,
        "fingerprint": base.fingerprint,
        "dtype": "float32",
        "width": base.width,
    }
    return Slot(tensors=arrays, about={**about, **binding})


def from_slot(pack: Pack, backend: Backend | Base) -> ConceptTokens:
    """The tokens that ``pack`` holds for ``backend``.

    Raises SlotError where the pack was learned on another backbone (naming both, and the command
    that learns it on this one), PackError for tensors that cannot be right.
    """
    base = backend if isinstance(backend, Base) else base_of(backend)
    wanted = slot_name(base)
    slot = pack.slots.get(wanted)
    if slot is None:
        learned_on = ", ".join(sorted(pack.slots)) or "nothing"
        raise SlotError(
            f"<{pack.name}> was learned on {learned_on}, and {base.backend} runs {wanted}",
            hint=_relearn(pack, base),
        )
    bound_to = str(slot.about.get("fingerprint", ""))
    if bound_to != base.fingerprint:
        raise SlotError(
            f"<{pack.name}> was learned on {bound_to or 'an unknown base'}, "
            f"and this is {base.fingerprint}",
            hint=_fetch(slot, base) or _relearn(pack, base),
        )
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in slot.tensors.items()}
    for key in ("id", "und", "gen"):
        _check_rows(pack.name, key, tensors.get(key), base)
    recipe = slot.about.get("recipe")
    told = recipe.get("fact_tokens") if isinstance(recipe, Mapping) else 0
    within = isinstance(told, int) and 0 <= told <= len(tensors["und"])
    tokens = from_named_tensors(
        pack.name,
        {key: value.to(torch.float32) for key, value in tensors.items()},
        fact_tokens=int(told) if told and within else 0,
    )
    _check_deep(tokens, base)
    return tokens


def _check_deep(tokens: ConceptTokens, base: Base) -> None:
    """Tokens of a layer stand where those of the first do, in a layer that there is."""
    looks = tokens.of_looks()
    for key, rows in tokens.extra.items():
        found = re.fullmatch(r"deep\.([0-9]+)\.(und|gen)", key)
        if found is None:
            continue
        layer, wanted = int(found[1]), len(looks.und if found[2] == "und" else looks.gen)
        if not 1 <= layer <= base.deep_layers:
            last = f"1 to {base.deep_layers}" if base.deep_layers else "none"
            raise PackError(
                f"<{tokens.name}> has tokens for layer {layer}; of those after the first "
                f"{base.backend} takes {last}",
                hint=_again(tokens.name, base),
            )
        _check_rows(tokens.name, key, rows, base)
        if len(rows) != wanted:
            raise PackError(
                f"the {key} tokens of <{tokens.name}> are {len(rows)} rows instead of {wanted}",
                hint=_again(tokens.name, base),
            )


def _again(name: str, base: Base) -> str:
    return (
        f"learn it again: op learn PHOTOS --name {name} -b {base.backend}{_weights(base)} --force"
    )


def _check_rows(name: str, key: str, rows: Tensor | None, base: Base) -> None:
    hint = _again(name, base)
    if rows is None or rows.ndim != 2 or rows.shape[1] != base.width:
        shape = "absent" if rows is None else f"shaped {tuple(rows.shape)}"
        raise PackError(
            f"the {key} tokens of <{name}> are {shape}; {base.backend} needs rows of {base.width}",
            hint=hint,
        )
    if key == "id" and len(rows) != 1:
        raise PackError(f"<{name}> has {len(rows)} identifiers instead of one", hint=hint)
    if not bool(torch.isfinite(rows).all()):
        raise PackError(f"the {key} tokens of <{name}> are not finite numbers", hint=hint)
    if rows.numel() and float(rows.float().norm(dim=1).max()) > base.norm_limit * NORM_SLACK:
        raise PackError(
            f"the {key} tokens of <{name}> are larger than {base.backend} allows", hint=hint
        )


def revisions_in(about: Mapping[str, Any]) -> dict[str, str]:
    """The revisions of the hub's repositories that a slot was learned on, as far as its pack, which
    may be a stranger's, names such."""
    told = about.get("revisions")
    return {
        repo: commit
        for repo, commit in (told.items() if isinstance(told, Mapping) else ())
        if is_hub_id(repo) and isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit)
    }


def _fetch(slot: Slot, base: Base) -> str:
    """The command that brings the revision that it was learned on; "" where that is not known, or
    is of other weights than these."""
    commit = revisions_in(slot.about).get(base.model)
    if commit is None:
        return ""
    return f"op backends fetch {base.backend} --model {base.model} --revision {commit}"


def _relearn(pack: Pack, base: Base) -> str:
    """The command that learns it here; what was learned on other weights of this very backend is in
    the way, and has to be replaced."""
    here = any(slot.about.get("backend") == base.backend for slot in pack.slots.values())
    force = " --force" if here else ""
    return f"op learn PHOTOS --name {pack.name} -b {base.backend}{_weights(base)}{force}"


def _weights(base: Base) -> str:
    """What names the weights in a command, where they are not the backend's usual ones; of a folder
    only the last name is known here."""
    info = registry.backends().get(base.backend)
    if info is None or base.model == info.default_model:
        return ""
    return f" --model {base.model if is_hub_id(base.model) else 'FOLDER'}"
