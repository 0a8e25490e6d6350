"""The few routes of AUTOMATIC1111's API that programs ask which speak only that."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnipersona_cli.backend import Backend
from op_serve import fields
from op_serve.images import MOST_PICTURES
from op_serve.pictures import encoded, to_base64
from op_serve.served import json_of, leaving, nearest_size, served_by
from op_serve.waiting import result_of
from op_serve.work import Painting, paint
from op_serve.worker import Ticket


async def txt2img(request: Request) -> Response:
    """Paint a prompt. A negative prompt, samplers and schedulers are left out: op has none."""
    served = served_by(request)
    asked = await json_of(request)
    prompt = fields.text(asked, "prompt")
    width = fields.whole(asked, "width", low=1, high=99_999)
    height = fields.whole(asked, "height", low=1, high=99_999)
    seed = fields.whole(asked, "seed", low=-1, high=2**32 - 1)
    wanted = (width or height or 0, height or width or 0)
    painting = Painting(
        prompt=prompt,
        concepts=served.shown.meant(prompt, fields.names(asked, "concepts")),
        count=(fields.whole(asked, "batch_size", low=1, high=MOST_PICTURES) or 1)
        * (fields.whole(asked, "n_iter", low=1, high=MOST_PICTURES) or 1),
        size=nearest_size(wanted if all(wanted) else None, served.info.sizes),
        steps=fields.whole(asked, "steps", low=1, high=1000),
        guidance=fields.real(asked, "cfg_scale", low=0, high=100),
        seed=None if seed == -1 else seed,
    )

    def work(backend: Backend, ticket: Ticket[dict[str, Any]]) -> dict[str, Any]:
        made = paint(backend, ticket, painting, library=served.shown.library)
        first = made[0]
        info = {
            "prompt": first.trace.rewritten,
            "seed": first.seed,
            "all_seeds": [picture.seed for picture in made],
            "all_prompts": [picture.trace.rewritten for picture in made],
            "width": first.image.width,
            "height": first.image.height,
            "sd_model_name": served.info.name,
        }
        files = [encoded(picture, metadata=served.metadata) for picture in made]
        return {
            "images": [to_base64(data) for data in files],
            "parameters": {},
            "info": json.dumps(info),
        }

    return JSONResponse(await result_of(served.worker, "a picture", work, leaving=leaving(request)))


async def sd_models(request: Request) -> Response:
    """The one model."""
    name = served_by(request).info.name
    return JSONResponse([{"title": name, "model_name": name, "filename": name, "hash": None}])


async def options(request: Request) -> Response:
    """What programs look at to see that somebody is there; what they set is not kept."""
    if request.method == "POST":
        return JSONResponse({})
    return JSONResponse({"sd_model_checkpoint": served_by(request).info.name})
