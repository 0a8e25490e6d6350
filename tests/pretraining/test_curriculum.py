"""What a step of joint pretraining is made of, and how it is painted."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from op_bagel.model import Bagel, initialise
from op_bagel.packing import pack
from op_bagel.segments import Latent, Noise, SoftRows, Text
from op_nano.shape import CONFIG, SLOTS
from op_nano.tokenizer import NAME, decode, encode
from pretraining.curriculum import (
    GRID,
    SKS,
    Group,
    Look,
    Paint,
    Pool,
    Taught,
    Teacher,
    introduce,
    read_turn,
)
from pretraining.families import CHANGED, EMPTY, MOVED, PICTURES, POSED, REPLACED, draw_family
from pretraining.painting import (
    NOISED,
    ROOM,
    SHOWN_NOISED,
    Aligner,
    Forward,
    forward_of,
    paint,
    read,
)

EOS = CONFIG.special_tokens.eos_token_id


@pytest.fixture(scope="module")
def pool() -> Pool:
    families = [draw_family(seed) for seed in range(6)]
    rows = len(families) * PICTURES
    return Pool(
        families=families,
        vit=torch.randn(rows, 16, CONFIG.vit.hidden_size).half(),
        latents=torch.randn(rows, 16, CONFIG.latent_width).half(),
    )


@pytest.fixture
def slots() -> Tensor:
    return torch.randn(5, 1 + 2 * SLOTS, CONFIG.llm.hidden_size)


@pytest.fixture
def groups(pool: Pool, slots: Tensor) -> list[Group]:
    """Many steps' groups: alone, behind, pairs, alone, …"""
    steps = [Teacher(pool, seed).step([0, 1, 2, 3, 5], slots) for seed in range(12)]
    return [group for step in steps for group in step]


def samples_of(groups: Sequence[Group]) -> list[Taught]:
    return [sample for group in groups for sample in group.samples]


def test_a_step_follows_its_seed(pool: Pool, slots: Tensor) -> None:
    def ids(seed: int) -> list[list[list[int]]]:
        step = Teacher(pool, seed).step([0, 1, 2, 3, 5], slots)
        return [
            [list(turn.ids) for turn in sample if isinstance(turn, Text)]
            for sample in samples_of(step)
        ]

    assert ids(3) == ids(3) != ids(4)


def test_the_first_four_concepts_are_two_pairs_of_neighbours(pool: Pool) -> None:
    for seed in range(20):
        first, second, third, fourth, *rest = Teacher(pool, seed).concepts(5)
        assert (first ^ 1, third ^ 1) == (second, fourth)
        assert not {first, second, third, fourth} & {*rest}


def test_references_are_pictures_of_the_concept(pool: Pool) -> None:
    rows = Teacher(pool, 0).references([3, 5], 4)
    assert rows.shape == (2, 4)
    assert (rows // PICTURES).unique(dim=1).flatten().tolist() == [3, 5]
    assert int((rows % PICTURES).max()) < 4


def test_a_sample_ends_with_what_it_teaches(groups: list[Group]) -> None:
    for sample in samples_of(groups):
        paints = [isinstance(part, Paint) for part in sample]
        answers = [isinstance(part, Text) and part.loss for part in sample]
        assert (paints[-1] and sum(paints) == 1 and not any(answers)) or answers[-1]


def test_a_group_parts_into_answers_and_paintings(groups: list[Group]) -> None:
    for group in groups:
        answered, painted = group.answered(), group.painted()
        assert len(answered.samples) + len(painted.samples) == len(group.samples)
        assert all(isinstance(sample[-1], Paint) for sample in painted.samples)
        for part in (answered, painted):
            assert len(part.concepts) == (len(part.samples) if group.concepts else 0)


def test_questions_are_read_and_answers_are_taught_to_their_end(groups: list[Group]) -> None:
    for sample in samples_of(groups):
        turns = [turn for turn in sample if isinstance(turn, Text)]
        for before, after in zip([None, *turns], turns, strict=False):
            assert not (after.loss and (before is None or before.loss)), "an answer to nothing"
    answered = [samples for group in groups if (samples := group.answered().samples)]
    assert len(answered) > 3
    for samples in answered:
        packed = pack(
            [[part for part in one if not isinstance(part, Paint)] for one in samples], CONFIG
        )
        for number, sample in enumerate(samples):
            answers = [turn.ids for turn in sample if isinstance(turn, Text) and turn.loss]
            wanted = [label for ids in answers for label in (*ids, EOS)]
            assert packed.labels[packed.label_sample == number].tolist() == wanted


def test_edits_see_their_source_in_both_ways_and_draw_another_picture(
    groups: list[Group], pool: Pool
) -> None:
    edits = 0
    for sample in samples_of(groups):
        if any(isinstance(turn, Latent) for turn in sample):
            edits += 1
            at = next(i for i, turn in enumerate(sample) if isinstance(turn, Latent))
            source, look, target = sample[at], sample[at + 1], sample[-1]
            assert isinstance(source, Latent) and isinstance(target, Paint)
            assert isinstance(look, Look)
            assert torch.equal(source.tokens, pool.latents[look.row].float())
            assert look.row != target.row and look.row // PICTURES == target.row // PICTURES
    assert edits > 20


def test_an_edit_in_words_says_what_its_target_shows_in_both_directions(pool: Pool) -> None:
    seen = set()
    for seed in range(300):
        sample = Teacher(pool, seed)._edit(0, {})
        text = [decode(list(part.ids)) for part in sample if isinstance(part, Text)]
        looks = [part.row for part in sample if isinstance(part, Look)]
        if not text or not looks:
            continue
        target = sample[-1]
        assert isinstance(target, Paint)
        pictures = pool.families[0].pictures
        before, after = pictures[looks[0]], pictures[target.row]
        if after.characters and {looks[0], target.row} != {POSED, CHANGED}:
            (who,) = after.characters
            assert target.row == MOVED or looks[0] == MOVED or who.kind in text[0]
        elif after.characters:
            (old,), (new,) = before.characters, after.characters
            worn = new.accessory or old.accessory
            says = new.colour if new.accessory == old.accessory else worn and worn.what
            assert says and says in text[0]
        seen.add((looks[0], target.row))
    there = {(EMPTY, POSED), (REPLACED, POSED), (POSED, CHANGED), (POSED, MOVED)}
    assert seen == there | {(b, a) for a, b in there} | {(EMPTY, REPLACED), (REPLACED, EMPTY)}


def test_looks_and_paintings_are_pictures_of_the_pool(groups: list[Group], pool: Pool) -> None:
    rows = [p.row for s in samples_of(groups) for p in s if isinstance(p, Look | Paint)]
    assert len(rows) > 100 and all(0 <= row < len(pool.vit) for row in rows)


def test_samples_behind_a_concept_name_it_by_its_own_row(
    groups: list[Group], slots: Tensor
) -> None:
    named = 0
    for behind in groups[1::3]:
        assert len(behind.samples) == len(behind.concepts) >= 2 * len(slots)
        for index, sample in zip(behind.concepts, behind.samples, strict=True):
            for soft in (soft for turn in sample if isinstance(turn, Text) for soft in turn.soft):
                assert soft.expert == "und" and torch.equal(soft.rows, slots[index, :1])
                named += 1
    assert named > 100


def test_samples_alone_hold_no_slots(groups: list[Group]) -> None:
    for alone in groups[::3]:
        turns = [turn for sample in alone.samples for turn in sample]
        assert not any(turn.soft for turn in turns if isinstance(turn, Text))
        assert not alone.concepts


def test_pairs_introduce_both_concepts(groups: list[Group]) -> None:
    for pairs in groups[2::3]:
        for sample in pairs.samples:
            for turn in sample[:2]:
                assert isinstance(turn, Text)
                assert [len(soft.at) for soft in turn.soft] == [1, SLOTS, SLOTS]
                assert [soft.expert for soft in turn.soft] == ["und", "und", "gen"]


def test_a_turn_is_read_with_the_row_of_each_name() -> None:
    row = torch.zeros(1, 8)
    turn = read_turn("is <sks> beside <two>?", {SKS: row})
    assert list(turn.ids) == [*encode("is"), 0, *encode("beside"), NAME, *encode("?")]
    assert [(tuple(soft.at), soft.rows is row) for soft in turn.soft] == [((1,), True)]
    assert isinstance(turn.soft[0], SoftRows) and not turn.loss
    assert decode(list(read_turn("3 < 4", {}).ids)) == "3 < 4"


# -- painting --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bagel() -> Bagel:
    model = Bagel(CONFIG)
    initialise(model, 0)
    torch.nn.init.normal_(model.llm2vae.weight, std=0.1)
    return model


def noised(
    pool: Pool, row: int, noises: int, seed: int, logit: float = NOISED
) -> tuple[list[Noise], Tensor]:
    """What `paint` draws first from its generator, for one picture, and the noise alone."""
    generator = torch.Generator().manual_seed(seed)
    clean = pool.latents[row].float()
    noise = torch.randn(noises, *clean.shape, generator=generator)
    time = torch.sigmoid(logit + 1.1 * torch.randn(noises, generator=generator))
    drawn = [Noise(clean, GRID, float(t), one) for t, one in zip(time, noise, strict=True)]
    return drawn, noise


@pytest.mark.parametrize("edit", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_painting_behind_a_read_context_is_painting_in_one_run(
    bagel: Bagel, pool: Pool, slots: Tensor, behind: bool, edit: bool
) -> None:
    rows = {SKS: slots[1, :1]} if behind else {}
    source = [Latent(pool.latents[6].float(), GRID)] if edit else []
    context = [*source, read_turn("<sks> in the snow", rows)]
    sample: Taught = [*context, Paint(7)]
    group = Group(samples=[sample], concepts=[1] if behind else [])
    concepts = bagel.prefill(*[[introduce(own)] for own in slots])
    aligner, generator = Aligner(), torch.Generator().manual_seed(3)
    painted = paint(
        bagel, aligner, forward_of(bagel), pool, [group], concepts, noises=2, generator=generator
    )
    drawn, _ = noised(pool, 7, 2, 3, SHOWN_NOISED if edit or behind else NOISED)
    before = [introduce(slots[1])] if behind else []
    with torch.no_grad():
        whole = [bagel(pack([[*before, *context, one]], CONFIG)) for one in drawn]
    wanted = torch.stack([outputs.mse.mean() for outputs in whole])
    assert torch.allclose(painted.mse, wanted, atol=1e-4)
    assert painted.behind.tolist() == [behind] * 2


def test_contexts_keep_their_graph_and_no_concept_but_their_own(
    bagel: Bagel, pool: Pool, slots: Tensor
) -> None:
    slots = slots.clone().requires_grad_()
    concepts = bagel.prefill(*[[introduce(own)] for own in slots])
    samples: list[Taught] = [[read_turn("a cat", {}), Paint(0)], [Paint(1)], [Paint(2)]]
    cache = read(bagel, pool, samples, torch.tensor([-1, 3, -1]), concepts)
    assert cache.length == concepts.length + ROOM
    real = cache.real_rows().sum(1).tolist()
    assert real == [len(encode("a cat")) + 2, concepts.length, 0]
    (cache.keys[0] * cache.real_rows()[..., None, None]).sum().backward()  # type: ignore[no-untyped-call]
    assert slots.grad is not None
    assert slots.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == [3]
    words = bagel.language_model.model.embed_tokens.weight.grad
    assert words is not None and bool(words[encode("a cat")].abs().sum(1).all())


def test_painting_moves_the_generation_expert_and_leaves_the_other(
    bagel: Bagel, pool: Pool, slots: Tensor
) -> None:
    concepts = bagel.prefill(*[[introduce(own)] for own in slots])
    group = Group(samples=[[read_turn("a cat", {}), Paint(0)]])
    generator = torch.Generator().manual_seed(0)
    forward: Forward = forward_of(bagel)
    bagel.zero_grad()
    painted = paint(
        bagel, Aligner(), forward, pool, [group], concepts, noises=2, generator=generator
    )
    (painted.mse.mean() + painted.misaligned.mean()).backward()
    layer = bagel.language_model.model.layers[0]
    assert float(layer.mlp_moe_gen.down_proj.weight.grad.abs().sum()) > 0  # type: ignore[union-attr,operator]
    assert bagel.language_model.model.embed_tokens.weight.grad is not None, "the frame of a picture"
