"""The real OpenAI client against a live port, sync and async."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from io import BytesIO
from typing import Any

import openai
import pytest
from live_server import Live, Serve, opened, png, until
from PIL import Image, ImageChops, ImageStat

from op_serve.work import Painting, paint
from op_serve.worker import Stopped, Ticket

QUESTION = "what is <bo>'s toy?"


def client(live: Live, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.token, **more)


def painted(answer: Any) -> Image.Image:
    return opened(base64.b64decode(answer.data[0].b64_json))


def grey() -> bytes:
    return png(Image.new("RGB", (64, 64), "grey"))


def test_models_are_the_backend_and_its_concepts(live: Live) -> None:
    with client(live) as ai:
        assert [it.id for it in ai.models.list()] == ["nano", "nano/bo"]
        assert ai.models.retrieve("nano/bo").owned_by == "omnipersona"
        with pytest.raises(openai.NotFoundError) as caught:
            ai.models.retrieve("nano/mam")
    assert caught.value.code == "model_not_found"


def test_a_picture_is_painted_with_its_replayed_prompt_and_real_size(live: Live) -> None:
    with client(live) as ai:
        answer = ai.images.generate(
            prompt="<bo> with its toy",
            model="nano",
            size="1024x1536",
            n=2,
            extra_body={"seed": 7, "steps": 2},
        )
    assert answer.size == "64x64" and answer.output_format == "png"
    assert [opened(base64.b64decode(it.b64_json or "")).size for it in answer.data or ()] == [
        (64, 64),
        (64, 64),
    ]
    first = (answer.data or [])[0]
    assert first.revised_prompt and "its toy" not in first.revised_prompt
    assert first.seed == 7 and first.concepts == ["bo"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "prompt", "extra"),
    [
        ("nano/bo", "in the snow", {}),
        ("bo", "in the snow", {}),
        ("nano", "in the snow", {"concepts": ["bo"]}),
        ("nano", "bo in the snow", {}),
        ("nano", "Bo in the snow", {}),
        ("gpt-image-1", "<bo> in the snow", {}),
    ],
)
def test_a_concept_may_be_named_without_brackets(
    live: Live, model: str, prompt: str, extra: dict[str, Any]
) -> None:
    with client(live) as ai:
        answer = ai.images.generate(
            prompt=prompt, model=model, extra_body={"seed": 1, "steps": 1, **extra}
        )
    assert (answer.data or [])[0].revised_prompt == "<bo> in the snow"


@pytest.mark.parametrize("fast", [False, True])
def test_a_seed_paints_among_others_what_the_engine_paints_with_it_alone(
    live: Live, fast: bool
) -> None:
    from omnipersona_cli import engine

    with client(live) as ai:
        answer = ai.images.generate(
            prompt="<bo> here", n=3, extra_body={"seed": 1, "steps": 2, "fast": fast}
        )
    there = opened(base64.b64decode((answer.data or [])[2].b64_json or ""))
    (here,) = engine.gen(
        "<bo> here",
        seed=3,
        steps=2,
        fast=fast,
        opening=engine.Opening(backend="nano"),
        library=live.served.shown.library,
    )
    assert there.tobytes() == here.image.tobytes()
    assert json.loads(there.info["omnipersona"]).get("fast", False) == fast


def test_an_edit_may_be_fast_too(live: Live) -> None:
    with client(live) as ai:
        answer = ai.images.edit(
            image=grey(), prompt="add <bo>", extra_body={"fast": True, "steps": 1, "tries": 1}
        )
    assert json.loads(painted(answer).info["omnipersona"])["fast"] is True


def test_other_formats_carry_the_mark_of_a_painted_picture(live: Live) -> None:
    with client(live) as ai:
        for kind in ("jpeg", "webp"):
            answer = ai.images.generate(
                prompt="a forest",
                output_format=kind,
                output_compression=80,
                extra_body={"steps": 1, "seed": 1},
            )
            image = painted(answer)
            assert image.format == kind.upper()
            assert b"trainedAlgorithmicMedia" in image.info["xmp"]


def test_an_address_is_given_on_request_and_opens_with_the_same_key(live: Live) -> None:
    with client(live) as ai:
        answer = ai.images.generate(
            prompt="a forest", response_format="url", extra_body={"steps": 1}
        )
    url = (answer.data or [])[0].url or ""
    assert url.startswith(f"{live.url}/pictures/")
    assert opened(live.client.get(url).content).size == (64, 64)


def test_edits_take_one_image_or_several_and_both_kinds_of_mask(live: Live) -> None:
    white = Image.new("L", (64, 64))
    white.paste(255, (0, 0, 32, 64))
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))
    both = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    both.paste((255, 255, 255, 255), (0, 0, 32, 64))  # white here, transparent there
    results = []
    with client(live) as ai:
        for mask, means in ((white, {}), (clear, {}), (both, {"mask_means": "white"})):
            answer = ai.images.edit(
                image=grey(),
                mask=png(mask),
                prompt="add <bo>",
                extra_body={"seed": 1, "steps": 2, **means},
            )
            results.append(painted(answer))
        several = ai.images.edit(
            image=[grey(), ("b.png", BytesIO(grey()))],
            prompt="add <bo>",
            extra_body={"seed": 1, "steps": 1, "tries": 1, "box": [8, 8, 16, 16]},
        )
    assert len(several.data or ()) == 2
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert {results[0].getpixel((x, 9)) for x in range(32, 64)} == {(128, 128, 128)}


@pytest.mark.parametrize(("kind", "mode"), [("png", "RGBA"), ("jpeg", "RGB"), ("webp", "RGBA")])
def test_an_edit_keeps_transparency_where_its_format_can(live: Live, kind: Any, mode: str) -> None:
    source = Image.new("RGBA", (64, 64), (200, 180, 90, 0))
    source.paste((90, 90, 90, 255), (0, 0, 32, 64))
    with client(live) as ai:
        answer = ai.images.edit(
            image=png(source),
            prompt="add <bo>",
            output_format=kind,
            extra_body={"seed": 1, "steps": 1, "tries": 1, "box": [0, 0, 16, 16]},
        )
    assert painted(answer).mode == mode
    assert answer.background == ("transparent" if mode == "RGBA" else "opaque")


def test_streamed_pictures_are_shown_on_their_way_as_often_as_asked(live: Live) -> None:
    with client(live) as ai:
        events: list[Any] = list(
            ai.images.generate(
                prompt="<bo>",
                n=2,
                stream=True,
                partial_images=3,
                output_format="webp",
                extra_body={"steps": 12, "seed": 3},
            )
        )
        whole = ai.images.generate(
            prompt="<bo>", n=2, output_format="webp", extra_body={"steps": 12, "seed": 3}
        )
        edits: list[Any] = list(
            ai.images.edit(
                image=grey(),
                prompt="add <bo>",
                stream=True,
                partial_images=2,
                extra_body={"steps": 4, "tries": 1, "box": [0, 0, 32, 64]},
            )
        )
        without: list[Any] = list(
            ai.images.generate(prompt="<bo>", stream=True, extra_body={"steps": 4})
        )
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == [*["partial_image"] * 3, "completed"] * 2
    assert [event.partial_image_index for event in events if "partial" in event.type] == [
        0,
        1,
        2,
    ] * 2
    assert [event.picture_index for event in events] == [0] * 4 + [1] * 4
    pictures = [opened(base64.b64decode(event.b64_json)) for event in events]
    assert {it.size for it in pictures} == {(64, 64)} and {it.format for it in pictures} == {"WEBP"}
    assert all(b"trainedAlgorithmicMedia" in it.info["xmp"] for it in pictures)
    for number, made in enumerate(whole.data or ()):
        mine = pictures[4 * number : 4 * number + 4]
        assert mine[3].tobytes() == opened(base64.b64decode(made.b64_json or "")).tobytes()
        gaps = [ImageStat.Stat(ImageChops.difference(it, mine[3])).sum[0] for it in mine]
        assert gaps[0] > gaps[2] > gaps[3] == 0, "an estimate comes nearer to the picture"
    assert [it.type.removeprefix("image_edit.") for it in edits] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    on_the_way = opened(base64.b64decode(edits[0].b64_json))
    assert {on_the_way.getpixel((60, y)) for y in range(64)} == {(128, 128, 128)}, "outside the box"
    assert [event.type for event in without] == ["image_generation.completed"]


def test_questions_are_answered_with_the_verdict_beside_the_text(live: Live, photos: Any) -> None:
    data = base64.b64encode((photos / "00.png").read_bytes()).decode()
    content: Any = [
        {"type": "text", "text": "is <bo> here?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
    ]
    with client(live) as ai:
        answer = ai.chat.completions.create(
            model="nano",
            messages=[
                {"role": "system", "content": "You are a helpful assistant. " * 400},
                {"role": "user", "content": content},
            ],
            logprobs=True,
        )
    told = answer.model_dump()
    assert told["verdict"] == answer.choices[0].message.content
    assert 0 <= told["probability"] <= 1 and told["concepts"] == {"bo": told["probability"]}
    chances = answer.choices[0].logprobs.content[0].top_logprobs  # type: ignore[union-attr,index]
    assert {it.token for it in chances} == {"yes", "no"}


def test_a_talk_goes_on_and_the_picture_stays(live: Live, photos: Any) -> None:
    data = base64.b64encode((photos / "00.png").read_bytes()).decode()
    picture: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    with client(live) as ai:
        answer = ai.chat.completions.create(
            model="nano/bo",
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "hello"}, picture]},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": "is it here?"},
            ],
        )
    assert answer.model_dump()["source"] == "score"


def test_a_streamed_answer_has_role_pieces_end_and_usage(live: Live) -> None:
    with client(live) as ai:
        chunks = list(
            ai.chat.completions.create(
                model="nano",
                messages=[{"role": "user", "content": QUESTION}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        whole = ai.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": QUESTION}]
        )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert text == whole.choices[0].message.content == "a teal star"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage and whole.usage == chunks[-1].usage


def test_every_verb_works_async(live: Live) -> None:
    async def all_of_them() -> tuple[Any, ...]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key=live.token) as ai:
            answer = ai.chat.completions.create(
                model="nano", messages=[{"role": "user", "content": QUESTION}]
            )
            picture = ai.images.generate(prompt="<bo>", extra_body={"steps": 1})
            change = ai.images.edit(
                image=grey(), prompt="add <bo>", extra_body={"steps": 1, "tries": 1}
            )
            return await asyncio.gather(answer, picture, change)

    answer, picture, change = asyncio.run(all_of_them())
    assert answer.choices[0].message.content == "a teal star"
    assert painted(picture).size == painted(change).size == (64, 64)


@pytest.mark.parametrize(
    ("wanted", "error", "param"),
    [
        ({"prompt": "<bo>", "size": "big"}, openai.BadRequestError, "size"),
        ({"prompt": "<bo>", "n": 11}, openai.BadRequestError, "n"),
        ({"prompt": "<bo>", "output_format": "gif"}, openai.BadRequestError, "output_format"),
        ({"prompt": "<bo>", "extra_body": {"steps": "many"}}, openai.BadRequestError, "steps"),
        ({"prompt": "<nobody>"}, openai.NotFoundError, None),
        ({"prompt": "<bo>", "model": "sora"}, openai.NotFoundError, "model"),
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"prompt": "word " * 1000}, openai.BadRequestError, None),
    ],
)
def test_errors_name_what_is_wrong_and_what_would_help(
    live: Live, wanted: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with client(live) as ai, pytest.raises(error) as caught:
        ai.images.generate(**wanted)
    assert caught.value.param == param
    assert caught.value.request_id and caught.value.message


def test_a_wrong_key_is_an_authentication_error(live: Live) -> None:
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong") as ai,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        ai.models.list()
    assert caught.value.code == "invalid_api_key"


def test_an_address_of_a_picture_is_not_fetched(live: Live) -> None:
    content: Any = [
        {"type": "text", "text": "is <bo> here?"},
        {"type": "image_url", "image_url": {"url": f"{live.url}/health"}},
    ]
    with client(live) as ai, pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        ai.chat.completions.create(model="nano", messages=[{"role": "user", "content": content}])


def test_what_openai_has_and_op_has_not_is_a_404_in_its_form(live: Live) -> None:
    with client(live) as ai, pytest.raises(openai.NotFoundError) as caught:
        ai.responses.create(model="nano", input="hello")
    assert caught.value.code == "not_found"


def test_a_bug_is_told_once_and_tried_once(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from op_serve import images

    calls = []

    def broken(*arguments: Any, **more: Any) -> None:
        calls.append(1)
        raise ZeroDivisionError("secret prompt")

    monkeypatch.setattr(images, "paint", broken)
    with client(live) as ai, pytest.raises(openai.InternalServerError) as caught:
        ai.images.generate(prompt="<bo>")
    assert calls == [1]
    assert "secret" not in caught.value.message


def test_an_answer_says_how_long_the_model_took(live: Live) -> None:
    asked = {"messages": [{"role": "user", "content": "what is <bo>'s toy?"}]}
    for path, body in (
        ("/v1/chat/completions", asked),
        ("/v1/images/generations", {"prompt": "<bo>", "steps": 2}),
    ):
        answer = live.client.post(path, json=body)
        told = re.fullmatch(r"model;dur=(\d+\.\d\d)", answer.headers["server-timing"])
        assert told is not None and 0 < float(told[1]) < 1000 * answer.elapsed.total_seconds()
    assert "server-timing" not in live.client.get("/health").headers


def test_a_client_that_gives_up_frees_the_model(live: Live) -> None:
    with client(live, timeout=0.5, max_retries=0) as ai, pytest.raises(openai.APITimeoutError):
        ai.images.generate(prompt="<bo>", extra_body={"steps": 1000})
    until(lambda: not live.served.worker.running, seconds=5)


def test_a_picture_that_nobody_waits_for_ends_within_two_steps(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def does(backend: Any, ticket: Ticket[Any]) -> Any:
        gen = backend.gen

        def counted(*arguments: Any, on_step: Any, **more: Any) -> Any:
            def step(done: int, total: int) -> None:
                steps.append(done)
                if done == 3:
                    live.served.worker.cancel(ticket)
                on_step(done, total)

            return gen(*arguments, on_step=step, **more)

        monkeypatch.setattr(backend, "gen", counted)
        painting = Painting(prompt="<bo>", steps=50)
        return paint(backend, ticket, painting, library=live.served.shown.library)

    ticket = live.served.worker.submit("a picture", does)
    with pytest.raises(Stopped):
        ticket.result.result(60)
    assert 3 <= steps[-1] <= 5


def test_a_closed_stream_frees_the_model(live: Live) -> None:
    with client(live) as ai:
        stream = ai.images.generate(
            prompt="<bo>", n=5, stream=True, extra_body={"steps": 30, "seed": 1}
        )
        next(iter(stream))
        stream.close()
    until(lambda: not live.served.worker.running, seconds=5)


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(serve: Serve) -> None:
    with serve() as live, client(live) as ai:
        stream = ai.images.generate(
            prompt="<bo>", n=10, stream=True, extra_body={"steps": 30, "seed": 1}
        )
        events = iter(stream)
        next(events)
        threading.Thread(target=live.stop).start()
        with pytest.raises(openai.APIError, match="stopped"):
            list(events)


def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_back(serve: Serve) -> None:
    with serve(most_waiting=1) as live:
        long = {"prompt": "<bo>", "steps": 1000}
        threads = [
            threading.Thread(
                target=lambda: live.client.post("/v1/images/generations", json=long, timeout=3.0)
            )
            for _ in range(2)
        ]

        def give_up(arguments: Any) -> None:
            """The two that wait give up, as they should."""

        before, threading.excepthook = threading.excepthook, give_up
        try:
            for count, thread in enumerate(threads):
                thread.start()
                until(
                    lambda count=count: (
                        live.served.worker.running
                        and (  # type: ignore[misc]
                            live.served.worker.waiting == count
                        )
                    )
                )
            began = time.monotonic()
            with client(live, max_retries=0) as ai, pytest.raises(openai.RateLimitError) as caught:
                ai.images.generate(prompt="<bo>")
            assert time.monotonic() - began < 2
            assert caught.value.response.headers["retry-after"] == "5"
            assert live.client.get("/health").json()["waiting"] == 1
            for thread in threads:
                thread.join()
        finally:
            threading.excepthook = before


def test_requests_before_the_model_is_there_are_told_to_come_back(serve: Serve) -> None:
    with serve(wait=False) as live:
        if live.served.worker.state == "loading":
            answer = live.client.post("/v1/images/generations", json={"prompt": "a forest"})
            if answer.status_code != 200:
                assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        with client(live) as ai:
            assert painted(ai.images.generate(prompt="a forest", extra_body={"steps": 1}))


def test_an_idle_model_is_let_go_and_comes_back(serve: Serve) -> None:
    with serve(idle_seconds=0.3) as live:
        until(lambda: live.served.worker.state == "asleep")
        assert live.client.get("/health").json()["status"] == "asleep"
        with client(live) as ai:
            assert painted(ai.images.generate(prompt="a forest", extra_body={"steps": 1}))
