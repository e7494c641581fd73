"""What test_engine.py has several processes do, see everything.py."""

import copy
import pickle

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from agents.distributed.engine import DDPEngine, FSDPEngine
from agents.distributed.process_group import ranks

STEPS = 6


class Model(nn.Module):
    """Layers between tied weights, a part that no loss reaches, and a frozen one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.last.weight = self.first.weight
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8), nn.Tanh()) for _ in range(3))
        self.unused = nn.Linear(8, 1)
        self.layers[1][0].bias.requires_grad_(False)
        self.double()

    def forward(self, ids):
        hidden = self.first(ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.last(hidden)


def make_optimizer(model):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05, fused=True)


def summand(model, ids, count):
    """The part of the mean over `count` texts that these make up."""
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / count
    return loss, loss.item()


def texts(step):
    return torch.randint(11, (5, 4), generator=torch.Generator().manual_seed(step))


def learn(model, engine, parts, pause=2):
    """Train on parts of the texts of each step; for one step only the embedding learns."""
    optimizer = make_optimizer(model)
    engine.wrap(model, optimizer)
    norms, notes = [], []
    for step in range(STEPS):
        still = [p for p in model.layers.parameters() if p.requires_grad] if step == pause else []
        for parameter in still:
            parameter.requires_grad_(False)
        optimizer.zero_grad()
        cut = parts(texts(step))
        notes.append([engine.add_gradients(summand, model, part, 5, last=part is cut[-1]) for part in cut])
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        optimizer.step()
        for parameter in still:
            parameter.requires_grad_(True)
    return optimizer, norms, notes


def numbers(tensors):
    """Return how many numbers this process holds."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def main(folder):
    rank, found = ranks().rank, {}
    for kind in (DDPEngine, FSDPEngine):
        model, engine = Model(), kind(ranks())
        # three texts and two, in two parts: the second of rank 1 is empty
        optimizer, norms, notes = learn(model, engine, lambda ids: [ids[:2], ids[2:3]] if rank == 0 else [ids[3:], ids[:0]])
        held = numbers(model.parameters()), numbers(v for s in optimizer.state.values() for v in s.values())
        state = copy.deepcopy(engine.gathered({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}))
        with engine.whole(model), torch.no_grad():
            if rank == 0:  # as often as each likes
                model(texts(0))
            alone = model(texts(1))
        frozen = Model().requires_grad_(False)
        engine.shard(frozen)
        with engine.whole(model):
            with engine.whole(frozen), torch.no_grad():
                besides = numbers(model.parameters()), float(frozen(texts(1)).sum())
            back = numbers(model.parameters())
        found[kind.__name__] = (norms, notes, held, state, alone, besides, back, numbers(model.parameters()), numbers(frozen.parameters()))
    found["sums"] = ranks().sums([1.5, rank]), ranks().numbers([[rank, 2]])
    (folder / f"engines-{rank}.pickle").write_bytes(pickle.dumps(found))
