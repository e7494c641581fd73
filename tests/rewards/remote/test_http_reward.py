"""A reward model behind HTTP, against real servers on localhost."""

import contextlib
import copy
import itertools
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx2
import pytest
import uvicorn

import rewards
from agents.cli.main import main
from agents.cli.reward_serve import listen
from rewards import HttpReward, RewardError
from rewards.remote.http_reward import as_json
from rewards.remote.reward_server import Item, make_app
from textrl_env import Episode, TextGenerationEnv, WordTokenizer
from textrl_env.tasks.turns import FromTurns

from .servers import FaultyServer, episodes, lengths


def test_scores_in_order_and_equal_episodes_once():
    batch = [*episodes(50), *episodes(50)]
    with FaultyServer(lengths) as server:
        assert HttpReward(server.url, batch_size=16).score(batch) == [float(i) for i in range(50)] * 2
        assert sorted(len(body["episodes"]) for body in server.bodies) == [2, 16, 16, 16]


def test_what_is_sent():
    episode = Episode.from_text("ab", "c", references=("r",), metadata={"topic": 3})
    with FaultyServer(lengths) as server:
        rewards.make("http", url=server.url).score([episode])
        (row,) = server.bodies[0]["episodes"]
    assert (row["prompt"], row["response"], row["references"], row["metadata"]) == ("ab", "c", ["r"], {"topic": 3})
    assert row["finish_reason"] == episode.finish_reason and row["response_ids"] == episode.response_ids.tolist()


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", "garbage", ("stall", 2.0)])
def test_a_failure_that_passes_changes_no_score(fault):
    with FaultyServer(lengths, [fault, fault]) as server:
        started = time.monotonic()
        assert HttpReward(server.url, timeout=0.3, batch_size=4).score(episodes(20)) == [float(i) for i in range(20)]
        assert len(server.bodies) == 5 + 2 and time.monotonic() - started < 10


@pytest.mark.parametrize(("status", "fix"), [(404, "path of the url"), (401, "token"), (422, "what is sent"), (413, "batch_size")])
def test_a_refusal_stops_at_once(status, fix):
    with FaultyServer(lengths, [status] * 9) as server:
        with pytest.raises(RewardError, match=f"{status}.*no luck.*{fix}"):
            HttpReward(server.url).score(episodes(3))
        assert len(server.bodies) == 1


def test_garbage_is_asked_for_three_times():
    with FaultyServer(lengths, ["garbage"] * 9) as server:
        with pytest.raises(RewardError, match=r"not JSON.*<html>.*3 times; check the url"):
            HttpReward(server.url).score(episodes(3))
        assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0], "1 scores for 3"), ([1.0, float("nan"), 2.0], "nan for 'px'"), ([1.0, "2", 2.0], "'2' for 'px'"),
     ([1.0, True, 2.0], "True"), ("abc", "must be"), ([1.0, 10**400, 0.0], "finite")],
)  # fmt: skip
def test_answers_that_are_no_scores(scores, message):
    with FaultyServer(lambda body: {"scores": scores}) as server, pytest.raises(RewardError, match=message):
        HttpReward(server.url).score(episodes(3))


def test_a_dead_server_is_named_when_patience_is_over():
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/score"
        started = time.monotonic()
        with pytest.raises(RewardError, match=f"{url} has given no answer for 0.6 s"):
            HttpReward(url, patience_seconds=0.6).score(episodes(30))
        assert 0.6 <= time.monotonic() - started < 5


def test_a_server_that_restarts_is_waited_for(caplog):
    first = FaultyServer(lengths)
    model = HttpReward(first.url, batch_size=1, patience_seconds=30)
    assert model.score(episodes(5)) == [0.0, 1.0, 2.0, 3.0, 4.0]
    first.close()
    again = []

    def restart():
        time.sleep(1.5)
        again.append(FaultyServer(lengths, port=first.port))

    threading.Thread(target=restart).start()
    with caplog.at_level(logging.WARNING, "rewards.remote.circuit_breaker"):
        assert model.score(episodes(40)) == [float(i) for i in range(40)]
    assert "waiting up to" in caplog.text
    again[0].close()


def test_an_open_circuit_lets_one_request_through_at_a_time():
    with FaultyServer(lengths, [500] * 10, delay=0.02) as server:
        assert HttpReward(server.url, batch_size=1, concurrency=8).score(episodes(16)) == [float(i) for i in range(16)]
        # 8 requests were under way when the circuit opened; from then on one follows the other until one succeeds
        probes = server.times[8:11]
        assert min(b - a for a, b in itertools.pairwise(probes)) >= 0.1


def test_requests_under_way_are_bounded():
    with FaultyServer(lengths, delay=0.05) as server:
        HttpReward(server.url, batch_size=1, concurrency=3).score(episodes(24))
        assert server.most == 3


def test_retry_after_is_kept():
    with FaultyServer(lengths, [(429, {"Retry-After": "1"})]) as server:
        assert HttpReward(server.url).score(episodes(2)) == [0.0, 1.0]
        assert server.times[1] - server.times[0] >= 1.0
    with FaultyServer(lengths, [(429, {"Retry-After": "3600"})]) as server:
        with pytest.raises(RewardError, match="left alone for 3600 s"):
            HttpReward(server.url, patience_seconds=5).score(episodes(2))


def test_what_was_scored_of_a_failed_batch_is_not_asked_for_again():
    with FaultyServer(lengths, [None, None, None, 422]) as server:
        model = HttpReward(server.url, batch_size=1, concurrency=1)
        with pytest.raises(RewardError, match="422"):
            model.score(episodes(6))
        assert model.score(episodes(6)) == [float(i) for i in range(6)]
        asked = [body["episodes"][0]["response"] for body in server.bodies]
        assert asked == ["", "x", "xx", "xxx", "xxx", "xxxx", "xxxxx"]


def test_a_cache_on_disk_makes_a_second_run_free(tmp_path):
    path = tmp_path / "deep" / "scores.db"
    with FaultyServer(lengths) as server:
        HttpReward(server.url, cache=path).score(episodes(10))
        assert HttpReward(server.url, cache=path).score(episodes(11)) == [float(i) for i in range(11)]
        assert [len(body["episodes"]) for body in server.bodies] == [10, 1]
    assert HttpReward(server.url, cache=path, patience_seconds=0).score(episodes(11)) == [float(i) for i in range(11)]
    with pytest.raises(RewardError):  # another address is another judge
        HttpReward(server.url + "2", cache=path, patience_seconds=0).score(episodes(11))
    other = tmp_path / "other.db"
    other.write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"other.db.*delete it"):
        HttpReward(server.url, cache=other)


def test_null_does_not_apply(tmp_path):
    with FaultyServer(lambda body: {"scores": [None if len(e["response"]) == 1 else 2.0 for e in body["episodes"]]}) as server:
        over = HttpReward(server.url, cache=tmp_path / "scores.db")
        for _ in range(2):
            assert over.score(episodes(3)) == [2.0, None, 2.0]
        assert [len(body["episodes"]) for body in server.bodies] == [3, 1]  # a null is asked for again


def test_ctrl_c_ends_the_wait_and_loses_no_score(tmp_path):
    path = tmp_path / "scores.db"
    with FaultyServer(lengths, [None, None, ("stall", 60)]) as server:
        code = f"""
import signal
from rewards import HttpReward
from textrl_env import Episode
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a shell's background job
HttpReward({server.url!r}, batch_size=1, concurrency=1, timeout=60, cache={str(path)!r}).score(
    [Episode.from_text("p", "x" * i) for i in range(5)]
)"""
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        while len(server.bodies) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert "KeyboardInterrupt" in process.communicate(timeout=20)[1] and time.monotonic() - started < 10
        HttpReward(server.url, batch_size=1, cache=path).score(episodes(5))
        assert sorted(len(body["episodes"][0]["response"]) for body in server.bodies[3:]) == [2, 3, 4]


def test_begun_batches_share_the_requests_in_their_order():
    batches = [episodes(2 + i % 2, prompt=str(i)) for i in range(6)]
    with FaultyServer(lengths, delay=0.02) as server:
        model = HttpReward(server.url, batch_size=1, concurrency=1)
        begun = [model.begin_scoring(batch) for batch in batches]
        assert [model.score(batch) for batch in batches] == [[float(i) for i in range(len(batch))] for batch in batches]
        assert all(one.done() for (one,) in begun)
        asked = [(body["episodes"][0]["prompt"], len(body["episodes"][0]["response"])) for body in server.bodies]
        assert asked == [(str(i), j) for i in range(6) for j in range(2 + i % 2)]
    with FaultyServer(lengths, delay=0.05) as server:
        model = HttpReward(server.url, batch_size=1, concurrency=3)
        for batch in batches:
            model.begin_scoring(batch)
        assert [len(model.score(batch)) for batch in batches] == [2, 3] * 3 and server.most == 3 and len(server.bodies) == 15


def test_what_was_begun_fails_where_it_is_needed_and_once():
    with FaultyServer(lengths, [None, 422]) as server:
        model = HttpReward(server.url, concurrency=1)
        first, second = [episodes(2, prompt) for prompt in "ab"]
        for batch in (first, second):
            model.begin_scoring(batch)
        assert model.score(first) == [0.0, 1.0]
        with pytest.raises(RewardError, match=r"422.*no luck.*what is sent"):
            model.score(second)
        assert model.score(second) == [0.0, 1.0] and len(server.bodies) == 3


def test_what_is_cancelled_is_asked_anew():
    with FaultyServer(lengths, [("stall", 5)], delay=0.01) as server:
        model = HttpReward(server.url, batch_size=1, concurrency=1)
        begun = [*model.begin_scoring(episodes(3)), *model.begin_scoring(episodes(4))]
        while not server.bodies:
            time.sleep(0.005)
        started = time.monotonic()
        for one in begun:
            one.cancel()
        assert model.score(episodes(4)) == [0.0, 1.0, 2.0, 3.0] and time.monotonic() - started < 4
        assert len(server.bodies) == 5


def test_patience_is_that_with_the_server_not_with_each_batch():
    with FaultyServer(lengths, [500] * 1000) as server:
        model = HttpReward(server.url, batch_size=1, concurrency=2, patience_seconds=0.6)
        started = time.monotonic()
        for i in range(5):
            model.begin_scoring(episodes(1, str(i)))
        for i in range(5):
            with pytest.raises(RewardError, match=f"{server.url} has given no answer for 0.6 s"):
                model.score(episodes(1, str(i)))
        assert time.monotonic() - started < 3 * 0.6 + 1


@pytest.mark.parametrize(("cached", "asked"), [(False, 4), (True, 2)])
def test_equal_texts_under_way_are_asked_for_once_if_there_is_a_file(tmp_path, cached, asked):
    with FaultyServer(lengths, delay=0.05) as server:
        model = HttpReward(server.url, batch_size=1, cache=tmp_path / "scores.db" if cached else None)
        for _ in range(2):
            model.begin_scoring(episodes(2))
        assert [model.score(episodes(2)) for _ in range(2)] == [[0.0, 1.0]] * 2 and len(server.bodies) == asked


def test_combinations_pass_on_what_can_begin():
    with FaultyServer(lengths) as server:
        served, local = HttpReward(server.url), rewards.make("length")
        both = rewards.SumReward({"local": local, "served": rewards.ClipReward(served, 0, 1)})
        assert not hasattr(rewards.SumReward({"local": local}), "begin_scoring") and not hasattr(rewards.ClipReward(local), "begin_scoring")
        assert len(both.begin_scoring(episodes(3))) == 1
        assert len(pickle.loads(pickle.dumps(both)).begin_scoring(episodes(2))) == 1
        assert both.score(episodes(3)) == [local.score([e])[0] + min(i, 1) for i, e in enumerate(episodes(3))]
        broken = [Episode.from_text("p", "r", metadata={"x": object()})]
        with pytest.raises(RewardError, match=r"HttpReward.*failed on 1 episode\(s\), first 'pr'.*plain data"):
            both.begin_scoring(broken)


def test_secrets_come_from_the_environment(monkeypatch):
    with FaultyServer(lengths) as server:
        model = HttpReward(server.url, headers={"Authorization": "Bearer ${MY_TOKEN}"})
        monkeypatch.delenv("MY_TOKEN", raising=False)
        with pytest.raises(RewardError, match=r"MY_TOKEN.*not set"):
            model.score(episodes(1))
        monkeypatch.setenv("MY_TOKEN", "s3cret")
        assert model.score(episodes(2)) == [0.0, 1.0]
        assert server.headers[-1]["Authorization"] == "Bearer s3cret" and "s3cret" not in repr(vars(model))
    with pytest.raises(ValueError, match="holds a secret as it is"):
        HttpReward(server.url, headers={"X-Api-Key": "abc"})
    with pytest.raises(ValueError, match="secret"):
        HttpReward("http://me:pw@127.0.0.1/score")


@pytest.mark.parametrize("wrong", [{"url": "127.0.0.1:80"}, {"url": "ftp://x/y"}, {"batch_size": 0}, {"timeout": 0}, {"concurrency": 0}])
def test_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        HttpReward(**{"url": "http://127.0.0.1:1/score", **wrong})


def test_metadata_that_is_no_plain_data():
    with FaultyServer(lengths) as server, pytest.raises(RewardError, match="plain data"):
        HttpReward(server.url).score([Episode.from_text("p", "r", metadata={"x": object()})])


def test_copies():
    with FaultyServer(lengths) as server:
        model = HttpReward(server.url)
        model.score(episodes(1))
        assert copy.deepcopy(model) is model
        assert pickle.loads(pickle.dumps(model)).score(episodes(3)) == [0.0, 1.0, 2.0]


@contextlib.contextmanager
def served(name):
    """Serve a reward model from a thread of this process."""
    listener = listen("127.0.0.1", 0)
    model = rewards.make(name) if isinstance(name, str) else name
    server = uvicorn.Server(uvicorn.Config(make_app(model), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/score"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def serve(*arguments, env=None):
    """Start `textrl reward serve` and return the process and its address."""
    command = [sys.executable, "-m", "agents.cli", "reward", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    line = process.stdout.readline()
    if "http://" not in line:
        raise AssertionError(line + process.communicate(timeout=20)[1])
    return process, line.split(" at ")[-1].strip()


def test_a_served_reward_scores_as_the_reward_itself(monkeypatch):
    process, url = serve('{"name": "keyword", "keywords": ["good"]}', "--token", "SERVE_TOKEN", env={**os.environ, "SERVE_TOKEN": "abc"})
    try:
        texts = [Episode.from_text("so", text) for text in (" good", " good good", " bad", "")]
        monkeypatch.setenv("SERVE_TOKEN", "abc")
        over = HttpReward(url, headers={"Authorization": "Bearer ${SERVE_TOKEN}"})
        assert over.score(texts) == list(rewards.make("keyword", keywords=["good"]).score(texts))
        with pytest.raises(RewardError, match=r"401.*token"):
            HttpReward(url).score(texts)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode in (0, 130)


def test_a_served_reward_that_fails_names_the_text():
    with served("exact_match") as url, pytest.raises(RewardError, match=r"422.*so fine"):  # there is no reference to match
        HttpReward(url).score([Episode.from_text("so", " fine")])


def test_a_served_reward_that_does_not_apply():
    half = rewards.make("sum", terms={"long": lambda completions: [1.0 if len(text) > 2 else None for text in completions]})
    with served(half) as url:
        assert HttpReward(url).score(episodes(4)) == [None, None, None, 1.0]


def test_turns_are_sent_to_a_server_that_plays_them_again():
    class Pay:
        def reset(self, seed=None):
            return "go", {}

        def step(self, action):
            return "more", float(action == "[ x ]"), False, False, {}

    own = FromTurns(Pay, WordTokenizer(["go", "more", "[", "x", "]."]), seeds=[0])
    with served(own) as url:
        env = TextGenerationEnv(own.task(7, stop_strings=["]"]), reward=HttpReward(url))
        env.reset(seed=0)
        paid = [env.step(token)[1] for token in [3, 4, 5] * 2]
    assert paid == [0, 0, 0, 0, 0, 2]


def test_the_served_schema():
    with served("length") as url:
        health = httpx2.get(url.replace("/score", "/health"))
        assert health.status_code == 200 and health.json() == {"status": "ok"}
        answer = httpx2.post(url, json={"episodes": [{"prompt": "a", "response": "b"}]})
        assert answer.status_code == 200 and len(answer.json()["scores"]) == 1
        for wrong in ({"episodes": [{"prompt": 1, "response": "b"}]}, {"episodes": [{"prompt": "a"}]}, {"texts": []}):
            answer = httpx2.post(url, json=wrong)
            assert answer.status_code == 422 and "episodes" in json.dumps(answer.json())
        assert httpx2.post(url, content=b"{").status_code == 422
        assert httpx2.get(url).status_code == 405 and httpx2.get(url + "s").status_code == 404


def test_a_port_that_is_taken(capsys):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert main(["reward", "serve", "length", "--port", str(held.getsockname()[1])]) == 2
    assert "choose another" in " ".join(capsys.readouterr().err.split())


@pytest.mark.reports("A served reward hears whether a chat template wrote the prompt, and what people typed into it")
def test_what_a_template_wrote_reaches_the_server():
    plain = Episode.from_text("a", " b")
    assert "typed" not in as_json(plain)
    for typed in ((), ((0, 3), (5, 9))):
        sent = as_json(replace(plain, typed=typed))
        assert Item.model_validate(json.loads(json.dumps(sent))).episode().typed == typed
    assert Item.model_validate(as_json(plain)).episode().typed is None
    with pytest.raises(ValueError, match="at least 2 items"):
        Item.model_validate({**as_json(plain), "typed": [[1]]})
