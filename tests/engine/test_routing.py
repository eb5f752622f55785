"""Which program runs which rows: exact, padded up or split, by what buckets cost; what is loaded in little memory."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from penstock.engine import fingerprint
from penstock.engine.fitting import fitting
from penstock.engine.plan import Bucket, Manifest, Profile, Program, Tactic, bytes_together
from penstock.engine.routing import Route, Step, route
from penstock.errors import InvalidArgument, ResourceExhausted
from penstock.tensors import TensorSpec

DYNAMIC = Program(Tactic("onnxruntime", "fp32"), "artifacts/d.onnx", bytes=100)
HERE = fingerprint.here()


def static(rows: int, width: int = 8) -> Program:
    tactic = Tactic("openvino", "fp32", shapes="static")
    return Program(tactic, f"artifacts/{rows}.blob", {"x": (rows, width)}, bytes=10)


def engine(
    programs: Sequence[Program],
    buckets: Sequence[tuple[int, int, float]],
    most: int = 64,
    width: tuple[int, int] = (8, 8),
) -> Manifest:
    """Buckets are (rows, program, microseconds) at 8 columns."""
    low, high = width
    return Manifest(
        name="m",
        inputs=(TensorSpec("x", "FP32", (-1, -1)),),
        outputs=(TensorSpec("y", "FP32", (-1, 3)),),
        profiles=(Profile({"x": (1, low)}, {"x": (1, 8)}, {"x": (most, high)}),),
        programs=tuple(programs),
        buckets=tuple(Bucket({"x": (rows, 8)}, program, time) for rows, program, time in buckets),
        regions=(),
        fingerprint=HERE,
        precision="fp32",
        source_hash="",
    )


def runs(manifest: Manifest, rows: int, width: int = 8) -> list[tuple[int, int, int]]:
    """(program, rows taken, rows run) of each step, once the steps are seen to cover every row once and in order."""
    found = route(manifest, {"x": (rows, width)})
    at = 0
    for step in found.steps:
        assert step.first == at < step.last <= step.first + step.rows
        at = step.last
    assert at == rows
    return [(step.program, step.last - step.first, step.rows) for step in found.steps]


STATICS = engine([static(1), static(8), static(64)], [(1, 0, 10), (8, 1, 40), (64, 2, 200)])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, [(0, 1, 1)]),
        (8, [(1, 8, 8)]),
        (64, [(2, 64, 64)]),
        (2, [(0, 1, 1)] * 2),  # 20 against 40 for a padded eight
        (3, [(0, 1, 1)] * 3),
        (5, [(1, 5, 8)]),  # 40 against 50
        (7, [(1, 7, 8)]),
        (9, [(1, 8, 8), (0, 1, 1)]),
        (33, [(1, 8, 8)] * 4 + [(0, 1, 1)]),  # 170 against 200
        (40, [(2, 40, 64)]),  # a tie of 200: one run, not five
        (63, [(2, 63, 64)]),
        (65, [(2, 64, 64), (0, 1, 1)]),
        (200, [(2, 64, 64)] * 3 + [(1, 8, 8)]),
    ],
)
def test_static_programs_are_padded_up_to_or_split_by_cost(rows: int, expected: list[tuple[int, int, int]]) -> None:
    assert sorted(runs(STATICS, rows)) == sorted(expected)


def test_no_other_way_is_cheaper() -> None:
    """Against every way there is, for buckets at random: the cost of n rows is the least over all first runs."""
    random.seed(0)
    for _ in range(30):
        sizes = sorted(random.sample(range(1, 20), 3))
        times = [random.uniform(1, 5) * size**0.7 for size in sizes]
        manifest = engine([static(n) for n in sizes], [(n, at, times[at]) for at, n in enumerate(sizes)], sizes[-1])
        best = [0.0]
        for n in range(1, sizes[-1] + 1):
            best.append(min(time + best[max(0, n - size)] for size, time in zip(sizes, times, strict=True)))
        for rows in range(1, sizes[-1] + 1):
            cost = sum(times[program] for program, _, _ in runs(manifest, rows))
            exact = rows in sizes
            assert cost == pytest.approx(times[sizes.index(rows)] if exact else best[rows])


def test_a_dynamic_program_runs_the_exact_rows() -> None:
    manifest = engine([DYNAMIC], [(1, 0, 10), (64, 0, 300)])
    for rows in (1, 2, 63, 64):
        assert runs(manifest, rows) == [(0, rows, rows)]
    assert runs(manifest, 130) == [(0, 64, 64), (0, 64, 64), (0, 2, 2)]


def test_a_bucket_takes_the_program_that_won_it_and_others_the_cheaper_estimate() -> None:
    manifest = engine([static(1), DYNAMIC, static(32)], [(1, 0, 10), (8, 1, 60), (32, 2, 100), (64, 1, 400)])
    assert runs(manifest, 1) == [(0, 1, 1)]
    assert runs(manifest, 8) == [(1, 8, 8)]
    assert runs(manifest, 10) == [(1, 10, 10)]  # about 72: a padded 32 is 100
    assert runs(manifest, 30) == [(2, 30, 32)]  # about 194 for the exact rows
    assert runs(manifest, 64) == [(1, 64, 64)]  # measured, though two of 32 look cheaper
    assert runs(manifest, 63) == [(2, 32, 32), (2, 31, 32)]


def test_other_widths_go_to_a_dynamic_program() -> None:
    manifest = engine([static(4), DYNAMIC], [(4, 0, 10), (8, 1, 60)], most=8, width=(4, 16))
    assert runs(manifest, 4, 16) == [(1, 4, 4)]
    assert runs(manifest, 4, 8) == [(0, 4, 4)]
    assert runs(manifest, 3, 8) == [(0, 3, 4)]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3), r"shapes x \[1, 3\] are outside what the engine was built for: x \[1, 4\] to x \[8, 16\]"),
        ((1, 17), r"shapes x \[1, 17\] are outside"),
        ((0, 8), "expected at least one row"),
    ],
)
def test_shapes_outside_every_profile_are_refused_with_its_limits(shape: tuple[int, ...], message: str) -> None:
    manifest = engine([DYNAMIC], [(8, 0, 60)], most=8, width=(4, 16))
    with pytest.raises(InvalidArgument, match=message):
        route(manifest, {"x": shape})


def test_a_shape_within_a_profile_that_nothing_was_prepared_for_is_refused_with_what_was() -> None:
    manifest = engine([static(4)], [(4, 0, 10)], most=8, width=(4, 16))
    with pytest.raises(InvalidArgument, match=r"prepared are x \[4, 8\]"):
        route(manifest, {"x": (4, 9)})


def test_several_profiles_are_each_taken() -> None:
    manifest = engine([DYNAMIC], [(1, 0, 10)], most=4)
    wide = Profile({"x": (1, 100)}, {"x": (1, 100)}, {"x": (2, 200)})
    both = replace(manifest, profiles=(*manifest.profiles, wide))
    assert runs(both, 5, 8) == [(0, 4, 4), (0, 1, 1)]
    assert runs(both, 5, 150) == [(0, 2, 2), (0, 2, 2), (0, 1, 1)]
    with pytest.raises(InvalidArgument, match=r"to x \[4, 8\]; or x \[1, 100\] to x \[2, 200\]"):
        route(both, {"x": (1, 50)})


def test_a_great_many_rows_are_planned_quickly() -> None:
    found = route(STATICS, {"x": (1_000_000, 8)})
    assert len(found.steps) == 1_000_000 // 64
    assert found.steps[-1] == Step(2, 999_936, 1_000_000, 64)


def inputs(*specs: TensorSpec) -> Manifest:
    shapes = {spec.name: tuple(4 if size == -1 else size for size in spec.shape) for spec in specs}
    least = {name: (1, *shape[1:]) if shape else shape for name, shape in shapes.items()}
    profile = Profile(least, shapes, shapes)
    return replace(engine([DYNAMIC], []), inputs=specs, profiles=(profile,))


@pytest.mark.parametrize(
    "specs",
    [
        (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (3,))),
        (TensorSpec("a", "FP32", (-1,), axes=("n",)), TensorSpec("b", "FP32", (-1,), axes=("m",))),
        (TensorSpec("a", "FP32", (-1,), axes=("n",)), TensorSpec("b", "FP32", (-1, -1), axes=("n", "n"))),
        (TensorSpec("a", "FP32", ()),),
    ],
)
def test_without_a_batch_dimension_a_call_is_run_as_it_is(specs: tuple[TensorSpec, ...]) -> None:
    manifest = inputs(*specs)
    exact = dict(manifest.profiles[0].optimum)
    assert route(manifest, exact) == Route((Step(0, 0, 0, 0),), False)
    more = {name: (5, *shape[1:]) if shape else shape for name, shape in exact.items()}
    if more != exact:
        with pytest.raises(InvalidArgument, match="outside"):
            route(manifest, more)


def test_inputs_of_different_rows_are_refused() -> None:
    manifest = inputs(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1,)))
    with pytest.raises(InvalidArgument, match=r"different numbers of rows: a \[2, 2\], b \[3\]"):
        route(manifest, {"a": (2, 2), "b": (3,)})


# ---- memory ----

MIXED = engine([static(1), DYNAMIC, static(8)], [(1, 0, 10), (8, 2, 40), (64, 1, 300)])  # 10, 100 and 10 bytes


@pytest.mark.parametrize(("limit", "expected"), [(None, (0, 1, 2)), (120, (0, 1, 2)), (119, (1, 2)), (100, (1,))])
def test_programs_that_others_can_stand_in_for_are_left_out(limit: int | None, expected: tuple[int, ...]) -> None:
    assert fitting(MIXED, limit) == expected
    for rows in (1, 7, 8, 64):
        assert {step.program for step in route(MIXED, {"x": (rows, 8)}, frozenset(expected)).steps} <= set(expected)


def test_an_engine_that_can_not_fit_says_what_it_needs() -> None:
    with pytest.raises(ResourceExhausted, match=r"engine 'm' needs 100 bytes at least, the limit is 99"):
        fitting(MIXED, 99)
    assert fitting(STATICS, 10) == (2,)  # every row count can be padded up to the largest
    with pytest.raises(ResourceExhausted, match="needs 10 bytes"):
        fitting(STATICS, 9)


def test_weights_on_a_device_count_once_and_contexts_as_often_as_there_are() -> None:
    """Two buckets of 1000 bytes of weights, 10 of their own and 100 or 400 a context."""
    tactic = Tactic("cuda", "fp16", "lowered", "static")
    programs = [
        Program(tactic, f"artifacts/{rows}.steps", {"x": (rows, 8)}, 1000 + 10 + context, (), False, 1000, context)
        for rows, context in ((1, 100), (8, 400))
    ]
    assert bytes_together(programs) == 1000 + 2 * 10 + 500
    assert bytes_together(programs, contexts=3) == 1000 + 2 * 10 + 3 * 500
    assert bytes_together(programs[:1]) == 1110
    manifest = engine(programs, [(1, 0, 10), (8, 1, 40)])
    assert fitting(manifest, 1520) == (0, 1)
    assert fitting(manifest, 1519) == (1,)
    assert fitting(manifest, 1520, contexts=3) == (0,)  # row by row, rather than not at all
    with pytest.raises(ResourceExhausted, match="needs 1310 bytes at least"):
        fitting(manifest, 1300, contexts=3)
