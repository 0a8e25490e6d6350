"""Lance as a backend, on a tiny checkpoint in the released layout."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from tiny_lance import CONFIG, PLAIN, frozen, opened, prompt, whole, write_tiny
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Opening, Prompt, Task
from omnipersona_cli.engine import Keeping, Settings, Subject, learn
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.family.tokens import kmeans
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_bagel import painting
from op_bagel.cache import Cache
from op_bagel.model import Bagel
from op_bagel.sampling import sample_latents
from op_bagel.segments import Latent, Noise, Sample, Segment, Text, Vit
from op_bagel.tokenizer import QwenTokenizer
from op_lance.backend import LanceBackend
from op_lance.layout import length, placed
from op_lance.lessons import sample_of
from op_lance.loading import open_backend
from op_lance.pictures import ShapeRule

TEMPLATES = json.loads(
    (Path(__file__).parent.parent / "goldens" / "lance" / "cases.json").read_text()
)["templates"]
SHOWN = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("weights") / "lance")


@pytest.fixture(scope="module")
def lance(folder: Path) -> LanceBackend:
    return opened(folder)


@pytest.fixture(scope="module")
def tokens(lance: LanceBackend) -> ConceptTokens:
    photos = [drawing("red", seed) for seed in range(3)]
    return lance.new_tokens("bo", understand=3, generate=2, photos=photos, seed=0)


class TestLance(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, lance: LanceBackend) -> Backend:
        return lance

    @pytest.fixture
    def photos(self) -> list[Image]:
        return [drawing("red", seed) for seed in range(4)]

    @pytest.fixture
    def others(self) -> list[Image]:
        return [drawing("blue", seed) for seed in (10, 11)]

    @pytest.fixture
    def weights(self, backend: LanceBackend) -> Mapping[str, Tensor]:
        return frozen(whole(backend))

    @pytest.fixture
    def text_table(self, backend: LanceBackend) -> Tensor:
        return backend.mixture.language_model.model.embed_tokens.weight

    @pytest.fixture
    def again(self, folder: Path) -> Callable[[Opening], Backend]:
        return lambda opening: open_backend(replace(opening, model=str(folder)))

    @pytest.fixture
    def encoder_calls(self, backend: LanceBackend) -> Callable[[], int]:
        return lambda: backend.encoders.encoded


# -- the template ----------------------------------------------------------------------------------


@pytest.fixture
def read(lance: LanceBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Segment]]:
    """Everything that enters a context, one after another."""
    found: list[Segment] = []
    real = Bagel.prefill

    def prefill(self: Bagel, *contexts: Sample, cache: Cache | None = None) -> Cache:
        found.extend(segment for context in contexts for segment in context)
        return real(self, *contexts, cache=cache)

    monkeypatch.setattr(Bagel, "prefill", prefill)
    monkeypatch.setattr(lance, "_shown", None)
    yield found


def rendered(lance: LanceBackend, segments: Sequence[Segment]) -> str:
    """Segments as the template writes them; a learned row is a "?"."""
    assert isinstance(lance.tokenizer, QwenTokenizer)
    (mark,) = lance.tokenizer.encode("?")
    text, ids = "", []
    for segment in segments:
        if isinstance(segment, Text):
            soft = {int(place) for one in segment.soft for place in one.at}
            ids += [mark if place in soft else it for place, it in enumerate(segment.ids)]
        else:  # letters of several ids never stand on both sides of a picture
            text += lance.tokenizer.tokens.decode(ids) + SHOWN
            ids = []
    return text + str(lance.tokenizer.tokens.decode(ids))


def test_an_understanding_context_is_the_releases(lance: LanceBackend, read: list[Segment]) -> None:
    lance.score(prompt("is it red?"), ("yes",), image=drawing("red", 1))
    wanted = TEMPLATES["x2t"].replace("{S}", TEMPLATES["x2t_example_system"])
    wanted = wanted.replace("{Q}", "is it red?").partition("{A}")[0]
    assert rendered(lance, read) + "\n" == wanted  # the last token is read with the answer


def test_a_painting_context_is_the_releases(lance: LanceBackend, read: list[Segment]) -> None:
    next(lance.gen(prompt("a cat"), **PLAIN))
    *context, bare = read
    wanted = TEMPLATES["t2i"].replace("{P}", "a cat").partition(SHOWN)[0]
    assert rendered(lance, context) == wanted
    without = TEMPLATES["t2i_unconditional"].partition(SHOWN)[0]
    assert rendered(lance, [context[0], bare]) == without


def test_an_editing_context_is_the_releases(lance: LanceBackend, read: list[Segment]) -> None:
    edited = {name: value for name, value in PLAIN.items() if name != "size"}
    next(lance.edit(drawing("red", 1), prompt("make it blue"), mask=None, **edited))
    head, vit, latent, *rest, bare = read
    assert isinstance(vit, Vit) and isinstance(latent, Latent)
    wanted = TEMPLATES["image_edit"].replace("{P}", "make it blue").rpartition(SHOWN)[0]
    assert rendered(lance, [head, vit, latent, *rest]) == wanted
    assert rendered(lance, [bare]) == wanted.rpartition("make it blue")[2]
    assert vit.frame_shift == CONFIG.anchor - length(head)


def test_each_concept_is_a_line_of_the_system_turn(
    lance: LanceBackend, tokens: ConceptTokens, read: list[Segment]
) -> None:
    mam = replace(tokens, name="mam")
    next(lance.gen(prompt("<bo>, <mam> and <nobody>", tokens, mam), **PLAIN))
    introduction = "<|im_start|>system\n" + 2 * "? is?????.\n"
    assert rendered(lance, read[:1]) == introduction
    context = rendered(lance, read[:-1])
    assert context.startswith(introduction + "Describe the image")
    assert "<|im_start|>user\n?, ? and <nobody><|im_end|>" in context


def test_special_tokens_in_a_request_are_text(lance: LanceBackend, read: list[Segment]) -> None:
    next(lance.gen(prompt("<|im_end|>"), **PLAIN))
    request = read[1]
    assert isinstance(request, Text)
    assert CONFIG.special_tokens.eos_token_id not in request.ids


def test_earlier_turns_are_lines_before_the_request(
    lance: LanceBackend, read: list[Segment]
) -> None:
    turns = (to_turn("what is it?"), to_turn("a ball"), to_turn("which colour?"))
    "".join(lance.say(Prompt(turns=turns), max_tokens=1))
    said = "system\nYou are a helpful assistant.<|im_end|>\n"
    assert said in rendered(lance, read)
    assert "user\nwhat is it?\na ball\nwhich colour?<|im_end|>" in rendered(lance, read)


# -- contexts --------------------------------------------------------------------------------------


def test_concepts_and_picture_are_read_once_for_several_questions(
    lance: LanceBackend, tokens: ConceptTokens, read: list[Segment]
) -> None:
    for text in ("is <bo> here?", "is it <bo>?", "where is <bo>?"):
        lance.score(prompt(text, tokens), ("yes",), image=drawing("red", 1))
    soft = [one for one in read if isinstance(one, Text) and len(one.soft) == 3]
    assert len(soft) == 1 and len([one for one in read if isinstance(one, Vit)]) == 1
    lance.score(prompt("is it?"), ("yes",), image=drawing("red", 1))
    assert len([one for one in read if isinstance(one, Vit)]) == 2, "another prefix"


@pytest.mark.parametrize("anchored", [False, True])
@torch.inference_mode()
def test_several_pictures_stand_in_one_context(
    folder: Path, tokens: ConceptTokens, anchored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance = opened(folder, understanding_anchor=anchored)
    seen: list[Segment] = []
    real = Bagel.prefill

    def prefill(self: Bagel, *contexts: Sample, cache: Cache | None = None) -> Cache:
        seen.extend(contexts[0])
        return real(self, *contexts, cache=cache)

    monkeypatch.setattr(Bagel, "prefill", prefill)
    pictures = [drawing("red", 1), drawing("blue", 2).resize((64, 40))]
    context = lance._context(prompt("which is <bo>?", tokens), pictures)
    shifts = [one.frame_shift for one in seen if isinstance(one, Vit)]
    assert len(shifts) == 2 and shifts[0] == shifts[1] and bool(shifts[0]) == anchored
    whole = real(lance.mixture, placed(seen, anchor=CONFIG.anchor if anchored else None))
    assert int(whole.positions[0]) == int(context.positions[0]) == sum(map(length, seen))
    for found, wanted in zip(context.keys + context.values, whole.keys + whole.values, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recount", [False, True])
def test_guidance_leans_away_from_the_request_alone(
    folder: Path, tokens: ConceptTokens, recount: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance = opened(folder, recount=recount)
    pairs: list[tuple[Cache, Cache]] = []

    def spy(model: Bagel, full: Cache, *, no_text: Cache, **more: Any) -> Tensor:
        pairs.append((full, no_text))
        return sample_latents(model, full, no_text=no_text, **more)

    monkeypatch.setattr(painting, "sample_latents", spy)
    source = drawing("red", 1)
    next(lance.gen(prompt("a cat", tokens), **PLAIN))
    edited = {name: value for name, value in PLAIN.items() if name != "size"}
    next(lance.edit(source, prompt("a cat", tokens), mask=None, **edited))
    cat, after = len("a cat"), len(lance.template.assistant)
    for full, bare in pairs:
        assert full.length - bare.length == cat
        kept = bare.length - after  # template, concept and pictures are those of the full context
        for a, b in zip(full.keys, bare.keys, strict=True):
            assert torch.equal(a[:, :kept], b[:, :kept])
        same = torch.allclose(full.keys[0][:, -after:], bare.keys[0][:, -after:], atol=1e-6)
        assert same is not recount
    (painted, bare), (edited_, bare_) = pairs
    assert int(painted.positions[0]) - int(bare.positions[0]) == cat
    assert int(edited_.positions[0]) == int(bare_.positions[0]) < edited_.length


def test_an_answer_without_a_picture_is_learned_as_it_is_scored(
    lance: LanceBackend, tokens: ConceptTokens
) -> None:
    turn = to_turn("where does <bo> live?")
    fact = Lesson(task="understand", kind="fact", request=turn, answer="in the forest")
    loss = lance.loss(lance.prepare([fact]), tokens, seed=0)["understand"].detach()
    score = lance.score(Prompt(turns=(turn,), concepts=(tokens,)), (fact.answer,))
    assert float(loss) * (len(fact.answer) + 1) == pytest.approx(-float(score), rel=1e-4)


def test_an_answer_about_a_picture_is_learned_as_it_is_scored(
    lance: LanceBackend, tokens: ConceptTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance, "lesson_sizes", lance.sizes)
    one = lesson("understand")
    loss = lance.loss(lance.prepare([one]), tokens, seed=0)["understand"].detach()
    asked = Prompt(turns=(one.request,), concepts=(tokens,))
    score = lance.score(asked, (one.answer,), image=one.image)
    assert float(loss) * (len(one.answer) + 1) == pytest.approx(-float(score), rel=1e-4)


# -- learning --------------------------------------------------------------------------------------


def lesson(task: Task) -> Lesson:
    red, blue = drawing("red", 1), drawing("blue", 2)
    if task == "understand":
        turn = to_turn("is <bo> here?")
        return Lesson(task=task, kind="recognise", request=turn, image=red, answer="yes")
    if task == "generate":
        return Lesson(task=task, kind="depict", request=to_turn("draw <bo>"), target=red)
    return Lesson(task=task, kind="edit", request=to_turn("add <bo>"), image=blue, target=red)


def moved(lance: LanceBackend, tokens: ConceptTokens, task: Task) -> set[str]:
    trainable = copy_of(tokens, trainable=True)
    losses = lance.loss(lance.prepare([lesson(task)]), trainable, seed=0)
    torch.autograd.backward(losses[task])
    parts = {"id": trainable.id, "und": trainable.und, "gen": trainable.gen}
    return {name for name, it in parts.items() if it.grad is not None and bool(it.grad.any())}


def test_a_mixed_batch_gives_the_losses_of_its_tasks(
    lance: LanceBackend, tokens: ConceptTokens
) -> None:
    said, drawn = lesson("understand"), lesson("edit")
    alone = lance.loss(lance.prepare([said]), tokens, seed=0)["understand"]
    mixed = lance.loss(lance.prepare([drawn, said, lesson("generate")]), tokens, seed=0)
    assert set(mixed) == {"understand", "generate", "edit"}
    assert torch.allclose(mixed["understand"], alone, atol=1e-5)


def test_an_edit_lesson_is_painted_where_its_source_stands(
    lance: LanceBackend, tokens: ConceptTokens
) -> None:
    (one,) = lance.prepare([lesson("edit")])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # whole: nothing is dropped for guidance
        sample = sample_of(one, tokens, lance.template, lance.config, start=20, draw=draw)
    head, vit, latent, _, *drawn = sample
    assert isinstance(vit, Vit) and isinstance(latent, Latent)
    assert 20 + length(head) + vit.frame_shift == CONFIG.anchor
    assert len(drawn) == 2
    for noise in drawn:
        assert isinstance(noise, Noise) and noise.start == length(head) + length(vit)


def test_tokens_start_from_what_the_experts_see(lance: LanceBackend, tokens: ConceptTokens) -> None:
    photos = [drawing("red", seed) for seed in range(3)]
    seen = torch.cat([lance.encoders.asked(photo, lance.lesson_sizes)[0] for photo in photos])
    likeness = torch.nn.functional.cosine_similarity(tokens.und.detach(), kmeans(seen, 3, 0))
    assert float(likeness.min()) > 0.999  # the rows may be shortened, to the norm that packs allow


@pytest.mark.parametrize(("asked", "side"), [(0, 64), (32, 32), (512, 64)])
def test_lessons_may_have_smaller_pictures(folder: Path, asked: int, side: int) -> None:
    lance = open_backend(Opening(model=str(folder), device="cpu", lesson_size=asked))
    (one,) = lance.prepare([lesson("generate")])
    assert one.grid == (side // 16, side // 16)


def test_photos_that_tokens_started_from_are_not_encoded_again_to_be_learned(
    lance: LanceBackend,
) -> None:
    photos = [drawing("red", seed) for seed in range(60, 66)]
    ask, paint = to_turn("is <bo> here?"), to_turn("a photo of <bo>")
    before = lance.encoders.encoded
    lance.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    assert lance.encoders.encoded - before == 2 * len(photos)
    lance.prepare(
        [
            lesson
            for photo in photos
            for lesson in (
                Lesson(task="understand", kind="recognise", request=ask, image=photo, answer="yes"),
                Lesson(task="generate", kind="depict", request=paint, target=photo),
            )
        ]
    )
    assert lance.encoders.encoded - before == 2 * len(photos)


def test_an_interrupted_run_ends_in_the_same_pack(
    lance: LanceBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path / "home"))
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        drawing("red", seed).save(tmp_path / "photos" / f"{seed}.png")
    subject = Subject(photos=[tmp_path / "photos"], name="bo")
    settings = Settings(steps=3, batch_size=3, understand_tokens=2, generate_tokens=2)

    def stop(event: Any) -> None:
        if event.phase == "learning" and event.step == 2:
            raise KeyboardInterrupt

    straight = Keeping(out=tmp_path / "straight.opconcept", samples=0)
    whole = learn(subject, settings, straight, backend=lance)
    again = Keeping(out=tmp_path / "again.opconcept", samples=0, resume=True)
    with pytest.raises(KeyboardInterrupt):
        learn(subject, settings, again, backend=lance, on_progress=stop)
    resumed = learn(subject, settings, again, backend=lance)
    assert resumed.resumed_from > 0 and resumed.pack.hash == whole.pack.hash


def test_weights_that_are_read_late_may_serve_gradients(folder: Path) -> None:
    lance = opened(folder)
    rows = [0.1 * torch.randn(count, lance.width) for count in (1, 3, 2)]
    tokens = ConceptTokens(name="bo", id=rows[0], und=rows[1], gen=rows[2])
    lance.score(prompt("is <bo> here?", tokens), ("yes",), image=drawing("red", 1))
    assert moved(lance, tokens, "generate") == {"id", "gen"}
    assert moved(lance, tokens, "edit") == {"id", "gen"}


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "latent", "seen"),
    [
        ((1600, 1200), (896, 672), (756, 560)),  # a bucket's shape: the bucket
        ((1500, 1000), (928, 624), (812, 532)),  # none cuts anything off
        ((3000, 1000), (1024, 336), (896, 280)),  # as long as the latent table
        ((10, 5000), (16, 1024), (28, 896)),
    ],
)
def test_an_edited_picture_keeps_its_own_shape(
    size: tuple[int, int], latent: tuple[int, int], seen: tuple[int, int]
) -> None:
    assert ShapeRule(768, 16, 1024).size(*size) == latent
    assert ShapeRule(672, 28, 896).size(*size) == seen


@pytest.mark.parametrize("size", [(150, 100), (300, 40), (9, 90)])
def test_an_edit_reaches_every_part_of_its_source(
    lance: LanceBackend, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("op_bagel.painting.UNCHANGED", -1.0)  # nothing is taken for unchanged
    source = drawing("red", 1).resize(size)
    edited = {name: value for name, value in PLAIN.items() if name != "size"}
    painted = next(lance.edit(source, prompt("make it snow"), mask=None, **edited))
    assert painted.size == size
    for corner in ((0, 0), (size[0] - 1, 0), (0, size[1] - 1), (size[0] - 1, size[1] - 1)):
        assert painted.getpixel(corner) != source.getpixel(corner)
