"""A bidirectional LSTM layer on a GPU: our recurrence cut in every way, and the whole layer against cuDNN's.

    python benches/probes_gpu/lstm_layer.py [--hidden 256] [--times 26,80] [--batches 1,32] [--what recurrence,layer]

Needs torch, triton and the package's `engine` folder. Errors are norm-relative against float64; times are of one call
in a CUDA graph of many, in microseconds.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

import torch

from penstock.engine.cuda.kernels.implicit_gemm import gemm_launch, gemm_product
from penstock.engine.cuda.kernels.lstm import LstmCut, by_unit, lstm_cuts, lstm_launch, packed
from penstock.engine.cuda.kernels.tiles import Tile, tiles
from penstock.engine.cuda.kernels.tuning import microseconds, tune

DIRECTIONS = 2


@dataclass(frozen=True)
class Layer:
    x: torch.Tensor
    weight: torch.Tensor
    recurrence: torch.Tensor
    bias: torch.Tensor

    @staticmethod
    def made(time: int, batch: int, width: int, hidden: int) -> "Layer":
        generator = torch.Generator("cuda").manual_seed(3)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", generator=generator)

        x = normal(time, batch, width).half()
        weight = (normal(DIRECTIONS, 4 * hidden, width) * width**-0.5).half()
        recurrence = (normal(DIRECTIONS, 4 * hidden, hidden) * 1.5 * hidden**-0.5).half()
        return Layer(x, weight, recurrence, (normal(DIRECTIONS, 4 * hidden) * 0.2).half())

    def expected(self) -> torch.Tensor:
        """[time, batch, directions, hidden] in float64."""
        time, batch, _ = self.x.shape
        hidden = self.recurrence.shape[2]
        inputs = torch.einsum("tbk,dnk->tbdn", self.x.double(), self.weight.double()) + self.bias.double()
        recurrence = self.recurrence.double().transpose(1, 2)
        y = torch.empty(time, batch, DIRECTIONS, hidden, dtype=torch.float64, device="cuda")
        h = torch.zeros(DIRECTIONS, batch, hidden, dtype=torch.float64, device="cuda")
        c = torch.zeros_like(h)
        for step in range(time):
            now = torch.stack([inputs[step, :, 0], inputs[time - 1 - step, :, 1]])
            i, f, g, o = (now + torch.bmm(h, recurrence)).chunk(4, dim=2)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            y[step, :, 0], y[time - 1 - step, :, 1] = h[0], h[1]
        return y

    def cudnn(self) -> Callable[[], torch.Tensor]:
        hidden = self.recurrence.shape[2]
        module = torch.nn.LSTM(self.x.shape[2], hidden, bidirectional=True).half().cuda()
        with torch.no_grad():
            for direction, suffix in enumerate(("", "_reverse")):
                module.get_parameter(f"weight_ih_l0{suffix}").copy_(self.weight[direction])
                module.get_parameter(f"weight_hh_l0{suffix}").copy_(self.recurrence[direction])
                module.get_parameter(f"bias_ih_l0{suffix}").copy_(self.bias[direction])
                module.get_parameter(f"bias_hh_l0{suffix}").zero_()
        module.requires_grad_(False).eval().flatten_parameters()
        return lambda: module(self.x)[0]


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double().reshape(right.shape) - right).norm() / right.norm())


class Ours:
    """The product and the recurrence with what they need."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        time, batch, width = layer.x.shape
        hidden = layer.recurrence.shape[2]
        self.rows, self.weight = layer.x.view(-1, width), by_unit(layer.weight)
        self.bias, self.packed = by_unit(layer.bias.float()), packed(layer.recurrence)
        self.products = torch.empty(time * batch, DIRECTIONS * 4 * hidden, dtype=dtype, device="cuda")
        self.out = torch.zeros(time, batch, DIRECTIONS, hidden, dtype=torch.float16, device="cuda")
        self.states = torch.empty(2, DIRECTIONS, batch, hidden, dtype=torch.float16, device="cuda")
        self.product = gemm_product(self.rows, self.products)

    def multiply(self, tile: Tile, *, early: bool = False) -> Callable[[], None]:
        return gemm_launch(self.rows, self.weight, out=self.products, config=tile, bias=self.bias, pdl=early).run

    def recur(self, cut: LstmCut, *, rough: bool = False, early: bool = False) -> Callable[[], None]:
        time, batch = self.out.shape[:2]
        return lstm_launch(
            self.products.view(time, batch, -1), self.packed, out=self.out, last_hidden=self.states[0],
            last_cell=self.states[1], config=cut, rough=rough, pdl=early,
        ).run  # fmt: skip


def short(value: object) -> str:
    return f"{value:8.1f}" if isinstance(value, float) else f"{value:>8}"


def attempt(what: Callable[[], object]) -> str:
    try:
        return short(what())
    except Exception as failure:  # whatever the driver raises; the table goes on
        print(f"    {type(failure).__name__}: {str(failure)[:150]}", file=sys.stderr)
        return "    lost"


def recurrences(layer: Layer, most: int) -> None:
    """Each cut: error, time of the recurrence, of rough activations, of FP32 products."""
    time, batch, _ = layer.x.shape
    hidden, right = layer.recurrence.shape[2], layer.expected()
    narrow, wide = (Ours(layer, dtype) for dtype in (torch.float16, torch.float32))
    cuts = lstm_cuts(hidden, batch, DIRECTIONS, 132)[:most]
    tile = next(each for each in tiles(narrow.product) if each.split_k == 1)
    for each in (narrow, wide):
        each.multiply(tile)()
    for cut in cuts:
        runs = [ours.recur(cut, rough=rough) for ours, rough in ((narrow, False), (narrow, True), (wide, False))]
        errors = []
        for ours, run in zip((narrow, narrow, wide), runs, strict=True):
            ours.out.fill_(7.0)
            try:
                run()
                torch.cuda.synchronize()
                errors.append(f"{error(ours.out, right):8.1e}")
            except Exception as failure:
                print(f"    {type(failure).__name__}: {str(failure)[:150]}", file=sys.stderr)
                errors.append("    lost")
        times = [attempt(lambda run=run: microseconds(run, calls=20, replays=5)) for run in runs]
        name = f"{cut.cluster}x{cut.split}x{cut.tiles}"
        estimate = cut.clocks(hidden, batch, DIRECTIONS, 132)
        print(f"{time:4} {batch:4} {name:8} {' '.join(errors)} {' '.join(times)}  clocks {estimate:.0f}", flush=True)


def layers(layer: Layer) -> None:
    """The whole layer, ours and cuDNN's."""
    time, batch, _ = layer.x.shape
    hidden, right = layer.recurrence.shape[2], layer.expected()
    ours, cudnn = Ours(layer, torch.float16), layer.cudnn()
    cuts = lstm_cuts(hidden, batch, DIRECTIONS, 132)[:3]
    unsplit = [each for each in tiles(ours.product) if each.split_k == 1][:3]
    found = tune(
        unsplit,
        lambda tile: gemm_launch(ours.rows, ours.weight, out=ours.products, config=tile, bias=ours.bias),
        calls=20,
        replays=3,
    )
    best = found.best or unsplit[0]
    both = {}
    for cut in cuts:
        for early in (False, True):
            steps = ours.multiply(best, early=early), ours.recur(cut, early=early)

            def call(steps: tuple[Callable[[], None], ...] = steps) -> None:
                for each in steps:
                    each()

            both[cut, early] = microseconds(call, calls=20, replays=5)
    (cut, early), fastest = min(both.items(), key=lambda item: item[1])
    print(
        f"{time:4} {batch:4} layer: cuDNN {attempt(lambda: microseconds(cudnn, calls=10, replays=3))} "
        f"(error {error(cudnn(), right):.1e})  ours {fastest:8.1f} (error {error(ours.out, right):.1e}) "
        f"product {found.microseconds:6.1f}, cut {cut.cluster}x{cut.split}x{cut.tiles}, "
        f"{'early' if early else 'not early'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--times", default="26,80")
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--what", default="recurrence,layer")
    parser.add_argument("--most", type=int, default=8, help="cuts")
    options = parser.parse_args()
    parts = options.what.split(",")
    print("time batch cut        error: FP16, rough, FP32 products   us: the same", flush=True)
    for time in map(int, options.times.split(",")):
        for batch in map(int, options.batches.split(",")):
            layer = Layer.made(time, batch, options.width, options.hidden)
            if "recurrence" in parts:
                recurrences(layer, options.most)
            if "layer" in parts:
                layers(layer)


if __name__ == "__main__":
    with torch.no_grad():
        main()
