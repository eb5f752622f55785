"""The padding rule from end to end: requests of near sizes share a batch, and each gets the answer of its own size.

Batches are made certain, not likely: the policy waits for exactly as many requests as a test sends.
"""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import penstock as ps
from examples.ocr.lines import rendered_lines
from examples.ocr.metrics import character_error_rate
from examples.ocr.model import alphabet_of, recogniser_path
from examples.ocr.reader import greedy_ctc, scaled_line
from penstock.errors import PenstockError
from tests.serve.calls import SECONDS, Array, Client, at_once, batch_sizes, eventually, infer, serving, waiting

# Long enough that only the wanted number of requests sends a batch; a test that shares none takes this long and fails.
DELAY_US = 3_000_000
FILLER = -1.0
CLIENTS = 16
# Of the recogniser: so many that neighbours by width fit into one batch.
LINES, BATCH = 16, 4


def together(count: int) -> ps.DynamicBatching:
    return ps.DynamicBatching(max_queue_delay_us=DELAY_US, preferred_batch_sizes=(count,))


def ask_for(client: Client, arrays: dict[str, Array]) -> dict[str, Array]:
    client.send("m", arrays)
    return client.answer().arrays


def send_all(server: ps.Server, requests: Sequence[dict[str, Array]]) -> list[dict[str, Array]]:
    """All at once, each from a client of its own; the answers in the order of the requests."""
    answers: list[dict[str, Array]] = [{} for _ in requests]

    def ask(client: Client, number: int) -> None:
        answers[number] = ask_for(client, requests[number])

    at_once(server, ask, len(requests))
    return answers


def column_sums(x: Array) -> Array:
    """[n, 3, W] -> [n, W]: sums of columns, plus the row's own width, told by where the filler starts."""
    width = (x[:, 0] != FILLER).sum(axis=1, dtype=np.float32)
    return np.asarray(x.sum(axis=1) + width[:, None], np.float32)


@pytest.mark.parametrize("multiple", [1, 8, 32])
@pytest.mark.parametrize("widths", [(10,), (10, 10, 10), (10, 11, 12, 20), (31, 32, 33, 60), (16, 32), (1, 2)], ids=str)
def test_each_answer_is_that_of_its_own_width(rng: np.random.Generator, widths: tuple[int, ...], multiple: int) -> None:
    seen: list[tuple[int, ...]] = []

    @ps.model(
        name="m",
        max_batch_size=len(widths),
        inputs={"x": ps.F32[3, -1]},
        outputs={"y": ps.F32[-1], "wide": ps.I64[1]},
        padding={
            "inputs": {"x": {"axis": 2, "multiple": multiple, "value": FILLER}},
            "outputs": {"y": {"axis": 1, "divisor": 1}},
        },
        dynamic_batching=together(len(widths)),
    )
    def model(x: Array) -> dict[str, Array]:
        seen.append(x.shape)
        return {"y": column_sums(x), "wide": np.full((len(x), 1), x.shape[2], np.int64)}

    requests = [{"x": rng.random((1, 3, width), np.float32)} for width in widths]
    with serving(model) as server, Client(server) as client:
        answers = send_all(server, requests)
        assert batch_sizes(client.statistics("m")) == {len(widths): 1}
    padded = math.ceil(max(widths) / multiple) * multiple
    assert seen == [(len(widths), 3, padded)]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], column_sums(request["x"]))
        # An output that no rule names is left as it is.
        assert answer["wide"].tolist() == [[padded]]


def test_mixed_widths_and_rows_share_batches_under_load(rng: np.random.Generator) -> None:
    """With the automatic policy: whatever batches come about, each answer is that of its own request.

    A request of its own keeps the model busy until the first of every client waits behind it. Those are of near widths
    and two rows at least, so that requests must share a batch; what follows is left to chance.
    """
    entered, opened = threading.Event(), threading.Event()
    rows: list[int] = []

    @ps.model(
        name="m",
        max_batch_size=32,
        inputs={"x": ps.F32[3, -1]},
        outputs={"y": ps.F32[-1]},
        padding={"inputs": {"x": {"axis": 2, "multiple": 8, "value": FILLER}}, "outputs": {"y": {"axis": 1}}},
    )
    def model(x: Array) -> Array:
        entered.set()
        assert opened.wait(SECONDS)
        rows.append(len(x))
        return column_sums(x)

    shapes = [*rng.integers((2, 30), (4, 60), (CLIENTS, 2)), *rng.integers((1, 20), (4, 60), (160 - CLIENTS, 2))]
    requests = [rng.random((int(n), 3, int(w)), np.float32) for n, w in shapes]

    def ask(client: Client, number: int) -> None:
        for x in requests[number::CLIENTS]:
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], column_sums(x))

    def open_when_all_wait(server: ps.Server) -> None:
        try:
            eventually("the first request of every client waits", lambda: waiting(server, "m") == CLIENTS)
        finally:
            opened.set()

    with serving(model, metrics_port=0) as server, Client(server) as client, ThreadPoolExecutor(1) as pool:
        client.send("m", {"x": requests[0]})
        assert entered.wait(SECONDS)
        opening = pool.submit(open_when_all_wait, server)
        at_once(server, ask, CLIENTS)
        opening.result()
        np.testing.assert_array_equal(client.answer().arrays["y"], column_sums(requests[0]))
        sizes = batch_sizes(client.statistics("m"))
    sent = len(requests[0]) + sum(len(x) for x in requests)
    assert max(sizes) > 3, f"no requests shared a batch: {sizes}"
    assert sum(size * count for size, count in sizes.items()) == sent == sum(rows)


@pytest.mark.parametrize(
    ("widths", "batches"),
    [((10, 20), 1), ((10, 21), 2), ((21, 10), 2), ((100, 300), 2), ((0, 1), 1)],
    ids=["twice", "more than twice", "less than half", "three times", "nothing and one"],
)
def test_far_widths_do_not_share_a_batch(widths: tuple[int, int], batches: int) -> None:
    """Padding to more than twice the size wastes more than a batch gains."""
    seen: list[int] = []

    @ps.model(
        name="m",
        max_batch_size=4,
        inputs={"x": ps.F32[1, -1]},
        outputs={"y": ps.F32[1]},
        padding={"inputs": {"x": {"axis": 2}}},
        dynamic_batching=ps.DynamicBatching(max_queue_delay_us=200_000, preferred_batch_sizes=(2,)),
    )
    def model(x: Array) -> Array:
        seen.append(len(x))
        return np.asarray(x.sum(axis=2))

    with serving(model) as server:
        answers = send_all(server, [{"x": np.ones((1, 1, width), np.float32)} for width in widths])
    assert [answer["y"].item() for answer in answers] == list(widths)
    assert len(seen) == batches


def areas(x: Array) -> Array:
    """[n, H, W] -> [n, 2]: the sum, and how many elements are no filler."""
    return np.stack([np.where(x == FILLER, 0, x).sum(axis=(1, 2)), (x != FILLER).sum(axis=(1, 2))], 1).astype(
        np.float32
    )


def test_several_axes_are_padded(rng: np.random.Generator) -> None:
    seen: list[tuple[int, ...]] = []

    @ps.model(
        name="m",
        max_batch_size=3,
        inputs={"x": ps.F32[-1, -1]},
        outputs={"y": ps.F32[2]},
        padding={
            "inputs": {"x": [{"axis": 1, "multiple": 4, "value": FILLER}, {"axis": 2, "multiple": 8, "value": FILLER}]}
        },
        dynamic_batching=together(3),
    )
    def model(x: Array) -> Array:
        seen.append(x.shape)
        return areas(x)

    requests = [{"x": rng.random((1, *shape), np.float32)} for shape in [(5, 30), (7, 17), (9, 20)]]
    with serving(model) as server:
        answers = send_all(server, requests)
    assert seen == [(3, 12, 32)]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer["y"], areas(request["x"]), rtol=1e-6)


def test_an_output_is_cut_back_along_several_axes_or_the_rule_is_refused(rng: np.random.Generator) -> None:
    """As a text detector's map needs it. Never may an answer come back with another request's size."""

    def load() -> ps.ModelFunction:
        return ps.model(
            name="m",
            max_batch_size=2,
            inputs={"x": ps.F32[-1, -1]},
            outputs={"y": ps.F32[-1, -1]},
            padding={"inputs": {"x": [{"axis": 1}, {"axis": 2}]}, "outputs": {"y": [{"axis": 1}, {"axis": 2}]}},
            dynamic_batching=together(2),
        )(lambda x: x + 1)

    requests = [{"x": rng.random((1, *shape), np.float32)} for shape in [(5, 30), (7, 17)]]
    try:
        with serving(load()) as server:
            answers = send_all(server, requests)
    except PenstockError as error:
        assert "padding" in error.message  # noqa: PT017  (either outcome is right)
        return
    assert [answer["y"].shape for answer in answers] == [request["x"].shape for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], request["x"] + 1)


def test_each_padded_axis_may_have_its_own_value_or_the_rule_is_refused() -> None:
    """The corner belongs to either; the sides are told apart."""
    model = ps.model(
        name="m",
        max_batch_size=1,
        inputs={"x": ps.F32[-1, -1]},
        outputs={"y": ps.F32[-1, -1]},
        padding={"inputs": {"x": [{"axis": 1, "multiple": 2, "value": 5}, {"axis": 2, "multiple": 2, "value": 7}]}},
    )(lambda x: x)
    try:
        with serving(model) as server:
            answer = infer(server, "m", x=np.zeros((1, 1, 1), np.float32)).arrays["y"]
    except PenstockError as error:
        assert "padding" in error.message  # noqa: PT017  (either outcome is right)
        return
    assert (answer[0, 1, 0], answer[0, 0, 1]) == (5, 7)


def test_several_inputs_are_padded_each_by_its_own_rule(rng: np.random.Generator) -> None:
    """Token ids and their mask: int64 filled with 3, int32 with 0; the output follows the first."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    @ps.model(
        name="m",
        max_batch_size=4,
        inputs={"ids": ps.I64[-1], "mask": ps.I32[-1]},
        outputs={"y": ps.I64[-1, 2], "padding": ps.I64[1]},
        padding={
            "inputs": {"ids": {"axis": 1, "multiple": 4, "value": 3}, "mask": {"axis": 1, "multiple": 4, "value": 0}},
            "outputs": {"y": {"axis": 1, "divisor": 1}},
        },
        dynamic_batching=together(4),
    )
    def model(ids: Array, mask: Array) -> dict[str, Array]:
        seen.append((ids.shape, mask.shape))
        assert set(ids[mask == 0].tolist()) <= {3}
        return {"y": np.stack([ids * mask, ids], axis=2), "padding": (mask == 0).sum(axis=1, keepdims=True)}

    requests: list[dict[str, Array]] = [
        {"ids": rng.integers(100, 1000, (1, n)), "mask": np.ones((1, n), np.int32)} for n in (8, 9, 10, 13)
    ]
    with serving(model) as server:
        answers = send_all(server, requests)
    assert seen == [((4, 16), (4, 16))]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], np.stack([request["ids"]] * 2, axis=2))
        assert answer["padding"].item() == 16 - request["ids"].shape[1]


@pytest.mark.parametrize(
    ("type_", "value"),
    [(ps.U8, 255), (ps.I8, -128), (ps.I64, -(2**53)), (ps.F16, 0.1), (ps.F16, -65504), (ps.F64, 1e300), (ps.Bool, 1)],
    ids=str,
)
def test_the_filler_is_exact_in_every_type(type_: ps.TensorType, value: float) -> None:
    model = ps.model(
        name="m",
        max_batch_size=2,
        inputs={"x": type_[-1]},
        outputs={"y": type_[-1]},
        padding={"inputs": {"x": {"axis": 1, "multiple": 5, "value": value}}},
    )
    with serving(model(lambda x: x)) as server:
        answer = infer(server, "m", x=np.zeros((2, 3), type_.dtype)).arrays["y"]
    expected = np.zeros((2, 5), type_.dtype)
    expected[:, 3:] = np.array(value).astype(type_.dtype)
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("multiple", [8, 32])
def test_the_recogniser_reads_lines_of_mixed_widths_in_one_batch(multiple: int) -> None:
    """Rendered lines of text, each of its own width, in full batches of near widths.

    Shapes are exactly those of the line alone. Values can't be: the recogniser's attention sees the filler, which
    shifts class probabilities everywhere; on a blurred line a full stop may become a comma. So against the line's own
    answer: at most one character in a hundred differs, and at nine positions in ten at least the best class is the
    same (a mistake of rows or strides leaves hardly any). A line as wide as its batch has no filler, and differs by
    rounding only.
    """
    runtime = ps.load(recogniser_path(), runtime="onnxruntime", threads=1)
    (source,), (target,) = runtime.inputs, runtime.outputs
    classes = target.shape[2]
    alphabet = alphabet_of(recogniser_path())
    seen: list[tuple[int, ...]] = []

    @ps.model(
        name="m",
        max_batch_size=BATCH,
        inputs={"x": ps.F32[3, 48, -1]},
        outputs={"y": ps.F32[-1, classes]},
        padding={"inputs": {"x": {"axis": 3, "multiple": multiple}}, "outputs": {"y": {"axis": 1, "divisor": 8}}},
        dynamic_batching=together(BATCH),
    )
    def model(x: Array) -> Array:
        seen.append(x.shape)
        return np.asarray(runtime(**{source.name: x})[target.name])

    pictures = sorted((scaled_line(line.encoded) for line in rendered_lines(LINES)), key=lambda each: each.shape[1])
    lines = [normalised(picture) for picture in pictures]
    batches = [lines[start : start + BATCH] for start in range(0, LINES, BATCH)]
    with serving(model) as server:
        answers = [send_all(server, [{"x": line} for line in batch]) for batch in batches]
    agreeing, texts = [], []
    for shape, batch, answered in zip(seen, batches, answers, strict=True):
        assert shape == (BATCH, 3, 48, math.ceil(batch[-1].shape[3] / multiple) * multiple)
        for line, answer in zip(batch, answered, strict=True):
            positions = math.ceil(line.shape[3] / 8)
            own = np.pad(line, ((0, 0), (0, 0), (0, 0), (0, positions * 8 - line.shape[3])))
            alone = runtime(**{source.name: own})[target.name]
            assert answer["y"].shape == alone.shape == (1, positions, classes)
            agreeing.append((answer["y"].argmax(2) == alone.argmax(2)).mean())
            texts.append([greedy_ctc(y[0].argmax(1), y[0].max(1), alphabet).text for y in (answer["y"], alone)])
            if own.shape[3] == shape[3]:
                np.testing.assert_allclose(answer["y"], alone, atol=1e-4)
    assert min(agreeing) >= 0.9, agreeing
    batched, single = zip(*texts, strict=True)
    assert character_error_rate(single, batched) <= 0.01, texts


def normalised(picture: Array) -> Array:
    """[48, W, 3] of bytes -> [1, 3, 48, W] in -1..1, as the recogniser wants it."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / 127.5 - 1


@pytest.mark.parametrize(
    ("padding", "words"),
    [
        ({}, "expected"),
        ({"inputs": {"z": {"axis": 2}}}, "'z'"),
        ({"inputs": {"x": {"axis": 0}}}, "axis is 0"),
        ({"inputs": {"x": {"axis": 1}}}, "fixed size 3"),
        ({"inputs": {"x": {"axis": 2, "multiple": 0}}}, "multiple is 0"),
        ({"inputs": {"x": {"axis": 2, "value": float("nan")}}}, "padding"),
        ({"inputs": {"x": {"axis": 2, "divisor": 1}}}, "object of"),
        ({"inputs": {"x": [{"axis": 2}, {"axis": 2}]}}, "twice"),
        ({"inputs": {"x": {"axis": 2}}, "outputs": {"y": {"axis": 1, "divisor": 0}}}, "divisor is 0"),
    ],
    ids=lambda each: str(each)[:60],
)
def test_a_rule_that_fits_nothing_fails_the_load(padding: dict[str, Any], words: str) -> None:
    model = ps.model(name="m", inputs={"x": ps.F32[3, -1]}, outputs={"y": ps.F32[-1]}, padding=padding)
    with pytest.raises(PenstockError, match="padding") as caught, serving(model(column_sums)):
        pass
    assert words in str(caught.value)
