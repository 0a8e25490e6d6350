"""What a backend is, and the values that both sides of that border speak.

A backend adapts one model family. The engine owns loops, optimiser, replay, seeds, calibration and
progress; the backend owns tokenizer, embeddings, the routing of the two token parts through its own
architecture, losses and sampling. Plain dataclasses here; torch and PIL only as types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Task = Literal["understand", "generate", "edit"]
TASKS: tuple[Task, ...] = ("understand", "generate", "edit")

LessonKind = Literal["recognise", "describe", "fact", "depict", "edit"]

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) while a picture is being painted."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a backend reads from another repository than its model's: ``what`` it is to a person,
    the ``files`` of it that are read (patterns, no pickles), and which ``models`` need it (none
    named: all)."""

    repo: str
    what: str
    files: tuple[str, ...]
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """A backend described without importing it: all that `op backends` shows.

    ``opens`` names the function ``(model, device, dtype) -> Backend`` as ``"module:function"``.
    ``tasks`` says how each task is done: "native", "masked" (masked regeneration); a task that is
    absent is refused. Where one repository does not serve every task, ``weights`` says which one
    each needs, and ``default_model`` names them all, joined by "+". ``parts`` are read from other
    repositories besides. ``sizes`` are (width, height) in pixels, the default first. ``memory_gb``
    is what the default model needs to run, ``memory_by_model`` what others of ``models`` do.
    ``learn_steps``, ``learn_rate`` and ``batch`` (lessons per optimiser step, all tasks together)
    are what learning takes where a person names nothing else; ``replay_examples`` is how many
    in-context examples replay shows to the model. ``notes``
    are what else a person should know before choosing it, a sentence each.
    """

    name: str
    summary: str
    opens: str
    tasks: Mapping[Task, str]
    default_model: str
    models: tuple[str, ...] = ()
    weights: Mapping[Task, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    sizes: tuple[tuple[int, int], ...]
    pictures: str
    licence: str
    memory_gb: float
    memory_by_model: Mapping[str, float] = field(default_factory=dict)
    steps: int = 50
    guidance: float = 4.0
    learn_steps: int = 2000
    learn_rate: float = 1e-3
    batch: int = 8
    replay_examples: int = 6
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConceptTokens:
    """The learned input embeddings of one concept on one backbone (paper, section 3.1).

    ``id`` [1, d] stands wherever the name is written; ``und`` [N_u, d] is routed to the
    understanding expert, ``gen`` [N_g, d] to the generation expert. ``extra`` holds optional
    tensors under the pack's own names ("deep.<layer>.und", "lora.<task>.…").
    """

    name: str
    id: Tensor
    und: Tensor
    gen: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> list[Tensor]:
        """Everything that learning may move, in a fixed order."""
        return [self.id, self.und, self.gen, *(self.extra[key] for key in sorted(self.extra))]


@dataclass(frozen=True, kw_only=True)
class Span:
    """``text[start:end]`` is a mention of the concept ``name``, brackets included."""

    start: int
    end: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One text turn and the concepts mentioned in it."""

    text: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked of a backend: text turns (the request last) and the concepts they mention.

    A backend never looks up a pack: every name in a span is among ``concepts``, or, where it is
    not, the mention is plain text. A prompt without concepts must give exactly what a freshly
    opened backbone gives.
    """

    turns: tuple[Turn, ...]
    concepts: tuple[ConceptTokens, ...] = ()

    @property
    def text(self) -> str:
        """The request."""
        return self.turns[-1].text


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One thing to teach.

    understand: look at ``image`` (or at nothing), read ``request``, say ``answer``.
    generate: read ``request``, paint ``target``.
    edit: look at ``image``, read ``request``, paint ``target`` (same size as ``image``).
    """

    task: Task
    kind: LessonKind
    request: Turn
    image: Image | None = None
    target: Image | None = None
    answer: str = ""


class Prepared(Protocol):
    """A lesson after every frozen encoder has run; the rest of it is the backend's secret."""

    @property
    def task(self) -> Task: ...


class Backend(Protocol):
    """One opened backbone; its weights never change. `omnipersona_cli.testing` has the rules."""

    info: BackendInfo
    model: str
    """Hub id, folder, or "embedded"."""
    fingerprint: str
    """Base repository, revision and a hash of configuration, tokenizer and weights identity:
    what a slot is bound to. The part before the first "@" is the slot's short name."""
    width: int
    """d, the width of a concept token."""

    @property
    def norm_limit(self) -> float:
        """The largest l2 norm that a token row may have, from the base's embedding table."""

    def new_tokens(
        self, name: str, *, understand: int, generate: int, photos: Sequence[Image], seed: int
    ) -> ConceptTokens:
        """Trainable float32 tokens started from the backbone's own features of the photos."""

    def prepare(self, lessons: Sequence[Lesson]) -> Sequence[Prepared]:
        """Everything frozen, computed once: vision features, image codes or latents, token ids."""

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int
    ) -> Mapping[Task, Tensor]:
        """One scalar per task present in the batch. Heads run only where a label is; no vision
        tower or image encoder runs in here. ``seed`` fixes time steps, noise and dropout."""

    def say(
        self,
        prompt: Prompt,
        *,
        image: Image | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer as a stream of pieces of text."""

    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability [len(answers)] of each given answer, its end included."""

    def gen(
        self,
        prompt: Prompt,
        *,
        size: tuple[int, int] | None,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
    ) -> Iterator[Image]:
        """One picture per seed; None means the backend's own default."""

    def edit(
        self,
        image: Image,
        prompt: Prompt,
        *,
        mask: Image | None,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
    ) -> Iterator[Image]:
        """One picture per seed, of the size of ``image``. ``mask`` (mode L, white = may change)
        limits the change; the engine pastes the source back outside it."""

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Notes for a person before work starts: words it does not know, pictures that are not of
        its kind. One sentence each; empty when all is well."""
