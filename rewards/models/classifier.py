"""Checkpoints with a classification head, and reward models with a scalar head, as TRL trains and saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from textrl_env.episode import Episode
from textrl_env.prompts.prompt import Prompt
from textrl_env.prompts.reward_needs import check_no_pictures

from ..utils.base_reward import BaseReward
from .pretrained import Checkpoint, Reading, Typed, whole_text
from .score_memo import TextCache

if TYPE_CHECKING:
    from typing_extensions import Unpack

_OUTPUTS = ("probability", "log_probability", "logit")


class ClassifierReward(BaseReward):
    """The value of one class under a sequence classifier of transformers.

    Args:
        path: Folder, or name on the hub.
        label: The class: its index, or its name in the model's `id2label`.
        output: `"probability"` in [0, 1], `"log_probability"`, or `"logit"`.  With one class only, the sigmoid stands for softmax.
        reads: `"text"`, prompt and response, or `"response"` alone.
        reading: How texts are read: `device`, `dtype`, `batch_size` and `max_tokens` of `Checkpoint`.

    Raises:
        OSError: There is no such model, or it has no safetensors weights.
        ValueError: The model has no such class, or an argument is out of range.
    """

    end = False  # whether an end-of-text token is added

    def __init__(
        self,
        path: str | Path,
        label: int | str = 1,
        *,
        output: Literal["probability", "log_probability", "logit"] = "probability",
        reads: Literal["text", "response"] = "text",
        **reading: Unpack[Reading],
    ) -> None:
        if output not in _OUTPUTS or reads not in ("text", "response"):
            raise ValueError(f"output={output!r}, reads={reads!r}: choose from {', '.join(_OUTPUTS)}, and from text, response")
        self.checkpoint = Checkpoint("AutoModelForSequenceClassification", path, **reading)
        config = self.checkpoint.model.config
        self.label, self.output, self.reads = _index(config, label), output, reads
        if config.pad_token_id is None:  # transformers looks for the last token before the padding
            token = self.checkpoint.tokenizer.pad_token_id
            config.pad_token_id = self.checkpoint.tokenizer.eos_token_id if token is None else token
        self._cache = TextCache()

    def score(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the class's value for each text, in order."""
        contents: list[tuple[str, Typed]] = [(e.response, None) if self.reads == "response" else whole_text(e) for e in episodes]
        return self._cache.complete(contents, self._score)

    def _score(self, contents: list[tuple[str, Typed]]) -> list[float]:
        filler = [self._pad_id()]  # nothing at all is read as padding
        encoded = self.checkpoint.encode([text for text, _ in contents], end=self.end, typed=[typed for _, typed in contents])
        rows = [row or filler for row in encoded]
        return self.checkpoint.read(rows, self._head)

    def _head(self, ids: Tensor, mask: Tensor, places: list[int]) -> list[float]:
        ids = ids.masked_fill(~mask, self._pad_id())
        logits = self.checkpoint.model(input_ids=ids, attention_mask=mask.long()).logits.float()  # (B, classes)
        if self.output != "logit":
            logits = logits.log_softmax(-1) if logits.shape[1] > 1 else torch.nn.functional.logsigmoid(logits)
        values = logits[:, self.label]
        return (values.exp() if self.output == "probability" else values).tolist()

    def _pad_id(self) -> int:
        return self.checkpoint.model.config.pad_token_id or 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint.path!r}, label={self.label}, {self.output})"


class ScalarHeadReward(ClassifierReward):
    """The output of a reward model with one number, such as TRL's `RewardTrainer` trains and saves.

    As there, the end-of-text token is added to texts that lack it.  Arguments as in `ClassifierReward`.

    Raises:
        OSError: There is no such model, or it has no safetensors weights.
        ValueError: The model has more than one output.
    """

    end = True

    def __init__(self, path: str | Path, **kwargs: Any) -> None:
        super().__init__(path, 0, output="logit", **kwargs)
        if self.checkpoint.model.config.num_labels != 1:
            raise ValueError(f"{path} has {self.checkpoint.model.config.num_labels} outputs, not 1: take 'classifier' and a label")

    def see_prompts(self, prompts: Sequence[Prompt], num_rows: int | None = None) -> None:
        """Raise ValueError if the prompts have pictures, which this model cannot see."""
        check_no_pictures("scalar_head", prompts)


def _index(config: Any, label: int | str) -> int:
    names = {int(i): name for i, name in config.id2label.items()}
    matching = [i for i, name in names.items() if label in (i, name)]
    if not matching or isinstance(label, bool):
        raise ValueError(f"label={label!r}: the model has {', '.join(f'{i} ({name})' for i, name in names.items())}")
    return matching[0]
