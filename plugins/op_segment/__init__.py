"""segment: where the subject of a photo is, by OpenCV's GrabCut. Offline, no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnipersona_cli.hookspecs import Region, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image


@hookimpl
def op_find_subject(photo: Image, kind: str) -> Region | None:
    """The one thing that stands out from the border of the photo; None when nothing does."""
    from op_segment.grabcut import find_subject

    return find_subject(photo)
