"""What the environment says between two turns of the agent."""

from __future__ import annotations

import numpy as np

from ..episode import Episode
from ..prompts.encoding import encode_prompts
from ..prompts.prompt import Prompt
from ..task import TextTask


def next_replies(task: TextTask, episodes: list[Episode]) -> list[np.ndarray | None]:
    """Ask the task's `reply` what the environment says after the turns that just ended.

    Returns:
        Token ids, int64, or None where the dialogue is over.

    Raises:
        ValueError: Another number of replies than texts, or ids outside the vocabulary.
        TypeError: A reply is neither a text, nor a `Prompt`, nor ids, nor None.
    """
    assert task.reply is not None
    replies = list(task.reply(episodes))
    if len(replies) != len(episodes):
        raise ValueError(f"the task's `reply` returned {len(replies)} replies for {len(episodes)} texts; it must return one each")
    encoded: list[np.ndarray | None] = []
    for reply, episode in zip(replies, episodes, strict=True):
        if reply is None:
            encoded.append(None)
            continue
        if isinstance(reply, Prompt):
            reply = encode_prompts(task.tokenizer, [reply])[0] if reply.typed is not None else reply.text
        ids = np.asarray(task.tokenizer.encode_batch([reply])[0] if isinstance(reply, str) else reply)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise TypeError(f"the task's `reply` returned {reply!r} to {episode.response[-80:]!r}: pass a text, token ids or None")
        if len(ids) and not (ids.min() >= 0 and ids.max() < task.tokenizer.vocab_size):
            raise ValueError(f"the task's `reply` returned ids {ids.tolist()} outside the vocabulary [0, {task.tokenizer.vocab_size})")
        encoded.append(ids.astype(np.int64))
    return encoded
