"""Every hook is used here, and one bad plugin spoils nothing."""

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnipersona_cli import hookspecs, registry
from omnipersona_cli.cli.main import cli

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
    """Four plugins beside the real ones: a good one, and three broken in different ways."""
    sources = {
        "good_plugin": PLUGIN,
        "raising_plugin": "raise RuntimeError('no such luck')",
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
    assert f"hook.{hook}(" in inspect.getsource(registry)


@pytest.mark.parametrize("hook", sorted({*HOOKS} - {"op_judges", "op_progress"}))
def test_hook_is_implemented_in_the_repository(hook: str, root: Path) -> None:
    """Judges and trackers come with the benchmark and the pages; the tests below use theirs."""
    files = [*(root / "backends").rglob("__init__.py"), *(root / "plugins").rglob("__init__.py")]
    found = [p for p in files if re.search(rf"@hookimpl\s+def {hook}\(", p.read_text("utf-8"))]
    assert found


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_explained_to_plugin_authors(hook: str, root: Path) -> None:
    assert f"`{hook}(" in (root / "plugins/README.md").read_text(encoding="utf-8")


def test_our_own_plugins_load() -> None:
    assert registry.broken_plugins() == []
    assert {"bagel", "nano", "segment"} <= set(registry.plugins())


@pytest.mark.usefixtures("installed")
def test_broken_plugins_are_skipped_and_remembered() -> None:
    broken = {name: str(error) for name, error in registry.broken_plugins()}
    assert broken.keys() == {"raising", "misspelt", "absent"}
    assert "no such luck" in broken["raising"]
    assert "op_bakends" in broken["misspelt"]
    assert "good" in registry.plugins() and "nano" in registry.plugins()


@pytest.mark.usefixtures("installed")
def test_doctor_and_backends_name_the_broken_plugins() -> None:
    doctor = CliRunner().invoke(cli, ["doctor"])
    assert doctor.exit_code == 0
    assert "skipped    raising: RuntimeError: no such luck" in doctor.stdout
    backends = CliRunner().invoke(cli, ["backends"])
    assert backends.exit_code == 0
    assert "The plugin raising was skipped" in backends.stderr


@pytest.mark.usefixtures("installed")
def test_what_plugins_bring_is_sorted_by_name() -> None:
    names = list(registry.backends())
    assert names == sorted(names) and {"aardvark", "zebra"} <= set(names)


@pytest.mark.usefixtures("installed")
def test_plugin_command_is_listed_last_and_cannot_replace_ours() -> None:
    text = CliRunner().invoke(cli, ["--help"]).stdout
    assert text.index("  gen ") < text.index("  doctor ") < text.index("  stripes ")
    assert "Replace a verb." not in text


def test_find_subject_asks_the_next_finder_when_one_does_not_know() -> None:
    class Shy:
        @hookspecs.hookimpl(tryfirst=True)
        def op_find_subject(self) -> None:
            return None

    class Sure:
        @hookspecs.hookimpl(tryfirst=True)
        def op_find_subject(self, kind: str) -> hookspecs.Subject:
            return hookspecs.Subject(box=(1, 2, 3, len(kind)))

    manager = registry.plugin_manager()
    sure, shy = Sure(), Shy()
    manager.register(sure)
    manager.register(shy)  # called before Sure
    try:
        assert registry.find_subject(None, "dog") == hookspecs.Subject(box=(1, 2, 3, 3))  # type: ignore[arg-type]
    finally:
        manager.unregister(sure)
        manager.unregister(shy)


def test_judges_progress_and_negatives_reach_plugins() -> None:
    seen = []
    judge = hookspecs.JudgeInfo(name="fair", summary="A test.", judge="nowhere:judge")

    class Everything:
        @hookspecs.hookimpl
        def op_judges(self) -> list[hookspecs.JudgeInfo]:
            return [judge]

        @hookspecs.hookimpl
        def op_progress(self, event: hookspecs.Progress) -> None:
            seen.append(event)

        @hookspecs.hookimpl
        def op_negatives(self, count: int) -> list[str]:
            return ["picture"] * (count + 1)

    plugin = Everything()
    registry.plugin_manager().register(plugin)
    try:
        assert registry.judges()["fair"] == judge
        registry.report(hookspecs.Progress(phase="learning", step=1, total=2))
        assert [event.step for event in seen] == [1]
        assert registry.negatives("cat", 3, 0, [], "test") == ["picture"] * 3
    finally:
        registry.plugin_manager().unregister(plugin)
