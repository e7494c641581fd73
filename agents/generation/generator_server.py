"""A process that writes texts for `agents.generation.generator_process`; a file of its own, for a Python with vLLM and without us.

    python generator_server.py ENGINE FILE_DESCRIPTOR

It answers one request at a time over a socket: each message is its length (8 bytes, big-endian) and that much JSON.

    {"do": "load", "folder": ..., "settings": {...}}   the engine is built at the first one, takes new weights at later ones
    {"do": "generate", "prompts": [[ids]], ...}         the fields of `agents.generation.generator.Request`

The answer is `{"result": ...}` or `{"error": text}`; of "generate", the result is a pair of ids and of their log-probabilities under what
drew them for each prompt.  It ends when the other side closes the socket.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("!Q")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Wait for a message.

    Raises:
        EOFError: The other side is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    message: dict[str, Any] = json.loads(_exactly(connection, length))
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = connection.recv(min(missing, 1 << 20))
        if not part:
            raise EOFError("the connection was closed")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class VLLMEngine:
    """vLLM, written against its 0.32; see `agents.generation.vllm_generator`."""

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        from vllm import LLM  # type: ignore[import-not-found]

        # No tokenizer: ids go in and come out.  generation_config="vllm": a file of the model must not change how tokens are drawn.
        # Log-probabilities are to be those that tokens are drawn from, and by default are those before temperature and bans.
        rules = {"skip_tokenizer_init": True, "generation_config": "vllm", "logprobs_mode": "processed_logprobs"}
        self.llm = LLM(model=folder, **rules, **settings)

    def load(self, folder: str) -> None:
        """Take new weights, and forget keys and values of the old ones."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.llm.reset_prefix_cache()

    def generate(self, request: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
        """Write a response for each prompt."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=request["temperature"],
                max_tokens=request["max_new_tokens"],
                min_tokens=request["min_new_tokens"],
                stop_token_ids=request["stop_ids"],
                ignore_eos=True,  # end-of-text is one of stop_ids, and what else the model's files call so is not an end here
                logit_bias={token: -100.0 for token in request["banned_tokens"]} or None,
                seed=request["seed"] + number,  # one seed for all would write equal texts for equal prompts
                detokenize=False,
                logprobs=0,  # of the drawn token, and of no other
            )
            for number in range(len(request["prompts"]))
        ]
        prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        written = [output.outputs[0] for output in self.llm.generate(prompts, parameters, use_tqdm=False)]
        return [(list(one.token_ids), [of[i].logprob for i, of in zip(one.token_ids, one.logprobs, strict=True)]) for one in written]


class LocalEngine:
    """The cached decoder of this package, in another process."""

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        sys.path.append(str(Path(__file__).resolve().parents[2]))  # where the package `agents` lies
        from rewards.utils.devices import get_device

        self.device = get_device(settings.get("device", "auto"))
        self.load(folder)

    def load(self, folder: str) -> None:
        """Take new weights."""
        from agents.models.backbones import backbone_of
        from agents.models.loading import frozen, load_lm

        self.backbone = backbone_of(frozen(load_lm(folder)).to(self.device))

    def generate(self, request: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
        """Write a response for each prompt."""
        import numpy as np

        from agents.generation.generator import Request, decode
        from agents.models.sampler import Sampler

        rules = {name: request[name] for name in ("temperature", "min_new_tokens", "eos_token_id")}
        sampler = Sampler(**rules, banned_tokens=tuple(request["banned_tokens"]))
        prompts = tuple(np.array(ids) for ids in request["prompts"])
        asked = Request(prompts, request["max_new_tokens"], sampler, tuple(request["stop_ids"]), request["vocab_size"], request["seed"])
        return [(np.asarray(one.tokens).tolist(), np.asarray(one.log_probs).tolist()) for one in decode(self.backbone, asked)]


ENGINES: dict[str, Any] = {"vllm": VLLMEngine, "local": LocalEngine}


def serve(connection: socket.socket, kind: Any) -> None:
    """Answer until the other side is gone."""
    engine: Any = None
    while True:
        try:
            message = receive(connection)
        except EOFError:
            return
        try:
            result = None
            if message["do"] == "generate":
                result = engine.generate(message)
            elif engine is None:
                engine = kind(message["folder"], message["settings"])
            else:
                engine.load(message["folder"])
            answer = {"result": result}
        except Exception:
            answer = {"error": traceback.format_exc(limit=-6)}
        send(connection, answer)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]  # its neighbours are no top-level modules
    serve(socket.socket(fileno=int(sys.argv[2])), ENGINES[sys.argv[1]])
