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
    bytes, or a ``stream``."""

    kind: Format = "png"
    quality: int = 90
    address: bool = False
    stream: bool = False


@dataclass(frozen=True, kw_only=True)
class PaintedFile:
    """One finished picture and its file."""

    picture: Picture
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
        strength=fields.real(asked, "strength", low=0.01, high=1.0) or 1.0,
    )
    paintings = [replace(painting, source=await served.decoded(opened, image)) for image in images]
    return await _answered(request, served, paintings, wanted_of(asked), "image_edit")


def painting_of(served: Served, asked: Fields) -> Painting:
    """What both routes read alike."""
    prompt = fields.text(asked, "prompt")
    named = (
        *concepts_of_model(served, fields.text(asked, "model", "")),
        *fields.names(asked, "concepts"),
    )
    return Painting(
        prompt=prompt,
        concepts=served.shown.meant(prompt, named),
        count=fields.whole(asked, "n", low=1, high=MOST_PICTURES) or 1,
        tries=fields.whole(asked, "tries", low=1, high=MOST_TRIES),
        steps=fields.whole(asked, "steps", "num_inference_steps", low=1, high=1000),
        guidance=fields.real(asked, "guidance", "guidance_scale", low=0, high=100),
        seed=fields.whole(asked, "seed", low=0, high=2**32 - 1),
        replay=fields.flag(asked, "replay", True),
    )


def mask_means(asked: Fields) -> MaskMeans | None:
    """What of a mask may change, where the client says so."""
    said = fields.choice(asked, "mask_means", ("", *MASK_MEANS), "")
    return next((it for it in MASK_MEANS if it == said), None)


def wanted_of(asked: Fields) -> Wanted:
    """In what form the client wants its pictures."""
    kind = fields.choice(asked, "output_format", FORMATS, "png")
    quality = fields.whole(asked, "output_compression", low=0, high=100)
    answer = fields.choice(asked, "response_format", ("b64_json", "url"), "b64_json")
    fields.whole(asked, "partial_images", low=0, high=3)
    return Wanted(
        kind=next(it for it in FORMATS if it == kind),
        quality=90 if quality is None else max(1, quality),
        address=answer == "url",
        stream=fields.flag(asked, "stream", False),
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

    made = await result_of(served.worker, "a picture", work, gone=request.is_disconnected)
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [_item(request, served, it, wanted) for it in made],
            **_about(made[0], wanted),
            "usage": usage_of(paintings[0].prompt, len(made)),
        }
    )


async def _events(
    served: Served, paintings: Sequence[Painting], wanted: Wanted, event: str
) -> AsyncGenerator[str, None]:
    """One ``completed`` event for each picture; an error ends the stream."""

    def work(backend: Backend, ticket: Ticket[None]) -> None:
        for painting in paintings:
            paint(
                backend,
                ticket,
                painting,
                library=served.shown.library,
                on_picture=lambda picture: ticket.send(_file_of(served, picture, wanted)),
            )

    begun = False
    try:
        async for beat in beats_of(served.worker, "a picture", work):
            if isinstance(beat, Waits):
                begun = True
                yield ": waiting\n\n"
            elif isinstance(beat, PaintedFile):
                begun = True
                kind = f"{event}.completed"
                told = {
                    "type": kind,
                    "b64_json": to_base64(beat.data),
                    "created_at": int(time.time()),
                    **_about(beat, wanted),
                    "usage": usage_of(paintings[0].prompt, 1),
                    **_own_keys(beat.picture),
                }
                yield sse(told, event=kind)
    except Exception as error:
        if not begun:
            raise
        yield sse({"type": "error", **refusal_of(error).body}, event="error")


def _file_of(served: Served, picture: Picture, wanted: Wanted) -> PaintedFile:
    data = encoded(picture, kind=wanted.kind, quality=wanted.quality, metadata=served.metadata)
    return PaintedFile(picture=picture, data=data)


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


def _about(made: PaintedFile, wanted: Wanted) -> dict[str, Any]:
    image: Image = made.picture.image
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
