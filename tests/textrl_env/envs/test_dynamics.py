"""Random tasks and actions against a slow, obvious model of the dynamics, in all three shells."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textrl_env import IntegerTokenizer, Prompt, TextGenerationEnv, TextGenerationVecEnv, TextGenerationVectorEnv, TextTask


class SlowText:
    """One text in plain lists: (id, written by the environment) pairs."""

    def __init__(self, spec, prompt):
        self.spec, self.prompt, self.tokens, self.turn, self.turn_start, self.reason = spec, prompt, [], 0, 0, ""
        self.turn_tokens = 0

    def words(self):
        return "".join(f" {token}" for token, _ in self.tokens if token != 0)

    def write(self, token):
        spec = self.spec
        closing = token == 0 or token in spec["stop_tokens"]
        illegal = closing and self.turn_tokens < spec["min_new_tokens"]
        if {0, *spec["stop_tokens"]} == set(range(spec["vocab"])) and token == 0:
            illegal = False  # nothing else is left
        self.tokens.append((token, False))
        self.turn_tokens += 1
        text = self.words()
        self.final = text
        reason = "eos" if token == 0 else "stop" if closing else "length" if len(self.tokens) == spec["max_new_tokens"] else ""
        starts = [i for stop in spec["stop_strings"] for i in range(self.turn_start, len(text)) if text[i:].startswith(stop)]
        if starts:
            reason, self.final = "stop", text[: min(starts)]
        if reason in ("", "length") and len(self.tokens) >= spec["ends_at"]:
            reason = "task"
        if illegal:
            reason = "illegal"
        if reason in ("eos", "stop") and spec["replies"] is not None:
            self.turn += 1
            reply = spec["replies"][len(self.tokens) % len(spec["replies"])]
            if self.turn == spec["max_turns"]:
                reason = "turns"
            else:
                if reply is None:
                    reason = "task"
                elif len(self.tokens) + len(reply) >= spec["max_new_tokens"]:
                    reason = "length"
                else:
                    self.tokens += [(t, True) for t in reply]
                    self.turn_start, self.turn_tokens, reason = len(self.words()), 0, ""
                    if len(self.tokens) >= spec["ends_at"]:
                        reason, self.final = "task", self.words()
        self.reason = reason


@st.composite
def specs(draw):
    vocab = draw(st.integers(2, 12))
    token = st.integers(0, vocab - 1)
    limit = draw(st.integers(1, 9))
    replies = draw(st.none() | st.lists(st.none() | st.lists(token, max_size=3), min_size=1, max_size=3))
    return {
        "vocab": vocab,
        "max_new_tokens": limit,
        "min_new_tokens": draw(st.integers(0, min(2, limit))),
        "stop_tokens": draw(st.lists(token, max_size=2)),
        "stop_strings": draw(st.lists(st.sampled_from(["1 1", " 2", "3 ", "10", "1 2 1", "0"]), max_size=2)),
        "replies": replies,
        "ends_at": draw(st.just(99) | st.integers(1, 9)),
        "max_turns": None if replies is None else draw(st.none() | st.integers(1, 3)),
        "prompts": draw(st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=3)),
    }


def task_of(spec):
    replies = spec["replies"]
    answer = None if replies is None else lambda episodes: [replies[len(e.response_ids) % len(replies)] for e in episodes]
    ends = None if spec["ends_at"] == 99 else lambda episodes: [len(e.response_ids) >= spec["ends_at"] for e in episodes]
    shared = {k: spec[k] for k in ("max_new_tokens", "min_new_tokens", "stop_tokens", "stop_strings", "max_turns")}
    prompts = [Prompt(" ".join(map(str, row))) for row in spec["prompts"]]
    return TextTask(IntegerTokenizer(spec["vocab"]), prompts, prompt_order="sequential", reply=answer, ends=ends, **shared)


def score(prompts, completions):
    return [len(c) + 0.5 * c.count("1") for c in completions]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs(), st.integers(1, 4), st.integers(0, 10**6))
def test_all_shells_do_what_the_slow_model_says(spec, rows, seed):
    task = task_of(spec)
    vector, sb3 = TextGenerationVectorEnv(rows, task, score), TextGenerationVecEnv(rows, task, score)
    obs, _ = vector.reset(seed=0)
    sb3.reset()
    dealt = iter(range(10**9))
    slow = [SlowText(spec, spec["prompts"][next(dealt) % len(spec["prompts"])]) for _ in range(rows)]
    rng = np.random.default_rng(seed)
    for _ in range(25):
        actions = rng.integers(spec["vocab"], size=rows)
        obs, rewards, terminated, truncated, infos = vector.step(actions)
        sb3_obs, sb3_rewards, dones, sb3_infos = sb3.step(actions)
        for row, text in enumerate(slow):
            text.write(int(actions[row]))
        for row, text in enumerate(slow):  # texts that ended take the next prompts in the order of their rows
            assert bool(terminated[row]) == bool(dones[row]) == bool(text.reason) and not truncated[row]
            if not text.reason:
                assert rewards[row] == sb3_rewards[row] == 0
                continue
            expected = -1.0 if text.reason == "illegal" else score(None, [text.final])[0]
            assert rewards[row] == sb3_rewards[row] == expected
            final = {key: value[row] for key, value in infos["final_info"].items()}
            for info in (final, sb3_infos[row]):
                assert (info["finish_reason"], info["response"], info["score"]) == (text.reason, text.final, expected)
            ids = [t for t, _ in text.tokens]
            for last in (infos["final_obs"][row], sb3_infos[row]["terminal_observation"]):
                assert last["response"].tolist() == ids + [-1] * (spec["max_new_tokens"] - len(ids))
            slow[row] = SlowText(spec, spec["prompts"][next(dealt) % len(spec["prompts"])])
        for row, text in enumerate(slow):
            for now in (obs, sb3_obs):
                assert [t for t in now["prompt"][row].tolist() if t >= 0] == text.prompt
                assert [t for t in now["response"][row].tolist() if t >= 0] == [t for t, _ in text.tokens]


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(0, 10**6))
def test_the_scalar_shell_does_too(spec, seed):
    env = TextGenerationEnv(task_of(spec), score)
    rng = np.random.default_rng(seed)
    env.reset(seed=0)
    number, text = 0, SlowText(spec, spec["prompts"][0])
    for _ in range(25):
        action = int(rng.integers(spec["vocab"]))
        obs, _, terminated, _, info = env.step(action)
        text.write(action)
        assert terminated == bool(text.reason)
        assert [t for t in obs["response"].tolist() if t >= 0] == [t for t, _ in text.tokens]
        if terminated:
            assert (info["finish_reason"], info["response"]) == (text.reason, text.final)
            number += 1
            obs, _ = env.reset()
            text = SlowText(spec, spec["prompts"][number % len(spec["prompts"])])
            assert [t for t in obs["prompt"].tolist() if t >= 0] == text.prompt
