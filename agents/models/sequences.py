"""Packed texts: how sequences of different lengths go through a causal language model in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .sampler import Sampler
from .upload import to_device

SPARES = 0.75  # of a batch's positions: from there on a pass for each length costs less than the padding
_SHORT = 64  # tokens of the longest text up to which nothing is gained
_FEW = 16  # tokens of padding that are not worth a pass of their own


class SequenceBatch(NamedTuple):
    """B texts and the N tokens in them that are actions.

    Texts are packed to the left and padded on the right.  A causal model never looks at what comes after a token, so no
    mask is needed, and positions are 0, 1, 2, ... in every row.

    Attributes:
        input_ids: Shape (B, L), int64; padding is 0 and is never read.
        predictor: Index into the B * L positions of the newest token before each action, shape (N,).
        steps: Number of response tokens written before each action, shape (N,).
        prompt_lengths: Tokens of each text's prompt, shape (B,).
        kept: Packed set of tokens that the acting policy's masks and cuts kept, shape (N, ceil(V / 8)), uint8; None: all.
        withheld: Pairs (action, token) that the sampler's rules ban, see `Sampler.withheld`, shape (2, M), int64; None: none.
        host: `input_ids`, `predictor` and `prompt_lengths` as arrays, for who would have to ask a device for them; None: not known.
        images: Pictures of the texts' prompts, shape (B, H, W, 3), uint8; None: they have none.
    """

    input_ids: torch.Tensor
    predictor: torch.Tensor
    steps: torch.Tensor
    prompt_lengths: torch.Tensor
    kept: torch.Tensor | None = None
    withheld: torch.Tensor | None = None
    host: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    images: torch.Tensor | None = None

    @property
    def rows(self) -> torch.Tensor:
        """The text of each action, shape (N,)."""
        return self.predictor // self.input_ids.shape[1]

    def on_host(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `input_ids`, `predictor` and `prompt_lengths` as arrays."""
        if self.host is not None:
            return self.host
        ids, predictor, prompts = (column.cpu().numpy() for column in (self.input_ids, self.predictor, self.prompt_lengths))
        return ids, predictor, prompts

    def lengths(self) -> np.ndarray:
        """Return the tokens of each text up to the one before its last action, shape (B,); padding and what is never read begin there."""
        ids, predictor, _ = self.on_host()
        rows, columns = np.divmod(predictor, ids.shape[1])  # (N,) each
        lengths = np.zeros(len(ids), np.int64)  # (B,)
        np.maximum.at(lengths, rows, columns + 1)
        return lengths

    def by_length(self) -> list[tuple[SequenceBatch, torch.Tensor]]:
        """Cut the batch into parts of like length, for hidden states only; return each with the indices of its actions, shape (n,).

        A part holds no text of less than half its width, and all parts together have at most `SPARES` of the batch's positions: else
        there is one part, the batch, and so if texts are short.
        """
        (ids, predictor, _), lengths = self.on_host(), self.lengths()
        parts = list(of_like_length(lengths, 0.5))
        if ids.shape[1] <= _SHORT or sum(len(texts) * lengths[texts].max() for texts in parts) > SPARES * ids.size:
            return [(self, torch.arange(len(predictor), device=self.input_ids.device))]
        rows, columns = np.divmod(predictor, ids.shape[1])  # (N,) each
        return [self._of_texts(texts, rows, columns, lengths[texts].max()) for texts in parts]

    def _of_texts(self, texts: np.ndarray, rows: np.ndarray, columns: np.ndarray, width: int) -> tuple[SequenceBatch, torch.Tensor]:
        ids, _, prompts = self.on_host()
        number = np.full(len(ids), -1)
        number[texts] = np.arange(len(texts))
        actions = np.flatnonzero(number[rows] >= 0)  # (n,)
        host = (ids[texts, :width], number[rows[actions]] * width + columns[actions], prompts[texts])
        there, predictor, lengths, chosen, which = to_device(self.input_ids.device, (*host, actions, texts))
        images = None if self.images is None else self.images[which]
        return SequenceBatch(there, predictor, self.steps[chosen], lengths, host=host, images=images), chosen

    def split(self, size: int) -> list[tuple[SequenceBatch, slice]]:
        """Cut the batch into parts of at most `size` texts, each as wide as its longest; return each with the range of its actions."""
        (ids, predictor, prompts), lengths = self.on_host(), self.lengths()
        edges = list(range(0, len(self.input_ids), size))
        bounds = np.searchsorted(predictor // ids.shape[1], [*edges, len(ids)]).tolist()  # the rows of actions ascend
        parts = []
        for start, first, last in zip(edges, bounds[:-1], bounds[1:], strict=True):
            part = self.only(slice(first, last))
            texts = slice(start, start + size)
            before, width = ids.shape[1], int(lengths[texts].max())
            moved, there = ((of // before - start) * width + of % before for of in (predictor[first:last], part.predictor))
            part = part._replace(
                input_ids=self.input_ids[texts, :width],
                prompt_lengths=self.prompt_lengths[texts],
                predictor=there,
                images=None if self.images is None else self.images[texts],
                host=(ids[texts, :width], moved, prompts[texts]),
            )
            parts.append((part, slice(first, last)))
        return parts

    def only(self, actions: slice) -> SequenceBatch:
        """Return the batch with these actions only."""
        withheld = self.withheld
        if withheld is not None and actions != slice(None):
            inside = (withheld[0] >= actions.start) & (withheld[0] < actions.stop)
            withheld = withheld[:, inside] - withheld.new_tensor([[actions.start], [0]])
        kept = None if self.kept is None else self.kept[actions]
        host = None if self.host is None else (self.host[0], self.host[1][actions], self.host[2])
        return self._replace(predictor=self.predictor[actions], steps=self.steps[actions], kept=kept, withheld=withheld, host=host)


class PartialTexts(NamedTuple):
    """B unfinished texts, prompt and response in one.

    Attributes:
        ids: Packed to the left, shape (B, W), int64, -1 beyond each text.
        lengths: Tokens in each, shape (B,); 0 for idle rows.
        prompt_lengths: How many of them are the prompt, shape (B,).
        images: Pictures of the prompts, shape (B, H, W, 3), uint8; None: they have none.
    """

    ids: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray
    images: np.ndarray | None = None

    def only(self, rows: Any) -> PartialTexts:
        """Return the texts of these rows."""
        return PartialTexts._make(None if column is None else column[rows] for column in self)

    @property
    def steps(self) -> np.ndarray:
        """Response tokens in each, shape (B,)."""
        return self.lengths - self.prompt_lengths


class TextRecord(NamedTuple):
    """One text as a buffer knows it.

    Attributes:
        context: Tokens before the first action, at least one.
        actions: Tokens that are actions, at least one.
        first_step: Number of response tokens in `context`.
        replies: Tokens of the environment between actions: the number of actions before them, and their ids.
        image: Picture of the prompt, shape (H, W, 3), uint8; None without one.
    """

    context: np.ndarray
    actions: np.ndarray
    first_step: int
    replies: Sequence[tuple[int, np.ndarray]] = ()
    image: np.ndarray | None = None


def of_like_length(lengths: np.ndarray, share: float) -> Iterator[np.ndarray]:
    """Yield the indices of texts of like length, the longest first, without those of length 0.

    Each text has this share of the tokens of the longest beside it, or at most 16 tokens less.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        longest = lengths[order[0]]
        inside = lengths[order] >= min(share * longest, longest - _FEW)
        yield order[inside]
        order = order[~inside]


def pack(
    texts: Sequence[TextRecord], device: torch.device | str, kept: np.ndarray | None = None, sampler: Sampler | None = None
) -> SequenceBatch:
    """Lay out texts side by side.

    Args:
        texts: At least one.
        device: Where the tensors go.
        kept: Packed kept sets in the order of the actions.
        sampler: Whose rules look at the texts; None: there are no such rules.
    """
    return pack_with(texts, device, kept, sampler)[0]


def pack_with(
    texts: Sequence[TextRecord], device: torch.device | str, kept: np.ndarray | None, sampler: Sampler | None, *columns: np.ndarray
) -> tuple[SequenceBatch, list[torch.Tensor]]:
    """Do what `pack` does, and take columns of numbers to the device in the same copy."""
    # The last action is predicted but never read, so it needs no position of its own.
    lengths = [len(t.context) + len(t.actions) + sum(len(ids) for _, ids in t.replies) - 1 for t in texts]
    width = max(lengths)
    ids = np.zeros((len(texts), width), np.int64)  # (B, L)
    predictor, steps, responses = [], [], []
    for row, text in enumerate(texts):
        offsets = np.arange(len(text.actions))  # of each action among the tokens after the context
        after = text.actions
        for number, reply in reversed(text.replies):
            offsets[number:] += len(reply)
            after = np.concatenate([after[:number], reply, after[number:]])
        ids[row, : len(text.context)] = text.context
        ids[row, len(text.context) : lengths[row]] = after[:-1]
        responses.append(np.concatenate([text.context[len(text.context) - text.first_step :], after]))
        predictor.append(row * width + len(text.context) - 1 + offsets)
        steps.append(text.first_step + offsets)
    prompts = np.asarray([len(text.context) - text.first_step for text in texts])
    withheld = None if sampler is None else sampler.withheld(responses, steps)
    fields = (ids, np.concatenate(predictor), np.concatenate(steps), prompts, kept, withheld)
    pictures = [text.image for text in texts if text.image is not None]
    if len(pictures) not in (0, len(texts)):
        raise ValueError(f"{len(pictures)} of {len(texts)} texts have a picture: give Prompt(image=...) to all prompts, or to none")
    return _there(device, fields, columns, np.stack(pictures) if pictures else None)


def _there(
    device: torch.device | str,
    fields: Sequence[np.ndarray | None],
    columns: Sequence[np.ndarray] = (),
    images: np.ndarray | None = None,
) -> tuple[SequenceBatch, list[torch.Tensor]]:
    """Return a batch with these fields, and columns beside it, by one copy to the device."""
    tensors = iter(to_device(device, [array for array in (*fields, images, *columns) if array is not None]))
    batch = SequenceBatch(*(None if array is None else next(tensors) for array in fields))  # type: ignore[arg-type]
    ids, predictor, _, prompts, *_ = fields
    pictures = None if images is None else next(tensors)
    return batch._replace(host=(ids, predictor, prompts), images=pictures), list(tensors)  # type: ignore[arg-type]  # these are never None


def texts_of(obs: Any) -> PartialTexts:
    """Pack observations to the left.

    Args:
        obs: `prompt` (B, P) and `response` (B, T), arrays or tensors, -1 beyond each; and `image` (B, H, W, 3), uint8, or (B, 3, H, W), as
            Stable-Baselines3 turns it, if the prompts have pictures.

    Raises:
        TypeError: They are no integers.
    """
    prompt, response = (_on_host(obs[key]) for key in ("prompt", "response"))
    images = images_of(obs)
    if "f" in (prompt.dtype.kind, response.dtype.kind, "u" if images is None else images.dtype.kind):
        raise TypeError(
            f"observations are {prompt.dtype}, not token ids: a wrapper changed them, leave it out (VecNormalize: norm_obs=False)"
        )
    prompt_length, response_length = (prompt >= 0).sum(1), (response >= 0).sum(1)  # (B,) each
    texts = np.full((len(prompt), prompt.shape[1] + response.shape[1]), -1, np.int64)  # (B, P + T)
    texts[:, : prompt.shape[1]] = prompt
    columns = prompt_length[:, None] + np.arange(response.shape[1])  # (B, T): where each response token goes
    np.put_along_axis(texts, columns, response, axis=1)
    return PartialTexts(texts, prompt_length + response_length, prompt_length, images)


def images_of(obs: Any) -> np.ndarray | None:
    """Return the pictures in observations, shape (B, H, W, 3), wherever Stable-Baselines3 put their colours; None without any."""
    if "image" not in obs:
        return None
    images = _on_host(obs["image"])
    return images if images.shape[-1] == 3 else np.moveaxis(images, 1, -1)  # (B, 3, H, W), (B, H, W, 3)


def _on_host(side: Any) -> np.ndarray:
    return np.asarray(side.cpu() if isinstance(side, torch.Tensor) else side)


def image_shape_of(observation_space: Any) -> tuple[int, ...] | None:
    """Return the shape (H, W, 3) of the pictures that observations show, which Stable-Baselines3 may have turned; None: they show none."""
    if "image" not in observation_space.spaces:
        return None
    shape = tuple(observation_space["image"].shape)
    return shape if shape[-1] == 3 else (*shape[1:], shape[0])


def one_action_each(texts: PartialTexts, device: torch.device | str, sampler: Sampler | None = None) -> SequenceBatch:
    """Lay out texts with one action after each."""
    width = max(int(texts.lengths.max()), 1)
    last = np.arange(len(texts.ids)) * width + np.maximum(texts.lengths - 1, 0)  # (B,)
    ids = np.maximum(texts.ids[:, :width], 0)  # (B, W)
    withheld = None if sampler is None else withheld_after(texts, sampler)
    return _there(device, (ids, last, texts.steps, texts.prompt_lengths, None, withheld), images=texts.images)[0]


def withheld_after(texts: PartialTexts, sampler: Sampler) -> np.ndarray | None:
    """Return which tokens may not come next, see `Sampler.withheld`; the index is that of the text."""
    rows = zip(texts.ids, texts.prompt_lengths, texts.lengths, strict=True) if sampler.no_repeat_ngram else ()
    return sampler.withheld([ids[start:end] for ids, start, end in rows], list(texts.steps[:, None]))
