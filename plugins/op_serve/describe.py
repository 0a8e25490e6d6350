"""All addresses, described in OpenAPI 3.1 for programs that want to know before they ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnipersona_cli import __version__

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
SEED: Schema = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
NAME: Schema = {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,31}$"}
NAMES: Schema = {"type": "array", "items": NAME}
FILE: Schema = {"type": "string", "format": "binary"}
PHOTOS: Schema = {"type": "array", "items": FILE, "minItems": 1, "maxItems": 100}
FORCE: Schema = {"name": "force", "in": "query", "schema": FLAG}
OTHER_NAME: Schema = {"name": "name", "in": "query", "schema": NAME}
PICTURE: Schema = {"type": "string", "description": "A data URL, or bare base64."}
MASK_MEANS: Schema = {
    "type": "string",
    "enum": ["white", "transparent"],
    "description": "What of the mask may change, where part of it is transparent.",
}
FROM_OP: dict[str, Schema] = {
    "backend": {"type": "string", "description": "Refuse where another one is open."},
    "weights": {"type": "string", "description": "Refuse where others are open."},
    "bare_names": {"type": "boolean", "description": "Known names count without brackets too."},
}
PROMPT: Schema = {"type": "string", "minLength": 1, "maxLength": 2000}
BOX: Schema = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 4,
    "maxItems": 4,
    "description": "x, y, width, height in pixels.",
}
PAINTING: dict[str, Schema] = {
    "prompt": PROMPT,
    "model": {"type": "string", "description": "The backend, or backend/concept: nano/bo."},
    "concepts": NAMES,
    "n": {"type": "integer", "minimum": 1, "maximum": 10},
    "tries": {"type": "integer", "minimum": 1, "maximum": 16},
    "steps": {"type": "integer", "minimum": 1, "maximum": 1000},
    "guidance": {"type": "number", "minimum": 0, "maximum": 100},
    "seed": SEED,
    "fast": {"type": "boolean", "description": "In less time, where the backend can."},
    "replay": FLAG,
}
FILES: dict[str, Schema] = {
    "size": {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$"},
    "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
    "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
    "response_format": {"type": "string", "enum": ["b64_json", "url"]},
    "stream": FLAG,
    "partial_images": {"type": "integer", "minimum": 0, "maximum": 3},
}
EDITING: dict[str, Schema] = {
    "strength": {"type": "number", "exclusiveMinimum": 0.01, "maximum": 1},
    "box": BOX,
}
MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                PROMPT,
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": PROMPT},
                    },
                },
            ]
        },
    },
}
CHATTING: dict[str, Schema] = {
    "model": TEXT,
    "messages": {"type": "array", "minItems": 1, "maxItems": 20, "items": MESSAGE},
    "stream": FLAG,
    "logprobs": FLAG,
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 10_000},
    "seed": SEED,
    "concepts": NAMES,
}
ASKING: dict[str, Schema] = {
    "question": PROMPT,
    "image": PICTURE,
    "images": {"type": "array", "items": PICTURE, "description": "Several, in order."},
    "concepts": NAMES,
    "earlier": {
        "type": "array",
        "items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
    },
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 10_000},
    "seed": SEED,
    **FROM_OP,
}
TEACHING: dict[str, Schema] = {
    "name": {"type": "string"},
    "kind": {"type": "string", "maxLength": 64},
    "facts": {"type": "array", "items": {"type": "string", "maxLength": 300}},
    "steps": {"type": "integer", "minimum": 1, "maximum": 100_000},
    "seed": SEED,
    "force": FLAG,
}
ERRORS = {
    "400": "What was asked makes no sense; the message says what would.",
    "401": "A token is needed.",
    "403": "A page of another server asked.",
    "404": "There is no such concept, model, job or address.",
    "405": "The address does not take this method.",
    "413": "The request is too large.",
    "429": "Too much waits already.",
    "500": "A bug in op.",
    "503": "The model is being loaded, is missing, or ran out of memory.",
}


async def openapi(request: Request) -> Response:
    """The description."""
    return JSONResponse(description())


def description() -> dict[str, Any]:
    """The description as plain values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "omnipersona",
            "version": __version__,
            "description": "Ask, paint, edit and teach. OpenAI's dialect under /v1, op's own words "
            "under /api, MCP under /mcp.",
        },
        "security": [{"token": []}, {}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["message", "type", "param", "code"],
                            "properties": {
                                "message": TEXT,
                                "type": TEXT,
                                "param": {"type": ["string", "null"]},
                                "code": {"type": ["string", "null"]},
                                "hint": TEXT,
                                "exit_code": {"type": "integer"},
                            },
                        }
                    },
                }
            },
        },
    }


def _paths() -> dict[str, Any]:
    name, job = _in_path("name"), _in_path("id")
    fact = _json({"text": {"type": "string", "minLength": 1, "maxLength": 300}}, ["text"])
    return {
        "/": {"get": _operation("The studio.", answer="text/html")},
        "/health": {"get": _operation("Whether it is worth asking.")},
        "/openapi.json": {"get": _operation("This description.")},
        "/v1/models": {"get": _operation("The backend, and the backend with each concept.")},
        "/v1/models/{model}": {"get": _operation("One model.", [_in_path("model")])},
        "/v1/chat/completions": {
            "post": _operation(
                "Answer the last question of a talk.",
                body=_json(CHATTING, ["messages"]),
                answer="text/event-stream",
            )
        },
        "/v1/images/generations": {
            "post": _operation(
                "Paint a prompt.",
                body=_json({**PAINTING, **FILES}, ["prompt"]),
                answer="text/event-stream",
            )
        },
        "/v1/images/edits": {
            "post": _operation(
                "Change a picture.",
                body=_form(
                    {
                        **PAINTING,
                        **FILES,
                        **EDITING,
                        "image": FILE,
                        "mask": FILE,
                        "mask_means": MASK_MEANS,
                    },
                    ["image", "prompt"],
                ),
                answer="text/event-stream",
            )
        },
        "/pictures/{name}": {"get": _operation("A painted picture.", [name], answer="image/*")},
        "/sdapi/v1/txt2img": {
            "post": _operation(
                "Paint a prompt, for programs that speak AUTOMATIC1111's API.",
                body=_json(
                    {
                        "prompt": PROMPT,
                        "width": {"type": "integer", "minimum": 1, "maximum": 8192},
                        "height": {"type": "integer", "minimum": 1, "maximum": 8192},
                        "steps": PAINTING["steps"],
                        "cfg_scale": PAINTING["guidance"],
                        "seed": {"type": "integer", "minimum": -1, "maximum": 2**32 - 1},
                        "batch_size": {"type": "integer", "minimum": 1, "maximum": 4},
                    },
                    ["prompt"],
                ),
            )
        },
        "/sdapi/v1/sd-models": {"get": _operation("The one model.")},
        "/sdapi/v1/options": {
            "get": _operation("What A1111's clients look at to see that somebody is there."),
            "post": _operation("Taken and not kept."),
        },
        "/api/state": {"get": _operation("What is here, and what is going on.")},
        "/api/ask": {
            "post": _operation(
                "Answer a question, in lines of JSON.",
                body=_json(ASKING, ["question"]),
                answer="application/x-ndjson",
            )
        },
        "/api/paint": {
            "post": _operation(
                "Paint, or change the picture in `source`, in lines of JSON.",
                body=_json(
                    {
                        **PAINTING,
                        **EDITING,
                        **FROM_OP,
                        "estimates": {"type": "integer", "minimum": 0, "maximum": 20},
                        "metadata": {"type": "string", "enum": ["full", "minimal", "none"]},
                        "size": FILES["size"],
                        "source": PICTURE,
                        "mask": PICTURE,
                        "mask_means": MASK_MEANS,
                    },
                    ["prompt"],
                ),
                answer="application/x-ndjson",
            )
        },
        "/api/recall": {
            "post": _operation(
                "What replay makes of a prompt.",
                body=_json(
                    {
                        "prompt": PROMPT,
                        "concepts": NAMES,
                        "facts": {
                            "type": "object",
                            "additionalProperties": {"type": "array", "items": TEXT},
                        },
                    },
                    ["prompt"],
                ),
            )
        },
        "/api/about": {
            "post": _operation("How a picture says that it was made.", body=_raw("A PNG.")),
        },
        "/api/drafts": {
            "post": _operation(
                "Photos to learn from.", body=_form({"photos": PHOTOS}, ["photos"]), status="201"
            )
        },
        "/api/jobs": {
            "get": _operation("All jobs."),
            "post": _operation(
                "Learn from the photos of a draft.",
                body=_json({**TEACHING, "draft": TEXT}, ["draft", "name"]),
                status="202",
            ),
        },
        "/api/drafts/{id}/plan": {
            "post": _operation(
                "What learning would do.", [job], body=_json(TEACHING, []), status="200"
            )
        },
        "/api/jobs/{id}": {
            "get": _operation("One job.", [job]),
            "delete": _operation("Stop and forget it.", [job], status="204"),
        },
        "/api/jobs/{id}/stop": {"post": _operation("Stop it.", [job], status="202")},
        "/api/jobs/{id}/resume": {"post": _operation("Let it go on.", [job], status="202")},
        "/api/jobs/{id}/card": {
            "get": _operation("Its report card, as a page.", [job], answer="text/html")
        },
        "/api/jobs/{id}/events": {
            "get": _operation("The job as it goes.", [job], answer="text/event-stream")
        },
        "/api/concepts": {
            "get": _operation("All concepts."),
            "post": _operation(
                "Take a pack in.", [FORCE, OTHER_NAME], body=_raw("A pack."), status="201"
            ),
        },
        "/api/concepts/{name}": {
            "get": _operation("One concept.", [name]),
            "put": _operation(
                "Give it another name.", [name], body=_json({"name": NAME}, ["name"])
            ),
            "delete": _operation("Delete it.", [name], status="204"),
        },
        "/api/concepts/{name}/facts": {
            "post": _operation("One fact more.", [name], body=fact),
            "put": _operation("A fact in the place of what it corrects.", [name], body=fact),
            "delete": _operation("One fact less.", [name], body=fact),
        },
        "/api/concepts/{name}/thumbnail": {
            "get": _operation("The picture in the pack.", [name], answer="image/png"),
            "put": _operation("Keep one, small.", [name], body=_raw("A picture.")),
            "delete": _operation("Keep none.", [name]),
        },
        "/api/concepts/{name}/pack": {
            "get": _operation("The pack.", [name], answer="application/octet-stream")
        },
    }


def _operation(
    summary: str,
    parameters: Sequence[Schema] = (),
    *,
    body: Schema | None = None,
    answer: str = "application/json",
    status: str = "200",
) -> Schema:
    content: dict[str, Any] = {"application/json": {}}
    content[answer] = {}
    done: Schema = {"description": "Done.", "content": content}
    if status == "204":
        done = {"description": "Done."}
    operation: Schema = {
        "summary": summary,
        "responses": {status: done, **_errors()},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _errors() -> Mapping[str, Schema]:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": words, "content": schema} for status, words in ERRORS.items()}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _json(properties: Mapping[str, Schema], required: Sequence[str]) -> Schema:
    return _body("application/json", properties, required)


def _form(properties: Mapping[str, Schema], required: Sequence[str]) -> Schema:
    return _body("multipart/form-data", properties, required)


def _raw(what: str) -> Schema:
    """The bytes of one file."""
    schema = {**FILE, "description": what}
    return {"required": True, "content": {"application/octet-stream": {"schema": schema}}}


def _body(kind: str, properties: Mapping[str, Schema], required: Sequence[str]) -> Schema:
    schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"required": True, "content": {kind: {"schema": schema}}}
