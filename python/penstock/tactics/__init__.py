"""Tactics: what could run a model on this machine, timed in child processes until the fastest is known.

`race` compiles candidates in processes of their own and times them against each other; a candidate that crashes,
hangs or fills the memory is lost, and nothing else is. Called by `build`, which decides what may be used.
"""

from penstock.tactics.cache import Chosen, TimingCache
from penstock.tactics.candidates import GPU_PRECISIONS, GPU_TUNED, Form, candidates, for_gpu
from penstock.tactics.child import CandidateLost, Child, Limits
from penstock.tactics.confirming import confirm
from penstock.tactics.programs import Exported, compiled, export, profile
from penstock.tactics.race import race
from penstock.tactics.results import (
    FINALIST_RATIO,
    Compiled,
    Lost,
    Measurement,
    Paired,
    Progress,
    Race,
    Skipped,
    Trying,
    best,
    finalists,
    merged,
    ranked,
)
from penstock.tactics.stable import Stable

__all__ = [
    "FINALIST_RATIO",
    "GPU_PRECISIONS",
    "GPU_TUNED",
    "CandidateLost",
    "Child",
    "Chosen",
    "Compiled",
    "Exported",
    "Form",
    "Limits",
    "Lost",
    "Measurement",
    "Paired",
    "Progress",
    "Race",
    "Skipped",
    "Stable",
    "TimingCache",
    "Trying",
    "best",
    "candidates",
    "compiled",
    "confirm",
    "export",
    "finalists",
    "for_gpu",
    "merged",
    "profile",
    "race",
    "ranked",
]
