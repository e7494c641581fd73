"""On-policy distillation: the expected update by enumeration, a student that becomes its teacher, and what is refused."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from agents import Distillation, TextPolicyGradient
from agents.evaluation.exact_optimum import Table, distributions, optimality_gap
from agents.models.backbones import backbone_of
from agents.models.loading import load_lm, save_lm
from textrl_env import FileTokenizer, IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.tasks.exact import PROMPTS, TASKS

from ..conftest import LLAMA, VOCAB, sevens

TABLE = "agents.evaluation.exact_optimum:Table"


@pytest.fixture
def table(tmp_path):
    """A function that saves a table of random logits, or of given ones, and returns what a model is loaded from."""

    def save(vocab_size, length, name="teacher", seed=5, rows=None):
        torch.manual_seed(seed)
        lm = load_lm({"class": TABLE, "vocab_size": vocab_size, "length": length})
        if rows is not None:
            lm.rows.weight.data[:] = rows
        save_lm(lm, tmp_path / name)
        return {"class": TABLE, "weights": str(tmp_path / name)}

    return save


@pytest.fixture
def tiny(table):
    """Three tokens, texts of at most two, one prompt: an agent whose rollout holds each of the seven texts, and the teacher's logits."""
    task = TextTask(IntegerTokenizer(3, 0), [Prompt("1")], max_new_tokens=2)
    teacher = table(3, 3)

    def make(**settings):
        arguments = {"n_episodes": 256, "batch_size": 256, "seed": 1, "learning_rate": 1e-9, "loss_aggregation": "budget"}
        env = TextGenerationVecEnv(64, task=task, reward=lambda prompts, completions: [7.0] * len(completions))
        policy = {"model": {"class": TABLE, "vocab_size": 3, "length": 3}}
        agent = Distillation("TransformerPolicy", env, teacher=teacher, policy_kwargs=policy, **{**arguments, **settings})
        agent.learn(1)
        return agent

    return make, load_lm(teacher).rows.weight.detach().double().numpy()


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def by_formula(own, teacher):
    """Sum over states of P(state) * d KL(pi || q) / d logits = P * pi * (log pi - log q - KL): the texts stay as they are written."""
    gradient = np.zeros_like(own)
    first, second = (1 + 1) * 1, lambda token: 2 + (token + 1) * 4  # rows of the table after the prompt, and after a token
    log_p, log_q = log_softmax(own), log_softmax(teacher)
    for row, reach in [(first, 1.0)] + [(second(token), np.exp(log_p[first, token])) for token in (1, 2)]:
        difference = log_p[row] - log_q[row]
        kl = (np.exp(log_p[row]) * difference).sum()
        gradient[row] = reach * np.exp(log_p[row]) * (difference - kl)
    return gradient


@pytest.mark.parametrize("kl_estimator", ["full", "k2"])
def test_the_expected_update_is_the_gradient_of_each_tokens_kl(tiny, kl_estimator):
    make, teacher = tiny
    agent = make(kl_estimator=kl_estimator)
    buffer, weight = agent.rollout_buffer, agent.policy.lm.rows.weight
    own = weight.detach().double().numpy()
    chosen = {tuple(buffer.record(i).actions.tolist()): i for i in range(256)}
    assert len(chosen) == 7
    log_p, found = log_softmax(own), np.zeros_like(own)
    for text, index in chosen.items():
        probability = np.exp(sum(log_p[2 if t == 0 else 2 + (text[0] + 1) * 4, token] for t, token in enumerate(text)))
        loss, _ = agent._loss(buffer.samples(np.array([index])))
        (gradient,) = torch.autograd.grad(loss, weight)
        found += probability * 2 * gradient.double().numpy()  # "budget" divides by the longest text, of 2 tokens
    exact = by_formula(own, teacher)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    assert np.abs(exact).max() > 0.05


def test_of_the_written_token_alone_it_is_the_policy_gradient_with_kl_as_its_reward(tiny):
    """The loss of Thinking Machines Lab: -(log q - log pi) of each token as its advantage."""
    agent = tiny[0](kl_estimator="k2", loss_aggregation="token")
    buffer, weight = agent.rollout_buffer, agent.policy.lm.rows.weight
    samples = buffer.samples(np.arange(256))
    (found,) = torch.autograd.grad(agent._loss(samples)[0], weight)
    log_prob = agent.policy.evaluate_actions(samples.observations, samples.actions)[1]
    advantages = samples.reference_log_prob - log_prob.detach()
    (expected,) = torch.autograd.grad(-(advantages * log_prob).mean(), weight)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("kl_estimator", ["full", "k2"])
def test_a_student_that_can_be_its_teacher_becomes_it(table, kl_estimator):
    """The teacher is the optimum of the KL-regularised return of an exact task, worked out by enumeration."""
    exact, start = TASKS["Long"], table(4, 7, "start", seed=3)
    reference = backbone_of(load_lm(start))
    best = load_lm(start).rows.weight.detach().clone()
    for number, prompt in enumerate(PROMPTS):
        tree = exact.tree(number)
        _, levels = tree.optimum(distributions(reference, int(prompt), tree.prefixes, 4), 0.3)
        for prefixes, level in zip(tree.prefixes, levels, strict=True):
            texts = np.column_stack([np.full(len(prefixes), int(prompt)), prefixes])  # (n, t + 1)
            best[((texts + 1) * 5 ** np.arange(texts.shape[1])).sum(1)] = torch.from_numpy(level).float()
    teacher = table(4, 7, rows=best)
    agent = Distillation(
        "TransformerPolicy", exact.id, teacher=teacher, n_episodes=64, batch_size=64, learning_rate=lambda left: 0.3 * left, seed=0,
        kl_estimator=kl_estimator, policy_kwargs={"model": start},
    )  # fmt: skip
    before = optimality_gap(agent.policy.backbone, reference, "Long", 0.3)
    agent.learn(30_000)
    after = optimality_gap(agent.policy.backbone, reference, "Long", 0.3)
    assert abs(before.closed) < 1e-6 and before.kl_to_optimum > 0.5
    assert after.kl_to_optimum < (0.03 if kl_estimator == "full" else 0.1) and after.closed > 0.95
    assert agent.logger.name_to_value["kl/per_sequence"] < 0.1 and "equal scores" in agent.health.named


def test_it_goes_on_as_if_nothing_had_happened(make_env, tmp_path):
    """With a teacher of another size."""
    torch.manual_seed(4)
    save_lm(load_lm({**LLAMA, "hidden_size": 32, "num_hidden_layers": 3}), tmp_path / "teacher")
    settings = {"n_episodes": 16, "batch_size": 8, "learning_rate": 1e-2, "seed": 0, "policy_kwargs": {"model": LLAMA}}
    agent = Distillation("TransformerPolicy", make_env(), teacher=str(tmp_path / "teacher"), **settings)
    agent.learn(100)
    agent.save(tmp_path / "agent")
    agent.learn(150, reset_num_timesteps=False)
    again = Distillation.load(tmp_path / "agent", env=make_env())
    again.learn(150, reset_num_timesteps=False)
    for (name, one), two in zip(agent.policy.state_dict().items(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert Distillation.load(tmp_path / "agent", env=make_env(), learning_rate=1e-3).reference_source == str(tmp_path / "teacher")


def refused(make_env, message, kind=Distillation, env=None, **settings):
    with pytest.raises(ValueError, match=message):
        kind("TransformerPolicy", env or make_env(), **{"policy_kwargs": {"model": LLAMA}, **settings})


def test_what_makes_no_sense_is_refused(make_env, tmp_path):
    save_lm(load_lm(LLAMA), tmp_path / "teacher")
    save_lm(load_lm({**LLAMA, "vocab_size": VOCAB - 1}), tmp_path / "small")
    teacher = str(tmp_path / "teacher")
    refused(make_env, "needs a teacher")
    refused(make_env, "two names of one thing", teacher=teacher, reference=teacher)
    refused(make_env, "fresh weights: name a folder", teacher=LLAMA)
    refused(make_env, "the reference has 23 tokens, the environment 24", teacher=str(tmp_path / "small"))
    refused(make_env, "nothing would be learned; take kl_in='loss'", teacher=teacher, kl_in="reward", kl_estimator="k1")
    refused(make_env, "clip_range_high, dual_clip: estimator='none' has no advantages", teacher=teacher, clip_range_high=0.3, dual_clip=2.0)
    settings = {"estimator": "none", "kl_in": "loss", "kl_estimator": "k2"}
    refused(make_env, "whiten_advantages: estimator='none'", TextPolicyGradient, whiten_advantages=True, **settings)


def test_a_teacher_of_other_tokens_is_refused(make_env, tmp_path):
    for name, words in (("own", "a b c"), ("teacher", "a c b")):
        made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<eos>", *words.split()])}, "<eos>"))
        made.add_special_tokens(["<eos>"])
        save_lm(load_lm({**LLAMA, "vocab_size": 4}), tmp_path / name)
        made.save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    task = TextTask(FileTokenizer(tmp_path / "own"), [Prompt("a")], max_new_tokens=4)
    env = TextGenerationVecEnv(2, task=task, reward=sevens)
    message = r"^teacher .*teacher has a tokenizer.json of its own, in which id 2 is 'c'; in the task it is 'b'"
    refused(make_env, message, env=env, teacher=str(tmp_path / "teacher"), policy_kwargs={"model": str(tmp_path / "own")})


def test_the_teacher_is_a_table_of_its_own(table):
    """Guards the rows that the tests above write: a text's number in the table is the one that it reads."""
    lm = load_lm(table(3, 3))
    assert isinstance(lm, Table)
    read = lm(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]))  # (1, 2, 3)
    torch.testing.assert_close(read[0], lm.rows.weight[torch.tensor([2, 2 + 3 * 4])])
