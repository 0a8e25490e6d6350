"""Questions in the OpenAI dialect: `/v1/chat/completions` and `/v1/models`.

The last turn of the user is the question, and the user's pictures up to it are what it is about:
the last ones, as many as the backend looks at together. Whether a concept is there is asked of the
last turn that has a picture. Earlier turns are the talk so far. What a system message says is left
out: op answers what it is asked.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnipersona_cli.backend import Backend
from omnipersona_cli.language.mentions import attach
from omnipersona_cli.language.questions import asks_presence
from op_serve import fields
from op_serve.fields import Fields
from op_serve.pictures import from_base64
from op_serve.refusals import FieldError, ModelError, refusal_of
from op_serve.served import (
    Served,
    concepts_of_model,
    json_of,
    leaving,
    model_ids,
    primed,
    served_by,
    sse,
    streaming,
)
from op_serve.waiting import Ended, Waits, beats_of, result_of
from op_serve.work import Question, answer
from op_serve.worker import Ticket

if TYPE_CHECKING:
    from omnipersona_cli.engine import Answer

REMEMBERED = 6
"""How many earlier questions and answers are shown to the model."""

MOST_MESSAGES = 500


async def models(request: Request) -> Response:
    """The backend, and the backend with each concept."""
    served = served_by(request)
    return JSONResponse(
        {"object": "list", "data": [_model(identifier) for identifier in model_ids(served)]}
    )


async def model(request: Request) -> Response:
    """One of them."""
    served, wanted = served_by(request), request.path_params["model"]
    if wanted not in model_ids(served):
        raise ModelError(f"there is no model {wanted[:80]!r} here", hint="GET /v1/models")
    return JSONResponse(_model(wanted))


async def completions(request: Request) -> Response:
    """Answer the last question of a talk."""
    served = served_by(request)
    asked = await json_of(request)
    question = await _question(served, asked)
    name = fields.text(asked, "model", "") or served.info.name
    logprobs = fields.flag(asked, "logprobs", False)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": name,
    }
    if fields.flag(asked, "stream", False):
        counted = fields.flag(fields.mapping(asked, "stream_options"), "include_usage", False)
        stream = _chunks(served, question, head, logprobs=logprobs, counted=counted)
        return streaming(await primed(stream), "text/event-stream")

    def work(backend: Backend, ticket: Ticket[Answer]) -> Answer:
        return answer(backend, ticket, question, library=served.shown.library)

    reply = await result_of(served.worker, "a question", work, leaving=leaving(request))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text, "refusal": None},
        "finish_reason": "stop",
        "logprobs": logprobs_of(reply) if logprobs else None,
    }
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(question, reply),
            **own_keys(question, reply),
        }
    )


async def _chunks(
    served: Served, question: Question, head: Mapping[str, Any], *, logprobs: bool, counted: bool
) -> AsyncGenerator[str, None]:
    """The answer as it is said, in chunks; an error ends the stream."""

    def work(backend: Backend, ticket: Ticket[Answer]) -> Answer:
        return answer(backend, ticket, question, library=served.shown.library, on_text=ticket.send)

    def chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        choice |= {key: more.pop(key) for key in ("logprobs",) if key in more}
        return sse({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    first = chunk({"role": "assistant", "content": ""})
    begun = False
    try:
        async for beat in beats_of(served.worker, "a question", work):
            if isinstance(beat, Waits):
                begun = True
                yield ": waiting\n\n"
                continue
            if first:
                begun = True
                yield first
                first = ""
            if isinstance(beat, Ended):
                reply: Answer = beat.value
                more = {"logprobs": logprobs_of(reply)} if logprobs else {}
                yield chunk({}, "stop", **more, **own_keys(question, reply))
                if counted:
                    usage = usage_of(question, reply)
                    told = {**head, "object": "chat.completion.chunk", "choices": []}
                    yield sse({**told, "usage": usage})
                yield sse("[DONE]")
            else:
                yield chunk({"content": beat})
    except Exception as error:
        if not begun:
            raise
        yield sse(refusal_of(error).body)


async def _question(served: Served, asked: Fields) -> Question:
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages or len(messages) > MOST_MESSAGES:
        raise FieldError(
            "messages is not a list of messages",
            hint='"messages": [{"role": "user", "content": "is bo here?"}]',
            field="messages",
        )
    if (fields.whole(asked, "n", low=1, high=128) or 1) != 1:
        raise FieldError("one answer is given at a time", hint="leave out n", field="n")
    turns = [_turn(message) for message in messages]
    asking = next((at for at in reversed(range(len(turns))) if turns[at][0] == "user"), None)
    if asking is None or not turns[asking][1].strip():
        raise FieldError("no message of the user asks anything", field="messages")
    question = turns[asking][1]
    named = (
        *concepts_of_model(served, fields.text(asked, "model", "")),
        *fields.names(asked, "concepts"),
    )
    concepts = served.shown.meant(question, named)
    shown = [found for role, _, found in turns[: asking + 1] if role == "user" and found]
    urls = [url for found in shown for url in found]
    kept = urls[-served.most_images :]
    if shown and asks_presence(attach(question, concepts, "understand")):
        kept = shown[-1][-served.most_images :]
    sent = [from_base64(url, what="image_url") for url in kept]
    longest = fields.whole(asked, "max_completion_tokens", "max_tokens", low=1, high=100_000)
    return Question(
        text=question,
        images=await served.looked_at(question, sent, concepts),
        left_out=len(urls) - len(kept),
        concepts=concepts,
        earlier=_earlier(turns[:asking])[-REMEMBERED:],
        max_tokens=min(longest or 100, 10_000),
        seed=(fields.whole(asked, "seed", low=-(2**63), high=2**63) or 0) % 2**32,
    )


def _turn(message: Any) -> tuple[str, str, list[str]]:
    """Role, text and addresses of pictures of one message."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise FieldError("a message has no role", field="messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message["role"], content or "", []
    if not isinstance(content, list):
        raise FieldError("content is neither a text nor a list of parts", field="messages")
    texts, urls = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            place = part.get("image_url")
            url = place.get("url") if isinstance(place, dict) else place
            if not isinstance(url, str):
                raise FieldError("an image_url has no url", field="messages")
            urls.append(url)
        else:
            raise FieldError(
                f"a part of the type {str(kind)[:40]!r} is not understood",
                hint="send text and image_url",
                field="messages",
            )
    return message["role"], "\n".join(texts), urls


def _earlier(turns: Sequence[tuple[str, str, list[str]]]) -> tuple[tuple[str, str], ...]:
    """Questions with their answers."""
    pairs = []
    question = ""
    for role, content, _ in turns:
        if role == "user":
            question = content.strip()
        elif role == "assistant" and question and content.strip():
            pairs.append((question, content.strip()))
            question = ""
    return tuple(pairs)


def own_keys(question: Question, reply: Answer) -> dict[str, Any]:
    """What op says of an answer besides: verdict, probability, grounds, and of how many pictures
    that were sent it looked at the last."""
    return {
        "verdict": reply.verdict,
        "probability": reply.probability,
        "concepts": dict(reply.probabilities),
        "source": reply.source,
        "facts": list(reply.facts),
        "images": {"seen": len(question.images), "left_out": question.left_out},
    }


def logprobs_of(reply: Answer) -> dict[str, Any]:
    """The calibrated probabilities of a yes/no question as log-probabilities of its one word; other
    answers have none, because backends do not tell theirs."""
    probability = reply.probability
    if probability is None:
        return {"content": [], "refusal": None}
    chances = {"yes": probability, "no": 1 - probability}
    top = [
        _chance(word, chance) for word, chance in sorted(chances.items(), key=lambda pair: -pair[1])
    ]
    word = "yes" if reply.verdict == "yes" else "no" if reply.verdict == "no" else reply.text
    return {
        "content": [
            {**_chance(word, chances.get(word, max(chances.values()))), "top_logprobs": top}
        ],
        "refusal": None,
    }


def _chance(word: str, probability: float) -> dict[str, Any]:
    logprob = math.log(max(probability, 1e-9))
    return {"token": word, "logprob": logprob, "bytes": list(word.encode())}


def usage_of(question: Question, reply: Answer) -> dict[str, int]:
    """Words stand for tokens: a backend does not count its own."""
    asked = len(question.text.split()) + sum(
        len(text.split()) for pair in question.earlier for text in pair
    )
    answered = len(reply.text.split())
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
    }


def _model(identifier: str) -> dict[str, Any]:
    return {"id": identifier, "object": "model", "created": 0, "owned_by": "omnipersona"}
