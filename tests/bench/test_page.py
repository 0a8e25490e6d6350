"""The page of a report: what is shown, and in which order."""

import base64
import io

from PIL import Image

from omnipersona_cli.bench.page import FEW, MOST, SIDE, as_html, worst_first
from omnipersona_cli.testing import drawing


def record(method, number, score, picture, **more):
    return {
        "method": method, "concept": "bo", "seed": 0, "task": "generation",
        "item": f"t2i-{number:03d}", "kind": "prompt", "prompt": f"<bo> number {number}",
        "rewritten": f"<bo> number {number}", "gold": "", "answer": "", "probability": None,
        "picture": picture, "source": None, "scores": {"identity": score}, "failed": [],
        "judges": {}, "details": {}, **more,
    }  # fmt: skip


SETTING = {
    "concepts": ["bo"], "seeds": 1, "items": 1, "backend": "sketch", "profile": "strict",
    "judges": {},
}  # fmt: skip


def test_the_worst_come_first_and_a_failure_is_the_worst():
    scores = [0.5, None, 1.0, 0.0]
    ranked = worst_first([record("full", n, score, "a.png") for n, score in enumerate(scores)])
    assert [it["scores"]["identity"] for it in ranked] == [None, 0.0, 0.5, 1.0]


def test_a_page_shows_the_worst_of_many_and_says_of_how_many(tmp_path):
    drawing("red", 1).save(tmp_path / "a.png")
    records = [
        record(method, n, n / 100, "a.png", folder=str(tmp_path))
        for method in ("full", "without-replay")
        for n in range(20)
    ]
    page = as_html(records, SETTING, [], None)
    assert page.count("<figure>") == MOST + FEW
    assert f"the worst first, {MOST} of 20" in page and f"the worst first, {FEW} of 20" in page
    assert "number 0" in page and "number 19" not in page


def test_large_pictures_are_thumbnails_and_lost_ones_are_told(tmp_path):
    Image.effect_noise((1024, 1024), 80).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"junk")
    records = [
        record("full", n, 0.5, name, folder=str(tmp_path))
        for n, name in enumerate(("a.png", "broken.png", "gone.png"))
    ]
    page = as_html(records, SETTING, [], None)
    assert "no picture: broken.png" in page and "no picture: gone.png" in page
    _, _, data = page.partition("base64,")
    with Image.open(io.BytesIO(base64.b64decode(data.partition('"')[0]))) as shown:
        assert max(shown.size) == SIDE


def test_what_people_and_models_write_cannot_become_part_of_the_page(tmp_path):
    hostile = record("full", 0, 0.5, None) | {
        "task": "qa", "prompt": "<script>alert(1)</script>", "answer": "<img src=x onerror=y>",
        "folder": str(tmp_path),
    }  # fmt: skip
    page = as_html([hostile], SETTING, [], None)
    assert "<script>" not in page and "<img src=x" not in page


def test_an_answer_is_wrong_by_what_says_right_or_wrong():
    scores = (
        {"rec": 1.0, "raw": 0.0},
        {"choice": 1.0},
        {"vqa-exact": 1.0, "vqa-bleu-words": 0.5},
        {"vqa-exact": 0.0, "vqa-bleu-words": 1.0},
    )
    answers = [
        record("full", n, 0, "", task="vqa", answer=f"said {n}", scores=score)
        for n, score in enumerate(scores)
    ]
    page = as_html(answers, SETTING, [], None)
    assert "Answers that were not right: 1" in page and "said 3" in page
