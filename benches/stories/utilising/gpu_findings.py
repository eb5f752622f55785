"""Sentences that follow from what was measured on a GPU (`on_gpu.measured`). Pure."""

from collections.abc import Mapping
from typing import Any, Final

from benches.stories.utilising import eight_bits, memory, sizes

_MIB: Final = 2**20


def findings(found: Mapping[str, Any]) -> list[str]:
    said: list[str] = []
    if "bits" in found:
        said += _of_bits(found["bits"])
    if "shapes" in found:
        said += _of_shapes(found["shapes"])
    if "batches" in found:
        said += _of_batches(found["batches"])
    return said


def _of_bits(bits: Mapping[str, Any]) -> list[str]:
    contenders, batch = bits["contenders"], max(eight_bits.BATCHES)
    wide, auto = (contenders[name] for name in ("fp32", "auto"))
    before_it, after_it = (each["by_batch"][str(batch)] for each in (wide, auto))
    by = "" if before_it["tuned"] else " by the libraries"
    said = [
        f"Of the GPU's time at batch {batch} the build's choice, {auto['precision'].upper()}, takes "
        f"{before_it['compute'] / after_it['compute']:.1f} times less than FP32{by}, for {100 * bits['drop']:.2f} % of "
        f"accuracy (at most {100 * bits['drop_at_most']:.2f} % with 95 % confidence). INT8 was {auto['int8']}."
    ]
    before, after = (held(each) / _MIB for each in (before_it, after_it))
    said.append(f"Weights, kernels' own and one context take {before:.0f} MiB in FP32 and {after:.0f} MiB after.")
    return said


def _of_shapes(shapes: Mapping[str, Any]) -> list[str]:
    rows = shapes["sizes"]
    least = min(each["cosine"] for each in rows)
    met = "kept" if least >= sizes.LEAST_COSINE else "MISSED"
    dearer = [each["one engine"]["compute"] / each["alone"]["compute"] for each in rows if "alone" in each]
    return [
        f"One {shapes['engine']['precision'].upper()} engine answers {rows[0]['name']} to {rows[-1]['name']}; its "
        f"least cosine with FP32 is {least:.6f}: {met} (at least {sizes.LEAST_COSINE}).",
        f"A shape of it takes {max(dearer):.2f} times what an engine built for that shape alone takes"
        + (
            "."
            if all(each["one engine"]["tuned"] for each in rows)
            else ", both with kernels not tuned at every shape."
        ),
    ]


def _of_batches(batches: Mapping[str, Any]) -> list[str]:
    rows = {int(batch): row for batch, row in batches["by_batch"].items()}
    alike = comparable(rows)
    line = memory.fitted({batch: held(row) for batch, row in alike.items()})
    said = []
    for what, name in (("computing alone", "compute"), ("whole calls, copies and host", "milliseconds")):
        rates = {batch: 1000 * batch / row[name] for batch, row in alike.items()}
        top, small = memory.best(rates), memory.enough(rates)
        said.append(
            f"Of {what} batch {top} is best ({rates[top]:.0f} lines/s), and batch {small} is within "
            f"{1 - memory.NEAR_BEST:.0%} of it."
        )
    if plain := [batch for batch, row in rows.items() if not row["tuned"]]:
        listed = ", ".join(map(str, plain))
        said.append(f"The budget ended before batch {listed} was tuned; --parts batches --budget-scale 3 tunes more.")
    said.append(
        f"A line takes {line.each / _MIB:.2f} MiB of the device, so the rule says "
        f"{memory.suggested(batches['available_bytes'], line)}: a limit that is never near, and no optimum."
    )
    return said


def comparable(rows: Mapping[int, Mapping[str, Any]]) -> Mapping[int, Mapping[str, Any]]:
    """The batches that were tuned: one that was not says how much time the build had, and nothing of batches."""
    tuned = {batch: row for batch, row in rows.items() if row["tuned"]}
    return tuned if len(tuned) > 1 else rows


def held(row: Mapping[str, Any]) -> float:
    """Bytes of weights, of what kernels prepared of them, and of one context."""
    return float(row["weights"] + row["program"] + row["context"])
