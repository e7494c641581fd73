"""The reply that makes a task one with tools."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...chat import ChatTemplate, render
from ...episode import Episode
from ...prompts.prompt import Prompt
from ...utils.never_copied import NeverCopied
from ...utils.suggestions import did_you_mean
from .calls import Call, call_in

Function = Callable[..., Any]
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", list: "array", dict: "object"}
_HANGING = 8  # calls that may still be running beyond their time before the environment stops


def in_lines(result: str, failed: bool) -> str:
    """Write a result between line breaks; errors begin with `error: `."""
    return f"\n{'error: ' if failed else ''}{result}\n"


class Tools(NeverCopied):
    """A `reply` that calls functions for the agent: `TextTask(..., reply=Tools([calculator]), stop_strings=["]"], max_turns=4)`.

    A turn that holds a call (see `call_in`) is answered with its result, and the agent goes on; one without ends the episode.  Results are
    context, never actions.  Errors, also of a call that is written wrongly or names no such function, come back as text.  Only the
    functions that are passed can be called, with data: no text of a model is ever run as code.

    A call runs in a thread of its own, in this process, so that functions may keep state and need not be picklable; one that takes longer
    is answered with an error and left behind.  A thread cannot be stopped: after eight that still run, the next call raises.  A
    function that computes without end inside one C call (`9**9**9**9`) holds the interpreter, which no thread can end: bound its input, as
    `calculator` does, or start a process in it.

    Args:
        functions: Called by their `__name__`; what they return is turned into text.
        seconds: A call may take.
        write: Writes the reply to a call, given the result and whether it is an error.
        template: Chat template in which results are written, as messages of the role `tool`, instead of by `write`.
        ends_with: What the agent itself wrote at the end of its turn, in the template's spelling: its end-of-text token, `<|im_end|>`.

    Raises:
        ValueError: No functions, two of one name, a time that is not positive, or `ends_with` without a template.
        TypeError: One is no function with a name.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        seconds: float = 5.0,
        write: Callable[[str, bool], str] = in_lines,
        template: ChatTemplate | None = None,
        ends_with: str = "",
    ) -> None:
        for function in functions:
            if not callable(function) or not str(getattr(function, "__name__", "")).isidentifier():
                raise TypeError(f"{function!r} cannot be called by its name: pass functions with a __name__, no lambdas")
        self.functions: Mapping[str, Function] = {function.__name__: function for function in functions}
        if not functions or len(self.functions) != len(functions):
            raise ValueError(f"functions={[f.__name__ for f in functions]}: pass at least one, each with a name of its own")
        if not seconds > 0:
            raise ValueError(f"seconds={seconds}: a call needs time, pass more than 0")
        if ends_with and template is None:
            raise ValueError(f"ends_with={ends_with!r} is the template's spelling, and there is no template")
        self.seconds, self.write, self.template, self.ends_with = seconds, write, template, ends_with
        self._running: list[threading.Thread] = []

    def __call__(self, episodes: Sequence[Episode]) -> list[str | Prompt | None]:
        """Answer the turns that just ended; None where one holds no call."""
        calls = [call_in(episode.response[episode.turn_start :]) for episode in episodes]
        return [None if call is None else self._reply(*self.result(call)) for call in calls]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": []}

    def schemas(self) -> list[dict[str, Any]]:
        """Return the functions as JSON schemas, as chat templates show them to a model: `replace(template, tools=tools.schemas())`."""
        return [{"type": "function", "function": _schema(name, function)} for name, function in self.functions.items()]

    def result(self, call: Call) -> tuple[str, bool]:
        """Return what a call gives, as text, and whether that is an error.

        Raises:
            RuntimeError: Eight calls are running beyond their time.
        """
        if call.error:
            return call.error, True
        if call.name not in self.functions:
            known = ", ".join(self.functions)
            return f"there is no tool {call.name!r}{did_you_mean(call.name, self.functions)}; there are: {known}", True
        self._running = [thread for thread in self._running if thread.is_alive()]
        if len(self._running) >= _HANGING:
            names = ", ".join(sorted({thread.name for thread in self._running}))
            raise RuntimeError(f"{_HANGING} calls of {names} still run after their {self.seconds:g} s: bound what the functions do")
        found: list[tuple[str, bool]] = []
        thread = threading.Thread(target=_run, args=(self.functions[call.name], call.arguments, found), name=call.name, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if found:
            return found[0]
        self._running.append(thread)
        return f"{call.name} took more than {self.seconds:g} s", True

    def _reply(self, result: str, failed: bool) -> str | Prompt:
        """Return what the environment says: a template's text holds control tokens, but none comes out of a result."""
        if self.template is None:
            return self.write(result, failed)
        turn = "\x1aagent\x1a"  # what the agent wrote stands in the text already
        said = [{"role": "user", "content": "-"}, {"role": "assistant", "content": turn}]
        told = {"role": "tool", "content": f"error: {result}" if failed else result}
        text, typed = render(self.template, [*said, told])
        before = text.index(turn) + len(turn)
        before += len(self.ends_with) if text.startswith(self.ends_with, before) else 0
        spans = tuple((start - before, end - before) for start, end in typed if start >= before)
        return Prompt(text[before:], typed=spans)


def _run(function: Function, arguments: Mapping[str, Any] | str, found: list[tuple[str, bool]]) -> None:
    try:
        value = function(arguments) if isinstance(arguments, str) else function(**arguments)
        found.append((str(value), False))
    except Exception as error:  # the agent is told: learning from it is the task
        found.append((f"{type(error).__name__}: {error}", True))


def _schema(name: str, function: Function) -> dict[str, Any]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    kinds = {p.name: {"type": _TYPES.get(p.annotation, "string")} for p in parameters}
    needed = [p.name for p in parameters if p.default is p.empty]
    told = inspect.getdoc(function) or ""
    return {"name": name, "description": told, "parameters": {"type": "object", "properties": kinds, "required": needed}}
