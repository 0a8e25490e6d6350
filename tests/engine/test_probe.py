"""What tokens know is asked without the facts' text."""

import pytest

from omnipersona_cli.engine.memory import recall
from omnipersona_cli.engine.probe import judged
from omnipersona_cli.engine.tokens import from_slot


@pytest.mark.parametrize(
    ("value", "said", "expected"),
    [
        ("a red ball", "red ball.", "known"),
        ("a red ball", "a blue ball", "wrong"),
        ("a red ball", "", "unknown"),
        ("in the forest", "the forest", "known"),
        ("in the forest", "under the forest", "wrong"),
    ],
)
def test_an_answer_is_known_wrong_or_unknown(value, said, expected):
    assert judged(value, said) == expected


@pytest.mark.parametrize("asked", ["food", "favourite food", "meal", "favorite snacks"])
def test_tokens_are_asked_by_the_name_that_was_taught(learned, monkeypatch, asked):
    heard = []

    def say(prompt, **_):
        heard.append(prompt.text)
        return iter(["tuna"])

    monkeypatch.setattr(learned.backend, "say", say)
    tokens = from_slot(learned.library.load("bo"), learned.backend)
    recall(learned.backend, tokens, asked, threshold=0.0)
    assert heard == ["what is <bo>'s food?"]
