"""TextPPO: what must hold at its first update, what must never change, and what a checkpoint must keep."""

import copy
import dataclasses
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecMonitor

from agents.algorithms.ppo import TextPPO
from agents.models.backbones import decoder_only
from agents.models.loading import load_lm, save_lm
from agents.rollouts.collect import play_episodes
from tests.slow_cases import slow_but, slow_where

from ..conftest import LLAMA, MODELS


def make(env, model=LLAMA, **kwargs):
    settings = {"n_episodes": 20, "batch_size": 8, "learning_rate": 3e-3, "seed": 0, "device": "cpu", **kwargs}
    rules = settings.pop("rules", {})
    return TextPPO("TransformerPolicy", env, policy_kwargs={"model": model, **rules}, **settings)


RULES = [{}, {"temperature": 0.8, "min_new_tokens": 2}, {"top_k": 5}, {"top_p": 0.7}]
RULED = itertools.product(RULES, MODELS)  # rules look at logits, whatever made them


@pytest.mark.parametrize(("rules", "name"), slow_where(lambda rules, name: name != "llama" and rules != {}, RULED), ids=str)
def test_first_minibatch(make_env, name, rules):
    """Before the first step of the optimizer the ratio is 1, nothing is clipped, KL is 0 and values are 0."""
    model = make(make_env(), MODELS[name], rules=rules)
    model.set_logger(configure(None, []))
    model.policy.set_training_mode(False)
    for _ in play_episodes(model.policy, model.env, model.rollout_buffer, 20):
        pass
    np.testing.assert_allclose(model.rollout_buffer.kl, 0, atol=1e-5)
    np.testing.assert_allclose(model.rollout_buffer.values, 0)
    model.policy.set_training_mode(True)
    for batch in model.rollout_buffer.get(8):
        _, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
        ratio = (log_prob - batch.old_log_prob).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
        assert (entropy >= 0).all()
    model.n_epochs, model.batch_size = 1, 20
    model.train()
    assert model.logger.name_to_value["policy/clip_fraction"] == 0
    assert model.logger.name_to_value["policy/approx_kl"] == pytest.approx(0, abs=1e-6)


def test_dropout_in_the_configuration_is_switched_off(make_env):
    gpt2 = {**MODELS["gpt2"], "attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}
    model = make(make_env(), gpt2)
    obs = obs_as_tensor(model.env.reset(), model.device)
    actions = torch.ones(6, dtype=torch.int64)
    model.policy.set_training_mode(True)
    one, two = (model.policy.evaluate_actions(obs, actions)[1] for _ in range(2))
    assert torch.equal(one, two)


def test_learns_and_leaves_the_reference_alone(make_env):
    model = make(make_env())
    before = copy.deepcopy(model.reference.state_dict())
    policy_before = copy.deepcopy(model.policy.state_dict())
    scores = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            scores.append(self.model.rollout_buffer.stats.score)

    model.learn(3000, callback=Watch())
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 1
    assert all(torch.equal(before[k], v) for k, v in model.reference.state_dict().items())
    assert all(not torch.equal(policy_before[k], v) for k, v in model.policy.state_dict().items())
    assert not any(p.requires_grad for p in model.reference.parameters())


def test_rollouts_are_exactly_n_whole_episodes_and_count_their_tokens(make_env):
    model = make(make_env(num_envs=6), n_episodes=17)
    model.learn(1)
    stats = model.rollout_buffer.stats
    assert stats.num_sequences == 17
    assert model.num_timesteps == stats.num_tokens == sum(info["l"] for info in model.ep_info_buffer)
    assert len(model.ep_info_buffer) == 17
    assert np.mean([info["r"] for info in model.ep_info_buffer]) == pytest.approx(stats.score)


def measured_kl(model, env):
    """KL of 200 fixed texts, sampled with a fixed seed."""
    from agents.rollouts.rollout_buffer import SequenceRolloutBuffer

    env.seed(11)
    torch.manual_seed(5)
    buffer = SequenceRolloutBuffer(
        1, env.observation_space, env.action_space, "cpu", n_envs=env.num_envs, reference=model.reference, beta=0.0
    )
    model.policy.set_training_mode(False)
    for _ in play_episodes(model.policy, env, buffer, 200):
        pass
    return buffer.stats.kl_per_sequence, buffer.actions


@pytest.mark.parametrize("source", slow_but(["configuration"], ["configuration", "folder", "reference folder"]))
def test_save_and_load(make_env, tmp_path, source):
    """Actions, KL to the reference, the controller and the optimizer survive, also when the first folder has gone."""
    kwargs = {"beta": {"beta": 0.2, "target": 1.0, "horizon": 100}}
    given = LLAMA
    if source != "configuration":
        save_lm(load_lm(LLAMA), tmp_path / "lm")
        given = str(tmp_path / "lm")
    if source == "reference folder":
        kwargs["reference"] = given
    model = make(make_env(), given, **kwargs)
    model.learn(500)
    model.save(tmp_path / "model")
    assert not list(tmp_path.glob(".*"))
    if source == "folder":
        (tmp_path / "lm").rename(tmp_path / "moved")
    loaded = TextPPO.load(tmp_path / "model", env=make_env())
    kl, tokens = measured_kl(model, make_env())
    loaded_kl, loaded_tokens = measured_kl(loaded, make_env())
    assert kl > 0.1
    assert loaded_kl == kl
    assert np.array_equal(tokens, loaded_tokens)
    assert loaded.kl_controller.beta == model.kl_controller.beta != 0.2
    assert loaded.rollout_buffer.kl_shaping.controller is loaded.kl_controller
    assert loaded.policy.optimizer.state_dict()["state"].keys() == model.policy.optimizer.state_dict()["state"].keys()
    obs = make_env().reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.learn(100)


def test_a_changed_reference_folder_is_refused(make_env, tmp_path):
    save_lm(load_lm(LLAMA), tmp_path / "lm")
    make(make_env(), reference=tmp_path / "lm").save(tmp_path / "model.zip")
    save_lm(load_lm(LLAMA), tmp_path / "lm")  # other random weights
    with pytest.raises(ValueError, match="has changed since"):
        TextPPO.load(tmp_path / "model.zip", env=make_env())


def test_a_failed_save_keeps_the_old_file(make_env, tmp_path, monkeypatch):
    model = make(make_env())
    model.save(tmp_path / "model.zip")
    old = (tmp_path / "model.zip").read_bytes()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == old
    assert model.policy_kwargs["model"] == LLAMA


def test_deterministic_actions_are_the_likeliest(make_env):
    model = make(make_env(), rules={"top_k": 3})
    obs = model.env.reset()
    distribution = model.policy.get_distribution(obs_as_tensor(obs, model.device)).distribution
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], distribution.probs.argmax(-1))
    assert ((distribution.probs > 0).sum(-1) == 3).all()


def test_sb3_callbacks_logging_and_evaluation(make_env, tmp_path, capsys):
    model = make(make_env(), tensorboard_log=str(tmp_path / "tb"))
    callbacks = [
        EvalCallback(VecMonitor(make_env(num_envs=3)), n_eval_episodes=5, eval_freq=20, log_path=str(tmp_path), verbose=0),
        CheckpointCallback(40, str(tmp_path)),
    ]
    model.learn(400, callback=callbacks, progress_bar=True)
    assert "TextPPO" in capsys.readouterr().out
    assert (tmp_path / "evaluations.npz").is_file()
    assert list(tmp_path.glob("rl_model_*.zip"))
    assert list((tmp_path / "tb").rglob("events.out*"))
    mean, _ = evaluate_policy(model, VecMonitor(make_env(num_envs=3)), n_eval_episodes=12)
    assert 0 <= mean <= 9
    logged = model.logger.name_to_value
    assert logged["time/update_tokens_per_second"] > 0


def test_a_callback_can_stop_and_learning_can_go_on(make_env):
    model = make(make_env())

    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 3

    model.learn(1000, callback=Stop())
    assert model.num_timesteps < 20
    model.learn(300)
    assert model.num_timesteps >= 300


def test_scalar_environments_and_ids(make_env):
    model = make("textrl/Review-v0", {**LLAMA, "vocab_size": 4096}, n_episodes=3)
    assert model.env.num_envs == 64
    model.learn(1)
    assert model.rollout_buffer.stats.num_sequences == 3
    env = gymnasium.make("textrl/Review-v0", reward="length")
    make(env, {**LLAMA, "vocab_size": 4096}, n_episodes=2).learn(1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vocab_size": 8}, "has 8 tokens, the environment 24"),
        ({"max_position_embeddings": 8}, "reads 8 tokens, prompt and response take 15"),
        ({"model_type": None}, "unrecogni|Unrecogni"),
    ],
)
def test_models_that_do_not_fit(make_env, change, match):
    with pytest.raises(ValueError, match=match):
        make(make_env(), {**LLAMA, **change})


def test_wrong_environments_are_refused():
    with pytest.raises(TypeError, match="not a text environment"):
        make("CartPole-v1")
    with pytest.raises(ValueError, match="n_episodes=0"):
        make("textrl/Review-v0", n_episodes=0)


def test_nan_weights_stop_the_run(make_env):
    model = make(make_env())
    with torch.no_grad():
        model.policy.lm.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        model.learn(100)


def test_the_log_says_what_padding_the_update_computed(make_env, monkeypatch):
    model = make(make_env(), batch_size=20, n_epochs=2)
    model.learn(1)
    buffer, logged = model.rollout_buffer, model.logger.name_to_value
    lengths = np.array([len(s.context) + s.steps.stop - s.steps.start - 1 for s in buffer.segments])  # the last token is never read
    assert len(set(lengths)) > 3
    assert logged["tokens/padding_share"] == pytest.approx(1 - lengths.mean() / lengths.max())
    model.policy.settings = dataclasses.replace(model.policy.settings, micro_batch_size=1)
    model.train()
    assert logged["tokens/padding_share"] == 0  # each as wide as it is long
    model.policy.settings = dataclasses.replace(model.policy.settings, micro_batch_size=0)
    monkeypatch.setattr(decoder_only, "_WIDE", 0)
    model.train()
    assert logged["tokens/padding_share"] == 0 and model.policy.backbone.joinable
