"""Penstock's side of the comparison: model `ident`, y = 2x on float32[-1, 16], one instance, batches of up to 64.

It promises the same model as the peers' scripts in `peers/`: --sleep SECONDS makes each batch sleep (the batching
workload), --big serves y = x[:, :, 0, 0] on float32[-1, 3, 224, 224] under the same name instead. Started by
`harness/servers.py`; by hand: `.venv/bin/python benches/serve_double.py --http-port 8000 --grpc-port 8001`.
"""

import argparse
import time

import numpy as np
import numpy.typing as npt

import penstock as ps

Floats = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the model of the side-by-side comparison.")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--sleep", type=float, default=0.0, metavar="SECONDS", help="each batch sleeps this long")
    parser.add_argument("--big", action="store_true", help="602 KB images instead of 16 floats")
    options = parser.parse_args()
    sleep: float = options.sleep

    @ps.model(name="ident", max_batch_size=64, instances=1, inputs={"x": ps.F32[16]}, outputs={"y": ps.F32[16]})
    def double(x: Floats) -> Floats:
        if sleep:
            time.sleep(sleep)
        return x * 2

    @ps.model(name="ident", max_batch_size=16, instances=1, inputs={"x": ps.F32[3, 224, 224]}, outputs={"y": ps.F32[3]})
    def corner(x: Floats) -> Floats:
        return x[:, :, 0, 0]

    server = ps.Server(http_port=options.http_port, grpc_port=options.grpc_port, metrics_port=None)
    server.add(corner if options.big else double)
    server.run()


if __name__ == "__main__":
    main()
