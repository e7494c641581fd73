"""What changed between the texts of two policies: measures with their intervals, a verdict, and warnings of texts that degenerated."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.metrics.diversity import distinct_n
from rewards.utils.intervals import IntervalEstimate, Rate, clustered_by, least_fall, mean_interval, unit_means
from textrl_env import TextTask
from textrl_env.prompts.reward_needs import see_prompts
from textrl_env.reward_model import as_reward_model, valid_scores

from ..reports.prompt_pictures import picture_uri
from .policy_texts import WrittenTexts

TextRow = Mapping[str, Any]  # see `text_rows`
_COMPARED = ("score", "return", "held_out", "gold", "length")  # columns whose means are compared prompt by prompt
_FEW = 10  # prompts; with fewer of them an interval is about these prompts, and takes texts as the cases
_ENDS = ("length", "illegal")  # reasons why a text stops that has not come to an end


def text_rows(texts: WrittenTexts, task: TextTask, held_out: Any = None) -> list[dict[str, Any]]:
    """Return texts as plain data, in the order of their prompts, with all that `measures` and `compare` need.

    Each row has `prompt`, `response`, `score` (of the reward model), `return` (with the task's penalties), `length` (tokens) and
    `finish_reason`; `gold` if the task has a judgement of its own; `held_out` if there is such a reward; and with a reference `kl` (summed
    log(pi / pi_ref), nats), `nats` (-log pi_ref) and `tokens` (that the policy wrote); `image`, the prompt's picture as a `data:` address
    of a PNG, if it has one.

    Args:
        texts: What a policy wrote.
        task: What it played.
        held_out: A reward model that was not optimised.
    """
    columns: dict[str, Sequence[Any]] = {
        "prompt": texts.prompts, "response": texts.responses, "score": texts.scores.tolist(), "return": texts.returns.tolist(),
        "length": texts.lengths.tolist(), "finish_reason": texts.finish_reasons,
    }  # fmt: skip
    if held_out is not None:
        model = as_reward_model(held_out)
        see_prompts(model, task.prompts)
        columns["held_out"] = valid_scores(model, texts.episodes).tolist()
    if task.gold is not None:
        columns["gold"] = np.asarray(task.gold(texts.prompts, texts.responses), float).tolist()
    if texts.kl is not None and texts.reference_nats is not None:
        columns |= {"kl": texts.kl.tolist(), "nats": texts.reference_nats.tolist(), "tokens": [len(r.actions) for r in texts.records]}
    if texts.images:
        columns["image"] = list(map(picture_uri, texts.images))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def measures(rows: Sequence[TextRow]) -> dict[str, float]:
    """Return the measures of one policy's texts; those of a held-out reward, of gold and of a reference only if the rows have them."""
    responses, num = [row["response"] for row in rows], len(rows)
    reasons = [row["finish_reason"] for row in rows]
    means = {name: float(_column(rows, name).mean()) for name in _COMPARED if name in rows[0]}
    found = {**means, "score_std": float(_column(rows, "score").std())}
    if "kl" in rows[0]:
        found["kl_per_sequence"] = float(_column(rows, "kl").mean())
        found["perplexity"] = math.exp(_column(rows, "nats").sum() / _column(rows, "tokens").sum())
    found |= {f"distinct_{n}": distinct_n(responses, n) for n in (1, 2, 3)}
    found |= {"ended": ended(rows).rate, "repeated": 1 - len(set(responses)) / num}
    return found | {f"finished_by_{reason}": reasons.count(reason) / num for reason in sorted(set(reasons))}


def ended(rows: Sequence[TextRow]) -> Rate:
    """Return the share of texts that came to an end of their own: not at the length limit, and not by an illegal token."""
    return clustered_by(np.array([row["finish_reason"] not in _ENDS for row in rows]), _units(rows))


@dataclass(frozen=True)
class Comparison:
    """Texts of a policy before and after training, compared.

    Attributes:
        before: Its measures before, see `measures`; None if there was no policy before.
        after: Those after.
        change: By measure, after less before with its 95% interval: means over the texts to a prompt, and Student's interval over prompts.
        kl: KL per text of the policy after training, in nats, with its interval; None without a reference.
        better: Share of texts that score higher than the text before with the same prompt, with its interval over prompts.
        equal: Share of those that score the same.
        worse: Share of those that score lower.
        verdict: A sentence: whether the reward rose.
        warnings: A sentence for each sign that the texts became worse in a way which the reward does not see.
        aim: What was trained for: `"score"`, or `"kl"`, of a student that comes near its reference, the teacher.
    """

    before: dict[str, float] | None
    after: dict[str, float]
    change: dict[str, IntervalEstimate]
    kl: IntervalEstimate | None
    better: Rate | None
    equal: Rate | None
    worse: Rate | None
    verdict: str
    warnings: tuple[str, ...]
    aim: str = "score"


def compare(before: Sequence[TextRow] | None, after: Sequence[TextRow], aim: str = "score") -> Comparison:
    """Compare the texts of two policies to the same prompts, pair by pair.

    Args:
        before: What the first policy wrote, a row for each of `after`; None: there was none.
        after: What the trained policy wrote.
        aim: What it was trained for, see `Comparison`.

    Raises:
        ValueError: The rows are not of the same prompts, or there are none.
    """
    if not after:
        raise ValueError("there are no texts to measure")
    kl = mean_interval(unit_means(_column(after, "kl"), _units(after))) if "kl" in after[0] else None
    now = measures(after)
    if before is None:
        verdict = f"The policy's texts earn {now['score']:.3g} on average; there was no policy before it to compare with."
        return Comparison(None, now, {}, kl, None, None, None, verdict, ())
    if [row["prompt"] for row in before] != [row["prompt"] for row in after]:
        raise ValueError("the two policies did not write to the same prompts: their texts cannot be compared pair by pair")
    then = measures(before)
    names = [name for name in (*_COMPARED, *(["kl"] if aim == "kl" else [])) if name in after[0] and name in before[0]]
    change = {name: mean_interval(unit_means(_column(after, name) - _column(before, name), _units(after))) for name in names}
    gains = _column(after, "score") - _column(before, "score")
    better, equal, worse = (clustered_by(which, _units(after)) for which in (gains > 0, gains == 0, gains < 0))
    if aim == "kl":
        verdict = _verdict("KL to the teacher", then["kl_per_sequence"], now["kl_per_sequence"], change["kl"], " nats per text")
    else:
        at = "" if kl is None else f" at {kl.value:.1f} nats of KL per text"
        verdict = _verdict("reward", then["score"], now["score"], change["score"], at)
    warnings = tuple(_warnings(then, now, change, ended(before), ended(after))) if aim == "score" else ()
    return Comparison(then, now, change, kl, better, equal, worse, verdict, warnings, aim)


def degeneration(distinct_2: tuple[float, float], length: tuple[float, float]) -> Iterator[tuple[str, str]]:
    """Yield how texts degenerated: a name and a sentence.

    - `repetition`: distinct-2 fell by more than half.
    - `length`: responses are half as long again as before, or a third shorter.

    Args:
        distinct_2: Share of different word pairs before and now, of equally many texts.
        length: Mean length before and now, in tokens.
    """
    before, now = distinct_2
    if now < 0.5 * before:
        yield "repetition", f"distinct-2 fell from {before:.2f} to {now:.2f}: the policy repeats itself; raise beta, or reward variety"
    before, now = length
    if not before / 1.5 <= now <= before * 1.5:
        yield "length", f"responses went from {before:.0f} to {now:.0f} tokens: see whether the reward pays for length (rewards.check)"


def _warnings(
    then: Mapping[str, float], now: Mapping[str, float], change: Mapping[str, IntervalEstimate], ended_then: Rate, ended_now: Rate
) -> Iterator[str]:
    for _, message in degeneration((then["distinct_2"], now["distinct_2"]), (then["length"], now["length"])):
        yield message
    if least_fall(ended_then, ended_now) > 0:
        yield f"fewer texts come to an end: {ended_then} before, {ended_now} now; the others run into the length limit"
    for name, title in (("held_out", "held-out reward"), ("gold", "gold score")):
        if name in change and change[name].high < 0 < change["score"].low:
            yield f"the {title} fell by {signed(change[name])} while the reward rose: the policy may exploit mistakes of the reward"


def _verdict(what: str, then: float, now: float, change: IntervalEstimate, tail: str) -> str:
    went = f"from {decimals(then, change)} to {decimals(now, change)} ({signed(change)}){tail}"
    if not math.isfinite(change.low):
        return f"The {what} went {went}; one prompt says nothing about chance."
    if change.low > 0:
        return f"The {what} rose {went}."
    if change.high < 0:
        return f"The {what} fell {went}."
    return f"No change beyond noise: the {what} went {went}."


def decimals(value: float, beside: IntervalEstimate) -> str:
    """Return a number with as many decimals as the interval beside it asks for: two digits of its half that begin with 1 or 2, else one."""
    half = (beside.high - beside.low) / 2
    places = 2 if not half > 0 else min(4, max(0, -math.floor(math.log10(half / 3))))
    return f"{value:.{places}f}"


def signed(change: IntervalEstimate) -> str:
    """Return a difference with its interval, as in `+0.63 [+0.58, +0.68]`."""
    value, low, high = (f"{'' if x < 0 else '+'}{decimals(x, change)}" for x in change)
    return f"{value} [{low}, {high}]" if math.isfinite(change.low) else value


def _column(rows: Sequence[TextRow], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def _units(rows: Sequence[TextRow]) -> Sequence[Hashable]:
    """Return what counts as independent: prompts, whose texts are alike, or where there are few of them each text."""
    prompts = [row["prompt"] for row in rows]
    return prompts if len(set(prompts)) >= _FEW else range(len(rows))
