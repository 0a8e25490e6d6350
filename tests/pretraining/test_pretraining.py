"""Pretraining of nano, two steps at a time: it resumes exactly, and what it exports opens."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omnipersona_cli.backend import Opening
from op_bagel.vae import Decoder
from op_bagel.vit import VisionModel
from op_nano.backend import open_backend
from op_nano.shape import CONFIG, VAE
from op_toy import attributes
from op_toy.world import COLOURS, KINDS
from pretraining.__main__ import main
from pretraining.autoencoder import Known, train_autoencoder
from pretraining.decoder import UNFOOLED, Adversary, decoder_losses, repaint_pool, train_decoder
from pretraining.families import HELD_OUT_FIRST, JUDGE_FIRST, TWO, draw_family, draw_pool
from pretraining.joint import (
    JointRun,
    averaged,
    encode_pool,
    export_judge,
    export_weights,
    frozen_encoders,
    read_pool,
    train_joint,
    unpack_weights,
)
from pretraining.training import Average, Muon, PretrainingStage, optimisers, to_pixels
from pretraining.vision import see, train_vision

FOREVER = 1e6  # minutes
CONCEPTS = 4


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool of four families, one step of the autoencoder and of the ViT, two of the rest."""
    folder = tmp_path_factory.mktemp("training")
    for name, count, first, held_out in (
        ("pool", 4, 0, False),
        ("test", 4, HELD_OUT_FIRST, True),
        ("judge", 2, JUDGE_FIRST, False),
    ):
        list(draw_pool(folder / f"{name}.npy", count, first=first, held_out=held_out, jobs=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainingStage, "done", property(lambda stage: float(stage.step >= 1)))
        train_autoencoder(folder, FOREVER, 2)
        train_vision(folder, FOREVER, 4)
        train_vision(folder, FOREVER, 4, name="judge")
    for name in ("pool", "test"):
        encode_pool(folder, name)
    practise(folder, 2)
    yield folder


def practise(folder: Path, until: int, **options: Any) -> dict[str, Tensor]:
    """Joint training up to a step, from what is saved in a folder; what is saved at the end."""
    run = JointRun(state=folder, minutes=FOREVER, concepts=CONCEPTS, noises=2, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainingStage, "done", property(lambda stage: float(stage.step >= until)))
        train_joint(run)
    return load_file(folder / f"{run.name}.safetensors")


def test_a_stage_goes_on_exactly_where_it_stopped(state: Path, tmp_path: Path) -> None:
    for name in ("pool.npy", "pool.families.json", "pool.safetensors"):
        (tmp_path / name).symlink_to(state / name)
    practise(tmp_path, 1)
    resumed = practise(tmp_path, 2)
    straight = load_file(state / "joint.safetensors")
    assert resumed.keys() == straight.keys()
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name
    assert json.loads((tmp_path / "joint.json").read_text())["step"] == 2


@pytest.mark.parametrize("name", ["autoencoder", "vision", "judge"])
def test_a_finished_stage_is_left_as_it_is(
    name: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainingStage, "done", property(lambda stage: float(stage.step >= 1)))
    before = load_file(state / f"{name}.safetensors")
    if name == "autoencoder":
        train_autoencoder(state, FOREVER, 2)
    else:
        train_vision(state, FOREVER, 4, name=name)
    after = load_file(state / f"{name}.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_autoencoder_goes_on_near_the_latents_that_are_known(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in state.iterdir():
        if not file.name.startswith("autoencoder"):
            (tmp_path / file.name).symlink_to(file)
        else:
            shutil.copy(file, tmp_path)
    (tmp_path / "decoder.safetensors").write_bytes(b"of the latents of before")
    known = Known.of(state)
    autoencoder, _ = frozen_encoders(state)
    rows = np.array([3, 5, 8])
    mean, _ = autoencoder.moments(to_pixels(np.load(state / "pool.npy"), rows))
    assert known.moved(mean, rows) < 1e-5 < 0.01 < known.moved(mean, rows + 1)

    steps = json.loads((tmp_path / "autoencoder.json").read_text())["step"]
    for more, keeps_decoder in ((0, True), (2, False)):
        until = steps + more
        monkeypatch.setattr(
            PretrainingStage, "done", property(lambda stage, end=until: float(stage.step >= end))
        )
        train_autoencoder(tmp_path, FOREVER, 2, near=0.05, precision="bfloat16")
        assert (tmp_path / "decoder.safetensors").exists() == keeps_decoder
    before, after = (
        json.loads((folder / "autoencoder.report.json").read_text()) for folder in (state, tmp_path)
    )
    assert {**after, "held_out_psnr": 0} == {**before, "held_out_psnr": 0}
    moved = averaged(tmp_path / "autoencoder.safetensors")
    assert any(
        not torch.equal(moved[name], value)
        for name, value in averaged(state / "autoencoder.safetensors").items()
        if name.startswith("encoder.")
    )


def test_every_stage_reports_under_its_own_name(state: Path) -> None:
    reports = {one.name for one in state.glob("*.report.json")}
    assert reports == {f"{name}.report.json" for name in ("autoencoder", "vision", "judge")}
    assert set(json.loads((state / "judge.report.json").read_text())) == set(attributes.NAMES)


def test_the_judge_shares_nothing_with_nanos_eye(state: Path) -> None:
    eye, judge = (load_file(state / f"{name}.safetensors") for name in ("vision", "judge"))
    shared = {key for key in eye.keys() & judge.keys() if key.startswith("model.")}
    assert "model.heads.queries" in shared and all(key.startswith("model.heads") for key in shared)
    assert not torch.equal(eye["model.heads.queries"], judge["model.heads.queries"])
    first = {seed: draw_family(seed).character for seed in range(2)}
    assert draw_family(JUDGE_FIRST).character not in first.values()


def test_the_clock_counts_every_sitting(tmp_path: Path) -> None:
    stage = PretrainingStage(tmp_path, "any", 1.0)
    stage.spent, stage.step = 45.0, 7
    stage.save({"a": torch.zeros(1)})
    again = PretrainingStage(tmp_path, "any", 1.0)
    assert again.step == 7 and again.seconds >= 45.0
    assert again.done == pytest.approx(0.75, abs=0.02)
    assert not list(tmp_path.glob("*.part"))


def test_the_rate_warms_up_stays_and_falls_to_zero(tmp_path: Path) -> None:
    stage = PretrainingStage(tmp_path, "any", 1.0)
    assert stage.rate(1.0) == pytest.approx(0.01)
    stage.step = 1000
    assert stage.rate(1.0) == 1.0
    stage.spent = 48.0
    assert stage.rate(1.0) == pytest.approx(0.5, abs=0.05)
    stage.spent = 100.0
    assert stage.rate(1.0) == 0.0


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16), (16, 4, 3, 3)])
def test_muon_moves_in_every_direction_alike(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.zeros(shape)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn(shape)
    Muon(weights, lr=1.0).step()
    for weight in weights:
        moved = weight.detach().flatten(1)
        sizes = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(max(moved.shape)))
        assert weight.grad is not None
        assert float((sizes > 0.5).float().mean()) > 0.9 and float(sizes.max()) < 1.4
        assert float((moved * weight.grad.flatten(1)).sum()) < 0, "downhill"
    assert not torch.equal(weights[0], weights[1])


def test_muon_gets_matrices_and_adam_the_rest() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(32, 32), "inside": nn.Linear(32, 32), "thin": nn.Linear(4, 32)}
    )
    both = optimisers(dict(model.named_parameters()), matrices=1.0, rest=2.0)
    inside = [id(one) for one in both["muon"][0].param_groups[0]["params"]]
    assert inside == [id(model["inside"].weight)]
    others = {id(one) for one in both["adam"][0].param_groups[0]["params"]}
    assert others == {id(one) for one in model.parameters()} - {*inside}
    assert (both["muon"][1], both["adam"][1]) == (1.0, 2.0)


def test_the_average_forgets_the_start() -> None:
    start, end = {"a": torch.zeros(3)}, {"a": torch.ones(3)}
    average = Average(start, 0.99)
    for step in range(1, 300):
        average.update(end, step)
    assert float(average.values["a"].min()) > 0.9 and float(start["a"].max()) == 0


def test_truth_names_the_attributes_of_left_and_right() -> None:
    for seed in range(20):
        family = draw_family(seed)
        answers = dict(zip(attributes.NAMES, attributes.truth(family.pictures[0]), strict=True))
        who = family.character
        assert KINDS[answers["kind"]] == who.kind
        assert tuple(COLOURS)[answers["colour"]] == who.colours[0]
        assert answers["right kind"] == -1 and answers["characters"] == 1
        assert (answers["second"] == -1) == (who.pattern == "plain")
        assert (answers["accessory colour"] == -1) == (who.accessory is None)
        two = dict(zip(attributes.NAMES, attributes.truth(family.pictures[TWO]), strict=True))
        kinds = {KINDS[two["kind"]], KINDS[two["right kind"]]}
        assert kinds == {one.kind for one in family.pictures[TWO].characters}


def test_seeing_many_pictures_is_seeing_each() -> None:
    torch.manual_seed(0)
    eye = VisionModel(CONFIG.vit)
    heads = attributes.AttributeHeads(CONFIG.vit.hidden_size)
    pictures = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = see(eye, pictures)
        alone = torch.cat([see(eye, one[None]) for one in pictures])
        logits = heads(together)
    assert torch.allclose(together, alone, atol=1e-5)
    sizes = [len(values) for values in attributes.ATTRIBUTES.values()] * 2
    sizes += [len(values) for values in attributes.AROUND.values()]
    assert [tuple(one.shape) for one in logits] == [(3, size) for size in sizes]


# -- the decoder -----------------------------------------------------------------------------------


@pytest.fixture
def repainted(state: Path, tmp_path: Path) -> Path:
    """The state, with pictures that its joint model painted on."""
    for file in state.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("pool", "test"):
        repaint_pool(tmp_path, name, 100)
    return tmp_path


def test_pictures_are_painted_on_from_the_pictures_that_they_name(repainted: Path) -> None:
    clean = load_file(repainted / "pool.safetensors")["latents"].float()
    painted = load_file(repainted / "pool.painted.safetensors")
    assert painted["latents"].shape == (100, *clean.shape[1:]) and len(painted["rows"]) == 100
    own = (painted["latents"].float() - clean[painted["rows"]]).square().mean()
    others = (painted["latents"].float() - clean[painted["rows"].roll(1)]).square().mean()
    assert own < 0.8 * others, "untrained as it is, it keeps what noise left of a picture"


def test_the_decoder_learns_alone_and_is_what_is_exported(
    repainted: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainingStage, "done", property(lambda stage: float(stage.step >= 2)))
    train_decoder(repainted, FOREVER, 4, precision="bfloat16")
    report = json.loads((repainted / "decoder.report.json").read_text())
    assert [sorted(report[when]) for when in ("before", "after")] == [["drawn", "painted"]] * 2
    shipped = tmp_path_factory.mktemp("shipped")
    export_weights(repainted, shipped)
    exported = load_file(shipped / "nano.safetensors")
    for name, value in averaged(repainted / "autoencoder.safetensors").items():
        kept = torch.equal(exported[f"vae.{name}"], value.bfloat16())
        moves = name == "decoder.conv_out.weight"
        assert kept or name.startswith("decoder."), name
        assert not (kept and moves), name
    about = json.loads((shipped / "nano.json").read_text())
    assert about["held_out_psnr"] == report["after"]["drawn"] and about["steps"]["decoder"] == 2


def test_decoder_and_adversary_learn_from_their_own_loss_alone() -> None:
    model = nn.ModuleDict({"decoder": Decoder(VAE), "adversary": Adversary()})
    vit = VisionModel(CONFIG.vit).requires_grad_(False)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1

    def gradients(step: int) -> dict[str, Tensor]:
        model.zero_grad()
        restored = model["decoder"](torch.zeros(2, VAE.z_channels, 8, 8))
        loss, _ = decoder_losses(model, vit, restored, pictures, step)
        torch.autograd.backward(loss)
        return {name: value.grad.clone() for name, value in model.named_parameters()}  # type: ignore[union-attr]

    before, fooling = gradients(UNFOOLED - 1), gradients(UNFOOLED)
    last = "decoder.conv_out.weight"
    assert not torch.allclose(before[last], fooling[last], rtol=0.01)
    own = [name for name in before if name.startswith("adversary.")]
    assert own and all(torch.allclose(before[name], fooling[name], atol=1e-6) for name in own)


# -- export ----------------------------------------------------------------------------------------


def test_what_is_exported_opens_as_a_backend(state: Path, tmp_path: Path) -> None:
    export_weights(state, tmp_path)
    export_judge(state, tmp_path)
    backend = open_backend(Opening(model=str(tmp_path), device="cpu"))
    assert backend.fingerprint.startswith("nano@") and backend.width == CONFIG.llm.hidden_size
    about = json.loads((tmp_path / "nano.json").read_text())
    assert backend.norm_limit == about["norm_limit"] > 0
    assert about["steps"] == {"autoencoder": 1, "vision": 1, "joint": 2}
    kept = averaged(state / "joint.safetensors", "bagel.")
    opened = backend.bagel.state_dict()  # type: ignore[attr-defined]
    assert kept.keys() <= opened.keys()
    for name, value in kept.items():
        assert torch.equal(opened[name], value.bfloat16().float()), name
    assert {value.dtype for value in load_file(tmp_path / "nano.safetensors").values()} == {
        torch.bfloat16
    }
    assert (tmp_path / "judge.safetensors").is_file()


def test_what_is_exported_can_be_trained_on(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, again, state_again = (tmp_path / name for name in ("one", "two", "state"))
    export_weights(state, shipped)
    about = json.loads((shipped / "nano.json").read_text())
    about["minutes"]["decoder"], about["steps"]["decoder"] = 3.0, 7
    about["log"]["decoder"] = {"loss": 0.5}
    (shipped / "nano.json").write_text(json.dumps(about))
    state_again.mkdir()
    unpack_weights(shipped, state_again)
    with pytest.raises(FileExistsError):
        unpack_weights(shipped, state_again)
    for name in ("pool", "test"):
        for file in (f"{name}.npy", f"{name}.families.json"):
            (state_again / file).symlink_to(state / file)
        encode_pool(state_again, name)
    export_weights(state_again, again)
    first, second = (load_file(folder / "nano.safetensors") for folder in (shipped, again))
    assert all(torch.equal(first[key], second[key]) for key in first | second)
    told = json.loads((again / "nano.json").read_text())
    assert told | {"norm_limit": 0} == about | {"norm_limit": 0}  # of rows in bf16 this time
    trained = practise(state_again, 3)
    key = "model.bagel.language_model.model.layers.0.mlp_moe_gen.down_proj.weight"
    assert not torch.equal(trained[key], first[key.removeprefix("model.")].float())
    assert json.loads((state_again / "joint.json").read_text())["step"] == 3
    for name in ("pool", "test"):
        repaint_pool(state_again, name, 8)
    monkeypatch.setattr(PretrainingStage, "done", property(lambda stage: float(stage.step >= 9)))
    train_decoder(state_again, FOREVER, 4)
    last = "decoder.conv_out.weight"
    drift = averaged(state_again / "decoder.safetensors")[last] - first[f"vae.{last}"].float()
    assert 0 < drift.abs().max() < 0.05, "it goes on from what was shipped"
    assert json.loads((state_again / "decoder.json").read_text())["step"] == 9


def test_a_pool_drawn_anew_is_not_read_with_the_rows_of_the_old_one(
    state: Path, tmp_path: Path
) -> None:
    (tmp_path / "pool.safetensors").symlink_to(state / "pool.safetensors")
    for first, fits in ((0, True), (4, False)):
        list(draw_pool(tmp_path / "pool.npy", 4, first=first, jobs=1))
        if fits:
            assert [family.seed for family in read_pool(tmp_path, "pool").families] == [0, 1, 2, 3]
        else:
            with pytest.raises(ValueError, match="encode it"):
                read_pool(tmp_path, "pool")


def test_the_command_names_every_stage() -> None:
    stages = {"draw", "autoencoder", "vision", "encode", "joint", "repaint", "decoder", "judge"}
    stages |= {"export", "unpack"}
    assert stages <= set(main.commands)


def test_a_run_of_another_size_is_measured_on_held_out_families(state: Path) -> None:
    saved = practise(state, 1, name="small", width=64, layers=2, held_out=1, precision="bfloat16")
    embeddings = saved["model.bagel.language_model.model.embed_tokens.weight"]
    assert embeddings.shape[1] == 64 and embeddings.dtype == torch.float32
    (line,) = (state / "small.curve.jsonl").read_text().splitlines()
    figures = json.loads(line)
    assert figures["step"] == 1 and figures["minutes"] >= 0
    assert all(math.isfinite(figures[name]) for name in ("ce", "mse", "mse behind", "misaligned"))
    practise(state, 1, name="small", width=64, layers=2, held_out=1)
    again = [json.loads(one) for one in (state / "small.curve.jsonl").read_text().splitlines()]
    assert again[0]["mse"] == again[1]["mse"], "the same weights, the same held-out steps"


def test_a_sitting_ends_and_the_next_goes_on(state: Path) -> None:
    run = JointRun(
        state=state, name="short", minutes=FOREVER, concepts=CONCEPTS, noises=2, width=64,
        layers=2, sitting=0.005,
    )  # fmt: skip
    steps = [0]
    for _ in range(2):
        train_joint(run)
        steps.append(json.loads((state / "short.json").read_text())["step"])
    assert steps[0] < steps[1] < steps[2]


def test_encoded_pools_hold_a_row_for_every_picture(state: Path) -> None:
    encoded = load_file(state / "pool.safetensors")
    pictures = len(np.load(state / "pool.npy", mmap_mode="r"))
    assert encoded["latents"].shape == (pictures, 16, CONFIG.latent_width)
    assert encoded["vit"].shape == (pictures, 16, CONFIG.vit.hidden_size)
    assert all(torch.isfinite(value).all() for value in encoded.values())
