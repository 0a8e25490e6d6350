"""A facts file is read in every shape that people write, as it is written."""

import pytest

from omnipersona_cli.data.facts import read_facts
from omnipersona_cli.errors import PhotoError


@pytest.mark.parametrize(
    ("file", "text", "facts"),
    [
        (
            "facts.yaml",
            "facts:\n- its toy is a red ball\n- age 3",
            ("its toy is a red ball", "age 3"),
        ),
        ("facts.yaml", "- its toy is a red ball", ("its toy is a red ball",)),
        ("facts.yaml", "facts:\n- toy: a red ball", ("toy: a red ball",)),
        ("facts.yaml", "facts:\n  toy: a red ball", ("its toy is a red ball",)),
        ("facts.yaml", "Facts:\n- its toy is a red ball\nKind: dog", ("its toy is a red ball",)),
        ("facts.yaml", "facts:\n  friends: [mia, tom]", ("its friends are mia and tom",)),
        ("facts.yaml", "facts:\n  eyes: blue", ("its eyes are blue",)),
        ("facts.yaml", "", ()),
        ("facts.txt", "# all of it\nits toy is a red ball\n\n", ("its toy is a red ball",)),
    ],
)
def test_a_facts_file_is_read_in_every_usual_shape(tmp_path, file, text, facts):
    (tmp_path / file).write_text(text)
    assert read_facts(tmp_path / file).facts == facts


@pytest.mark.parametrize(
    "value",
    ["2019-05-04", "12:30", "04.50", "0123", "1_000", "1e3", "yes", "no", "on", "0x10", ".inf"],
)
def test_a_value_stays_what_was_written(tmp_path, value):
    (tmp_path / "facts.yaml").write_text(f"facts:\n  chip: {value}\n")
    assert read_facts(tmp_path / "facts.yaml").facts == (f"its chip is {value}",)


def test_a_facts_file_says_what_the_concept_is(tmp_path):
    (tmp_path / "facts.yaml").write_text("class: frog\nkind: animal\nfacts: []")
    sheet = read_facts(tmp_path / "facts.yaml")
    assert (sheet.class_word, sheet.kind) == ("frog", "animal")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("file", ["facts.txt", "facts.yaml"])
def test_the_encoding_is_told_by_the_mark_or_is_utf8(tmp_path, file, encoding):
    text = "- it likes cafés\r\n" if file.endswith("yaml") else "it likes cafés\r\n"
    (tmp_path / file).write_bytes(text.encode(encoding))
    assert read_facts(tmp_path / file).facts == ("it likes cafés",)


@pytest.mark.parametrize("content", [b"facts: [", b"just words", b"facts: 3", b"\xff\xfe\x00"])
def test_a_broken_facts_file_is_named_with_a_hint(tmp_path, content):
    path = tmp_path / "facts.yaml"
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=r"facts\.yaml") as raised:
        read_facts(path)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("facts:\n  toy: a red ball\n  toy: a blue car", "the key 'toy' twice, line 3"),
        ("facts: [its toy is red]\nfacts: [it is big]", "the key 'facts' twice, line 2"),
        ("facts: [its toy is red]\nFacts: [it is big]", "the key 'facts' twice"),
        ("facts:\n  toy:\n    what: ball", "nests something under 'toy'"),
        ("facts:\n  - [a, b]", "nests something in fact 1"),
        ("facts:\n  toy:\n  food: an apple", "says nothing after 'toy'"),
        ("facts:\n  home: ~", "says nothing after 'home'"),
        ("fact:\n  - its toy is red", "the key 'fact', which means nothing here"),
        ("kind: [dog, pet]", "gives 'kind' as a list or table"),
        ("facts:\n- 2019-05-04", "no sentence: '2019-05-04'"),
        ("a: &a [x]\nfacts: *a", "uses an alias"),
        ("facts:\n\t- tab", "not YAML, line 2"),
        ("facts: [a b]\n---\nfacts: [c d]", "more than one document"),
    ],
)
def test_what_cannot_be_read_is_named_and_not_left_out(tmp_path, text, said):
    (tmp_path / "facts.yaml").write_text(text)
    with pytest.raises(PhotoError) as raised:
        read_facts(tmp_path / "facts.yaml")
    assert said in str(raised.value) and raised.value.hint
