"""Layers with weights, and attention, by torch's own operators and cuDNN's fused convolutions.

A feature map [N, H, W, C] is handed to torch as the channels-last view of [N, C, H, W] that it is; no number moves,
but where pixels overlap, which these libraries do not know.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from penstock.engine.cuda.expressions import epilogue
from penstock.engine.cuda.sites import Run, Site, narrow

_TO_TORCH = (0, 3, 1, 2)
_TO_OURS = (0, 2, 3, 1)


def conv(site: Site) -> Run:
    """cuDNN's (on the CPU oneDNN's) convolution with its bias, the rest of the epilogue behind it."""
    weight, bias = _convolution_weight(site), site.weight("bias")
    strides, dilations, groups = site.integers("strides"), site.integers("dilations"), site.integer("groups")
    around, padding = padding_of(site)
    finish, apart = epilogue(site), _overlaps(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].contiguous() if apart else operands[0]
        x = functional.pad(x, around) if around else x
        y = functional.conv2d(x.permute(_TO_TORCH), weight, bias, strides, padding, dilations, groups)
        return (finish(y.permute(_TO_OURS), operands),)

    return run


def conv_fused(site: Site) -> Run:
    """cuDNN's convolution with bias, residual and ReLU in one kernel."""
    weight, bias = _convolution_weight(site), site.weight("bias")
    strides, dilations, groups = site.integers("strides"), site.integers("dilations"), site.integer("groups")
    around, padding = padding_of(site)
    residual, apart = site.index("residual"), _overlaps(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].contiguous() if apart else operands[0]
        x = (functional.pad(x, around) if around else x).permute(_TO_TORCH)
        if residual is None:
            y = torch.cudnn_convolution_relu(x, weight, bias, strides, padding, dilations, groups)
        else:
            z = operands[residual].permute(_TO_TORCH)
            y = torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, strides, padding, dilations, groups)
        return (y.permute(_TO_OURS).contiguous(),)

    return run


def fits_conv_fused(site: Site) -> bool:
    """On a GPU, in 16 bits from end to end, with ReLU as its activation and the residual before it."""
    weight = site.weight("weight")
    same = weight is not None and weight.dtype == site.out_dtype()  # an output of the graph keeps its own type
    fits = site.device.type == "cuda" and same and narrow(site.out_dtype()) and site.text("activation") == "relu"
    return fits and site.text("residual", "before") == "before" and site.integer("groups") == 1


def _convolution_weight(site: Site) -> torch.Tensor:
    weight = site.weight("weight")
    assert weight is not None
    return weight.permute(_TO_TORCH)


def _overlaps(site: Site) -> bool:
    """Whether pixels of the map share numbers."""
    operand = site.step.operand("x")
    view = None if operand is None else operand.view
    return view is not None and view.shape[2] > 1 and view.strides[2] < view.shape[3]


def padding_of(site: Site) -> tuple[tuple[int, ...], tuple[int, int]]:
    """What torch.pad adds to a stored map where the sides differ, and what the convolution adds itself."""
    top, left, bottom, right = site.integers("pads")
    if (top, left) == (bottom, right):
        return (), (top, left)
    return (0, 0, left, right, top, bottom), (0, 0)


def conv_transpose(site: Site) -> Run:
    weight, bias = _convolution_weight(site), site.weight("bias")
    strides, dilations, groups = site.integers("strides"), site.integers("dilations"), site.integer("groups")
    top, left, bottom, right = site.integers("pads")
    even = (top, left) == (bottom, right)
    padding = (top, left) if even else (0, 0)
    more = site.integers("output_padding")
    height, width = site.out_shape()[1:3]
    finish = epilogue(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].permute(_TO_TORCH)
        y = functional.conv_transpose2d(x, weight, bias, strides, padding, more, groups, dilations)
        if not even:
            y = y[:, :, top : top + height, left : left + width]
        return (finish(y.permute(_TO_OURS), operands),)

    return run


def gemm(site: Site) -> Run:
    """x [.., K] times weight [N, K], by cuBLAS with its bias."""
    weight, bias = site.weight("weight"), site.weight("bias")
    assert weight is not None
    finish = epilogue(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (finish(functional.linear(operands[0], weight, bias), operands),)

    return run


def gemm_residual(site: Site) -> Run:
    """addmm: cuBLAS adds the residual itself; the bias is added to nothing but what is left, one kernel later."""
    weight, bias, residual = site.weight("weight"), site.weight("bias"), site.index("residual")
    assert weight is not None
    assert residual is not None
    dtype, place = site.out_dtype(), residual

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        rows = operands[place].reshape(-1, weight.shape[0])
        if bias is not None:
            rows = rows + bias
        y = torch.addmm(rows, operands[0].reshape(-1, weight.shape[1]), weight.t())
        return (y.reshape(operands[place].shape).to(dtype),)

    return run


def fits_gemm_residual(site: Site) -> bool:
    return site.index("residual") is not None and site.text("activation", "none") == "none"


def gemm_gelu(site: Site) -> Run:
    """cuBLAS's product that ends in a GELU, the one of tanh, for either: no second kernel reads and writes the rows.

    It differs from the one of erf by 4.7e-4 at most, at +-2.7, half of what rounding 2.7 to FP16 may cost; of normal
    numbers by 2.0e-4 of their norm, where rounding costs 2.1e-4. So it is there for 16 bits alone, and named for what
    it is.
    """
    weight, bias = site.weight("weight"), site.weight("bias")
    assert weight is not None
    assert bias is not None
    shape, columns = site.out_shape(), weight.t()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        rows = operands[0].reshape(-1, weight.shape[1])
        return (torch._addmm_activation(bias, rows, columns, use_gelu=True).view(shape),)

    return run


def fits_gemm_gelu(site: Site) -> bool:
    """Sixteen bits from end to end, on a GPU, a bias, and nothing behind the activation."""
    weight, bias = site.weight("weight"), site.weight("bias")
    plain = site.text("activation") in ("gelu", "gelu_tanh") and site.index("residual") is None
    if not plain or site.device.type != "cuda" or weight is None or bias is None or bias.dim() != 1:
        return False
    return narrow(weight.dtype) and weight.dtype == bias.dtype == site.out_dtype()


def matmul(site: Site) -> Run:
    dtype = site.out_dtype()
    order = site.integers("order") if "order" in site.step.attributes else tuple(range(len(site.out_shape())))

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (torch.matmul(operands[0], operands[1]).permute(order).to(dtype).contiguous(),)

    return run


def attention(site: Site) -> Run:
    """q, k, v [batch, heads, T, D] from wherever they lie; the answer is stored [batch, T, heads, D]."""
    scale, mask, scales = site.number("scale"), site.index("mask"), site.index("scales")
    unit = site.number("unit") if "unit" in site.step.attributes else None
    start = site.number("mask_from")
    factor = site.number("mask_factor") if "mask_factor" in site.step.attributes else None
    dtype = site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        q, k, v = operands[:3]
        added = None
        if mask is not None:
            limit = torch.finfo(q.dtype).max
            added = operands[mask] if factor is None else (start - operands[mask].float()) * factor
            added = added.clamp(-limit, limit).to(q.dtype)
            if added.shape[0] != q.shape[0]:
                added = added.repeat(q.shape[0] // added.shape[0], 1, 1, 1)
        if unit is not None:
            q, k = _unit_rows(q, unit), _unit_rows(k, unit)
        if scales is not None:
            q = (q * operands[scales][:, None, None]).to(q.dtype)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
        return (y.transpose(1, 2).to(dtype).contiguous(),)

    return run


def channel_attention(site: Site) -> Run:
    """q, k, v [batch, heads, T, D], whose channels attend to each other; the answer is stored [batch, T, heads, D]."""
    scale, scales, dtype = site.number("scale"), site.index("scales"), site.out_dtype()
    unit = site.number("unit") if "unit" in site.step.attributes else None

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        q, k, v = (each.transpose(2, 3) for each in operands[:3])
        if unit is not None:
            q, k = _unit_rows(q, unit), _unit_rows(k, unit)
        if scales is not None:
            q = (q * operands[scales][:, None, None]).to(q.dtype)
        y = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return (y.permute(0, 3, 1, 2).to(dtype).contiguous(),)

    return run


def _unit_rows(x: torch.Tensor, least: float) -> torch.Tensor:
    """Divided by their lengths, in FP32 at least."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide / wide.norm(dim=-1, keepdim=True).clamp(min=least)).to(x.dtype)


def lstm(site: Site) -> Run:
    """One layer by torch.nn.LSTM (cuDNN's on a GPU). Stored [T, batch, directions, hidden]."""
    return _recurrent(site, torch.nn.LSTM, ("hidden", "cell"))


def gru(site: Site) -> Run:
    """One layer by torch.nn.GRU, stored like an LSTM's."""
    return _recurrent(site, torch.nn.GRU, ("hidden",))


def _recurrent(site: Site, kind: type[torch.nn.LSTM | torch.nn.GRU], roles: Sequence[str]) -> Run:
    """Gates lie as torch wants them. `roles`: those of the states it begins with; it writes the last ones behind y."""
    weight, recurrence = site.weight("weight"), site.weight("recurrence")
    bias, recurrence_bias = site.weight("bias"), site.weight("recurrence_bias")
    assert weight is not None
    assert recurrence is not None
    directions, _, hidden = recurrence.shape
    both = directions == 2
    # The module's only use is to lay its parameters out in the one block that cuDNN wants.
    module = kind(weight.shape[2], hidden, bias=bias is not None, bidirectional=both)
    module = module.to(site.device, weight.dtype)
    with torch.no_grad():
        for direction, suffix in enumerate(("", "_reverse")[:directions]):
            module.get_parameter(f"weight_ih_l0{suffix}").copy_(weight[direction])
            module.get_parameter(f"weight_hh_l0{suffix}").copy_(recurrence[direction])
            if bias is not None and recurrence_bias is not None:
                module.get_parameter(f"bias_ih_l0{suffix}").copy_(bias[direction])
                module.get_parameter(f"bias_hh_l0{suffix}").copy_(recurrence_bias[direction])
    module.requires_grad_(False)
    module.eval()
    module.flatten_parameters()
    given = [site.index(role) for role in roles]
    shape, dtype = site.out_shape(0), site.out_dtype()
    batch = shape[1]

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0]
        state = None
        if any(each is not None for each in given):
            zero = x.new_zeros((directions, batch, hidden))
            first = tuple(operands[each] if each is not None else zero for each in given)
            state = first if len(first) > 1 else first[0]
        y, last = module(x.contiguous(), state)
        states = last if isinstance(last, tuple) else (last,)
        return (
            y.reshape(shape).to(dtype),
            *(each.to(site.out_dtype(index)) for index, each in enumerate(states, 1)),
        )

    return run
