"""What a backend is, and the values that both sides of that border speak.

A backend adapts one model family. The engine owns loops, optimiser, replay, seeds, calibration and
progress; the backend owns tokenizer, embeddings, the routing of the two token parts through its own
architecture, losses and sampling. Plain dataclasses here; torch and PIL only as types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Task = Literal["understand", "generate", "edit"]
TASKS: tuple[Task, ...] = ("understand", "generate", "edit")

LessonKind = Literal["recognise", "describe", "fact", "unknown", "depict", "edit"]

Box = tuple[int, int, int, int]
"""A part of a picture in pixels: (left, top, right, bottom); right and bottom are just outside."""

Quantize = Literal["", "int8", "nf4"]
"""The number format of weights that are quantised; "" where none are."""

Verb = Literal["ask", "gen", "edit", "learn"]
"""What a backend is opened for."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) while something long is done: a picture is painted,
weights are read, pictures are encoded."""


T = TypeVar("T")


def counted(items: Sequence[T], on_step: OnStep | None) -> Iterator[T]:
    """The items in turn; ``on_step`` is told when one is done with."""
    for number, item in enumerate(items):
        yield item
        if on_step is not None:
            on_step(number + 1, len(items))


OnEstimate = Callable[[int, int, Callable[[], "Image"]], None]
"""Called with (steps done, steps in all, look) while a picture is being painted. ``look()`` decodes
what the model now takes the picture to be; after the last step that is the picture itself."""

Part = Literal["und", "gen"]
"""The two parts of a concept: understanding tokens, generation tokens (paper, section 3.1)."""

DEEP = re.compile(r"deep\.([1-9][0-9]{0,3})\.(und|gen)")
"""The name of one part's tokens of one layer of the decoder; layers count from 0."""

Method = Literal["native", "masked"]
"""How a task is done: as the model learned it, or by masked regeneration of a region."""


DEVICES = ("auto", "cpu", "cuda", "mps")
"""Where a backend may be asked to compute; `is_device` has one GPU of several as well."""
DTYPES = ("float32", "bfloat16", "float16")
"""Number formats that may be asked for."""


def is_device(name: str) -> bool:
    """One of `DEVICES`, or one GPU of several by its number: ``cuda:1``."""
    return re.fullmatch(rf"{'|'.join(DEVICES)}|cuda:\d{{1,2}}", name) is not None


def memory_in(text: str) -> float:
    """GiB of an amount of memory as a person writes it (``12G``, ``12``, ``1.5 GB``, ``800M``); 0
    for what is none."""
    found = re.fullmatch(r"(\d{1,5}(?:\.\d+)?)\s*([gm]?)(?:i?b)?", text.strip().lower())
    amount = float(found[1]) / (1024 if found[2] == "m" else 1) if found else 0.0
    return amount if amount < 2**16 else 0.0


def is_hub_id(name: str) -> bool:
    """True for what the hub calls a repository, ``owner/name``: no path, and nothing that a shell
    would act on. Names that come from a pack are checked by this before anybody looks for them."""
    part = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
    return re.fullmatch(f"{part}/{part}", name) is not None and ".." not in name


@dataclass(frozen=True, kw_only=True)
class Component:
    """What a backend reads from another repository than its model's: ``what`` it is to a person,
    the ``files`` of it that are read (patterns, no pickles), and which ``models`` need it (none
    named: all)."""

    repo: str
    what: str
    files: tuple[str, ...]
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FreeSizes:
    """Pictures of any size whose sides are multiples of ``step`` pixels, up to ``largest``."""

    step: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """A backend described without importing it: all that `op backends` shows.

    ``opens`` names the function ``(opening: Opening) -> Backend`` as ``"module:function"``,
    ``footprint`` one ``(opening: Opening, size: tuple[int, int] | None) -> Footprint`` that tells
    what its memory depends on (`omnipersona_cli.family.footprint`) and imports nothing heavy.
    ``tasks`` says how each task is done; a task that is absent is refused. Where one repository
    does not serve every task, ``weights`` says which one each needs, and ``default_model`` names
    them all, joined by "+". ``files`` are patterns of the files that are read of these repositories
    (none: `omnipersona_cli.family.weights.FILES`), ``components`` are read from other repositories
    besides. ``sizes`` are (width, height) in pixels, the default first; other sizes
    are painted only where ``free_sizes`` allows them. ``lesson_sizes`` are the least and the usual
    pixels of a side of pictures that are learned from, None where there is no choice. ``memory_gb``
    is what the default model needs to run, ``memory_by_model`` what others of ``models`` do.
    ``learn_steps``, ``learn_rate`` and
    ``batch`` (lessons per optimiser step, all tasks together) are what learning takes where a
    person names nothing else. Facts are rehearsed as text besides, into ``fact_tokens`` more
    understanding tokens (0: into those that there are) at ``fact_rate`` (0: that of the rest), and
    ``unknown_answer`` is taught where a fact was never told: words that the model can say.
    ``replay_leads`` says who reads a request in replay: the "model", held in check by the grammar,
    or the "grammar" where the model is too small for that; ``replay_examples`` is how many
    in-context examples the model is shown. ``threads`` is the number of processor threads that it
    is fastest with, 0 where torch's own choice is right (`registry.open_backend` sets it).
    ``deep_layers`` are the layers after the first that may have tokens of their own, 0 where none
    may, and ``depth`` how many of them are learned where a person names nothing else.
    ``experts`` says that it learns low-rank experts where it is asked to, as an `ExpertBackend`.
    ``fast`` says how it paints in less time, where it can; such a backend is a `FastBackend`.
    ``estimates`` says that it shows pictures on their way, as `EstimatingBackend`. A question may
    be about ``most_images`` pictures at once; where these are several, it is a `ComparingBackend`.
    ``notes`` are what else a person should know before choosing it, a sentence each.
    """

    name: str
    summary: str
    opens: str
    tasks: Mapping[Task, Method]
    default_model: str
    footprint: str = ""
    models: tuple[str, ...] = ()
    weights: Mapping[Task, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()
    sizes: tuple[tuple[int, int], ...]
    free_sizes: FreeSizes | None = None
    lesson_sizes: tuple[int, int] | None = None
    pictures: str
    licence: str
    memory_gb: float
    memory_by_model: Mapping[str, float] = field(default_factory=dict)
    steps: int = 50
    guidance: float = 4.0
    learn_steps: int = 2000
    learn_rate: float = 1e-3
    batch: int = 8
    fact_tokens: int = 0
    fact_rate: float = 0.0
    unknown_answer: str = "I do not know"
    deep_layers: int = 0
    depth: int = 0
    experts: bool = False
    replay_leads: Literal["model", "grammar"] = "model"
    replay_examples: int = 6
    threads: int = 0
    fast: str = ""
    estimates: bool = False
    most_images: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open a backend: what ``-b``, ``--model``, ``--device`` and ``--dtype`` say.

    ``backend`` "" is the default one (`registry.open_backend` fills it in, so that an opener sees
    its own name). ``model`` is a hub id or a folder, None the backend's ``default_model``.
    ``device`` "auto" is the best of this machine's for this backend, "cpu" where it has no other.
    ``dtype`` None or "auto" is the backend's own for that device. A device that is not here is a
    MissingError, a dtype that the backend does not run in a UsageError. ``on_step``, where there
    is one, is told how much of the weights is read.

    ``memory`` are the GiB that may be used, 0 what is free; `registry.open_backend` chooses by it.
    ``activation_checkpointing`` learns without keeping what layers can compute again; ``offload``
    keeps the layers' weights in the computer's memory and on a card only while they are used.
    ``quantize`` is the format of the understanding expert's weights, where a backend has one.
    Pictures that are learned from have about ``lesson_size`` pixels a side, 0 the backend's own
    (`registry.open_backend` refuses it where ``info.lesson_sizes`` does not allow it).

    ``revisions`` are the commits of the hub's repositories that are wanted, where they are here:
    those that a concept was learned on (`omnipersona_cli.family.weights.locate` takes them).
    """

    backend: str = ""
    model: str | None = None
    device: str = "auto"
    dtype: str | None = None
    memory: float = 0.0
    activation_checkpointing: bool = False
    offload: bool = False
    quantize: Quantize = ""
    lesson_size: int = 0
    revisions: Mapping[str, str] = field(default_factory=dict, hash=False)
    on_step: OnStep | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a backend is opened for, as far as memory depends on it: the ``verb``, the ``size`` of
    the pictures (None: the backend's own), how many ``images`` a question is about, and of learning
    the lessons of a ``batch``, how many of them are held ``at_once`` (0: the backend's own), the
    ``depth`` of the tokens, and the largest ``aspect_ratio`` of a picture, longer side over shorter
    one."""

    verb: Verb
    size: tuple[int, int] | None = None
    images: int = 1
    batch: int = 0
    at_once: int = 0
    depth: int = 0
    aspect_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ConceptTokens:
    """The learned input embeddings of one concept on one backbone (paper, section 3.1).

    ``id`` [1, d] stands wherever the name is written; ``und`` [N_u, d] is routed to the
    understanding expert, ``gen`` [N_g, d] to the generation expert. The last ``fact_tokens`` rows
    of ``und`` hold facts. Recognition and painting do not read them (`of_looks`): they say nothing
    of how it looks, and replay says a fact in words where a picture needs it. ``extra`` holds
    optional tensors under the pack's own names ("deep.<layer>.und", "lora.<task>.…").

    Deep tokens (`deep`) are added to what a later layer reads at a part's rows: "deep.3.gen" to
    what layer 3 reads where ``gen`` stands, at the scale to which that has grown. There are as many
    as the part has rows, those for facts left out, in each of the layers 1 to `depth`; layer 0
    reads the input embeddings themselves.
    """

    name: str
    id: Tensor
    und: Tensor
    gen: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    fact_tokens: int = 0

    def of_looks(self) -> ConceptTokens:
        """The same without the rows for facts."""
        if not self.fact_tokens:
            return self
        looks = len(self.und) - self.fact_tokens
        return replace(self, und=self.und[:looks], fact_tokens=0)

    def deep(self, part: Part) -> dict[int, Tensor]:
        """The deep tokens of one part by layer."""
        found = ((DEEP.fullmatch(key), value) for key, value in self.extra.items())
        return {int(name[1]): value for name, value in found if name and name[2] == part}

    @property
    def depth(self) -> int:
        """The last layer with tokens of its own, 0 where the first alone has them."""
        return max((0, *self.deep("und"), *self.deep("gen")))

    @property
    def has_experts(self) -> bool:
        """Whether low-rank experts were learned with it."""
        return any(key.startswith("lora.") for key in self.extra)

    def with_still(self, part: Part) -> ConceptTokens:
        """The same, but learning cannot move one part, in whatever layer."""
        extra = {
            key: value.detach() if (name := DEEP.fullmatch(key)) and name[2] == part else value
            for key, value in self.extra.items()
        }
        if part == "und":
            return replace(self, und=self.und.detach(), extra=extra)
        return replace(self, gen=self.gen.detach(), extra=extra)

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
    """One opened backbone; its weights never change.

    Where things live: tokens that `new_tokens` makes are float32 on ``device``; the tokens of a
    prompt or of `loss` may be on any device and are moved by the backend. Prepared lessons live
    where the backend likes. Losses are float32 scalars on the tokens' device. `score` and `see`
    give float32 on the CPU. Computing inside is in the dtype that it was opened in.

    Who refuses what: the engine refuses, before it calls, a task that ``info`` does not name, a
    size that it does not allow, and a mask that is empty or not of the picture's size. A backend
    refuses what it alone can see: tokens of another width (SlotError), a request that leaves no
    room (TaskError). `omnipersona_cli.testing.BackendContract` checks all this.
    """

    info: BackendInfo
    """As opened: tasks, sizes and memory of these weights."""
    model: str
    """Hub id, a folder's name (never its path), or "embedded"."""
    fingerprint: str
    """What a slot is bound to: "<short name>@<hash>". The hash is of configuration, tokenizer and
    weights identity (names, shapes and a sample of the values, as stored), so that it is the same
    at each opening and on every device and dtype, and changes when a fine-tune replaces the base.
    The short name is the slot's: lower-case letters, digits, ".", "_" and "-"."""
    device: str
    """Where it computes, as torch names it: "cpu", "cuda", "cuda:1", "mps"."""
    width: int
    """d, the width of a concept token: that of the language model's input embeddings."""

    @property
    def norm_limit(self) -> float:
        """The largest l2 norm that a token row may have: ten times the largest row norm of the
        base's text embedding table. Only a backbone that was pretrained with concept tokens may
        say more, as much as those need."""

    def new_tokens(
        self,
        name: str,
        *,
        understand: int,
        generate: int,
        photos: Sequence[Image],
        seed: int,
        on_step: OnStep | None = None,
    ) -> ConceptTokens:
        """Trainable tokens [1, d], [understand, d], [generate, d], started from the backbone's own
        features of the photos; no row is longer than ``norm_limit``. ``on_step`` counts photos."""

    def see(self, images: Sequence[Image]) -> Tensor:
        """What the backbone sees in each picture, [n, d]: the mean of its own vision features, as
        they enter the language model. A backbone of several checkpoints opens only the one that
        understands."""

    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[Prepared]:
        """Everything frozen, computed once: vision features, image codes or latents, token ids.
        ``on_step`` counts pictures."""

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """One scalar per task present in the batch. Heads run only where a label is; no vision
        tower or image encoder runs in here. ``seed`` fixes time steps, noise and dropout.

        At most ``at_once`` lessons keep activations for the way back at the same time (0: as many
        as the backend thinks right for the device); values and gradients are those of the whole
        batch, but for rounding."""

    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """For each understanding lesson the mean cross-entropy of its answer's tokens, float32 [n],
        without gradients. What lessons share is read once: yes and no of one picture cost hardly
        more than one of the two."""

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
        """One RGB picture per seed; None means the backend's own default. A seed means the same
        alone and among others. ``size`` is one that ``info`` allows."""

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
        """One picture per seed, of the size of ``image``. ``mask`` (mode L, of the same size, white
        = may change, never all black) limits the change; the engine pastes the source back outside
        it. It is None only where ``info.tasks["edit"]`` is "native"."""

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Notes for a person before work starts: words it does not know, pictures that are not of
        its kind. One sentence each; empty when all is well."""


class ExpertBackend(Backend, Protocol):
    """A backend whose ``info.experts`` is true: it learns low-rank experts besides tokens."""

    def new_experts(self, *, seed: int) -> Mapping[str, Tensor]:
        """Low-rank experts per task that change nothing yet, under the names "lora.<task>.….A" and
        "….B" (task "und", "gen" or "edit"; A [r, in] random, B [out, r] zero)."""


class FastBackend(Backend, Protocol):
    """A backend that can paint in less time, as its ``info.fast`` says."""

    def faster(self) -> Backend:
        """The same opened backbone, painting faster: nothing is read again, ``info.steps`` are its
        own, and ``info.fast`` is empty; it may show no estimates. All but `gen` and `edit` is the
        same to the bit."""


class ComparingBackend(Backend, Protocol):
    """A backend whose ``info.most_images`` is more than 1: it looks at several pictures in one
    context. Their order matters: the model sees ``image`` first, then ``more`` as they are given.
    Who calls gives no more than ``info.most_images`` in all, and ``more`` only after an ``image``.
    """

    def say(
        self,
        prompt: Prompt,
        *,
        image: Image | None = None,
        more: Sequence[Image] = (),
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """As `Backend.say`."""

    def score(
        self,
        prompt: Prompt,
        answers: Sequence[str],
        *,
        image: Image | None = None,
        more: Sequence[Image] = (),
    ) -> Tensor:
        """As `Backend.score`."""


class EstimatingBackend(Backend, Protocol):
    """A backend whose ``info.estimates`` is true: it shows a picture while it paints it. With
    several seeds the first that is being painted is shown. Looking changes nothing."""

    def gen(
        self,
        prompt: Prompt,
        *,
        size: tuple[int, int] | None,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        on_estimate: OnEstimate | None = None,
    ) -> Iterator[Image]:
        """As `Backend.gen`; an estimate has the picture's size."""

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
        on_estimate: OnEstimate | None = None,
    ) -> Iterator[Image]:
        """As `Backend.edit`; an estimate has the size of ``image``."""
