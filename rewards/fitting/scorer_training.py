"""How a scorer is fitted to comparisons."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from .comparisons import AnnotatorScales, Comparisons
from .engines import Alone, FittingEngine

_SCALE_RATE = 0.03  # of the annotators' log scales


def fit_scorer(
    scorer: nn.Module,
    train: Comparisons,
    held_out: Comparisons | None,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
    micro_batch_size: int = 0,
    patience: int | None = None,
    scales: AnnotatorScales | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    engine: FittingEngine | None = None,
) -> tuple[list[float], int]:
    """Fit `scorer(ids, mask)` to comparisons in place and keep its best epoch on `held_out` (accuracy, then loss), else its last.

    AdamW; the learning rate rises over the first tenth of the steps and then falls to 0 in a straight line.  With `patience`,
    fitting ends after that many epochs without a better one.  `scales`, if given, are fitted along.  With `micro_batch_size`, so many
    comparisons go through the scorer at once, and their gradients are added; 0: the whole batch.  Of the processes of `engine`, each takes
    a part of every batch.

    Returns:
        The mean training loss of each epoch, and the number of the epoch that was kept, from 1.

    Raises:
        ValueError: The loss is no longer finite.
    """
    engine = engine or Alone()
    device = next(scorer.parameters()).device
    groups = [{"params": [p for p in scorer.parameters() if p.requires_grad]}]
    if scales is not None:
        groups.append({"params": list(scales.parameters()), "lr": _SCALE_RATE, "weight_decay": 0.0})  # type: ignore[dict-item]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    engine.ranks.check_equal({"comparisons": train.sizes(), "settings": [epochs, batch_size, learning_rate, weight_decay]})
    engine.wrap(nn.ModuleList([scorer, *([] if scales is None else [scales])]), optimizer)
    if engine.ranks.rank:
        torch.manual_seed(generator.initial_seed() + engine.ranks.rank)  # dropout of its own
    loss_of = partial(_summand, train, scorer, device, scales)
    steps, size = epochs * math.ceil(len(train) / batch_size), micro_batch_size or batch_size
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / (0.1 * steps), 1.0) * (1 - k / steps))
    losses, best, best_epoch, best_state = [], (-1.0, 0.0), 0, scorer.state_dict()
    for epoch in range(1, epochs + 1):
        total = 0.0
        batches = _batches(train.sizes(), batch_size, generator)
        scorer.train()
        for number, rows in enumerate(batches, 1 + (epoch - 1) * len(batches)):
            optimizer.zero_grad()
            mean = _add_gradients(engine, loss_of, rows, size)
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            rate.step()
            total += len(rows) * mean
            if progress is not None:
                progress(number, steps, mean)
        if not math.isfinite(total):
            raise ValueError(f"the loss became {total} in epoch {epoch}: lower the learning rate ({learning_rate})")
        losses.append(total / len(train))
        accuracy, held_out_loss = (float(epoch), 0.0) if held_out is None else held_out.evaluate(scorer, batch_size, device)
        accuracy, held_out_loss = engine.ranks.broadcast((accuracy, held_out_loss))  # machines may differ in the last digit
        if (accuracy, -held_out_loss) > best:
            best, best_epoch, best_state = (accuracy, -held_out_loss), epoch, copy.deepcopy(scorer.state_dict())
        elif patience is not None and epoch - best_epoch >= patience:
            break
    scorer.load_state_dict(best_state)
    scorer.eval()
    return losses, best_epoch


def _summand(
    train: Comparisons, scorer: nn.Module, device: torch.device, scales: AnnotatorScales | None, part: Sequence[int], rows: Sequence[int]
) -> tuple[torch.Tensor, float]:
    """Return what a part of a batch adds to its mean loss, twice; with no part that is 0, which runs the scorer all the same."""
    loss = train.loss(scorer, part or rows[:1], device, scales)
    if scales is not None:
        loss = loss + scales.penalty() / len(train)
    loss = loss * (len(part) / len(rows))
    return loss, loss.item()


def _add_gradients(engine: FittingEngine, loss_of: Callable[..., tuple[torch.Tensor, float]], rows: Sequence[int], size: int) -> float:
    """Add the gradients of a batch, `size` comparisons of each process at once, and return its loss."""
    share, mean = engine.ranks.size, 0.0
    own, most = rows[engine.ranks.rank :: share], -(-len(rows) // share)  # of those of like length each gets as many
    with engine.ranks.together():
        for start in range(0, most, size):
            mean += engine.add_gradients(loss_of, own[start : start + size], rows, last=start + size >= most)
    return float(engine.ranks.sums(mean))


def _batches(sizes: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    # comparisons of like length share a batch (sorted within windows of 16 batches); else half the time goes into padding
    order = torch.randperm(len(sizes), generator=generator).tolist()
    window = 16 * batch_size
    windows = [sorted(order[k : k + window], key=sizes.__getitem__) for k in range(0, len(order), window)]
    batches = [rows[k : k + batch_size] for rows in windows for k in range(0, len(rows), batch_size)]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]
