"""What lies in the folder of a run: one table for the terminal, the report and the docs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

RUN_FILES = {
    "report.html": "this run on one page: verdict, table, curves, texts side by side; it needs no other file",
    "outcome.json": "the table of the report: measures before and after, with intervals, verdict and warnings",
    "texts-before.jsonl": "what the first policy wrote: prompt, response, scores and KL of each text",
    "texts-after.jsonl": "what the trained policy wrote to the same prompts",
    "config.yaml": "all settings; `textrl train --config` takes it",
    "stages.json": "what is finished, and what it was made of",
    "tokenizer-*": "the tokenizer that was trained on the text files",
    "evaluation-*.json": "what `textrl evaluate` measured",
    "evaluation-*.jsonl": "the texts that it measured",
    "groups-*.json": "rewards by group of prompts, of `textrl evaluate --by`",
    "*/policy.zip": "the checkpoint, to go on from: policy, optimizer, reference, generators (pickled: load only files you trust)",
    "*/model": "the trained model, as `from_pretrained` opens it",
    "*/checkpoint": "of a training that is not finished, to go on from",
    "*/curve.csv": "reward, KL, length and more of every rollout",
    "*/validation.csv": "measures of the texts to the validation prompts, of `--eval-every`",
    "*/best.json": "the measure by which the policy in this folder is the best so far, of `--keep-best`",
    "*/samples.jsonl": "a few texts of every fifth rollout",
    "*/reward_hacking.csv": "reward, held-out reward, distinct-2 and length of every rollout, that alarms are found in",
    "*/alarms.txt": "alarms: signs that the reward rises and the texts become worse",
    "*/log-*": "every metric as CSV, JSON and TensorBoard events",
}


def run_tree(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and meaning of each file of a run that is there, files of subfolders under the subfolder's name."""
    for pattern, meaning in RUN_FILES.items():
        for path in sorted(folder.glob(pattern)):
            yield f"{path.relative_to(folder).as_posix()}{'/' if path.is_dir() else ''}", meaning
