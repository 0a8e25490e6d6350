"""What existing programs send, field for field, and what they read of the answer."""

from __future__ import annotations

import base64
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from live_server import Live, opened, png
from PIL import Image

PROMPT = "bo with its toy"  # a chat page swallows what stands in angle brackets


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request. ``files`` make it a form; ``reads`` is where the client finds its picture."""

    path: str
    body: dict[str, Any]
    files: tuple[str, ...] = ()
    reads: tuple[str | int, ...] = ("data", 0, "b64_json")
    form: str = "PNG"
    count: int = 1
    headers: dict[str, str] = field(default_factory=dict)


CLIENTS = {
    "Open WebUI generates": Sent(
        path="/v1/images/generations",
        body={
            "model": "nano/bo",
            "prompt": PROMPT,
            "n": 1,
            "size": "512x512",
            "response_format": "b64_json",
            "steps": 2,
        },
    ),
    "Open WebUI's default engine": Sent(
        path="/sdapi/v1/txt2img",
        body={
            "prompt": PROMPT,
            "batch_size": 1,
            "width": 512,
            "height": 512,
            "steps": 2,
            "negative_prompt": "",
            "cfg_scale": 4.0,
        },
        reads=("images", 0),
    ),
    "Open WebUI edits one": Sent(
        path="/v1/images/edits",
        body={
            "model": "nano/bo",
            "prompt": "add bo",
            "n": "1",
            "size": "512x512",
            "background": "auto",
            "response_format": "b64_json",
        },
        files=("image",),
    ),
    "Open WebUI edits several": Sent(
        path="/v1/images/edits",
        body={"model": "nano/bo", "prompt": "add bo", "n": "1", "size": "auto"},
        files=("image[]", "image[]"),
        count=2,
    ),
    "LibreChat generates": Sent(
        path="/v1/images/generations",
        body={
            "model": "gpt-image-1",
            "prompt": PROMPT,
            "n": 1,
            "background": "auto",
            "quality": "auto",
            "size": "auto",
            "output_format": "webp",
            "output_compression": 80,
            "user": "6650f1",
        },
        form="WEBP",
    ),
    "LibreChat edits": Sent(
        path="/v1/images/edits",
        body={"model": "gpt-image-1", "prompt": "add bo", "quality": "auto", "size": "1024x1024"},
        files=("image[]",),
    ),
    "SillyTavern (sd.cpp) generates": Sent(
        path="/sdapi/v1/txt2img",
        body={
            "prompt": PROMPT,
            "negative_prompt": "lowres",
            "sampler_name": "Euler a",
            "scheduler": "normal",
            "steps": 2,
            "cfg_scale": 7,
            "width": 1024,
            "height": 1024,
            "seed": -1,
            "batch_size": 1,
            "clip_skip": 1,
        },
        reads=("images", 0),
    ),
    "LiteLLM generates": Sent(
        path="/v1/images/generations",
        body={
            "model": "nano",
            "prompt": PROMPT,
            "size": "1024x1024",
            "n": 2,
            "quality": "high",
            "background": "opaque",
            "moderation": "low",
            "output_format": "jpeg",
            "output_compression": 100,
            "user": "me",
        },
        form="JPEG",
        count=2,
    ),
    "LiteLLM edits with a mask": Sent(
        path="/v1/images/edits",
        body={"model": "nano", "prompt": "add bo", "n": "1", "input_fidelity": "high"},
        files=("image[]", "mask"),
    ),
    "vLLM's long names": Sent(
        path="/v1/images/generations",
        body={
            "prompt": PROMPT,
            "num_inference_steps": 2,
            "guidance_scale": 4.0,
            "seed": 7,
            "negative_prompt": "x",
            "lora": {"name": "x"},
        },
    ),
    "A1111 with its password": Sent(
        path="/sdapi/v1/txt2img",
        body={"prompt": PROMPT, "steps": 2},
        reads=("images", 0),
        headers={"authorization": "Basic " + base64.b64encode(b"op:a-token-for-tests").decode()},
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_gets_the_picture_that_it_looks_for(live: Live, name: str) -> None:
    sent = CLIENTS[name]
    photo = png(Image.new("RGB", (64, 64), "grey"))
    if sent.files:
        files = [(part, ("photo.png", photo, "image/png")) for part in sent.files]
        body = {"steps": "1", "tries": "1", **sent.body}
        answer = live.client.post(sent.path, data=body, files=files, headers=sent.headers)
    else:
        answer = live.client.post(sent.path, json={"steps": 2, **sent.body}, headers=sent.headers)
    assert answer.status_code == 200, answer.text
    found = told = answer.json()
    for key in sent.reads:
        found = found[key]
    image = opened(base64.b64decode(found))
    assert image.format == sent.form and image.size == (64, 64)
    assert len(told[sent.reads[0]]) == sent.count
    if "data" in told:
        assert told["size"] == "64x64" and isinstance(told["created"], int)
        assert PROMPT not in told["data"][0]["revised_prompt"]
    else:
        assert isinstance(told["info"], str) and json.loads(told["info"])["prompt"]


def test_sillytavern_finds_the_server_before_it_paints(live: Live) -> None:
    assert live.client.request("OPTIONS", "/v1/images/generations").is_success
    assert live.client.get("/v1/models").json()["data"][0]["id"] == "nano"
    assert live.client.get("/sdapi/v1/sd-models").json()[0]["title"]
    assert live.client.get("/sdapi/v1/options").is_success


def test_a_chat_page_sends_its_whole_talk_and_extra_requests(live: Live) -> None:
    """Open WebUI: a long system prompt, then the talk; and a request for a title of it."""
    talk = [
        {"role": "system", "content": "You are helpful. " * 300},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "what is bo's toy?"}]},
    ]
    body = {
        "model": "nano/bo",
        "messages": talk,
        "stream": True,
        "temperature": 0.7,
        "stream_options": {"include_usage": True},
        "tools": [],
        "user": {"name": "me", "id": "1"},
    }
    with live.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line)["choices"] for line in lines[:-1]]
    text = "".join(choice[0]["delta"].get("content", "") for choice in pieces if choice)
    assert text == "a teal star"
    title = {
        "model": "nano/bo",
        "messages": [{"role": "user", "content": "### Task: a title of 3 words. " * 20}],
        "max_tokens": 20,
    }
    assert live.client.post("/v1/chat/completions", json=title).status_code == 200


def test_llm_asks_about_a_picture_as_the_page_tells(
    live: Live, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real program, with the settings and the commands of the documentation."""
    llm = pytest.importorskip("llm.cli", reason="llm is not installed: pip install llm")
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    keys, *asks = re.findall(r"`(llm [^`]+)`", page)
    assert keys == "llm keys set op" and len(asks) == 1
    home = tmp_path / "llm"
    home.mkdir()
    settings = settings.replace("http://127.0.0.1:8765", live.url)
    (home / "extra-openai-models.yaml").write_text(settings, encoding="utf-8")
    monkeypatch.setenv("LLM_USER_PATH", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beach.png").write_bytes((photos / "00.png").read_bytes())

    def run(command: str, stdin: str | None = None) -> str:
        done = CliRunner().invoke(llm.cli, shlex.split(command)[1:], input=stdin)
        assert done.exit_code == 0, done.output
        return done.output.strip()

    run(keys, stdin=live.token)
    assert run(asks[0]) in ("yes", "no", "not sure")
    assert run("""llm -m op "what is <bo>'s toy?" --no-stream""") == "a teal star"
    wrong = CliRunner().invoke(llm.cli, ["-m", "op", "is <mam> here?"])
    assert wrong.exit_code == 1 and "there is no concept <mam>" in wrong.output + wrong.stderr
