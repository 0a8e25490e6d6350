"""A facts file is read in every shape that people write."""

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
        ("facts.yaml", "", ()),
        ("facts.txt", "# all of it\nits toy is a red ball\n\n", ("its toy is a red ball",)),
    ],
)
def test_a_facts_file_is_read_in_every_usual_shape(tmp_path, file, text, facts):
    (tmp_path / file).write_text(text)
    assert read_facts(tmp_path / file).facts == facts


def test_a_facts_file_says_what_the_concept_is(tmp_path):
    (tmp_path / "facts.yaml").write_text("class: frog\nkind: animal\nfacts: []")
    sheet = read_facts(tmp_path / "facts.yaml")
    assert (sheet.class_word, sheet.kind) == ("frog", "animal")


@pytest.mark.parametrize("content", [b"facts: [", b"just words", b"facts: 3", b"\xff\xfe\x00"])
def test_a_broken_facts_file_is_named_with_a_hint(tmp_path, content):
    path = tmp_path / "facts.yaml"
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=r"facts\.yaml") as raised:
        read_facts(path)
    assert raised.value.hint
