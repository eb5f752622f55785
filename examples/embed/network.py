"""The network as the server takes it: a repository with the pooled graph, or with an engine built of it.

Promises: the graph is made from the exported network each time, the engine only when none that fits this machine and
these wishes is there; the padding rule is the same for both. Writes below `build/embed`. Called by `service` and the
demonstration.
"""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import penstock as ps
from examples.embed.files import FOLDER, network_path
from examples.embed.pooling import OUTPUT, pooled
from examples.embed.texts import STEP, calibration
from examples.embed.tokens import LENGTH
from penstock.engine import check

NETWORK: Final = "minilm"
INPUTS: Final = ("input_ids", "attention_mask")
ROWS: Final = 16
"""Of a batch at most. A token of a batch of 16 costs as much as one of 8 here, and no text waits for more."""

INSTANCES, THREADS = 2, 1
"""On two cores two batches of one thread each: while one is computed nobody waits for the other's slowest part."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the engine is asked to be."""

    shortest: int = STEP
    usual: int = 2 * STEP
    accuracy: str = "cosine>=0.999"
    budget_seconds: float = 90.0

    @property
    def shapes(self) -> str:
        sizes = f"1x{self.shortest},8x{self.usual},{ROWS}x{LENGTH}"
        return ";".join(f"{name}:{sizes}" for name in INPUTS)


def graph() -> Path:
    """The pooled network as a file."""
    return _written(FOLDER / f"{NETWORK}.onnx", pooled(network_path()).SerializeToString())


def engine(ask: Ask = Ask()) -> Path:
    """The engine for `ask`: the one that is there while it fits, else a new one. Raises what `ps.build` raises."""
    source = graph()
    digest = hashlib.sha256(source.read_bytes() + json.dumps(asdict(ask)).encode()).hexdigest()[:12]
    path = FOLDER / f"{NETWORK}-{digest}.engine"
    if path.is_file() and check(path).action == "run":
        return path
    ps.build(
        source,
        output=path,
        device="cpu",
        shapes=ask.shapes,
        buckets=[1, 8],
        calibration=list(calibration()),
        accuracy=ask.accuracy,
        budget_seconds=ask.budget_seconds,
        timing_cache=FOLDER / "timings.cache",
    ).close()
    return path


def repository(model: Path) -> Path:
    """A model repository with this graph or engine in it."""
    root = FOLDER / "models" / model.stem / model.suffix[1:]
    version = root / NETWORK / "1"
    version.mkdir(parents=True, exist_ok=True)
    _linked(model, version / f"model{model.suffix}")
    _written(root / NETWORK / "config.pbtxt", configuration().encode())
    return root


def configuration() -> str:
    """Texts of near length share a batch: ids and mask are filled up with zeros, which the mask says don't count."""
    rule = {"inputs": {name: {"axis": 1, "multiple": STEP, "value": 0} for name in INPUTS}}
    tensors = [*(f'input [{{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}]' for name in INPUTS)]
    return "\n".join(
        [
            f'name: "{NETWORK}"',
            f"max_batch_size: {ROWS}",
            *tensors,
            f'output [{{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ 384 ] }}]',
            f"instance_group [{{ count: {INSTANCES} }}]",
            f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{THREADS}" }} }}',
            f"parameters {{ key: \"padding\" value {{ string_value: '{json.dumps(rule)}' }} }}",
            "",
        ]
    )


def _written(path: Path, data: bytes) -> Path:
    """In one step: a server that reads it meanwhile sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(data)
    Path(partial.name).replace(path)
    return path


def _linked(model: Path, place: Path) -> None:
    if place.exists() and place.samefile(model):
        return
    place.unlink(missing_ok=True)
    place.hardlink_to(model)
