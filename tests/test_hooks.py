"""Every hook is used here, and one bad plugin spoils nothing."""

import inspect
import re
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from omnipersona_cli import hookspecs, registry
from omnipersona_cli.cli.main import cli
from omnipersona_cli.errors import MissingError, UsageError

HOOKS = sorted(
    name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("op_")
)

PLUGIN = """
from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.hookspecs import CommandInfo, hookimpl

@hookimpl
def op_backends():
    return [BackendInfo(name=name, summary="A test.", opens="nowhere:opener", tasks={},
                        default_model="m", sizes=((8, 8),), pictures="dots", licence="MIT",
                        memory_gb=1) for name in ("zebra", "aardvark")]

@hookimpl
def op_commands():
    return [CommandInfo(name="stripes", summary="Paint stripes.", command="good_plugin:command"),
            CommandInfo(name="gen", summary="Replace a verb.", command="good_plugin:command")]

def command(): ...
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugins beside the real ones: a good one, and four broken in different ways."""
    sources = {
        "good_plugin": PLUGIN,
        "raising_plugin": "raise RuntimeError('no such luck')",
        "leaving_plugin": "import sys; sys.exit(3)",
        "misspelt_plugin": "from omnipersona_cli.hookspecs import hookimpl\n"
        "@hookimpl\ndef op_bakends(): return []\n",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    real = registry.entry_points
    added = [
        EntryPoint(name=name.removesuffix("_plugin"), value=name, group=registry.GROUP)
        for name in [*sources, "absent_plugin"]
    ]
    monkeypatch.setattr(
        registry, "entry_points", lambda group: EntryPoints([*real(group=group), *added])
    )
    registry.forget()
    yield
    registry.forget()


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_called_by_the_registry(hook: str) -> None:
    assert f'"{hook}"' in inspect.getsource(registry)


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_implemented_in_the_repository(hook: str, root: Path) -> None:
    files = [*(root / "backends").rglob("__init__.py"), *(root / "plugins").rglob("__init__.py")]
    found = [p for p in files if re.search(rf"@hookimpl\s+def {hook}\(", p.read_text("utf-8"))]
    assert found


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_explained_to_plugin_authors(hook: str, root: Path) -> None:
    assert f"\n## {hook}(" in (root / "docs/write-a-plugin.md").read_text(encoding="utf-8")


def test_our_own_plugins_load_and_nothing_of_them_is_left_out() -> None:
    for ask in (registry.backends, registry.judges, registry.datasets, registry.importers):
        ask()
    registry.commands()
    assert registry.problems() == []
    assert {"bagel", "nano", "segment"} <= set(registry.plugins())


@pytest.mark.usefixtures("installed")
def test_broken_plugins_are_skipped_and_remembered() -> None:
    broken = {problem.plugin: problem.message for problem in registry.problems()}
    assert broken.keys() == {"raising", "leaving", "misspelt", "absent"}
    assert "no such luck" in broken["raising"]
    assert "op_bakends" in broken["misspelt"]
    assert "good" in registry.plugins() and "nano" in registry.plugins()


@pytest.mark.usefixtures("installed")
def test_doctor_and_backends_name_the_broken_plugins() -> None:
    doctor = CliRunner().invoke(cli, ["doctor"])
    assert doctor.exit_code == 0
    assert "skipped    raising (loading): RuntimeError: no such luck" in doctor.stdout
    assert "no such luck" not in doctor.stderr
    backends = CliRunner().invoke(cli, ["backends"])
    assert backends.exit_code == 0
    warning = "Warning: plugin raising: RuntimeError: no such luck; see `op doctor`"
    assert backends.stderr.splitlines().count(warning) == 1


@pytest.mark.usefixtures("installed")
def test_what_plugins_bring_is_sorted_by_name() -> None:
    names = list(registry.backends())
    assert names == sorted(names) and {"aardvark", "zebra"} <= set(names)


@pytest.mark.usefixtures("installed")
def test_plugin_command_is_listed_last_and_cannot_replace_ours() -> None:
    shown = CliRunner().invoke(cli, ["--help"])
    text = shown.stdout
    assert text.index("  gen ") < text.index("  doctor ") < text.index("  stripes ")
    assert "Replace a verb." not in text
    assert "plugin good: op has a command called 'gen' of its own" in shown.stderr


@pytest.mark.usefixtures("installed")
def test_plugin_command_that_cannot_be_loaded_is_told_in_one_line() -> None:
    result = CliRunner().invoke(cli, ["stripes"])
    assert result.exit_code == 3
    assert "Error: the command stripes of a plugin cannot be loaded: TypeError" in result.stderr


@pytest.mark.usefixtures("installed")
def test_a_plugin_that_is_switched_off_is_not_even_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMNIPERSONA_DISABLE", "raising, absent,nano")
    assert {problem.plugin for problem in registry.problems()} == {"leaving", "misspelt"}
    assert "nano" not in registry.backends()
    with pytest.raises(MissingError, match="switched off by OMNIPERSONA_DISABLE"):
        registry.backend_info("nano")
    assert "disabled   absent, nano, raising" in CliRunner().invoke(cli, ["doctor"]).stdout


@pytest.fixture
def register() -> Iterator[Callable[[str, object], None]]:
    """Adds a plugin of this name for the length of a test."""
    registry.forget()
    yield lambda name, plugin: registry.plugin_manager().register(plugin, name=name) and None
    registry.forget()


class Failing:
    """Raises in every hook, in different ways."""

    @hookspecs.hookimpl
    def op_backends(self) -> None:
        raise SystemExit(1)

    @hookspecs.hookimpl
    def op_commands(self) -> list[str]:
        return ["stripes"]

    @hookspecs.hookimpl
    def op_judges(self) -> None:
        return None

    @hookspecs.hookimpl
    def op_datasets(self) -> None:
        raise KeyError("sets")

    @hookspecs.hookimpl
    def op_importers(self) -> Iterator[None]:
        yield from ()
        raise RuntimeError("too late")

    @hookspecs.hookimpl(tryfirst=True)
    def op_find_subject(self) -> tuple[int, ...]:
        return (1, 2, 3, 4)

    @hookspecs.hookimpl
    def op_negatives(self) -> list[str]:
        return ["picture"]


def test_a_hook_that_raises_or_answers_wrongly_breaks_nothing_but_its_own_answer(
    register: Callable[[str, object], None],
) -> None:
    ours = [list(ask()) for ask in (registry.backends, registry.judges, registry.importers)]
    register("failing", Failing())
    photo = Image.new("RGB", (64, 64), "white")
    assert [list(ask()) for ask in (registry.backends, registry.judges, registry.importers)] == ours
    assert "toy" in registry.commands() and "toy" in registry.datasets()
    registry.find_subject(photo, "dog")
    assert len(registry.negatives("cat", 2, 0, [photo], "nano")) == 2
    assert {problem.where for problem in registry.problems()} == set(HOOKS)
    assert {problem.plugin for problem in registry.problems()} == {"failing"}


def test_op_help_works_beside_a_failing_plugin_and_warns_in_one_line(
    register: Callable[[str, object], None],
) -> None:
    register("failing", Failing())
    for words in (["--help"], []):
        shown = CliRunner().invoke(cli, words)
        assert shown.exit_code == 0 and "  toy " in shown.stdout
        assert shown.stderr.splitlines() == [
            "Warning: plugin failing: TypeError: CommandInfo was asked for, not str; "
            "see `op doctor`"
        ]
    assert (
        "skipped    failing (op_datasets): KeyError" in CliRunner().invoke(cli, ["doctor"]).stdout
    )


class Judging:
    """Brings a judge."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookspecs.hookimpl
    def op_judges(self) -> list[hookspecs.JudgeInfo]:
        return [hookspecs.JudgeInfo(name=self.name, summary="A test.", judge="nowhere:judge")]


class Importing:
    """Brings an importer."""

    @hookspecs.hookimpl
    def op_importers(self) -> list[hookspecs.ImporterInfo]:
        return [
            hookspecs.ImporterInfo(name="other", summary="A test.", backend="nano", reads="a:b")
        ]


def test_a_name_that_two_plugins_bring_belongs_to_neither(
    register: Callable[[str, object], None],
) -> None:
    for plugin in ("left", "right"):
        register(plugin, Judging("fair"))
        register(f"{plugin}-importer", Importing())
    assert "fair" not in registry.judges()
    told = {problem.plugin: problem.message for problem in registry.problems()}
    assert told["left"] == "the plugin right brings a judge called 'fair' too"
    assert told["right"] == "the plugin left brings a judge called 'fair' too"
    with pytest.raises(UsageError, match=r"left-importer brings 'other', but .* right-importer"):
        registry.importer_info("other")


def test_what_comes_with_the_package_keeps_its_name(
    register: Callable[[str, object], None],
) -> None:
    ours = registry.judges()["toy"]
    register("aaa", Judging("toy"))
    assert registry.judges()["toy"] == ours
    assert [problem.plugin for problem in registry.problems()] == ["aaa"]


def test_find_subject_asks_the_next_finder_when_one_does_not_know() -> None:
    class Shy:
        @hookspecs.hookimpl(tryfirst=True)
        def op_find_subject(self) -> None:
            return None

    class Sure:
        @hookspecs.hookimpl(tryfirst=True)
        def op_find_subject(self, kind: str) -> hookspecs.Region:
            return hookspecs.Region(box=(1, 2, 3, len(kind)))

    manager = registry.plugin_manager()
    sure, shy = Sure(), Shy()
    manager.register(sure)
    manager.register(shy)  # called before Sure
    try:
        assert registry.find_subject(None, "dog") == hookspecs.Region(box=(1, 2, 3, 3))  # type: ignore[arg-type]
    finally:
        manager.unregister(sure)
        manager.unregister(shy)


def test_negatives_of_all_plugins_are_taken_in_turn_and_cut_to_the_count(
    register: Callable[[str, object], None],
) -> None:
    picture = Image.new("RGB", (8, 8))

    class Giving:
        @hookspecs.hookimpl
        def op_negatives(self, count: int) -> list[Image.Image]:
            return [picture] * (count + 1)

    register("giving", Giving())
    assert registry.negatives("cat", 3, 0, [], "test") == [picture] * 3
