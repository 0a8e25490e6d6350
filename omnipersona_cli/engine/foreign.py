"""Take in a concept that another program learned: its files, read by an importer, become a pack.

The importer reads tensors and says what it understood; here they are held against the backbone
that they are for and bound to it, because such files seldom name their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from omnipersona_cli import __version__, registry
from omnipersona_cli.backend import ConceptTokens, Opening, is_hub_id
from omnipersona_cli.concepts.bases import remember_base
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Pack
from omnipersona_cli.engine.keep import check_kept, without_folders
from omnipersona_cli.engine.progress import OnProgress, tell
from omnipersona_cli.engine.request import ANY
from omnipersona_cli.engine.tokens import base_of, from_slot, slot_name, to_slot
from omnipersona_cli.errors import PersonaError, SlotError, UsageError
from omnipersona_cli.hookspecs import Base, Foreign, ImporterInfo, Progress
from omnipersona_cli.language.mentions import NAME_PATTERN, check_name


@dataclass(frozen=True, kw_only=True)
class TakenIn:
    """The concept in the library, and what was understood of the files."""

    pack: Pack
    path: Path
    foreign: Foreign


def take_in(
    path: Path,
    source: str,
    *,
    name: str = "",
    epoch: int | None = None,
    force: bool = False,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
) -> TakenIn:
    """Read ``path`` as the program ``source`` saved it and keep the concept in the library.

    ``name`` is the concept's, where what the files suggest will not do; ``epoch`` one of several
    saved states, None the latest. ``opening`` says which weights the concept is for. Files are
    read before the model is opened, and nothing is written before both agree. Raises MissingError
    for an importer that is not here, PersonaError for a name that is taken and not to be
    replaced (``force``), SlotError where the tokens are not for these weights, PackError where
    they are no tokens at all.
    """
    importer = registry.importer_info(source)
    library = Library() if library is None else library
    foreign = cast(Foreign, registry.load(importer.reads)(path, epoch=epoch))
    chosen = check_name(name) if name else _suggested(foreign)
    if chosen in library.names() and not force:
        raise PersonaError(
            f"there is a concept <{chosen}> already",
            hint="--force replaces it; another --name keeps both",
        )
    tell(on_progress, foreign.notes)
    if not name:
        tell(on_progress, [f"called <{chosen}> after its folder; --name gives it another name"])
    base = _base(importer, replace(opening, backend=importer.backend), on_progress)
    tokens = replace(foreign.tokens, name=chosen)
    check_width(tokens, base)
    opened = replace(opening, backend=base.backend, model=base.model)
    pack = _packed(
        tokens,
        base,
        foreign,
        importer.name,
        registry.revisions(registry.backend_info(base.backend), opened),
    )
    from_slot(pack, base)  # the checks of a pack that is used
    kept = library.save(pack, force=force)
    loaded = library.load(chosen)
    check_kept(loaded, base, tokens)
    if not is_hub_id(base.model):
        remember_base(base.fingerprint, opening.model)
    tell(
        on_progress,
        (
            f"the files do not name their base; <{chosen}> is bound to {base.model}",
            f"yes and no about <{chosen}> are not calibrated: no photos came along",
        ),
    )
    return TakenIn(pack=loaded, path=kept, foreign=foreign)


def _base(importer: ImporterInfo, opening: Opening, on_progress: OnProgress | None) -> Base:
    """The weights that the concept is for: looked at, or opened where the importer cannot look."""
    if not importer.binds:
        return base_of(registry.open_backend(opening, on_progress=on_progress))
    if on_progress is not None:
        on_progress(Progress(phase="looking at the weights"))
    return cast(Base, registry.load(importer.binds)(opening))


def check_width(tokens: ConceptTokens, base: Base) -> None:
    """SlotError where the tokens are wider or narrower than those of the backbone."""
    width = tokens.id.shape[-1]
    if width != base.width:
        raise SlotError(
            f"the rows are {width} wide, and {base.model} has rows of {base.width}",
            hint="--model names the weights that the concept was learned on",
        )


def _suggested(foreign: Foreign) -> str:
    name = foreign.tokens.name.lower()
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError("the files do not say what the concept is called", hint="--name bo")
    return name


def _packed(
    tokens: ConceptTokens, base: Base, foreign: Foreign, source: str, revisions: Mapping[str, str]
) -> Pack:
    about = {
        **({"revisions": dict(revisions)} if revisions else {}),
        "recipe": {"learned_by": source, **foreign.understood},
        "versions": {"omnipersona": __version__},
    }
    return Pack(
        name=tokens.name,
        slots={slot_name(base): without_folders(to_slot(tokens, base, about))},
        provenance={"learned_by": source},
        date=datetime.now(UTC).date().isoformat(),
    )
