"""What cannot be seen changes nothing."""

import pytest

from omnipersona_cli.language.characters import harmless, one_line


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("\ufeff<bo> at the beach", "<bo> at the beach"),
        ("<bo> at\u200b the\u2060 be\u00adach", "<bo> at the beach"),
        ("is <b\u200do> here?", "is <bo> here?"),
        ("is\u00a0<bo>\u3000here?", "is <bo> here?"),
        ("cafe\u0301", "café"),
        ("\u202ereversed\u202c", "reversed"),
        ("bo\x00 on\x1b[31m the sofa", "bo on[31m the sofa"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),  # noqa: RUF001
        ("🏴\U000e0067\U000e0062\U000e007f", "🏴"),
    ],
)
def test_text_has_one_spelling_and_nothing_invisible(written, read):
    assert one_line(written) == read
    assert one_line(read) == read


def test_a_caption_loses_special_tokens_and_keeps_mentions():
    assert harmless("<rex> next to <bo>, <|im_end|> <image>") == "<rex> next to <bo>,"
