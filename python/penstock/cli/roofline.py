"""Regions, ceilings and memory of a GPU as text and JSON: for `time` and `inspect`."""

from typing import TYPE_CHECKING, Any, Final

from penstock.cli.output import size_text

if TYPE_CHECKING:
    from penstock.engine.plan import Region
    from penstock.engine.roofline import Ceilings
    from penstock.engine.runtimes.base import DeviceMemory

ROOFLINE: Final = (">GFLOP", ">MB", ">roofline", "bound")
"""Columns of `roofline_cells`."""


def region_json(region: "Region", ceilings: "Ceilings | None") -> dict[str, Any]:
    """`ceilings` None: of a CPU, or of an engine that was built before they were kept."""
    from penstock.engine import roofline

    known = ceilings is not None and region.microseconds > 0
    return {
        "name": region.name,
        "kind": region.kind,
        "nodes": list(region.nodes),
        "precision": region.precision or None,
        "tactic": region.tactic,
        "time_us": region.microseconds,
        "flops": region.flops or None,
        "moved_bytes": region.bytes or None,
        "floor_us": roofline.floor_us(region, ceilings) if ceilings else None,
        "roofline_share": roofline.share(region, ceilings) if known and ceilings else None,
        "bound": roofline.bound_of(region, ceilings) if ceilings else None,
    }


def roofline_cells(region: "Region", ceilings: "Ceilings") -> tuple[str, ...]:
    from penstock.engine import roofline

    return (
        f"{region.flops / 1e9:.3g}" if region.flops else "",
        f"{region.bytes / 1e6:.3g}",
        f"{roofline.share(region, ceilings):.0%}",
        roofline.bound_of(region, ceilings),
    )


def ceilings_json(ceilings: "Ceilings") -> dict[str, Any]:
    return {
        "flops_per_s": ceilings.flops_per_second,
        "bytes_per_s": ceilings.bytes_per_second,
        "launch_us": ceilings.launch_us,
    }


def memory_json(memory: "DeviceMemory") -> dict[str, Any]:
    return {"weights_bytes": memory.weights, "program_bytes": memory.program, "context_bytes": memory.context}


def memory_text(memory: "DeviceMemory") -> str:
    return (
        f"weights {size_text(memory.weights)}, kernels' own {size_text(memory.program)}, each context "
        f"{size_text(memory.context)}"
    )
