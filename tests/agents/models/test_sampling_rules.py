"""The distribution under every rule, against plain Python over all texts of a tiny vocabulary."""

import itertools
import math

import numpy as np
import pytest
import torch

from agents import SequenceRolloutBuffer, TextPPO, TransformerPolicy, generate
from agents.models.loading import frozen, load_lm
from agents.models.sampler import Sampler
from agents.rollouts.collect import play_episodes
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import LLAMA

V, T, PROMPT = 5, 4, [2, 3]
MODEL = {**LLAMA, "vocab_size": V}
CONSTRAINT = {"allowed_tokens": [0, 1, 3, 4]}
CASES = {
    "no rules": {},
    "temperature": {"temperature": 0.6},
    "minimum length": {"min_new_tokens": 3},
    "banned": {"banned_tokens": [2, 4]},
    "no token twice": {"no_repeat_ngram": 1},
    "no pair twice": {"no_repeat_ngram": 2},
    "no triple twice": {"no_repeat_ngram": 3},
    "top-k": {"top_k": 2},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.4},
    "mask": {"constraint": CONSTRAINT},
    "all at once": {
        "temperature": 1.3, "min_new_tokens": 1, "banned_tokens": [3], "no_repeat_ngram": 2, "top_k": 3, "top_p": 0.9, "min_p": 0.1,
        "constraint": CONSTRAINT,
    },
}  # fmt: skip


def rules_of(case):
    return {name: value for name, value in case.items() if name != "constraint"}


def make(case, num_rows=64):
    task = TextTask(IntegerTokenizer(V, 0), [Prompt("2 3")], max_new_tokens=T, constraint=case.get("constraint"))
    env = TextGenerationVecEnv(num_rows, task=task, reward=lambda completions: [float(len(c)) for c in completions])
    env.seed(5)
    return env, TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=MODEL, **rules_of(case))


def static(lm, written, case):
    """The weights of all tokens after `written` under the static rules, in Python's own floats."""
    with torch.no_grad():
        logits = lm(torch.tensor([PROMPT + list(written)])).logits[0, -1].double().tolist()
    weight = [math.exp(x / case.get("temperature", 1.0)) for x in logits]
    if len(written) < case.get("min_new_tokens", 0):
        weight[0] = 0.0
    for token in case.get("banned_tokens", ()):
        weight[token] = 0.0
    n = case.get("no_repeat_ngram", 0)
    seen = {tuple(written[i : i + n]) for i in range(len(written) - n + 1)} if n else set()
    for token in range(1, V):
        if n and tuple([*written, token][-n:]) in seen and len(written) >= n - 1:
            weight[token] = 0.0
    if "constraint" in case:
        weight[2] = 0.0
    return weight


def plain(lm, written, case, kept=None):
    """The distribution after `written`, and which tokens have a place in it."""
    weight = static(lm, written, case)
    if kept is None:
        kept = [w > 0 for w in weight]
        order = sorted(range(V), key=lambda token: -weight[token])
        for token in order[case.get("top_k") or V :]:
            kept[token] = False
        total = sum(w for w, k in zip(weight, kept, strict=False) if k)
        before = 0.0
        for token in order:
            if before >= case.get("top_p", 1.0) * total:
                kept[token] = False
            before += weight[token] if kept[token] else 0.0
        for token in range(V):
            kept[token] = kept[token] and weight[token] >= case.get("min_p", 0.0) * max(weight)
    total = sum(w for w, k in zip(weight, kept, strict=False) if k)
    return [w / total if k else 0.0 for w, k in zip(weight, kept, strict=False)], kept


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_log_probs_entropy_ratios_and_kl(case):
    env, policy = make(case)
    reference = frozen(load_lm(MODEL))  # other random weights
    buffer = SequenceRolloutBuffer(1, env.observation_space, env.action_space, "cpu", n_envs=64, reference=reference, beta=0.3)
    for _ in play_episodes(policy, env, buffer, 200):
        pass
    samples = buffer.samples(np.arange(200))
    with torch.no_grad():
        _, log_probs, entropies = policy.evaluate_actions(samples.observations, samples.actions)
    at = 0
    for segment in buffer.segments:
        written = []
        for action in buffer.actions[at : at + segment.steps.stop - segment.steps.start]:
            p, kept = plain(policy.lm, written, case)
            q, _ = plain(reference, written, case, kept)
            assert p[action] > 0, (written, action)
            assert buffer.log_probs[at] == pytest.approx(math.log(p[action]), abs=2e-5)
            assert float(log_probs[at]) == pytest.approx(float(buffer.log_probs[at]), abs=1e-5)  # the first ratio is 1
            assert float(entropies[at]) == pytest.approx(-sum(x * math.log(x) for x in p if x), abs=2e-5)
            assert buffer.kl[at] == pytest.approx(math.log(p[action] / q[action]), abs=4e-5)
            written.append(int(action))
            at += 1
    assert at == len(buffer.actions) and np.isfinite(buffer.kl).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_deterministic_is_the_argmax_of_that_distribution(case):
    env, policy = make(case, num_rows=1)
    obs, written = env.reset(), []
    while True:
        masks = env.action_masks() if "constraint" in case else None
        action = policy.predict(obs, deterministic=True, action_masks=masks)[0]
        p, _ = plain(policy.lm, written, case)
        assert p[int(action[0])] == max(p)
        written.append(int(action[0]))
        obs, _, dones, _ = env.step(action)
        if dones[0]:
            break


@pytest.mark.parametrize("n", [1, 2, 3])
def test_repeats_by_brute_force(n):
    rng = np.random.default_rng(n)
    responses = [rng.integers(4, size=length) for length in (0, 1, 2, 7, 12)]
    steps = [np.arange(len(r) + 1) for r in responses]
    found = Sampler(no_repeat_ngram=n, eos_token_id=0).repeats(responses, steps)
    expected, offset = set(), 0
    for response in responses:
        for step, token in itertools.product(range(len(response) + 1), range(1, 4)):
            before = list(response[:step])
            grams = [before[i : i + n] for i in range(len(before) - n + 1)]
            if step >= n - 1 and ([*before, token])[-n:] in grams:
                expected.add((offset + step, token))
        offset += len(response) + 1
    assert {(int(a), int(t)) for a, t in found.T} == expected and expected


def test_rules_that_leave_nothing_are_refused():
    sampler = Sampler(banned_tokens=(1, 2), min_new_tokens=1, eos_token_id=0)
    with pytest.raises(ValueError, match="leave no token"):
        sampler.apply_rules(torch.zeros(1, 3), torch.tensor([0]))
    env, _ = make({})
    with pytest.raises(ValueError, match="ids go up to 4"):
        TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-3, model=MODEL, banned_tokens=[5])
    for name in ("no_repeat_ngram", "banned_tokens"):
        with pytest.raises(ValueError, match=name):
            Sampler(**{name: (-1,) if name == "banned_tokens" else -1})
    with pytest.raises(ValueError, match="min_p"):
        Sampler(min_p=2)


def test_training_and_generation_obey_the_environments_masks():
    """Random weights and a third of the vocabulary: without masks most texts would end at once as illegal."""
    env, _ = make({"constraint": {"one_of": [" 1 3", " 1 3 4", " 4 4 4"]}})
    agent = TextPPO("TransformerPolicy", env, n_episodes=64, batch_size=16, n_epochs=2, learning_rate=1e-2, policy_kwargs={"model": MODEL})
    agent.learn(600)
    offsets = agent.rollout_buffer._offsets
    written = {tuple(agent.rollout_buffer.actions[a:b].tolist()) for a, b in itertools.pairwise(offsets)}
    assert written <= {(1, 3, 0), (1, 3, 4, 0), (4, 4, 4, 0)}
    texts = generate(agent.policy, IntegerTokenizer(V, 0), ["2 3"] * 40, max_new_tokens=T, constraint={"one_of": [" 1 3", " 1 3 4"]})
    assert set(texts) == {" 1 3", " 1 3 4"}
