"""Where the exported network and its vocabulary lie: `.peers/models`, or `models` in what PENSTOCK_LAB names.

`benches/models/export_torch.py` puts them there, from a package that carries the trained weights.
"""

import os
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = CHECKOUT / "build" / "embed"
"""What the example makes: graphs, engines, repositories."""


def lab() -> Path:
    return Path(os.environ.get("PENSTOCK_LAB", CHECKOUT / ".peers")) / "models"


def network_path() -> Path:
    """MiniLM as torch exported it: ids and mask INT64 [n, t] to a vector for each token, FP32 [n, t, 384]."""
    return _there("minilm.onnx")


def tokenizer_path() -> Path:
    """Its vocabulary and rules, as the library `tokenizers` reads them."""
    return _there("minilm.tokenizer.json")


def _there(name: str) -> Path:
    path = lab() / name
    if not path.is_file():
        raise RuntimeError(
            f"{name} is not in {path.parent.parent.name}/{path.parent.name}; fix: the commands at the head of "
            "benches/models/export_torch.py make it"
        )
    return path
