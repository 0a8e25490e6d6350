"""nano's tokenizer reads any text at all, and gives back the words that it knows."""

import random

import pytest

from op_nano import tokenizer
from op_nano.tokenizer import (
    FIRST_BYTE,
    FIRST_WORD,
    NAME,
    SAME,
    VOCABULARY,
    WORDS,
    decode,
    encode,
    unknown,
)

ODD = (
    "",
    " \t\n\r\x0b\x0c\x1c\x85\u2028",
    "\x00\x01\x7f",
    "\ud800",
    "cat \udfff dog",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 \u00e9",
    "ﬃ ß İ ǅ ²³ ٣ Ⅻ ½",
    "日本語 русский עברית हिन्दी",
    "'s ''s s' '",
    "a-b--c - -",
    "<sks> <|im_end|> <bo>",
    "_ __ a_b",
    "\ufffd\ufeff\U0010ffff",
    "x" * 5000,
)


def any_text(rng: random.Random) -> str:
    """Characters of every plane, surrogates included, mixed with words that nano knows."""
    parts = []
    for _ in range(rng.randrange(30)):
        limit = rng.choice((0x80, 0x250, 0x3000, 0x10000, 0x110000))
        parts.append(rng.choice((chr(rng.randrange(limit)), rng.choice(WORDS), " ")))
    return "".join(parts)


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_text_is_read(text: str) -> None:
    ids = encode(text)
    assert all(FIRST_BYTE <= one < VOCABULARY for one in ids)
    assert isinstance(decode(ids), str)
    assert isinstance(unknown(text), list)


def test_any_text_is_read() -> None:
    rng = random.Random(20)
    for _ in range(3000):
        text = any_text(rng)
        ids = encode(text)
        assert all(FIRST_BYTE <= one < VOCABULARY for one in ids), ascii(text)
        assert isinstance(decode(ids), str)
        assert all(one and one.isalpha() for one in unknown(text))


def test_any_ids_are_spoken() -> None:
    rng = random.Random(21)
    for _ in range(1000):
        ids = [rng.randrange(FIRST_BYTE, VOCABULARY) for _ in range(rng.randrange(1, 20))]
        assert decode(ids).encode("utf-8") or ids[0] < FIRST_WORD


def test_text_is_never_read_as_a_special_token() -> None:
    for special in (*tokenizer.SPECIALS, "<sks>"):
        assert not {*range(FIRST_BYTE), NAME} & {*encode(special)}


@pytest.mark.parametrize("word", [word for word in dict.fromkeys(WORDS) if word != "<sks>"])
def test_a_known_word_is_one_id_and_comes_back(word: str) -> None:
    ids = encode(word)
    if word in SAME:  # the dictionary holds a word that is read as another
        assert decode(ids) == SAME[word]
        return
    assert len(ids) == 1 and ids[0] >= FIRST_WORD
    assert decode(ids) == word


@pytest.mark.parametrize(("synonym", "word"), sorted(SAME.items()))
def test_a_synonym_is_read_as_its_word(synonym: str, word: str) -> None:
    assert encode(synonym) == encode(word)
    assert unknown(synonym) == []


@pytest.mark.parametrize(
    "text",
    [
        "a spotted white and black cat with a blue hat",
        "what is it wearing?",
        "it's the cat's toy, and not a ball.",
        "at the beach, next to an orange star",
        "(yes) 3 + 4",
    ],
)
def test_a_sentence_comes_back(text: str) -> None:
    assert decode(encode(text)).replace(" ", "") == text.replace(" ", "")


def test_a_sentence_of_known_words_comes_back_with_its_spaces() -> None:
    text = "a bear's toy is a red ball, and it lives in the forest."
    assert decode(encode(text)) == text


def test_letters_of_any_case_are_the_same() -> None:
    assert encode("A RED Ball") == encode("a red ball")


def test_both_apostrophes_are_the_same() -> None:
    assert encode("the cat\N{RIGHT SINGLE QUOTATION MARK}s hat") == encode("the cat's hat")


def test_an_unknown_word_is_spelled_and_comes_back() -> None:
    ids = encode("zyzzyva")
    assert all(FIRST_BYTE <= one < FIRST_WORD for one in ids)
    assert decode(ids) == "zyzzyva"
    assert decode(encode("ö日😀")) == "ö日😀"


def test_unknown_words_are_named_once_and_in_order() -> None:
    text = "a Zebra and a bunny, a zebra-unicorn, 42 cats & a unicorn!"
    assert unknown(text) == ["zebra", "unicorn"]


def test_broken_bytes_are_spoken_as_a_replacement() -> None:
    assert decode([FIRST_BYTE + 0xE6]) == "\ufffd"
