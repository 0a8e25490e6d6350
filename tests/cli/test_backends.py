"""`op backends`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from click.testing import CliRunner
from hub import Hub, serving
from huggingface_hub import constants

from omnipersona_cli.cli.main import cli
from omnipersona_cli.family.download import PART

REPOSITORIES = (
    "deepseek-community/Janus-Pro-1B",
    "BAAI/Emu3-Chat-hf",
    "BAAI/Emu3-Gen-hf",
    "showlab/show-o-512x512",
    "showlab/show-o-w-clip-vit",
    "showlab/magvitv2",
    "microsoft/phi-1_5",
    "openai/clip-vit-large-patch14-336",
)
KEYS = {
    "name",
    "summary",
    "tasks",
    "default_model",
    "models",
    "weights",
    "parts",
    "sizes",
    "most_images",
    "pictures",
    "licence",
    "memory_gb",
    "memory_by_model",
    "steps",
    "guidance",
    "fast",
    "learn_steps",
    "learn_rate",
    "batch",
    "deep_layers",
    "depth",
    "experts",
    "replay_leads",
    "imports",
    "notes",
}
CARD = {"card", "device", "verb", "fits", "gb", "flags"}


def op(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["backends", *args], prog_name="op")
    return result.exit_code, result.stdout, result.stderr


def test_list_has_one_line_per_backend() -> None:
    code, text, notes = op()
    lines = text.splitlines()
    assert (code, notes) == (0, "") and op("list") == op()
    assert lines[0].split()[0] == "name"
    assert [line.split()[0] for line in lines[1:]] == sorted(line.split()[0] for line in lines[1:])
    assert {"bagel", "nano"} <= {line.split()[0] for line in lines[1:]}


def test_json_list_has_stable_keys() -> None:
    _, text, _ = op("--json")
    infos = json.loads(text)
    assert all(info.keys() == KEYS for info in infos)
    assert [info["name"] for info in infos] == sorted(info["name"] for info in infos)


def test_show_tells_what_one_backend_does() -> None:
    code, text, _ = op("show", "nano")
    assert code == 0
    assert "cartoons" in text and "edit (native)" in text


def test_show_json_is_the_object_of_the_list_with_the_cards() -> None:
    _, text, _ = op("show", "nano", "--json")
    _, listed, _ = op("--json")
    shown = json.loads(text)
    cards = shown.pop("cards")
    assert shown.pop("counted") is True  # of the weights that are here
    assert shown in json.loads(listed)
    assert all(one.keys() == CARD for one in cards)
    assert {one["verb"] for one in cards} == {"ask", "gen", "edit", "learn"}


def test_show_says_which_card_does_what_with_which_flags() -> None:
    _, text, _ = op("show", "bagel")
    table = text[text.index("memory in GB") :].splitlines()
    rows = {line[:12].strip(): line.split()[3:] for line in table[1:-3]}
    assert rows["24 GB GPU"][-1] == "a", "a letter for flags"
    assert rows["48 GB GPU"][0][0].isdigit() and rows["48 GB GPU"][-1] == "b"
    assert rows["16 GB Apple"] == ["-"] * 4
    assert [line.strip() for line in table[-3:-1]] == [
        "a: --offload",
        "b: --activation-checkpointing",
    ]
    assert "computed from shapes" in table[-1] and "never run" in table[-1]
    _, janus, _ = op("show", "janus")
    _, larger, _ = op("show", "janus", "--model", "deepseek-community/Janus-Pro-7B")
    assert janus[janus.index("memory in GB") :] != larger[larger.index("memory in GB") :]


@pytest.mark.parametrize("model", ["/nowhere/at/all", "someone/else", "nowhere"])
def test_show_refuses_a_model_that_is_not_here_and_that_nobody_named(model: str) -> None:
    code, text, errors = op("show", "janus", "--model", model)
    assert (code, text) == (3, "")
    assert model in errors


@pytest.mark.parametrize("action", ["show", "fetch"])
def test_unknown_backend_exits_3_and_suggests(action: str) -> None:
    code, text, errors = op(action, "nan")
    assert (code, text) == (3, "")
    assert "no backend called 'nan'" in errors and "did you mean nano?" in errors


def test_fetch_of_embedded_weights_has_nothing_to_do() -> None:
    assert op("fetch", "nano") == (
        0,
        "",
        "nano: the weights are in the package, nothing to fetch.\n",
    )
    _, text, _ = op("fetch", "nano", "--json", "-q")
    assert json.loads(text) == {"backend": "nano", "model": "embedded", "fetched": False}


def test_fetch_refuses_weights_that_the_backend_does_not_know() -> None:
    code, _, errors = op("fetch", "nano", "--model", "embeded")
    assert code == 2
    assert "did you mean embedded?" in errors


def test_fetch_refuses_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, errors = op("fetch", "janus")
    assert code == 3
    assert "Janus-Pro-1B cannot be fetched offline" in errors


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a few files of every repository that is asked for below."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(name.encode())
    served = Hub(repositories=dict.fromkeys(REPOSITORIES, folder))
    with serving(served, tmp_path / "cache", monkeypatch) as working:
        yield working


def test_fetch_announces_what_it_brings_and_says_when_it_is_here(hub: Hub) -> None:
    code, text, errors = op("fetch", "janus", "--json")
    assert code == 0 and json.loads(text)["fetched"] is True
    assert "fetching deepseek-community/Janus-Pro-1B from 127.0.0.1" in errors
    assert not [name for name in hub.fetched if name.endswith(".bin")], (
        "pickles stay where they are"
    )
    code, text, errors = op("fetch", "janus", "--json")
    assert code == 0 and json.loads(text)["fetched"] is False
    assert "nothing to fetch" in errors


def test_show_says_which_weights_a_task_needs() -> None:
    _, text, _ = op("show", "emu3")
    assert "BAAI/Emu3-Chat-hf to understand" in text
    assert "BAAI/Emu3-Gen-hf to generate" in text and "BAAI/Emu3-Gen-hf to edit" in text


def test_show_says_whose_figures_it_computes(tmp_path: Path) -> None:
    _, text, _ = op("show", "janus", "--model", str(tmp_path))
    assert f"of the released weights: none of {tmp_path} are here" in text
    _, text, _ = op("show", "janus", "--model", str(tmp_path), "--json")
    assert json.loads(text)["counted"] is False
    _, text, _ = op("show", "nano", "--json")
    assert json.loads(text)["counted"] is True


def test_what_a_killed_fetch_brought_is_not_brought_again(tmp_path: Path, hub: Hub) -> None:
    large = tmp_path / "repository" / "model.safetensors"
    large.write_bytes(os.urandom(24_000_000))
    hub.cut["model.safetensors"], hub.held = 22_000_000, Event()
    command = [sys.executable, "-m", "omnipersona_cli", "backends", "fetch", "janus"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "hub")}
    fetching = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    while not any(part.stat().st_size for part in (tmp_path / "hub").rglob(f"*{PART}")):
        assert fetching.poll() is None
        Event().wait(0.05)
    fetching.kill()
    fetching.wait()
    (left,) = (tmp_path / "hub").rglob(f"*{PART}")
    there = left.stat().st_size
    hub.held.set()
    hub.cut.clear()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "are gone on with" in done.stderr, done.stderr
    assert hub.parts == [there] and not left.exists()
    (kept,) = (tmp_path / "hub").rglob("snapshots/*/model.safetensors")
    assert kept.read_bytes() == large.read_bytes()


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999"])
def test_a_broken_address_of_the_hub_is_named_before_its_client_breaks(
    address: str, tmp_path: Path
) -> None:
    # in processes of their own: the client reads it once, as it is imported
    env = os.environ | {"HF_ENDPOINT": address, "OMNIPERSONA_HOME": str(tmp_path)}

    def said(*args: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "omnipersona_cli", *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    broken = "HF_ENDPOINT is not the address of a hub"
    for args in (["backends", "fetch", "janus"], ["ask", "hi", "-b", "showo"]):
        code, _, errors = said(*args)
        assert code == 2 and f"Error: {broken}" in errors and "Hint: unset HF_ENDPOINT" in errors
    code, text, _ = said("doctor")
    assert code == 0 and broken in text


def test_fetch_brings_all_weights_that_the_default_is_made_of(hub: Hub) -> None:
    assert op("fetch", "emu3", "--model", "BAAI/Emu3-Chat-hf")[0] == 0
    hub.fetched.clear()
    code, text, errors = op("fetch", "emu3", "--json")
    assert code == 0 and json.loads(text)["fetched"] is True
    assert {one.rpartition("/")[0] for one in hub.fetched} == {"BAAI/Emu3-Gen-hf"}
    assert "Emu3-Chat-hf is here already" in errors


def test_fetch_brings_the_parts_of_a_model_and_of_those_what_is_read(hub: Hub) -> None:
    phi, clip = "microsoft/phi-1_5", "openai/clip-vit-large-patch14-336"

    def brought(*words: str) -> list[str]:
        hub.fetched.clear()
        assert op("fetch", "showo", *words)[0] == 0
        return list(dict.fromkeys(name.rpartition("/")[0] for name in hub.fetched))

    assert brought("--model", phi) == [phi]
    assert f"{phi}/model.safetensors" not in hub.fetched, "phi's weights are in Show-o's"
    assert brought() == ["showlab/show-o-512x512", "showlab/magvitv2"]
    assert brought("--model", "showlab/show-o-w-clip-vit") == ["showlab/show-o-w-clip-vit", clip]


def test_show_says_what_else_is_needed_and_what_to_know() -> None:
    rows = [line.split(maxsplit=1) for line in op("show", "showo")[1].splitlines()]
    assert [it[1].split(",")[0] for it in rows if it[0] == "needs"] == [
        "showlab/magvitv2",
        "microsoft/phi-1_5",
        "openai/clip-vit-large-patch14-336",
    ]
    assert any("hf download" in it[1] for it in rows if it[0] == "note")


def test_fetch_from_a_hub_that_is_out_of_order_exits_3(hub: Hub) -> None:
    hub.status = 503
    code, _, errors = op("fetch", "janus")
    assert code == 3
    assert "out of order" in errors and "op backends fetch janus" in errors


def test_names_complete() -> None:
    from click.shell_completion import ShellComplete

    from omnipersona_cli.cli.main import cli as group

    found = ShellComplete(group, {}, "op", "_OP_COMPLETE").get_completions(
        ["backends", "show"], "n"
    )
    assert [item.value for item in found] == ["nano"]
