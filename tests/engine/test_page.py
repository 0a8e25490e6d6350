"""The report card as a page: everything in it, nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest

from omnipersona_cli.engine import learn
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


def test_the_page_shows_card_samples_curve_and_photos(sketch, photos, library, tmp_path):
    page = tmp_path / "bo.html"
    learn([photos], name="bo", backend=sketch, library=library, steps=6, page=page)
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
        [folder],
        name="bo",
        class_word="<script>",
        facts=['its toy is <script>alert("x")</script>'],
        backend=sketch,
        library=library,
        steps=1,
        page=tmp_path / "bo.html",
    )
    seen = read(tmp_path / "bo.html")
    assert "script" not in seen.tags and "b" not in seen.tags
    assert "onerror=alert(3)" in seen.text and "\\udcff.png" in seen.text
    assert all(link.startswith("data:") for link in seen.links)


def test_nothing_is_overwritten_without_force(sketch, photos, library, tmp_path):
    page = tmp_path / "bo.html"
    page.write_text("mine")
    settings = {"backend": sketch, "library": library, "steps": 1, "page": page}
    with pytest.raises(PersonaError, match="already there") as caught:
        learn([photos], name="bo", **settings)
    assert "--force" in caught.value.hint
    assert page.read_text() == "mine" and library.names() == ()
    learn([photos], name="bo", **settings, force=True)
    assert page.read_text().startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_told_before_any_work(sketch, photos, library, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for page in (tmp_path / "file" / "bo.html", tmp_path):
        with pytest.raises((ResourceError, PersonaError)):
            learn([photos], name="bo", backend=sketch, library=library, steps=1, page=page)
    assert library.names() == ()


def test_a_page_is_the_same_for_the_same_run(sketch, photos, tmp_path):
    for index in range(2):
        learn(
            [photos],
            name="bo",
            backend=sketch,
            steps=2,
            out=tmp_path / f"{index}.opconcept",
            page=tmp_path / f"{index}.html",
        )
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()
