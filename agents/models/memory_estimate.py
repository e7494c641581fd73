"""How much memory a training will take, worked out from its sizes; `agents.algorithms.common.memory_check` measures these on a policy.

What is stored (weights, gradients, the optimizer's moments, a reference, keys and values, the rollout) is counted to the byte, and so is
what an update keeps for its backward pass.  What comes and goes inside a pass (logits, a layer's intermediate results) is a formula each.

Not counted: the second pass of `kl_estimator="full"`, `ptx_texts`, TRPO's double backward pass, and what a reward model computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from .backbones.kv_cache import BLOCK
from .lm_head import logits_alive
from .log_probs import logits_at_once

GIB = 2**30
LIBRARIES = 50 << 20  # what libraries allocate at first use on a CPU, measured
FRAGMENTS = (
    1.7  # of what passes take on a CPU, with what lies unused between it: fits peaks measured by `agents.benchmark.performance.scaling`
)
LOGIT_COPIES = 3  # (n, V) float32 tensors alive at once where the head is called: logits, less their maximum, and its exponential
STEP_BYTES = 24  # a row's bytes for each token of the vocabulary when one is drawn: logits, softmax, and its sums in float64
STEP_STORED = 22  # bytes that the buffer stores of a row at a step: int64, 3 x float32, 2 x bool
TOKEN_STORED = 36  # bytes of a token in the buffer's flat arrays: an int64 and 7 x float32


class Saved(NamedTuple):
    """Bytes that a forward pass saves for the backward pass of one text of L tokens: `fixed + token * L + pair * L * L`.

    Attributes:
        fixed: Whatever the texts: weights that mixed precision has cast.
        token: For each token.
        pair: For each pair of tokens; 0 unless the attention stores its matrix.
    """

    fixed: float = 0
    token: float = 0
    pair: float = 0

    def of(self, texts: int, length: int) -> int:
        """Return the bytes of so many texts of this length."""
        return round(self.fixed + texts * (self.token * length + self.pair * length * length))


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models in a training, in bytes.

    Attributes:
        weights: Of the policy, a critic included.
        trained: Of those parameters that learn.
        reference: Of the reference's copy; 0 if there is none.
        moments: What the optimizer keeps for each trained byte: 2 for Adam.
        saved: See `Saved`; policy and critic together.
        layers: Blocks of the policy.
        layer_input: Of the hidden state that goes into a block, for each token: what gradient checkpointing keeps.
        column: Keys and values of a token, all layers.
        source_column: The same of an encoder's output.
        state: Recurrent states of a row.
        repeats: Query heads for each head of keys and values.
        vocabulary: Tokens.
        plain_head: Whether logits are nothing but a matrix product, see `agents.models.lm_head`.
        copies: Of weights that texts are written with, see `agents.models.decoding_weights`.
    """

    weights: int
    trained: int
    reference: int
    moments: float
    saved: Saved
    layers: int
    layer_input: int
    column: int
    source_column: int
    state: int
    repeats: int
    vocabulary: int
    plain_head: bool
    copies: int = 0


@dataclass(frozen=True)
class Load:
    """How many texts a training handles at once, and how long they are.

    Attributes:
        texts: In a rollout.
        rows: Written side by side.
        prompt: Most tokens of a prompt.
        response: Most tokens of a response.
        at_once: Texts in one forward pass of an update: `micro_batch_size`, or the whole minibatch.
        reference_at_once: Texts in one pass of the reference.
        checkpointing: Whether layers are computed again in the backward pass.
        kept: Whether the buffer stores which tokens were cut.
    """

    texts: int
    rows: int
    prompt: int
    response: int
    at_once: int
    reference_at_once: int
    checkpointing: bool = False
    kept: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by name.

    Attributes:
        stored: What is alive all the time.
        phases: What each phase of an iteration needs besides.
        keeps: Whether freed memory stays with the process, so that phases add up: so it is on a CPU, where the C library keeps most of
            what passes of different shapes have freed, while CUDA's allocator uses it again.
    """

    stored: dict[str, int]
    phases: dict[str, dict[str, int]]
    keeps: bool

    @property
    def needed(self) -> int:
        """The least that will do: what is alive in the hungriest phase."""
        return sum(self.stored.values()) + max(sum(items.values()) for items in self.phases.values())

    @property
    def total(self) -> int:
        """What the process will hold at its peak."""
        if not self.keeps:
            return self.needed
        phases = sum(sum(items.values()) for items in self.phases.values())
        return sum(self.stored.values()) + LIBRARIES + round(FRAGMENTS * phases)

    @property
    def items(self) -> dict[str, int]:
        """Everything that is alive in the hungriest phase."""
        return {**self.stored, **self.phases[self.hungriest]}

    @property
    def hungriest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    def line(self, free: int | None) -> str:
        """Return the estimate in a line, in GiB."""
        parts = {**self.stored, **{name: sum(items.values()) for name, items in self.phases.items()}}
        told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size / GIB >= 0.005)
        room = "" if free is None else f" of {free / GIB:.1f} GiB free"
        return f"memory: about {self.total / GIB:.2f} GiB ({told}){room}"


def estimate(sizes: Sizes, load: Load, keeps: bool) -> MemoryEstimate:
    """Work out every item; `keeps` as in `MemoryEstimate`."""
    rows, length = min(load.rows, load.texts), load.prompt + load.response - 1  # the last token is never read
    columns = -(-(load.response if sizes.source_column else length) // BLOCK) * BLOCK  # a decoder begins with a token of its own
    cache = rows * (sizes.column * columns + sizes.source_column * load.prompt + sizes.state)
    layer = (sizes.saved.token * length + sizes.saved.pair * length * length) / sizes.layers  # of one text

    def passing(texts: int, tokens: float = 1.0) -> int:
        """A pass without gradients holds about half of what a layer would save."""
        return round(texts * tokens * layer / 2)

    def logits(texts: int, backward: bool) -> int:
        tokens = texts * load.response
        if sizes.plain_head:
            return 4 * logits_alive(tokens, sizes.vocabulary, backward, keeps)
        return 4 * LOGIT_COPIES * min(tokens * sizes.vocabulary, logits_at_once(sizes.vocabulary, backward, keeps))

    steps = -(-load.texts // rows) * load.response
    bits = -(-sizes.vocabulary // 8) if load.kept else 0
    tokens = load.texts * load.response
    rollout = steps * load.rows * (STEP_STORED + 4 + bits) + tokens * (TOKEN_STORED + bits) + load.texts * 8 * load.prompt
    moving = cache // sizes.layers * sizes.repeats  # a layer's buffers grow into new ones, or are repeated for its heads
    step = max(rows * sizes.vocabulary * STEP_BYTES * (2 if load.kept else 1), passing(rows, load.prompt / length), moving)
    at_once, compared = min(load.at_once, load.texts), min(load.reference_at_once, load.texts)
    saved = sizes.saved.of(at_once, length)
    if load.checkpointing:
        saved = round(sizes.saved.fixed + at_once * (sizes.layers * sizes.layer_input * length + layer))
    stored = {
        "weights": sizes.weights,
        "gradients": sizes.trained,
        "optimizer": round(sizes.moments * sizes.trained),
        "reference": sizes.reference,
        "rollout": rollout,
    }
    phases = {
        "writing": {"cache": cache, "copied weights": sizes.copies, "a step": step},
        "reference pass": {"reference pass": max(passing(compared), logits(compared, False))},
        "update": {"activations": saved, "logits": max(logits(at_once, True), passing(at_once))},
    }
    return MemoryEstimate(stored, phases, keeps)


def remedy(sizes: Sizes, load: Load, free: int) -> str:
    """Return advice: the largest item, and settings that fit into `free` bytes if there are any."""
    items = estimate(sizes, load, False).items
    largest = max(items, key=lambda name: items[name])
    what = f"the largest item is {largest} ({items[largest] / GIB:.2f} GiB)"
    lighter = lightened(sizes, load, free)
    lightest = estimate(sizes, lighter, False)
    if lightest.needed <= free:
        return f"{what}; this fits: {', '.join(_changed(load, lighter))}"
    if sum(lightest.stored.values()) < free:
        return f"{what}; not even {', '.join(_changed(load, lighter)) or 'one text'} at a time fits: lower max_new_tokens"
    largest = max(lightest.stored, key=lambda name: lightest.stored[name])
    if largest == "rollout":
        return f"{what}; the rollout alone is too large: lower n_episodes"
    if largest == "weights" and sizes.trained < sizes.weights:
        return f"{what}; the weights alone are too large: take a smaller model"
    return f"{what}; train adapters (policy_kwargs={{'lora': {{'r': 16}}}}), which need no copy for the reference, or a smaller model"


def lightened(sizes: Sizes, load: Load, free: int) -> Load:
    """Return the load with whatever takes most halved until it fits into `free` bytes, or cannot be halved any more."""
    while (made := estimate(sizes, load, False)).needed > free:
        lower = _lower(load, made)
        if lower is None:
            break
        load = lower
    return load


def _lower(load: Load, made: MemoryEstimate) -> Load | None:
    phase = made.hungriest
    if phase == "update":
        if load.at_once > 1:
            return replace(load, at_once=load.at_once // 2)
        return None if load.checkpointing else replace(load, checkpointing=True)
    if phase == "reference pass":
        return replace(load, reference_at_once=load.reference_at_once // 2) if load.reference_at_once > 1 else None
    return replace(load, rows=min(load.rows, load.texts) // 2) if min(load.rows, load.texts) > 1 else None


def _changed(load: Load, lighter: Load) -> list[str]:
    """Name the settings in which two loads differ, with the second one's values."""
    names = {
        "at_once": f"micro_batch_size={lighter.at_once}",
        "checkpointing": "gradient_checkpointing=True",
        "reference_at_once": f"rollout_buffer_kwargs={{'reference_batch_size': {lighter.reference_at_once}}}",
        "rows": f"an environment of {lighter.rows} rows (textrl train: n_episodes={lighter.rows})",
    }
    return [told for name, told in names.items() if getattr(load, name) != getattr(lighter, name)]
