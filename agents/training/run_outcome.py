"""Whether a training worked: texts of the policy before and after it to the same prompts, compared; the last stage of a run."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textrl_env import TextTask
from textrl_env.utils.files import write_json, write_jsonl
from textrl_env.utils.tables import read_rows

from ..evaluation.policy_texts import make_policy, write_texts
from ..evaluation.text_comparison import Comparison, TextRow, compare, text_rows
from ..models.loading import LMSource
from ..policies.transformer_policy import TransformerPolicy
from ..rollouts.reference_model import Reference
from ..utils.run_folder import RunFolder
from .trained_run import BEST, TrainedRun, open_run, read_settings, task_of_run
from .validation import told_best

TEXTS = 200  # of each policy, where training writes ten times as many; an interval of a standard deviation / 7
FEWEST = 20
_SHARE = 10  # training writes at least this many times the texts of each policy: two are written without updates, for a tenth of the time
_ROWS = 64  # texts side by side, where training says nothing of it
_BEFORE, _AFTER = "texts-before.jsonl", "texts-after.jsonl"
OUTDATED = ("outcome.json", "report.html", _AFTER)  # when the policy changes; the texts of the first one stay
OUTCOME_FILES = (*OUTDATED, _BEFORE)


def num_eval_texts(given: int | None, trained: int) -> int:
    """Return how many texts each policy writes, where the user names no number.

    Args:
        given: What the user asked for; None: a tenth as many as training writes, within limits.
        trained: Texts of the training, at least.
    """
    return given if given is not None else min(TEXTS, max(FEWEST, trained // _SHARE))


@dataclass(frozen=True)
class Exam:
    """How the policies of a run are examined.

    Attributes:
        reward: Scores the texts; what an environment's `reward` takes, as plain data.
        num_texts: Of each policy.
        held_out: A reward that was not optimised, and scores them too; None: there is none.
        seed: Of the sampling.
    """

    reward: Any
    num_texts: int
    held_out: Any = None
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        comparison: The texts of both policies, compared.
        before: What the first policy wrote, see `text_rows`; None if training started from fresh weights.
        after: What the trained policy wrote.
        prompts: A sentence on the prompts: whether training saw them.
        policy: Sentences on the policy after: why its training stopped, and which one it is, if the best was kept.
        renders: Whether prompts are what users say, through a chat template.
    """

    comparison: Comparison
    before: Sequence[TextRow] | None
    after: Sequence[TextRow]
    prompts: str
    policy: str = ""
    renders: bool = False


def run_outcome(run: RunFolder, name: str, exam: Exam, depends_on: Mapping[str, Any]) -> Outcome:
    """Have both policies of a finished training write texts, compare them, and leave `OUTCOME_FILES` but for the report in the folder.

    What was written is kept when it is interrupted; it is written again when what it depends on has changed.  Nothing is drawn from the
    generators of the training.

    Args:
        run: The folder, with `config.yaml` and a finished policy.
        name: Subfolder of the policy.
        exam: How many texts, and what scores them.
        depends_on: What the texts depend on besides these arguments and the policy, by name.
    """
    inputs, folder = {**depends_on, **vars(exam)}, run.path / name
    weights = {"policy": folder / "policy.zip"} if (folder / "policy.zip").is_file() else {"model": folder / "model"}
    with run.stage("texts after", {**inputs, **weights}, makes=[_AFTER], replaces=True) as after:
        if after.needed:
            opened = open_run(run.path, name)
            write_jsonl(run.path / _AFTER, texts_after(opened, exam))
            prompts = prompts_of_run(run.path, opened, exam)
            first = {"model": opened.first, "rules": opened.rules, "reference": opened.named_reference}
            after.facts = {"prompts": prompts, "first": first, "renders": opened.renders}
            del opened
            gc.collect()  # an algorithm refers to itself; its weights make room for those of the first policy
    first, written = after.facts["first"], None
    if first["model"] is not None:
        start = {**inputs, **first, "reference": {"path": first["reference"]}}
        with run.stage("texts before", start, makes=[_BEFORE], replaces=True) as before:
            if before.needed:
                write_jsonl(run.path / _BEFORE, texts_before(run.path, exam, **first))
        written = read_rows(run.path / _BEFORE)
    rows = read_rows(run.path / _AFTER)
    settings = read_settings(run.path)
    policy = _policy(run, name, settings)
    outcome = Outcome(
        compare(written, rows, aim_of(settings)), written, rows, after.facts["prompts"], policy, after.facts.get("renders", False)
    )
    said = {"prompts": outcome.prompts, "policy": policy}
    write_json(run.path / "outcome.json", {**vars(exam), **said, **dataclasses.asdict(outcome.comparison)})
    return outcome


def _policy(run: RunFolder, name: str, settings: Mapping[str, Any]) -> str:
    """Say why the training of a run stopped, and which policy this is."""
    algo, asked = str(settings["algo"]), settings.get("total_tokens")
    written, said = run.facts(algo).get("tokens"), []
    if asked and written is not None:
        why = f"as --total-tokens {asked:,} asks" if written >= asked else f"before --total-tokens {asked:,}: an alarm stopped it"
        said.append(f"Training ended after {written:,} tokens, {why}")
    if name == BEST:
        said.append(told_best(run.path, algo))
    return ". ".join(said)


def aim_of(settings: Mapping[str, Any]) -> str:
    """Return what a run trained for, see `Comparison`."""
    return "kl" if settings.get("algo") == "distill" else "score"


def texts_after(opened: TrainedRun, exam: Exam) -> list[dict[str, Any]]:
    """Have the trained policy of a run write to the test prompts of its task; see `text_rows`."""
    return _written(opened.policy, opened.task, opened.reference, opened.settings, exam, "texts after training")


def texts_before(folder: Path, exam: Exam, model: LMSource, rules: Mapping[str, Any], reference: LMSource | None) -> list[dict[str, Any]]:
    """Have the policy that a training started from write to the same prompts; see `text_rows`.

    Args:
        folder: Of the run.
        exam: As that of the trained policy.
        model: The first policy.
        rules: Sampling rules of the trained one.
        reference: What KL is measured against; None: the first policy.
    """
    settings = read_settings(folder)
    task = dataclasses.replace(task_of_run(folder, settings, "test"), prompt_order="sequential")
    policy = make_policy(task, model, **rules)
    return _written(policy, task, policy.backbone if reference is None else reference, settings, exam, "texts before training")


def _written(
    policy: TransformerPolicy, task: TextTask, reference: Reference | None, settings: Mapping[str, Any], exam: Exam, title: str
) -> list[dict[str, Any]]:
    rows = int(settings.get("n_episodes") or _ROWS)  # as many side by side as there was memory for
    texts = write_texts(policy, task, exam.num_texts, exam.reward, reference, exam.seed, rows, progress_bar=True, title=title)
    return text_rows(texts, task, exam.held_out)


def seen_in_training(test: TextTask, train: TextTask, num_texts: int) -> str:
    """Return a sentence on the first prompts of a test split: how many they are, and whether training saw them."""
    rows = min(num_texts, len(test.prompts))
    chosen = {test.prompts[i].text for i in range(rows)}
    leaked = len(chosen & {prompt.text for prompt in train.prompts if prompt.text in chosen})
    texts = f"{num_texts} texts of each policy to {len(chosen)} prompts"
    if leaked:
        return f"{texts}, {leaked} of which are among the training prompts: they are not held out, and a gain may be one of memory"
    return f"{texts} of the test split, none of which is among the training prompts"


def prompts_of_run(folder: Path, opened: TrainedRun, exam: Exam) -> str:
    """Return `seen_in_training` of the prompts that a run's policies are examined with."""
    return seen_in_training(opened.task, task_of_run(folder, opened.settings, "train"), exam.num_texts)
