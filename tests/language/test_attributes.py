"""Attributes that mean the same are one, whatever they are called."""

import pytest

from omnipersona_cli.language.attributes import SYNONYMS, attribute_key, usual_name


@pytest.mark.parametrize(
    ("told", "usual"),
    [
        ("food", "food"),
        ("favourite food", "food"),
        ("favorite meals", "food"),
        ("very best snack", "food"),
        ("house", "home"),
        ("place to live", "home"),
        ("best friend", "friend"),
        ("date of birth", "birthday"),
        ("summer house", "summer home"),
        ("toys", "toy"),
        ("favourite thing", "favourite thing"),
        ("least favourite thing", "least favourite thing"),
        ("favorite color", "favourite colour"),
        ("favourite place", "favourite place"),
        ("toy box", "toy box"),
    ],
)
def test_an_attribute_has_a_usual_name(told, usual):
    assert usual_name(told) == usual


def test_names_that_mean_the_same_compare_equal():
    assert attribute_key("favourite food") == attribute_key("meal") == attribute_key("snacks")
    assert attribute_key("food") != attribute_key("drink")
    assert attribute_key("favourite colour") != attribute_key("colour")
    assert attribute_key("favourite place") != attribute_key("home")


def test_no_synonym_leads_to_another_or_to_itself():
    assert not set(SYNONYMS) & set(SYNONYMS.values())
    assert all(usual_name(other) == name for other, name in SYNONYMS.items())
