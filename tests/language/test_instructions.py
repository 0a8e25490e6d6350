"""An instruction says what is to be done, and to what."""

import pytest

from omnipersona_cli.language.instructions import intent_of, target_of


@pytest.mark.parametrize(
    ("prompt", "intent"),
    [
        ("add <bo>", "add"),
        ("put <bo> next to the tree", "add"),
        ("remove <bo>", "remove"),
        ("take <bo> away", "remove"),
        ("replace the cat with <bo>", "replace"),
        ("turn the cat into <bo>", "replace"),
        ("make it blue", "other"),
    ],
)
def test_an_instruction_is_known_by_its_verb(prompt, intent):
    assert intent_of(prompt) == intent


@pytest.mark.parametrize(
    ("prompt", "target"),
    [("replace the cat with <bo>", "cat"), ("remove the red hat.", "red hat"), ("add <bo>", "")],
)
def test_what_is_to_go_is_named_by_the_instruction(prompt, target):
    assert target_of(prompt) == target
