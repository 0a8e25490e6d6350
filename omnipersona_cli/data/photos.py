"""A folder of photos, opened the way a person expects.

Upright, RGB, at most 1024 px long; duplicates, blank, tiny, blurred and broken files are reported
as notes instead of failures; a part is held out, chosen by the seed. What lies beside the photos is
read too: captions (`a.txt` for `a.jpg`) and facts (`facts.yaml`, `facts.txt`). A photo is known by
its file name, never by its path, and no EXIF is kept.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from omnipersona_cli.backend import Box, OnStep, counted
from omnipersona_cli.data.decode import HEIC_HINT, Decoded, decode
from omnipersona_cli.data.facts import FACT_FILES, FactSheet, read_facts
from omnipersona_cli.errors import MissingError, PhotoError, shell_word
from omnipersona_cli.hookspecs import Region
from omnipersona_cli.language.characters import harmless
from omnipersona_cli.reading import Origin, read_text, where_to_look

Finder = Callable[[Image.Image, str], Region | None]

MOST_PHOTOS = 100
FEW_PHOTOS = 3
"""Below this nothing is held out, and varied copies stand in for more photos."""

_TINY = 48  # px
_BLURRED = 0.75
_CAPTION_LENGTH = 500
_COMPANIONS = {".txt", ".yaml", ".yml", ".json"}
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp", ".tiff"}
_SAME = "the same picture as another photo, skipped"

Remarks = dict[str, list[str]]
"""File names by what was noticed about them."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo. ``image`` is RGB; ``box`` (left, top, right, bottom) and ``mask`` (mode L, white =
    subject, same size) say where the subject is, where that is known; ``blur`` runs from 0 (sharp)
    to 1; ``caption`` is what the text file beside it says; ``varied`` marks a copy that stands in
    for one more photo."""

    image: Image.Image
    name: str
    box: Box | None = None
    mask: Image.Image | None = None
    blur: float = 0.0
    caption: str = ""
    held_out: bool = False
    varied: bool = False

    @property
    def digest(self) -> str:
        """The first 16 digits of the sha256 of its pixels: what it is known again by."""
        digest = sha256(f"{self.image.mode}{self.image.size}".encode())
        digest.update(self.image.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Album:
    """All that a person gave: photos (varied copies among them), what was noticed (one sentence
    each), facts, and what sort of thing the concept is, where a facts file says so."""

    photos: tuple[Photo, ...]
    notes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    class_word: str = ""
    kind: str = ""

    @property
    def learning(self) -> tuple[Photo, ...]:
        """The photos to learn from."""
        return tuple(photo for photo in self.photos if not photo.held_out)

    @property
    def held_out(self) -> tuple[Photo, ...]:
        """The photos that learning never sees."""
        return tuple(photo for photo in self.photos if photo.held_out)

    @property
    def count(self) -> int:
        """How many photos there are, varied copies not counted."""
        return sum(not photo.varied for photo in self.photos)


def open_album(
    paths: Sequence[Path],
    *,
    seed: int,
    held_out: float = 0.2,
    learned_from: Collection[str] = (),
    finder: Finder | None = None,
    kind: str = "",
    on_step: OnStep | None = None,
) -> Album:
    """Open files and folders of photos (not their subfolders). ``held_out`` is the share kept from
    learning, never a photo whose `digest` is among ``learned_from``; ``finder`` says where the
    subject is, which takes longest: ``on_step`` counts it.
    Raises PhotoError when nothing can be used."""
    files, subfolders = _files_in(paths)
    fact_files = [file for file in files if file.name.lower() in FACT_FILES]
    regular = [file for file in fact_files if _is_regular(file)]
    sheet = _joined([read_facts(file) for file in regular])
    files = [file for file in files if file.suffix.lower() not in _COMPANIONS]
    if not files:
        raise _no_photos(paths, subfolders)
    photos, remarks, notes = _read(files)
    if others := [file.name for file in fact_files if file not in regular]:
        remarks["not a regular file, left out"] = others
    if not photos:
        raise _none_usable(paths, remarks)
    if subfolders:
        remarks["subfolders with pictures, not looked into"] = subfolders
    kind = kind or sheet.kind
    if finder is not None:
        photos = [_with_subject(photo, finder, kind) for photo in counted(photos, on_step)]
        lost = [photo.name for photo in photos if photo.mask is None]
        if lost:
            remarks["subject not outlined, so no edits are learned from it"] = lost
    photos = _hold_out(photos, held_out, seed, learned_from)
    if len(photos) < FEW_PHOTOS:
        notes.append(
            f"only {'one photo' if len(photos) == 1 else 'two photos'}: mirrored and cropped "
            "copies stand in for more and nothing is held out; expect a weak result, 5 to 10 "
            "photos are better"
        )
        copies = {
            photo.name: [replace(copy, varied=True) for copy in _varied(photo)] for photo in photos
        }
        photos = [copy for photo in photos for copy in (photo, *copies[photo.name])]
    return Album(
        photos=tuple(photos),
        notes=(*notes, *(f"{_list(names)}: {what}" for what, names in remarks.items())),
        facts=sheet.facts,
        class_word=sheet.class_word,
        kind=kind,
    )


def open_pictures(folder: Path, *, most: int = 500) -> list[Image.Image]:
    """The usable pictures of one folder in name order, as for `--negatives DIR`: no duplicates,
    nothing broken. Raises PhotoError when there is none."""
    files, subfolders = _files_in([folder])
    files = [file for file in files if file.suffix.lower() not in _COMPANIONS]
    if not files:
        raise _no_photos([folder], subfolders)
    photos, remarks, _ = _read(files, most=most)
    if not photos:
        raise _none_usable([folder], remarks)
    return [photo.image for photo in photos]


def blur_of(image: Image.Image) -> float:
    """How blurred a picture is, 0 (sharp) to 1: the share of neighbour differences that one more
    blur leaves standing (Crete et al. 2007, "The blur effect"), judged at no more than 512 px."""
    small = image.convert("L")
    small.thumbnail((512, 512), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float32)
    return max(_kept_by_blur(grey), _kept_by_blur(grey.T))


def flaw_of(image: Image.Image, blur: float) -> Literal["tiny", "blurred", ""]:
    """Why little can be learned from a picture; empty where nothing is wrong with it."""
    if min(image.size) < _TINY:
        return "tiny"
    return "blurred" if blur > _BLURRED else ""


def thumbnail_of(image: Image.Image) -> NDArray[np.int16]:
    """[16, 16, 3]: what pictures are compared by."""
    small = image.convert("RGB").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.int16)


def same_picture(one: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
    """True where two thumbnails are of the same picture.

    A copy that was saved again or scaled differs a little everywhere; another pose of the same
    subject, or another scene, differs a lot somewhere. So both the mean and the maximum count.
    """
    difference = np.abs(one - other)
    return bool(difference.mean() < 6 and difference.max() < 45)


def _kept_by_blur(grey: NDArray[np.float32]) -> float:
    """Along rows [h, w]: 1 - (variation that a 9-pixel mean removes) / (variation)."""
    sums = np.cumsum(np.pad(grey, ((0, 0), (5, 4)), mode="edge"), axis=1)
    means = (sums[:, 9:] - sums[:, :-9]) / 9
    before, after = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(means, axis=1))
    total = float(before.sum())
    return 1 - float(np.maximum(before - after, 0).sum()) / total if total else 1.0


def _files_in(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Every file once, folders opened in name order; and the subfolders that hold pictures."""
    files: dict[Path, Path] = {}
    subfolders = []
    for path in paths:
        if not os.path.lexists(path):
            raise _not_there(path)
        entries = _entries(path) if path.is_dir() else [path]
        for entry in entries:
            if entry.is_dir() and entry.name.lower() not in FACT_FILES:
                if _holds_pictures(entry):
                    subfolders.append(entry.name)
            else:
                files.setdefault(Path(os.path.realpath(entry)), entry)
    return list(files.values()), subfolders


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, without hidden files and what desktops leave behind."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name.lower())
    except OSError as error:
        raise PhotoError(
            f"the folder {folder} may not be read", hint=f"ls -ld {shell_word(folder)}"
        ) from error
    left_behind = {"thumbs.db", "desktop.ini"}
    return [
        entry
        for entry in entries
        if not entry.name.startswith(".") and entry.name.lower() not in left_behind
    ]


def _read(
    files: Sequence[Path], *, most: int = MOST_PHOTOS
) -> tuple[list[Photo], Remarks, list[str]]:
    """Decode until ``most`` good photos are there, evenly over the list; returned in its order,
    with the remarks on single files and the notes on the whole."""
    remarks: Remarks = {}
    notes = []
    taken: dict[int, Photo] = {}
    thumbnails: list[NDArray[np.int16]] = []
    for index in _evenly(len(files), most):
        if len(taken) == most:
            notes.append(f"{len(files)} photos are many: {most} of them, evenly spread, are used")
            break
        path = files[index]
        try:
            decoded = decode(path)
        except PhotoError as error:
            remarks.setdefault(f"{error}, skipped", []).append(path.name)
            continue
        for remark in decoded.remarks:
            remarks.setdefault(remark, []).append(path.name)
        photo, remark = _judged(path, decoded, thumbnails)
        if remark:
            remarks.setdefault(remark, []).append(path.name)
        if photo is not None:
            taken[index] = replace(photo, caption=_caption(path, remarks))
    return [taken[index] for index in sorted(taken)], remarks, notes


def _evenly(count: int, most: int) -> list[int]:
    """All indices, ``most`` evenly spread ones first, so that the rest only fill gaps."""
    first = dict.fromkeys(int(place) for place in np.linspace(0, count - 1, min(count, most)))
    return [*first, *(index for index in range(count) if index not in first)]


def _judged(
    path: Path, decoded: Decoded, thumbnails: list[NDArray[np.int16]]
) -> tuple[Photo | None, str]:
    """The photo, unless it is blank or the same as an earlier one; and a remark, if any."""
    image = decoded.image
    thumbnail = thumbnail_of(image)
    if np.ptp(thumbnail, axis=(0, 1)).max() < 6:
        return None, "blank, skipped"
    if any(same_picture(thumbnail, other) for other in thumbnails):
        return None, _SAME
    thumbnails.append(thumbnail)
    blur = blur_of(image)
    flaw = flaw_of(image, blur)
    remark = f"{flaw}, little can be learned from it" if flaw else ""
    mask = decoded.cutout
    return Photo(
        image=image,
        name=path.name,
        box=mask.getbbox() if mask is not None else None,
        mask=mask,
        blur=blur,
    ), remark


def _caption(path: Path, remarks: Remarks) -> str:
    """What `a.txt` or `a.jpg.txt` says about `a.jpg`, as harmless as a fact; empty where there is
    none, and where it cannot be read, with a remark."""
    for beside in (path.with_suffix(".txt"), path.with_name(f"{path.name}.txt")):
        if beside.name.lower() not in FACT_FILES and os.path.lexists(beside):
            try:
                text = read_text(beside, Origin(name="caption", error=PhotoError))
            except MissingError:
                remarks.setdefault("caption is not there, left out", []).append(beside.name)
            except PhotoError as error:
                remarks.setdefault(f"{error}, left out", []).append(beside.name)
            else:
                return harmless(text)[:_CAPTION_LENGTH].rstrip()
    return ""


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _with_subject(photo: Photo, finder: Finder, kind: str) -> Photo:
    if photo.mask is not None:
        return photo
    subject = finder(photo.image, kind)
    if subject is None:
        return photo
    return replace(photo, box=subject.box, mask=subject.mask)


def _hold_out(
    photos: list[Photo], share: float, seed: int, learned_from: Collection[str] = ()
) -> list[Photo]:
    """Mark a seeded share of the photos, at least one, unless there are too few; none whose
    digest is among ``learned_from``."""
    if len(photos) < FEW_PHOTOS or share <= 0:
        return photos
    count = min(max(1, round(share * len(photos))), len(photos) - 1)
    fresh = [index for index, photo in enumerate(photos) if photo.digest not in learned_from]
    chosen = set(random.Random(seed).sample(fresh, min(count, len(fresh))))
    return [replace(photo, held_out=index in chosen) for index, photo in enumerate(photos)]


def _varied(photo: Photo) -> list[Photo]:
    """Mirrored and closer copies; a crop never cuts off the subject where its box is known."""
    mirrored = replace(
        photo,
        image=ImageOps.mirror(photo.image),
        mask=photo.mask and ImageOps.mirror(photo.mask),
        box=photo.box and _mirrored(photo.box, photo.image.width),
        name=f"{photo.name} (mirrored)",
    )
    return [
        mirrored,
        _cropped(photo, 0.85, (0.5, 0.5), "closer"),
        _cropped(mirrored, 0.85, (0.5, 0.5), "closer"),
        _cropped(photo, 0.92, (0.0, 0.5), "from the left"),
        _cropped(photo, 0.92, (1.0, 0.5), "from the right"),
    ]


def _mirrored(box: Box, width: int) -> Box:
    return (width - box[2], box[1], width - box[0], box[3])


def _cropped(photo: Photo, share: float, place: tuple[float, float], name: str) -> Photo:
    """Cut to ``share`` of each side at ``place`` (0..1 of the slack), then back to the old size."""
    width, height = photo.image.size
    left, top = width * (1 - share) * place[0], height * (1 - share) * place[1]
    right, bottom = left + width * share, top + height * share
    if photo.box is not None:
        left, top = min(left, photo.box[0]), min(top, photo.box[1])
        right, bottom = max(right, photo.box[2]), max(bottom, photo.box[3])
    cut = (round(left), round(top), round(right), round(bottom))
    x, y = width / (cut[2] - cut[0]), height / (cut[3] - cut[1])
    box = photo.box and (
        round((photo.box[0] - cut[0]) * x),
        round((photo.box[1] - cut[1]) * y),
        round((photo.box[2] - cut[0]) * x),
        round((photo.box[3] - cut[1]) * y),
    )
    return replace(
        photo,
        image=photo.image.resize((width, height), Image.Resampling.BICUBIC, box=cut),
        mask=photo.mask and photo.mask.resize((width, height), Image.Resampling.NEAREST, box=cut),
        box=box,
        name=f"{photo.name} ({name})",
    )


def _joined(sheets: Sequence[FactSheet]) -> FactSheet:
    return FactSheet(
        facts=tuple(dict.fromkeys(fact for sheet in sheets for fact in sheet.facts)),
        class_word=next((sheet.class_word for sheet in sheets if sheet.class_word), ""),
        kind=next((sheet.kind for sheet in sheets if sheet.kind), ""),
    )


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(entry.suffix.lower() in _PICTURES for entry in folder.iterdir())
    except OSError:
        return False


def _list(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more"


def _not_there(path: Path) -> MissingError:
    return MissingError(f"there is no {path}", hint=where_to_look(path))


def _no_photos(paths: Sequence[Path], subfolders: Sequence[str]) -> PhotoError:
    where = _list([str(path) for path in paths]) or "nothing"
    if subfolders:
        return PhotoError(
            f"no photos in {where}, only in its subfolders ({_list(subfolders)})",
            hint=f"op learn {shell_word(paths[0] / subfolders[0])} --name NAME",
        )
    return PhotoError(
        f"no photos in {where}", hint="give a folder with 5 to 10 photos, or the files themselves"
    )


def _none_usable(paths: Sequence[Path], remarks: Remarks) -> PhotoError:
    reasons = "; ".join(f"{_list(names)}: {what}" for what, names in remarks.items())
    hint = "give JPEG, PNG or WebP photos of at least 16 x 16 pixels"
    if any(what.startswith("HEIC") for what in remarks):
        hint = HEIC_HINT
    elif len(paths) == 1 and not paths[0].is_dir():
        try:
            decode(paths[0])
        except PhotoError as error:  # what could be done about this one file
            hint = error.hint
    return PhotoError(
        f"no photo in {_list([str(path) for path in paths])} can be used: {reasons}", hint=hint
    )
