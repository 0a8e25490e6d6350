"""Find the subject: what differs from the border, sharpened by GrabCut.

The border band is modelled as a few colours; a pixel's distance to the nearest of them says how
much it stands out. The component that stands out most, by area, strength and nearness to the
centre, starts GrabCut (Rother et al. 2004), which settles the outline. All at no more than 192 px,
so a photo takes some tens of milliseconds.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omnipersona_cli.hookspecs import Region

_WORKING_SIDE = 192
_STANDS_OUT = 14.0  # CIE Lab units; about six just-noticeable differences
_FAR_ROW = 40.0  # Lab units for a border colour that is met a whole height away
_SMALLEST, _LARGEST = 0.01, 0.85  # of the picture's area
_LEAST_SEPARATION = 0.35

Array = NDArray[Any]


def find_subject(photo: Image.Image) -> Region | None:
    """Box and mask of the subject of ``photo`` (RGB), or None when nothing stands out."""
    if min(photo.size) < 8:
        return None
    small = photo.convert("RGB")
    small.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small)
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    start = _standing_out(lab)
    if start is None:
        return None
    region = _cut(pixels, start)
    if not _SMALLEST < region.mean() < _LARGEST or _separation(lab, region) < _LEAST_SEPARATION:
        return None
    mask = Image.fromarray(np.where(region, 255, 0).astype(np.uint8))
    mask = mask.resize(photo.size, Image.Resampling.BICUBIC).point(lambda v: 255 if v > 127 else 0)
    box = mask.getbbox()
    return Region(box=box, mask=mask) if box is not None else None


def _standing_out(lab: Array) -> Array | None:
    """The component [h, w] bool that differs most from the border's colours."""
    distance = cv2.GaussianBlur(_distance_to_border(lab), (3, 3), 0)
    top = float(np.percentile(distance, 99))
    if top < _STANDS_OUT:
        return None
    scaled = np.clip(distance / top * 255, 0, 255).astype(np.uint8)
    level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_OTSU)
    out = (distance > max(level / 255 * top * 0.8, _STANDS_OUT * 0.7)).astype(np.uint8)
    reach = max(3, round(min(out.shape) * 0.05)) | 1
    joined = cv2.morphologyEx(out, cv2.MORPH_CLOSE, _disc(reach))
    component = _best(joined, distance)
    return None if component is None else _without_holes(component)


def _distance_to_border(lab: Array) -> Array:
    """Each pixel's Lab distance [h, w] to the nearest common colour of the border band. Scenes
    lie in layers (sky, wall, ground), so a colour counts less in rows where no border has it."""
    height, width = lab.shape[:2]
    band = max(1, round(min(height, width) * 0.05))
    frame = np.ones((height, width), bool)
    frame[band:-band, band:-band] = False
    border = lab[frame].astype(np.float32)
    heights = np.nonzero(frame)[0]
    rows = np.arange(height)
    count = min(6, len(np.unique(border.round(), axis=0)))
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, labels, centres = cv2.kmeans(
        border, count, np.empty(0, np.int32), criteria, 2, cv2.KMEANS_PP_CENTERS
    )
    labels = labels.ravel()
    distances = []
    for index, centre in enumerate(centres):
        share = float((labels == index).mean())
        if share < 0.06 and count > 1:  # a subject that touches the border is no background
            continue
        spread = float(np.linalg.norm(border[labels == index] - centre, axis=1).mean())
        seen_at = np.unique(heights[labels == index])
        gap = np.abs(rows[:, None] - seen_at).min(axis=1) / height
        penalty = np.clip(_FAR_ROW * (gap - 0.08), 0, 2 * _STANDS_OUT)[:, None]
        distances.append(np.linalg.norm(lab - centre, axis=-1) - spread + penalty)
    return np.asarray(np.maximum(np.min(distances, axis=0), 0), dtype=np.float32)


def _best(joined: Array, distance: Array) -> Array | None:
    """The component with the most evidence, weighed by nearness to the centre."""
    height, width = joined.shape
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(joined, connectivity=8)
    best, best_score = 0, 0.0
    for index in range(1, count):
        if stats[index, cv2.CC_STAT_AREA] < _SMALLEST * height * width / 2:
            continue
        x, y = centroids[index][0] / width - 0.5, centroids[index][1] / height - 0.5
        score = float(distance[labels == index].sum()) * float(np.exp(-2.5 * (x * x + y * y)))
        if score > best_score:
            best, best_score = index, score
    return labels == best if best else None


def _cut(pixels: Array, start: Array) -> Array:
    """GrabCut from a first region: its core is probable subject, far away is background."""
    side = min(start.shape)
    near = cv2.dilate(start.astype(np.uint8), _disc(max(3, round(side * 0.06)) | 1)) > 0
    core = cv2.erode(start.astype(np.uint8), _disc(max(3, round(side * 0.05)) | 1)) > 0
    trimap: Array = np.full(start.shape, cv2.GC_BGD, np.uint8)
    trimap[near] = cv2.GC_PR_BGD
    trimap[start] = cv2.GC_PR_FGD
    trimap[core] = cv2.GC_FGD
    if not (trimap == cv2.GC_BGD).any() or not start.any():
        return start
    cv2.setRNGSeed(0)
    back, front = np.zeros((1, 65)), np.zeros((1, 65))
    blue_first = np.ascontiguousarray(pixels[..., ::-1])
    cv2.grabCut(blue_first, trimap, (0, 0, 0, 0), back, front, 4, cv2.GC_INIT_WITH_MASK)
    region = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    count, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    if count > 1:
        overlap = np.bincount(labels[region & start], minlength=count)
        overlap[0] = 0
        region = labels == int(overlap.argmax())
    return _without_holes(region)


def _separation(lab: Array, region: Array) -> float:
    """How differently inside and the ring around it are coloured: 0 (alike) to 1, one less the
    overlap of their Lab histograms."""
    wide = cv2.dilate(region.astype(np.uint8), _disc(max(5, round(min(region.shape) * 0.2)) | 1))
    ring = (wide > 0) & ~region
    if not ring.any() or not region.any():
        return 0.0
    edges = [np.linspace(0, 100, 7), np.linspace(-100, 100, 13), np.linspace(-100, 100, 13)]
    inside, outside = (np.histogramdd(lab[part], bins=edges)[0] for part in (region, ring))
    return 1 - float(np.minimum(inside / inside.sum(), outside / outside.sum()).sum())


def _without_holes(region: Array) -> Array:
    contours, _ = cv2.findContours(
        region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = np.zeros(region.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled > 0


def _disc(size: int) -> Array:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
