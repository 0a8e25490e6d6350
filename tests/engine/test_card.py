"""The grade and the advice follow from the figures, by rules in one place."""

from dataclasses import replace

import pytest

from omnipersona_cli.concepts.card import advice_in, card_lines, figures_in, grade_in
from omnipersona_cli.engine.card import (
    BARS,
    Card,
    Difference,
    Following,
    HardPhoto,
    Identity,
    Memorised,
    Recognition,
    advice_on,
)

GOOD = Card(
    recognition=Recognition(
        accuracy=0.95,
        low=0.7,
        high=1.0,
        threshold=1.2,
        auroc=0.99,
        calibration_error=0.1,
        photos=3,
        others=14,
        mistaken=1,
        held_out=True,
    ),
    identity=Identity(samples=0.7, photos=0.8, others=0.0, recognised=4),
    following=Following(right=4, asked=4),
    difference=Difference(answer=3.0, picture=0.2),
    memorised=Memorised(copies=0, nearest=0.6, photo=2, name="at grandma's.png"),
    hard=(),
    samples=4,
    held_out=True,
    rising=False,
)


def advice(card: Card) -> str:
    return "\n".join(advice_on(card, named=True))


def test_good_figures_are_good_and_need_no_advice():
    assert GOOD.grade == "good" and advice(GOOD) == ""


@pytest.mark.parametrize("name", sorted(BARS))
def test_one_figure_alone_decides(name):
    good, fair = BARS[name]

    def card(value: float) -> Card:
        assert GOOD.recognition and GOOD.identity
        changed = {
            "recognition": {"recognition": replace(GOOD.recognition, accuracy=value)},
            "identity": {"identity": replace(GOOD.identity, samples=0.8 * value)},
            "recognised": {
                "identity": replace(GOOD.identity, recognised=round(100 * value)),
                "samples": 100,
            },
            "following": {"following": Following(right=round(100 * value), asked=100)},
        }
        return replace(GOOD, **changed[name])

    assert card(good + 0.01).grade == "good"
    assert card(fair + 0.01).grade == "fair"
    assert card(fair - 0.02).grade == "weak"


def test_what_was_never_held_out_or_copies_a_photo_is_not_good():
    assert replace(GOOD, held_out=False).grade == "fair"
    assert replace(GOOD, recognition=None).grade == "fair"
    copied = replace(GOOD, memorised=replace(GOOD.memorised, copies=1))
    assert copied.grade == "fair" and "1 of 4 samples copy a photo" in advice(copied)
    assert replace(GOOD, memorised=replace(GOOD.memorised, copies=2)).grade == "weak"


def test_photos_that_the_backend_doubts_are_weak_and_the_card_says_so_first():
    card = replace(GOOD, doubts=("these are photographs",))
    assert card.grade == "weak"
    lines = list(card_lines(card.to_dict(named=False)))
    assert lines[:2] == ["report card: weak", "  ! these are photographs"]


@pytest.mark.parametrize("gap", [(0.0, 0.2), (1.0, 0.0)])
def test_a_concept_that_changes_nothing_is_weak(gap):
    card = replace(GOOD, difference=Difference(answer=gap[0], picture=gap[1]))
    assert card.grade == "weak" and "do not change with it" in advice(card)
    assert replace(GOOD, difference=Difference(answer=None, picture=0.2)).grade == "good"


def test_hard_photos_are_named_to_the_person_and_numbered_in_the_pack():
    hard = tuple(
        HardPhoto(photo=number, name=f"{number}.jpg", reason="blurred") for number in (3, 7)
    )
    card = replace(GOOD, hard=hard)
    assert "3.jpg, 7.jpg: blurred" in advice(card)
    kept = card.to_dict(named=False)
    assert "photos 3, 7: blurred" in kept["advice"][0]
    assert "jpg" not in str(kept) and "grandma" not in str(kept)
    assert card.to_dict(named=True)["hard"][0]["name"] == "3.jpg"


def test_advice_follows_the_weakness():
    assert GOOD.recognition
    doubtful = replace(
        GOOD,
        recognition=replace(GOOD.recognition, accuracy=0.8, mistaken=5),
        hard=(HardPhoto(photo=2, name="b.png", reason="missed"),),
        rising=True,
    )
    told = advice(doubtful)
    for part in ("--negatives DIR", "more angles", "b.png: held out", "more --steps"):
        assert part in told
    assert "more photos" not in told and "5 to 10" in advice(replace(GOOD, held_out=False))


def test_the_keys_of_the_card_are_stable():
    card = GOOD.to_dict(named=True)
    assert {key: sorted(value) for key, value in card.items() if isinstance(value, dict)} == {
        "recognition": [
            "accuracy", "auroc", "calibration_error", "held_out", "high", "low", "mistaken",
            "others", "photos", "threshold",
        ],
        "identity": ["others", "photos", "recognised", "samples", "share"],
        "following": ["asked", "right"],
        "difference": ["answer", "picture"],
        "memorised": ["copies", "name", "nearest", "photo"],
    }  # fmt: skip
    assert list(card) == [
        "verdict", "recognition", "identity", "following", "difference", "memorised", "hard",
        "samples", "held_out", "rising", "doubts", "instant", "advice",
    ]  # fmt: skip


def test_the_kept_card_reads_as_words():
    lines = list(card_lines(GOOD.to_dict(named=False)))
    assert lines[0] == "report card: good"
    told = "\n".join(lines)
    for part in ("0.95 (0.70 to 1.00)", "ECE 0.10", "4 of 4", "photo 2", "0.88 of the way"):
        assert part in told


@pytest.mark.parametrize(
    "strange",
    [
        {"verdict": ["good"], "recognition": {"accuracy": "high"}, "advice": "more"},
        {"verdict": "splendid", "identity": 3, "difference": {}, "advice": [1, None]},
        {"following": {"right": "3", "asked": 4}, "memorised": {"copies": 0.5, "photo": {}}},
        {"doubts": "these are photographs"},
    ],
)
def test_a_strangers_card_cannot_break_the_reader(strange):
    assert figures_in(strange) == [] and advice_in(strange) == [] and grade_in(strange) == ""
    assert list(card_lines(strange)) == []
    assert len(advice_in({"advice": ["x" * 10_000]})[0]) < 400
