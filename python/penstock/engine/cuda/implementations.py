"""The table of implementations: kind of step -> name -> what executes it.

A step's name says what, an implementation how; tactics time those that fit and write the winner into the step. The
first of each kind is the reference: torch's own operators, on every device and in every precision. `register` adds to
the table. Called by the executor and by tuners.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from penstock.engine.cuda import (
    blocks,
    eight_bits,
    eight_blocks,
    eight_expansions,
    expressions,
    joined,
    layers,
    norms,
    patches,
    picking,
    pictures,
    shapes,
)
from penstock.engine.cuda.sites import Run, RunInto, Site
from penstock.engine.narrowing import scaled
from penstock.errors import AlreadyExists, Unsupported

OURS: Final = ("triton", "cuda")
"""What the names of our own kernels begin with; they are loaded when one is asked for."""

EXACT: Final = "exact"
"""The reference of steps that read or write values with a scale."""


def _anywhere(site: Site) -> bool:
    del site
    return True


def _as_it_is(site: Site) -> Sequence[tuple[int, ...]]:
    del site
    return ((),)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to execute a kind of step."""

    bind: Callable[[Site], Run]
    """Prepare what can be prepared; the function that runs."""

    fits: Callable[[Site], bool] = _anywhere
    """Whether it can execute this step here."""

    configs: Callable[[Site], Sequence[tuple[int, ...]]] = _as_it_is
    """The ways to do it, most promising first; one of them is the bound site's `config`."""

    scales: bool = False
    """Whether it reads and writes values with a scale by itself."""


IMPLEMENTATIONS: Final[dict[str, dict[str, Implementation]]] = {
    "conv": {
        "cudnn": Implementation(layers.conv),
        "cudnn_fused": Implementation(layers.conv_fused, layers.fits_conv_fused),
        "patches": Implementation(patches.conv, patches.fits),
    },
    "conv_transpose": {
        "cudnn": Implementation(layers.conv_transpose),
        "patches": Implementation(patches.conv_transpose, patches.fits_transposed),
    },
    "gemm": {
        "cublas": Implementation(layers.gemm),
        "cublas_residual": Implementation(layers.gemm_residual, layers.fits_gemm_residual),
        "cublas_gelu_tanh": Implementation(layers.gemm_gelu, layers.fits_gemm_gelu),
    },
    "gemm_norm": {"torch": Implementation(norms.gemm_norm)},
    "squeeze_excite": {"torch": Implementation(joined.squeeze_excite)},
    "conv_gate": {"torch": Implementation(joined.conv_gate)},
    "gated_layers": {"torch": Implementation(joined.gated_layers)},
    "expand_depthwise": {"torch": Implementation(joined.expand_depthwise)},
    "fork": {"torch": Implementation(joined.fork)},
    "gemm_top_1": {"torch": Implementation(joined.gemm_top_1)},
    "conv_shortcut": {
        "cudnn": Implementation(blocks.conv_shortcut),
        "cudnn_fused": Implementation(blocks.conv_shortcut_fused, blocks.fits_fused),
    },
    **{
        kind: {
            "cudnn": Implementation(blocks.bottleneck),
            "cudnn_fused": Implementation(blocks.bottleneck_fused, blocks.fits_fused),
        }
        for kind in ("bottleneck", "bottleneck_next")
    },
    "conv_pool": {"cudnn": Implementation(blocks.conv_pool)},
    "picture_pool": {"cudnn": Implementation(pictures.picture_pool)},
    "top_1": {"torch": Implementation(joined.top_1)},
    "mlp": {"cublas": Implementation(joined.mlp)},
    "matmul": {"cublas": Implementation(layers.matmul)},
    "attention": {"sdpa": Implementation(layers.attention)},
    "channel_attention": {"sdpa": Implementation(layers.channel_attention)},
    "lstm": {"cudnn": Implementation(layers.lstm)},
    "gru": {"cudnn": Implementation(layers.gru)},
    "pointwise": {
        "torch": Implementation(expressions.pointwise),
        "torch_narrow": Implementation(expressions.pointwise_narrow),
    },
    "pieces": {"torch": Implementation(expressions.pieces)},
    "norm_factors": {"torch": Implementation(shapes.norm_factors)},
    "layer_norm": {"torch": Implementation(shapes.layer_norm)},
    "max_pool": {"torch": Implementation(shapes.max_pool)},
    "average_pool": {"torch": Implementation(shapes.average_pool)},
    "reduce": {"torch": Implementation(shapes.reduce)},
    "arg_max": {"torch": Implementation(shapes.arg_max)},
    "top_k": {"torch": Implementation(picking.top_k)},
    "cumsum": {"torch": Implementation(picking.cumsum)},
    "softmax": {"torch": Implementation(shapes.softmax)},
    "log_softmax": {"torch": Implementation(shapes.log_softmax)},
    "copy": {"torch": Implementation(shapes.copy)},
    "concat": {"torch": Implementation(shapes.concat)},
    "gather": {"torch": Implementation(shapes.gather)},
    "gather_elements": {"torch": Implementation(picking.gather_elements)},
    "gather_nd": {"torch": Implementation(picking.gather_nd)},
    "grid_sample": {"torch": Implementation(picking.grid_sample)},
    "pad": {"torch": Implementation(shapes.pad)},
    "resize": {"torch": Implementation(shapes.resize)},
}


def register(kind: str, name: str, implementation: Implementation) -> None:
    """Another way; raises AlreadyExists for a name that is taken."""
    if name in (named := IMPLEMENTATIONS.setdefault(kind, {})):
        raise AlreadyExists(f"{kind} has an implementation {name!r} already")
    named[name] = implementation


def writing(bind: Callable[[Site], RunInto]) -> Callable[[Site], Run]:
    """For kernels that take the tensors to write: they get new ones, which a capture's pool reuses by liveness."""

    def bound(site: Site) -> Run:
        into = bind(site)
        wanted = [(site.out_shape(index), site.out_dtype(index)) for index in range(len(site.step.outputs))]

        def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            outputs = tuple(torch.empty(shape, dtype=dtype, device=site.device) for shape, dtype in wanted)
            into(operands, outputs)
            return outputs

        return run

    return bound


def add_triton() -> bool:
    """Our own kernels are in the table from here on; False where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return False
    from penstock.engine.cuda import triton_steps

    triton_steps.add()
    return True


def fitting(site: Site) -> Mapping[str, Implementation]:
    """Those that can execute a step, the reference first. Raises Unsupported for a kind without any."""
    named = IMPLEMENTATIONS.get(site.step.kind, {})
    if named and scaled(site.graph, site.step):
        reference = Implementation(_with_scales(site, next(iter(named.values()))))
        return {EXACT: reference, **{name: each for name, each in named.items() if each.scales and each.fits(site)}}
    found = {name: each for name, each in named.items() if each.fits(site)}
    if not found:
        raise Unsupported(f"step {site.step.name!r} is of kind {site.step.kind!r}, which nothing executes")
    return found


def _named(site: Site, name: str) -> Implementation | None:
    """The one of that name if it fits: the others need not be asked, some of which think about it for milliseconds."""
    each = IMPLEMENTATIONS.get(site.step.kind, {}).get(name)
    if each is None or scaled(site.graph, site.step):
        return fitting(site).get(name)
    return each if each.fits(site) else None


def _with_scales(site: Site, reference: Implementation) -> Callable[[Site], Run]:
    if site.step.operand("scale") is None:
        return eight_bits.between(reference.bind)
    return _JOINED_IN_EIGHT_BITS.get(site.step.kind, eight_bits.layer)


_JOINED_IN_EIGHT_BITS: Final[Mapping[str, Callable[[Site], Run]]] = {
    "bottleneck": eight_blocks.block,
    "bottleneck_next": eight_blocks.block,
    "conv_pool": eight_blocks.pooled,
    "expand_depthwise": eight_expansions.expand_depthwise,
}


def chosen(site: Site, preferred: tuple[str, ...] = ()) -> tuple[str, Implementation]:
    """The step's own choice, else the first of `preferred` that fits, else the reference.

    Raises Unsupported when the step names one that does not fit here.
    """
    if any(each.startswith(OURS) for each in (site.step.implementation, *preferred)):
        add_triton()
    if name := site.step.implementation:
        only = _named(site, name)
        if only is None:
            raise Unsupported(f"step {site.step.name!r} wants {name!r}, here there are {', '.join(fitting(site))}")
        return name, only
    found = fitting(site)
    name = next((each for each in preferred if each in found), next(iter(found)))
    return name, found[name]
