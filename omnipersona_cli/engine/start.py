"""Where optimisation starts: what the backbone sees in the photos, or tokens that are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch

from omnipersona_cli.backend import Backend, ConceptTokens, ExpertBackend
from omnipersona_cli.concepts.pack import Pack
from omnipersona_cli.engine.keep import Before, Keeping
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.progress import OnProgress, counting
from omnipersona_cli.engine.settings import Settings
from omnipersona_cli.engine.tokens import (
    copy_of,
    from_named_tensors,
    from_slot,
    named_tensors,
    with_depth,
)
from omnipersona_cli.errors import UsageError

USUAL = Settings().understand_tokens
"""Understanding tokens where nobody asks for another number."""

Fresh = Callable[[int, int], ConceptTokens]
"""New tokens of the backend: so many to understand by, so many to paint by."""


def start_of(
    backend: Backend,
    material: Material,
    settings: Settings,
    before: Before,
    keeping: Keeping,
    on_progress: OnProgress,
) -> ConceptTokens:
    """Where optimisation starts: the tokens that are gone on from, or the backend's own features of
    the photos, and deep tokens that add nothing yet where there are none; with "lora" and without
    any there the low-rank experts that the backend offers (`ExpertBackend`)."""
    for_facts = _for_facts(backend, material)
    photos = [photo.image for photo in material.album.learning]

    def fresh(understand: int, generate: int) -> ConceptTokens:
        return backend.new_tokens(
            material.name,
            understand=understand,
            generate=generate,
            photos=photos,
            seed=settings.seed,
            on_step=counting(on_progress, "starting tokens"),
        )

    if keeping.more and before.pack is not None:
        start = _gone_on(backend, before.pack, settings, for_facts, fresh)
    elif for_facts and settings.understand_tokens < USUAL:
        start = fresh(settings.understand_tokens, settings.generate_tokens)
        start = _with_facts(start, for_facts, fresh)
    else:
        start = fresh(settings.understand_tokens + for_facts, settings.generate_tokens)
        start = replace(start, fact_tokens=for_facts)
    start = with_depth(start, settings.hyperparameters(backend.info).depth)
    tensors = named_tensors(start)
    if settings.experts != "none":
        able = cast(ExpertBackend, backend)
        tensors = dict(able.new_experts(seed=settings.seed)) | tensors
    return copy_of(from_named_tensors(start.name, tensors, fact_tokens=start.fact_tokens))


def _gone_on(
    backend: Backend,
    pack: Pack,
    settings: Settings,
    for_facts: int,
    fresh: Fresh,
) -> ConceptTokens:
    """The tokens of ``pack`` to go on from, with ``for_facts`` rows for facts where it was learned
    without. Raises SlotError for other weights, UsageError for another number of tokens."""
    tokens = copy_of(from_slot(pack, backend))
    of_looks = len(tokens.und) - tokens.fact_tokens
    usual = Settings()
    for what, asked, there, default in (
        ("understand", settings.understand_tokens, of_looks, usual.understand_tokens),
        ("generate", settings.generate_tokens, len(tokens.gen), usual.generate_tokens),
    ):
        if asked not in (there, default):
            raise UsageError(
                f"<{pack.name}> has {there} tokens to {what} by, and going on does not make them "
                f"{asked}",
                hint=f"leave out --{what}-tokens, or learn it anew with --force",
            )
    if settings.depth is not None and settings.depth < tokens.depth:
        raise UsageError(
            f"<{pack.name}> has tokens for {tokens.depth} layers after the first, and going on "
            f"does not make them {settings.depth}",
            hint="leave out --depth, or learn it anew with --force",
        )
    if not for_facts or tokens.fact_tokens:
        return tokens
    return _with_facts(tokens, for_facts, fresh)


def _with_facts(tokens: ConceptTokens, for_facts: int, fresh: Fresh) -> ConceptTokens:
    """``tokens`` with rows for facts that start as those beyond the usual number do, which the
    photos say nothing of."""
    beyond = fresh(max(len(tokens.und), USUAL) + for_facts, len(tokens.gen))
    rows = beyond.und[-for_facts:].detach().to(tokens.und)
    return replace(tokens, und=torch.cat((tokens.und, rows)), fact_tokens=for_facts)


def _for_facts(backend: Backend, material: Material) -> int:
    """How many understanding tokens there are for facts, besides those for looks."""
    asked = any(lesson.kind == "fact" for lesson in material.lessons)
    return backend.info.fact_tokens if asked else 0
