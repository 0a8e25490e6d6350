"""Concepts over HTTP: what is known, facts more and less, a picture to keep, a pack in and out."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnipersona_cli.errors import TakenError, UsageError
from op_serve import concepts, fields
from op_serve.pictures import opened
from op_serve.served import json_of, served_by


async def every(request: Request) -> Response:
    """All concepts; POST takes a pack in."""
    served = served_by(request)
    if request.method == "POST":
        if served.shown.only is not None:
            raise UsageError("nothing is taken in here", hint="op serve without --concepts")
        data = await request.body()
        name, force = (request.query_params.get(key) for key in ("name", "force"))
        take = served.shown.library.add_bytes
        try:
            path = await asyncio.to_thread(take, data, name, force=force == "true")
        except TakenError as error:
            hint = "?force=true replaces it; ?name=OTHER keeps both"
            raise TakenError(str(error), hint=hint) from error
        found = concepts.one_of(served.shown, path.stem, served.info.name)
        return JSONResponse(found, 201)
    return JSONResponse(concepts.all_of(served.shown, served.info.name))


async def one(request: Request) -> Response:
    """One concept; DELETE deletes it, PUT gives it another name."""
    served, name = served_by(request), request.path_params["name"]
    if request.method == "DELETE":
        await asyncio.to_thread(concepts.remove, served.shown, name)
        return Response(status_code=204)
    if request.method == "PUT":
        new = fields.text(await json_of(request), "name")
        await asyncio.to_thread(concepts.rename, served.shown, name, new)
        name = new
    return JSONResponse(concepts.one_of(served.shown, name, served.info.name))


async def facts(request: Request) -> Response:
    """POST adds a fact, PUT puts it in the place of what it corrects, DELETE takes one away."""
    served, name = served_by(request), request.path_params["name"]
    text = fields.text(await json_of(request), "text")
    change = {
        "POST": concepts.add_fact,
        "PUT": concepts.correct_fact,
        "DELETE": concepts.remove_fact,
    }[request.method]
    await asyncio.to_thread(change, served.shown, name, text)
    return JSONResponse(concepts.one_of(served.shown, name, served.info.name))


async def thumbnail(request: Request) -> Response:
    """The picture that a pack keeps; PUT keeps the one in the body, DELETE none."""
    served, name = served_by(request), request.path_params["name"]
    if request.method == "GET":
        data = await served.decoded(lambda _: concepts.thumbnail_of(served.shown, name), b"")
        return Response(data, media_type="image/png")
    image = None
    if request.method == "PUT":
        image = await served.decoded(opened, await request.body())
    await asyncio.to_thread(concepts.keep_thumbnail, served.shown, name, image)
    return JSONResponse(concepts.one_of(served.shown, name, served.info.name))


async def pack(request: Request) -> Response:
    """The pack's file, to keep or to share."""
    served, name = served_by(request), request.path_params["name"]
    served.shown.check([name])
    data = await asyncio.to_thread(served.shown.library.read_bytes, name)
    return Response(
        data,
        media_type="application/octet-stream",
        headers={"content-disposition": f'attachment; filename="{name}.opconcept"'},
    )
