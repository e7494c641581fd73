"""Training by gradient on a fixed set of texts: what supervised and preference-based methods share."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rewards.models.lora import add_adapters
from rewards.utils.devices import AUTO, get_device, seeded
from textrl_env import Prompt, Tokenizer
from textrl_env.tokenizer import as_tokenizer, check_same_tokens, ends_of, files_of

from ...distributed.engine import Engine, engine_of
from ...distributed.process_group import ranks
from ...distributed.ranks import digest
from ...models.backbones import Backbone, backbone_of
from ...models.loading import LMSource, agreed_ends, in_shards, is_in_shards, load_lm, save_lm, set_ends, switch_off_dropout
from ...models.lora import check_dropout
from ...models.memory_estimate import MemoryEstimate
from ...models.mixed_precision import Precision, precision_of
from ...models.model_checks import check_head, check_model
from ...models.sequences import TextRecord
from ...utils.interrupts import stop_request
from ...utils.limits import Above0, AtLeast0, Count, Natural, check
from ...utils.progress import bar
from ...utils.run_folder import fingerprint
from .keyword_arguments import KeywordArguments
from .memory_check import check_supervised
from .training_checkpoint import load_training, save_training
from .training_warnings import TrainingWarning

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

SFTText = tuple[str | Prompt, str] | tuple[str | Prompt, str, bool] | TextRecord


class SupervisedArguments(TypedDict, total=False):
    """Keyword arguments of `SFT`, `DPO` and `KTO`, see `keyword_arguments`."""

    learning_rate: Annotated[Above0, 3e-3, "Peak of a one-cycle schedule, > 0."]
    batch_size: Annotated[Count, 32, "Texts, or pairs of them, per step, at least 1."]
    weight_decay: Annotated[AtLeast0, 0.01, "Weight decay of AdamW, at least 0."]
    max_new_tokens: Annotated[
        Count | None,
        None,
        "Longest response that the policy may write.  Longer ones are cut there, which `learn` says; those of this many tokens and more "
        "get no end-of-text token, for the policy cannot write one.  None: any.",
    ]
    seed: Annotated[Natural, 0, "Seed of fresh weights and of the order of the texts."]
    device: Annotated[
        torch.device | str, "auto", "Where to train, see `rewards.utils.devices.get_device`; by default a module stays where it is."
    ]
    lora: Annotated[
        Mapping[str, Any] | None,
        None,
        "Arguments of `peft.LoraConfig`: train adapters only, which `save` folds into the weights.  What a policy refuses, see "
        "`PolicySettings`, is refused here.",
    ]
    precision: Annotated[Precision, "float32", '"bfloat16": mixed precision, the trunk computes in it, weights and head stay float32.']
    micro_batch_size: Annotated[
        Natural,
        0,
        "Texts, or pairs of them, that go through the model at once; their gradients add up to that of the minibatch.  0: all of it.",
    ]
    gradient_checkpointing: Annotated[bool, False, "Compute the layers' activations again in the backward pass."]
    shard: Annotated[
        bool,
        False,
        "Of several processes, each holds a part of weights, gradients and optimizer only (FSDP2); else all of them (DDP).",
    ]


_OF_PASSES = ("lora", "precision", "micro_batch_size", "gradient_checkpointing")


class Supervised(KeywordArguments, ABC):
    """Minibatches in random order, AdamW, a one-cycle schedule.

    Processes that torchrun started train one model: each takes its part of every minibatch, and all call `learn`, `evaluate` and `save`
    together, with the same texts.

    Attributes:
        engine: How they hold its weights.
        losses: Of every step.
        num_cut: Responses that were longer than `max_new_tokens` when texts were last encoded.
        memory: Estimate of the memory that training takes; None before it begins.

    Raises:
        ValueError: The model has fewer tokens than the tokenizer, or `max_new_tokens` is less than 1.
    """

    _arguments = SupervisedArguments
    _meanings: ClassVar[Mapping[str, str]] = {
        "model": "What `agents.models.loading.load_lm` takes, or a module, which is trained itself.",
        "tokenizer": "The environment's, or what `FileTokenizer` takes; prompt and response are encoded apart, as the environment does.",
    }

    def __init__(self, model: LMSource | nn.Module, tokenizer: Tokenizer, **arguments: Unpack[SupervisedArguments]) -> None:
        settings = self._complete(arguments)
        self.learning_rate, self.batch_size = settings["learning_rate"], settings["batch_size"]
        self.weight_decay, self.seed, self.max_new_tokens = settings["weight_decay"], settings["seed"], settings["max_new_tokens"]
        check_same_tokens(model, tokenizer)
        device = get_device(settings["device"])
        self.engine: Engine = engine_of(ranks(), settings["shard"], precision_of(settings["precision"]))
        with seeded(self.seed):
            stays = isinstance(model, nn.Module) and settings["device"] == AUTO
            made: nn.Module = model if isinstance(model, nn.Module) else load_lm(self._in_shards(model, settings["lora"]))
            self.lm: nn.Module = made if stays else made.to(device)
            if settings["lora"] is not None:
                check_dropout(settings["lora"])
                add_adapters(self.lm, settings["lora"])
                switch_off_dropout(self.lm)
        self.backbone = backbone_of(self.lm)
        if not is_in_shards(self.lm):
            check_head(self.backbone)
        self.backbone.autocast = precision_of(settings["precision"])
        if settings["gradient_checkpointing"]:
            self.backbone.checkpoint_layers()
        given: dict[str, Any] = {name: value for name, value in settings.items() if name in _OF_PASSES}
        self._passes = {name: value for name, value in given.items() if value != self._accepted[name].default}
        self.tokenizer = as_tokenizer(tokenizer)
        if self.backbone.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"the model has {self.backbone.vocab_size} tokens, the tokenizer {self.tokenizer.vocab_size} (its largest id + 1)"
            )
        if isinstance(model, Mapping):  # what a folder or a module was trained to end with, it may unlearn here
            agreed_ends(self.lm, model, ends_of(self.tokenizer), ())
        set_ends(self.lm, ends_of(self.tokenizer))
        self.losses: list[float] = []
        self.num_cut = 0
        self.memory: MemoryEstimate | None = None
        self._first: str | None = None
        self._wrapped: nn.Module | None = None  # what the engine was given

    def _in_shards(self, source: LMSource, lora: Mapping[str, Any] | None) -> LMSource:
        """Return a source of which each rank reads its part, if shards are wanted; adapters are added to whole models."""
        made: LMSource = source if lora is not None else in_shards(source, self.engine)
        return made

    def learn(
        self,
        texts: Sequence[Any],
        steps: int,
        progress_bar: bool = False,
        title: str | None = None,
        checkpoint: str | Path | None = None,
        save_every: int = 100,
        callback: Callable[[int], None] | None = None,
    ) -> Self:
        """Take `steps` optimizer steps.

        Args:
            texts: What is learned from.
            steps: How many.
            progress_bar: Show one.
            title: Of the bar.
            checkpoint: A folder.  Every `save_every` steps and at the end the training is saved there; the same call goes on from it,
                bit by bit as if nothing had happened.
            save_every: Steps between two checkpoints.
            callback: Called after every step with the number of steps taken.

        Raises:
            ValueError: There are no texts, one is longer than the model reads or holds an end-of-text token before its end, it cannot
                fit into memory, or the checkpoint is damaged or of other texts or settings.
            RankError: Another process is gone, or holds other weights, texts or settings.
            FloatingPointError: The loss is NaN or infinite.
            KeyboardInterrupt: The user asked to stop; with a checkpoint, the training was saved there first.
        """
        check(f"steps={steps!r}", steps, Count)
        check(f"save_every={save_every!r}", save_every, Count)
        if not texts:
            raise ValueError("no texts to learn from")
        rows = self._encode(texts)
        self._check(rows)
        folder, together = None if checkpoint is None else Path(checkpoint), self.engine.ranks
        facts = {} if folder is None and together.size == 1 else {"of": self._fingerprint(rows, steps)}
        optimizer = self._optimizer(facts)
        self.memory = self.memory or check_supervised(self, rows)
        rise = 0.15 if steps == 10 else 0.1  # torch divides by 0 where the peak would be the first step
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=rise)
        course = (optimizer, schedule)
        done = 0 if folder is None else self._go_on(folder, facts, course)
        self.lm.train()
        stopping = nullcontext(False) if folder is None else stop_request("step", together.size > 1)
        shown_here = progress_bar and together.is_main
        with bar(title or type(self).__name__, steps, shown_here) as shown, stopping as asked, together.together():
            shown.advance(done)
            for number, batch in enumerate(self._batches(rows, steps)):
                if number < done:
                    continue
                optimizer.zero_grad()
                loss = self._mean_loss(batch, backward=True)
                if not np.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss} at step {len(self.losses)}: lower learning_rate={self.learning_rate}")
                torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
                optimizer.step()
                schedule.step()
                self.losses.append(loss)
                shown.advance(note=self._note())
                if callback is not None:
                    callback(number + 1)
                stop = folder is not None and bool(together.sums(bool(asked)))
                if folder is not None and (stop or (number + 1) % save_every == 0 or number + 1 == steps):
                    save_training(folder, self.lm, {**facts, "steps": number + 1, "losses": self.losses}, course)
                if stop:
                    raise KeyboardInterrupt(f"Stopped at step {number + 1:,} of {steps:,}, saved in {folder}.")
        self.lm.eval()
        return self

    def _fingerprint(self, rows: list[Any], steps: int) -> str:
        """Return a hash of what the weights after `steps` steps depend on."""
        return fingerprint([self._depends_on(), json.dumps(rows, default=np.ndarray.tolist), steps])

    def _optimizer(self, facts: Mapping[str, Any]) -> Optimizer:
        """Return a new optimizer of what learns; the engine takes the model over before the first one."""
        trained = [parameter for parameter in self.lm.parameters() if parameter.requires_grad]
        made = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        if self._wrapped is not None:
            return made
        self.engine.ranks.check_equal({"weights": self.lm, "texts or settings": dict(facts)})
        untried = [backbone for backbone in self._backbones() if is_in_shards(backbone.lm)]
        self._wrapped = self._module()
        self.engine.wrap(self._wrapped, made)
        for backbone in untried:
            self.engine.read(self.lm, check_model, backbone)
        return made

    def _backbones(self) -> list[Backbone]:
        """Return all models that a loss runs."""
        return [self.backbone]

    def _module(self) -> nn.Module:
        """Return all that a loss runs."""
        return self.lm

    def _mean_loss(self, rows: Sequence[Any], backward: bool = False) -> float:
        """Return the loss of a minibatch, and add its gradient to the parameters'."""
        return self._mean(self._loss, rows, backward)

    def _mean(self, function: Callable[[Sequence[Any]], torch.Tensor], rows: Sequence[Any], backward: bool = False) -> float:
        """Return the mean of a function that runs the model over a minibatch, and add its gradient to the parameters' if asked to.

        Each rank computes the part of its own rows, `micro_batch_size` at a time, weighted by what the whole minibatch is a mean of.  All
        run the model equally often: one that has no row left, with another's and weight 0.
        """
        own, whole, losses = self._own(rows), self._weight(rows), []

        def loss_of(part: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
            loss = function(part or rows[:1]) * (self._weight(part) / whole)
            return loss, loss.detach()

        most = -(-len(rows) // self.engine.ranks.size)  # rows of a rank
        size = self._passes.get("micro_batch_size", most)
        for start in range(0, most, size):
            part = own[start : start + size]
            if backward:
                losses.append(self.engine.add_gradients(loss_of, part, last=start + size >= most))
            else:
                losses.append((loss_of if self._wrapped is None else partial(self.engine.run, loss_of))(part)[1])
        return float(self.engine.ranks.sums(sum(loss.item() for loss in losses)))

    def _own(self, rows: Sequence[Any]) -> list[Any]:
        """Return this rank's rows of a minibatch: dealt from the longest to the shortest, so that all ranks have as much to do."""
        together = self.engine.ranks
        if together.size == 1:
            return list(rows)
        lengths = [sum(len(text.context) + len(text.actions) for text in self._records([row])) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
        return [rows[i] for i in sorted(order[together.rank :: together.size])]

    def _depends_on(self) -> dict[str, Any]:
        """Return the settings, and a hash of the weights that training began with."""
        self._first = self._first or digest(self.lm)[0]
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (bool, int, float, str))}
        return {"class": type(self).__name__, **plain, **self._passes}

    def _go_on(self, folder: Path, facts: dict[str, Any], course: tuple[Optimizer, LRScheduler]) -> int:
        """Restore what was saved, and return how many steps it had taken."""
        saved = load_training(folder, self.lm, course)
        if saved is None:
            return 0
        if saved.get("of") != facts["of"]:
            raise ValueError(f"{folder} is a checkpoint of other texts or settings: delete it to start over")
        self.losses = saved["losses"]
        return int(saved["steps"])

    @torch.no_grad()  # in inference mode, weights that FSDP puts together could not be trained afterwards
    def evaluate(self, texts: Sequence[Any]) -> float:
        """Return the mean loss over batches."""
        rows = self._encode(texts)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return float(np.mean([self._mean_loss(batch) for batch in batches]))

    def save(self, folder: str | Path) -> None:
        """Write the model as `save_pretrained` of a policy does, with the tokenizer and its ends of text; of several ranks one writes."""
        whole = self.engine.copied(self.lm)
        if self.engine.ranks.is_main:
            save_lm(whole, folder, tokenizer=files_of(self.tokenizer))
        self.engine.ranks.wait()

    def loss_of(self, texts: Sequence[Any]) -> torch.Tensor:
        """Return the loss of these texts as one minibatch, with gradients."""
        return self._loss(self._encode(texts))

    def _responses(self, responses: Sequence[str], ends: Sequence[bool] | None = None) -> list[list[int]]:
        """Return the ids of responses: those that end (None: all) with the end-of-text token, unless `max_new_tokens` cuts them."""
        rows, eos, limit = self.tokenizer.encode_batch(responses), ends_of(self.tokenizer), self.max_new_tokens
        for text, ids in zip(responses, rows, strict=True):
            if not set(eos).isdisjoint(ids[:-1]):
                raise ValueError(f"response {text[:80]!r} holds the end-of-text token before its end, where a policy stops: take it out")
        self.num_cut = 0 if limit is None else sum(len(ids) > limit for ids in rows)
        to_close = [end and not (ids and ids[-1] in eos) for ids, end in zip(rows, ends or [True] * len(rows), strict=True)]
        closed = [[*ids, eos[0]] if end else ids for ids, end in zip(rows, to_close, strict=True)]
        return closed if limit is None else [ids[:limit] for ids in closed]

    def _check(self, rows: Sequence[Any]) -> None:
        """Insist that the model reads every text whole, and say how many responses were cut."""
        texts = self._records(rows)
        room, taken = self.backbone.context_length, list(map(self._num_read, texts))
        if room is not None and (long := [i for i, length in enumerate(taken) if length > room]):
            text = self.tokenizer.decode_batch([[*texts[long[0]].context, *texts[long[0]].actions]])[0]
            raise ValueError(
                f"{len(long)} of {len(texts)} texts are too long for the model, which reads {room} tokens: {text[:80]!r}... takes "
                f"{taken[long[0]]}; leave them out, shorten them, or take a model that reads more"
            )
        if self.num_cut:
            warnings.warn(
                f"{self.num_cut} of {len(texts)} responses ({self.num_cut / len(texts):.0%}) are longer than max_new_tokens="
                f"{self.max_new_tokens} and are cut there, with no end of text: raise it, or leave them out",
                TrainingWarning,
                stacklevel=3,
            )

    def _num_read(self, text: TextRecord) -> int:
        """Return how many tokens of its context a model needs for a text."""
        apart = self.backbone.reads_prompt_apart
        prompt, rest = len(text.context), len(text.actions) + sum(len(ids) for _, ids in text.replies)
        return max(prompt, rest) if apart else prompt + rest - 1  # the last token is predicted and not read

    @abstractmethod
    def _encode(self, texts: Sequence[Any]) -> list[Any]:
        """Turn what the user passes into rows of token ids."""

    @abstractmethod
    def _records(self, rows: Sequence[Any]) -> list[TextRecord]:
        """Return all texts of rows."""

    @abstractmethod
    def _loss(self, rows: Sequence[Any]) -> torch.Tensor:
        """Return the loss of a minibatch."""

    def _note(self) -> str:
        """Say how the latest step went."""
        return f"loss {self.losses[-1]:.3g}"

    def _weight(self, rows: Sequence[Any]) -> int:
        """Return how many numbers the loss of these rows is a mean of."""
        return len(rows)

    def _batches(self, rows: list[Any], steps: int) -> Iterator[list[Any]]:
        rng = np.random.default_rng(self.seed)
        order = np.zeros(0, np.int64)
        for _ in range(steps):
            while len(order) < self.batch_size:
                order = np.concatenate([order, rng.permutation(len(rows))])
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            yield [rows[i] for i in chosen]
