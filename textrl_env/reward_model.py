"""The protocol of reward models, the table of their names, and the checks of their scores."""

from __future__ import annotations

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .episode import Episode
from .prompts.prompt import Prompt
from .prompts.reward_needs import check_columns, check_references, see_prompts
from .reward_warnings import watch
from .utils.never_copied import NeverCopied
from .utils.own_packages import load
from .utils.suggestions import did_you_mean
from .utils.user_code import named_object

_TABLE: dict[str, str | Callable[..., Any]] = {
    "vader": "rewards.rules.text_rules:VaderReward",
    "length": "rewards.rules.text_rules:LengthReward",
    "keyword": "rewards.rules.text_rules:KeywordReward",
    "regex": "rewards.rules.text_rules:RegexReward",
    "personal": "rewards.models.personal_model:load_personal_reward",
    "preference": "rewards.models.preference_model:load_preference_reward",
    "fitted": "rewards.fitting.simulated_feedback:fitted_reward",
    "http": "rewards.remote.http_reward:HttpReward",
    "judge": "rewards.remote.llm_judge:JudgeReward",
    "repetition": "rewards.rules.text_rules:RepetitionReward",
    "forbidden": "rewards.rules.text_rules:ForbiddenReward",
    "known_words": "rewards.rules.text_rules:KnownWordsReward",
    "exact_match": "rewards.rules.verifiers:ExactMatchReward",
    "numeric": "rewards.rules.numeric:NumericReward",
    "choice": "rewards.rules.verifiers:ChoiceReward",
    "json": "rewards.rules.verifiers:JsonReward",
    "python_syntax": "rewards.rules.verifiers:PythonSyntaxReward",
    "bleu": "rewards.metrics.ngram_overlap:BleuReward",
    "chrf": "rewards.metrics.ngram_overlap:ChrfReward",
    "ter": "rewards.metrics.ngram_overlap:TerReward",
    "rouge": "rewards.metrics.ngram_overlap:RougeReward",
    "meteor": "rewards.metrics.ngram_overlap:MeteorReward",
    "bertscore": "rewards.metrics.bertscore:BertScoreReward",
    "cider": "rewards.metrics.cider:CiderReward",
    "distinct": "rewards.metrics.diversity:DistinctReward",
    "self_bleu": "rewards.metrics.diversity:SelfBleuReward",
    "sum": "rewards.wrappers.combine:SumReward",
    "product": "rewards.wrappers.combine:ProductReward",
    "minimum": "rewards.wrappers.combine:MinimumReward",
    "ensemble": "rewards.wrappers.combine:EnsembleReward",
    "gold_and_proxy": "rewards.wrappers.combine:GoldAndProxyReward",
    "clip": "rewards.wrappers.transform:ClipReward",
    "threshold": "rewards.wrappers.transform:ThresholdReward",
    "normalize": "rewards.wrappers.transform:NormalizedReward",
    "debias_length": "rewards.wrappers.transform:DebiasLengthReward",
    "improvement": "rewards.wrappers.improvement:ImprovementReward",
    "classifier": "rewards.models.classifier:ClassifierReward",
    "scalar_head": "rewards.models.classifier:ScalarHeadReward",
    "likelihood": "rewards.models.likelihood:LikelihoodReward",
    "embedding": "rewards.models.embedding:EmbeddingReward",
    "function": "textrl_env.reward_model:own_reward",
}

# By name, so that a task can be checked without building its reward, which may be a large model; each checks the same in `see_prompts`.
_COMPARE = frozenset({"exact_match", "numeric", "choice", "bleu", "chrf", "ter", "rouge", "meteor", "bertscore", "cider"})
_INSIDE = MappingProxyType({  # arguments that are rewards themselves
    **dict.fromkeys(("sum", "product", "minimum"), ("terms",)), "ensemble": ("members",), "gold_and_proxy": ("proxy", "gold"),
    **dict.fromkeys(("clip", "threshold", "normalize", "debias_length", "improvement"), ("reward",)),
})  # fmt: skip


DENSE = ("score_steps", "score_turns")  # methods of reward models that also score unfinished texts


class RewardError(RuntimeError):
    """A reward model failed or returned something that is not one finite number per episode."""


@runtime_checkable
class RewardModel(Protocol):
    """Scores finished texts, a batch at a time.

    One that waits, as for a server, may also have `begin_scoring(episodes)`: it sends what has to be asked, and returns at once with
    objects that have `done()` and `cancel()`, such as futures.  `score` is called later with the same episodes, batch after batch in the
    order in which they were begun; meanwhile our algorithms write on.
    """

    def score(self, episodes: Sequence[Episode]) -> Sequence[float | None]:
        """Return one finite number per episode, in order; None: the reward does not apply to this text, and combinations leave it out."""
        ...


class NoReward:
    """Gives every text 0: for texts that are written and not judged."""

    by_design = ("constant",)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 for each episode."""
        return [0.0] * len(episodes)


class RewardFunction(NeverCopied):
    """A plain function as a reward model, in the convention of TRL's reward functions.

    The function is called by keyword as `f(prompts=[...], completions=[...], **columns)`, where the columns are
    `references` and every metadata key, as lists (None where an episode lacks the key).  Columns that the function
    does not name are left out unless it takes `**kwargs`.  As there, None instead of a score says that the reward does not apply.
    """

    def __init__(self, function: Callable[..., Sequence[float | None]]) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.function = function
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._names = {p.name for p in named}
        self._needed = [p.name for p in named if p.default is p.empty and p.name not in ("prompts", "completions", "references")]
        self._known: list[str] = []  # columns that some prompt has, though none of a batch may
        if not self._takes_all and "completions" not in self._names:
            raise TypeError(
                f"reward function {_name_of(function)} takes ({', '.join(sorted(self._names))}): write it as "
                "f(prompts, completions, **columns) -> list of floats, or give an object with .score(episodes)"
            )

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if the function needs a column that no prompt has."""
        check_columns(f"reward function {_name_of(self.function)}", self._needed, prompts)
        self._known = self._needed

    def score(self, episodes: Sequence[Episode]) -> Sequence[float | None]:
        """Call the function once for the whole batch."""
        keys = dict.fromkeys([*self._known, *(key for e in episodes for key in e.metadata)])
        columns: dict[str, list[Any]] = {key: [e.metadata.get(key) for e in episodes] for key in keys}
        columns["references"] = [e.references for e in episodes]
        columns["prompts"] = [e.prompt for e in episodes]
        columns["completions"] = [e.response for e in episodes]
        return self.function(**{k: v for k, v in columns.items() if self._takes_all or k in self._names})

    def __repr__(self) -> str:
        return f"RewardFunction({_name_of(self.function)})"


def as_reward_model(reward: Any) -> RewardModel:
    """Turn whatever a user passed as `reward=` into a reward model.

    Args:
        reward: A registered name, `{"name": ..., **kwargs}`, an object with `score(episodes)`, or a function in the
            TRL convention (see `RewardFunction`).

    Raises:
        TypeError: It is none of these.
        ValueError: The name is not registered.
    """
    if isinstance(reward, str):
        return make_reward(reward)
    if isinstance(reward, Mapping):
        if "name" not in reward:
            raise ValueError(f"a reward given as a dict needs the key 'name'; it has {sorted(reward)}")
        return make_reward(**reward)
    if isinstance(reward, type):
        raise TypeError(f"reward={reward.__name__} is a class: pass an instance, {reward.__name__}(...)")
    if isinstance(reward, RewardModel):
        return reward
    if callable(reward):
        return RewardFunction(reward)
    raise TypeError(
        f"reward={reward!r} is a {type(reward).__name__}: pass a name from {list_rewards()}, a dict with 'name', "
        "an object with .score(episodes), or a function f(prompts, completions, **columns)"
    )


def check_reward(reward: Any, prompts: Sequence[Prompt]) -> None:
    """Insist on prompts that a reward can score texts of.

    Args:
        reward: Anything that `as_reward_model` accepts; what is named is not built.
        prompts: Those of a task.

    Raises:
        ValueError: They lack what the reward needs.
    """
    if not isinstance(reward, (str, Mapping)):
        see_prompts(as_reward_model(reward), prompts)
        return
    named = {"name": reward} if isinstance(reward, str) else reward
    name = str(named.get("name"))
    if name in _COMPARE or (name == "embedding" and named.get("against", "reference") == "reference"):
        check_references(name, prompts)
    for argument in _INSIDE.get(name, ()):
        inner = named.get(argument, ())
        for part in inner.values() if isinstance(inner, Mapping) and argument == "terms" else inner if argument == "members" else [inner]:
            check_reward(part, prompts)


def make_reward(name: str, **kwargs: Any) -> RewardModel:
    """Build the reward model registered under `name` with `kwargs`.

    Raises:
        ValueError: The name is not registered.
    """
    if name not in {**_TABLE, **_plugins()}:
        raise ValueError(f"no reward model is called {name!r}{did_you_mean(name, list_rewards())}; known: {', '.join(list_rewards())}")
    entry = _TABLE.get(name) or _plugins()[name].load()
    return as_reward_model((load(entry) if isinstance(entry, str) else entry)(**kwargs))


def own_reward(path: str) -> RewardModel:
    """Return a reward of the user's own, whose code is run.

    Args:
        path: `file.py:name` or `package.module:name` of a function, see `RewardFunction`, of an object with `score(episodes)`, or of the
            class of one, which is made without arguments.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The code cannot be imported, or holds no such reward.
    """
    found = named_object(path)
    try:
        return as_reward_model(found() if isinstance(found, type) else found)
    except TypeError as error:
        raise ValueError(f"{path} is no reward: {error}") from error


def own_code(reward: Any) -> list[str]:
    """Return the names of the user's own code that building a reward from plain data would run, in the order of the data."""
    if isinstance(reward, Mapping):
        own = [str(reward.get("path"))] if reward.get("name") == "function" else []
        return own + [path for part in reward.values() for path in own_code(part)]
    return [path for part in reward for path in own_code(part)] if isinstance(reward, (list, tuple)) else []


def register_reward(name: str, entry: str | Callable[..., Any]) -> None:
    """Add a reward model to the table.

    Args:
        name: The new name.
        entry: `"module:attribute"`, imported at first use, or the class or factory itself.

    Raises:
        ValueError: The name is taken, or the string has no colon.
    """
    if name in _TABLE and _TABLE[name] != entry:
        raise ValueError(f"a reward model called {name!r} is already registered ({_TABLE[name]}): choose another name")
    if name in _plugins():
        raise ValueError(f"a reward model called {name!r} is already registered by {_plugins()[name].value}: choose another name")
    if isinstance(entry, str) and ":" not in entry:
        raise ValueError(f"entry {entry!r} must look like 'module:attribute'")
    _TABLE[name] = entry


def list_rewards() -> list[str]:
    """Return the registered names, sorted."""
    return sorted({*_TABLE, *_plugins()})


@cache
def _plugins() -> dict[str, EntryPoint]:
    """Return the reward models that installed packages declare under the entry points `textrl.rewards`; taken names are left out."""
    plugins = {}
    for entry in entry_points(group="textrl.rewards"):
        if entry.name in _TABLE or entry.name in plugins:
            warnings.warn(f"the reward model {entry.name!r} of {entry.value} is left out: the name is taken", stacklevel=2)
        else:
            plugins[entry.name] = entry
    return plugins


def checked_scores(model: RewardModel, episodes: Sequence[Episode], method: str = "score", optional: bool = False) -> np.ndarray:
    """Score `episodes` and insist on one finite float for each; warn once of a model whose first scores look wrong (`RewardWarning`).

    Args:
        model: The reward model.
        episodes: What it scores.
        method: `"score"`, or `"score_steps"` or `"score_turns"` of models that also score unfinished texts.
        optional: Whether None passes, by which a model says that it does not apply to a text.

    Returns:
        Scores, shape (len(episodes),), float64; NaN for None.

    Raises:
        RewardError: The model raised, or returned another number of scores, a non-number, NaN or infinity; the message
            holds the text it happened on.
    """
    values = valid_scores(model, episodes, method, optional)
    if method == "score":
        applies = np.flatnonzero(~np.isnan(values)).tolist()
        watch(scorer_of(model), model, [episodes[i] for i in applies], values[applies])
    return values


def valid_scores(model: RewardModel, episodes: Sequence[Episode], method: str = "score", optional: bool = False) -> np.ndarray:
    """Do what `checked_scores` does, without the warnings."""
    if not episodes:
        return np.zeros(0)
    scores = _called(model, method, episodes)
    values = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise RewardError(f"{model!r} returned a {type(scores).__name__}, not a sequence of {len(episodes)} floats")
    if len(values) != len(episodes):
        raise RewardError(f"{model!r} returned {len(values)} scores for {len(episodes)} episodes; it must return one each")
    missing = [episode for value, episode in zip(values, episodes, strict=True) if value is None]
    if missing and not optional:
        raise RewardError(
            f"{model!r} returned None for {len(missing)} of {len(episodes)} texts, {', '.join(map(_excerpt, missing[:3]))}: no reward "
            "applies to them, and every text needs a score; return a number, or give a sum a term that applies"
        )
    for value, episode in zip(values, episodes, strict=True):
        if value is None:
            continue
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise RewardError(f"{model!r} returned {value!r} ({type(value).__name__}) for {_excerpt(episode)}; it must be a float")
        if not np.isfinite(float(value)):
            raise RewardError(f"{model!r} returned {value!r} for {_excerpt(episode)}; it must be finite")
    return np.array([math.nan if value is None else value for value in values], np.float64)


class Begun(Protocol):
    """Scores that are on their way."""

    def done(self) -> bool:
        """Return whether `score` need not wait for them."""
        ...

    def cancel(self) -> object:
        """Give them up."""
        ...


def can_begin(model: RewardModel) -> bool:
    """Return whether a model can be asked now for scores that are needed later: it waits for servers, and judges whole texts only."""
    return hasattr(model, "begin_scoring") and not any(hasattr(model, method) for method in DENSE)


def begin_scoring(model: RewardModel, episodes: Sequence[Episode]) -> list[Begun]:
    """Have a model begin with what `score` will be asked; one that waits for nothing begins nothing.

    Raises:
        RewardError: The model raised.
    """
    return [*_called(model, "begin_scoring", episodes)] if episodes and hasattr(model, "begin_scoring") else []


def terms_of(model: Any, num_episodes: int) -> dict[str, np.ndarray]:
    """Return the parts of a reward model's last scores, which it may keep by name in its attribute `last_terms`; NaN: it did not apply.

    Raises:
        RewardError: They are not one number for each of the `num_episodes` episodes.
    """
    terms = {name: np.asarray(values, np.float64) for name, values in getattr(model, "last_terms", {}).items()}
    for name, values in terms.items():
        if values.shape != (num_episodes,):
            raise RewardError(f"{model!r} has last_terms[{name!r}] of shape {values.shape} for {num_episodes} episodes; it needs one each")
    return terms


def scorer_of(model: RewardModel) -> Any:
    """Return the function in a `RewardFunction`, which is made anew wherever the function is passed, or else the model itself."""
    return model.function if isinstance(model, RewardFunction) else model


def _called(model: RewardModel, method: str, episodes: Sequence[Episode]) -> Any:
    try:
        return getattr(model, method)(episodes)
    except Exception as error:
        raise RewardError(f"{model!r} failed on {len(episodes)} episode(s), first {_excerpt(episodes[0])}: {error}") from error


def _excerpt(episode: Episode, limit: int = 200) -> str:
    text = episode.prompt + episode.response
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _name_of(thing: Any) -> str:
    return getattr(thing, "__name__", None) or repr(thing)
