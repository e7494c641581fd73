"""BERTScore: greedy matching of contextual embeddings (Zhang et al. 2020)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_references
from textrl_env.reward_model import RewardError
from textrl_env.utils.control_tokens import ControlTokens, surroundings
from textrl_env.utils.files import read_lines

from ..models.pretrained import check_ids
from ..rules.base import Rule, checked_int
from ..rules.references import references_of
from ..utils.devices import get_device

VARIANTS = ("precision", "recall", "f1")


class Embedded(NamedTuple):
    """A text as BERTScore sees it, its n tokens without special ones.

    Attributes:
        vectors: Contextual embeddings of unit length, shape (n, D), float32.
        weights: How much each token counts, shape (n,), float32, with sum 1 unless n is 0.
    """

    vectors: Tensor
    weights: Tensor


class BertScoreReward(Rule):
    r"""BERTScore of the response against its references, of several the best (Zhang et al. 2020, section 3).

    With unit vectors x of the reference's tokens and y of the response's, recall is the mean over x of max_y x . y, precision the mean
    over y of max_x x . y, and F1 their harmonic mean; with `idf` the means are weighted by the inverse document frequencies of tokens,
    log((M + 1) / (d + 1)) for a token in d of M texts.  Special tokens take no part (in the authors' code they can be matched with),
    and scores are not rescaled by a baseline: a cosine, in [-1, 1], for most encoders far above 0.  A text without tokens scores 0.

    Args:
        path: A folder with an encoder of transformers and its tokenizer; nothing is downloaded and nothing in it is run as code.
        variant: `"precision"`, `"recall"` or `"f1"`.
        layer: Which hidden states to take, from 0 (the embeddings) to the number of layers; None takes the last.
        idf: Texts that document frequencies are counted in, or the path of a file with one a line; None weighs all tokens alike.
        batch_size: Texts encoded at once.
        device: Where the encoder lives, see `rewards.utils.devices.get_device`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is no such variant or layer.
    """

    def __init__(
        self,
        path: str | Path,
        variant: str = "f1",
        layer: int | None = None,
        idf: Sequence[str] | str | Path | None = None,
        *,
        batch_size: int = 64,
        device: str | torch.device = "auto",
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: choose {', '.join(VARIANTS)}")
        self.path, self.variant, self.batch_size = Path(path), variant, checked_int(batch_size, "batch_size")
        self.tokenizer, self.model = _load(self.path, get_device(device))
        self._controls = ControlTokens(self.tokenizer.backend_tokenizer)
        self._around = surroundings(self._controls.backend)
        depth = self.model.config.num_hidden_layers
        if layer is not None and not 0 <= layer <= depth:
            raise ValueError(f"layer={layer}: {path} has the layers 0 (embeddings) to {depth}")
        self.layer = depth if layer is None else layer
        self._max_tokens = min(self.tokenizer.model_max_length, _positions(self.model))
        self._idf = None if idf is None else self._frequencies(read_lines(idf) if isinstance(idf, str | Path) else idf)

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if a prompt has no references."""
        check_references("bertscore", prompts)

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the similarity of each response to the best of its references, in [-1, 1].

        Raises:
            ValueError: An episode has no references.
            RewardError: A text is longer than what the encoder reads.  (The authors' code cuts it.)
        """
        references = [references_of(e, "bertscore") for e in episodes]
        texts = list(dict.fromkeys([e.response for e in episodes] + [text for row in references for text in row]))
        known = dict(zip(texts, self.embed(texts), strict=True))
        return [
            max(match(known[e.response], known[text])[self.variant] for text in row) for e, row in zip(episodes, references, strict=True)
        ]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> list[Embedded]:
        """Return the embedded tokens of each text, in order.

        Raises:
            RewardError: A text is longer than what the encoder reads.
        """
        rows = self._tokenize(texts)
        room = self._max_tokens - sum(map(len, self._around))
        for text, row in zip(texts, rows, strict=True):
            number = row["special_tokens_mask"].count(0)
            if number > room:
                raise RewardError(
                    f"bertscore: a text has {number} tokens, and the encoder reads {room}: the rest would not count; lower max_new_tokens, "
                    f"shorten the reference, or take an encoder that reads more: {text[:100]!r}"
                )
        order = sorted(range(len(texts)), key=lambda i: len(rows[i]["input_ids"]))  # little padding
        embedded: dict[int, Embedded] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            embedded.update(zip(chosen, self._embed([rows[i] for i in chosen]), strict=True))
        return [embedded[i] for i in range(len(texts))]

    def _tokenize(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        opening, closing = self._around
        rows = self._controls.encode(texts)
        check_ids(rows, self.model, self.path)
        special = [[1] * len(opening), [1] * len(closing)]
        return [{"input_ids": opening + row + closing, "special_tokens_mask": special[0] + [0] * len(row) + special[1]} for row in rows]

    def _embed(self, rows: list[dict[str, list[int]]]) -> list[Embedded]:
        width = max(1, *(len(row["input_ids"]) for row in rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T)
        attended = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"], dtype=torch.long)
            attended[i, : len(row["input_ids"])] = 1
        device = self.model.device
        output = self.model(input_ids=ids.to(device), attention_mask=attended.to(device), output_hidden_states=True)
        states = torch.nn.functional.normalize(output.hidden_states[self.layer].float(), dim=-1)  # (B, T, D)
        embedded = []
        for row, state in zip(rows, states, strict=True):
            at = [place for place, special in enumerate(row["special_tokens_mask"]) if not special]
            embedded.append(Embedded(state[at], self._weights([row["input_ids"][place] for place in at]).to(device)))
        return embedded

    def _weights(self, ids: list[int]) -> Tensor:
        weights = torch.ones(len(ids)) if self._idf is None else torch.tensor([self._idf(token) for token in ids])
        if not weights.any():  # every token stands in every text of the corpus
            weights = torch.ones(len(ids))
        return weights / weights.sum().clamp(min=1e-12)  # (n,)

    def _frequencies(self, corpus: Sequence[str]) -> Any:
        if isinstance(corpus, str) or not len(corpus):
            raise ValueError(f"idf={corpus!r}: give a list of texts")
        documents = Counter(token for row in self._tokenize(corpus) for token in set(row["input_ids"]))
        return _Idf(len(corpus), documents)

    def __repr__(self) -> str:
        return f"BertScoreReward({str(self.path)!r}, {self.variant!r}, layer={self.layer}{'' if self._idf is None else ', idf=...'})"


class _Idf(NamedTuple):
    total: int
    documents: Counter[int]

    def __call__(self, token: int) -> float:
        return math.log((self.total + 1) / (self.documents[token] + 1))


def match(response: Embedded, reference: Embedded) -> dict[str, float]:
    """Return precision, recall and F1 of the greedy matching of two texts."""
    if not len(response.weights) or not len(reference.weights):
        return dict.fromkeys(VARIANTS, 0.0)
    similarity = response.vectors @ reference.vectors.T  # (n, m)
    precision = float(similarity.max(1).values @ response.weights)
    recall = float(similarity.max(0).values @ reference.weights)
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return {"precision": precision, "recall": recall, "f1": harmonic}


def _load(path: Path, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is no folder: bertscore needs one with an encoder and its tokenizer, as save_pretrained writes them"
        )
    safe = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(str(path), **safe)
    with torch.random.fork_rng(devices=[]):  # weights that the folder lacks, such as a pooler's, are drawn
        model = AutoModel.from_pretrained(str(path), dtype=torch.float32, use_safetensors=True, **safe)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return tokenizer, model.to(device).eval().requires_grad_(False)


def _positions(model: Any) -> int:
    """Return how many tokens the encoder can read."""
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9  # none: relative positions, no limit
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)  # RoBERTa and its kin count from behind the id of padding
    return positions if first is None else positions - first - 1
