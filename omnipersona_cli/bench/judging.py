"""The judges of a run: each question goes to the first of them that can answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.errors import MissingError, nearest
from omnipersona_cli.hookspecs import Judge, JudgeItem, JudgeKind

KINDS: tuple[JudgeKind, ...] = (
    "answer", "parg", "edit-sc", "edit-pq", "attributes", "presence", "image-image", "image-text",
    "face",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict and who gave it, by the judge's id."""

    score: float | None
    detail: str
    failed: bool
    judge: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Opened judges by name, the first choice first."""

    judges: Mapping[str, Judge]

    @staticmethod
    def of(names: Sequence[str]) -> Panel:
        """The judges of these names; MissingError for one that is not installed."""
        known = registry.judges()
        opened = {}
        for name in names:
            if name not in known:
                guess = nearest(name, known)
                there = "`op bench judges` lists them" if known else "pip install a plugin"
                raise MissingError(
                    f"there is no judge {name!r}",
                    hint=f"did you mean {guess}?" if guess else there,
                )
            opened[name] = registry.load(known[name].judge)()
        return Panel(judges=opened)

    def about(self) -> dict[str, str]:
        """Each judge's identity: what numbers are comparable by."""
        return {name: judge.id for name, judge in self.judges.items()}

    def notes(self) -> list[str]:
        """What a person should know before they are asked, and what none of them can be asked."""
        told = [remark for judge in self.judges.values() for remark in judge.remarks]
        missing = [kind for kind in KINDS if not self.able(kind)]
        return told + ([f"no judge was named for: {', '.join(missing)}"] if missing else [])

    def verdict(
        self,
        kind: JudgeKind,
        *,
        images: Sequence[Image] = (),
        references: Sequence[Image] = (),
        prompt: str = "",
        answer: str = "",
        gold: str = "",
        facts: Sequence[str] = (),
        truth: Mapping[str, str],
        judge: str = "",
    ) -> Judged | None:
        """The verdict of ``judge``, or of the first that can be asked this; None where none can."""
        name = judge or next(iter(self.able(kind)), "")
        if not name:
            return None
        verdict = self.judges[name].score(
            JudgeItem(
                kind=kind,
                images=tuple(images),
                references=tuple(references),
                prompt=prompt,
                answer=answer,
                gold=gold,
                facts=tuple(facts),
                truth=truth,
            )
        )
        score = None if verdict.failed else verdict.score
        return Judged(
            score=score,
            detail=verdict.detail,
            failed=score is None,
            judge=self.judges[name].id,
        )

    def able(self, kind: JudgeKind) -> list[str]:
        """Those that can be asked this, in order."""
        return [name for name, judge in self.judges.items() if kind in judge.kinds]
