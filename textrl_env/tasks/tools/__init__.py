"""Functions that the agent may call in its text."""

from .calls import Call, call_in
from .functions import Lookup, calculator
from .tools import Tools

__all__ = ["Call", "Lookup", "Tools", "calculator", "call_in"]
