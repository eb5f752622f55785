"""What a kernel of ours needs to be an implementation of a step: how it is launched, cut, and given its weights.

`triton_steps` holds the table of them and binds them; `triton_joined` has those of joined layers. Needs Triton.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import Final

import torch

from penstock.engine.cuda.kernels import nvrtc
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch, folds
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.tiles import H200_MULTIPROCESSORS, Product, Tile, tiles
from penstock.engine.cuda.sites import DTYPES, Site, capability, eight_bits, narrow

Config = tuple[int, ...]
Tensors = Sequence[torch.Tensor]

_LARGEST: Final = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Ready:
    """What a step's launches are made of, besides its tensors."""

    site: Site
    config: Config
    constants: Mapping[str, torch.Tensor]
    """The weights by role, as the kernel wants them."""

    @property
    def weight(self) -> torch.Tensor:
        return self.constants["weight"]

    @property
    def bias(self) -> torch.Tensor | None:
        return self.constants.get("bias")

    @property
    def epilogue(self) -> Epilogue:
        return self.activation("", self.site.text("residual") == "after")

    def activation(self, prefix: str, residual_last: bool = False) -> Epilogue:
        """That of the attributes `activation`, `alpha` and `beta`; with a prefix `inner_` those that begin so."""
        site = self.site
        # An open end of a clip is an infinity, which has no name in a kernel's source.
        alpha, beta = (max(-_LARGEST, min(site.number(prefix + name), _LARGEST)) for name in ("alpha", "beta"))
        name = site.text(prefix.rstrip("_") or "activation", "none")
        residual = site.index("residual")
        added = None if residual is None else site.scale(residual)
        return Epilogue(name, alpha, beta, residual_last, added or 1.0, site.out_scale() or 1.0, self.folds)

    @property
    def folds(self) -> bool:
        """Whether scale and bias are in steps of the result."""
        return (
            "scale" in self.constants
            and self.site.out_scale() is not None
            and folds(self.site.text("activation", "none"))
        )

    @property
    def scale(self) -> torch.Tensor | None:
        """What the sums of each column are worth."""
        return self.constants.get("scale")

    @property
    def out_scale(self) -> float:
        return self.site.out_scale() or 1.0

    def residual(self, operands: Tensors) -> torch.Tensor | None:
        index = self.site.index("residual")
        return None if index is None else operands[index]


Launched = Launch | CppLaunch
Build = Callable[[Ready, Tensors, Tensors, Scratch | None], Launched | Sequence[Launched]]
"""Operands, outputs, shared memory -> launches in order. What lies between two launches is allocated here, so that a
capture's pool reuses it."""

Form = Callable[[torch.Tensor], torch.Tensor]


def same(weight: torch.Tensor) -> torch.Tensor:
    return weight


def as_they_are(constants: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return constants


def no_scratch(site: Site, config: Config) -> tuple[int, int]:
    del site, config
    return 0, 0


def one(site: Site) -> Sequence[Config]:
    del site
    return ((),)


def narrow_everywhere(site: Site) -> bool:
    """Sixteen bits in; the result may be wider."""
    first = dtype_of(site, 0)
    return narrow(first) and (narrow(site.out_dtype()) or site.out_dtype() == torch.float32)


def eight_or_narrow(site: Site) -> bool:
    """Eight bits with a scale are as good, in or out; a layer of eight bits knows what its sums are worth."""
    first, out = dtype_of(site, 0), site.out_dtype()
    if eight_bits(first):
        multiplies = site.step.operand("weight") is not None and site.step.kind != "layer_norm"
        return site.scale(0) is not None and multiplies == (site.step.operand("scale") is not None)
    return narrow(first) and (narrow(out) or out == torch.float32 or (eight_bits(out) and site.out_scale() is not None))


def integers_or_narrow(site: Site) -> bool:
    return eight_or_narrow(site) and dtype_of(site, 0) != torch.float8_e4m3fn


def float_weights(site: Site) -> bool:
    """Layers without tensor cores: of eight bits only what lies in memory is."""
    out, integers = site.out_dtype(), dtype_of(site, 0) == torch.int8 and site.scale(0) is not None
    writes = narrow(out) or out == torch.float32 or (out == torch.int8 and site.out_scale() is not None)
    return writes and (integers or narrow(dtype_of(site, 0))) and narrow(dtype_of(site, site.index("weight") or 1))


def always(site: Site) -> bool:
    del site
    return True


@dataclass(frozen=True, slots=True)
class Way:
    """A kernel, or a few in a row, as an implementation."""

    build: Build
    configs: Callable[[Site], Sequence[Config]] = one
    scratch: Callable[[Site, Config], tuple[int, int]] = no_scratch
    """Floats and counters that a configuration needs."""

    forms: Mapping[str, Form] = field(default_factory=lambda: {"weight": same})
    """Roles of weights -> how the kernel wants them. Biases that are not named are FP32 rows."""

    suits: Callable[[Site], bool] = always
    """What can be told from the step alone."""

    types: Callable[[Site], bool] = narrow_everywhere
    """Whether it takes the step's types."""

    scales: bool = False
    """Whether it reads and writes values with a scale."""

    folded: Callable[[Site, dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None
    """Scales and biases of INT8 as the kernel wants them, where they are not those of one layer."""

    combined: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] = as_they_are
    """Constants in their forms -> those that are kept."""

    made: Callable[[Ready], Mapping[str, torch.Tensor]] | None = None
    """The same where it takes the step and the cut to tell."""

    def launches(
        self, ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None
    ) -> tuple[Launched, ...]:
        built = self.build(ready, operands, outputs, scratch)
        return (built,) if isinstance(built, Launched) else tuple(built)


# ---- shared by those that multiply matrices ----


def multiplying(
    launch: Callable[..., Launched], tile: Callable[..., object]
) -> Callable[[Ready, Tensors, Tensors, Scratch | None], Launched]:
    """A gemm, or a convolution of single pixels, as one product of a kernel that takes rows of any shape."""

    def build(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launched:
        del scratch
        weight = ready.weight
        return launch(
            operands[0],
            weight.view(weight.shape[0], weight.shape[-1]),
            out=outputs[0],
            config=tile(*ready.config),
            bias=ready.bias,
            residual=ready.residual(operands),
            scale=ready.scale,
            epilogue=ready.epilogue,
            pdl=ready.site.early,
        )

    return build


_PLAIN: Final = 7  # numbers of a cut without a ceiling, which none here has: steps of two products have two such runs


@cache
def tiles_of(product: Product, multiprocessors: int) -> tuple[Config, ...]:
    return tuple(astuple(tile)[:_PLAIN] for tile in tiles(product, multiprocessors))


def tile_scratch(product: Product, config: Config) -> tuple[int, int]:
    tile = Tile(*config)
    return tile.partial_sums(product), tile.counters(product)


def count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def compiles_cpp(site: Site) -> bool:
    """Whether kernels in CUDA C++ can be made for the step's device, and have what Hopper has."""
    return site.device.type == "cuda" and nvrtc.available() and capability(site.device) >= HOPPER


def multiprocessors_of(device: torch.device) -> int:
    if device.type != "cuda":
        return H200_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def operand_number(argument: object) -> int | None:
    """Which operand an argument of a program's instruction is; None for results and numbers."""
    return int(argument[1:]) if isinstance(argument, str) and argument.startswith("i") else None


def dtype_of(site: Site, index: int) -> torch.dtype:
    """Of an operand."""
    name = site.step.inputs[index].value
    return site.weights[name].dtype if name in site.weights else DTYPES[site.graph.values[name].datatype]
