"""`op doctor`."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omnipersona_cli import __version__
from omnipersona_cli.cli import doctor
from omnipersona_cli.cli.main import cli

KEYS = {
    "omnipersona",
    "python",
    "platform",
    "packages",
    "memory_gb",
    "devices",
    "backends",
    "weights",
    "plugins",
    "disabled_plugins",
    "broken_plugins",
    "folders",
    "settings",
    "settings_error",
}


def op(*args: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *args], prog_name="op")


def test_text_names_versions_devices_plugins_and_folders(home: Path) -> None:
    result = op("-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"omnipersona {__version__}, Python 3.")
    for words in ("torch 2.", "device     cpu", str(home / "cache")):
        assert words in result.stdout
    plugins = re.search(r"^plugins +(.+)$", result.stdout, re.MULTILINE)
    assert plugins and {"bagel", "nano"} <= set(plugins[1].split(", "))


def test_json_has_stable_keys_and_the_same_facts(home: Path) -> None:
    found = json.loads(op("--json", "-q").stdout)
    assert found.keys() == KEYS
    assert found["folders"]["config"] == {"path": str(home), "exists": False, "writable": True}
    assert {"name": "nano", "pictures": "cartoons", "needs_gb": 0.5} in found["backends"]
    assert not home.exists(), "a look must not leave anything behind"


def test_every_setting_comes_with_its_source(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omnipersona.yaml").write_text("device: cpu\n")
    home.mkdir()
    (home / "config.yaml").write_text("dtype: float32\ndevice: cuda\n")
    monkeypatch.setenv("OMNIPERSONA_SEED", "7")
    found = json.loads(op("--json", "-q", "-b", "nano").stdout)
    settings = {item["name"]: (item["value"], item["source"]) for item in found["settings"]}
    assert settings == {
        "backend": ("nano", "flag"),
        "model": (None, "default"),
        "device": ("cpu", "omnipersona.yaml, line 1"),
        "dtype": ("float32", f"{home / 'config.yaml'}, line 1"),
        "memory": (None, "default"),
        "offload": (False, "default"),
        "quantize": (None, "default"),
        "seed": (7, "OMNIPERSONA_SEED"),
        "offline": (True, "HF_HUB_OFFLINE"),
    }


def test_folder_that_cannot_be_written_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path / "file" / "home"))
    assert "(cannot be written)" in op("-q").stdout


def test_torch_that_cannot_be_imported_is_told_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    devices = doctor._devices()
    assert devices[0]["name"] == "cpu"
    assert "torch is broken" in devices[1]["summary"]
