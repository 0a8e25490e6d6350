"""nano keeps the rules of all backends, and says what it does not know. No test here depends on
how good the weights are."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Opening, Prepared, Prompt
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine import Keeping, Settings, Subject, learn
from omnipersona_cli.engine.batches import group_of
from omnipersona_cli.engine.calibrate import recognition_score
from omnipersona_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from omnipersona_cli.engine.heldout import HeldOut
from omnipersona_cli.engine.optimise import optimise
from omnipersona_cli.engine.request import check_size
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of, from_slot, named_tensors, with_depth
from omnipersona_cli.errors import MissingError, SlotError, TaskError, UsageError
from omnipersona_cli.hookspecs import Progress
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract
from op_bagel.packing import pack
from op_nano import INFO, backend
from op_nano.backend import NanoBackend, NanoTokenizer, open_backend, square
from op_nano.shape import SLOTS
from op_nano.tokenizer import NAME, encode
from op_toy.drawing import render
from op_toy.world import draw_character, draw_picture


def cartoons(seed: int, count: int) -> list[Image]:
    """Pictures of one character."""
    rng, who = random.Random(seed), draw_character(seed, held_out=True)
    return [render(draw_picture(rng, (who,))) for _ in range(count)]


def noise(seed: int) -> Image:
    """A picture of nothing, which no autoencoder of this size can restore."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return images.fromarray(pixels)


def asked(text: str, *concepts: ConceptTokens) -> Prompt:
    return Prompt(turns=(to_turn(text),), concepts=concepts)


@pytest.fixture(scope="module")
def nano() -> NanoBackend:
    opened = open_backend(Opening())
    assert isinstance(opened, NanoBackend)
    return opened


class TestNano(BackendContract):
    PRETRAINED_WITH_TOKENS = True

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        return open_backend(Opening(device="cpu"))

    @pytest.fixture
    def photos(self) -> list[Image]:
        return cartoons(1, 4)

    @pytest.fixture
    def others(self) -> list[Image]:
        return cartoons(2, 2)

    @pytest.fixture
    def weights(self, nano: NanoBackend) -> Mapping[str, Tensor]:
        parts = {"bagel": nano.bagel, "vae": nano.vae, "encoder": nano.encoder}
        return {
            f"{name}.{key}": value
            for name, part in parts.items()
            for key, value in part.state_dict(keep_vars=True).items()
        }

    @pytest.fixture
    def text_table(self, nano: NanoBackend) -> Tensor:
        table: Tensor = nano.bagel.language_model.model.embed_tokens.weight
        return table

    @pytest.fixture
    def again(self) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(opening)

    @pytest.fixture
    def encoder_calls(self, nano: NanoBackend) -> Iterator[Callable[[], int]]:
        calls: list[object] = []
        hooks = [
            part.register_forward_hook(lambda module, *_: calls.append(module))
            for part in (nano.bagel.vit_model.vision_model, nano.vae.encoder, nano.encoder)
        ]
        yield lambda: len(calls)
        for hook in hooks:
            hook.remove()


# -- opening ---------------------------------------------------------------------------------------


def test_it_is_opened_once(nano: NanoBackend) -> None:
    assert (
        open_backend(Opening(model="embedded", device="cpu", dtype="float32")).fingerprint
        == nano.fingerprint
    )
    assert open_backend(Opening()) is nano


def test_a_folder_without_weights_is_missing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", "~nobody-here/at/all"):
        with pytest.raises(MissingError, match="no nano weights"):
            open_backend(Opening(model=str(folder), device="cpu"))


def test_files_that_are_not_nanos_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nano.json").write_text('{"shift_factor": 0.0, "scale_factor": 1.0}')
    for weights in (b"not a tensor", (backend.WEIGHTS / "nano.safetensors").read_bytes()):
        (tmp_path / "nano.safetensors").write_bytes(weights)
        with pytest.raises(MissingError, match="not weights of this version"):
            open_backend(Opening(model=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_number_formats_are_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match=dtype):
        open_backend(Opening(device="cpu", dtype=dtype))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_here_is_missing() -> None:
    with pytest.raises(MissingError, match="cuda"):
        open_backend(Opening(device="cuda"))


# -- remarks ---------------------------------------------------------------------------------------


def test_known_words_and_names_need_no_remark(nano: NanoBackend) -> None:
    assert not nano.remarks(texts=["a picture of <zyx> and a bunny at the beach", "<bo>'s toy?"])


def test_unknown_words_are_named_in_one_note(nano: NanoBackend) -> None:
    (note,) = nano.remarks(texts=["a zebra in Paris", "the zebra and <bo>"])
    assert "zebra, paris;" in note and "bo" not in note.split(":")[1]


def test_many_unknown_words_are_cut_short(nano: NanoBackend) -> None:
    words = [f"zz{chr(97 + index)}" for index in range(20)]
    (note,) = nano.remarks(texts=[" ".join(words)])
    assert words[7] in note and words[8] not in note and "…" in note


def test_photographs_are_remarked_on(nano: NanoBackend) -> None:
    (note,) = nano.remarks(photos=[noise(seed) for seed in range(3)])
    assert "photographs" in note and "op backends" in note and "dB" in note


def test_one_stray_photograph_among_cartoons_is_not(
    nano: NanoBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "FOREIGN_PSNR", 0.0)
    assert not nano.remarks(photos=cartoons(1, 3))
    restored = iter((30.0, 10.0, 30.0))
    monkeypatch.setattr(backend, "FOREIGN_PSNR", 21.0)
    monkeypatch.setattr(NanoBackend, "_psnr", lambda *_: next(restored))
    assert not nano.remarks(photos=cartoons(1, 3))


# -- tokens and lessons ----------------------------------------------------------------------------


@pytest.mark.parametrize(("understand", "generate"), [(1, 1), (16, 16), (20, 40)])
def test_any_number_of_tokens_starts_from_the_concept_encoder(
    understand: int, generate: int, nano: NanoBackend
) -> None:
    tokens = nano.new_tokens(
        "bo", understand=understand, generate=generate, photos=cartoons(1, 2), seed=0
    )
    full = nano.new_tokens("bo", understand=SLOTS, generate=SLOTS, photos=cartoons(1, 2), seed=9)
    assert (len(tokens.und), len(tokens.gen)) == (understand, generate)
    assert torch.equal(tokens.id, full.id)
    for some, all_of_them in ((tokens.und, full.und), (tokens.gen, full.gen)):
        shared = min(len(some), SLOTS)
        assert torch.equal(some[:shared], all_of_them[:shared])
        assert len(some.unique(dim=0)) == len(some)


def test_a_run_encodes_each_picture_once_and_learning_none(nano: NanoBackend) -> None:
    photos, others = cartoons(9031, 2), cartoons(9041, 1)
    turn, add = to_turn("is <bo> here?"), to_turn("add <bo>.")
    lessons = [
        Lesson(task="understand", kind="recognise", request=turn, image=photo, answer="yes")
        for photo in photos * 3
    ]
    lessons += [
        Lesson(task="edit", kind="edit", request=add, image=others[0], target=photo)
        for photo in photos
    ]
    before = nano.encoded
    tokens = nano.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    assert nano.encoded - before == 2 + 2  # rows of the tower, and latents
    batch = nano.prepare(lessons)
    assert nano.encoded - before == 2 + 2 + 3 + 1  # all three are seen, one more becomes latents
    prepared = nano.encoded
    torch.autograd.backward(list(nano.loss(batch, tokens, seed=0).values()))
    assert nano.encoded == prepared


def test_questions_about_one_picture_look_once(nano: NanoBackend) -> None:
    picture = cartoons(5, 1)[0]
    before = nano.encoded
    for question in ("is it a cat?", "what is it?", "where is it?"):
        nano.score(asked(question), ("yes", "no"), image=picture.copy())
    assert nano.encoded - before == 1
    picture.putpixel((0, 0), (1, 2, 3))
    nano.score(asked("is it a cat?"), ("yes", "no"), image=picture)
    assert nano.encoded - before == 2


# -- painting --------------------------------------------------------------------------------------


def test_what_is_kept_of_facts_is_not_painted_or_recognised(nano: NanoBackend) -> None:
    photos = cartoons(1, 2)
    looks = nano.new_tokens("bo", understand=4, generate=4, photos=photos, seed=0)
    more = torch.cat((looks.und, torch.randn(3, nano.width)))
    both = replace(looks, und=more, fact_tokens=3)

    def painted(tokens: ConceptTokens) -> list[bytes]:
        prompt = Prompt(turns=(to_turn("<bo> in the snow"),), concepts=(tokens,))
        made = nano.gen(prompt, size=None, steps=1, guidance=None, seeds=(1,))
        changed = nano.edit(photos[0], prompt, mask=None, steps=1, guidance=None, seeds=(1,))
        return [picture.tobytes() for picture in (*made, *changed)]

    assert painted(both) == painted(looks)
    scores = [recognition_score(nano, tokens, photos[0]) for tokens in (both, looks)]
    assert scores[0] == scores[1]
    turn = to_turn("<bo>")
    lesson = Lesson(task="generate", kind="depict", request=turn, target=photos[0])
    prepared = nano.prepare([lesson])
    losses = [nano.loss(prepared, tokens, seed=1)["generate"] for tokens in (both, looks)]
    assert torch.equal(*losses)
    question = Prompt(turns=(to_turn("what is <bo>?"),), concepts=(both,))
    without = replace(question, concepts=(looks,))
    assert nano.score(question, ["a cat"]) != nano.score(without, ["a cat"])


@pytest.mark.parametrize("looks", [4, 20])
def test_rows_for_facts_start_as_long_as_words_however_few_are_for_looks(
    nano: NanoBackend, tmp_path: Path, looks: int
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, photo in enumerate(cartoons(1, 2)):
        photo.save(photos / f"{number}.png")
    plain = Subject(photos=[photos], name="bo")
    told = replace(plain, facts=["its toy is a red ball"])
    keeping = Keeping(library=Library(tmp_path / "library"), samples=0)
    settings = Settings(steps=1, learning_rate=1e-9, understand_tokens=looks)
    at_once = learn(told, settings, keeping, backend=nano).pack
    learn(plain, settings, replace(keeping, force=True), backend=nano)
    later = learn(told, settings, replace(keeping, more=True), backend=nano).pack
    word = nano.bagel.language_model.model.embed_tokens.weight.norm(dim=1).mean()
    for learned in (at_once, later):
        tokens = from_slot(learned, nano)
        facts = tokens.und[looks:].norm(dim=1) / word
        assert len(facts) == tokens.fact_tokens and bool(((facts > 0.5) & (facts < 2)).all())


def with_noise(tokens: ConceptTokens, depth: int, length: float) -> ConceptTokens:
    """Deep tokens that are no longer nothing."""
    chance = torch.Generator().manual_seed(2)
    extra = with_depth(tokens, depth).extra
    noise = {key: torch.randn(it.shape, generator=chance) * length for key, it in extra.items()}
    return copy_of(replace(tokens, extra=noise))


def test_every_layer_but_the_first_may_have_tokens(nano: NanoBackend) -> None:
    assert nano.info.deep_layers == INFO.deep_layers == 5
    tokens = nano.new_tokens("bo", understand=4, generate=4, photos=cartoons(1, 2), seed=0)
    last = with_noise(tokens, 5, 1.0)
    assert torch.isfinite(nano.score(asked("is <bo> here?", last), ("yes", "no"))).all()
    with pytest.raises(SlotError, match="tokens for layer 6, and the last one here is 5"):
        nano.score(asked("is <bo> here?", with_noise(tokens, 6, 1.0)), ("yes", "no"))


def test_states_grow_so_much_that_deep_tokens_are_measured_by_them(nano: NanoBackend) -> None:
    tokens = nano.new_tokens("bo", understand=4, generate=4, photos=cartoons(1, 2), seed=0)
    packed = pack([[nano._introduce(tokens)]], nano.bagel.config, nano.bagel.device)
    with torch.no_grad():
        inputs, second = nano.bagel(packed, hidden=True).hidden[:2]
    learned = inputs.norm(dim=1) > 10  # words are far shorter than nano's concept tokens
    grown = second[learned].norm(dim=1) / inputs[learned].norm(dim=1)
    assert int(learned.sum()) == 9 and float(grown.mean()) > 20


def test_rows_for_facts_have_no_deep_tokens_and_painting_reads_those_of_the_looks(
    nano: NanoBackend,
) -> None:
    looks = nano.new_tokens("bo", understand=4, generate=4, photos=cartoons(1, 2), seed=0)
    plain = replace(looks, und=torch.cat((looks.und, torch.randn(3, nano.width))), fact_tokens=3)
    both = with_noise(plain, 2, 4.0)
    assert both.deep("und")[2].shape == (4, nano.width)
    without = replace(both, und=both.und[:4], fact_tokens=0)
    prompts = (asked("<bo> in the snow", one) for one in (both, without, plain))
    painted = [
        next(nano.gen(it, size=None, steps=1, guidance=None, seeds=(1,))).tobytes()
        for it in prompts
    ]
    assert painted[0] == painted[1] != painted[2]


def test_deep_tokens_that_layers_compute_again_have_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        nano = open_backend(Opening(device="cpu", activation_checkpointing=again))
        photos = cartoons(1, 2)
        tokens = nano.new_tokens("bo", understand=4, generate=4, photos=photos, seed=0)
        own = copy_of(with_noise(tokens, 3, 4.0), trainable=True)
        lessons = [
            Lesson(task="generate", kind="depict", request=to_turn("<bo>"), target=photo)
            for photo in photos
        ]
        torch.autograd.backward(nano.loss(nano.prepare(lessons), own, seed=0)["generate"])
        found.append([own.extra[key].grad for key in sorted(own.extra)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (bool(one.any()) and torch.equal(one, other))


def test_deep_tokens_stay_within_the_limit_and_an_interrupted_run_ends_in_the_same_bits(
    nano: NanoBackend, tmp_path: Path
) -> None:
    photos = cartoons(1, 4)
    start = nano.new_tokens("bo", understand=4, generate=4, photos=photos, seed=0)
    start = with_noise(start, 2, nano.norm_limit)
    assert float(start.deep("gen")[2].norm(dim=1).min()) > nano.norm_limit
    here = to_turn("is <bo> here?")
    groups: dict[str, list[Prepared]] = {}
    for photo in photos:
        for lesson in (
            Lesson(task="generate", kind="depict", request=to_turn("<bo>"), target=photo),
            Lesson(task="understand", kind="recognise", request=here, image=photo, answer="yes"),
        ):
            groups.setdefault(group_of(lesson), []).extend(nano.prepare([lesson]))
    hyper = Hyperparameters(steps=4, batch_size=4, learning_rate=0.02, depth=2)

    def stop(event: Progress) -> None:
        if event.step == 2:
            raise InterruptedError

    whole = optimise(nano, start, groups, HeldOut(), hyper).tokens
    with pytest.raises(InterruptedError):
        optimise(
            nano,
            start,
            groups,
            HeldOut(),
            hyper,
            save=lambda state: write_checkpoint(state, tmp_path),
            on_progress=stop,
        )
    taken_up = read_checkpoint(tmp_path)
    assert taken_up is not None and "deep.2.gen|mean" in taken_up.moments
    resumed = optimise(nano, start, groups, HeldOut(), hyper, resumed=taken_up).tokens
    for key, value in named_tensors(whole).items():
        assert torch.equal(named_tensors(resumed)[key], value), key
        assert float(value.norm(dim=1).max()) <= nano.norm_limit * 1.001, key
        assert not torch.equal(value, named_tensors(start)[key]), key


def test_seeds_painted_together_are_those_painted_alone(nano: NanoBackend) -> None:
    def paint(seeds: Sequence[int]) -> list[np.ndarray]:
        pictures = nano.gen(
            asked("a red cat in the snow"), size=None, steps=3, guidance=None, seeds=seeds
        )
        return [np.asarray(picture).astype(int) for picture in pictures]

    together = paint((4, 5, 6))
    for one, (alone,) in zip(together, map(paint, ((4,), (5,), (6,))), strict=True):
        assert np.abs(one - alone).max() <= 2
    assert np.abs(together[0] - together[1]).max() > 2


@pytest.mark.parametrize("size", [(0, 64), (64, 0), (-16, 64), (65, 64), (128, 64), (10_000, 16)])
def test_sizes_that_it_cannot_paint_are_refused(size: tuple[int, int], nano: NanoBackend) -> None:
    with pytest.raises(TaskError, match="cannot paint"):
        check_size(nano.info, size)


@pytest.mark.parametrize("size", [(32, 64), (16, 16)])
def test_smaller_sizes_are_painted(size: tuple[int, int], nano: NanoBackend) -> None:
    check_size(nano.info, size)
    (picture,) = nano.gen(asked("a cat"), size=size, steps=1, guidance=None, seeds=(0,))
    assert picture.size == size


def test_tokens_of_another_backbone_are_refused(nano: NanoBackend) -> None:
    rows = torch.zeros(1, nano.width + 1)
    stranger = ConceptTokens(name="bo", id=rows, und=rows, gen=rows)
    with pytest.raises(SlotError, match="<bo> was learned on another backbone"):
        nano.score(asked("is <bo> here?", stranger), ("yes", "no"))


# -- editing ---------------------------------------------------------------------------------------


def edited(nano: NanoBackend, source: Image) -> Image:
    (picture,) = nano.edit(
        source, asked("make it blue"), mask=None, steps=2, guidance=None, seeds=(3,)
    )
    return picture


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (1, 1), (16, 300)])
def test_an_edit_has_the_size_of_its_source(size: tuple[int, int], nano: NanoBackend) -> None:
    assert edited(nano, cartoons(1, 1)[0].resize(size)).size == size


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_kind_of_picture_is_edited(mode: str, nano: NanoBackend) -> None:
    assert edited(nano, cartoons(1, 1)[0].convert(mode)).mode == "RGB"


def test_what_an_edit_leaves_alone_is_the_source_to_the_bit(
    nano: NanoBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cartoons(1, 1)[0]
    decode = NanoBackend._decode
    painted = False

    def left_half_only(self: NanoBackend, tokens: Tensor, grid: tuple[int, int]) -> Image:
        nonlocal painted
        restored = decode(self, self._encode(source)[0], grid)
        if painted:  # the second picture is the painted one
            restored.paste((255, 0, 255), (0, 0, 16, 64))
        painted = True
        return restored

    monkeypatch.setattr(NanoBackend, "_decode", left_half_only)
    after = np.asarray(edited(nano, source))
    assert np.array_equal(after[:, 24:], np.asarray(source)[:, 24:])
    assert (after[:, :12] == (255, 0, 255)).all()


# -- words ---------------------------------------------------------------------------------------


def test_a_mention_without_tokens_is_one_word() -> None:
    words = NanoTokenizer()
    assert words.encode("is <sks> here?") == [*encode("is"), NAME, *encode("here?")]
    assert words.decode(words.encode("<sks>'s toy")) == "<sks>'s toy"


def test_pictures_are_squeezed_to_its_size() -> None:
    small = cartoons(1, 1)[0]
    assert square(small) is small
    for size in ((1, 1), (500, 20), (64, 128)):
        assert square(small.resize(size)).size == (64, 64)
