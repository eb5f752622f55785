"""A server for `read_line`, as a process of its own: `python -m examples.ocr.serve`.

Promises: listens on free ports of 127.0.0.1 and prints them as one JSON line once it answers; ends when its standard
input does, so it cannot outlive whoever started it (in a terminal: Ctrl-D). Started by `demo`. A real deployment gives
fixed ports and calls `server.run()`, which blocks until SIGTERM.
"""

import json
import sys

import penstock as ps
from examples.ocr.model import read_line, recogniser


def main() -> None:
    recogniser()  # loaded before the ports open: the first request should not pay for it
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None)
    server.add(read_line)
    with server:
        print(json.dumps({"http_port": server.http_port, "grpc_port": server.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
