"""A server for `read_line`, as a process of its own: `python -m examples.ocr.serve [--engine FILE]`.

Promises: listens on free ports of 127.0.0.1 and prints them as one JSON line once it answers; ends when its standard
input does, so it cannot outlive whoever started it (in a terminal: Ctrl-D). Started by `servers`. A real deployment
gives fixed ports and calls `server.run()`, which blocks until SIGTERM.
"""

import argparse
import json
import sys
from pathlib import Path

import penstock as ps
from examples.ocr.model import line_reader


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m examples.ocr.serve")
    arguments.add_argument("--engine", type=Path, help="built of the recogniser; without it, the ONNX file as it is")
    model = line_reader(arguments.parse_args().engine)  # before the ports open: no request should pay for it
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None)
    server.add(model)
    with server:
        print(json.dumps({"http_port": server.http_port, "grpc_port": server.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
