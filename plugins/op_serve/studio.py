"""What the page asks, and `op` itself when it uses a running server: op's own words, under `/api`.

Answers that take a while are lines of JSON, each with an ``event``: "waiting", "note", "progress",
"trace", "piece", "estimate", "picture", "answer", "error".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnipersona_cli import __version__
from omnipersona_cli.backend import Backend
from omnipersona_cli.errors import MissingError
from omnipersona_cli.hookspecs import Progress
from op_serve import concepts, fields, work
from op_serve.fields import Fields
from op_serve.images import mask_means, painting_of, strength_of
from op_serve.pictures import encoded, encoded_estimate, from_base64, opened, opened_mask, to_base64
from op_serve.refusals import FieldError, ModelError, refusal_of
from op_serve.served import (
    Served,
    form_of,
    json_of,
    leaving,
    primed,
    served_by,
    sse,
    streaming,
)
from op_serve.waiting import Waits, beats_of, result_of
from op_serve.work import Question, Teaching
from op_serve.worker import Ticket

if TYPE_CHECKING:
    from omnipersona_cli.engine.picture import Metadata

LINES = "application/x-ndjson"

MOST_PICTURES, MOST_TRIES = 1000, 64
"""As many of one request as the command line takes: its pictures are sent as they come."""

MOST_ESTIMATES = 20

MORE: tuple[Metadata, ...] = ("none", "minimal", "full")


async def state(request: Request) -> Response:
    """Everything that the page shows when it is opened."""
    served = served_by(request)
    info = served.info
    return JSONResponse(
        {
            "version": __version__,
            "state": served.worker.state,
            "running": served.worker.running,
            "waiting": served.worker.waiting,
            "backend": {
                "name": info.name,
                "summary": info.summary,
                "pictures": info.pictures,
                "tasks": dict(info.tasks),
                "sizes": [list(size) for size in info.sizes],
                "steps": info.steps,
                "guidance": info.guidance,
                "fast": info.fast,
                "most_images": served.most_images,
                "learn_steps": info.learn_steps,
            },
            "concepts": concepts.all_of(served.shown, info.name),
            "jobs": [served.jobs.data(job) for job in served.jobs.all() if job.state != "draft"],
            "teaches": served.shown.only is None,
            "tries": MOST_TRIES,
        }
    )


async def ask(request: Request) -> Response:
    """Answer a question, piece by piece."""
    served = served_by(request)
    asked = await json_of(request)
    check_backend(served, asked)
    text = fields.text(asked, "question")
    concepts = served.shown.meant(
        text, fields.names(asked, "concepts"), bare=fields.flag(asked, "bare_names", True)
    )
    sent = [*fields.texts(asked, "image"), *fields.texts(asked, "images")]
    data = [from_base64(one, what="image") for one in sent if one]
    question = Question(
        text=text,
        images=await served.looked_at(text, data, concepts),
        concepts=concepts,
        earlier=_pairs(asked),
        max_tokens=fields.whole(asked, "max_tokens", low=1, high=10_000) or 100,
        seed=fields.whole(asked, "seed", low=0, high=2**32 - 1) or 0,
    )

    def does(backend: Backend, ticket: Ticket[None]) -> None:
        answer = work.answer(
            backend,
            ticket,
            question,
            library=served.shown.library,
            on_text=lambda piece: ticket.send({"event": "piece", "text": piece}),
            on_progress=_telling(ticket),
        )
        ticket.send({"event": "answer", **answer.to_dict(text)})

    return streaming(await primed(_lines(served, "a question", does)), LINES)


async def paint(request: Request) -> Response:
    """Paint a prompt, or change the picture in ``source``."""
    served = served_by(request)
    asked = await json_of(request)
    check_backend(served, asked)
    metadata = metadata_of(served, asked)
    estimates = fields.whole(asked, "estimates", low=0, high=MOST_ESTIMATES) or 0
    painting = replace(
        painting_of(served, asked, most=MOST_PICTURES, tries=MOST_TRIES),
        size=fields.size(asked, "size"),
        source=await _picture(served, asked, "source", opened),
        mask=await _picture(served, asked, "mask", opened_mask),
        mask_means=mask_means(asked),
        box=fields.box(asked, "box"),
        strength=strength_of(asked),
        expected={str(k): str(v) for k, v in fields.mapping(asked, "expected").items()},
    )

    def does(backend: Backend, ticket: Ticket[None]) -> None:
        def trace(told: Any) -> None:
            ticket.send({"event": "trace", **told.to_dict()})

        def picture(made: Any) -> None:
            ticket.send(
                {
                    "event": "picture",
                    "png": to_base64(encoded(made, metadata=metadata)),
                    "seed": made.seed,
                    "about": dict(made.about),
                    "trace": made.trace.to_dict(),
                    "source": made.source,
                }
            )

        if "metadata" in asked and asked["metadata"] != metadata:
            less = f"this server keeps metadata to {metadata}"
            ticket.send({"event": "note", "text": less, "phase": "reading"})

        def estimate(number: int, image: Any) -> None:
            data = encoded_estimate(
                image, edited=painting.source is not None, metadata=served.metadata
            )
            ticket.send({"event": "estimate", "picture": number, "png": to_base64(data)})

        work.paint(
            backend,
            ticket,
            painting,
            library=served.shown.library,
            on_progress=_telling(ticket),
            on_trace=trace,
            on_picture=picture,
            estimates=estimates,
            on_estimate=estimate,
        )

    return streaming(await primed(_lines(served, "a picture", does)), LINES)


def check_backend(served: Served, asked: Fields) -> None:
    """ModelError where the client wants another backend, or other weights, than are open here."""
    here = {"backend": served.info.name, "weights": served.weights}
    for key, name in here.items():
        wanted = fields.text(asked, key, "")
        if wanted and wanted != name:
            raise ModelError(
                f"the server has {name} open, not {wanted[:80]}",
                hint=f"leave out the {key}, or start another server: op serve --port 0",
            )


def metadata_of(served: Served, asked: Fields) -> Metadata:
    """How much a picture says of how it was made: what the client wants, and no more than the
    server allows."""
    most = MORE.index(served.metadata)
    wanted = fields.choice(asked, "metadata", MORE, served.metadata)
    return MORE[min(most, MORE.index(wanted))]


async def recall(request: Request) -> Response:
    """The replay of a prompt alone, with a person's corrections."""
    served = served_by(request)
    asked = await json_of(request)
    prompt = fields.text(asked, "prompt")
    meant = served.shown.meant(prompt, fields.names(asked, "concepts"))
    corrected = {
        str(name): fields.texts({"facts": sentences}, "facts")
        for name, sentences in fields.mapping(asked, "facts").items()
    }

    def does(backend: Backend, ticket: Ticket[dict[str, Any]]) -> dict[str, Any]:
        trace = work.recall(
            backend, prompt, concepts=meant, facts=corrected, library=served.shown.library
        )
        return trace.to_dict()

    return JSONResponse(await result_of(served.worker, "a replay", does, leaving=leaving(request)))


async def about(request: Request) -> Response:
    """How the picture in the body says that it was made."""
    served = served_by(request)
    return JSONResponse(await served.decoded(work.about_of, await request.body()))


async def draft(request: Request) -> Response:
    """Photos to learn from."""
    served = served_by(request)
    _, files = await form_of(request)
    job = await asyncio.to_thread(served.jobs.draft, files.get("photos", []))
    return JSONResponse(served.jobs.data(job), 201)


async def plan(request: Request) -> Response:
    """What learning from a draft would do."""
    served = served_by(request)
    job = served.jobs.get(request.path_params["id"])
    teaching = _teaching(await json_of(request), default_name="it")
    return JSONResponse(await served.decoded(lambda _: served.jobs.plan(job, teaching), b""))


async def start(request: Request) -> Response:
    """Learn from a draft."""
    served = served_by(request)
    asked = await json_of(request)
    job = served.jobs.get(fields.text(asked, "draft"))
    served.jobs.start(job, _teaching(asked))
    return JSONResponse(served.jobs.data(job), 202)


async def jobs(request: Request) -> Response:
    """All jobs."""
    served = served_by(request)
    return JSONResponse([served.jobs.data(job) for job in served.jobs.all()])


async def job_now(request: Request) -> Response:
    """One job; forgotten by DELETE."""
    served = served_by(request)
    job = served.jobs.get(request.path_params["id"])
    if request.method == "DELETE":
        served.jobs.forget(job)
        return Response(status_code=204)
    return JSONResponse(served.jobs.data(job))


async def job_stop(request: Request) -> Response:
    """Stop a job; it can go on later."""
    served = served_by(request)
    job = served.jobs.get(request.path_params["id"])
    served.jobs.stop(job)
    return JSONResponse(served.jobs.data(job), 202)


async def job_resume(request: Request) -> Response:
    """Take a stopped job up."""
    served = served_by(request)
    job = served.jobs.get(request.path_params["id"])
    served.jobs.go_on(job)
    return JSONResponse(served.jobs.data(job), 202)


async def job_card(request: Request) -> Response:
    """The report card of a job, a page of its own that may do nothing but be looked at."""
    job = served_by(request).jobs.get(request.path_params["id"])
    if not job.card.is_file():
        raise MissingError(
            "there is no report card yet", hint="it is written when learning is done"
        )
    return Response(
        job.card.read_bytes(),
        media_type="text/html; charset=utf-8",
        headers={
            "content-security-policy": "default-src 'none'; img-src data:; "
            "style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
        },
    )


async def job_events(request: Request) -> Response:
    """A job as it goes: all of it first, then what changes."""
    served = served_by(request)
    job = served.jobs.get(request.path_params["id"])
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def listener(event: dict[str, Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(told.put_nowait, event)

    async def events() -> AsyncGenerator[str, None]:
        job.listeners.add(listener)
        try:
            yield sse(served.jobs.data(job))
            while served.worker.state != "stopping":
                if job.state in ("done", "stopped", "failed") and told.empty():
                    return
                try:
                    event = await asyncio.wait_for(told.get(), 1.0)
                except TimeoutError:
                    if job.state == "waiting":
                        yield sse({"id": job.id, "position": served.jobs.data(job)["position"]})
                    else:
                        yield ": learning\n\n"
                    continue
                yield sse(event)
        finally:
            job.listeners.discard(listener)

    return streaming(events(), "text/event-stream")


async def _lines(
    served: Served, what: str, does: Callable[[Backend, Ticket[None]], None]
) -> AsyncGenerator[str, None]:
    begun = False
    try:
        async for beat in beats_of(served.worker, what, does, patient=True):
            begun = True
            if isinstance(beat, Waits):
                yield _line({"event": "waiting", "position": beat.position})
            elif isinstance(beat, dict):
                yield _line(beat)
    except Exception as error:
        if not begun:
            raise
        refused = refusal_of(error)
        yield _line({"event": "error", "status": refused.status, **refused.error})


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, default=str) + "\n"


def _telling(ticket: Ticket[Any]) -> Callable[[Progress], None]:
    def tell(event: Progress) -> None:
        if event.note:
            ticket.send({"event": "note", "text": event.note, "phase": event.phase})
        else:
            ticket.send({"event": "progress", **work.progress_data(event)})

    return tell


async def _picture(served: Served, asked: Fields, name: str, read: Callable[[bytes], Any]) -> Any:
    sent = asked.get(name)
    if sent is None or sent == "":
        return None
    if not isinstance(sent, str):
        raise FieldError(f"{name} is not base64", field=name)
    return await served.decoded(read, from_base64(sent, what=name))


def _pairs(asked: Fields) -> tuple[tuple[str, str], ...]:
    pairs = asked.get("earlier", [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(it, str) for it in pair)
        for pair in pairs
    ):
        raise FieldError("earlier is no list of questions and answers", field="earlier")
    return tuple((pair[0], pair[1]) for pair in pairs[-6:])


def _teaching(asked: Fields, *, default_name: str | None = None) -> Teaching:
    from pathlib import Path

    return Teaching(
        photos=Path(),
        name=fields.text(asked, "name", default_name),
        kind=fields.text(asked, "kind", "").strip(),
        facts=tuple(fact for fact in fields.texts(asked, "facts") if fact.strip()),
        steps=fields.whole(asked, "steps", low=1, high=100_000),
        seed=fields.whole(asked, "seed", low=0, high=2**32 - 1) or 0,
        force=fields.flag(asked, "force", False),
    )
