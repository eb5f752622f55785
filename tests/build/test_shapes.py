"""From `--shapes` to profiles and buckets, by tables."""

import re
from typing import Any

import pytest

from penstock.build.shapes import Asked, batched, buckets, parse_shapes, parse_trtexec, profiles
from penstock.engine.plan import Profile
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

IMAGE = TensorSpec("x", "FP32", (-1, 3, 8, 8), axes=("batch", None, None, None))
FIXED = TensorSpec("scale", "FP32", (4,))
IDS = TensorSpec("ids", "INT64", (-1, -1), axes=("batch", "tokens"))
MASK = TensorSpec("mask", "INT64", (-1,), axes=("batch",))
SQUARE = TensorSpec("square", "FP32", (-1, -1), axes=("tokens", "tokens"))


def same(*shape: int) -> tuple[tuple[int, ...], ...]:
    return (shape,) * 3


def sides(profile: Profile) -> dict[str, list[tuple[int, ...]]]:
    return {
        name: [side[name] for side in (profile.minimum, profile.optimum, profile.maximum)] for name in profile.minimum
    }


# ---- text ----


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("x:1x3x224x224", {"x": same(1, 3, 224, 224)}),
        ("x:1x3,8x3,64x3", {"x": ((1, 3), (8, 3), (64, 3))}),
        ("x:1x3,8x3,64x3;mask:1,8,64", {"x": ((1, 3), (8, 3), (64, 3)), "mask": ((1,), (8,), (64,))}),
        ("x:1x3x224x224,mask:1x5", {"x": same(1, 3, 224, 224), "mask": same(1, 5)}),
        ("x:1x3,8x3,64x3,mask:5", {"x": ((1, 3), (8, 3), (64, 3)), "mask": same(5)}),
        (" x : 1x3 ; y:2 ", {"x": same(1, 3), "y": same(2)}),
        ("input:0:1x3", {"input:0": same(1, 3)}),  # a name with a colon
        ("rate:scalar", {"rate": ((), (), ())}),
    ],
)
def test_shapes_are_read(text: str, ranges: dict[str, Any]) -> None:
    assert parse_shapes(text) == ranges


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no input name"),
        ("1x3x224x224", "no input name"),
        (":1x3", "a name is missing"),
        ("x:", "'' is no shape"),
        ("x:1x3x", "'1x3x' is no shape"),
        ("x:1X3", "'1X3' is no shape"),
        ("x:1,3,-1", "'-1' is no shape"),
        ("x:1x0", "dimension of 0"),
        ("x:1x3,8x3", "2 shapes, expected one or three"),
        ("x:1x3,8x3,64x3,65x3", "4 shapes"),
        ("x:1x3;x:1x3", "comes twice"),
        ("x:1x3,8,64x3", "different ranks: 1x3,8,64x3"),
        ("x:8x3,1x3,64x3", "expected min <= opt <= max"),
        ("x:1x3;", "no shape"),
    ],
)
def test_what_is_no_shape_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        parse_shapes(text)


@pytest.mark.parametrize(
    ("minimum", "optimum", "maximum", "ranges"),
    [
        (None, None, None, None),
        ("x:1x3,m:1", "x:8x3,m:8", "x:64x3,m:64", {"x": ((1, 3), (8, 3), (64, 3)), "m": ((1,), (8,), (64,))}),
        (None, "x:8x3", None, {"x": same(8, 3)}),
    ],
)
def test_shapes_as_trtexec_takes_them(minimum: str, optimum: str, maximum: str, ranges: Any) -> None:
    assert parse_trtexec(minimum, optimum, maximum) == ranges


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("x:1x3", None, "x:2x3"), "need --optShapes"),
        (("x:1x3", None, None), "need --optShapes"),
        ((None, "x:1x3", "x:2x3"), "got one of"),
        (("x:1x3", "x:2x3", None), "got one of"),
        (("x:1x3", "x:2x3,m:1", "x:3x3"), "name different inputs; complete m"),
        (("x:1x3", "x:1x3,2x3,3x3", "x:3x3"), "expected one shape in each"),
        (("x:2x3", "x:1x3", "x:3x3"), "min <= opt <= max"),
    ],
)
def test_incomplete_shapes_of_trtexec_are_refused(given: tuple[str, str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        parse_trtexec(*given)


# ---- profiles ----


def test_a_free_batch_needs_no_shapes() -> None:
    (found,) = profiles([IMAGE, FIXED, MASK])
    assert sides(found) == {
        "x": [(1, 3, 8, 8), (8, 3, 8, 8), (64, 3, 8, 8)],
        "scale": [(4,)] * 3,
        "mask": [(1,), (8,), (64,)],
    }


def test_a_fixed_model_is_one_shape() -> None:
    (found,) = profiles([FIXED])
    assert found.static
    assert buckets([FIXED], found) == ({"scale": (4,)},)


def test_buckets_stretch_the_profile_that_nobody_gave() -> None:
    (found,) = profiles([IMAGE], None, (4, 16, 128))
    assert [shape[0] for shape in sides(found)["x"]] == [1, 16, 128]


@pytest.mark.parametrize(
    ("asked", "x", "mask"),
    [
        ("x:1x3x8x8", [1, 1, 1], [1, 1, 1]),
        ("x:1x3x8x8,2x3x8x8,4x3x8x8", [1, 2, 4], [1, 2, 4]),  # who is not named follows the batch of who is
        ("x:1x3x8x8,2x3x8x8,4x3x8x8;mask:7", [1, 2, 4], [7, 7, 7]),
        ({"x": (2, 3, 8, 8)}, [2, 2, 2], [2, 2, 2]),
        ({"x": [(1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)]}, [1, 2, 4], [1, 2, 4]),
        ({"mask": [[1], [2], [4]]}, [1, 2, 4], [1, 2, 4]),
        (Profile({"mask": (1,)}, {"mask": (2,)}, {"mask": (4,)}), [1, 2, 4], [1, 2, 4]),
    ],
)
def test_what_was_asked_is_completed(asked: Asked, x: list[int], mask: list[int]) -> None:
    (found,) = profiles([IMAGE, FIXED, MASK], asked)
    assert [shape[0] for shape in sides(found)["x"]] == x
    assert [shape[0] for shape in sides(found)["mask"]] == mask
    assert sides(found)["scale"] == [(4,)] * 3


def test_an_input_named_again_begins_another_profile_and_others_complete_it() -> None:
    first, second = profiles([IMAGE, MASK], ["x:8x3x8x8", "mask:7", "x:1x3x8x8", {"mask": (2,)}])
    assert [sides(each)["x"][0][0] for each in (first, second)] == [8, 1]
    assert [sides(each)["mask"][0][0] for each in (first, second)] == [7, 2]
    whole = Profile({"x": (4, 3, 8, 8)}, {"x": (4, 3, 8, 8)}, {"x": (4, 3, 8, 8)})
    assert [sides(each)["x"][0][0] for each in profiles([IMAGE, MASK], [whole, "mask:7;x:2x3x8x8"])] == [4, 2]
    with pytest.raises(InvalidArgument, match="input 'square'"):  # what is left open stays an error
        profiles([IMAGE, SQUARE], ["x:8x3x8x8", "x:1x3x8x8", "square:2x2"])


def test_axes_of_the_same_name_have_the_same_size() -> None:
    types = TensorSpec("types", "INT64", (-1, -1), axes=("batch", "tokens"))
    (found,) = profiles([IDS, types, SQUARE], "ids:1x16,2x32,8x128")
    assert sides(found)["types"] == sides(found)["ids"] == [(1, 16), (2, 32), (8, 128)]
    assert sides(found)["square"] == [(16, 16), (32, 32), (128, 128)]
    (found,) = profiles([IDS, types], "ids:1x16;types:1x8")  # what is given counts
    assert sides(found)["types"] == [(1, 8)] * 3


def test_several_profiles_stay_in_their_order() -> None:
    found = profiles([IMAGE], ["x:8x3x8x8", "x:1x3x8x8"])
    assert [sides(each)["x"][0][0] for each in found] == [8, 1]
    with pytest.raises(InvalidArgument, match="profile 2 repeats"):
        profiles([IMAGE], ["x:8x3x8x8", {"x": (8, 3, 8, 8)}])


@pytest.mark.parametrize(
    ("inputs", "asked", "words"),
    [
        (
            [IDS],
            None,
            "[batch, tokens]: nothing says how large its free dimensions are; give --shapes ids:<batch>x<tokens>",
        ),
        ([SQUARE], None, "input 'square' is [tokens, tokens]"),
        ([SQUARE, IDS], None, "give --shapes square:<tokens>x<tokens> --shapes ids:<batch>x<tokens> with"),
        ([IDS, SQUARE], None, "give --shapes ids:<batch>x<tokens> with"),  # which tells the other's
        ([], None, "the model has no inputs"),
        ([IDS, MASK], "mask:1", "input 'ids' is [batch, tokens]"),
        ([IMAGE, SQUARE], "x:1x3x8x8", "input 'square'"),
        ([IMAGE], "y:1x3x8x8", "an input 'y', the model has x FP32[-1, 3, 8, 8]"),
        ([IMAGE], "x:1x3x8", "has shape [-1, 3, 8, 8], got 1x3x8"),
        ([IMAGE], "x:1x4x8x8", "has shape [-1, 3, 8, 8], got 1x4x8x8"),
        ([IMAGE], "x:1x3x8x8,2x3x8x8,2x3x8x9", "got 2x3x8x9"),
        ([IMAGE], {"x": (0, 3, 8, 8)}, "expected sizes from 1"),
        ([IMAGE], {"x": (1, (3, 8, 8))}, "expected a shape, or three of them"),
        ([TensorSpec("z", "FP32", (-1, -1))], None, "input 'z' is [?, ?]"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(inputs: list[TensorSpec], asked: Asked | None, words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        profiles(inputs, asked)


def test_a_dimension_0_named_like_another_is_no_batch() -> None:
    assert batched([IMAGE, IDS, MASK, SQUARE, FIXED]) == {"x", "ids", "mask"}


# ---- buckets ----


@pytest.mark.parametrize(
    ("asked", "batches", "found"),
    [
        ("x:1x3x8x8,8x3x8x8,64x3x8x8", (), [1, 8, 64]),
        ("x:1x3x8x8,1x3x8x8,64x3x8x8", (), [1, 64]),
        ("x:4x3x8x8", (), [4]),
        ("x:1x3x8x8,8x3x8x8,64x3x8x8", (2, 16, 128), [2, 16]),
        ("x:4x3x8x8", (1, 8), []),
    ],
)
def test_buckets_of_a_profile(asked: str, batches: tuple[int, ...], found: list[int]) -> None:
    (profile,) = profiles([IMAGE, FIXED], asked)
    made = buckets([IMAGE, FIXED], profile, batches)
    assert [each["x"][0] for each in made] == found
    assert all(each["scale"] == (4,) for each in made)


def test_buckets_take_the_optimum_of_other_dimensions() -> None:
    (profile,) = profiles([IDS], "ids:1x16,8x128,64x512")
    assert buckets([IDS], profile, (1, 4)) == ({"ids": (1, 128)}, {"ids": (4, 128)})
    assert buckets([IDS], profile) == ({"ids": (1, 16)}, {"ids": (8, 128)}, {"ids": (64, 512)})
