"""What test_offline.py has several processes do: `torchrun --nproc-per-node 2 -m tests.agents.distributed.offline TASK... FOLDER`."""

import os
import pickle
import signal
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from agents import DPO, KTO, SFT, ExpertIteration
from agents.distributed.engine import engine_of
from agents.distributed.process_group import ranks
from agents.distributed.ranks import digest
from rewards import Preference, RewardWarning, fit_preference_model, thumbs_of
from textrl_env import IntegerTokenizer, Prompt, TextTask, make_task

from ..conftest import GPT2, LLAMA, VOCAB, sevens

STEPS = 14
TEXTS = [(" ".join(str(1 + (i * k) % 23) for k in range(1, 2 + i % 5)), " ".join("7" * (1 + (3 * i) % 8))) for i in range(13)]
PAIRS = [Preference(prompt, answer, " ".join("5" * (1 + i % 4)), 0.8) for i, (prompt, answer) in enumerate(TEXTS)]
LORA = {"r": 2, "lora_alpha": 8}
# Minibatches of 5 of 13: the ranks have 3 rows and 2, in passes of 2 and 1, and 2 and 0; of minibatches of 1, one rank has nothing
# (Llama's norms compute in float32, whatever the weights are: three ranks scale their gradients by what it cannot hold, two by 2)
CASES = {
    "sft": (SFT, GPT2, TEXTS, {"batch_size": 5, "micro_batch_size": 2}),
    "sft of adapters": (SFT, LLAMA, TEXTS, {"batch_size": 1, "lora": LORA}),
    "dpo": (DPO, GPT2, PAIRS, {"batch_size": 5, "micro_batch_size": 1, "beta": 0.3}),
    "kto": (KTO, GPT2, thumbs_of([replace(pair, label=1.0) for pair in PAIRS[:7]]), {"batch_size": 5, "micro_batch_size": 1, "beta": 0.3}),
    "ipo of adapters": (DPO, LLAMA, PAIRS, {"batch_size": 5, "loss": "ipo", "lora": LORA, "gradient_checkpointing": True}),
}


def make(case, **changed):
    kind, model, texts, settings = CASES[case]
    return kind(model, IntegerTokenizer(VOCAB, 0), learning_rate=1e-2, seed=1, **settings, **changed), texts


@contextmanager
def double(trainer):
    """Compute in double precision throughout: hidden states and logits are cast to float32 otherwise."""
    cast = torch.Tensor.float
    trainer.lm.double()
    if hasattr(trainer, "reference"):
        trainer.reference.lm.double()
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else cast(x)
    try:
        yield
    finally:
        torch.Tensor.float = cast


def learn(case, stop=None, folder=None, **changed):
    """Return losses, notes of each step, the loss of all texts after training, and the trainer."""
    trainer, texts = make(case, **changed)
    notes = []
    note = trainer._note
    trainer._note = lambda: notes.append(note()) or notes[-1]

    def watch(number):
        if number == stop:
            raise InterruptedError

    with double(trainer):
        try:
            trainer.learn(texts, STEPS, checkpoint=folder, save_every=5, callback=watch)
        except InterruptedError:
            return trainer.losses, notes, None, trainer
        return trainer.losses, notes, trainer.evaluate(texts), trainer


def exact(folder):
    """Train each case with either engine, and save what came out."""
    for case in CASES:
        for shard in (False, True):
            losses, notes, loss, trainer = learn(case, shard=shard)
            weights = trainer.engine.gathered(trainer.lm.state_dict())
            trainer.save(folder / f"{case}-{shard}")
            found = losses, notes, loss, {name: value.clone() for name, value in weights.items()}
            (folder / f"{case}-{shard}-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))


def imitated(folder):
    """Write, choose and imitate together; note what each rank wrote, and what all imitate."""
    task = TextTask(IntegerTokenizer(VOCAB, 0), [Prompt("1 2 3"), Prompt("4"), Prompt("5 6")], max_new_tokens=9)
    agent = ExpertIteration(task, LLAMA, sevens, n=3, n_prompts=5, steps=2, learning_rate=1e-2, seed=2)
    written, learned = [], []
    write, learn = agent._write, agent.trainer.learn
    agent._write = lambda *args, **named: written.append(write(*args, **named)) or written[-1]
    agent.trainer.learn = lambda records, steps: learned.append(records) or learn(records, steps)
    agent.learn(2, checkpoint=folder / "imitated")
    said = ""
    try:
        ExpertIteration(task, LLAMA, sevens, n=3, n_prompts=1)
    except ValueError as error:
        said = str(error)
    texts = [(text.responses, text.scores.tolist()) for text in written]
    chosen = [[(record.context.tolist(), record.actions.tolist()) for record in records] for records in learned]
    found = agent.scores, digest(agent.policy.lm), texts, chosen, said
    (folder / f"imitated-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))


def fitted(folder, engine=None):
    """Fit reward models, one with scales of annotators, one of adapters; of the last batch, of 3, a rank has 1 or 2."""
    pairs = [
        Preference(f"film {i % 5}", f" good {i} {'it was ' * (i % 4)}", f" bad {i + 1} {i % 3}", annotator="ab"[i % 2]) for i in range(21)
    ]
    trunk = {**LLAMA, "vocab_size": 4096, "max_position_embeddings": 128}
    settings = {"tokenizer": make_task("review").tokenizer, "trunk": trunk, "dropout": 0.0, "validation": 0.1, "epochs": 4, "batch_size": 4}
    found = []
    for more in ({"scale_by": "annotator", "micro_batch_size": 1}, {"lora": LORA, "ngram_buckets": 0}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RewardWarning)
            model, report = fit_preference_model(pairs, **settings, **more, engine=engine or engine_of(ranks()))
        found.append((model.network.state_dict(), report.n_train, report.losses, report.annotator_scales))
    if engine is None:
        (folder / f"fitted-{ranks().rank}.pickle").write_bytes(pickle.dumps(found))
    return found


def begun(folder):
    """Train for 7 of 14 steps, of which 5 are saved."""
    learn("sft", stop=7, folder=folder / "sft", shard=True)
    learn("dpo", stop=7, folder=folder / "dpo")


def ended(folder):
    """Go on to the end, the other way round."""
    learn("sft", folder=folder / "sft")
    learn("dpo", folder=folder / "dpo", shard=True)


def killed(folder):
    """One rank is killed in the middle of the second checkpoint."""
    write, written = HuggingFaceStorageWriter.write_data, []

    def write_data(self, plan, planner):
        written.append(write(self, plan, planner))
        if len(written) == 2 and ranks().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return written[-1]

    HuggingFaceStorageWriter.write_data = write_data
    learn("sft", folder=folder, shard=True)


TASKS = (exact, imitated, fitted)

if __name__ == "__main__":
    torch.set_num_threads(1)
    *names, path = sys.argv[1:]
    for name in names:
        globals()[name](Path(path))
