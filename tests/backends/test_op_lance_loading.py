"""The released Lance layout, on a tiny checkpoint: what is read, and what it takes of memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_lance import CONFIG, PLAIN, frozen, opened, prompt, whole, write_tiny

from omnipersona_cli.backend import ConceptTokens, Opening
from omnipersona_cli.errors import UsageError
from omnipersona_cli.testing import drawing
from op_bagel.model import Bagel
from op_bagel.tokenizer import QwenTokenizer
from op_lance.config import LanceConfig
from op_lance.footprint import footprint
from op_lance.loading import find_checkpoint, open_backend, read_config
from op_lance.tower import build_tower
from op_lance.vae import AutoEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("weights") / "lance")


def test_sizes_come_from_the_tensors_where_the_configuration_lies(folder: Path) -> None:
    # it ties the head, knows no norms of queries and keys, and has sizes of another model
    checkpoint = find_checkpoint(folder)
    tokenizer = QwenTokenizer(checkpoint.folder, backend="lance")
    assert read_config(checkpoint, tokenizer) == CONFIG


def test_a_question_reads_no_generation_expert_and_one_about_a_concept_no_autoencoder(
    folder: Path,
) -> None:
    lance = open_backend(Opening(model=str(folder), device="cpu"))
    assert lance.mixture.dtype == torch.bfloat16
    before = {name for name, value in frozen(lance).items() if value.is_meta}
    lance.score(prompt("is it red?"), ("yes", "no"), image=drawing("red", 1))
    unread = {name for name, value in frozen(lance).items() if value.is_meta}
    assert unread == before and all(
        name.startswith("2.")
        or "_moe_gen" in name
        or "lat" in name
        or "time" in name
        or "vae" in name
        for name in unread
    )
    rows = [0.1 * torch.randn(count, lance.width) for count in (1, 3, 2)]
    tokens = ConceptTokens(name="bo", id=rows[0], und=rows[1], gen=rows[2])
    lance.score(prompt("is <bo> red?", tokens), ("yes",), image=drawing("red", 1))
    unread = {name for name, value in frozen(lance).items() if value.is_meta}
    assert unread == {name for name in before if name.startswith("2.")}  # the autoencoder's
    next(lance.gen(prompt("a cat"), **PLAIN))
    assert not any(value.is_meta for value in frozen(lance).values())
    assert {value.dtype for value in lance.encoders.vae.parameters()} == {torch.float32}
    assert {value.dtype for value in lance.encoders.tower.parameters()} == {torch.bfloat16}


def test_the_latent_table_is_made_anew_and_the_videos_part_of_the_autoencoder_left_out(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "copy" / "Lance_3B" / "model.safetensors"
    copied(folder, tmp_path / "copy")
    tensors = load_file(path)
    table = tensors["latent_pos_embed.pos_embed"]
    save_file(tensors | {"latent_pos_embed.pos_embed": torch.full_like(table, 7.0)}, path)
    other = whole(opened(tmp_path / "copy"))
    assert torch.equal(other.mixture.latent_pos_embed.pos_embed, table)
    assert all(
        value.abs().max() < 5 for value in other.encoders.vae.state_dict().values()
    )  # others are 9


def copied(folder: Path, place: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = place / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return place


@pytest.mark.parametrize("inner", ["", "Lance_3B", "Lance_3B/model.safetensors"])
def test_the_release_its_folder_or_its_file_can_be_named(folder: Path, inner: str) -> None:
    place = folder / inner
    assert open_backend(Opening(model=str(place), device="cpu")).model == place.name


def test_the_checkpoints_of_others_are_called_what_they_are(folder: Path, tmp_path: Path) -> None:
    for tower, called in (("vision_model.encoder", "is a BAGEL's"), ("blocks", "is the video")):
        weights = tmp_path / "model.safetensors"
        save_file({f"vit_model.{tower}.0.weight": torch.zeros(1)}, weights)
        with pytest.raises(UsageError, match=called):
            open_backend(Opening(model=str(tmp_path), device="cpu"))


def test_float16_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="bfloat16 or float32"):
        open_backend(Opening(model=str(folder), device="cpu", dtype="float16"))


def test_memory_is_planned_for_the_released_shapes(folder: Path) -> None:
    config = LanceConfig()
    with torch.device("meta"):
        mixture, vae = Bagel(config.mixture), AutoEncoder(config.vae)
        tower = build_tower(config.tower)
    told = footprint(Opening())
    assert not told.here and told.layers.count == config.llm.num_hidden_layers
    numbers = {part.name: part.numbers for part in told.parts}
    assert numbers.pop("autoencoder") == sum(it.numel() for it in vae.parameters())
    assert numbers.pop("vision tower") == sum(it.numel() for it in tower.parameters())
    assert sum(numbers.values()) == sum(it.numel() for it in mixture.parameters())
    gen = {name: it for name, it in mixture.named_parameters() if "_moe_gen" in name}
    assert numbers["generation expert"] == sum(it.numel() for it in gen.values())
    found = footprint(Opening(model=str(folder)))
    assert found.here and found.layers.width == CONFIG.llm.hidden_size
    stored = sum(it.numel() for it in load_file(folder / "Lance_3B/model.safetensors").values())
    assert sum(it.numbers for it in found.parts if it.name in numbers) == stored
