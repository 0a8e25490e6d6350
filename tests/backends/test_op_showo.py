"""Show-o as a backend, on a tiny checkpoint in the released layout."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tiny_showo
import torch
from PIL import Image as images
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Opening, Prompt
from omnipersona_cli.engine.request import check_size
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.errors import MissingError, TaskError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_showo import INFO, placing
from op_showo.backend import ShowoBackend
from op_showo.loading import open_backend
from op_showo.magvit import Magvit
from op_showo.model import ExtraVocabulary
from op_showo.region import covered, window
from op_showo.sampling import training_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_showo.write_tiny(tmp_path_factory.mktemp("showo") / "model")


@pytest.fixture(scope="module")
def showo(folder: Path) -> ShowoBackend:
    return cast(ShowoBackend, open_backend(Opening(model=str(folder), device="cpu")))


def opened(folder: Path, dtype: str | None = None) -> ShowoBackend:
    return cast(ShowoBackend, open_backend(Opening(model=str(folder), device="cpu", dtype=dtype)))


@pytest.fixture
def tokens(showo: ShowoBackend) -> ConceptTokens:
    photos = [drawing("red", seed) for seed in range(3)]
    return showo.new_tokens("bo", understand=4, generate=3, photos=photos, seed=0)


class TestContract(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, folder: Path) -> Backend:
        return open_backend(Opening(model=str(folder), device="cpu"))

    @pytest.fixture
    def photos(self) -> list[Image]:
        return [drawing("red", seed) for seed in range(4)]

    @pytest.fixture
    def others(self) -> list[Image]:
        return [drawing("blue", seed) for seed in (10, 11)]

    @pytest.fixture
    def weights(self, backend: Backend) -> Mapping[str, Tensor]:
        assert isinstance(backend, ShowoBackend)
        return {**backend.net.state_dict(), **backend.magvit.state_dict()}

    @pytest.fixture
    def text_table(self, showo: ShowoBackend) -> Tensor:
        return showo.net.table

    @pytest.fixture
    def again(self, folder: Path) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(replace(opening, model=str(folder)))

    @pytest.fixture
    def encoder_calls(self, backend: Backend) -> Iterator[Callable[[], int]]:
        assert isinstance(backend, ShowoBackend)
        backend.pictures.encoded.clear()
        seen: list[object] = []
        hook = backend.magvit.encoder.register_forward_hook(lambda *_: seen.append(None))
        yield lambda: len(seen)
        hook.remove()


def understanding(showo: ShowoBackend) -> list[Lesson]:
    here = to_turn("is <bo> here?")
    return [
        Lesson(task="understand", kind="recognise", request=here, image=image, answer=answer)
        for image, answer in (
            (drawing("red", 1), "yes, it is <bo>"),
            (drawing("blue", 2), "no"),
            (None, "a ball"),
        )
    ]


def test_a_remembered_picture_changes_neither_loss_nor_gradients(
    folder: Path, showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    found = []
    for remember in (0, showo.pictures.remember):
        one = ShowoBackend(
            info=showo.info,
            model=showo.model,
            fingerprint=showo.fingerprint,
            net=showo.net,
            magvit=showo.magvit,
            tokenizer=showo.tokenizer,
            remember=remember,
        )
        learning = copy_of(tokens, trainable=True)
        loss = one.loss(one.prepare(understanding(one)), learning, seed=0)["understand"]
        loss.backward()
        assert len(one.pictures.read) == (3 if remember else 0)
        extra = learning.extra[placing.HEAD]
        assert learning.und.grad is not None and extra.grad is not None
        found.append((loss.detach(), learning.und.grad, extra.grad))
    for one_of, other in zip(*found, strict=True):
        assert torch.equal(one_of, other)


def test_reading_a_picture_first_is_reading_the_whole_row(
    showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    """A score from cached keys and values is that of one row under the omni mask."""
    from op_showo import prompts

    photo, turn = drawing("red", 1), to_turn("is <bo> here?")
    scored = showo.score(Prompt(turns=(turn,), concepts=(tokens,)), ("yes",), image=photo)
    who = placing.concept_rows((tokens,), showo.net.config.vocab.size)
    codes = showo.pictures.encode(photo)
    seen = prompts.understanding_ids(codes, showo.net.config)
    asked = showo._question((turn,), who)
    said = [*showo.tokenizer.encode(" yes"), showo.net.config.vocab.eos]
    ids = torch.cat((seen, torch.tensor([asked + said[:-1]])), dim=1)
    attend = prompts.reading_attend(ids.shape[1], slice(0, seen.shape[1]))
    states, _ = showo.net(showo.net.embed(ids, who.soft), attend)
    found = showo.net.logits(states[0, -len(said) :], who.soft).log_softmax(-1)
    wanted = found.gather(1, torch.tensor(said)[:, None]).sum()
    torch.testing.assert_close(scored[0], wanted, rtol=1e-5, atol=1e-5)


def test_heads_run_only_where_something_is_labelled(
    showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    rows: list[int] = []
    hook = showo.net.showo.lm_head.register_forward_hook(
        lambda _, given, __: rows.append(given[0][..., 0].numel())
    )
    said = understanding(showo)[1:2]
    paint = to_turn("A photo of <bo>.")
    painted = Lesson(task="generate", kind="depict", request=paint, target=drawing("red", 1))
    for lessons in (said, [painted, painted]):
        showo.loss(showo.prepare(lessons), tokens, seed=0)
    hook.remove()
    draw = torch.Generator().manual_seed(0)
    hidden = 0
    for _ in range(2):
        u, order = torch.rand(1, generator=draw), torch.rand(1, 16, generator=draw)
        hidden += int(training_mask(u, order)[0].sum())
    assert rows == [len(" no") + 1, hidden] and hidden < 2 * 16


def test_the_concept_stands_where_each_prompt_wants_it(
    showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    size = showo.net.config.vocab.size
    who = placing.concept_rows((tokens,), size)
    und, gen = list(range(size + 1, size + 5)), list(range(size + 5, size + 8))

    def text(*pieces: str | list[int]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += showo.tokenizer.encode(piece) if isinstance(piece, str) else piece
        return ids

    turn, words = to_turn("A photo of <bo>. <bo>!"), showo.tokenizer
    asked = placing.question_ids((to_turn("who is <bo>?"),), who, words)
    introduced = ("USER: ", [size], " is ", und, ".\nwho is ", [size], "? ASSISTANT:")
    assert asked == text(*introduced)
    painted = placing.request_ids(turn, who, words)
    assert painted == text("A photo of ", gen, " ", [size], ". ", [size], "!")
    edited = placing.request_ids(turn, who, words, editing=True)
    assert edited == text("A photo of ", und + gen, " ", [size], ". ", [size], "!")
    bare = placing.concept_rows((), size)
    assert placing.question_ids((to_turn("why?"),), bare, words) == text("USER: \nwhy? ASSISTANT:")
    assert placing.answer_ids("<bo> is", who, words) == text(" ", [size], " is")


def test_the_identifier_can_be_said_where_it_has_a_head_row(
    showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    loud = ConceptTokens(
        name="bo",
        id=tokens.id,
        und=tokens.und,
        gen=tokens.gen,
        extra={placing.HEAD: torch.zeros(1, showo.width), placing.BIAS: torch.full((1,), 99.0)},
    )
    prompt = Prompt(turns=(to_turn("who?"),), concepts=(loud,))
    assert "".join(showo.say(prompt, max_tokens=2)) == "<bo><bo>"
    mute = ConceptTokens(name="bo", id=tokens.id, und=tokens.und, gen=tokens.gen)
    prompt = Prompt(turns=(to_turn("who?"),), concepts=(mute,))
    scores = showo.score(prompt, ("<bo>", "me"))
    assert torch.isfinite(scores).all()
    assert "<bo>" not in "".join(showo.say(prompt, max_tokens=4))


def test_an_edit_lesson_hides_only_what_it_changes(
    showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    source, target = drawing("red", 1), drawing("red", 1)
    target.paste("blue", (0, 0, 64, 30))
    lesson = Lesson(
        task="edit", kind="edit", request=to_turn("add <bo>."), image=source, target=target
    )
    (prepared,) = showo.prepare([lesson])
    assert prepared.region is not None and prepared.target is not None
    assert prepared.region.tolist() == [True] * 8 + [False] * 8
    before, after = showo.pictures.encode(source)[0], showo.pictures.encode(target)[0]
    assert torch.equal(prepared.target, torch.cat((after[:8], before[8:])))
    hidden: list[Tensor] = []
    embed = showo.net.embed

    def noted(ids: Tensor, soft: ExtraVocabulary | None) -> Tensor:
        hidden.append(ids)
        return embed(ids, soft)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showo.net, "embed", noted)
        for seed in range(4):
            showo.loss([prepared], tokens, seed=seed)
    masks = torch.cat(hidden)[:, -17:-1] == showo.net.config.vocab.mask
    assert bool(masks.any(1).all()) and not bool(masks[:, 8:].any())


def test_an_edit_keeps_the_codes_outside_the_mask(showo: ShowoBackend) -> None:
    photo = drawing("red", 1)
    mask = images.new("L", photo.size, 0)
    mask.paste(255, (0, 0, 32, 32))
    drawn: list[Tensor] = []
    decode = showo.magvit.decode
    showo.magvit.decode = lambda codes, grid=None: (drawn.append(codes), decode(codes, grid))[1]  # type: ignore[method-assign,assignment]
    try:
        prompt = Prompt(turns=(to_turn("a blue ball"),))
        options: dict[str, Any] = {"steps": 3, "guidance": None, "seeds": (1,)}
        (edited,) = showo.edit(photo, prompt, mask=mask, **options)
    finally:
        del showo.magvit.decode  # type: ignore[method-assign]
    assert edited.size == photo.size
    hidden = covered(mask, 64, 4)[0]
    kept = showo.pictures.encode(photo)[0]
    assert 0 < int(hidden.sum()) < 16
    assert torch.equal(drawn[0][0][~hidden], kept[~hidden])
    assert not torch.equal(drawn[0][0][hidden], kept[hidden])


def test_the_repainted_square_lies_around_the_mask() -> None:
    mask = images.new("L", (100, 60), 0)
    mask.paste(255, (70, 10, 90, 30))
    assert window(mask, mask.size) == (40, 0, 100, 60)
    mask.paste(255, (0, 0, 100, 5))
    assert window(mask, mask.size) == (0, 0, 100, 60)
    speck = images.new("L", (64, 64), 0)
    speck.putpixel((20, 40), 255)
    assert covered(speck, 64, 4).nonzero().tolist() == [[0, 9]]


def test_other_sizes_are_refused(showo: ShowoBackend) -> None:
    with pytest.raises(TaskError, match="100x64"):
        check_size(showo.info, (100, 64))


def test_guidance_leans_on_the_request(showo: ShowoBackend, tokens: ConceptTokens) -> None:
    prompt = Prompt(turns=(to_turn("a <bo>"),), concepts=(tokens,))
    pictures = [
        next(iter(showo.gen(prompt, size=None, steps=2, guidance=scale, seeds=(1,)))).tobytes()
        for scale in (0.0, 1.0, 6.0)
    ]
    assert len(set(pictures)) == 3


def test_markers_in_a_text_are_text(showo: ShowoBackend) -> None:
    ids = showo.tokenizer.encode("<|endoftext|><|soi|>")
    assert max(ids) < showo.net.config.vocab.bos
    assert showo.tokenizer.decode(ids) == "<|endoftext|><|soi|>"


def test_long_requests_are_remarked_upon(showo: ShowoBackend) -> None:
    assert showo.remarks(texts=("a ball",)) == []
    assert "cut off" in showo.remarks(texts=("a ball " * 40,))[0]


# --- checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bin", "sharded"])
def test_every_layout_opens_to_the_same_model(
    tmp_path: Path, showo: ShowoBackend, kind: str
) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "other", kind=kind)
    other = cast(
        ShowoBackend, open_backend(Opening(model=str(folder), device="cpu", dtype="float32"))
    )
    assert other.fingerprint == showo.fingerprint
    for name, value in showo.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[name], value)


def test_weights_are_cast_on_load(folder: Path, showo: ShowoBackend) -> None:
    half = cast(
        ShowoBackend, open_backend(Opening(model=str(folder), device="cpu", dtype="bfloat16"))
    )
    assert half.net.table.dtype == torch.bfloat16 and half.fingerprint == showo.fingerprint
    assert isinstance(half.magvit, Magvit)
    prompt = Prompt(turns=(to_turn("who?"),))
    for one in (half, showo):
        assert next(iter(one.gen(prompt, size=None, steps=1, guidance=None, seeds=(1,)))).size
    scores = [float(one.score(prompt, ("me",))[0]) for one in (half, showo)]
    assert scores[0] == pytest.approx(scores[1], rel=0.1)


def test_the_clip_variant_understands_through_clip(tmp_path: Path) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "clip", clip=True)
    showo = cast(ShowoBackend, open_backend(Opening(model=str(folder), device="cpu")))
    photos = [drawing(colour, 1) for colour in ("red", "blue")]
    tokens = showo.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
    one, other = (showo.score(prompt, ("yes", "no"), image=photo) for photo in photos)
    assert not torch.equal(one, other)
    lesson = Lesson(
        task="understand",
        kind="recognise",
        request=to_turn("is <bo> here?"),
        image=photos[0],
        answer="yes",
    )
    losses = showo.loss(showo.prepare([lesson]), tokens, seed=0)
    said = -float(showo.score(prompt, ("yes",), image=photos[0])[0])
    assert float(losses["understand"].detach()) == pytest.approx(said / len(" yes."), rel=1e-4)


def test_absent_weights_say_how_to_fetch_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model, hint in (
        (None, "op backends fetch showo"),
        ("showlab/show-o", "op backends fetch showo --model showlab/show-o"),
    ):
        with pytest.raises(MissingError) as caught:
            open_backend(Opening(model=model, device="cpu"))
        assert caught.value.hint == hint and caught.value.exit_code == 3
        assert (model or INFO.default_model) in str(caught.value)


def test_an_absent_part_says_how_to_fetch_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    shutil.rmtree(copied / "magvitv2")
    with pytest.raises(MissingError, match="showlab/magvitv2") as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert caught.value.hint == "op backends fetch showo --model showlab/magvitv2"


def test_a_repository_without_weights_says_what_brings_them(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`op backends fetch` leaves pickled weights behind; a person may want to fetch them so."""
    (copied / "magvitv2" / "pytorch_model.bin").unlink()
    with pytest.raises(MissingError, match="no weights in") as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert caught.value.hint == "hf download showlab/magvitv2"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copied")


NAME = "showo.model.final_layernorm.weight"


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(NAME), "lacks the tensor"),
        (lambda tensors: tensors.update({NAME: torch.zeros(3)}), "shaped (3,)"),
        (
            lambda tensors: tensors.update({NAME: torch.zeros(32, dtype=torch.int64)}),
            "the type int64",
        ),
        (lambda tensors: tensors.update({"stranger": torch.zeros(3)}), "stranger"),
        (lambda tensors: tensors.clear(), "no tensors"),
    ],
)
def test_a_wrong_checkpoint_names_file_and_tensor(
    copied: Path, change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    path = copied / "pytorch_model.safetensors"
    rewritten(path, change)
    with pytest.raises(MissingError) as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert says in str(caught.value) and path.name in str(caught.value) and caught.value.hint
    assert says in ("stranger", "no tensors") or NAME in str(caught.value)


def test_a_cut_off_checkpoint_names_file_and_tensor(copied: Path) -> None:
    path = copied / "pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MissingError, match=r"pytorch_model\.safetensors.*cut off at the tensor"):
        open_backend(Opening(model=str(copied), device="cpu"))
    path.unlink()
    with pytest.raises(MissingError, match="no weights"):
        open_backend(Opening(model=str(copied), device="cpu"))


def test_a_cut_off_tokenizer_names_its_file(copied: Path) -> None:
    path = copied / "magvitv2" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MissingError, match=r"magvitv2/pytorch_model\.bin"):
        open_backend(Opening(model=str(copied), device="cpu"))


def test_a_pickle_is_not_run(copied: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, ("raise RuntimeError('it ran')",)

    torch.save({"encoder.conv_in.weight": Trap()}, copied / "magvitv2" / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"pytorch_model\.bin"):
        open_backend(Opening(model=str(copied), device="cpu"))


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("config.json", {"num_vq_tokens": 15}, "not a square number"),
        ("config.json", {"num_vq_tokens": None}, "NoneType"),
        ("config.json", {"codebook_size": "64"}, "codebook_size is '64'"),
        ("config.json", {"mask_token_id": 3}, "mask_token_id is 3"),
        ("config.json", {"max_seq_length": 3}, "no room for words"),
        ("config.json", {"max_seq_length": 5000}, "positions do not fit"),
        ("phi-1_5/config.json", {"hidden_size": 0}, "hidden_size is 0"),
        ("phi-1_5/config.json", {"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ("phi-1_5/config.json", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ("magvitv2/config.json", {"encoder": [8]}, "list"),
        ("magvitv2/config.json", {"group_norm_groups": 5}, "do not divide into 5 groups"),
        ("magvitv2/config.json", {"encoder": {"ch_mult": "ab"}}, "ch_mult is ('a', 'b')"),
    ],
)
def test_a_config_that_makes_no_sense_is_named_with_the_reason(
    copied: Path, file: str, values: dict[str, Any], says: str
) -> None:
    path = copied / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(MissingError) as caught:
        open_backend(Opening(model=str(copied), device="cpu"))
    assert f"{path} is not that of" in str(caught.value) and says in str(caught.value)


def test_another_kind_of_config_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"codebook_size": 3}')
    with pytest.raises(MissingError, match=r"config\.json is not that of a Show-o: it has no"):
        open_backend(Opening(model=str(copied), device="cpu"))


@pytest.mark.parametrize("listed", [{}, ["x"], {"a": 3}, {"a": "../../etc/passwd"}, {"a": ".."}])
def test_an_index_that_lists_no_files_of_its_folder_is_refused(
    copied: Path, listed: object
) -> None:
    (copied / "pytorch_model.safetensors").unlink()
    index = copied / "pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(MissingError, match=r"index\.json does not list files by tensor"):
        open_backend(Opening(model=str(copied), device="cpu"))


def test_a_bin_file_of_before_torch_1_6_is_read(copied: Path) -> None:
    path = copied / "magvitv2" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert isinstance(open_backend(Opening(model=str(copied), device="cpu")), ShowoBackend)


@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: {"weight": tensor},
    ],
)
def test_a_bin_file_holds_nothing_but_numbers(
    copied: Path, odd: Callable[[Tensor], object]
) -> None:
    path, name = copied / "magvitv2" / "pytorch_model.bin", "encoder.conv_in.weight"
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, name: odd(tensors[name])}, path)
    with pytest.raises(MissingError, match=rf"{name} in .* is not a tensor of numbers"):
        open_backend(Opening(model=str(copied), device="cpu"))


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("config.json", {"vision_config": {"hidden_size": 7}}, "not that of CLIP"),
        ("config.json", {"vision_config": [3]}, "not that of CLIP"),
        ("preprocessor_config.json", {"image_mean": "x"}, "does not prepare pictures"),
    ],
)
def test_a_clip_that_makes_no_sense_is_named(
    tmp_path: Path, file: str, values: dict[str, Any], says: str
) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "clip", clip=True)
    (folder / "clip-vit-large-patch14-336" / file).write_text(json.dumps(values))
    with pytest.raises(MissingError, match=says) as caught:
        open_backend(Opening(model=str(folder), device="cpu"))
    assert file in str(caught.value)


def test_a_missing_shard_is_named_with_a_tensor_of_it(tmp_path: Path) -> None:
    folder = tiny_showo.write_tiny(tmp_path / "sharded", kind="sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingError, match=r"model-00002-of-00002.*which holds showo\."):
        open_backend(Opening(model=str(folder), device="cpu"))


def test_another_tokenizer_is_refused(copied: Path) -> None:
    path = copied / "phi-1_5" / "tokenizer.json"
    other = tiny_showo.tokenizer()
    other.add_tokens(["stranger"])
    other.save(str(path))
    with pytest.raises(MissingError, match="258 tokens"):
        open_backend(Opening(model=str(copied), device="cpu"))
