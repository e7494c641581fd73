"""The interface that every kind of model is used through."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..mixed_precision import warn_without_bfloat16
from ..sequences import PartialTexts, SequenceBatch
from .kv_cache import States


class Fed(NamedTuple):
    """Tokens of r rows that go through a model with a cache.

    Attributes:
        ids: Shape (r, k), int64.
        positions: Of each in its text, shape (r, k), int64.
        sources: Texts that an encoder reads, shape (r, P), -1 beyond each, or pictures, shape (r, H, W, 3), uint8; None for decoder-only
            models, and for rows whose source is already in the cache.
        seen: Of the latter, which columns of the cache hold a token of a text, shape (r, P), bool; None: all do.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sources: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class Backbone(ABC):
    """What policies, buffers and caches use of a model: hidden states of actions, their logits, and a cache.

    The module stays the caller's and is not wrapped: its parameters keep their names.

    Attributes:
        lm: The module.
        autocast: Precision of the trunk in mixed precision; None computes in the weights' own.  Heads are always float32.
        cacheable: Whether cached decoding gives what a full pass gives; None until it was tried.
        tried: Tokens of the texts up to which that was tried.
        reads_prompt_apart: Whether prompts go through an encoder.
        reads_images: Whether the prompts' pictures do.
        placeholders: Tokens that stand for a picture, which no policy writes.
        positions: Of full passes with gradients since this was set to 0, shape (2,): those that went through the trunk, and those of them
            that held a token.
        graphable: Whether a decoding step is one fixed list of kernels, see `agents.models.cuda_graphs`.
    """

    reads_prompt_apart = False
    reads_images = False
    placeholders: tuple[int, ...] = ()
    graphable = False

    def __init__(self, lm: nn.Module) -> None:
        self.lm: Any = lm
        self.autocast: torch.dtype | None = None
        self.cacheable: bool | None = None
        self.tried = 0
        self.positions = np.zeros(2, np.int64)
        self._compiled: Any = None
        self._compiles = False

    @classmethod
    def reads(cls, lm: nn.Module) -> bool:
        """Return whether this is the class for a module; `BACKBONES` asks its rows in turn."""
        return False

    def compile(self) -> None:
        """Have `torch.compile` translate the trunk of full passes at its first use; where that fails, go on without."""
        self._compiles = True

    @abstractmethod
    def _run_trunk(self, batch: SequenceBatch) -> torch.Tensor:
        """Return hidden states of all positions, in the trunk's precision."""

    def _laid_out(self, batch: SequenceBatch) -> tuple[int, int]:
        """Return how many positions a full pass has, and how many of them hold a token."""
        return batch.input_ids.numel(), int(batch.lengths().sum())

    def trunk(self, batch: SequenceBatch) -> torch.Tensor:
        """Run a full pass, shape (B, L, D)."""
        if torch.is_grad_enabled():
            self.positions += self._laid_out(batch)
        with self.precision():
            if not self._compiles:
                return self._run_trunk(batch)
            try:
                if self._compiled is None:
                    self._compiled = torch.compile(self._run_trunk, dynamic=True)
                return self._compiled(batch)
            except Exception as error:  # whatever a compiler's back end raises: a missing C++ compiler, an unknown operation
                self._compiles = False
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                warnings.warn(f"torch.compile failed ({first}): training goes on without it", stacklevel=2)
                return self._run_trunk(batch)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens that the head scores."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Size of the hidden state that the head reads."""

    @property
    def context_length(self) -> int | None:
        """Longest text that the model reads, in tokens; None: any."""
        return None

    def check_room(self, prompt: int, response: int) -> None:
        """Insist that texts of this many tokens fit.

        Raises:
            ValueError: They do not.
        """
        room = self.context_length
        if room is not None and room < prompt + response:
            raise ValueError(
                f"the model reads {room} tokens, prompt and response take {prompt + response}: lower max_new_tokens or enlarge the model"
            )

    def check_images(self, shape: tuple[int, ...] | None) -> None:
        """Insist that the model can read the prompts' pictures, of this shape (H, W, 3); None: they have none.

        Raises:
            ValueError: It cannot, or reads pictures and there are none.
        """
        if shape is not None:
            raise ValueError(
                f"the task's prompts have pictures of shape {shape}, and {type(self.lm).__name__} reads text only here: take a model that "
                "reads pictures, such as model_type 'vision-encoder-decoder' or 'llava'"
            )

    def example_images(self, number: int) -> np.ndarray | None:
        """Return pictures to try the model with, shape (number, H, W, 3), uint8; None: it reads none."""
        return None

    def source_lengths(self, sources: np.ndarray) -> np.ndarray:
        """Return how many states an encoder makes of each source, see `written`, shape (B,)."""
        return (sources >= 0).sum(1)

    def hidden(self, batch: SequenceBatch) -> torch.Tensor:
        """Return the hidden state that predicts each action, shape (N, D), float32.

        Updates on a CPU read texts of unlike length one length after the other where that spares much padding.  Passes without gradients
        need not: the texts of reference passes are of like length.
        """
        if not torch.is_grad_enabled() or self.device.type != "cpu":
            return self._side_by_side(batch)
        parts = batch.by_length()
        if len(parts) == 1 or any(isinstance(p, DTensor) for p in self.lm.parameters()):
            return self._side_by_side(batch)  # ranks that share weights must make as many passes
        order = torch.cat([actions for _, actions in parts]).argsort()
        return torch.cat([self._side_by_side(part) for part, _ in parts])[order]

    def _side_by_side(self, batch: SequenceBatch) -> torch.Tensor:
        return self.trunk(batch).flatten(0, 1)[batch.predictor].float()  # (B, L, D), (B * L, D), (N, D)

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return raw logits of hidden states, shape (N, V), float32."""

    @property
    def head(self) -> nn.Linear | None:
        """The layer that `logits` consists of; None if it is more than one matrix."""
        return None

    def model_logits(self, prompts: torch.Tensor) -> torch.Tensor | None:
        """Return the logits of the first response token as the module itself computes them, shape (B, V); None: it cannot.

        Args:
            prompts: Of equal length, shape (B, P).
        """
        return None

    def written(self, texts: PartialTexts) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return what the cached part of the model reads.

        Returns:
            Token ids (B, W), -1 beyond each; their lengths (B,), 0 for idle rows; and the sources that an encoder reads: texts (B, P),
            pictures (B, H, W, 3), or None.
        """
        return texts.ids, texts.lengths, None

    def new_states(self) -> States:
        """Return an empty cache."""
        return States()

    @abstractmethod
    def feed(self, fed: Fed, states: States) -> torch.Tensor:
        """Run tokens through the model with a cache whose `plan` says where they go; return hidden states (r, k, D)."""

    @property
    def joins(self) -> bool:
        """Whether a full pass reads a prompt that texts share once, where that pays."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.lm.parameters()).device

    def checkpoint_layers(self) -> None:
        """Have the layers' activations computed again in the backward pass.

        Raises:
            ValueError: The module cannot.
        """
        # transformers renamed it in 5.2x; a module of one's own may have either
        enable = getattr(self.lm, "activation_checkpointing_enable", None) or getattr(self.lm, "gradient_checkpointing_enable", None)
        if enable is None:
            raise ValueError(
                f"gradient_checkpointing=True: {type(self.lm).__name__} has no gradient_checkpointing_enable(); lower micro_batch_size"
            )
        enable({"use_reentrant": False})

    def precision(self) -> Any:
        """Return the context in which the trunk runs; warn once if the device is slow in it."""
        if self.autocast is torch.bfloat16:
            warn_without_bfloat16(self.device)
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def full_precision(device: torch.device) -> Any:
    """Return a context without autocast: heads, softmax and ratios stay float32."""
    return torch.autocast(device.type, enabled=False)


def example_ids(backbone: Backbone, size: int | tuple[int, ...]) -> np.ndarray:
    """Return tokens to try a model with, none of which stands for a picture; the same in every call."""
    ids = np.random.default_rng(0).integers(backbone.vocab_size, size=size)
    for token in backbone.placeholders:
        ids[ids == token] = (token + 1) % backbone.vocab_size
    return ids
