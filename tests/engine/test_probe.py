"""What tokens know is asked without the facts' text."""

import pytest

from omnipersona_cli.engine.probe import judged


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
