"""The shapes an engine is built for: what the user wrote, completed from the model's own signature.

`--shapes` and its relatives become `Ranges` (what was said, per input), those become `Profile`s once the signature is
known, and a profile becomes the buckets that are timed. The batch is dimension 0 where it is free; a model whose only
free dimension it is needs no `--shapes`. Everything that can't be understood is an InvalidArgument that says what was
expected, what came and how to write it. Called by the driver and the command line.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from penstock.engine.plan import Profile, Shape, Shapes
from penstock.errors import InvalidArgument
from penstock.tactics.memory import available
from penstock.tensors import TensorSpec

Range = tuple[Shape, Shape, Shape]
"""Smallest, the one to be fastest at, largest."""

Ranges = Mapping[str, Range]
"""One profile as the user gave it: input name -> range."""

Asked = str | Profile | Mapping[str, Shape | Sequence[Shape]]
"""One profile in any form the Python API takes: text of `--shapes`, a Profile, {name: shape or (min, opt, max)}."""

# One request alone, a middling batch, and the largest that a bare file is served with: the batches a server forms under
# no, some and full load. The middle one is what tactics are chosen for where an engine has room for one only.
DEFAULT_BATCHES: Final = (1, 8, 64)

_FORM: Final = "x:1x3x224x224, or x:1x3x224x224,8x3x224x224,64x3x224x224 (min,opt,max)"
_SHAPE: Final = re.compile(r"\d+(?:x\d+)*|scalar", re.ASCII)


def parse_shapes(text: str) -> Ranges:
    """One `--shapes`: `x:1x3,8x3,64x3;mask:1,8,64`; one shape for an input stands for all three.

    Inputs are separated by `;` or `,`. What stands before a shape's last colon is the name, so names may have colons;
    `scalar` is the shape without dimensions. Raises InvalidArgument.
    """
    found: dict[str, list[Shape]] = {}
    name = ""
    for part in re.split(r"[;,]", text):
        before, colon, digits = part.strip().rpartition(":")
        if colon:
            name = before.strip()
            if not name or name in found:
                raise InvalidArgument(
                    f"shapes {text!r}: {'input ' + repr(name) + ' comes twice' if name else 'a name is missing'}, "
                    f"expected {_FORM}"
                )
            found[name] = []
        if not name:
            raise InvalidArgument(f"shapes {text!r}: {part.strip()!r} has no input name before it, expected {_FORM}")
        found[name].append(_shape(digits.strip(), text))
    return {name: _range(name, shapes) for name, shapes in found.items()}


def _shape(digits: str, text: str) -> Shape:
    if _SHAPE.fullmatch(digits) is None:
        raise InvalidArgument(f"shapes {text!r}: {digits!r} is no shape, expected {_FORM}")
    shape = () if digits == "scalar" else tuple(map(int, digits.split("x")))
    if 0 in shape:
        raise InvalidArgument(f"shapes {text!r}: {digits!r} has a dimension of 0, expected sizes from 1")
    return shape


def _range(name: str, shapes: Sequence[Shape]) -> Range:
    if len(shapes) not in (1, 3):
        raise InvalidArgument(f"input {name!r}: {len(shapes)} shapes, expected one or three (min,opt,max): {_FORM}")
    low, best, high = (shapes[0],) * 3 if len(shapes) == 1 else shapes
    if len({len(low), len(best), len(high)}) != 1:
        raise InvalidArgument(f"input {name!r}: min, opt and max have different ranks: {_written((low, best, high))}")
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise InvalidArgument(f"input {name!r}: expected min <= opt <= max in each dimension, got {_written(shapes)}")
    return low, best, high


def _written(shapes: Sequence[Shape]) -> str:
    return ",".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def parse_trtexec(minimum: str | None, optimum: str | None, maximum: str | None) -> Ranges | None:
    """trtexec's --minShapes, --optShapes and --maxShapes, `x:1x3x224x224,mask:1x5` each; None when none was given.

    As there, the optimum alone is a static profile. Raises InvalidArgument when only some are given.
    """
    if minimum is None and optimum is None and maximum is None:
        return None
    if optimum is None:
        raise InvalidArgument("--minShapes and --maxShapes need --optShapes beside them; or give --optShapes alone")
    if (minimum is None) != (maximum is None):
        raise InvalidArgument("--optShapes got one of --minShapes and --maxShapes; give all three, or it alone")
    sides = [parse_shapes(text if text is not None else optimum) for text in (minimum, optimum, maximum)]
    for side in sides:
        for name, (low, _, high) in side.items():
            if low != high:
                raise InvalidArgument(
                    f"input {name!r}: expected one shape in each of --minShapes, --optShapes, --maxShapes"
                )
        if side.keys() != sides[0].keys():
            odd = ", ".join(sorted(side.keys() ^ sides[0].keys()))
            raise InvalidArgument(f"--minShapes, --optShapes and --maxShapes name different inputs; complete {odd}")
    return {name: _range(name, [side[name][0] for side in sides]) for name in sides[0]}


def profiles(
    inputs: Sequence[TensorSpec], asked: Asked | Sequence[Asked] | None = None, batches: Sequence[int] = ()
) -> tuple[Profile, ...]:
    """What was asked for, completed from the signature; without anything asked, the one profile the signature gives.

    inputs   of the model, free dimensions -1.
    asked    one or more profiles. What names other inputs than the one before it completes that one, as `--shapes`
             repeated for every input does; a `Profile` is one by itself.
    batches  of `--buckets`: without `asked` the profile reaches from 1 to the largest of them.

    Inputs not named keep their fixed dimensions and follow the batch of those named, or the axes that have the same
    name. Raises InvalidArgument for unknown names, ranks, fixed dimensions that differ, free dimensions that nothing
    says the size of, models without inputs, and inputs that don't fit into the memory that is available.
    """
    if not inputs:
        raise InvalidArgument("the model has no inputs, so that there is nothing to build: it always answers the same")
    found = _profiles(inputs, asked, batches)
    for each in found:
        _check_memory(inputs, each)
    return found


def _profiles(
    inputs: Sequence[TensorSpec], asked: Asked | Sequence[Asked] | None, batches: Sequence[int]
) -> tuple[Profile, ...]:
    if asked is None:
        return (_default(inputs, batches),)
    several = [asked] if isinstance(asked, (str, Profile, Mapping)) else list(asked)
    if not several:
        return (_default(inputs, batches),)
    found = tuple(_completed(inputs, each) for each in _joined(several))
    for number, each in enumerate(found):
        if each in found[:number]:
            raise InvalidArgument(f"profile {number + 1} repeats another; leave one out")
    return found


def _joined(several: Sequence[Asked]) -> list[Ranges]:
    """The profiles meant: one that names none of the inputs of the one before it is the rest of that one."""
    found: list[dict[str, Range]] = []
    whole = True
    for asked in several:
        ranges = _ranges(asked)
        if not whole and not isinstance(asked, Profile) and ranges.keys().isdisjoint(found[-1]):
            found[-1].update(ranges)
        else:
            found.append(dict(ranges))
        whole = isinstance(asked, Profile)
    return list(found)


def _ranges(asked: Asked) -> Ranges:
    if isinstance(asked, str):
        return parse_shapes(asked)
    if isinstance(asked, Profile):
        return {
            name: _range(name, [tuple(side[name]) for side in (asked.minimum, asked.optimum, asked.maximum)])
            for name in asked.minimum
        }
    found: dict[str, Range] = {}
    for name, given in asked.items():
        one = [size for size in given if isinstance(size, int)]
        several = [tuple(map(int, shape)) for shape in given if not isinstance(shape, int)]
        if one and several:
            raise InvalidArgument(f"input {name!r}: expected a shape, or three of them (min, opt, max), got {given!r}")
        found[name] = _range(name, several or [tuple(one)])
        if any(size < 1 for shape in found[name] for size in shape):
            raise InvalidArgument(f"input {name!r}: expected sizes from 1, got {given!r}")
    return found


def batched(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Names of the inputs whose dimension 0 is the batch: free, and not named like a dimension that is no batch."""
    elsewhere = {axis for spec in inputs for axis in spec.axes[1:] if axis is not None}
    return frozenset(
        spec.name
        for spec in inputs
        if spec.shape and spec.shape[0] == -1 and not (spec.axes and spec.axes[0] in elsewhere)
    )


def _check_memory(inputs: Sequence[TensorSpec], profile: Profile) -> None:
    """Inputs of the largest shapes are made, for timing and for the gate."""
    there = available()
    for spec in inputs:
        shape = profile.maximum[spec.name]
        size = math.prod(shape) * spec.dtype.itemsize
        if there is not None and size > there:
            raise InvalidArgument(
                f"input {spec.name!r} of {_written([shape])} takes {size} bytes, and {there} are available here; "
                "give smaller --shapes or --buckets"
            )


def _default(inputs: Sequence[TensorSpec], batches: Sequence[int]) -> Profile:
    sizes = sorted(batches) if batches else list(DEFAULT_BATCHES)
    free = batched(inputs)
    if unknown := [spec for spec in inputs if -1 in spec.shape[1 if spec.name in free else 0 :]]:
        raise _open(unknown)
    sides = (1, sizes[len(sizes) // 2], sizes[-1])
    low, best, high = (
        {spec.name: (size, *spec.shape[1:]) if spec.name in free else spec.shape for spec in inputs} for size in sides
    )
    return Profile(low, best, high)


def _free(spec: TensorSpec) -> dict[int, str | None]:
    """Axes without a size -> their names."""
    names = spec.axes or (None,) * len(spec.shape)
    return {at: name for at, (size, name) in enumerate(zip(spec.shape, names, strict=True)) if size == -1}


def _open(unknown: Sequence[TensorSpec]) -> InvalidArgument:
    """What to give for these inputs; one tells the sizes of others by the names of its axes."""
    wanted: list[str] = []
    told: set[str | None] = {None}
    for spec in unknown:
        free = _free(spec)
        form = "x".join(f"<{free[at] or '?'}>" if at in free else str(size) for at, size in enumerate(spec.shape))
        if not set(free.values()) - {None} <= told or None in free.values():
            wanted.append(f"--shapes {spec.name}:{form}")
        told |= set(free.values())
    first, free = unknown[0], _free(unknown[0])
    dims = ", ".join(free[at] or "?" if at in free else str(size) for at, size in enumerate(first.shape))
    return InvalidArgument(
        f"input {first.name!r} is [{dims}]: nothing says how large its free dimensions are; "
        f"give {' '.join(wanted)} with numbers, or three of them (min,opt,max)"
    )


def _completed(inputs: Sequence[TensorSpec], ranges: Ranges) -> Profile:
    known = {spec.name: spec for spec in inputs}
    for name, (low, _, high) in ranges.items():
        if name not in known:
            raise InvalidArgument(f"shapes name an input {name!r}, the model has {', '.join(map(str, inputs))}")
        for shape in (low, high):
            if not known[name].accepts(shape):
                raise InvalidArgument(
                    f"input {name!r} has shape {list(known[name].shape)}, got {_written([shape])}; "
                    "free dimensions are -1, the others must stay as they are"
                )
    free = batched(inputs)
    batch: Range | None = next((ranges[name] for name in ranges if name in free), None)
    named = {
        axis: tuple(side[at] for side in ranges[spec.name])
        for spec in inputs if spec.name in ranges
        for at, axis in _free(spec).items() if axis is not None
    }  # fmt: skip
    sides: tuple[dict[str, Shape], ...] = ({}, {}, {})
    unknown: list[TensorSpec] = []
    for spec in inputs:
        axes = _free(spec)
        for number, side in enumerate(sides):
            if spec.name in ranges:
                side[spec.name] = ranges[spec.name][number]
            elif -1 not in spec.shape:
                side[spec.name] = spec.shape
            elif batch is not None and spec.name in free and -1 not in spec.shape[1:]:
                side[spec.name] = (batch[number][0], *spec.shape[1:])
            elif all(axis in named for axis in axes.values()):
                sizes = {at: named[axis][number] for at, axis in axes.items() if axis is not None}
                side[spec.name] = tuple(sizes.get(at, size) for at, size in enumerate(spec.shape))
            elif spec not in unknown:
                unknown.append(spec)
    if unknown:
        raise _open(unknown)
    return Profile(*sides)


def buckets(inputs: Sequence[TensorSpec], profile: Profile, batches: Sequence[int] = ()) -> tuple[Shapes, ...]:
    """The shapes of a profile that are timed: its optimum at each of `batches`; without, its min, opt and max.

    Batches that the profile does not take are left out; the same shapes come once. Empty only where `batches` has
    none that fits.
    """
    if not batches:
        found: list[Shapes] = [dict(profile.minimum), dict(profile.optimum), dict(profile.maximum)]
        return tuple(shapes for number, shapes in enumerate(found) if shapes not in found[:number])
    free = batched(inputs)
    made: list[Shapes] = []
    for size in sorted(batches):
        shapes = {name: (size, *shape[1:]) if name in free else shape for name, shape in profile.optimum.items()}
        if profile.contains(shapes) and shapes not in made:
            made.append(shapes)
    return tuple(made)


def free_shapes(profiles: Iterable[Profile]) -> bool:
    """Whether calls come with shapes that padding the batch of a bucket can't reach."""
    return any(each.minimum[name][1:] != each.maximum[name][1:] for each in profiles for name in each.minimum)


def distinct(found: Iterable[Shapes]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Each combination of shapes once, in order."""
    kept = dict.fromkeys(tuple((name, tuple(shape)) for name, shape in each.items()) for each in found)
    return tuple(dict(each) for each in kept)
