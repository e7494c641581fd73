"""A language model as the judge of texts, asked over a chat endpoint of OpenAI's form (vLLM, llama.cpp, Ollama, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import at_hand, check_no_pictures, check_references
from textrl_env.reward_model import RewardError
from textrl_env.utils.row_files import JsonRows, RowError

from ..utils.base_reward import BaseReward
from . import judge_prompts as verdict
from .endpoint import Endpoint, Post, quoted
from .score_cache import Add, Ask, BegunScores, ScoreCache, content_key

_TRIES = 3  # answers that are asked for until one holds a verdict


class JudgeReward(BaseReward):
    """Scores by a language model that is asked for a rating, or for a comparison (Zheng et al. 2023).

    `pointwise`: the score is the judge's rating, in [low, high].  `pairwise`: the response is compared with another one;
    the score is the share of verdicts that it wins, a tie counting one half, in [0, 1].  Each pair is shown in both
    orders, so that a judge who prefers a position gives everybody 0.5.  `compare` takes two responses to a prompt instead.

    Args:
        url: The API's address up to its version, such as `"http://127.0.0.1:8000/v1"`.
        model: The judge's name at that address.
        mode: `"pointwise"` or `"pairwise"`.
        template: What the judge is told, a format string.  Fields: `{response}` of the response (required) and
            `{prompt}`, `{reference}`, `{low}`, `{high}`; if pairwise `{a}` and `{b}` (required) and `{prompt}`.
        pattern: Regular expression whose one group is the verdict: a number, or `A`, `B` or `C` for a tie.  An answer in
            which it finds nothing, or verdicts that differ, is asked for again, three times in all.
        low: Lowest rating.
        high: Highest rating, above `low`.
        baseline: The other response by prompt, for `pairwise`: a mapping, or a JSON Lines file whose objects hold `prompt`
            and `response`.  By default the other response is the episode's first reference.
        votes: How often each question is asked; the score is the mean.  More than one needs a temperature above 0.
        temperature: Of the judge's sampling, at least 0.
        max_tokens: Longest answer, in tokens.
        token_budget: Tokens, of questions and answers together, that this object may spend; None for no limit.  Requests
            under way when it runs out are finished, so it may be passed by `concurrency` requests.
        headers: Sent along; `${NAME}` stands for an environment variable: `{"Authorization": "Bearer ${OPENAI_API_KEY}"}`.
        concurrency: Requests under way at once, at least 1.
        timeout: Seconds that one request may take; then it is tried again.
        patience_seconds: How long to wait for a server that gives no answer.
        cache: File that keeps every verdict, so that a run made again is free; shared by processes.

    Attributes:
        spent_tokens: Tokens spent so far, as the server counts them.

    Raises:
        ImportError: httpx2 is not installed.
        TypeError: A header is no string.
        ValueError: An argument is out of range or does not fit the mode, a file is damaged, or a secret stands in `url` or
            `headers` as it is.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        mode: Literal["pointwise", "pairwise"] = "pointwise",
        template: str | None = None,
        pattern: str | None = None,
        low: float = 1.0,
        high: float = 10.0,
        baseline: Mapping[str, str] | str | Path | None = None,
        votes: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 512,
        token_budget: int | None = None,
        headers: Mapping[str, str] | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        patience_seconds: float = 300.0,
        cache: str | Path | None = None,
    ) -> None:
        if mode not in verdict.FORMS:
            raise ValueError(f"mode={mode!r} must be 'pointwise' or 'pairwise'")
        if mode == "pointwise" and baseline is not None:
            raise ValueError("baseline= is for mode='pairwise': a pointwise judge sees one response")
        if not low < high:
            raise ValueError(f"low={low} must be below high={high}")
        _check(votes, temperature, max_tokens, token_budget)
        self.model, self.mode, self.low, self.high, self.votes = model, mode, float(low), float(high), votes
        self.temperature, self.max_tokens, self.token_budget = temperature, max_tokens, token_budget
        self.spent_tokens = 0
        self._pairwise = mode == "pairwise"
        form = verdict.FORMS[mode]
        self._template = verdict.checked_template(template or form.template, form)
        self._pattern = verdict.checked_pattern(pattern or form.pattern)
        self._baseline = read_baseline(baseline) if isinstance(baseline, (str, Path)) else baseline
        self._endpoint = Endpoint(f"{url.rstrip('/')}/chat/completions", headers, timeout, concurrency, patience_seconds)
        self._cache = ScoreCache(cache)

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if a prompt has no reference or baseline that the question shows, or a picture, which it cannot show."""
        check_no_pictures("judge", prompts)
        if not self._pairwise and "reference" not in verdict.fields_of(self._template):
            return
        if self._baseline is None:
            check_references("judge", prompts)
        elif unknown := next((p.text for p in at_hand(prompts) if p.text not in self._baseline), None):
            raise ValueError(f"the baseline has no response to the prompt {quoted(unknown)}: add it")

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the mean of the verdicts on each episode.

        Raises:
            RewardError: An answer holds no verdict after three tries (the message shows it), the token budget is spent, a
                response to compare with is missing, or the server refused or stayed away until patience was over.
        """
        return self._means([question for episode in episodes for question in self._questions(episode)], len(episodes))

    def begin_scoring(self, episodes: Sequence[Episode]) -> list[BegunScores]:
        """Send the questions; `score` of the same episodes waits for the answers."""
        return [self._cache.begin(*self._asked([question for episode in episodes for question in self._questions(episode)]))]

    def compare(self, firsts: Sequence[Episode], seconds: Sequence[Episode]) -> list[float]:
        """Return the share of verdicts that the first of each two responses to a prompt wins, in [0, 1], a tie counting one half.

        Raises:
            RewardError: As of `score`.
            ValueError: The judge is pointwise.
        """
        if not self._pairwise:
            raise ValueError(f"{self!r} rates one response at a time: make it with mode='pairwise', or compare its scores")
        pairs = zip(firsts, seconds, strict=True)
        return self._means([question for one, other in pairs for question in self._comparison(one, other.response)], len(firsts))

    def _means(self, questions: Sequence[_Question], number: int) -> list[float]:
        """Ask, and return the mean of the verdicts on each of a number of subjects, which have equally many questions."""
        values = self._cache.complete(*self._asked(questions))
        n = len(questions) // number if number else 1
        return [sum(values[i : i + n]) / n for i in range(0, len(values), n)]

    def _asked(self, questions: Sequence[_Question]) -> tuple[list[bytes], Ask]:
        """Return the questions' keys, and how the verdicts of keys are asked for."""

        async def ask(missing: list[int], add: Add) -> None:
            await self._endpoint.each([questions[i] for i in missing], lambda post, question: self._ask(post, question, add))

        return [question.key for question in questions], ask

    def _questions(self, episode: Episode) -> list[_Question]:
        """Return what is asked about an episode: `votes` questions, or as many in each order."""
        if self._pairwise:
            return self._comparison(episode, self._other(episode, "a pairwise judge compares with the reference or the baseline"))
        texts = {"prompt": episode.prompt, "response": episode.response, "low": f"{self.low:g}", "high": f"{self.high:g}"}
        if "reference" in verdict.fields_of(self._template):
            texts["reference"] = self._other(episode, "the template shows the reference")
        return [self._question(texts, vote, first=True) for vote in range(self.votes)]

    def _comparison(self, episode: Episode, other: str) -> list[_Question]:
        """Return what is asked about an episode beside another response."""
        orders = ((episode.response, other, True), (other, episode.response, False))
        return [
            self._question({"prompt": episode.prompt, "a": a, "b": b}, vote, first) for vote in range(self.votes) for a, b, first in orders
        ]

    def _other(self, episode: Episode, why: str) -> str:
        if self._baseline is not None:
            if episode.prompt not in self._baseline:
                raise RewardError(f"the baseline has no response to the prompt {quoted(episode.prompt)}: add it")
            return self._baseline[episode.prompt]
        if not episode.references:
            raise RewardError(f"{why}, and {quoted(episode.prompt + episode.response)} has none: give its prompt a reference")
        return episode.references[0]

    def _question(self, texts: Mapping[str, str], vote: int, first: bool) -> _Question:
        text = self._template.format_map(texts)
        settings = [self.model, self.mode, self.temperature, self.max_tokens, self._pattern.pattern, self.low, self.high]
        return _Question(text, first, content_key("judge", self._endpoint.url, settings, text, vote, first))

    async def _ask(self, post: Post, question: _Question, add: Add) -> None:
        for _ in range(_TRIES):
            answer, finish_reason = await self._answer(post, question.text)
            if self._pairwise:
                value = verdict.preference(answer, self._pattern)
            else:
                value = verdict.rating(answer, self._pattern, self.low, self.high)
            if value is not None:
                add(question.key, value if question.first else 1 - value)
                return
        fix = f"raise max_tokens={self.max_tokens}" if finish_reason == "length" else "change the template, or take a better judge"
        limits = "" if self._pairwise else f" in [{self.low:g}, {self.high:g}]"
        raise RewardError(
            f"{self.model} gave no verdict{limits} that the pattern {self._pattern.pattern!r} finds in {_TRIES} tries; the last "
            f"answer: {quoted(answer, 500)}, to {quoted(question.text, 2000)}; {fix}"
        )

    async def _answer(self, post: Post, text: str) -> tuple[str, str | None]:
        if self.token_budget is not None and self.spent_tokens >= self.token_budget:
            raise RewardError(
                f"{self.model} has spent {self.spent_tokens} tokens of token_budget={self.token_budget}: raise it, or score fewer texts; "
                "what was judged is kept"
            )
        message = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": message, "temperature": self.temperature, "max_tokens": self.max_tokens}
        answer = await post(body)
        self._spend(answer)
        try:
            choice = answer["choices"][0]
            content, finish_reason = choice["message"]["content"] or "", choice.get("finish_reason")
            if not isinstance(content, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RewardError(f"{self._endpoint.url} gave no chat completion but {quoted(repr(answer))}: check the url") from error
        return content, finish_reason

    def _spend(self, answer: Any) -> None:
        usage = answer.get("usage") if isinstance(answer, dict) else None
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(tokens, int) and tokens >= 0:
            self.spent_tokens += tokens
        elif self.token_budget is not None:
            raise RewardError(
                f"{self._endpoint.url} tells no usage.total_tokens, so token_budget={self.token_budget} cannot be kept: drop it"
            )

    def __repr__(self) -> str:
        return f"JudgeReward({self.model!r}, {self.mode}, {self._endpoint.url!r})"


@dataclass(frozen=True, slots=True)
class _Question:
    """What the judge is told; `first` tells whether the response that is scored is the one shown first."""

    text: str
    first: bool
    key: bytes


def read_baseline(path: str | Path) -> dict[str, str]:
    """Read a JSON Lines file (UTF-8) of responses: objects with the strings `prompt` and `response`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no such object; the message names it.
    """

    def pair(row: Mapping[str, Any]) -> tuple[str, str]:
        prompt, response = row.get("prompt"), row.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise RowError("'prompt' and 'response' must be strings")
        return prompt, response

    return dict(JsonRows(path).map(pair))


def _check(votes: int, temperature: float, max_tokens: int, token_budget: int | None) -> None:
    if votes < 1 or max_tokens < 1 or not temperature >= 0 or (token_budget is not None and token_budget < 1):
        raise ValueError(
            f"votes={votes}, max_tokens={max_tokens}, temperature={temperature}, token_budget={token_budget}: they must be at least "
            "1, 1, 0 and 1"
        )
    if votes > 1 and temperature == 0:
        raise ValueError(f"votes={votes} at temperature=0 would ask for the same answer {votes} times: raise temperature, or take 1 vote")
