"""The distribution under every rule, against plain Python over all texts of a tiny vocabulary."""

import dataclasses
import functools
import itertools
import math
import re

import numpy as np
import pytest
import torch

from agents import NLPO, SequenceRolloutBuffer, TextPPO, TransformerPolicy, best_of_n, generate, stream
from agents.evaluation.policy_texts import write_texts
from agents.models.loading import frozen, load_lm
from agents.models.sampler import Sampler, leaves_choice
from agents.rollouts.collect import play_episodes
from agents.rollouts.reference_kl_wrappers import ReferenceKL
from tests.slow_cases import slow_but, slow_where
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.env import TextGenerationEnv
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


@functools.cache
def logits_after(lm, written):
    """Return what a model, whose weights stay as they are, says after `written`: many texts begin alike."""
    with torch.no_grad():
        return lm(torch.tensor([[*PROMPT, *written]])).logits[0, -1].double().tolist()


def static(lm, written, case):
    """The weights of all tokens after `written` under the static rules, in Python's own floats."""
    logits = logits_after(lm, tuple(written))
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


@pytest.mark.parametrize("name", slow_but(("no pair twice", "top-p", "min-p", "mask", "all at once"), CASES))
def test_log_probs_entropy_ratios_and_kl(name):
    case = CASES[name]
    env, policy = make(case)
    reference = frozen(load_lm(MODEL))  # other random weights
    buffer = SequenceRolloutBuffer(1, env.observation_space, env.action_space, "cpu", n_envs=64, reference=reference, beta=0.3)
    for _ in play_episodes(policy, env, buffer, 64):
        pass
    samples = buffer.samples(np.arange(64))
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
    steps = np.array([1, 0])  # the second text may not end yet
    ruled = sampler.apply_rules(torch.zeros(2, 3), torch.from_numpy(sampler.withheld([], list(steps[:, None]))))
    assert leaves_choice(ruled).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"step 0 of a text: min_new_tokens=1, banned_tokens=\(1, 2\) leave no token"):
        sampler.check_choice(ruled, steps)
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


CONFLICTS = {  # a rule, a constraint, and the step at which they leave nothing
    "min_new_tokens=3": ({"min_new_tokens": 3}, {"one_of": [" 1 3", " 4 3"]}, 2, r"\[0\]"),
    "banned_tokens=(3,)": ({"banned_tokens": [3]}, {"one_of": [" 1 3", " 4 3"]}, 1, r"\[3\]"),
    "no_repeat_ngram=1": ({"no_repeat_ngram": 1}, {"one_of": [" 4 4"]}, 1, r"\[4\]"),
    "no_repeat_ngram=2": ({"no_repeat_ngram": 2, "top_k": 2, "top_p": 0.9, "min_p": 0.1}, {"one_of": [" 4 4 4"]}, 2, r"\[4\]"),
}


# that the likeliest token is looked for, and not drawn, is the same with every rule
WAYS = slow_where(lambda rule, deterministic: deterministic and rule != "min_new_tokens=3", itertools.product(CONFLICTS, (False, True)))


def write_by_hand(env, policy, deterministic):
    obs = env.reset()
    for _ in range(T):
        obs, *_ = env.step(policy.predict(obs, deterministic=deterministic, action_masks=env.action_masks())[0])


@pytest.mark.reports(
    "A policy's rule that leaves none of the tokens a constraint allows is refused by name, with the step, wherever texts are written"
)
@pytest.mark.parametrize(("rule", "deterministic"), WAYS)
def test_rules_and_masks_that_leave_nothing_together_are_refused(rule, deterministic):
    rules, constraint, step, allowed = CONFLICTS[rule]
    env, policy = make({**rules, "constraint": constraint}, num_rows=4)
    settings = {"max_new_tokens": T, "deterministic": deterministic, "constraint": constraint}
    tokenizer = IntegerTokenizer(V, 0)
    message = rf"(?s)step {step} of a text: .*{re.escape(rule)} .*tokens {allowed} that the action mask \(the task's constraint\) allows"
    writers = {
        "predict": lambda: write_by_hand(env, policy, deterministic),
        "generate": lambda: generate(policy, tokenizer, ["2 3"] * 4, **settings),
        "stream": lambda: list(stream(policy, tokenizer, "2 3", **settings)),
        "best_of_n": lambda: best_of_n(policy, tokenizer, ["2 3"], 2, "length", **settings),
        "evaluate": lambda: write_texts(policy, dataclasses.replace(env.task, prompt_order="sequential"), 4),
        "train": lambda: TextPPO("TransformerPolicy", env, n_episodes=4, policy_kwargs={"model": MODEL, **rules}).learn(1),
        "train with a learned mask": lambda: NLPO("TransformerPolicy", env, n_episodes=4, policy_kwargs={"model": MODEL, **rules}).learn(1),
    }
    for name, write in writers.items():
        with pytest.raises(ValueError, match=message):
            write()
            pytest.fail(name)


@pytest.mark.reports(
    "A rule and a mask that leave nothing are refused where distributions are asked for too, and so is a mask that allows nothing"
)
def test_distributions_under_rules_and_masks_that_leave_nothing_are_refused():
    env, policy = make({"min_new_tokens": 2}, num_rows=2)
    obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    only_end = np.zeros((2, V), bool)
    only_end[:, 0] = True
    for masks, message in (
        (only_end, r"min_new_tokens=2 leave none of the 1 tokens \[0\]"),
        (np.zeros((2, V), bool), "mask allows no token"),
    ):
        for call in (
            lambda masks: policy(obs, action_masks=masks),
            lambda masks: policy.get_distribution(obs, action_masks=masks),
            lambda masks: policy.evaluate_actions(obs, torch.zeros(2, dtype=torch.int64), action_masks=masks),
        ):
            with pytest.raises(ValueError, match=message):
                call(masks)


@pytest.mark.reports("Top-k, top-p and min-p cut what rules and masks left, so that a token of them is always drawn")
@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.01}, {"min_p": 1.0}], ids=str)
def test_cuts_apply_to_what_rules_and_masks_left(cut):
    env, policy = make({"constraint": {"one_of": [" 1 3", " 4 3 1"]}, **cut, "banned_tokens": [1]}, num_rows=16)
    obs = env.reset()
    for expected in ({4}, {3}):
        actions = policy.predict(obs, action_masks=env.action_masks())[0]
        assert set(actions.tolist()) == expected  # never the likelier tokens that mask or rule forbid
        obs, *_ = env.step(actions)


@pytest.mark.reports("A cut that a buffer did not store is refused in the update even where action masks are given")
def test_cuts_are_not_left_out_of_the_update_where_masks_are_given():
    env, policy = make({"top_k": 1}, num_rows=2)
    obs = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    with pytest.raises(ValueError, match="rollout_buffer_class=SequenceRolloutBuffer"):
        policy.evaluate_actions(obs, torch.ones(2, dtype=torch.int64), action_masks=np.ones((2, V), bool))


@pytest.mark.reports("A token that the rules of the reference forbid is refused, where it was paid minus a billion")
def test_the_reference_wrapper_refuses_a_token_that_its_rules_forbid():
    env = ReferenceKL(TextGenerationEnv(make({})[0].task, reward="length"), MODEL, beta=0.1, sampler=Sampler(banned_tokens=(3,)))
    env.reset(seed=0)
    assert abs(env.step(np.int64(2))[1]) < 10
    with pytest.raises(ValueError, match=r"token 3 is one that the rules of Sampler\(.*banned_tokens=\(3,\)"):
        env.step(np.int64(3))
