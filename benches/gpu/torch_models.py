"""The architectures of the bench as torch modules: what the torch ways run, and what is exported for ours.

One definition for both, so that both do the same work. ResNet and ViT are timm's where it is installed. Weights come
from a seed and have the size of a trained network's: products keep the variance, norms begin at one. Needs torch.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from benches.gpu import torch_others, torch_scales
from benches.gpu.subjects import Subject
from examples.tracker import network

# ---- residual networks (He et al. 2015), the stride in the 3x3 as torchvision has it ----


def norm(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None) -> nn.Sequential:
    """Convolution and batch norm."""
    around = kernel // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, around, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        if bottleneck:
            layers = [norm(inputs, channels, 1), nn.ReLU(), norm(channels, channels, 3, stride), nn.ReLU()]
            layers += [norm(channels, outputs, 1)]
        else:
            layers = [norm(inputs, channels, 3, stride), nn.ReLU(), norm(channels, channels, 3)]
        self.branch = nn.Sequential(*layers)
        self.way = norm(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.branch(x) + self.way(x))


def residual(depths: tuple[int, ...], widths: tuple[int, ...], classes: int, bottleneck: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [norm(3, widths[0], 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            layers.append(Block(inputs, width, 2 if stage and not block else 1, bottleneck))
            inputs = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


# ---- transformers ----


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.into, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, count, width = x.shape
        joined = self.into(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = joined.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class Layer(nn.Module):
    """An encoder's layer; norms before the branches, or behind them as in BERT."""

    def __init__(self, width: int, heads: int, before: bool) -> None:
        super().__init__()
        self.attention, self.before = Attention(width, heads), before
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.before:
            x = x + self.attention(self.first(x), mask)
            return x + self.mlp(self.second(x))
        x = self.first(x + self.attention(x, mask))
        return self.second(x + self.mlp(x))


class VisionTransformer(nn.Module):
    """CLIP's image tower (Radford et al. 2021), with GELU."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, outputs: int, size: int = 224) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch, bias=False)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, before=True) for _ in range(depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.first(torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last(x)[:, 0])


class Encoder(nn.Module):
    """A sentence encoder of 12 heads, by default of MiniLM's size; masked tokens are seen by nobody."""

    def __init__(self, width: int = 384, depth: int = 6, length: int = 128) -> None:
        super().__init__()
        words, heads = 30522, 12
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, before=False) for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.words(input_ids) + self.positions)
        least = torch.finfo(x.dtype).min
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * least
        mask = mask.expand(-1, 1, input_ids.shape[1], -1)
        for layer in self.layers:
            x = layer(x, mask)
        return x


# ---- a line of text, by a residual extractor and a CTC head ----


class Recurrent(nn.Module):
    """[batch, channels, 1, columns] to class scores of each column."""

    def __init__(self, bidirectional_layers: int, classes: int = 37) -> None:
        super().__init__()
        layers = bidirectional_layers
        self.lstm = nn.LSTM(512, 256, layers, bidirectional=True, batch_first=True) if layers else None
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(2).permute(0, 2, 1).contiguous()
        if self.lstm is not None:
            x, _ = self.lstm(x)
        return self.head(x)


def text_line(bidirectional_layers: int) -> nn.Sequential:
    """The ResNet extractor of scene text recognition (Cheng et al. 2017): 1x32x100 to 26 columns, 5.0 GMAC."""

    def stage(inputs: int, width: int, depth: int, *after: nn.Module) -> list[nn.Module]:
        blocks = [Block(inputs if not block else width, width, 1, False) for block in range(depth)]
        return [*blocks, *after]

    return nn.Sequential(
        norm(1, 32, 3), nn.ReLU(), norm(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2, 2),
        *stage(64, 128, 1, norm(128, 128, 3), nn.ReLU(), nn.MaxPool2d(2, 2)),
        *stage(128, 256, 2, norm(256, 256, 3), nn.ReLU(), nn.MaxPool2d(2, (2, 1), (0, 1))),
        *stage(256, 512, 5, norm(512, 512, 3), nn.ReLU()),
        *stage(512, 512, 3),
        nn.Conv2d(512, 512, 2, (2, 1), (0, 1), bias=False), nn.BatchNorm2d(512), nn.ReLU(),
        nn.Conv2d(512, 512, 2, 1, 0, bias=False), nn.BatchNorm2d(512), nn.ReLU(),
        Recurrent(bidirectional_layers),
    )  # fmt: skip


# ---- by name ----


def _timm(name: str, own: Callable[[], nn.Module], classes: int = 1000) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        return own()
    made: nn.Module = importlib.import_module("timm").create_model(name, num_classes=classes)
    return made


_RESNET: Final = (64, 128, 256, 512)
MODULES: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "resnet50": lambda: _timm("resnet50", lambda: residual((3, 4, 6, 3), _RESNET, 1000, True)),
    "resnet34": lambda: _timm("resnet34", lambda: residual((3, 4, 6, 3), _RESNET, 1000)),
    "vit_b32": lambda: _timm("vit_base_patch32_clip_224", lambda: VisionTransformer(32, 768, 12, 12, 512), classes=512),
    "vit_l14": lambda: _timm(
        "vit_large_patch14_clip_224", lambda: VisionTransformer(14, 1024, 24, 16, 768), classes=768
    ),
    "minilm": Encoder,
    "bert_base": lambda: Encoder(768, 12),
    "crnn": lambda: text_line(0),
    "crnn_bilstm": lambda: text_line(2),
    "yolo": torch_scales.Detector,
    "tracker": torch_scales.Tracker,
    "tracker_search": lambda: network.SearchBranch(network.Tracker()),
    "tiny": lambda: residual((1, 1), (16, 32), 10),
    **torch_others.MODULES,
}


_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)


def build(name: str, seed: int = 1) -> nn.Module:
    """In FP32 on the CPU, ready for inference."""
    module = MODULES[name]().eval()
    seeded(module, seed)
    return module.requires_grad_(False)


def seeded(module: nn.Module, seed: int) -> None:
    """Each parameter by its own name and the seed, so that no order matters."""
    norms = {id(each.weight) for each in module.modules() if isinstance(each, _NORMS)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(crc32(name.encode()) ^ seed)
            if id(parameter) in norms:
                parameter.fill_(1.0)
            elif parameter.dim() > 1 and "position" not in name and "token" not in name and "pos_embed" not in name:
                fan = parameter.shape[1:].numel()
                parameter.normal_(0, fan**-0.5, generator=generator)
            else:
                parameter.normal_(0, 0.02, generator=generator)


def flops(module: nn.Module, given: Mapping[str, Tensor]) -> float:
    """Of matrix products and convolutions; nothing is computed. `given`: inputs, of which only shapes matter."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Without memory but on the CPU: modules that ask for the device's autocast get no answer of "meta". What the CPU
    # has of its own (attention, LSTM, encoders) is counted as nothing, so that it is to be made of products.
    without_memory, fast = FakeTensorMode(allow_non_fake_inputs=True), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # of other processors' flags, which come along
            with torch.backends.mkldnn.flags(enabled=False), without_memory as mode, counter:
                module(*(mode.from_tensor(each.cpu()) for each in given.values()))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def example(subject: Subject, batch: int) -> dict[str, Any]:
    """Inputs to export with."""
    found: dict[str, Any] = {}
    for each in subject.inputs:
        whole = each.kind in ("tokens", "mask")
        shape = (batch, *each.shape)
        found[each.name] = torch.ones(shape, dtype=torch.int64) if whole else torch.randn(shape)
    return found
