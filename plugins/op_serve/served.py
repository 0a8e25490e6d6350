"""What the handlers share: the worker, what is shown of this machine, and reading a request."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import StreamingResponse

from omnipersona_cli.backend import BackendInfo
from op_serve.fields import json_text
from op_serve.pictures import KeptPictures
from op_serve.refusals import FieldError, ModelError
from op_serve.work import Shown, not_kept, pictures_of
from op_serve.worker import Worker

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnipersona_cli.engine import Opening
    from omnipersona_cli.engine.picture import Metadata
    from op_serve.jobs import Jobs

T = TypeVar("T")

OWN_NAMES = ("", "op", "omnipersona")
"""Names of models that mean the one that is here."""

FOREIGN_NAMES = ("gpt-image", "dall-e", "chatgpt-image")
"""Names that programs send when nobody tells them another: these mean the one that is here too."""

MOST_FILES = 100
MOST_FILE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Served:
    """One server. ``decoding`` lets one picture be decoded at a time."""

    worker: Worker
    shown: Shown
    opening: Opening
    info: BackendInfo
    jobs: Jobs
    metadata: Metadata = "full"
    kept: KeptPictures = field(default_factory=KeptPictures)
    decoding: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    @property
    def weights(self) -> str:
        """The weights that are opened: a hub id, or a folder as it was named."""
        return self.opening.model or self.info.default_model

    @property
    def most_images(self) -> int:
        """How many pictures a question may be about."""
        return self.jobs.room.images or self.info.most_images

    async def decoded(self, read: Callable[[bytes], T], data: bytes) -> T:
        """``read(data)`` in a thread, after whatever is being decoded now."""
        return await anyio.to_thread.run_sync(read, data, limiter=self.decoding)

    async def looked_at(
        self, question: str, sent: Sequence[bytes], concepts: Sequence[str]
    ) -> tuple[Image, ...]:
        """The pictures ``sent`` with a question, in a thread as `decoded`. Raises what
        `pictures_of` raises."""
        info = replace(self.info, most_images=self.most_images)
        open_all = partial(
            pictures_of, question, sent, concepts, info=info, library=self.shown.library
        )
        return await anyio.to_thread.run_sync(open_all, limiter=self.decoding)


def served_by(request: Request) -> Served:
    """The server that the request came to."""
    return cast(Served, request.app.state.served)


async def json_of(request: Request) -> dict[str, Any]:
    """The body as an object. Raises FieldError."""
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise FieldError("the body is not UTF-8", hint="send a JSON object", field="") from error
    body = json_text(text, "", hint="send a JSON object")
    if not isinstance(body, dict):
        raise FieldError("the body is not an object", hint='{"prompt": "..."}', field="")
    return body


async def form_of(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Fields and files of a form, by name; ``image[]`` is ``image``. Names and types of files are
    not looked at: content decides. Raises FieldError."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise FieldError("the body is no multipart form", hint="curl -F image=@a.png", field="")
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    how = {"max_files": MOST_FILES, "max_fields": 200, "max_part_size": 1 << 20}
    try:
        async with request.form(**how) as form:
            for key, value in form.multi_items():
                name = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    if (value.size or 0) > MOST_FILE_BYTES:
                        raise FieldError(
                            f"{name} is larger than {MOST_FILE_BYTES >> 20} MB", field=name
                        )
                    files.setdefault(name, []).append(await value.read())
                else:
                    fields.setdefault(name, []).append(value)
    except OSError as error:  # large files wait in the folder for temporary files
        raise not_kept(error) from error
    return {key: (it[0] if len(it) == 1 else it) for key, it in fields.items()}, files


async def leaving(request: Request) -> None:
    """Wait until the client has left; its body has to be read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def concepts_of_model(served: Served, model: str) -> tuple[str, ...]:
    """The concepts that the name of a model brings: none for the backend's own name, one for
    ``nano/bo`` or ``bo``. Raises ModelError."""
    name = model.strip().lower()
    backend, _, concept = name.partition("/")
    if name in (*OWN_NAMES, served.info.name) or name.startswith(FOREIGN_NAMES):
        return ()
    known = served.shown.names()
    if backend == served.info.name and concept in known:
        return (concept,)
    if name in known:
        return (name,)
    raise ModelError(
        f"there is no model {model[:80]!r} here",
        hint=f"{', '.join(model_ids(served)[:8])}; GET /v1/models lists all",
    )


def model_ids(served: Served) -> list[str]:
    """The models that a client may name: the backend, and the backend with each concept."""
    name = served.info.name
    return [name, *(f"{name}/{concept}" for concept in served.shown.names())]


async def primed(stream: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """The stream after its first piece is there: what fails at once is an error with a status of
    its own, not one inside a stream that began well."""
    first = await anext(stream, None)

    async def whole() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield first
            async for piece in stream:
                yield piece
        finally:
            await stream.aclose()

    return whole()


def streaming(stream: AsyncIterator[str], media_type: str) -> StreamingResponse:
    """A stream as an answer that nothing on the way holds back."""
    return StreamingResponse(stream, media_type=media_type, headers={"x-accel-buffering": "no"})


def sse(data: Any, *, event: str = "") -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n"


def nearest_size(
    wanted: tuple[int, int] | None, sizes: Iterable[tuple[int, int]]
) -> tuple[int, int] | None:
    """The size nearest to the wanted one, in shape first and then in area; None for the default."""
    from math import log

    if wanted is None:
        return None
    width, height = wanted

    def distance(size: tuple[int, int]) -> float:
        shape = abs(log(size[0] / size[1]) - log(width / height))
        return 4 * shape + abs(log(size[0] * size[1]) - log(width * height))

    return min(sizes, key=distance)
