"""An instruction says what is to be done, to what, and what can be seen of it afterwards."""

import pytest

from omnipersona_cli.language.instructions import read_instruction


@pytest.mark.parametrize(
    ("prompt", "intent"),
    [
        ("add <bo>", "add"),
        ("put <bo> here", "add"),
        ("put <bo> in the picture", "add"),
        ("add <bo> to the picture.", "add"),
        ("draw <bo> in this picture", "add"),
        ("bring in <bo>", "add"),
        ("add <bo>, on the left", "add"),
        ("add a cat next to <bo>", "add"),
        ("remove <bo>", "remove"),
        ("take <bo> away", "remove"),
        ("take <bo> out of the picture", "remove"),
        ("please remove the cat next to <bo>", "remove"),
        ("replace the cat with <bo>", "replace"),
        ("swap the cat for <bo>.", "replace"),
        ("turn the cat into <bo>", "replace"),
        ("change the cat to <bo>", "replace"),
        ("put <bo> in place of the cat", "replace"),
        ("put <bo> in its place.", "replace"),
        ("replace <bo> by a dog", "replace"),
        ("give <bo> a red hat", "give"),
        ("give <bo> its toy", "give"),
        ("put a red hat on <bo>", "give"),
        ("let <bo> wear blue glasses", "give"),
        ("dress <bo> in a yellow scarf", "give"),
        ("remove its hat", "give"),
        ("take <bo>'s hat off", "give"),
        ("remove the hat from <bo>", "give"),
        ("make <bo> blue", "change"),
        ("paint <bo> green", "change"),
        ("turn <bo> purple", "change"),
        ("change <bo> to red", "change"),
        ("change the colour of <bo> to red", "change"),
        ("change its color to red", "change"),
        ("make <bo> a little bigger", "other"),
        ("make it snow", "other"),
        ("make it snow white", "change"),
        ("put <bo> in the snow", "scene"),
        ("move <bo> on the beach", "scene"),
        ("show it in space", "scene"),
        ("change the background to the forest", "scene"),
        ("make the background the city", "scene"),
        ("now in the desert", "scene"),
        ("put <bo> on the left", "move"),
        ("move <bo> to the right side of the picture", "move"),
        ("move it to the bottom left corner", "move"),
        ("put <bo> next to the tree", "move"),
        ("make the picture look old", "other"),
        ("sharpen it", "other"),
        ("could you please put <bo> on the beach?", "scene"),
        ("put sunglasses on <bo>, please", "give"),
        ("put a red hat on its head", "give"),
        ("put <bo> in a red dress", "give"),
        ("put the ball on the left", "move"),
        ("put the ball next to <bo>", "other"),
        ("put <bo> to the left of the tree", "move"),
        ("put <bo> and <mam> on a beach", "scene"),
        ("put <bo> outside", "scene"),
        ("take away the ball", "remove"),
        ("remove the dog and add <bo>", "replace"),
        ("take the ball away and put <bo> there", "replace"),
        ("put <bo> in the dog's place", "replace"),
        ("turn <bo> to the left", "other"),
        ("turn this photo into a painting", "other"),
        ("make <bo>'s hat red", "change"),
        ("paint its hat red", "change"),
        ("swap <bo> and <mam>", "other"),
    ],
)
def test_an_instruction_is_known_by_its_verb_and_what_stands_behind_it(prompt, intent):
    assert read_instruction(prompt).intent == intent


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("replace the cat with <bo>", "cat"),
        ("put <bo> in place of the old dog", "old dog"),
        ("remove the red hat.", "red hat"),
        ("remove the cat on the left", "cat"),
        ("remove <bo>", ""),
        ("replace it by <bo>", ""),
        ("add <bo>", ""),
    ],
)
def test_what_is_to_go_is_named_by_the_instruction(prompt, target):
    assert read_instruction(prompt).target == target


@pytest.mark.parametrize(
    ("prompt", "present", "absent"),
    [
        ("add <bo> and <mam>", ("bo", "mam"), ()),
        ("replace the cat with <bo>", ("bo",), ()),
        ("replace <bo> with a cat", (), ("bo",)),
        ("replace <mam> with <bo>", ("bo",), ("mam",)),
        ("put <bo> in place of <mam>", ("bo",), ("mam",)),
        ("remove <bo>", (), ("bo",)),
        ("remove the cat next to <bo>", ("bo",), ()),
        ("remove the ball that <bo> plays with", ("bo",), ()),
        ("remove the man holding <bo>", ("bo",), ()),
        ("remove everything except <bo>", ("bo",), ()),
        ("remove everyone but <bo>", ("bo",), ()),
        ("replace the cat next to <bo> with a dog", (), ()),
        ("replace <bo>'s hat with a red cap", (), ()),
        ("turn <bo>'s hat into a crown", (), ()),
        ("replace <bo>'s friend with <mam>", ("mam",), ()),
        ("change <bo>'s background to a beach", ("bo",), ()),
        ("put <bo> in the snow", ("bo",), ()),
        ("make <bo> blue", (), ()),
        ("give <bo> a hat", (), ()),
        ("remove the dog and put <bo> in its place", ("bo",), ()),
        ("add <bo>'s toy", (), ()),
        ("swap <bo> and <mam>", ("bo", "mam"), ()),
    ],
)
def test_who_ought_to_be_recognised_afterwards_follows_from_the_words(prompt, present, absent):
    found = read_instruction(prompt)
    assert (found.present, found.absent) == (present, absent)


@pytest.mark.parametrize(
    ("prompt", "question", "answer"),
    [
        ("give <bo> a red hat.", "what is it wearing?", "a red hat"),
        ("put a red hat on <bo>", "what is it wearing?", "a red hat"),
        ("take off its hat", "what is it wearing?", "nothing"),
        ("replace <bo>'s hat with a red cap", "what is it wearing?", "a red cap"),
        ("make <bo> blue", "what colour is it?", "blue"),
        ("put <bo> in the snow", "where is it?", "in the snow"),
        ("change the background to the forest", "where is it?", "the forest"),
        ("put <bo> on the left", "", ""),
        ("make <bo> bigger", "", ""),
        ("give <bo> a red ball", "", ""),
        ("give the dog a hat", "what is it wearing?", "a hat"),
        ("take <bo>'s toy away", "", ""),
        ("make the background blue", "", ""),
    ],
)
def test_a_question_about_the_result_tells_whether_it_was_done(prompt, question, answer):
    found = read_instruction(prompt)
    assert (found.question, found.answer) == (question, answer)


def test_what_is_put_somewhere_is_an_addition_where_it_is_not_there_yet():
    for prompt in ("put <bo> in the snow", "put <bo> on the left"):
        assert read_instruction(prompt).if_absent.intent == "add"
    for prompt in ("make <bo> blue", "change the background to the snow"):
        found = read_instruction(prompt)
        assert found.if_absent == found


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("add <bo>, on the left", "on the left"),
        ("put <bo> on the left", "on the left"),
        ("put <bo> in the snow", "in the snow"),
        ("add <bo>", ""),
    ],
)
def test_where_something_is_to_stand_is_said(prompt, place):
    assert read_instruction(prompt).place == place
