"""Presence from scores, facts from facts, all else from the model."""

from dataclasses import replace

import pytest

from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine import ask
from omnipersona_cli.engine.tokens import from_slot
from omnipersona_cli.errors import MissingError, PhotoError, UsageError
from omnipersona_cli.testing import SketchBackend, drawing


@pytest.fixture
def answer(learned):
    return lambda question, **more: ask(
        question, backend=learned.backend, library=learned.library, **more
    )


def test_presence_is_answered_with_a_probability(answer):
    here, gone = (answer("is <bo> here?", image=drawing(colour, 50)) for colour in ("red", "blue"))
    assert (here.text, gone.text) == ("yes", "no")
    assert here.probability > 0.5 > gone.probability
    assert here.source == "score"


def test_two_concepts_must_both_be_there(answer):
    both = answer("are <bo> and <mam> here?", image=drawing("green", 50))
    assert set(both.probabilities) == {"bo", "mam"} and both.text != "yes"


def test_one_of_two_is_enough_and_the_probability_says_the_same(answer):
    one = answer("is <bo> or <mam> here?", image=drawing("red", 50))
    assert one.text == "yes" and one.probability == max(one.probabilities.values()) > 0.5


@pytest.mark.parametrize("question", ["whose toy is the red ball?", "Whose toy is a red ball?"])
def test_whose_something_is_was_told(answer, question):
    said = answer(question, concepts=["bo", "mam"])
    assert (said.text, said.source, said.facts) == ("<bo>", "facts", ("<bo>'s toy is a red ball",))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("what is <bo>'s toy?", "a red ball"),
        ("What is the toy of <bo>?", "a red ball"),
        ("where does <bo> live?", "the forest"),
        ("what does <bo> play with?", "a red ball"),
        (
            "what are the toys of <bo> and <mam>?",
            "<bo>'s toy is a red ball; <mam>'s toy is a blue car",
        ),
    ],
)
def test_a_fact_answers_what_it_says(answer, question, expected):
    said = answer(question)
    assert (said.text, said.source) == (expected, "facts")
    assert said.facts


@pytest.mark.parametrize(
    "question",
    [
        "what is <bo>'s car?",
        "which hobby does <bo> have?",
        "what is <bo> afraid of?",
        "what is <bo>'s home town?",  # its home is told, a town is not
    ],
)
def test_what_nobody_told_is_not_made_up(answer, question):
    said = answer(question)
    assert (said.text, said.source) == ("I do not know", "unknown")
    assert said.missing is not None and said.missing[0] == "bo"


@pytest.mark.parametrize("question", ["what is <bo>'s age?", "what's the star sign of <bo>?"])
def test_a_picture_is_no_ground_to_make_up_what_nobody_told(answer, question):
    said = answer(question, image=drawing("red", 50))
    assert (said.text, said.source) == ("I do not know", "unknown")


@pytest.mark.parametrize("picture", [None, drawing("red", 50)])
def test_a_favourite_colour_is_not_the_own_one(answer, picture, monkeypatch):
    monkeypatch.setattr(SketchBackend, "say", lambda *given, **options: iter(["red"]))
    said = answer("what is <bo>'s favourite colour?", image=picture)
    assert (said.text, said.missing) == ("I do not know", ("bo", "favourite colour"))
    said = answer("what is <bo>'s own colour?", image=picture)
    assert (said.text, said.source) == ("red", "tokens")


@pytest.mark.parametrize(
    ("question", "hint"),
    [("what is bo's toy?", '"<bo> …"'), ("is mam here?", '"<mam> …"'), ("a bow for mamma?", "")],
)
def test_a_name_without_brackets_brings_a_hint(answer, question, hint):
    beats = []
    answer(question, on_progress=beats.append)
    notes = [it.note for it in beats if "no concept is mentioned" in it.note]
    assert len(notes) == bool(hint) and all(hint in note for note in notes)


def test_looks_are_the_models_to_tell(answer):
    assert answer("what is <bo>'s colour?").source == "tokens"


def test_its_means_the_only_concept_there_is(answer):
    assert answer("what is its toy?", concepts=["bo"]).text == "a red ball"


@pytest.mark.parametrize(
    "question", ["What kind of thing is <bo>?", "what kind of animal is <bo>?", "what pet is <bo>"]
)
def test_what_kind_of_thing_it_is_was_told(answer, question):
    said = answer(question)
    assert (said.text, said.source) == ("a disc", "facts")


def test_a_model_that_does_not_lead_is_spared_what_it_cannot_use(learned):
    heard = []

    class Small(SketchBackend):
        def say(self, prompt, **options):
            heard.append([turn.text for turn in prompt.turns])
            yield "a disc"

    def answer(question):
        return ask(question, backend=Small(), library=learned.library)

    for question in ("tell me about <bo>.", "who is <bo>?", "what do you know about <bo>?"):
        told = answer(question)
        assert told.text == "<bo> is a disc. <bo>'s toy is a red ball. <bo> lives in the forest."
        assert told.source == "facts" and len(told.facts) == 2
    assert answer("describe <bo>.").text == answer("why does <bo> like the forest?").text
    assert heard == [
        ["describe <bo>."],
        ['"<bo> lives in the forest."', "why does <bo> like the forest?"],
    ]


@pytest.mark.parametrize("leads", ["model", "grammar"])
def test_a_small_models_yes_to_an_open_question_is_no_answer(learned, leads):
    class Small(SketchBackend):
        info = replace(SketchBackend.info, replay_leads=leads)

        def say(self, prompt, **options):
            yield from ("ye", "s")

    def answer(question):
        pieces = []
        said = ask(question, backend=Small(), library=learned.library, on_text=pieces.append)
        assert "".join(pieces) == said.text
        return said.text, said.source

    unknown = ("yes", "tokens") if leads == "model" else ("I do not know", "unknown")
    for question in ("how old is <bo>?", "what color is <bo>'s collar?", "is <bo> old or young?"):
        assert answer(question) == unknown
    assert answer("does <bo> have a tail?") == ("yes", "tokens")


def test_looks_are_answered_without_the_tokens_that_were_taught_facts(learned, tmp_path):
    shown = []

    class Listening(SketchBackend):
        def say(self, prompt, **options):
            shown.extend(prompt.concepts)
            yield "a disc"

    pack = learned.library.load("bo")
    slots = {}
    for name, slot in pack.slots.items():
        recipe = {**slot.about["recipe"], "fact_tokens": 3}
        slots[name] = replace(slot, about={**slot.about, "recipe": recipe})
    library = Library(tmp_path)
    library.save(replace(pack, slots=slots, hash=""))
    for image in (None, drawing("red", 50)):
        ask("describe <bo>.", image=image, backend=Listening(), library=library)
    rows = len(from_slot(pack, learned.backend).und)
    assert [len(one.und) for one in shown] == [rows - 3] * 2


def test_the_model_answers_the_rest_with_the_facts_quoted(learned):
    heard = []

    class Listening(SketchBackend):
        info = replace(SketchBackend.info, replay_leads="model")

        def say(self, prompt, **options):
            heard.append([turn.text for turn in prompt.turns])
            yield from ("a ", "disc")

    pieces = []
    said = ask(
        "why does <bo> like the forest?",
        backend=Listening(),
        library=learned.library,
        on_text=pieces.append,
    )
    assert said.text == "a disc" and pieces == ["a ", "disc"]
    quotes = '"<bo> lives in the forest." "<bo>\'s toy is a red ball."'
    assert heard == [[quotes, "why does <bo> like the forest?"]], "what may matter comes first"


def test_words_that_cannot_be_answered_are_refused(answer):
    with pytest.raises(MissingError, match="<bob>") as caught:
        answer("is <bob> here?")
    assert "<bo>" in caught.value.hint
    with pytest.raises(UsageError, match="empty"):
        answer("  ")
    with pytest.raises(UsageError, match="characters"):
        answer("why " * 5000)
    with pytest.raises(PhotoError, match="1x1"):
        answer("is <bo> here?", image=drawing("red", 1).resize((1, 1)))


@pytest.mark.parametrize(
    ("question", "phase"),
    [("is <bo> here?", "looking"), ("what is it?", "reading the question")],
)
def test_a_bar_is_gone_before_the_answer_comes(learned, question, phase):
    seen = []
    ask(
        question,
        image=drawing("red", 77),
        concepts=("bo",),
        backend=learned.backend,
        library=learned.library,
        on_progress=lambda event: seen.append(event.phase),
        on_text=lambda text: seen.append("said"),
    )
    first = seen.index("said")
    assert seen[first - 2 : first] == [phase, ""]
