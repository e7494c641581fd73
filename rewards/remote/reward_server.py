"""The web application that serves a reward model by the schema of `rewards.remote.http_reward`.

    POST /score   {"episodes": [...]} -> {"scores": [...]}
    GET  /health  -> {"status": "ok"}

Errors are `{"error": "..."}`: 401 without the right token, 404 and 405 for other addresses, 422 for input that does not follow
the schema or on which the model fails: it would fail again.
"""

from __future__ import annotations

import hmac
import threading
from typing import Annotated, Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.reward_model import RewardError, RewardModel, checked_scores
from textrl_env.utils.optional_imports import optional_import

with optional_import("server", "serving a reward model needs FastAPI and uvicorn"):
    from fastapi import Depends, FastAPI, Header, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException as StarletteHTTPException

MAX_EPISODES = 4096  # of one request: a client that sends more should make several


class Item(BaseModel):
    """One episode; all but the two texts may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    response: str
    references: list[str] = []
    metadata: dict[str, Any] = {}
    finish_reason: str = "eos"
    prompt_ids: list[int] = []
    response_ids: list[int] = []
    action_mask: list[bool] = []
    typed: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = None
    turns: list[str] = []

    def episode(self) -> Episode:
        """Return the record that reward models read."""
        mask = np.array(self.action_mask or [True] * len(self.response_ids), bool)  # (t,)
        return Episode(
            self.prompt, self.response, np.array(self.prompt_ids, np.int64), np.array(self.response_ids, np.int64), mask,
            self.finish_reason, tuple(self.references), self.metadata,
            None if self.typed is None else tuple((start, end) for start, end in self.typed),
            turns=tuple(self.turns),
        )  # fmt: skip


class Batch(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    episodes: Annotated[list[Item], Field(max_length=MAX_EPISODES)]


class Scores(BaseModel):
    """The body of an answer: one finite number for each episode, in order; null where the reward does not apply."""

    scores: list[float | None]


def make_app(model: RewardModel, token: str | None = None) -> FastAPI:
    """Return an ASGI application that scores episodes with `model`, one batch at a time.

    Args:
        model: The reward model.
        token: If given, requests for scores must bear it: `Authorization: Bearer TOKEN`.
    """
    app = FastAPI(title="textrl reward server", docs_url=None, redoc_url=None)
    turn = threading.Lock()  # reward models promise nothing about threads

    def authorize(authorization: Annotated[str | None, Header()] = None) -> None:
        if token is not None and not hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "wrong or missing token: send the header 'Authorization: Bearer TOKEN'")

    @app.post("/score", dependencies=[Depends(authorize)])
    def score(batch: Batch) -> Scores:
        with turn:
            scores = checked_scores(model, [item.episode() for item in batch.episodes], optional=True)
            return Scores(scores=np.ma.masked_invalid(scores).tolist())

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RewardError, _failed)
    return app


def _http_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)


def _invalid(request: Request, error: Any) -> JSONResponse:
    faults = [f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors()]
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return JSONResponse({"error": "; ".join(faults[:3]) + more}, 422)


def _failed(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)
