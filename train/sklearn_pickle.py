"""Reads a scikit-learn estimator's arrays out of a pickle (plain or joblib's) WITHOUT unpickling: nothing in the file
runs.

A pickle is a program. This reads its opcodes with the standard library's `pickletools` and interprets the few that
describe data (numbers, text, tuples, dictionaries, arrays, one estimator with its attributes); every name outside a
short list and every other opcode is refused (UnsafePickleError). So neither scikit-learn's version nor joblib matters.

A small file can describe an object that takes for ever to hash, compare or print (tuples of tuples), so types come
first: only text, numbers and flat tuples of numbers are hashed, compared or printed, and no message shows more than a
type.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ESTIMATORS = frozenset(
    {
        ("sklearn.linear_model._logistic", "LogisticRegression"),
        ("sklearn.neighbors._classification", "KNeighborsClassifier"),
        ("sklearn.svm._classes", "OneClassSVM"),
    }
)
_WRAPPER = ("joblib.numpy_pickle", "NumpyArrayWrapper")
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_ARRAY, _DTYPE = ("numpy", "ndarray"), ("numpy", "dtype")
_ALLOWED = ESTIMATORS | {_WRAPPER, _ARRAY, _DTYPE} | _RECONSTRUCT | _SCALAR
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "SHORT_BINBYTES",
        "BINBYTES",
    }
)
_FIXED_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnsafePickleError(ValueError):
    """The file holds more than a scikit-learn estimator's data, or is no pickle at all; nothing of it was run."""


@dataclass(frozen=True)
class _Name:
    module: str
    name: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.module, self.name


@dataclass
class _Object:
    """Something the pickle builds: an estimator, a dtype, an array or joblib's wrapper around one."""

    kind: _Name
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    value: Any = None


class _Mark:
    """Where a tuple or a run of items begins on the stack."""


def read_estimator(path: str | Path) -> tuple[str, dict[str, Any]]:
    """(class name, its attributes that are numbers, text or NumPy arrays) of the estimator in `path`.

    Raises UnsafePickleError; OSError if it cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            result = _interpret(file)
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{path}: {error}") from error
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            MemoryError,
            RecursionError,
        ) as error:
            raise UnsafePickleError(
                f"{path}: not a pickle of an estimator ({type(error).__name__}); download it again"
            ) from error
        if file.read(1):
            raise UnsafePickleError(f"{path}: data after the end of the pickle")
    if not isinstance(result, _Object) or result.kind.pair not in ESTIMATORS:
        raise UnsafePickleError(f"{path}: holds no scikit-learn estimator of the release")
    return result.kind.name, {
        key: _plain(value) for key, value in result.state.items() if not isinstance(value, (tuple, dict))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, _Object):
        if value.kind.pair in ESTIMATORS:
            raise UnsafePickleError(f"an estimator inside an estimator: {value.kind.name}")
        return value.value
    return value


def _interpret(file: BinaryIO) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = len(stack) - 1
        while not isinstance(stack[start], _Mark):  # from the top, so that many marks cost no more than their items
            start -= 1
            if start < 0:
                raise UnsafePickleError("a tuple has no beginning")
        items = stack[start + 1 :]
        del stack[start:]
        return items

    operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(file)
    for opcode, argument, position in operations:
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _FIXED_TUPLES:
            count = _FIXED_TUPLES[name]
            fixed = tuple(stack[len(stack) - count :])
            del stack[len(stack) - count :]
            stack.append(fixed)
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            items = pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _set_items(stack[-1], items)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_admit(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_admit(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, kind = stack.pop(), stack.pop()
            stack.append(_construct(kind, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state, file)
        else:
            raise UnsafePickleError(f"opcode {name} at byte {position} is not needed for arrays: refused")
    raise UnsafePickleError("the pickle has no end")


def _set_items(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise UnsafePickleError(f"sets items of a {type(target).__name__}: refused")
    for key in items[::2]:
        if type(key) not in (str, int):
            raise UnsafePickleError(
                f"a dictionary key of type {type(key).__name__}, only text and whole numbers are expected: refused"
            )
    target.update(zip(items[::2], items[1::2], strict=True))


def _admit(module: Any, name: Any) -> _Name:
    if type(module) is not str or type(name) is not str:
        raise UnsafePickleError(
            f"a name made of {type(module).__name__} and {type(name).__name__}, not of text: refused, nothing was run"
        )
    if (module, name) not in _ALLOWED:
        raise UnsafePickleError(
            f"names {ascii(f'{module[:60]}.{name[:60]}')[1:-1]}, which is not part of an estimator's data: "
            "refused, nothing was run"
        )
    return _Name(module, name)


def _construct(kind: Any, arguments: Any) -> _Object:
    if not isinstance(kind, _Name) or not isinstance(arguments, tuple):
        raise UnsafePickleError("calls something that is not a name: refused")
    made = _Object(kind, arguments)
    if kind.pair == _DTYPE:
        made.value = _number_dtype(arguments[0])
    elif kind.pair in _SCALAR:
        made.value = np.frombuffer(arguments[1], dtype=arguments[0].value)[0]
    elif kind.pair in ESTIMATORS | {_WRAPPER} and arguments:
        raise UnsafePickleError(f"{kind.name} takes no arguments here: refused")
    return made


def _number_dtype(description: Any) -> np.dtype[Any]:
    if type(description) is not str:
        raise UnsafePickleError(f"an array type given as a {type(description).__name__}, not as text: refused")
    if not re.fullmatch("[fiub][0-9]{1,2}", description):
        raise UnsafePickleError(f"an array of type {description[:20]!a}, only numbers are expected: refused")
    return np.dtype(description)


def _build(target: Any, state: Any, file: BinaryIO) -> None:
    if not isinstance(target, _Object):
        raise UnsafePickleError("sets the state of something that is no object: refused")
    pair = target.kind.pair
    if pair in ESTIMATORS | {_WRAPPER} and type(state) is not dict:
        raise UnsafePickleError(f"the state of {target.kind.name} is a {type(state).__name__}, no dictionary: refused")
    if pair == _DTYPE:
        target.value = target.value.newbyteorder(state[1])
    elif pair in _RECONSTRUCT:
        _, shape, dtype, fortran, data = state
        target.value = _array(data, dtype, shape, "F" if fortran else "C")
    elif pair == _WRAPPER:
        padding = file.read(1)[0] if state.get("numpy_array_alignment_bytes") is not None else 0
        file.read(padding)
        _check_shape(state["shape"])
        size_bytes = math.prod(state["shape"]) * state["dtype"].value.itemsize
        target.value = _array(file.read(size_bytes), state["dtype"], state["shape"], state["order"])
    elif pair in ESTIMATORS:
        target.state.update(state)
    else:
        raise UnsafePickleError(f"sets the state of {target.kind.name}: refused")


def _array(data: bytes, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Object) or dtype.kind.pair != _DTYPE or order not in ("C", "F"):
        raise UnsafePickleError("an array without a number type or order: refused")
    _check_shape(shape)
    array: np.ndarray = np.frombuffer(data, dtype=dtype.value).reshape(shape, order=order).copy()
    return array


def _check_shape(shape: Any) -> None:
    if type(shape) is not tuple or len(shape) > 8 or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise UnsafePickleError("an array whose shape is not a few whole numbers: refused")
