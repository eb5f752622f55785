"""Make models by hand: `python -m benches.models NAME ... -o DIR`; without names, all of them."""

import argparse
import time
from pathlib import Path

from benches.models.cost import cost_of
from benches.models.zoo import MAKERS, make


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.models", description="Make models for the benches.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    parser.add_argument("-o", "--out", type=Path, default=Path(".peers") / "models", metavar="DIR")
    options = parser.parse_args()
    for name in options.names or MAKERS:
        if name not in MAKERS:
            parser.error(f"unknown model {name!r}, expected one of {', '.join(MAKERS)}")
        started = time.monotonic()
        path = make(name, options.out)
        cost = cost_of(path)
        seconds = time.monotonic() - started
        print(
            f"{path}  {cost.parameters / 1e6:.2f} M parameters  {cost.multiplications / 1e9:.2f} GMAC  "
            f"{cost.nodes} nodes  {seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
