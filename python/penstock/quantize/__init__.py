"""Narrower forms of a float model: calibration data, statistics, ranges, placement of Q/DQ, and what to leave wide.

    data.load -> recipes (observe, ranges, quantize) -> pick -> improve -> polish;   where the gate refuses: search

Everything works on `onnx_ir.Model`s and answers standard ONNX. Called by build; imports graph and engine.
"""

from penstock.quantize.calibrators import METHODS
from penstock.quantize.clipping import ranges
from penstock.quantize.data import Calibration, load
from penstock.quantize.observe import Statistics, TensorStatistics, cached, collect
from penstock.quantize.place import layers, quantize, watched
from penstock.quantize.progress import Progress
from penstock.quantize.recipe import Picked, Recipe, improve, pick, polish, recipes
from penstock.quantize.rounding import in_bfloat16
from penstock.quantize.scheme import GPU, SCHEMES, Range, Scheme, suited
from penstock.quantize.sensitivity import Kept, Noise, rank_by_noise, search
from penstock.quantize.wide import convolutions, keeping, search_run

__all__ = [
    "GPU",
    "METHODS",
    "SCHEMES",
    "Calibration",
    "Kept",
    "Noise",
    "Picked",
    "Progress",
    "Range",
    "Recipe",
    "Scheme",
    "Statistics",
    "TensorStatistics",
    "cached",
    "collect",
    "convolutions",
    "improve",
    "in_bfloat16",
    "keeping",
    "layers",
    "load",
    "pick",
    "polish",
    "quantize",
    "ranges",
    "rank_by_noise",
    "recipes",
    "search",
    "search_run",
    "suited",
    "watched",
]
