"""A reward model behind HTTP.

The server gets a POST with the JSON object

    {"episodes": [{"prompt": "...", "response": "...", "references": ["..."], "metadata": {...},
                   "finish_reason": "eos", "prompt_ids": [...], "response_ids": [...], "action_mask": [...]}, ...]}

whose items mean what they mean in `textrl_env.Episode` (`"typed": [[start, end], ...]` is there where a chat template wrote the
prompt), and answers 200 with one finite number for each, in order, or null where the reward does not apply to the text:

    {"scores": [0.5, ...]}

A server may read `prompt` and `response` alone.  429 and 5xx say "try again", other answers "never"; the body of an error is
shown to the user, best as `{"error": "..."}`.  `textrl reward serve` is such a server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textrl_env.episode import Episode
from textrl_env.reward_model import RewardError

from ..utils.base_reward import BaseReward
from .endpoint import Endpoint, Post, is_finite, quoted
from .score_cache import Add, Ask, BegunScores, ScoreCache, content_key


class HttpReward(BaseReward):
    """Scores by a server that follows the schema above.

    A server that fails is asked again; one that is down is waited for.  Equal episodes of a batch are asked for once, and
    what was scored of a batch that failed is kept for the next try.

    Args:
        url: Address that episodes are posted to, such as `"http://127.0.0.1:8900/score"`.
        headers: Sent along.  `${NAME}` stands for an environment variable, as in `{"Authorization": "Bearer ${TOKEN}"}`;
            secrets must be given so, for they then appear in no manifest and no message.
        batch_size: Episodes a request, at least 1.
        concurrency: Requests under way at once, at least 1.
        timeout: Seconds that one request may take; then it is tried again.
        patience_seconds: How long to wait for a server that gives no answer.  The default lets a server restart and load
            its model.
        cache: File that keeps every score, so that a run made again asks for nothing twice; shared by processes.

    Raises:
        ImportError: httpx2 is not installed.
        TypeError: A header is no string.
        ValueError: An argument is out of range, a secret stands in `url` or `headers` as it is, or `cache` is damaged.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        batch_size: int = 16,
        concurrency: int = 4,
        timeout: float = 30.0,
        patience_seconds: float = 300.0,
        cache: str | Path | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.batch_size = batch_size
        self._endpoint = Endpoint(url, headers, timeout, concurrency, patience_seconds)
        self._cache = ScoreCache(cache)

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return the server's score of each episode.

        Raises:
            RewardError: The server refused an episode, gave something else than one finite number or null for each, or stayed
                away until patience was over; the message holds the text, or the address and the last error.
        """
        return [None if math.isnan(score) else score for score in self._cache.complete(*self._questions(episodes))]

    def begin_scoring(self, episodes: Sequence[Episode]) -> list[BegunScores]:
        """Send the requests; `score` of the same episodes waits for their answers."""
        return [self._cache.begin(*self._questions(episodes))]

    def _questions(self, episodes: Sequence[Episode]) -> tuple[list[bytes], Ask]:
        """Return a key for each episode, and how the scores of keys are asked for."""
        rows = [as_json(episode) for episode in episodes]
        try:
            keys = [content_key("http", self._endpoint.url, row) for row in rows]
        except (TypeError, ValueError) as error:
            raise RewardError(f"the metadata of an episode cannot be written as JSON ({error}): give plain data") from error

        async def ask(missing: list[int], add: Add) -> None:
            batches = [missing[i : i + self.batch_size] for i in range(0, len(missing), self.batch_size)]
            await self._endpoint.each(batches, lambda post, batch: work(post, batch, add))

        async def work(post: Post, batch: list[int], add: Add) -> None:
            answer = await post({"episodes": [rows[i] for i in batch]})
            for i, score in zip(batch, self._scores(answer, [rows[i] for i in batch]), strict=True):
                add(keys[i], score)

        return keys, ask

    def _scores(self, answer: Any, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return what a server answered, NaN for null."""
        url, first = self._endpoint.url, quoted(rows[0]["prompt"] + rows[0]["response"])
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise RewardError(f'{url} answered {quoted(repr(answer))} for {first}; it must be {{"scores": [...]}}')
        if len(scores) != len(rows):
            raise RewardError(f"{url} gave {len(scores)} scores for {len(rows)} episodes, first {first}; it must give one each")
        for score, row in zip(scores, rows, strict=True):
            if score is not None and not is_finite(score):
                raise RewardError(f"{url} gave {score!r} for {quoted(row['prompt'] + row['response'])}; it must be a finite number")
        return [math.nan if score is None else float(score) for score in scores]

    def __repr__(self) -> str:
        return f"HttpReward({self._endpoint.url!r})"


def as_json(episode: Episode) -> dict[str, Any]:
    """Return an episode as the plain data that is sent."""
    return {
        "prompt": episode.prompt,
        "response": episode.response,
        "references": list(episode.references),
        "metadata": dict(episode.metadata),
        "finish_reason": episode.finish_reason,
        "prompt_ids": episode.prompt_ids.tolist(),
        "response_ids": episode.response_ids.tolist(),
        "action_mask": episode.action_mask.tolist(),
        **({} if episode.typed is None else {"typed": [list(span) for span in episode.typed]}),
        **({"turns": list(episode.turns)} if episode.turns else {}),
    }
