"""The application: routes, errors told as JSON, the worker's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from omnipersona_cli import __version__
from omnipersona_cli.errors import PersonaError
from op_serve import chat, describe, images, sdapi, shelf, studio
from op_serve.guard import Door, Guard
from op_serve.needs import is_here
from op_serve.refusals import DeniedError, refusal_of
from op_serve.served import Served, served_by
from op_serve.worker import Stopped

PAGE = Path(__file__).parent / "page"


def make_app(served: Served, door: Door) -> Starlette:
    """The ASGI application. Its lifespan starts and stops the worker."""
    agents = None
    if is_here("mcp.server.mcpserver"):
        from op_serve.agents import over_http

        agents = over_http(served)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        served.worker.start()
        async with AsyncExitStack() as stack:
            if agents is not None:
                await stack.enter_async_context(agents.session())
            yield
        await asyncio.to_thread(served.worker.stop)
        served.jobs.close()

    app = Starlette(
        routes=routes() + (agents.routes() if agents is not None else []),
        middleware=[Middleware(Guard, door=door)],
        exception_handlers={
            PersonaError: _refused,
            Stopped: _refused,
            HTTPException: _not_here,
        },
        lifespan=lifespan,
    )
    app.state.served = served
    return app


def routes() -> list[BaseRoute]:
    """Every address."""
    return [
        Route("/health", health),
        Route("/", page),
        Mount("/page", StaticFiles(directory=PAGE)),
        Route("/openapi.json", describe.openapi),
        Route("/v1/models", chat.models),
        Route("/v1/models/{model:path}", chat.model),
        Route("/v1/chat/completions", chat.completions, methods=["POST"]),
        Route("/v1/images/generations", images.generations, methods=["POST"]),
        Route("/v1/images/edits", images.edits, methods=["POST"]),
        Route("/pictures/{name}", picture, name="picture"),
        Route("/sdapi/v1/txt2img", sdapi.txt2img, methods=["POST"]),
        Route("/sdapi/v1/sd-models", sdapi.sd_models),
        Route("/sdapi/v1/options", sdapi.options, methods=["GET", "POST"]),
        Route("/api/state", studio.state),
        Route("/api/ask", studio.ask, methods=["POST"]),
        Route("/api/paint", studio.paint, methods=["POST"]),
        Route("/api/recall", studio.recall, methods=["POST"]),
        Route("/api/about", studio.about, methods=["POST"]),
        Route("/api/drafts", studio.draft, methods=["POST"]),
        Route("/api/drafts/{id}/plan", studio.plan, methods=["POST"]),
        Route("/api/jobs", studio.jobs),
        Route("/api/jobs", studio.start, methods=["POST"]),
        Route("/api/jobs/{id}", studio.job_now, methods=["GET", "DELETE"]),
        Route("/api/jobs/{id}/stop", studio.job_stop, methods=["POST"]),
        Route("/api/jobs/{id}/resume", studio.job_resume, methods=["POST"]),
        Route("/api/jobs/{id}/card", studio.job_card),
        Route("/api/jobs/{id}/events", studio.job_events),
        Route("/api/concepts", shelf.every, methods=["GET", "POST"]),
        Route("/api/concepts/{name}", shelf.one, methods=["GET", "PUT", "DELETE"]),
        Route("/api/concepts/{name}/facts", shelf.facts, methods=["POST", "PUT", "DELETE"]),
        Route("/api/concepts/{name}/thumbnail", shelf.thumbnail, methods=["GET", "PUT", "DELETE"]),
        Route("/api/concepts/{name}/pack", shelf.pack),
    ]


async def health(request: Request) -> Response:
    """Whether it is worth asking; answers while the model is busy."""
    worker = served_by(request).worker
    status = 503 if worker.state in ("loading", "stopping") else 200
    return JSONResponse(
        {"status": worker.state, "waiting": worker.waiting, "version": __version__},
        status,
        headers={"retry-after": "2"} if status == 503 else {},
    )


async def page(request: Request) -> Response:
    """The studio."""
    return FileResponse(PAGE / "index.html")


async def picture(request: Request) -> Response:
    """A picture that a client asked the address of."""
    data, kind = served_by(request).kept.get(request.path_params["name"])
    return Response(data, media_type=f"image/{kind}")


async def _refused(request: Request, error: Exception) -> Response:
    refused = refusal_of(error)
    return JSONResponse(refused.body, refused.status, headers=refused.headers)


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address does not take that"}
    denied = DeniedError(
        words.get(error.status_code, error.detail),
        status=error.status_code,
        code="not_found" if error.status_code == 404 else "bad_request",
        hint="GET /openapi.json lists what there is",
    )
    refused = refusal_of(denied)
    return JSONResponse(
        refused.body, refused.status, headers={**refused.headers, **(error.headers or {})}
    )
