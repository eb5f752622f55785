"""A torch module as an ONNX file: torch.export with its ONNX exporter, weights whole, batch axes free where asked.

Called by the driver when it is given a module and not a path. torch is an extra (`pip install penstock[torch]`) and is
imported here only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.build.torch_attention import of_four_axes
from penstock.errors import InvalidArgument, ModelLoadError, Unsupported


def is_module(model: object) -> bool:
    """Whether it is a torch module; torch is not imported for that."""
    return any(each.__module__.startswith("torch.nn.") and each.__name__ == "Module" for each in type(model).__mro__)


def export(
    module: Any, path: Path, example_inputs: Sequence[Any] | Mapping[str, Any] | None, *, free_batch: bool
) -> None:
    """Write `module` to `path` in evaluation mode; the module's own mode is put back.

    example_inputs  what it is called with: tensors in order, or by parameter name. Names of the parameters become the
                    names of the inputs.
    free_batch      the first axis of every input of more than zero dimensions takes any size from 1.

    Raises InvalidArgument (no examples), Unsupported (torch is not installed), ModelLoadError (it can't be exported).
    """
    if not example_inputs:
        raise InvalidArgument("a torch module needs example_inputs, one tensor for each of its inputs")
    try:
        import torch
    except ImportError:
        raise Unsupported("torch is not installed; pip install 'penstock[torch]'") from None
    names = list(example_inputs) if isinstance(example_inputs, Mapping) else _parameters(module, len(example_inputs))
    values = list(example_inputs.values()) if isinstance(example_inputs, Mapping) else list(example_inputs)
    tensors = [value if isinstance(value, torch.Tensor) else torch.as_tensor(value) for value in values]
    free = {
        name: {0: torch.export.Dim.DYNAMIC} if free_batch and tensor.ndim else None
        for name, tensor in zip(names, tensors, strict=True)
    }
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), of_four_axes():
            program = torch.onnx.export(
                module,
                args=(),
                kwargs=dict(zip(names, tensors, strict=True)),
                input_names=names,
                dynamic_shapes=free if free_batch else None,
                dynamo=True,
                verbose=False,
            )
        program.save(str(path), external_data=False)
    except Exception as error:  # the exporter's errors have no common base
        raise ModelLoadError(
            f"{type(module).__name__} can't be exported to ONNX: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    finally:
        module.train(training)


def _parameters(module: Any, count: int) -> list[str]:
    import inspect

    names = [
        each.name
        for each in inspect.signature(module.forward).parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(names) < count:
        raise InvalidArgument(
            f"{type(module).__name__}.forward takes {len(names)} named tensors, got {count} examples; pass a dictionary"
        )
    return names[:count]
