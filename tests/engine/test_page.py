"""The report card as a page: everything in it, nothing from elsewhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from omnipersona_cli.engine import Keeping, Settings, Subject, learn
from omnipersona_cli.errors import PersonaError, ResourceError
from omnipersona_cli.testing import drawing


class Reader(HTMLParser):
    """Notes every tag, every link to elsewhere, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [it for name, it in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_the_page_shows_card_samples_curve_and_photos(sketch, photos, bo, library, tmp_path):
    page = tmp_path / "bo.html"
    learn(bo, Settings(steps=6), Keeping(library=library, page=page), backend=sketch)
    seen = read(page)
    # 10 photos, 4 samples, and one picture at the start and after each of 6 checks
    assert seen.tags.count("img") == 10 + 4 + 7 and seen.tags.count("polyline") == 2
    for part in ("<bo>, disc", "recognition", "after step 6", "9.png, held out", "red ball"):
        assert part in seen.text
    assert "because it was asked for" in seen.text
    assert seen.links and all(link.startswith("data:image/") for link in seen.links)
    assert not re.search(r"https?://|url\(|@import|<script", page.read_text())


def test_a_persons_words_cannot_become_markup(sketch, library, tmp_path):
    folder = tmp_path / "<b>photos"
    folder.mkdir()
    for seed in range(4):
        drawing("red", seed).save(folder / f"<img src=x onerror=alert({seed})>.png")
    drawing("red", 5).save(folder / "\udcff.png")  # a name that is not Unicode
    learn(
        Subject(
            photos=[folder],
            name="bo",
            class_word="<script>",
            facts=['its toy is <script>alert("x")</script>'],
        ),
        Settings(steps=1),
        Keeping(library=library, page=tmp_path / "bo.html"),
        backend=sketch,
    )
    seen = read(tmp_path / "bo.html")
    assert "script" not in seen.tags and "b" not in seen.tags
    assert "onerror=alert(3)" in seen.text and "\\udcff.png" in seen.text
    assert all(link.startswith("data:") for link in seen.links)


def test_nothing_is_overwritten_without_force(sketch, bo, library, tmp_path):
    page = tmp_path / "bo.html"
    page.write_text("mine")
    settings, keeping = Settings(steps=1), Keeping(library=library, page=page)
    with pytest.raises(PersonaError, match="already there") as caught:
        learn(bo, settings, keeping, backend=sketch)
    assert "--force" in caught.value.hint
    assert page.read_text() == "mine" and library.names() == ()
    learn(bo, settings, replace(keeping, force=True), backend=sketch)
    assert page.read_text().startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_told_before_any_work(sketch, bo, library, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for page in (tmp_path / "file" / "bo.html", tmp_path):
        with pytest.raises((ResourceError, PersonaError)):
            learn(bo, Settings(steps=1), Keeping(library=library, page=page), backend=sketch)
    assert library.names() == ()


def test_a_page_is_the_same_for_the_same_run(sketch, bo, tmp_path):
    for index in range(2):
        learn(
            bo,
            Settings(steps=2),
            Keeping(out=tmp_path / f"{index}.opconcept", page=tmp_path / f"{index}.html"),
            backend=sketch,
        )
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()
