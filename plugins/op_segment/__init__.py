"""segment: where the subject of a photo is, by OpenCV's GrabCut; offline, no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnipersona_cli.hookspecs import Subject, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image


@hookimpl
def op_find_subject(photo: Image, kind: str) -> Subject | None:
    """The subject's box and mask; None where nothing stands out."""
    from op_segment.grabcut import find_subject

    return find_subject(photo, kind)
