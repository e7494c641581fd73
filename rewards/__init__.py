"""The worth of a text: reward models, preference data and their training.

`make`, `register` and `list` work on the one table of reward models, which lives in `textrl_env`.  The names are in
`__init__.pyi` and are imported at first use: the rules and the preference data never need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
