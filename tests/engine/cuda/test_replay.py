"""Launches played back in order: which are taken, which refused. The driver's part is left out, which needs a GPU."""

import gc
from dataclasses import dataclass, field, replace

import pytest

from penstock.engine.cuda.kernels import replay
from penstock.engine.cuda.kernels.driver import SealedKernel
from penstock.engine.cuda.kernels.replay import Player, Recorder, launching


@dataclass(frozen=True)
class Launch:
    """What a kernel's launch is to a launcher."""

    symbol: str
    grid: tuple[int, int, int] = (1, 1, 1)
    address: int = 0

    def seal(self, capability: int) -> SealedKernel:
        return SealedKernel(f"{self.symbol} for {capability}".encode(), f"{self.symbol}_0d1d", self.grid, 32, 0, "p")

    def bound(self) -> list[int | float]:
        return [self.address]


@dataclass(frozen=True)
class Unknown(Launch):
    """What the compiler refuses."""

    def seal(self, capability: int) -> SealedKernel:
        raise ValueError(f"{self.symbol} for {capability}: in no order")


@dataclass
class Driver:
    loaded: list[bytes]
    unloaded: list[bytes]
    launched: list[tuple[str, int | float, int]]
    early: list[bool] = field(default_factory=list)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver([], [], [])

    class Module:
        def __init__(self, cubin: bytes) -> None:
            self.cubin = cubin
            found.loaded.append(cubin)

        def close(self) -> None:
            found.unloaded.append(self.cubin)

    class Kernel:
        def __init__(self, sealed: SealedKernel, module: Module) -> None:
            assert module.cubin == sealed.cubin
            self.sealed = sealed

        def launch(self, arguments: list[int | float], stream: int, *, early: bool) -> None:
            found.launched.append((self.sealed.symbol, arguments[0], stream))
            found.early.append(early)

    monkeypatch.setattr(replay, "LoadedModule", Module)
    monkeypatch.setattr(replay, "LoadedKernel", Kernel)
    return found


STEPS = (Launch("conv"), Launch("pool", (4, 1, 1)), Launch("conv", (9, 1, 1)))


def recorded() -> tuple[SealedKernel, ...]:
    recorder = Recorder(89)
    with launching(recorder):
        for step in STEPS:
            current = replay.current()
            assert current is not None
            assert current.launch(step, 0)
    return recorder.kernels


def test_what_comes_for_the_first_time_is_sealed_and_launched_and_played_from_then_on(driver: Driver) -> None:
    recorder = Recorder(89)
    for number in range(2):
        with launching(recorder):
            for step in STEPS:
                assert recorder.launch(Launch(step.symbol, step.grid, number), 5)
    assert driver.loaded == [b"conv for 89", b"pool for 89"]
    assert len(recorder.kernels) == len(STEPS)
    assert [at for _, at, _ in driver.launched] == [0] * 3 + [1] * 3
    with pytest.raises(ValueError, match="was sealed, not pool"), launching(recorder):
        recorder.launch(STEPS[1], 5)


def test_a_run_that_broke_off_is_taken_down_from_there(driver: Driver) -> None:
    recorder = Recorder(89)
    with pytest.raises(ValueError, match="in no order"):
        play(recorder, (STEPS[0], Unknown("conv")))
    play(recorder, STEPS)
    assert [each.cubin for each in recorder.kernels] == [b"conv for 89", b"pool for 89", b"conv for 89"]
    assert driver.loaded == [b"conv for 89", b"pool for 89"]


def test_what_was_taken_down_is_played_back_with_the_addresses_of_now(driver: Driver) -> None:
    kernels = recorded()
    driver.loaded.clear()
    driver.launched.clear()
    assert [each.cubin for each in kernels] == [b"conv for 89", b"pool for 89", b"conv for 89"]
    player = Player(kernels)
    assert driver.loaded == [b"conv for 89", b"pool for 89"]
    for number in range(2):
        with launching(player):
            for step in STEPS:
                assert player.launch(Launch(step.symbol, step.grid, 100 + number), 7)
    assert driver.launched[3:] == [("conv_0d1d", 101, 7), ("pool_0d1d", 101, 7), ("conv_0d1d", 101, 7)]
    assert replay.current() is None


def test_some_launches_may_be_played_alone(driver: Driver) -> None:
    player = Player(recorded())
    driver.launched.clear()
    for _ in range(3):
        with launching(player, 1):
            player.launch(STEPS[1], 0)
    assert [symbol for symbol, _, _ in driver.launched] == ["pool_0d1d"] * 3


def play(player: Player, launches: tuple[Launch, ...]) -> None:
    with launching(player):
        for step in launches:
            player.launch(step, 0)


@pytest.mark.parametrize(
    ("launches", "words"),
    [
        ((STEPS[0], STEPS[2]), "pool_0d1d of .* was sealed, not conv"),
        ((Launch("conv", (2, 1, 1)),), "of \\(1, 1, 1\\) blocks"),
        ((*STEPS, STEPS[0]), "was not taken down"),
        (STEPS[:2], "2 kernels were launched, 3 were sealed"),
    ],
)
def test_other_launches_than_those_that_were_sealed_are_refused(
    launches: tuple[Launch, ...], words: str, driver: Driver
) -> None:
    player = Player(recorded())
    with pytest.raises(ValueError, match=words):
        play(player, launches)
    assert replay.current() is None


def test_machine_code_leaves_the_gpu_with_its_player(driver: Driver) -> None:
    kernels = recorded()
    gc.collect()
    driver.unloaded.clear()
    player = Player(kernels)
    assert not driver.unloaded
    del player
    gc.collect()
    assert sorted(driver.unloaded) == [b"conv for 89", b"pool for 89"]


def test_a_step_says_which_of_its_launches_wait_for_the_kernel_ahead(driver: Driver) -> None:
    recorder = Recorder(89)
    with launching(recorder):
        recorder.step(())
        recorder.launch(Early("a"), 0)
        recorder.step((1,))
        recorder.launch(Early("b"), 0)
        recorder.launch(Early("c"), 0)
    assert [each.pdl for each in recorder.kernels] == [True, True, False]
    recorder.relaunch((False, True, True))
    assert [each.pdl for each in recorder.kernels] == [False, True, True]
    with launching(recorder):
        for symbol in "abc":
            recorder.launch(Early(symbol), 0)
    assert len(recorder.kernels) == 3
    assert len(driver.loaded) == 3


@pytest.mark.parametrize("sealed", [False, True], ids=["recorded", "sealed"])
def test_in_company_what_waits_by_choice_is_launched_early_and_what_has_to_wait_is_not(
    sealed: bool, driver: Driver
) -> None:
    steps = (((), (Launch("never"),)), ((1,), (Early("at-once"), Early("waits"))))

    def run(player: Player, *, all_early: bool) -> list[bool]:
        driver.early.clear()
        with launching(player, all_early=all_early):
            for apart, launches in steps:
                player.step(apart)
                for each in launches:
                    player.launch(each, 0)
        return list(driver.early)

    player: Player = Recorder(89)
    assert run(player, all_early=False) == [False, True, False]
    if sealed:
        player = Player(player.kernels)
    assert run(player, all_early=True) == [False, True, True]
    assert run(player, all_early=False) == [False, True, False]


@dataclass(frozen=True)
class Early(Launch):
    """A launch that may begin before the kernel ahead has ended."""

    def seal(self, capability: int) -> SealedKernel:
        return replace(super().seal(capability), pdl=True)
