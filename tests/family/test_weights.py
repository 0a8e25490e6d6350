"""Finding and fetching weights, with the hub's real client and a hub on loopback."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import tiny_bagel
import tiny_emu3
import tiny_janus
import tiny_lance
import tiny_showo
import torch
from chameleon import AGAIN, BESIDE, INFO, REPO, failed, with_others
from hub import Hub, point_at, serving
from safetensors.torch import save_file

import op_bagel
import op_emu3
import op_janus
import op_lance
import op_showo
from omnipersona_cli import registry
from omnipersona_cli.backend import Opening
from omnipersona_cli.errors import MissingError, ResourceError, UsageError
from omnipersona_cli.family import revisions, weights
from omnipersona_cli.family.download import PART
from omnipersona_cli.hookspecs import Progress

# -- finding ---------------------------------------------------------------------------------------


def test_a_folder_is_itself(folder: Path) -> None:
    assert weights.locate(str(folder), INFO) == folder.resolve()


def test_a_single_file_is_found_where_one_will_do(folder: Path) -> None:
    path = folder / "model.safetensors"
    assert weights.locate(str(path), INFO, single=True) == path.resolve()
    with pytest.raises(UsageError, match="reads a folder") as caught:
        weights.locate(str(path), INFO)
    assert caught.value.hint == f"--model {folder}"


@pytest.mark.parametrize(
    ("model", "says", "hint"),
    [
        ("/nowhere/at/all", "no folder /nowhere/at/all", "--model takes a folder, or one of"),
        (
            "~nobody-here/at/all",
            "no folder ~nobody-here/at/all",
            "--model takes a folder, or one of",
        ),
        ("./nowhere", "no folder ./nowhere", "--model takes a folder, or one of"),
        (REPO, "are not on this computer", "op backends fetch chameleon"),
        ("a/b", "are not on this computer", "op backends fetch chameleon --model a/b"),
        ("neither a folder nor a name", "are not on this computer", "--model takes a folder"),
    ],
)
def test_what_is_not_here_says_how_to_have_it(
    model: str, says: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match=says) as caught:
        weights.locate(model, INFO)
    assert caught.value.hint.startswith(hint)


# -- fetching --------------------------------------------------------------------------------------


def test_what_was_fetched_is_found_although_other_files_were_left_behind(hub: Hub) -> None:
    notes: list[Progress] = []
    assert weights.fetch(INFO, REPO, on_progress=notes.append)
    wanted = [f"{REPO}/config.json", f"{REPO}/model.safetensors", "someone/eye/config.json"]
    assert sorted(hub.fetched) == wanted
    found = weights.locate(REPO, INFO)
    assert {path.name for path in found.iterdir()} == {"config.json", "model.safetensors"}
    assert {path.name for path in weights.locate("someone/eye", INFO).iterdir()} == {"config.json"}
    told = [event.note for event in notes]
    assert any(note.startswith("chameleon: fetching someone/chameleon from 127") for note in told)
    assert not weights.fetch(INFO, REPO), "it is all here"
    assert sorted(hub.fetched) == wanted


def test_what_is_found_stays_found_when_the_hub_is_away(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.fetch(INFO, REPO)
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert (weights.locate(REPO, INFO) / "model.safetensors").is_file()


def test_a_half_is_not_taken_for_the_whole(hub: Hub) -> None:
    weights.fetch(replace(INFO, files=("config.json",)), REPO)
    with pytest.raises(MissingError, match="or not all of them"):
        weights.locate(REPO, INFO)


def test_a_model_of_two_repositories_and_components_of_its_own() -> None:
    assert weights.repositories(INFO, "a/b+c/d") == ("a/b", "c/d")
    assert weights.repositories(INFO, REPO) == (REPO, "someone/eye")
    assert weights.repositories(INFO, "someone/other")[1:] == ("someone/eye", "someone/ear")


def test_weights_in_the_package_are_not_fetched() -> None:
    own = replace(INFO, default_model="embedded", models=("embedded",))
    assert not weights.fetch(own, "embedded")


@pytest.mark.parametrize("name", ["bagel", "janus", "emu3", "lance", "showo"])
def test_a_released_model_is_fetched_and_then_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Path] = {}
    if name == "bagel":
        served[op_bagel.INFO.default_model] = tiny_bagel.write_tiny(tmp_path / "bagel")
    elif name == "janus":
        served[op_janus.INFO.default_model] = tiny_janus.write(tmp_path / "janus")
    elif name == "lance":
        served[op_lance.INFO.default_model] = tiny_lance.write_tiny(tmp_path / "lance")
    elif name == "emu3":
        served[op_emu3.CHAT] = tiny_emu3.write(tmp_path / "chat")
        served[op_emu3.GEN] = tiny_emu3.write(tmp_path / "gen")
    else:
        whole = tiny_showo.write_tiny(tmp_path / "showo")
        tensors = torch.load(whole / "magvitv2" / "pytorch_model.bin", weights_only=True)
        save_file(tensors, whole / "magvitv2" / "model.safetensors")
        for component in ("magvitv2", "phi-1_5"):
            shutil.move(whole / component, tmp_path / component)
        served["showlab/magvitv2"] = tmp_path / "magvitv2"
        served["microsoft/phi-1_5"] = tmp_path / "phi-1_5"
        served[op_showo.INFO.default_model] = whole
    for folder in served.values():
        with_others(folder)
    cache = tmp_path / "cache"
    with serving(Hub(repositories=served), cache, monkeypatch) as hub:
        assert weights.fetch(registry.backend_info(name), registry.backend_info(name).default_model)
    assert not [one for one in hub.fetched if one.endswith(BESIDE)]
    point_at("http://127.0.0.1:9", cache, monkeypatch)
    backend = registry.open_backend(Opening(backend=name, device="cpu"))
    assert backend.info.name == name and backend.width in (24, 32)


@pytest.mark.parametrize(
    "write",
    [
        tiny_bagel.write_tiny,
        tiny_emu3.write,
        tiny_janus.write,
        tiny_janus.write_original,
        tiny_lance.write_tiny,
        tiny_showo.write_tiny,
    ],
)
def test_half_of_a_folder_is_to_be_brought_there(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Fetching brings the backend's own weights, which were not asked for."""
    name = write.__module__.removeprefix("tiny_")
    folder = write(tmp_path / "half of it")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(MissingError, match="half of it") as caught:
        registry.open_backend(Opening(backend=name, device="cpu", model=str(folder)))
    assert caught.value.hint == (
        f"bring its files to '{folder}' anew, or leave out --model after: op backends fetch {name}"
    )


def test_damage_to_other_weights_than_the_usual_names_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = "deepseek-community/Janus-Pro-7B"
    served, cache = tiny_janus.write(tmp_path / "janus"), tmp_path / "cache"
    with serving(Hub(repositories={repo: served}), cache, monkeypatch):
        weights.fetch(op_janus.INFO, repo)
    (found,) = cache.rglob("snapshots/*/model.safetensors")
    found.resolve().write_bytes(b"cut off")
    with pytest.raises(MissingError, match=r"model\.safetensors") as caught:
        registry.open_backend(Opening(backend="janus", device="cpu", model=repo))
    assert caught.value.hint == f"op backends fetch janus --model {repo}"


# -- revisions -------------------------------------------------------------------------------------


def other_weights(folder: Path) -> None:
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")


def opening(**revisions: str) -> Opening:
    wanted = {name.replace("__", "/"): commit for name, commit in revisions.items()}
    return Opening(backend="chameleon", revisions=wanted)


def test_what_is_fetched_is_compared_with_what_the_hub_says_of_it(hub: Hub) -> None:
    notes: list[str] = []
    weights.fetch(INFO, REPO, on_progress=lambda event: notes.append(event.note))
    commit = weights.revisions(INFO, opening())[REPO]
    assert any(f"checking 2 files of {REPO}" in note and commit[:12] in note for note in notes)
    assert any("2 files have the size and digest that the hub names" in note for note in notes)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_another_than_the_hub_says_is_refused_and_removed(
    name: str, hub: Hub, folder: Path
) -> None:
    """Of the same length, so that the hub's client sees nothing."""
    hub.forged[name] = bytes(len((folder / name).read_bytes()))
    with pytest.raises(MissingError, match=f"{name} of {REPO} is not what the hub has") as caught:
        weights.fetch(INFO, REPO)
    assert caught.value.hint == AGAIN
    with pytest.raises(MissingError, match="or not all of them"):
        weights.locate(REPO, INFO)
    hub.forged.clear()
    assert weights.fetch(INFO, REPO)
    assert (weights.locate(REPO, INFO) / name).read_bytes() == (folder / name).read_bytes()


def test_a_bit_that_was_lost_on_the_disk_is_found_by_fetching_again(hub: Hub) -> None:
    weights.fetch(INFO, REPO)
    path = (weights.locate(REPO, INFO) / "model.safetensors").resolve()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MissingError, match="size or digest differs; it was removed"):
        weights.fetch(INFO, REPO)
    assert weights.fetch(INFO, REPO), "it is fetched again"
    assert path.read_bytes()[-1] != data[-1]


def test_a_file_of_a_persons_own_that_a_link_leads_to_is_kept(hub: Hub, tmp_path: Path) -> None:
    weights.fetch(INFO, REPO)
    path = weights.locate(REPO, INFO) / "model.safetensors"
    own = tmp_path / "mine.safetensors"
    own.write_bytes(b"tuned")
    path.unlink()
    path.symlink_to(own)
    with pytest.raises(MissingError, match="it was removed"):
        weights.fetch(INFO, REPO)
    assert own.read_bytes() == b"tuned" and not path.is_symlink()
    weights.fetch(INFO, REPO)
    assert path.is_file() and path.resolve() != own


def test_checking_says_how_far_it_is(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{revisions.__name__}.PIECE", 10)
    monkeypatch.setattr(f"{revisions.__name__}.MEGABYTE", 1)
    told: list[Progress] = []
    weights.fetch(INFO, REPO, on_progress=told.append)
    steps = [event for event in told if event.phase.startswith("checking")]
    assert steps and all(0 < event.step <= event.total for event in steps)


def test_the_revision_that_is_wanted_is_opened_although_a_newer_one_is_here(
    hub: Hub, folder: Path
) -> None:
    weights.fetch(INFO, REPO)
    first = weights.revisions(INFO, opening())
    other_weights(folder)
    weights.fetch(INFO, REPO)
    second = weights.revisions(INFO, opening())
    assert first[REPO] != second[REPO]
    assert weights.locate(REPO, INFO).name == second[REPO]
    assert weights.locate(REPO, INFO, revisions=first).name == first[REPO]
    assert weights.revisions(INFO, opening(someone__chameleon=first[REPO]))[REPO] == first[REPO]
    assert list(weights.remarks(INFO, opening(someone__chameleon=first[REPO]))) == []


def test_a_wanted_revision_that_is_not_here_is_told_with_the_command_that_brings_it(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.fetch(INFO, REPO)
    first = weights.revisions(INFO, opening())[REPO]
    other_weights(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "new"))
    weights.fetch(INFO, REPO)
    (note,) = weights.remarks(INFO, opening(someone__chameleon=first))
    assert f"learned on {REPO} at revision {first[:12]}, and here is " in note
    assert note.endswith(f"op backends fetch chameleon --revision {first}")
    assert weights.fetch(INFO, REPO, revision=first)
    assert weights.locate(REPO, INFO, revisions={REPO: first}).name == first
    assert weights.locate(REPO, INFO).name != first, "the newest is still the usual one"


def test_a_revision_alone_is_enough_for_a_concept_that_wants_it(hub: Hub, folder: Path) -> None:
    weights.fetch(INFO, REPO)
    first = weights.revisions(INFO, opening())[REPO]
    shutil.rmtree(weights.locate(REPO, INFO).parent.parent / "refs")
    with pytest.raises(MissingError):
        weights.locate(REPO, INFO)
    assert weights.locate(REPO, INFO, revisions={REPO: first}).name == first


@pytest.mark.parametrize(
    ("model", "revision"),
    [(REPO, "main"), (REPO, "abc"), (REPO, "../" * 13 + "x"), ("embedded", "a")],
)
def test_what_is_no_revision_is_refused(model: str, revision: str) -> None:
    info = replace(INFO, default_model=model, models=(model,))
    with pytest.raises(UsageError, match="is no revision"):
        weights.fetch(info, model, revision=revision)


# -- a name of two meanings ------------------------------------------------------------------------


def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """A folder with this relative name where `op` runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    return tmp_path / name


def test_a_name_that_the_backend_knows_is_the_hubs_although_a_folder_has_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here(tmp_path, monkeypatch, REPO)
    with pytest.raises(MissingError, match="are not on this computer") as caught:
        weights.locate(REPO, INFO)
    assert caught.value.hint.endswith(f"--model ./{REPO}")
    weights.fetch(INFO, REPO)
    assert weights.locate(REPO, INFO) != folder
    assert weights.locate(f"./{REPO}", INFO) == folder
    assert list(weights.remarks(INFO, Opening(model=REPO))) == [
        f"{REPO} is the hub's; the folder of that name is --model ./{REPO}"
    ]
    assert weights.public_name(REPO, INFO) == REPO
    assert weights.public_name(f"./{REPO}", INFO) == "chameleon"


def test_a_name_that_nobody_knows_is_the_folder_that_has_it_and_this_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = here(tmp_path, monkeypatch, "my/weights")
    assert weights.locate("my/weights", INFO) == folder
    remarks = list(weights.remarks(INFO, Opening(model="my/weights")))
    assert remarks == ["my/weights is the folder that is here, and not the hub's"]
    assert weights.public_name("my/weights", INFO) == "weights"


def test_a_name_that_is_in_the_hubs_cache_is_the_hubs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories = {**hub.repositories, "my/weights": hub.repositories[REPO]}
    weights.fetch(INFO, "my/weights")
    folder = here(tmp_path, monkeypatch, "my/weights")
    assert weights.locate("my/weights", INFO) != folder
    assert len(list(weights.remarks(INFO, Opening(model="my/weights")))) == 1


# -- before and around a fetch --------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True", "y"])
@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OMNIPERSONA_OFFLINE"])
def test_the_network_can_be_forbidden_in_every_spelling(
    name: str, value: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    error = failed()
    assert "offline" in str(error) and name in error.hint
    assert not hub.fetched


def test_size_and_room_are_told_before_anything_is_fetched(hub: Hub) -> None:
    notes: list[str] = []

    def told(event: Progress) -> None:
        notes.append(event.note)
        if "fetching" in event.note:
            assert not hub.fetched or REPO not in event.note

    weights.fetch(INFO, REPO, on_progress=told)
    assert any("GB are free" in note and "127.0.0.1" in note for note in notes)
    assert notes[0] == "chameleon: licence: MIT"


def test_a_part_of_a_file_that_changed_upstream_is_not_gone_on_with(
    hub: Hub, tmp_path: Path
) -> None:
    weights.fetch(INFO, REPO)
    (blobs,) = (tmp_path / "cache").glob("*chameleon/blobs")
    (blobs / f"{'0' * 64}{PART}").write_bytes(bytes(1000))
    (weights.locate(REPO, INFO) / "model.safetensors").unlink()
    notes: list[Progress] = []
    weights.fetch(INFO, REPO, on_progress=notes.append)
    assert not [event.note for event in notes if "gone on with" in event.note]


def test_weights_that_do_not_fit_on_the_disk_are_refused_beforehand(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda place: room)
    error = failed()
    assert isinstance(error, ResourceError) and "HF_HOME" in error.hint
    assert not hub.fetched


def test_what_was_fetched_is_found_with_its_size(hub: Hub) -> None:
    assert weights.on_disk(INFO) == []
    weights.fetch(INFO, REPO)
    whole = weights.on_disk(INFO)[0]
    assert whole.repo == REPO and whole.folder.is_dir() and whole.size > 0


def test_bars_can_be_left_out(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    weights.fetch(INFO, REPO, bars=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("bars", [True, False])
def test_where_nobody_sees_bars_steps_say_how_far_a_large_file_is(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, bars: bool
) -> None:
    monkeypatch.setattr("omnipersona_cli.family.download.LARGE", 1)
    monkeypatch.setattr("omnipersona_cli.family.download.EVERY", 0.01)
    monkeypatch.setattr(weights, "MEGABYTE", 1)
    sizes = {name: len(body) for name, body in hub.files(REPO).items()}
    hub.held = held = Event()
    hub.cut["model.safetensors"] = sizes["model.safetensors"] // 2
    told: list[tuple[int, int]] = []

    def listen(event: Progress) -> None:
        if event.phase.startswith("fetching") and event.total:
            told.append((event.step, event.total))
            hub.cut.clear()
            held.set()

    if bars:
        hub.cut.clear()
    weights.fetch(INFO, REPO, bars=bars, on_progress=listen)
    assert bool(told) != bars
    assert all(0 <= step <= total <= sum(sizes.values()) for step, total in told)
