"""Training against a reward server that fails, stalls, dies and comes back.  `make test-slow`."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import rewards

from .test_ppo import make

_PORT_OF = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"

_SERVER = """
import random, sys, time
import uvicorn
from rewards.remote.reward_server import make_app
from textrl_env import make_reward

random.seed(int(sys.argv[2]))
app = make_app(make_reward("length", target=6))

@app.middleware("http")
async def faults(request, call_next):
    import asyncio
    from starlette.responses import PlainTextResponse
    if random.random() < 0.2:
        return PlainTextResponse("no luck", 500)
    if random.random() < 0.05:
        await asyncio.sleep(5)
    return await call_next(request)

uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


@pytest.mark.slow
def test_a_run_against_a_bad_server_equals_one_with_the_reward_at_hand(make_env):
    """20% of the requests fail, some stall for 5 s, and the server is killed and restarted twice: the weights come out the same."""
    port = int(subprocess.run([sys.executable, "-c", _PORT_OF], capture_output=True, text=True, check=True).stdout)
    stop, killed = threading.Event(), []

    def keep_killing():
        rng = random.Random(0)
        seed = 0
        while not stop.is_set():
            server = subprocess.Popen([sys.executable, "-c", _SERVER, str(port), str(seed)])
            stop.wait(8 + 4 * rng.random() if seed < 2 else None)
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
            killed.append(seed)
            seed += 1
            stop.wait(2)

    thread = threading.Thread(target=keep_killing)
    thread.start()
    try:
        remote = rewards.make("http", url=f"http://127.0.0.1:{port}/score", batch_size=2, timeout=2)
        over = make(make_env(reward=remote))
        started = time.monotonic()
        while len(killed) < 2 or time.monotonic() - started < 20:
            over.learn(200, reset_num_timesteps=False)
            assert time.monotonic() - started < 300
        n = over.num_timesteps
    finally:
        stop.set()
        thread.join()
    at_hand = make(make_env(reward=rewards.make("length", target=6)))
    while at_hand.num_timesteps < n:
        at_hand.learn(200, reset_num_timesteps=False)
    assert at_hand.num_timesteps == n
    ours, theirs = over.get_parameters()["policy"], at_hand.get_parameters()["policy"]
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy())
