"""A generator in a process of its own, with an interpreter of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

from ..models.loading import save_lm
from ..policies.transformer_policy import TransformerPolicy
from . import generator_server
from .generator import Request, Response

_SHOWN = 2000  # characters of the server's output that an error quotes


class ServedGenerator:
    """Hands weights and prompts to a process that writes; see `Generator`, and `generator_server` for the messages.

    The process starts with the first `load` and ends with `close`, with this object, or with this process.  Weights travel as a
    folder of safetensors, a new one each time; nothing else is kept on disk but what the process prints.  Not on Windows, where a
    process inherits no sockets.

    Args:
        engine: `"local"`: the cached decoder of this package; `"vllm"`: see `VLLMGenerator`.
        python: Interpreter of the process.
        folder: Where weights are handed over, in a folder of its own; a file system in memory is the fastest.  None: where
            temporary files go.
        timeout: Seconds that an answer may take, the start of the engine included.
        settings: Plain data for the engine.

    Attributes:
        process: The process; None before it started.
    """

    def __init__(
        self,
        engine: str,
        python: str | Path,
        folder: str | Path | None = None,
        timeout: float = 1800.0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.engine, self.python, self.timeout, self.settings = engine, str(python), timeout, settings or {}
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._loads = 0

    def load(self, policy: TransformerPolicy) -> None:
        """Hand the policy's present weights over, adapters folded in.

        Raises:
            OSError: The process cannot be started.
            ConnectionError: It has ended.
            TimeoutError: It does not answer.
            RuntimeError: The engine failed.
        """
        if self.process is None:
            self._start()
        # A new name each time: vLLM was seen to take old weights from a path that it knew (vllm-project/vllm#32718).
        folder = self._place / f"weights-{self._loads}"
        save_lm(policy.lm, folder)
        self._loads += 1
        self._ask({"do": "load", "folder": str(folder), "settings": self.settings})
        shutil.rmtree(folder)

    def generate(self, request: Request) -> list[Response]:
        """Return one response for each prompt, as the process wrote them; raises as `load` does."""
        sampler = request.sampler
        responses = self._ask(
            {
                "do": "generate",
                "prompts": [prompt.tolist() for prompt in request.prompts],
                "max_new_tokens": request.max_new_tokens,
                "temperature": sampler.temperature,
                "min_new_tokens": sampler.min_new_tokens,
                "eos_token_id": list(sampler.ends),
                "banned_tokens": list(sampler.banned_tokens),
                "stop_ids": list(request.stop_ids),
                "vocab_size": request.vocab_size,
                "seed": request.seed,
            }
        )
        return [Response(*response) for response in responses]

    def close(self) -> None:
        """End the process; the next `load` starts another one."""
        if self.process is not None:
            self._end()
            self.process = None

    def _start(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="textrl-weights-", dir=self.folder))
        self._output = self._place / "output.txt"
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(self.timeout)
        command = [self.python, generator_server.__file__, self.engine, str(theirs.fileno())]
        try:
            with self._output.open("wb") as output:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()]
                )
        except OSError as error:
            self._connection.close()
            shutil.rmtree(self._place)
            raise OSError(f"python={self.python!r} cannot be started: {error}; give the interpreter that has the engine") from error
        finally:
            theirs.close()
        self._end = weakref.finalize(self, _end, self.process, self._connection, self._place)

    def _ask(self, message: dict[str, Any]) -> Any:
        """Return what the process answers; one that is dead or late is ended."""
        assert self.process is not None, "load first"
        process = self.process
        try:
            generator_server.send(self._connection, message)
            answer = generator_server.receive(self._connection)
        except TimeoutError as error:
            shown = self._shown()
            self.close()
            raise TimeoutError(
                f"the {self.engine} process did not answer {message['do']!r} within timeout={self.timeout} s: raise it, or read what it "
                f"printed:\n{shown}"
            ) from error
        except (EOFError, ConnectionError) as error:
            shown = self._shown()
            self.close()
            raise ConnectionError(
                f"the {self.engine} process ended with status {process.returncode}; was there enough memory?\n{shown}"
            ) from error
        if "error" in answer:
            raise RuntimeError(f"the {self.engine} process failed at {message['do']!r}:\n{answer['error']}{self._shown()}")
        return answer["result"]

    def _shown(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")[-_SHOWN:]


def _end(process: subprocess.Popen[bytes], connection: socket.socket, place: Path) -> None:
    connection.close()  # an idle server goes by itself
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(place, ignore_errors=True)
