"""`op backends`."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from omnipersona_cli.cli.main import cli

KEYS = {
    "name",
    "summary",
    "tasks",
    "default_model",
    "models",
    "weights",
    "parts",
    "sizes",
    "pictures",
    "licence",
    "memory_gb",
    "memory_by_model",
    "steps",
    "guidance",
    "learn_steps",
    "learn_rate",
    "batch",
    "imports",
    "notes",
}


def op(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["backends", *args], prog_name="op")
    return result.exit_code, result.stdout, result.stderr


def test_list_has_one_line_per_backend() -> None:
    code, text, notes = op()
    lines = text.splitlines()
    assert (code, notes) == (0, "")
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


def test_show_json_is_the_object_of_the_list() -> None:
    _, text, _ = op("show", "nano", "--json")
    _, listed, _ = op("--json")
    assert json.loads(text) in json.loads(listed)


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


def test_fetch_says_so_where_it_cannot_yet() -> None:
    code, _, errors = op("fetch", "bagel")
    assert code == 3
    assert "BAGEL-7B-MoT" in errors and "-b nano" in errors


def test_fetch_refuses_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, errors = op("fetch", "janus")
    assert code == 3
    assert "Janus-Pro-1B cannot be fetched offline" in errors


@pytest.mark.parametrize("here", [False, True])
def test_fetch_announces_what_it_brings(here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked: list[bool] = []

    def download(repo: str, *, allow_patterns: list[str], dry_run: bool = False) -> object:
        assert "*.bin" not in allow_patterns, "pickles stay where they are"
        asked.append(dry_run)
        wanted = SimpleNamespace(will_download=not here, file_size=4_200_000_000)
        return [wanted] if dry_run else "/cache/janus"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    code, text, errors = op("fetch", "janus", "--json")
    assert code == 0 and json.loads(text)["fetched"] is not here
    assert asked == ([True] if here else [True, False])
    assert ("nothing to fetch" if here else "4.2 GB") in errors


def test_show_says_which_weights_a_task_needs() -> None:
    _, text, _ = op("show", "emu3")
    assert "BAAI/Emu3-Chat-hf to understand" in text
    assert "BAAI/Emu3-Gen-hf to generate" in text and "BAAI/Emu3-Gen-hf to edit" in text


def test_fetch_brings_all_weights_that_the_default_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    brought: list[str] = []

    def download(repo: str, *, allow_patterns: list[str], dry_run: bool = False) -> object:
        if not dry_run:
            brought.append(repo)
        wanted = SimpleNamespace(will_download=repo.endswith("Gen-hf"), file_size=35_000_000_000)
        return [wanted] if dry_run else "/cache/emu3"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    code, text, errors = op("fetch", "emu3", "--json")
    assert code == 0 and json.loads(text)["fetched"] is True
    assert brought == ["BAAI/Emu3-Gen-hf"] and "Emu3-Chat-hf is here already" in errors


def test_fetch_brings_the_parts_of_a_model_and_of_those_what_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    brought: dict[str, list[str]] = {}

    def download(repo: str, *, allow_patterns: list[str], dry_run: bool = False) -> object:
        brought[repo] = allow_patterns
        wanted = SimpleNamespace(will_download=True, file_size=6_000_000_000)
        return [wanted] if dry_run else "/cache/showo"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert op("fetch", "showo")[0] == 0
    phi, clip = "microsoft/phi-1_5", "openai/clip-vit-large-patch14-336"
    assert list(brought) == ["showlab/show-o-512x512", "showlab/magvitv2", phi]
    assert "*.safetensors" not in brought[phi], "phi's weights are in Show-o's"
    brought.clear()
    assert op("fetch", "showo", "--model", "showlab/show-o-w-clip-vit")[0] == 0
    assert list(brought) == ["showlab/show-o-w-clip-vit", "showlab/magvitv2", phi, clip]
    brought.clear()
    assert op("fetch", "showo", "--model", phi)[0] == 0
    assert list(brought) == [phi] and "*.safetensors" not in brought[phi]


def test_show_says_what_else_is_needed_and_what_to_know() -> None:
    rows = [line.split(maxsplit=1) for line in op("show", "showo")[1].splitlines()]
    assert [it[1].split(",")[0] for it in rows if it[0] == "needs"] == [
        "showlab/magvitv2",
        "microsoft/phi-1_5",
        "openai/clip-vit-large-patch14-336",
    ]
    assert any("hf download" in it[1] for it in rows if it[0] == "note")


def test_fetch_without_a_network_exits_3(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def download(repo: str, **options: object) -> object:
        raise HfHubHTTPError.__mro__[1]("no route to host")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    code, _, errors = op("fetch", "janus")
    assert code == 3
    assert "no route to host" in errors and "op backends fetch janus" in errors


def test_names_complete() -> None:
    from click.shell_completion import ShellComplete

    from omnipersona_cli.cli.main import cli as group

    found = ShellComplete(group, {}, "op", "_OP_COMPLETE").get_completions(
        ["backends", "show"], "n"
    )
    assert [item.value for item in found] == ["nano"]
