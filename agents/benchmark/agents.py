"""Agents of a benchmark: how each learns within a budget of tokens, and how its texts are written.

An agent of your own is a class, named by its import string (`my_package.agents:Mine`), with methods like those of Stable-Baselines3:

    class Mine:
        def __init__(self, env, base, seed): ...      # env: a TextGenerationVecEnv; base: folder of the task's base policy
        def learn(self, total_timesteps): ...         # writes at most so many tokens
        def predict(self, observation): ...           # batched observations to (actions, None)

Settings follow the import string, `my_package.agents:Mine:width=64`, and arrive as keyword arguments.  `examples/own_agent.py` is one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from time import perf_counter
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rewards.utils.devices import get_device, seeded
from textrl_env import Prompt, TextTask
from textrl_env.envs.sb3_vec_env import TextGenerationVecEnv
from textrl_env.utils.suggestions import did_you_mean
from textrl_env.utils.user_code import named_object

from ..algorithms.dpo import Pair
from ..algorithms.expert_iteration import ExpertIteration
from ..algorithms.kto import JudgedText
from ..algorithms.registry import ALGORITHMS
from ..evaluation.best_of import kl_of_best
from ..evaluation.policy_texts import WrittenTexts, make_policy, write_texts
from ..models.loading import frozen, load_lm
from ..policies.transformer_policy import TransformerPolicy
from ..training.offline_training import supervised
from ..training.policy_training import Linear
from ..training.settings import FROM_PAIRS, OPTIONS
from ..utils.contents import contents_hash
from .protocol import BEST_OF, OFFLINE_EPOCHS, OFFLINE_RATE, ON_POLICY, SFT_RATE
from .spec import Spec

Writer = Callable[[TextTask, int, int], WrittenTexts]  # writes texts for (task, number, seed)
Watch = Callable[[int, list[dict[str, Any]], float], None]  # sees tokens so far, a rollout's infos, and KL per text


@dataclass
class Spent:
    """What an agent has used while it learned, and what its test texts cost beyond being written once.

    Attributes:
        tokens_written: Response tokens that were drawn.
        tokens_trained: Response tokens that went through a step, a token of each pass counted again; None where that is not known.
        reward_calls: Texts that the reward scored.
        test_seconds: Seconds of choosing among test texts.
    """

    tokens_written: int = 0
    tokens_trained: int | None = 0
    reward_calls: int = 0
    test_seconds: float = 0.0

    def wrote(self, lengths: np.ndarray) -> None:
        """Count texts that were written and scored, given their response tokens, shape (n,)."""
        self.tokens_written += int(lengths.sum())
        self.reward_calls += len(lengths)

    def trained(self, tokens: float) -> None:
        """Count tokens that went through steps."""
        self.tokens_trained = (self.tokens_trained or 0) + round(tokens)


@dataclass(frozen=True)
class LearningSetup:
    """What every agent is given.

    Attributes:
        task: With the prompts of the train split.
        base: Folder of the base policy.
        tokens: Budget: tokens that may be written while learning.
        seed: Of everything that is drawn.
        beta: Coefficient of the KL penalty.
        length: Mean tokens of a text of the base policy.
        spent: Counts what the agent uses.
    """

    task: TextTask
    base: str
    tokens: int
    seed: int
    beta: float
    length: float
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class TrainedAgent:
    """An agent that has learned.

    Attributes:
        write: Writes its texts.
        policy: The transformer policy that writes them, drawing from its own distribution; None for other agents.
    """

    write: Writer
    policy: TransformerPolicy | None = None


def train_agent(spec: Spec, setup: LearningSetup, watch: Watch) -> TrainedAgent:
    """Let an agent learn, and return it.

    Raises:
        ValueError: No agent has this name, or it has no such setting.
    """
    if spec.name in ALGORITHMS:
        return _on_policy(spec, setup, watch)
    if spec.name in _OTHERS:
        return _OTHERS[spec.name](setup, **spec.settings)
    return _own(spec, setup)


def with_tuned(spec: Spec, task: str, found: Mapping[str, Any] | None = None) -> Spec:
    """Return an agent with the settings found for it on a task in place of `tuned=true`; its own settings come before.

    Unless they are given, they are those that `textrl tune` found and that come with the package, see `tuned`.

    Raises:
        ValueError: Nothing was found for the agent on this task.
    """
    if not spec.settings.get("tuned"):
        return spec
    own = {key: value for key, value in spec.settings.items() if key != "tuned"}
    return dataclasses.replace(spec, settings=dict(found or tuned(spec.name, task)) | own)


def tuned(algo: str, task: str) -> dict[str, Any]:
    """Return the settings that `textrl tune` found for an algorithm on a task; they come with the package.

    Raises:
        ValueError: There are none for this pair.
    """
    file = files("agents.benchmark") / "tuned" / f"{algo}.yaml"
    known = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if task not in known:
        raise ValueError(
            f"no tuned settings of {algo} for task {task!r} (there are: {', '.join(known) or 'none'}); find some with textrl tune"
        )
    return dict(known[task]["settings"])


def check(spec: Spec) -> None:
    """Check the name of an agent and its settings before anything runs.

    Raises:
        ValueError: No agent has this name, or it has no such setting, or not with such a value.
    """
    settings = {name: value for name, value in spec.settings.items() if name != "group_size"}
    if spec.name not in ALGORITHMS:
        made = _OTHERS[spec.name] if spec.name in _OTHERS else _own_class(spec.name)
        given = ("setup", "algo", "env", "base", "seed")
        takes = {name: one for name, one in inspect.signature(made).parameters.items() if name not in given}
        open_ended = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        for name in () if open_ended else spec.settings.keys() - takes.keys():
            raise ValueError(
                f"agent {spec.text!r}: there is no setting {name!r}{did_you_mean(name, takes)}; it takes {', '.join(takes) or 'none'}"
            )
        return
    try:
        ALGORITHMS[spec.name].made.check(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"agent {spec.text!r}: {error}") from error


class _Watcher(BaseCallback):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def _on_rollout_end(self) -> None:
        rollout = self.model.last_rollout  # type: ignore[attr-defined]  # SB3 types the model as any algorithm
        self.watch(self.model.num_timesteps, rollout.infos, rollout.stats.kl_per_sequence)

    def _on_step(self) -> bool:
        return True


def _on_policy(spec: Spec, setup: LearningSetup, watch: Watch) -> TrainedAgent:
    algorithm = ALGORITHMS[spec.name]
    settings: dict[str, Any] = {**ON_POLICY, "beta": setup.beta}
    if not algorithm.minibatches:
        del settings["batch_size"]
    settings |= {**algorithm.settings, **spec.settings}
    settings["learning_rate"] = Linear(settings["learning_rate"])
    group = settings.pop("group_size", algorithm.group_size)
    env = TextGenerationVecEnv(settings["n_episodes"], task=dataclasses.replace(setup.task, group_size=group))
    agent = algorithm.made(algorithm.policy, env, policy_kwargs={"model": setup.base}, seed=setup.seed, **settings)
    env.seed(setup.seed)  # as it is: those of the benchmark are far apart

    def counted(tokens: int, finished: list[dict[str, Any]], kl: float) -> None:
        setup.spent.reward_calls += len(finished)
        watch(tokens, finished, kl)

    agent.learn(setup.tokens, _Watcher(counted))
    setup.spent.tokens_written = agent.num_timesteps
    setup.spent.trained(agent.num_timesteps * getattr(agent, "n_epochs", 1))
    return _of_policy(agent.policy, setup)


def _of_policy(policy: TransformerPolicy, setup: LearningSetup) -> TrainedAgent:
    return TrainedAgent(partial(_write, policy, frozen(load_lm(setup.base))), policy)


def _write(policy: TransformerPolicy, reference: Any, task: TextTask, number: int, seed: int) -> WrittenTexts:
    return write_texts(policy, task, number, reference=reference, seed=seed)


def _reference(setup: LearningSetup) -> TrainedAgent:
    """The base policy as it is."""
    return _of_policy(make_policy(setup.task, setup.base), setup)


def _random(setup: LearningSetup) -> TrainedAgent:
    """A policy to which all tokens are equally likely."""
    return _of_policy(
        make_policy(setup.task, {"class": "agents.policies.uniform:Uniform", "vocab_size": setup.task.tokenizer.vocab_size}), setup
    )


def _best_of_n(setup: LearningSetup, n: int = BEST_OF) -> TrainedAgent:
    """The best of n texts of the base policy by the reward; it does not learn, and pays when it writes."""
    policy, reference = make_policy(setup.task, setup.base), frozen(load_lm(setup.base))

    def write(task: TextTask, number: int, seed: int) -> WrittenTexts:
        began = perf_counter()
        tries = [_write(policy, reference, task, number, seed * 1000 + i) for i in range(n)]
        setup.spent.test_seconds += perf_counter() - began
        for texts in tries:
            setup.spent.wrote(texts.lengths)
        returns = np.array([t.returns for t in tries])  # (n, texts)
        chosen = returns.argmax(0)

        def pick(name: str) -> list[Any]:
            return [getattr(tries[c], name)[i] for i, c in enumerate(chosen)]

        return dataclasses.replace(
            tries[0],
            responses=pick("responses"), scores=np.array(pick("scores")), returns=returns.max(0), lengths=np.array(pick("lengths")),
            finish_reasons=pick("finish_reasons"), records=pick("records"), kl_per_sequence=_kl(tries[0].prompts, returns, n),
            entropy=float("nan"), perplexity=float("nan"), tokens_per_second=tries[0].tokens_per_second / n,
        )  # fmt: skip

    return TrainedAgent(write)


def _kl(prompts: list[str], returns: np.ndarray, n: int) -> float:
    """Return the KL of best-of-n, given returns, shape (n, texts): a prompt that was written to more than once has all its texts pooled."""
    pools = [returns[:, [i for i, own in enumerate(prompts) if own == prompt]].ravel() for prompt in dict.fromkeys(prompts)]
    return sum(len(pool) * kl_of_best(pool[None], n) for pool in pools) / returns.size


def compared_pairs(setup: LearningSetup) -> list[tuple[Pair, float]]:
    """Spend the budget on pairs of texts of the base policy, and prefer what the environment pays more for; ties are left out.

    Returns:
        The pairs, and how much more is paid for the preferred text.
    """
    number = max(8, int(setup.tokens / (2 * setup.length)))
    rows = np.random.default_rng(setup.seed).permutation(len(setup.task.prompts))[:number]  # each seed has prompts of its own
    prompts = [setup.task.prompts[i] for i in rows]
    task = dataclasses.replace(setup.task, prompts=prompts, max_prompt_tokens=setup.task.prompt_width, prompt_order="sequential")
    policy = make_policy(setup.task, setup.base)
    one, two = (write_texts(policy, task, number, seed=2 * setup.seed + i) for i in range(2))
    setup.spent.wrote(one.lengths)
    setup.spent.wrote(two.lengths)
    both = zip(one.records, two.records, one.returns, two.returns, strict=True)
    return [(Pair(*((a, b) if x > y else (b, a))), abs(x - y)) for a, b, x, y in both if x != y]


def _offline(
    algo: str,
    setup: LearningSetup,
    beta: float | None = None,
    learning_rate: float = OFFLINE_RATE,
    epochs: int = OFFLINE_EPOCHS,
    label_smoothing: float | None = None,
    gamma: float | None = None,
) -> TrainedAgent:
    """Learn from pairs that the base policy wrote and the reward compared: `sft` from the better texts, the others from both.

    Their beta is the usual one (0.1, of `simpo` 2), or the setup's where that asks for more.
    """
    usual = None if algo == "sft" else max(OPTIONS[algo]["beta"] or 0.0, setup.beta)
    options: dict[str, Any] = {"beta": usual if beta is None else beta, "label_smoothing": label_smoothing, "gamma": gamma}
    pairs = [pair for pair, _ in compared_pairs(setup)]
    if not pairs:
        return _reference(setup)  # the reward likes all texts alike: nothing can be learned from it
    trainer = supervised(algo, setup.base, setup.task, learning_rate, setup.seed, **{k: v for k, v in options.items() if v is not None})
    data: Any = [pair.chosen for pair in pairs] if algo == "sft" else pairs
    if algo == "kto":
        data = [JudgedText(text, good) for pair in pairs for text, good in ((pair.chosen, 1.0), (pair.rejected, 0.0))]
    steps = max(1, epochs * len(data) // trainer.batch_size)
    trainer.learn(data, steps)
    learned = [len(text.actions) for pair in pairs for text in (pair.chosen, *(() if algo == "sft" else (pair.rejected,)))]
    setup.spent.trained(steps * trainer.batch_size / len(data) * sum(learned))
    policy = make_policy(setup.task, setup.base)
    policy.lm.load_state_dict(trainer.lm.state_dict())
    return _of_policy(policy, setup)


def _expert_iteration(setup: LearningSetup, n: int = 4, n_prompts: int = 64, learning_rate: float = 5e-4) -> TrainedAgent:
    agent = _CountedExpertIteration(setup.task, setup.base, n=n, n_prompts=n_prompts, learning_rate=learning_rate, seed=setup.seed)
    agent.spent = setup.spent
    agent.learn(max(1, round(setup.tokens / (n * n_prompts * setup.length))))
    return _of_policy(agent.policy, setup)


class _CountedExpertIteration(ExpertIteration):
    spent: Spent

    def _write(self, prompts: list[Prompt], seed: int) -> WrittenTexts:
        texts = super()._write(prompts, seed)
        self.spent.wrote(texts.lengths)
        self.spent.trained(self.steps * self.trainer.batch_size * texts.lengths.mean())  # of the best texts, taken to be as long as all
        return texts


_OTHERS: Mapping[str, Callable[..., TrainedAgent]] = {
    "reference": _reference,
    "random": _random,
    "best-of-n": _best_of_n,
    "sft": partial(_offline, "sft", learning_rate=SFT_RATE),
    **{name: partial(_offline, name) for name in (*FROM_PAIRS, "kto")},
    "expert-iteration": _expert_iteration,
}
NAMES = (*ALGORITHMS, *_OTHERS)


def _own_class(name: str) -> Any:
    if ":" not in name:
        raise ValueError(
            f"no agent is called {name!r}{did_you_mean(name, NAMES)}; known: {', '.join(NAMES)}, or a class as 'package.module:Name'"
        )
    own_class = named_object(name)
    missing = [method for method in ("learn", "predict") if not callable(getattr(own_class, method, None))]
    if missing:
        raise ValueError(f"agent {name!r} has no method {' and no '.join(missing)}: see agents.benchmark.agents")
    return own_class


def own_source(spec: Spec) -> str | None:
    """Return a hash of the file of an agent of one's own, which may change between two runs; None for those that come with the package."""
    if not spec.name or spec.name in NAMES:
        return None
    return contents_hash(inspect.getfile(_own_class(spec.name)))


def _own(spec: Spec, setup: LearningSetup) -> TrainedAgent:
    env = _CountedVecEnv(64, task=setup.task)
    env.spent, setup.spent.tokens_trained = setup.spent, None
    agent = _own_class(spec.name)(env, base=setup.base, seed=setup.seed, **spec.settings)
    agent.learn(setup.tokens)
    return TrainedAgent(partial(_write_by_predict, agent))


class _CountedVecEnv(TextGenerationVecEnv):
    spent: Spent

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = super().step_wait()
        ended = [infos[row]["terminal_observation"]["response"] for row in np.flatnonzero(dones)]
        self.spent.wrote(np.array([int((response >= 0).sum()) for response in ended], int))
        return obs, rewards, dones, infos


def _write_by_predict(agent: Any, task: TextTask, number: int, seed: int) -> WrittenTexts:
    """Let an agent that only predicts play the task; its KL and entropy are not known."""
    env = TextGenerationVecEnv(min(64, number), task=task)
    env.seed(seed)
    ended: list[dict[str, Any]] = []
    tokens, began = 0, perf_counter()
    with seeded(seed, get_device()):
        env.begin_rollout(number)
        obs: Any = env.reset()
        while (live := obs["prompt"][:, 0] >= 0).any():
            actions, _ = agent.predict(obs)
            tokens += int(live.sum())
            obs, _, dones, infos = env.step(np.asarray(actions))
            ended += [infos[row] for row in np.flatnonzero(dones)]
        env.end_rollout()
    seconds = perf_counter() - began
    return WrittenTexts.of(
        ended, kl_per_sequence=float("nan"), entropy=float("nan"), perplexity=float("nan"), tokens_per_second=tokens / seconds
    )
