"""Several pictures in one question, through a server: as many as its backend looks at together."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tiny_bagel
from click.testing import CliRunner
from live_server import Live, running
from PIL import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import Opening, Work
from omnipersona_cli.cli.main import cli
from omnipersona_cli.engine import ask
from omnipersona_cli.errors import ResourceError
from omnipersona_cli.testing import drawing
from op_serve.work import room_for

QUESTION = "what is on them?"


def pictures() -> list[Image.Image]:
    """Six that differ."""
    return [drawing(colour, seed) for colour in ("red", "blue", "green") for seed in (1, 2)]


def data_url(image: Image.Image) -> str:
    out = BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def turn(text: str, *images: Image.Image, role: str = "user") -> dict[str, Any]:
    urls = [{"type": "image_url", "image_url": {"url": data_url(it)}} for it in images]
    return {"role": role, "content": [*urls, {"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def opening(tmp_path_factory: pytest.TempPathFactory) -> Opening:
    folder = tmp_path_factory.mktemp("bagel") / "tiny"
    tiny_bagel.write_tiny(folder)
    return Opening(backend="bagel", model=str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def bagel(opening: Opening, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(tmp_path_factory.mktemp("bagel-home"), opening=opening) as server:
        yield server


def said(live: Live, *messages: dict[str, Any]) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": 12}
    answer = live.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_all_pictures_of_a_talk_are_looked_at_in_their_order(bagel: Live, opening: Opening) -> None:
    one, two, three, *_ = pictures()
    earlier = (turn("look", one), turn("I see", role="assistant"))
    told = said(bagel, *earlier, turn(QUESTION, two, three))
    assert told["images"] == {"seen": 3, "left_out": 0}
    backend = registry.open_backend(opening)
    wanted = {"backend": backend, "earlier": [("look", "I see")], "max_tokens": 12}
    expected = ask(QUESTION, image=[one, two, three], **wanted).text  # type: ignore[arg-type]
    other = ask(QUESTION, image=[three, two, one], **wanted).text  # type: ignore[arg-type]
    assert told["choices"][0]["message"]["content"] == expected != other


def test_the_last_ones_are_looked_at_where_there_are_more_and_the_answer_says_so(
    bagel: Live,
) -> None:
    first, second, *last = pictures()
    told = said(bagel, turn(QUESTION, first, second, *last))
    assert told["images"] == {"seen": 4, "left_out": 2}
    alone = said(bagel, turn(QUESTION, *last))
    assert told["choices"][0]["message"] == alone["choices"][0]["message"]


def test_a_backend_of_one_picture_looks_at_the_last(live: Live) -> None:
    one, two, *_ = pictures()
    told = said(live, turn("look", one), turn("what is this?", two))
    assert told["images"] == {"seen": 1, "left_out": 1}
    assert said(live, turn("what is this?", two))["choices"] == told["choices"]


def test_presence_is_asked_of_the_last_turn_with_a_picture(live: Live, bagel: Live) -> None:
    one, two, *_ = pictures()
    told = said(live, turn("look", one), turn("is <bo> here?", two))
    assert told["verdict"] and told["images"] == {"seen": 1, "left_out": 1}
    held = said(bagel, turn("look", one), turn("are they here?", two))
    assert held["images"] == {"seen": 2, "left_out": 0}, "no concept is asked for"


def test_the_command_and_own_words_send_them_in_their_order(
    bagel: Live, opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two, *_ = pictures()
    one.save("one.png")
    two.save("two.png")
    address = f"{bagel.url}/?token={bagel.token}"
    words = ["ask", "one.png", "two.png", QUESTION, "--max-tokens", "12"]
    here = ["-b", "bagel", "--model", str(opening.model), "--dtype", "float32", "--device", "cpu"]
    there = CliRunner().invoke(cli, [*words, "--server", address])
    assert there.exit_code == 0, there.output
    assert there.stdout == CliRunner().invoke(cli, [*words, *here]).stdout != "\n"
    many = CliRunner().invoke(cli, ["ask", *["one.png"] * 5, QUESTION, "--server", address])
    assert many.exit_code == 1
    assert "bagel looks at 4 pictures at a time, and 5 are given" in many.stderr


def test_a_server_looks_at_as_many_as_memory_allows(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert room_for(opening, teaches=False).images == 4
    real = registry.fitted

    def fitted(asked: Opening, work: Work) -> tuple[Opening, str]:
        if work.images > 2:
            raise ResourceError("too much", hint="op ask")
        return (replace(asked, offload=True), "") if work.images > 1 else real(asked, work)

    monkeypatch.setattr(registry, "fitted", fitted)
    room = room_for(opening, teaches=False)
    assert room.images == 1 and room.opening == opening
    assert room.notes == ("there is no room for questions about 2 pictures or more",)
