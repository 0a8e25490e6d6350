"""Pictures in the OpenAI dialect: `/v1/images/generations` and `/v1/images/edits`.

Several images in one edit are each changed as the prompt says, one after another.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnipersona_cli.backend import Backend
from op_serve import fields
from op_serve.fields import Fields
from op_serve.pictures import (
    FORMATS,
    Format,
    encoded,
    encoded_estimate,
    in_the_dialect,
    opened,
    opened_mask,
    to_base64,
)
from op_serve.refusals import FieldError, refusal_of
from op_serve.served import (
    Served,
    concepts_of_model,
    form_of,
    json_of,
    leaving,
    nearest_size,
    primed,
    served_by,
    sse,
    streaming,
)
from op_serve.waiting import Waits, beats_of, result_of
from op_serve.work import Painting, paint
from op_serve.worker import Ticket

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnipersona_cli.engine import Picture
    from omnipersona_cli.engine.region import MaskMeans

MOST_PICTURES = 10
MOST_TRIES = 16
MOST_IMAGES = 8
MASK_MEANS: tuple[MaskMeans, ...] = ("white", "transparent")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a client wants back: the file's ``kind`` and ``quality``, its ``address`` instead of its
    bytes, or a ``stream``, with up to so many ``estimates`` of each picture on its way."""

    kind: Format = "png"
    quality: int = 90
    address: bool = False
    stream: bool = False
    estimates: int = 0


@dataclass(frozen=True, kw_only=True)
class PaintedFile:
    """One finished picture and its file."""

    picture: Picture
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the picture of this number (from 0) looks like on its way, and its file."""

    picture: int
    image: Image
    data: bytes


async def generations(request: Request) -> Response:
    """Paint a prompt."""
    served = served_by(request)
    asked = await json_of(request)
    painting = painting_of(served, asked)
    painting = replace(painting, size=nearest_size(fields.size(asked, "size"), served.info.sizes))
    return await _answered(request, served, [painting], wanted_of(asked), "image_generation")


async def edits(request: Request) -> Response:
    """Change a picture."""
    served = served_by(request)
    asked, files = await form_of(request)
    painting = painting_of(served, asked)
    images = files.get("image", [])
    if not images:
        raise FieldError("image is missing", hint="curl -F image=@photo.png", field="image")
    if len(images) > MOST_IMAGES:
        raise FieldError(f"{len(images)} images are more than {MOST_IMAGES}", field="image")
    sent = files.get("mask")
    mask = await served.decoded(opened_mask, sent[0]) if sent else None
    painting = replace(
        painting,
        mask=mask,
        mask_means=mask_means(asked) or (in_the_dialect(mask) if mask else None),
        box=fields.box(asked, "box"),
        strength=strength_of(asked),
    )
    paintings = [replace(painting, source=await served.decoded(opened, image)) for image in images]
    return await _answered(request, served, paintings, wanted_of(asked), "image_edit")


def painting_of(
    served: Served, asked: Fields, *, most: int = MOST_PICTURES, tries: int = MOST_TRIES
) -> Painting:
    """What all routes that paint read alike."""
    prompt = fields.text(asked, "prompt")
    named = (
        *concepts_of_model(served, fields.text(asked, "model", "")),
        *fields.names(asked, "concepts"),
    )
    return Painting(
        prompt=prompt,
        concepts=served.shown.meant(prompt, named, bare=fields.flag(asked, "bare_names", True)),
        count=fields.whole(asked, "n", low=1, high=most) or 1,
        tries=fields.whole(asked, "tries", low=1, high=tries),
        steps=fields.whole(asked, "steps", "num_inference_steps", low=1, high=1000),
        guidance=fields.real(asked, "guidance", "guidance_scale", low=0, high=100),
        seed=fields.whole(asked, "seed", low=0, high=2**32 - 1),
        fast=fields.flag(asked, "fast", False),
        replay=fields.flag(asked, "replay", True),
    )


def strength_of(asked: Fields) -> float:
    """How strongly to change a picture."""
    strength = fields.real(asked, "strength", low=0.0, high=1.0)
    return 1.0 if strength is None else strength


def mask_means(asked: Fields) -> MaskMeans | None:
    """What of a mask may change, where the client says so."""
    means = fields.choice(asked, "mask_means", ("", *MASK_MEANS), "")
    return next((it for it in MASK_MEANS if it == means), None)


def wanted_of(asked: Fields) -> Wanted:
    """In what form the client wants its pictures."""
    kind = fields.choice(asked, "output_format", FORMATS, "png")
    quality = fields.whole(asked, "output_compression", low=0, high=100)
    answer = fields.choice(asked, "response_format", ("b64_json", "url"), "b64_json")
    return Wanted(
        kind=next(it for it in FORMATS if it == kind),
        quality=90 if quality is None else max(1, quality),
        address=answer == "url",
        stream=fields.flag(asked, "stream", False),
        estimates=fields.whole(asked, "partial_images", low=0, high=3) or 0,
    )


async def _answered(
    request: Request,
    served: Served,
    paintings: Sequence[Painting],
    wanted: Wanted,
    event: str,
) -> Response:
    if wanted.stream:
        stream = await primed(_events(served, paintings, wanted, event))
        return streaming(stream, "text/event-stream")

    def work(backend: Backend, ticket: Ticket[list[PaintedFile]]) -> list[PaintedFile]:
        return [
            _file_of(served, picture, wanted)
            for painting in paintings
            for picture in paint(backend, ticket, painting, library=served.shown.library)
        ]

    made = await result_of(served.worker, "a picture", work, leaving=leaving(request))
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [_item(request, served, it, wanted) for it in made],
            **_about(made[0].picture.image, wanted),
            "usage": usage_of(paintings[0].prompt, len(made)),
        }
    )


async def _events(
    served: Served, paintings: Sequence[Painting], wanted: Wanted, event: str
) -> AsyncGenerator[str, None]:
    """For each picture what it looks like on its way, as often as asked for, and one ``completed``
    event; an error ends the stream. ``picture_index`` says which of several it is."""

    def work(backend: Backend, ticket: Ticket[None]) -> None:
        for number, painting in enumerate(paintings):
            first = number * painting.count

            def estimate(which: int, image: Image, first: int = first) -> None:
                ticket.send(_estimate_of(served, image, first + which, wanted, event))

            paint(
                backend,
                ticket,
                painting,
                library=served.shown.library,
                on_picture=lambda picture: ticket.send(_file_of(served, picture, wanted)),
                estimates=wanted.estimates,
                on_estimate=estimate,
            )

    begun, done, shown = False, 0, 0
    try:
        async for beat in beats_of(served.worker, "a picture", work):
            if isinstance(beat, Waits):
                begun = True
                yield ": waiting\n\n"
            elif isinstance(beat, Estimate):
                begun = True
                kind = f"{event}.partial_image"
                told = {
                    "type": kind,
                    "b64_json": to_base64(beat.data),
                    "created_at": int(time.time()),
                    **_about(beat.image, wanted),
                    "partial_image_index": shown,
                    "picture_index": beat.picture,
                }
                shown += 1
                yield sse(told, event=kind)
            elif isinstance(beat, PaintedFile):
                begun = True
                kind = f"{event}.completed"
                told = {
                    "type": kind,
                    "b64_json": to_base64(beat.data),
                    "created_at": int(time.time()),
                    **_about(beat.picture.image, wanted),
                    "picture_index": done,
                    "usage": usage_of(paintings[0].prompt, 1),
                    **_own_keys(beat.picture),
                }
                done, shown = done + 1, 0
                yield sse(told, event=kind)
    except Exception as error:
        if not begun:
            raise
        yield sse({"type": "error", **refusal_of(error).body}, event="error")


def _file_of(served: Served, picture: Picture, wanted: Wanted) -> PaintedFile:
    data = encoded(picture, kind=wanted.kind, quality=wanted.quality, metadata=served.metadata)
    return PaintedFile(picture=picture, data=data)


def _estimate_of(served: Served, image: Image, number: int, wanted: Wanted, event: str) -> Estimate:
    data = encoded_estimate(
        image,
        edited=event == "image_edit",
        kind=wanted.kind,
        quality=wanted.quality,
        metadata=served.metadata,
    )
    return Estimate(picture=number, image=image, data=data)


def _item(request: Request, served: Served, made: PaintedFile, wanted: Wanted) -> dict[str, Any]:
    own = _own_keys(made.picture)
    if not wanted.address:
        return {"b64_json": to_base64(made.data), **own}
    name = served.kept.keep(made.data, wanted.kind)
    return {"url": str(request.url_for("picture", name=name)), **own}


def _own_keys(picture: Picture) -> dict[str, Any]:
    """What op says of a picture besides: the replayed prompt, and what makes it again."""
    about = picture.about
    own: dict[str, Any] = {
        "revised_prompt": picture.trace.rewritten,
        "seed": picture.seed,
        "concepts": about.get("concepts", []),
    }
    return own | {key: about[key] for key in ("how", "recognised") if key in about}


def _about(image: Image, wanted: Wanted) -> dict[str, Any]:
    return {
        "size": f"{image.width}x{image.height}",
        "output_format": wanted.kind,
        "quality": "auto",
        "background": "opaque" if wanted.kind == "jpeg" or image.mode == "RGB" else "transparent",
    }


def usage_of(prompt: str, pictures: int) -> dict[str, Any]:
    """Words stand for tokens: a backend does not count its own."""
    words = len(prompt.split())
    return {
        "input_tokens": words,
        "output_tokens": pictures,
        "total_tokens": words + pictures,
        "input_tokens_details": {"text_tokens": words, "image_tokens": 0},
    }
