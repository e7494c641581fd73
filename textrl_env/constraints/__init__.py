r"""What an agent may write: action masks from constraints that compose.

A constraint is plain data (`Regex(" was (good|bad)\.")`, or `{"regex": ...}`), bound to a tokenizer once per task.  The bound
form holds one state per text and moves it on token by token, so that a mask never costs a pass over the text.
"""

from .compose import All, BoundConstraint, Constraint, as_constraint
from .grammar import Grammar, JSONSchema, Regex
from .one_of import OneOf
from .tokens import AllowedTokens, BannedTokens, MinNewTokens
from .vocabulary import Vocabulary

__all__ = [
    "All",
    "AllowedTokens",
    "BannedTokens",
    "BoundConstraint",
    "Constraint",
    "Grammar",
    "JSONSchema",
    "MinNewTokens",
    "OneOf",
    "Regex",
    "Vocabulary",
    "as_constraint",
]
