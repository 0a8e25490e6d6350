"""Folders, settings files, and which of them wins."""

from pathlib import Path

import pytest

from omnipersona_cli import config
from omnipersona_cli.errors import UsageError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_home_holds_everything(home: Path) -> None:
    assert config.config_folder() == home
    assert config.data_folder() == home / "data"
    assert config.cache_folder() == home / "cache"
    assert not home.exists(), "asking for a folder must not make it"


def test_without_home_the_platform_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(config.HOME)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folders = {config.config_folder(), config.data_folder(), config.cache_folder()}
    assert len(folders) == 3
    assert all("omnipersona" in folder.parts for folder in folders)


def test_without_files_there_are_no_settings(project: Path) -> None:
    assert config.load_config() == {}


def test_project_file_wins_over_the_users_setting_by_setting(project: Path, home: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("backend: bagel\ndevice: cpu\ngen: {steps: 9, count: 2}\n")
    (project / "omnipersona.yaml").write_text("backend: nano\ngen: {steps: 24}\n")
    assert config.load_config() == {
        "backend": "nano",
        "device": "cpu",
        "gen": {"steps": "24", "count": "2"},
    }
    assert config.place_of("backend") == (Path("omnipersona.yaml"), 1)
    assert config.place_of("gen", "count") == (home / "config.yaml", 3)
    assert config.place_of("gen", "steps") == (Path("omnipersona.yaml"), 2)
    assert config.place_of("learn", "steps") is None


def test_dashes_and_underscores_in_keys_are_the_same(project: Path) -> None:
    (project / "omnipersona.yaml").write_text("learn: {understand_tokens: 8}\n")
    assert config.load_config() == {"learn": {"understand-tokens": "8"}}
    assert config.place_of("learn", "understand-tokens") == (Path("omnipersona.yaml"), 1)


def test_values_are_read_as_they_are_written(project: Path) -> None:
    (project / "omnipersona.yaml").write_text("learn:\n  name: 0123\n  kind: yes\n")
    assert config.load_config() == {"learn": {"name": "0123", "kind": "yes"}}


def test_empty_file_is_no_settings(project: Path) -> None:
    (project / "omnipersona.yaml").write_text("# nothing yet\n")
    assert config.load_config() == {}


@pytest.mark.parametrize(
    "content",
    ["backend: [nano", "backend: \x00", "- nano\n", "nano", "seed: 1\nseed: 2\n", "a: &b 1\n"],
)
def test_file_that_holds_no_settings_is_refused_by_name(project: Path, content: str) -> None:
    (project / "omnipersona.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"omnipersona\.yaml") as caught:
        config.load_config()
    assert caught.value.hint


def test_file_that_is_not_text_is_refused(project: Path) -> None:
    (project / "omnipersona.yaml").write_bytes(b"backend: \xff\xfe\n")
    with pytest.raises(UsageError, match=r"omnipersona\.yaml"):
        config.load_config()
