"""A run is resumable item by item, and its file depends on nothing but what was ordered."""

import json
import math
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omnipersona_cli import registry
from omnipersona_cli.bench import report
from omnipersona_cli.bench.clock import Clock, Unit
from omnipersona_cli.bench.dataset import read_dataset
from omnipersona_cli.bench.findings import findings
from omnipersona_cli.bench.methods import METHODS
from omnipersona_cli.bench.page import as_html
from omnipersona_cli.bench.results import Results
from omnipersona_cli.bench.run import run
from omnipersona_cli.bench.unit import Order
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine import Opening
from omnipersona_cli.errors import (
    MissingError,
    PersonaError,
    ResourceError,
    TaskError,
    UsageError,
)
from omnipersona_cli.hookspecs import Judgement


@pytest.fixture
def order(discs, tmp_path, bench_plugin):
    return Order(
        data=discs,
        out=tmp_path / "one",
        opening=Opening(backend="sketch"),
        judges=("colours",),
        seeds=1,
        steps=6,
        start_method="fork",
    )


def told(order):
    return report.as_markdown(*report.load([order.out]))


def bytes_of(order):
    return (order.out / "results.jsonl").read_bytes()


def test_every_item_of_every_method_is_in_the_file_once(order):
    records = run(replace(order, methods=("all",)))
    by_method = {}
    for record in records:
        by_method.setdefault(record["method"], []).append((record["concept"], record["item"]))
    assert by_method.keys() == METHODS.keys() - {"deep"}, "sketch takes no deep tokens"
    assert all(len(set(items)) == len(items) for items in by_method.values())
    assert len(by_method["full"]) == 2 * 8
    assert len(by_method["pictures-in-context"]) == 2 * 6  # no edits
    probes = [it["scores"]["unchanged"] for it in records if it["task"] == "forgetting"]
    assert len(probes) == 6 * 2 and set(probes) == {1.0}
    replayed = {
        method: next(it for it in records if it["method"] == method and it["task"] == "parg")
        for method in ("full", "without-replay", "without-facts-text", "text-prompt-only")
    }
    assert replayed["full"]["rewritten"] == "<bo> with a red ball"
    assert replayed["full"]["trace"][1]["source"] == "facts"
    assert replayed["without-replay"]["rewritten"] == "<bo> with its toy"
    assert all(it["source"] != "facts" for it in replayed["without-facts-text"].get("trace", []))
    assert "its toy is a red ball" in replayed["text-prompt-only"]["rewritten"]
    assert "<bo>" not in replayed["text-prompt-only"]["rewritten"]
    pictures = {record["picture"] for record in records if record["picture"]}
    assert all((order.out / picture).is_file() for picture in pictures)


def test_a_killed_run_goes_on_and_gives_the_same_file(order, tmp_path):
    run(order)
    whole = bytes_of(order)
    broken = replace(order, out=tmp_path / "two")

    class Killed(Exception):
        pass

    def kill(event):
        if event.phase == "running" and event.step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(broken, on_progress=kill)
    assert f"Not finished: 5 of {len(whole.splitlines())} items" in told(broken)
    assert len(bytes_of(broken).splitlines()) == 5
    with (broken.out / "results.jsonl").open("ab") as file:
        file.write(b'{"method": "fu')  # what a kill in the middle of a line leaves
    run(broken)
    assert bytes_of(broken) == whole
    assert "Not finished" not in told(broken)
    run(broken)
    assert bytes_of(broken) == whole


def test_workers_change_nothing(order, tmp_path):
    run(order)
    two = replace(order, out=tmp_path / "two", workers=2)
    run(two)
    assert bytes_of(two) == bytes_of(order)


def test_results_of_another_run_are_refused_and_kept(order):
    run(replace(order, tasks=("recognition",)))
    before = bytes_of(order)
    with pytest.raises(PersonaError, match="tasks differ"):
        run(replace(order, tasks=("qa",)))
    assert bytes_of(order) == before
    about = order.out / "run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"version": 99}))
    with pytest.raises(PersonaError, match="another version"):
        run(replace(order, tasks=("recognition",)))


def test_items_of_another_run_among_the_results_are_refused(order, tmp_path):
    run(replace(order, tasks=("qa",)))
    other = replace(order, out=tmp_path / "two", tasks=("qa",), concepts=("bo",))
    run(other)
    (other.out / "results.jsonl").write_bytes(bytes_of(order))
    with pytest.raises(PersonaError, match="items of another run: full, mia"):
        run(other)
    assert bytes_of(other) == bytes_of(order)  # nothing is thrown away


def test_two_runs_do_not_write_to_one_folder(order):
    with Results(order.out).held(), pytest.raises(PersonaError, match="another run is writing"):
        run(order)
    assert not (order.out / "run.json").exists()


def test_the_instant_row_is_learned_without_a_step(order):
    run(replace(order, methods=("full", "instant"), tasks=("recognition",)))
    recipes = {
        name: Library(order.out / "packs" / f"{name}-0").header("bo").slots["sketch"].about
        for name in ("full", "instant")
    }
    assert recipes["instant"]["recipe"]["instant"] is True and recipes["instant"]["steps"] == 0
    assert "instant" not in recipes["full"]["recipe"] and recipes["full"]["steps"] == 6


def test_without_replay_is_full_where_nothing_was_replayed(order, tmp_path):
    both = run(replace(order, methods=("full", "without-replay")))
    alone = run(replace(order, out=tmp_path / "two", methods=("without-replay",)))
    copied = [it for it in both if it["method"] == "without-replay"]
    assert copied == alone
    *_, times = report.load([order.out])
    measured = sum(it["items"] for it in times if it.get("method") == "without-replay")
    unlike = sum("trace" in it for it in both if it["method"] == "full")
    assert measured == unlike < len(copied), "a copy takes no time, and is not in the mean"


def test_a_judge_that_is_down_stops_the_run_and_the_same_command_goes_on(
    order, tmp_path, monkeypatch
):
    class Grader(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"choices": [{"message": {"content": "0.5"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Grader)
    monkeypatch.setenv("OMNIPERSONA_VLM_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OMNIPERSONA_VLM_MODEL", "grader")
    monkeypatch.setattr("op_judge.vlm.PAUSE", 0.0)
    down = replace(order, judges=("vlm",), tasks=("recognition", "qa"))
    server.server_close()
    with pytest.raises(PersonaError, match="cannot be reached") as caught:
        run(down)
    assert "run the same command again" in caught.value.hint
    kept = bytes_of(down).splitlines()
    assert len(kept) == 2 and all(json.loads(line)["task"] == "recognition" for line in kept)
    server = ThreadingHTTPServer(("127.0.0.1", server.server_port), Grader)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    notes = []
    records = run(down, on_progress=lambda event: notes.append(event.note))
    server.shutdown()
    server.server_close()
    assert [it["scores"]["qa-judge"] for it in records if it["task"] == "qa"] == [0.5, 0.5]
    assert all(it["judges"]["qa-judge"].startswith("vlm:grader@") for it in records[-1:])
    assert any("pictures are sent there" in note for note in notes)


def test_what_a_judge_failed_at_is_asked_again_when_that_is_wanted(order, monkeypatch):
    editing = replace(order, tasks=("editing", "qa"))
    failed = [it["failed"] for it in run(editing) if it["task"] == "editing"]
    assert failed == [["edit-sc"]] * 2
    judge = registry.load(registry.judges()["colours"].judge)
    real = judge.score

    def mended(self, item):
        return Judgement(score=1.0) if item.kind == "edit-sc" else real(self, item)

    monkeypatch.setattr(judge, "score", mended)
    assert any(it["failed"] for it in run(editing))  # what is finished stays as it is
    again = run(replace(editing, retry_failed=True))
    assert [it["scores"]["edit-sc"] for it in again if it["task"] == "editing"] == [1.0, 1.0]


def test_faces_are_compared_of_people_in_plain_pictures_and_a_missing_one_counts(order, discs):
    for name in ("bo", "mia"):
        path = discs / "concept/train" / name / "info.json"
        word = "woman" if name == "mia" else "disc"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"class": word}))
    records = run(replace(order, judges=("faces",), tasks=("generation", "parg")))
    asked = [it for it in records if "face" in it["scores"]]
    assert [(it["concept"], it["prompt"]) for it in asked] == [("mia", "A photo of <mia>")]
    assert asked[0]["failed"] == ["face"] and asked[0]["details"]["face"].startswith("no face")
    strict = report.tabulate(records)["full"]
    assert strict["face"].mean == 0 and strict["face-found"].mean == 0
    assert "face" not in report.tabulate(records, profile="compat")["full"]


def test_the_time_left_is_told_from_what_learning_and_answers_took():
    one, two = Unit(concept="bo", seed=0), Unit(concept="bo", seed=1)
    clock = Clock(items=20, before=5, learnings={(one, "full"), (two, "full")}, workers=2)
    assert clock.seconds_left() is None and str(clock) == "5 of 25 items"
    clock.learned(one, "full", {"seconds": 60.0})
    for _ in range(10):
        clock.scored({"concept": "bo", "seed": 0, "method": "full", "task": "qa"}, 2.0)
    assert clock.seconds_left() == pytest.approx((60 + 10 * 2.0) / 2)
    assert str(clock).startswith("15 of 25 items") and str(clock).endswith("about 40 s left")
    (spent,) = clock.finished(one)
    assert spent["items"] == 10 and spent["item_seconds"] == pytest.approx(20)
    assert clock.progress().metrics["minutes left"] == pytest.approx(40 / 60)


def test_a_full_disk_keeps_what_was_finished(order, monkeypatch):
    import os

    real, calls = os.fsync, []

    def full(fd):
        lines = Path(f"/proc/self/fd/{fd}")  # packs and checkpoints are synced too, elsewhere
        if not lines.exists() or lines.resolve().suffix == ".jsonl":
            calls.append(fd)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr("omnipersona_cli.bench.results.os.fsync", full)
    with pytest.raises(ResourceError, match="No space"):
        run(replace(order, tasks=("recognition", "qa")))
    assert all(json.loads(line) for line in bytes_of(order).splitlines())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"judges": ("colour",)}, MissingError, "no judge"),
        ({"tasks": ("recognise",)}, UsageError, "no task"),
        ({"methods": ("ful",)}, UsageError, "no method"),
        ({"methods": ("full", "deep")}, TaskError, "takes no tokens for layers"),
        ({"concepts": ("nobody",)}, MissingError, "no concept"),
        ({"seeds": 0}, UsageError, "without seeds"),
    ],
)
def test_wrong_orders_are_refused_before_work(order, change, error, said):
    with pytest.raises(error, match=said):
        run(replace(order, **change))
    assert not order.out.exists()


def test_the_report_counts_failures_and_holds_the_pictures(order, discs):
    run(replace(order, methods=("full", "without-replay")))
    records, setting, times = report.load([order.out])
    table = report.tabulate(records)["full"]
    assert table["edit-sc"].mean == 0 and table["edit-sc"].failed == 2
    assert "edit-sc" not in report.tabulate(records, profile="compat")["full"]
    assert table["qa-exact"].mean == 1  # a written fact is the answer
    assert math.isfinite(table["rec"].low) and table["rec"].concepts == 2
    text = report.as_markdown(records, setting, times)
    assert "Ablations:" in text and "| without-replay: no replay |" in text
    assert "Finding 2. Replay helps PARG: not said of so few concepts." in text
    assert "| Rec |" in text and "2 of 2 failed" in text and "Replay helps PARG" in text
    page = as_html(records, setting, times, read_dataset(discs))
    assert page.count("data:image/png;base64,") > 10
    assert 'src="http' not in page and "no picture" not in page
    assert times and report.learning(times)["seconds"] > 0


def test_results_of_different_data_are_not_put_in_one_table(order, tmp_path):
    run(replace(order, tasks=("qa",)))
    other = replace(order, out=tmp_path / "two", tasks=("qa",), profile="compat")
    run(other)
    with pytest.raises(PersonaError, match="profile differ"):
        report.load([order.out, other.out])
    with pytest.raises(MissingError):
        report.load([tmp_path / "nowhere"])


def test_one_item_in_two_results_is_told(order, tmp_path):
    run(replace(order, tasks=("qa",)))
    shutil.copytree(order.out, tmp_path / "two")
    with pytest.raises(PersonaError, match="same item more than once: full, bo, 0"):
        report.load([order.out, tmp_path / "two"])


def test_lines_that_are_no_records_are_told(order):
    run(replace(order, tasks=("qa",)))
    path = order.out / "results.jsonl"
    first, *rest = path.read_text().splitlines()
    strange = json.loads(first) | {"scores": {"qa-exact": "much"}}
    path.write_text("\n".join([json.dumps(strange), *rest]))
    with pytest.raises(PersonaError, match="damaged in line 1"):
        report.load([order.out])


def test_a_cut_line_in_the_middle_is_told(order):
    results = Results(order.out)
    run(replace(order, tasks=("qa",)))
    path = order.out / "results.jsonl"
    path.write_bytes(b"{oops\n" + path.read_bytes())
    with pytest.raises(PersonaError, match="line 1"):
        list(results.records())


def test_findings_are_said_plainly_and_not_of_few_concepts():
    def records(method, scores):
        return [
            {"method": method, "concept": f"c{n}", "task": "parg", "scores": {"parg": score},
             "failed": [], "probability": None, "gold": ""}
            for n, score in enumerate(scores)
        ]  # fmt: skip

    def verdict(full, without):
        both = records("full", full) + records("without-replay", without)
        (found,) = (it for it in findings(both) if it["claim"] == "Replay helps PARG")
        return found["verdict"]

    assert verdict([1, 1, 1, 0.75, 1, 1], [0, 0, 0.25, 0, 0.5, 0]) == "holds"
    assert verdict([0, 0, 0.25, 0, 0.5, 0], [1, 1, 1, 0.75, 1, 1]) == "does not hold"
    assert verdict([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]) == "not shown"
    assert verdict([1, 1], [0, 0]) == "not said of so few concepts"


def test_a_rival_is_reached_by_not_being_clearly_below_it():
    def reached(full, text):
        both = [
            {"method": method, "concept": f"c{n}", "task": "parg", "scores": {"parg": score},
             "failed": [], "probability": None, "gold": ""}
            for method, scores in (("full", full), ("text-prompt-only", text))
            for n, score in enumerate(scores)
        ]  # fmt: skip
        (found,) = (it for it in findings(both) if it["claim"].startswith("With the facts text"))
        return found["verdict"]

    assert reached([0.8] * 6, [0.82] * 6) == "holds"
    assert reached([0.6] * 6, [0.8] * 6) == "does not hold"
    assert reached([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]) == "not shown"


@pytest.mark.slow
def test_nano_paints_what_only_the_facts_say_when_it_replays(tmp_path, monkeypatch):
    from op_toy.dataset import write_set

    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path / "home"))
    write_set(tmp_path / "toyset", concepts=1)
    order = Order(
        data=tmp_path / "toyset",
        out=tmp_path / "out",
        opening=Opening(backend="nano"),
        methods=("full", "without-replay"),
        tasks=("parg", "forgetting"),
        judges=("toy",),
        seeds=1,
        steps=2,
    )
    table = report.tabulate(run(order))
    assert table["full"]["parg"].mean > table["without-replay"]["parg"].mean
    assert table["full"]["unchanged"].mean == 1
