"""Small nets with unusual graphs, to hold discovery against measured invariance."""

from . import almost, functions, inplace, layers, products, recurrent, scatters, statistics, weights
from .net import CASES, Net

__all__ = [
    "CASES",
    "Net",
    "almost",
    "functions",
    "inplace",
    "layers",
    "products",
    "recurrent",
    "scatters",
    "statistics",
    "weights",
]
