"""A run is resumable item by item, and its file depends on nothing but what was ordered."""

import json
import math
from dataclasses import replace

import pytest

from omnipersona_cli.bench import report
from omnipersona_cli.bench.dataset import read_dataset
from omnipersona_cli.bench.findings import findings
from omnipersona_cli.bench.page import as_html
from omnipersona_cli.bench.results import Results
from omnipersona_cli.bench.run import run
from omnipersona_cli.bench.unit import Order
from omnipersona_cli.engine import Opening
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError, UsageError


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


def bytes_of(order):
    return (order.out / "results.jsonl").read_bytes()


def test_every_item_of_every_method_is_in_the_file_once(order):
    records = run(replace(order, methods=("all",)))
    by_method = {}
    for record in records:
        by_method.setdefault(record["method"], []).append((record["concept"], record["item"]))
    assert len(by_method) == 7
    assert all(len(set(items)) == len(items) for items in by_method.values())
    assert len(by_method["full"]) == 2 * 8
    assert len(by_method["pictures-in-context"]) == 2 * 6  # no edits
    probes = [it["scores"]["unchanged"] for it in records if it["task"] == "forgetting"]
    assert len(probes) == 5 * 2 and set(probes) == {1.0}
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
    assert len(bytes_of(broken).splitlines()) == 5
    with (broken.out / "results.jsonl").open("ab") as file:
        file.write(b'{"method": "fu')  # what a kill in the middle of a line leaves
    run(broken)
    assert bytes_of(broken) == whole
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


def test_a_full_disk_keeps_what_was_finished(order, monkeypatch):
    import os

    real, calls = os.fsync, []

    def full(fd):
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


@pytest.mark.slow
def test_nano_paints_what_only_the_facts_say_when_it_replays(tmp_path, monkeypatch):
    from op_nano.toyset import write_set

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
