"""vLLM as the writer of rollouts, for models that are too large for the decoder of this package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..models.loading import ends_of_model
from ..policies.transformer_policy import TransformerPolicy
from .generator import Request, Response
from .generator_process import ServedGenerator

_MOST_BANNED = 1024  # MAX_NUM_LOGIT_BIAS_TOKENS of vLLM 0.32


class VLLMGenerator(ServedGenerator):
    """Writes texts with vLLM, in a process and a virtual environment of its own; see `Generator`.

    **Written against the sources of vLLM, and not yet run with it**: that needs a GPU.  What passes between the processes is tested
    with another engine in vLLM's place.

    vLLM computes in its own precision with its own kernels, and draws from a distribution that differs from the policy's by
    rounding.  It returns the log-probabilities of what it drew from ("processed": after temperature, bans and minimum length), which show
    by how much, see `agents.rollouts.sampler_mismatch`.

    Args:
        python: Interpreter with vLLM, such as `/envs/vllm/bin/python`: vLLM wants another transformers than we do.
        folder: See `ServedGenerator`; `/dev/shm` is fast, where it is large enough for the weights.
        timeout: See `ServedGenerator`.
        **settings: Arguments of `vllm.LLM`: `gpu_memory_utilization`, `tensor_parallel_size`, `dtype`, `max_model_len`, ...
    """

    __module__ = "agents"

    def __init__(self, python: str | Path, folder: str | Path | None = None, timeout: float = 1800.0, **settings: Any) -> None:
        super().__init__("vllm", python, folder, timeout, settings)
        self._tokens_of_head = 0
        self._ends_of_model: set[int] = set()

    def load(self, policy: TransformerPolicy) -> None:
        """Hand the policy's present weights over.

        Raises:
            TypeError: vLLM cannot serve this model.
        """
        model = policy.lm
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"vLLM cannot serve {type(model).__name__}, a module of your own: use LocalDecoder, or model.generator = None")
        if model.config.is_encoder_decoder:
            raise TypeError(f"vLLM cannot serve {type(model).__name__}, an encoder-decoder: use LocalDecoder, or model.generator = None")
        self._tokens_of_head = policy.backbone.vocab_size
        self._ends_of_model = set(ends_of_model(model))  # vLLM reads both configurations
        super().load(policy)

    def generate(self, request: Request) -> list[Response]:
        """Return one response for each prompt.

        Raises:
            ValueError: vLLM draws by other rules: its minimum length withholds stop tokens too, and its bans are limited.
        """
        sampler = request.sampler
        withheld = self._ends_of_model | set(request.stop_ids)
        if sampler.min_new_tokens and withheld != set(sampler.ends):
            raise ValueError(
                f"min_new_tokens={sampler.min_new_tokens} withholds only end-of-text, {sampler.eos_token_id}; in vLLM it would "
                f"withhold all of {sorted(withheld)}: set it to 0, or take the others out of the task's "
                "stop_tokens and the model's configuration"
            )
        beyond = range(request.vocab_size, self._tokens_of_head)  # rows of a padded head that are no tokens
        banned = (*sampler.banned_tokens, *beyond)
        if len(banned) > _MOST_BANNED:
            raise ValueError(
                f"{len(sampler.banned_tokens)} banned tokens and {len(beyond)} rows of the model's head that are no tokens of the task: "
                f"vLLM bans at most {_MOST_BANNED}; ban fewer, or cut the head to the task's {request.vocab_size} tokens"
            )
        return super().generate(dataclasses.replace(request, sampler=dataclasses.replace(sampler, banned_tokens=banned)))
