"""What a person may want to look at later: pictures painted as it learns, and the losses."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from PIL.Image import Image

from omnipersona_cli.backend import Backend, ConceptTokens, OnStep, Prompt
from omnipersona_cli.concepts.container import write_file
from omnipersona_cli.engine.examine import Examined
from omnipersona_cli.engine.heldout import Check
from omnipersona_cli.engine.keep import Keeping
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.page import Preview, Story, write_page
from omnipersona_cli.engine.progress import OnProgress
from omnipersona_cli.engine.report import Learned
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.errors import ResourceError
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import to_turn

PROMPT = "a picture of <{name}>"
SEED = 0


class Previews:
    """Paints one picture at a fixed seed at every check, into ``keeping.previews`` and for the
    page; nothing where neither is wanted. Keeps the joint loss of every step."""

    def __init__(self, backend: Backend, keeping: Keeping, on_progress: OnProgress) -> None:
        self.backend, self.keeping, self.tell = backend, keeping, on_progress
        self.kept: list[Preview] = []
        self.losses: list[tuple[int, float]] = []

    @property
    def on_check(self) -> Callable[[ConceptTokens, Check, OnStep], None] | None:
        """What `optimise` calls at every check; None where nothing is to be painted."""
        wanted = self.keeping.previews is not None or self.keeping.page is not None
        return self._paint if wanted and "generate" in self.backend.info.tasks else None

    def on_progress(self, event: Progress) -> None:
        """Hands an event on, and keeps the loss that it tells."""
        if "loss" in event.metrics:
            self.losses.append((event.step, event.metrics["loss"]))
        self.tell(event)

    def write_page(
        self, learned: Learned, material: Material, examined: Examined, run: Path
    ) -> None:
        """The page of ``keeping``, with what was painted and the losses; nothing where it has
        none. ``run`` is the folder of the run."""
        if self.keeping.page is None:
            return
        story = Story(
            learned=learned,
            material=material,
            samples=examined.samples,
            previews=tuple(self.kept),
            losses=tuple(self.losses),
        )
        write_page(story, self.keeping.page, run)

    def _paint(self, tokens: ConceptTokens, check: Check, on_step: OnStep) -> None:
        turn = to_turn(PROMPT.format(name=tokens.name))
        prompt = Prompt(turns=(turn,), concepts=(copy_of(tokens),))
        with torch.no_grad():
            painted = self.backend.gen(
                prompt, size=None, steps=None, guidance=None, seeds=(SEED,), on_step=on_step
            )
            image = next(iter(painted))
        if self.keeping.page is not None:
            self.kept.append(Preview(step=check.step, images=(image,)))
        if self.keeping.previews is not None:
            self._save(image, self.keeping.previews / f"step-{check.step:05d}.png")
        self.tell(Progress(phase="learning", step=check.step, images=(image,)))

    def _save(self, image: Image, path: Path) -> None:
        data = BytesIO()
        image.save(data, format="PNG")
        try:
            write_file(path, data.getvalue(), overwrite=True)
        except ResourceError as error:
            raise ResourceError(str(error), hint="choose another --previews") from error
