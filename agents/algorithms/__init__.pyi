from .registry import ALGORITHMS as ALGORITHMS
