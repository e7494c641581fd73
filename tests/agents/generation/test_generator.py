"""Rollouts with a generator: the same numbers for the same tokens, exact ratios, refusals."""

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from agents import LocalDecoder, Response
from agents.algorithms.ppo import TextPPO
from agents.algorithms.rloo import RLOO
from agents.generation.generator import Request, decode
from agents.models.sampler import Sampler
from agents.rollouts.collect import play_episodes
from agents.rollouts.collect_generated import generated_actions
from tests.slow_cases import slow_but
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import EOS, LLAMA, MODELS, VOCAB, sevens

RULES = {"temperature": 0.8, "min_new_tokens": 2, "banned_tokens": [5]}
T5 = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS, "initializer_factor": 1.0,
}  # fmt: skip


class Recorded:
    """Writes the texts of a rollout that was, in the order in which they began."""

    def __init__(self, buffer):
        spans = zip(buffer._offsets, buffer._offsets[1:], strict=False)
        self.texts = [(s.context, buffer.actions[a:b]) for s, (a, b) in zip(buffer.segments, spans, strict=True)]
        self.calls = 0

    def load(self, policy):
        pass

    def generate(self, request):
        self.calls += 1
        dealt, self.texts = self.texts[: len(request.prompts)], self.texts[len(request.prompts) :]
        for prompt, (context, _) in zip(request.prompts, dealt, strict=True):
            np.testing.assert_array_equal(prompt, context)
        return [response for _, response in dealt]


class Says(Recorded):
    """Writes what it is told."""

    def __init__(self, *responses):
        self.responses = responses

    def generate(self, request):
        return self.responses


def make(env, model=LLAMA, algorithm=TextPPO, rules=None, critic="shared", **kwargs):
    settings = {"n_episodes": 20, "batch_size": 8, "learning_rate": 3e-3, "seed": 0, "device": "cpu", **kwargs}
    policy_kwargs = {"model": model, "critic": critic, **(rules or {})}
    made = algorithm("TransformerPolicy", env, policy_kwargs=policy_kwargs, **settings)
    made.set_logger(configure(None, []))
    if made.policy.value_head is not None:
        torch.nn.init.normal_(made.policy.value_head.weight)  # not all values 0
    made.policy.set_training_mode(False)
    return made


def play_generated(generator, policy, env, buffer, num_episodes):
    act = generated_actions(generator, policy, env, buffer.reference_batch_size)
    return play_episodes(policy, env, buffer, num_episodes, act=act)


def play(model, players):
    model.policy.drop_caches()
    env = model.env
    env.seed(3)
    infos = [played.infos[row] for played in players(model.policy, env, model.rollout_buffer, 20) for row in np.flatnonzero(played.dones)]
    names = ("actions", "values", "log_probs", "rewards", "advantages", "returns", "kl", "scores")
    return infos, {name: getattr(model.rollout_buffer, name).copy() for name in names}


@pytest.mark.parametrize("rows", [6, 20])
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("model", slow_but([LLAMA, T5], [*MODELS.values(), T5]), ids=lambda m: m["model_type"])
def test_the_same_numbers_for_the_same_tokens(make_env, model, critic, rows):
    model = make(make_env(rows), model, rules=RULES, critic=critic, rollout_buffer_kwargs={"whiten_rewards": True})
    with torch.no_grad():
        for p in model.policy.actor_parameters():
            p.add_(0.02 * torch.randn_like(p))  # KL to the reference is not 0
    model.policy.drop_caches()
    infos, told = play(model, play_episodes)
    recorded = Recorded(model.rollout_buffer)
    again, found = play(model, lambda *a: play_generated(recorded, *a))
    assert np.abs(told["kl"]).max() > 0.01 and told["values"].std() > 0.01
    for name, values in told.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=1e-5, err_msg=name)
    left_out = ("terminal_observation", "episode", "text")
    timeless = [[{k: v for k, v in info.items() if k not in left_out} for info in i] for i in (infos, again)]
    assert timeless[0] == timeless[1] and len(infos) == 20
    assert (recorded.calls == 1) == (rows == 20)


def test_the_local_decoder_draws_what_the_rollout_draws(make_env):
    model = make(make_env(20), rules=RULES)
    torch.manual_seed(11)
    seed = int(torch.randint(2**31 - 1, ()))  # what the rollout hands to the generator
    torch.manual_seed(seed)
    _, told = play(model, play_episodes)
    torch.manual_seed(11)
    decoder = LocalDecoder()
    _, found = play(model, lambda *a: play_generated(decoder, *a))
    np.testing.assert_array_equal(found["actions"], told["actions"])


@pytest.mark.parametrize("algorithm", [TextPPO, RLOO])
def test_first_minibatch_and_learning(make_env, task, algorithm):
    env = TextGenerationVecEnv(64, task=dataclasses.replace(task, group_size=4), reward=sevens)
    kwargs = {"critic": "none"} if algorithm is RLOO else {}
    model = make(env, algorithm=algorithm, n_episodes=64, batch_size=64, n_epochs=1, beta=0.01, learning_rate=1e-2, **kwargs)
    model.generator = LocalDecoder()
    scores = []
    for rollout in range(25):
        model.learn(1, reset_num_timesteps=False)
        log = model.logger.name_to_value
        assert log["policy/clip_fraction"] == 0 and log["policy/approx_kl"] == pytest.approx(0, abs=1e-6)
        mismatch = model.rollout_buffer.stats.mismatch
        assert (
            mismatch.largest_log_ratio < 1e-4 and mismatch.effective_texts > 1 - 1e-6 and mismatch.sums.mean == pytest.approx(1, abs=1e-6)
        )
        scores.append(float(model.rollout_buffer.scores.mean()))
        if rollout == 0:
            np.testing.assert_allclose(model.rollout_buffer.kl, 0, atol=1e-5)
    assert scores[0] < 1 and np.mean(scores[-3:]) > 2


def test_a_model_with_a_generator_is_saved_without_it_and_goes_on_bit_by_bit(make_env, tmp_path):
    model = make(make_env(20))
    model.generator = LocalDecoder()
    model.learn(1)
    model.save(tmp_path / "model")
    model.learn(1, reset_num_timesteps=False)
    loaded = TextPPO.load(tmp_path / "model", env=make_env(20), device="cpu")
    assert loaded.generator is None
    loaded.generator = LocalDecoder()
    loaded.learn(1, reset_num_timesteps=False)
    for one, two in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_stop_strings_end_a_text_that_was_written_on(make_env, task):
    env = TextGenerationVecEnv(1, task=dataclasses.replace(task, stop_strings=["7 8"]), reward=sevens)
    model = make(env, n_episodes=1)
    *_, last = play_generated(Says([1, 7, 8, 9, 9, 9, 9, 9, 9]), model.policy, model.env, model.rollout_buffer, 1)
    assert last.infos[0]["finish_reason"] == "stop" and last.infos[0]["response"].strip() == "1"
    np.testing.assert_array_equal(model.rollout_buffer.actions, [1, 7, 8])


def never(episodes):
    return [None] * len(episodes)


@pytest.mark.parametrize(
    ("settings", "rules", "told"),
    [
        ({"constraint": {"allowed_tokens": [1, 2]}}, {}, "action masks"),
        ({"min_new_tokens": 3}, {}, "give the policy min_new_tokens"),
        ({"reply": never}, {}, "a dialogue"),
        ({}, {"top_k": 5}, "top_k=5"),
        ({}, {"top_p": 0.9}, "lower the temperature instead"),
        ({}, {"no_repeat_ngram": 2}, "no_repeat_ngram=2"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "".join(map(str, value)),  # the same in every worker
)
def test_what_it_cannot_follow_is_refused(task, settings, rules, told):
    model = make(TextGenerationVecEnv(6, task=dataclasses.replace(task, **settings), reward=sevens), rules=rules)
    model.generator = LocalDecoder()
    with pytest.raises(ValueError, match=told):
        model.learn(1)
    model.generator = None
    model.learn(1)


@pytest.mark.parametrize(
    ("responses", "told"),
    [
        ([], "0 responses for 1 prompts"),
        ([[1] * 10], "has 10 tokens"),
        ([[1, 2]], "has 2 tokens, the last 2: need 9"),
        ([[]], "at least one"),
        ([[VOCAB]], rf"in \[0, {VOCAB}\)"),
        ([[1.5]], "token ids"),
        ([Response([1, EOS], [-0.1])], "for 2 tokens: need a finite number, at most 0"),
        ([Response([1, EOS], [-0.1, float("nan")])], "need a finite number"),
        ([Response([1, EOS], [-0.1, -float("inf")])], "need a finite number"),
        ([Response([1, EOS], [-0.1, 0.1])], "at most 0"),
        ([Response([1, EOS], [[-0.1], [-0.1]])], "for 2 tokens"),
        ([Response([1, EOS], ["a", "b"])], "need a finite number"),
    ],
    ids=str,
)
def test_answers_that_are_none(make_env, responses, told):
    model = make(make_env(1), n_episodes=1)
    model.generator = Says(*responses)
    with pytest.raises(ValueError, match=told):
        model.learn(1)


@pytest.mark.reports("A generator that writes a token against the policy's rules is refused, where the token got log-probability -1e9")
def test_a_token_against_the_policys_rules(make_env):
    model = make(make_env(1), n_episodes=1, rules=RULES)
    for response, token in (([1, 2, 5, 3, EOS], 5), ([1, EOS], EOS)):
        model.generator = Says(response)
        with pytest.raises(ValueError, match=rf"wrote token {token} where the rules of Sampler\(.*min_new_tokens=2"):
            model.learn(1)


def test_decoding_follows_rules_and_stops(make_env):
    backbone = make(make_env()).policy.backbone
    prompts = tuple(np.array(p) for p in ([1, 2, 3], [4]) for _ in range(50))
    request = Request(prompts, 6, Sampler(0.7, min_new_tokens=3, banned_tokens=(5,), eos_token_id=EOS), (EOS, 7), 20, seed=0)
    before = torch.get_rng_state()
    written = decode(backbone, request)
    assert torch.equal(before, torch.get_rng_state())
    texts = [response.tokens for response in written]
    for ids in texts:
        assert len(ids) <= 6 and 5 not in ids and max(ids) < 20 and EOS not in ids[:3]
        assert len(ids) == 6 or ids[-1] in (EOS, 7)
        assert not np.isin(ids[:-1], (EOS, 7)).any()
    assert [t.tokens.tolist() for t in decode(backbone, request)] == [t.tolist() for t in texts]
    for prompt, (ids, log_probs) in zip(prompts, ((t.tokens, t.log_probs) for t in written), strict=True):
        logits = backbone.lm(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1, :20] / 0.7  # (n, 20)
        logits[:, 5] = -torch.inf
        logits[:3, EOS] = -torch.inf
        expected = logits.log_softmax(-1)[range(len(ids)), ids].detach()
        np.testing.assert_allclose(log_probs, expected, atol=1e-5)
