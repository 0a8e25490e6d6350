"""Sound means that every command works: whatever `verify` passes, each command takes without a
traceback and with bounded output. Mutated packs, and packs made of anything that JSON can say."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_mutants import OUTPUT_LIMIT, VALUES, attack, join, split

from omnipersona_cli import registry
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, Pack, Slot, to_bytes, verify_bytes
from omnipersona_cli.engine.tokens import slot_name, to_slot
from omnipersona_cli.errors import PackError
from omnipersona_cli.testing import SketchBackend, SketchPlugin, drawing

VERBS = (
    ("concepts",),
    ("concepts", "show", "bo"),
    ("concepts", "show", "bo", "--json"),
    ("ask", "red.png", "is <bo> here?"),
    ("ask", "what is <bo>'s toy?", "--json"),
    ("gen", "<bo> at the beach with its toy", "-o", "out.png", "--force", "--explain"),
    ("edit", "red.png", "add <bo>", "--box", "8,8,24,24", "-o", "edited.png", "--force"),
    ("concepts", "export", "bo", "-o", "out.opconcept", "--force"),
    ("concepts", "rename", "bo", "rex"),
    ("concepts", "undo"),
)

text = st.text(st.characters(codec="utf-8"), max_size=40)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
figures = st.dictionaries(
    st.sampled_from(("threshold", "card", "calibration", "verdict", "auroc")) | text,
    plain
    | st.dictionaries(
        st.sampled_from(("recognition", "identity", "memorised", "samples", "verdict", "advice")),
        st.dictionaries(
            st.sampled_from(("accuracy", "low", "high", "photos", "others", "name", "copies")),
            plain,
        )
        | plain,
        max_size=4,
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def tokens() -> tuple[str, Slot]:
    """A slot of the sketch backend, as `op learn` would begin one."""
    backend = SketchBackend()
    photos = [drawing("red", seed) for seed in range(2)]
    made = backend.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    return slot_name(backend), to_slot(made, backend, {"seed": 0, "steps": 1})


@pytest.fixture(scope="module")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], list[int]]]:
    """Runs every verb on a sound pack."""
    home = tmp_path_factory.mktemp("sound")
    drawing("red", 50).save(home / "red.png")
    plugin = SketchPlugin()
    registry.plugin_manager().register(plugin, name="sketch-for-attacks")

    def run(data: bytes) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            patch.setenv("OMNIPERSONA_HOME", str(home))
            patch.setenv("OMNIPERSONA_BACKEND", "sketch")
            library = Library()
            library.folder.mkdir(parents=True, exist_ok=True)
            for left in [*library.folder.glob("*.opconcept"), *library.folder.glob(".undo/*")]:
                left.unlink()
            (library.folder / "bo.opconcept").write_bytes(data)
            codes = []
            for words in VERBS:
                done = CliRunner().invoke(cli, list(words))
                bug = done.exception is not None and not isinstance(done.exception, SystemExit)
                assert not bug, (words, done.exception, done.exc_info)
                assert len(done.output) < OUTPUT_LIMIT, words
                codes.append(done.exit_code)
            return codes

    yield run
    registry.plugin_manager().unregister(plugin)


def test_the_verbs_work_on_a_good_pack(
    tokens: tuple[str, Slot], verbs: Callable[[bytes], list[int]]
) -> None:
    """Else the tests below would show nothing."""
    name, slot = tokens
    good = Pack(name="bo", slots={name: slot}, evals={name: {"threshold": 0.1}})
    assert verbs(to_bytes(good)) == [0] * len(VERBS)


def test_two_thousand_mutants_are_refused_or_harmless() -> None:
    tally = attack(2_000, 0)
    assert tally.wrong == []
    assert (tally.tried, tally.lost, tally.tracebacks) == (2_000, 0, 0)
    assert tally.sound > 400 and tally.whole > 8


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    facts=st.lists(text, max_size=4),
    evals=figures,
    about=st.dictionaries(text, plain, max_size=3),
    provenance=st.dictionaries(text, plain, max_size=3),
    more=st.dictionaries(text, plain, max_size=2),
    extra=st.dictionaries(text, text, max_size=2),
)
def test_whatever_can_be_written_can_be_used(
    facts: list[str],
    evals: dict[str, Any],
    about: dict[str, Any],
    provenance: dict[str, Any],
    more: dict[str, Any],
    extra: dict[str, str],
    tokens: tuple[str, Slot],
    verbs: Callable[[bytes], list[int]],
) -> None:
    name, slot = tokens
    try:
        data = to_bytes(
            Pack(
                name="bo",
                facts=tuple(Fact(text=fact) for fact in facts),
                slots={name: Slot(tensors=slot.tensors, about={**about, **slot.about})},
                evals={name: evals},
                provenance=provenance,
                more=more,
                extra_metadata=extra,
            )
        )
    except PackError:
        return
    if verify_bytes(data) == []:
        verbs(data)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_in_any_place_is_refused_or_works(
    value: object, tokens: tuple[str, Slot], verbs: Callable[[bytes], list[int]]
) -> None:
    """The places that commands read, each with the oddest values."""
    import json

    name, slot = tokens
    fresh = Pack(name="bo", slots={name: slot}, evals={name: {"threshold": 0.1, "card": {}}})
    for key, path in (
        ("op.eval", ()),
        ("op.eval", (name,)),
        ("op.eval", (name, "threshold")),
        ("op.eval", (name, "card")),
        ("op.eval", (name, "card", "recognition")),
        ("op.slots", (name, "base")),
        ("op.slots", (name, "backend")),
        ("op.slots", (name, "fingerprint")),
        ("op.slots", (name, "recipe")),
        ("op.facts", ()),
        ("op.facts", (0,)),
        ("op.provenance", ("photos",)),
        ("op.concept", ("aliases",)),
        ("op.concept", ("class_word",)),
    ):
        header, part = split(to_bytes(fresh))
        table = [json.loads(header["__metadata__"][key])]
        inside: Any = table
        for step in (0, *path)[:-1]:
            inside = inside[step]
        last = (0, *path)[-1]
        if isinstance(inside, list) and last == len(inside):
            inside.append(value)
        else:
            inside[last] = value
        header["__metadata__"][key] = json.dumps(table[0])
        data = join(header, part)
        if verify_bytes(data) == []:
            verbs(data)


def test_a_pack_that_is_all_rows_shows_little(
    tokens: tuple[str, Slot], tmp_path: Path, home: Path
) -> None:
    """One long key and many short ones made columns as wide as the one, for each of the others."""
    name, slot = tokens
    wide = {"x" * 30_000: 1, **{f"k{n}": 1 for n in range(30_000)}}
    Library().save(Pack(name="bo", slots={name: slot}, evals={name: wide}))
    done = CliRunner().invoke(cli, ["concepts", "show", "bo"])
    assert done.exit_code == 0
    assert len(done.output) < 10_000
    assert "more, which --json shows" in done.output


def test_a_pack_without_facts_is_sound(tokens: tuple[str, Slot], verbs: Any) -> None:
    name, slot = tokens
    header, part = split(to_bytes(Pack(name="bo", slots={name: slot})))
    del header["__metadata__"]["op.facts"]
    data = join(header, part)
    assert verify_bytes(data) == []
    verbs(data)
