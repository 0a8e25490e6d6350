"""What a file is that is not what was asked for, told by how it begins.

Nothing is opened or unpacked: the first bytes are enough for a sentence and for what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LOOKED_AT = 1024
"""How many bytes of a file are looked at."""


@dataclass(frozen=True, kw_only=True)
class FileType:
    """``what`` continues "it is"; ``hint`` is what could be done."""

    what: str
    hint: str


_AGAIN = "download the file itself again: a browser or a log-in may have come between"
_UNPACK = "unpack it, then name the folder"
_PICKLE = FileType(
    what="a Python pickle, which can run code when it is opened",
    hint="ask for it as .safetensors, or teach the concept anew: op learn PHOTOS --name bo",
)
_TYPES: tuple[tuple[re.Pattern[bytes], FileType], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind)
    for pattern, kind in (
        (
            rb"version https://git-lfs",
            FileType(what="a Git LFS pointer, not the file itself", hint="git lfs pull"),
        ),
        (
            rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head)",
            FileType(what="a web page (HTML)", hint=_AGAIN),
        ),
        (
            rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg",
            FileType(what="a drawing of lines (SVG)", hint="export it as PNG"),
        ),
        (
            rb"%!PS|\xc5\xd0\xd3\xc6",
            FileType(what="PostScript (EPS), which is a program", hint="export it as PNG"),
        ),
        (rb"%PDF", FileType(what="a PDF", hint="export its pictures as PNG or JPEG")),
        (rb"8BPS", FileType(what="a Photoshop document", hint="export it as PNG")),
        (rb"PK\x03\x04.{4,60}?/data\.pkl", _PICKLE),
        (rb"\x80[\x02-\x05]", _PICKLE),
        (rb"PK\x03\x04|PK\x05\x06", FileType(what="a zip archive", hint=_UNPACK)),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", FileType(what="an archive", hint=_UNPACK)),
        (rb".{257}ustar", FileType(what="a tar archive", hint=_UNPACK)),
        (
            rb"GGUF",
            FileType(what="a GGUF file of another program", hint="ask for it as .safetensors"),
        ),
        (
            rb".{4}ftyp(isom|mp4|qt  |M4V|avc1|iso2|3gp)",
            FileType(what="a video", hint="save single frames as PNG or JPEG"),
        ),
    )
)


def file_type(start: bytes) -> FileType | None:
    """What a file that begins like ``start`` is; None where that is not known."""
    return next((kind for pattern, kind in _TYPES if pattern.match(start[:LOOKED_AT])), None)
