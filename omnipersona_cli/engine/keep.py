"""From learned tokens to a pack: the figures it carries, the checks before and after writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import Any

import torch

from omnipersona_cli import __version__
from omnipersona_cli.backend import Backend, ConceptTokens, Prompt
from omnipersona_cli.concepts.facts import Fact
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Pack, Slot
from omnipersona_cli.engine.calibrate import Calibration
from omnipersona_cli.engine.card import Card
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.optimise import Check, Optimised, Settings
from omnipersona_cli.engine.tokens import from_slot, named_tensors, slot_name, to_slot
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError
from omnipersona_cli.language.mentions import to_turn

PACK_ROOM = 1 << 20
"""Bytes that must be free where a pack is to be written."""

PLACE_HINT = "choose another place: -o FILE, or export OMNIPERSONA_HOME=FOLDER"


@dataclass(frozen=True, kw_only=True)
class Report:
    """How well it was learned. ``calibration`` is on held-out pictures where it says so; ``card``
    has the figures, the verdict and advice; ``checks`` is the held-out curve, ``losses`` are the
    last step's."""

    calibration: Calibration
    card: Card
    checks: tuple[Check, ...]
    losses: Mapping[str, float]
    best_step: int
    steps: int
    photos: int
    held_out: int
    negatives: int
    lessons: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "card": self.card.to_dict(named=True),
            "calibration": self.calibration.to_dict(),
            "weak": self.calibration.weak,
            "checks": [vars(check) for check in self.checks],
            "losses": dict(self.losses),
            "best_step": self.best_step,
            "steps": self.steps,
            "photos": self.photos,
            "held_out": self.held_out,
            "negatives": self.negatives,
            "lessons": dict(self.lessons),
        }


def check_place(folder: Path, *, hint: str = PLACE_HINT) -> None:
    """ResourceError where nothing could be written in the end, before anything is learned."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"\0" * PACK_ROOM)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror or error}",
            hint=hint,
        ) from error


def pack_before(library: Library, material: Material, backend: str, force: bool) -> Pack | None:
    """The pack to which a slot is added: of the same photos, learned on other backends.

    Raises PersonaError for a concept of that name that would be lost.
    """
    try:
        header = library.header(material.name)
    except MissingError:
        return None
    same = header.provenance.get("digest") == material.photo_digest()
    learned_on = {str(slot.about.get("backend", "")) for slot in header.slots.values()}
    if same and backend not in learned_on:
        return library.load(material.name)
    if force:
        return None
    raise PersonaError(
        f"there is a concept <{material.name}> already",
        hint="--force replaces it; another --name keeps both",
    )


def check_learned(
    backend: Backend, start: ConceptTokens, tokens: ConceptTokens, material: Material
) -> None:
    """PersonaError where the tokens make no difference: a pack that does nothing is not written."""
    if "understand" not in backend.info.tasks:
        moved = any(
            not torch.equal(a, b)
            for a, b in zip(
                named_tensors(start).values(), named_tensors(tokens).values(), strict=True
            )
        )
    else:
        turn = to_turn(f"is <{tokens.name}> here?")
        image = material.positives[0]
        with_it = backend.score(
            Prompt(turns=(turn,), concepts=(tokens,)), ("yes", "no"), image=image
        )
        without = backend.score(Prompt(turns=(turn,)), ("yes", "no"), image=image)
        moved = not torch.equal(with_it, without)
    if not moved:
        raise PersonaError(
            f"<{tokens.name}> makes no difference to {backend.info.name}: nothing was learned",
            hint="learn it with more --steps",
        )


def packed(
    backend: Backend,
    optimised: Optimised,
    material: Material,
    settings: Settings,
    report: Report,
    before: Pack | None,
) -> Pack:
    """The pack: a new one, or ``before`` with one slot more."""
    slot = slot_name(backend)
    tokens = optimised.tokens
    about = {
        "revision": backend.fingerprint.partition("@")[2],
        "recipe": {
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "lambda_image": settings.lambda_image,
            "lambda_edit": settings.lambda_edit,
            "schedule": settings.schedule,
            "understand_tokens": tokens.und.shape[0],
            "generate_tokens": tokens.gen.shape[0],
        },
        "seed": settings.seed,
        "steps": settings.steps,
        "best_step": optimised.best_step,
        "versions": {"omnipersona": __version__, "torch": str(torch.__version__)},
    }
    made = without_folders(to_slot(tokens, backend, about))
    figures = {
        "threshold": report.calibration.threshold,
        "recognition": report.calibration.balanced_accuracy,
        "auroc": report.calibration.auroc,
        "verdict": report.card.verdict,
        "calibration": report.calibration.to_dict(),
        "card": report.card.to_dict(named=False),
        "losses": {key: round(value, 6) for key, value in report.losses.items()},
    }
    facts: tuple[Fact, ...] = material.facts
    if before is not None:
        known = {fact.text for fact in facts}
        facts = (*facts, *(fact for fact in before.facts if fact.text not in known))
        return replace(
            before,
            facts=facts,
            slots={**before.slots, slot: made},
            evals={**before.evals, slot: figures},
            hash="",
        )
    return Pack(
        name=material.name,
        class_word=material.class_word,
        kind=material.kind,
        facts=facts,
        slots={slot: made},
        evals={slot: figures},
        provenance={
            "photos": material.album.count,
            "held_out": len(material.album.held_out),
            "negatives": report.negatives,
            "digest": material.photo_digest(),
        },
        date=datetime.now(UTC).date().isoformat(),
    )


def without_folders(slot: Slot) -> Slot:
    """``slot`` with its base as a name where that is a folder of this machine."""
    base = str(slot.about["base"])
    if PurePath(base).is_absolute() or base.startswith((".", "~")):
        return replace(slot, about={**slot.about, "base": PurePath(base).name})
    return slot


def check_kept(pack: Pack, backend: Backend, tokens: ConceptTokens) -> None:
    """What was read back is what was learned, to the bit."""
    kept = named_tensors(from_slot(pack, backend))
    for key, value in named_tensors(tokens).items():
        if not torch.equal(kept[key], value.cpu()):
            raise ResourceError(
                f"the pack of <{pack.name}> was not kept as it was written",
                hint="is the disk full? `df -h`, then add --resume",
            )
