"""Agents: the MCP SDK's own client, over stdio and over HTTP."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from live_server import Live, Serve, opened, png, until
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

TOOLS = {
    "list_concepts",
    "describe_concept",
    "ask",
    "paint",
    "edit",
    "learn",
    "job_status",
    "stop_job",
    "add_fact",
}


@asynccontextmanager
async def over_http(live: Live, **headers: str) -> AsyncIterator[Client]:
    """An agent that was given the address and the token."""
    shown = headers or {"authorization": f"Bearer {live.token}"}
    async with httpx2.AsyncClient(headers=shown, timeout=60) as http:
        async with Client(streamable_http_client(f"{live.url}/mcp", http_client=http)) as agent:
            yield agent


def text_of(result: Any) -> str:
    return str(result.content[0].text)


def told(result: Any) -> Any:
    assert not result.is_error, text_of(result)
    return json.loads(text_of(result))


def run(talk: Callable[[], Awaitable[None]]) -> None:
    anyio.run(talk)


# Over HTTP.


def test_an_agent_finds_the_tools_and_who_is_known(live: Live) -> None:
    async def talk() -> None:
        async with over_http(live) as agent:
            tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
            assert set(tools) == TOOLS
            assert all(tool.description for tool in tools.values())
            reading = {name for name, it in tools.items() if it.annotations.read_only_hint}
            assert reading == {"list_concepts", "describe_concept", "ask", "job_status"}
            assert not any(
                it.annotations.destructive_hint for it in tools.values() if it.annotations
            )
            known = told(await agent.call_tool("list_concepts", {}))
            assert [one["name"] for one in known] == ["bo"]
            whole = told(await agent.call_tool("describe_concept", {"name": "bo"}))
            assert "teal star" in json.dumps(whole["facts"])
            read = await agent.read_resource("concept://bo")
            assert json.loads(read.contents[0].text) == whole

    run(talk)


def test_an_agent_asks_paints_and_edits(live: Live, photos: Path) -> None:
    photo = base64.b64encode((photos / "00.png").read_bytes()).decode()

    async def talk() -> None:
        beats: list[float] = []

        async def beat(progress: float, total: float | None, message: str | None) -> None:
            beats.append(progress)

        async with over_http(live) as agent:
            answer = told(await agent.call_tool("ask", {"question": "what is bo's toy?"}))
            assert answer["answer"] == "a teal star" and answer["source"] == "facts"
            seeing = {"question": "is <bo> here?", "image": photo}
            reply = told(await agent.call_tool("ask", seeing))
            assert reply["verdict"] in ("yes", "no", "not sure") and 0 <= reply["probability"] <= 1
            painted = await agent.call_tool(
                "paint", {"prompt": "<bo> with its toy", "seed": 3}, progress_callback=beat
            )
            assert told(painted) == {"painted": "<bo> with a teal star", "seed": 3} | told(painted)
            assert painted.content[1].mime_type == "image/png"
            image = base64.b64decode(painted.content[1].data)
            assert opened(image).size == (64, 64) and len(beats) > 3
            link = painted.content[2]
            assert live.client.get(str(link.uri)).content == image
            edited = await agent.call_tool(
                "edit",
                {
                    "fast": True,
                    "image": painted.content[1].data,
                    "prompt": "add <bo>",
                    "mask": base64.b64encode(png(half_white())).decode(),
                },
            )
            after = opened(base64.b64decode(edited.content[1].data))
            assert json.loads(after.info["omnipersona"])["fast"] is True
            assert after.getpixel((60, 9)) == opened(image).getpixel((60, 9))

    run(talk)


def test_errors_are_told_in_words_that_help(live: Live) -> None:
    async def talk() -> None:
        async with over_http(live) as agent:
            wrong: list[tuple[str, dict[str, Any], str]] = [
                ("describe_concept", {"name": "boo"}, "did you mean"),
                ("paint", {"prompt": "<mam> here"}, "mam"),
                (
                    "ask",
                    {"question": "what is this?", "image": "http://a/b.png"},
                    "nothing is fetched",
                ),
                ("ask", {"question": "what is this?", "image": "/etc/passwd"}, "base64"),
                ("ask", {"question": "what is this?", "image": "file:///etc/passwd"}, "fetched"),
                ("learn", {"photos": ["/home/me/photos"], "name": "x"}, "base64"),
                ("job_status", {"job": "0"}, "no such job"),
                ("paint", {"prompt": "<bo>", "size": "huge"}, "size"),
            ]
            for name, arguments, words in wrong:
                result = await agent.call_tool(name, arguments)
                assert result.is_error and words in text_of(result), text_of(result)

    run(talk)


def test_an_agent_teaches_a_concept_and_follows_its_job(serve: Serve, photos: Path) -> None:
    few = [base64.b64encode(it.read_bytes()).decode() for it in sorted(photos.glob("*.png"))[:3]]

    async def talk(live: Live) -> None:
        async with over_http(live) as agent:
            started = told(
                await agent.call_tool("learn", {"photos": few, "name": "mam", "steps": 4})
            )
            now = {"state": "waiting"}
            with anyio.fail_after(60):
                while now["state"] in ("waiting", "learning"):
                    await anyio.sleep(0.2)
                    now = told(await agent.call_tool("job_status", {"job": started["job"]}))
            assert now["state"] == "done", now
            kept = told(await agent.call_tool("add_fact", {"name": "mam", "text": "it likes rain"}))
            assert kept == ["<mam> likes rain"] or "likes rain" in kept[0]

    with serve() as live:
        anyio.run(talk, live)


def test_a_call_that_is_given_up_frees_the_model(live: Live) -> None:
    async def talk() -> None:
        async with over_http(live) as agent:
            with anyio.move_on_after(1.0):
                await agent.call_tool("paint", {"prompt": "<bo>", "tries": 16})
        await anyio.to_thread.run_sync(lambda: until(lambda: not live.served.worker.running))

    run(talk)


def test_an_agent_without_the_token_is_not_let_in(live: Live) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Bearer {live.token}", "host": "evil.example"}, 400),
        ({"origin": "http://evil.example"}, 403),
    ):
        for path in ("/mcp", "/mcp/"):
            answer = httpx2.post(f"{live.url}{path}", json=message, headers=headers)
            assert answer.status_code == status


@pytest.mark.parametrize("path", ["/mcp", "/mcp/"])
def test_an_agent_is_answered_where_it_asks_and_not_sent_on(live: Live, path: str) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {
        "authorization": f"Bearer {live.token}",
        "accept": "application/json, text/event-stream",
    }
    answer = httpx2.post(f"{live.url}{path}", json=message, headers=headers)
    assert answer.status_code == 200 and TOOLS <= set(re.findall(r'"name":"(\w+)"', answer.text))


# Over stdio.


def test_op_mcp_serves_one_agent_and_its_folder(
    bo_home: Path, photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    outside = tmp_path / "outside.png"
    for path in (root / "photo.png", outside):
        path.write_bytes((photos / "00.png").read_bytes())
    (root / "way-out.png").symlink_to(outside)
    (root / "way-up").symlink_to(tmp_path)
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "omnipersona_cli", "mcp", "-b", "nano", "--root", str(root)],
        env={**os.environ, "OMNIPERSONA_HOME": str(bo_home)},
    )

    async def talk() -> None:
        async with Client(server) as agent:
            assert {tool.name for tool in (await agent.list_tools()).tools} == TOOLS
            ask = {"question": "is <bo> here?"}
            inside = await agent.call_tool("ask", {**ask, "image": str(root / "photo.png")})
            assert told(inside)["verdict"] in ("yes", "no", "not sure")
            for path in (
                outside,
                root / "way-out.png",
                root / "way-up" / "outside.png",
                root / ".." / "outside.png",
                Path("/etc/passwd"),
                Path("photo.png"),
            ):
                closed = await agent.call_tool("ask", {**ask, "image": str(path)})
                assert closed.is_error and "folders that may be used" in text_of(closed)
            missing = await agent.call_tool("ask", {**ask, "image": str(root / "no.png")})
            assert missing.is_error and "there is no picture" in text_of(missing)
            with anyio.move_on_after(0.5):
                await agent.call_tool("paint", {"prompt": "<bo>", "tries": 16})
            beats: list[float] = []

            async def beat(progress: float, total: float | None, message: str | None) -> None:
                beats.append(progress)

            painted = await agent.call_tool(
                "paint", {"prompt": "<bo>", "seed": 1}, progress_callback=beat
            )
            assert len(beats) > 3 and beats == sorted(beats)
            link = Path(str(painted.content[2].uri).removeprefix("file://"))
            assert link.parent == root
            assert link.read_bytes() == base64.b64decode(painted.content[1].data)
            taught = await agent.call_tool("learn", {"photos": [str(tmp_path)], "name": "x"})
            assert taught.is_error

    run(talk)


def half_white() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask
