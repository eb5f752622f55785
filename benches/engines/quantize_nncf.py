"""INT8 by NNCF, OpenVINO's own tool, at its defaults: `quantize_nncf.py MODEL SAMPLES.npz OUT.xml [transformer]`.

Runs in an environment of its own (`nncf-requirements.txt`), so it imports nothing of this repository.
"""

import sys
from pathlib import Path

import nncf  # type: ignore[import-not-found]  # in its own environment only
import numpy as np
import openvino


def main() -> None:
    model_path, samples_path, out = (Path(argument) for argument in sys.argv[1:4])
    # What its guide asks for with attention: without it MiniLM keeps a cosine of 0.13.
    kind = nncf.ModelType.TRANSFORMER if sys.argv[4:] == ["transformer"] else None
    model = openvino.Core().read_model(model_path)
    with np.load(samples_path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    rows = [{name: array[row : row + 1] for name, array in arrays.items()} for row in range(count)]
    quantized = nncf.quantize(model, nncf.Dataset(rows), subset_size=count, model_type=kind)
    openvino.save_model(quantized, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
