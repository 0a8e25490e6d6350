"""The hooks through which everything outside the core is found, and the values they return.

"Describe, then name what to import" is the one pattern: a hook returns frozen dataclasses that
name a ``"module:attribute"``; nothing heavy is imported to answer a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from omnipersona_cli.backend import BackendInfo, Box, ConceptTokens

if TYPE_CHECKING:
    from PIL.Image import Image

hookspec = pluggy.HookspecMarker("omnipersona")
hookimpl = pluggy.HookimplMarker("omnipersona")


QUIET = "omnipersona.quiet"
"""Where click's ``meta`` says that notes are not wanted."""


@dataclass(frozen=True, kw_only=True)
class CommandInfo:
    """An extra command, listed without import. ``command`` is ``"module:click_command"``.

    It gets ``-q`` and ``-v`` where it has none of its own; under ``-q`` the context of click has a
    true ``meta[QUIET]``, and the command prints its answer alone.
    """

    name: str
    summary: str
    command: str


@dataclass(frozen=True, kw_only=True)
class JudgeInfo:
    """A judge for `op bench`. ``judge`` is ``"module:callable"``; what it returns is a `Judge`.
    ``licence`` is that of its weights, ``needs`` what must be there before it can be asked."""

    name: str
    summary: str
    judge: str
    licence: str = ""
    needs: str = ""


JudgeKind = Literal[
    "answer",
    "parg",
    "edit-sc",
    "edit-pq",
    "attributes",
    "presence",
    "image-image",
    "image-text",
    "face",
]
"""What a judge can be asked: is the answer right; does the picture honour the prompt and the facts;
was the edit done, and nothing else; is the result natural; which attributes are as in ``truth``;
is the concept in the picture; how alike are pictures; does the picture fit the text; is it the
same person's face (no face in the picture is a failure, which is counted)."""


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """One thing to judge. ``images`` are what is judged (for "edit-sc" before and after),
    ``references`` pictures of the concept, ``facts`` its record in sentences, ``truth`` attributes
    by name where somebody knows them."""

    kind: JudgeKind
    images: tuple[Image, ...] = ()
    references: tuple[Image, ...] = ()
    prompt: str = ""
    answer: str = ""
    gold: str = ""
    facts: tuple[str, ...] = ()
    truth: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge says: ``score`` from 0 to 1 (cosines as they are), None where it ``failed``;
    ``detail`` is its reply, or what went wrong."""

    score: float | None
    detail: str = ""
    failed: bool = False


class Judge(Protocol):
    """What ``JudgeInfo.judge`` makes when it is called without arguments. ``id`` names the model
    and its version; ``kinds`` are what it can be asked; ``remarks`` are what a person should know
    before it is asked: a licence, or where pictures are sent."""

    id: str
    kinds: frozenset[JudgeKind]
    remarks: Sequence[str]

    def score(self, item: JudgeItem) -> Judgement: ...


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A benchmark that a plugin can draw. ``writes`` is ``"module:function"``, called as
    ``(folder, concepts=…, on_concept=…)``; ``on_concept`` is told (drawn, in all)."""

    name: str
    summary: str
    writes: str


@dataclass(frozen=True, kw_only=True)
class ImporterInfo:
    """A reader of concepts that another program saved, for the backend called ``backend``.

    ``reads`` is ``"module:function"``, called as ``(path, epoch=…)``, where ``epoch`` names one of
    several saved states and None the latest. It gives a `Foreign` and neither opens the backend
    nor writes anything. ``binds`` is ``"module:function"``, called with an `Opening`; it gives the
    `Base` that the concept is bound to without reading its weights. Without it the backend is
    opened.
    """

    name: str
    summary: str
    backend: str
    reads: str
    binds: str = ""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a slot is bound to, as the opened ``backend`` says it of itself: see `Backend`, and
    `BackendInfo` for ``deep_layers``."""

    backend: str
    model: str
    fingerprint: str
    width: int
    norm_limit: float
    deep_layers: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Foreign:
    """What an importer read. ``tokens`` carry the name that files or folders suggest, "" where
    they suggest none; ``understood`` are plain values, kept with the slot; ``notes`` say the same
    to a person, one line each."""

    tokens: ConceptTokens
    understood: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Region:
    """Where the subject of a photo is: its ``box``, and where the finder knows it a ``mask``
    (mode L, white = subject, same size as the photo)."""

    box: Box
    mask: Image | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One beat of long work. ``phase`` is a word a person reads ("loading", "encoding",
    "learning", "checking", "painting"), empty where nothing is at work any more; ``total`` 0 means
    unknown; ``metrics`` are shown as they are."""

    phase: str
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    images: tuple[Image, ...] = ()


OnProgress = Callable[[Progress], None]
"""How long work tells its caller how far it is."""


@hookspec
def op_backends() -> Sequence[BackendInfo]:
    """The backends this plugin brings."""
    return ()


@hookspec
def op_commands() -> Sequence[CommandInfo]:
    """Extra commands for `op`."""
    return ()


@hookspec
def op_judges() -> Sequence[JudgeInfo]:
    """Judges for `op bench`."""
    return ()


@hookspec
def op_datasets() -> Sequence[DatasetInfo]:
    """Benchmarks that `op bench export-toy` can draw."""
    return ()


@hookspec
def op_importers() -> Sequence[ImporterInfo]:
    """Other programs whose concepts `op concepts import --from` reads."""
    return ()


@hookspec(firstresult=True)
def op_find_subject(photo: Image, kind: str) -> Region | None:
    """Where the subject of the photo is; None lets the next finder try."""


@hookspec
def op_negatives(
    kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
) -> Sequence[Image]:
    """Up to ``count`` pictures that are not the concept. ``photos`` are the concept's own, so that
    a backend that can may answer with look-alikes that differ in one thing; ``backend`` is the
    name of the backend that will learn, so that plugins answer only with pictures of its kind."""
    return ()
