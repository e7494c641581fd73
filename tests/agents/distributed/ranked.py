"""What test_ranks.py has several processes do, see everything.py.

`torchrun --nproc-per-node 2 -m tests.agents.distributed.ranked FLAGS` is `textrl train`, but one of them fails.
"""

import copy
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import agents.training.reward_hacking_callback
from agents import NLPO, OnlineDPO, TextA2C, TextMaskablePPO, TextPolicyGradient, TextPPO, TextTRPO, TransformerPolicy
from agents.cli.main import main
from agents.distributed.process_group import ranks
from agents.distributed.ranks import digest
from agents.training.reward_hacking_callback import RewardHackingCallback
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import EOS, GPT2, LLAMA, VOCAB, sevens

# Minibatches of 5 of 16 texts: parts of 2, 3, 2 and 1 text.  Every norm is clipped.
COMMON = {"n_episodes": 16, "batch_size": 5, "learning_rate": 1e-2, "max_grad_norm": 0.05, "beta": 0.2, "seed": 0}
PTX = {"ptx_coef": 0.1, "ptx_texts": [("2", "4 5 6 7")]}
OURS, SB3 = TextPolicyGradient, {"n_epochs": 1, "ent_coef": 0.01}
CASES = {
    "ppo": (TextPPO, {**SB3, "clip_range_vf": 0.3}),
    "ppo_lora": (TextPPO, {**SB3, "critic_warmup": 2, "policy_kwargs": {"lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}}),
    "ppo_stop": (TextPPO, {**SB3, "n_epochs": 4, "target_kl": 1e-3, "max_grad_norm": 0.5}),
    "ppo_separate": (TextPPO, {**SB3, "batch_size": 4, "policy_kwargs": {"critic": "separate", "micro_batch_size": 1}}),
    "maskable": (TextMaskablePPO, {**SB3, "batch_size": 2}),
    "a2c": (TextA2C, {"ent_coef": 0.01}),
    "gae": (OURS, {"estimator": "gae", "whiten_advantages": True, "clip_range_vf": 0.3, "ent_coef": 0.01}),
    "rloo": (OURS, {"estimator": "rloo", "policy_kwargs": {"model": GPT2, "micro_batch_size": 2}}),  # tied weights
    "grpo": (OURS, {"estimator": "grpo", "kl_in": "loss", "kl_estimator": "k3", "loss_aggregation": "sequence", "batch_size": 4, **PTX}),
    "full": (OURS, {"estimator": "rloo", "kl_estimator": "full", "loss_aggregation": "budget", "policy_kwargs": {"top_p": 0.9}}),
    "gdpo": (OURS, {"estimator": "gdpo", "kl_in": "loss", "kl_estimator": "k3"}),
    "plus": (OURS, {"estimator": "reinforce++", "rollout_buffer_kwargs": {"whiten_rewards": True, "norm_reward": True}}),
    "warm": (OURS, {"estimator": "gae", "critic_warmup": 2, "policy_kwargs": {"optimizer_class": torch.optim.AdamW}}),
    "stop": (OURS, {"estimator": "gae", "n_epochs": 4, "target_kl": 1e-3, "max_grad_norm": 0.5}),
    "gspo": (OURS, {"estimator": "rloo", "surrogate": "gspo", "clip_range": 0.01, "off_policy_mask": 1e-3, "entropy_target": 2.0}),
    "kl_cov": (OURS, {"estimator": "rloo", "surrogate": "kl-cov", "cov_share": 0.05, "policy_kwargs": {"micro_batch_size": 2}}),
    "again": (OURS, {"estimator": "rloo", "skip_equal_groups": True, "max_sampling_rounds": 3, "policy_kwargs": {"micro_batch_size": 3}}),
    "pairs": (OnlineDPO, {"batch_size": 6, "policy_kwargs": {"micro_batch_size": 2}}),
}
LATER = ("a2c", "plus", "maskable", "ppo_lora", "ppo_separate", "gdpo", "warm", "gspo", "kl_cov")  # which the slow tests learn from
ROLLOUTS = 3
RAW = ("_steps", "_kept", "_openings", "_replies", "sampler", "autocast")
FLAT = ("actions", "values", "log_probs", "advantages", "returns", "rewards", "kept", "reference_log_probs", "kl", "scores")
WHOLE = ("segments", "infos", "trained", "_offsets", "stats", "full")


def partly(prompts, completions):
    return [float(len(text)) if len(prompt) > 4 else None for prompt, text in zip(prompts, completions, strict=True)]


def make_env(group_size, rows=16, order="random"):
    prompts = [Prompt(" ".join(str(1 + (i + k) % (VOCAB - 1)) for k in range(1 + i % 6))) for i in range(40)]
    task = TextTask(IntegerTokenizer(VOCAB, EOS), prompts, max_new_tokens=9, group_size=group_size, prompt_order=order)
    return TextGenerationVecEnv(rows, task=task, reward=sevens)


def make(case, **changed):
    made, own = CASES[case]
    settings = {**COMMON, **own, **changed}
    if made is TextA2C:
        del settings["batch_size"]
    policy = {"model": LLAMA, **settings.pop("policy_kwargs", {})}
    group_size = 2 if made is OnlineDPO else 4 if settings.get("estimator") in ("rloo", "grpo", "gdpo") else 1
    env = make_env(group_size)
    if case == "gdpo":
        env.reward_model = {"name": "sum", "terms": {"sevens": sevens, "length": partly}}
    model = made(next(iter(made.policy_aliases)), env, policy_kwargs=policy, device="cpu", **settings)
    return model


def record(model, number=ROLLOUTS):
    """Play without learning, and return what the buffer held each time."""
    _, callback = model._setup_learn(10**6)
    rollouts = []
    for _ in range(number):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 0)
        rollouts.append({name: copy.deepcopy(getattr(model.rollout_buffer, name)) for name in (*RAW, *FLAT, *WHOLE)})
    return rollouts


@contextmanager
def double(model):
    """Compute in double precision throughout: hidden states and logits are cast to float32 otherwise."""
    cast = torch.Tensor.float
    model.policy.double()
    for state in model.policy.optimizer.state.values():  # of a model that was loaded
        state |= {name: value.double() for name, value in state.items() if name != "step"}
    if model.reference is not None:
        model.reference.double()
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else cast(x)
    try:
        yield
    finally:
        torch.Tensor.float = cast


def learn(model, rollouts, minibatches=None):
    """Update on recorded rollouts; return the weights, the last log, the optimizer's steps, and the rollout and texts of each epoch.

    Args:
        model: Fresh.
        rollouts: As `record` returns them.
        minibatches: Which texts to take, as they are returned.
    """
    with double(model):
        return _learn(model, rollouts, minibatches)


def _learn(model, rollouts, minibatches):
    model._setup_learn(10**6)
    steps, taken, buffer = [], [], model.rollout_buffer
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    draw = buffer._minibatches

    def drawn(size):
        parts = list(draw(size)) if minibatches is None else minibatches[len(taken)][1]
        taken.append((model.num_rollouts - 1, parts))
        return iter(parts)

    buffer._minibatches = drawn
    for number, rollout in enumerate(rollouts):
        vars(buffer).update(copy.deepcopy(rollout))
        model.num_rollouts = number + 1
        np.random.seed(10 * number + ranks().rank)
        model.train()
    logged = {k: v for k, v in model.logger.name_to_value.items() if k.split("/")[0] in ("policy", "value", "kl", "objective")}
    weights = model.engine.gathered(model.policy.state_dict())
    return {name: value.clone() for name, value in weights.items()}, logged, len(steps), taken


def exact(folder, cases=tuple(name for name in CASES if name not in LATER)):
    """Learn from rollouts of their own together, whole and in shards."""
    for case in cases:
        rollouts = record(make(case))
        found = [rollouts, *(learn(make(case, shard=shard), rollouts) for shard in (False, True))]
        if case in ("gae", "again"):  # shards write what whole weights write
            found.append([{name: rollout[name] for name in FLAT} for rollout in record(make(case, shard=True))])
        (folder / f"{case}-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))


def whole(folder):
    """Train for real, save, and go on; leave what each rank holds in the end."""
    for seed, shard in ((3, False), (None, False), (3, True)):
        model = make("gae", seed=seed, shard=shard)
        model.learn(150)  # two rollouts at least, of 16 texts of at most 9 tokens
        file = folder / f"{seed}-{shard}.zip"
        model.save(file)
        ranks().wait()
        digests, before = [], {}
        for of in (lambda: model, lambda: TextPolicyGradient.load(file, env=make_env(1), device="cpu", shard=shard)):  # noqa: B023
            one = of()
            one.learn(150, reset_num_timesteps=False)
            weights = one.engine.gathered(one.policy.state_dict())  # of shards, to the first rank
            held = shard or digest({name: value.tolist() for name, value in weights.items()})
            same = bool(digests) and all(torch.equal(value, before[name]) for name, value in weights.items())
            before = {name: value.clone() for name, value in weights.items()}
            one.save_pretrained(folder / f"model-{seed}-{shard}")
            one.save(folder / f"{seed}-{shard}-later.zip")
            digests.append((held, same, one.num_timesteps, one.num_texts, one.kl_controller.beta))
        (folder / f"whole-{seed}-{shard}-{ranks().rank}.pickle").write_bytes(pickle.dumps(digests))


def leg(folder):
    """Go on from the checkpoint of the leg before for two rollouts; leave a checkpoint, and what each rank wrote and how it learned."""
    number, size = len(list(folder.glob("leg-*.zip"))), ranks().size
    ranks().wait()
    shard, before = number % 2 == 0, folder / f"leg-{number}.zip"
    model = TextPolicyGradient.load(before, env=make_env(1), device="cpu", shard=shard) if number else make("gae", shard=shard)
    rollouts, taken, train, draw = [], [], model.train, model.rollout_buffer._minibatches

    def recording():
        rollouts.append({name: copy.deepcopy(getattr(model.rollout_buffer, name)) for name in (*RAW, *FLAT, *WHOLE)})
        train()

    def drawn(texts):
        taken.append((len(rollouts) - 1, list(draw(texts))))
        return iter(taken[-1][1])

    model.train, model.rollout_buffer._minibatches = recording, drawn
    limit = StopsAfter(2 * number + 2)
    with double(model):
        model.learn(10**6, limit, reset_num_timesteps=False)
        states = model.get_parameters()
    assert (ranks().size, len(rollouts)) == (size, 2)
    (folder / f"leg-{number}-{ranks().rank}.pickle").write_bytes(pickle.dumps((rollouts, taken, states, model.num_texts, model.seed)))
    del model.train  # or it would be saved
    model.save(folder / f"leg-{number + 1}.zip")


class StopsAfter(BaseCallback):
    """Stops before the first token of the rollout behind so many."""

    def __init__(self, rollouts):
        super().__init__()
        self.rollouts = rollouts

    def _on_step(self):
        return self.model.num_rollouts < self.rollouts


def refused(folder):
    """Ask for what ranks cannot do."""
    said = []
    for attempt in (
        lambda: NLPO("TransformerPolicy", make_env(1), n_episodes=16, policy_kwargs={"model": LLAMA}),
        lambda: TextTRPO("TransformerPolicy", make_env(1), n_episodes=16, policy_kwargs={"model": LLAMA}),
        lambda: make("rloo", n_episodes=4).learn(10),
        lambda: make("gae", batch_size=1).learn(10),
        lambda: make("ppo_separate", batch_size=5, shard=True).learn(10),
        lambda: changing().learn(10),
        lambda: differing(),
    ):
        try:
            attempt()
        except (ValueError, OSError) as error:
            said.append(str(error))
    (folder / f"refused-{ranks().rank}.pickle").write_bytes(pickle.dumps(said))


def changing():
    model = make("gae")
    model.env.unwrapped.reward_model = {"name": "normalize", "reward": "length"}
    return model


def differing():
    model = make("gae")
    model._setup_learn(10)
    if ranks().rank == 1:
        next(model.policy.parameters()).data[0, 0] += 1
    model.learn(10)


def broken(folder):
    """Rank 1 comes to a loss that is no number."""
    model = make("gae")
    loss_of = model._loss
    if ranks().rank == 1:
        model._loss = lambda *args: (loss_of(*args)[0], {**loss_of(*args)[1], "loss": float("nan")})
    try:
        model.learn(400)
    except FloatingPointError as error:
        (folder / f"broken-{ranks().rank}").write_text(str(error))


class StopsOnOne(BaseCallback):
    def _on_step(self):
        return not (ranks().rank == 1 and self.model.num_rollouts == 2)


def stopped(folder):
    """A callback of one rank asks to stop, and an alarm that the first one raises."""
    model = make("gae")
    model.learn(10**5, StopsOnOne())
    found = [(model.num_rollouts, model.num_texts)]
    watch = RewardHackingCallback(folder / "watch", stop=True)
    agents.training.reward_hacking_callback.causes = lambda history: [("length", "too long")] if len(history) == 2 else []
    model = make("gae")
    model.learn(10**5, watch)
    found += [(model.num_rollouts, model.num_texts), watch.alarms]
    (folder / f"stopped-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))


def failing(flags):
    """Train by the command line until the policy of rank 1 fails in a rollout."""
    forward = TransformerPolicy.forward
    calls = []

    def broken(self, *args, **kwargs):
        calls.append(1)
        if ranks().rank == 1 and len(calls) == 30:
            raise FloatingPointError("the policy's logits are NaN")
        return forward(self, *args, **kwargs)

    TransformerPolicy.forward = broken
    return main(["train", *flags])


TASKS = (exact, whole, refused, broken, stopped)

if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "leg":
        sys.exit(leg(Path(sys.argv[2])))
    if sys.argv[1] == "later":
        sys.exit(exact(Path(sys.argv[2]), LATER))
    sys.exit(failing(sys.argv[1:]))
