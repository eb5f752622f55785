"""Which layers of which models `kernels.py` times: by group, what decides most first."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cases import Case, Conv, Depthwise, Gemm
from glue_cases import Attention, LayerNorm, Mlp, Pool


def _resnet50(batch: int) -> list[Case]:
    group = f"resnet50-b{batch}"
    cases: list[Case] = [Conv(group, batch, 224, 224, 3, 64, 7, 2), Conv(group, batch, 224, 224, 4, 64, 7, 2)]
    for size, inner in ((56, 64), (28, 128), (14, 256), (7, 512)):
        outer = inner * 4
        cases += [
            Conv(group, batch, size, size, outer, inner),
            Conv(group, batch, size, size, inner, inner, 3),
            Conv(group, batch, size, size, inner, outer, residual=True),
        ]
        if size > 7:
            cases += [
                Conv(group, batch, size, size, outer, 2 * inner),
                Conv(group, batch, size, size, 2 * inner, 2 * inner, 3, 2),
                Conv(group, batch, size, size, outer, 2 * outer, 1, 2, "none"),
            ]
    return [*cases, Pool(group, batch, 7, 7, 2048), Gemm(group, batch, 1000, 2048)]


def _efficientnet(batch: int) -> list[Case]:
    """EfficientNet-Lite0: expansion, depthwise and projection of its stages."""
    group = f"efficientnet-b{batch}"
    cases: list[Case] = [Conv(group, batch, 224, 224, 3, 32, 3, 2, "relu6")]
    stages = ((112, 32, 32, 16, 3, 1), (112, 16, 96, 24, 3, 2), (56, 24, 144, 40, 5, 2), (28, 40, 240, 80, 3, 2))
    stages += ((14, 80, 480, 112, 5, 1), (14, 112, 672, 192, 5, 2), (7, 192, 1152, 320, 3, 1))
    for size, narrow, wide, after, taps, stride in stages:
        if wide != narrow:
            cases.append(Conv(group, batch, size, size, narrow, wide, activation="relu6"))
        cases += [
            Depthwise(group, batch, size, size, wide, taps, stride),
            Conv(group, batch, size // stride, size // stride, wide, after, activation="none"),
        ]
    return [*cases, Conv(group, batch, 7, 7, 320, 1280, activation="relu6")]


def _vit(images: int) -> list[Case]:
    """ViT-B/32 of CLIP: 49 patches and a class token, width 768."""
    group, rows = f"vit-b{images}", 50 * images
    return [
        Gemm(group, rows, 2304, 768),
        Gemm(group, rows, 768, 768, residual=True),
        Gemm(group, rows, 3072, 768, "gelu"),
        Gemm(group, rows, 768, 3072, residual=True),
        Gemm(group, 49 * images, 768, 3072),
        Attention(group, images, 50, 12, 64),
        LayerNorm(group, rows, 768),
    ]


def _minilm(sentences: int) -> list[Case]:
    group, rows = f"minilm-b{sentences}", 128 * sentences
    return [
        Gemm(group, rows, 1152, 384),
        Gemm(group, rows, 384, 384, residual=True),
        Gemm(group, rows, 1536, 384, "gelu"),
        Gemm(group, rows, 384, 1536, residual=True),
        Attention(group, sentences, 128, 12, 32),
        LayerNorm(group, rows, 384),
    ]


def _recogniser(lines: int) -> list[Case]:
    """PP-OCRv6 small, lines of 48 x 320."""
    group = f"recogniser-b{lines}"
    cases: list[Case] = [
        Conv(group, lines, 48, 320, 3, 48, 3, 2),
        Conv(group, lines, 24, 160, 96, 48, 3, 2),
    ]
    for high, channels in ((12, 96), (6, 192), (3, 384)):
        cases += [
            Depthwise(group, lines, high, 80, channels, 3, 1, "none", sums=True),
            Conv(group, lines, high, 80, channels, 2 * channels, activation="gelu"),
            Conv(group, lines, high, 80, 2 * channels, channels, activation="none", residual=True),
            Mlp(group, lines, high, 80, channels),
        ]
    return [
        *cases,
        Conv(group, lines, 1, 40, 384, 120, activation="silu"),
        Gemm(group, 40 * lines, 360, 120),
        Gemm(group, 40 * lines, 240, 120, "silu"),
        Gemm(group, 40 * lines, 120, 240, residual=True),
        Attention(group, lines, 40, 8, 15),
        LayerNorm(group, 40 * lines, 120),
        Gemm(group, 40 * lines, 18710, 120),
    ]


def _detector(pages: int) -> list[Case]:
    """PP-OCRv6 small, pages of 736 x 736."""
    group = f"detector-b{pages}"
    cases: list[Case] = [
        Conv(group, pages, 736, 736, 3, 24, 3, 2),
        Conv(group, pages, 368, 368, 48, 24, 3, 2),
        Conv(group, pages, 184, 184, 24, 48),
    ]
    for size, channels in ((184, 48), (92, 96), (46, 192), (23, 384)):
        cases += [
            Depthwise(group, pages, size, size, channels, 3, 1, "none", sums=True),
            Conv(group, pages, size, size, channels, 2 * channels, activation="gelu"),
            Conv(group, pages, size, size, 2 * channels, channels, activation="none", residual=True),
            Mlp(group, pages, size, size, channels),
        ]
    return [
        *cases,
        Depthwise(group, pages, 184, 184, 96, 7, 1, "none"),
        Depthwise(group, pages, 46, 46, 96, 7, 1, "none"),
        Conv(group, pages, 184, 184, 96, 24, 3),
        Pool(group, pages, 184, 184, 96),
    ]


def _int8(batch: int) -> list[Case]:
    group = f"int8-b{batch}"
    cases: list[Case] = []
    for size, inner in ((56, 64), (28, 128), (14, 256), (7, 512)):
        cases += [
            Conv(group, batch, size, size, inner * 4, inner, int8=True),
            Conv(group, batch, size, size, inner, inner, 3, int8=True),
            Conv(group, batch, size, size, inner, inner * 4, residual=True, int8=True),
        ]
    return cases


@dataclass(frozen=True, slots=True)
class Catalogue:
    cases: Mapping[str, list[Case]] = field(default_factory=dict)

    @staticmethod
    def everything() -> "Catalogue":
        """By group, what decides most first. The last group repeats batch 1 launched ahead of the kernel before."""
        listed = [
            *(case for batch in (1, 64) for case in _resnet50(batch)),
            *(case for lines in (1, 8) for case in _recogniser(lines)),
            *(case for pages in (1,) for case in _detector(pages)),
            *(case for images in (1, 64) for case in _vit(images)),
            *(case for batch in (1, 64) for case in _efficientnet(batch)),
            *(case for sentences in (1, 32) for case in _minilm(sentences)),
            *(case for batch in (64, 1) for case in _int8(batch)),
            Conv("pdl", 1, 56, 56, 64, 64, 3, pdl=True),
            Conv("pdl", 1, 14, 14, 1024, 256, pdl=True),
            Conv("pdl", 1, 7, 7, 512, 512, 3, pdl=True),
            Gemm("pdl", 50, 768, 768, residual=True, pdl=True),
            Gemm("pdl", 50, 3072, 768, "gelu", pdl=True),
        ]
        groups: dict[str, list[Case]] = {}
        for case in listed:
            groups.setdefault(case.group, []).append(case)
        return Catalogue(groups)
