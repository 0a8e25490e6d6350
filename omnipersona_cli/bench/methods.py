"""The paper's method, what it is without each of its parts, and its two rivals that learn nothing.

============================  =====================================================================
full                          everything, with defaults
without-decoupling            one shared token group: understanding and generation read the same 16
                              rows (the mean of two groups that move together), in learning and use
without-replay                the tokens of full; requests are painted as they stand
without-facts-text            the tokens of full; the pack's written facts are taken away, so that
                              replay has the tokens alone to ask
without-edit-lessons          no editing lessons among those that are learned
instant                       no step of learning: the start, as `op learn --steps 0` keeps it
deep                          tokens for three layers after the first as well (`DEPTH`), where the
                              backend takes them
text-prompt-only              nothing is learned: the description stands where the name stood, and
                              the facts stand before the request
pictures-in-context           nothing is learned: the first photo is shown. A backend takes one
                              picture, so it stands beside the one that is asked about; painting
                              is editing the photo; edits have a picture of their own: left out
============================  =====================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    Backend,
    BackendInfo,
    ConceptTokens,
    OnStep,
    Prepared,
    Prompt,
    Task,
)
from omnipersona_cli.errors import UsageError, nearest

Recipe = Literal["full", "shared", "no-edit", "instant", "deep", ""]
Context = Literal["tokens", "text", "pictures"]


DEPTH = 3
"""Layers after the first that have tokens of their own in the method "deep"."""


@dataclass(frozen=True, kw_only=True)
class BenchMethod:
    """One row of the table. ``recipe`` says how its tokens are learned; methods with one recipe
    share them. ``context`` is what stands for the concept in a request."""

    name: str
    summary: str
    recipe: Recipe
    context: Context = "tokens"
    replayed: bool = True
    facts_text: bool = True


METHODS: dict[str, BenchMethod] = {
    method.name: method
    for method in (
        BenchMethod(name="full", summary="everything", recipe="full"),
        BenchMethod(name="without-decoupling", summary="one shared token group", recipe="shared"),
        BenchMethod(name="without-replay", summary="no replay", recipe="full", replayed=False),
        BenchMethod(
            name="without-facts-text", summary="replay asks tokens", recipe="full", facts_text=False
        ),
        BenchMethod(name="without-edit-lessons", summary="no edit lessons", recipe="no-edit"),
        BenchMethod(name="instant", summary="no step of learning", recipe="instant"),
        BenchMethod(name="deep", summary="tokens for three more layers", recipe="deep"),
        BenchMethod(
            name="text-prompt-only", summary="facts as text, no learning", recipe="", context="text"
        ),
        BenchMethod(
            name="pictures-in-context",
            summary="a photo in context, no learning",
            recipe="",
            context="pictures",
        ),
    )
}


def chosen_methods(names: Sequence[str]) -> tuple[BenchMethod, ...]:
    """The methods of these names, in the table's order; "all" means every one."""
    for name in names:
        if name not in METHODS and name != "all":
            guess = nearest(name, METHODS)
            raise UsageError(
                f"there is no method {name!r}",
                hint=f"did you mean {guess}?" if guess else f"there are {', '.join(METHODS)}",
            )
    return tuple(method for method in METHODS.values() if method.name in names or "all" in names)


def depth_of(backend: Backend, recipe: Recipe) -> int | None:
    """For how many layers after the first this recipe learns tokens; None for the backend's own
    number."""
    return min(DEPTH, backend.info.deep_layers) or None if recipe == "deep" else None


def learner(backend: Backend, recipe: Recipe) -> Backend:
    """The backend as this recipe learns with it."""
    if recipe == "no-edit":
        return WithoutTask(backend, "edit")
    return user(backend, recipe)


def user(backend: Backend, recipe: Recipe) -> Backend:
    """The backend as tokens of this recipe are used with it."""
    return SharedTokens(backend) if recipe == "shared" else backend


class _Around:
    """A backend around another: whatever is not said here is the other's own."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self.info: BackendInfo = backend.info
        self.model = backend.model
        self.fingerprint = backend.fingerprint
        self.device = backend.device
        self.width = backend.width
        self.norm_limit = backend.norm_limit

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
        """The inner backend's."""
        return self.inner.new_tokens(
            name, understand=understand, generate=generate, photos=photos, seed=seed,
            on_step=on_step,
        )  # fmt: skip

    def see(self, images: Sequence[Image]) -> Tensor:
        """The inner backend's."""
        return self.inner.see(images)

    def prepare(
        self, lessons: Sequence[Any], *, on_step: OnStep | None = None
    ) -> Sequence[Prepared]:
        """The inner backend's."""
        return self.inner.prepare(lessons, on_step=on_step)

    def read(self, prompt: Prompt) -> Prompt:
        """The prompt as the inner backend gets it."""
        return prompt

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """The inner backend's."""
        return self.inner.loss(batch, tokens, seed=seed, at_once=at_once)

    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """The inner backend's."""
        return self.inner.answer_losses(lessons, tokens)

    def say(
        self,
        prompt: Prompt,
        *,
        image: Image | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The inner backend's."""
        return self.inner.say(
            self.read(prompt), image=image, max_tokens=max_tokens, temperature=temperature,
            seed=seed,
        )  # fmt: skip

    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """The inner backend's."""
        return self.inner.score(self.read(prompt), answers, image=image)

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
        """The inner backend's."""
        return self.inner.gen(
            self.read(prompt), size=size, steps=steps, guidance=guidance, seeds=seeds,
            on_step=on_step,
        )  # fmt: skip

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
        """The inner backend's."""
        return self.inner.edit(
            image, self.read(prompt), mask=mask, steps=steps, guidance=guidance, seeds=seeds,
            on_step=on_step,
        )  # fmt: skip

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """The inner backend's."""
        return self.inner.remarks(texts=texts, photos=photos)


class WithoutTask(_Around):
    """A backend that does not do one task: no lesson of it is prepared, none is learned."""

    def __init__(self, backend: Backend, task: Task) -> None:
        super().__init__(backend)
        tasks = {name: how for name, how in backend.info.tasks.items() if name != task}
        self.info = replace(backend.info, tasks=tasks)


class SharedTokens(_Around):
    """A backend that reads one token group wherever it would read one of two: both expert routes
    get the mean of the two groups, which therefore move as one."""

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """The loss of the shared group."""
        return self.inner.loss(batch, shared(tokens), seed=seed, at_once=at_once)

    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Those of the shared group."""
        return self.inner.answer_losses(lessons, shared(tokens))

    def read(self, prompt: Prompt) -> Prompt:
        """The prompt with the shared group of every concept."""
        return replace(prompt, concepts=tuple(shared(tokens) for tokens in prompt.concepts))


def shared(tokens: ConceptTokens) -> ConceptTokens:
    """The tokens with one group in the place of two."""
    rows = min(len(tokens.und), len(tokens.gen))
    group = (tokens.und[:rows] + tokens.gen[:rows]) / 2
    return replace(tokens, und=group, gen=group)


def described(text: str, name: str, info: str, class_word: str) -> str:
    """The request with the description in the place of the name."""
    return re.sub(rf"<{re.escape(name)}>", description(name, info, class_word), text)


def description(name: str, info: str, class_word: str) -> str:
    """ "<bo> is a white cat with a hat." -> "a white cat with a hat"."""
    text = re.sub(rf"^<{re.escape(name)}>\s+(?:is|are)\s+", "", info.strip()).rstrip(".")
    return text or f"the {class_word or 'subject'}"


def facts_in_context(name: str, facts: Sequence[str]) -> str:
    """The facts as sentences about "it": what a backbone can read that never heard the name."""
    mention = re.escape(f"<{name}>")
    plain = (re.sub(rf"{mention}(?:'s|')", "its", fact).strip(". ") for fact in facts)
    return " ".join(re.sub(mention, "it", fact) + "." for fact in plain)


def beside(reference: Image, picture: Image) -> Image:
    """Both pictures in one: the reference on the left, the other on the right, each in the shape of
    the other."""
    both = images.new("RGB", (2 * picture.width, picture.height))
    both.paste(reference.convert("RGB").resize(picture.size), (0, 0))
    both.paste(picture.convert("RGB"), (picture.width, 0))
    return both
