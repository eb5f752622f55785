"""The models of the bench in the order they are measured, at which batches, and the bars that each has to pass.

Bars are milliseconds of one replay on one H200 with 16-bit values, inputs on the device. They are set from the floor of
the chip and what fused kernels were predicted to reach; two models without such a prediction have to be a multiple
faster than torch in the same run. Pure data, called by everything here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

CHIP: Final = "H200"
"""In the name of the device that the milliseconds are bars on."""

Source = Literal["torch", "onnx"]
"""Whether `torch_models` defines it, with weights from a seed, or a package carries it as ONNX, trained."""


@dataclass(frozen=True)
class Tensor:
    """One input, without its batch."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["noise", "page", "tokens", "mask"] = "noise"


@dataclass(frozen=True)
class Bar:
    """What ours has to reach; a row passes all that are set."""

    milliseconds: float | None = None
    times_compiled: float | None = None
    """Of the fastest torch.compile of the run."""

    times_eager: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.milliseconds:g} ms"] if self.milliseconds is not None else []
        parts += [f"{self.times_compiled:g}x compile"] if self.times_compiled is not None else []
        parts += [f"{self.times_eager:g}x eager"] if self.times_eager is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Subject:
    """A model of the bench."""

    name: str
    source: Source
    inputs: tuple[Tensor, ...]
    bars: Mapping[int, Bar]
    """By batch, in the order that they are measured."""

    onnx: str = ""
    """Of the ONNX file, where a package or an exporter has it."""

    indices: bool = False
    """Whether the largest class and its score go out instead of every class's."""

    listed: bool = True
    """Whether it is measured unless asked for by name."""

    eight: Literal["", "INT8", "FP8"] = ""
    """What its layers multiply; empty: 16 bits. Scales are those of inputs that are not judged."""

    of: str = ""
    """The subject of 16 bits that it is, if it is one in eight."""

    @property
    def model(self) -> str:
        """What `torch_models` and packages call it."""
        return self.of or self.name

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(self.bars)


def _times(**limits: float) -> dict[int, Bar]:
    return {int(batch.removeprefix("b")): Bar(milliseconds=limit) for batch, limit in limits.items()}


_PICTURE: Final = (Tensor("x", (3, 224, 224)),)
_LINE: Final = (Tensor("x", (1, 32, 100)),)
_TEXT: Final = (Tensor("input_ids", (128,), "tokens"), Tensor("attention_mask", (128,), "mask"))
_FASTER: Final = Bar(times_compiled=1.5, times_eager=3.0)
_LEVEL: Final = Bar(times_compiled=1.0)
OF_TIMM: Final[Mapping[str, int]] = dict.fromkeys(
    ("efficientformer_l1", "poolformer_s12", "mobilenetv4_conv_medium", "convnextv2_tiny", "edgenext_small",
     "davit_tiny", "hgnetv2_b0", "levit_256", "pvt_v2_b1", "efficientvit_b1", "repvit_m1", "tiny_vit_21m_224",
     "xcit_tiny_12_p16_224", "coatnet_0_rw_224", "mobileone_s1", "ghostnetv2_100", "vitamin_small_224", "resnest50d",
     "tf_efficientnet_b0", "nfnet_l0", "visformer_small", "lcnet_100", "repvgg_a2", "regnety_008", "hrnet_w18_small",
     "focalnet_tiny_srf", "caformer_s18", "inception_next_tiny", "starnet_s1", "pit_xs_224",
     "convit_tiny", "dla34", "densenet121", "mixer_b16_224", "resnext50_32x4d", "twins_svt_small",
     "nextvit_small", "efficientformerv2_s1", "swiftformer_s", "mambaout_tiny", "gcvit_xxtiny", "volo_d1_224",
     "hiera_tiny_224", "seresnet50", "rexnet_100", "ese_vovnet39b", "eva02_tiny_patch14_224", "mvitv2_tiny",
     "convformer_s18", "rdnet_tiny", "fasternet_t2", "shvit_s1", "dpn68", "nest_tiny", "cait_xxs24_224", "res2net50d",
     "coat_lite_tiny", "selecsls42b"), 224,
) | dict.fromkeys(
    ("swinv2_tiny_window8_256", "fastvit_t8", "mobilevitv2_100", "cspdarknet53", "halonet26t",
     "vit_medium_patch16_reg4_gap_256"), 256,
) | {"crossvit_tiny_240": 240}  # fmt: skip
"""Networks of timm, with the height and width of their pictures: what nothing here was shaped for."""

_ALL: Final = (
    Subject("resnet50", "torch", _PICTURE, _times(b1=0.30, b64=1.38)),
    Subject(
        "recogniser", "onnx", (Tensor("x", (3, 48, 320), "page"),), _times(b1=0.18, b8=0.26, b32=0.48),
        "PP-OCRv6_rec_small.onnx", indices=True,
    ),
    Subject(
        "detector", "onnx", (Tensor("x", (3, 736, 736), "page"),), _times(b1=0.32, b8=1.4), "PP-OCRv6_det_small.onnx"
    ),
    Subject("vit_b32", "torch", _PICTURE, _times(b1=0.30, b64=1.35)),
    Subject("minilm", "torch", _TEXT, _times(b1=0.11, b32=0.38, b128=1.15)),
    Subject("efficientnet_lite0", "onnx", _PICTURE, _times(b1=0.15, b64=0.68), "efficientnet_lite0.onnx"),
    Subject("resnet34", "torch", _PICTURE, _times(b64=1.03)),
    Subject("crnn", "torch", _LINE, _times(b32=0.62)),
    Subject("crnn_bilstm", "torch", _LINE, _times(b32=0.80)),
    Subject("yolo", "torch", (Tensor("x", (3, 640, 640)),), {1: _FASTER, 8: _FASTER}),
    Subject(
        "tracker", "torch", (Tensor("template", (3, 127, 127)), Tensor("search", (3, 255, 255))),
        {1: _FASTER, 8: _FASTER},
    ),
    Subject(
        "tracker_search", "torch",
        (Tensor("search", (3, 255, 255)), Tensor("scores_kernel", (256, 4, 4)), Tensor("boxes_kernel", (256, 4, 4))),
        {1: Bar(), 4: Bar(), 8: Bar()}, listed=False,
    ),
    Subject("vit_l14", "torch", _PICTURE, _times(b64=21.0)),
    Subject("tiny", "torch", (Tensor("x", (3, 32, 32)),), {1: Bar(), 4: Bar()}, listed=False),
    Subject("unet", "torch", (Tensor("x", (3, 256, 256)),), {1: _LEVEL, 8: _LEVEL}, listed=False),
    Subject("bert_base", "torch", _TEXT, {1: _LEVEL, 32: _LEVEL}, listed=False),
    Subject("segformer_b0", "torch", (Tensor("x", (3, 512, 512)),), {1: _LEVEL, 8: _LEVEL}, listed=False),
    *(Subject(name, "torch", (Tensor("x", (3, size, size)),), {1: _LEVEL, 32: _LEVEL}, listed=False)
      for name, size in OF_TIMM.items()),
)  # fmt: skip
_EIGHT: Final[Mapping[tuple[str, Literal["INT8", "FP8"]], Mapping[int, Bar]]] = {
    ("resnet50", "INT8"): _times(b1=0.27, b64=0.98),
    ("resnet34", "INT8"): _times(b64=0.68),
    ("crnn", "INT8"): _times(b32=0.47),
    ("efficientnet_lite0", "INT8"): _times(b1=0.15, b64=0.50),
    ("vit_b32", "FP8"): _times(b1=0.26, b64=1.0),
    ("vit_l14", "FP8"): _times(b64=15.0),
    ("tracker_search", "INT8"): {1: Bar(), 8: Bar()},
    ("tiny", "INT8"): {1: Bar(), 4: Bar()},
}
"""Models in eight bits too, and the bars of that."""


def _in_eight_bits(subject: Subject, eight: Literal["INT8", "FP8"], bars: Mapping[int, Bar]) -> Subject:
    return replace(subject, name=f"{subject.name}_{eight.lower()}", bars=bars, eight=eight, of=subject.name)


def _all() -> tuple[Subject, ...]:
    """Each in 16 bits, and behind it in eight."""
    found: list[Subject] = []
    for each in _ALL:
        eights = [(eight, bars) for (name, eight), bars in _EIGHT.items() if name == each.name]
        found += [each, *(_in_eight_bits(each, eight, bars) for eight, bars in eights)]
    return tuple(found)


SUBJECTS: Final[Mapping[str, Subject]] = {each.name: each for each in _all()}
LISTED: Final = tuple(each.name for each in SUBJECTS.values() if each.listed)
