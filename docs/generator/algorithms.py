"""A page for each algorithm: the rows of the registry, and what else `agents` exports of `agents.algorithms`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import agents
from agents.algorithms.common.advantage_estimators import ESTIMATORS
from agents.algorithms.registry import ALGORITHMS, Algorithm
from agents.cli.train_flags import NAMES

from .docstrings import arguments, code, demoted, page, parts, table, toctree

_DOCS = Path(__file__).parents[1]
_REWARDS = {  # of estimators that need one of a kind
    "gdpo": '{"name": "sum", "terms": {"brief": {"name": "length", "target": 2}, "variety": {"name": "distinct", "n": 1}}}',
}
_OTHER_NAMES = {"ipo": "DPO", "expert-iteration": "ExpertIteration"}  # of the command line

# Programs for what is not in the registry of those that play; `table` is a policy with a row of logits for each text
_MODEL = (
    '{"model_type": "llama", "vocab_size": 6, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}'
)
_EXAMPLES = {
    "SFT": f"""
from agents import SFT
from textrl_env import IntegerTokenizer

trainer = SFT({_MODEL}, IntegerTokenizer(6), train_on_prompts=False)
trainer.learn([("1", "2 3"), ("2", "4 5")], steps=20)
trainer.save("runs/example/sft")
""",
    "DPO": f"""
from agents import DPO
from rewards import Preference
from textrl_env import IntegerTokenizer

trainer = DPO({_MODEL}, IntegerTokenizer(6), beta=0.1)
trainer.learn([Preference("1", "2 3", "4"), Preference("2", "4 5", "3")], steps=20)
trainer.save("runs/example/dpo")
""",
    "ExpertIteration": f"""
from agents import ExpertIteration
from textrl_env import make_task

trainer = ExpertIteration(make_task("exact-smooth"), {_MODEL}, n=4, n_prompts=8, steps=2)
print(trainer.learn(2).scores)
""",
    "best_of_n": f"""
from agents import best_of_n
from agents.evaluation import make_policy
from textrl_env import make_task

task = make_task("exact-smooth")
policy = make_policy(task, {_MODEL})
print(best_of_n(policy, task.tokenizer, ["1", "2"], n=4, reward="length", max_new_tokens=4))
""",
    "TextPolicyGradient": """
from agents import TextPolicyGradient

table = {"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 6, "length": 5}
settings = {"estimator": "rloo", "clip_range_high": 0.28, "policy_kwargs": {"model": table}}
model = TextPolicyGradient("TransformerPolicy", "textrl/Exact-Smooth-v0", **settings)
model.learn(500)
""",
}


def exported() -> dict[str, Any]:
    """Return what `agents` exports of its algorithms, best-of-n among them, by name."""
    stub = (_DOCS.parent / "agents" / "__init__.pyi").read_text(encoding="utf-8")
    found = re.findall(r"^from \.(?:algorithms\.\w+|evaluation\.best_of) import \w+ as (\w+)", stub, re.M)
    return {name: getattr(agents, name) for name in found}


def names() -> dict[str, Any]:
    """Return every algorithm that has a page, by the page's name: its name on the command line, or in Python."""
    found: dict[str, Any] = dict(ALGORITHMS)
    classes = {algorithm.name for algorithm in ALGORITHMS.values()}
    return found | {name: made for name, made in exported().items() if name not in classes}


def pages() -> dict[str, str]:
    """Return a page for each algorithm, and their index."""
    made, rows = {}, []
    for name, one in names().items():
        made[f"algorithms/{slug(name)}.md"] = _registered(name, one) if isinstance(one, Algorithm) else _other(name, one)
        summary = _first(one.made if isinstance(one, Algorithm) else one)
        rows.append((f"[{name}]({slug(name)}.md)", f"`{one.name if isinstance(one, Algorithm) else name}`", summary))
    made["algorithms/index.md"] = page(
        "Algorithms",
        "What each maximises, and where its expected update is biased: [one table](../../algorithms.md). Options that several "
        "share: [options](../../how-to/options.md). Not sure? Begin with `ppo` or `rloo`; with comparisons and no "
        "reward, `dpo`; with examples, `sft`.",
        table(("name", "class", "what it is"), rows),
        toctree(made_name.split("/")[1].removesuffix(".md") for made_name in made),
    )
    return made


def slug(name: str) -> str:
    """Return the name of a page: signs of addresses are spelled."""
    return name.replace("+", "p")


def example(name: str) -> str:
    """Return a program that trains for a moment; empty if there is none."""
    one = names()[name]
    if not isinstance(one, Algorithm):
        return _EXAMPLES.get(name, "").strip()
    settings = {"n_episodes": 16, **({"batch_size": 16} if one.minibatches else {}), **one.settings, "seed": 0}
    told = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    needed = _REWARDS.get(settings.get("estimator", ""))
    reward = f", reward={needed}" if needed else ""
    taught = "teacher" in inspect.signature(one.made).parameters
    teacher = 'teacher=str(base_policy(make_task("exact-smooth"))), ' if taught else ""
    group = f", group_size={one.group_size}" if one.group_size > 1 else ""
    return f"""from agents import {one.name}
{"from agents.training import base_policy" + chr(10) if taught else ""}from textrl_env import TextGenerationVecEnv, make_task

table = {{"class": "agents.evaluation.exact_optimum:Table", "vocab_size": 6, "length": 5}}  # a tiny policy; or a folder, a hub id, ...
env = TextGenerationVecEnv(16, make_task("exact-smooth"{group}){reward})
model = {one.name}("{one.policy}", env, {teacher}{told}, policy_kwargs={{"model": table}})
model.learn(500)"""


def _registered(name: str, one: Algorithm) -> str:
    told, _ = parts(one.made)
    lines = [f"textrl train --algo {name} --task review --reward vader --out runs/{name}"]
    return page(
        name,
        f"`agents.{one.name}` ([API](../api/agents.{one.name}.md)); on the command line `--algo {name}`."
        + (f" It compares {one.group_size} texts to each prompt." if one.group_size > 1 else "")
        + (" It has a critic." if one.critic else " It has no critic."),
        demoted(told, by=1),
        "## Objective",
        _objective(name, one.name),
        _estimator(one),
        "## Example",
        code(example(name), "python"),
        code("\n".join(lines), "bash"),
        "## Results",
        _results(name),
        "## Arguments",
        "Defaults are those of this name; the command line has [its own](../cli.md#textrl-train).",
        arguments(one.made, dict(one.settings)),
    )


def _other(name: str, made: Any) -> str:
    told, _ = parts(made)
    algo = [known for known in NAMES if known not in ALGORITHMS and _OTHER_NAMES.get(known, known.replace("-", "")).lower() == name.lower()]
    return page(
        name,
        f"`agents.{name}` ([API](../api/agents.{name}.md))" + (f"; on the command line `--algo {'` or `'.join(algo)}`." if algo else "."),
        demoted(told, by=1),
        "## Objective" if _rows(name, name) else "",
        _rows(name, name),
        "## Example" if example(name) else "",
        code(example(name), "python") if example(name) else "",
        "## Arguments",
        arguments(made),
    )


def _first(made: Any) -> str:
    return parts(made)[0].split("\n\n")[0].replace("\n", " ")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _cells(text: str) -> list[list[str]]:
    """Return the cells of every row of the tables in a text, rules left out."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line.startswith("|")]
    return [row for row in rows if set("".join(row)) - {"-", ":"}]


def _rows(name: str, class_name: str) -> str:
    """Return what docs/algorithms.md says of an algorithm in its first table: in the row of its name, or else of its class."""
    text = (_DOCS / "algorithms.md").read_text(encoding="utf-8")
    head, *rows = _cells(text.split("\n## ")[0])
    named = [([_key(part) for part in re.findall(r"`[^`]+`|[^`,]+", row[0])], row) for row in rows]
    mine = next((row for wanted in (name, class_name) for keys, row in named if _key(wanted) in keys), None)
    if mine is None:
        return ""
    told = "\n".join(f"- **{title}**: {cell}" for title, cell in zip(head[1:], mine[1:], strict=True) if cell not in ("", "-"))
    return re.sub(r"\]\((?=\w[\w-]*\.md)", "](../../", told.replace("](#", "](../../algorithms.md#"))


def _objective(name: str, class_name: str) -> str:
    general = "    J(pi) = E_pi[score] - beta * KL(pi || pi_ref)"
    told = "The KL-regularised return of whole texts, of which the table of [all algorithms](../../algorithms.md) says:"
    return "\n\n".join([told, general, _rows(name, class_name)])


def _estimator(one: Algorithm) -> str:
    """Return the code that computes the advantages, where it is one function."""
    parameters = inspect.signature(one.made).parameters
    if "estimator" not in parameters:
        return ""
    chosen = one.settings.get("estimator", parameters["estimator"].default)
    function = ESTIMATORS.get(chosen)
    if function is None:
        return ""
    return f"Its advantages are `estimator={chosen!r}`, in a rollout of S texts with N tokens:\n\n" + code(
        inspect.getsource(function), "python"
    )


def _results(name: str) -> str:
    rows = _cells((_DOCS / "exact.md").read_text(encoding="utf-8"))
    head = next(row for row in rows if "Smooth" in row)
    mine = next((row for row in rows if _key(row[0]) == _key(name)), None)
    more = "In the benchmark: [results](../../benchmark.md). On film reviews: [one table of all](../../review.md)."
    if mine is None:
        return more
    told = "Share of the gap to the known optimum that it closes ([exact tasks](../../exact.md); 0 is the reference, 1 the optimum):"
    return "\n\n".join([told, table(head[1:], [mine[1:]]), more])
