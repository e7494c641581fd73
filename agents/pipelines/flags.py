"""What `textrl demo` and `textrl loop` take; nothing here needs torch, so that their help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from annotated_types import Ge

from ..training.settings import PolicyTraining
from ..utils.device_flag import OnDevice
from ..utils.limits import Count, Texts

PEOPLE = "people"


@dataclass(frozen=True)
class Demo(PolicyTraining, OnDevice):
    """Run the whole loop on generated film reviews, with an annotator whose true taste is known.

    Attributes:
        out: Folder of the run; running again goes on where it stopped, also with another `beta` beside what is there, or with a higher
            `total_tokens`.
        overwrite: Delete the run that is in the folder, and start anew.
        pairs: Pairs of texts that the annotator compares for training; 500 more are held out.
        texts: Texts of each policy that are judged at the end.
    """

    # with other values of these it is still the same run
    goes_on: ClassVar = ("beta", "total_tokens", "texts", "device", "out", "overwrite")

    out: Path = Path("runs/demo")
    overwrite: bool = False
    pairs: Annotated[int, Ge(50)] = 3000
    texts: Annotated[Texts, tyro.conf.arg(aliases=("--test-texts",))] = 500

    @property
    def variant(self) -> str:
        """The subfolder of the trained policy."""
        return "kl" if self.beta is None else "no-kl" if self.beta == 0 else f"beta-{self.beta:g}"


@dataclass(frozen=True)
class Loop(PolicyTraining, OnDevice):
    """Run several rounds of learning from comparisons; the same command goes on where it stopped.

    Every round's policy starts from the base policy and learns from a reward model fitted to the answers of all rounds so far.  Later
    rounds ask about texts of the round before.

    Attributes:
        out: Folder; each round has its own, with a manifest.
        overwrite: Delete the run that is in the folder, and start anew; one with a study that people answer is never deleted.
        task: Name of a task with a base policy.
        rounds: How many.
        labels: Answers of each round, of all annotators together.
        annotators: Settings of simulated annotators as JSON objects, such as '{"flip": 0.2}': each compares every pair, by the task's gold
            score. Or `people`: the round makes a study, stops, and goes on when the study is answered.
        overlap: Answers for each pair by different people.
        weigh: Fit to the consensus of the annotators by Dawid and Skene's model, instead of to every answer.
        choose: Which pairs are asked about.
        texts: Texts of each policy that are judged, on the task's test prompts.
    """

    goes_on: ClassVar = ("rounds", "device", "out", "overwrite")  # with other values of these it is still the same run

    out: Path = Path("runs/loop")
    overwrite: bool = False
    task: str = "review"
    rounds: Count = 3
    labels: Count = 1000
    annotators: tuple[str, ...] = ("{}",)
    overlap: Count = 1
    weigh: bool = False
    choose: Literal["random", "balanced", "uncertain"] = "random"
    texts: Texts = 500

    def check(self) -> None:
        """Insist on values in their ranges, none of which would be ignored."""
        super().check()
        people = self.asks_people
        if self.pairs < 20:
            raise ValueError(f"labels={self.labels} make {self.pairs} pairs a round: at least 20 are needed")
        if self.overlap > 1 and not people:
            raise ValueError(f"--overlap {self.overlap} is for people: each simulated annotator answers every pair; name more --annotators")
        if self.weigh and (self.overlap if people else len(self.annotators)) == 1:
            raise ValueError("--weigh needs several answers to each pair: name more --annotators, or raise --overlap with people")
        if self.choose == "uncertain" and self.rounds == 1:
            raise ValueError("--choose uncertain needs the answers of an earlier round, and there is --rounds 1: ask for more rounds")

    @property
    def asks_people(self) -> bool:
        """Whether the answers come from people."""
        return self.annotators == (PEOPLE,)

    @property
    def pairs(self) -> int:
        """Pairs of each round."""
        return self.labels // (self.overlap if self.asks_people else len(self.annotators))
