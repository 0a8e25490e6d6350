"""A person's words, made ready: which concepts they mention, their packs, and the backend.

What `gen`, `edit` and `ask` share: everything that must be right before a model is asked anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import (
    Backend,
    BackendInfo,
    ConceptTokens,
    FastBackend,
    Prompt,
    Task,
    Turn,
    Verb,
    Work,
    is_hub_id,
)
from omnipersona_cli.backend import Opening as Opening
from omnipersona_cli.concepts.bases import known_base, remember_base
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Pack
from omnipersona_cli.data.colour import normalised
from omnipersona_cli.engine.limits import SMALLEST_SIDE
from omnipersona_cli.engine.precision import precision_notes
from omnipersona_cli.engine.progress import OnProgress
from omnipersona_cli.engine.tokens import from_slot, revisions_in
from omnipersona_cli.errors import PhotoError, SlotError, TaskError, UsageError, shell_word
from omnipersona_cli.language.characters import one_line
from omnipersona_cli.language.mentions import attach, check_name, names_in, to_turn
from omnipersona_cli.language.questions import asks_presence
from omnipersona_cli.registry import memory_errors as memory_errors

LONGEST_REQUEST = 2000
"""The most characters that a request may have."""


VERBS: Mapping[Task, Verb] = {"understand": "ask", "generate": "gen", "edit": "edit"}
"""The verb that a task is asked for by."""

ANY = Opening()
"""The concepts decide which backend, or the default does; the backend decides the rest."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The words, the concepts they mention, and the opened backend.

    ``notes`` are for a person, one sentence each; ``hints`` say what to try instead. ``fast`` is
    true where the backend paints as its `fast` says.
    """

    text: str
    backend: Backend
    packs: Mapping[str, Pack]
    concepts: tuple[ConceptTokens, ...]
    notes: tuple[str, ...] = ()
    fast: bool = False

    @property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """The written facts of each concept."""
        return {name: tuple(fact.text for fact in pack.facts) for name, pack in self.packs.items()}

    @property
    def hashes(self) -> dict[str, str]:
        """Each pack's content hash, for what is made with it."""
        return {name: pack.hash for name, pack in self.packs.items()}

    def prompt(self, text: str, *, earlier: Sequence[Turn] = ()) -> Prompt:
        """``text`` after the turns ``earlier``, with the tokens of the concepts they mention."""
        turns = (*earlier, to_turn(text))
        mentioned = {span.name for turn in turns for span in turn.spans}
        concepts = tuple(tokens for tokens in self.concepts if tokens.name in mentioned)
        return Prompt(turns=turns, concepts=concepts)


def open_request(
    text: str,
    *,
    concepts: Sequence[str] = (),
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    task: Task,
    pictures: Sequence[Image] = (),
    fast: bool = False,
    size: tuple[int, int] | None = None,
    on_progress: OnProgress | None = None,
) -> Request:
    """Find what ``text`` mentions and open what it needs, to paint ``fast`` if so asked.

    ``concepts`` are used even where the text does not mention them; ``pictures`` are those that it
    is about; ``size`` is that of a picture to be painted, None the backend's own. An already opened
    ``backend`` is taken as it is. Raises UsageError for a text that is empty or too long,
    MissingError for a concept that is not in the library, SlotError where no backend knows all of
    them, TaskError where the backend does not do ``task``, or not fast.
    """
    text = checked_text(text, task)
    library = Library() if library is None else library
    extra = [check_name(name) for name in concepts]
    text = attach(text, extra, task)
    names = tuple(dict.fromkeys((*names_in(text), *extra)))
    packs = {name: library.load(name) for name in names}
    if backend is None:
        if task == "edit" and pictures:
            size = pictures[0].size
        work = Work(verb=VERBS[task], size=size, images=max(1, len(pictures)))
        backend = _opened(packs, opening, task, on_progress, work=work, fast=fast)
    check_task(backend.info, task)
    if fast:
        _check_fast(backend.info)
        backend = cast(FastBackend, backend).faster()
    tokens = tuple(from_slot(packs[name], backend) for name in names)
    notes = [
        *_unmentioned(text, names, library),
        *precision_notes(packs, backend),
        *backend.remarks(texts=(text,), photos=pictures),
    ]
    return Request(
        text=text, backend=backend, packs=packs, concepts=tokens, notes=tuple(notes), fast=fast
    )


def opened_for(
    names: Sequence[str],
    opening: Opening = ANY,
    *,
    task: Task = "understand",
    library: Library | None = None,
    on_progress: OnProgress | None = None,
) -> Backend:
    """The backend that requests with these concepts want, opened once for many of them."""
    library = Library() if library is None else library
    packs = {name: library.load(name) for name in map(check_name, names)}
    return _opened(packs, opening, task, on_progress, work=Work(verb=VERBS[task]))


def check_images(
    question: str,
    count: int,
    *,
    concepts: Sequence[str] = (),
    info: BackendInfo | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    first: str = "photo.png",
) -> None:
    """Whether ``question`` can be asked of ``count`` pictures at once, before any is opened, or a
    model is: that of ``info``, or else the one that would be. ``first`` is what the first of them
    is called, for the hint.

    Raises TaskError where the backend does not look at so many, UsageError for the presence of a
    concept, whose threshold was set on one picture at a time; else what `open_request` raises.
    """
    if count < 2:
        return
    extra = list(map(check_name, concepts))
    text = attach(checked_text(question, "understand"), extra, "understand")
    names = tuple(dict.fromkeys((*names_in(text), *extra)))
    alone = f"op ask {shell_word(first)} {shell_word(question)}"
    if info is None:
        library = Library() if library is None else library
        packs = {name: library.load(name) for name in names}
        info = registry.backend_info(choose(packs, opening).backend)
    check_task(info, "understand")
    if count > info.most_images:
        able = [it.name for it in registry.backends().values() if it.most_images >= count]
        others = f"; these look at so many: {', '.join(able)}" if able else ""
        most = info.most_images
        raise TaskError(
            f"{info.name} looks at {most} {'picture' if most == 1 else 'pictures'} at a time, "
            f"and {count} are given",
            hint=f"ask of one: {alone}{others}",
        )
    if names and asks_presence(text):
        raise UsageError(
            f"whether <{names[0]}> is there is told of one picture at a time, not of {count}",
            hint=f'ask of each: {alone}; or of all: "which of them shows <{names[0]}>?"',
        )


EXAMPLES: dict[Task, str] = {
    "understand": 'op ask "what is <bo>\'s toy?"',
    "generate": 'op gen "<bo> at the beach"',
    "edit": 'op edit PICTURE "add <bo>"',
}


def checked_text(text: str, task: Task) -> str:
    """``text`` on one line, without what cannot be seen; UsageError when there is none, or too
    much."""
    line = one_line(text)
    if not line:
        raise UsageError("the request is empty", hint=EXAMPLES[task])
    if len(line) > LONGEST_REQUEST:
        raise UsageError(
            f"the request has {len(line):,} characters; {LONGEST_REQUEST:,} are the most",
            hint="say it in a sentence or two; what is always true of a concept belongs in its "
            "facts: op concepts facts NAME add TEXT",
        )
    return line


def checked_picture(image: Image) -> Image:
    """``image`` as `normalised` gives it; PhotoError where it is too small to show anything."""
    if min(image.size) < SMALLEST_SIDE:
        width, height = image.size
        raise PhotoError(
            f"the picture is {width}x{height} pixels, too small to see anything in",
            hint=f"give one of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}",
        )
    return normalised(image)


def check_task(info: BackendInfo, task: Task) -> None:
    """TaskError where the backend does not do ``task``, naming those that do."""
    if task in info.tasks:
        return
    able = [name for name, other in registry.backends().items() if task in other.tasks]
    verb = {"understand": "answer questions", "generate": "paint", "edit": "edit"}[task]
    if info.name in able:
        raise TaskError(
            f"{info.name} does not {verb} with these weights",
            hint=f"leave out --model, or see which weights do: op backends show {info.name}",
        )
    raise TaskError(
        f"{info.name} does not {verb}",
        hint=f"these do: {', '.join(able)} (-b {able[0]})" if able else "see `op backends`",
    )


def _check_fast(info: BackendInfo) -> None:
    """TaskError where the backend has no faster way to paint, naming those that have."""
    if info.fast:
        return
    able = [name for name, other in registry.backends().items() if other.fast]
    raise TaskError(
        f"{info.name} has no faster way to paint",
        hint=f"leave out --fast; these have one: {', '.join(able)}",
    )


def check_size(info: BackendInfo, size: tuple[int, int] | None) -> None:
    """TaskError where the backend does not paint ``size`` (width, height), naming what it paints;
    None is its default."""
    if size is None or size in info.sizes:
        return
    free = info.free_sizes
    if free and all(0 < side <= free.largest and side % free.step == 0 for side in size):
        return
    sizes = ", ".join(f"{width}x{height}" for width, height in info.sizes)
    others = f", or sides in steps of {free.step} up to {free.largest}" if free else ""
    raise TaskError(
        f"{info.name} cannot paint {size[0]}x{size[1]} pixels", hint=f"--size takes {sizes}{others}"
    )


def _opened(
    packs: Mapping[str, Pack],
    opening: Opening,
    task: Task,
    on_progress: OnProgress | None,
    *,
    work: Work,
    fast: bool = False,
) -> Backend:
    chosen = choose(packs, opening)
    info = registry.backend_info(chosen.backend)
    check_task(info, task)
    if fast:
        _check_fast(info)
    return open_model(chosen, work, on_progress)


def open_model(
    opening: Opening, work: Work | None = None, on_progress: OnProgress | None = None
) -> Backend:
    """`registry.open_backend`; a folder of weights is remembered, for the concepts that are learned
    on it."""
    backend = registry.open_backend(opening, work=work, on_progress=on_progress)
    if not all(map(is_hub_id, backend.model.split("+"))):  # else it is no folder
        remember_base(backend.fingerprint, opening.model)
    return backend


def choose(packs: Mapping[str, Pack], opening: Opening) -> Opening:
    """The backend that a person names, else one for which every pack has a slot, nano first; with
    the weights that the concepts were learned on, where nobody names others."""
    if not packs:
        return replace(opening, backend=opening.backend or registry.DEFAULT_BACKEND)
    if opening.backend:
        return _with_base(packs, opening)
    installed = registry.backends()
    fitting: dict[str, str] | None = None
    for pack in packs.values():
        here = {
            str(slot.about.get("backend", "")): str(slot.about.get("base", ""))
            for slot in pack.slots.values()
        }
        fitting = (
            here if fitting is None else {k: v for k, v in fitting.items() if here.get(k) == v}
        )
    able = {name: base for name, base in (fitting or {}).items() if name in installed}
    if not able:
        raise _no_common_backend(packs)
    name = registry.DEFAULT_BACKEND if registry.DEFAULT_BACKEND in able else min(able)
    return _with_base(packs, replace(opening, backend=name))


def _with_base(packs: Mapping[str, Pack], opening: Opening) -> Opening:
    """``opening`` with the weights of ``opening.backend`` that the first pack was learned on, where
    a person names none, and with the revisions of them."""
    opening = opening if opening.model else _with_model(packs, opening)
    info = registry.backends().get(opening.backend)
    pack = next(iter(packs.values()))
    model = opening.model or (info.default_model if info else "")
    wanted = [
        revisions_in(slot.about)
        for slot in pack.slots.values()
        if slot.about.get("backend") == opening.backend and slot.about.get("base") == model
    ]
    return replace(opening, revisions=wanted[0]) if wanted else opening


def _with_model(packs: Mapping[str, Pack], opening: Opening) -> Opening:
    """`_with_base`, of the weights alone: the backend's default ones where the pack was learned on
    them, else those of a hub id, else those of a folder.

    Raises SlotError where nobody knows the folder.
    """
    info = registry.backends().get(opening.backend)
    concept, pack = next(iter(packs.items()))
    bases = {
        str(slot.about.get("base", "")): str(slot.about.get("fingerprint", ""))
        for slot in pack.slots.values()
        if slot.about.get("backend") == opening.backend
    }
    if info is None or not bases or info.default_model in bases:
        return opening
    base, fingerprint = next(iter(bases.items()))
    if "/" in base:
        _check_base(concept, base, opening.backend)
        return replace(opening, model=base)
    folder = known_base(fingerprint)
    if folder is None:
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,95}", base)
        place = f"FOLDER/{base}" if plain else "FOLDER"
        raise SlotError(
            f"<{concept}> was learned on weights of {opening.backend} in a folder called "
            f"{base[:60]!a}, and where that is now is not known here",
            hint=f"say where: -b {opening.backend} --model {place}",
        )
    return replace(opening, model=folder)


def _check_base(concept: str, base: str, backend: str) -> None:
    """SlotError where a pack, which may be a stranger's, names weights by what is no hub id ("A+B"
    are two): nobody looks for such a folder, and no command is made of it."""
    if not all(map(is_hub_id, base.split("+"))):
        raise SlotError(
            f"<{concept}> says that it was learned on {base[:60]!a}, "
            f"which is no name of weights of {backend}",
            hint=f"learn it again: op learn PHOTOS --name {concept} -b {backend} --force",
        )


def _no_common_backend(packs: Mapping[str, Pack]) -> SlotError:
    learned = {
        name: sorted({str(slot.about.get("backend", "?")) for slot in pack.slots.values()})
        for name, pack in packs.items()
    }
    backends = "; ".join(
        f"<{name}> on {', '.join(on) or 'nothing'}" for name, on in learned.items()
    )
    first = next(iter(packs))
    if len(packs) == 1:
        message = f"no backend that is installed knows it: {backends}"
    else:
        message = f"no backend that is installed knows all of them: {backends}"
    return SlotError(message, hint=f"learn it on one that is: op learn PHOTOS --name {first}")


def _unmentioned(text: str, names: Sequence[str], library: Library) -> Iterator[str]:
    """A hint for a request that was meant to mention a concept: the one whose name it has without
    brackets, or the only one there is."""
    if names:
        return
    known = library.names()
    bare = [name for name in known if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    meant = bare or known
    if len(meant) == 1:
        only = meant[0]
        yield f'no concept is mentioned; write "<{only}> …" in quotes, or add --concept {only}'
