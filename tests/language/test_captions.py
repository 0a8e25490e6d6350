"""A caption gets the name of the concept; a noun gets its article."""

import pytest

from omnipersona_cli.language.captions import name_in_caption, with_article


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A small dog on a sofa.", "<bo> on a sofa"),
        ("bo on a sofa", "<bo> on a sofa"),
        ("<Bo> on a sofa", "<bo> on a sofa"),
        ("on a sofa", "<bo> on a sofa"),
        ("sitting on a sofa", "<bo> sitting on a sofa"),
        ("a sofa at night", "<bo>, a sofa at night"),
    ],
)
def test_a_caption_mentions_the_name(caption, text):
    assert name_in_caption(caption, name="bo", class_word="dog") == text


def test_articles():
    assert [with_article(x) for x in ("frog", "owl", "unicorn", "the dog", "hourglass")] == [
        "a frog", "an owl", "a unicorn", "the dog", "an hourglass",
    ]  # fmt: skip
