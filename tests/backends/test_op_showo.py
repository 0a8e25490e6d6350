"""Show-o as a backend, on a tiny checkpoint in the released layout."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tiny_showo
import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, Opening, Prompt
from omnipersona_cli.engine.request import check_size
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.errors import TaskError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import BackendContract, drawing
from op_showo import placing
from op_showo.backend import ShowoBackend
from op_showo.footprint import footprint
from op_showo.loading import open_backend
from op_showo.model import ExtraVocabulary
from op_showo.region import covered, window
from op_showo.sampling import training_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_showo.write_tiny(tmp_path_factory.mktemp("showo") / "model")


@pytest.fixture(scope="module")
def showo(folder: Path) -> ShowoBackend:
    return cast(ShowoBackend, open_backend(Opening(model=str(folder), device="cpu")))


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


def test_a_request_that_its_concepts_crowd_out_is_refused(
    showo: ShowoBackend, tokens: ConceptTokens
) -> None:
    turn = to_turn("<bo> " + "a ball " * 40)
    crowded = Prompt(turns=(turn,), concepts=(tokens,))
    with pytest.raises(TaskError, match="before it paints") as raised:
        next(iter(showo.gen(crowded, size=None, steps=1, guidance=None, seeds=(1,))))
    assert raised.value.hint


def test_a_question_for_which_there_is_no_room_is_refused(showo: ShowoBackend) -> None:
    long = "a ball " * showo.net.config.llm.max_position_embeddings
    with pytest.raises(TaskError, match="too long"):
        next(iter(showo.say(Prompt(turns=(to_turn(long),)))))


def test_the_plan_of_an_edit_is_that_of_the_size_it_paints() -> None:
    opening = Opening(model="showlab/show-o-512x512")
    whole, edit = footprint(opening), footprint(opening, (640, 480))
    assert edit.passes["edit"] == whole.passes["edit"]
