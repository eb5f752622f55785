"""Sentences for text models: passages of one to eight generated lines, one set to calibrate with and one to judge by.

Needs the standard library and NumPy only, since the exporting environment has no more. Called by `export_torch`.
"""

import numpy as np

from examples.ocr.texts import line_of_text

LENGTH = 128
"""Tokens of a passage at most; shorter ones are padded, which the mask says."""

COUNTS = {"CALIBRATION": 96, "HELD_OUT": 32}
_SEEDS = {"CALIBRATION": 11, "HELD_OUT": 12}


def sentences() -> dict[str, list[str]]:
    """By the name of the side."""
    return {
        side: [_passage(np.random.default_rng((_SEEDS[side], index))) for index in range(count)]
        for side, count in COUNTS.items()
    }


def _passage(random: np.random.Generator) -> str:
    return " ".join(line_of_text(random) for _ in range(int(random.integers(1, 9))))
