"""From data to the chosen form, on a network made by script and on a trained one."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import InvalidArgument
from penstock.graph import load, optimize
from penstock.quantize import SCHEMES, Calibration, Recipe, improve, layers, pick, polish, recipes
from penstock.quantize.observe import runner
from tests.quantize.networks import Builder, answers, cosine, pictures, residual

NAMES = ["mse", "minmax", "percentile", "kl"]


def test_there_is_a_form_for_every_scheme_and_method() -> None:
    made = list(recipes(residual(), pictures(4)))
    assert [each.name for each in made] == [f"int8-{name}" for name in NAMES] + [f"int8-{name}-both" for name in NAMES]
    by_name = {each.name: each for each in made}
    assert by_name["int8-kl"].candidates > 100 * len(by_name["int8-kl"].ranges)
    assert by_name["int8-minmax"].candidates == len(by_name["int8-minmax"].ranges)


def test_the_closest_form_on_held_out_data_is_picked() -> None:
    model = residual()
    calibration, held_out = pictures(10).split()
    expected = {id(sample): answer for sample, answer in zip(held_out, answers(model, held_out), strict=True)}
    made = list(recipes(model, calibration, schemes=[SCHEMES["inputs"]]))
    picked = pick(made, held_out, lambda sample: {"fc": expected[id(sample)]})
    assert picked.cosines.keys() == {each.name for each in made}
    assert picked.cosine == max(picked.cosines.values()) == picked.cosines[picked.recipe.name]
    for each in made:
        measured = cosine(list(expected.values()), answers(each.model, held_out))
        assert picked.cosines[each.name] == pytest.approx(measured, abs=1e-6)


def test_a_recipe_can_keep_layers_in_float() -> None:
    model, data = residual(), pictures(4)
    made = next(recipes(model, data, methods=["minmax"]))
    kept = made.keeping(layers(model))
    for before, after in zip(answers(model, data), answers(kept.model, data), strict=True):
        np.testing.assert_array_equal(before, after)


def test_variations_are_named_after_what_was_changed() -> None:
    model, data = residual(), pictures(6)
    base = next(recipes(model, data, methods=["mse"]))
    made: list[Recipe] = list(improve(base, model, data))
    made += polish(base, data)
    suffixes = ("equalized", "smoothed", "corrected", "rounded", "rounded-corrected")
    assert [each.name for each in made] == [f"int8-mse-{suffix}" for suffix in suffixes]
    for each in made:
        assert cosine(answers(model, data), answers(each.model, data)) > 0.99


def test_a_model_without_layers_gives_no_form() -> None:
    b = Builder()
    model = b.model(["n", 4], b.node("Relu", ["x"], "y"), ["n", 4])
    data = Calibration(({"x": np.ones((1, 4), np.float32)},))
    assert list(recipes(model, data)) == []
    with pytest.raises(InvalidArgument, match="no layer that can be quantized"):
        pick([], data, lambda sample: sample)


def _lines(count: int) -> Calibration:
    """Rendered text for the recogniser: [1, 3, 48, 320] in [-1, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    font = ImageFont.truetype(str(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"), 28)
    samples = []
    for index in range(count):
        image = Image.new("L", (320, 48), 235)
        ImageDraw.Draw(image).text((6, 8), f"Line {index * 37 % 101} of {count}", font=font, fill=10 + 3 * index)
        pixels = np.asarray(image, np.float32) / 127.5 - 1
        samples.append({"x": np.broadcast_to(pixels, (1, 3, 48, 320)).copy()})
    return Calibration(tuple(samples))


@pytest.mark.slow
def test_a_trained_recogniser_reads_nearly_the_same_in_eight_bits() -> None:
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        pytest.skip("rapidocr, which carries the model, is not installed")
    source = load(Path(spec.origin).parent / "models" / "PP-OCRv6_rec_small.onnx")
    name = source.graph.outputs[0].name or ""
    calibration, held_out = _lines(15).split()
    with runner(source, [name]) as run:
        expected = [run(sample)[name] for sample in held_out]
    model = optimize(source).model
    # 57 convolutions less ten of squeeze-and-excitation, and nine products.
    assert len(layers(model)) == 56
    for form in recipes(model, calibration, methods=["percentile"]):
        with runner(form.model, [name]) as run:
            found = [run(sample)[name] for sample in held_out]
        agreement = np.mean([a.argmax(-1) == b.argmax(-1) for a, b in zip(expected, found, strict=True)])
        assert agreement > 0.95, form.name
