"""The protobuf message behind config.pbtxt, and its three forms: text, JSON and bytes.

`model_config.binpb` is compiled from `proto/model_config.proto` (a test compares them). It is loaded into a descriptor
pool of its own, since Triton's client package registers the same message names in the default one, and both must live
in one process.
"""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock import limits
from penstock.errors import ConfigError

# 64-bit integers are strings in canonical proto3 JSON; Triton prints numbers, and its clients read them as such.
_FLOAT: Final = FieldDescriptor.TYPE_FLOAT
_PIECE: Final = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>]|[A-Za-z_][A-Za-z0-9_]*|.""", re.S)


@cache
def _model_config() -> type[Message]:
    pool = descriptor_pool.DescriptorPool()
    data = files("penstock.repository").joinpath("model_config.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return found


def new() -> Any:
    """An empty `inference.ModelConfig`. Typed as Any: its class is made when the program runs."""
    return _model_config()()


def from_text(text: str, where: str) -> Any:
    """Read config.pbtxt; `where` names it in messages. Raises ConfigError."""
    _bounded(text, where)
    message = new()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError) as error:
        raise ConfigError(f"{where} can't be read: {_sentence(error)}") from None
    return message


def from_json(text: str, where: str) -> Any:
    """Read the JSON form, with the names of config.pbtxt, 64-bit integers as numbers or strings. Raises ConfigError."""
    _bounded(text, where)
    message = new()
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is no JSON object")
        json_format.ParseDict(value, message)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} can't be read: {_sentence(error)}") from None
    return message


def names_in_text(text: str) -> frozenset[str]:
    """Names of the fields set at the top level of a config.pbtxt; proto3 itself forgets which zeros were written."""
    found: set[str] = set()
    depth = 0
    for piece in _PIECE.findall(text):
        if piece in "{<":
            depth += 1
        elif piece in "}>":
            depth -= 1
        elif depth == 0 and (piece[0].isalpha() or piece[0] == "_"):
            found.add(piece)  # values such as KIND_CPU are in, too: harmless, since no field is called so
    return frozenset(found)


def names_in_json(text: str) -> frozenset[str]:
    """The same for the JSON form; the text must have been read before."""
    value = json.loads(text)
    return frozenset(re.sub(r"(?<=[a-z])([A-Z])", lambda match: "_" + match[1].lower(), name) for name in value)


def to_json(message: Any) -> str:
    """proto3 JSON as Triton prints it: names as in config.pbtxt, defaults printed, 64-bit integers as numbers."""
    return json.dumps(_object(message), separators=(",", ":"), ensure_ascii=False)


def _object(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _value(inner, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            found[field.name] = [_value(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            found[field.name] = _value(field, value)
    return found


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _object(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if field.type == _FLOAT:
        return float(f"{value:.8g}")  # what a 32-bit float holds; more digits would be noise
    return value


def _bounded(text: str, where: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.CONFIG_BYTES:
        raise ConfigError(f"{where} has {size} bytes, expected at most {limits.CONFIG_BYTES}")


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()).replace('Message type "inference.ModelConfig" has', "a model configuration has")
    text = text.partition(" Available Fields")[0]
    return re.sub(r"^(\d+):(\d+) : ", r"line \1, column \2: ", text)[:500]
