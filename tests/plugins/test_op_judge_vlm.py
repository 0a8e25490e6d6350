"""The vision-language judge against a real server on this machine, which misbehaves."""

import base64
import io
import json
import socket
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from omnipersona_cli.errors import MissingError, PersonaError, UsageError
from omnipersona_cli.hookspecs import JudgeItem
from op_judge import vlm
from op_judge.questions import RULES, read_reply
from op_judge.vlm import VlmJudge

KEY = "sk-very-secret"


class Unruly(ThreadingHTTPServer):
    """Does what ``acts`` says, one for each request, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts, self.asked, self.headers = [], [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        self.server.headers.append(dict(self.headers))
        act = self.server.acts.pop(0)
        if isinstance(act, int):
            return self.reply(act, b"{}")
        if act == "late":
            time.sleep(1.0)
        elif act == "drip":
            return self.drip(b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"choices": []')
        elif act == "drip from the start":
            return self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 60)
        elif act == "hang up":
            return self.close()
        elif act == "cut off":
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"cho')
            return self.close()
        elif act == "endless":
            return self.reply(200, b" " * (vlm.LARGEST_REPLY + 1))
        elif act == "no JSON":
            return self.reply(200, b"<html>busy</html>")
        elif act == "other JSON":
            return self.reply(200, b'{"choices": []}')
        elif act == "no text":
            return self.reply(200, b'{"choices": [{"message": {"content": null}}]}')
        text = {"choices": [{"message": {"content": act}}]}
        return self.reply(200, json.dumps(text).encode())

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # whoever asked has gone

    def drip(self, data):
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)  # each byte is in time, all of them are not
        except OSError:
            pass
        self.close_connection = True

    def close(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *said):
        pass


@pytest.fixture
def server():
    unruly = Unruly()
    threading.Thread(target=unruly.serve_forever, daemon=True).start()
    yield unruly
    unruly.shutdown()
    unruly.server_close()


@pytest.fixture
def judge(server, monkeypatch):
    monkeypatch.setenv("OMNIPERSONA_VLM_URL", server.url)
    monkeypatch.setenv("OMNIPERSONA_VLM_MODEL", "looker-1")
    monkeypatch.setenv("OMNIPERSONA_VLM_KEY", KEY)
    monkeypatch.setenv("OMNIPERSONA_VLM_TIMEOUT", "20")
    monkeypatch.setattr(vlm, "PAUSE", 0.0)
    return VlmJudge()


@pytest.fixture
def hurried(judge, monkeypatch):
    monkeypatch.setenv("OMNIPERSONA_VLM_TIMEOUT", "0.5")
    return VlmJudge()


def answer(text="a ball"):
    return JudgeItem(kind="answer", prompt="what is its toy?", answer=text, gold="a red ball")


def colours(asked):
    """The colours of the pictures in a request, in order."""
    found = []
    for part in asked["messages"][1]["content"]:
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            found.append(Image.open(io.BytesIO(data)).getpixel((0, 0)))
    return found


def test_every_item_is_a_call_of_its_own_with_the_key_in_its_header(judge, server):
    server.acts = ["0.5", "1"]
    assert judge.score(answer()).score == 0.5
    assert judge.score(answer("a red ball")).score == 1
    assert [len(asked["messages"]) for asked in server.asked] == [2, 2]
    (said,) = server.asked[1]["messages"][1]["content"]
    assert json.loads(said["text"])["answer"] == "a red ball"
    assert server.asked[0]["model"] == "looker-1" and server.asked[0]["temperature"] == 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_pictures_are_sent_in_the_order_that_the_rule_speaks_of(judge, server):
    server.acts = ["8 10", "yes", "9, 7"]
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (2000, 10), "blue")
    edit = JudgeItem(kind="edit-sc", images=(red, blue), prompt="paint it blue")
    assert judge.score(edit).score == pytest.approx(0.8)
    there = JudgeItem(kind="presence", images=(red,), references=(blue,) * 9)
    assert judge.score(there).score == 1
    assert judge.score(JudgeItem(kind="edit-pq", images=(red, blue))).score == pytest.approx(0.7)
    seen = [colours(asked) for asked in server.asked]
    assert seen[0] == [(255, 0, 0), (0, 0, 255)]
    assert seen[1] == [(0, 0, 255)] * 3 + [(255, 0, 0)]
    assert seen[2] == [(0, 0, 255)]  # the result alone


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (500, "HTTP 500"),
        (429, "HTTP 429"),
        ("hang up", "connection broke"),
        ("cut off", "connection broke"),
        ("endless", "more than"),
        ("no JSON", "not a chat completion"),
        ("other JSON", "not a chat completion"),
        ("no text", "no text"),
        ("I would say 7 of 10", "not in the asked form"),
    ],
)
def test_what_goes_wrong_is_asked_once_more_and_then_counted(judge, server, act, said):
    server.acts = [act, "1"]
    assert judge.score(answer()).score == 1
    server.acts = [act, act, "1"]
    verdict = judge.score(answer())
    assert verdict.failed and verdict.score is None and said in verdict.detail
    assert server.acts == ["1"]  # two attempts, and no third


@pytest.mark.parametrize("act", ["late", "drip", "drip from the start"])
def test_a_reply_that_does_not_come_in_time_is_given_up_twice(hurried, server, act):
    server.acts = [act, act, "1"]
    verdict = hurried.score(answer())
    assert verdict.failed and verdict.score is None and "no reply in 0.5 s" in verdict.detail
    assert server.acts == ["1"]


@pytest.mark.parametrize(("status", "said"), [(401, "key"), (404, "no such"), (302, "moved")])
def test_an_endpoint_that_refuses_us_stops_the_run_and_the_key_is_not_shown(
    judge, server, status, said
):
    server.acts = [status]
    with pytest.raises(PersonaError, match=said) as caught:
        judge.score(answer())
    assert "finished items are kept" in caught.value.hint
    assert KEY not in f"{caught.value}{caught.value.hint}{judge.id}{judge.remarks}"


def test_nobody_there_stops_the_run(judge, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(PersonaError, match=r"cannot be reached at 127\.0\.0\.1") as caught:
        judge.score(answer())
    assert "start it" in caught.value.hint


def test_failing_again_and_again_stops_the_run_and_once_in_a_while_does_not(judge, server):
    many = vlm.MOST_IN_A_ROW - 1
    server.acts = [500, 500] * many + ["1"] + [500, 500] * (many + 1)
    assert all(judge.score(answer()).failed for _ in range(many))
    assert judge.score(answer()).score == 1
    assert all(judge.score(answer()).failed for _ in range(many))
    with pytest.raises(PersonaError, match="times in a row; the last time: HTTP 500"):
        judge.score(answer())


def test_what_lacks_a_picture_is_not_asked(judge, server):
    assert judge.score(JudgeItem(kind="parg", prompt="with its toy")).failed
    assert judge.score(JudgeItem(kind="presence", images=(Image.new("RGB", (9, 9)),))).failed
    assert server.asked == []


def test_it_says_where_pictures_go_and_what_scores_are_comparable_by(judge, server):
    (remark,) = judge.remarks
    assert "looker-1" in remark and f"127.0.0.1:{server.server_port}" in remark
    assert judge.id.startswith("vlm:looker-1@") and set(judge.kinds) == set(RULES)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("URL", "", MissingError),
        ("MODEL", "", MissingError),
        ("URL", "localhost:8000", UsageError),
        ("URL", "ftp://localhost", UsageError),
        ("URL", "http://[::1", UsageError),
        ("KEY", "schlüssel", UsageError),
        ("KEY", "two\nlines", UsageError),
        ("TIMEOUT", "soon", UsageError),
        ("TIMEOUT", "-1", UsageError),
        ("TIMEOUT", "nan", UsageError),
        ("URL", "https://example.org/v1", MissingError),  # the tests are offline
    ],
)
def test_settings_that_mean_nothing_are_refused_at_once(judge, monkeypatch, name, value, error):
    monkeypatch.setenv(f"OMNIPERSONA_VLM_{name}", value)
    with pytest.raises(error) as caught:
        VlmJudge()
    assert caught.value.hint and "schlüssel" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "reply", "score"),
    [
        ("answer", "1", 1.0),
        ("answer", " 0.5.\n", 0.5),
        ("answer", "Score: 0", 0.0),
        ("parg", ".5", 0.5),
        ("parg", "0.7", None),
        ("parg", "10", None),
        ("parg", "between 0 and 1", None),
        ("edit-sc", "[8, 9]", 0.8),
        ("edit-sc", "10/3", 0.3),
        ("edit-sc", "11 3", None),
        ("edit-sc", "8", None),
        ("edit-pq", "8 9 10", None),
        ("presence", "Yes.", 1.0),
        ("presence", "no", 0.0),
        ("presence", "yes and no", None),
    ],
)
def test_only_the_asked_form_is_a_score(kind, reply, score):
    assert read_reply(kind, reply) == score


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        f"Bearer {KEY} is wrong",
        base64.b64encode(KEY.encode()).decode(),
        f"{KEY[:9]}...",
        f"...{KEY[5:]}",
        "x" * (vlm.LONGEST_DETAIL - 9) + KEY,
    ],
)
def test_a_key_that_the_server_sends_back_is_kept_and_shown_nowhere(server, judge, echo, capfd):
    server.acts = [f"1 {echo}", f"1 {echo}"] * vlm.MOST_IN_A_ROW
    failed = [judge.score(answer()) for _ in range(vlm.MOST_IN_A_ROW - 1)]
    with pytest.raises(PersonaError) as raised:
        judge.score(answer())
    shown = "".join(traceback.format_exception(raised.value)) + repr(judge.__dict__) + repr(failed)
    assert all(verdict.failed for verdict in failed)
    for part in (KEY[:9], KEY[5:], base64.b64encode(KEY.encode()).decode()[:12]):
        assert part not in shown


def test_an_endpoint_is_shown_without_its_key():
    endpoint = vlm.Endpoint(url="https://a.b/v1", model="m", key=KEY, seconds=1.0)
    assert KEY not in repr(endpoint)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://judge.example/v1", "plain http to judge.example"),
        ("http://10.0.0.7:8000/v1", "plain http to 10.0.0.7"),
        ("http://localhost.example/v1", "plain http"),
        ("https://me:sk-very-secret@judge.example/v1", "more than an address"),
        ("https://judge.example/v1?key=sk-very-secret", "more than an address"),
    ],
)
def test_addresses_that_would_show_the_key_to_others_are_refused(url, said):
    named = {"OMNIPERSONA_VLM_URL": url, "OMNIPERSONA_VLM_MODEL": "m"}
    with pytest.raises(UsageError, match=said) as raised:
        vlm.endpoint_from(named)
    assert KEY not in "".join(traceback.format_exception(raised.value)) + raised.value.hint
    assert raised.value.__cause__ is None


def test_plain_http_to_another_machine_can_be_allowed():
    named = {"OMNIPERSONA_VLM_URL": "http://judge.example/v1", "OMNIPERSONA_VLM_MODEL": "m"}
    assert vlm.endpoint_from({**named, "OMNIPERSONA_VLM_PLAIN": "1"}).host == "judge.example"
    for local in ("http://127.0.0.9:1/v1", "http://[::1]:1/v1", "http://LOCALHOST/v1"):
        assert vlm.endpoint_from({**named, "OMNIPERSONA_VLM_URL": local})
