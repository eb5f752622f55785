"""The time of a build."""

import subprocess
import sys

from penstock.build.budget import Budget


def test_what_is_left_is_never_less_than_nothing() -> None:
    Budget(1.0)  # the first of a process may count what it waited for
    found = Budget(0.0)
    assert found.left == 0.0
    assert Budget(60.0).share(0.5) <= 30.0


def test_the_first_build_of_a_process_counts_what_it_imported() -> None:
    program = (
        "from penstock.build.budget import Budget; import penstock.build; "
        "found = [Budget(1000.0) for _ in range(2)]; print(*(each.spent for each in found))"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    first, second = map(float, told.stdout.split())
    assert second < 0.01 < first
