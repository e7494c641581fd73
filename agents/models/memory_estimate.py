"""How much memory a training will take, worked out from its sizes; `agents.algorithms.common.memory_check` measures these on a policy.

What is stored (weights, gradients, the optimizer's moments, a reference, keys and values, the rollout) is counted to the byte, and so is
what an update keeps for its backward pass, a prompt that texts share once where the model reads it once (see
`agents.models.backbones.joined_texts`).  What comes and goes inside a pass (logits, a layer's intermediate results) is a formula each.
Of several processes that train one model, all is of one of them.

Not counted: the second pass of `kl_estimator="full"`, `ptx_texts`, TRPO's double backward pass, and what a reward model computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from .backbones.decoder_only import JOINED_UP_TO
from .backbones.kv_cache import BLOCK
from .lm_head import logits_alive
from .log_probs import logits_at_once

GIB = 2**30
# What a process on a CPU holds besides, fitted to 38 measured peaks, see docs/scaling.md: what libraries allocate at first use, which grows
# with the matrix that makes logits; what lies unused between the tensors that passes make; and more of it under gradient checkpointing,
# where the inputs that stay lie between what the layers free
LIBRARIES = 90 << 20
HEAD_COPIES = 4
FRAGMENTS = 1.6
CHECKPOINTED = 2.5
LOGIT_COPIES = 3  # (n, V) float32 tensors alive at once where the head is called: logits, less their maximum, and its exponential
STEP_BYTES = 24  # a row's bytes for each token of the vocabulary when one is drawn: logits, softmax, and its sums in float64
STEP_STORED = 22  # bytes that the buffer stores of a row at a step: int64, 3 x float32, 2 x bool
TOKEN_STORED = 36  # bytes of a token in the buffer's flat arrays: an int64 and 7 x float32


class Saved(NamedTuple):
    """Bytes that a forward pass saves for the backward pass.

    Attributes:
        fixed: Whatever the texts: weights that mixed precision has cast.
        token: For each token that is read.
        pair: For each pair of tokens of a text; 0 unless the attention stores its matrix.
        key: For each token of each text besides, where texts are joined: attention goes back to a text a row, prompts repeated.  0: the
            model reads texts side by side, whatever they share.
    """

    fixed: float = 0
    token: float = 0
    pair: float = 0
    key: float = 0

    def of(self, texts: int, length: int, tokens: int | None = None) -> int:
        """Return the bytes of so many texts of this length, `fixed` left out; `tokens`: how many they are with shared prompts once."""
        side_by_side = texts * (self.token * length + self.pair * length * length)
        if not self.key or tokens is None or tokens > JOINED_UP_TO * texts * length:
            return round(side_by_side)
        return round(self.token * tokens + self.key * texts * length)


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
        head: Of the matrix that makes logits.
        copies: Of weights that texts are written with, see `agents.models.decoding_weights`.
        shards: In how many parts of which this process holds one weights, gradients and optimizer are; 1: whole.
        outside: Of weights outside of the layers, which shards put together for all of a pass.
        layer: Of the largest layer, which they put together for its turn.
        sent: What a number of a layer takes while it is put together, as a share of what is stored: 0.5 in bfloat16.
        buckets: Whether gradients keep their room between steps, as DDP's do.
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
    head: int
    copies: int = 0
    shards: int = 1
    outside: int = 0
    layer: int = 0
    sent: float = 1.0
    buckets: bool = False

    def part(self, size: int) -> int:
        """Return what this process holds of so many bytes of weights, gradients or moments."""
        return -(-size // self.shards)

    def whole(self, size: int) -> int:
        """Return what it takes to put a model of so many bytes together; 0 if it is."""
        return 0 if self.shards == 1 else self.outside + round(self.sent * max(0, size - self.outside))


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
        minibatch: Texts in a minibatch; 0: `at_once`.
        group: Texts of a prompt that go through the model together.
        whole_logits: Whether the loss takes all logits of a pass at once, as SFT's.
        together: Texts that `micro_batch_size` counts as one: 2 of a pair.
    """

    texts: int
    rows: int
    prompt: int
    response: int
    at_once: int
    reference_at_once: int
    checkpointing: bool = False
    kept: bool = False
    minibatch: int = 0
    group: int = 1
    whole_logits: bool = False
    together: int = 1

    def tokens(self, texts: int, of: int) -> int:
        """Return the tokens of `texts` texts out of `of`, prompts once that they share; the last token of a text is never read."""
        prompts = min(-(-self.texts // self.group), of)  # among all; texts of a prompt follow one another
        return min(texts, -(-texts * prompts // of)) * self.prompt + texts * (self.response - 1)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by name.

    Attributes:
        stored: What is alive all the time.
        phases: What each phase of an iteration needs besides.
        keeps: Whether freed memory stays with the process, so that phases add up: so it is on a CPU, where the C library keeps most of
            what passes of different shapes have freed, while CUDA's allocator uses it again.
        libraries: What libraries allocate for themselves, on a CPU.
        later: Gradients that are not there while an update's forward pass is: where a step takes one pass, `zero_grad` has freed them, and
            those of a layer come when its activations go.  The head's comes first.
        checkpointing: Whether layers are computed again in the backward pass.
    """

    stored: dict[str, int]
    phases: dict[str, dict[str, int]]
    keeps: bool
    libraries: int = 0
    later: int = 0
    checkpointing: bool = False

    @property
    def _alive(self) -> dict[str, int]:
        """What each phase needs besides what is stored; gradients that come later leave their room to the update's forward pass."""
        alive = {phase: sum(items.values()) for phase, items in self.phases.items()}
        alive["update"] = max(0, alive.get("update", 0) - self.later)
        return alive

    @property
    def needed(self) -> int:
        """The least that will do: what is alive in the hungriest phase."""
        return sum(self.stored.values()) + max(self._alive.values())

    @property
    def total(self) -> int:
        """What the process will hold at its peak."""
        if not self.keeps:
            return self.needed
        phases = {phase: sum(items.values()) for phase, items in self.phases.items()}
        update, copies = phases.get("update", 0), self.phases.get("writing", {}).get("copied weights", 0)
        spread = FRAGMENTS * (CHECKPOINTED if self.checkpointing else 1) * update
        left = max(0, copies - spread)  # an update takes the room of the weights that texts were written with
        others = FRAGMENTS * (sum(phases.values()) - update - copies)
        return round(sum(self.stored.values()) + self.libraries + others + spread + left - min(self.later, update))

    @property
    def items(self) -> dict[str, int]:
        """Everything that is alive in the hungriest phase."""
        return {**self.stored, **self.phases[self.hungriest]}

    @property
    def hungriest(self) -> str:
        """The phase that needs most."""
        alive = self._alive
        return max(self.phases, key=lambda phase: alive[phase])

    def line(self, free: int | None) -> str:
        """Return the estimate in a line, in GiB."""
        parts = {**self.stored, **{name: sum(items.values()) for name, items in self.phases.items()}}
        told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size / GIB >= 0.005)
        room = "" if free is None else f" of {free / GIB:.1f} GiB free"
        return f"memory: about {self.total / GIB:.2f} GiB ({told}){room}"


def estimate(sizes: Sizes, load: Load, keeps: bool) -> MemoryEstimate:
    """Work out every item; `keeps` as in `MemoryEstimate`."""
    stored = {
        "weights": sizes.part(sizes.weights),
        "gradients": sizes.part(sizes.trained),
        "optimizer": sizes.part(round(sizes.moments * sizes.trained)),
        "reference": sizes.part(sizes.reference),
        "rollout": _rollout(sizes, load),
    }
    phases = {
        "writing": _writing(sizes, load),
        "reference pass": {"reference pass": _reference_pass(sizes, load, keeps)},
        "update": _update(sizes, load, keeps),
    }
    if sizes.shards > 1:
        phases["writing"] |= {"whole weights": sizes.whole(sizes.weights)} if load.rows else {}
        phases["reference pass"] |= {"whole weights": sizes.whole(sizes.reference)} if load.rows else {}
        phases["update"] |= {"layers put together": _put_together(sizes)}
    kept = sizes.head if sizes.shards == 1 else 0  # of shards, the head's gradient is added up last
    later = max(0, sizes.part(sizes.trained) - kept) if load.at_once >= load.minibatch and not sizes.buckets else 0
    return MemoryEstimate(stored, phases, keeps, LIBRARIES + HEAD_COPIES * sizes.head, later, load.checkpointing)


def _rollout(sizes: Sizes, load: Load) -> int:
    """Return what the buffer stores: every step of all rows, then each text's tokens, and the prompts."""
    if not load.rows:
        return 0
    steps, tokens = -(-load.texts // min(load.rows, load.texts)) * load.response, load.texts * load.response
    bits = -(-sizes.vocabulary // 8) if load.kept else 0
    return steps * load.rows * (STEP_STORED + 4 + bits) + tokens * (TOKEN_STORED + bits) + load.texts * 8 * load.prompt


def _writing(sizes: Sizes, load: Load) -> dict[str, int]:
    """Return keys and values, the copies of weights, and the most that the first pass over prompts or one step more takes."""
    rows, length = min(load.rows, load.texts), load.prompt + load.response - 1
    if not rows:
        return {}
    columns = -(-(load.response if sizes.source_column else length) // BLOCK) * BLOCK  # a decoder begins with a token of its own
    cache = rows * (sizes.column * columns + sizes.source_column * load.prompt + sizes.state)
    moving = cache // sizes.layers * sizes.repeats  # a layer's buffers grow into new ones, or are repeated for its heads
    prompts = round(_passing(sizes, load, rows) * load.prompt / length)
    step = max(rows * sizes.vocabulary * STEP_BYTES * (2 if load.kept else 1), prompts, moving)
    return {"cache": cache, "copied weights": sizes.copies, "a step": step}


def _reference_pass(sizes: Sizes, load: Load, keeps: bool) -> int:
    texts = min(load.reference_at_once, load.texts)
    if not load.rows:  # DPO's reference reads what the update does
        texts = min(texts, load.at_once)
    return max(_passing(sizes, load, texts, load.tokens(texts, texts)), _logits(sizes, load, texts, False, keeps)) if texts else 0


def _update(sizes: Sizes, load: Load, keeps: bool) -> dict[str, int]:
    """Return what the forward pass saves, and the most that logits or a layer take besides."""
    texts, length = min(load.at_once, load.texts), load.prompt + load.response - 1
    logits = _logits(sizes, load, texts, True, keeps)
    if load.checkpointing:  # the layers' inputs, texts side by side; then one layer at a time, when the logits are gone
        inputs = round(sizes.saved.fixed + texts * sizes.layers * sizes.layer_input * length)
        return {"activations": inputs, "logits": max(logits, 2 * _passing(sizes, load, texts))}
    tokens = load.tokens(texts, min(load.minibatch or load.at_once, load.texts))
    saved = round(sizes.saved.fixed) + sizes.saved.of(texts, length, tokens)
    return {"activations": saved, "logits": max(logits, _passing(sizes, load, texts, tokens))}


def _put_together(sizes: Sizes) -> int:
    """Return what shards take while they are used: weights outside of the layers, and of two layers, of which one is on its way.

    Their gradients are there twice, as they are and as they are sent.
    """
    trained = 2 if sizes.trained == sizes.weights else 0  # adapters' are small
    return round((1 + trained) * sizes.outside + (3 * sizes.sent + trained) * sizes.layer)


def _passing(sizes: Sizes, load: Load, texts: int, tokens: int | None = None) -> int:
    """A pass without gradients holds about half of what a layer would save."""
    return round(sizes.saved.of(texts, load.prompt + load.response - 1, tokens) / sizes.layers / 2)


def _logits(sizes: Sizes, load: Load, texts: int, backward: bool, keeps: bool) -> int:
    tokens = texts * load.response
    if sizes.plain_head and not load.whole_logits:
        return 4 * logits_alive(tokens, sizes.vocabulary, backward, keeps)
    most = tokens * sizes.vocabulary if load.whole_logits else logits_at_once(sizes.vocabulary, backward, keeps)
    return 4 * LOGIT_COPIES * min(tokens * sizes.vocabulary, most)


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
    adapters = "policy_kwargs={'lora': {'r': 16}}" if load.rows else "lora={'r': 16}"
    return f"{what}; train adapters ({adapters}), which need no copy for the reference, or a smaller model"


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
        if load.at_once > load.together:
            return replace(load, at_once=load.at_once // 2 // load.together * load.together, minibatch=load.minibatch or load.at_once)
        return None if load.checkpointing else replace(load, checkpointing=True)
    if phase == "reference pass":
        return replace(load, reference_at_once=load.reference_at_once // 2) if load.reference_at_once > 1 else None
    return replace(load, rows=min(load.rows, load.texts) // 2) if min(load.rows, load.texts) > 1 else None


def _changed(load: Load, lighter: Load) -> list[str]:
    """Name the settings in which two loads differ, with the second one's values."""
    names = {
        "at_once": f"micro_batch_size={lighter.at_once // load.together}",
        "checkpointing": "gradient_checkpointing=True",
        "reference_at_once": f"rollout_buffer_kwargs={{'reference_batch_size': {lighter.reference_at_once}}}",
        "rows": f"an environment of {lighter.rows} rows (textrl train: n_episodes={lighter.rows})",
    }
    return [told for name, told in names.items() if getattr(load, name) != getattr(lighter, name)]
