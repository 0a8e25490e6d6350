"""BAGEL as a backend, on a tiny random model: routing, pictures, and what it refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_bagel
import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import BackendInfo, ConceptTokens, Lesson, Prompt, Task
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.errors import SlotError
from omnipersona_cli.family.tokens import kmeans
from omnipersona_cli.language.mentions import to_turn
from op_bagel import painting
from op_bagel.backend import BagelBackend, Dropout, Fit
from op_bagel.cache import Cache
from op_bagel.config import SpecialTokens
from op_bagel.lineage import fresh_tokens
from op_bagel.model import Bagel, initialise
from op_bagel.painting import keep_unchanged
from op_bagel.pictures import rgb
from op_bagel.sampling import Guidance, sample_latents
from op_bagel.segments import Latent, Noise, Text, Vit
from op_bagel.vae import AutoEncoder, VAEConfig

VAE = VAEConfig(ch=8, ch_mult=(1, 2, 1), z_channels=3, num_res_blocks=1, groupnorm_groups=4)
CONFIG = replace(
    tiny_bagel.CONFIG,
    llm=replace(tiny_bagel.CONFIG.llm, vocab_size=140),
    vit=replace(tiny_bagel.CONFIG.vit, image_size=32),
    vae=VAE,
    special_tokens=SpecialTokens(
        bos_token_id=128, eos_token_id=129, start_of_image=130, end_of_image=131
    ),
    max_latent_size=4,
)
INFO = BackendInfo(
    name="tiny",
    summary="For tests.",
    opens="nowhere:nothing",
    tasks={"understand": "native", "generate": "native", "edit": "native"},
    default_model="random",
    sizes=((32, 32),),
    pictures="any",
    licence="Apache-2.0",
    memory_gb=0.1,
    steps=2,
)


class Letters:
    """A tokenizer of ASCII letters."""

    unnamed = "<sks>"

    def encode(self, text: str) -> list[int]:
        return [*text.encode("ascii", "replace")]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(one) for one in ids if one < 128)


def fitted(image: Image) -> Image:
    return image.resize((32, 32))


@pytest.fixture(scope="module")
def tiny() -> BagelBackend:
    bagel = Bagel(CONFIG)
    initialise(bagel, 0)
    torch.manual_seed(0)
    torch.nn.init.normal_(bagel.llm2vae.weight, std=0.2)
    return BagelBackend(
        info=INFO,
        model="random",
        fingerprint="tiny@0",
        bagel=bagel.eval(),
        vae=AutoEncoder(VAE).eval(),
        tokenizer=Letters(),
        fit=Fit(vae=fitted, vit=fitted),
        guidance=Guidance(text=2.0),
        edit_guidance=Guidance(text=2.0, image=1.5),
        shift=1.0,
    )


def picture(seed: int) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return images.fromarray(pixels).resize((32, 32))


@pytest.fixture
def tokens(tiny: BagelBackend) -> ConceptTokens:
    photos = [picture(seed) for seed in range(3)]
    return tiny.new_tokens("bo", understand=3, generate=2, photos=photos, seed=0)


def lesson(task: Task) -> Lesson:
    if task == "understand":
        turn = to_turn("is <bo> here?")
        return Lesson(task=task, kind="recognise", request=turn, image=picture(1), answer="yes")
    if task == "generate":
        return Lesson(task=task, kind="depict", request=to_turn("draw <bo>"), target=picture(1))
    turn = to_turn("add <bo>")
    return Lesson(task="edit", kind="edit", request=turn, image=picture(2), target=picture(1))


def moved(tiny: BagelBackend, tokens: ConceptTokens, task: Task) -> set[str]:
    trainable = copy_of(tokens, trainable=True)
    losses = tiny.loss(tiny.prepare([lesson(task)]), trainable, seed=0)
    assert set(losses) == {task}
    torch.autograd.backward(losses[task])
    parts = {"id": trainable.id, "und": trainable.und, "gen": trainable.gen}
    return {name for name, it in parts.items() if it.grad is not None and bool(it.grad.any())}


def test_an_understanding_lesson_moves_the_identifier_and_the_understanding_part(
    tiny: BagelBackend, tokens: ConceptTokens
) -> None:
    assert moved(tiny, tokens, "understand") == {"id", "und"}


@pytest.mark.parametrize("task", ["generate", "edit"])
def test_a_painting_lesson_moves_the_identifier_and_the_generation_part(
    task: Task, tiny: BagelBackend, tokens: ConceptTokens
) -> None:
    assert moved(tiny, tokens, task) == {"id", "gen"}


def test_both_parts_are_read_in_every_task(tiny: BagelBackend, tokens: ConceptTokens) -> None:
    for task in INFO.tasks:
        batch = tiny.prepare([lesson(task)])
        kept = tiny.loss(batch, tokens, seed=0)[task]
        for part in ("und", "gen"):
            rows: Tensor = getattr(tokens, part)
            parts = {"id": tokens.id, "und": tokens.und, "gen": tokens.gen, part: rows + 1.0}
            other = ConceptTokens(name="bo", **parts)
            assert not torch.equal(tiny.loss(batch, other, seed=0)[task], kept), (task, part)


def test_a_mixed_batch_gives_the_losses_of_its_tasks(
    tiny: BagelBackend, tokens: ConceptTokens
) -> None:
    said, drawn = lesson("understand"), lesson("edit")
    alone = tiny.loss(tiny.prepare([said]), tokens, seed=0)["understand"]
    mixed = tiny.loss(tiny.prepare([drawn, said, lesson("generate")]), tokens, seed=0)
    assert set(mixed) == {"understand", "generate", "edit"}
    assert torch.allclose(mixed["understand"], alone, atol=1e-5)


def test_the_prepared_lesson_marks_where_the_name_stands(tiny: BagelBackend) -> None:
    (one,) = tiny.prepare([lesson("understand")])
    assert one.at == [len("is ")]
    assert tiny.tokenizer.decode(one.request) == "is < here?"
    assert tiny.tokenizer.decode(one.answer) == "yes"
    assert one.features is not None and one.source is None and one.target is None


def test_an_edit_is_prepared_with_source_and_target(tiny: BagelBackend) -> None:
    (one,) = tiny.prepare([lesson("edit")])
    assert one.features is not None and one.source is not None and one.target is not None
    assert one.source.shape == one.target.shape and one.grid == (4, 4)
    assert not torch.equal(one.source, one.target)


def test_each_picture_is_encoded_once(tiny: BagelBackend) -> None:
    shown, wanted = picture(20), picture(21)
    turn = to_turn("add <bo>")
    lessons = [
        Lesson(task="edit", kind="edit", request=turn, image=shown, target=wanted) for _ in range(4)
    ]
    before = tiny.encoded
    tiny.prepare(lessons)
    assert tiny.encoded - before == 3  # one look, two latents


def test_photos_that_tokens_started_from_are_not_encoded_again_to_be_learned(
    tiny: BagelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(photo: Image) -> Image:
        return photo.resize((16, 16))

    monkeypatch.setattr(tiny, "fit", Fit(vae=rgb, vit=rgb, learn_vae=small, learn_vit=small))
    photos = [picture(seed) for seed in range(60, 66)]
    before = tiny.encoded
    tiny.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    assert tiny.encoded - before == 2 * len(photos)
    turn, add = to_turn("is <bo> here?"), to_turn("add <bo>")
    lessons = [
        lesson
        for photo in photos
        for lesson in (
            Lesson(task="understand", kind="recognise", request=turn, image=photo, answer="yes"),
            Lesson(task="edit", kind="edit", request=add, image=photos[0], target=photo),
        )
    ]
    tiny.prepare(lessons)
    assert tiny.encoded - before == 2 * len(photos)


def test_shares_of_painting_lessons_are_learned_from_without_part_of_their_context(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    (edit,) = tiny.prepare([lesson("edit")])
    shares = {Text: 0.1, Latent: 0.3, Vit: 0.5}
    monkeypatch.setattr(tiny, "dropout", Dropout(request=0.1, latents=0.3, features=0.5))
    draw = torch.Generator().manual_seed(0)
    many = [[*map(type, tiny._painted(edit, tokens, draw))] for _ in range(400)]
    assert all(kinds[-2:] == [Noise, Noise] for kinds in many)
    for kind, share in shares.items():
        assert sum(kind not in kinds for kinds in many) / 400 == pytest.approx(share, abs=0.06)
    with torch.no_grad():  # a held-out lesson
        whole = [*map(type, tiny._painted(edit, tokens, draw))]
    assert whole == [Latent, Vit, Text, Noise, Noise]


def test_a_few_looks_are_remembered_and_can_still_be_learned_from(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Prompt(turns=(to_turn("is it?"),))
    before = tiny.encoded
    tiny.score(question, ("yes",), image=picture(1))  # the lesson's picture, in inference mode
    looked = tiny.encoded
    assert looked - before <= 1
    assert moved(tiny, tokens, "understand") == {"id", "und"}
    assert tiny.encoded == looked
    monkeypatch.setattr(tiny._look, "most", 4 * tiny._features(picture(1)).nbytes)
    for seed in range(30, 34):
        tiny.score(question, ("yes",), image=picture(seed))
    tiny.score(question, ("yes",), image=picture(1))
    assert tiny.encoded - looked == 4 + 1


def test_tokens_start_from_what_the_experts_see(tiny: BagelBackend, tokens: ConceptTokens) -> None:
    seen = torch.cat([tiny._features(picture(seed)) for seed in range(3)])
    centres = kmeans(seen, 3, 0)  # the rows may be shortened, to the norm that packs promise
    likeness = torch.nn.functional.cosine_similarity(tokens.und.detach(), centres)
    assert float(likeness.min()) > 0.999
    mean = centres.mean(0, keepdim=True)
    assert float(torch.nn.functional.cosine_similarity(tokens.id.detach(), mean)) > 0.999
    assert all(row.requires_grad and row.is_leaf for row in tokens.parameters())


def test_tokens_stay_within_the_norm_that_packs_promise(tiny: BagelBackend) -> None:
    rows = torch.full((2, tiny.width), 1e6)
    fresh = fresh_tokens("bo", rows[:1], rows, rows, norm_limit=tiny.norm_limit)
    for row in fresh.parameters():
        assert float(row.detach().norm(dim=1).max()) < tiny.norm_limit


def test_tokens_of_another_width_are_refused(tiny: BagelBackend) -> None:
    rows = torch.zeros(1, tiny.width // 2)
    stranger = ConceptTokens(name="bo", id=rows, und=rows, gen=rows)
    with pytest.raises(SlotError, match="another backbone") as error:
        tiny.score(Prompt(turns=(to_turn("is <bo> here?"),), concepts=(stranger,)), ("yes",))
    assert "op learn" in error.value.hint


def test_guidance_leans_away_from_a_context_that_knows_nothing_of_the_concept(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    without: list[Cache | None] = []

    def spy(*given: Any, no_text: Cache | None = None, **more: Any) -> Tensor:
        without.append(no_text)
        return sample_latents(*given, no_text=no_text, **more)

    monkeypatch.setattr(painting, "sample_latents", spy)
    plain: Any = {"steps": 2, "guidance": None, "seeds": (0,)}
    with_bo = Prompt(turns=(to_turn("add <bo>"),), concepts=(tokens,))
    next(tiny.gen(with_bo, size=None, **plain))
    next(tiny.edit(picture(2), with_bo, mask=None, **plain))
    next(tiny.edit(picture(2), Prompt(turns=(to_turn("make it red"),)), mask=None, **plain))
    assert without[0] is None, "nothing at all"
    known, bare = without[1:]
    assert known is not None and bare is not None and known.length == bare.length
    assert all(map(torch.equal, known.keys, bare.keys)), "the source alone"


def test_a_concept_is_introduced_once_for_all_prompts_and_again_when_it_has_moved(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    introduced: list[str] = []

    def spy(tokens: ConceptTokens) -> Text:
        introduced.append(tokens.name)
        return BagelBackend._introduce(tiny, tokens)

    monkeypatch.setattr(tiny, "_introduce", spy)
    tokens = replace(tokens, und=tokens.und * 0.9)  # no other test has asked about these
    mam = replace(tokens, name="mam", und=tokens.und * 0.5)
    for some in (tokens, mam, copy_of(tokens)):
        for question in ("is <bo> here?", "what is <bo>?"):
            tiny.score(Prompt(turns=(to_turn(question),), concepts=(some,)), ("yes",))
    assert introduced == ["bo", "mam"]
    moved = replace(tokens, gen=tokens.gen + 1e-4)
    tiny.score(Prompt(turns=(to_turn("what is <bo>?"),), concepts=(moved,)), ("yes",))
    assert introduced == ["bo", "mam", "bo"]


def test_questions_read_the_generation_expert_once_as_the_memory_plan_says(
    tiny: BagelBackend, tokens: ConceptTokens
) -> None:
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in tiny.bagel.named_modules()
        if "moe_gen" in name
    ]
    own = replace(tokens, und=tokens.und * 0.8)  # no other test has asked about these
    read = []
    for number, question in enumerate(("is <bo> here?", "what is <bo>?", "where is <bo>?")):
        prompt = Prompt(turns=(to_turn(question),), concepts=(own,))
        tiny.score(prompt, ("yes", "no"), image=picture(number))
        list(tiny.say(prompt, image=picture(number), max_tokens=3))
        read.append(len(ran))
    for hook in hooks:
        hook.remove()
    assert read[0] and read == [read[0]] * 3


def test_pictures_painted_a_few_at_once_and_branch_by_branch_are_those_of_one_batch(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(turns=(to_turn("add <bo>"),), concepts=(tokens,))
    plain: Any = {"mask": None, "steps": 2, "guidance": None, "seeds": (0, 1, 2)}
    whole = list(tiny.edit(picture(2), prompt, **plain))
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(painting, "AT_ONCE", 1)
    monkeypatch.setattr(painting, "TOGETHER", 0)
    parts = tiny.edit(picture(2), prompt, on_step=lambda *step: steps.append(step), **plain)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other)).max() <= 1
    assert steps == [(done, 6) for done in range(1, 7)]


# -- keep_unchanged --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (101, 77), (1, 1)])
def test_an_edit_that_changes_nothing_keeps_the_source_to_the_bit(size: tuple[int, int]) -> None:
    source, restored = picture(3).resize(size), picture(4)
    kept = keep_unchanged(source, restored, restored.copy())
    assert kept.size == size and kept.tobytes() == source.tobytes()


def test_pixels_outside_a_change_are_the_sources_to_the_bit() -> None:
    source = picture(3).resize((128, 128))
    restored = source.resize((64, 64))
    painted = restored.copy()
    painted.paste((255, 0, 255), (0, 0, 20, 64))
    after, before = (np.asarray(it) for it in (keep_unchanged(source, restored, painted), source))
    assert np.array_equal(after[:, 56:], before[:, 56:])
    assert (after[:, 4:32] == (255, 0, 255)).all()


def test_a_small_blur_everywhere_is_not_a_change() -> None:
    source = picture(3)
    brighter = source.point(lambda value: min(255, value + 5))
    assert keep_unchanged(source, source, brighter).tobytes() == source.tobytes()


# -- speaking and opening --------------------------------------------------------------------------


def test_what_it_says_uses_the_name_that_was_asked_for(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(Letters().encode("it is <sks>. <sks> is here"))
    monkeypatch.setattr("op_bagel.backend.decode_text", lambda *_, **__: said)
    prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
    assert "".join(tiny.say(prompt)) == "it is <bo>. <bo> is here"


@pytest.mark.parametrize(
    ("question", "told"),
    [("who is <bo>'s friend?", "<bo>"), ("who is <bo>'s friend, <mei>?", "one of them")],
)
def test_what_it_says_of_several_concepts_is_no_guess(
    tiny: BagelBackend,
    tokens: ConceptTokens,
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    told: str,
) -> None:
    said = iter(Letters().encode("<sks> is"))
    monkeypatch.setattr("op_bagel.backend.decode_text", lambda *_, **__: said)
    both = (tokens, replace(tokens, name="mei"))
    assert "".join(tiny.say(Prompt(turns=(to_turn(question),), concepts=both))) == f"{told} is"


def test_a_name_that_is_no_concept_of_the_prompt_is_read_as_it_is_written(
    tiny: BagelBackend, tokens: ConceptTokens
) -> None:
    turn = to_turn("<bo>'s friend is <mei>")
    read = tiny._turn(turn, {"bo": tokens})
    assert tiny.tokenizer.decode(list(read.ids[1:])) == "'s friend is <mei>"
    nobody = tiny._turn(turn, {})
    assert tiny.tokenizer.decode(list(nobody.ids)) == "<sks>'s friend is <sks>"
    one, other = (
        tiny.score(Prompt(turns=(to_turn(text),), concepts=(tokens,)), ["yes"])
        for text in ("is it <mei>?", "is it <max>?")
    )
    assert not torch.equal(one, other)


def test_an_answer_is_learned_as_it_is_scored(tiny: BagelBackend, tokens: ConceptTokens) -> None:
    asked = to_turn("who is the friend of <bo>?")
    one = Lesson(task="understand", kind="describe", request=asked, answer="<mei>, not <bo>")
    (ready,) = tiny.prepare([one])
    assert tiny.tokenizer.decode(list(ready.answer)) == "<mei>, not <sks>"
    learned = tiny.loss([ready], copy_of(tokens), seed=0)["understand"]
    prompt = Prompt(turns=(asked,), concepts=(tokens,))
    assert tiny.score(prompt, [one.answer])[0] == pytest.approx(
        -float(learned) * (len(ready.answer) + 1), rel=1e-4
    )


def test_weights_that_could_not_be_read_are_read_with_the_next_request(
    tiny: BagelBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def read() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError

    monkeypatch.setattr(tiny, "_unread", [read])
    with pytest.raises(MemoryError):
        tiny._need_rest()
    tiny._need_rest()
    tiny._need_rest()
    assert len(tries) == 2
