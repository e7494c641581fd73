"""One cell of a benchmark: an agent learns a task with one seed, and is measured.  Plain data in, a file out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from filelock import FileLock, Timeout

from rewards.utils.devices import auto_device, get_device
from textrl_env import TextTask, make_task
from textrl_env.tasks.corpora import CORPORA
from textrl_env.tasks.exact import BETA
from textrl_env.utils.files import read_json, write_json

from ..cli.arguments import reward_of
from ..evaluation.exact_optimum import optimality_gap
from ..evaluation.policy_texts import make_policy, write_texts
from ..models.backbones import backbone_of
from ..models.loading import frozen, load_lm
from ..training.base_policies import base_policy
from ..training.review_reward import learned_reward
from ..utils.columns import columns_of
from ..utils.contents import with_contents
from ..utils.run_folder import fingerprint, safe_name, versions
from .agents import LearningSetup, own_source, train_agent, with_tuned
from .measures import LearningCurve, exact_name, judged, measures_of, normalised, score_each
from .protocol import BASE_TEXTS, BETA_ELSEWHERE, PROTOCOL_VERSION, TEXTS, THRESHOLD
from .spec import Spec, parse
from .suites import plain_name

SHOWN = 4  # texts of each cell that are kept
DONE, BUSY = 0, 3  # exit statuses of a cell's process


@dataclass(frozen=True)
class Job:
    """One cell of the benchmark, or, with an empty agent, the preparation of a task.

    Attributes:
        out: Folder of the results.
        task: Spec of the task.
        agent: Spec of the agent; empty: prepare the task for all agents.
        seed: Of everything that is drawn.
        tokens: Budget of learning.
        texts: Test texts by which an agent is judged.
        facts: For the manifest: git revision and configuration.
        device: Where its models compute, see `rewards.utils.devices.get_device`.
        found: Settings that were found for the agent, which its spec calls `tuned=true`.
    """

    out: str
    task: str
    agent: str = ""
    seed: int = 0
    tokens: int = 0
    texts: int = TEXTS
    facts: tuple[tuple[str, Any], ...] = ()
    device: str = "auto"
    found: tuple[tuple[str, Any], ...] = ()

    @property
    def agent_spec(self) -> Spec:
        """The agent, with the settings that were found for it in place of `tuned=true`."""
        return with_tuned(parse(self.agent), self.task, dict(self.found))

    @property
    def name(self) -> str:
        """A name for files."""
        return "--".join(safe_name(part) for part in (self.task, self.agent, str(self.seed) if self.agent else "") if part)

    def drawn_seed(self, purpose: str) -> int:
        """Return what the generators of one purpose start from: numbers far apart for each task, seed and purpose.

        SB3 gives the rows of an environment the seeds s, s + 1, ..., so that runs with neighbouring seeds would train on nearly the same
        prompts, and tasks with one seed would draw the same numbers.
        """
        return int(fingerprint([self.task, self.seed, purpose]), 16) % 2**31

    @property
    def path(self) -> Path:
        """The file of the result."""
        return Path(self.out) / ("cells" if self.agent else "tasks") / f"{self.name}.json"

    def fingerprint(self) -> str:
        """Return a hash of what the result depends on."""
        own = [PROTOCOL_VERSION, self.task, self.agent, self.seed, self.tokens, self.texts, versions()["textrl-env"]]
        agent = self.agent_spec
        return fingerprint([*own, with_contents(agent.settings), own_source(agent), shared(self)["fingerprint"]])

    def record(self) -> dict[str, str]:
        """Return what decides whether the result stands beside others: hashes of all inputs, of those of all seeds, and of all agents."""
        given = fingerprint([PROTOCOL_VERSION, self.tokens, self.texts, versions()["textrl-env"], shared(self)["fingerprint"]])
        settings = dataclasses.replace(self, seed=0).fingerprint()
        return {"task": self.task, "agent": self.agent, "fingerprint": self.fingerprint(), "settings": settings, "given": given}

    @property
    def preparation(self) -> Job:
        """The job that prepares this one's task."""
        return dataclasses.replace(self, agent="", seed=0, tokens=0, found=())

    def done(self) -> bool:
        """Return whether the result is there and its inputs are still the same.

        A preparation is never done: whether the task is still the same shows only when it is prepared again.
        """
        try:
            if not self.agent:
                return False
            return json.loads(self.path.read_text(encoding="utf-8"))["fingerprint"] == self.fingerprint()
        except (FileNotFoundError, KeyError, json.JSONDecodeError):
            return False


def task_of(spec: Spec, split: str = "train", **settings: Any) -> TextTask:
    """Return the task of a spec: `recall-64`, `textrl/Recall-64-v0`, or one of files.

    Files are those of a public corpus, `squad:path=...:tokenizer=...:model=...`, or prompts, `prompts:path=...:reward=...:model=...`, whose
    tokenizer is the model's if none is named; or questions of reasoning-gym, `reasoning:dataset=chain_sum`.

    Raises:
        ValueError: The spec names a split: agents would be judged on the texts that they train on; or prompts lack model or reward.
    """
    own = {key: value for key, value in spec.settings.items() if key not in ("model", "test_split")}
    if "split" in own:
        raise ValueError(f"{spec.text!r}: agents train on the train split and are judged on test; write test_split=... to judge on another")
    if split == "test":
        split = spec.settings.get("test_split", split)
        if split == "train":
            raise ValueError(f"{spec.text!r}: test_split=train would judge agents on the texts that they train on")
    if isinstance(own.get("columns"), str):
        own["columns"] = columns_of(own["columns"])
    if isinstance(own.get("reward"), str):
        own["reward"] = reward_of(own["reward"], f"{spec.text!r}: reward")
    if spec.name == "prompts":
        missing = [f"{name}=..." for name in ("path", "model", "reward") if name not in spec.settings]
        if missing:
            raise ValueError(f"{spec.text!r} lacks {' and '.join(missing)}: write prompts:path=FILE:model=FOLDER:reward=NAME")
        own.setdefault("tokenizer", spec.settings["model"])
    if spec.name in (*CORPORA, "prompts", "reasoning"):
        return make_task({"name": spec.name, **own}, split=split, **settings)
    return make_task(plain_name(spec.name), split=split, **(own | settings))


def beta_of(task: TextTask) -> float:
    """Return the coefficient of KL that agents are given on a task."""
    return BETA if exact_name(task) else BETA_ELSEWHERE


def shared(job: Job) -> dict[str, Any]:
    """Return what the preparation of the job's task found."""
    preparation: dict[str, Any] = read_json(job.preparation.path)
    return preparation


def work(job: Job) -> int:
    """Do one job, unless it is done or another process is doing it, and return an exit status.

    A failure of the agent is a result: `crashed`, or `diverged` where numbers ceased to be finite.
    """
    torch.set_num_threads(1)
    lock = Path(job.out) / "locks" / f"{job.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0), auto_device(job.device):
            if not job.done():
                prepare(job) if not job.agent else run(job)
    except Timeout:
        return BUSY
    return DONE


def given(spec: Spec, split: str) -> tuple[TextTask, TextTask, str, dict[str, Any] | None]:
    """Return what agents are given.

    Returns:
        The task to learn; the same with the prompts of a split, in their order; the base policy's folder; and the reward model that was
        fitted for the task, None if it has another reward.
    """
    task, judge = task_of(spec), task_of(spec, split, prompt_order="sequential")
    base = str(spec.settings.get("model") or base_policy(task))
    if plain_name(spec.name) != "review" or "reward" in spec.settings:
        return task, judge, base, None
    reward = {"name": "preference", "path": str(learned_reward(task, base))}
    return dataclasses.replace(task, reward=reward), dataclasses.replace(judge, reward=reward), base, reward


def prepare(job: Job) -> None:
    """Build base policy and reward of a task, and measure the base policy; `gold` has texts to compare with, one for each of an agent's."""
    spec = parse(job.task)
    task, test, base, reward = given(spec, "test")
    reference = frozen(load_lm(base))
    policy = make_policy(test, base)
    few, texts = (write_texts(policy, test, times * job.texts, seed=job.drawn_seed(f"base {times}")) for times in (1, BASE_TEXTS))
    value, optimum = judged(test, texts), test.optimum
    exact = exact_name(task)
    if exact is not None:
        gap = optimality_gap(backbone_of(reference), backbone_of(reference), exact, BETA)
        value, optimum = gap.reference, gap.optimum
    prompts = [[p.text, list(p.references)] for t in (task, test) for p in t.prompts]
    reward_of_task = with_contents(task.reward, "reward") if isinstance(task.reward, (str, Mapping)) else _named(task.reward)
    parts = [with_contents(base, "model"), prompts, optimum, with_contents(spec.settings), reward_of_task, job.texts]
    if "reward" in spec.settings and spec.name not in (*CORPORA, "prompts", "reasoning"):
        parts.append("used")  # cells of earlier versions were learned and judged by the task's own
    inputs = fingerprint(parts)
    preparation = {
        "task": job.task, "base": base, "value": value, "optimum": optimum, "length": float(texts.lengths.mean()),
        "gold": score_each(test, few).tolist(), "fingerprint": inputs, "reward": reward,
    }  # fmt: skip
    write_json(job.path, preparation)


def run(job: Job) -> None:
    """Let an agent learn, measure it, and write the cell's file."""
    began, base = perf_counter(), shared(job)
    result = _blank(job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result |= _measured(job, base)
        except FloatingPointError as error:
            result |= {"status": "diverged", "error": str(error)}
        except Exception:
            result |= {"status": "crashed", "error": traceback.format_exc(limit=-4)}
    result["manifest"]["warnings"] = list(dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught))
    result["measures"] |= {"seconds": perf_counter() - began, "peak_memory_mib": _peak_memory()}
    write_json(job.path, result)


def record_failure(job: Job, status: str, error: str, seconds: float) -> None:
    """Write the file of a cell whose process died before it could, or was killed at its limit of seconds."""
    limit = seconds if status == "timeout" else 0.0
    write_json(job.path, _blank(job) | {"status": status, "error": error, "measures": {"seconds": seconds}, "limit": limit})


def forget_failure(job: Job, limit: float) -> None:
    """Delete the result of a cell whose process died, or was killed at a lower limit than this one, so that it is run again."""
    try:
        again = json.loads(job.path.read_text(encoding="utf-8")).get("limit", limit) < limit
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if again:
        job.path.unlink(missing_ok=True)


def _blank(job: Job) -> dict[str, Any]:
    """Return the result of a cell before anything is measured."""
    return {
        "task": job.task, "agent": job.agent, "seed": job.seed, "budget": job.tokens, "fingerprint": job.fingerprint(),
        "protocol": PROTOCOL_VERSION,
        "status": "done", "error": None, "score": 0.0, "measures": {}, "finish_reasons": {}, "curve": [], "samples": [],
        "manifest": _manifest(job, datetime.now(timezone.utc).isoformat(timespec="seconds")),
    }  # fmt: skip


def _measured(job: Job, base: dict[str, Any]) -> dict[str, Any]:
    spec = parse(job.task)
    fitted = {} if base["reward"] is None else {"reward": base["reward"]}  # else the spec's, or the task's own
    task, test = task_of(spec, **fitted), task_of(spec, "test", prompt_order="sequential", **fitted)
    curve = LearningCurve(task, base)
    setup = LearningSetup(task, base["base"], job.tokens, job.drawn_seed("learn"), beta_of(task), base["length"])
    began = perf_counter()
    trained = train_agent(job.agent_spec, setup, curve)
    seconds = perf_counter() - began - curve.watched
    texts = trained.write(test, job.texts, job.drawn_seed("test"))
    measures = measures_of(test, texts, base, trained)
    spent = dataclasses.asdict(setup.spent)
    measures |= {"learning_seconds": seconds + spent.pop("test_seconds"), **spent}
    if curve.rows:
        measures["tokens_per_second"] = curve.rows[-1]["tokens"] / seconds
        reached = next((row for row in curve.rows if row["score"] is not None and row["score"] >= THRESHOLD), None)
        measures |= {f"{key}_to_threshold": reached and reached[key] for key in ("tokens", "seconds")}
    value = measures["value"]
    if value is not None and not math.isfinite(value):
        raise FloatingPointError(f"the value of the final policy is {value}")
    rows = zip(texts.prompts, texts.responses, texts.scores.tolist(), strict=True)
    reasons = {r: texts.finish_reasons.count(r) / len(texts.finish_reasons) for r in sorted(set(texts.finish_reasons))}
    return {
        "score": None if value is None else normalised(value, base),
        "measures": {key: float(x) if x is not None and math.isfinite(x) else None for key, x in measures.items()},
        "finish_reasons": reasons,
        "curve": curve.rows,
        "samples": [{"prompt": p, "response": r, "reward": s} for p, r, s in rows][:SHOWN],
    }


def _named(reward: Any) -> str:
    """Return the `repr` of a reward without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(reward))


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _manifest(job: Job, when: str) -> dict[str, Any]:
    device = get_device()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    hardware = {"device": str(device), "cpu": _processor(), "cores": os.cpu_count(), "gpu": gpu, "platform": platform.platform()}
    config = {
        "task": job.task,
        "agent": job.agent,
        "tokens": job.tokens,
        "texts": job.texts,
        "device": job.device,
        "found": dict(job.found),
    }
    return {"versions": versions(), "config": config, "seed": job.seed, **dict(job.facts), "hardware": hardware, "began": when}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
