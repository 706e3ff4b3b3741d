"""What a review of local steps and of the faster desk found: each holds once it is mended."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from broker_world import make_rows
from test_broker_doorman import BINARY, PING, frame, serve

from accord.messages import Pull, encode
from accord.objective import OBJECTIVES
from accord.task import Schedule, Training, Validation, steps_size
from broker.screen import Screen
from broker.validator import Validator
from client.noise import clip_rows

D = 23


def left_in_the_model(allowed: int, decoy: int, contacts: int) -> list[int]:
    """Five honest clients and three with flipped labels, who make one step for each update, in
    turn; those begin with a decoy that says so many steps (0: without). How many opposed updates of
    each of the three are in the model in the end, not taken out again."""
    gradients = OBJECTIVES["logistic"].gradients
    rows, labels = make_rows(1, 1000, D, gap=1.0)
    mine, answers = make_rows(2, 3000, D, gap=1.0)
    training = Training(max_updates=4000, step=0.3, schedule="constant", local_steps=allowed)
    validator = Validator(
        OBJECTIVES["logistic"], rows, labels, Validation(false_alarm=0.001), training)
    rng, live = np.random.default_rng(1), np.zeros(D)
    left = dict.fromkeys(range(5, 8), 0)
    for contact in range(contacts):
        for k in range(8):
            flips, steps = k >= 5, 1
            some = rng.choice(len(mine), 50, replace=False)
            said = 1 - answers[some] if flips else answers[some]
            down = -clip_rows(gradients(live, mine[some], said), training.clip).mean(axis=0)
            if flips and decoy and contact == 0:
                steps, down = decoy, rng.normal(size=D)
                down *= training.clip / np.linalg.norm(down)
            verdict = validator.judge(
                b"%d" % k, live, live, steps_size(training, 1, steps) * down, steps)
            for change in (verdict.apply, verdict.mend):
                live = live if change is None else live + change
            if flips:
                left[k] = 0 if verdict.struck else left[k] + (verdict.apply is not None)
    return list(left.values())


@pytest.mark.parametrize(("allowed", "decoy"), [(1, 0), (50, 50), (1000, 1000)])
def test_one_update_that_says_many_steps_hides_none_of_the_single_ones_after_it(
    allowed: int, decoy: int,
) -> None:
    assert max(left_in_the_model(allowed, decoy, contacts=60)) <= 5


@pytest.mark.parametrize("schedule", ["1/sqrt(t)", "1/t"])
def test_whoever_comes_first_and_says_a_thousand_steps_shortens_nobodys(
    schedule: Schedule,
) -> None:
    def share(said: int) -> float:
        """How much is let through of what others send, in their first 200 updates."""
        screen = Screen(Validation(), Training(schedule=schedule, step=1.0, local_steps=1000))
        screen.look(b"liar", np.zeros(3), np.zeros(3), None, said)
        through = []
        for t in range(1, 201):
            for name in range(8):
                delta = np.array([0.0, 0.4 * steps_size(screen._training, t, 1), 0.0])
                step = screen.look(b"%d" % name, np.zeros(3), delta, None).step
                assert step is not None
                through.append(np.linalg.norm(step) / np.linalg.norm(delta))
        return float(np.mean(through))

    assert share(1000) > 0.9 * share(1)


async def test_pings_at_hand_do_not_hold_up_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They wait for no disk, so that nothing but this makes them take turns with others."""
    passes, answered = 0, Counter[int]()
    real = web.WebSocketResponse.pong

    async def pong(self: Any, message: bytes = b"") -> None:
        answered[passes] += 1
        await real(self, message)

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(web.WebSocketResponse, "pong", pong)
    async with serve(tmp_path) as place, place.member() as member:
        counting = asyncio.create_task(count())
        member.writer.write(frame(PING) * 300)
        member.writer.write(frame(BINARY, encode(Pull())))
        async with asyncio.timeout(20):
            while not answered:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)
    assert max(answered.values()) <= 20
