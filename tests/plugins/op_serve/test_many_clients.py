"""Many clients at once: each gets its own answers, none is lost, and the server stays up."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
from live_server import Live, Serve, opened

CLIENTS = 24
ROUNDS = 3
KNOWN = {"toy": "a teal star", "favourite food": "a red apple"}


def test_each_of_many_clients_gets_its_own_answers(serve: Serve) -> None:
    with serve(most_waiting=2 * CLIENTS) as live:
        alone = {seed: painted(live, live.client, seed) for seed in range(3)}
        healthy, over = [], threading.Event()

        def look() -> None:
            while not over.wait(0.05):
                healthy.append(live.client.get("/health").status_code)

        def talk(number: int) -> None:
            with httpx2.Client(
                base_url=live.url, headers=live.client.headers, timeout=60
            ) as client:
                for turn in range(ROUNDS):
                    about = sorted(KNOWN)[(number + turn) % 2]
                    assert asked(client, about) == KNOWN[about]
                    seed = (number + turn) % 3
                    assert painted(live, client, seed) == alone[seed]
                    give_up(client)

        watcher = threading.Thread(target=look)
        watcher.start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(talk, number) for number in range(CLIENTS)]:
                done.result(timeout=120)
        over.set()
        watcher.join()
        assert healthy and set(healthy) == {200}
        assert live.served.worker.waiting == 0


def asked(client: httpx2.Client, about: str) -> str:
    messages = [{"role": "user", "content": f"what is <bo>'s {about}?"}]
    answer = client.post("/v1/chat/completions", json={"messages": messages})
    return str(answer.json()["choices"][0]["message"]["content"])


def painted(live: Live, client: httpx2.Client, seed: int) -> bytes:
    body = {"prompt": "<bo> in the snow", "seed": seed, "steps": 1}
    answer = client.post("/v1/images/generations", json=body)
    return opened(base64.b64decode(answer.json()["data"][0]["b64_json"])).tobytes()


def give_up(client: httpx2.Client) -> None:
    """Ask for much, and go away before it is there."""
    body = {"prompt": "<bo>", "steps": 1000, "stream": True}
    try:
        client.post("/v1/images/generations", json=body, timeout=0.05)
    except httpx2.TimeoutException:
        return
    raise AssertionError("it was done at once")
