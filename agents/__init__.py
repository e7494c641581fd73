"""The writer of a text: transformer policies and the algorithms that train them.

The names are in `__init__.pyi` and are imported at first use: `import agents` stays light.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
