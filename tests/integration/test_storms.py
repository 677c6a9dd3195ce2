"""Hibernations, wakes and requests on the same sessions through two gateways at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.support.two_gateways import two


def test_storm_of_hibernations_and_wakes_costs_no_request(tmp_path: Path) -> None:
    """Whichever gateway has the session at the moment, each request is answered; only a hibernation may be refused."""
    wrong: list[str] = []
    with two(tmp_path, "--snapshots", f"file://{tmp_path}/snapshots") as (a, b, _):
        session = a.session()
        answered = 0

        def storm(seed: int) -> int:
            dice = random.Random(seed)
            done = 0
            with httpx.Client(timeout=60.0) as client:
                for _ in range(25):
                    url = dice.choice((a.url, b.url))
                    verb = dice.choice(("hibernate", "wake", "request", "request"))
                    if verb == "request":
                        body = {"command": ["sh", "-c", "echo x >> log"]}
                        reply = client.post(f"{url}/api/execute", json=body, headers={"x-session-id": session})
                        done += reply.status_code == 200
                    else:
                        reply = client.post(f"{url}/v1/sessions/{session}/{verb}")
                    # 409: it has requests under way, or is no longer awake.
                    if reply.status_code != 200 and not (verb == "hibernate" and reply.status_code == 409):
                        wrong.append(f"{verb}: {reply.status_code} {reply.text[:200]}")
            return done

        with ThreadPoolExecutor(6) as threads:
            answered = sum(threads.map(storm, range(6)))
        assert not wrong, wrong[:5]
        assert len(a.run(session, "cat log").json()["stdout"].split()) == answered
