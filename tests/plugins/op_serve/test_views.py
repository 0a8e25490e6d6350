"""Every view of the page with things done in it, on a phone and on a desk.

With OMNIPERSONA_PICTURES=docs/images/serve the pictures for the documentation are made anew: then
<bo> is learned as long as nano wants it. The rules of WCAG 2 that axe-core knows are checked by it;
`axe-core/axe.min.js` is Deque's, under the Mozilla Public License 2.0 beside it (`npm pack
axe-core` brings another).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from chromium import Page, chromium
from live_server import Live, running
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.slow

PICTURES = os.environ.get("OMNIPERSONA_PICTURES", "")
AXE = Path(__file__).parent / "axe-core" / "axe.min.js"
SCREENS = {"desktop": (1280, 860, False), "phone": (390, 844, True)}
VIEWS = ("concepts", "teach", "talk", "paint", "edit")


@pytest.fixture(scope="module")
def studio(bo_pack: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of its own; nothing is random in what it is asked."""
    from omnipersona_cli.concepts.library import Library
    from omnipersona_cli.engine import Keeping, Opening, Settings, Subject, learn

    home = tmp_path_factory.mktemp("studio")
    library = Library(home / "data" / "concepts")
    if PICTURES:
        bo = Subject(photos=[photos], name="bo", kind="cat")
        learn(bo, Settings(), Keeping(library=library), opening=Opening(backend="nano"))
    else:
        library.add_file(bo_pack)
    with running(home) as live:
        live.client.put("/api/concepts/bo/thumbnail", content=(photos / "00.png").read_bytes())
        yield live


@pytest.mark.parametrize("screen", SCREENS)
def test_every_view_fits_its_screen(studio: Live, photos: Path, screen: str) -> None:
    width, height, dark = SCREENS[screen]
    with chromium(width=width, height=height, dark=dark) as browser:
        page = Page(browser, studio).open()
        for view in VIEWS:
            page.go(view)
            DONE[view](page, photos)
            page.script("document.activeElement.blur(); scrollTo(0, 0)")
            wide = page.script("return document.documentElement.scrollWidth")
            assert wide <= width, f"{view} is {wide} pixels wide"
            assert page.script(UNNAMED) == [], view
            assert page.script(SMALL, width < 600) == [], view
            assert broken_rules(page) == [], view
            if not PICTURES:
                assert lost_on_the_way(page) == [], view
            if PICTURES:
                save(page, Path(PICTURES) / f"{view}-{screen}.png")
        assert page.complaints() == []


UNNAMED = """
return [...document.querySelectorAll("button, a[href], input, select, textarea, canvas")]
  .filter((node) => node.checkVisibility() && !(node.getAttribute("aria-label")
    || node.textContent.trim() || node.closest("label")?.textContent.trim() || node.title))
  .map((node) => node.outerHTML.slice(0, 90))"""
"""What a screen reader would have no name for."""

SMALL = """
return !arguments[0] ? [] : [...document.querySelectorAll("button, nav a, a.button, select")]
  .filter((node) => node.checkVisibility() && Math.min(node.offsetWidth, node.offsetHeight) < 24)
  .map((node) => node.outerHTML.slice(0, 90))"""
"""What a finger would miss (WCAG 2.2, 2.5.8)."""


def concepts(page: Page, photos: Path) -> None:
    page.wait(lambda: page.all("[data-name=bo] img"))
    page.unfold("[data-name=bo] details")


def teach(page: Page, photos: Path) -> None:
    page.find("#photos").send_keys("\n".join(str(it) for it in sorted(photos.glob("*.png"))[:8]))
    page.wait(lambda: "held out" in page.find("#plan").text)
    page.write("#newname", "mam")
    page.write("#kind", "rabbit")
    page.write("#newfact", "its toy is a red ball").send_keys(Keys.ENTER)
    page.wait(lambda: page.find("#learn").is_enabled())
    if not PICTURES or page.script("return innerWidth") < 600:
        return
    page.press("Learn")
    page.wait(lambda: len(page.all(".job .film img")) > 2, seconds=300)


def talk(page: Page, photos: Path) -> None:
    page.wait(lambda: not page.live.served.worker.running, seconds=300)
    page.find("#talkfile").send_keys(str(sorted(photos.glob("*.png"))[1]))
    for count, question in enumerate(("is <bo> here?", "where is it?", "what is <bo>'s toy?"), 1):
        page.write("#question", question).send_keys(Keys.ENTER)
        page.wait(lambda count=count: len(page.all(".turn.theirs")) == count)  # type: ignore[misc]
        page.wait(lambda count=count: len(page.all(".grounds")) == count)  # type: ignore[misc]


def paint(page: Page, photos: Path) -> None:
    page.write("#prompt", "<bo> with its toy, at the beach")
    page.write("#seed", "7")
    page.press("Paint")
    page.wait(lambda: page.find("#memory").is_displayed())
    page.press("Paint it like this")
    page.wait(lambda: len(page.all("#painted .shot > img")) == 2)
    if not PICTURES:
        page.unfold("#painting details")


def edit(page: Page, photos: Path) -> None:
    """<bo> is added to a place where nobody is."""
    asked = {"prompt": "a picture of the beach", "seed": 4}
    beach = page.live.client.post("/v1/images/generations", json=asked).json()["data"][0]
    file = page.live.served.jobs.folder.parent / "beach.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(base64.b64decode(beach["b64_json"]))
    page.find("#editfile").send_keys(str(file))
    page.wait(lambda: page.find("#mask").is_displayed())
    page.write("#change", "add <bo>")
    page.unfold("#editing details")
    page.write("#edittries", "4" if PICTURES else "1")
    page.write("#editseed", "2")
    if PICTURES:
        page.unfold("#editing details")
    page.press("Change it")
    page.wait(lambda: page.all("#edited .compare"))


def broken_rules(page: Page) -> list[str]:
    """What axe-core finds."""
    page.script(AXE.read_text(encoding="utf-8"))
    page.browser.set_script_timeout(30)
    found = page.browser.execute_async_script(  # type: ignore[no-untyped-call]
        "const done = arguments[0]; axe.run().then((it) => done(it.violations.map((rule) =>"
        " `${rule.id}: ${rule.nodes.map((node) => node.target).join(' ')}`)))"
    )
    return list(found)


def lost_on_the_way(page: Page) -> list[str]:
    """What the Tab key does not reach, or what does not show that it has the focus."""
    count = int(page.script(NUMBERED))
    reached: dict[int, str] = {}
    for _ in range(2 * count):  # it begins wherever the last click was, and goes round
        if len(reached.keys() - {-1}) == count:
            break
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        number, unseen = page.script(FOCUSED)
        reached[number] = unseen
    missed = [f"{number} is not reached" for number in range(count) if number not in reached]
    return missed + [unseen for unseen in reached.values() if unseen]


NUMBERED = """
const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, "
  + "[tabindex='0']")].filter((node) => node.checkVisibility() && !node.disabled);
all.forEach((node, index) => { node.dataset.number = index; });
return all.length"""

FOCUSED = """
const node = document.activeElement;
const shown = [node, node.closest(".drop, .file, .compare")].some((it) => it
  && getComputedStyle(it).outlineStyle !== "none" && parseFloat(getComputedStyle(it).outlineWidth));
return [Number(node.dataset.number ?? -1),
  shown || node === document.body ? "" : node.outerHTML.slice(0, 90)]"""


DONE = {"concepts": concepts, "teach": teach, "talk": talk, "paint": paint, "edit": edit}


def save(page: Page, path: Path) -> None:
    """The whole view as a small file."""
    height = min(1400, int(page.script("return document.documentElement.scrollHeight")))
    width = int(page.script("return innerWidth"))
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    shot = page.browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(BytesIO(base64.b64decode(shot["data"]))) as image:
        few = image.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
