"""A page for each family of environments, with a transcript that was really played."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from pkgutil import resolve_name
from statistics import mean
from typing import Any

import gymnasium as gym
import numpy as np

from textrl_env import LADDERS, Prompt, TextGenerationEnv, TextTask, make_task
from textrl_env.reward_model import as_reward_model
from textrl_env.tasks import registry
from textrl_env.tasks.exact import TASKS

from .docstrings import code, demoted, page, parts, table, toctree
from .pictures import draw

_TRIED = 200  # texts of the corpus, the best of which is shown
_SHOWN = 24  # steps of a transcript
_SOLVED = 0.9  # mean normalised score


def families() -> dict[str, list[str]]:
    """Return the registered ids of each family, the plain id first."""
    found: dict[str, list[str]] = {}
    for name in gym.registry:
        if told := re.match(r"textrl/([A-Za-z]+)", name):
            found.setdefault(told[1], []).append(name)
    return {family: sorted(ids, key=lambda name: (name != f"textrl/{family}-v0", len(name), name)) for family, ids in found.items()}


def pages() -> dict[str, str]:
    """Return a page for each family, and their index."""
    found = families()
    made = {f"environments/{family}.md": _page(family, ids) for family, ids in found.items()}
    rows = [(f"[{family}]({family}.md)", _probes(family), ", ".join(f"`{name}`" for name in ids)) for family, ids in found.items()]
    cards = "\n".join(_card(family, ids[0]) for family, ids in found.items())
    made["environments/index.md"] = page(
        "Environments",
        f"{sum(map(len, found.values()))} environments of {len(found)} families. Every one is made by `gym.make(id)`, `gym.make_vec(id)` "
        "and `TextGenerationVecEnv(rows, task)`, and takes [the same settings](../../how-to/environment.md). What they were made for, and "
        "what a failure on each means: [the diagnostic suite](../../tasks.md). Public corpora are tasks too: "
        "[real data](../../real-data.md).",
        '```{raw} html\n<div class="environments">\n' + cards + "\n</div>\n```",
        "Each picture is a text that was really played: the best of 200 that the base policy learned from, or a random agent's where it "
        "learned from none. The bar is the share of the optimum, or of 1, by the task's own judgement.",
        "## Ids",
        table(("family", "asks for", "ids"), rows),
        "## Who solves what",
        f"In [the benchmark](../../benchmark.md), five runs each, where the base policy has 0 and the optimum 1: the best agents, and "
        f"which reach {_SOLVED}. Base policy and optimum in the task's own measure.",
        table(("id", "base policy", "optimum", "best agents", f"mean score of {_SOLVED} or more"), _solvers(found)),
        toctree(found),
    )
    return made


def _page(family: str, ids: Sequence[str]) -> str:
    named = {name: gym.spec(name).kwargs["task"] for name in ids}
    default = named[ids[0]]
    task = make_task(default)
    path = registry._TABLE[default][0]
    told = parts(resolve_name(path))[0].removeprefix("Return the task.").strip()
    env = TextGenerationEnv(task)
    spaces = (
        f"`{env.action_space}` and\n\n{code(str(env.observation_space), 'text')}\n\nin `{ids[0]}`. "
        "See [TextGenerationEnv](../api/textrl_env.TextGenerationEnv.md), which all environments share."
    )
    return page(
        f"textrl/{family}",
        f"*{_probes(family)}*",
        code(f'import gymnasium as gym\nimport textrl_env\n\nenv = gym.make("{ids[0]}")', "python"),
        demoted(told),
        "## Ids and sizes",
        table(
            ("id", "longest prompt", "longest response", "tokens", "prompts", "optimum"),
            [(f"`{name}`", *_sizes(make_task(of))) for name, of in named.items()],
        ),
        _rules(ids),
        "## Spaces",
        spaces,
        "## Reward",
        f"`{task.reward!r}` unless `reward=` names another one. "
        + ("The gold score is the task's own judgement, and no agent is trained on it unless it is the reward." if task.gold else ""),
        "## Base policy",
        _base(task),
        "## What agents reach",
        _results(list(named.values())),
        "## A text, played",
        _transcript(default),
    )


def _card(family: str, name: str) -> str:
    """Return a link to the page of a family: the best text of the corpus, by the task's own judgement where it has one."""
    task = make_task(gym.spec(name).kwargs["task"])
    texts, random = _texts(gym.spec(name).kwargs["task"])

    def worth(text: dict[str, Any]) -> float:
        return float(text["score"] if task.gold is None else task.gold([text["prompt"]], [text["response"]])[0])

    text = max(texts, key=worth, default=random)
    share = min(max(worth(text) / (task.optimum or 1.0), 0.0), 1.0)
    picture = draw(text["prompt"], [token for token, _ in text["steps"]], worth(text), share)
    return f'<a href="{family}.html">{picture}<strong>{family}</strong><span>{escape(_probes(family))}</span></a>'


def _probes(family: str) -> str:
    known = {ladder.name: ladder.probes for ladder in LADDERS} | {
        "Exact": "the distance from an optimum that is computed",
        "Review": "texts that please",
    }
    return known.get(family, family)


def _sizes(task: TextTask) -> tuple[Any, ...]:
    optimum = "-" if task.optimum is None else f"{task.optimum:.3g}"
    return task.prompt_width, task.max_new_tokens, task.tokenizer.vocab_size, len(task.prompts), optimum


def _rules(ids: Sequence[str]) -> str:
    exact = {name: task for name, task in TASKS.items() if task.id in ids}
    return table(("task", "rule"), [(name, parts(task.rule)[0]) for name, task in exact.items()]) if exact else ""


def _base(task: TextTask) -> str:
    if task.recipe is None:
        return "None: pass a model of your own."
    model, recipe = task.recipe.model, task.recipe
    described = " and ".join(map(_described, [model[part] for part in ("encoder", "decoder") if part in model] or [model]))
    return (
        f"{described[0].upper()}{described[1:]}, pretrained for {recipe.steps} "
        f"steps of {recipe.batch_size} texts from a corpus with known mistakes, at first use, then cached: "
        "[agents.training.base_policy](../api/agents.training.base_policy.md)."
    )


def _described(model: Mapping[str, Any]) -> str:
    """Return a configuration in words; GPT-2's family has names of its own."""
    layers, width = (model.get(name, model.get(other)) for name, other in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd")))
    return f"a {model['model_type']} of {layers} layers, width {width}"


@cache
def _runs() -> list[dict[str, str]]:
    """Return every run of the benchmark that docs/benchmark.md describes."""
    with (Path(__file__).parents[1] / "benchmark" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _ranking(task: str) -> list[tuple[str, float]]:
    """Return the mean score of each agent on a task, the best first."""
    found: dict[str, list[float]] = {}
    for row in _runs():
        if row["task"] == task:
            found.setdefault(row["agent"], []).append(float(row["score"] or 0))
    return sorted(((agent, mean(scores)) for agent, scores in found.items()), key=lambda one: -one[1])


def _solvers(found: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each id that was in the benchmark."""
    for name in (name for ids in found.values() for name in ids):
        task = gym.spec(name).kwargs["task"]
        run = next((row for row in _runs() if row["task"] == task and row["reference_value"]), None)
        if run is not None:
            ranking = _ranking(task)
            best = ", ".join(f"{agent} {score:.2f}" for agent, score in ranking[:2])
            solved = ", ".join(agent for agent, score in ranking if score >= _SOLVED) or "-"
            yield f"`{name}`", *(f"{float(run[key]):.3g}" if run[key] else "-" for key in ("reference_value", "optimum")), best, solved


def _results(tasks: Sequence[str]) -> str:
    known = [task for task in tasks if _ranking(task)]
    if not known:
        return "Not in the published benchmark; `textrl bench --tasks` runs it."
    agents = [agent for agent, _ in _ranking(known[0])]
    rows = [(task, *(f"{dict(_ranking(task)).get(agent, float('nan')):.2f}" for agent in agents)) for task in known]
    return "Mean normalised score of the runs in [the benchmark](../../benchmark.md): 0 is the base policy, 1 the optimum.\n\n" + table(
        ("task", *agents), rows
    )


@cache
def _texts(name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Play texts of the corpus that the base policy of a task learned from, and one of a random agent."""
    task = make_task(name)
    task = replace(task, reward=as_reward_model(task.reward))  # made once for all texts
    return [] if task.recipe is None else list(_corpus_texts(task)), _random_text(task)


def _transcript(name: str) -> str:
    """Show the best of the corpus step by step, an ordinary one, and what a random agent writes."""
    texts, random = _texts(name)
    blocks = []
    if texts:
        best = max(texts, key=lambda text: text["score"])
        blocks += [
            f"The best of {len(texts)} texts of the corpus, token by token:",
            code(_steps(best), "text"),
            "An ordinary one, and what a random agent writes:",
        ]
    blocks.append(code("\n".join(_line(text) for text in [*texts[:1], random]), "text"))
    return "\n\n".join(blocks)


def _corpus_texts(task: TextTask) -> Iterator[dict[str, Any]]:
    assert task.recipe is not None
    known = {prompt.text: prompt for prompt in task.prompts}
    for prompt, response in task.recipe.corpus()[:_TRIED]:
        ids = [*task.tokenizer.encode_batch([response])[0], task.tokenizer.eos_token_id]
        text = _play(task, known.get(prompt, task.recipe.prompt(prompt)), ids)
        if text is not None:
            yield text


def _random_text(task: TextTask) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    text = _play(task, task.prompts[0], rng)
    assert text is not None
    return text


def _play(task: TextTask, prompt: Prompt, ids: Sequence[int] | np.random.Generator) -> dict[str, Any] | None:
    """Play these ids, or random legal ones; None where the environment writes something else."""
    width = task.max_prompt_tokens
    env = TextGenerationEnv(replace(task, prompts=[prompt], max_prompt_tokens=width, prompt_order="sequential", prompt_weights=None))
    obs, _ = env.reset(seed=0)
    steps: list[tuple[str, float]] = []
    while True:
        written = obs["response"][obs["response"] >= 0].tolist()
        if isinstance(ids, np.random.Generator):
            action = int(ids.choice(np.flatnonzero(env.action_masks())))
        elif written != list(ids[: len(written)]) or len(written) == len(ids):
            return None
        else:
            action = int(ids[len(written)])
        obs, reward, ended, _, info = env.step(action)
        told = obs["response"][len(written) :]
        shown = task.tokenizer.decode_batch([told[told >= 0].tolist()])[0].strip() or "(end)"
        steps.append((shown, float(reward)))
        if ended:
            return {
                "prompt": prompt.text,
                "response": info["response"],
                "score": info["score"],
                "why": info["finish_reason"],
                "steps": steps,
            }


def _steps(text: dict[str, Any]) -> str:
    lines = [f"prompt: {text['prompt']}", ""]
    lines += [f"step {i + 1:>2}  {token:<16} reward {reward:+.3f}" for i, (token, reward) in enumerate(text["steps"][:_SHOWN])]
    if len(text["steps"]) > _SHOWN:
        lines.append(f"... {len(text['steps']) - _SHOWN} more")
    return "\n".join([*lines, "", f"ended by {text['why']}, score {text['score']:.3f}"])


def _line(text: dict[str, Any]) -> str:
    return f"[{text['score']:+.3f}, {text['why']}] {text['prompt']} | {text['response'].strip()}"
