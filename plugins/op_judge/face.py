"""Whether it is the same person: InsightFace's antelopev2, as the published Face figures take it.

An extra, because its weights are for non-commercial research only, and because it is for people:
the bench asks it about people alone. The largest face of a picture counts (detection at 640 pixels,
the picture brought to 1024 on its shorter side but no more than 1280 on its longer one). A picture
without a face is a failure: zero in the strict profile, dropped in the other, counted in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from omnipersona_cli.errors import MissingError
from omnipersona_cli.hookspecs import JudgeItem, JudgeKind, Judgement

MODEL = "antelopev2"
FOLDER = "~/.insightface"
RECOGNITION = "glintr100.onnx"
DETECTION_SIDE = 640
SHORTEST, LONGEST = 1024, 1280

LICENCE = "the weights of the judge face (InsightFace) are for non-commercial research only"


class Face(Protocol):
    """What InsightFace finds: a box in pixels and a unit vector."""

    bbox: NDArray[np.float32]
    normed_embedding: NDArray[np.float32]


class FaceJudge:
    """The mean cosine of the largest faces."""

    kinds: frozenset[JudgeKind] = frozenset({"face"})
    remarks: tuple[str, ...] = (LICENCE,)

    def __init__(self) -> None:
        try:
            from insightface.app import FaceAnalysis
        except ImportError as error:
            raise MissingError(
                f"the judge face needs the Python package insightface; {LICENCE}",
                hint="pip install 'omnipersona[face]'",
            ) from error
        folder = Path(FOLDER).expanduser()
        weights = folder / "models" / MODEL
        if not (weights / RECOGNITION).is_file():  # asked first: InsightFace would download them
            raise MissingError(
                f"the weights {MODEL} are not in {weights}; {LICENCE}",
                hint=f"unpack {MODEL}.zip of InsightFace's model zoo into {weights}",
            )
        self._analysis: Any = FaceAnalysis(
            name=MODEL, root=str(folder), allowed_modules=["detection", "recognition"]
        )
        self._analysis.prepare(ctx_id=-1, det_size=(DETECTION_SIDE, DETECTION_SIDE))
        with (weights / RECOGNITION).open("rb") as file:
            self.id = f"face:{MODEL}@{file_digest(file, 'sha256').hexdigest()[:16]}"

    def score(self, item: JudgeItem) -> Judgement:
        """The cosine of the face in the picture with those in the references."""
        return compared(
            [self._faces(image) for image in item.images],
            [self._faces(image) for image in item.references],
        )

    def _faces(self, image: Image) -> Sequence[Face]:
        image = image.convert("RGB")
        scaled = image.resize(detection_size(image.size), Resampling.BICUBIC)
        found: Sequence[Face] = self._analysis.get(np.asarray(scaled)[:, :, ::-1])
        return found


def compared(images: Sequence[Sequence[Face]], references: Sequence[Sequence[Face]]) -> Judgement:
    """The mean cosine of every picture's largest face with every reference's; failed where a side
    has no face at all."""
    one, other = (
        [largest(faces).normed_embedding for faces in side if faces]
        for side in (images, references)
    )
    if not one:
        return Judgement(score=None, detail="no face in the picture", failed=True)
    if not other:
        return Judgement(score=None, detail="no face in the photos to compare with", failed=True)
    return Judgement(score=float((np.stack(one) @ np.stack(other).T).mean()))


def largest(faces: Sequence[Face]) -> Face:
    """The face whose box has the largest area."""

    def area(face: Face) -> float:
        left, top, right, bottom = face.bbox
        return float((right - left) * (bottom - top))

    return max(faces, key=area)


def detection_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with the shorter side at `SHORTEST` at least, and the longer at `LONGEST` at
    most, which has the last word."""
    scale = max(1.0, SHORTEST / min(size))
    scale = min(scale, LONGEST / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
