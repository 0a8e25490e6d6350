"""The page in a real browser: teach, ask, paint, edit, stop, reload, two tabs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, chromium
from live_server import Live, Serve, opened, until
from PIL import Image
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as opened:
        yield opened


def files(photos: Path, count: int = 10) -> str:
    return "\n".join(str(path) for path in sorted(photos.glob("*.png"))[:count])


def test_a_character_is_taught_from_dropped_photos_and_found_again_after_a_reload(
    serve: Serve, browser: WebDriver, photos: Path
) -> None:
    with serve() as live:
        page = Page(browser, live).open()
        page.go("teach")
        page.find("#photos").send_keys(files(photos, 5))
        page.wait(lambda: "held out" in page.find("#plan").text)
        assert len(page.all("#photogrid li")) == 5 and "5 photos" in page.find("#plan").text
        page.write("#newname", "mam")
        page.write("#newfact", "its toy is a red ball").send_keys(Keys.ENTER)
        page.unfold("#teaching details")
        page.write("#steps", "40")
        page.wait(lambda: page.find("#learn").is_enabled())
        page.press("Learn")
        page.wait(lambda: page.all(".job .loss"))
        assert page.find("#plan").text == "" and not page.all("#photogrid li")
        browser.refresh()
        page.ready()
        page.go("teach")
        page.wait(lambda: page.all(".job .loss"))
        assert page.find(".job h2").text == "<mam>"
        (job,) = live.served.jobs.all()
        page.wait(lambda: job.step > 7)  # the first checkpoint is behind it
        page.press("Stop")
        page.wait(lambda: page.find(".job .badge").text == "stopped")
        stopped_at = job.step
        assert 0 < stopped_at < 40

        browser.switch_to.new_window("tab")
        second = Page(browser, live).open()
        second.go("teach")
        second.press("Go on")
        second.wait(lambda: job.state == "done", seconds=120)
        second.wait(lambda: second.find(".job .badge").text in ("good", "fair", "weak"))
        browser.close()
        browser.switch_to.window(browser.window_handles[0])
        page.wait(lambda: page.find(".job .badge").text in ("good", "fair", "weak"))
        assert "went on from step" in page.find(".job .facts-line").text
        assert page.all(".job .film img")
        page.go("concepts")
        page.wait(lambda: "mam" in page.find("#cards").text)
        assert "red ball" in page.find("[data-name=mam]").text
        assert page.complaints() == []


def test_photos_that_will_not_do_are_shown_before_anything_is_learned(
    live: Live, browser: WebDriver, photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no picture")
    page = Page(browser, live).open()
    page.go("teach")
    page.find("#photos").send_keys(f"{files(photos, 2)}\n{broken}\n{photos / '00.png'}")
    page.wait(lambda: "only two photos" in page.find("#plan").text)
    plan = page.find("#plan").text
    assert "not a picture" in plan and "the same picture" in plan
    assert len(page.all("#photogrid li.flawed")) == 2
    page.all("#photogrid button")[-1].click()
    page.wait(lambda: page.find("#plan").text and "the same picture" not in page.find("#plan").text)
    page.wait(lambda: "only two photos" in page.find("#plan").text)
    focused = "return document.activeElement.getAttribute('aria-label')"
    assert page.script(focused) == "Take photo 3 out", "the focus stays among the photos"


def test_talk_paint_and_edit(
    serve: Serve, browser: WebDriver, photos: Path, tmp_path: Path
) -> None:
    with serve() as live:
        page = Page(browser, live).open()

        page.go("talk")
        page.find("#talkfile").send_keys(str(photos / "00.png"))
        page.write("#question", "is <bo> here?").send_keys(Keys.ENTER)
        page.wait(lambda: page.all(".verdict"))
        assert page.find(".verdict .badge").text in ("yes", "no", "not sure")
        assert "% yes" in page.find(".verdict").text
        page.write("#question", "what is its toy?").send_keys(Keys.ENTER)
        page.wait(lambda: page.all(".turn.theirs")[-1].text.startswith("a teal star"))

        first = _paint_with_a_corrected_memory(page, live, tmp_path)
        again = _paint_it_again(page, first, tmp_path)
        _edit_it(page, again, tmp_path)

        page.press("Ask", within="#edited")
        page.wait(lambda: page.find("#talk").is_displayed() and page.all("#talkdrop img"))
        assert page.complaints() == []


def _paint_with_a_corrected_memory(page: Page, live: Live, folder: Path) -> Path:
    """A wrong memory is corrected before painting and kept; the file that is saved."""
    page.go("paint")
    page.write("#prompt", "<b").send_keys(Keys.TAB)
    page.find("#prompt").send_keys(" with its toy")
    assert page.find("#prompt").get_attribute("value") == "<bo> with its toy"
    page.write("#seed", "5")
    page.press("Paint")
    page.wait(lambda: page.find("#memory").is_displayed())
    memory = page.find("[data-memory]")
    assert memory.get_attribute("value") == "a teal star"
    memory.clear()
    memory.send_keys("a blue car", Keys.TAB)
    page.wait(lambda: "blue car" in (page.find("#rewritten").get_attribute("value") or ""))
    page.press("Keep as fact")
    library = live.served.shown.library
    page.wait(lambda: "blue car" in " ".join(it.text for it in library.header("bo").facts))
    assert "teal star" not in " ".join(it.text for it in library.header("bo").facts)
    page.unfold("#painting details")
    page.write("#paintsteps", "2")
    page.press("Paint it like this")
    page.wait(lambda: len(page.all("#painted .shot > img")) == 2)
    assert "blue car" in page.find("#painted figcaption").text
    assert "seed 5" in page.find("#painted .facts-line").text

    first = saved(page, page.find("#painted a[download]"), folder / "first")
    assert json.loads(picture(first).info["omnipersona"])["seed"] == 5
    return first


def _paint_it_again(page: Page, first: Path, folder: Path) -> Path:
    """A dropped PNG brings its prompt and seed back, and the same picture, though the first was
    one of two."""
    again = _made_from(page, first, folder / "again")
    assert picture(again).tobytes() == picture(first).tobytes()
    return again


def _made_from(page: Page, file: Path, folder: Path) -> Path:
    page.write("#seed", "77")
    page.find("#againfile").send_keys(str(file))
    page.wait(lambda: page.find("#seed").get_attribute("value") == "5")
    before = len(page.all("#painted .shot > img"))
    page.press("Paint")
    page.wait(lambda: len(page.all("#painted .shot > img")) == before + 1)
    return saved(page, page.find("#painted a[download]"), folder)


def _edit_it(page: Page, before: Path, folder: Path) -> None:
    """What was not drawn over stays as it was."""
    page.press("Edit", within="#painted .shot:first-child")
    page.wait(lambda: page.find("#mask").is_displayed())
    draw(page)
    page.write("#change", "add <bo>")
    page.unfold("#editing details")
    page.write("#edittries", "1")
    page.press("Change it")
    page.wait(lambda: page.all("#edited .compare"))
    slider = page.find("#edited .compare input")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert (
        page.script(
            "return arguments[0].style.getPropertyValue('--at')", page.find("#edited .compare")
        )
        == "51%"
    )
    after = picture(saved(page, page.find("#edited a[download]"), folder / "after"))
    assert after.getpixel((63, 63)) == picture(before).getpixel((63, 63))
    assert after.tobytes() != picture(before).tobytes()


def test_a_picture_is_painted_fast_and_made_again_as_fast(
    live: Live, browser: WebDriver, tmp_path: Path
) -> None:
    page = Page(browser, live).open()
    page.go("paint")
    page.write("#prompt", "<bo>")
    page.write("#count", "1")
    page.write("#seed", "5")
    page.unfold("#painting details")
    assert "10 steps instead of 24" in page.find("label:has(#fast)").text
    page.find("#fast").click()
    page.find("#replay").click()
    page.press("Paint")
    page.wait(lambda: page.all("#painted .shot > img"))
    first = saved(page, page.find("#painted a[download]"), tmp_path / "first")
    assert json.loads(picture(first).info["omnipersona"])["fast"] is True
    page.find("#fast").click()
    again = _made_from(page, first, tmp_path / "again")
    assert page.find("#fast").is_selected()
    assert picture(again).tobytes() == picture(first).tobytes()


def test_stop_ends_a_painting(live: Live, browser: WebDriver) -> None:
    page = Page(browser, live).open()
    page.go("paint")
    page.write("#prompt", "<bo>")
    page.unfold("#painting details")
    page.write("#paintsteps", "1000")
    page.press("Paint")
    page.wait(lambda: page.all("#painted .pending") and live.served.worker.running)
    page.press("Stop")
    page.wait(lambda: not live.served.worker.running, seconds=5)
    page.wait(lambda: not page.all("#painted .pending"))


def draw(page: Page) -> None:
    """A stroke with the finger in the upper left corner."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = page.find("#mask")
    page.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    chain = ActionChains(page.browser).move_to_element_with_offset(canvas, -60, -60)
    chain.click_and_hold().move_by_offset(30, 20).move_by_offset(-10, 30).release().perform()


def saved(page: Page, link: WebElement, folder: Path) -> Path:
    """The file that a press on "Save" leaves in ``folder``."""
    folder.mkdir()
    page.browser.execute_cdp_cmd(
        "Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    page.script("arguments[0].scrollIntoView({block: 'center'})", link)
    link.click()
    until(lambda: list(folder.glob("*.png")))
    return next(folder.glob("*.png"))


def picture(path: Path) -> Image.Image:
    """The picture in a file."""
    return opened(path.read_bytes())
