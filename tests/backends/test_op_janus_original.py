"""Janus-4o, in the layout of its authors: read as it is, and editing from the source picture."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as images
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from tiny_janus import BOI, BOS, EOI, PAD, write, write_original
from torch import Tensor

from omnipersona_cli.backend import Backend, Lesson, Opening, Prompt
from omnipersona_cli.errors import MissingError, UsageError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_janus import original, pictures, prompts
from op_janus.backend import JanusBackend
from op_janus.loading import edits_natively, open_backend
from op_janus.prompts import SourcePicture
from op_janus.sampling import SOURCE_GUIDANCE, guided_by_source, sample

TURN = to_turn("make it snow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("authors") / "Janus-4o-tiny")


@pytest.fixture(scope="module")
def janus(folder: Path) -> JanusBackend:
    return opened(folder)


def opened(folder: Path, dtype: str | None = None) -> JanusBackend:
    backend = open_backend(Opening(model=str(folder), device="cpu", dtype=dtype))
    assert isinstance(backend, JanusBackend)
    return backend


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same checkpoint, to be broken."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(copy: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of a checkpoint; the file that they are in."""
    path = copy / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


class TestContract(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, janus: JanusBackend) -> Backend:
        return janus

    @pytest.fixture
    def photos(self) -> list[Image]:
        return [drawing("red", seed) for seed in range(4)]

    @pytest.fixture
    def others(self) -> list[Image]:
        return [drawing("blue", seed) for seed in range(2)]

    @pytest.fixture
    def weights(self, janus: JanusBackend) -> Mapping[str, Tensor]:
        return janus.janus.state_dict()

    @pytest.fixture
    def text_table(self, janus: JanusBackend) -> Tensor:
        return janus.llm.table.weight

    @pytest.fixture
    def again(self, folder: Path) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(replace(opening, model=str(folder)))

    @pytest.fixture
    def encoder_calls(self, janus: JanusBackend) -> Callable[[], int]:
        calls: list[int] = []
        for module in (janus.janus.model.vision_model, janus.janus.model.vqmodel.encoder):
            module.register_forward_hook(lambda *_: calls.append(1))
        return lambda: len(calls)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aligner.layers.2.bias", "model.aligner.hidden_layers.0.bias"),
        ("gen_aligner.layers.0.weight", "model.generation_aligner.fc1.weight"),
        ("gen_embed.weight", "model.generation_embeddings.weight"),
        ("gen_head.output_mlp_projector.bias", "model.generation_head.proj_out.bias"),
        (
            "gen_vision_model.decoder.conv_blocks.0.attn.2.proj_out.weight",
            "model.vqmodel.decoder.up.0.attn.2.proj_out.weight",
        ),
        (
            "gen_vision_model.encoder.conv_blocks.4.res.1.nin_shortcut.weight",
            "model.vqmodel.encoder.down.4.block.1.nin_shortcut.weight",
        ),
        (
            "gen_vision_model.encoder.conv_blocks.3.downsample.conv.bias",
            "model.vqmodel.encoder.down.3.downsample.conv.bias",
        ),
        ("gen_vision_model.encoder.mid.1.k.bias", "model.vqmodel.encoder.mid.attn_1.k.bias"),
        ("gen_vision_model.post_quant_conv.weight", "model.vqmodel.post_quant_conv.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        (
            "language_model.model.layers.29.self_attn.q_proj.weight",
            "model.language_model.layers.29.self_attn.q_proj.weight",
        ),
        (
            "vision_model.vision_tower.blocks.23.norm2.bias",
            "model.vision_model.encoder.layers.23.layer_norm2.bias",
        ),
        (
            "vision_model.vision_tower.blocks.7.attn.proj.weight",
            "model.vision_model.encoder.layers.7.self_attn.projection_layer.weight",
        ),
    ],
)
def test_every_part_has_its_name_in_transformers_and_back(old: str, new: str) -> None:
    assert original.new_names(old) == (new,)
    assert original.old_name(new) == old


def test_a_tensor_of_no_janus_has_no_name() -> None:
    assert original.new_names("vision_gen_enc_model.norm.weight") is None


def test_both_layouts_hold_one_model(janus: JanusBackend, tmp_path: Path) -> None:
    theirs = opened(write(tmp_path / "native", tower=32, heads=16))
    one, other = theirs.janus.state_dict(), janus.janus.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    photo = drawing("red", 1)
    assert torch.equal(theirs._look(photo), janus._look(photo))
    assert torch.equal(theirs._encode(photo), janus._encode(photo))


def test_trap_the_image_tokenizer_is_not_rounded_on_its_way_in(folder: Path) -> None:
    half = opened(folder, "bfloat16")
    name = "encoder.conv_in.weight"
    kept = load_file(folder / "model.safetensors")[f"gen_vision_model.{name}"]
    assert torch.equal(half.janus.model.vqmodel.state_dict()[name], kept)
    assert half.llm.table.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("lost", ["gen_vision_model.quant_conv.bias", "aligner.layers.2.bias"])
def test_a_missing_tensor_is_named_with_its_file(lost: str, copy: Path) -> None:
    path = rewrite(copy, lambda tensors: tensors.pop(lost))
    with pytest.raises(MissingError) as caught:
        opened(copy)
    assert str(caught.value) == f"{path} lacks the tensor {lost}"
    assert caught.value.hint.startswith("op backends fetch janus")


@pytest.mark.parametrize("name", ["vision_gen_enc_model.bias", "aligner.layers.2.scale"])
def test_an_unknown_tensor_is_named_with_its_file(name: str, copy: Path) -> None:
    path = rewrite(copy, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(MissingError) as caught:
        opened(copy)
    assert str(caught.value).startswith(f"{path} holds a tensor")
    assert str(caught.value).endswith(f": {name}")


def test_a_tensor_of_another_shape_is_named_with_its_file(copy: Path) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    path = rewrite(copy, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    with pytest.raises(MissingError) as caught:
        opened(copy)
    assert str(path) in str(caught.value) and name in str(caught.value)


def test_a_relative_without_an_image_head_is_refused(copy: Path) -> None:
    def understands_only(tensors: dict[str, Tensor]) -> None:
        for name in [it for it in tensors if it.startswith("gen_")]:
            tensors.pop(name)

    rewrite(copy, understands_only)
    with pytest.raises(MissingError, match="no image head"):
        opened(copy)


@pytest.mark.parametrize("what", ["tower", "params", "language"])
def test_another_configuration_is_refused(what: str, copy: Path) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    if what == "tower":
        config["vision_config"]["params"]["model_name"] = "sam_b_downsample"
    elif what == "params":
        config["vision_config"].pop("params")
    else:
        config["language_config"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(config))
    words = {"tower": "sam_b_downsample", "params": "config.json", "language": "layers.2."}
    with pytest.raises((MissingError, UsageError), match=words[what]):
        opened(copy)


# -- which models edit -----------------------------------------------------------------------------


def test_only_the_model_that_learned_to_edit_says_so(janus: JanusBackend, copy: Path) -> None:
    assert janus.info.tasks["edit"] == "native"
    pro = opened(copy)
    assert pro.info.tasks["edit"] == "masked"


def test_the_hub_cache_keeps_the_name(tmp_path: Path) -> None:
    place = tmp_path / "models--FreedomIntelligence--Janus-4o-7B" / "snapshots" / "0123"
    place.mkdir(parents=True)
    assert edits_natively("FreedomIntelligence/Janus-4o-7B", place)
    assert edits_natively(str(place), place)
    assert not edits_natively("deepseek-community/Janus-Pro-7B", tmp_path)


def test_a_link_may_carry_the_name(tmp_path: Path) -> None:
    plain = tmp_path / "weights"
    plain.mkdir()
    (tmp_path / "my-Janus-4o").symlink_to(plain)
    assert edits_natively(str(tmp_path / "my-Janus-4o"), plain)
    assert not edits_natively(str(plain), plain)


# -- editing ---------------------------------------------------------------------------------------


def edited(janus: JanusBackend, mask: Image | None) -> list[Image]:
    source = drawing("blue", 1).resize((80, 50))
    return list(
        janus.edit(source, Prompt(turns=(TURN,)), mask=mask, steps=None, guidance=None, seeds=(1,))
    )


def source_of(janus: JanusBackend) -> SourcePicture:
    photo = drawing("blue", 1)
    return SourcePicture(
        features=janus._look(photo), codes=pictures.code_rows(janus.janus, janus._encode(photo))
    )


def branches_of(janus: JanusBackend) -> Tensor:
    source = source_of(janus)
    full = prompts.request(janus.llm, TURN, (), "edit", source)
    part = prompts.request(janus.llm, TURN, (), "edit", source, detailed=False)
    return torch.stack([full, part, prompts.without(janus.llm, full)])


def spelled(janus: JanusBackend, rows: Tensor) -> str:
    """The text of rows that stand in the embedding table; * for every other row."""
    near = (rows[:, None] - janus.llm.table.weight[None]).abs().amax(-1)
    ids = [int(row.argmin()) if row.min() == 0 else -1 for row in near]
    return "".join("*" if it < 0 else str(janus.llm.tokenizer.decode([it])) for it in ids)


def test_the_source_stands_first_in_the_users_turn_seen_and_in_codes(janus: JanusBackend) -> None:
    n = janus.count
    full, part, without = (spelled(janus, rows) for rows in branches_of(janus))
    asked = f"{EOI}make it snow\n\n<|Assistant|>:{BOI}"
    start = f"{BOS}<|User|>: {BOI}{'*' * n}{EOI}{BOI}"
    assert full == f"{start}{'*' * n}{asked}"
    assert part == f"{start}{PAD * n}{asked}"
    assert without.removeprefix(BOS).removesuffix(BOI).replace(PAD, "") == ""


def test_three_branches_are_mixed_as_the_authors_do(janus: JanusBackend) -> None:
    rows, found = branches_of(janus), []
    with torch.no_grad():
        for _ in range(janus.count):
            states = janus.janus.model.language_model(inputs_embeds=rows, use_cache=False)
            scores = janus.janus.model.generation_head(states.last_hidden_state[:, -1])
            full, part, without = scores
            shown = (full + SOURCE_GUIDANCE * part) / (1 + SOURCE_GUIDANCE)
            code = (without + 5.0 * (shown - without)).argmax()
            found.append(int(code))
            more = pictures.code_rows(janus.janus, code[None])[None].expand(3, -1, -1)
            rows = torch.cat([rows, more], dim=1)
    ours = sample(
        janus.janus,
        lambda rows, **more: janus.llm.run("edit", (), rows, **more),
        branches_of(janus),
        weights=guided_by_source(5.0),
        generator=torch.Generator().manual_seed(0),
        temperature=0.0,
    )
    assert ours.tolist() == found


def test_it_edits_without_a_mask_and_the_source_matters(janus: JanusBackend) -> None:
    (picture,) = edited(janus, None)
    assert picture.size == (80, 50)
    other = drawing("red", 9).resize((80, 50))
    prompt = Prompt(turns=(TURN,))
    (another,) = janus.edit(other, prompt, mask=None, steps=None, guidance=None, seeds=(1,))
    assert picture.tobytes() != another.tobytes()


def test_a_mask_still_limits_it(janus: JanusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = images.new("L", (80, 50), 0)
    mask.paste(255, (0, 0, 5, 5))
    drawn: list[Tensor] = []
    decode = pictures.decode
    monkeypatch.setattr(
        pictures, "decode", lambda model, codes: (drawn.append(codes), decode(model, codes))[1]
    )
    edited(janus, mask)
    known = janus._encode(drawing("blue", 1).resize((80, 50)))
    assert torch.equal(drawn[0][2:4], known[2:4]) and torch.equal(drawn[0][8:], known[8:])


def test_an_edit_lesson_shows_the_source_and_at_times_hides_its_codes(
    janus: JanusBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = Lesson(
        task="edit",
        kind="edit",
        request=to_turn("add <bo>"),
        image=drawing("blue", 1),
        target=drawing("red", 1),
    )
    (one,) = janus.prepare([lesson])
    assert one.source is not None and one.picture is not None
    wanted = source_of(janus)
    assert torch.equal(pictures.code_rows(janus.janus, one.source), wanted.codes)
    assert torch.equal(one.picture, wanted.features)
    tokens = janus.new_tokens("bo", understand=2, generate=2, photos=[drawing("red", 1)], seed=0)
    shown: list[bool] = []
    request = prompts.request

    def noted(*given: Any, detailed: bool) -> Tensor:
        shown.append(detailed)
        return request(*given, detailed=detailed)

    monkeypatch.setattr(prompts, "request", noted)
    for seed in range(12):
        janus.loss([one], tokens, seed=seed)
    assert 2 <= sum(shown) <= 10
