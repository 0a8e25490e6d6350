"""What a file is that is not what was asked for, told by how it begins.

Nothing is opened or unpacked: the first bytes are enough for a sentence and for what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

LOOKED_AT = 2048
"""How many bytes of a file are looked at."""


@dataclass(frozen=True, kw_only=True)
class FileType:
    """``what`` continues "it is"; ``hint`` is what could be done."""

    what: str
    hint: str


_AGAIN = "download the file itself again: a browser or a log-in may have come between"
_UNPACK = "unpack it, then name the folder"
_TEACH = "such tokens fit their own model only; teach it here: op learn PHOTOS --name bo"


def _pickle(what: str) -> FileType:
    return FileType(
        what=f"{what}: a Python pickle, which can run code when it is opened", hint=_TEACH
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
        (
            rb"(PK\x03\x04|\x80).*string_to_param",
            _pickle("a textual inversion of AUTOMATIC1111"),
        ),
        (
            rb"PK\x03\x04.{26}[^/]{1,60}/data\.pkl.*X.\0\0\0<[^>]{1,60}>",
            _pickle("a textual inversion of diffusers"),
        ),
        (
            rb"PK\x03\x04.{26}\d+-token/data\.pkl",
            _pickle("tokens of Yo'LLaVA or a program like it"),
        ),
        (rb"PK\x03\x04.{26}[^/]{1,60}/data\.pkl", _pickle("a zip of PyTorch")),
        (rb"\x80[\x00-\x05]", _pickle("a file of Python or PyTorch")),
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


def tensors_of_others(names: Collection[str]) -> FileType:
    """What a safetensors file without our metadata is, by the names of its tensors."""
    lora = re.compile(r"lora_|[._](lora_[AB]|lora_up|lora_down)[._]")
    if names and all(lora.search(name) or name.endswith("alpha") for name in names):
        what = "a LoRA, changed weights of another model"
    elif set(names) == {"emb_params"}:
        what = "a textual inversion of kohya's scripts"
    elif set(names) in ({"clip_l", "clip_g"}, {"clip_l"}, {"clip_g"}):
        what = "a textual inversion for SDXL"
    elif len(names) == 1 and re.fullmatch(r"<.{1,60}>|\*", next(iter(names))):
        what = "a textual inversion of diffusers"
    else:
        return FileType(
            what="a safetensors file of another program", hint="op learn PHOTOS --name bo"
        )
    return FileType(what=what, hint=_TEACH)
