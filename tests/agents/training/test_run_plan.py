"""The plan before a run: what it says, against counts by hand; and that the training behind it is the same to the bit."""

import math
import random

import numpy as np
import pytest
import torch

from agents import DPO, GRPO, NLPO, RLOO, SFT, ExpertIteration, TextA2C, TextPPO, TextTRPO
from agents.training.first_texts import Pace, Work, expected_length, iteration_seconds
from agents.training.run_plan import plan_expert_iteration, plan_playing, plan_supervised, spelled
from rewards import Preference
from tests.slow_cases import slow_but
from textrl_env import IntegerTokenizer, Prompt, TextTask, WordTokenizer
from textrl_env.reward_model import RewardError

from ..conftest import EOS, LLAMA, VOCAB, sevens


class Remembering:
    """A reward that draws from every generator, and pays what it drew and how often it was asked."""

    def __init__(self):
        self.asked = 0

    def score(self, episodes):
        self.asked += 1
        return [float(len(e.response_ids)) + random.random() + np.random.rand() + float(torch.rand(())) + self.asked for e in episodes]

    def get_state(self):
        return {"asked": self.asked}

    def set_state(self, state):
        self.asked = state["asked"]


def make(made, make_env, reward, **settings):
    group = {"group_size": 2} if made in (RLOO, GRPO) else {}
    policy = {"model": LLAMA, **settings.pop("policy_kwargs", {})}
    batch = {"batch_size": 4} if made not in (TextA2C,) else {}
    env = make_env(8, reward, **group)
    kind = next(iter(made.policy_aliases))
    return made(kind, env, n_episodes=8, policy_kwargs=policy, seed=5, device="cpu", **batch, **settings)


CASES = {
    "ppo": (TextPPO, {}),
    "rloo": (RLOO, {}),
    "a2c": (TextA2C, {}),
    "trpo": (TextTRPO, {}),
    "nlpo": (NLPO, {}),
    "top-k": (TextPPO, {"policy_kwargs": {"top_k": 5, "critic": "separate"}}),
    "adapters": (RLOO, {"policy_kwargs": {"lora": {"r": 2}, "micro_batch_size": 2}}),
    "checkpoints": (GRPO, {"policy_kwargs": {"gradient_checkpointing": True, "no_repeat_ngram": 2}}),
}


@pytest.mark.parametrize("case", slow_but((case for case in CASES if case != "rloo"), CASES))  # which "adapters" is too
def test_a_training_behind_a_plan_is_the_same_to_the_bit(case, make_env):
    made, settings = CASES[case]
    trained, states = [], []
    for planned in (False, True):
        random.seed(1)
        model = make(made, make_env, Remembering(), **{k: dict(v) for k, v in settings.items()})
        if planned:
            plan_playing(model, 100)
            assert all(p.grad is None for p in model.policy.parameters()) and not model.policy.optimizer.state
        model.learn(100)
        trained.append(model.policy.state_dict())
        states.append((torch.get_rng_state(), np.random.rand(), random.random(), model.last_rollout.infos))
    assert trained[0].keys() == trained[1].keys() and all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    assert torch.equal(states[0][0], states[1][0]) and states[0][1:3] == states[1][1:3]
    assert [info["score"] for info in states[0][3]] == [info["score"] for info in states[1][3]]


def test_a_plan_says_what_the_model_reads_and_what_the_reward_pays(make_env):
    model = make(RLOO, make_env, sevens)
    plan = plan_playing(model, 1000)
    lm = model.policy.lm
    assert plan.model.sizes == {"kind": "llama", "layers": 2, "width": 16, "vocabulary": VOCAB}
    assert plan.model.parameters == plan.model.trained == sum(p.numel() for p in lm.parameters()) and plan.model.dtype == "float32"
    assert (plan.tokens.vocabulary, list(plan.tokens.ends), plan.tokens.beginning) == (VOCAB, [EOS], {})
    assert plan.texts == [" 1 2 3", " 4", " 5 6 7 8 9 10"]
    assert [sample.prompt for sample in plan.samples] == ["1 2 3", "4", "5 6 7 8 9 10"]
    assert [sample.score for sample in plan.samples] == sevens(None, [sample.response for sample in plan.samples])
    assert plan.memory[0] is model.memory and plan.each == 8 and plan.total_tokens == 1000
    assert set(plan.seconds) == {"writing", "reward", "reference", "update"} and min(plan.seconds.values()) > 0
    assert math.ceil(1000 / (8 * 9)) <= plan.iterations <= 1000 / 8  # of at most 9 tokens, at least 1


def test_adapters_are_told_from_the_weights_under_them(make_env):
    plan = plan_playing(make(RLOO, make_env, sevens, policy_kwargs={"lora": {"r": 2}}), 100)
    # two layers of seven matrices: q, o 16 x 16; k, v 16 x 8; gate, up, down 16 x 32; each with 2 (in + out) numbers
    assert plan.model.trained == 2 * 2 * (2 * 32 + 2 * 24 + 3 * 48)
    assert plan.model.parameters == sum(p.numel() for p in make(RLOO, make_env, sevens).policy.parameters()) + plan.model.trained


def test_a_reward_that_fails_stops_the_plan(make_env):
    def broken(prompts, completions):
        raise KeyError("score")

    model = make(TextPPO, make_env, broken)
    with pytest.raises(RewardError, match="failed on 8 episode"):
        plan_playing(model, 100)


def test_special_tokens_are_spelled_out():
    words = WordTokenizer(["to", "be"])
    assert spelled(words, np.array([1, 2])) == " to be" and spelled(IntegerTokenizer(9), [3, 1]) == " 3 1"


def test_seconds_of_an_iteration_by_hand():
    pace = Pace(texts=4, step=0.5, read=0.01, learn=0.03, score=0.25, optimizer=2.0)
    work = Work(texts=8, rows=8, prompt=10, response=5, longest=6, group=2, epochs=3, steps=7)
    # 4 prompts of 10 tokens; 6 steps; 40 tokens, of which 24 are those of the 4 texts that were measured
    assert iteration_seconds(pace, work, 1.0) == pytest.approx(
        {"writing": 4 * 10 * 0.01 + 6 * 0.5 + 16 * 0.01, "reward": 2.0, "reference": 120 * 0.01, "update": 3 * 120 * 0.03 + 14.0}
    )
    assert "reference" not in iteration_seconds(pace, work, 0.0)
    assert iteration_seconds(pace, work, 2.5)["reference"] == pytest.approx(2.5 * 120 * 0.01)  # a teacher of that size


def test_expected_lengths():
    assert expected_length([5, 5, 5], 0, 40) == 40  # none ended
    assert expected_length([1, 1, 2], 3, 40) == pytest.approx(4 / 3)  # 3 of 4 tokens were the last
    # an end at each of three tokens by chance 1/2, cut at three: 1/2 + 2/4 + 3/4
    assert expected_length([2, 2, 2, 2], 4, 3) == pytest.approx(0.5 * 1 + 0.25 * 2 + 0.25 * 3)


TOKENS = IntegerTokenizer(VOCAB, EOS)


@pytest.mark.parametrize("made", [SFT, DPO])
def test_trainings_on_fixed_texts(made):
    data = [(f"{i} 2", f"{i + 1} 4") for i in range(1, 9)]
    if made is DPO:
        data = [Preference(prompt, response, "5") for prompt, response in data]
    trained = []
    for planned in (False, True):
        torch.manual_seed(1)
        trainer = made(LLAMA, TOKENS, batch_size=4, seed=2)
        if planned:
            plan = plan_supervised(trainer, data, 6)
            assert not trainer.lm.training and all(p.grad is None for p in trainer.lm.parameters())
        trainer.learn(data, 6)
        trained.append((trainer.losses, trainer.lm.state_dict(), torch.get_rng_state()))
    assert trained[0][0] == trained[1][0] and torch.equal(trained[0][2], trained[1][2])
    assert all(torch.equal(trained[0][1][key], trained[1][1][key]) for key in trained[0][1])
    pairs = [" 1 2 2 4", " 1 2 5", " 2 2 3 4", " 2 2 5", " 3 2 4 4", " 3 2 5"]
    assert plan.texts == (pairs if made is DPO else pairs[::2])
    assert (plan.iterations, plan.each, plan.passes, plan.total_tokens) == (6, 4, 3.0, None)
    size, held = sum(p.numel() * 4 for p in trainer.lm.parameters()), plan.memory[0].stored
    assert {name: held[name] / size for name in held} == {
        "weights": 1, "gradients": 1, "optimizer": 2, "reference": 1 if made is DPO else 0, "rollout": 0
    }  # fmt: skip
    assert set(plan.seconds) == {"learning", "optimizer"}


def test_expert_iteration_is_planned_as_it_plays(task):
    written = []
    for planned in (False, True):
        agent = ExpertIteration(task, LLAMA, sevens, n=2, n_prompts=4, steps=2, batch_size=4, seed=3)
        if planned:
            plan = plan_expert_iteration(agent, 2)
        agent.learn(2)
        written.append((agent.scores, agent.policy.lm.state_dict()))
    assert written[0][0] == written[1][0] and all(torch.equal(written[0][1][key], written[1][1][key]) for key in written[0][1])
    assert (plan.iterations, plan.each) == (2, 8) and set(plan.seconds) == {"writing", "reward", "update"}
    assert 2 * 8 <= plan.total_tokens <= 2 * 8 * 9


def test_prompts_that_are_read_one_by_one_and_tasks_with_turns():
    def reply(episodes):
        return ["7 7"] * len(episodes)

    task = TextTask(TOKENS, [Prompt("1 2")], max_new_tokens=12, reply=reply, max_turns=2, soft_max_tokens=10, missing_eos_penalty=1.0)
    agent = ExpertIteration(task, LLAMA, sevens, n=2, n_prompts=2, steps=1)
    assert len(plan_expert_iteration(agent, 1).samples) == 3
