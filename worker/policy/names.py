"""The facts that a rule may read, by name and type, and the CEL environments made of them.

Two environments: `checking` knows every name and type, so that a wrong one is told before the first image; `running`
takes what it is given. The second is untyped on purpose: a typed one would read an absent number as 0, where the
contract wants an error, which makes a rule not hold.
"""

from __future__ import annotations

import functools
import itertools
import types
from typing import Any, Union, get_args, get_origin

from cel_expr_python import cel
from cel_expr_python.ext import ext_math
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from pydantic import BaseModel

from worker.contract import HEADS, ImageInfo
from worker.evidence import Evidence

FACTS = ("scores", "detectors", "image", "evidence", "headers")
FUNCTIONS = ("min", "max")
_PACKAGE = "assay"
_NUMBERS = {"int": cel.Type.INT, "uint": cel.Type.UINT, "double": cel.Type.DOUBLE}
_ORDERED = ("string", "bool", "bytes", "google.protobuf.Duration", "google.protobuf.Timestamp")
_ARITIES = (2, 3)
_FIELD = descriptor_pb2.FieldDescriptorProto
_WRAPPERS = {str: "StringValue", float: "DoubleValue", int: "Int64Value"}


def fields_of(struct: str) -> tuple[str, ...]:
    """The fields of `assay.Evidence` and the like, or of `scores`; empty for what is no such name."""
    if struct == "scores":
        return HEADS
    model = _models().get(struct.removeprefix(f"{_PACKAGE}."))
    return tuple(model.model_fields) if model else ()


@functools.cache
def _models() -> dict[str, type[BaseModel]]:
    """The models of `image` and `evidence` and those inside them, by class name."""
    found: dict[str, type[BaseModel]] = {}

    def visit(model: type[BaseModel]) -> None:
        found[model.__name__] = model
        for info in model.model_fields.values():
            kind = _base(info.annotation)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                visit(kind)

    visit(ImageInfo)
    visit(Evidence)
    return found


def _base(annotation: Any) -> Any:
    """`str | None`, `Literal["a", "b"] | None` and `Annotated[str, …]` are text; `int | None` is a number."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _base(next(part for part in get_args(annotation) if part is not types.NoneType))
    if origin is None:
        return annotation
    return _base(type(get_args(annotation)[0]) if str(origin) == "typing.Literal" else get_args(annotation)[0])


def _descriptors() -> descriptor_pool.DescriptorPool:
    """The models as protobuf messages: the only form in which the type checker takes fields of several types."""
    file = descriptor_pb2.FileDescriptorProto(
        name="assay.proto", package=_PACKAGE, syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    for name, model in _models().items():
        message = file.message_type.add(name=name)
        for number, (field, info) in enumerate(model.model_fields.items(), 1):
            kind = _base(info.annotation)
            target = f"google.protobuf.{_WRAPPERS[kind]}" if kind in _WRAPPERS else f"{_PACKAGE}.{kind.__name__}"
            message.field.add(
                name=field,
                number=number,
                label=_FIELD.LABEL_OPTIONAL,
                type=_FIELD.TYPE_MESSAGE,
                type_name=f".{target}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _overload(overload_id: str, arguments: list[str]) -> str:
    # "A" stands for any type, the same on both sides.
    lines = [f"    - type_name: {name}" + ("\n      is_type_param: true" if name == "A" else "") for name in arguments]
    return "\n".join([f"  - id: {overload_id}", "    args:", *lines, "    return:", "      type_name: bool"])


def _comparisons() -> str:
    """The environment's configuration: numbers of different types compare, as they do when an expression runs.

    The library's own checker refuses `scores.linear >= 1`, an integer beside a float.
    """
    mixed = [(left, right) for left, right in itertools.product(_NUMBERS, repeat=2) if left != right]
    operators = {"_==_": "equals", "_!=_": "not_equals"}
    operators |= {"_<_": "less", "_<=_": "less_equals", "_>_": "greater", "_>=_": "greater_equals"}
    lines = ["name: assay", "stdlib:", "  exclude_functions:", *(f"  - name: '{sign}'" for sign in operators)]
    lines.append("functions:")
    for sign, name in operators.items():
        same = ("A",) if sign in ("_==_", "_!=_") else (*_NUMBERS, *_ORDERED)
        lines += [f"- name: '{sign}'", "  overloads:"]
        lines += [_overload(f"{name}_{number}", [kind, kind]) for number, kind in enumerate(same)]
        lines += [_overload(f"{name}_{left}_{right}", [left, right]) for left, right in mixed]
    return "\n".join(lines) + "\n"


def _functions() -> list[cel.FunctionDecl]:
    """`min` and `max` of two or three numbers, for the checker alone (extremes.py); integers stay integers."""
    numbers = {"int": cel.Type.INT, "double": cel.Type.DOUBLE}

    def overloads(name: str) -> list[cel.Overload]:
        return [
            cel.Overload(
                f"{name}_{'_'.join(kinds)}",
                return_type=numbers["int" if set(kinds) == {"int"} else "double"],
                parameters=[numbers[kind] for kind in kinds],
            )
            for arity in _ARITIES
            for kinds in itertools.product(numbers, repeat=arity)
        ]

    return [cel.FunctionDecl(name, overloads(name)) for name in FUNCTIONS]


@functools.cache
def checking() -> cel.Env:
    """Compiles with types: raises RuntimeError for an unknown name or a wrong type."""
    text, number = cel.Type.STRING, cel.Type.DOUBLE
    variables = {
        "scores": cel.Type.Map(text, number),
        "detectors": cel.Type.Map(text, cel.Type.Map(text, number)),
        "image": cel.Type(f"{_PACKAGE}.{ImageInfo.__name__}"),
        "evidence": cel.Type(f"{_PACKAGE}.{Evidence.__name__}"),
        "headers": cel.Type.Map(text, text),
    }
    assert set(variables) == set(FACTS)
    config = cel.NewEnvConfigFromYaml(_comparisons())
    return cel.NewEnv(_descriptors(), config=config, variables=variables, functions=_functions())


@functools.cache
def running() -> cel.Env:
    """Compiles what `checking` has accepted and extremes.py has put into the library's words, for evaluation."""
    return cel.NewEnv(variables=dict.fromkeys(FACTS, cel.Type.DYN), extensions=[ext_math.ExtMath()])
