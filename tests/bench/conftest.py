"""A small data set of discs, a judge of colours, and the sketch backend."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omnipersona_cli import registry
from omnipersona_cli.hookspecs import JudgeInfo, JudgeItem, Judgement, hookimpl
from omnipersona_cli.testing import SketchPlugin, drawing

COLOURS = {"bo": "red", "mia": "blue"}


class ColourJudge:
    """Says how alike the mean colours of pictures are; fails at what it is told to fail."""

    id = "colours@1"
    kinds = frozenset({"answer", "parg", "edit-sc", "presence", "image-image"})
    remarks = ("the judge of colours looks at nothing else",)

    def score(self, item: JudgeItem) -> Judgement:
        if item.kind == "answer":
            return Judgement(score=float(item.gold.lower() in item.answer.lower()))
        if item.kind == "edit-sc":
            return Judgement(score=None, detail="no reply", failed=True)
        if item.kind == "parg":
            return Judgement(score=float(bool(item.truth)))
        mean = [np.asarray(it.convert("RGB")).mean((0, 1)) for it in item.images]
        near = [np.asarray(it.convert("RGB")).mean((0, 1)) for it in item.references]
        return Judgement(score=1 - float(np.abs(np.mean(near, 0) - mean[-1]).mean()) / 255)


class FaceJudge:
    """Sees a face in red pictures, and fails at all others."""

    id = "faces@1"
    kinds = frozenset({"face"})
    remarks = ()

    def score(self, item: JudgeItem) -> Judgement:
        red, green, blue = np.asarray(item.images[0].convert("RGB")).mean((0, 1))
        if red <= max(green, blue):
            return Judgement(score=None, detail="no face in the picture", failed=True)
        return Judgement(score=0.5)


class BenchPlugin(SketchPlugin):
    """The sketch backend and the judges of colours and faces."""

    @hookimpl
    def op_judges(self) -> list[JudgeInfo]:
        return [
            JudgeInfo(name="colours", summary="mean colours", judge=f"{__name__}:ColourJudge"),
            JudgeInfo(name="faces", summary="red faces", judge=f"{__name__}:FaceJudge"),
        ]


def write_discs(root: Path) -> Path:
    """Two concepts in UnifyBench's layout."""
    (root / "random_images").mkdir(parents=True)
    drawing("orange", 900).save(root / "random_images" / "0.png")
    write(root / "concepts_list.json", list(COLOURS))
    for name, colour in COLOURS.items():
        train, test = (root / "concept" / part / name for part in ("train", "test"))
        (train / "negative_example").mkdir(parents=True)
        (test / "edits").mkdir(parents=True)
        for seed in range(5):
            drawing(colour, seed).save(train / f"{seed}.png")
        for seed in range(2):
            drawing(colour, 100 + seed).save(test / f"{seed}.png")
            drawing("green", 200 + seed).save(train / "negative_example" / f"{seed}.png")
        write(
            train / "info.json",
            {
                "class": "disc",
                "info": f"<{name}> is a {colour} disc.",
                "extra_info": [f"<{name}>'s toy is a red ball"],
                "conversation_type": "object",
                "generation_type": "object",
            },
        )
        other = "blue" if colour == "red" else "red"
        drawing(other, 300).save(test / "other.png")
        drawing("green", 301).save(test / "edits" / "source.png")
        drawing(colour, 301).save(test / "edits" / "target.png")
        drawing("white", 301).convert("L").point([0] * 250 + [255] * 6).save(
            test / "edits" / "mask.png"
        )
        marker = "<image>\n"
        entries = [
            ("rec", f"concept/test/{name}/0.png", f"{marker}is <{name}> here?", "yes"),
            ("rec", f"concept/test/{name}/other.png", f"{marker}is <{name}> here?", "no"),
            ("vqa", f"concept/test/{name}/1.png", f"{marker}what is <{name}>?", "a disc"),
            ("text_only", "black_512x512.png", f"what is <{name}>'s toy?", "a red ball"),
        ]
        write(
            root / "test_data" / f"{name}.json",
            [
                {"image": image, "type": type_, "conversations": [{"value": q}, {"value": a}]}
                for type_, image, q, a in entries
            ],
        )
        write(test / "t2i_conditions.json", [f"A photo of <{name}>.", f"<{name}> with its toy"])
        write(
            test / "edits.json",
            [
                {
                    "id": "edit-000",
                    "task": "replace",
                    "source": "edits/source.png",
                    "instruction": f"replace the disc by <{name}>",
                    "target": "edits/target.png",
                    "mask": "edits/mask.png",
                }
            ],
        )
        write(
            root / "ground_truth" / f"{name}.json",
            {"prompts": {f"<{name}> with its toy": {"thing": "ball"}}},
        )
    return root


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    return write_discs(tmp_path / "discs")


@pytest.fixture
def bench_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin installed, and a home of its own."""
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path / "home"))
    real = registry.load
    own = {f"{__name__}:{judge.__name__}": judge for judge in (ColourJudge, FaceJudge)}
    monkeypatch.setattr(registry, "load", lambda name: own.get(name) or real(name))
    plugin = BenchPlugin()
    registry.plugin_manager().register(plugin, name="bench-for-tests")
    yield
    registry.plugin_manager().unregister(plugin)
