"""From statistics to the ranges that placement takes, by one method for all tensors. Called by recipe."""

from collections.abc import Mapping

from penstock.quantize.calibrators import Threshold, calibrator, resolved
from penstock.quantize.observe import Statistics, TensorStatistics
from penstock.quantize.scheme import Range, Scheme

# Steps from zero to the threshold: those of an unsigned grid that begins at zero, and those of every other.
_UNSIGNED_LEVELS = 256
_SIGNED_LEVELS = 128


def thresholds(statistics: Statistics, method: str, scheme: Scheme) -> dict[str, Threshold]:
    """The threshold of |x| for every tensor, with how many candidates were looked at.

    Raises InvalidArgument for a method that does not exist.
    """
    calibrate = calibrator(method)
    found: dict[str, Threshold] = {}
    for name, seen in statistics.tensors.items():
        levels = _levels(seen, scheme)
        found[name] = calibrate(resolved(seen.histogram, levels) if method == "kl" else seen.histogram, levels)
    return found


def ranges(statistics: Statistics, method: str, scheme: Scheme) -> dict[str, Range]:
    """What every tensor is clipped to: its own extremes, no further from zero than the threshold."""
    return clipped(statistics, thresholds(statistics, method, scheme))


def clipped(statistics: Statistics, found: Mapping[str, Threshold]) -> dict[str, Range]:
    return {
        name: Range(max(min(seen.minimum, 0.0), -found[name].value), min(max(seen.maximum, 0.0), found[name].value))
        for name, seen in statistics.tensors.items()
    }


def _levels(seen: TensorStatistics, scheme: Scheme) -> int:
    return _UNSIGNED_LEVELS if seen.minimum >= 0 and scheme.activations == "uint8" else _SIGNED_LEVELS
