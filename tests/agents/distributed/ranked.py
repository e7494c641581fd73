"""What test_ranks.py has several processes do: `torchrun --nproc-per-node 2 -m tests.agents.distributed.ranked FOLDER`."""

import copy
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

import agents.training.reward_hacking_callback
from agents import TextPolicyGradient, TextPPO, TransformerPolicy
from agents.cli.main import main
from agents.distributed.process_group import ranks
from agents.distributed.ranks import digest
from agents.training.reward_hacking_callback import RewardHackingCallback
from textrl_env import IntegerTokenizer, Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv

from ..conftest import EOS, LLAMA, VOCAB, sevens
from .stepped import steps

# Minibatches of 5 of 16 texts: the last has one text, and one of two ranks none.  Every norm is clipped.
COMMON = {"n_episodes": 16, "batch_size": 5, "learning_rate": 1e-2, "max_grad_norm": 0.05, "beta": 0.2, "seed": 0}
PTX = {"ptx_coef": 0.1, "ptx_texts": [("1", "2 3"), ("2", "4 5 6 7"), ("5 6", "7 8 9")]}
CASES = {
    "gae": {"estimator": "gae", "whiten_advantages": True, "clip_range_vf": 0.3, "ent_coef": 0.01},
    "rloo": {"estimator": "rloo"},
    "grpo": {"estimator": "grpo", "kl_in": "loss", "kl_estimator": "k3", "loss_aggregation": "sequence", **PTX},
    "full": {"estimator": "rloo", "kl_estimator": "full", "loss_aggregation": "budget", "policy_kwargs": {"top_p": 0.9}},
    "warm": {"estimator": "gae", "critic_warmup": 2, "policy_kwargs": {"optimizer_class": torch.optim.AdamW}},
    "stop": {"estimator": "gae", "n_epochs": 4, "target_kl": 1e-3, "max_grad_norm": 0.5},
    "again": {"estimator": "rloo", "skip_equal_groups": True, "max_sampling_rounds": 3},
}
ROLLOUTS = 5
_RECORDED = (
    "segments", "trained", "_offsets", "actions", "values", "log_probs", "advantages", "returns", "rewards", "kept", "reference_log_probs",
    "kl", "scores", "sampler", "autocast", "beta", "stats", "full",
)  # fmt: skip


def make_env(group_size, rows=16, order="random"):
    prompts = [Prompt(" ".join(str(1 + (i + k) % (VOCAB - 1)) for k in range(1 + i % 6))) for i in range(40)]
    task = TextTask(IntegerTokenizer(VOCAB, EOS), prompts, max_new_tokens=9, group_size=group_size, prompt_order=order)
    return TextGenerationVecEnv(rows, task=task, reward=sevens)


def make(case, **changed):
    settings = {**COMMON, **CASES[case], **changed}
    policy = {"model": LLAMA, **settings.pop("policy_kwargs", {})}
    grouped = settings["estimator"] != "gae"
    model = TextPolicyGradient("TransformerPolicy", make_env(4 if grouped else 1), policy_kwargs=policy, device="cpu", **settings)
    model.steps = 0
    model.policy.optimizer.register_step_post_hook(lambda *_: setattr(model, "steps", model.steps + 1))
    return model


def record(model, number=ROLLOUTS):
    """Play without learning, and return what the buffer held each time."""
    _, callback = model._setup_learn(10**6)
    rollouts = []
    for _ in range(number):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 0)
        rollouts.append({name: copy.deepcopy(getattr(model.rollout_buffer, name)) for name in _RECORDED})
    return rollouts


@contextmanager
def double(model):
    """Compute in double precision throughout: hidden states and logits are cast to float32 otherwise."""
    cast = torch.Tensor.float
    model.policy.double()
    model.reference.double()
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else cast(x)
    try:
        yield
    finally:
        torch.Tensor.float = cast


def learn(model, rollouts):
    """Update on recorded rollouts; return the weights, what was logged last, and the optimizer's steps."""
    with double(model):
        return _learn(model, rollouts)


def _learn(model, rollouts):
    model._setup_learn(10**6)
    for number, rollout in enumerate(rollouts):
        vars(model.rollout_buffer).update(copy.deepcopy(rollout))
        model.num_rollouts = number + 1
        np.random.seed(number)
        model.train()
    logged = {k: v for k, v in model.logger.name_to_value.items() if k.split("/")[0] in ("policy", "value", "kl", "objective")}
    return {name: value.clone() for name, value in model.policy.state_dict().items()}, logged, model.steps


def exact(folder):
    """Learn from joined rollouts together."""
    for case in CASES:
        model = make(case)
        rollouts = record(model)
        weights, logged, steps = learn(model, rollouts)
        (folder / f"{case}-{ranks().rank}.pickle").write_bytes(pickle.dumps((rollouts, weights, logged, steps)))


def whole(folder):
    """Train for real, save, and go on; leave what each rank holds in the end."""
    for seed in (3, None):
        model = make("gae", seed=seed)
        model.learn(600)
        if ranks().is_main:
            model.save(folder / f"{seed}.zip")
        ranks().wait()
        digests = []
        for of in (lambda: model, lambda: TextPolicyGradient.load(folder / f"{seed}.zip", env=make_env(1), device="cpu")):  # noqa: B023
            one = of()
            one.learn(400, reset_num_timesteps=False)
            digests.append((digest(one.policy), one.num_timesteps, one.num_texts, one.kl_controller.beta))
        (folder / f"whole-{seed}-{ranks().rank}.pickle").write_bytes(pickle.dumps(digests))


def refused(folder):
    """Ask for what ranks cannot do."""
    said = []
    for attempt in (
        lambda: TextPPO("TransformerPolicy", make_env(1), n_episodes=16, policy_kwargs={"model": LLAMA}),
        lambda: make("rloo", n_episodes=4).learn(10),
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "failing":
        sys.exit(failing(sys.argv[2:]))
    for task in (exact, steps, whole, refused, broken, stopped):
        torch.seed()  # what the last task made equal on all ranks
        np.random.seed()
        task(Path(sys.argv[1]))
