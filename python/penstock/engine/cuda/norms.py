"""Products of rows that a layer norm was to see first, in torch operators: the reference, which normalises them.

It reads the rows and not what was written about them, so it says what the kernels, which do, must come to.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from penstock.engine.cuda.expressions import activate
from penstock.engine.cuda.sites import Run, Site


def gemm_norm(site: Site) -> Run:
    """x and the residual, normalised where the step has moments of them; the moments of what it writes."""
    weight, bias = site.weight("weight"), site.weight("bias")
    assert weight is not None
    size, columns = weight.shape[1], weight.shape[0]
    normed = site.index("x_moments") is not None
    residual, again = site.index("residual"), site.index("residual_moments") is not None
    scale, shift = site.weight("residual_scale"), site.weight("residual_shift")
    epsilon, residual_epsilon = site.number("epsilon"), site.number("residual_epsilon")
    name, alpha, beta = site.text("activation", "none"), site.number("alpha"), site.number("beta")
    after, dtype = site.text("residual") == "after", site.out_dtype()
    parts = site.out_shape(1)[1] if len(site.step.outputs) > 1 else 0

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = functional.layer_norm(operands[0], (size,), None, None, epsilon) if normed else operands[0]
        y = functional.linear(x, weight, bias)
        added: torch.Tensor | float = 0.0
        if residual is not None:
            added = operands[residual]
            if again:
                added = functional.layer_norm(added, (columns,), scale, shift, residual_epsilon)
        y = activate(y, name, alpha, beta) + added if after else activate(y + added, name, alpha, beta)
        y = y.to(dtype).contiguous()
        return (y, _moments(y, parts)) if parts else (y,)

    return run


def _moments(y: torch.Tensor, parts: int) -> torch.Tensor:
    size = y.shape[-1] // parts
    variance, mean = torch.var_mean(y.float().view(-1, parts, size), -1, correction=0)
    return torch.stack((mean, variance * size), -1)
