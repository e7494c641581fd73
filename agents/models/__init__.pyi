from .loading import frozen as frozen
from .loading import load_lm as load_lm
