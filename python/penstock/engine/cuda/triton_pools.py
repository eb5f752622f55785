"""Our kernels for steps that pool or resize maps: over all pixels, over windows, moments of groups, between pixels."""

from typing import Final

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.max_pool import max_pool2d_nhwc_launch
from penstock.engine.cuda.kernels.norm_factors import norm_factors_launches
from penstock.engine.cuda.kernels.reductions import global_average_pool_launch
from penstock.engine.cuda.kernels.resize import resize_linear_launch
from penstock.engine.cuda.shapes import line_of
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, count, eight_or_narrow


def _pool(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    x, (splits,) = operands[0], ready.config
    out = outputs[0].view(x.shape[0], x.shape[3])
    return global_average_pool_launch(
        x,
        out=out,
        splits=splits,
        how=ready.site.text("how"),
        scale=ready.site.scale(0) or 1.0,
        out_scale=ready.out_scale,
        scratch=scratch,
        pdl=ready.site.early,
    )


def _pool_splits(site: Site) -> list[Config]:
    pixels = count(site.shape("x")[1:3])
    return [(splits,) for splits in (1, 4, 8, 16, 32) if splits == 1 or splits * 16 <= pixels]


def _pool_scratch(site: Site, config: Config) -> tuple[int, int]:
    batch, _, _, channels = site.shape("x")
    return (0, 0) if config[0] == 1 else (batch * config[0] * channels, batch * -(-channels // 16))


def _suits_pool(site: Site) -> bool:
    axes = site.step.attributes.get("axes")
    return site.text("how") in ("mean", "sum", "l2") and len(site.shape("x")) == 4 and axes == (1, 2)


def _window(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site = ready.site
    kernel, strides, pads, dilations = (site.integers(name) for name in ("kernel", "strides", "pads", "dilations"))
    top, left, bottom, right = pads
    counted = (top, left, bottom, right) if site.number("count_pads") else (0, 0, 0, 0)
    return max_pool2d_nhwc_launch(
        operands[0],
        window=(kernel[0], kernel[1]),
        stride=(strides[0], strides[1]),
        padding=(top, left),
        out=outputs[0],
        dilation=(dilations[0], dilations[1]),
        mean=counted if site.step.kind == "average_pool" else None,
        pdl=site.early,
    )


def _same_scale(site: Site) -> bool:
    """The largest of numbers on a grid lies on it."""
    return site.scale(0) == site.out_scale()


def _factors(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> tuple[Launch, Launch]:
    assert scratch is not None
    site, x, (splits,) = ready.site, operands[0], ready.config
    scale, offset = (each.view(x.shape[0], x.shape[3]) for each in outputs)
    return norm_factors_launches(
        x,
        groups=site.integer("groups"),
        epsilon=site.number("epsilon"),
        scale=scale,
        offset=offset,
        splits=splits,
        parts=scratch.partial_sums,
        pdl=site.early,
    )


def _factors_splits(site: Site) -> list[Config]:
    """Parts of an image, none of them empty; the more the fewer images there are."""
    pixels = count(site.shape("x")[1:3])
    wanted = (splits for splits in (4, 16, 64, 256) if splits * 16 <= pixels)
    return [(splits,) for splits in wanted if (splits - 1) * -(-pixels // splits) < pixels] or [(1,)]


def _factors_scratch(site: Site, config: Config) -> tuple[int, int]:
    batch, _, _, channels = site.shape("x")
    return 2 * batch * config[0] * channels, 0


def _resized(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site, (block_bytes,) = ready.site, ready.config
    (high, top), (wide, left) = line_of(site, 0), line_of(site, 1)
    return resize_linear_launch(
        operands[0], out=outputs[0], steps=(high, wide), shifts=(top, left), block_bytes=block_bytes, pdl=site.early
    )


def _blocks_of_bytes(site: Site) -> list[Config]:
    del site
    return [(2048,), (4096,), (1024,)]


def _is_linear(site: Site) -> bool:
    return site.text("mode") == "linear"


POOLS: Final[dict[tuple[str, str], Way]] = {
    ("reduce", "triton"): Way(
        _pool, _pool_splits, _pool_scratch, suits=_suits_pool, types=eight_or_narrow, scales=True
    ),
    ("max_pool", "triton"): Way(_window, suits=_same_scale, types=eight_or_narrow, scales=True),
    ("average_pool", "triton"): Way(_window),
    ("resize", "triton"): Way(_resized, _blocks_of_bytes, suits=_is_linear),
    ("norm_factors", "triton"): Way(_factors, _factors_splits, _factors_scratch),
}
"""Kind and name -> kernel."""
