"""What the GPU says of itself: clock, power and temperature by nvidia-smi, nothing where there is none. Only asks.

Called by `points` before and after each point, so that a figure taken on a throttled chip shows.
"""

import subprocess
from typing import Final

from benches.gpu.results import Gauge

_QUERY: Final = "clocks.sm,power.draw,temperature.gpu"


def gauge(moment: str, device: str) -> tuple[Gauge, ...]:
    """One, or none where nvidia-smi does not answer."""
    if not device.startswith("cuda"):
        return ()
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        clock, power, temperature = (float(each) for each in said.strip().split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    return (Gauge(moment, clock, power, temperature),)
