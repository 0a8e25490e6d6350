"""nano's words: all of them are in its dictionary, and every answer is true."""

import random
from collections.abc import Iterable, Iterator

import pytest

from op_nano.tokenizer import FIRST_BYTE, FIRST_WORD, decode, encode
from op_toy.words import WHERE, coat, describe, fact_answer, thing_phrase, worn
from op_toy.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    SCENES,
    THINGS,
    Composition,
    article,
)
from pretraining import phrases
from pretraining.families import CHANGED, MOVED, REPLACED, Family, draw_family
from pretraining.phrases import Exchange

FAMILIES = [draw_family(seed, held_out=bool(seed % 2)) for seed in range(40)]


def said(family: Family, rng: random.Random) -> Iterator[str]:
    """Everything that can be said about a family."""
    who, pictures, facts = family.character, family.pictures, family.facts
    for picture in pictures:
        subjects = [phrases.mention(one, rng) for one in picture.characters]
        yield phrases.caption(picture, subjects, rng)
        yield phrases.full_caption(picture)
        if len(picture.characters) < 2:
            for _ in range(8):
                exchange = phrases.picture_question(picture, rng)
                yield from (exchange.question, exchange.answer)
    for _ in range(8):
        exchange = phrases.look_question(who, "it", rng)
        yield from (exchange.question, exchange.answer)
    for attribute, sentence in phrases.fact_sentences(facts, "it", rng).items():
        yield from (sentence, fact_answer(attribute, facts))
        yield phrases.fact_question(attribute, "it", rng)
    other = phrases.mention(pictures[REPLACED].characters[0], rng)
    yield phrases.recognise_question("it", rng)
    yield phrases.place_question("it", pictures[0], True, rng).question
    yield phrases.add_instruction(other, rng)
    yield phrases.remove_instruction("it", rng)
    yield phrases.replace_instruction("it", other, rng)
    yield phrases.move_instruction(pictures[MOVED].scene, "it", rng)
    yield phrases.change_instruction(who, pictures[CHANGED].characters[0], "it", rng)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.seed))
def test_every_phrase_is_made_of_words_that_nano_knows(family: Family) -> None:
    for text in said(family, random.Random(family.seed)):
        spelled = [one for one in encode(text) if FIRST_BYTE <= one < FIRST_WORD]
        assert not spelled, f"{text!r} spells {decode(spelled)!r}"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.seed))
def test_an_answer_comes_back_from_its_ids(family: Family) -> None:
    rng = random.Random(family.seed)
    for picture in family.pictures[:10]:
        for _ in range(10):
            answer = phrases.picture_question(picture, rng).answer
            assert decode(encode(answer)) == answer


def true_answer(question: str, picture: Composition) -> str | None:
    """The answer, worked out from the question's words; None for a form that is not known."""
    words = question.rstrip("?.").replace(",", " ").split()
    who = picture.characters[0] if picture.characters else None
    thing = picture.thing
    kinds = [word for word in words if word in KINDS]
    colours = [word for word in words if word in COLOURS]
    patterns = [word for word in words if word in PATTERNS]
    things = [word for word in words if word in THINGS]
    scenes = [word for word in words if word in SCENES]
    where = WHERE[picture.scene][0]
    if words[0] == "where" or question in ("what place is this?", "what is in the background?"):
        return where
    if question.startswith(("describe the picture", "what is in the", "what do you see")):
        return phrases.full_caption(picture)
    if words[0] == "do" or words[:2] == ["is", "there"]:
        present = {one.kind for one in picture.characters} | ({thing.what} if thing else set())
        return "yes" if {*kinds, *things} <= present else "no"
    if words[:2] == ["is", "it"] and scenes:
        return "yes" if scenes == [picture.scene] else "no"
    if "next" in words or question == "what thing is there?":
        return thing_phrase(thing) if thing else "nothing"
    if things and "colour" in words:
        return thing.colour if thing and thing.what == things[0] else None
    if who is None:
        return None
    named = list(who.colours if who.pattern != "plain" else who.colours[:1])
    if words[0] == "is":
        if "wearing" in words:
            wears = who.accessory is not None and who.accessory.what == words[-1]
            return "yes" if wears else "no"
        if patterns:
            return "yes" if patterns == [who.pattern] else "no"
        if colours:
            return "yes" if colours[0] in named else "no"
        return "yes" if kinds[-1:] == [who.kind] else "no"
    if "colour" in words and who.accessory and words[-1] == who.accessory.what:
        return who.accessory.colour
    if "colour" in words:
        return " and ".join(named)
    if "wear" in words or "wearing" in words:
        return worn(who.accessory)
    if "pattern" in words:
        return who.pattern
    if words[-2:] == ["look", "like"]:
        return describe(who)
    if "animal" in words and words[0] == "what" and question != "what is the animal?":
        return who.kind
    return describe(who)


def exchanges() -> Iterator[tuple[Composition, Exchange]]:
    for family in FAMILIES:
        rng = random.Random(family.seed)
        for picture in family.pictures[:10]:
            for _ in range(25):
                yield picture, phrases.picture_question(picture, rng)


def test_every_answer_agrees_with_the_picture() -> None:
    asked = set()
    for picture, exchange in exchanges():
        assert exchange.answer == true_answer(exchange.question, picture), exchange
        asked.add(exchange.question)
    assert len(asked) > 200


def test_yes_and_no_are_both_answers_to_the_same_forms() -> None:
    answers: dict[str, set[str]] = {}
    for _, exchange in exchanges():
        if exchange.answer in ("yes", "no"):
            form = " ".join(exchange.question.split()[:2])
            answers.setdefault(form, set()).add(exchange.answer)
    assert answers and all(found == {"yes", "no"} for found in answers.values())


def test_a_place_is_that_of_the_one_who_is_there() -> None:
    answers: dict[bool, set[str]] = {True: set(), False: set()}
    for family in FAMILIES:
        rng = random.Random(family.seed)
        for picture in family.pictures[:10]:
            for here in answers:
                exchange = phrases.place_question("<bo>", picture, here, rng)
                place = WHERE[picture.scene][0]
                if exchange.question == "where is <bo>?":
                    assert here and exchange.answer == place
                    continue
                right = here and exchange.question == f"is <bo> {place}?"
                assert exchange.answer == ("yes" if right else "no"), exchange
                answers[here].add(exchange.answer)
    assert answers == {True: {"yes", "no"}, False: {"no"}}


def test_facts_are_answered_with_what_was_stated() -> None:
    for family in FAMILIES:
        rng = random.Random(family.seed)
        told = phrases.fact_sentences(family.facts, "<bo>", rng)
        assert set(told) == {"toy", "home", "food"}
        for attribute in ("toy", "food"):
            assert fact_answer(attribute, family.facts) in told[attribute]
        assert family.facts.home in fact_answer("home", family.facts)
        assert family.facts.home in told["home"]


def test_an_instruction_names_what_changes() -> None:
    for family in FAMILIES:
        rng = random.Random(family.seed)
        new = family.pictures[CHANGED].characters[0]
        words = set(
            phrases.change_instruction(family.character, new, "it", rng).rstrip(".").split()
        )
        if new.accessory == family.character.accessory:
            assert new.colour in words
        elif new.accessory is not None:
            assert {new.accessory.what, new.accessory.colour} <= words
        scene = family.pictures[MOVED].scene
        assert scene in phrases.move_instruction(scene, "it", rng)


def test_a_description_says_every_word_of_a_look() -> None:
    for family in FAMILIES:
        who = family.character
        words = describe(who).split()
        assert who.kind in words and who.colour in words
        assert (who.second in words and who.pattern in words) or who.pattern == "plain"
        assert who.accessory is None or {who.accessory.what, who.accessory.colour} <= {*words}


def test_yes_or_no_is_asked_about_everything_and_a_no_is_as_often_right() -> None:
    """A share of "is it in the city?" that is mostly yes teaches the answer without a look."""
    told: dict[str, list[bool]] = {}
    for seed in range(1500):
        rng = random.Random(seed)
        picture = draw_family(100 + seed).pictures[0]
        exchange = phrases.yes_or_no_question(picture, rng)
        (character,) = picture.characters
        asked = exchange.question.removesuffix("?")
        truths: dict[str, tuple[str, Iterable[str]]] = {
            "kind": (article(character.kind), map(article, KINDS)),
            "thing": (article(picture.thing.what) if picture.thing else "", map(article, THINGS)),
            "scene": (WHERE[picture.scene][0], (WHERE[scene][0] for scene in SCENES)),
            "colour": (coat(character), COLOURS),
            "pattern": (character.pattern, PATTERNS),
            "worn": (character.accessory.what if character.accessory else "", ACCESSORIES),
        }
        about, true, value = next(
            (about, true, value)
            for about, (true, values) in truths.items()
            for value in values
            if asked.endswith(f" {value}")
        )
        right = value in true.split(" and ") if about == "colour" else value == true
        assert exchange.answer == ("yes" if right else "no"), exchange
        told.setdefault(about, []).append(right)
    shares = {about: sum(values) / len(values) for about, values in told.items()}
    assert set(shares) == {"kind", "thing", "scene", "colour", "pattern", "worn"}
    rare = {about: shares.pop(about) for about in ("thing", "worn")}
    assert all(0.4 < share < 0.6 for share in shares.values()), shares
    assert all(0.1 < share < 0.6 for share in rare.values()), (
        rare
    )  # some have nothing to say yes to
