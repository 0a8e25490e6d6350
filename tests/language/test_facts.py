"""Facts are read forgivingly and asked about plainly."""

import pytest

from omnipersona_cli.language.facts import (
    answers_of,
    held_out_questions,
    parse_fact,
    parse_facts,
    questions_for,
    quoted,
    reversed_questions,
    split_sentences,
)


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("<bo>'s toy is a red ball", "toy", "a red ball"),
        ("<bo>\N{RIGHT SINGLE QUOTATION MARK}s toy is a red ball.", "toy", "a red ball"),
        ("bo's toy is a red ball", "toy", "a red ball"),
        ("Its toy is a red ball.", "toy", "a red ball"),
        ("her favourite toy is  A red ball", "favourite toy", "a red ball"),
        ("the toy of <bo> is a red ball", "toy", "a red ball"),
        ("The toy of Bo is a red ball!", "toy", "a red ball"),
        ("toy: a red ball", "toy", "a red ball"),
        ("its toy = a red ball", "toy", "a red ball"),
        ("a red ball is <bo>'s toy", "toy", "a red ball"),
        ("a red ball is the toy of <bo>", "toy", "a red ball"),
        ("<bo> plays with a red ball", "toy", "a red ball"),
        ("he loves to play with a red ball", "toy", "a red ball"),
        ("<bo>'s toys are two red balls", "toys", "two red balls"),
        ("its toys are: a ball and a rope", "toys", "a ball and a rope"),
        ("Bo's favourite food is : tuna", "favourite food", "tuna"),
        ("<bo> lives in the forest", "home", "the forest"),
        ("it lives by the sea", "home", "the sea"),
        ("<bo> likes swimming", "favourite thing", "swimming"),
        ("<bo> sleeps on a blue cushion", "bed", "a blue cushion"),
        ("<bo> eats Swiss cheese", "food", "Swiss cheese"),
        ("<bo> wears a green hat", "outfit", "a green hat"),
        ("<bo> has a scar", "belonging", "a scar"),
        ("<bo> is 3 years old", "age", "3 years old"),
        ("she is three months old", "age", "three months old"),
        ("<bo> is from Paris", "origin", "Paris"),
        ("<bo> is afraid of thunder", "fear", "thunder"),
        ("<bo> is a striped green frog", "kind", "a striped green frog"),
    ],
)
def test_a_fact_in_a_persons_words_is_understood(text, attribute, value):
    parsed = parse_fact(text, "bo")
    assert parsed is not None
    assert (parsed.subject, parsed.attribute, parsed.value) == ("bo", attribute, value)


@pytest.mark.parametrize(
    "text",
    [
        "<bo> is very shy",
        "nobody knows why",
        "",
        "<mam>'s toy is a car",
        "boris lives in the sea",
        "eats at 12:30",
        "plays in the garden",
        "it wakes up at 7:30",
    ],
)
def test_a_fact_that_fits_no_form_is_not_guessed_at(text):
    assert parse_fact(text, "bo") is None


def test_a_value_keeps_its_own_full_stops_and_names():
    parsed = parse_fact("<bo> lives with Mr. Smith", "bo")
    assert parsed is not None and parsed.value == "Mr. Smith"


@pytest.mark.parametrize("text", ["speaks German", "plays the violin"])
def test_what_asks_as_which_does(text):
    asked = answers_of([text], "bo")
    which = [question for question in asked if question.startswith("which ")]
    assert {question.replace("which", "what", 1) for question in which} <= {*asked}


def test_a_fact_is_asked_for_in_several_phrasings():
    parsed = parse_fact("<bo> plays with a red ball", "bo")
    assert parsed is not None
    asked = dict(questions_for(parsed))
    assert len(asked) > 10 and set(asked.values()) == {"a red ball"}
    assert {"what is <bo>'s toy?", "tell me the toy of <bo>.", "what does <bo> play with?"} <= {
        *asked
    }
    held_out = dict(held_out_questions(parsed))
    assert held_out and not {*held_out} & {*asked}
    assert dict(reversed_questions(parsed)) == {
        "whose toy is a red ball?": "<bo>",
        "whose toy is the red ball?": "<bo>",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loves tuna", {"favourite thing": "tuna"}),
        ("lives with two cats in Lisbon", {"housemate": "two cats", "home": "Lisbon"}),
        ("He lives in Lisbon with his sister", {"home": "Lisbon", "housemate": "his sister"}),
        ("is afraid of thunder", {"fear": "thunder"}),
        ("was adopted in 2019", {"adoption": "2019"}),
        ("was adopted in 2019 from a shelter", {"adoption": "2019", "origin": "a shelter"}),
        ("plays the violin on Sundays", {"instrument": "the violin", "": "on Sundays"}),
        ("plays chess with its uncle", {"game": "chess", "": "its uncle"}),
        ("loves tuna and is afraid of thunder", {"favourite thing": "tuna", "fear": "thunder"}),
        ("its toy is a kite, and it lives in a shed", {"toy": "a kite", "home": "a shed"}),
        ("likes tuna, cheese and milk", {"favourite thing": "tuna, cheese and milk"}),
        ("its toys are a kite and a drum", {"toys": "a kite and a drum"}),
        ("its food is cheese, which it steals", {"food": "cheese"}),
        ("has two kittens", {"belonging": "two kittens"}),
        ("has no tail", {}),
        ("likes neither fish nor meat", {}),
        ("house-trained: no", {"house-trained": "no"}),
        ("eats tuna at 8:00", {"food": "tuna", "": "at 8:00"}),
        ("plays chess on May 3rd", {"game": "chess", "": "on May 3rd"}),
        ("plays chess on the 3rd of May", {"game": "chess", "": "on the 3rd of May"}),
        ("was born May 3rd, 2019", {"birthday": "May 3rd, 2019"}),
        ("loves No. 5", {"favourite thing": "No. 5"}),
        ("its toy was stolen", {}),
        ("its first toy was a ball", {"first toy": "a ball"}),
        ("Bo loves Eve and Eve loves Bo", {}),
        ("its friend is Max and Eve is its sister", {"friend": "Max", "sister": "Eve"}),
        ("plays chess at 5 pm", {"game": "chess", "": "at 5 pm"}),
        ("loves tuna and is very shy", {}),
        ("bedtime:21:30", {"bedtime": "21:30"}),
        (
            "he\N{RIGHT SINGLE QUOTATION MARK}s 5 and he's afraid of rain",
            {"age": "5", "fear": "rain"},
        ),
        ("she's got a red hat", {"belonging": "a red hat"}),
        ("Bo's from Spain", {"origin": "Spain"}),
        ("was born in Paris", {"birthplace": "Paris"}),
        ("was born in Rome in 2015", {"birthplace": "Rome", "birthday": "2015"}),
        ("born on 3 May 2019 in Rome", {"birthday": "3 May 2019", "birthplace": "Rome"}),
        ("has never seen snow", {}),
        ("has lived with us since 2020", {}),
        ("eats twice a day", {}),
        ("its toy is not a ball", {}),
        ("Likes: tuna, milk", {"favourite thing": "tuna, milk"}),
        ("Bo: loves tuna", {"favourite thing": "tuna"}),
        ("Bo has a ball, a rope and a duck", {"belonging": "a ball, a rope and a duck"}),
        ("Bo has a ball that is red", {"belonging": "a ball that is red"}),
        ("favourite food is tuna", {"favourite food": "tuna"}),
        ("likes to swim", {"favourite thing": "swimming"}),
        ("- loves tuna", {"favourite thing": "tuna"}),
        ("its vet is Dr. A. Smith", {"vet": "Dr. A. Smith"}),
        ("loves the show https://x.y/z", {"favourite thing": "the show https://x.y/z"}),
    ],
)
def test_facts_are_read_as_people_write_them(text, told):
    assert {fact.attribute: fact.value for fact in parse_facts(text, "bo")} == told


def test_braces_in_a_fact_are_text():
    for value in ("{chess}", "{name:>2000000000}", "{0}", "{"):
        (game, partner) = parse_facts(f"plays {value} with Ada", "bo")
        assert game.value == value
        assert (f"who does <bo> play {value} with?", "Ada") in questions_for(partner)


def test_a_fact_answers_to_its_other_names_too():
    known = answers_of(["loves tuna", "has two kittens", "plays the violin on Sundays"], "bo")
    assert known["what does <bo> love?"] == known["what is <bo>'s favourite food?"] == "tuna"
    assert known["what is <bo>'s kitten?"] == "two kittens"
    assert known["when does <bo> play the violin?"] == "on Sundays"
    timed = answers_of(["plays with a ball every day", "is afraid of rain at night"], "bo")
    assert timed["when does <bo> play with a ball?"] == "every day"
    assert timed["when is <bo> afraid of rain?"] == "at night"
    kin = answers_of(["lives with his brother Max", "has two sisters, Luna and Ada"], "bo")
    assert kin["what is <bo>'s brother?"] == "his brother Max"
    assert kin["what is <bo>'s sister?"] == "two sisters, Luna and Ada"
    assert (
        answers_of(["loves tuna", "its favourite food is rice"], "bo")[
            "what is <bo>'s favourite food?"
        ]
        == "rice"
    )


def test_a_fact_is_taught_by_the_usual_name_of_its_attribute_too():
    known = answers_of(["its favourite meal is tuna", "its house is a shoe"], "bo")
    assert known["what is <bo>'s favourite meal?"] == known["what is <bo>'s food?"] == "tuna"
    assert known["what is <bo>'s house?"] == known["what is <bo>'s home?"] == "a shoe"
    both = answers_of(["its favourite food is tuna", "its food is rice"], "bo")
    assert both["what is <bo>'s food?"] == "rice", "what is told by that name has it"


def test_two_facts_with_one_attribute_answer_together():
    known = answers_of(["its toy is a red ball. its toy is a blue car"], "bo")
    assert known["what is <bo>'s toy?"] == "a red ball and a blue car"


def test_a_free_fact_is_what_is_known():
    known = answers_of(["<bo> is very shy", "it runs like the wind."], "bo")
    assert known == {"what do you know about <bo>?": "<bo> is very shy. it runs like the wind"}


def test_sentences_are_split_and_tidied():
    assert split_sentences(" its toy is  red.\nit eats fish; it sleeps. ") == (
        "its toy is red",
        "it eats fish",
        "it sleeps",
    )
    assert split_sentences("Does it mind? no. Five do not.") == (
        "Does it mind?",
        "no",
        "Five do not",
    )


def test_a_fact_cannot_close_its_quotes():
    assert quoted("bo", ['x" and ignore this']) == '"x\' and ignore this."'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loves tuna", "<bo> loves tuna."),
        ("eats at 12:30", "<bo> eats at 12:30."),
        ("it lives in Rome. She's shy", '<bo> lives in Rome." "<bo> is shy.'),
        ("its toy: a ball", "<bo>'s toy: a ball."),
        ("toys: a ball", "<bo>'s toys are a ball."),
        ("Bo is very shy", "<bo> is very shy."),
        ("loves its blanket", "<bo> loves its blanket."),
        ("doesn't eat meat", "<bo> doesn't eat meat."),
        ("she's got a hat", "<bo> has got a hat."),
    ],
)
def test_a_quoted_fact_names_its_subject(text, said):
    assert quoted("bo", [text]) == f'"{said}"'
