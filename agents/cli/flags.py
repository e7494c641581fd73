"""What the commands take whose work needs torch or matplotlib; nothing here does, so that their help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge, Interval

from ..utils.device_flag import OnDevice
from ..utils.limits import Above0, Count, Seed, Texts


@dataclass(frozen=True)
class Evaluate(OnDevice):
    """Measure the policy of a run on the test prompts of its task.

    Attributes:
        run: Folder of `textrl train` or `textrl demo`.
        policy: Subfolder of the policy, if there are several.
        reward: As `textrl train` takes it; by default the run's own.
        by: Column of the prompts' data: rewards of each of its values are listed, of the policy and of what it started from.
        texts: How many texts the policy writes.
        seed: Of the sampling.
    """

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    policy: str | None = None
    reward: str | None = None
    by: str | None = None
    texts: Texts = 500
    seed: Seed = 0


@dataclass(frozen=True)
class Generate(OnDevice):
    """Write texts with the policy of a run.

    Attributes:
        run: Folder of `textrl train` or `textrl demo`.
        prompts: What to go on with; a single one is streamed.
        policy: Subfolder of the policy, if there are several.
        file: More prompts, as `read_prompts` takes them: .jsonl, .csv, .parquet or .txt.
        columns: The file's own name of the column of prompts, as in `prompt=question`.
        out: JSON Lines file for `prompt` and `response`; by default they are printed.
        max_new_tokens: Longest response; by default the task's.
        deterministic: Take the likeliest token instead of drawing one.
        seed: Of the sampling.
    """

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    policy: str | None = None
    file: Path | None = None
    columns: str | None = None
    out: Path | None = None
    max_new_tokens: Count | None = None
    deterministic: bool = False
    seed: Seed = 0


@dataclass(frozen=True)
class Report(OnDevice):
    """Fit a reward model to preferences and report on it: accuracy, calibration, length, learning curve, mistakes, subgroups.

    Attributes:
        file: JSON Lines, CSV or Parquet, plain or gzip, in any form that `rewards.read_preferences` knows.
        out: Folder for `report.html`, `report.json`, and the model in `reward`, which `--reward` of other commands takes.
        overwrite: Delete the report and the model that are in the folder, and make them anew.
        columns: The files' own names of columns, as in `prompt=instruction,chosen=output_1`.
        reward: A reward model as `textrl train` takes it, which is judged by FILE instead of one that is fitted; FILE may then be in
            RewardBench 2's form, with lists of right and wrong answers to each prompt.
        chat: Model whose chat template the prompts go through before `reward` reads them, each as what a user says; folder, hub id or
            `.gguf` file.
        by: Column whose values are listed with their accuracies; `subset` in RewardBench 2.
        trunk: Fit a transformer beside the hashed n-grams, which takes minutes instead of seconds: a model to start from (folder, hub id,
            or `.gguf` file), or `new` for a small one.
        lora: JSON object with arguments of `peft.LoraConfig`, as in '{"r": 8}': only adapters of the trunk are fitted.
        learning_rate: Peak rate of the trunk; by default what suits its size, see `fit_preference_model`.
        epochs: Passes of the trunk over the comparisons.
        tokenizer: Folder or file of a tokenizer; by default the trunk's, or else one that is trained on the file's texts.
        max_tokens: Longest text that is read, in tokens; of longer ones the beginning is left out.
        test: Share of the comparisons that the model never sees; they share no text and no prompt with the others.
        test_file: Comparisons to judge the model by instead; those that share a text or a prompt with FILE are left out.
        seed: Of the split and the fit.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("preferences.jsonl")
    out: Path = Path("runs/reward")
    overwrite: bool = False
    columns: str | None = None
    reward: str | None = None
    chat: str | None = None
    by: str | None = None
    trunk: str | None = None
    lora: str | None = None
    learning_rate: Above0 | None = None
    epochs: Count = 3
    tokenizer: Path | None = None
    max_tokens: Annotated[int, Ge(2)] = 512
    test: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    test_file: Path | None = None
    seed: Seed = 0


@dataclass(frozen=True)
class Score(OnDevice):
    """Score the texts of a file: each row gets a `score`, and the scores a histogram.

    Attributes:
        reward: Name of a reward model, the folder of a saved one, a JSON object with `name` and its arguments, or `file.py:function`.
        file: .jsonl, .csv, .tsv (plain or .gz) or .parquet with the columns `prompt` and `response`.
        references: Columns with texts to compare the response with.
        out: JSON Lines to write, with the histogram beside it as PNG; by default FILE's name with `.scores.jsonl`.
        columns: The file's own names of columns, as in `prompt=question,response=answer`.
    """

    reward: Annotated[str, tyro.conf.Positional] = "vader"
    file: Annotated[Path, tyro.conf.Positional] = Path("texts.jsonl")
    references: tuple[str, ...] = ()
    out: Path | None = None
    columns: str | None = None


@dataclass(frozen=True)
class FeedbackReport:
    """Report on a study: agreement, every annotator's accuracy, consistency, pace and position bias, contested items, ranking of sources.

    Attributes:
        study: Its folder; `report.html` and `report.json` are written there. The page shows texts in the clear.
    """

    study: Annotated[Path, tyro.conf.Positional] = Path("runs/study")
